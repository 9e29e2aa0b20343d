"""`python -m data_prep.freeze_episodes`: from lists, from data, and its refusals."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import freeze_episodes
from diffup_jax.data import episodes, lists
from diffup_jax.data.sources import open_source
from tests import datasets

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def published(tmp_path):
    """A folder of lists in the published form: 20 classes of COCO fold 1."""
    folder = tmp_path / "splits"
    (folder / "coco" / "val").mkdir(parents=True)
    names = {
        c: [f"val2014/COCO_val2014_{100 * c + i:012d}.jpg" for i in range(c % 7 + 3)]
        if c % 4 == 1
        else []
        for c in range(80)
    }
    path = folder / "coco" / "val" / "fold1.pkl"
    path.write_bytes(pickle.dumps(names, protocol=3))
    return folder, {c: v for c, v in names.items() if v}


def freeze(out, *options):
    return freeze_episodes.main([*map(str, options), "--out", str(out)])


def from_lists(folder, *options, benchmark="coco", fold=1, shots=2):
    return (
        *("--benchmark", benchmark, "--lists", folder),
        *("--fold", fold, "--shots", shots, *options),
    )


def test_the_published_stream_is_written_and_named(published, tmp_path, capsys):
    folder, names = published
    out = tmp_path / "new" / "list.jsonl"
    assert freeze(out, *from_lists(folder)) == 0
    *_, place, last = capsys.readouterr().out.splitlines()
    drawn, facts = lists.read_draws(out)
    assert place == str(out) and last == f"sha={lists.draws_sha(drawn)}"
    stream = episodes.hsnet_stream(names, list(names), shots=2, count=1000)
    assert drawn == stream
    told = {"benchmark": "coco", "fold": 1, "protocol": "hsnet", "seed": 0, "ways": 1}
    assert told.items() <= facts.items() and facts["count"] == 1000
    assert str(tmp_path) not in out.read_text()
    before = out.read_bytes()
    assert freeze(out, *from_lists(folder)) == 0 and out.read_bytes() == before


def test_as_a_program(published, tmp_path):
    out = tmp_path / "list.jsonl"
    options = from_lists(published[0], "--episodes", 5)
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.freeze_episodes", *map(str, options)]
        + ["--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.splitlines()[-1][:4] == "sha="
        and len(out.read_text().splitlines()) == 6
    )


def test_several_ways_of_the_clean_protocol(published, tmp_path):
    out = tmp_path / "list.jsonl"
    options = ("--protocol", "clean", "--ways", 3, "--episodes", 40, "--seed", 7)
    assert freeze(out, *from_lists(published[0], *options)) == 0
    drawn, facts = lists.read_draws(out)
    assert all(len(d.class_ids) == 3 for d in drawn) and len(drawn) == 40
    assert (facts["ways"], facts["seed"]) == (3, 7)


@pytest.mark.parametrize(
    ("protocol", "ways"), [("hsnet", 1), ("clean", 2), ("pfenet", 1), ("denet", 1)]
)
def test_lists_from_the_data_fit_the_data(tmp_path, protocol, ways):
    root = datasets.write_label_maps(tmp_path / "data", test=32)
    out = tmp_path / "list.jsonl"
    code = freeze(
        out, "--benchmark", "label_map", "--root", root, "--split", "test",
        "--fold", 1, "--shots", 1, "--episodes", 30, "--protocol", protocol,
        "--ways", ways,
    )  # fmt: skip
    if protocol == "pfenet":  # no rectangle has 2048 pixels
        assert code == 1 and not out.exists()
        return
    assert code == 0
    source = open_source(
        "label_map", root=str(root), split="test", min_area=0.0, crowd="hsnet"
    )
    drawn, facts = lists.read_draws(out)
    assert facts["drawn_from"] == "data, test"
    fitted = lists.check_draws(drawn, source, classes=(1, 5), name="list")
    assert fitted == drawn and len(drawn) == 30


def test_small_classes_are_left_out_aloud(published, tmp_path, capsys):
    out = tmp_path / "list.jsonl"
    options = from_lists(published[0], "--protocol", "clean", shots=6)
    assert freeze(out, *options) == 1
    assert "needs 7" in capsys.readouterr().err
    assert freeze(out, *options, "--skip-small-classes") == 0
    left = [c for c, names in published[1].items() if len(names) < 7]
    assert f"left out for want of 7 images: {left}" in capsys.readouterr().out
    assert not {d.class_ids[0] for d in lists.read_draws(out)[0]} & set(left)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"benchmark": "cocoa"}, "unknown benchmark 'cocoa'"),
        ({"benchmark": "lvis92i"}, "no lists are published for 'lvis92i'"),
        ({"fold": 2}, "fold2.pkl"),
        ({"more": ("--protocol", "pfenet")}, "--root DIR in place of --lists"),
        ({"more": ("--protocol", "best")}, "unknown protocol 'best'"),
        ({"more": ("--seed", "1")}, "one seed, 0"),
        ({"more": ("--ways", "2")}, "1 to 1 ways"),
        ({"shots": 0}, "at least 1"),
    ],
)
def test_bad_input_is_one_message_and_no_file(
    published, tmp_path, capsys, options, words
):
    more = options.pop("more", ())
    out = tmp_path / "list.jsonl"
    assert freeze(out, *from_lists(published[0], *more, **options)) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and words in told.err and not told.out
    assert not out.exists()


def test_a_place_that_cannot_be_written(published, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert freeze(tmp_path / "file" / "list.jsonl", *from_lists(published[0])) == 1
    assert "error: " in capsys.readouterr().err


def test_figures_count_what_is_uneven():
    draws = [
        episodes.Draw((c,), "q", (images,))
        for c, images in [(0, ("a", "a")), (0, ("a", "b")), (0, ("a", "b"))]
        + [(2, ("c", "b"))]
    ]
    first, second = freeze_episodes.figures(draws, ["cat", "dog", "cow"])
    assert (
        first == "4 episodes of 2 classes, 1 to 3 each; class 0 (cat) is 75.0% of them"
    )
    assert second == "1 different queries; 25.0% of the episodes repeat a support"
