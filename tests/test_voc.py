"""The reader of the VOC layout: labels, void, lists, instances, and what it refuses."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from diffup_jax.data import rasters, sources
from diffup_jax.data.readers import voc
from diffup_jax.data.sources import boxes, fold_classes, open_source
from diffup_jax.types import DiffUpError

SIZE = (20, 30)


def save(path, labels, *, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    if palette:
        picture.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
    picture.save(path)


def write_voc(root, labels, *, masks="SegmentationClassAug", palette=False):
    """labels: name -> [h w] uint8. The list `val` names them in order."""
    for name, values in labels.items():
        save(root / masks / f"{name}.png", values, palette=palette)
        pixels = np.repeat(values[..., None], 3, axis=-1)
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
    write_list(root, "val", labels)
    return root


def write_list(root, split, lines):
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def picture(*regions):
    """Label map with (label, y0, x0, y1, x1) rectangles, later ones on top."""
    labels = np.zeros(SIZE, np.uint8)
    for label, y0, x0, y1, x1 in regions:
        labels[y0:y1, x0:x1] = label
    return labels


LABELS = {
    "b": picture((255, 0, 0, 12, 12), (1, 1, 1, 11, 11)),
    "a": picture((20, 0, 0, 20, 30), (15, 5, 5, 6, 6)),
    "c": picture((1, 0, 0, 1, 1), (15, 10, 10, 20, 20), (15, 2, 2, 6, 6)),
}


def opened(root, split="val", min_area=0.0):
    return open_source(
        "voc", root=str(root), split=split, min_area=min_area, crowd="hsnet"
    )


@pytest.mark.parametrize("masks", voc.MASKS)
@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("inside", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_a_source_over_the_layout(tmp_path, masks, palette, inside):
    write_voc(tmp_path / inside, LABELS, masks=masks, palette=palette)
    source = opened(tmp_path)
    assert isinstance(source, sources.Source)
    assert source.class_names == voc.CLASSES and len(set(voc.CLASSES)) == 20
    assert source.image_ids(0) == ("b", "c"), "in the order of the list"
    assert source.image_ids(14) == ("a", "c") and source.image_ids(19) == ("a",)
    assert source.image_ids(5) == ()
    for name, labels in LABELS.items():
        assert source.image(name).shape == (*SIZE, 3)
        for class_id in range(20):
            mask, void = source.mask(name, class_id)
            assert (mask == (labels == class_id + 1)).all()
            assert (void == (labels == 255)).all()
            assert not (mask & void).any()


def test_folds_are_contiguous(tmp_path):
    source = opened(write_voc(tmp_path, LABELS))
    assert source.class_folds == (0,) * 5 + (1,) * 5 + (2,) * 5 + (3,) * 5
    assert fold_classes(source, 0, role="novel") == (0,)
    assert fold_classes(source, 2, role="novel") == (14,)
    assert fold_classes(source, 0, role="base") == (14, 19)


def test_the_masks_of_sbd_win_over_the_official_folder(tmp_path):
    write_voc(tmp_path, LABELS)
    save(tmp_path / "SegmentationClass" / "b.png", picture((7, 0, 0, 3, 3)))
    assert opened(tmp_path).masks == "SegmentationClassAug"
    shutil.rmtree(tmp_path / "SegmentationClassAug")
    write_list(tmp_path, "val", ["b"])
    assert opened(tmp_path).image_ids(6) == ("b",)


def test_min_area_is_a_share_of_the_image(tmp_path):
    write_voc(tmp_path, LABELS)
    pixels = SIZE[0] * SIZE[1]
    assert opened(tmp_path, min_area=1 / pixels).image_ids(14) == ("c",)
    assert opened(tmp_path, min_area=0.9 / pixels).image_ids(14) == ("a", "c")


def test_lists_of_pairs_name_the_class(tmp_path):
    write_voc(tmp_path, LABELS)
    write_list(tmp_path, "hsnet_val", ["c__15", "b__01", "a__15"])
    source = opened(tmp_path, "hsnet_val")
    assert source.image_ids(14) == ("c", "a")
    assert source.image_ids(0) == ("b",), "c shows class 0 but is not listed for it"
    assert source.image_ids(19) == ()


def test_instances_are_components_without_object_masks(tmp_path):
    source = opened(write_voc(tmp_path, LABELS))
    found = source.instances("c", 14)
    assert (found == rasters.components(LABELS["c"] == 15)).all()
    assert boxes(source, "c", 14).tolist() == [[10, 10, 20, 20], [2, 2, 6, 6]]
    assert not source.instances("c", 3).any() and boxes(source, "c", 3).shape == (0, 4)


def test_instances_are_the_objects_where_they_are_known(tmp_path):
    # Two touching people and one in two pieces; object 2 is a dog.
    labels = picture((15, 0, 0, 10, 12), (12, 15, 15, 20, 20), (15, 0, 20, 2, 22))
    objects = picture((1, 0, 0, 10, 4), (3, 0, 4, 10, 12), (2, 15, 15, 20, 20))
    objects[0:2, 20:22] = 1
    objects[0, 0] = 255  # void between the objects: still a pixel of the class
    write_voc(tmp_path, {"x": labels})
    save(tmp_path / "SegmentationObject" / "x.png", objects, palette=True)
    source = opened(tmp_path)
    found = source.instances("x", 14)
    assert ((found > 0) == (labels == 15)).all()
    assert (found == 1).sum() == 80 and (found == 2).sum() == 43
    assert found[0, 0] == 3 and found[1, 21] == 2
    assert boxes(source, "x", 14).tolist()[:2] == [[0, 4, 10, 12], [0, 0, 10, 22]]
    assert (source.instances("x", 11) == (labels == 12)).all()
    save(tmp_path / "SegmentationObject" / "x.png", objects[1:])
    with pytest.raises(DiffUpError, match="19 x 30"):
        source.instances("x", 14)


@settings(max_examples=60, deadline=None)
@given(
    mask=arrays.arrays(bool, (6, 7)),
    objects=arrays.arrays(
        np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 9, 255])
    ),
)
def test_instances_cover_the_mask_largest_first(mask, objects):
    found = voc._largest_first(mask, objects)
    assert ((found > 0) == mask).all()
    sizes = np.bincount(found.ravel())[1:]
    assert (sizes > 0).all() and (np.diff(sizes) <= 0).all()
    known = mask & (objects > 0) & (objects < 255)
    for value in np.unique(objects[known]):
        numbers = np.unique(found[known & (objects == value)])
        assert len(numbers) == 1
        assert ((found == numbers[0]) == (known & (objects == value))).all()


def test_a_source_can_be_given_other_folds(tmp_path):
    source = opened(write_voc(tmp_path, LABELS))
    moved = dataclasses.replace(source, class_folds=(3,) * 20)
    assert fold_classes(moved, 3, role="novel") == (0, 14, 19)


def remove(name):
    return lambda root: (root / name).unlink()


def put(name, labels):
    return lambda root: save(root / name, labels)


def listed(*lines):
    return lambda root: write_list(root, "val", lines)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda r: shutil.rmtree(r / "SegmentationClassAug"), "SegmentationClass"),
        (lambda r: shutil.rmtree(r / "JPEGImages"), "JPEGImages is missing"),
        (remove("JPEGImages/a.jpg"), "a.jpg"),
        (remove("SegmentationClassAug/a.png"), "a.png"),
        (remove("ImageSets/Segmentation/val.txt"), "val.txt is missing.*pascal5i"),
        (put("SegmentationClassAug/a.png", picture((21, 0, 0, 2, 2))), r"\[21\]"),
        (put("SegmentationClassAug/a.png", LABELS["a"][1:]), "19 x 30"),
        (
            lambda r: (r / "SegmentationClassAug/a.png").write_bytes(b"\x89PNG"),
            "cannot read",
        ),
        (listed(), "empty"),
        (listed("a", "b 1"), "'b 1'"),
        (listed("JPEGImages/a.jpg"), "JPEGImages/a.jpg"),
        (listed("a__21"), "a__21"),
        (listed("a__0"), "a__0"),
        (listed("a__x"), "a__x"),
        (listed("a__03"), r"for class 03 \(bird\)"),
    ],
)
def test_one_clear_error(tmp_path, harm, told):
    harm(write_voc(tmp_path, LABELS))
    with pytest.raises(DiffUpError, match=told):
        opened(tmp_path)
