"""The pipeline over broken and empty data, and what its processes leave behind."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffup_jax.data import episodes, pipeline, protocols
from diffup_jax.data.sources import fold_classes, open_source
from diffup_jax.types import DiffUpError
from tests import datasets
from tests.test_pipeline import collected, evaluation, opened, same, training

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("label_maps"))


def hidden_in(source, tiny):
    """The source with one pixel in the masks of some images: no resizing keeps it."""

    def mask(image_id, class_id):
        mask, ignore = source.mask(image_id, class_id)
        if image_id in tiny:
            one = np.zeros_like(mask)
            one[-1, -1] = True
            return one, ignore & ~one
        return mask, ignore

    found = copy.copy(source)
    object.__setattr__(found, "mask", mask)
    return found


def test_empty_queries_are_left_out_where_the_protocol_says_so(source):
    draws = episodes.clean_draws(source, (1, 2, 5), shots=1, count=9, seed=0)
    gone = {draws[2].query, draws[3].query, draws[8].query}
    places = [i for i, draw in enumerate(draws) if draw.query not in gone]
    hidden = hidden_in(source, gone)
    kept = list(evaluation(hidden, draws, protocol=protocols.get("denet")))
    assert [p for batch in kept for p in batch.places] == places
    assert sum(batch.empty for batch in kept) == 9 - len(places) >= 3
    everything = list(evaluation(hidden, draws))
    assert sum(len(batch.places) for batch in everything) == 9


def broken_copy(tmp_path, damage):
    """A source whose file `damage` chose after it was opened is cut short."""
    root = datasets.write_label_maps(tmp_path, train=32)
    source = open_source(
        "label_map", root=str(root), split="train", min_area=0.0, crowd="hsnet"
    )
    names = damage(source)
    for name in names:
        (path,) = (root / "images").glob(f"{name}.*")
        path.write_bytes(path.read_bytes()[:200])
    return source, names


def test_damaged_training_images_are_replaced_and_counted(tmp_path):
    """The replacement is a function of (seed, index): workers change nothing."""

    def first_queries(source):
        classes = fold_classes(source, 0, role="base")
        return {
            episodes.training_draw(source, classes, shots=1, seed=0, index=i).query
            for i in (1, 6)
        }

    source, names = broken_copy(tmp_path, first_queries)
    with pytest.raises(DiffUpError, match=r"cannot read .*picture\d+"):
        collected(pipeline.iterate(training(source), workers=0))
    dataset = training(source, on_error="skip")
    counts, seen = [], []
    for workers in (0, 2):
        batches = pipeline.iterate(dataset, workers=workers)
        seen.append(collected(batches))
        counts.append(batches.damaged)
    assert same(*seen) and counts[0] == counts[1]
    assert counts[0].total() >= 2 and len(counts[0]) == len(names)
    assert all(any(name in message for name in names) for message in counts[0])
    # Whole episodes took their places; the others are untouched.
    intact = open_source(
        "label_map",
        root=str(datasets.write_label_maps(tmp_path / "again", train=32)),
        split="train", min_area=0.0, crowd="hsnet",
    )  # fmt: skip
    expected = collected(pipeline.iterate(training(intact), workers=0))
    rows = [
        all((a[r] == b[r]).all() for a, b in zip(one, other, strict=True))
        for one, other in zip(seen[0], expected, strict=True)
        for r in range(4)
    ]
    assert not rows[1] and not rows[6]
    assert rows.count(False) == counts[0].total()
    for _, fg, *_, masks in seen[0]:
        assert fg.any((1, 2, 3, 4)).all() and masks.any((1, 2, 3)).all()


def test_data_without_one_whole_episode_end_the_run(tmp_path):
    source, _ = broken_copy(tmp_path, lambda s: {i for c in range(8) for i in
                                                 s.image_ids(c)})  # fmt: skip
    with pytest.raises(DiffUpError, match=r"20 training episodes .*cannot read"):
        training(source, on_error="skip")[0]


def test_damaged_evaluation_episodes_are_left_out_and_counted(tmp_path):
    source, names = broken_copy(tmp_path, lambda s: set(s.image_ids(2)[:1]))
    draws = episodes.clean_draws(source, (1, 2, 5), shots=1, count=30, seed=0)
    hit = [bool(names & {d.query, *d.supports[0]}) for d in draws]
    assert 0 < sum(hit) < 20
    with pytest.raises(DiffUpError, match="cannot read"):
        list(evaluation(source, draws))
    batches = list(evaluation(source, draws, on_error="skip", batch_size=3))
    assert [p for b in batches for p in b.places] == [
        i for i, broken in enumerate(hit) if not broken
    ]
    messages = [message for b in batches for message in b.damaged]
    assert len(messages) == sum(hit)
    assert all(name in message for name in names for message in messages)


def test_an_absent_class_is_an_error_only_where_it_must_be_there(source):
    draw = episodes.clean_draws(source, (1,), shots=1, count=1, seed=0)[0]
    other = next(i for i in source.image_ids(4) if i not in source.image_ids(1))
    for wrong in (draw._replace(query=other), draw._replace(supports=((other,),))):
        with pytest.raises(DiffUpError, match=f"{other} has no pixel of class 1"):
            next(evaluation(source, [wrong]))
    two = episodes.Draw((1, 4), draw.query, (draw.supports[0], (other,)))
    batch = next(evaluation(source, [two])).episode
    assert batch.query.mask[0, 0].any()
    assert batch.query.mask[0, 1].any() == (draw.query in source.image_ids(4))


def test_a_worker_tells_the_broken_file(tmp_path):
    root = datasets.write_label_maps(tmp_path)
    broken = open_source(
        "label_map", root=str(root), split="train", min_area=0.0, crowd="hsnet"
    )
    for path in (root / "images").iterdir():
        path.write_bytes(path.read_bytes()[:400])
    batches = pipeline.iterate(training(broken, steps=1), workers=1)
    with pytest.raises(DiffUpError, match=r"cannot read .*picture\d+"):
        next(batches)
    batches.close()


LEAKING = """
import multiprocessing, os, pathlib, sys, time
if __name__ == "__main__":
    from diffup_jax.data import batches, options, pipeline, sources
    from diffup_jax.types import DiffUpError

    source = sources.open_source(
        "label_map", root=sys.argv[1], split="train", min_area=0.0, crowd="hsnet"
    )
    recipe = batches.Training(
        source=source, classes=(0, 1), seed=0, augment=None, batch_size=1, max_shots=1,
        ways=1, cues=("mask",), fewest_points=1,
        data=options.DataSettings(image_size=160),
    )
    dataset = pipeline.training_dataset(
        recipe, steps=6, process_index=0, process_count=1
    )
    if sys.argv[2] == "error":
        path = pathlib.Path(source.images[sys.argv[3]])
        path.write_bytes(path.read_bytes()[:200])
    made = pipeline.iterate(dataset, workers=2)
    try:
        for step in range(1 if sys.argv[2] == "early" else 6):
            batch = next(made)
    except DiffUpError as error:  # its traceback holds the workers' iterators
        made.close()
        sys.exit(5)
    mine = f"diffup-{os.getpid()}-"
    if sys.argv[2] == "early":  # worker 2 was never asked, but has sent a batch
        while len([name for name in os.listdir("/dev/shm") if mine in name]) < 2:
            time.sleep(0.05)
    made.close()
    assert not multiprocessing.active_children()
    assert not [name for name in os.listdir("/dev/shm") if mine in name]
