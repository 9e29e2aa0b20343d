"""F1: metrics as a small mergeable state: zero -> update -> merge -> compute.

Pixels become whole numbers in counts.py, equation (1); here everything is addition, so
splitting a run and merging the parts changes nothing. Whether the method knows where it
is wrong is answered in calibration.py, equations (5)-(7).

    (2) IoU(c)  = 100 sum_e I_1[e, c] / max(sum_e U_1[e, c], 1)    dataset IoU of c
    (3) mIoU    = mean over the fold's classes of IoU(c); one never met counts as 0
    (4) FB-IoU  = 100 mean over b of  sum_c I_b / max(sum_c U_b, 1)

With several ways each way of an episode is one row e: binary IoU of its class, also
where the class is absent from the query, then every pixel predicted as it is wrong.

The mIoU of the prior at its best threshold is an optimistic baseline, for the threshold
is chosen on the scored episodes themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from diffup_jax.metrics.calibration import (
    Reliability,
    auroc,
    calibration_error,
    reliability,
)
from diffup_jax.metrics.counts import (
    ERROR_BINS,
    PRIOR,
    PRIOR_BINS,
    PROBABILITY_LEVELS,
    Counts,
    predicted,
    score,
    score_on_host,
)
from diffup_jax.types import DiffUpError

__all__ = [
    "ERROR_BINS",
    "PRIOR",
    "Counts",
    "Reliability",
    "Scores",
    "State",
    "bootstrap_interval",
    "compute",
    "episode_ious",
    "merge",
    "predicted",
    "score",
    "score_on_host",
    "update",
    "zero",
]


class State(NamedTuple):
    """All that a run is reduced to; one row e per episode and way, sorted.

    `classes` the fold's class indices, sorted; `truth` counts pixels by truth. `prior`
    is summed by class, None of a method without one; what follows it is summed over
    everything, `errors` for each map of the method.
    """

    classes: Int[np.ndarray, " c"]
    episode: Int[np.ndarray, " e"]
    way: Int[np.ndarray, " e"]
    class_id: Int[np.ndarray, " e"]
    intersection: Int[np.ndarray, "e 2"]
    union: Int[np.ndarray, "e 2"]
    truth: Int[np.ndarray, "e 2"]
    prior: Int[np.ndarray, "c 2 bins"] | None
    errors: dict[str, Int[np.ndarray, "2 error_bins"]]
    probability: Int[np.ndarray, "2 levels"]


# One row per episode and way; the fields after them only add up.
_ROWS = ("episode", "way", "class_id", "intersection", "union", "truth")


class Scores(NamedTuple):
    """The answers; IoU in percent, AUROC and ECE in [0, 1].

    `auroc`: of error, by every map that says where the method is unsure; None where all
    pixels are right or all wrong, and where a map is zero everywhere, which orders
    nothing. ECE is None without a pixel. The prior's are None of a method without one.

    `per_class` and `episodes` follow the fold's classes; `absent` lists the classes
    never met, which count as 0 in `miou`. `everything_foreground` is the mIoU of
    predicting foreground everywhere, what a method has to beat first.
    """

    miou: float
    fb_iou: float
    per_class: Float[np.ndarray, " c"]
    episodes: Int[np.ndarray, " c"]
    absent: tuple[int, ...]
    prior_miou: float | None
    prior_threshold: float | None
    everything_foreground: float
    auroc: dict[str, float | None]
    ece: float | None
    ece_foreground: float | None
    reliability: Reliability


def zero(classes: Sequence[int]) -> State:
    """The empty state of a fold. Raises DiffUpError for none or repeated classes."""
    known = np.unique(np.asarray(classes, np.int64))
    if not len(known) or len(known) != len(classes):
        raise DiffUpError(
            f"the fold's classes are {list(classes)}; expected at least one class, "
            "each once: pass the list of the fold"
        )
    none = np.zeros(0, np.int64)
    pairs = np.zeros((0, 2), np.int64)
    claims = np.zeros((2, PROBABILITY_LEVELS + 1), np.int64)
    return State(known, none, none, none, pairs, pairs, pairs, None, {}, claims)


def update(
    state: State,
    counts: Counts,
    *,
    numbers: Sequence[int],
    class_id: Int[np.ndarray, "real n"],
) -> State:
    """Add the first `len(numbers)` episodes of a batch; the rest is padding.

    `numbers` are the episodes' places in the evaluation list, `class_id` their classes.
    Raises DiffUpError for a class outside the fold, for an episode scored twice and
    for a prediction that is not finite.
    """
    numbers = np.asarray(numbers, np.int64)
    class_id = np.asarray(class_id, np.int64)
    real, ways = class_id.shape
    cut = lambda part: np.asarray(part)[:real].astype(np.int64)  # noqa: E731
    counts = jax.tree.map(cut, counts)
    if not counts.finite.all():
        raise DiffUpError(
            f"the prediction of episode {numbers[counts.finite == 0][0]} holds a NaN "
            "or an infinity, expected finite numbers: check the weights and the "
            "checkpoint"
        )
    strange = np.setdiff1d(class_id, state.classes)
    if len(strange):
        raise DiffUpError(
            f"an episode asks for class {strange[0]}, expected one of the fold's "
            f"{state.classes.tolist()}: the episode list belongs to another fold"
        )
    prior = None
    if counts.prior is not None:
        prior = np.zeros((len(state.classes), 2, PRIOR_BINS + 1), np.int64)
        rows = np.searchsorted(state.classes, class_id).reshape(-1)
        np.add.at(prior, rows, counts.prior.reshape(-1, *prior.shape[1:]))
    batch = State(
        classes=state.classes,
        episode=np.repeat(numbers, ways),
        way=np.tile(np.arange(ways), real),
        class_id=class_id.reshape(-1),
        intersection=counts.intersection.reshape(-1, 2),
        union=counts.union.reshape(-1, 2),
        truth=counts.truth.reshape(-1, 2),
        prior=prior,
        errors={name: part.sum(axis=0) for name, part in counts.errors.items()},
        probability=counts.probability.sum(axis=0),
    )
    return merge(state, batch)


def merge(first: State, second: State) -> State:
    """Both states' episodes; order and grouping of merges are irrelevant.

    Raises DiffUpError when the folds differ or an episode is in both.
    """
    if not np.array_equal(first.classes, second.classes):
        raise DiffUpError(
            f"cannot merge results over classes {first.classes.tolist()} with results "
            f"over {second.classes.tolist()}: merge only parts of one fold"
        )
    joined = [
        np.concatenate([getattr(first, name), getattr(second, name)]) for name in _ROWS
    ]
    order = np.lexsort((joined[1], joined[0]))
    keys = np.stack(joined[:2], axis=-1)[order]
    twice = np.flatnonzero((keys[1:] == keys[:-1]).all(axis=-1))
    if len(twice):
        raise DiffUpError(
            f"episode {keys[twice[0], 0]} was scored twice; expected every episode "
            "once: merge only disjoint parts of a run"
        )
    priors = [part for part in (first.prior, second.prior) if part is not None]
    return State(
        first.classes,
        *(values[order] for values in joined),
        sum(priors) if priors else None,
        {
            name: first.errors.get(name, 0) + second.errors.get(name, 0)
            for name in first.errors | second.errors
        },
        first.probability + second.probability,
    )


def compute(state: State) -> Scores:
    """All scores of equations (2)-(7) and the prior's best threshold.

    Of equally good thresholds the lowest is reported.
    """
    rows = np.searchsorted(state.classes, state.class_id)
    intersection, union = np.zeros((2, len(state.classes), 2), np.int64)
    np.add.at(intersection, rows, state.intersection)
    np.add.at(union, rows, state.union)
    episodes = np.bincount(rows, minlength=len(state.classes))
    per_class = _percent(intersection[:, 1], union[:, 1])

    prior_miou = prior_threshold = None
    if state.prior is not None:
        # Predicted pixels at threshold k are those of bins k + 1 and above.
        above = np.cumsum(state.prior[:, :, :0:-1], axis=-1)[:, :, ::-1]
        truth = state.prior[:, 1].sum(axis=-1)
        by_threshold = _percent(above[:, 1], truth[:, None] + above[:, 0]).mean(axis=0)
        best = int(np.argmax(by_threshold))
        prior_miou, prior_threshold = float(by_threshold[best]), best / PRIOR_BINS
    counted = np.zeros((len(state.classes), 2), np.int64)
    np.add.at(counted, rows, state.truth)
    everything = _percent(counted[:, 1], counted.sum(axis=1))
    return Scores(
        miou=float(per_class.mean()),
        fb_iou=float(_percent(intersection.sum(axis=0), union.sum(axis=0)).mean()),
        per_class=per_class,
        episodes=episodes,
        absent=tuple(state.classes[episodes == 0].tolist()),
        prior_miou=prior_miou,
        prior_threshold=prior_threshold,
        everything_foreground=float(everything.mean()),
        auroc={
            name: auroc(counts) if counts[:, 1:].any() else None
            for name, counts in state.errors.items()
        },
        ece=calibration_error(state.probability, first=0),
        ece_foreground=calibration_error(state.probability, first=1),
        reliability=reliability(state.probability),
    )


def bootstrap_interval(
    state: State, *, seed: int, resamples: int
) -> tuple[float, float]:
    """95 % percentile interval of the mIoU over resampled episodes, in percent.

    Stratified: within each class its own episodes are drawn with replacement, as many
    as it has. Otherwise a rare class would vanish from some resamples and count as 0.
    The classes and the trained weights are taken as given, so the interval speaks of
    other episodes, not of other classes or trainings; a class with one episode adds no
    width. With several ways, the ways of an episode are resampled independently.
    """
    total = np.zeros(resamples)
    for class_id in state.classes:
        own = np.flatnonzero(state.class_id == class_id)
        if not len(own):
            continue
        # Seeded per class: other classes' episode counts leave its draws alone.
        random = np.random.default_rng((seed, int(class_id)))
        drawn = own[random.integers(len(own), size=(resamples, len(own)))]
        intersection = state.intersection[:, 1][drawn].sum(axis=-1)
        union = state.union[:, 1][drawn].sum(axis=-1)
        total += _percent(intersection, union)
    low, high = np.percentile(total / len(state.classes), (2.5, 97.5))
    return float(low), float(high)


def episode_ious(state: State) -> Float[np.ndarray, " episodes"]:
    """Foreground IoU of each episode in percent, in the order of their numbers.

    The mean over the ways whose mask is not empty; NaN where all masks are empty.
    """
    numbers, rows = np.unique(state.episode, return_inverse=True)
    shown = state.truth[:, 1] > 0
    ious = _percent(state.intersection[:, 1], state.union[:, 1])
    total = np.bincount(rows, weights=ious * shown, minlength=len(numbers))
    ways = np.bincount(rows, weights=shown, minlength=len(numbers))
    return np.where(ways > 0, total / np.maximum(ways, 1), np.nan)


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100.0 * part / np.maximum(whole, 1)
