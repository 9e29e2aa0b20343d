"""Sources: what is read is what was written; mistakes: test_sources_faults.py."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from diffup_jax.data import rasters
from diffup_jax.data.readers import coco_index
from diffup_jax.data.sources import (
    boxes,
    fold_classes,
    hold_out,
    open_source,
)
from diffup_jax.types import DiffUpError
from tests import datasets


def coco(root, split="val2014", min_area=0.0, crowd="hsnet"):
    return open_source(
        "coco", root=str(root), split=split, min_area=min_area, crowd=crowd
    )


def label_map(root, split="train", min_area=0.0):
    return open_source(
        "label_map", root=str(root), split=split, min_area=min_area, crowd="hsnet"
    )


@pytest.mark.parametrize("kind", ["coco", "label_map"])
def test_masks_are_the_coloured_rectangles(tmp_path, kind):
    if kind == "coco":
        source = coco(datasets.write_coco(tmp_path))
    else:
        source = label_map(datasets.write_label_maps(tmp_path))
    seen = 0
    for class_id in range(8):
        assert source.image_ids(class_id)
        for image_id in source.image_ids(class_id):
            image = source.image(image_id)
            mask, ignore = source.mask(image_id, class_id)
            assert image.dtype == np.uint8 and image.shape[:2] == mask.shape
            assert not (mask & ignore).any()
            assert ignore[:, 0].all() == (kind == "label_map")
            distance = np.abs(
                image[mask].astype(int) - datasets.colour(class_id, 8)
            ).mean()
            assert distance < 25  # jpeg's ringing at the border
            assert image[~mask & ~ignore].mean() < image[mask].mean()
            seen += 1
    assert seen == 48


def test_coco_names_ranks_and_folds(tmp_path):
    source = coco(datasets.write_coco(tmp_path))
    assert source.class_names == tuple(f"class {c}" for c in range(8))
    assert source.class_folds == (0, 1, 2, 3, 0, 1, 2, 3)
    assert fold_classes(source, 1, role="novel") == (1, 5)
    assert fold_classes(source, 1, role="base") == (0, 2, 3, 4, 6, 7)
    assert source.image_ids(0)[0] == "COCO_val2014_000000000001"


@pytest.mark.parametrize("folder", ["train_val_2017", "train2017", "val2017"])
def test_coco_2014_json_finds_2017_files(tmp_path, folder):
    one = coco(datasets.write_coco(tmp_path / "a"))
    other = coco(datasets.write_coco(tmp_path / "b", folder=folder))
    assert one.by_class == other.by_class
    first = one.image_ids(0)[0]
    assert (one.image(first) == other.image(first)).all()


def test_coco_two_folders_of_2017_files(tmp_path):
    root = datasets.write_coco(tmp_path, folder="train2017")
    (root / "val2017").mkdir()
    moved = root / "train2017" / "000000000003.jpg"
    moved.rename(root / "val2017" / moved.name)
    source = coco(root)
    assert source.image("COCO_val2014_000000000003").shape == (*datasets.SIZE, 3)


@pytest.fixture
def crowded(tmp_path):
    """One image: an instance of class 0 under a crowd of it; class 1 only as crowd."""
    datasets.write_coco(tmp_path, images=1, classes=2)
    annotations = [
        datasets.annotation(1, 3, (4, 4, 14, 24)),
        datasets.annotation(1, 3, (10, 4, 30, 24)),
        datasets.annotation(1, 3, (20, 0, 50, 30), crowd=True),
        datasets.annotation(1, 6, (30, 30, 60, 40), crowd=True),
    ]
    path = tmp_path / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    datasets.write_instances(
        tmp_path, "val2014", {**content, "annotations": annotations}
    )
    return tmp_path


@pytest.mark.parametrize("rule", ["hsnet", "ignore"])
def test_crowd_rules(crowded, rule):
    source = coco(crowded, crowd=rule)
    mask, ignore = source.mask(source.image_ids(0)[0], 0)
    expected = np.zeros(datasets.SIZE, bool)
    expected[4:24, 4:30] = True  # the union of both instances, crowd or not
    crowd = np.zeros(datasets.SIZE, bool)
    crowd[0:30, 20:50] = rule == "ignore"
    assert (mask == expected).all()
    assert (ignore == crowd & ~expected).all()
    assert source.image_ids(1) == ()


@pytest.mark.parametrize("density", [0.0, 0.002, 0.1, 0.5, 0.999, 1.0])
def test_run_lengths_are_decoded_exactly(density):
    """Noise gives short runs, falling and rising ones; blocks give long ones."""
    generator = np.random.default_rng(4)
    mask = generator.random((211, 173)) < density
    mask[50:150, 20:90] = density < 0.5
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    lengths = coco_index.run_lengths(runs["counts"])
    values = np.arange(len(lengths)) % 2 == 1
    assert (mask == np.repeat(values, lengths).reshape(173, 211).T).all()


def test_min_area_is_a_fraction_of_the_image(crowded):
    covered = (10 * 20 + 20 * 20) / (48 * 64)  # annotated areas are summed
    assert len(coco(crowded, min_area=covered * 0.99).image_ids(0)) == 1
    assert len(coco(crowded, min_area=covered * 1.01).image_ids(0)) == 0


def test_min_area_of_label_maps_counts_pixels(tmp_path):
    root = datasets.write_label_maps(tmp_path)
    for threshold in (0.0, 0.06, 0.1):
        source = label_map(root, min_area=threshold)
        for class_id in range(8):
            for image_id in source.images:
                labels = np.asarray(Image.open(root / "masks" / f"{image_id}.png"))
                large = (labels == class_id + 1).mean() > threshold
                assert (image_id in source.image_ids(class_id)) == large


def test_label_maps_with_own_indices_and_palette(tmp_path):
    root = datasets.write_label_maps(tmp_path, classes=3, ignore=None)
    for path in (root / "masks").glob("*.png"):
        picture = Image.open(path)
        picture.load()
        picture.putpalette([c for c in range(256) for _ in range(3)])
        assert picture.mode == "P"
        picture.save(path)
    classes = [
        {"label": 3, "name": "third", "index": 0, "fold": 2},
        {"label": 1, "name": "first", "index": 1, "fold": 0},
    ]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    source = label_map(root)
    assert source.class_names == ("third", "first")
    assert source.class_folds == (2, 0)
    image_id = source.image_ids(0)[0]
    labels = np.asarray(Image.open(root / "masks" / f"{image_id}.png"))
    mask, ignore = source.mask(image_id, 0)
    assert (mask == (labels == 3)).all() and not ignore.any()


def test_hold_out_splits_images_once_and_for_all(tmp_path):
    source = label_map(datasets.write_label_maps(tmp_path, train=120, test=1))
    kept, held = hold_out(source, 0.25)
    sides = []
    for view in (kept, held):
        sides.append({i for c in range(8) for i in view.image_ids(c)})
        assert view.class_names == source.class_names and view.name == source.name
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(source.images)
    assert 15 <= len(sides[1]) <= 45
    # An image keeps its side when others leave the data set.
    fewer = dataclasses.replace(
        source, by_class=tuple(ids[::2] for ids in source.by_class)
    )
    for c in range(8):
        again = hold_out(fewer, 0.25)[1].image_ids(c)
        assert set(again) == set(held.image_ids(c)) & set(fewer.image_ids(c))
    first = held.image_ids(0)[0]
    assert (held.mask(first, 0)[0] == source.mask(first, 0)[0]).all()
    assert (held.instances(first, 0) == source.instances(first, 0)).all()


def test_objects_of_one_photograph_stay_on_one_side(tmp_path):
    source = label_map(datasets.write_label_maps(tmp_path))
    cut = tuple(f"photo{i}#{j}" for i in range(40) for j in range(3))
    source = dataclasses.replace(source, by_class=(cut,) * 8)
    for view in hold_out(source, 0.4):
        kept = view.image_ids(0)
        assert 0 < len(kept) < 120 and len(kept) % 3 == 0
        assert len({i.split("#")[0] for i in kept}) * 3 == len(kept)


def test_environment_variable_in_root(tmp_path, monkeypatch):
    root = datasets.write_coco(tmp_path / "here")
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    assert coco("$SOME_DATA/here").root == str(root)
    monkeypatch.setenv("SOME_DATA", "/nowhere")
    with pytest.raises(DiffUpError, match=r"'\$SOME_DATA/here'.*'/nowhere/here'"):
        coco("$SOME_DATA/here")
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(DiffUpError, match=r"\$SOME_DATA.*not set.*annotations/inst"):
        coco("$SOME_DATA/here")


@pytest.mark.parametrize("kind", ["coco", "label_map"])
def test_an_absent_class_has_an_empty_mask(tmp_path, kind):
    """N-way queries need not contain their other ways."""
    if kind == "coco":
        source = coco(datasets.write_coco(tmp_path))
    else:
        source = label_map(datasets.write_label_maps(tmp_path))
    for view in (source, hold_out(source, 0.5)[0]):
        image_id = source.image_ids(0)[0]
        mask, ignore = view.mask(image_id, 4)  # image i has the classes i and i + 1
        assert mask.shape == ignore.shape == datasets.SIZE and not mask.any()
        assert not view.instances(image_id, 4).any()
        assert boxes(view, image_id, 4).shape == (0, 4)


@pytest.mark.parametrize("kind", ["coco", "label_map"])
def test_boxes_are_tight_and_instances_fill_the_mask(tmp_path, kind):
    if kind == "coco":
        source = coco(datasets.write_coco(tmp_path))
    else:
        source = label_map(datasets.write_label_maps(tmp_path))
    for class_id in range(8):
        image_id = source.image_ids(class_id)[0]
        mask, _ = source.mask(image_id, class_id)
        instances = source.instances(image_id, class_id)
        assert instances.dtype == np.uint16
        assert ((instances > 0) == mask).all()
        rows, columns = np.nonzero(mask)
        tight = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
        assert boxes(source, image_id, class_id).tolist() == [list(tight)]


def test_instances_come_largest_first(crowded):
    source = coco(crowded)
    image_id = source.image_ids(0)[0]
    instances = source.instances(image_id, 0)
    counts = np.bincount(instances.ravel())[1:]
    assert len(counts) == 2 and counts[0] >= counts[1]
    found = boxes(source, image_id, 0)
    assert found.dtype == np.int64
    for number, (y0, x0, y1, x1) in enumerate(found.tolist(), 1):
        inside = instances[y0:y1, x0:x1] == number
        assert inside.sum() == counts[number - 1]
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert edge.any()


def test_a_region_between_pixels_does_not_count(crowded):
    path = crowded / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"] = [datasets.annotation(1, 3, (90, 4, 94, 8))]  # outside
    datasets.write_instances(crowded, "val2014", content)
    assert coco(crowded).image_ids(0) == ()


def test_nearest_rule_reads_the_floor_row():
    mask = np.zeros((6, 9), bool)
    mask[3, 6] = True
    small = rasters.resize_mask(mask, 3)  # rows 0 2 4, columns 0 3 6
    assert not small.any()
    mask[4, 6] = True
    assert rasters.resize_mask(mask, 3).tolist() == [[0, 0, 0]] * 2 + [[0, 0, 1]]


def test_support_mask_keeps_the_best_covered_pixel():
    mask = np.zeros((90, 90), bool)
    mask[45:48, 61:66] = True
    assert not rasters.resize_mask(mask, 9)[5].any()
    mask[50, 61] = False
    thin = np.zeros((90, 90), bool)
    thin[41:49, 62:66] = True  # inside target pixel (4, 6), off the sampled pixels
    assert not rasters.resize_mask(thin, 9).any()
    kept = rasters.resize_support_mask(thin, 9)
    assert np.argwhere(kept).tolist() == [[4, 6]]
    assert not rasters.resize_support_mask(np.zeros((90, 90), bool), 9).any()