"""


@pytest.mark.parametrize("end", ["whole", "error", "early"])
def test_workers_leave_no_shared_memory(tmp_path, end):
    """Told by Python at exit, so it takes a process; it even keeps the last batch."""
    root = datasets.write_label_maps(tmp_path)
    source = open_source(
        "label_map", root=str(root), split="train", min_area=0.0, crowd="hsnet"
    )
    damaged = episodes.training_draw(source, (0, 1), shots=1, seed=0, index=3).query
    script = tmp_path / "script.py"
    script.write_text(LEAKING)
    done = subprocess.run(
        [sys.executable, str(script), str(root), end, damaged],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (5 if end == "error" else 0), done.stderr
    assert not done.stderr, done.stderr


UNJAXED = """
import sys
from diffup_jax.data import augment, batches, cues, episodes, options, sources
assert "jax" not in sys.modules
from diffup_jax.data import pipeline

source = sources.open_source(
    "label_map", root=sys.argv[1], split="train", min_area=0.0, crowd="hsnet"
)
recipe = batches.Training(
    source=source, classes=(0, 1), seed=0, augment=None, batch_size=1, max_shots=1,
    ways=1, cues=("mask",), fewest_points=1, data=options.DataSettings(image_size=16),
)
made = pipeline.training_dataset(recipe, steps=1, process_index=0, process_count=1)
next(pipeline.iterate(made, workers=0))
bridge = sys.modules.get("jax._src.xla_bridge")
assert bridge is None or not bridge._backends
"""


def test_making_batches_starts_no_jax_device(tmp_path):
    root = datasets.write_label_maps(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", UNJAXED, str(root)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
