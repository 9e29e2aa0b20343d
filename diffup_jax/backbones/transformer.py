"""F2: the plain vision transformer (arXiv 2010.11929) behind vit, dinov2 and dinov3.

    z = [cls + e_0, registers, patches + e]     e learned or sine-cosine, or none
    z = z + s1 * attention(norm1(z))            s1, s2: layer scale, or 1
    z = z + s2 * mlp(norm2(z))                  for every block
    last = norm(z)

    attention = softmax(q k / sqrt(d)) v,  with q, k of patches turned by `rotary`
    mlp(y)    = down(act(up(y)))  or, gated,  down(act(gate(y)) * up(y))

One module, `Transformer`; a family is a table of `Variant`s plus the names its weight
files use. Norm statistics, softmax, rotary turns and the resizing of positions are
computed in float32, everything else in `dtype`.

Position table of another grid size. Followed is Hugging Face transformers (5.x), which
resizes to exactly the wanted rows and columns, bicubic, cell centres aligned. Without
antialias that is Keys' kernel with a = -0.75, border cells repeated; with antialias it
is a = -0.5, widened when shrinking, weights renormalised at the border (torch has these
two kernels; `jax.image.resize` only the second). The repositories of DINO and DINOv2
without registers hand torch the factor (rows + 0.1) / table side in place of the size,
an old guard against rounding, which moves samples by up to 0.1 cell: transformers has
dropped it, and so did the DINOv2 models with registers.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffup_jax.backbones.recipe import Normalise, Recipe, check_size
from diffup_jax.types import Features, Level
from diffup_jax.weights import Table

# By the names of Hugging Face configs. "gelu" is the exact one (error function).
ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "silu": nn.silu,
    "relu": nn.relu,
}
ALL_BIASES = ("query", "key", "value", "out", "mlp")


class Variant(NamedTuple):
    """Sizes and facts of one vision transformer.

    patch        pixels per token, each way         width   channels of a token
    depth        blocks                             heads   of width / heads channels
    hidden       channels inside the mlp            gated   mlp form, see above
    activation   a key of ACTIVATIONS               epsilon of every norm
    layer_scale  whether s1, s2 exist               registers  extra tokens
    positions    side of the position table; 0: rotary positions
    antialias    of the resized position table      rotary  base period; 0: a table
    biases       which of ALL_BIASES have one
    debias       components of position debias, 0 = off
    hub, licence of the default weights; "" for a network built from a config
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    gated: bool
    activation: str
    epsilon: float
    layer_scale: bool
    registers: int
    positions: int
    antialias: bool
    rotary: float
    biases: tuple[str, ...]
    normalise: Normalise
    debias: int
    hub: str
    licence: str


