"""Draws become arrays: one batch of training or evaluation episodes, filled in place.

A batch is a pure function of its recipe and its number. The query is drawn from way 0's
class; another way may be absent from it, then its query mask is empty. A pixel that any
way's labels ignore is ignored for all.

A damaged file stops the run by its name, or (on_error "skip") is left out: in training
the episode is replaced by that of another index, index + a 2^40 in the a-th try, so it
still depends on (seed, index) and the files alone; in evaluation the batch has one
episode less. What was left out travels with the batch.

A text cue is `text_valid`, and its embedding comes from a table with a row for each
class of the source. Where "text" is one of the training cues, an episode has text alone
as often as any other cue (1 of their number), and beside its shots in half of the
others. With text alone no support is valid.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from diffup_jax.data import augment as augmentation
from diffup_jax.data import cues as cue_maker
from diffup_jax.data import resize
from diffup_jax.data.augment import Augment
from diffup_jax.data.episodes import Draw, training_draw
from diffup_jax.data.options import DataSettings
from diffup_jax.data.protocols import Protocol
from diffup_jax.data.resize import View
from diffup_jax.data.sources import Source
from diffup_jax.types import CUES, DiffUpError, Episode, Query, Support

Texts = Float[np.ndarray, "classes d"]

# Keeps shot numbers, cues and augmentation apart from the stream of `training_draw`.
_STREAM = 3
# Whether there is text is drawn apart: with or without it, the rest stays as it is.
_TEXT_STREAM, _BESIDE_SHOTS = 6, 0.5
# Tries for one training episode, and how far apart they lie: beyond any run's end.
_TRIES, _APART = 20, 1 << 40


class TrainingBatch(NamedTuple):
    """`damaged`: one message for each training episode that had to be replaced."""

    episode: Episode
    damaged: tuple[str, ...]


class Truth(NamedTuple):
    """What one episode is scored against at its query's own size."""

    masks: Bool[np.ndarray, "n h w"]
    valid: Bool[np.ndarray, "h w"]


class EvaluationBatch(NamedTuple):
    """Some episodes of an evaluation list; rows from len(places) on are padding.

    `class_ids` [b n]: what each way asks for. `places` int64: where each real episode
    stands in the list. `truths`: one per real episode, or none when the protocol scores
    at the network's size. `empty` queries and `damaged` episodes (one message each) of
    this stretch are left out.
    """

    episode: Episode
    class_ids: Int[np.ndarray, "b n"]
    places: np.ndarray
    truths: tuple[Truth, ...]
    empty: int
    damaged: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """What training episodes are made of.

    classes: those that train. batch_size: episodes of a step, of all processes
    together; max_shots, ways, cues, fewest_points: see config.TrainSettings. augment:
    None = only resized. texts: a table of embeddings for each backbone that the steps
    take in turn, () = none is read. first_row, rows: this process's part of a batch.
    """

    source: Source
    classes: tuple[int, ...]
    seed: int
    data: DataSettings
    augment: Augment | None
    batch_size: int
    max_shots: int
    ways: int
    cues: tuple[str, ...]
    fewest_points: int
    texts: tuple[Texts, ...] = ()
    first_row: int = 0
    rows: int = 0


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """What evaluation episodes are made of.

    numbers: the place of each draw in its list. kinds: the mixture that the cue names.
    texts: the table of embeddings; None = none is read.
    """

    source: Source
    draws: tuple[Draw, ...]
    numbers: tuple[int, ...]
    kinds: tuple[str, ...]
    protocol: Protocol
    data: DataSettings
    batch_size: int
    seed: int
    texts: Texts | None


def blank(rows: int, shots: int, size: int, *, ways: int = 1, text: int = 0) -> Episode:
    """A batch with nothing in it, to be filled in place (no copies).

    text: dimensions of text embeddings.
    """
    each = (rows, ways, shots)
    return Episode(
        Support(
            images=np.zeros((*each, size, size, 3), np.uint8),
            fg=np.zeros((*each, size, size), bool),
            bg=np.zeros((*each, size, size), bool),
            kind=np.zeros(each, np.int32),
            valid=np.zeros(each, bool),
            text=np.zeros((rows, ways, text), np.float32),
            text_valid=np.zeros((rows, ways), bool),
        ),
        Query(
            image=np.zeros((rows, size, size, 3), np.uint8),
            valid=np.zeros((rows, size, size), bool),
            mask=np.zeros((rows, ways, size, size), bool),
        ),
    )


