"""The pipeline: the same batches however they are made, in shapes that never change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffup_jax.data import episodes, pipeline, rasters
from diffup_jax.data.augment import Augment
from diffup_jax.data.sources import fold_classes, open_source
from diffup_jax.types import CUES, DiffUpError
from tests import datasets

ROOT = Path(__file__).resolve().parent.parent
SIZE = 32


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = datasets.write_label_maps(tmp_path_factory.mktemp("label_maps"), train=32)
    return open_source(
        "label_map", root=str(root), split="train", min_area=0.0, crowd="hsnet"
    )


def training(source, **changes):
    arguments = {
        "seed": 0,
        "steps": 6,
        "batch_size": 4,
        "image_size": SIZE,
        "max_shots": 3,
        "cues": ("mask", "box", "scribble", "point"),
        "augment": Augment(),
        "process_index": 0,
        "process_count": 1,
    } | changes
    classes = fold_classes(source, 0, role="base")
    return pipeline.training_dataset(source, classes, **arguments)


def collected(iterator):
    batches = [[np.array(leaf) for leaf in batch] for batch in iterator]
    iterator.close()
    return batches


def same(one, other):
    return len(one) == len(other) and all(
        (a == b).all() and a.dtype == b.dtype
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def test_training_batch_keeps_the_contract(source):
    batch = training(source, batch_size=8)[1]
    b, k = 8, 3
    shapes = [
        ((b, SIZE, SIZE, 3), np.uint8),
        ((b, 1, SIZE, SIZE), np.float32),
        ((b, SIZE, SIZE), bool),
        ((b, 1, k, SIZE, SIZE, 3), np.uint8),
        ((b, 1, k, SIZE, SIZE), np.float32),
        ((b, 1, k, SIZE, SIZE), np.float32),
        ((b, 1, k), np.int32),
        ((b, 1, 77), np.int32),
        ((b, 1, k), bool),
        ((b, 1), bool),
        ((b, 1), np.int32),
    ]
    assert [(leaf.shape, leaf.dtype) for leaf in batch] == shapes
    shots = batch.shot_valid.sum(-1)
    assert shots.min() >= 1 and len(np.unique(shots)) > 1
    # Valid shots come first, have a cue; padding is blank.
    assert (np.diff(batch.shot_valid.astype(int), axis=-1) <= 0).all()
    assert (batch.cue_fg.any((-2, -1)) == batch.shot_valid).all()
    assert not batch.support[~batch.shot_valid].any()
    assert not batch.text_ids.any() and not batch.text_valid.any()
    assert set(np.unique(batch.class_id)) <= set(fold_classes(source, 0, role="base"))
    assert (batch.query_mask.sum((-2, -1)) > 0).all()
    assert not (batch.query_mask[:, 0] * ~batch.query_valid).any()
    kinds = batch.cue_kind[batch.shot_valid]
    full = (batch.cue_fg + batch.cue_bg).mean((-2, -1))[batch.shot_valid]
    sparse = kinds >= CUES.index("scribble")
    assert len(set(kinds)) == 4
    assert (full[~sparse] > 0.3).all() and (full[sparse] < full[~sparse].max()).all()
    assert not batch.cue_bg[batch.shot_valid][sparse].any()


def test_workers_change_nothing(source, monkeypatch):
    dataset = training(source)
    expected = collected(pipeline.iterate(dataset, workers=0))
    assert same(expected, [dataset[i] for i in range(6)])
    assert same(expected, collected(pipeline.iterate(dataset, workers=2)))
    # Without shared memory the batches come through pipes.
    monkeypatch.setattr(pipeline, "_shared_memory", lambda: 0)
    assert same(expected, collected(pipeline.iterate(dataset, workers=1)))


def test_resume_is_exact_with_another_number_of_workers(source):
    dataset = training(source)
    first = pipeline.iterate(dataset, workers=0)
    for _ in range(2):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    rest = collected(first)
    assert len(rest) == 4
    for workers in (0, 1):
        resumed = pipeline.iterate(dataset, workers=workers)
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert same(rest, collected(resumed))
    # Going back in a running iterator works as well.
    again = pipeline.iterate(dataset, workers=0)
    next(again)
    again.set_state({"next": 0})
    assert same([next(again)], [dataset[0]])
    again.close()
    with pytest.raises(DiffUpError, match="cannot resume"):
        again.set_state({"next": 7})


def test_processes_share_one_stream(source):
    whole = training(source)
    parts = [training(source, process_index=p, process_count=2) for p in range(2)]
    for step in range(len(whole)):
        joined = [
            np.concatenate(leaves)
            for leaves in zip(*(part[step] for part in parts), strict=True)
        ]
        assert same([joined], [whole[step]])
    assert not (parts[0][0].query == parts[1][0].query).all()


def test_seed_changes_episodes(source):
    assert not same([training(source)[0]], [training(source, seed=1)[0]])
    assert same([training(source)[0]], [training(source)[0]])


def test_without_augmentation_images_are_only_resized(source):
    batch = training(source, augment=None, max_shots=1, cues=("mask",))[0]
    draw = episodes.training_draw(
        source, fold_classes(source, 0, role="base"), shots=1, seed=0, index=2
    )
    assert (
        batch.query[2] == rasters.resize_image(source.image(draw.query), SIZE)
    ).all()
    mask, ignore = source.mask(draw.supports[0], draw.class_id)
    assert (batch.cue_fg[2, 0, 0] == rasters.resize_mask(mask, SIZE)).all()
    known = ~rasters.resize_mask(ignore, SIZE)
    assert ((batch.cue_fg + batch.cue_bg)[2, 0, 0] == known).all()


def evaluation(source, draws, **changes):
    arguments = {
        "cue": "scribble", "image_size": SIZE, "batch_size": 4, "seed": 0, "workers": 0,
    } | changes  # fmt: skip
    return pipeline.evaluation_batches(source, draws, **arguments)


def test_evaluation_walks_the_draws_once_and_pads(source):
    draws = episodes.clean_draws(source, (1, 2, 5), shots=2, count=10, seed=0)
    batches = list(evaluation(source, draws))
    assert [count for _, count in batches] == [4, 4, 2]
    assert all(batch.query.shape[0] == 4 for batch, _ in batches)
    rows = [[leaf[r] for leaf in batch] for batch, n in batches for r in range(n)]
    for draw, row in zip(draws, rows, strict=True):
        mask, ignore = source.mask(draw.query, draw.class_id)
        assert (row[0] == rasters.resize_image(source.image(draw.query), SIZE)).all()
        assert (row[1][0] == rasters.resize_mask(mask, SIZE)).all()
        assert (row[2] == ~rasters.resize_mask(ignore, SIZE)).all()
        assert row[-1] == draw.class_id
    last = batches[-1][0]
    for leaf in last:
        assert (leaf[2:] == leaf[1]).all()


def test_a_support_has_one_scribble_in_every_run(source):
    """It does not depend on the batch, the order, the query or the workers."""
    draws = episodes.clean_draws(source, (1, 2, 5), shots=2, count=9, seed=0)
    scribbles = {}
    for order, size, workers in ((1, 4, 0), (-1, 2, 1)):
        for part, (batch, n) in enumerate(
            evaluation(source, draws[::order], batch_size=size, workers=workers)
        ):
            for row in range(n):
                draw = draws[::order][part * size + row]
                for shot, name in enumerate(draw.supports):
                    cue = batch.cue_fg[row, 0, shot].tobytes()
                    assert scribbles.setdefault((name, draw.class_id), cue) == cue
    other = next(evaluation(source, draws, seed=1))[0]
    assert not (other.cue_fg == next(evaluation(source, draws))[0].cue_fg).all()


def test_mistakes_are_told(source):
    draws = episodes.clean_draws(source, (1, 2), shots=1, count=4, seed=0)
    with pytest.raises(DiffUpError, match="4 episodes does not divide among 3"):
        training(source, process_count=3)
    with pytest.raises(DiffUpError, match=r"training cues are \('text',\)"):
        training(source, cues=("text",))
    with pytest.raises(DiffUpError, match=r"need 41"):
        training(source, max_shots=40)
    with pytest.raises(DiffUpError, match="cue 'text'"):
        evaluation(source, draws, cue="text")
    mixed = (*draws, *episodes.clean_draws(source, (1,), shots=2, count=1, seed=0))
    with pytest.raises(DiffUpError, match=r"\[1, 2\] supports"):
        evaluation(source, mixed)
    with pytest.raises(DiffUpError, match="-1 data workers"):
        pipeline.iterate(training(source), workers=-1)


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


def test_workers_leave_no_shared_memory(tmp_path):
    """Told by Python at exit, so it takes a process; it even keeps the last batch."""
    root = datasets.write_label_maps(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "if __name__ == '__main__':\n"
        "    from diffup_jax.data import pipeline, sources\n"
        "    s = sources.open_source('label_map', root=sys.argv[1], split='train',"
        " min_area=0.0, crowd='hsnet')\n"
        "    d = pipeline.training_dataset(s, (0, 1), seed=0, steps=6, batch_size=1,"
        " image_size=16, max_shots=1, cues=('mask',), augment=None,"
        " process_index=0, process_count=1)\n"
        "    batches = pipeline.iterate(d, workers=2)\n"
        "    for step in range(6):\n"
        "        batch = next(batches)\n"
        "    batches.close()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(root)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_making_batches_starts_no_jax_device(tmp_path):
    root = datasets.write_label_maps(tmp_path)
    script = (
        "import sys\n"
        "from diffup_jax.data import episodes, cues, augment, sources\n"
        "assert 'jax' not in sys.modules\n"
        "from diffup_jax.data import pipeline\n"
        "s = sources.open_source('label_map', root=sys.argv[1], split='train',"
        " min_area=0.0, crowd='hsnet')\n"
        "d = pipeline.training_dataset(s, (0, 1), seed=0, steps=1, batch_size=1,"
        " image_size=16, max_shots=1, cues=('mask',), augment=None,"
        " process_index=0, process_count=1)\n"
        "next(pipeline.iterate(d, workers=0))\n"
        "bridge = sys.modules.get('jax._src.xla_bridge')\n"
        "assert bridge is None or not bridge._backends\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
