"""F2: ConvNeXt V2 (arXiv 2301.00808) as one linen module and a table of variants.

    y = x + project(grn(gelu(expand(norm(depthwise7x7(x))))))
    grn(x) = s x n + t + x,   n = g / (mean_c g + 1e-6),   g_c = ||x_c||_2 over the grid

`expand` and `project` are dense, to four times the channels and back. Before stages 2
to 4, a norm and a 2x2 convolution at stride 2 (strides 4, 8, 16, 32).

Facts of the reference (Hugging Face's ConvNextV2Model, and Meta's code before it):
activation exact GELU; every layer norm 1e-6; depthwise convolutions padded by 3 zeros
on each side, the stem (patches) and the 2x2 ones not at all. Because of g, a cell's
answer depends on the whole image.

The reference cuts off the rows and columns that do not fill a patch, and so its grids
no longer cover the image. Here such a size is refused: both sides must be multiples of
the last stride (32).

Levels are the outputs of the blocks; `last` is the last of them, as in the reference,
whose final norm belongs to its head (it sees the mean over the grid only).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffup_jax.backbones.recipe import IMAGENET, Recipe, check_size
from diffup_jax.types import DiffUpError, Features, Level
from diffup_jax.weights import Row, Table, oihw, same

_EPS = 1e-6


class Variant(NamedTuple):
    """Sizes of one ConvNeXt V2: channels and blocks per stage, the stem's patch in
    pixels, and the id and licence of the default weights.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    patch: int
    hub: str
    licence: str


def _row(size: str, width: int, depths: tuple[int, ...]) -> Variant:
    return Variant(
        widths=tuple(width * 2**stage for stage in range(4)),
        depths=depths,
        patch=4,
        # Self-supervised, then fine-tuned on ImageNet-1k; the same for all sizes.
        hub=f"facebook/convnextv2-{size}-1k-224",
        # Meta's own licence of the weights; the cards on the hub say Apache-2.0.
        licence="CC-BY-NC-4.0",
    )


VARIANTS: dict[str, Variant] = {
    "convnextv2_atto": _row("atto", 40, (2, 2, 6, 2)),
    "convnextv2_femto": _row("femto", 48, (2, 2, 6, 2)),
    "convnextv2_pico": _row("pico", 64, (2, 2, 6, 2)),
    "convnextv2_nano": _row("nano", 80, (2, 2, 8, 2)),
    "convnextv2_t": _row("tiny", 96, (3, 3, 9, 3)),
    "convnextv2_b": _row("base", 128, (3, 3, 27, 3)),
    "convnextv2_l": _row("large", 192, (3, 3, 27, 3)),
    "convnextv2_h": _row("huge", 352, (3, 3, 27, 3)),
}

# Trained parameters.
PARAMETERS: dict[str, int] = {
    "convnextv2_atto": 3_386_760,
    "convnextv2_femto": 4_847_472,
    "convnextv2_pico": 8_552_256,
    "convnextv2_nano": 14_981_520,
    "convnextv2_t": 27_864_960,
    "convnextv2_b": 87_690_752,
    "convnextv2_l": 196_416_768,
    "convnextv2_h": 657_467_008,
}


def recipe(name: str, *, dtype: Any) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype: Any) -> Recipe:
    """The same for a variant of any size; `dtype` is what the module computes in."""
    stages, last = len(variant.depths), variant.depths[-1]
    return Recipe(
        module=ConvNeXtV2(variant, dtype=dtype),
        levels=levels(variant),
        prior_levels=(
            _level(stages - 1, variant.depths[-2] - 1),
            *(_level(stages, block) for block in range(last)),
        ),
        normalise=IMAGENET,
        tables=tables(variant),
        packaged="",
        hub=variant.hub,
        licence=variant.licence,
        multiple_of=_stride(variant, stages),
        text=None,
        debias=0,
    )


