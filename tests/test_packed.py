"""Packed data is the data it was packed from, to the pixel and to the episode."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from PIL import Image

from data_prep import array_records
from diffup_jax import files
from diffup_jax.data import batches, doctor, episodes, lists, pipeline, rasters
from diffup_jax.data.augment import Augment
from diffup_jax.data.benchmarks import BENCHMARKS
from diffup_jax.data.options import DataSettings
from diffup_jax.data.readers import packed
from diffup_jax.data.sources import open_source, rules_of
from diffup_jax.types import DiffUpError
from tests import datasets

CROWDED = {"min_area": 0.0, "crowd": "ignore"}


def loose(kind, root, split):
    return open_source(kind, root=str(root), split=split, **CROWDED)


def packed_again(out, split, min_area=0.0):
    return packed.open_packed(Path(out), split=split, min_area=min_area)


def command(kind, root, split, out, *more):
    return array_records.main(
        ["--source", kind, "--root", str(root), "--split", split, "--out", str(out)]
        + ["--crowd", "ignore", "--processes", "1", *more]
    )


def write_overlapping(root):
    """COCO data whose classes overlap, with crowds and touching instances."""
    datasets.write_coco(root, split="val", classes=5, images=10)
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for image in range(1, 11):
        for shift, category in ((0, 3), (6, 6), (6, 9), (20, 3)):
            box = (shift, image, shift + 20, image + 15)
            content["annotations"].append(datasets.annotation(image, category, box))
        crowd = datasets.annotation(image, 3, (30, 20, 60, 40), crowd=True)
        content["annotations"].append(crowd)
    datasets.write_instances(root, "val", content)
    return root


@pytest.fixture(scope="module", params=["coco", "label_map"])
def both(request, tmp_path_factory):
    """(loose source, packed source, folder of the packed splits)."""
    root = tmp_path_factory.mktemp("data")
    if request.param == "coco":
        split = "val"
        write_overlapping(root)
    else:
        split = "train"
        datasets.write_label_maps(root)
    out = root.parent / f"{root.name}-packed"
    assert command(request.param, root, split, out) == 0
    return loose(request.param, root, split), packed_again(out, split), out


def images(source):
    return sorted(
        {i for c in range(len(source.class_names)) for i in source.image_ids(c)}
    )


def test_every_pixel_is_the_same(both):
    source, again, _ = both
    assert again.name == source.name
    assert again.class_names == source.class_names
    assert again.class_folds == source.class_folds
    overlaps = ignored = 0
    for class_id in range(len(source.class_names)):
        assert again.image_ids(class_id) == source.image_ids(class_id)
    for image_id in images(source):
        assert (again.image(image_id) == source.image(image_id)).all()
        total = np.zeros(source.image(image_id).shape[:2], int)
        for class_id in range(len(source.class_names)):
            expected = source.mask(image_id, class_id)
            found = again.mask(image_id, class_id)
            for one, other in zip(expected, found, strict=True):
                assert other.dtype == bool and (one == other).all()
            instances = again.instances(image_id, class_id)
            assert instances.dtype == np.uint16
            assert (instances == source.instances(image_id, class_id)).all()
            total += expected[0]
            ignored += expected[1].any()
        overlaps += (total > 1).any()
    assert ignored
    assert bool(overlaps) == ("val" in again.root)


def test_images_keep_their_bytes(both):
    source, again, _ = both
    files = {p.read_bytes() for p in Path(source.root).rglob("*.jpg")}
    files |= {p.read_bytes() for p in Path(source.root).rglob("images/*.png")}
    for image_id in images(source):
        assert again.encoded(image_id) in files


def test_episodes_are_the_same(both):
    source, again, _ = both
    classes = range(len(source.class_names))
    for draw in (
        lambda s: episodes.hsnet_stream(
            {c: s.image_ids(c) for c in classes}, classes, shots=1, count=30
        ),
        lambda s: episodes.clean_draws(s, classes, shots=2, count=30, seed=3),
    ):
        assert lists.draws_sha(draw(source)) == lists.draws_sha(draw(again))
        assert draw(source) == draw(again)


def test_workers_read_the_same_batches(both):
    source, again, _ = both

    def made(one, workers):
        recipe = batches.Training(
            source=one,
            classes=tuple(range(len(one.class_names))),
            seed=5,
            data=DataSettings(image_size=32, box="instance"),
            augment=Augment(),
            batch_size=2,
            max_shots=2,
            ways=1,
            cues=("mask", "box"),
            fewest_points=1,
        )
        dataset = pipeline.training_dataset(
            recipe, steps=2, process_index=0, process_count=1
        )
        iterator = pipeline.iterate(dataset, workers=workers)
        try:
            return list(iterator)
        finally:
            iterator.close()

    expected = made(source, 0)
    for workers in (0, 1):
        for one, other in zip(expected, made(again, workers), strict=True):
            for a, b in zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True):
                assert (a == b).all()


def test_a_worker_receives_the_path_only(both):
    _, again, _ = both
    first = again.image_ids(0)[0]
    again.image(first)
    assert again.records._source is not None
    sent = pickle.loads(pickle.dumps(again))
    assert sent.records._source is None
    assert (sent.image(first) == again.image(first)).all()


def test_other_tools_read_the_folder(both):
    """It is a plain tensorflow-datasets folder: decoded pictures, our label values."""
    import tensorflow_datasets as tfds

    source, again, _ = both
    data = tfds.builder_from_directory(again.root).as_data_source(split="images")
    names = images(source)
    assert len(data) == len(names)
    for record, name in zip(data, names, strict=True):
        assert record["id"] == name.encode()
        assert (record["image"] == source.image(name)).all()
        for class_id, layer in zip(record["classes"], record["layers"], strict=True):
            if layer == 0:
                mask = source.mask(name, int(class_id))[0]
                assert ((record["labels"][..., 0] == class_id + 1) == mask).all()


def test_min_area_filters_the_lists(both):
    source, again, out = both
    shares = {
        (c, i): source.mask(i, c)[0].mean()
        for c in range(len(source.class_names))
        for i in source.image_ids(c)
    }
    middle = float(np.median(list(shares.values())))
    larger = packed_again(out, Path(again.root).name, min_area=middle)
    for class_id in range(len(source.class_names)):
        expected = [
            i for i in source.image_ids(class_id) if shares[class_id, i] > middle
        ]
        assert larger.image_ids(class_id) == tuple(expected)


def test_a_smaller_min_area_is_refused(tmp_path):
    root = datasets.write_label_maps(tmp_path / "data")
    assert command("label_map", root, "test", tmp_path, "--min-area", "0.05") == 0
    lists = open_source(
        "label_map", root=str(root), split="test", min_area=0.05, crowd="hsnet"
    )
    for min_area in (0.0, 0.05):
        again = packed_again(tmp_path, "test", min_area)
        assert again.by_class == lists.by_class
    with pytest.raises(DiffUpError, match=r"min_area is 0.01 .* packed with 0.05"):
        packed_again(tmp_path, "test", 0.01)


def test_packed_data_keeps_the_rules_of_what_was_packed(tmp_path):
    root = datasets.write_label_maps(tmp_path / "data", train=5, test=5)
    assert command("label_map", root, "train", tmp_path) == 0
    assert doctor.recognise(tmp_path) == "array_record"
    assert doctor.find_splits(tmp_path, "array_record") == ("train",)
    again = packed_again(tmp_path, "train")
    assert rules_of(again, "array_record") is BENCHMARKS["label_map"]
    part = dataclasses.replace(again, kind="pascal_part")
    assert rules_of(part, "array_record").distinct
    with pytest.raises(DiffUpError, match="data kind 'gone'.*Pack the data again"):
        rules_of(dataclasses.replace(again, kind="gone"), "array_record")


def test_packing_is_idempotent(tmp_path, capsys):
    root = datasets.write_label_maps(tmp_path / "data", train=5, test=5)
    out = tmp_path / "out"
    assert command("label_map", root, "train", out) == 0
    shard = next((out / "train").glob("*.array_record*"))
    before = shard.stat().st_mtime_ns
    assert "written" in capsys.readouterr().out
    assert command("label_map", root, "train", out) == 0
    assert "already there" in capsys.readouterr().out
    assert shard.stat().st_mtime_ns == before
    # Another mask, another option and a damaged shard: each is packed again.
    Image.new("L", (64, 48), 1).save(root / "masks" / "picture001.png")
    assert command("label_map", root, "train", out) == 0
    assert packed_again(out, "train").mask("picture001", 0)[0].all()
    assert command("label_map", root, "train", out, "--min-area", "0.01") == 0
    assert capsys.readouterr().out.count("written") == 2
    shard = next((out / "train").glob("*.array_record*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DiffUpError, match="has not its"):
        packed_again(out, "train")
    assert command("label_map", root, "train", out, "--min-area", "0.01") == 0
    assert packed_again(out, "train").image("picture001").shape == (48, 64, 3)
    assert sorted(p.name for p in out.iterdir()) == ["train"]


def test_nothing_half_packed_is_left(tmp_path, capsys):
    root = datasets.write_label_maps(tmp_path / "data", train=5, test=5)
    out = tmp_path / "out"
    assert command("label_map", root, "train", out) == 0
    whole = (out / "train" / "packed.json").read_bytes()
    picture = root / "images" / "picture003.png"
    picture.write_bytes(picture.read_bytes()[:200])
    left = files.aside(out / "train")
    left.mkdir()
    assert command("label_map", root, "train", out) == 2
    assert "picture003" in capsys.readouterr().err
    assert (out / "train" / "packed.json").read_bytes() == whole
    assert sorted(p.name for p in out.iterdir()) == ["train"]


def test_a_folder_of_others_is_refused(tmp_path, capsys):
    root = datasets.write_label_maps(tmp_path / "data", train=2, test=2)
    (tmp_path / "out" / "train").mkdir(parents=True)
    precious = tmp_path / "out" / "train" / "thesis.txt"
    precious.write_text("done")
    assert command("label_map", root, "train", tmp_path / "out") == 2
    assert "not a folder this program made" in capsys.readouterr().err
    assert precious.read_text() == "done"


def test_missing_and_malformed_folders_are_told(tmp_path):
    with pytest.raises(DiffUpError, match=r"packed.json is missing.*\[\]"):
        packed_again(tmp_path, "val")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "packed.json").write_text("{}")
    with pytest.raises(DiffUpError, match="not the list of a packed data set"):
        packed_again(tmp_path, "val")


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A source of one image with given masks and ignored pixels, in memory."""

    masks: np.ndarray
    ignores: np.ndarray
    numbers: np.ndarray | None = None
    name: str = "made"
    root: str = ""

    @property
    def class_names(self):
        return tuple(f"class {c}" for c in range(len(self.masks)))

    def image(self, image_id):
        height, width = self.masks.shape[1:]
        return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)

    def mask(self, image_id, class_id):
        return self.masks[class_id], self.ignores[class_id]

    def instances(self, image_id, class_id):
        if self.numbers is None:
            return rasters.components(self.masks[class_id])
        return self.numbers[class_id] * self.masks[class_id]


