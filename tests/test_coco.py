"""COCO masks against pycocotools and numpy, on JSON files the tests write."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image
from pycocotools import mask as coco_mask

from diffup_jax.data.readers.coco import open_coco
from diffup_jax.types import DiffUpError
from tests import datasets

HEIGHT, WIDTH = 23, 31
CLASSES = 3

corner = st.tuples(st.floats(-9, WIDTH + 9, allow_nan=False), st.floats(-9, HEIGHT + 9))
polygon = st.lists(corner, min_size=3, max_size=7).map(
    lambda corners: [value for xy in corners for value in xy]
)
annotation = st.tuples(
    st.integers(0, CLASSES - 1),
    st.lists(polygon, min_size=1, max_size=2),
    st.sampled_from(["polygons", "runs", "compressed", "crowd"]),
)


def drawn(polygons):
    """The union of polygons as pycocotools draws and decodes it, bool [h w]."""
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))
    return coco_mask.decode(runs).astype(bool), runs


def write(root, annotations, sizes=((HEIGHT, WIDTH),)):
    """A JSON of split "val" over blank images; annotations without ids get them."""
    (root / "val").mkdir(parents=True, exist_ok=True)
    images = []
    for number, (height, width) in enumerate(sizes, 1):
        name = f"{number:03d}.png"
        Image.new("RGB", (width, height)).save(root / "val" / name)
        images.append(
            {"id": number, "file_name": name, "height": height, "width": width}
        )
    categories = [{"id": 10 + c, "name": f"class {c}"} for c in range(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    datasets.write_instances(root, "val", content)
    return root


def entry(class_id, shape, area, *, crowd=False, image=1):
    return {
        "image_id": image,
        "category_id": 10 + class_id,
        "segmentation": shape,
        "area": float(area),
        "iscrowd": int(crowd),
    }


def written(class_id, polygons, form):
    """(JSON entry, class, mask, is crowd) of a drawn annotation."""
    mask, runs = drawn(polygons)
    flat = np.concatenate([[0], mask.T.ravel(), [2]]).astype(int)
    counts = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat))]))
    shape = {
        "polygons": polygons,
        "runs": {"size": [HEIGHT, WIDTH], "counts": counts.tolist()},
        "compressed": {"size": [HEIGHT, WIDTH], "counts": runs["counts"].decode()},
    }
    shape["crowd"] = shape["runs"]
    crowd = form == "crowd"
    area = max(int(mask.sum()), 1)
    return entry(class_id, shape[form], area, crowd=crowd), class_id, mask, crowd


def opened(root, *, overlap="union", crowd="hsnet", min_area=0.0):
    return open_coco(root, split="val", min_area=min_area, crowd=crowd, overlap=overlap)


# The reference decoder of pycocotools 2.0.11 under numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@settings(max_examples=30, deadline=None)
@given(st.lists(annotation, min_size=1, max_size=6))
def test_masks_follow_the_rules(annotations):
    made = [written(*one) for one in annotations]
    labels = np.full((HEIGHT, WIDTH), -1)
    for _, class_id, mask, crowd in made:
        if not crowd:
            labels[mask] = class_id
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder), [one[0] for one in made])
        for overlap in ("union", "painted"):
            source = opened(root, overlap=overlap, crowd="ignore")
            for class_id in range(CLASSES):
                own = [m for _, c, m, crowd in made if c == class_id and not crowd]
                crowds = [m for _, c, m, crowd in made if c == class_id and crowd]
                empty = np.zeros((HEIGHT, WIDTH), bool)
                union = np.logical_or.reduce([empty, *own])
                expected = union if overlap == "union" else labels == class_id
                ignored = np.logical_or.reduce([empty, *crowds]) & ~expected
                mask, ignore = source.mask("001", class_id)
                assert (mask == expected).all()
                assert (ignore == ignored).all()
                assert source.image_ids(class_id) == ("001",) * int(expected.any())
                assert not opened(root, overlap=overlap).mask("001", class_id)[1].any()
                check_instances(source.instances("001", class_id), mask, own)


def check_instances(instances, mask, own):
    """They share out the mask, the largest first, each inside one annotation."""
    assert instances.dtype == np.uint16
    assert ((instances > 0) == mask).all()
    areas = np.bincount(instances.ravel())[1:]
    assert (areas > 0).all() and (np.diff(areas) <= 0).all()
    assert len(areas) <= len(own)
    for number in range(1, len(areas) + 1):
        assert any((one | (instances != number)).all() for one in own)


def box(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def test_a_later_annotation_hides_an_earlier_one(tmp_path):
    annotations = [
        entry(0, box(2, 2, 12, 12), 100),
        entry(1, box(0, 0, 20, 20), 400),
        entry(2, box(10, 10, 14, 14), 16),
    ]
    root = write(tmp_path, annotations)
    union, painted = opened(root), opened(root, overlap="painted")
    assert [len(union.image_ids(c)) for c in range(3)] == [1, 1, 1]
    assert [len(painted.image_ids(c)) for c in range(3)] == [0, 1, 1]
    assert painted.mask("001", 1)[0].sum() == 400 - 16
    assert union.mask("001", 1)[0].sum() == 400
    # The other way round nothing is hidden but what lies below.
    root = write(tmp_path / "other", annotations[::-1])
    painted = opened(root, overlap="painted")
    assert [painted.mask("001", c)[0].sum() for c in range(3)] == [100, 300, 0]


def test_crowds_hide_nothing_in_the_painted_picture(tmp_path):
    annotations = [
        entry(0, box(2, 2, 12, 12), 100),
        entry(1, box(0, 0, 20, 20), 400, crowd=True),
    ]
    source = opened(write(tmp_path, annotations), overlap="painted", crowd="ignore")
    assert source.mask("001", 0)[0].sum() == 100
    mask, ignore = source.mask("001", 1)
    assert not mask.any() and ignore.sum() == 400
    assert source.image_ids(1) == ()


def test_min_area_counts_pixels_only_when_painted(tmp_path):
    annotations = [
        entry(0, box(0, 0, 20, 20), 400),
        entry(1, box(0, 0, 20, 15), 300),
    ]
    root = write(tmp_path, annotations)
    for overlap, covered in (("union", 400), ("painted", 100)):
        share = covered / (HEIGHT * WIDTH)
        for factor, count in ((0.99, 1), (1.01, 0)):
            source = opened(root, overlap=overlap, min_area=share * factor)
            assert len(source.image_ids(0)) == count


def test_overlapping_instances_share_the_mask(tmp_path):
    annotations = [
        entry(0, box(0, 0, 6, 6), 36),
        entry(0, box(2, 2, 14, 14), 144),
    ]
    root = write(tmp_path, annotations)
    small_on_top = opened(root).instances("001", 0)
    assert np.bincount(small_on_top.ravel())[1:].tolist() == [144 - 16, 36]
    later_on_top = opened(root, overlap="painted").instances("001", 0)
    assert np.bincount(later_on_top.ravel())[1:].tolist() == [144, 36 - 16]


def test_images_are_found_by_id_in_any_order(tmp_path):
    sizes = [(8 + i, 20 - i) for i in range(12)]
    annotations = [
        entry(i % CLASSES, box(0, 0, 1 + i % 4, 5), 5, image=1 + (5 * i) % 12)
        for i in range(12)
    ]
    source = opened(write(tmp_path, annotations, sizes))
    for i in range(12):
        number = 1 + (5 * i) % 12
        mask, _ = source.mask(f"{number:03d}", i % CLASSES)
        assert mask.shape == sizes[number - 1]
        assert mask[:5, : 1 + i % 4].all() and mask.sum() == 5 * (1 + i % 4)
        assert source.image(f"{number:03d}").shape[:2] == mask.shape
        assert source.path(f"{number:03d}") == source.paths[f"{number:03d}"]
    for wrong in ("", "0", "0015", "999", "001.png"):
        with pytest.raises(DiffUpError, match=f"no image '{wrong}'"):
            source.mask(wrong, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["images"].append({**c["images"][0], "id": 9}), "two images"),
        (lambda c: c["annotations"][0].pop("area"), "field `area`"),
        (lambda c: c["annotations"][0].update(image_id=77), "KeyError 77"),
        (
            lambda c: c["annotations"][0].update(
                segmentation={"size": [HEIGHT, WIDTH], "counts": [5, 5]}
            ),
            "do not fill 23 x 31",
        ),
        (
            lambda c: c["annotations"][0].update(
                segmentation={"size": [HEIGHT, WIDTH], "counts": "11"}
            ),
            "do not fill 23 x 31",
        ),
        (
            lambda c: c["annotations"][0].update(
                segmentation={"size": [5, 5], "counts": [25]}
            ),
            r"size \[5, 5\] in 23 x 31",
        ),
        (
            lambda c: c["annotations"][0].update(
                segmentation=[[0.0, 0.0, 1e300, 5.0, 5.0, 5.0]]
            ),
            "not a finite number",
        ),
    ],
)
def test_malformed_annotations_are_told(tmp_path, change, words):
    root = write(tmp_path, [entry(0, box(2, 2, 12, 12), 100)])
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DiffUpError, match=f"instances_val.json is not a.*{words}"):
        opened(root)


def test_unknown_rules_are_told(tmp_path):
    root = write(tmp_path, [])
    with pytest.raises(DiffUpError, match="overlap rule 'both'"):
        opened(root, overlap="both")
    with pytest.raises(DiffUpError, match="crowd rule 'none'"):
        opened(root, crowd="none")
