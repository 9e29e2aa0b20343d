"""The results file and the printed table."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

from diffup_jax import evaluation, metrics, report
from tests.evaluations import NAMES, SETTING, batches_of, evaluated, some_episodes

KEYS = [
    *("dataset", "fold", "protocol", "image_size", "backbone", "weights_digest"),
    *("cue", "convention", "shots", "ways", "episodes", "episodes_sha", "seed"),
    "method",
    *("steps", "samples", "threshold"),
    *("miou", "miou_ci95", "fb_iou", "prior_miou", "prior_threshold", "per_class"),
]


def test_results_file(tmp_path):
    result = evaluated(some_episodes(7), 3)
    row = report.row(result, SETTING, names=NAMES)
    assert list(row)[: len(KEYS)] == KEYS
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
    assert row["auroc_spread"] == pytest.approx(row["auroc_uncertainty"], abs=0.02)
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
    """A method without samples, and bins of p without a pixel."""

    def blank(keys, episode):
        prob = jnp.zeros_like(episode.query_mask)
        return prob, dict.fromkeys(metrics.MAPS, prob)

    result = evaluation.evaluate(
        blank,
        jax.random.key(0),
        batches_of(some_episodes(4), 2),
        classes=(0, 4, 8),
        episodes=4,
        frame="square",
        seed=0,
        resamples=10,
    )
    row = report.row(result, SETTING, names=NAMES)
    assert row["auroc_spread"] is row["ece_foreground"] is None
    first, *others = row["reliability"]
    assert first["share"] == 1 and first["frequency"] == row["ece"] > 0
    assert others == [{"confidence": None, "frequency": None, "share": 0.0}] * 15
    json.dumps(row, allow_nan=False)
    report.print_table([row])
    shown = capsys.readouterr().out
    assert f"{row['ece']:.3f}" in shown and shown.split().count("-") >= 2


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
    for fact in ("0123456789abcdef", "step 100", "4 steps", "seed 0", "[bold]owl"):
        assert fact in words
    assert "cues: skeleton scribble" in words
    assert shown.count("aeb00fa3d011d93e") == 3
    assert words.count("protocol") == 2  # one table per setting
    low, high = rows[0]["miou_ci95"]
    assert shown.count(f"{rows[0]['miou']:.1f} ({low:.1f}-{high:.1f})") == 3
    names = ("auroc_variance", "auroc_spread", "auroc_uncertainty")
    sure = [f"{rows[0][name]:.3f}" for name in ("ece", "ece_foreground")]
    sure += [f"{rows[0][name]:.2f}" for name in names]
    assert words.count(" ".join(sure)) == 3
    assert "…" not in shown


@pytest.mark.parametrize(
    ("method", "steps", "samples", "threshold", "words"),
    [
        ("prior", 0, 0, "otsu", "prior, cut by Otsu's criterion"),
        ("one forward", 1, 1, "half", "one forward, cut at 1/2"),
        ("one forward", 1, 4, "half", "one forward, 4 samples, cut at 1/2"),
        ("diffusion", 1, 1, "half", "diffusion, 1 step, cut at 1/2"),
        (
            "diffusion",
            2,
            4,
            "iou",
            "diffusion, 2 steps, 4 samples, cut for the greatest expected IoU",
        ),
    ],
)
def test_a_report_says_how_its_masks_were_made(
    method, steps, samples, threshold, words
):
    facts = {"method": method, "steps": steps, "samples": samples}
    facts["threshold"] = threshold
    assert report.sampler(facts) == words
