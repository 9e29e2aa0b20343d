"""F2: residual networks (arXiv 1512.03385) as one linen module and a table of variants.

    y = act(x' + f(x)),   f = conv-norm-act-conv-norm (basic)
                          f = conv-norm-act-conv-norm-act-conv-norm (bottleneck)

where x' is x, or a 1x1 projection of x where the shape changes. The stride of a
bottleneck sits on its 3x3 convolution (the "v1.5" of torchvision and Hugging Face, not
the paper's first 1x1). Padding is given explicitly: XLA's SAME pads (0, 1) at stride 2
where these weights were trained with (1, 1).

Variants: `resnet18` to `resnet152` (strides 4, 8, 16, 32 after stages 1 to 4); the
bottleneck ones also as `resnet50_os16` and `resnet50_os8`, where the last one or two
stages keep the grid and dilate instead; and `tiny`, this project's own small
basic-block network without max-pool (strides 4, 8, 8, 16). The dilated ones read the
same files. Which block dilates is torchvision's rule (`replace_stride_with_dilation`):
the first block of a stage still has the dilation of the stage before it.

Activation: ReLU. Norm: batch norm with frozen statistics, epsilon 1e-5. Default
weights: torchvision's ImageNet ones of 2016 (IMAGENET1K_V1), which the few-shot
literature uses, as timm publishes them. Variables are flax's `{"params": ...,
"batch_stats": ...}`; the norm is a field of the module, so that a training script can
put a BatchNorm in training form in its place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax.backbones import resnet_files
from diffup_jax.backbones.recipe import IMAGENET, Recipe
from diffup_jax.types import DiffUpError, Features, Level
from diffup_jax.weights import Table

# Statistics over a frozen network's own training set: the answer for one image cannot
# depend on the others in its batch.
FROZEN_NORM = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)


class Variant(NamedTuple):
    """Sizes of one ResNet. `widths`, `blocks`, `strides` and `dilate` have one entry
    per stage.

    `widths` are the channels of a block's 3x3 convolutions; a bottleneck answers with
    four times as many. The stem is a `stem_kernel` square convolution at stride 2,
    followed by a 3x3 max-pool at stride 2 when `stem_pool`. A stage that is to `dilate`
    replaces its stride by dilation.
    """

    bottleneck: bool
    stem_width: int
    stem_kernel: int
    stem_pool: bool
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    strides: tuple[int, ...]
    dilate: tuple[bool, ...]
    prior_levels: tuple[str, ...]
    packaged: str
    hub: str
    licence: str


def _published(name: str, *, bottleneck: bool, blocks: tuple[int, ...]) -> Variant:
    return Variant(
        bottleneck=bottleneck,
        stem_width=64,
        stem_kernel=7,
        stem_pool=True,
        widths=(64, 128, 256, 512),
        blocks=blocks,
        strides=(1, 2, 2, 2),
        dilate=(False,) * 4,
        prior_levels=_end_of_3_and_all_of_4(blocks),
        packaged="",
        hub=f"timm/{name}.tv_in1k",
        licence="BSD-3-Clause",
    )


def _end_of_3_and_all_of_4(blocks: tuple[int, ...]) -> tuple[str, ...]:
    stage4 = (f"stage4.block{block}" for block in range(blocks[3]))
    return (f"stage3.block{blocks[2] - 1}", *stage4)


VARIANTS: dict[str, Variant] = {
    name: _published(name, bottleneck=bottleneck, blocks=blocks)
    for name, bottleneck, blocks in (
        ("resnet18", False, (2, 2, 2, 2)),
        ("resnet34", False, (3, 4, 6, 3)),
        ("resnet50", True, (3, 4, 6, 3)),
        ("resnet101", True, (3, 4, 23, 3)),
        ("resnet152", True, (3, 8, 36, 3)),
    )
}
VARIANTS |= {
    f"{name}_os{stride}": VARIANTS[name]._replace(dilate=dilate)
    for name in ("resnet50", "resnet101", "resnet152")
    for stride, dilate in (
        (16, (False, False, False, True)),
        (8, (False, False, True, True)),
    )
}
VARIANTS["tiny"] = Variant(
    bottleneck=False,
    stem_width=32,
    stem_kernel=3,
    stem_pool=False,
    widths=(32, 64, 96, 128),
    blocks=(1, 1, 2, 2),
    strides=(2, 2, 1, 2),
    dilate=(False,) * 4,
    prior_levels=("stage2.block0", "stage3.block1"),
    packaged="tiny.safetensors",
    hub="",
    licence="MIT",
)

# Trained parameters; the statistics of norms are none.
PARAMETERS: dict[str, int] = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
    "resnet50_os16": 23_508_032,
    "resnet50_os8": 23_508_032,
    "resnet101_os16": 42_500_160,
    "resnet101_os8": 42_500_160,
    "resnet152_os16": 58_143_808,
    "resnet152_os8": 58_143_808,
    "tiny": 956_064,
}


def recipe(name: str, *, dtype) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype) -> Recipe:
    """The recipe of sizes that need not be in the table."""
    return Recipe(
        module=ResNet(variant, dtype=dtype),
        levels=levels(variant),
        prior_levels=variant.prior_levels,
        normalise=IMAGENET,
        tables=tables(variant),
        packaged=variant.packaged,
        hub=variant.hub,
        licence=variant.licence,
        multiple_of=1,
        text=None,
        debias=0,
    )


def from_config(config: dict) -> Variant | None:
    """The sizes in a Hugging Face config.json, or None when it is no ResNet's.

    Raises DiffUpError for a ResNet with parts that are not built here.
    """
    if config.get("model_type") != "resnet":
        return None
    # What a saved config leaves out has the value below, the reference's default.
    expected = {"hidden_act": "relu", "downsample_in_bottleneck": False}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise DiffUpError(
                f"This ResNet's config.json has {key} = {config[key]!r}; only "
                f"{value!r} is built here."
            )
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    hidden = tuple(config.get("hidden_sizes", (256, 512, 1024, 2048)))
    blocks = tuple(config.get("depths", (3, 4, 6, 3)))
    first = 2 if config.get("downsample_in_first_stage", False) else 1
    if len(blocks) != 4 or len(hidden) != 4:
        raise DiffUpError(
            f"This ResNet's config.json has depths {blocks} and hidden_sizes {hidden}; "
            "four stages are built here."
        )
    return _published("", bottleneck=bottleneck, blocks=blocks)._replace(
        stem_width=config.get("embedding_size", 64),
        widths=tuple(size // (4 if bottleneck else 1) for size in hidden),
        strides=(first, 2, 2, 2),
        hub="",
        licence="",
    )


def levels(variant: Variant) -> tuple[Level, ...]:
    """The stem and every block in order, `stage3.block5` being the sixth of stage 3."""
    stride = 4 if variant.stem_pool else 2
    found = [Level("stem", stride, variant.stem_width)]
    for stage, block, _, step, _ in _blocks(variant):
        stride *= step
        found.append(Level(_level(stage, block), stride, _channels(variant, stage)))
    return tuple(found)


def tables(variant: Variant) -> tuple[Table, ...]:
    """The layouts a file of this variant may have (see `resnet_files`)."""
    places = [
        resnet_files.Place(stage, block, _module(stage, block), project)
        for stage, block, project, _, _ in _blocks(variant)
    ]
    return resnet_files.tables(places, convolutions=3 if variant.bottleneck else 2)


class ResNet(nn.Module):
    """Normalised images [b h w 3] to `Features`; `last` is the last block's output.

    A level of stride s has ceil(h / s) rows and ceil(w / s) columns, for any h and w.
    """

    variant: Variant
    dtype: Any = jnp.float32
    norm: Callable[..., nn.Module] = FROZEN_NORM

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Features:
        variant = self.variant
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(self.norm, dtype=self.dtype)
        block_type = _Bottleneck if variant.bottleneck else _Basic
        kernel, pad = variant.stem_kernel, variant.stem_kernel // 2
        x = conv(
            variant.stem_width,
            (kernel, kernel),
            strides=2,
            padding=_pad(pad),
            name="stem_conv",
        )(x)
        x = nn.relu(norm(name="stem_norm")(x))
        if variant.stem_pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=_pad(1))
        found = {"stem": x}
        for stage, block, project, step, dilation in _blocks(variant):
            x = block_type(
                width=variant.widths[stage - 1],
                stride=step,
                dilation=dilation,
                project=project,
                conv=conv,
                norm=norm,
                activation=nn.relu,
                name=_module(stage, block),
            )(x)
            found[_level(stage, block)] = x
        return Features(levels=found, last=x)


class _Basic(nn.Module):
    """Two 3x3 convolutions, the first one strided."""

    width: int
    stride: int
    dilation: int
    project: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x):
        conv3 = functools.partial(
            self.conv,
            self.width,
            (3, 3),
            padding=_pad(self.dilation),
            kernel_dilation=self.dilation,
        )
        y = conv3(strides=self.stride, name="conv1")(x)
        y = self.activation(self.norm(name="norm1")(y))
        y = self.norm(name="norm2")(conv3(name="conv2")(y))
        return self.activation(y + _shortcut(self, x, self.width))


class _Bottleneck(nn.Module):
    """1x1 to `width`, 3x3 strided, 1x1 to four times `width`."""

    width: int
    stride: int
    dilation: int
    project: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x):
        y = self.conv(self.width, (1, 1), name="conv1")(x)
        y = self.activation(self.norm(name="norm1")(y))
        y = self.conv(
            self.width,
            (3, 3),
            strides=self.stride,
            padding=_pad(self.dilation),
            kernel_dilation=self.dilation,
            name="conv2",
        )(y)
        y = self.activation(self.norm(name="norm2")(y))
        y = self.norm(name="norm3")(self.conv(4 * self.width, (1, 1), name="conv3")(y))
        return self.activation(y + _shortcut(self, x, 4 * self.width))


def _shortcut(block: _Basic | _Bottleneck, x: jax.Array, channels: int) -> jax.Array:
    if not block.project:
        return x
    x = block.conv(channels, (1, 1), strides=block.stride, name="shortcut_conv")(x)
    return block.norm(name="shortcut_norm")(x)


def _blocks(variant: Variant) -> list[tuple[int, int, bool, int, int]]:
    """(stage from 1, block from 0, whether its shortcut projects, stride, dilation) of
    every block in order.
    """
    found, width, dilation = [], variant.stem_width, 1
    for index, (blocks, step, dilate) in enumerate(
        zip(variant.blocks, variant.strides, variant.dilate, strict=True)
    ):
        stage, before = index + 1, dilation
        if dilate:
            dilation, step = dilation * step, 1
        for block in range(blocks):
            first = block == 0
            stride = step if first else 1
            project = stride != 1 or width != _channels(variant, stage)
            found.append((stage, block, project, stride, before if first else dilation))
            width = _channels(variant, stage)
    return found


def _channels(variant: Variant, stage: int) -> int:
    return variant.widths[stage - 1] * (4 if variant.bottleneck else 1)


def _level(stage: int, block: int) -> str:
    return f"stage{stage}.block{block}"


def _module(stage: int, block: int) -> str:
    return f"stage{stage}_block{block}"


def _pad(size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return ((size, size), (size, size))
