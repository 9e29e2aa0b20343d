"""F2: Swin transformers (arXiv 2103.14030) as one linen module and a table of variants.

    y = x + attention(norm(x)),   z = y + mlp(norm(y))
    attention = softmax(q k' / sqrt(d) + B + M) v      inside windows of w x w cells

B is a learned bias for each relative position in a window. Every second block rolls
its grid by w // 2 first, and M then keeps apart cells that were not neighbours. Between
stages, 2 x 2 cells become one with twice the channels (strides 4, 8, 16, 32).

Facts of the reference (Hugging Face's SwinModel, and Microsoft's code before it):
activation exact GELU; layer norms of blocks and of the end `eps` (1e-5 in all published
ones), those of the stem and of the mergings always 1e-5; M is -100, not infinity.

Padding, always zeros, at the end only: the image to a multiple of the patch, each grid
after its first norm to a multiple of the window, each grid before a merging to even
numbers. Padded cells are not masked: they take part as keys, as in the reference. So
any input size fits, and a level of stride s has ceil(h / s) rows.

A grid whose smaller side does not exceed the window is not rolled. The reference then
also shrinks its window to that side, which fails there for want of biases unless both
are equal; here the window keeps its size and the grid is padded to it (the reference's
`always_partition`). Beware when comparing: the reference keeps the shrunken window and
the missing roll for all later calls.

Levels are the outputs of the blocks, before merging and without the final norm, which
only `last` has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffup_jax.backbones.recipe import IMAGENET, Recipe
from diffup_jax.backbones.swin_files import tables
from diffup_jax.types import DiffUpError, Features, Level

_STEM_EPS = 1e-5
_APART = -100.0


class Variant(NamedTuple):
    """Sizes of one Swin. `depths` (blocks) and `heads` have one entry per stage.

    `width` is the number of channels of stage 1; each later stage has twice as many.
    `window` is in cells, `patch` in pixels, `hub` the id of the default weights.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    patch: int
    mlp_ratio: float
    qkv_bias: bool
    eps: float
    hub: str
    licence: str


_TINY = Variant(
    width=96,
    depths=(2, 2, 6, 2),
    heads=(3, 6, 12, 24),
    window=7,
    patch=4,
    mlp_ratio=4.0,
    qkv_bias=True,
    eps=1e-5,
    hub="microsoft/swin-tiny-patch4-window7-224",
    licence="Apache-2.0",
)
_SMALL = _TINY._replace(depths=(2, 2, 18, 2))
_BASE = _SMALL._replace(width=128, heads=(4, 8, 16, 32))
_LARGE = _SMALL._replace(width=192, heads=(6, 12, 24, 48))
# timm's copies of Microsoft's weights stand where Microsoft's own repository was not
# seen to hold a safetensors file. `ms_in22k_ft_in1k`: ImageNet-22k, then 1k.
_TIMM = "timm/swin_{}.ms_{}"

VARIANTS: dict[str, Variant] = {
    "swin_t": _TINY,
    "swin_s": _SMALL._replace(
        hub=_TIMM.format("small_patch4_window7_224", "in1k"), licence="MIT"
    ),
    "swin_b": _BASE._replace(hub="microsoft/swin-base-patch4-window7-224"),
    "swin_b_384": _BASE._replace(
        window=12,
        hub=_TIMM.format("base_patch4_window12_384", "in22k_ft_in1k"),
        licence="MIT",
    ),
    "swin_l": _LARGE._replace(
        hub=_TIMM.format("large_patch4_window7_224", "in22k_ft_in1k"), licence="MIT"
    ),
    "swin_l_384": _LARGE._replace(
        window=12,
        hub=_TIMM.format("large_patch4_window12_384", "in22k_ft_in1k"),
        licence="MIT",
    ),
}

# Trained parameters.
PARAMETERS: dict[str, int] = {
    "swin_t": 27_519_354,
    "swin_s": 48_837_258,
    "swin_b": 86_743_224,
    "swin_b_384": 86_878_584,
    "swin_l": 194_995_476,
    "swin_l_384": 195_198_516,
}