def there_and_back(source):
    """A PackedSource over the one record of `source`, without any shard."""
    record = packed.encode(source, "one", [])
    record["id"] = record["id"].encode()
    records = packed.Records("nowhere")
    records._source = [record]
    count = len(source.class_names)
    return packed.PackedSource(
        name="made",
        root="",
        class_names=source.class_names,
        class_folds=(0,) * count,
        by_class=((),) * count,
        kind="label_map",
        names=("one",),
        records=records,
    )


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.uint8, (5, 6, 7), elements=st.integers(0, 3)),
    arrays.arrays(bool, (6, 7)),
    st.booleans(),
    st.booleans(),
)
def test_any_masks_survive_a_record(values, base, own_ignore, numbered):
    """Masks that overlap, ignore differently, and number their instances at will."""
    ignores = np.stack([base & (c % 2 == 0 or not own_ignore) for c in range(5)])
    masks = (values == 1) & ~ignores
    numbers = (1 + values.cumsum(1) % 300).astype(np.uint16) if numbered else None
    source = Made(masks, ignores, numbers)
    again = there_and_back(source)
    assert (again.image("one") == source.image("one")).all()
    for class_id in range(5):
        for one, other in zip(
            source.mask("one", class_id), again.mask("one", class_id), strict=True
        ):
            assert (one == other).all()
        expected = source.instances("one", class_id)
        assert (again.instances("one", class_id) == expected).all()


def test_more_classes_than_a_picture_has_values():
    masks = np.zeros((600, 20, 32), bool)
    for class_id in range(600):  # one pixel each, in no order of the values
        masks[class_id].flat[(class_id * 7) % 640] = class_id % 5 > 0
    source = Made(masks, np.zeros_like(masks))
    record = packed.encode(source, "one", [])
    assert len(record["overlaps"]) == 1 and len(record["classes"]) == 480
    assert Image.open(io.BytesIO(record["labels"])).mode == "L"
    again = there_and_back(source)
    for class_id in range(600):
        assert (again.mask("one", class_id)[0] == masks[class_id]).all()


def test_a_source_that_breaks_the_contract_is_refused():
    masks = np.ones((1, 4, 4), bool)
    source = Made(masks, np.zeros_like(masks), np.zeros((1, 4, 4), np.uint16))
    with pytest.raises(DiffUpError, match="do not cover its mask"):
        packed.encode(source, "one", [])
