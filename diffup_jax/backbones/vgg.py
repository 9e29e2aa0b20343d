"""F2: VGG-16 (arXiv 1409.1556), with and without batch norm, without its classifier.

    x <- relu(norm(conv3x3(x)))      2, 2, 3, 3, 3 times in five stages
    x <- maxpool2x2(x)               between the stages

Levels `stage1.block0` to `stage5.block2` are the activated convolutions, strides 1, 2,
4, 8, 16; `last` is the last of them (conv5_3 of the paper), before the pool that leads
to the classifier. Activation: ReLU. Batch norm: frozen statistics, epsilon 1e-5.

Padding: (1, 1) at every convolution. The pools of the original drop an odd row or
column; here they keep it (torch's `ceil_mode`), so that a level of stride s has
ceil(h / s) rows. Where h and w are multiples of 16 the two are the same.

Default weights: torchvision's IMAGENET1K_V1, as timm publishes them.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax.backbones.recipe import IMAGENET, Recipe, batch_norm
from diffup_jax.types import Features, Level
from diffup_jax.weights import Row, Table, oihw, same


class Variant(NamedTuple):
    """Sizes of one VGG: channels and number of convolutions of each stage."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    norm: bool
    hub: str
    licence: str


_VGG16 = Variant(
    widths=(64, 128, 256, 512, 512),
    blocks=(2, 2, 3, 3, 3),
    norm=False,
    hub="timm/vgg16.tv_in1k",
    licence="BSD-3-Clause",
)

VARIANTS: dict[str, Variant] = {
    "vgg16": _VGG16,
    "vgg16_bn": _VGG16._replace(norm=True, hub="timm/vgg16_bn.tv_in1k"),
}

# Trained parameters.
PARAMETERS: dict[str, int] = {
    "vgg16": 14_714_688,
    "vgg16_bn": 14_723_136,
}


def recipe(name: str, *, dtype) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype) -> Recipe:
    """The recipe of sizes that need not be in the table."""
    found, last = levels(variant), len(variant.blocks)
    before = f"stage{last - 1}.block{variant.blocks[-2] - 1}"
    return Recipe(
        module=VGG(variant, dtype=dtype),
        levels=found,
        prior_levels=tuple(
            x.name for x in found if x.name == before or x.name.startswith(_of(last))
        ),
        normalise=IMAGENET,
        tables=tables(variant),
        packaged="",
        hub=variant.hub,
        licence=variant.licence,
        multiple_of=1,
        text=None,
        debias=0,
    )


def from_config(config: dict) -> Variant | None:
    """None: Hugging Face has no config.json of this family."""
    del config
    return None


def levels(variant: Variant) -> tuple[Level, ...]:
    """Every activated convolution, in order."""
    return tuple(
        Level(f"{_of(stage)}block{block}", 2 ** (stage - 1), width)
        for stage, block, width in _blocks(variant)
    )


class VGG(nn.Module):
    """Normalised images [b h w 3] to `Features`.

    A level of stride s has ceil(h / s) rows and ceil(w / s) columns, for any h and w.
    """

    variant: Variant
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Features:
        conv = functools.partial(
            nn.Conv,
            kernel_size=(3, 3),
            padding=((1, 1), (1, 1)),
            dtype=self.dtype,
        )
        norm = functools.partial(
            nn.BatchNorm, use_running_average=True, epsilon=1e-5, dtype=self.dtype
        )
        found = {}
        for stage, block, width in _blocks(self.variant):
            if stage > 1 and block == 0:
                odd = tuple((0, size % 2) for size in x.shape[1:3])
                x = nn.max_pool(x, (2, 2), strides=(2, 2), padding=odd)
            root = f"stage{stage}_block{block}"
            x = conv(width, name=f"{root}_conv")(x)
            if self.variant.norm:
                x = norm(name=f"{root}_norm")(x)
            x = found[f"{_of(stage)}block{block}"] = nn.relu(x)
        return Features(levels=found, last=x)


def _blocks(variant: Variant) -> list[tuple[int, int, int]]:
    """(stage from 1, block from 0, channels) of every convolution in order."""
    return [
        (index + 1, block, width)
        for index, (width, blocks) in enumerate(
            zip(variant.widths, variant.blocks, strict=True)
        )
        for block in range(blocks)
    ]


def _of(stage: int) -> str:
    return f"stage{stage}."


# --- Conversion tables ----------------------------------------------------------------


def tables(variant: Variant) -> tuple[Table, ...]:
    """`torchvision`: `features.0.weight`, numbered through convolutions, norms,
    activations and pools; heads `classifier.*`, or `pre_logits.*` and `head.*` (timm).
    """
    rows, index = [], 0
    for stage, block, _ in _blocks(variant):
        if stage > 1 and block == 0:
            index += 1  # the pool
        root, theirs = f"stage{stage}_block{block}", f"features.{index}"
        rows.append(Row(f"{theirs}.weight", f"params/{root}_conv/kernel", oihw))
        rows.append(Row(f"{theirs}.bias", f"params/{root}_conv/bias", same))
        if variant.norm:
            rows += batch_norm(f"features.{index + 1}", f"{root}_norm")
        index += 3 if variant.norm else 2
    heads = (r"classifier\..*", r"pre_logits\..*", r"head\..*")
    return (Table("torchvision", tuple(rows), (*heads, r".*num_batches_tracked")),)
