"""F3: training episodes kept as the decoder sees them, so the backbone runs once.

The backbone is frozen and BAFT has no parameters: what they make of an episode never
changes. A cache holds it for the first N episodes of a run, which training then walks
in a new order each epoch (the draws of the loss stay fresh). What is saved is the
backbone's and BAFT's share of every step after the first N episodes; what is paid is
the variety of augmentation, and N times the bytes of one episode on disk.

FOLDER/KEY.arrays holds the arrays of the kept tree by their place in it (row = episode)
and the facts: what the cache was made of; KEY is their hash. Floats are kept in 16
bits. A cache is made row by row and goes on where it was stopped; its digests are
compared at every opening, and a damaged one is made again (arrays.py). A lock keeps two
runs from making one at a time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from filelock import FileLock
from tqdm import tqdm

from diffup_jax import arrays
from diffup_jax.arrays import Arrays, Spec
from diffup_jax.types import DiffUpError


class PriorCache:
    """Kept episodes: `batch(rows)` is a tree of arrays [len(rows) ...], floats in f32.

    episodes: number of rows; nbytes: on disk; folder: where; facts: what it is made of.
    """

    def __init__(self, stored: Arrays, structure: Any):
        """`structure`: a tree of the same form, its leaves of any kind."""
        self.folder = Path(stored.path).parent
        self.facts = stored.facts
        self.nbytes = stored.nbytes
        self._structure = jax.tree.structure(structure)
        self._arrays = [stored[name] for name in _leaves(structure)]
        self.episodes = len(self._arrays[0])

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

    A cache that was damaged is told in a warning and made again.

    Raises:
      DiffUpError: if the disk has no room for it, or it holds other arrays than those
        of `example`.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{key}.arrays"
    specs = {
        name: Spec(_kept(leaf.dtype), (episodes, *leaf.shape[1:]))
        for name, leaf in _leaves(example).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        stored = arrays.open_or_make(
            path, key, lambda: _make(path, key, facts, specs, make)
        )
    if stored.specs != specs:
        other = sorted(stored.specs.items() ^ specs.items(), key=str)[0]
        raise DiffUpError(
            f"The prior cache {str(path)!r} holds other arrays than this program "
            f"keeps, {other[0]} for one. Delete the file; it is made again."
        )
    return PriorCache(stored, example)


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


def _make(path: Path, key: str, facts, specs: dict[str, Spec], make) -> None:
    path.unlink(missing_ok=True)  # what is there is damaged, and its room is needed
    writer = arrays.RowWriter(path, key, facts=facts, specs=specs)
    needed = sum(spec.nbytes for spec in specs.values())
    free = shutil.disk_usage(path.parent).free
    if not writer.done and needed > free:
        raise DiffUpError(
            f"A prior cache of {writer.rows} episodes takes {needed / 1e9:.1f} GB, but "
            f"{str(path.parent)!r} has {free / 1e9:.1f} GB free. Lower "
            "config.train.prior_cache, or name another disk with "
            "config.train.prior_cache_dir."
        )
    with tqdm(
        total=writer.rows,
        initial=writer.done,
        unit="episode",
        desc="prior cache",
        dynamic_ncols=True,
        mininterval=1.0,
    ) as bar:
        for tree in make(writer.done) if writer.done < writer.rows else ():
            leaves = _leaves(tree)
            before = writer.done
            writer.append({name: np.asarray(leaf) for name, leaf in leaves.items()})
            bar.update(writer.done - before)
            if writer.done == writer.rows:
                break
    if writer.done != writer.rows:
        raise DiffUpError(
            f"{writer.done} of {writer.rows} episodes of the prior cache were made"
        )
    writer.finish()


def _leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their place in it, in its order."""
    return {
        jax.tree_util.keystr(place): leaf
        for place, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _kept(dtype: Any) -> np.dtype:
    """Floats in 16 bits; everything else as it is."""
    return np.dtype(np.float16 if np.issubdtype(dtype, np.floating) else dtype)
