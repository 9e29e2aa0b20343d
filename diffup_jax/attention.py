"""F1: attention over positions in memory that grows with N, not with N x N.

    (1) out(q) = sum_s softmax_s(<q, s> / tau | s valid) v(s),   0 without a valid s

BAFT reads a few maps (v: one or few channels) through the likeness of positions; the
matrix of likenesses of 120 x 120 positions alone is 830 MB. So keys come in blocks, and
each query keeps its largest score m so far with sums relative to exp(m) (the online
softmax of arXiv 1805.02867, as in FlashAttention, arXiv 2205.14135):

    (2) m'   = max(m, max_s z_s),          z_s = <q, s> / tau, s in the block
    (3) acc' = exp(m - m') acc + sum_s exp(z_s - m') [v(s), 1] valid(s)
    (4) out  = acc[v] / acc[1]

The last channel of acc is the softmax's denominator. The walk over the blocks is a
`lax.scan`, which runs and has a gradient on any platform. cuDNN's attention, behind
`jax.nn.dot_product_attention`, does not fit: it takes 16-bit inputs of at most 256
channels with as many value channels, BAFT has float32 features of 384 to 2048 channels
with one value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Scores held at once by the scan: 4 MB, about a core's share of the caches.
_SCORES = 1 << 20
_FEWEST_KEYS = 128
# What an invalid key's score is lowered by: finite, so that no inf - inf can arise.
_FAR = -1e30
# Smallest denominator; with a valid key it is at least 1, the best key's exp(0).
_TINY = 1e-6


def attend(
    query: Float[Array, "n c"],
    keys: Float[Array, "s c"],
    values: Float[Array, "s v"],
    valid: Bool[Array, " s"],
    *,
    temperature: float,
) -> Float[Array, "n v"]:
    """Equation (1) in float32; differentiable.

    Features may be bfloat16: products are summed in float32. Lead axes are `jax.vmap`'s
    (what is not mapped, say the features of one query under many value maps, is read
    and computed once).
    """
    positions, count = len(query), len(keys)
    block = key_block(positions, count)
    blocks = max(-(-count // block), 1)
    far, summed = _masked(values, valid)
    # Padded keys have summed = 0 as invalid ones have.
    keys, far, summed = (_pad(x, blocks * block) for x in (keys, far, summed))
    cut = lambda x: x.reshape(blocks, block, *x.shape[1:])  # noqa: E731

    def step(carry, part):
        top, acc = carry
        keys, far, summed = part
        scores = _scores(query, keys) / temperature + far[None]
        return _online(top, acc, scores, summed), None

    start = (jnp.full((positions, 1), _FAR), jnp.zeros((positions, summed.shape[1])))
    parts = (cut(keys), cut(far), cut(summed))
    if blocks == 1:
        (_, acc), _ = step(start, jax.tree.map(lambda x: x[0], parts))
    else:
        (_, acc), _ = jax.lax.scan(step, start, parts)
    return _divided(acc, values.shape[1])


def key_block(positions: int, keys: int) -> int:
    """Keys read at once: scores of about 4 MB, 128 keys at least, blocks alike."""
    most = max(_SCORES // positions, _FEWEST_KEYS)
    blocks = max(-(-keys // most), 1)
    return max(-(-keys // blocks), 1)


def _scores(query, keys):
    """Inner products [n s], float32; of float32 features without TF32 or bfloat16."""
    exact = query.dtype == jnp.float32
    return jax.lax.dot_general(
        query,
        keys,
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def _masked(values, valid):
    """What lowers the scores [s], and equation (3)'s [v, 1] valid: [s v+1]."""
    counted = valid.astype(jnp.float32)[:, None]
    far = jnp.where(valid, 0.0, _FAR)
    return far, jnp.concatenate([values.astype(jnp.float32) * counted, counted], 1)


def _online(top, acc, scores, summed):
    """Equations (2) and (3): top [n 1], acc [n v+1], scores [n s], summed [s v+1].

    The gradient needs none of m: it cancels in (4).
    """
    high = jnp.maximum(top, jax.lax.stop_gradient(scores.max(axis=1, keepdims=True)))
    added = jax.lax.dot_general(
        jnp.exp(scores - high),
        summed,
        (((1,), (0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return high, acc * jnp.exp(top - high) + added


def _divided(acc, channels):
    """Equation (4); zero where no key is valid."""
    return acc[:, :channels] / jnp.maximum(acc[:, channels, None], _TINY)


def _pad(x, length):
    """Zeros after the first axis, up to `length`."""
    return jnp.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1))
