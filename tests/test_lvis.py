"""LVIS-92i: v1 files are read; the folds are dealt as published."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import lvis92i
from diffup_jax.data.readers import lvis
from diffup_jax.data.sources import fold_classes, open_source
from diffup_jax.types import DiffUpError
from tests import benchmark_files

IMAGES = [4] * 12 + [1] * 2 + [3] * 9  # val images of each class


def open_lvis(root, split="val", shots=1, min_area=0.0):
    return open_source(
        "lvis92i",
        root=str(root),
        split=split,
        min_area=min_area,
        crowd="hsnet",
        shots=shots,
    )


@pytest.fixture
def root(tmp_path, capsys):
    benchmark_files.write_lvis(tmp_path, images=IMAGES)
    benchmark_files.write_lvis(tmp_path, images=[2] * len(IMAGES), split="train")
    assert lvis92i.main(["--root", str(tmp_path), "--subset"]) == 0
    return tmp_path


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 5))
def test_folds_are_dealt_among_classes_with_enough_images(images, shots):
    folds = lvis.deal_folds(images, shots=shots)
    kept = [c for c, count in enumerate(images) if count > shots]
    size = len(kept) // 10
    for fold in range(10):
        members = [kept[fold + 10 * v] for v in range(size)]
        assert [c for c, home in enumerate(folds) if home == fold] == members
    assert sum(home >= 0 for home in folds) == 10 * size


def test_920_classes_make_92_a_fold():
    folds = lvis.deal_folds([2] * 926 + [1] * 277, shots=1)
    assert [folds.count(f) for f in range(-1, 10)] == [283] + [92] * 10


def test_images_are_found_by_address_in_both_folders(root):
    source = open_lvis(root)
    assert source.image_ids(0) == tuple(f"{i:012d}" for i in range(1, 5))
    for image_id in source.image_ids(0):
        mask, ignore = source.mask(image_id, 0)
        boxes = [benchmark_files.box(half) for half in (0, 1)]
        assert (mask == benchmark_files.filled(*boxes)).all() and not ignore.any()
        assert source.image(image_id)[mask].mean() > 150
        assert source.instances(image_id, 0).max() == 2
    assert source.class_names[3] == "thing_3"


def test_shots_change_the_folds(root):
    one, three = open_lvis(root), open_lvis(root, shots=3)
    assert one.class_folds[12:15] == (-1, -1, 2)  # too rare; the next is dealt on
    assert set(three.class_folds[12:]) == {-1}
    assert fold_classes(one, 2, role="novel") == (2, 14)
    assert -1 not in {one.class_folds[c] for c in fold_classes(one, 0, role="novel")}
    base = fold_classes(open_lvis(root, split="train"), 0, role="base")
    assert 12 in base and 0 not in base  # in no fold: always base
    with pytest.raises(DiffUpError, match=r"no fold -1"):
        fold_classes(one, -1, role="novel")


def test_files_may_lie_in_root_and_below_coco(root):
    expected = open_lvis(root).by_class
    (root / "coco").mkdir()
    for name in ("train2017", "val2017"):
        (root / name).rename(root / "coco" / name)
    path = root / "annotations" / "lvis_v1_val.json"
    path.rename(root / path.name)
    assert open_lvis(root).by_class == expected


def test_mistakes_are_told(root):
    with pytest.raises(DiffUpError, match="no split 'test'"):
        open_lvis(root, split="test")
    table = root / "lvis92i.json"
    content = json.loads(table.read_text())
    content["classes"][0]["name"] = "other"
    table.write_text(json.dumps(content))
    with pytest.raises(DiffUpError, match=r"23 classes that are not the 23"):
        open_lvis(root)
    table.write_text('{"classes": [{"name": "a"}]}')
    with pytest.raises(DiffUpError, match=r"lvis92i.json is malformed"):
        open_lvis(root)
    table.unlink()
    with pytest.raises(DiffUpError, match=r"lvis92i.json is missing.*data_prep"):
        open_lvis(root)


def test_absent_files_are_told(root):
    (root / "train2017" / f"{1:012d}.jpg").unlink()
    with pytest.raises(DiffUpError, match=r"1 of 4 images.*000000000001.jpg"):
        open_lvis(root)
    path = root / "annotations" / "lvis_v1_val.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DiffUpError, match=r"lvis_v1_val.json is not valid JSON"):
        open_lvis(root)
    path.unlink()
    with pytest.raises(DiffUpError, match=r"lvis_v1_val.json is missing"):
        open_lvis(root)


def test_min_area_leaves_the_folds_alone(root):
    source = open_lvis(root, min_area=0.9)
    assert not any(source.by_class)
    assert source.class_folds == open_lvis(root).class_folds
    assert np.sum(np.array(source.class_folds) >= 0) == 20
