"""Scoring a run: what is written, and what a number may not depend on."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from diffup_jax import checkpoint, scoring, training
from diffup_jax import settings as setup
from diffup_jax.data import episodes
from diffup_jax.evaluation import ROW_KEYS
from diffup_jax.types import DiffUpError
from tests import datasets, runs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return datasets.write_label_maps(tmp_path_factory.mktemp("scoring"), train=40)


@pytest.fixture
def config(root):
    return runs.get_config(str(root))


@pytest.fixture(scope="module")
def work(root, tmp_path_factory):
    """A checkpoint as training writes it, of an average away from its start."""
    work = tmp_path_factory.mktemp("work") / "run"
    settings = setup.from_config(runs.get_config(str(root)))
    method = setup.make_method(settings, setup.make_backbone(settings))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    tx = training.optimiser(settings.train)
    state, _ = training.init_state(method, tx, settings, mesh)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda x: np.float32(np.asarray(x) + rng.normal(0, 0.03, x.shape)),
        state.average,
    )
    writer = checkpoint.manager(str(work), keep=1)
    checkpoint.save(
        writer,
        7,
        state=state._replace(average=moved),
        position={"next": 7},
        config=setup.plain(settings),
    )
    writer.wait_until_finished()
    writer.close()
    return work


def test_results_lists_and_gallery(config, work, tmp_path, capsys):
    config.eval.cues = ("mask", "point")
    config.eval.gallery = 2
    output = tmp_path / "new" / "results.json"
    rows = scoring.score_run(config, workdir=str(work), output=str(output))
    assert json.loads(output.read_text())["rows"] == rows
    assert [tuple(row) for row in rows] == [ROW_KEYS] * 2
    assert [row["cue"] for row in rows] == ["mask", "point"]
    for row in rows:
        assert row["episodes"] == 6 and row["weights"] == "run step 7"
        assert row["weights_digest"].startswith("random ")
        assert (row["steps"], row["samples"]) == (2, 1)
        assert [item["class_id"] for item in row["per_class"]] == [0, 4]
    (path,) = (output.parent / "episodes").iterdir()
    draws, meta = episodes.read_draws(path)
    assert len(draws) == 6 and meta["protocol"] == "clean" and meta["shots"] == 1
    assert {row["episodes_sha"] for row in rows} == {meta["sha"]}
    assert (output.parent / "gallery.html").read_text().count("<img") >= 2
    assert "mIoU" in capsys.readouterr().out


def test_a_number_does_not_depend_on_the_batch_size(config, work, tmp_path):
    rows = []
    for size in (3, 4):
        config.eval.batch_size = size
        output = tmp_path / f"{size}.json"
        rows += scoring.score_run(config, workdir=str(work), output=str(output))
    one, other = rows
    # Programs of two batch sizes round differently: a pixel at 0.5 may change sides.
    for name in ("miou", "fb_iou", "prior_miou", "auroc_uncertainty"):
        assert one[name] == pytest.approx(other[name], abs=0.05), name
    exact = set(ROW_KEYS) - {"miou", "miou_ci95", "fb_iou", "prior_miou", "per_class"}
    exact -= {"auroc_variance", "auroc_uncertainty"}
    assert {name: one[name] for name in exact} == {name: other[name] for name in exact}


def test_another_backbone_reads_the_same_checkpoint(config, work, tmp_path):
    config.backbone.name = "squeezenet1_1"
    (row,) = scoring.score_run(
        config, workdir=str(work), output=str(tmp_path / "results.json")
    )
    assert row["backbone"] == "squeezenet1_1" and row["weights"] == "run step 7"
    assert 0 <= row["miou"] <= 100


def test_the_training_free_method_needs_no_run(config, tmp_path):
    config.method = "prior"
    output = str(tmp_path / "results.json")
    (row,) = scoring.score_run(config, workdir=None, output=output)
    assert row["weights"] == "none (training-free)" and row["steps"] == 0
    assert row["prior_miou"] > 0
    assert not (tmp_path / "gallery.html").exists()


def test_what_cannot_be_scored_is_told(config, root, work, tmp_path):
    output = str(tmp_path / "results.json")

    def refused(words, workdir=str(work)):
        with pytest.raises(DiffUpError, match=words):
            scoring.score_run(config, workdir=workdir, output=output)

    refused("no checkpoint in .*nowhere.*--config.method=prior", workdir="nowhere")
    refused("no checkpoint in None", workdir=None)
    config.decoder.size = "B"
    config.process.signal_scale = 2.0
    refused(
        r"trained with another config:\s+config.decoder.size: was 'S', now 'B'\s+"
        r"config.process.signal_scale: was 1.0, now 2.0"
    )
    config = runs.get_config(str(root))
    config.data.fold = 1  # among the base classes of the training
    refused(r"config.data.fold: was 0, now 1")
    config.data.test_root = str(root)  # other data: its folds are its own
    config.eval.shots = (40,)
    refused("40-shot episodes need 41")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_width_is_told(config, work, tmp_path, monkeypatch):
    """Even if the config in it were right."""
    monkeypatch.setattr(scoring, "_check_fits", lambda *arguments: None)
    config.decoder.size = "B"
    with pytest.raises(DiffUpError, match="another model") as caught:
        scoring.score_run(
            config, workdir=str(work), output=str(tmp_path / "results.json")
        )
    assert "saved (3, 3, " in str(caught.value) and "decoder.size" in str(caught.value)
