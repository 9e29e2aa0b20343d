"""Every shipped benchmark config scores a small instance of its benchmark."""

from __future__ import annotations

import importlib
import json

import pytest

from data_prep import array_records
from diffup_jax import scoring
from tests import benchmark_files

CONFIGS = {
    "coco_fold0": "coco",
    "pascal_fold0": "voc",
    "coco_to_pascal": "coco_to_pascal",
    "fss1000": "fss1000",
    "lvis92i": "lvis92i",
    "paco_part": "paco_part",
    "pascal_part": "pascal_part",
    "folder": "folder",
}


def small(name, root):
    """The config as shipped but for its size, its backbone and its root."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.method = "prior"
    config.backbone.name, config.backbone.weights = "tiny", "random"
    config.data.root = str(root)
    config.data.image_size = 64
    config.data.workers = 0
    config.diffup.decoder.mask_stride = 8
    config.eval.cues = ("mask",)
    config.eval.shots = (1,)
    config.eval.episodes = 4
    config.eval.batch_size = 4
    config.eval.gallery = 0
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_config_scores_its_benchmark(name, tmp_path):
    root = benchmark_files.write(CONFIGS[name], tmp_path / "data")
    config = small(name, root)
    if name == "pascal_fold0":
        config.data.test_split = "val"  # the published lists name other images
    output = tmp_path / "out" / "results.json"
    (row,) = scoring.score_run(config, workdir=None, output=str(output))
    assert json.loads(output.read_text())["rows"] == [row]
    assert row["episodes"] == 4 and len(row["episodes_sha"]) == 16
    assert row["protocol"] == config.eval.protocol
    assert 0 < row["prior_miou"] <= 100
    (listed,) = (tmp_path / "out" / "episodes").iterdir()
    # The frozen list scores the same again.
    config.eval.episodes_file = str(listed)
    (again,) = scoring.score_run(config, workdir=None, output=str(output))
    assert again["episodes_sha"] == row["episodes_sha"]
    assert again["miou"] == row["miou"]


@pytest.mark.parametrize(
    ("name", "kind", "split"),
    [("coco_fold0", "coco", "val2014"), ("pascal_fold0", "voc", "val")],
)
def test_packed_data_scores_as_its_files(name, kind, split, tmp_path, capsys):
    root = benchmark_files.write(kind, tmp_path / "data")
    packed = tmp_path / "packed"
    array_records.main(
        f"--source {kind} --root {root} --split {split} --out {packed}".split()
    )
    config = small(name, root)
    config.data.test_split = split
    output = str(tmp_path / "out" / "results.json")
    (loose,) = scoring.score_run(config, workdir=None, output=output)
    config.data.source, config.data.root = "array_record", str(packed)
    (shards,) = scoring.score_run(config, workdir=None, output=output)
    assert shards["episodes_sha"] == loose["episodes_sha"]
    assert shards["miou"] == loose["miou"]
    assert shards["prior_miou"] == loose["prior_miou"]