def recipe_of(variant: Variant, *, dtype: Any, tables: tuple[Table, ...]) -> Recipe:
    """The recipe of any size; prior levels are at 1/2, 2/3, 5/6 and 1 of the depth."""
    ends = dict.fromkeys(-(-variant.depth * n // 6) - 1 for n in (3, 4, 5, 6))
    return Recipe(
        module=Transformer(variant, dtype=dtype),
        levels=tuple(
            Level(f"block{j}", variant.patch, variant.width)
            for j in range(variant.depth)
        ),
        prior_levels=tuple(f"block{j}" for j in ends),
        normalise=variant.normalise,
        tables=tables,
        packaged="",
        hub=variant.hub,
        licence=variant.licence,
        multiple_of=variant.patch,
        text=None,
        debias=variant.debias,
    )


class Transformer(nn.Module):
    """Normalised images [b h w 3] to `Features`, h and w multiples of the patch.

    `block0` ... are the outputs of the blocks before the final norm, `last` is the last
    one after it; patch tokens only, in `dtype`. Raises DiffUpError at trace time for a
    size that does not fit.
    """

    variant: Variant
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Features:
        variant, patch = self.variant, self.variant.patch
        check_size(x.shape, multiple=patch, what="A vision transformer")
        grid = (x.shape[1] // patch, x.shape[2] // patch)
        prefix = 1 + variant.registers

        def spatial(tokens):
            return tokens[:, prefix:].reshape(len(tokens), *grid, variant.width)

        turns = None
        if variant.rotary:
            size = variant.width // variant.heads
            turns = rotary(grid, prefix=prefix, size=size, base=variant.rotary)
        x = _Embed(variant, self.dtype, name="embed")(x)
        found = {}
        for j in range(variant.depth):
            x = _Block(variant, self.dtype, name=f"block{j}")(x, turns)
            found[f"block{j}"] = spatial(x)
        x = layer_norm(variant.epsilon, self.dtype, name="norm")(x)
        return Features(levels=found, last=spatial(x))


def layer_norm(epsilon: float, dtype: Any, *, name: str) -> nn.LayerNorm:
    """Variance as the mean of squared deviations, as torch has it: E[x^2] - E[x]^2
    loses digits on the few channels of a ViT that are far larger than the rest."""
    return nn.LayerNorm(
        epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name
    )


def resize_positions(
    table: Float[Array, "rows columns c"], grid: tuple[int, int], *, antialias: bool
) -> Float[Array, "p q c"]:
    """A table of positions resized to `grid`, bicubic (module docstring); the table
    itself when the grid is its own."""
    if table.shape[:2] == grid:
        return table
    rows, columns = (
        jnp.asarray(cubic_weights(old, new, antialias=antialias), table.dtype)
        for old, new in zip(table.shape[:2], grid, strict=True)
    )
    # Full precision also where matrix units would round float32 to fewer bits.
    return jnp.einsum(
        "pi,qj,ijc->pqc", rows, columns, table, precision=jax.lax.Precision.HIGHEST
    )


def cubic_weights(old: int, new: int, *, antialias: bool) -> np.ndarray:
    """Matrix [new old] that resizes `old` samples to `new`, as torch does it."""
    step = old / new
    centres = (np.arange(new)[:, None] + 0.5) * step - 0.5
    if antialias:
        weights = _keys((np.arange(old)[None] - centres) / max(step, 1.0), a=-0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    weights = np.zeros((new, old))
    first = np.floor(centres).astype(int) - 1
    for taps in (first + i for i in range(4)):
        rows = np.arange(new)[:, None]
        inside = np.clip(taps, 0, old - 1)
        np.add.at(weights, (rows, inside), _keys(taps - centres, a=-0.75))
    return weights


def rotary(
    grid: tuple[int, int], *, prefix: int, size: int, base: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [prefix + p q, size] of DINOv3's turns (arXiv 2508.10104).

    A patch centre has y and x in -1..1 over the image, whatever its size; the angles
    are 2 pi y / base^(4 i / size) for i < size / 4, the same of x, and both again. The
    `prefix` tokens do not turn. The random shift, jitter and rescaling of the
    coordinates belong to training only.
    """
    periods = base ** (np.arange(size // 4) / (size // 4))
    y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in grid)
    centres = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    angles = 2 * np.pi * centres[:, :, None] / periods
    angles = np.tile(angles.reshape(len(centres), -1), (1, 2))
    angles = np.concatenate([np.zeros((prefix, size)), angles])
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class _Embed(nn.Module):
    """Images to tokens [b n c]: cls, registers, patches row by row."""

    variant: Variant
    dtype: Any

    @nn.compact
    def __call__(self, x):
        variant, zeros = self.variant, nn.initializers.zeros
        width, side = variant.width, variant.positions
        x = nn.Conv(
            width,
            (variant.patch, variant.patch),
            strides=variant.patch,
            padding="VALID",
            dtype=self.dtype,
            name="patch",
        )(x)
        cls = self.param("cls", zeros, (1, 1, width))
        if side:
            table = self.param("positions", zeros, (1, 1 + side * side, width))
            cls = cls + table[:, :1]
            patches = resize_positions(
                table[0, 1:].reshape(side, side, width),
                x.shape[1:3],
                antialias=variant.antialias,
            )
            x = x + patches[None].astype(self.dtype)
        tokens = [cls]
        if variant.registers:
            shape = (1, variant.registers, width)
            tokens.append(self.param("registers", zeros, shape))
        x = x.reshape(len(x), -1, width)
        tokens = (jnp.repeat(t.astype(self.dtype), len(x), axis=0) for t in tokens)
        return jnp.concatenate([*tokens, x], axis=1)


class _Block(nn.Module):
    """One block of the equations at the top."""

    variant: Variant
    dtype: Any

    @nn.compact
    def __call__(self, x, turns):
        variant, dtype = self.variant, self.dtype

        def scaled(y, name):
            return _LayerScale(name=name)(y) if variant.layer_scale else y

        y = layer_norm(variant.epsilon, dtype, name="norm1")(x)
        y = _Attention(variant, dtype, name="attention")(y, turns)
        x = x + scaled(y, "scale1")
        y = layer_norm(variant.epsilon, dtype, name="norm2")(x)
        y = _Mlp(variant, dtype, name="mlp")(y)
        return x + scaled(y, "scale2")


class _Attention(nn.Module):
    variant: Variant
    dtype: Any

    @nn.compact
    def __call__(self, x, turns):
        variant = self.variant

        def dense(name, y):
            bias = name in variant.biases
            return nn.Dense(variant.width, use_bias=bias, dtype=self.dtype, name=name)(
                y
            )

        heads = (*x.shape[:2], variant.heads, variant.width // variant.heads)
        query, key, value = (
            dense(name, x).reshape(heads) for name in ("query", "key", "value")
        )
        if turns is not None:
            query, key = _turn(query, turns), _turn(key, turns)
        return dense(
            "out", jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        )


class _Mlp(nn.Module):
    variant: Variant
    dtype: Any

    @nn.compact
    def __call__(self, x):
        variant = self.variant
        dense = functools.partial(
            nn.Dense, use_bias="mlp" in variant.biases, dtype=self.dtype
        )
        y, activation = (
            dense(variant.hidden, name="up")(x),
            ACTIVATIONS[variant.activation],
        )
        if variant.gated:
            y = activation(dense(variant.hidden, name="gate")(x)) * y
        else:
            y = activation(y)
        return dense(variant.width, name="down")(y)


class _LayerScale(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return x * scale[None, None].astype(x.dtype)


def _turn(x: jax.Array, turns: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    """[b n heads size] turned: the first half of the channels pairs with the second."""
    cosines, sines = (t[None, :, None] for t in turns)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    full, swapped = (
        jnp.concatenate(pair, axis=-1) for pair in ((first, second), (-second, first))
    )
    return (full * cosines + swapped * sines).astype(x.dtype)


def _keys(x: np.ndarray, *, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE Trans. ASSP 29(6), 1981)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
