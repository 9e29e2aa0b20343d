"""Pixels into whole numbers, once per batch on the device or per episode on the host.

A way's prediction is the argmax over {background, way 1..n}: with independent
foreground maps the background scores 1 - max_n prob, so way j is predicted where its
prob is the (first) largest of the ways and exceeds the method's threshold for it.

Per episode and way, b in {0 background, 1 foreground}, ignored pixels removed from
both sides (the published evaluation of HSNet, arXiv 2104.01538):

    (1) I_b = #(pred = truth = b)        U_b = #(pred = b) + #(truth = b) - I_b

`score` is compiled and takes batches of one shape; `score_on_host` is numpy and takes
an episode of any size, for protocols that score at the query's own. Both give the very
same integers for the same numbers.

The probability is kept as a histogram of truth over the nearest of 0/256 .. 256/256.
Of a method's other maps (types.Prediction) the prior mean is kept as a histogram of
truth over 256 bins: 256 v is exact in binary floating point, so "prior >= k/256" is
counted exactly for k = 0..255. Every other map says where the method is unsure, and is
kept as a histogram of error over logarithmic bins (32 to the octave, from 2^-20 to 1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffup_jax.types import Prediction, Query

# The one map that is a rival answer.
PRIOR = "prior_mean"

PRIOR_BINS = 256
PROBABILITY_LEVELS = 256
# A float32's leading bits are its exponent and 5 bits of mantissa: shifting the other
# 18 away gives 32 bins to the octave, monotone and without a logarithm's rounding.
_ERROR_SHIFT, _ERROR_OCTAVES = 18, 20
_ERROR_FIRST = (127 - _ERROR_OCTAVES) << (23 - _ERROR_SHIFT)
ERROR_BINS = _ERROR_OCTAVES << (23 - _ERROR_SHIFT)


class Counts(NamedTuple):
    """What `score` answers for a batch; the axis of size 2 is the b of equation (1).

    `truth` counts pixels by truth. `prior`, None of a method without one, counts them
    by (truth, bin): bin 0 holds those that another way's prior wins, bin 1 + j values
    in [j/256, (j+1)/256). The others are over all ways: `probability` counts by (truth,
    256 p), `errors` of every map by (wrong, bin).
    """

    intersection: Int[Any, "b n 2"]
    union: Int[Any, "b n 2"]
    truth: Int[Any, "b n 2"]
    prior: Int[Any, "b n 2 bins"] | None
    errors: dict[str, Int[Any, "b 2 error_bins"]]
    probability: Int[Any, "b 2 levels"]
    finite: Bool[Any, " b"]


@jax.jit
def score(prediction: Prediction, query: Query) -> Counts:
    """Counts of a batch, everything at the query's size.

    An episode with a NaN or an infinity in any map answers `finite` False.
    """
    prob = prediction.probability.astype(jnp.float32)
    maps = {k: v.astype(jnp.float32) for k, v in prediction.maps.items()}
    truth = query.mask > 0.5
    valid = jnp.broadcast_to(query.valid[:, None], truth.shape)
    cut = prediction.threshold[:, :, None, None].astype(jnp.float32)
    pred = _wins(prob) & (prob > cut)

    intersection, union, counted = [], [], []
    for is_b, truth_b in ((~pred, ~truth), (pred, truth)):
        intersection.append(jnp.sum(is_b & truth_b & valid, axis=(2, 3)))
        union.append(jnp.sum((is_b | truth_b) & valid, axis=(2, 3)))
        counted.append(jnp.sum(truth_b & valid, axis=(2, 3)))

    finite = [jnp.isfinite(x).all(axis=(1, 2, 3)) for x in (prob, *maps.values())]
    mean, prior = maps.pop(PRIOR, None), None
    if mean is not None:
        level = jnp.clip(jnp.floor(mean * PRIOR_BINS), 0, PRIOR_BINS - 1)
        level = jnp.where(_wins(mean), level.astype(jnp.int32) + 1, 0)
        prior = _histogram(level, truth, valid, PRIOR_BINS + 1)
    wrong = pred != truth
    errors = {
        name: _histogram(_log_bin(values), wrong, valid, ERROR_BINS).sum(axis=1)
        for name, values in maps.items()
    }
    # 256 p is exact, and so the sum is rounded alike here and on the host.
    claim = jnp.clip(jnp.floor(prob * PROBABILITY_LEVELS + 0.5), 0, PROBABILITY_LEVELS)
    claims = _histogram(claim.astype(jnp.int32), truth, valid, PROBABILITY_LEVELS + 1)
    return Counts(
        intersection=jnp.stack(intersection, axis=-1),
        union=jnp.stack(union, axis=-1),
        truth=jnp.stack(counted, axis=-1),
        prior=prior,
        errors=errors,
        probability=claims.sum(axis=1),
        finite=jnp.all(jnp.stack(finite), axis=0),
    )


def score_on_host(
    prediction: Prediction,
    masks: Bool[np.ndarray, "n h w"],
    valid: Bool[np.ndarray, "h w"],
) -> Counts:
    """`score` of one episode at any size, as a batch of one.

    prediction: of one episode, [n h w] and [n].
    """
    prob = np.asarray(prediction.probability, np.float32)
    maps = {k: np.asarray(v, np.float32) for k, v in prediction.maps.items()}
    finite = all(np.isfinite(values).all() for values in (prob, *maps.values()))
    # A spoilt episode is refused by its number later; here it must only not warn.
    prob = np.nan_to_num(prob)
    maps = {name: np.nan_to_num(values) for name, values in maps.items()}
    valid = np.broadcast_to(valid, masks.shape)
    pred = predicted(prob, np.asarray(prediction.threshold, np.float32))
    sides = ((~pred, ~masks), (pred, masks))
    both = [np.sum(is_b & truth_b & valid, (1, 2)) for is_b, truth_b in sides]
    either = [np.sum((is_b | truth_b) & valid, (1, 2)) for is_b, truth_b in sides]
    counted = [np.sum(truth_b & valid, (1, 2)) for _, truth_b in sides]
    mean, prior = maps.pop(PRIOR, None), None
    if mean is not None:
        level = np.clip(np.floor(mean * PRIOR_BINS), 0, PRIOR_BINS - 1)
        level = np.where(_first_largest(mean), level.astype(np.int64) + 1, 0)
        prior = _host_histogram(level, masks, valid, PRIOR_BINS + 1)[None]
    errors = {}
    for name, error in maps.items():
        bits = np.maximum(error, 0).view(np.int32) >> _ERROR_SHIFT
        place = np.clip(bits - _ERROR_FIRST, 0, ERROR_BINS - 1)
        found = _host_histogram(place, pred != masks, valid, ERROR_BINS)
        errors[name] = found.sum(axis=0)[None]
    claim = np.clip(np.floor(prob * PROBABILITY_LEVELS + 0.5), 0, PROBABILITY_LEVELS)
    claims = _host_histogram(
        claim.astype(np.int64), masks, valid, PROBABILITY_LEVELS + 1
    )
    return Counts(
        intersection=np.stack(both, axis=-1)[None],
        union=np.stack(either, axis=-1)[None],
        truth=np.stack(counted, axis=-1)[None],
        prior=prior,
        errors=errors,
        probability=claims.sum(axis=0)[None],
        finite=np.array([finite]),
    )


def predicted(
    prob: Float[np.ndarray, "n h w"], threshold: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, "n h w"]:
    """The masks of an episode's ways, as `score` counts them."""
    return _first_largest(prob) & (prob > threshold[:, None, None])


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
