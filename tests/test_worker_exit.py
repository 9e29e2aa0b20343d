"""Workers of a killed process end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffup_jax.data import worker_exit
from tests import datasets

ROOT = Path(__file__).resolve().parent.parent

READING = """
import multiprocessing, sys, time
if __name__ == "__main__":
    from diffup_jax.data import batches, options, pipeline, sources

    source = sources.open_source(
        "label_map", root=sys.argv[1], split="train", min_area=0.0, crowd="hsnet"
    )
    recipe = batches.Training(
        source=source, classes=(0, 1), seed=0, augment=None, batch_size=1, max_shots=1,
        ways=1, cues=("mask",), fewest_points=1,
        data=options.DataSettings(image_size=32),
    )
    dataset = pipeline.training_dataset(
        recipe, steps=500, process_index=0, process_count=1
    )
    made = pipeline.iterate(dataset, workers=2)
    next(made), next(made)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_of_a_killed_run_end(tmp_path):
    root = datasets.write_label_maps(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(READING)
    with subprocess.Popen(
        [sys.executable, str(script), str(root)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        workers = [int(pid) for pid in run.stdout.readline().split()]
        assert len(workers) == 2 and all(map(alive, workers))
        run.kill()
    until = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, 9)
    assert not left


def test_the_first_process_follows_nobody():
    assert worker_exit.follow_parent((1, 2)) == (1, 2)