def recipe(name: str, *, dtype: Any) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype: Any) -> Recipe:
    """The same for a variant of any size; `dtype` is what the module computes in."""
    stages, last = len(variant.depths), variant.depths[-1]
    return Recipe(
        module=Swin(variant, dtype=dtype),
        levels=levels(variant),
        prior_levels=(
            _level(stages - 1, variant.depths[-2] - 1),
            *(_level(stages, block) for block in range(last)),
        ),
        normalise=IMAGENET,
        tables=tables(variant.depths, qkv_bias=variant.qkv_bias),
        packaged="",
        hub=variant.hub,
        licence=variant.licence,
        multiple_of=1,
        text=None,
        # Positions enter by relative biases only, so there is nothing to project out.
        debias=0,
    )


def from_config(config: dict[str, Any]) -> Variant | None:
    """The variant of a Hugging Face config.json; None for another family's.

    Raises DiffUpError for a Swin this module cannot compute exactly (another
    activation, absolute position embeddings, not three channels, one stage only).
    """
    if config.get("model_type") != "swin":
        return None
    known = {"hidden_act": "gelu", "use_absolute_embeddings": False, "num_channels": 3}
    try:
        for key, value in known.items():
            if config[key] != value:
                raise DiffUpError(
                    f"This Swin has {key} {config[key]!r} in its config.json; only "
                    f"{value!r} is known here. Use a checkpoint with {value!r}."
                )
        variant = Variant(
            width=config["embed_dim"],
            depths=tuple(config["depths"]),
            heads=tuple(config["num_heads"]),
            window=config["window_size"],
            patch=config["patch_size"],
            mlp_ratio=float(config["mlp_ratio"]),
            qkv_bias=config["qkv_bias"],
            eps=config["layer_norm_eps"],
            hub="",
            licence="",
        )
    except KeyError as error:
        raise DiffUpError(
            f"The config.json of a Swin (model_type 'swin') has no {error}. Save the "
            "model again with its whole configuration."
        ) from error
    stages = len(variant.depths)
    if not isinstance(variant.patch, int) or not 2 <= stages == len(variant.heads):
        raise DiffUpError(
            f"This Swin has patch_size {variant.patch!r}, depths {variant.depths} and "
            f"num_heads {variant.heads} in its config.json; expected one whole number "
            "for square patches, and one number of each for two or more stages."
        )
    return variant


def levels(variant: Variant) -> tuple[Level, ...]:
    """The stem (patches after their norm) and every block in order."""
    found = [Level("stem", variant.patch, variant.width)]
    for stage, block in _blocks(variant):
        scale = 2 ** (stage - 1)
        found.append(
            Level(_level(stage, block), scale * variant.patch, scale * variant.width)
        )
    return tuple(found)


class Swin(nn.Module):
    """Normalised images [b h w 3] to `Features`; `last` is the last block's output
    after the final norm (the reference's `last_hidden_state`).
    """

    variant: Variant
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Features:
        variant, patch = self.variant, self.variant.patch
        x = nn.Conv(
            variant.width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            dtype=self.dtype,
            name="patch",
        )(_fill_up(x, patch))
        x = _norm(_STEM_EPS, self.dtype, "patch_norm")(x)
        found = {"stem": x}
        for stage, block in _blocks(variant):
            if stage > 1 and block == 0:
                x = _Merge(dtype=self.dtype, name=f"stage{stage}_merge")(x)
            x = _Block(
                heads=variant.heads[stage - 1],
                window=variant.window,
                shifted=block % 2 == 1,
                hidden=int(variant.mlp_ratio * x.shape[-1]),
                qkv_bias=variant.qkv_bias,
                eps=variant.eps,
                dtype=self.dtype,
                name=f"stage{stage}_block{block}",
            )(x)
            found[_level(stage, block)] = x
        return Features(
            levels=found, last=_norm(variant.eps, self.dtype, "last_norm")(x)
        )


