"""F2: CLIP's residual networks with attention pooling (arXiv 2103.00020, section 2.4).

Bottlenecks as in `resnet.py` (batch norm of epsilon 1e-5, ReLU), with three changes:

- the stem is three 3x3 convolutions (the first at stride 2) and a 2x2 average pool;
- every stride is an average pool before a convolution of stride 1: in the block after
  its 3x3 convolution, in the shortcut before its 1x1 convolution;
- the average pool at the end is an attention pool. With x the cells of stage 4, m their
  mean and e_0, e learned positions (bias in all four projections, no norm),

      z = [m + e_0, x + e];  embed = unit(out(attention(query(z_0), key(z), value(z))))

The dense path of MaskCLIP (arXiv 2112.01071) is the two projections as 1x1 convolutions
on the cells alone, without positions:  joint = unit(out(value(x)))         [b p q d]

Input: multiples of 32; the average pools would drop a last odd row or column. The
original takes the trained size only (its positions fit 7 x 7 cells). For other sizes
`embed` resizes them as `clip.py` does for the transformers, which is our choice; levels
and `joint` need no positions.

Weights: OpenAI's state dict, as safetensors or .pth. Its own archives are TorchScript
programs, which this package does not run: save `clip.load(...)[0].state_dict()`, or
take timm's safetensors (the default). The text tower is the one of `clip.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax.backbones import clip, clip_files, towers
from diffup_jax.backbones.recipe import Recipe, TextRecipe, batch_norm, check_size
from diffup_jax.backbones.resnet import FROZEN_NORM
from diffup_jax.backbones.towers import unit
from diffup_jax.backbones.transformer import resize_positions
from diffup_jax.types import Features, Level
from diffup_jax.weights import Row, Table, oihw, same

_STRIDES = (1, 2, 2, 2)
_STRIDE = 32


class Variant(NamedTuple):
    """Sizes: stages answer with 4, 8, 16 and 32 times `width` channels.

    `heads` are the attention pool's, `grid` the side of its table of positions.
    """

    width: int
    blocks: tuple[int, ...]
    heads: int
    grid: int
    text: clip.Text
    packaged: str
    hub: str
    licence: str


_RN50 = Variant(
    width=64,
    blocks=(3, 4, 6, 3),
    heads=32,
    grid=7,
    text=clip.TEXT_512._replace(joint=1024),
    packaged="",
    hub=clip.HUB.format("resnet50_clip"),
    licence="MIT",
)
VARIANTS: dict[str, Variant] = {
    "clip_rn50": _RN50,
    "clip_rn101": _RN50._replace(
        blocks=(3, 4, 23, 3),
        text=clip.TEXT_512,
        hub=clip.HUB.format("resnet101_clip"),
    ),
}

# Trained parameters of both towers; the statistics of norms are none.
PARAMETERS: dict[str, int] = {
    "clip_rn50": 102_007_137,
    "clip_rn101": 119_688_033,
}


def recipe(name: str, *, dtype: Any) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype: Any) -> Recipe:
    """The recipe of any variant; `dtype` is what both towers compute in."""
    third, fourth = variant.blocks[2:]
    return Recipe(
        module=ResNet(variant, dtype=dtype),
        levels=levels(variant),
        prior_levels=(
            f"stage3.block{third - 1}",
            *(f"stage4.block{block}" for block in range(fourth)),
        ),
        normalise=clip.NORMALISE,
        tables=vision_tables(variant),
        packaged=variant.packaged,
        hub=variant.hub,
        licence=variant.licence,
        multiple_of=_STRIDE,
        text=TextRecipe(
            module=clip.TextTower(variant.text, dtype=dtype),
            context_length=variant.text.context,
            tokenizer=variant.text.tokenizer,
            tables=tuple(
                t
                for t in clip_files.text_tables(variant.text.tower.depth)
                if t.layout == "openai"
            ),
        ),
        debias=0,
    )


def from_config(config: Mapping[str, Any]) -> Variant | None:
    """The variant of an open_clip_config.json with a residual network; else None.

    (No config.json of Hugging Face describes one.) Activations in the text tower are
    read from `quick_gelu`, false where the file is silent, as in open_clip.
    """
    model = config.get("model_cfg", {})
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    if not isinstance(vision.get("layers"), list):
        return None
    width, wide = vision["width"], text["width"]
    return Variant(
        width=width,
        blocks=tuple(vision["layers"]),
        heads=32 * width // vision.get("head_width", 64),
        grid=vision["image_size"] // _STRIDE,
        text=clip.Text(
            tower=towers.Tower(
                width=wide,
                depth=text["layers"],
                heads=text["heads"],
                hidden=4 * wide,
                activation="quick_gelu" if model.get("quick_gelu") else "gelu",
                epsilon=1e-5,
            ),
            vocabulary=text["vocab_size"],
            context=text["context_length"],
            joint=model["embed_dim"],
            eos=None,  # open_clip reads the text at the largest id
            tokenizer="clip",
        ),
        packaged="",
        hub="",
        licence="",
    )


def levels(variant: Variant) -> tuple[Level, ...]:
    """The stem and every block in order, `stage3.block5` being the sixth of stage 3."""
    stride, found = 4, [Level("stem", 4, variant.width)]
    for stage, block, step in _blocks(variant):
        stride *= step
        channels = _channels(variant, stage)
        found.append(Level(f"stage{stage}.block{block}", stride, channels))
    return tuple(found)


class ResNet(nn.Module):
    """Normalised images [b h w 3] to `Features`; h and w multiples of 32.

    `last` is the last block's output, `joint` is described in the module docstring.
    """

    variant: Variant
    dtype: Any = jnp.float32

    def setup(self):
        variant, width = self.variant, self.variant.width
        sizes = (width // 2, width // 2, width)
        self.stem_conv = [
            _conv(channels, 3, self.dtype, stride=2 if i == 0 else 1)
            for i, channels in enumerate(sizes)
        ]
        self.stem_norm = [FROZEN_NORM(dtype=self.dtype) for _ in sizes]
        before, made = width, []
        for stage, _, step in _blocks(variant):
            after = _channels(variant, stage)
            made.append(_Bottleneck(after // 4, step, before != after, self.dtype))
            before = after
        self.block = made
        self.pool = _AttentionPool(variant, self.dtype)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Features:
        found = self._levels(images)
        last = found[next(reversed(found))]
        if self.is_initializing():
            self.pool(last)  # queries, keys and positions: not in the dense path
        return Features(found, last=last, joint=unit(self.pool.dense(last)))

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """The image's unit vector in the joint space (OpenAI's `encode_image`)."""
        found = self._levels(images)
        return unit(self.pool(found[next(reversed(found))]))

    def _levels(self, images):
        check_size(images.shape, multiple=_STRIDE, what="CLIP's ResNet")
        x = images
        for conv, norm in zip(self.stem_conv, self.stem_norm, strict=True):
            x = nn.relu(norm(conv(x)))
        x = _average(x, 2)
        found = {"stem": x}
        for level, block in zip(levels(self.variant)[1:], self.block, strict=True):
            x = block(x)
            found[level.name] = x
        return found


class _Bottleneck(nn.Module):
    """1x1, 3x3, average pool by `stride`, 1x1 to four times `width`."""

    width: int
    stride: int
    project: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        def step(y, i, channels, kernel):
            y = _conv(channels, kernel, self.dtype, name=f"conv{i}")(y)
            return FROZEN_NORM(dtype=self.dtype, name=f"norm{i}")(y)

        y = nn.relu(step(x, 1, self.width, 1))
        y = nn.relu(step(y, 2, self.width, 3))
        y = step(_average(y, self.stride), 3, 4 * self.width, 1)
        if self.project:
            x = _average(x, self.stride)
            x = _conv(4 * self.width, 1, self.dtype, name="shortcut_conv")(x)
            x = FROZEN_NORM(dtype=self.dtype, name="shortcut_norm")(x)
        return nn.relu(y + x)


class _AttentionPool(nn.Module):
    """Cells [b p q c] to [b d]: the mean asks, all cells and the mean answer."""

    variant: Variant
    dtype: Any

    def setup(self):
        variant = self.variant
        width = _channels(variant, len(variant.blocks))
        self.positions = self.param(
            "positions",
            nn.initializers.normal(width**-0.5),
            (1 + variant.grid**2, width),
        )
        self.query = nn.Dense(width, dtype=self.dtype)
        self.key = nn.Dense(width, dtype=self.dtype)
        self.value = nn.Dense(width, dtype=self.dtype)
        self.out = nn.Dense(variant.text.joint, dtype=self.dtype)

    def __call__(self, x):
        b, p, q, c = x.shape
        grid = self.variant.grid
        table = self.positions[1:].reshape(grid, grid, c)
        table = resize_positions(table, (p, q), antialias=False).reshape(p * q, c)
        table = jnp.concatenate([self.positions[:1], table])[None].astype(x.dtype)
        x = x.reshape(b, p * q, c)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1) + table
        y = towers.attend(
            self.query(x[:, :1]),
            self.key(x),
            self.value(x),
            heads=self.variant.heads,
            causal=False,
        )
        return self.out(y)[:, 0]

    def dense(self, x):
        """The value and output projections on every cell."""
        return self.out(self.value(x))


def _conv(
    features: int, kernel: int, dtype: Any, *, stride: int = 1, name: str | None = None
) -> nn.Conv:
    pad = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        dtype=dtype,
        name=name,
    )


def _average(x: jax.Array, side: int) -> jax.Array:
    return nn.avg_pool(x, (side, side), strides=(side, side)) if side > 1 else x


def _blocks(variant: Variant) -> Iterator[tuple[int, int, int]]:
    """(stage from 1, block from 0, stride), in order."""
    for stage, blocks in enumerate(variant.blocks, start=1):
        for block in range(blocks):
            yield stage, block, _STRIDES[stage - 1] if block == 0 else 1


def _channels(variant: Variant, stage: int) -> int:
    return variant.width * 2 ** (stage + 1)


# --- Conversion tables ----------------------------------------------------------------


def vision_tables(variant: Variant) -> tuple[Table, ...]:
    """The image tower in OpenAI's state dict, which open_clip and timm keep."""
    rows: list[Row] = []

    def convolution(source: str, norm: str, ours: str, ours_norm: str):
        rows.append(Row(f"visual.{source}.weight", f"params/{ours}/kernel", oihw))
        rows.extend(batch_norm(f"visual.{norm}", ours_norm))

    for i in range(3):
        convolution(f"conv{i + 1}", f"bn{i + 1}", f"stem_conv_{i}", f"stem_norm_{i}")
    before = variant.width
    for index, (stage, block, _) in enumerate(_blocks(variant)):
        theirs, ours = f"layer{stage}.{block}", f"block_{index}"
        for i in (1, 2, 3):
            convolution(
                *(f"{theirs}.{part}{i}" for part in ("conv", "bn")),
                *(f"{ours}/{part}{i}" for part in ("conv", "norm")),
            )
        if before != _channels(variant, stage):
            convolution(
                *(f"{theirs}.downsample.{part}" for part in (0, 1)),
                *(f"{ours}/shortcut_{part}" for part in ("conv", "norm")),
            )
        before = _channels(variant, stage)
    pool = "visual.attnpool"
    rows.append(Row(f"{pool}.positional_embedding", "params/pool/positions", same))
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("c", "out")):
        rows += towers.linear_rows(f"{pool}.{theirs}_proj", f"params/pool/{ours}")
    ignore = (*clip_files.OPENAI_TEXT_KEYS, r"visual\..*\.num_batches_tracked")
    return (Table("openai", tuple(rows), ignore),)
