"""Pascal VOC on real files: the whole of VOC 2012 + SBD, and VOC labels made from COCO.

The labels of `voc_layout` were painted from COCO's annotations. Their rule, found by
trying and exact on all 206 images:

    crowds of the 20 classes first, as void (255); then every other annotation of all
    80 categories from the largest to the smallest `area`, each over what is below it,
    with label 0 for the 60 categories that VOC does not have; polygons drawn by PIL
    through corners cut to whole pixels, outline included.

So two things tell them from COCO's own masks, the union of a class's instances:
whatever lies over an object hides it (231 of the 399 pairs of image and class), and
PIL's polygons reach about a pixel further than pycocotools' (all pairs).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from scipy import ndimage

from data_prep import pascal5i
from diffup_jax.data import published
from diffup_jax.data.readers import voc
from diffup_jax.data.sources import open_source

# COCO's names of VOC classes where they differ.
NAMES = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}


def opened(kind, root, split):
    return open_source(kind, root=str(root), split=split, min_area=0.0, crowd="hsnet")


@pytest.fixture(scope="module")
def voc2012(realdata, tmp_path_factory):
    """The summary of the command over the real masks and lists, and its folder."""
    root = tmp_path_factory.mktemp("voc2012")
    rows = pascal5i.prepare(
        root,
        archives=realdata / "voc2012",
        lists=realdata / "splits" / "pascal",
        download=False,
    )
    return root, {row.what: row for row in rows}


def test_voc2012_and_every_published_line(voc2012):
    _, rows = voc2012
    states = {what: row.state for what, row in rows.items()}
    assert states.pop("JPEGImages") == "missing"  # there are no JPEGs in realdata
    assert set(states.values()) == {"there"} and len(states) == 8
    assert rows["void only in official masks"].facts.startswith("2913 masks")
    assert rows["hsnet_trn"].facts.startswith("13680 lines")
    assert rows["hsnet_val"].facts.startswith("1868 lines")
    assert rows["SegmentationClassAug"].facts == "12031"
    assert rows["ImageSets/Segmentation/trainaug.txt"].facts == "10582"


def test_the_written_lists_are_the_published_ones(voc2012, realdata):
    root, _ = voc2012
    for kind in ("trn", "val"):
        path = root / "ImageSets" / "Segmentation" / f"hsnet_{kind}.txt"
        by_class = published.by_class(voc.read_list(path))
        for fold in range(4):
            lists = published.read_lists(
                realdata / "splits", "pascal", split=kind, fold=fold
            )
            assert set(lists) == set(range(5 * fold, 5 * fold + 5))
            assert all(by_class[class_id] == lists[class_id] for class_id in lists)


@pytest.fixture(scope="module")
def layout(realdata, tmp_path_factory):
    """`voc_layout` with its images put beside it."""
    root = tmp_path_factory.mktemp("VOC2012")
    for folder in ("SegmentationClass", "ImageSets"):
        (root / folder).symlink_to(realdata / "voc_layout" / folder)
    (root / "JPEGImages").mkdir()
    for mask in (root / "SegmentationClass").iterdir():
        name = f"{mask.stem}.jpg"
        folders = (realdata / "coco" / part for part in ("train2017", "val2017"))
        file = next(f / name for f in folders if (f / name).is_file())
        (root / "JPEGImages" / name).symlink_to(file)
    return root


def painted(annotations, label_of, shape):
    labels = np.zeros(shape, np.uint8)
    crowds = [a for a in annotations if a["iscrowd"] and a["category_id"] in label_of]
    for entry in crowds:
        # The compressed form by way of pycocotools, as in the files.
        runs = coco_mask.frPyObjects(entry["segmentation"], *shape)
        labels[coco_mask.decode(runs).astype(bool)] = voc.VOID
    single = [a for a in annotations if not a["iscrowd"]]
    for entry in sorted(single, key=lambda a: -a["area"]):
        canvas = Image.new("L", shape[::-1])
        pen = ImageDraw.Draw(canvas)
        for polygon in entry["segmentation"]:
            corners = np.array(polygon).reshape(-1, 2).astype(int)
            pen.polygon([tuple(c) for c in corners.tolist()], fill=1, outline=1)
        labels[np.array(canvas) == 1] = label_of.get(entry["category_id"], 0)
    return labels


# The reference decoder of pycocotools 2.0.11 under numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("split", "images", "pairs", "whole"),
    [("train2017", 134, 251, 107), ("val2017", 72, 148, 61)],
)
def test_voc_masks_are_coco_masks(realdata, layout, split, images, pairs, whole):
    source = opened("voc", layout, split.removesuffix("2017"))
    coco = opened("coco", realdata / "coco", split)
    path = realdata / "coco" / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    label_of = labels_of({c["id"]: c["name"] for c in content["categories"]})
    coco_class = {v - 1: k for k, v in labels_of(enumerate(coco.class_names)).items()}
    assert len(label_of) == len(coco_class) == 20
    annotations: dict = {}
    for entry in content["annotations"]:
        annotations.setdefault(entry["image_id"], []).append(entry)
    facts = {Path(image["file_name"]).stem: image for image in content["images"]}
    names = sorted({name for c in range(20) for name in source.image_ids(c)})
    seen, equal = 0, 0
    for name in names:
        image = facts[name]
        shape = (image["height"], image["width"])
        entries = annotations[image["id"]]
        labels = painted(entries, label_of, shape)
        assert (source.image(name) == coco.image(name)).all()
        for class_id in range(20):
            mask, void = source.mask(name, class_id)
            assert (mask == (labels == class_id + 1)).all()
            assert (void == (labels == voc.VOID)).all()
            union = coco.mask(name, coco_class[class_id])[0]
            if not mask.any() and not union.any():
                continue
            seen += 1
            own = [a for a in entries if label_of.get(a["category_id"]) == class_id + 1]
            alone = painted(own, label_of, shape) == class_id + 1
            # Nothing but what lies over an object tells the painted mask from `alone`,
            assert not (mask & ~alone).any()
            equal += (mask == alone).all()
            # and only PIL's pen tells `alone` from the union: a pixel at the border,
            # and thin spikes and crossings of a few polygons.
            assert (alone & ~wider(union)).sum() + (union & ~wider(alone)).sum() <= 20
    assert (len(names), seen, equal) == (images, pairs, whole)


def labels_of(names):
    """key -> VOC label, for those of COCO's names that are VOC classes."""
    named = {key: NAMES.get(name, name) for key, name in dict(names).items()}
    return {
        key: voc.CLASSES.index(name) + 1
        for key, name in named.items()
        if name in voc.CLASSES
    }


def wider(mask):
    return ndimage.binary_dilation(mask, np.ones((3, 3), bool), iterations=2)