class _Merge(nn.Module):
    """2 x 2 cells of c channels to one of 2 c; the order is down first, then right."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        x = _fill_up(x, 2)
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = _norm(_STEM_EPS, self.dtype, "norm")(jnp.concatenate(parts, axis=-1))
        return nn.Dense(
            2 * channels, use_bias=False, dtype=self.dtype, name="reduction"
        )(x)


class _Block(nn.Module):
    """Attention inside windows, then two dense layers, both residual."""

    heads: int
    window: int
    shifted: bool
    hidden: int
    qkv_bias: bool
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        rows, columns, channels = x.shape[1:]
        window = self.window
        roll = self.shifted and min(rows, columns) > window
        shift = window // 2 if roll else 0
        y = _fill_up(_norm(self.eps, self.dtype, "norm1")(x), window)
        grid = y.shape[1:3]
        y = _to_windows(jnp.roll(y, (-shift, -shift), axis=(1, 2)), window)
        y = _Attention(
            heads=self.heads,
            window=window,
            qkv_bias=self.qkv_bias,
            dtype=self.dtype,
            name="attention",
        )(y, _regions(*grid, window=window, shift=shift) if shift else None)
        y = jnp.roll(_from_windows(y, grid, window), (shift, shift), axis=(1, 2))
        x = x + y[:, :rows, :columns]
        y = _norm(self.eps, self.dtype, "norm2")(x)
        y = nn.Dense(self.hidden, dtype=self.dtype, name="mlp1")(y)
        y = nn.gelu(y, approximate=False)
        return x + nn.Dense(channels, dtype=self.dtype, name="mlp2")(y)


class _Attention(nn.Module):
    """Windows [b n t c] to the same; `regions` [n t] numbers cells that may meet."""

    heads: int
    window: int
    qkv_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, regions):
        b, n, t, channels = x.shape
        q, k, v = (
            nn.Dense(channels, use_bias=self.qkv_bias, dtype=self.dtype, name=name)(
                x
            ).reshape(b, n, t, self.heads, -1)
            for name in ("query", "key", "value")
        )
        bias = self.param(
            "relative_position_bias_table",
            nn.initializers.truncated_normal(0.02),
            ((2 * self.window - 1) ** 2, self.heads),
        )[_relative_positions(self.window)].transpose(2, 0, 1)
        # Scores and softmax in float32, whatever the network computes in.
        scores = jnp.einsum(
            "bnihd,bnjhd->bnhij", q, k, preferred_element_type=jnp.float32
        )
        scores = scores * (channels // self.heads) ** -0.5 + bias[None, None]
        if regions is not None:
            apart = regions[:, :, None] != regions[:, None, :]
            scores = scores + jnp.where(apart, _APART, 0.0)[None, :, None]
        chances = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        y = jnp.einsum("bnhij,bnjhd->bnihd", chances, v).reshape(x.shape)
        return nn.Dense(channels, dtype=self.dtype, name="out")(y)


def _norm(eps: float, dtype: Any, name: str) -> nn.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 loses the last digits parity asks for.
    return nn.LayerNorm(epsilon=eps, use_fast_variance=False, dtype=dtype, name=name)


def _fill_up(x: jax.Array, multiple: int) -> jax.Array:
    """Zeros after the last row and column, up to multiples."""
    rows, columns = (-size % multiple for size in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))


def _to_windows(x: jax.Array, window: int) -> jax.Array:
    """[b p q c] to [b n t c]: n windows, row by row, of t = window^2 cells."""
    b, rows, columns, channels = x.shape
    shape = (b, rows // window, window, columns // window, window, channels)
    return x.reshape(shape).swapaxes(2, 3).reshape(b, -1, window * window, channels)


def _from_windows(x: jax.Array, grid: tuple[int, int], window: int) -> jax.Array:
    """The inverse of `_to_windows` for a grid of (rows, columns)."""
    b, (rows, columns), channels = x.shape[0], grid, x.shape[-1]
    shape = (b, rows // window, columns // window, window, window, channels)
    return x.reshape(shape).swapaxes(2, 3).reshape(b, rows, columns, channels)


def _regions(rows: int, columns: int, *, window: int, shift: int) -> jax.Array:
    """[n t]: cells of a rolled grid with the same number were neighbours before."""

    def bands(size: int) -> jax.Array:
        at = jnp.arange(size)
        return (at >= size - window).astype(int) + (at >= size - shift).astype(int)

    region = 3 * bands(rows)[:, None] + bands(columns)[None, :]
    return _to_windows(region[None, :, :, None], window)[0, :, :, 0]


def _relative_positions(window: int) -> np.ndarray:
    """[t t]: the row of the bias table for the offset from cell j to cell i."""
    at = np.stack(np.divmod(np.arange(window * window), window), axis=-1)
    down, right = np.moveaxis(at[:, None] - at[None, :] + window - 1, -1, 0)
    return down * (2 * window - 1) + right


def _blocks(variant: Variant) -> list[tuple[int, int]]:
    """(stage from 1, block from 0), in order."""
    return [
        (index + 1, block)
        for index, blocks in enumerate(variant.depths)
        for block in range(blocks)
    ]


def _level(stage: int, block: int) -> str:
    return f"stage{stage}.block{block}"
