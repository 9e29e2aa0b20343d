"""One tiny run, shared by every test that trains, so that it is compiled once.

`get_config` makes this a config file for the doors too:
`train.py --config tests/runs.py:FOLDER`, where FOLDER is one of `write_data`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import common
from diffup_jax import training

ROOT = Path(__file__).resolve().parent.parent
STEPS = 24


def get_config(root: str):
    """A run of 24 steps on the label maps in `root`, with 6 base classes."""
    config = common.get_config()
    config.backbone.name = "tiny"
    config.backbone.weights = "random"
    config.data.source = "label_map"
    config.data.root = root
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.data.image_size = 64
    config.data.val_fraction = 0.4
    config.data.workers = 0
    config.diffup.decoder.size = "S"
    config.diffup.decoder.mask_stride = 8
    config.train.steps = STEPS
    config.train.batch_size = 2
    config.train.max_shots = 1
    config.train.warmup_steps = 2
    config.train.log_every = 1
    config.train.val_every = STEPS
    config.train.val_episodes = 6
    config.train.checkpoint_every = 8
    config.eval.cues = ("mask",)
    config.eval.shots = (1,)
    config.eval.episodes = 6
    config.eval.protocol = "clean"
    config.eval.batch_size = 4
    config.eval.gallery = 0
    return config


def door(name: str, *flags: str, devices: int) -> subprocess.Popen:
    """`python NAME.py FLAGS` as a user starts it, on `devices` CPU devices."""
    count = "--xla_force_host_platform_device_count="
    flags_of_tests = os.environ["XLA_FLAGS"]  # conftest.py's: quick to compile
    xla = re.sub(rf"{count}\d+", f"{count}{devices}", flags_of_tests)
    return subprocess.Popen(
        [sys.executable, f"{name}.py", *flags],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": xla},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """(status, stdout, stderr) of a door."""
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Waits until the condition holds; a process that ends before is a failure."""
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def train_until(step: int, config, workdir: Path, monkeypatch) -> None:
    """Trains and is stopped while the metrics of `step` are read."""
    original = training.Log.metrics

    def cut(self, number, *rest):
        if number == step:
            raise KeyboardInterrupt
        return original(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training.Log, "metrics", cut)
        with pytest.raises(KeyboardInterrupt):
            training.train(config, str(workdir))


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl so far; a line being written is left out."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def saved_state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by name, read without the code under test."""
    folder = workdir.absolute() / "checkpoints" / str(step) / "state"
    handler = ocp.PyTreeCheckpointHandler()
    plain = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        handler.metadata(folder).tree,
    )
    with ocp.Checkpointer(handler) as reader:
        tree = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=plain))
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    assert not different
