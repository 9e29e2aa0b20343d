"""A whole life through the doors: train, be killed, go on, evaluate.

What training promises is shown here on real processes: killed with SIGKILL at a random
step and started again, a run ends bit for bit where an undisturbed one ends.
"""

from __future__ import annotations

import functools
import json
import random
import signal
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from diffup_jax import checkpoint, training
from diffup_jax.evaluation import ROW_KEYS
from tests import datasets, runs


@pytest.fixture(scope="module", autouse=True)
def quick():
    with runs.quick_compiling():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return datasets.write_label_maps(tmp_path_factory.mktemp("life"), train=40)


class Life(NamedTuple):
    """Folders of an undisturbed and of a killed and continued run.

    before: metrics of the killed run at its death; out, err: words of its second life.
    """

    undisturbed: Path
    killed: Path
    before: list[dict]
    out: str
    err: str


@pytest.fixture(scope="module")
def life(root, tmp_path_factory):
    """`life(devices)`: lived once, at the first call."""

    @functools.cache
    def live(devices: int) -> Life:
        work = tmp_path_factory.mktemp(f"devices{devices}")

        def start(name):
            flags = ("--config", f"tests/runs.py:{root}", "--workdir", str(work / name))
            return runs.door("train", *flags, devices=devices)

        if devices == jax.device_count():  # the doors are to agree with this process
            training.train(runs.get_config(str(root)), str(work / "undisturbed"))
        else:
            status, _, err = runs.finish(start("undisturbed"))
            assert status == 0, err

        killed = work / "killed"
        step = random.randint(9, 16)
        process = start("killed")
        runs.wait_for(
            process,
            lambda: (
                len(runs.metrics(killed)) >= step
                and checkpoint.latest_step(str(killed)) is not None
            ),
        )
        process.kill()
        assert runs.finish(process)[0] == -signal.SIGKILL
        assert checkpoint.latest_step(str(killed)) < runs.STEPS
        before = runs.metrics(killed)

        status, out, err = runs.finish(start("killed"))
        assert status == 0, err
        return Life(work / "undisturbed", killed, before, out, err)

    return live


@pytest.mark.parametrize("devices", [1, 2])
def test_a_killed_run_ends_where_an_undisturbed_one_ends(life, devices):
    folders = life(devices)[:2]
    one, other = (runs.saved_state(folder, runs.STEPS) for folder in folders)
    for part in ("params", "average", "optimiser", "step"):
        assert any(part in name for name in one)
    runs.assert_same_bits(one, other)
    one, other = (
        (folder / "checkpoints" / str(runs.STEPS) / "position/metadata").read_text()
        for folder in folders
    )
    assert one == other


@pytest.mark.parametrize("devices", [1, 2])
def test_every_step_is_recorded_once(life, devices):
    undisturbed, killed, before, out, err = life(devices)
    one, other = runs.metrics(undisturbed), runs.metrics(killed)
    steps = [line["step"] for line in other if "loss" in line]
    assert steps == list(range(1, runs.STEPS + 1))
    assert other[-1]["step"] == runs.STEPS and "val_miou" in other[-1]
    for line in (*one, *other, *before):
        line.pop("episodes_per_s", None)
    assert one == other
    assert before == other[: len(before)]
    assert "continuing after step" in out and "validation on base classes" in out + err
    assert len(list((killed / "tensorboard").glob("events.*"))) == 2


def test_the_killed_run_evaluates(life, root, tmp_path):
    output = tmp_path / "out" / "results.json"
    status, out, err = runs.finish(
        runs.door(
            "eval",
            *("--config", f"tests/runs.py:{root}", "--workdir", str(life(2).killed)),
            *("--output", str(output), "--config.eval.gallery=3"),
            "--config.eval.cues=mask,box",
            devices=2,
        )
    )
    assert status == 0, err
    rows = json.loads(output.read_text())["rows"]
    assert [(row["cue"], row["shots"]) for row in rows] == [("mask", 1), ("box", 1)]
    assert all(tuple(row) == ROW_KEYS for row in rows)
    assert rows[0]["weights"] == f"killed step {runs.STEPS}"
    assert "mIoU" in out and str(output) in out
    assert (output.parent / "gallery.html").stat().st_size > 1000
    assert len(list((output.parent / "episodes").glob("*.jsonl"))) == 1


def test_a_finished_run_is_left_as_it_is(life, root, capsys):
    folder = life(2).undisturbed
    files = lambda: {x: x.stat().st_mtime_ns for x in folder.rglob("*")}  # noqa: E731
    before = files()
    state = training.train(runs.get_config(str(root)), str(folder))
    assert f"is finished: step {runs.STEPS}" in capsys.readouterr().out
    assert int(state.step) == runs.STEPS
    assert files() == before
