"""Published lists: what they say, and that a pickled one can run nothing."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest

from diffup_jax.data import published
from diffup_jax.types import DiffUpError


class Trap:
    """A pickle of this creates the file `path` when any ordinary reader opens it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def write(root: Path, name: str, content: object) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_bytes(content.encode())
    else:
        path.write_bytes(pickle.dumps(content, protocol=3))
    return path


def test_coco_lists_in_any_of_two_places(tmp_path):
    content = {0: [], 1: ["val2014/b.jpg", "val2014/a.jpg"], 5: ["x"], 9: []}
    write(tmp_path, "coco/val/fold1.pkl", content)
    expected = {1: ("val2014/b.jpg", "val2014/a.jpg"), 5: ("x",)}
    for folder in (tmp_path, tmp_path / "coco"):
        lists = published.read_lists(folder, "coco", split="val", fold=1)
        assert lists == expected and list(lists) == [1, 5]


def test_pascal_lists_keep_their_order(tmp_path):
    write(tmp_path, "pascal/trn/fold2.txt", "b__11\na__20\na__11\n\n")
    lists = published.read_lists(tmp_path, "pascal", split="trn", fold=2)
    assert lists == {10: ("b", "a"), 19: ("a",)}


@pytest.mark.parametrize(("split", "first"), [("trn", 0), ("val", 520), ("test", 760)])
def test_fss_lists_number_sorted_classes(tmp_path, split, first):
    write(tmp_path, f"fss/{split}.txt", "tower\r\na bus\r\ncoin\r\n")
    lists = published.read_lists(tmp_path, "fss", split=split, fold=0)
    assert list(lists) == [first, first + 1, first + 2]
    assert lists[first][:2] == ("a bus/1", "a bus/2") and len(lists[first]) == 10
    assert lists[first + 2][-1] == "tower/10"


def test_pfenet_lists(tmp_path):
    path = write(tmp_path, "val.txt", "J/a.jpg S/a.png\nJ/b.jpg S/b.png\n")
    assert published.read_pfenet(path) == (
        ("J/a.jpg", "S/a.png"),
        ("J/b.jpg", "S/b.png"),
    )
    path.write_text("J/a.jpg S/b.png\n")
    with pytest.raises(DiffUpError, match=r"val.txt, line 1 is 'J/a.jpg S/b.png'"):
        published.read_pfenet(path)


@pytest.mark.parametrize("inside", [lambda trap: trap, lambda trap: {0: ["a", trap]}])
def test_a_pickle_that_would_run_something_is_refused(tmp_path, inside):
    made = tmp_path / "made"
    path = write(tmp_path, "fold0.pkl", inside(Trap(made)))
    with pytest.raises(DiffUpError, match=r"fold0.pkl asks for .*Delete it"):
        published.read_coco(path)
    assert not made.exists()
    pickle.loads(path.read_bytes())  # the trap does work
    assert made.exists()


@pytest.mark.parametrize(
    "content",
    [OrderedDict({0: ["a"]}), {0: {"a"}}, {0: [b"a".decode().join]}],
    ids=["class", "set", "method"],
)
def test_not_even_harmless_classes_are_read(tmp_path, content):
    path = write(tmp_path, "fold0.pkl", content)
    with pytest.raises(DiffUpError, match="fold0.pkl"):
        published.read_coco(path)


@pytest.mark.parametrize(
    "content",
    [["a"], {"0": ["a"]}, {80: ["a"]}, {-1: ["a"]}, {0: "a"}, {0: [1]}, {True: ["a"]}],
)
def test_pickles_of_another_form_are_refused(tmp_path, content):
    with pytest.raises(DiffUpError, match="does not hold"):
        published.read_coco(write(tmp_path, "fold0.pkl", content if content else 0))


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_broken_pickles_are_refused(tmp_path, cut):
    path = write(tmp_path, "fold0.pkl", {0: ["one", "two"]})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DiffUpError, match=r"fold0.pkl is not a whole pickled list"):
        published.read_coco(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DiffUpError, match="HSNet's data/splits/coco"):
        published.read_coco(path)


@pytest.mark.parametrize("line", ["a", "a__00", "a__21", "a__x", "__03", "a_03"])
def test_wrong_pascal_lines_are_named(tmp_path, line):
    write(tmp_path, "pascal/val/fold0.txt", f"fine__01\n\n{line}\n")
    with pytest.raises(DiffUpError, match=f"fold0.txt, line 3 is '{line}'"):
        published.read_lists(tmp_path, "pascal", split="val", fold=0)


def test_images_and_classes_named_twice_are_refused(tmp_path):
    write(tmp_path, "pascal/val/fold0.txt", "a__01\nb__01\na__01\n")
    with pytest.raises(DiffUpError, match=r"fold0.txt lists 'a' twice for class 0"):
        published.read_lists(tmp_path, "pascal", split="val", fold=0)
    write(tmp_path, "fss/test.txt", "bus\ncoin\nbus\n")
    with pytest.raises(DiffUpError, match=r"test.txt names 'bus' twice"):
        published.read_lists(tmp_path, "fss", split="test", fold=0)


def test_absent_lists_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(DiffUpError, match=r"neither .*coco/val/fold3.pkl nor .*HSNet"):
        published.read_lists(tmp_path, "coco", split="val", fold=3)
    with pytest.raises(DiffUpError, match="no fold 4, only 0..3"):
        published.read_lists(tmp_path, "pascal", split="val", fold=4)
    with pytest.raises(DiffUpError, match="no fold 1, only 0..0"):
        published.read_lists(tmp_path, "fss", split="test", fold=1)
    with pytest.raises(DiffUpError, match="no lists are published for 'lvis92i'"):
        published.read_lists(tmp_path, "lvis92i", split="val", fold=0)
    with pytest.raises(DiffUpError, match="is no list of FSS-1000"):
        published.read_lists(
            write(tmp_path, "fss/mine.txt", "a").parent, "fss", split="mine", fold=0
        )
    with pytest.raises(DiffUpError, match="cannot read the list"):
        published.read_coco(tmp_path / "none")
    with pytest.raises(DiffUpError, match="none is missing"):
        published.read_pascal(tmp_path / "none")
    with pytest.raises(DiffUpError, match="is empty"):
        published.read_pascal(write(tmp_path, "fold0.txt", "\n"))
