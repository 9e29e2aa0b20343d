"""The proof of the house: a method that is nothing like DiffUp lives a whole life.

tests/red.py knows no backbone, prior or uncertainty; training, checkpoints, scoring,
report and gallery know nothing of it but the contract of methods.Method.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from diffup_jax import checkpoint, methods, scoring, training
from diffup_jax.report import ROW_KEYS
from diffup_jax.types import DiffUpError
from tests import datasets, red_config, runs
from tests.red import Red


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return datasets.write_label_maps(tmp_path_factory.mktemp("house"), train=40)


@pytest.fixture
def config(root):
    return red_config.get_config(str(root))


@pytest.fixture(scope="module")
def straight(root, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("house") / "straight"
    training.train(red_config.get_config(str(root)), str(workdir))
    return workdir


def test_it_is_a_method_of_the_contract(config):
    assert isinstance(Red(None), methods.Method)
    assert methods.get("red") is Red and "red" in methods.names()


def test_a_run_that_was_stopped_ends_bit_for_bit_where_the_straight_one_does(
    config, straight, tmp_path, monkeypatch, capsys
):
    runs.train_until(15, config, tmp_path, monkeypatch)
    assert checkpoint.latest_step(str(tmp_path)) == 8
    training.train(config, str(tmp_path))
    told = capsys.readouterr().out
    assert "continuing after step 8" in told and "method red" in told
    one, other = (runs.saved_state(x, runs.STEPS) for x in (straight, tmp_path))
    runs.assert_same_bits(one, other)
    lines = runs.metrics(straight)
    assert lines[-1]["val_miou"] > 20 and "val_prior_miou" not in lines[-1]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_it_is_not_continued_with_another_setting_of_its_own(config, straight):
    config.red.cut = 0.4  # free to change
    training.train(config, str(straight))
    config.red.reach = 0.2
    with pytest.raises(DiffUpError, match=r"config\.red\.reach: was 0\.1, now 0\.2"):
        training.train(config, str(straight))


def test_it_is_scored_and_reported(config, straight, tmp_path, capsys):
    config.eval.cues, config.eval.shots = ("mask", "point"), (1, 2)
    config.eval.gallery = 4
    output = tmp_path / "results.json"
    rows = scoring.score_run(config, workdir=str(straight), output=str(output))
    assert json.loads(output.read_text())["rows"] == rows
    assert [(r["cue"], r["shots"]) for r in rows] == [
        ("mask", 1), ("point", 1), ("mask", 2), ("point", 2)
    ]  # fmt: skip
    for row in rows:
        assert tuple(row) == ROW_KEYS and row["method"] == "red"
        assert row["prior_miou"] is None and row["prior_threshold"] is None
        assert row["auroc"] == {} and row["backbone"] == row["weights_digest"] == ""
        assert row["weights"] == f"straight step {runs.STEPS}"
        # The colour tells the class, so a rule of two numbers finds it.
        assert row["miou"] > row["everything_foreground"] + 20
    table = capsys.readouterr().out
    assert "method red" in table and "(weights" not in table
    assert "prior" not in table and "mIoU" in table
    page = (tmp_path / "gallery.html").read_text()
    assert page.count("<article>") == 4 and "prior" not in page
    assert len(list((tmp_path / "episodes").glob("*.jsonl"))) == 2


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("train.prior_cache", 6, r"prior_cache=6, but method 'red' keeps nothing"),
        ("train.cues", ("mask", "text"), r"method 'red' reads none"),
        (
            "train.also_over",
            {"tiny": {"weights": "random"}},
            r"also_over names \['tiny'\], but method 'red' has no priors",
        ),
        ("red.reach", 0.0, r"config\.red\.reach: got 0\.0, expected float > 0"),
    ],
)
def test_what_it_cannot_do_is_told(config, tmp_path, key, value, told):
    plain = config.to_dict()
    section, name = key.split(".")
    plain[section][name] = value
    with pytest.raises(DiffUpError, match=told):
        training.train(plain, str(tmp_path))
    assert not (tmp_path / "checkpoints").exists()
