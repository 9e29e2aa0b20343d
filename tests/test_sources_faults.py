"""Sources: what a user is told of wrong arguments, damaged files and small classes."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from diffup_jax.data.sources import (
    classes_with_images,
    fold_classes,
    open_source,
    require_images,
)
from diffup_jax.types import DiffUpError
from tests import datasets
from tests.test_sources import coco, label_map


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "imagenet"}, "unknown data kind 'imagenet'"),
        ({"min_area": 1.0}, "min_area is 1.0"),
        ({"crowd": "both"}, "crowd rule 'both'"),
        ({"overlap": "both"}, "overlap rule 'both'"),
        ({"shots": 0}, "0 shots"),
        ({"split": "test2014"}, r"instances_test2014.json is missing.*val2014"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, change, words):
    datasets.write_coco(tmp_path)
    right = {"kind": "coco", "split": "val2014", "min_area": 0.0, "crowd": "hsnet"}
    arguments = {**right, **change}
    with pytest.raises(DiffUpError, match=words):
        open_source(arguments.pop("kind"), root=str(tmp_path), **arguments)


def test_absent_images_are_told_at_opening(tmp_path):
    root = datasets.write_coco(tmp_path)
    for number in (5, 9):
        (root / "val2014" / f"COCO_val2014_{number:012d}.jpg").unlink()
    message = r"2 of 24 images.*COCO_val2014_000000000005.jpg.*train_val_2017"
    with pytest.raises(DiffUpError, match=message):
        coco(root)


def test_broken_json_is_told(tmp_path):
    root = datasets.write_coco(tmp_path)
    path = root / "annotations" / "instances_val2014.json"
    whole = path.read_text()
    path.write_text(whole[:500])
    with pytest.raises(DiffUpError, match="not valid JSON"):
        coco(root)
    path.write_text(whole.replace('"category_id"', '"kind"'))
    with pytest.raises(DiffUpError, match=r"not a COCO instances file.*category_id"):
        coco(root)


def test_truncated_jpeg_is_named(tmp_path):
    root = datasets.write_coco(tmp_path)
    source = coco(root)
    first = source.image_ids(0)[0]
    path = root / "val2014" / f"{first}.jpg"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DiffUpError, match=f"{first}.jpg.*truncated"):
        source.image(first)


def test_other_pixels_than_annotated_are_told(tmp_path):
    root = datasets.write_coco(tmp_path)
    source = coco(root)
    first = source.image_ids(0)[0]
    Image.new("RGB", (10, 20)).save(root / "val2014" / f"{first}.jpg")
    with pytest.raises(DiffUpError, match="20 x 10.*48 x 64"):
        source.image(first)


def test_label_map_mistakes_are_told(tmp_path):
    root = datasets.write_label_maps(tmp_path)
    with pytest.raises(DiffUpError, match=r"val.txt is missing.*'test', 'train'"):
        label_map(root, split="val")
    (root / "masks" / "picture003.png").rename(root / "kept.png")
    with pytest.raises(DiffUpError, match=r"1 of 24.*no mask.*picture003"):
        label_map(root)
    Image.new("RGB", (64, 48)).save(root / "masks" / "picture003.png")
    with pytest.raises(DiffUpError, match=r"picture003.png has mode RGB"):
        label_map(root)
    Image.new("L", (32, 48)).save(root / "masks" / "picture003.png")
    with pytest.raises(DiffUpError, match=r"picture003.png is 48 x 32.*48 x 64"):
        label_map(root)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not valid JSON"),
        ("{}", "names no classes"),
        ('{"classes": [{"label": 300, "name": "a"}]}', "label in 0..255"),
        ('{"classes": [{"label": 1, "name": "a", "index": 1}]}', r"indices are \[1\]"),
        ('{"classes": [{"label": 1, "name": "a"}], "ignore": 1}', "must all differ"),
    ],
)
def test_wrong_classes_file_is_told(tmp_path, content, words):
    root = datasets.write_label_maps(tmp_path)
    (root / "classes.json").write_text(content)
    with pytest.raises(DiffUpError, match=words):
        label_map(root)


def test_classes_with_too_few_images_are_named(tmp_path):
    source = coco(datasets.write_coco(tmp_path, images=8))
    require_images(source, (0, 1), 1)
    with pytest.raises(DiffUpError, match=r"class 3 \(class 3\).*2 image.*need 3"):
        require_images(source, (3,), 2)
    with pytest.raises(DiffUpError, match=r"no fold 4.*\[0, 1, 2, 3\]"):
        fold_classes(source, 4, role="base")
    with pytest.raises(DiffUpError, match="role 'test'"):
        fold_classes(source, 0, role="test")
    empty = dataclasses.replace(source, by_class=((),) * 8)
    with pytest.raises(DiffUpError, match="no image of any novel class of fold 2"):
        fold_classes(empty, 2, role="novel")


def test_small_classes_are_left_out_aloud(tmp_path, capsys):
    datasets.write_coco(tmp_path, images=9)
    source = open_source(
        "coco", root=str(tmp_path), split="val2014", min_area=0.0, crowd="hsnet"
    )
    counts = [len(source.image_ids(c)) for c in range(8)]
    shots = min(counts)  # too many for the smallest class, not for the largest
    assert shots < max(counts)
    kept = classes_with_images(source, range(8), shots=shots)
    assert kept == tuple(c for c in range(8) if counts[c] > shots)
    assert source.class_names[counts.index(shots)] in capsys.readouterr().out
    with pytest.raises(DiffUpError, match="no class of"):
        classes_with_images(source, range(8), shots=99)
    capsys.readouterr()
    assert classes_with_images(source, range(8), shots=1) == tuple(range(8))
    assert not capsys.readouterr().out
