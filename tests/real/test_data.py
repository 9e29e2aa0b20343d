"""The data floor on real COCO images, real garments and the published lists."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from diffup_jax.data import batches, pipeline
from diffup_jax.data.augment import Augment
from diffup_jax.data.options import DataSettings
from diffup_jax.data.sources import fold_classes, open_source


# The reference decoder of pycocotools 2.0.11 under numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize("crowd", ["hsnet", "ignore"])
def test_coco_masks_agree_with_pycocotools(realdata, split, crowd):
    root = realdata / "coco"
    source = open_source("coco", root=str(root), split=split, min_area=0.0, crowd=crowd)
    content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    ranks = {
        c["id"]: rank
        for rank, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))
    }
    sizes = {f"{i['id']:012d}": (i["height"], i["width"]) for i in content["images"]}
    unions: dict = {}
    for entry in content["annotations"]:
        key = f"{entry['image_id']:012d}", ranks[entry["category_id"]]
        size = sizes[key[0]]
        mask, crowds = unions.setdefault(
            key, (np.zeros(size, bool), np.zeros(size, bool))
        )
        regions = coco_mask.frPyObjects(entry["segmentation"], *size)
        if isinstance(regions, dict):
            regions = [regions]
        for region in regions:
            target = crowds if entry["iscrowd"] else mask
            target |= coco_mask.decode(region).astype(bool)
    expected = {key for key, (mask, _) in unions.items() if mask.any()}
    found = {(i, c) for c in range(80) for i in source.image_ids(c)}
    assert found == expected and len(found) > 300
    ignored = 0
    for image_id, class_id in sorted(found):
        mask, ignore = source.mask(image_id, class_id)
        union, crowds = unions[image_id, class_id]
        assert (mask == union).all()
        rule = crowds & ~union if crowd == "ignore" else np.zeros_like(union)
        assert (ignore == rule).all()
        ignored += ignore.any()
    assert (ignored > 0) == (crowd == "ignore")
    for image_id in sorted(sizes)[:20]:
        assert source.image(image_id).shape[:2] == sizes[image_id]


def test_both_halves_of_coco_cover_all_classes(realdata):
    halves = [
        open_source(
            "coco",
            root=str(realdata / "coco"),
            split=split,
            min_area=0.0,
            crowd="hsnet",
        )
        for split in ("train2017", "val2017")
    ]
    assert len(halves[0].class_names) == 80 and halves[0].class_names[0] == "person"
    assert len(halves[0].paths) == 166 and len(halves[1].paths) == 92
    for class_id in range(80):
        assert sum(len(half.image_ids(class_id)) for half in halves) >= 3


@pytest.fixture(scope="module")
def garments(realdata):
    return {
        split: open_source(
            "label_map",
            root=str(realdata / "garments"),
            split=split,
            min_area=0.01,
            crowd="hsnet",
        )
        for split in ("train", "test")
    }


def test_garments_are_split_without_overlap(garments):
    train, test = garments["train"], garments["test"]
    assert train.name == "garments"
    assert len(train.images) == 604 and len(test.images) == 200
    assert not set(train.images) & set(test.images)
    assert len(train.class_names) == 31
    assert train.class_folds == tuple(i % 4 for i in range(31))
    novel = fold_classes(test, 0, role="novel")
    assert len(novel) == 8
    assert not set(novel) & set(fold_classes(train, 0, role="base"))


def test_garments_masks_are_large_enough(garments):
    test = garments["test"]
    for class_id in range(31):
        for image_id in test.image_ids(class_id)[:5]:
            mask, ignore = test.mask(image_id, class_id)
            assert mask.mean() > 0.01 and not ignore.any()
            assert test.image(image_id).shape[:2] == mask.shape


def test_garments_make_training_batches(garments):
    source = garments["train"]
    recipe = batches.Training(
        source=source,
        classes=fold_classes(source, 0, role="base"),
        seed=0,
        data=DataSettings(image_size=128),
        augment=Augment(),
        batch_size=4,
        max_shots=2,
        ways=1,
        cues=("mask", "box", "scribble", "point"),
        fewest_points=1,
    )
    dataset = pipeline.training_dataset(
        recipe, steps=2, process_index=0, process_count=1
    )
    for support, query in pipeline.iterate(dataset, workers=0):
        covered = query.mask.mean((1, 2, 3))
        assert (covered > 0).all() and (covered < 1).all()
        assert (support.fg.any((-2, -1)) == support.valid).all()
        assert query.image.std() > 20
