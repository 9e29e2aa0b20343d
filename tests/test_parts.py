"""Parts: images and masks are cut to one object; the folds are the published ones."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from data_prep import paco_part as prep_paco
from data_prep import pascal_part as prep_pascal
from diffup_jax.data.readers import pascal_part
from diffup_jax.data.sources import boxes, fold_classes, open_source
from diffup_jax.types import DiffUpError
from tests import benchmark_files
from tests.benchmark_files import box, filled, inner

ANNOTATIONS = "Annotations_Part_json_merged_part_classes"


def open_parts(kind, root, split="val", min_area=0.0):
    return open_source(
        kind, root=str(root), split=split, min_area=min_area, crowd="hsnet"
    )


@pytest.fixture
def paco(tmp_path, capsys):
    root = benchmark_files.write_paco(tmp_path / "paco")
    assert prep_paco.main(["--root", str(root), "--subset"]) == 0
    return root


@pytest.fixture
def pascal(tmp_path):
    return benchmark_files.write_pascal_part(tmp_path / "voc")


def cut(mask, half):
    y0, x0, y1, x1 = box(half)
    return mask[y0:y1, x0:x1]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_paco_masks_are_cut_to_the_object(paco):
    source = open_parts("paco_part", paco)
    names = ("mug:handle", "mug:rim", "dog:ear", "dog:leg", "dog:tail")
    assert source.class_names == names and source.class_folds == (0, 1, 2, 3, 0)
    assert source.image_ids(0)[0] == "000000000101#1"
    expected = {
        0: (0, [inner(0, 0)]),
        1: (0, [inner(0, 1)]),
        2: (1, [inner(1, 0)]),
        3: (1, [inner(1, 1), (28, 50, 31, 53)]),  # both legs
    }
    for class_id, (half, regions) in expected.items():
        assert len(source.image_ids(class_id)) == 4
        for image_id in source.image_ids(class_id):
            mask, ignore = source.mask(image_id, class_id)
            assert (mask == cut(filled(*regions), half)).all() and not ignore.any()
            image = source.image(image_id)
            assert image.shape == (*mask.shape, 3) and image.min() > 20
            assert len(boxes(source, image_id, class_id)) == len(regions)
    assert source.image_ids(4) == ()  # no tail in val, but it is a class


def test_paco_other_parts_of_an_object_are_known(paco):
    """Ways of one episode may be parts of one object."""
    source = open_parts("paco_part", paco)
    image_id = source.image_ids(0)[0]
    assert (source.mask(image_id, 1)[0] == cut(filled(inner(0, 1)), 0)).all()
    assert not source.mask(image_id, 3)[0].any()
    assert fold_classes(open_parts("paco_part", paco, "train"), 0, role="base") == (
        1,
        2,
        3,
    )


def test_a_source_of_parts_travels_to_a_worker(paco):
    source = open_parts("paco_part", paco)
    other = pickle.loads(pickle.dumps(source))
    image_id = source.image_ids(3)[0]
    assert (other.mask(image_id, 3)[0] == source.mask(image_id, 3)[0]).all()


def test_the_object_that_shows_most_stands_for_a_part(paco):
    """One image per photograph and class: no episode sees a photograph twice."""
    path = paco / "annotations" / "paco_lvis_v1_val.json"

    def second_mug(content):
        thing = {**content["annotations"][0], "id": 900, "obj_ann_id": 900}
        thing["bbox"] = [35.2, 8.7, 20, 24]
        handle = {**content["annotations"][1], "id": 901, "obj_ann_id": 900}
        y0, x0, y1, x1 = 10, 36, 22, 50
        handle["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]  # a polygon
        content["annotations"] += [thing, handle]

    edit(path, second_mug)
    source = open_parts("paco_part", paco)
    assert source.image_ids(0)[0] == "000000000101#900"
    assert source.image_ids(1)[0] == "000000000101#1"  # its rim is the other mug's
    mask, _ = source.mask("000000000101#900", 0)
    assert (mask == cut(filled((10, 36, 22, 50)), 1)).all()
    photographs = [i.split("#")[0] for i in source.image_ids(0)]
    assert len(set(photographs)) == len(photographs) == 4


@pytest.mark.parametrize("kind", ["paco_part", "pascal_part"])
def test_min_area_is_a_fraction_of_the_object(paco, pascal, kind):
    root = paco if kind == "paco_part" else pascal
    covered = 5 * 6 / (24 * 20)  # part 0 in its object's box
    assert open_parts(kind, root, min_area=covered * 0.99).image_ids(0)
    assert not open_parts(kind, root, min_area=covered * 1.01).image_ids(0)


def test_a_part_outside_its_object_does_not_count(paco):
    path = paco / "annotations" / "paco_lvis_v1_val.json"

    def move(content):
        content["annotations"][0]["bbox"] = [-7.0, 36.0, 3, 90]

    edit(path, move)
    source = open_parts("paco_part", paco)
    assert len(source.image_ids(0)) == 3
    assert "000000000101#1" not in source.image_ids(0)


def test_paco_mistakes_are_told(paco):
    with pytest.raises(DiffUpError, match="no split 'test'"):
        open_parts("paco_part", paco, split="test")
    path = paco / "annotations" / "paco_lvis_v1_val.json"
    whole = path.read_text()
    for change, words in (
        (lambda c: c["annotations"][1].pop("obj_ann_id"), "not a PACO.*obj_ann_id"),
        (lambda c: c["images"].pop(), "not a PACO file: KeyError"),
        (lambda c: c["annotations"].pop(0), "not a PACO file: KeyError"),
        (lambda c: c["annotations"][1]["segmentation"].update(size=[9, 9]), "size"),
        (lambda c: c["annotations"][1]["segmentation"].update(counts="09"), "fill"),
    ):
        edit(path, change)
        with pytest.raises(DiffUpError, match=words):
            open_parts("paco_part", paco)
        path.write_text(whole)
    path.write_text(whole[:200])
    with pytest.raises(DiffUpError, match=r"paco_lvis_v1_val.json is not valid JSON"):
        open_parts("paco_part", paco)
    path.unlink()
    with pytest.raises(DiffUpError, match=r"paco_lvis_v1_val.json is missing"):
        open_parts("paco_part", paco)
    (paco / "paco_part.json").unlink()
    with pytest.raises(DiffUpError, match=r"paco_part.json is missing.*data_prep"):
        open_parts("paco_part", paco)


def test_photographs_are_checked(paco):
    source = open_parts("paco_part", paco)
    path = paco / "val2017" / f"{101:012d}.jpg"
    Image.new("RGB", (61, 40)).save(path)
    with pytest.raises(DiffUpError, match=r"101.jpg is 40 x 61.*40 x 60"):
        source.image("000000000101#1")
    path.unlink()
    with pytest.raises(DiffUpError, match=r"1 of 4 photographs.*000000000101.jpg"):
        open_parts("paco_part", paco)


def test_pascal_classes_follow_the_index(pascal):
    source = open_parts("pascal_part", pascal)
    assert source.class_names == (
        *("bird:face", "bird:wing", "cat:face", "bottle:cap"),
        *("person:face", "person:arm", "aeroplane:wheel", "car:wheel"),
    )  # the aeroplane's tail is left out
    assert source.class_folds == (0, 0, 0, 1, 2, 2, 3, 3)
    first = source.image_ids(1)[0]
    assert first == "bird_val_0#0"
    assert (source.mask(first, 1)[0] == cut(filled(inner(0, 1)), 0)).all()
    assert source.image(first).shape == (24, 20, 3)
    edit(
        pascal / "all_obj_part_to_image.json",
        lambda c: c["animals"]["object"]["bird"]["part"]["FACE"].update(train=[]),
    )
    names = open_parts("pascal_part", pascal).class_names
    assert names[0] == "bird:wing" and len(names) == 7


def test_pascal_root_may_be_the_folder_above(pascal, tmp_path):
    expected = open_parts("pascal_part", pascal).by_class
    (tmp_path / "above" / "VOCdevkit").mkdir(parents=True)
    pascal.rename(tmp_path / "above" / "VOCdevkit" / "VOC2010")
    assert open_parts("pascal_part", tmp_path / "above").by_class == expected


def test_pascal_mistakes_are_told(pascal):
    path = pascal / ANNOTATIONS / "cat_val_1.json"
    whole = path.read_text()
    for change, words in (
        (lambda c: c["object"][0].pop("bndbox"), "cat_val_1.json is no part.*bndbox"),
        (lambda c: c["object"][0]["bndbox"].update(xmin="left"), "no part.*left"),
        (lambda c: c.pop("object"), "cat_val_1.json is no part.*object"),
    ):
        edit(path, change)
        with pytest.raises(DiffUpError, match=words):
            open_parts("pascal_part", pascal)
        path.write_text(whole)
    path.unlink()
    with pytest.raises(DiffUpError, match=r"cat_val_1.json is missing"):
        open_parts("pascal_part", pascal)
    path.write_text(whole)
    (pascal / "JPEGImages" / "cat_val_1.jpg").unlink()
    with pytest.raises(DiffUpError, match=r"1 of 18 photographs.*cat_val_1.jpg"):
        open_parts("pascal_part", pascal)
    index = pascal / "all_obj_part_to_image.json"
    edit(index, lambda c: c.pop("person"))
    with pytest.raises(DiffUpError, match=r"all_obj_part_to_image.json is malformed"):
        open_parts("pascal_part", pascal)
    index.unlink()
    with pytest.raises(DiffUpError, match=r"all_obj_part_to_image.json is missing"):
        open_parts("pascal_part", pascal)


def test_mat_files_give_the_drawn_masks(tmp_path, capsys):
    """From official .mat trees to masks, through the command that converts them."""
    root = benchmark_files.write_pascal_mats(tmp_path)
    assert prep_pascal.main(["--root", str(root), "--subset"]) == 0
    source = open_parts("pascal_part", root)
    assert source.class_names == ("cat:ear", "cat:tail")
    for image_id in source.image_ids(0):
        ears, _ = source.mask(image_id, 0)  # left and right ear are one class
        assert (ears == cut(filled(inner(0, 0), inner(0, 1)), 0)).all()
        tail, _ = source.mask(image_id, 1)
        assert (tail == cut(filled(inner(0, 2)), 0)).all()
    names = {kind for kind, *_ in pascal_part.read_index(root)}
    assert names == {"animals"}  # the car has no part


@pytest.mark.parametrize(
    ("official", "merged"),
    [
        *(("lear", "EAR"), ("rear", "EAR"), ("rebrow", "EYEBROW"), ("lfuleg", "LEG")),
        *(("llleg", "LEG"), ("rfoot", "FOOT"), ("lfpa", "PAW"), ("rbho", "HOOF")),
        *(("fwheel", "WHEEL"), ("wheel_2", "WHEEL"), ("leftmirror", "MIRROR")),
        *(("fliplate", "PLATE"), ("roofside", "SIDE"), ("cbackside_12", "SIDE")),
        *(("coach_3", "COACH"), ("head", "HEAD"), ("body", "BODY"), ("hair", "HAIR")),
        *(("handlebar", "HANDLEBAR"), ("chainwheel", "CHAINWHEEL"), ("beak", "BEAK")),
    ],
)
def test_official_part_names_are_merged(official, merged):
    assert prep_pascal.merged_name(official) == merged


def test_crops_at_the_border_have_a_pixel(paco):
    path = paco / "annotations" / "paco_lvis_v1_val.json"

    def border(content):
        for entry in content["annotations"][:3]:
            if entry["id"] == entry["obj_ann_id"]:
                entry["bbox"] = [59.9, 39.9, 0.05, 0.05]
            else:
                entry["segmentation"] = [[59, 39, 60, 39, 60, 40, 59, 40]]

    edit(path, border)
    source = open_parts("paco_part", paco)
    image_id = source.image_ids(0)[0]
    mask, _ = source.mask(image_id, 0)
    assert source.image(image_id).shape == (1, 1, 3)
    assert mask.tolist() == [[True]] and np.bincount(mask.ravel()).tolist() == [0, 1]
