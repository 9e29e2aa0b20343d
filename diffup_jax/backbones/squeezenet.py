"""F2: SqueezeNet 1.0 and 1.1 (arXiv 1602.07360), without their classifier.

    fire(x) = act([expand1(s), expand3(s)]),   s = act(squeeze(x))

Eight fire modules, `fire2` to `fire9`, are the levels. Three 3x3 max-pools at stride 2
follow conv1 and two of the fire modules; 1.1 pools earlier than 1.0, so its fire4 to
fire9 lie on coarser grids. Input is BGR, 0..255 minus a mean, as in Caffe.

Padding. The weights were trained without padding at conv1 and with pools that only ever
pad at the end. The grids are then smaller than the image divided by the stride (384
gives 95, 47 and 23), and cell i of the coarsest lies at pixel 16 i + 15, up to 8 pixels
from where a map resized to the image puts it. Here conv1 repeats the border pixels and
the pools pad by minus infinity, in turn at the end and at the start, so that

    rows of a level = ceil(image rows / stride)      (384 gives 96, 48 and 24)
    cell i lies at pixel 4 i + 1, 8 i + 5, 16 i + 5  (even sizes; the centre of the
                                                      cell is at 1.5, 3.5 and 7.5)

Measured on real COCO images, trained padding against this one: top-1 of the 1.0 head on
202 crops of 227 pixels 46.0 against 46.5 (42.1 with zeros around conv1); one-shot
contrast mIoU of 1.1 at 384 pixels, fire5, fire7, fire9: 18.1, 19.9, 21.9 against 18.0,
20.2, 22.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffup_jax.backbones.recipe import Normalise, Recipe
from diffup_jax.types import Features, Level
from diffup_jax.weights import Row, Table, oihw, same


class Variant(NamedTuple):
    """Sizes of one SqueezeNet: conv1, the layers a max-pool follows, the BGR mean."""

    stem_width: int
    stem_kernel: int
    pool_after: tuple[str, str, str]
    mean: tuple[float, float, float]
    prior_levels: tuple[str, ...]


VARIANTS: dict[str, Variant] = {
    "squeezenet1_1": Variant(
        stem_width=64,
        stem_kernel=3,
        pool_after=("conv1", "fire3", "fire5"),
        mean=(103.939, 116.779, 123.68),
        prior_levels=("fire7", "fire8", "fire9"),
    ),
    "squeezenet1_0": Variant(
        stem_width=96,
        stem_kernel=7,
        pool_after=("conv1", "fire4", "fire8"),
        mean=(104.0, 117.0, 123.0),
        prior_levels=("fire7", "fire8", "fire9"),
    ),
}

# Trained parameters.
PARAMETERS: dict[str, int] = {
    "squeezenet1_1": 722_496,
    "squeezenet1_0": 735_424,
}

# Channels of each squeeze convolution; both expand convolutions have four times that.
_SQUEEZE = {
    "fire2": 16,
    "fire3": 16,
    "fire4": 32,
    "fire5": 32,
    "fire6": 48,
    "fire7": 48,
    "fire8": 64,
    "fire9": 64,
}


def recipe(name: str, *, dtype) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype) -> Recipe:
    """The recipe of sizes that need not be in the table."""
    b, g, r = variant.mean
    return Recipe(
        module=SqueezeNet(variant, dtype=dtype),
        levels=levels(variant),
        prior_levels=variant.prior_levels,
        normalise=Normalise((b / 255, g / 255, r / 255), (1 / 255,) * 3, bgr=True),
        tables=tables(),
        packaged="",
        hub="",
        licence="",
        multiple_of=1,
        text=None,
        debias=0,
    )


def from_config(config: dict) -> Variant | None:
    """None: Hugging Face has no config.json of this family."""
    del config
    return None


def levels(variant: Variant) -> tuple[Level, ...]:
    """fire2 to fire9, each before the pool that may follow it."""
    stride, found = 4, []
    for name, width in _SQUEEZE.items():
        found.append(Level(name, stride, 8 * width))
        stride *= 2 if name in variant.pool_after else 1
    return tuple(found)


class SqueezeNet(nn.Module):
    """Normalised images [b h w 3] to `Features`; `last` is fire9.

    A level of stride s has ceil(h / s) rows and ceil(w / s) columns, for any h and w.
    """

    variant: Variant
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Features:
        variant, kernel = self.variant, self.variant.stem_kernel
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        pad = _halving_pad(x, kernel, before=kernel // 2 - 1)
        x = jnp.pad(x, ((0, 0), *pad, (0, 0)), mode="edge")
        x = conv(
            variant.stem_width,
            (kernel, kernel),
            strides=2,
            padding="VALID",
            name="conv1",
        )(x)
        x = _pool(nn.relu(x), before=1)
        found, before = {}, 0
        for name, width in _SQUEEZE.items():
            fire = _Fire(width, conv=conv, activation=nn.relu, name=name)
            x = found[name] = fire(x)
            if name in variant.pool_after:
                x, before = _pool(x, before=before), 1 - before
        return Features(levels=found, last=found["fire9"])


class _Fire(nn.Module):
    """1x1 to `width`, then a 1x1 and a 3x3 side by side to four times `width` each."""

    width: int
    conv: Callable[..., nn.Module]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x):
        x = self.activation(self.conv(self.width, (1, 1), name="squeeze")(x))
        narrow = self.conv(4 * self.width, (1, 1), name="expand1")(x)
        wide = self.conv(
            4 * self.width, (3, 3), padding=((1, 1), (1, 1)), name="expand3"
        )(x)
        return self.activation(jnp.concatenate([narrow, wide], axis=-1))


def _pool(x: jax.Array, *, before: int) -> jax.Array:
    pad = _halving_pad(x, 3, before=before)
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=pad)


def _halving_pad(x, kernel: int, *, before: int) -> tuple[tuple[int, int], ...]:
    """Padding of rows and columns with which stride 2 gives ceil(size / 2) cells.

    `before` is the padding at the start; what is needed goes to the end.
    """
    return tuple(
        (before, 2 * (-(-size // 2) - 1) + kernel - size - before)
        for size in x.shape[1:3]
    )


# --- Conversion tables ----------------------------------------------------------------


def tables() -> tuple[Table, ...]:
    """`keras`: `fire2/squeeze1x1/kernel`, no head. `caffe`: `fire2/conv1x1_1/weight`,
    head `conv_final`. A file of either variant may have either layout; shapes decide.
    """
    keras = {"squeeze": "squeeze1x1", "expand1": "expand1x1", "expand3": "expand3x3"}
    caffe = {"squeeze": "conv1x1_1", "expand1": "conv1x1_2", "expand3": "conv3x3_2"}
    return (
        Table("keras", _rows(keras, "kernel", same), ()),
        Table("caffe", _rows(caffe, "weight", oihw), (r"conv_final/.*",)),
    )


def _rows(
    names: dict[str, str], kernel: str, transform: Callable[[np.ndarray], np.ndarray]
) -> tuple[Row, ...]:
    pairs = [("conv1", "conv1")]
    for fire in _SQUEEZE:
        pairs += [(f"{fire}/{ours}", f"{fire}/{name}") for ours, name in names.items()]
    rows = []
    for ours, name in pairs:
        rows.append(Row(f"{name}/{kernel}", f"params/{ours}/kernel", transform))
        rows.append(Row(f"{name}/bias", f"params/{ours}/bias", same))
    return tuple(rows)
