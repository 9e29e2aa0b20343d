"""F2: SigLIP 2 (arXiv 2502.14786): image and text towers, MAP head, sigmoid scores.

Pre-norm blocks (`towers.py`), tanh GELU, norms of epsilon 1e-6. Patches are cut without
padding, with a bias; there is no class token. With x the tokens after the final norm
(`last`, as in the reference), the head pools them with one learned query, `probe`:

    y = out(attention(query(probe), key(x), value(x)))
    embed = unit(y + mlp(norm(y)))                                          [b d]

The dense path, `joint`, is this project's choice, for nothing is published: the head is
applied to every cell alone. A softmax over one token is 1, so that

    y = out(value(x));    joint = unit(y + mlp(norm(y)))                [b p q d]

Text: no causal mask and no padding mask, the last position (mostly padding: that is how
it was trained, always 64 ids), a projection with bias. Score: s * image . text + bias.

Published files of a fixed resolution have model_type "siglip" and load as the first
SigLIP (2303.15343); "siglip2" are the NaFlex ones. They differ in the resizing of
positions only: fixed ones follow Hugging Face's `interpolate_pos_encoding=True`
(bicubic, a = -0.75, half-pixel centres, no antialias), NaFlex ones the reference's rule
for every image (bilinear, half-pixel centres, antialias when shrinking), and the layout
of the patch kernel. A batch here has one size, so NaFlex's padding never occurs.
The first SigLIP's own files fit too, but its sentencepiece vocabulary is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffup_jax.backbones import siglip_files, towers
from diffup_jax.backbones.recipe import HALF, Recipe, TextRecipe, check_size
from diffup_jax.backbones.towers import Tower, cells, unit
from diffup_jax.backbones.transformer import ACTIVATIONS, resize_positions
from diffup_jax.backbones.transformer_files import square
from diffup_jax.types import DiffUpError, Features, Level

_TEXT_LENGTH = 64
_VOCABULARY = 256_000


class Variant(NamedTuple):
    """One SigLIP: patches of `patch` pixels, trained on `grid` x `grid` of them.

    `joint` is the channels of the joint space, always the image tower's width; `naflex`
    says which rule resizes the positions.
    """

    vision: Tower
    patch: int
    grid: int
    naflex: bool
    text: Tower
    vocabulary: int
    context: int
    packaged: str
    hub: str
    licence: str
    debias: int


def _variant(tower: Tower, patch: int, pixels: int, hub: str) -> Variant:
    """A published one. Both towers have the same sizes, but for the giant."""
    return Variant(
        vision=tower,
        patch=patch,
        grid=pixels // patch,
        naflex=hub.endswith("naflex"),
        text=_SO400M if tower is _GIANT else tower,
        vocabulary=_VOCABULARY,
        context=_TEXT_LENGTH,
        packaged="",
        hub=f"google/siglip2-{hub}",
        licence="Apache-2.0",
        debias=0,  # its effect on learned positions has not been measured
    )


def _sizes(width: int, depth: int, heads: int, hidden: int) -> Tower:
    return Tower(width, depth, heads, hidden, "gelu_pytorch_tanh", 1e-6)


_BASE = _sizes(768, 12, 12, 3072)
_LARGE = _sizes(1024, 24, 16, 4096)
_SO400M = _sizes(1152, 27, 16, 4304)
_GIANT = _sizes(1536, 40, 16, 6144)

VARIANTS: dict[str, Variant] = {
    "siglip2_b32_256": _variant(_BASE, 32, 256, "base-patch32-256"),
    "siglip2_b16_224": _variant(_BASE, 16, 224, "base-patch16-224"),
    "siglip2_b16_256": _variant(_BASE, 16, 256, "base-patch16-256"),
    "siglip2_b16_384": _variant(_BASE, 16, 384, "base-patch16-384"),
    "siglip2_b16_512": _variant(_BASE, 16, 512, "base-patch16-512"),
    "siglip2_b16_naflex": _variant(_BASE, 16, 256, "base-patch16-naflex"),
    "siglip2_l16_256": _variant(_LARGE, 16, 256, "large-patch16-256"),
    "siglip2_l16_384": _variant(_LARGE, 16, 384, "large-patch16-384"),
    "siglip2_l16_512": _variant(_LARGE, 16, 512, "large-patch16-512"),
    "siglip2_so400m14_224": _variant(_SO400M, 14, 224, "so400m-patch14-224"),
    "siglip2_so400m14_384": _variant(_SO400M, 14, 384, "so400m-patch14-384"),
    "siglip2_so400m16_256": _variant(_SO400M, 16, 256, "so400m-patch16-256"),
    "siglip2_so400m16_384": _variant(_SO400M, 16, 384, "so400m-patch16-384"),
    "siglip2_so400m16_512": _variant(_SO400M, 16, 512, "so400m-patch16-512"),
    "siglip2_so400m16_naflex": _variant(_SO400M, 16, 256, "so400m-patch16-naflex"),
    "siglip2_g16_256": _variant(_GIANT, 16, 256, "giant-opt-patch16-256"),
    "siglip2_g16_384": _variant(_GIANT, 16, 384, "giant-opt-patch16-384"),
}

# Trained parameters of both towers.
PARAMETERS: dict[str, int] = {
    "siglip2_b32_256": 376_856_066,
    "siglip2_b16_224": 375_187_970,
    "siglip2_b16_256": 375_234_050,
    "siglip2_b16_384": 375_479_810,
    "siglip2_b16_512": 375_823_874,
    "siglip2_b16_naflex": 375_234_050,
    "siglip2_l16_256": 881_526_786,
    "siglip2_l16_384": 881_854_466,
    "siglip2_l16_512": 882_313_218,
    "siglip2_so400m14_224": 1_135_463_602,
    "siglip2_so400m14_384": 1_136_008_498,
    "siglip2_so400m16_256": 1_135_670_962,
    "siglip2_so400m16_384": 1_136_039_602,
    "siglip2_so400m16_512": 1_136_555_698,
    "siglip2_so400m16_naflex": 1_135_670_962,
    "siglip2_g16_256": 1_871_393_906,
    "siglip2_g16_384": 1_871_885_426,
}


def recipe(name: str, *, dtype: Any) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype: Any) -> Recipe:
    """The recipe of any variant; `dtype` is what both towers compute in."""
    return Recipe(
        module=VisionTower(variant, dtype=dtype),
        levels=tuple(
            Level(f"block{j}", variant.patch, variant.vision.width)
            for j in range(variant.vision.depth)
        ),
        prior_levels=towers.prior_blocks(variant.vision.depth),
        normalise=HALF,
        tables=siglip_files.vision_tables(
            variant.vision.depth, patch=variant.patch, naflex=variant.naflex
        ),
        packaged=variant.packaged,
        hub=variant.hub,
        licence=variant.licence,
        multiple_of=variant.patch,
        text=TextRecipe(
            module=TextTower(variant, dtype=dtype),
            context_length=variant.context,
            tokenizer="gemma",
            tables=siglip_files.text_tables(variant.text.depth),
        ),
        debias=variant.debias,
    )


def from_config(config: Mapping[str, Any]) -> Variant | None:
    """The variant of a Hugging Face config.json; None for another family's.

    What a file leaves out has transformers' defaults. Raises DiffUpError for an
    activation this module has not, and for towers whose answers differ in length.
    """
    naflex = config.get("model_type") == "siglip2"
    if not naflex and config.get("model_type") != "siglip":
        return None
    vision = {**_VISION_DEFAULTS, **(config.get("vision_config") or {})}
    text = {**_TEXT_DEFAULTS, **(config.get("text_config") or {})}
    answer = text.get("projection_size") or text["hidden_size"]
    if answer != vision["hidden_size"] or not vision["vision_use_head"]:
        raise DiffUpError(
            f"config.json has an image tower of {vision['hidden_size']} channels "
            f"(vision_use_head {vision['vision_use_head']}) and texts of {answer}; "
            "expected the same number, and an image tower with its head."
        )
    patch = square(vision, "patch_size")
    return Variant(
        vision=towers.tower_of(vision),
        patch=patch,
        grid=(
            int(vision["num_patches"] ** 0.5)
            if naflex
            else square(vision, "image_size") // patch
        ),
        naflex=naflex,
        text=towers.tower_of(text),
        vocabulary=text["vocab_size"],
        context=text["max_position_embeddings"],
        packaged="",
        hub="",
        licence="",
        debias=0,
    )


# What transformers fills in where a config.json is silent.
_TEXT_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vocab_size": 32_000,
    "max_position_embeddings": _TEXT_LENGTH,
}
_VISION_DEFAULTS = {
    **_TEXT_DEFAULTS,
    "patch_size": 16,
    "image_size": 224,
    "num_patches": 256,
    "vision_use_head": True,
}


class VisionTower(nn.Module):
    """Normalised images [b h w 3] to `Features`; h and w multiples of the patch.

    Levels are the block outputs without a final norm, `last` the last one with it.
    `joint` is described in the module docstring.
    """

    variant: Variant
    dtype: Any = jnp.float32

    def setup(self):
        variant, width = self.variant, self.variant.vision.width
        self.patch = nn.Conv(
            width,
            (variant.patch, variant.patch),
            strides=variant.patch,
            padding="VALID",
            dtype=self.dtype,
        )
        self.positions = self.param(
            "positions", nn.initializers.normal(width**-0.5), (variant.grid**2, width)
        )
        self.block = towers.blocks(variant.vision, self.dtype)
        self.post_norm = towers.layer_norm(variant.vision, self.dtype)
        self.head = _Head(variant.vision, self.dtype)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Features:
        x, grid = self._tokens(images)
        levels = {}
        for j, block in enumerate(self.block):
            x = block(x, causal=False)
            levels[f"block{j}"] = cells(x, grid)
        x = self.post_norm(x)
        if self.is_initializing():
            self.head(x)  # its queries and keys have no part in the dense path
        joint = unit(self.head.dense(x))
        return Features(levels, last=cells(x, grid), joint=cells(joint, grid))

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """The image's unit vector in the joint space (the reference's image_embeds)."""
        x, _ = self._tokens(images)
        for block in self.block:
            x = block(x, causal=False)
        return unit(self.head(self.post_norm(x)))

    def _tokens(self, images):
        variant, width = self.variant, self.variant.vision.width
        check_size(images.shape, multiple=variant.patch, what="SigLIP")
        x = self.patch(images)
        b, p, q, _ = x.shape
        table = self.positions.reshape(variant.grid, variant.grid, width)
        if variant.naflex:
            # Without antialias this method is the same when the table grows.
            table = jax.image.resize(table, (p, q, width), "linear", antialias=True)
        else:
            table = resize_positions(table, (p, q), antialias=False)
        x = x.reshape(b, p * q, width)
        return x + table.reshape(1, p * q, width).astype(x.dtype), (p, q)


class TextTower(nn.Module):
    """Token ids [n t] to unit vectors [n d] float32; t must be the context length, for
    the answer is read at the last position. Raises DiffUpError otherwise."""

    variant: Variant
    dtype: Any = jnp.float32

    def setup(self):
        variant, width = self.variant, self.variant.text.width
        self.tokens = nn.Embed(variant.vocabulary, width, dtype=self.dtype)
        self.positions = self.param(
            "positions", nn.initializers.normal(0.01), (variant.context, width)
        )
        self.block = towers.blocks(variant.text, self.dtype)
        self.final_norm = towers.layer_norm(variant.text, self.dtype)
        self.projection = nn.Dense(variant.vision.width, dtype=self.dtype)
        self.log_scale = self.param(
            "log_scale", nn.initializers.constant(np.log(10.0)), ()
        )
        self.bias = self.param("bias", nn.initializers.constant(-10.0), ())

    def __call__(self, ids: Int[Array, "n t"]) -> Float[Array, "n d"]:
        return unit(self.projection(self.hidden(ids)[:, -1]))

    def hidden(self, ids: Int[Array, "n t"]) -> Float[Array, "n t c"]:
        """The reference's last_hidden_state: all tokens after the final norm."""
        if ids.shape[1] != self.variant.context:
            raise DiffUpError(
                f"SigLIP's text tower was given {ids.shape[1]} ids; it reads the last "
                f"of exactly {self.variant.context}. Pad them to that length."
            )
        x = self.tokens(ids)
        x = x + self.positions[None].astype(x.dtype)
        for block in self.block:
            x = block(x, causal=False)
        return self.final_norm(x)

    def scale(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(s, c): s * image . text + c is the reference's logit."""
        return jnp.exp(self.log_scale), self.bias


class _Head(nn.Module):
    """Attention pooling of [b t c] by one learned query, and a residual MLP."""

    tower: Tower
    dtype: Any

    def setup(self):
        width = self.tower.width
        self.probe = self.param(
            "probe", nn.initializers.normal(width**-0.5), (1, 1, width)
        )
        self.query = nn.Dense(width, dtype=self.dtype)
        self.key = nn.Dense(width, dtype=self.dtype)
        self.value = nn.Dense(width, dtype=self.dtype)
        self.out = nn.Dense(width, dtype=self.dtype)
        self.norm = towers.layer_norm(self.tower, self.dtype)
        self.fc1 = nn.Dense(self.tower.hidden, dtype=self.dtype)
        self.fc2 = nn.Dense(width, dtype=self.dtype)

    def __call__(self, x):
        probe = jnp.repeat(self.probe.astype(x.dtype), len(x), axis=0)
        y = towers.attend(
            self.query(probe),
            self.key(x),
            self.value(x),
            heads=self.tower.heads,
            causal=False,
        )
        return self._mlp(self.out(y))[:, 0]

    def dense(self, x):
        """Every token pooled alone."""
        return self._mlp(self.out(self.value(x)))

    def _mlp(self, y):
        activation = ACTIVATIONS[self.tower.activation]
        return y + self.fc2(activation(self.fc1(self.norm(y))))
