"""F4: training episodes kept as the decoder sees them, so the backbone runs once.

The backbone is frozen and BAFT has no parameters: what they make of an episode never
changes. A cache holds it for the first N episodes of a run, which training then walks
in a new order each epoch (the draws of the loss stay fresh). What is saved is the
backbone's and BAFT's share of every step after the first N episodes; what is paid is
the variety of augmentation, and N times the bytes of one episode on disk.

    FOLDER/KEY/cache.json    what the cache was made of; KEY is its hash
    FOLDER/KEY/NN.npy        array NN of the kept tree, row = episode

Floats are kept in 16 bits. A cache is made in KEY.part, row by row, goes on where it
was stopped, and is renamed when whole; a lock keeps two runs from making one at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from filelock import FileLock
from tqdm import tqdm

from diffup_jax.types import DiffUpError

_FACTS = "cache.json"
_DONE = "done.json"  # rows written so far, of a cache that is being made


class PriorCache:
    """Kept episodes: `batch(rows)` is a tree of arrays [len(rows) ...], floats in f32.

    episodes: number of rows; nbytes: on disk; folder: where.
    """

    def __init__(self, folder: Path, structure: Any):
        """`structure`: a tree of the same form, its leaves of any kind."""
        self.folder = folder
        self._structure = jax.tree.structure(structure)
        files = sorted(folder.glob("*.npy"))
        if len(files) != self._structure.num_leaves:
            raise DiffUpError(
                f"The prior cache {str(folder)!r} holds {len(files)} arrays, expected "
                f"{self._structure.num_leaves}. Delete the folder; it is made again."
            )
        self._arrays = [np.load(file, mmap_mode="r") for file in files]
        self.episodes = len(self._arrays[0])
        self.nbytes = sum(array.nbytes for array in self._arrays)

    def batch(self, rows: np.ndarray) -> Any:
        """Rows in the order asked for."""
        leaves = [np.asarray(array[rows]) for array in self._arrays]
        leaves = [
            leaf.astype(np.float32) if leaf.dtype == np.float16 else leaf
            for leaf in leaves
        ]
        return jax.tree.unflatten(self._structure, leaves)


def open_or_make(
    folder: Path,
    *,
    facts: dict[str, Any],
    example: Any,
    episodes: int,
    make: Callable[[int], Iterator[Any]],
) -> PriorCache:
    """The cache of `facts` in `folder`, made first where it is missing.

    Args:
      facts: JSON values; all that the episodes depend on.
      example: a tree with shape and dtype of one episode (a first axis of 1).
      make: make(first) yields trees of rows first, first + 1, ..., any number at once;
        rows beyond `episodes` are dropped.

    Raises:
      DiffUpError: if the disk has no room for it.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    whole = folder / key
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        if not (whole / _FACTS).is_file():
            _make(folder / f"{key}.part", facts, example, episodes, make)
            os.replace(folder / f"{key}.part", whole)
    return PriorCache(whole, example)


def batches(
    cache: PriorCache, *, steps: int, batch_size: int, seed: int
) -> grain.MapDataset:
    """`steps` batches (tree, ()) in the form of data/pipeline.py's training dataset."""

    def read(step):
        rows = rows_of_step(step, batch_size, episodes=cache.episodes, seed=seed)
        return cache.batch(rows), ()

    return grain.MapDataset.range(steps).map(read)


def rows_of_step(step: int, batch_size: int, *, episodes: int, seed: int) -> np.ndarray:
    """Rows of batch `step` (from 0): every epoch is a permutation by (seed, epoch)."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // episodes
    rows = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        order = np.random.default_rng((seed, epoch)).permutation(episodes)
        chosen = epochs == epoch
        rows[chosen] = order[places[chosen] % episodes]
    return rows


def _make(part: Path, facts, example, episodes, make) -> None:
    leaves = jax.tree.leaves(example)
    shapes = [(episodes, *leaf.shape[1:]) for leaf in leaves]
    kinds = [_kept(leaf.dtype) for leaf in leaves]
    progress = part / _DONE
    if not progress.is_file():
        needed = sum(
            int(np.prod(shape)) * kind.itemsize
            for shape, kind in zip(shapes, kinds, strict=True)
        )
        free = shutil.disk_usage(part.parent).free
        if needed > free:
            raise DiffUpError(
                f"A prior cache of {episodes} episodes takes {needed / 1e9:.1f} GB, "
                f"but {str(part.parent)!r} has {free / 1e9:.1f} GB free. Lower "
                "config.train.prior_cache, or name another disk with "
                "config.train.prior_cache_dir."
            )
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for number, (shape, kind) in enumerate(zip(shapes, kinds, strict=True)):
            np.lib.format.open_memmap(
                part / f"{number:02d}.npy", mode="w+", dtype=kind, shape=shape
            )
        _write(progress, 0)
    done = json.loads(progress.read_text())
    arrays = [np.load(file, mmap_mode="r+") for file in sorted(part.glob("*.npy"))]
    with tqdm(
        total=episodes,
        initial=done,
        unit="episode",
        desc="prior cache",
        dynamic_ncols=True,
        mininterval=1.0,
    ) as bar:
        for tree in make(done) if done < episodes else ():
            new = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
            count = min(len(new[0]), episodes - done)
            for array, leaf in zip(arrays, new, strict=True):
                array[done : done + count] = leaf[:count]
            done += count
            bar.update(count)
            _write(progress, done)
            if done == episodes:
                break
    if done != episodes:
        raise DiffUpError(f"{done} of {episodes} episodes of the prior cache were made")
    for array in arrays:
        array.flush()
    progress.unlink()
    aside = part / f"{_FACTS}.aside"
    aside.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    os.replace(aside, part / _FACTS)


def _kept(dtype: Any) -> np.dtype:
    """Floats in 16 bits; everything else as it is."""
    return np.dtype(np.float16 if np.issubdtype(dtype, np.floating) else dtype)


def _write(path: Path, value: Any) -> None:
    aside = path.with_name(path.name + ".aside")
    aside.write_text(json.dumps(value))
    os.replace(aside, path)