def training_batch(recipe: Training, step: int) -> TrainingBatch:
    """Batch `step` of a run. Raises DiffUpError for a damaged file (see above)."""
    texts = recipe.texts[step % len(recipe.texts)] if recipe.texts else None
    batch = blank(
        recipe.rows,
        recipe.max_shots,
        recipe.data.image_size,
        ways=recipe.ways,
        text=0 if texts is None else texts.shape[1],
    )
    first = int(step) * recipe.batch_size + recipe.first_row
    damaged: list[str] = []
    for row in range(recipe.rows):
        for attempt in range(_TRIES):
            try:
                index = first + row + attempt * _APART
                _fill_training(recipe, index, batch, row, texts)
                break
            except DiffUpError as error:
                if recipe.data.on_error == "stop":
                    raise
                _clear(batch, row)
                damaged.append(str(error))
        else:
            raise DiffUpError(
                f"{_TRIES} training episodes one after the other are damaged; the last "
                f"one: {damaged[-1]}"
            )
    return TrainingBatch(batch, tuple(damaged))


def evaluation_batch(recipe: Evaluation, step: int) -> EvaluationBatch:
    """Batch `step` of a list. Raises DiffUpError for a damaged file (see above)."""
    first = int(step) * recipe.batch_size
    part = slice(first, first + recipe.batch_size)
    draws = recipe.draws[part]
    ways, shots = len(draws[0].supports), len(draws[0].supports[0])
    # One compiled shape for 0 shots and for 1.
    batch = blank(
        recipe.batch_size,
        max(shots, 1),
        recipe.data.image_size,
        ways=ways,
        text=0 if recipe.texts is None else recipe.texts.shape[1],
    )
    class_ids = np.zeros((recipe.batch_size, ways), np.int32)
    places: list[int] = []
    truths: list[Truth] = []
    damaged: list[str] = []
    for draw, number in zip(draws, recipe.numbers[part], strict=True):
        row = len(places)
        try:
            truth = _fill_evaluation(recipe, draw, batch, row)
        except DiffUpError as error:
            if recipe.data.on_error == "stop":
                raise
            _clear(batch, row)
            damaged.append(str(error))
            continue
        if recipe.protocol.skip_empty and not batch.query.mask[row, 0].any():
            _clear(batch, row)
            continue
        class_ids[row] = draw.class_ids
        places.append(number)
        if truth is not None:
            truths.append(truth)
    for leaf in (*batch.support, *batch.query, class_ids) if places else ():
        leaf[len(places) :] = leaf[len(places) - 1]
    return EvaluationBatch(
        batch,
        class_ids,
        np.array(places, np.int64),
        tuple(truths),
        len(draws) - len(places) - len(damaged),
        tuple(damaged),
    )


def _fill_training(
    recipe: Training, index: int, batch: Episode, row: int, texts: Texts | None
) -> None:
    source = recipe.source
    generator = np.random.default_rng((recipe.seed, index, _STREAM))
    draw = training_draw(
        source,
        recipe.classes,
        ways=recipe.ways,
        shots=int(generator.integers(1, recipe.max_shots + 1)),
        seed=recipe.seed,
        index=index,
    )

    def view(image, masks, ignore, instances) -> View:
        maps = image, masks, ignore, instances
        if recipe.augment is None:
            size = recipe.data.image_size
            return resize.enter_support(*maps, frame="square", size=size)
        return augmentation.augment(
            *maps,
            generator=generator,
            settings=recipe.augment,
            size=recipe.data.image_size,
        )

    image, masks, ignore = _query(source, draw)
    _put_query(batch, row, view(image, masks, ignore, None))
    read, alone = _text_drawn(recipe, index)
    _put_text(batch, row, draw, texts if read else None)
    kinds = cue_maker.marking(recipe.cues)
    for way, images in enumerate(() if alone else draw.supports):
        for shot, image_id in enumerate(images):
            kind = kinds[generator.integers(len(kinds))]
            pixels = _support(
                source, image_id, draw.class_ids[way], kind, recipe.data.conventions
            )
            seen, at = view(*pixels), (row, way, shot)
            rule = recipe.data.conventions
            if kind == "point":
                fewest = recipe.fewest_points
                rule = rule.with_fewer_points(generator, fewest=fewest)
            _put_support(batch, at, seen, kind, generator, rule)


