"""The doctor: a sound data set passes, and every single fault of a sick one is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffup_jax.data import doctor
from diffup_jax.types import DiffUpError
from tests import benchmark_files, datasets


def examine(root, kind=None, split=None):
    return doctor.examine(str(root), kind=kind, split=split)


def write_voc(root: Path, names=("a", "b", "c", "d")) -> Path:
    """Images of VOC's layout; image i shows the classes i and i + 1 (all 20)."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(names):
        generator = np.random.default_rng(number)
        picture = generator.integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(picture).save(root / "JPEGImages" / f"{name}.jpg")
        labels = np.zeros((30, 40), np.uint8)
        labels[:20, :] = np.arange(1, 21).repeat(2)
        labels[20] = 255
        Image.fromarray(labels).save(root / "SegmentationClass" / f"{name}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names[:2]))
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(names[2:]))
    return root


def write_folder(root: Path, classes=("cat", "dog")) -> Path:
    """CLASS/NAME.jpg with CLASS/NAME.png."""
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(3):
            generator = np.random.default_rng((index, number))
            picture = generator.integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(picture).save(root / name / f"{number}.jpg")
            mask = np.zeros((20, 24), np.uint8)
            mask[4:9, 3:8] = 255
            Image.fromarray(mask).save(root / name / f"{number}.png")
    return root


