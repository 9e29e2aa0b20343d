"""Scoring a run: what is written, and what a number may not depend on."""

from __future__ import annotations

import json
import re
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from diffup_jax import (
    checkpoint,
    evaluation_data,
    scoring,
    training,
)
from diffup_jax import config as configs
from diffup_jax.data import lists, protocols
from diffup_jax.report import ROW_KEYS
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
    settings = configs.from_config(runs.get_config(str(root)))
    method, backbone = configs.open_method(settings)
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
        run=configs.run_facts(settings, {"backbone": backbone.digest}),
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
        assert row["method"] == "diffup"
        assert row["settings"] == "one forward, cut at 1/2"
        assert [item["class_id"] for item in row["per_class"]] == [0, 4]
    (path,) = (output.parent / "episodes").iterdir()
    draws, meta = lists.read_draws(path)
    assert len(draws) == 6 and meta["protocol"] == "clean" and meta["shots"] == 1
    assert {row["episodes_sha"] for row in rows} == {meta["sha"]}
    assert all(row["skipped"] == {"empty": 0, "damaged": 0} for row in rows)
    assert (output.parent / "gallery.html").read_text().count("<img") >= 2
    told = capsys.readouterr().out
    assert "mIoU" in told and f"sha={meta['sha']}" in told


def prior_row(config, output, **changes):
    config.method = "prior"
    config.eval.update(changes)
    (row,) = scoring.score_run(config, workdir=None, output=str(output))
    return row


def test_a_frozen_list_gives_the_same_row(config, tmp_path, capsys):
    drawn = prior_row(config, tmp_path / "drawn" / "results.json")
    (path,) = (tmp_path / "drawn" / "episodes").iterdir()
    frozen = path.rename(tmp_path / "list.jsonl")
    listed = prior_row(
        config, tmp_path / "listed" / "results.json", episodes_file=str(frozen),
        episodes=1000,
    )  # fmt: skip
    assert listed == drawn
    assert f"sha={drawn['episodes_sha']}" in capsys.readouterr().out
    # The list is where it was; no second copy with other facts is written.
    assert [x.name for x in (tmp_path / "listed").iterdir()] == ["results.json"]


