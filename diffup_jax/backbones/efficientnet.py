"""F2: EfficientNet-Lite (arXiv 1905.11946, without what small devices lack) as one
linen module and a table of variants.

    y = x' + norm(project(act(norm(depthwise(act(norm(expand(x)))))))

where x' is x, and absent at stride 2 or where the channels change; the first stage does
not expand. `expand` and `project` are 1x1, six times the channels and back. Against
EfficientNet the Lite ones have ReLU6 for swish and no squeeze-and-excitation, and their
stem, head, first and last stage are the same in all sizes.

Seven stages, strides 2, 4, 8, 16, 16, 32, 32. Levels are the blocks, which end without
an activation, and `head`, the 1x1 convolution to 1280 channels in front of the mean
over the grid; `last` is the head.

Facts of the reference (Google's TPU repository): batch norm with frozen statistics,
epsilon 1e-3; images -1..1; padding "SAME" as XLA has it, which at stride 2 and an even
size pads the end alone. A level of stride s has ceil(h / s) rows, for any h.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax.backbones.recipe import HALF, Recipe, batch_norm
from diffup_jax.types import Features, Level
from diffup_jax.weights import Row, Table, oihw

_NORM = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-3)
_STEM, _HEAD = 32, 1280


class _Stage(NamedTuple):
    """Of EfficientNet-B0: blocks, kernel, stride, widening and channels of a stage."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    width: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class Variant(NamedTuple):
    """Channels and blocks of the seven stages, and the id and licence of the default
    weights.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    hub: str
    licence: str


def _row(name: str, width: float, depth: float) -> Variant:
    inner = range(1, len(_STAGES) - 1)
    return Variant(
        widths=tuple(_rounded(stage.width * width) for stage in _STAGES),
        depths=tuple(
            # In tenths, for 1.1 x 10 is more than 11 in floating point.
            -(-stage.blocks * round(10 * depth) // 10) if i in inner else stage.blocks
            for i, stage in enumerate(_STAGES)
        ),
        hub=f"timm/tf_{name}.in1k",
        licence="Apache-2.0",
    )


def _rounded(width: float) -> int:
    """The nearest multiple of 8, unless that takes a tenth or more away."""
    found = max(8, int(width + 4) // 8 * 8)
    return found + 8 if found < 0.9 * width else found


VARIANTS: dict[str, Variant] = {
    name: _row(name, width, depth)
    for name, width, depth in (
        ("efficientnet_lite0", 1.0, 1.0),
        ("efficientnet_lite1", 1.0, 1.1),
        ("efficientnet_lite2", 1.1, 1.2),
        ("efficientnet_lite3", 1.2, 1.4),
        ("efficientnet_lite4", 1.4, 1.8),
    )
}

# Trained parameters; the statistics of norms are none.
PARAMETERS: dict[str, int] = {
    "efficientnet_lite0": 3_371_008,
    "efficientnet_lite1": 4_135_680,
    "efficientnet_lite2": 4_811_072,
    "efficientnet_lite3": 6_916_096,
    "efficientnet_lite4": 11_725_568,
}


def recipe(name: str, *, dtype: Any) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype: Any) -> Recipe:
    """The same for a variant of any size; `dtype` is what the module computes in."""
    return Recipe(
        module=EfficientNetLite(variant, dtype=dtype),
        levels=levels(variant),
        # Chosen on base classes of training photographs: docs/log/results.md.
        prior_levels=tuple(_level(6, variant.depths[5] - back) for back in (2, 1)),
        normalise=HALF,
        tables=tables(variant),
        packaged="",
        hub=variant.hub,
        licence=variant.licence,
        multiple_of=1,
        text=None,
        debias=0,
    )


def from_config(config: dict[str, Any]) -> Variant | None:
    """None: Hugging Face has a config.json of EfficientNet, not of the Lite ones."""
    del config
    return None


def levels(variant: Variant) -> tuple[Level, ...]:
    """Every block in order, `stage4.block2` being the third of stage 4, and `head`."""
    stride, found = 2, []
    for stage, block in _blocks(variant):
        stride *= _STAGES[stage - 1].stride if block == 0 else 1
        found.append(Level(_level(stage, block), stride, variant.widths[stage - 1]))
    return (*found, Level("head", stride, _HEAD))


class EfficientNetLite(nn.Module):
    """Normalised images [b h w 3] to `Features`; `last` is the head."""

    variant: Variant
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Features:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(_NORM, dtype=self.dtype)
        x = conv(_STEM, (3, 3), strides=2, name="stem_conv")(x)
        x = nn.relu6(norm(name="stem_norm")(x))
        found = {}
        for stage, block in _blocks(self.variant):
            row = _STAGES[stage - 1]
            x = found[_level(stage, block)] = _Block(
                width=self.variant.widths[stage - 1],
                kernel=row.kernel,
                stride=row.stride if block == 0 else 1,
                expand=row.expand,
                conv=conv,
                norm=norm,
                name=_module(stage, block),
            )(x)
        x = nn.relu6(norm(name="head_norm")(conv(_HEAD, (1, 1), name="head_conv")(x)))
        return Features(levels={**found, "head": x}, last=x)


class _Block(nn.Module):
    """1x1 to `expand` times the channels, depthwise, 1x1 to `width`; residual."""

    width: int
    kernel: int
    stride: int
    expand: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        y, channels = x, x.shape[-1] * self.expand
        if self.expand != 1:
            y = self.conv(channels, (1, 1), name="expand_conv")(y)
            y = nn.relu6(self.norm(name="expand_norm")(y))
        y = self.conv(
            channels,
            (self.kernel, self.kernel),
            strides=self.stride,
            feature_group_count=channels,
            name="depthwise_conv",
        )(y)
        y = nn.relu6(self.norm(name="depthwise_norm")(y))
        y = self.conv(self.width, (1, 1), name="project_conv")(y)
        y = self.norm(name="project_norm")(y)
        shortcut = self.stride == 1 and x.shape[-1] == self.width
        return x + y if shortcut else y


def _blocks(variant: Variant) -> list[tuple[int, int]]:
    """(stage from 1, block from 0), in order."""
    return [
        (index + 1, block)
        for index, blocks in enumerate(variant.depths)
        for block in range(blocks)
    ]


def _level(stage: int, block: int) -> str:
    return f"stage{stage}.block{block}"


def _module(stage: int, block: int) -> str:
    return f"stage{stage}_block{block}"


# --- Conversion tables ----------------------------------------------------------------


def tables(variant: Variant) -> tuple[Table, ...]:
    """The layouts a file of this variant may have, each with what it leaves unused.

    `timm`: `blocks.4.2.conv_pwl.weight`, head `classifier.*`. `efficientnet-pytorch`:
    `_blocks.8._project_conv.weight`, blocks counted through, head `_fc.*`.
    """
    counters = (r".*num_batches_tracked",)
    return (
        Table("timm", _rows(_timm(variant)), (r"classifier\..*", *counters)),
        Table("efficientnet-pytorch", _rows(_plain(variant)), (r"_fc\..*", *counters)),
    )


def _rows(names: list[tuple[str, str, str]]) -> tuple[Row, ...]:
    """From (our name before `_conv` and `_norm`, their convolution, their norm)."""
    rows = []
    for ours, conv, norm in names:
        rows.append(Row(f"{conv}.weight", f"params/{ours}_conv/kernel", oihw))
        rows += batch_norm(norm, f"{ours}_norm")
    return tuple(rows)


def _timm(variant: Variant) -> list[tuple[str, str, str]]:
    """A block's convolutions and norms are counted from its first, which is the
    depthwise one where nothing expands.
    """
    names = [("stem", "conv_stem", "bn1"), ("head", "conv_head", "bn2")]
    for stage, block in _blocks(variant):
        parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        if _STAGES[stage - 1].expand == 1:
            parts = {"depthwise": "conv_dw", "project": "conv_pw"}
        for number, (ours, conv) in enumerate(parts.items(), start=1):
            root = f"blocks.{stage - 1}.{block}"
            names.append(
                (
                    f"{_module(stage, block)}/{ours}",
                    f"{root}.{conv}",
                    f"{root}.bn{number}",
                )
            )
    return names


def _plain(variant: Variant) -> list[tuple[str, str, str]]:
    names = [("stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")]
    for number, (stage, block) in enumerate(_blocks(variant)):
        for norm, part in enumerate(("expand", "depthwise", "project")):
            if part == "expand" and _STAGES[stage - 1].expand == 1:
                continue
            root = f"_blocks.{number}"
            names.append(
                (
                    f"{_module(stage, block)}/{part}",
                    f"{root}._{part}_conv",
                    f"{root}._bn{norm}",
                )
            )
    return names
