"""F4: where a probability is cut, so that the mask is the best one to answer.

Symbols: p_1 >= p_2 >= ... the probabilities of a way's cells, largest first.

    (1) J(k) = sum_{i <= k} p_i / (k + sum_{i > k} p_i)    of the k likeliest cells
    (2) J*   = max_k J(k),  threshold = J* / (1 + J*)

(1) is the expected intersection of a mask with the truth over their expected union. A
cell of probability p raises it where p (1 + J) > J, so the best mask is what lies above
(2), and (2) is never above 1/2: cutting at 1/2 finds the likeliest label of each pixel,
which is another question (Nowozin, "Optimal Decisions from Probabilistic Models: the
Intersection-over-Union Case", CVPR 2014). The less sure a method is, the further (2)
falls: over a backbone that it was not trained on a decoder still answers whole masks.

No truth is looked at. The field cuts at 1/2, and so does the default; where (2) helped
and where not: docs/log/results.md.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

# An answer of zeros, or nearly, stays an empty mask.
_LEAST = 0.05
_BINS = 64  # histogram bins of Otsu's threshold


def of_greatest_iou(prob: Float[Array, "*b p q"]) -> Float[Array, "*b"]:
    """Equation (2), at least 0.05 and at most 1/2."""
    flat = jnp.flip(jnp.sort(prob.reshape(*prob.shape[:-2], -1), axis=-1), axis=-1)
    inside = jnp.cumsum(flat, axis=-1)
    left = jnp.maximum(inside[..., -1:] - inside, 0)
    counts = jnp.broadcast_to(jnp.arange(1, flat.shape[-1] + 1), flat.shape)
    best = (inside / (left + counts)).max(axis=-1)
    return jnp.maximum(best / (1 + best), _LEAST)


def half(prob: Float[Array, "*b p q"]) -> Float[Array, "*b"]:
    """1/2: each pixel's likeliest label."""
    return jnp.full(prob.shape[:-2], 0.5)


def otsu(mean: Float[Array, "p q"]) -> Float[Array, ""]:
    """Of one map: what maximises the variance between its two sides (Otsu, 1979).

    For the training-free prior, whose values are no probabilities.
    """
    edges = jnp.linspace(0.0, 1.0, _BINS + 1)
    counts = jnp.histogram(mean.reshape(-1), bins=edges)[0].astype(jnp.float32)
    centres = (edges[:-1] + edges[1:]) / 2
    below = jnp.cumsum(counts)
    first = jnp.cumsum(counts * centres)
    above = below[-1] - below
    gap = first / jnp.maximum(below, 1) - (first[-1] - first) / jnp.maximum(above, 1)
    between = below * above * jnp.square(gap)
    # Empty bins tie: the middle of the best run, so that two modes split half-way.
    best = between >= between.max() * (1 - 1e-6)
    return (edges[1:] * best).sum() / best.sum()


THRESHOLDS: dict[str, Callable[[Float[Array, "*b p q"]], Float[Array, "*b"]]] = {
    "iou": of_greatest_iou,
    "half": half,
}
