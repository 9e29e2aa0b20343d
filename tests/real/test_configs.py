"""The configs on real images train, save, and evaluate with another backbone."""

import importlib
import json

import jax
import pytest

from configs import common
from diffup_jax import scoring, training


@pytest.mark.parametrize("name", ["garments", "garments_two", "coco_mini"])
def test_a_config_on_real_images_runs(name, realdata, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUP_REALDATA", str(realdata))
    config = importlib.import_module(f"configs.{name}").get_config("0")
    # Small and short, but every part of it real: images, labels, weights.
    config.data.image_size = 192
    config.data.workers = 0
    config.train.steps = 2
    config.train.batch_size = 2 * jax.device_count()
    config.train.val_episodes = 4
    config.train.checkpoint_every = 2
    config.eval.cues = ("mask", "point")
    config.eval.shots = (1,)
    config.eval.episodes = 12
    config.eval.batch_size = 4
    config.eval.gallery = 3
    other = "$DIFFUP_REALDATA/weights/squeezenet_v1_0_deepcompressed.npz"
    if name == "garments_two":  # EfficientNet-Lite0 has no file here
        config.train.also_over = {"squeezenet1_0": common.over(other)}
    work = tmp_path / "run"
    training.train(config, str(work))
    config.backbone.name = "squeezenet1_0"
    config.backbone.weights = other
    out = tmp_path / "results.json"
    rows = scoring.score_run(config, workdir=str(work), output=str(out))
    assert json.loads(out.read_text())["rows"] == rows
    assert [row["cue"] for row in rows] == ["mask", "point"]
    assert all(row["backbone"] == "squeezenet1_0" for row in rows)
    if name != "coco_mini":  # twelve tiny objects of coco_mini would prove nothing
        # Real weights make a prior that beats painting everything foreground.
        assert rows[0]["prior_miou"] > rows[0]["everything_foreground"] + 3
    assert (tmp_path / "gallery.html").exists()
