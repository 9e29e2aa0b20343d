"""A whole life through the doors: train, be killed, go on, evaluate.

What training promises is shown here on real processes: killed with SIGKILL at a random
step and started again, a run ends bit for bit where an undisturbed one ends.
"""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

from diffup_jax import checkpoint, training
from diffup_jax.report import ROW_KEYS
from tests import datasets, runs


@pytest.fixture
def root(tmp_path):
    return datasets.write_label_maps(tmp_path / "data", train=40)


def test_a_life_on_one_device(root, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    # With a chain more is drawn than without: harder to repeat bit for bit. Without
    # validation: it is part of the other life.
    chain = (
        "--config.diffup.process.diffusion=True",
        "--config.diffup.sampler.steps=2",
    )
    no_validation = "--config.data.val_fraction=0.001"
    door = start_training(root, no_validation, *chain, devices=1)
    status, out, err = runs.finish(door(undisturbed))
    assert status == 0, err
    assert "no validation" in out
    live_killed(door, killed)
    assert_same_lives(undisturbed, killed)


def test_a_life_on_two_devices(root, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    # This process has two devices too, and the doors are to agree with it.
    training.train(runs.get_config(str(root)), str(undisturbed))
    out = live_killed(start_training(root, devices=2), killed)
    assert f"step {runs.STEPS}: validation on base classes, held-out images" in out
    assert "val_miou" in runs.metrics(killed)[-1]
    assert_same_lives(undisturbed, killed)
    assert_evaluates(root, killed, tmp_path / "out")


def start_training(root: Path, *flags: str, devices: int):
    """`door(workdir)` starts a training process."""
    config = f"tests/runs.py:{root}"
    return lambda workdir: runs.door(
        *("train", "--config", config, "--workdir", str(workdir), *flags),
        devices=devices,
    )


def live_killed(door, workdir: Path) -> str:
    """Trains, killed once; answers what the second process said."""
    step = random.randint(9, 16)  # a checkpoint is every 8 steps, the end at 24
    process = door(workdir)
    runs.wait_for(
        process,
        lambda: (
            len(runs.metrics(workdir)) >= step
            and checkpoint.latest_step(str(workdir)) is not None
        ),
    )
    process.kill()
    assert runs.finish(process)[0] == -signal.SIGKILL
    assert checkpoint.latest_step(str(workdir)) < runs.STEPS
    before = runs.metrics(workdir)

    status, out, err = runs.finish(door(workdir))
    assert status == 0, err
    assert "continuing after step" in out
    after = runs.metrics(workdir)
    without_time(before, after)
    assert before == after[: len(before)]
    assert len(list((workdir / "tensorboard").glob("events.*"))) == 2
    return out + err


def assert_same_lives(undisturbed: Path, killed: Path) -> None:
    one, other = (runs.saved_state(x, runs.STEPS) for x in (undisturbed, killed))
    for part in ("params", "average", "optimiser", "step"):
        assert any(part in name for name in one)
    runs.assert_same_bits(one, other)
    one, other = (
        (folder / "checkpoints" / str(runs.STEPS) / "position/metadata").read_text()
        for folder in (undisturbed, killed)
    )
    assert one == other
    # Every step is recorded once, whatever was done twice.
    one, other = runs.metrics(undisturbed), runs.metrics(killed)
    without_time(one, other)
    assert one == other
    steps = [line["step"] for line in other if "loss" in line]
    assert steps == list(range(1, runs.STEPS + 1))


def without_time(*lives: list[dict]) -> None:
    for lines in lives:
        for line in lines:
            line.pop("episodes_per_s", None)


def assert_evaluates(root: Path, workdir: Path, folder: Path) -> None:
    """With its config and, from the checkpoint alone, without: the same rows."""
    given = ("--config", f"tests/runs.py:{root}")
    doors = [
        start_scoring(workdir, folder / "with", *given),
        start_scoring(workdir, folder / "without"),
    ]
    for status, out, err in [runs.finish(door) for door in doors]:
        assert status == 0, err
        assert "mIoU" in out
    one, other = (
        (folder / x / "results.json").read_text() for x in ("with", "without")
    )
    assert one == other
    rows = json.loads(one)["rows"]
    assert [(row["cue"], row["shots"]) for row in rows] == [("mask", 1), ("box", 1)]
    assert all(tuple(row) == ROW_KEYS for row in rows)
    assert rows[0]["weights"] == f"killed step {runs.STEPS}"
    for each in ("with", "without"):
        assert (folder / each / "gallery.html").stat().st_size > 1000
        assert len(list((folder / each / "episodes").glob("*.jsonl"))) == 1


def start_scoring(workdir: Path, folder: Path, *flags: str):
    return runs.door(
        *("eval", "--workdir", str(workdir), "--output", f"{folder}/results.json"),
        *(*flags, "--config.eval.cues=mask,box", "--config.eval.gallery=3"),
        devices=2,
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--workdir", "nowhere"), "no checkpoint in 'nowhere'; expected a folder"),
        ((), "--config"),
    ],
    ids=["no checkpoint", "nothing"],
)
def test_scoring_without_a_config_or_a_run_is_one_error(tmp_path, flags, words):
    output = ("--output", str(tmp_path / "results.json"))
    status, out, err = runs.finish(runs.door("eval", *flags, *output, devices=1))
    assert status == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert not list(tmp_path.iterdir())