def from_config(config: dict[str, Any]) -> Variant | None:
    """The variant of a Hugging Face config.json; None for another family's.

    Raises DiffUpError for a ConvNeXt V2 this module cannot compute exactly (another
    activation, not three channels, one stage only).
    """
    if config.get("model_type") != "convnextv2":
        return None
    try:
        for key, value in {"hidden_act": "gelu", "num_channels": 3}.items():
            if config[key] != value:
                raise DiffUpError(
                    f"This ConvNeXt V2 has {key} {config[key]!r} in its config.json; "
                    f"only {value!r} is known here. Use a checkpoint with {value!r}."
                )
        variant = Variant(
            widths=tuple(config["hidden_sizes"]),
            depths=tuple(config["depths"]),
            patch=config["patch_size"],
            hub="",
            licence="",
        )
    except KeyError as error:
        raise DiffUpError(
            f"The config.json of a ConvNeXt V2 (model_type 'convnextv2') has no "
            f"{error}. Save the model again with its whole configuration."
        ) from error
    stages = len(variant.depths)
    if not isinstance(variant.patch, int) or not 2 <= stages == len(variant.widths):
        raise DiffUpError(
            f"This ConvNeXt V2 has patch_size {variant.patch!r}, depths "
            f"{variant.depths} and hidden_sizes {variant.widths} in its config.json; "
            "expected one whole number for square patches, and one number of each for "
            "two or more stages."
        )
    return variant


def levels(variant: Variant) -> tuple[Level, ...]:
    """The stem (patches after their norm) and every block in order."""
    return (
        Level("stem", variant.patch, variant.widths[0]),
        *(
            Level(
                _level(stage, block), _stride(variant, stage), variant.widths[stage - 1]
            )
            for stage, block in _blocks(variant)
        ),
    )


class ConvNeXtV2(nn.Module):
    """Normalised images [b h w 3] to `Features`; `last` is the last block's output.

    Raises DiffUpError when h or w is not a multiple of the last stride.
    """

    variant: Variant
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Features:
        variant = self.variant
        multiple = _stride(variant, len(variant.depths))
        check_size(x.shape, multiple=multiple, what="ConvNeXt V2")
        x = _patches(variant.widths[0], variant.patch, self.dtype, "stem_conv")(x)
        x = _norm(self.dtype, "stem_norm")(x)
        found = {"stem": x}
        for stage, block in _blocks(variant):
            if stage > 1 and block == 0:
                x = _norm(self.dtype, f"stage{stage}_norm")(x)
                width = variant.widths[stage - 1]
                x = _patches(width, 2, self.dtype, f"stage{stage}_conv")(x)
            x = _Block(dtype=self.dtype, name=f"stage{stage}_block{block}")(x)
            found[_level(stage, block)] = x
        return Features(levels=found, last=x)


class _Block(nn.Module):
    """Depthwise 7x7, norm, expand, GELU, GRN, project; residual."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        y = nn.Conv(
            channels,
            (7, 7),
            padding=((3, 3), (3, 3)),
            feature_group_count=channels,
            dtype=self.dtype,
            name="depthwise",
        )(x)
        y = _norm(self.dtype, "norm")(y)
        y = nn.Dense(4 * channels, dtype=self.dtype, name="expand")(y)
        y = _ResponseNorm(dtype=self.dtype, name="grn")(nn.gelu(y, approximate=False))
        return x + nn.Dense(channels, dtype=self.dtype, name="project")(y)


class _ResponseNorm(nn.Module):
    """Global response normalisation; its statistics are float32."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        scale, bias = (
            self.param(name, nn.initializers.zeros, (x.shape[-1],))
            .astype(self.dtype)
            .reshape(1, 1, 1, -1)
            for name in ("scale", "bias")
        )
        energy = jnp.square(x.astype(jnp.float32)).sum((1, 2), keepdims=True)
        norm = jnp.sqrt(energy)
        share = norm / (norm.mean(-1, keepdims=True) + _EPS)
        return scale * (x * share.astype(self.dtype)) + bias + x


def _patches(width: int, size: int, dtype: Any, name: str) -> nn.Conv:
    """A convolution over patches of size x size that do not overlap."""
    return nn.Conv(
        width, (size, size), strides=size, padding="VALID", dtype=dtype, name=name
    )


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 loses the last digits parity asks for.
    return nn.LayerNorm(epsilon=_EPS, use_fast_variance=False, dtype=dtype, name=name)


def _stride(variant: Variant, stage: int) -> int:
    return variant.patch * 2 ** (stage - 1)


def _blocks(variant: Variant) -> list[tuple[int, int]]:
    """(stage from 1, block from 0), in order."""
    return [
        (index + 1, block)
        for index, blocks in enumerate(variant.depths)
        for block in range(blocks)
    ]


def _level(stage: int, block: int) -> str:
    return f"stage{stage}.block{block}"


# --- Conversion tables ----------------------------------------------------------------
# A layout is a name for each of our modules; the kinds of arrays are the same in all.


