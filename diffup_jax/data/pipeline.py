"""Batches of episodes, made by this process or by workers, the same either way.

Batch s of a run is a pure function of (seed, s) and the files: nothing is shuffled or
buffered that a batch depends on, so the number of workers and of processes, and a stop
in the middle, change no pixel. With P processes, process p makes the rows p B/P ..
(p + 1) B/P of each global batch of B episodes. What is in a batch: batches.py.

Workers are grain's spawned processes. They run no jax code and open no device (grain
itself imports the jax module where it is installed).
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import grain
from absl import flags

from diffup_jax.data import batches as making
from diffup_jax.data import cues as cue_maker
from diffup_jax.data import shared, worker_exit
from diffup_jax.data.batches import EvaluationBatch
from diffup_jax.data.episodes import Draw
from diffup_jax.data.options import DataSettings
from diffup_jax.data.protocols import Protocol
from diffup_jax.data.sources import Source, require_images
from diffup_jax.types import CUES, DiffUpError

# Batches made ahead: per worker process, or by threads of this process. A batch of
# 16 episodes at 384 pixels is about 42 MB, so grain's own default of 500 is too many.
_AHEAD = 2
# Free shared memory, in bytes, below which workers send batches through pipes.
_ROOM = 2 << 30


def training_dataset(
    recipe: making.Training, *, steps: int, process_index: int, process_count: int
) -> grain.MapDataset:
    """A dataset of `steps` `TrainingBatch`es (n = `ways`, k = `max_shots`), in order.

    Each episode draws its number of shots 1..max_shots and each shot its cue from
    `cues`; a point has fewest_points..data.points pixels; query and supports are
    augmented independently. Each process yields its own batch_size / process_count of
    a batch. batches.py says when an episode has text, and what a damaged file does.

    Raises DiffUpError for a batch that does not divide, an unknown cue, a text without
    a table, a class with fewer than max_shots + 1 images, and fewer classes than ways.
    """
    if recipe.batch_size % process_count:
        raise DiffUpError(
            f"a batch of {recipe.batch_size} episodes does not divide among "
            f"{process_count} processes; use a multiple."
        )
    if not recipe.cues or any(kind not in CUES for kind in recipe.cues):
        raise DiffUpError(f"training cues are {recipe.cues}; expected some of {CUES}.")
    if cue_maker.any_text(recipe.cues) and not recipe.texts:
        raise DiffUpError(
            f"training cues {recipe.cues} hold text, but there are no embeddings; "
            "give the recipe its `texts`."
        )
    if not 1 <= recipe.ways <= len(recipe.classes):
        raise DiffUpError(
            f"{recipe.ways}-way episodes over {len(recipe.classes)} classes; expected "
            "1 way or more and a class for each."
        )
    require_images(recipe.source, recipe.classes, recipe.max_shots)
    rows = recipe.batch_size // process_count
    recipe = dataclasses.replace(recipe, first_row=process_index * rows, rows=rows)
    make = functools.partial(making.training_batch, recipe)
    return grain.MapDataset.range(steps).map(make)


class BatchIterator:
    """Walks a dataset of batches once; its state is the number of batches handed out.

    grain's own iterator state names every worker, so it could not be resumed with
    another number of them. Made by `iterate`. `damaged` counts the messages of all
    episodes that were replaced in the batches handed out.
    """

    def __init__(self, dataset: grain.MapDataset, workers: int):
        self._dataset = dataset
        self._workers = workers
        self._next = 0
        self._inner: Any = None
        self._end: Any = None
        self.damaged: Counter[str] = Counter()
        self._told: set[str] = set()

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Any:
        episode, damaged = self.whole_batch()
        self.damaged.update(damaged)
        return episode

    def whole_batch(self) -> Any:
        """The next element as the dataset made it. Raises StopIteration at the end."""
        if self._next >= len(self._dataset):
            self.close()
            raise StopIteration
        if self._inner is None:
            left = self._dataset[self._next :]
            if self._workers:
                self._inner = _Workers(left, min(self._workers, len(left)))
                # Runs at exit too, for a caller that an error kept from `close`.
                self._end = weakref.finalize(self, self._inner.close)
            else:
                self._inner = _threads(left)
        batch = next(self._inner)
        self._next += 1
        return batch

    def news(self) -> list[str]:
        """Messages of `damaged` that no call before has answered, each once."""
        new = [message for message in self.damaged if message not in self._told]
        self._told.update(new)
        return new

    def get_state(self) -> dict[str, int]:
        """{"next": index of the next batch}, for JSON."""
        return {"next": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues at a state of `get_state`, whatever the number of workers then."""
        position = state.get("next")
        if type(position) is not int or not 0 <= position <= len(self._dataset):
            raise DiffUpError(
                f"cannot resume the data at {state}; expected "
                f'{{"next": 0..{len(self._dataset)}}}. Is the checkpoint of this run?'
            )
        self.close()
        self._next = position

    def close(self) -> None:
        """Ends the workers; the next batch would start new ones."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None
        if self._end is not None:
            self._end()
            self._end = None


def iterate(dataset: grain.MapDataset, *, workers: int) -> BatchIterator:
    """Training episodes in order, made ahead by `workers` processes (0: by threads).

    The result has get_state, set_state (JSON dictionaries), close and `damaged`.
    """
    if workers < 0:
        raise DiffUpError(f"{workers} data workers; expected 0 or more.")
    return BatchIterator(dataset, workers)


def evaluation_batches(
    source: Source,
    draws: Sequence[Draw],
    *,
    numbers: Sequence[int],
    cue: str,
    protocol: Protocol,
    data: DataSettings,
    batch_size: int,
    seed: int,
    texts: making.Texts | None,
    workers: int,
) -> Iterator[EvaluationBatch]:
    """The draws in order; all batches have `batch_size` rows (see `EvaluationBatch`).

    numbers: the place of each draw in its evaluation list. cue: one kind, or several
    joined by "+": shot i takes kind i mod their number, text being no shot; with text
    alone no shot is valid, and the draws may have none. Images and labels enter by the
    protocol's frame and are not augmented; the cue of a support depends on (seed,
    image, class) alone. `Query.valid` is False on ignored pixels.

    Raises DiffUpError for an unknown cue, a text without a table, and for draws with
    unequal numbers of ways or shots.
    """
    sizes = {(len(draw.supports), *map(len, draw.supports)) for draw in draws}
    shots = {k for _, *each in sizes for k in each}
    kinds = cue_maker.mixture(cue)
    too_few = shots == {0} and cue_maker.marking(kinds)
    if len({n for n, *_ in sizes}) != 1 or len(shots) != 1 or too_few:
        raise DiffUpError(
            f"the {len(draws)} episodes have {sorted({n for n, *_ in sizes})} ways and "
            f"{sorted(shots)} supports; expected one number of each, at least 1, for "
            "all (of supports 0 with text alone)."
        )
    if "text" in kinds and texts is None:
        raise DiffUpError(f"cue {cue!r} holds text, but there are no embeddings.")
    recipe = making.Evaluation(
        source=source,
        draws=tuple(draws),
        numbers=tuple(numbers),
        kinds=kinds,
        protocol=protocol,
        data=data,
        batch_size=batch_size,
        seed=seed,
        texts=texts,
    )
    dataset = grain.MapDataset.range(-(-len(draws) // batch_size)).map(
        functools.partial(making.evaluation_batch, recipe)
    )
    return _until_closed(iterate(dataset, workers=workers))


def _threads(dataset: grain.MapDataset) -> Any:
    read = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
    return iter(dataset.to_iter_dataset(read))


class _Workers:
    """The batches of a dataset in order, made by `count` processes."""

    def __init__(self, dataset: grain.MapDataset, count: int):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads them when it starts workers
        self._prefix = shared.new_prefix()
        dataset = dataset.map(worker_exit.follow_parent)
        # A write beyond the end of /dev/shm kills the worker (containers often give
        # 64 MB): pipes are slower and always work.
        if shared.free_bytes() >= _ROOM:
            dataset = dataset.map(functools.partial(shared.pack, self._prefix))
        read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        # grain would share each array by itself, also the smallest.
        as_they_are = grain.experimental.DatasetOptions(min_shm_size=1 << 62)
        batches = grain.experimental.WithOptionsIterDataset(
            dataset.to_iter_dataset(read), as_they_are
        )
        options = grain.MultiprocessingOptions(
            num_workers=count, per_worker_buffer_size=_AHEAD
        )
        self._inner = iter(batches.mp_prefetch(options))

    def __next__(self) -> Any:
        return shared.unpack(next(self._inner))

    def close(self) -> None:
        """Ends the processes and removes what they sent; a second call does nothing."""
        if self._inner is None:
            return
        self._inner.close()
        self._inner = None
        # grain starts all workers with the first batch, but `close` ends only those
        # that were asked for one; the others end when their iterators are collected.
        gc.collect()
        shared.sweep(self._prefix)


def _until_closed(batches: BatchIterator) -> Iterator[EvaluationBatch]:
    try:
        while True:
            try:
                batch = batches.whole_batch()
            except StopIteration:
                return
            yield batch
    finally:
        batches.close()
