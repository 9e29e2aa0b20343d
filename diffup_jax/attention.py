"""F1: attention over positions in memory that grows with N, not with N x N.

    (1) out(q) = sum_s softmax_s(<q, s> / tau | s valid) v(s),   0 without a valid s

BAFT reads a few maps (v: one or few channels) through the likeness of positions; the
matrix of likenesses of 120 x 120 positions alone is 830 MB. So keys come in blocks, and
each query keeps its largest score m so far with sums relative to exp(m) (the online
softmax of arXiv 1805.02867, as in FlashAttention, arXiv 2205.14135):

    (2) m'   = max(m, max_s z_s),          z_s = <q, s> / tau, s in the block
    (3) acc' = exp(m - m') acc + sum_s exp(z_s - m') [v(s), 1] valid(s)
    (4) out  = acc[v] / acc[1]

The last channel of acc is the softmax's denominator. Three forms give the same answer:
a `lax.scan` over key blocks (any platform, and every gradient), and two Pallas kernels
(Triton for NVIDIA, Mosaic for TPU) that keep even a block's scores on the chip. cuDNN's
attention, behind `jax.nn.dot_product_attention`, does not fit: it takes 16-bit inputs
of at most 256 channels with as many value channels, BAFT has float32 features of 384 to
2048 channels with one value.
"""

from __future__ import annotations

import functools
import os

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

# Tiles of the kernels: queries, keys, and what feature channels are a multiple of (on
# NVIDIA as many are read at a time).
_GPU_TILE = (64, 64, 32)
_TPU_TILE = (256, 256, 128)


def attend(
    query: Float[Array, "n c"],
    keys: Float[Array, "s c"],
    values: Float[Array, "s v"],
    valid: Bool[Array, " s"],
    *,
    temperature: float,
) -> Float[Array, "n v"]:
    """Equation (1) in float32.

    The scan, everywhere; on an accelerator the kernels instead where the environment
    says DIFFUP_FUSED_ATTENTION=1. They equal the scan in Pallas's interpreter but have
    not run on a real GPU or TPU yet, so they are not the default.

    Features may be bfloat16: products are summed in float32. Lead axes are `jax.vmap`'s
    (what is not mapped, say the features of one query under many value maps, is read
    and computed once).
    """
    fused = os.environ.get("DIFFUP_FUSED_ATTENTION") == "1"
    if not fused or jax.default_backend() == "cpu":
        # Not even traced: the kernels' imports are slow and need not be there.
        return streamed(query, keys, values, valid, temperature=temperature)
    return jax.lax.platform_dependent(
        query,
        keys,
        values,
        valid,
        cuda=functools.partial(fused_gpu, temperature=temperature, interpret=False),
        tpu=functools.partial(fused_tpu, temperature=temperature, interpret=False),
        default=functools.partial(streamed, temperature=temperature),
    )


def streamed(
    query: Float[Array, "n c"],
    keys: Float[Array, "s c"],
    values: Float[Array, "s v"],
    valid: Bool[Array, " s"],
    *,
    temperature: float,
) -> Float[Array, "n v"]:
    """`attend` as a scan over key blocks; differentiable."""
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