def test_a_list_that_does_not_fit_is_refused(config, root, tmp_path):
    prior_row(config, tmp_path / "results.json")
    (path,) = (tmp_path / "episodes").iterdir()
    draws, meta = lists.read_draws(path)

    def refused(words, *, rows=draws, facts=meta, **changes):
        file = tmp_path / "list.jsonl"
        lists.write_draws(file, rows, facts)
        again = runs.get_config(str(root))
        with pytest.raises(DiffUpError, match=words):
            prior_row(again, tmp_path / "x.json", episodes_file=str(file), **changes)

    refused("its shots is 1, config.eval.shots is 2", shots=(2,))
    refused("its ways is 1, config.eval.ways is 2", ways=2)
    refused("its protocol is clean, config.eval.protocol is hsnet", protocol="hsnet")
    refused("its fold is 1, config.data.fold is 0", facts={**meta, "fold": 1})
    first = draws[0]
    refused("of class 1, which is not", rows=(first._replace(class_ids=(1,)),))
    refused("needs 'gone' with class", rows=(first._replace(query="gone"),))
    refused("has no episodes", rows=())
    path.write_text(path.read_text().replace(first.query, draws[1].query, 1))
    config.eval.episodes_file = str(path)
    with pytest.raises(DiffUpError, match="was changed or cut short"):
        prior_row(config, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_several_ways(config, tmp_path):
    config.eval.gallery = 2
    row = prior_row(config, tmp_path / "results.json", ways=2)
    assert row["ways"] == 2 and row["episodes"] == 6
    # Every class is a way of every episode: fold 0 has two classes.
    assert [each["episodes"] for each in row["per_class"]] == [6, 6]
    (path,) = (tmp_path / "episodes").iterdir()
    assert path.name.endswith("_fold0_clean_2way_1shot.jsonl")
    draws, meta = lists.read_draws(path)
    assert meta["ways"] == 2 and all(len(draw.supports) == 2 for draw in draws)
    assert (tmp_path / "gallery.html").exists()


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_every_protocol_runs(config, tmp_path, protocol):
    """pfenet wants 2048 pixels of a class: these pictures are too small for it."""
    if protocol == "pfenet":
        with pytest.raises(DiffUpError, match="image"):
            prior_row(config, tmp_path / "results.json", protocol=protocol)
        return
    row = prior_row(config, tmp_path / "results.json", protocol=protocol)
    assert row["protocol"] == protocol and row["episodes"] == 6
    assert row["prior_miou"] > 0


def test_the_padded_frame_on_pictures_that_are_large_enough(config, tmp_path, root):
    """pfenet end to end: padded into the network, scored at the query's own size."""
    large = tmp_path / "large"
    for folder, resample in (("images", "BILINEAR"), ("masks", "NEAREST")):
        (large / folder).mkdir(parents=True)
        for path in (root / folder).iterdir():
            with Image.open(path) as picture:
                picture = picture.resize((320, 200), Image.Resampling[resample])
                picture.save(large / folder / path.name)
    for name in ("classes.json", "train.txt", "test.txt"):
        shutil.copy(root / name, large / name)
    config.data.root = str(large)
    row = prior_row(config, tmp_path / "results.json", protocol="pfenet")
    assert row["protocol"] == "pfenet" and row["episodes"] == 6
    assert row["everything_foreground"] > 0


def test_damaged_episodes_are_left_out_only_when_asked(config, tmp_path, capsys):
    root = datasets.write_label_maps(tmp_path / "data", train=40)
    config.data.root = str(root)
    settings = configs.from_config(config)
    test = evaluation_data.open_test(settings, shots=1)
    (path,) = (root / "images").glob(f"{test.draws[0].query}.*")
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(DiffUpError, match=f"cannot read .*{path.name}"):
        prior_row(config, tmp_path / "results.json")
    config.data.on_error = "skip"
    row = prior_row(config, tmp_path / "results.json")
    damaged = row["skipped"]["damaged"]
    assert damaged >= 1 and row["episodes"] == 6 - damaged
    told = capsys.readouterr().out
    assert told.count("left out: cannot read") == damaged
    assert "damaged episodes left out" in told


def test_a_number_does_not_depend_on_the_batch_size(config, work, tmp_path):
    rows = []
    for size in (3, 4):
        config.eval.batch_size = size
        output = tmp_path / f"{size}.json"
        rows += scoring.score_run(config, workdir=str(work), output=str(output))
    one, other = rows
    # Programs of two batch sizes round differently: a pixel at 0.5 may change sides.
    for name in ("miou", "fb_iou", "prior_miou"):
        assert one[name] == pytest.approx(other[name], abs=0.05), name
    assert one["auroc"] == pytest.approx(other["auroc"], abs=0.05)
    for name in ("ece", "ece_foreground"):
        assert one[name] == pytest.approx(other[name], abs=1e-3), name
    exact = set(ROW_KEYS) - {"miou", "miou_ci95", "fb_iou", "prior_miou", "per_class"}
    exact -= {"auroc", "ece", "ece_foreground", "reliability"}
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
    assert row["weights"] == "none (training-free)" and row["method"] == "prior"
    assert row["settings"] == "cut by Otsu's criterion"
    assert row["prior_miou"] > 0
    assert set(row["auroc"]) == {"prior_variance", "uncertainty"}
    assert 0 < row["auroc"]["uncertainty"] < 1
    assert not (tmp_path / "gallery.html").exists()


def test_what_cannot_be_scored_is_told(config, root, work, tmp_path):
    output = str(tmp_path / "results.json")

    def refused(words, workdir=str(work)):
        with pytest.raises(DiffUpError, match=words):
            scoring.score_run(config, workdir=workdir, output=output)

    refused("no checkpoint in .*nowhere.*--config.method=prior", workdir="nowhere")
    for none in (None, ""):
        refused("'diffup' is scored as it was trained: .*--workdir", workdir=none)
    config.diffup.decoder.size = "B"
    config.diffup.process.signal_scale = 2.0
    refused(
        r"another config:\s+config.diffup.decoder.size: was 'S', now 'B'\s+"
        r"config.diffup.process.signal_scale: was 1.0, now 2.0"
    )
    config = runs.get_config(str(root))
    config.data.fold = 1  # among the base classes of the training
    refused(r"config.data.fold: was 0, now 1")
    config.data.test_root = str(root)  # other data: its folds are its own
    config.eval.shots = (40,)
    refused("an episode needs 41")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "trained", "change", "words"),
    [
        ("coco_to_pascal", "coco", {"fold": 1}, "config.data.fold: was 0, now 1"),
        ("lvis92i", "lvis92i", {"root": "same"}, "trained with 1, now [5]"),
    ],
)
def test_novel_classes_a_run_has_seen_are_refused(
    config, source, trained, change, words
):
    """Where another data set, or another number of shots, changes what is novel."""
    config.data.source, config.data.root = trained, "same"
    saved = configs.run_facts(configs.from_config(config), {})
    config.data.source, config.data.root = source, "other"
    config.eval.shots = (5,)
    config.data.update(change)
    with pytest.raises(DiffUpError, match=re.escape(words)):
        scoring._check_fits(configs.from_config(config), saved, "run")
    config.data.fold, config.eval.shots = 0, (1,)
    scoring._check_fits(configs.from_config(config), saved, "run")


def test_a_checkpoint_of_another_width_is_told(config, work, tmp_path, monkeypatch):
    """Even if the config in it were right."""
    monkeypatch.setattr(scoring, "_check_fits", lambda *arguments: None)
    config.diffup.decoder.size = "B"
    with pytest.raises(DiffUpError, match="another model") as caught:
        scoring.score_run(
            config, workdir=str(work), output=str(tmp_path / "results.json")
        )
    assert re.search(r"saved \(.*\), expected \(", str(caught.value))
    assert "the size of its network above all" in str(caught.value)
