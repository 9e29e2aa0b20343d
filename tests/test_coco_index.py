"""The index of a JSON: exact, small to send, rebuilt when it is damaged or stale."""

from __future__ import annotations

import json
import os
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools import mask as coco_mask

from diffup_jax.data.readers import coco_index
from diffup_jax.data.readers.coco import open_coco
from diffup_jax.types import DiffUpError
from tests import datasets


def opened(root):
    return open_coco(root, split="val", min_area=0.0, crowd="ignore", overlap="union")


@pytest.fixture
def root(tmp_path):
    return datasets.write_coco(tmp_path / "data", split="val", images=6)


@pytest.fixture
def parsed(monkeypatch):
    """The JSON files that were parsed, in order."""
    calls, parse = [], coco_index._parse
    monkeypatch.setattr(
        coco_index, "_parse", lambda path: (calls.append(path), parse(path))[1]
    )
    return calls


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


def index_of(cache):
    (path,) = cache.glob("*.index")
    return path


def same(one, other):
    assert one.by_class == other.by_class
    for class_id in range(len(one.class_names)):
        for image_id in one.image_ids(class_id):
            for a, b in zip(
                one.mask(image_id, class_id),
                other.mask(image_id, class_id),
                strict=True,
            ):
                assert (a == b).all()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-60, 60), min_size=6, max_size=20).filter(
        lambda values: len(values) % 2 == 0
    )
)
def test_fifths_of_a_pixel_lose_no_pixel(corners):
    exact = np.array(corners)
    kept = coco_index._pixels(coco_index._fifths(exact))
    # The rasteriser rounds by truncating x + 1/2, which moves negative corners more.
    assert np.abs(kept - exact).max() <= 0.3 + 1e-9
    one, other = (coco_mask.frPyObjects([c], 40, 50)[0] for c in (exact, kept))
    assert one == other


def test_fifths_are_kept_beyond_the_short_numbers():
    far = np.array([0.0, 0.0, 7000.3, 0.1, 7000.3, 5.9])
    assert coco_index._fifths(far).dtype == np.int32
    kept = coco_index._pixels(coco_index._fifths(far))
    one, other = (coco_mask.frPyObjects([c], 8, 7100)[0] for c in (far, kept))
    assert one == other and coco_mask.area(one) > 0


@pytest.mark.parametrize("density", [0.0, 0.002, 0.1, 0.5, 0.999, 1.0])
def test_run_lengths_are_exact(density):
    """Noise gives short runs, falling and rising ones; blocks give long ones."""
    generator = np.random.default_rng(4)
    mask = generator.random((211, 173)) < density
    mask[50:150, 20:90] = density < 0.5
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    lengths = coco_index.run_lengths(runs["counts"])
    values = np.arange(len(lengths)) % 2 == 1
    assert (np.repeat(values, lengths) == mask.T.ravel()).all()


def test_a_json_is_parsed_once_and_its_folder_left_alone(root, parsed, cache):
    first = opened(root)
    second = opened(root)
    assert len(parsed) == 1 and index_of(cache).is_file()
    same(first, second)
    found = [p.name for p in (root / "annotations").iterdir()]
    assert found == ["instances_val.json"]


def test_an_edited_json_is_parsed_again(root, parsed):
    opened(root)
    path = root / "annotations" / "instances_val.json"
    before = path.stat()
    content = json.loads(path.read_text())
    assert content["categories"][0]["name"] == "class 0"
    path.write_text(path.read_text().replace("class 0", "klass 0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert opened(root).class_names[0] == "klass 0"
    assert len(parsed) == 2


def flip(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"something else",
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[: len(content) // 2],
        lambda content: flip(content, 3),
        lambda content: flip(content, 18),
        lambda content: flip(content, 40),
        lambda content: flip(content, content.index(b"class 3")),
        lambda content: flip(content, len(content) // 2),
        lambda content: flip(content, len(content) - 1),
    ],
)
def test_a_damaged_index_is_made_again(root, parsed, cache, damage):
    good = opened(root)
    path = index_of(cache)
    whole = path.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    path.unlink()  # the old file stays as it is for those who map it
    path.write_bytes(damaged)
    with pytest.warns(RuntimeWarning, match="index is damaged and made again"):
        same(good, opened(root))
    assert len(parsed) == 2
    assert path.read_bytes() == whole


def test_a_json_with_a_byte_order_mark_is_read(root):
    before = opened(root)
    path = root / "annotations" / "instances_val.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    same(before, opened(root))


def test_no_place_for_an_index_is_told(root, monkeypatch):
    monkeypatch.setenv("DIFFUP_CACHE", str(root / "val" / "000000000001.jpg"))
    with pytest.raises(DiffUpError, match=r"no place for an index.*DIFFUP_CACHE"):
        opened(root)


def test_a_worker_receives_no_annotation(root):
    """What is sent does not grow with the annotations, and reads the same."""
    few = opened(root)
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"] *= 50
    path.write_text(json.dumps(content))
    many = opened(root)
    assert len(many.index["classes"]) == 50 * len(few.index["classes"])
    assert len(pickle.dumps(many)) == len(pickle.dumps(few))
    same(many, pickle.loads(pickle.dumps(many)))


def test_a_worker_refuses_a_damaged_index(root, cache):
    sent = pickle.dumps(opened(root))
    path = index_of(cache)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(flip(content, 18))
    with pytest.raises(DiffUpError, match="changed during the run"):
        pickle.loads(sent)


def test_an_open_index_outlives_its_replacement(root):
    old = opened(root)
    masks = [old.mask(i, 0)[0].copy() for i in old.image_ids(0)]
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:1]
    path.write_text(json.dumps(content))
    opened(root)
    for image_id, mask in zip(old.image_ids(0), masks, strict=True):
        assert (old.mask(image_id, 0)[0] == mask).all()
