"""The results file and the printed table."""

from __future__ import annotations

import json

import jax.numpy as jnp
import pytest

from diffup_jax import report
from diffup_jax.types import Prediction
from tests.evaluations import NAMES, SETTING, evaluated, reads_red, some_episodes


def test_results_file(tmp_path):
    result = evaluated(some_episodes(7), 3)
    row = report.row(result, SETTING, names=NAMES)
    assert tuple(row) == report.ROW_KEYS
    path = tmp_path / "deep" / "results.json"
    report.write_results(path, [row])
    first = path.read_bytes()
    assert json.loads(first) == {"rows": [row]}
    assert [each.name for each in path.parent.iterdir()] == ["results.json"]
    assert row["episodes"] == 7 and row["weights"] == "step 100"
    low, high = row["miou_ci95"]
    assert low <= row["miou"] <= high
    assert [each["episodes"] for each in row["per_class"]] == [4, 3, 0]
    assert [each["name"] for each in row["per_class"]] == list(NAMES.values())
    assert row["absent_classes"] == ["[bold]owl"]
    # The error is where the spread, a multiple of the uncertainty, says it is.
    assert list(row["auroc"]) == ["prior_variance", "spread", "uncertainty"]
    found = row["auroc"]
    assert found["spread"] == pytest.approx(found["uncertainty"], abs=0.02)
    table = row["reliability"]
    gaps = [b["share"] * abs(b["confidence"] - b["frequency"]) for b in table]
    assert row["ece"] == pytest.approx(sum(gaps))
    shown = sum(b["share"] for b in table[1:])
    assert row["ece_foreground"] == pytest.approx(sum(gaps[1:]) / shown)
    # Running again writes the same bytes: no time, no machine in the file.
    again = report.row(evaluated(some_episodes(7), 3), SETTING, names=NAMES)
    report.write_results(path, [again])
    assert path.read_bytes() == first


def test_what_does_not_exist_is_null_and_a_dash(capsys):
    """A map that orders nothing, and bins of p without a pixel."""

    def blank(keys, episode):
        zero = jnp.zeros(episode.query.mask.shape)
        return Prediction(zero, jnp.full(zero.shape[:2], 0.5), {"spread": zero})

    row = report.row(evaluated(some_episodes(4), 2, ask=blank), SETTING, names=NAMES)
    assert row["auroc"] == {"spread": None} and row["ece_foreground"] is None
    first, *others = row["reliability"]
    assert first["share"] == 1 and first["frequency"] == row["ece"] > 0
    assert others == [{"confidence": None, "frequency": None, "share": 0.0}] * 15
    json.dumps(row, allow_nan=False)
    report.print_table([row])
    shown = capsys.readouterr().out
    assert f"{row['ece']:.3f}" in shown and shown.split().count("-") >= 2


def test_a_method_without_a_prior_and_without_maps_is_reported(capsys):
    def bare(keys, episode):
        return reads_red(keys, episode)._replace(maps={})

    def telling(keys, episode):
        found = reads_red(keys, episode)
        return found._replace(maps={"own_doubt": found.maps["uncertainty"]})

    episodes = some_episodes(7)
    none, one, whole = (
        report.row(evaluated(episodes, 3, ask=ask), SETTING, names=NAMES)
        for ask in (bare, telling, reads_red)
    )
    assert tuple(none) == tuple(one) == report.ROW_KEYS
    assert none["prior_miou"] is none["prior_threshold"] is None
    assert none["auroc"] == {} and none["miou"] == whole["miou"]
    assert one["auroc"] == {"own_doubt": whole["auroc"]["uncertainty"]}
    json.dumps([none, one], allow_nan=False)

    def headings(*rows):
        report.print_table(rows)
        return capsys.readouterr().out

    shown = headings(none)
    assert "mIoU" in shown and "prior" not in shown and "None" not in shown
    assert "own doubt" in headings(one)
    bodiless = {**none, "backbone": "", "weights_digest": ""}
    assert "1-way; method diffup" in " ".join(headings(bodiless).split())
    # Beside rows that have one, what is missing is a dash.
    assert "prior" in headings(none, whole) and " - " in headings(none, whole)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    report.write_results(path, [{"miou": 1.0}])
    with pytest.raises(ValueError):
        report.write_results(path, [{"miou": float("nan")}])
    assert json.loads(path.read_text()) == {"rows": [{"miou": 1.0}]}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("columns", ["40", "120"])
def test_table_shows_every_row_and_its_setting(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    result = evaluated(some_episodes(7), 3)
    settings = [
        SETTING,
        SETTING._replace(cue="scribble+text", convention="skeleton scribble", shots=5),
        SETTING._replace(fold=2),
    ]
    rows = [report.row(result, each, names=NAMES) for each in settings]
    report.print_table(rows)
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    for fact in ("coco fold 0", "coco fold 2", "hsnet", "384 px", "resnet50"):
        assert fact in words
    for fact in ("0123456789abcdef", "step 100", "cut at 1/2", "seed 0", "[bold]owl"):
        assert fact in words
    assert "cues: skeleton scribble" in words
    assert shown.count("aeb00fa3d011d93e") == 3
    assert words.count("protocol") == 2  # one table per setting
    low, high = rows[0]["miou_ci95"]
    assert shown.count(f"{rows[0]['miou']:.1f} ({low:.1f}-{high:.1f})") == 3
    sure = [f"{rows[0][name]:.3f}" for name in ("ece", "ece_foreground")]
    sure += [f"{value:.2f}" for value in rows[0]["auroc"].values()]
    assert words.count(" ".join(sure)) == 3
    assert "…" not in shown


def test_a_report_says_how_its_masks_were_made():
    facts = {"method": "own", "settings": "4 steps, cut at 1/2"}
    assert report.method(facts) == "method own (4 steps, cut at 1/2)"
    assert report.method({**facts, "settings": ""}) == "method own"
