"""Batches of episodes, made by this process or by workers, the same either way.

Batch s of a run is a pure function of (seed, s): nothing is shuffled or buffered that
a batch depends on, so the number of workers and of processes, and a stop in the middle,
change no pixel. With P processes, process p makes the rows p B/P .. (p + 1) B/P of each
global batch of B episodes.

Workers are grain's spawned processes. They run no jax code and open no device (grain
itself imports the jax module where it is installed).
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from diffup_jax.data import augment as augmentation
from diffup_jax.data import cues as cue_maker
from diffup_jax.data import rasters
from diffup_jax.data.augment import Augment
from diffup_jax.data.episodes import Draw, training_draw
from diffup_jax.data.sources import Source, require_images
from diffup_jax.types import CUES, TEXT_LENGTH, DiffUpError, Episode

# Batches made ahead: per worker process, or by threads of this process. A batch of
# 16 episodes at 384 pixels is about 42 MB, so grain's own default of 500 is too many.
_AHEAD = 2
# Free shared memory, in bytes, below which workers send batches through pipes.
_ROOM = 2 << 30
# Keeps shot numbers, cues and augmentation apart from the stream of `training_draw`.
_STREAM = 3


def training_dataset(
    source: Source,
    classes: Sequence[int],
    *,
    seed: int,
    steps: int,
    batch_size: int,
    image_size: int,
    max_shots: int,
    cues: Sequence[str],
    augment: Augment | None,
    process_index: int,
    process_count: int,
) -> grain.MapDataset:
    """A dataset of `steps` batched episodes (n = 1 way, k = `max_shots`), in order.

    Each episode draws its number of shots 1..max_shots and each shot its cue from
    `cues`; query and supports are augmented independently (None: only resized).
    batch_size: episodes of all processes together; each process yields its own
    batch_size / process_count. Images are uint8, text fields are zeros and False.

    Raises DiffUpError for a batch that does not divide, an unknown cue, and a class
    with fewer than max_shots + 1 images.
    """
    if batch_size % process_count:
        raise DiffUpError(
            f"a batch of {batch_size} episodes does not divide among {process_count} "
            "processes; use a multiple."
        )
    if not cues or any(kind not in cue_maker.KINDS for kind in cues):
        raise DiffUpError(
            f"training cues are {tuple(cues)}; expected some of {cue_maker.KINDS}."
        )
    require_images(source, classes, max_shots)
    rows = batch_size // process_count
    recipe = _Training(
        source=source,
        classes=tuple(classes),
        seed=seed,
        batch_size=batch_size,
        first_row=process_index * rows,
        rows=rows,
        image_size=image_size,
        max_shots=max_shots,
        cues=tuple(cues),
        augment=augment,
    )
    make = functools.partial(_training_batch, recipe)
    return grain.MapDataset.range(steps).map(make)


class BatchIterator:
    """Walks a dataset of batches once; its state is the number of batches handed out.

    grain's own iterator state names every worker, so it could not be resumed with
    another number of them. Made by `iterate`.
    """

    def __init__(self, dataset: grain.MapDataset, workers: int):
        self._dataset = dataset
        self._workers = workers
        self._next = 0
        self._inner: Any = None

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Episode:
        if self._next >= len(self._dataset):
            self.close()
            raise StopIteration
        if self._inner is None:
            self._inner = _prefetch(self._dataset[self._next :], self._workers)
        batch = next(self._inner)
        self._next += 1
        # Arrays of workers lie in shared memory, which leaks when something still holds
        # them at exit (jax on CPU uses a caller's memory as it is): hand out copies.
        return batch if self._workers == 0 else Episode(*map(np.array, batch))

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
            if self._workers:
                _free_shared_memory()


def iterate(dataset: grain.MapDataset, *, workers: int) -> BatchIterator:
    """Batches in order, made ahead by `workers` processes (0: threads of this one).

    The result has get_state, set_state (JSON dictionaries) and close.
    """
    if workers < 0:
        raise DiffUpError(f"{workers} data workers; expected 0 or more.")
    return BatchIterator(dataset, workers)


def evaluation_batches(
    source: Source,
    draws: Sequence[Draw],
    *,
    cue: str,
    image_size: int,
    batch_size: int,
    seed: int,
    workers: int,
) -> Iterator[tuple[Episode, int]]:
    """(batch, number of real episodes in it) for the draws, in order.

    All batches have `batch_size` rows; the last is filled up with its last episode.
    Labels and images are resized to a square and not augmented; the cue of a support
    depends on (seed, image, class) alone. query_valid is False on ignored pixels.

    Raises DiffUpError for an unknown cue and for draws with unequal numbers of shots.
    """
    shots = {len(draw.supports) for draw in draws}
    if len(shots) != 1 or shots == {0}:
        raise DiffUpError(
            f"the {len(draws)} episodes have {sorted(shots)} supports; expected one "
            "number, at least 1, for all."
        )
    if cue not in cue_maker.KINDS:
        raise DiffUpError(f"cue {cue!r} is unknown; expected {cue_maker.KINDS}.")
    recipe = _Evaluation(source, tuple(draws), cue, image_size, batch_size, seed)
    dataset = grain.MapDataset.range(-(-len(draws) // batch_size)).map(
        functools.partial(_evaluation_batch, recipe)
    )
    return _counted(iterate(dataset, workers=workers), len(draws), batch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class _Training:
    source: Source
    classes: tuple[int, ...]
    seed: int
    batch_size: int
    first_row: int
    rows: int
    image_size: int
    max_shots: int
    cues: tuple[str, ...]
    augment: Augment | None


@dataclasses.dataclass(frozen=True, eq=False)
class _Evaluation:
    source: Source
    draws: tuple[Draw, ...]
    cue: str
    image_size: int
    batch_size: int
    seed: int


def _training_batch(recipe: _Training, step: int) -> Episode:
    batch = blank(recipe.rows, recipe.max_shots, recipe.image_size)
    first = int(step) * recipe.batch_size + recipe.first_row
    for row in range(recipe.rows):
        _fill_training(recipe, first + row, batch, row)
    return batch


def _fill_training(recipe: _Training, index: int, batch: Episode, row: int) -> None:
    source, size = recipe.source, recipe.image_size
    generator = np.random.default_rng((recipe.seed, index, _STREAM))
    draw = training_draw(
        source,
        recipe.classes,
        shots=int(generator.integers(1, recipe.max_shots + 1)),
        seed=recipe.seed,
        index=index,
    )

    def view(image_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pixels = source.image(image_id), *source.mask(image_id, draw.class_id)
        if recipe.augment is None:
            return augmentation.plain(*pixels, size=size)
        return augmentation.augment(
            *pixels, generator=generator, settings=recipe.augment, size=size
        )

    _put_query(batch, row, draw.class_id, *view(draw.query))
    for shot, image_id in enumerate(draw.supports):
        kind = recipe.cues[generator.integers(len(recipe.cues))]
        _put_support(batch, row, shot, kind, generator, *view(image_id))


def _evaluation_batch(recipe: _Evaluation, step: int) -> Episode:
    source, size = recipe.source, recipe.image_size
    first = int(step) * recipe.batch_size
    draws = recipe.draws[first : first + recipe.batch_size]
    batch = blank(recipe.batch_size, len(draws[0].supports), size)
    for row, draw in enumerate(draws):
        mask, ignore = source.mask(draw.query, draw.class_id)
        _put_query(
            batch,
            row,
            draw.class_id,
            rasters.resize_image(source.image(draw.query), size),
            rasters.resize_mask(mask, size),
            rasters.resize_mask(ignore, size),
        )
        for shot, image_id in enumerate(draw.supports):
            pixels = source.image(image_id), *source.mask(image_id, draw.class_id)
            generator = cue_maker.cue_generator(recipe.seed, image_id, draw.class_id)
            small = augmentation.plain(*pixels, size=size)
            _put_support(batch, row, shot, recipe.cue, generator, *small)
    for leaf in batch:
        leaf[len(draws) :] = leaf[len(draws) - 1]
    return batch


def blank(rows: int, shots: int, size: int) -> Episode:
    """A batch of n = 1 way with nothing in it, to be filled in place (no copies)."""
    return Episode(
        query=np.zeros((rows, size, size, 3), np.uint8),
        query_mask=np.zeros((rows, 1, size, size), np.float32),
        query_valid=np.zeros((rows, size, size), bool),
        support=np.zeros((rows, 1, shots, size, size, 3), np.uint8),
        cue_fg=np.zeros((rows, 1, shots, size, size), np.float32),
        cue_bg=np.zeros((rows, 1, shots, size, size), np.float32),
        cue_kind=np.zeros((rows, 1, shots), np.int32),
        text_ids=np.zeros((rows, 1, TEXT_LENGTH), np.int32),
        shot_valid=np.zeros((rows, 1, shots), bool),
        text_valid=np.zeros((rows, 1), bool),
        class_id=np.zeros((rows, 1), np.int32),
    )


def _put_query(batch, row, class_id, image, mask, ignore) -> None:
    batch.query[row] = image
    batch.query_mask[row, 0] = mask
    batch.query_valid[row] = ~ignore
    batch.class_id[row, 0] = class_id


def _put_support(batch, row, shot, kind, generator, image, mask, ignore) -> None:
    at = (row, 0, shot)
    batch.support[at] = image
    batch.cue_fg[at], batch.cue_bg[at] = cue_maker.make_cue(
        kind, mask, generator=generator, size=mask.shape[0], ignore=ignore
    )
    batch.cue_kind[at] = CUES.index(kind)
    batch.shot_valid[at] = True


def _prefetch(dataset: grain.MapDataset, workers: int) -> Any:
    if workers == 0:
        read = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
        return iter(dataset.to_iter_dataset(read))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads absl flags when it starts workers
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=_AHEAD
    )
    batches = dataset.to_iter_dataset(read)
    if _shared_memory() < _ROOM:
        # A write beyond the end of /dev/shm kills the worker (containers often give
        # 64 MB): pipes are slower and always work.
        through_pipes = grain.experimental.DatasetOptions(min_shm_size=1 << 62)
        batches = grain.experimental.WithOptionsIterDataset(batches, through_pipes)
    return iter(batches.mp_prefetch(options))


def _shared_memory() -> int:
    """Free bytes of shared memory, 0 where it has no folder."""
    if not os.path.isdir("/dev/shm"):
        return 0
    return shutil.disk_usage("/dev/shm").free


def _free_shared_memory() -> None:
    """Frees now what closed workers left: at exit it would be too late.

    grain's closed iterators keep their last batches in reference cycles, and grain
    frees arrays in a thread that dies with the process.
    """
    gc.collect()
    # The pool has one thread and a queue: this call returns after all before it.
    pool = getattr(grain.multiprocessing.SharedMemoryArray, "_del_thread_pool", None)
    if pool is not None:
        pool.apply(int)


def _counted(
    batches: BatchIterator, total: int, batch_size: int
) -> Iterator[tuple[Episode, int]]:
    try:
        for number, batch in enumerate(batches):
            yield batch, min(batch_size, total - number * batch_size)
    finally:
        batches.close()