class _Names(NamedTuple):
    """Prefixes by stage from 0 (and block from 0), and names inside a block."""

    stem: tuple[str, str]  # convolution, norm
    down: str  # norm is its .0, convolution its .1
    block: str
    inside: tuple[str, str, str, str]  # depthwise, norm, expand, project
    grn: tuple[str, str]  # scale, bias


_HUGGING_FACE = _Names(
    stem=("embeddings.patch_embeddings", "embeddings.layernorm"),
    down="encoder.stages.{s}.downsampling_layer",
    block="encoder.stages.{s}.layers.{j}",
    inside=("dwconv", "layernorm", "pwconv1", "pwconv2"),
    grn=("grn.weight", "grn.bias"),
)
_META = _Names(
    stem=("downsample_layers.0.0", "downsample_layers.0.1"),
    down="downsample_layers.{s}",
    block="stages.{s}.{j}",
    inside=("dwconv", "norm", "pwconv1", "pwconv2"),
    grn=("grn.gamma", "grn.beta"),
)
_TIMM = _Names(
    stem=("stem.0", "stem.1"),
    down="stages.{s}.downsample",
    block="stages.{s}.blocks.{j}",
    inside=("conv_dw", "norm", "mlp.fc1", "mlp.fc2"),
    grn=("mlp.grn.weight", "mlp.grn.bias"),
)


def tables(variant: Variant) -> tuple[Table, ...]:
    """The layouts a file of this variant may have, each with what it leaves unused.

    `hugging face`: a saved ConvNextV2Model, or one with a classifier and the prefix
    `convnextv2.`, each also with the names `gamma` and `beta` of files made before
    2025. `meta`: the original code. `timm`: its dense kernels may be 1x1 convolutions.
    The final norm goes with the head.
    """
    found = []
    old = _HUGGING_FACE._replace(grn=("grn.gamma", "grn.beta"))
    for suffix, names in (("", _HUGGING_FACE), (", gamma and beta", old)):
        inner = _rows(variant, names)
        prefixed = tuple(r._replace(source="convnextv2." + r.source) for r in inner)
        head = (r"convnextv2\.layernorm\..*", r"classifier\..*")
        found += [
            Table(f"hugging face{suffix}", inner, (r"layernorm\..*",)),
            Table(f"hugging face, classifier{suffix}", prefixed, head),
        ]
    return (
        *found,
        Table("meta", _rows(variant, _META), (r"(norm|head)\..*",)),
        Table("timm", _rows(variant, _TIMM), (r"head\..*",)),
    )


def _rows(variant: Variant, names: _Names) -> tuple[Row, ...]:
    conv, norm = names.stem
    rows = [
        *_pair(conv, "stem_conv", "kernel", oihw),
        *_pair(norm, "stem_norm", "scale", same),
    ]
    for s in range(1, len(variant.depths)):
        down = names.down.format(s=s)
        rows += _pair(f"{down}.0", f"stage{s + 1}_norm", "scale", same)
        rows += _pair(f"{down}.1", f"stage{s + 1}_conv", "kernel", oihw)
    for stage, block in _blocks(variant):
        theirs = names.block.format(s=stage - 1, j=block)
        ours = f"stage{stage}_block{block}"
        depthwise, norm, expand, project = (f"{theirs}.{x}" for x in names.inside)
        rows += _pair(depthwise, f"{ours}/depthwise", "kernel", oihw)
        rows += _pair(norm, f"{ours}/norm", "scale", same)
        rows += _pair(expand, f"{ours}/expand", "kernel", _dense)
        rows += _pair(project, f"{ours}/project", "kernel", _dense)
        for leaf, name in zip(("scale", "bias"), names.grn, strict=True):
            rows.append(Row(f"{theirs}.{name}", f"params/{ours}/grn/{leaf}", _flat))
    return tuple(rows)


def _pair(
    theirs: str, ours: str, leaf: str, transform: Callable[[np.ndarray], np.ndarray]
) -> list[Row]:
    """The rows of a module's weight and of its bias."""
    return [
        Row(f"{theirs}.weight", f"params/{ours}/{leaf}", transform),
        Row(f"{theirs}.bias", f"params/{ours}/bias", same),
    ]


def _dense(array: np.ndarray) -> np.ndarray:
    """A dense kernel [o i], or [o i 1 1] where it was kept as a convolution."""
    return array.reshape(array.shape[:2]).transpose(1, 0)


def _flat(array: np.ndarray) -> np.ndarray:
    """[1 1 1 c] (or [1 c], or [c]) to [c]."""
    return array.reshape(-1)