def fused_gpu(
    query: Float[Array, "n c"],
    keys: Float[Array, "s c"],
    values: Float[Array, "s v"],
    valid: Bool[Array, " s"],
    *,
    temperature: float,
    interpret: bool,
) -> Float[Array, "n v"]:
    """`attend` as one Triton kernel: a program per 64 queries walks over all keys.

    `interpret` runs it on any platform, slowly. Gradients are those of `streamed`.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    rows, columns, channels = _GPU_TILE

    def kernel(query_ref, keys_ref, far_ref, summed_ref, out_ref):
        def over_keys(i, carry):
            here = pl.ds(i * columns, columns)

            def over_channels(j, scores):
                at = pl.ds(j * channels, channels)
                return scores + _scores(query_ref[:, at], keys_ref[here, at])

            nothing = jnp.zeros((rows, columns), jnp.float32)
            parts = query_ref.shape[1] // channels
            scores = jax.lax.fori_loop(0, parts, over_channels, nothing)
            scores = scores / temperature + far_ref[:, here]
            return _online(*carry, scores, summed_ref[here, :])

        start = (
            jnp.full((rows, 1), _FAR, jnp.float32),
            jnp.zeros(out_ref.shape, jnp.float32),
        )
        blocks = keys_ref.shape[0] // columns
        out_ref[:, :] = jax.lax.fori_loop(0, blocks, over_keys, start)[1]

    def call(query, keys, far, summed):
        whole = lambda x: pl.BlockSpec(x.shape, lambda i: (0, 0))  # noqa: E731
        block = lambda x: pl.BlockSpec((rows, x.shape[1]), lambda i: (i, 0))  # noqa: E731
        return pl.pallas_call(
            kernel,
            grid=(len(query) // rows,),
            in_specs=[block(query), whole(keys), whole(far), whole(summed)],
            out_specs=block(summed),
            out_shape=jax.ShapeDtypeStruct((len(query), summed.shape[1]), jnp.float32),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
            interpret=interpret,
        )(query, keys, far, summed)

    # Triton's arrays have powers of two, and at least 16 to multiply.
    width = max(16, 1 << values.shape[1].bit_length())
    made = _kernel(call, tile=_GPU_TILE, width=width, temperature=temperature)
    return made(query, keys, values, valid)


def fused_tpu(
    query: Float[Array, "n c"],
    keys: Float[Array, "s c"],
    values: Float[Array, "s v"],
    valid: Bool[Array, " s"],
    *,
    temperature: float,
    interpret: bool,
) -> Float[Array, "n v"]:
    """`attend` as one Mosaic kernel: blocks of queries x keys, sums kept on the chip.

    `interpret` runs it on any platform, slowly. Gradients are those of `streamed`.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu

    rows, columns, lanes = _TPU_TILE

    def kernel(query_ref, keys_ref, far_ref, summed_ref, out_ref, top_ref):
        @pl.when(pl.program_id(1) == 0)
        def _():
            top_ref[:, :] = jnp.full(top_ref.shape, _FAR, jnp.float32)
            out_ref[:, :] = jnp.zeros(out_ref.shape, jnp.float32)

        scores = _scores(query_ref[:, :], keys_ref[:, :]) / temperature + far_ref[:, :]
        top, acc = _online(top_ref[:, :1], out_ref[:, :], scores, summed_ref[:, :])
        top_ref[:, :] = jnp.broadcast_to(top, top_ref.shape)
        out_ref[:, :] = acc

    def call(query, keys, far, summed):
        channels, width = query.shape[1], summed.shape[1]
        return pl.pallas_call(
            kernel,
            grid=(len(query) // rows, len(keys) // columns),
            in_specs=[
                pl.BlockSpec((rows, channels), lambda i, j: (i, 0)),
                pl.BlockSpec((columns, channels), lambda i, j: (j, 0)),
                pl.BlockSpec((1, columns), lambda i, j: (0, j)),
                pl.BlockSpec((columns, width), lambda i, j: (j, 0)),
            ],
            out_specs=pl.BlockSpec((rows, width), lambda i, j: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((len(query), width), jnp.float32),
            scratch_shapes=[tpu.VMEM((rows, lanes), jnp.float32)],
            interpret=interpret,
        )(query, keys, far, summed)

    width = _up(values.shape[1] + 1, lanes)
    made = _kernel(call, tile=_TPU_TILE, width=width, temperature=temperature)
    return made(query, keys, values, valid)


def _kernel(call, *, tile, width, temperature):
    """A kernel that wants whole tiles, as a function that `streamed` differentiates."""

    @jax.custom_jvp
    def made(query, keys, values, valid):
        rows, columns, channels = tile
        far, summed = _masked(values, valid)
        count, channel = _up(len(keys), columns), _up(query.shape[1], channels)
        acc = call(
            _pad(query, _up(len(query), rows), channel),
            _pad(keys, count, channel),
            _pad(far, count)[None],
            _pad(summed, count, width),
        )
        return _divided(acc[: len(query)], values.shape[1])

    @made.defjvp
    def _(primals, tangents):
        *features, valid = primals
        form = lambda *x: streamed(*x, valid, temperature=temperature)  # noqa: E731
        return jax.jvp(form, tuple(features), tuple(tangents[:3]))

    return made


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


def _pad(x, *sizes):
    """Zeros after the leading axes, up to `sizes`; the other axes as they are."""
    sizes = (*sizes, *x.shape[len(sizes) :])
    return jnp.pad(x, [(0, n - have) for n, have in zip(sizes, x.shape, strict=True)])


def _up(size, multiple):
    """The next multiple; at least one."""
    return max(-(-size // multiple), 1) * multiple
