"""One tiny run, shared by every test that trains, so that it is compiled once.

`config` is also a config file for the doors: `train.py --config tests/runs.py:ROOT`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from configs import common

ROOT = Path(__file__).resolve().parent.parent
STEPS = 8


def get_config(root: str = "absent"):
    """Eight steps on the label maps of `datasets.write_label_maps(root)`."""
    config = common.get_config()
    config.backbone.name = "tiny"
    config.backbone.weights = "random"
    config.data.source = "label_map"
    config.data.root = root
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.data.image_size = 64
    config.data.val_fraction = 0.3
    config.data.workers = 0
    config.decoder.size = "S"
    config.decoder.mask_stride = 8
    config.sampler.steps = 2
    config.train.steps = STEPS
    config.train.batch_size = 2
    config.train.max_shots = 1
    config.train.warmup_steps = 2
    config.train.log_every = 1
    config.train.val_every = 100
    config.train.val_episodes = 2
    config.train.checkpoint_every = 2
    config.train.keep = 10
    config.eval.cues = ("mask",)
    config.eval.shots = (1,)
    config.eval.episodes = 4
    config.eval.protocol = "clean"
    config.eval.batch_size = 2
    config.eval.gallery = 0
    return config


def door(name: str, *flags: str, devices: int = 1, wait: bool = True):
    """`python NAME.py FLAGS` as a user runs it, on `devices` CPU devices."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    process = subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", f"{name}.py", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl so far; a line being written is left out."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]
