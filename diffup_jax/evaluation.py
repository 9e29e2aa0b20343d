"""F3: the evaluation loop.

    batches --ask--> predictions --score--> counts --update--> state
    state --compute--> scores, which report.py writes down

Batches are `EvaluationBatch`es in the order of the evaluation list; they say which
places of it they hold. `ask(keys, episode)`, with one key per episode, answers a
`Prediction`. The evaluator knows no method.

Pixels are counted there, on the device; or, where a batch carries truths at their
query's own size, on the host after every map was brought to that size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from diffup_jax import metrics
from diffup_jax.data import resize
from diffup_jax.data.batches import EvaluationBatch
from diffup_jax.types import DiffUpError, Episode, Prediction

Ask = Callable[[Array, Episode], Prediction]


class Evaluation(NamedTuple):
    """A finished run: `interval` is the mIoU's 95 % bootstrap interval in percent.

    `ious` [e]: each episode's foreground IoU in percent, in the order of the list, NaN
    where nothing was to be found, and `places` where in the list they stand.
    `empty` queries were left out as the protocol asks, `damaged` episodes as
    config.data.on_error does. `seconds` is the duration of the whole loop, its
    compilation included.
    """

    state: metrics.State
    scores: metrics.Scores
    interval: tuple[float, float]
    ious: Float[np.ndarray, " e"]
    places: Int[np.ndarray, " e"]
    empty: int
    damaged: tuple[str, ...]
    seconds: float


def predictions(
    ask: Ask, key: Array, batches: Iterable[EvaluationBatch]
) -> Iterator[tuple[EvaluationBatch, Episode, Prediction]]:
    """Yield (batch, its episode on the device, prediction) of each batch with episodes.

    The key is folded with an episode's place in its list, so its noise depends neither
    on its batch nor on the others. Nothing waits for the device: a caller that reads
    one batch late keeps it busy. Raises DiffUpError where a prediction breaks the
    contract of types.Prediction.
    """
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    for batch in batches:
        if not len(batch.places):
            continue
        rows = len(batch.class_ids)
        places = np.resize(batch.places.astype(np.uint32), rows)
        episode = jax.device_put(batch.episode)
        found = ask(fold(key, places), episode)
        expected = (*batch.class_ids.shape, *episode.query.valid.shape[1:])
        for name, values in {"probability": found.probability, **found.maps}.items():
            if values.shape != expected:
                raise DiffUpError(
                    f"predict returned {name} of shape {values.shape}, expected "
                    f"{expected} [b n h w]: resize it to the query's size"
                )
        if found.threshold.shape != expected[:2]:
            raise DiffUpError(
                f"predict returned threshold of shape {found.threshold.shape}, "
                f"expected {expected[:2]} [b n]: one number for each way"
            )
        yield batch, episode, found


def evaluate(
    ask: Ask,
    key: Array,
    batches: Iterable[EvaluationBatch],
    *,
    classes: Sequence[int],
    episodes: int,
    frame: str,
    seed: int,
    resamples: int,
) -> Evaluation:
    """Score `episodes` episodes of the fold's `classes`, with a progress bar.

    `frame` is that of the protocol (see resize.py); `seed` and `resamples` are those of
    the bootstrap interval. Raises DiffUpError when the batches hold another number of
    episodes or nothing to score, and for whatever `metrics.update` and `predictions`
    refuse.
    """
    state = metrics.zero(classes)
    read: list[EvaluationBatch] = []
    with tqdm(total=episodes, unit="episode", desc="evaluate") as bar:

        def told(batches):
            for batch in batches:
                # The images are done with then; the bookkeeping is small.
                read.append(batch._replace(episode=None, truths=()))
                bar.update(batch.empty + len(batch.damaged))
                yield batch

        answers = predictions(ask, key, told(batches))
        for batch, counts in _one_late(_counted(answers)):
            count = len(batch.places)
            state = metrics.update(
                state,
                _on_host(batch, counts, frame) if batch.truths else counts,
                numbers=batch.places.tolist(),
                class_id=batch.class_ids[:count],
            )
            bar.update(count)
        seconds = bar.format_dict["elapsed"]
    places = np.sort(np.concatenate([[], *(b.places for b in read)]).astype(np.int64))
    empty = sum(batch.empty for batch in read)
    damaged = tuple(message for batch in read for message in batch.damaged)
    if len(places) + empty + len(damaged) != episodes or not len(places):
        raise DiffUpError(
            f"{len(places)} episodes were scored, {empty} empty and {len(damaged)} "
            f"damaged ones left out, expected {episodes} and at least 1 scored: the "
            "batches do not belong to this evaluation list, or its data are unusable"
        )
    return Evaluation(
        state=state,
        scores=metrics.compute(state),
        interval=metrics.bootstrap_interval(state, seed=seed, resamples=resamples),
        ious=metrics.episode_ious(state),
        places=places,
        empty=empty,
        damaged=damaged,
        seconds=seconds,
    )


def gallery_choice(
    ious: Float[np.ndarray, " e"], count: int
) -> Int[np.ndarray, " chosen"]:
    """Distinct indices of `count` episodes to look at, from the best to the worst.

    A third the best, a third the worst, the rest evenly spaced between; fewer when
    there are fewer. Episodes with NaN (an empty mask) are never chosen: their IoU of 0
    says nothing about the method.
    """
    ranked = np.argsort(-ious, kind="stable")
    ranked = ranked[: np.count_nonzero(~np.isnan(ious))]
    if len(ranked) <= count:
        return ranked
    end = count // 3
    rest = count - 2 * end
    between = ranked[end : len(ranked) - end]
    # The centre of each of `rest` equal stretches.
    spaced = between[(2 * np.arange(rest) + 1) * len(between) // (2 * rest)]
    return np.concatenate([ranked[:end], spaced, ranked[len(ranked) - end :]])


def _counted(
    answers: Iterable[tuple[EvaluationBatch, Episode, Prediction]],
) -> Iterator[tuple[EvaluationBatch, Any]]:
    """(batch, counts); for truths at their own size (batch, prediction) as it is.

    Reading it here would wait for the device.
    """
    for batch, episode, found in answers:
        yield batch, found if batch.truths else metrics.score(found, episode.query)


def _on_host(batch: EvaluationBatch, found: Prediction, frame: str) -> metrics.Counts:
    """Counts of the real episodes, each at its query's own size."""
    found = jax.tree.map(lambda x: np.asarray(x, np.float32), found)
    counts = []
    for row, truth in enumerate(batch.truths):

        def own(values, row=row, shape=truth.valid.shape):
            return np.stack([resize.leave(v, shape, frame=frame) for v in values[row]])

        mine = Prediction(
            own(found.probability),
            found.threshold[row],
            {name: own(values) for name, values in found.maps.items()},
        )
        counts.append(metrics.score_on_host(mine, *truth))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *counts)


def _one_late(items: Iterable[Any]) -> Iterator[Any]:
    # Read the previous batch's counts while the device works on this one.
    waiting = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting
