"""The drawn scenes: a COCO folder anyone can read, the same bytes every time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from demo import scene_categories
from demo.make_scenes import deal, main, make_scenes
from demo.scene_drawing import draw_scene
from diffup_jax.types import DiffUpError

# pycocotools 2.0.11 decodes in a way numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept:DeprecationWarning"
)

SMALL = {"images": 30, "size": 96, "seed": 5, "val_fraction": 0.2, "processes": 1}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "demo"
    assert make_scenes(out, **SMALL)
    return out


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _coco(folder: Path, split: str) -> COCO:
    return COCO(str(folder / "annotations" / f"instances_{split}.json"))


def _draw(seed: int, size: int):
    generator = np.random.default_rng(seed)
    pool = scene_categories.categories("pretraining")
    chosen = [pool[i] for i in generator.choice(len(pool), 5, replace=False)]
    return chosen, draw_scene(generator, chosen, size=size)


def test_same_seed_same_bytes_with_any_number_of_processes(scenes, tmp_path):
    make_scenes(tmp_path / "two", **{**SMALL, "processes": 2})
    assert _content(tmp_path / "two") == _content(scenes)
    make_scenes(tmp_path / "other", **{**SMALL, "seed": 6})
    other = _content(tmp_path / "other")
    same = [
        name for name, content in _content(scenes).items() if other[name] == content
    ]
    assert not same


def test_coco_reads_every_image_and_annotation(scenes):
    forms = Counter()
    for split, images in (("train", 24), ("val", 6)):
        coco = _coco(scenes, split)
        assert len(coco.imgs) == images
        for entry in coco.imgs.values():
            with Image.open(scenes / split / entry["file_name"]) as image:
                assert image.format == "JPEG" and image.mode == "RGB"
                assert image.size == (entry["width"], entry["height"]) == (96, 96)
            annotations = coco.imgToAnns[entry["id"]]
            masks = np.stack([coco.annToMask(one) for one in annotations])
            for one, mask in zip(annotations, masks, strict=True):
                form = type(one["segmentation"])
                forms[form, one["iscrowd"]] += 1
                assert coco_mask.area(coco.annToRLE(one)) == mask.sum() > 0
                if form is dict:  # a polygon's pixels depend on the reader
                    assert mask.sum() == one["area"]
            assert len({one["category_id"] for one in annotations}) == len(annotations)
    assert forms[list, 0] and forms[dict, 0]


def test_splits_share_no_id_and_no_image(scenes):
    train, val = _coco(scenes, "train"), _coco(scenes, "val")
    assert not train.imgs.keys() & val.imgs.keys()
    assert not train.anns.keys() & val.anns.keys()
    pixels = [
        path.read_bytes()
        for split in ("train", "val")
        for path in (scenes / split).iterdir()
    ]
    assert len(set(pixels)) == SMALL["images"]


@pytest.mark.parametrize("seed", range(6))
def test_masks_are_disjoint_and_polygons_tell_them(seed):
    _, scene = _draw(seed, 256)
    masks = np.stack([one.mask for one in scene.objects])
    assert masks.sum(0).max() == 1
    for one in scene.objects:
        if one.outline is None:
            continue
        rle = coco_mask.frPyObjects([one.outline.ravel().tolist()], 256, 256)
        read = coco_mask.decode(coco_mask.merge(rle)).astype(bool)
        assert (read & one.mask).sum() > 0.93 * (read | one.mask).sum()


def test_drawing_is_a_function_of_the_generator_and_scales():
    chosen, scene = _draw(3, 128)
    _, again = _draw(3, 128)
    np.testing.assert_array_equal(scene.image, again.image)
    assert [one.category for one in scene.objects] == chosen
    _, double = _draw(3, 256)
    areas = [
        np.mean([one.mask.mean() for one in drawn.objects]) for drawn in (scene, double)
    ]
    assert 0.5 < areas[0] / areas[1] < 2


def test_crowds_are_one_rle_of_many_parts(tmp_path):
    # Four scenes in a hundred have a crowd: the chance of none in 150 is 0.2 %, and the
    # seed is fixed.
    make_scenes(tmp_path / "s", **{**SMALL, "images": 150, "size": 64})
    coco = _coco(tmp_path / "s", "train")
    crowds = [one for one in coco.anns.values() if one["iscrowd"]]
    assert crowds and len(crowds) < 0.1 * len(coco.imgs)
    for one in crowds:
        assert isinstance(one["segmentation"]["counts"], list)
        assert coco.annToMask(one).sum() == one["area"]


def test_pools_are_disjoint_named_and_even():
    evaluated = scene_categories.categories("evaluated")
    pretraining = scene_categories.categories("pretraining")
    names = [one.name for one in evaluated + pretraining]
    assert (len(evaluated), len(pretraining)) == (80, 320)
    assert len(set(names)) == 400
    assert "striped red star" in names
    for field, times in (("shape", 8), ("texture", 16), ("colour", 10)):
        counts = Counter(getattr(one, field) for one in evaluated)
        assert set(counts.values()) == {times}
        for fold in range(4):
            within = Counter(getattr(one, field) for one in evaluated[fold::4])
            assert len(within) == len(counts)
            assert max(within.values()) - min(within.values()) <= 1
    with pytest.raises(DiffUpError, match="novel"):
        scene_categories.categories("novel")


@pytest.mark.parametrize("shape", scene_categories.SHAPES)
def test_outlines_lie_about_the_unit_disk(shape):
    for ring in scene_categories.unit_outline(shape):
        assert np.hypot(*ring.T).max() < 1.15
    x, y = scene_categories.unit_outline(shape)[0].T
    assert 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) > 0.8


def test_every_category_is_dealt_evenly():
    hands = deal(np.random.default_rng(0), 200, pool=80)
    counts = Counter(card for hand in hands for card in hand)
    assert len(counts) == 80
    assert min(counts.values()) >= 6
    assert max(counts.values()) - min(counts.values()) <= 2
    assert all(2 <= len(hand) <= 5 and len(set(hand)) == len(hand) for hand in hands)


def test_again_is_left_alone_and_damage_is_repaired(tmp_path):
    small = {**SMALL, "images": 4, "size": 64, "val_fraction": 0.5}
    out = tmp_path / "deep" / "demo"
    assert make_scenes(out, **small)
    before = _content(out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not make_scenes(out, **small)
    assert not make_scenes(out, **{**small, "processes": 2})
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    (out / "train" / "000001.jpg").write_bytes(b"damaged")
    (out / "val" / "000003.jpg").unlink()
    assert make_scenes(out, **small)
    assert _content(out) == before
    assert make_scenes(out, **{**small, "seed": 9})
    assert _content(out).keys() == before.keys() and _content(out) != before
    assert [path.name for path in out.parent.iterdir()] == ["demo"]


@pytest.mark.parametrize("foreign", ["holiday.jpg", "manifest.json", "train"])
def test_a_folder_of_somebody_else_is_refused(tmp_path, foreign):
    (tmp_path / foreign).write_text(json.dumps({"made_by": "somebody"}))
    with pytest.raises(DiffUpError, match="not a folder this program made"):
        make_scenes(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [foreign]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (["--images", "1"], "--images 1 "),
        (["--size", "20"], "--size 20 "),
        (["--seed", "-1"], "--seed -1 "),
        (["--processes", "0"], "--processes 0 "),
        (["--val-fraction", "1.5"], "--val-fraction 1.5 "),
        (["--val-fraction", "0.01"], "--val-fraction 0.01 "),
    ],
)
def test_bad_arguments_are_told_in_one_line(tmp_path, capsys, wrong, word):
    out = tmp_path / "demo"
    assert main(["--out", str(out), "--images", "10", *wrong]) == 2
    told = capsys.readouterr().err
    assert word in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir())