def _text_drawn(recipe: Training, index: int) -> tuple[bool, bool]:
    """Whether a training episode has text, and whether it has nothing else."""
    if not cue_maker.any_text(recipe.cues):
        return False, False
    generator = np.random.default_rng((recipe.seed, index, _TEXT_STREAM))
    alone = bool(generator.random() < 1 / len(recipe.cues))
    return alone or bool(generator.random() < _BESIDE_SHOTS), alone


def _fill_evaluation(
    recipe: Evaluation, draw: Draw, batch: Episode, row: int
) -> Truth | None:
    """Fills a row; what it is scored against, when that is at the query's own size."""
    source, rule = recipe.source, recipe.protocol
    entering = {"frame": rule.frame, "size": recipe.data.image_size}
    image, masks, ignore = _query(source, draw)
    if not rule.query_ignore:
        ignore = np.zeros_like(ignore)
    _put_query(batch, row, resize.enter(image, masks, ignore, None, **entering))
    read = cue_maker.any_text(recipe.kinds)
    _put_text(batch, row, draw, recipe.texts if read else None)
    kinds = cue_maker.marking(recipe.kinds)
    for way, images in enumerate(draw.supports if kinds else ()):
        for shot, image_id in enumerate(images):
            kind = kinds[shot % len(kinds)]
            class_id = draw.class_ids[way]
            pixels = _support(source, image_id, class_id, kind, recipe.data.conventions)
            if not rule.support_ignore:
                pixels = pixels._replace(ignore=np.zeros_like(pixels.ignore))
            seen, at = resize.enter_support(*pixels, **entering), (row, way, shot)
            generator = None
            if kind in cue_maker.DRAWN:
                generator = cue_maker.cue_generator(recipe.seed, image_id, class_id)
            _put_support(batch, at, seen, kind, generator, recipe.data.conventions)
    if rule.scored_at != "original":
        return None
    return Truth(masks & ~ignore, ~ignore)


def _query(source: Source, draw: Draw):
    """Image [h w 3], one mask per way [n h w] and the ignored pixels [h w]."""
    image = source.image(draw.query)
    pairs = [source.mask(draw.query, class_id) for class_id in draw.class_ids]
    masks, ignores = (np.stack(maps) for maps in zip(*pairs, strict=True))
    _require_pixels(masks[0], source, draw.query, draw.class_ids[0])
    ignore = ignores.any(axis=0)
    return image, masks, ignore


def _support(source: Source, image_id: str, class_id: int, kind, conventions) -> View:
    """A support at its own size, with its instances where the cue asks for them."""
    mask, ignore = source.mask(image_id, class_id)
    _require_pixels(mask, source, image_id, class_id)
    instances = None
    if kind == "box" and conventions.box == "instance":
        instances = source.instances(image_id, class_id)
    return View(source.image(image_id), mask[None], ignore, instances)


def _require_pixels(
    mask: np.ndarray, source: Source, image_id: str, class_id: int
) -> None:
    if not mask.any():
        raise DiffUpError(
            f"image {image_id} has no pixel of class {class_id} "
            f"({source.class_names[class_id]}) in {source.root}; correct its "
            "annotation, or draw episodes only from images that contain their class."
        )


def _put_query(batch: Episode, row: int, view: View) -> None:
    query = batch.query
    query.image[row] = view.image
    query.mask[row] = view.masks & ~view.ignore
    query.valid[row] = ~view.ignore


def _put_text(batch: Episode, row: int, draw: Draw, texts: Texts | None) -> None:
    if texts is not None:
        batch.support.text[row] = texts[list(draw.class_ids)]
        batch.support.text_valid[row] = True


def _put_support(batch, at, view: View, kind, generator, conventions) -> None:
    support = batch.support
    support.images[at] = view.image
    support.fg[at], support.bg[at] = cue_maker.make_cue(
        kind,
        view.masks[0],
        generator=generator,
        size=view.ignore.shape[0],
        ignore=view.ignore,
        conventions=conventions,
        instances=view.instances,
    )
    support.kind[at] = CUES.index(kind)
    support.valid[at] = True


def _clear(batch: Episode, row: int) -> None:
    for leaf in (*batch.support, *batch.query):
        leaf[row] = 0
