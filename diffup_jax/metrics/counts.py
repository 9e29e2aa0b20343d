"""Pixels into whole numbers, once per batch on the device or per episode on the host.

A way's prediction is the argmax over {background, way 1..n}: with independent
foreground maps the background scores 1 - max_n prob, so way j is predicted where its
prob is the (first) largest of the ways and exceeds 1/2. For one way: prob > 1/2. A
method may tell another threshold for each of its maps, which then takes the place of
1/2 (methods/decision.py says why).

Per episode and way, b in {0 background, 1 foreground}, ignored pixels removed from
both sides (the published evaluation of HSNet, arXiv 2104.01538):

    (1) I_b = #(pred = truth = b)        U_b = #(pred = b) + #(truth = b) - I_b

`score` is compiled and takes batches of one shape; `score_on_host` is numpy and takes
an episode of any size, for protocols that score at the query's own. Both give the very
same integers for the same numbers.

The prior mean is kept as a histogram of truth over 256 bins. 256 v is exact in binary
floating point, so "prior >= k/256" is counted exactly for k = 0..255. The probability
is kept as a histogram of truth over the nearest of 0/256 .. 256/256. Variance,
uncertainty and spread are kept as histograms of error over logarithmic bins (32 to the
octave, from 2^-20 to 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffup_jax.types import Episode

# What every method tells besides its answer, and what only some do: a method that
# draws no samples has no spread. A histogram of what was not told stays empty.
MAPS = ("prior_mean", "prior_variance", "uncertainty")
OPTIONAL_MAPS = ("spread",)
# No map: one number for each way of an episode, from which on a pixel is of the class.
THRESHOLD = "threshold"

PRIOR_BINS = 256
PROBABILITY_LEVELS = 256
# A float32's leading bits are its exponent and 5 bits of mantissa: shifting the other
# 18 away gives 32 bins to the octave, monotone and without a logarithm's rounding.
_ERROR_SHIFT, _ERROR_OCTAVES = 18, 20
_ERROR_FIRST = (127 - _ERROR_OCTAVES) << (23 - _ERROR_SHIFT)
ERROR_BINS = _ERROR_OCTAVES << (23 - _ERROR_SHIFT)


class Counts(NamedTuple):
    """What `score` answers for a batch; the axis of size 2 is the b of equation (1).

    `prior` counts pixels by (truth, bin): bin 0 holds those that another way's prior
    wins, bin 1 + j values in [j/256, (j+1)/256). The others are over all ways:
    `probability` counts by (truth, 256 p), the rest by (wrong, bin).
    """

    intersection: Int[Any, "b n 2"]
    union: Int[Any, "b n 2"]
    prior: Int[Any, "b n 2 bins"]
    variance: Int[Any, "b 2 error_bins"]
    uncertainty: Int[Any, "b 2 error_bins"]
    spread: Int[Any, "b 2 error_bins"]
    probability: Int[Any, "b 2 levels"]
    finite: Bool[Any, " b"]


@jax.jit
def score(
    prob: Float[Array, "b n h w"],
    maps: Mapping[str, Float[Array, "b n ..."]],
    episode: Episode,
) -> Counts:
    """Counts of a batch. `maps` needs MAPS, may hold OPTIONAL_MAPS and THRESHOLD [b n].

    `prob` and the maps are at the query's size, `prob` and the prior mean in [0, 1].
    An episode with a NaN or an infinity in any of them answers `finite` False.
    """
    prob = prob.astype(jnp.float32)
    mean, *errors = (maps[name].astype(jnp.float32) for name in _told(maps))
    truth = episode.query_mask > 0.5
    valid = jnp.broadcast_to(episode.query_valid[:, None], truth.shape)
    own = maps.get(THRESHOLD)
    threshold = jnp.full(prob.shape[:2], 0.5) if own is None else own
    pred = _wins(prob) & (prob > threshold[:, :, None, None].astype(jnp.float32))

    intersection, union = [], []
    for is_b, truth_b in ((~pred, ~truth), (pred, truth)):
        intersection.append(jnp.sum(is_b & truth_b & valid, axis=(2, 3)))
        union.append(jnp.sum((is_b | truth_b) & valid, axis=(2, 3)))

    level = jnp.clip(jnp.floor(mean * PRIOR_BINS), 0, PRIOR_BINS - 1)
    level = jnp.where(_wins(mean), level.astype(jnp.int32) + 1, 0)
    wrong = pred != truth
    by_error = [
        _histogram(_log_bin(values), wrong, valid, ERROR_BINS).sum(axis=1)
        for values in errors
    ]
    # 256 p is exact, and so the sum is rounded alike here and on the host.
    claim = jnp.clip(jnp.floor(prob * PROBABILITY_LEVELS + 0.5), 0, PROBABILITY_LEVELS)
    claims = _histogram(claim.astype(jnp.int32), truth, valid, PROBABILITY_LEVELS + 1)
    finite = [
        jnp.all(jnp.isfinite(values), axis=(1, 2, 3))
        for values in (prob, mean, *errors)
    ]
    return Counts(
        intersection=jnp.stack(intersection, axis=-1),
        union=jnp.stack(union, axis=-1),
        prior=_histogram(level, truth, valid, PRIOR_BINS + 1),
        variance=by_error[0],
        uncertainty=by_error[1],
        spread=by_error[2] if len(by_error) > 2 else jnp.zeros_like(by_error[0]),
        probability=claims.sum(axis=1),
        finite=jnp.all(jnp.stack(finite), axis=0),
    )


def score_on_host(
    prob: Float[np.ndarray, "n h w"],
    maps: Mapping[str, Float[np.ndarray, "n ..."]],
    masks: Bool[np.ndarray, "n h w"],
    valid: Bool[np.ndarray, "h w"],
) -> Counts:
    """`score` of one episode at any size, as a batch of one."""
    values = [prob, *(maps[name] for name in _told(maps))]
    prob, mean, *errors = (np.asarray(value, np.float32) for value in values)
    finite = all(np.isfinite(value).all() for value in (prob, mean, *errors))
    # A spoilt episode is refused by its number later; here it must only not warn.
    prob, mean, *errors = (np.nan_to_num(value) for value in (prob, mean, *errors))
    valid = np.broadcast_to(valid, masks.shape)
    threshold = maps.get(THRESHOLD, np.full(len(prob), 0.5))
    pred = predicted(prob, np.asarray(threshold, np.float32))
    sides = ((~pred, ~masks), (pred, masks))
    both = [np.sum(is_b & truth_b & valid, (1, 2)) for is_b, truth_b in sides]
    either = [np.sum((is_b | truth_b) & valid, (1, 2)) for is_b, truth_b in sides]
    level = np.clip(np.floor(mean * PRIOR_BINS), 0, PRIOR_BINS - 1).astype(np.int64)
    level = np.where(_first_largest(mean), level + 1, 0)
    by_error = []
    for error in errors:
        bits = np.maximum(error, 0).view(np.int32) >> _ERROR_SHIFT
        place = np.clip(bits - _ERROR_FIRST, 0, ERROR_BINS - 1)
        counted = _host_histogram(place, pred != masks, valid, ERROR_BINS)
        by_error.append(counted.sum(axis=0)[None])
    claim = np.clip(np.floor(prob * PROBABILITY_LEVELS + 0.5), 0, PROBABILITY_LEVELS)
    claims = _host_histogram(
        claim.astype(np.int64), masks, valid, PROBABILITY_LEVELS + 1
    )
    return Counts(
        intersection=np.stack(both, axis=-1)[None],
        union=np.stack(either, axis=-1)[None],
        prior=_host_histogram(level, masks, valid, PRIOR_BINS + 1)[None],
        variance=by_error[0],
        uncertainty=by_error[1],
        spread=by_error[2] if len(by_error) > 2 else np.zeros_like(by_error[0]),
        probability=claims.sum(axis=0)[None],
        finite=np.array([finite]),
    )


def predicted(
    prob: Float[np.ndarray, "n h w"], threshold: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, "n h w"]:
    """The masks of an episode's ways, as `score` counts them."""
    return _first_largest(prob) & (prob > threshold[:, None, None])


