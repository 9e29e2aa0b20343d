"""The table of benchmarks: every row opens, every source keeps the same promises."""

from __future__ import annotations

import numpy as np
import pytest

from diffup_jax.data import doctor, episodes, published
from diffup_jax.data.benchmarks import BENCHMARKS, COCO_RANKS
from diffup_jax.data.readers import voc
from diffup_jax.data.sources import KINDS, Source, boxes, fold_classes, open_source
from tests import benchmark_files

# COCO's 80 names by rank of the category id.
COCO_NAMES = """
person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,
fire hydrant,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,
bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,
sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,
bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,
carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,
laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,
book,clock,vase,scissors,teddy bear,hair drier,toothbrush
""".replace("\n", "").split(",")


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"array_record"}))
def test_every_source_keeps_the_contract(tmp_path, kind, capsys):
    row = BENCHMARKS[kind]
    source = open_source(
        kind,
        root=str(benchmark_files.write(kind, tmp_path / "data")),
        split=row.test,
        min_area=0.0,
        crowd="hsnet",
    )
    assert isinstance(source, Source)
    assert len(source.class_names) == len(source.class_folds)
    assert len(set(source.class_names)) == len(source.class_names)
    seen = 0
    for class_id in range(len(source.class_names)):
        ids = source.image_ids(class_id)
        assert len(set(ids)) == len(ids)
        for image_id in ids[:3]:
            image = source.image(image_id)
            mask, ignore = source.mask(image_id, class_id)
            assert image.dtype == np.uint8 and image.shape == (*mask.shape, 3)
            assert mask.dtype == ignore.dtype == bool
            assert mask.any() and not (mask & ignore).any()
            instances = source.instances(image_id, class_id)
            assert instances.dtype == np.uint16
            assert ((instances > 0) == mask).all()
            areas = np.bincount(instances.ravel())[1:]
            assert (areas > 0).all() and (np.diff(areas) <= 0).all()
            assert len(boxes(source, image_id, class_id)) == len(areas)
            seen += 1
    assert seen > 3
    fold = max(f for f, ids in _folds_with_images(source))
    for class_id in fold_classes(source, fold, role="novel"):
        assert source.class_folds[class_id] == fold and source.image_ids(class_id)


def _folds_with_images(source):
    for class_id, fold in enumerate(source.class_folds):
        if source.image_ids(class_id):
            yield fold, source.image_ids(class_id)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_complete(kind):
    row = BENCHMARKS[kind]
    assert callable(row.reader) and row.layout and row.train and row.test
    assert (row.classes is None) == (row.folds is None)
    assert set(row.options) <= {"crowd", "overlap", "shots"}
    assert row.folds_of in ("", *KINDS)
    assert row.family in ("coco", "pascal", "other")
    assert row.order in episodes.ORDERS
    assert row.published in ("", *published.BENCHMARKS)
    assert bool(row.published) == bool(row.published_split)


@pytest.mark.parametrize(
    "kind", sorted(set(KINDS) - {"array_record", "coco_to_pascal"})
)
def test_the_doctor_recognises_the_files_of_every_row(tmp_path, kind):
    """COCO -> Pascal has no files of its own; packed data is in test_packed.py."""
    root = benchmark_files.write(kind, tmp_path / "data")
    assert doctor.recognise(root) == kind
    assert BENCHMARKS[kind].test in doctor.find_splits(root, kind)


def test_voc_classes_have_the_coco_ranks_of_their_namesakes():
    other = {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    assert len(COCO_NAMES) == 80
    assert set(COCO_RANKS) == set(voc.CLASSES)
    for name, rank in COCO_RANKS.items():
        assert COCO_NAMES[rank] == other.get(name, name)


def test_coco_to_pascal_moves_classes_to_their_coco_fold(tmp_path):
    root = benchmark_files.write_voc(tmp_path)
    arguments = {"root": str(root), "split": "val", "min_area": 0.0, "crowd": "hsnet"}
    pascal = open_source("voc", **arguments)
    across = open_source("coco_to_pascal", **arguments)
    assert across.class_names == pascal.class_names
    assert pascal.class_folds == tuple(c // 5 for c in range(20))
    novel = {
        fold: {across.class_names[c] for c in fold_classes(across, fold, role="novel")}
        for fold in range(4)
    }
    # The published split of the cross-data-set test (PFENet, RePRI, HSNet).
    assert novel == {
        0: {"aeroplane", "boat", "chair", "diningtable", "dog", "person"},
        1: {"bicycle", "bus", "horse", "sofa"},
        2: {"bird", "car", "pottedplant", "sheep", "train", "tvmonitor"},
        3: {"bottle", "cat", "cow", "motorbike"},
    }
    for class_id in range(20):
        image_id = across.image_ids(class_id)[0]
        same = across.mask(image_id, class_id)[0] == pascal.mask(image_id, class_id)[0]
        assert across.image_ids(class_id) == pascal.image_ids(class_id) and same.all()