WRITERS = {
    "coco": datasets.write_coco,
    "label_map": datasets.write_label_maps,
    "voc": write_voc,
    "folder": write_folder,
}
SPLITS = {
    "coco": ["val2014"],
    "label_map": ["test", "train"],
    "voc": ["train", "val"],
    "folder": ["all"],
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_sound_data_set_is_recognised_and_passes(tmp_path, kind):
    report = examine(WRITERS[kind](tmp_path))
    assert report.kind == kind and report.problems == ()
    assert [split.name for split in report.splits] == SPLITS[kind]
    assert "no problems" in report.text() and "images per class" in report.text()


def test_the_summary_counts(tmp_path):
    root = datasets.write_label_maps(tmp_path, classes=4, train=8, test=2)
    test, train = examine(root).splits
    assert (train.images, train.classes) == (8, 4)
    assert train.fewest == train.median == train.most == 4
    assert (test.images, test.classes) == (2, 3)
    assert (test.fewest, test.median, test.most) == (1, 1, 2)


def cut(path: Path) -> None:
    """Leaves the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shrink(path: Path) -> None:
    """Stores a picture at half its size."""
    with Image.open(path) as picture:
        small = picture.resize((picture.width // 2, picture.height // 2))
    small.save(path)


def assert_told(report: doctor.Report, *words: str) -> None:
    """Each of `words` is in a problem of its own."""
    for word in words:
        assert any(word in problem for problem in report.problems), (
            word,
            report.problems,
        )
    assert len(report.problems) >= len(words)


def test_every_fault_of_label_maps_is_told(tmp_path):
    root = datasets.write_label_maps(tmp_path)
    names = (root / "train.txt").read_text().split()
    images = {path.stem: path for path in (root / "images").iterdir()}
    cut(images[names[0]])
    cut(root / "masks" / f"{names[1]}.png")
    shrink(images[names[2]])
    images[names[3]].unlink()
    (root / "masks" / f"{names[4]}.png").unlink()
    colours = np.zeros((*datasets.SIZE, 3), np.uint8)
    Image.fromarray(colours).save(root / "masks" / f"{names[5]}.png")
    shutil.copy(images[names[6]], root / "images" / f"copy{images[names[6]].suffix}")
    shutil.copy(root / "masks" / f"{names[6]}.png", root / "masks" / "copy.png")
    with (root / "train.txt").open("a") as file:
        file.write(f"copy\n{names[7]}\n")
    report = examine(root)
    assert_told(
        report,
        f"cannot read {images[names[0]]}",
        f"cannot read {root / 'masks' / names[1]}",
        f"{names[2]}.png: is 48 x 64 (rows x columns) but",
        f"{names[3]!r} has no image",
        f"{names[4]!r} has no mask",
        "has mode RGB",
        "2 files are the same photograph",
        f"lists {names[7]!r} 2 times",
    )
    # The other split is sound and is still summarised.
    assert [split.name for split in report.splits] == ["test"]


def edited(root: Path) -> dict:
    return json.loads((root / "annotations/instances_val2014.json").read_text())


ANNOTATION_FAULTS = {
    "image_id 999": {"image_id": 999},
    "category_id 'cat'": {"category_id": "cat"},
    "area -1": {"area": -1},
    "area nan": {"area": float("nan")},
    "iscrowd 2": {"iscrowd": 2},
    "segmentation None": {"segmentation": None},
    "segmentation []": {"segmentation": []},
    "a polygon has 7 numbers": {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    "no polygon has three corners": {"segmentation": [[1, 2, 3, 4]]},
    "expected numbers x0 y0": {"segmentation": [["1", 2, 3, 4, 5, 6]]},
    "outside the image": {"segmentation": [[1, 2, 900, 2, 9, 9]]},
    "run lengths of size [9, 9]": {"segmentation": {"size": [9, 9], "counts": [81]}},
    "run lengths sum to 7": {
        "segmentation": {"size": list(datasets.SIZE), "counts": [3, 4]}
    },
    "counts: expected": {"segmentation": {"size": list(datasets.SIZE)}},
}


def test_every_fault_of_annotations_is_told(tmp_path):
    root = datasets.write_coco(tmp_path)
    content = edited(root)
    for place, change in enumerate(ANNOTATION_FAULTS.values()):
        content["annotations"][place] |= {"id": 1000 + place} | change
    datasets.write_instances(root, "val2014", content)
    problems = examine(root).problems
    for place, word in enumerate(ANNOTATION_FAULTS):
        (told,) = [p for p in problems if f"annotation {1000 + place}:" in p]
        assert word in told


def test_every_fault_of_images_and_categories_is_told(tmp_path):
    root = datasets.write_coco(tmp_path)
    content = edited(root)
    files = [root / "val2014" / entry["file_name"] for entry in content["images"]]
    cut(files[0])
    shrink(files[1])
    files[2].unlink()
    shutil.copy(files[3], files[4])
    content["images"][5]["height"] = "48"
    content["images"].append(content["images"][6] | {"file_name": "other.jpg"})
    content["images"].append("an image")
    content["categories"] += [{"id": 900, "name": "class 1"}, {"id": 901}]
    datasets.write_instances(root, "val2014", content)
    assert_told(
        examine(root),
        f"cannot read {files[0]}",
        f"{files[1]}: is 24 x 32 (rows x columns) but was annotated at 48 x 64",
        f"the image {files[2].name} is absent",
        "2 files are the same photograph",
        "'height': '48'",
        "images has the id 7 2 times",
        "the image other.jpg is absent",
        "images holds 'an image'",
        "2 categories are called 'class 1'",
        "category {'id': 901}: expected an id and name",
        "split 'val2014' cannot be opened",
    )


def test_a_class_without_images_is_told(tmp_path):
    root = datasets.write_coco(tmp_path)
    content = edited(root)
    content["categories"].append({"id": 500, "name": "unicorn"})
    datasets.write_instances(root, "val2014", content)
    (problem,) = examine(root).problems
    assert "(unicorn) has no image" in problem


def test_a_split_whose_images_are_elsewhere_is_one_problem_and_its_own(tmp_path):
    root = datasets.write_coco(tmp_path)
    datasets.write_coco(root, split="train2014", seed=1)
    shutil.rmtree(root / "train2014")
    problems = [p for p in examine(root).problems if "none of its 24" in p]
    assert len(problems) == 1
    assert examine(root, split="val2014").problems == ()


def test_text_that_is_no_json_is_told(tmp_path):
    root = datasets.write_coco(tmp_path)
    path = root / "annotations/instances_val2014.json"
    for content, word in (("{", "not valid JSON"), ("[]", "no COCO instances file")):
        path.write_text(content)
        assert_told(examine(root), word)


def test_a_list_that_is_no_utf8_is_told(tmp_path):
    root = datasets.write_label_maps(tmp_path)
    path = root / "train.txt"
    path.write_bytes(path.read_bytes() + "Zoë".encode("latin-1"))
    at = path.stat().st_size - 1
    assert_told(examine(root, split="train"), f"not UTF-8 text: its byte {at} is 0xeb")
    assert_told(examine(root, split="train"), "train.txt")


def test_every_fault_of_voc_files_is_told(tmp_path):
    root = write_voc(tmp_path)
    masks = root / "SegmentationClass"
    labels = np.zeros((30, 40), np.uint8)
    labels[:3] = 77
    Image.fromarray(labels).save(masks / "a.png")
    shrink(masks / "b.png")
    (root / "JPEGImages/c.jpg").unlink()
    with (root / "ImageSets/Segmentation/val.txt").open("a") as file:
        file.write("\nd__21\nd__02\na__03\ne\n")
    assert_told(
        examine(root),
        "has the labels [77]",
        f"{masks / 'b.png'}: is 15 x 20 (rows x columns)",
        "'c' has no image",
        "the line 'd__21' names no class",
        "the line 'a__03' states class 03",
        "'e' has no image",
        "'e' has no mask",
    )


def test_every_fault_of_class_folders_is_told(tmp_path):
    root = write_folder(tmp_path)
    (root / "cat/0.jpg").unlink()
    (root / "cat/1.png").unlink()
    shrink(root / "cat/2.png")
    shutil.copy(root / "dog/0.jpg", root / "dog/9.jpg")
    shutil.copy(root / "dog/0.png", root / "dog/9.png")
    # A photograph may show two classes: this is no duplicate.
    shutil.copy(root / "dog/1.jpg", root / "cat/8.jpg")
    shutil.copy(root / "dog/1.png", root / "cat/8.png")
    (root / "bird").mkdir()
    report = examine(root)
    assert_told(
        report,
        f"{root / 'cat/0.png'}: has no photograph",
        f"{root / 'cat/1.jpg'}: has no mask",
        f"{root / 'cat/2.png'}: is 10 x 12 (rows x columns)",
        f"{root / 'bird'}: holds no photograph",
    )
    (same,) = [p for p in report.problems if "same photograph" in p]
    assert "dog/0.jpg" in same and "dog/9.jpg" in same


def test_a_mask_without_foreground_is_told(tmp_path):
    root = write_folder(tmp_path)
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(root / "dog/1.png")
    assert_told(examine(root), "dog/1.png")


def test_instances_json_in_a_plain_folder(tmp_path):
    root = datasets.write_coco(tmp_path / "coco")
    plain = tmp_path / "plain"
    shutil.copytree(root / "val2014", plain / "images")
    shutil.copy(root / "annotations/instances_val2014.json", plain / "mine.json")
    report = examine(plain)
    assert report.kind == "folder" and report.problems == ()
    next((plain / "images").iterdir()).unlink()
    assert_told(examine(plain), "is absent")


def test_what_it_cannot_examine_is_an_error(tmp_path):
    with pytest.raises(DiffUpError, match="is not a folder"):
        examine(tmp_path / "nowhere")
    with pytest.raises(DiffUpError, match="looks like no known data set"):
        examine(tmp_path)
    root = datasets.write_coco(tmp_path)
    with pytest.raises(DiffUpError, match="unknown kind 'cocoa'"):
        examine(root, kind="cocoa")
    with pytest.raises(DiffUpError, match="holds no split of kind 'label_map'"):
        examine(root, kind="label_map")
    datasets.write_label_maps(root)
    with pytest.raises(DiffUpError, match="looks like coco and like label_map"):
        examine(root)
    assert examine(root, kind="coco").kind == "coco"


def test_linked_files_count_and_a_circle_of_links_ends(tmp_path):
    root = write_voc(tmp_path / "voc")
    (root / "JPEGImages").rename(tmp_path / "elsewhere")
    (root / "JPEGImages").symlink_to(tmp_path / "elsewhere")
    (root / "SegmentationClass" / "up").symlink_to(root)
    report = examine(root)
    assert report.problems == () and report.pictures == 8


def test_a_kind_without_checks_of_its_own_is_opened_and_read(tmp_path):
    root = benchmark_files.write_pascal_part(tmp_path)
    report = examine(root)
    assert report.kind == "pascal_part" and report.problems == ()
    assert [split.name for split in report.splits] == ["train", "val"]
    photographs = sorted((root / "JPEGImages").iterdir())
    cut(photographs[0])
    report = examine(root)
    assert_told(report, f"cannot read {photographs[0]}")
    # Opened again: the image of the episode would have stopped a run.
    assert any(problem.startswith("split 't") for problem in report.problems)