def _told(maps: Mapping[str, Any]) -> tuple[str, ...]:
    return (*MAPS, *(name for name in OPTIONAL_MAPS if name in maps))


def _wins(values: Float[Array, "b n h w"]) -> Bool[Array, "b n h w"]:
    ways = jnp.arange(values.shape[1])[None, :, None, None]
    return jnp.argmax(values, axis=1, keepdims=True) == ways


def _log_bin(values: Float[Array, "b n h w"]) -> Int[Array, "b n h w"]:
    # Negative zero has the sign bit set and would land below; the maximum removes it.
    bits = jax.lax.bitcast_convert_type(jnp.maximum(values, 0.0) + 0.0, jnp.int32)
    return jnp.clip((bits >> _ERROR_SHIFT) - _ERROR_FIRST, 0, ERROR_BINS - 1)


def _histogram(
    index: Int[Array, "b n h w"],
    label: Bool[Array, "b n h w"],
    valid: Bool[Array, "b n h w"],
    bins: int,
) -> Int[Array, "b n 2 bins"]:
    def count(flat):
        return jnp.zeros(2 * bins + 1, jnp.int32).at[flat].add(1)

    # Ignored pixels go to one bin past the end, which is cut off.
    flat = jnp.where(valid, label * bins + index, 2 * bins)
    rows = flat.shape[0] * flat.shape[1]
    counts = jax.vmap(count)(flat.reshape(rows, -1))
    return counts[:, :-1].reshape(*flat.shape[:2], 2, bins)


def _first_largest(values: np.ndarray) -> np.ndarray:
    ways = np.arange(len(values))[:, None, None]
    return np.argmax(values, axis=0)[None] == ways


def _host_histogram(
    index: np.ndarray, label: np.ndarray, valid: np.ndarray, bins: int
) -> np.ndarray:
    flat = label * bins + index
    counts = [
        np.bincount(each[inside], minlength=2 * bins)
        for each, inside in zip(flat, valid, strict=True)
    ]
    return np.stack(counts).reshape(-1, 2, bins)
