"""Class folders: FSS-1000 and one's own pictures; each mistake names its file."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from diffup_jax.data.readers import class_folders
from diffup_jax.data.sources import fold_classes, open_source
from diffup_jax.types import DiffUpError
from tests import benchmark_files, datasets


def fss(root, split="test", min_area=0.0):
    return open_source(
        "fss1000", root=str(root), split=split, min_area=min_area, crowd="hsnet"
    )


def folder(root, split="all", min_area=0.0):
    return open_source(
        "folder", root=str(root), split=split, min_area=min_area, crowd="hsnet"
    )


@pytest.fixture
def own(tmp_path):
    for name in ("cup", "hat", "key"):
        benchmark_files.write_class(tmp_path / name, images=3)
    return tmp_path


def test_fss_classes_are_numbered_within_the_sorted_lists(tmp_path):
    """Offsets as published: trn first, then val, then test, each sorted."""
    root = benchmark_files.write_fss(tmp_path)
    source = fss(root)
    assert source.class_names == ("axe", "bus", "fox", "cup", "yak", "drum", "elk")
    assert [bool(ids) for ids in source.by_class] == [False] * 5 + [True] * 2
    assert fold_classes(source, 0, role="novel") == (5, 6)
    training = fss(root, split="trn")
    assert fold_classes(training, 0, role="base") == (0, 1, 2)
    assert fold_classes(fss(root, split="val"), 2, role="novel") == (3, 4)
    assert training.image_ids(2) == ("fox/1", "fox/2", "fox/3", "fox/4")


def test_fss_masks_are_grey_128_and_above(tmp_path):
    root = benchmark_files.write_fss(tmp_path)
    grey = np.arange(2400).reshape(benchmark_files.SIZE) % 256
    Image.fromarray(grey.astype(np.uint8)).save(root / "data" / "elk" / "2.png")
    colour = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    Image.fromarray(colour).save(root / "data" / "elk" / "3.png")
    source = fss(root)
    for name in ("elk/2", "elk/3"):
        mask, ignore = source.mask(name, 6)
        assert (mask == (grey >= 128)).all() and not ignore.any()
    mask, _ = source.mask("elk/1", 6)
    assert (mask == benchmark_files.filled(benchmark_files.box(0))).all()
    assert not source.mask("elk/1", 5)[0].any()  # nobody says a drum is there


@pytest.mark.parametrize("place", ["fewshot_data/fewshot_data", "fewshot_data", ""])
def test_fss_folders_of_the_archive_are_found(tmp_path, place):
    root = benchmark_files.write_fss(tmp_path)
    expected = fss(root).by_class
    (root / place).mkdir(parents=True, exist_ok=True)
    for one in sorted((root / "data").iterdir()):
        one.rename(root / place / one.name)
    (root / "data").rmdir()
    assert fss(root).by_class == expected


def test_fss_mistakes_are_told(tmp_path):
    root = benchmark_files.write_fss(tmp_path)
    with pytest.raises(DiffUpError, match="no split 'all'"):
        fss(root, split="all")
    shutil.move(root / "data" / "elk", root / "elk")
    with pytest.raises(DiffUpError, match=r"1 of 2 class folders.*'elk'"):
        fss(root)
    (root / "splits" / "val.txt").write_text("fox\n")
    with pytest.raises(DiffUpError, match="'fox' twice"):
        fss(root)
    (root / "splits" / "val.txt").write_text("\n")
    with pytest.raises(DiffUpError, match=r"val.txt is empty"):
        fss(root)
    (root / "splits" / "val.txt").unlink()
    with pytest.raises(DiffUpError, match=r"val.txt is missing.*data_prep.fss1000"):
        fss(root)


def test_min_area_counts_mask_pixels(own):
    covered = 24 * 20 / (40 * 60)
    assert folder(own, min_area=covered * 0.99).image_ids(0)
    assert not folder(own, min_area=covered * 1.01).image_ids(0)


def test_own_classes_are_all_novel_unless_dealt(own):
    source = folder(own)
    assert source.class_names == ("cup", "hat", "key")
    assert fold_classes(source, 0, role="novel") == (0, 1, 2)
    assert source.image_ids(1) == ("hat/1", "hat/2", "hat/3")
    entries = [{"name": n, "fold": f} for n, f in (("cup", 1), ("key", 0), ("hat", 1))]
    (own / "classes.json").write_text(json.dumps({"classes": entries}))
    assert folder(own).class_folds == (1, 1, 0)
    for wrong in ({"classes": entries[:2]}, {"classes": [{"name": "cup"}]}, [], {}):
        (own / "classes.json").write_text(json.dumps(wrong))
        with pytest.raises(DiffUpError, match=r"classes.json"):
            folder(own)


def test_splits_share_the_class_table(tmp_path):
    for split, names in (("train", ("cup", "hat")), ("test", ("key", "hat"))):
        for name in names:
            benchmark_files.write_class(tmp_path / split / name, images=2)
    train, test = folder(tmp_path, split="train"), folder(tmp_path, split="test")
    assert train.class_names == test.class_names == ("cup", "hat", "key")
    assert [len(ids) for ids in train.by_class] == [2, 2, 0]
    assert [len(ids) for ids in test.by_class] == [0, 2, 2]
    with pytest.raises(DiffUpError, match=r"neither a folder val .*'test', 'train'"):
        folder(tmp_path, split="val")
    with pytest.raises(DiffUpError, match=r"holds no photograph NAME.jpg.*a split"):
        folder(tmp_path)


def test_masks_of_ones_are_understood(own):
    benchmark_files.write_class(own / "pin", images=2, white=1)
    source = folder(own)
    mask, _ = source.mask("pin/2", 3)
    assert (mask == benchmark_files.filled(benchmark_files.box(1))).all()
    benchmark_files.write_class(own / "toy", images=1, white=100)
    with pytest.raises(DiffUpError, match=r"1 of 12 masks.*toy.1.png.*grey 128"):
        folder(own)


@pytest.mark.parametrize("gone", ["2.png", "2.jpg"])
def test_a_file_without_its_partner_is_named(own, gone):
    (own / "hat" / gone).unlink()
    left = "2.jpg" if gone == "2.png" else "2.png"
    with pytest.raises(DiffUpError, match=rf"hat.{left} has no {gone} beside it"):
        folder(own)


def test_damaged_pictures_are_named(own):
    path = own / "key" / "3.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with pytest.raises(DiffUpError, match=r"key.3.png"):
        folder(own)
    Image.new("L", (30, 40), 255).save(path)
    with pytest.raises(DiffUpError, match=r"key.3.png is 40 x 30.*40 x 60"):
        folder(own)
    path.write_bytes(whole)
    source = folder(own)
    (own / "key" / "3.jpg").write_bytes(b"no picture")
    with pytest.raises(DiffUpError, match=r"key.3.jpg"):
        source.image("key/3")


def test_one_coco_json_of_any_categories(tmp_path):
    root = datasets.write_coco(tmp_path, split="mine", classes=3)
    (root / "annotations" / "instances_mine.json").rename(root / "labels.json")
    by_folder = {}
    for name in ("images", "mine"):
        if name == "images":
            shutil.copytree(root / "mine", root / "images")
            (root / "labels.json").rename(root / "mine.json")
        by_folder[name] = folder(root, split="mine")
    source = by_folder["mine"]
    assert source.class_names == ("class 0", "class 1", "class 2")
    assert source.class_folds == (0, 0, 0)
    assert folder(root).by_class == source.by_class  # "all": the only JSON there
    mask, _ = source.mask(source.image_ids(0)[0], 0)
    image = source.image(source.image_ids(0)[0])
    assert np.abs(image[mask].astype(int) - datasets.colour(0, 3)).mean() < 25
    entries = [{"name": f"class {c}", "fold": c} for c in range(3)]
    (root / "classes.json").write_text(json.dumps({"classes": entries}))
    assert folder(root).class_folds == (0, 1, 2)
    shutil.copy(root / "mine.json", root / "other.json")
    with pytest.raises(DiffUpError, match=r"2 JSON files.*'mine', 'other'"):
        folder(root)


def test_an_empty_root_is_told(tmp_path):
    with pytest.raises(DiffUpError, match="holds no class folder"):
        folder(tmp_path)
    (tmp_path / "cup").mkdir()
    with pytest.raises(DiffUpError, match="holds no photograph"):
        folder(tmp_path)


def test_mask_files_of_every_mode_are_read(tmp_path):
    expected = benchmark_files.filled(benchmark_files.box(0))
    grey = Image.fromarray(expected.astype(np.uint8) * 255)
    palette = Image.fromarray(expected.astype(np.uint8))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    pictures = {mode: grey.convert(mode) for mode in ("1", "L", "RGB", "LA", "RGBA")}
    for mode, picture in {**pictures, "P": palette}.items():
        path = tmp_path / f"{mode}.png"
        picture.save(path)
        assert (class_folders.read_mask(path) == expected).all()
