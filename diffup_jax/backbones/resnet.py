"""F2: residual networks (arXiv 1512.03385) as one linen module and a table of variants.

    y = act(x' + f(x)),   f = conv-norm-act-conv-norm (basic)
                          f = conv-norm-act-conv-norm-act-conv-norm (bottleneck)

where x' is x, or a 1x1 projection of x where the shape changes. The stride of a
bottleneck sits on its 3x3 convolution (the "v1.5" of torchvision and Hugging Face, not
the paper's first 1x1). Padding is given explicitly: XLA's SAME pads (0, 1) at stride 2
where these weights were trained with (1, 1).

Variants: `resnet50`, `resnet101` (strides 4, 8, 16, 32 after stages 1 to 4) and `tiny`,
this project's own small basic-block network without max-pool (strides 4, 8, 8, 16).
Variables are flax's `{"params": ..., "batch_stats": ...}`; the norm is a field of the
module, so that a training script can put a BatchNorm in training form in its place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from diffup_jax.backbones.recipe import Normalise, Recipe
from diffup_jax.types import Features, Level
from diffup_jax.weights import Row, Table, oihw, same

# Statistics over a frozen network's own training set: the answer for one image cannot
# depend on the others in its batch.
FROZEN_NORM = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)

# ImageNet's channel mean and standard deviation, as every published ResNet uses them.
IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), bgr=False)


class Variant(NamedTuple):
    """Sizes of one ResNet. `widths`, `blocks` and `strides` have one entry per stage.

    `widths` are the channels of a block's 3x3 convolutions; a bottleneck answers with
    four times as many. The stem is a `stem_kernel` square convolution at stride 2,
    followed by a 3x3 max-pool at stride 2 when `stem_pool`.
    """

    bottleneck: bool
    stem_width: int
    stem_kernel: int
    stem_pool: bool
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    strides: tuple[int, ...]
    prior_levels: tuple[str, ...]
    packaged: str


_STAGE4 = ("stage3.block5", "stage4.block0", "stage4.block1", "stage4.block2")
_RESNET50 = Variant(
    bottleneck=True,
    stem_width=64,
    stem_kernel=7,
    stem_pool=True,
    widths=(64, 128, 256, 512),
    blocks=(3, 4, 6, 3),
    strides=(1, 2, 2, 2),
    prior_levels=_STAGE4,
    packaged="",
)

VARIANTS: dict[str, Variant] = {
    "resnet50": _RESNET50,
    "resnet101": _RESNET50._replace(
        blocks=(3, 4, 23, 3), prior_levels=("stage3.block22", *_STAGE4[1:])
    ),
    "tiny": Variant(
        bottleneck=False,
        stem_width=32,
        stem_kernel=3,
        stem_pool=False,
        widths=(32, 64, 96, 128),
        blocks=(1, 1, 2, 2),
        strides=(2, 2, 1, 2),
        prior_levels=("stage2.block0", "stage3.block1"),
        packaged="tiny.safetensors",
    ),
}


def recipe(name: str) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    variant = VARIANTS[name]
    return Recipe(
        module=ResNet(variant),
        levels=levels(variant),
        prior_levels=variant.prior_levels,
        normalise=IMAGENET,
        tables=tables(variant),
        packaged=variant.packaged,
    )


def levels(variant: Variant) -> tuple[Level, ...]:
    """The stem and every block in order, `stage3.block5` being the sixth of stage 3."""
    stride = 4 if variant.stem_pool else 2
    found = [Level("stem", stride, variant.stem_width)]
    for stage, block, _, step in _blocks(variant):
        stride *= step
        found.append(Level(_level(stage, block), stride, _channels(variant, stage)))
    return tuple(found)


class ResNet(nn.Module):
    """Normalised images [b h w 3] to `Features`; `last` is the last block's output.

    A level of stride s has ceil(h / s) rows and ceil(w / s) columns, for any h and w.
    """

    variant: Variant
    norm: Callable[..., nn.Module] = FROZEN_NORM

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Features:
        variant = self.variant
        conv = functools.partial(nn.Conv, use_bias=False)
        block_type = _Bottleneck if variant.bottleneck else _Basic
        kernel, pad = variant.stem_kernel, variant.stem_kernel // 2
        x = conv(
            variant.stem_width,
            (kernel, kernel),
            strides=2,
            padding=_pad(pad),
            name="stem_conv",
        )(x)
        x = nn.relu(self.norm(name="stem_norm")(x))
        if variant.stem_pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=_pad(1))
        found = {"stem": x}
        for stage, block, project, step in _blocks(variant):
            x = block_type(
                width=variant.widths[stage - 1],
                stride=step,
                project=project,
                conv=conv,
                norm=self.norm,
                activation=nn.relu,
                name=_module(stage, block),
            )(x)
            found[_level(stage, block)] = x
        return Features(levels=found, last=x)


class _Basic(nn.Module):
    """Two 3x3 convolutions, the first one strided."""

    width: int
    stride: int
    project: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x):
        conv3 = functools.partial(self.conv, self.width, (3, 3), padding=_pad(1))
        y = conv3(strides=self.stride, name="conv1")(x)
        y = self.activation(self.norm(name="norm1")(y))
        y = self.norm(name="norm2")(conv3(name="conv2")(y))
        return self.activation(y + _shortcut(self, x, self.width))


class _Bottleneck(nn.Module):
    """1x1 to `width`, 3x3 strided, 1x1 to four times `width`."""

    width: int
    stride: int
    project: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x):
        y = self.conv(self.width, (1, 1), name="conv1")(x)
        y = self.activation(self.norm(name="norm1")(y))
        y = self.conv(
            self.width, (3, 3), strides=self.stride, padding=_pad(1), name="conv2"
        )(y)
        y = self.activation(self.norm(name="norm2")(y))
        y = self.norm(name="norm3")(self.conv(4 * self.width, (1, 1), name="conv3")(y))
        return self.activation(y + _shortcut(self, x, 4 * self.width))


def _shortcut(block: _Basic | _Bottleneck, x: jax.Array, channels: int) -> jax.Array:
    if not block.project:
        return x
    x = block.conv(channels, (1, 1), strides=block.stride, name="shortcut_conv")(x)
    return block.norm(name="shortcut_norm")(x)


def _blocks(variant: Variant) -> list[tuple[int, int, bool, int]]:
    """(stage from 1, block from 0, whether its shortcut projects, stride), in order."""
    found, width = [], variant.stem_width
    for index, (blocks, step) in enumerate(
        zip(variant.blocks, variant.strides, strict=True)
    ):
        stage = index + 1
        for block in range(blocks):
            stride = step if block == 0 else 1
            project = stride != 1 or width != _channels(variant, stage)
            found.append((stage, block, project, stride))
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


# --- Conversion tables ----------------------------------------------------------------
# One list of (our convolution, our norm, source names of both) per layout, generated
# from the variant; every layout then differs in names only.


def tables(variant: Variant) -> tuple[Table, ...]:
    """The layouts a file of this variant may have, each with what it leaves unused.

    `torchvision`: `layer3.5.conv2.weight`, head `fc.*`. `hugging face`: the keys of a
    saved ResNetModel, or of a ResNetForImageClassification with its `resnet.` prefix
    and head `classifier.*`.
    """
    inner = _rows(variant, _hugging_face_names(variant))
    prefixed = tuple(row._replace(source="resnet." + row.source) for row in inner)
    counters = (r".*num_batches_tracked",)
    return (
        Table(
            "torchvision",
            _rows(variant, _torchvision_names(variant)),
            (r"fc\..*", *counters),
        ),
        Table("hugging face", inner, counters),
        Table("hugging face, classifier", prefixed, (r"classifier\..*", *counters)),
    )


def _rows(variant: Variant, names: list[tuple[str, str]]) -> tuple[Row, ...]:
    rows = []
    for (ours_conv, ours_norm), (their_conv, their_norm) in zip(
        _our_names(variant), names, strict=True
    ):
        rows.append(Row(f"{their_conv}.weight", f"params/{ours_conv}/kernel", oihw))
        for theirs, collection, leaf in (
            ("weight", "params", "scale"),
            ("bias", "params", "bias"),
            ("running_mean", "batch_stats", "mean"),
            ("running_var", "batch_stats", "var"),
        ):
            rows.append(
                Row(f"{their_norm}.{theirs}", f"{collection}/{ours_norm}/{leaf}", same)
            )
    return tuple(rows)


def _our_names(variant: Variant) -> list[tuple[str, str]]:
    pairs = [("stem_conv", "stem_norm")]
    for stage, block, project, _ in _blocks(variant):
        root = _module(stage, block)
        for i in range(1, _depth(variant) + 1):
            pairs.append((f"{root}/conv{i}", f"{root}/norm{i}"))
        if project:
            pairs.append((f"{root}/shortcut_conv", f"{root}/shortcut_norm"))
    return pairs


def _torchvision_names(variant: Variant) -> list[tuple[str, str]]:
    pairs = [("conv1", "bn1")]
    for stage, block, project, _ in _blocks(variant):
        root = f"layer{stage}.{block}"
        for i in range(1, _depth(variant) + 1):
            pairs.append((f"{root}.conv{i}", f"{root}.bn{i}"))
        if project:
            pairs.append((f"{root}.downsample.0", f"{root}.downsample.1"))
    return pairs


def _hugging_face_names(variant: Variant) -> list[tuple[str, str]]:
    def pair(root: str) -> tuple[str, str]:
        return f"{root}.convolution", f"{root}.normalization"

    pairs = [pair("embedder.embedder")]
    for stage, block, project, _ in _blocks(variant):
        root = f"encoder.stages.{stage - 1}.layers.{block}"
        pairs += [pair(f"{root}.layer.{i}") for i in range(_depth(variant))]
        if project:
            pairs.append(pair(f"{root}.shortcut"))
    return pairs


def _depth(variant: Variant) -> int:
    return 3 if variant.bottleneck else 2
