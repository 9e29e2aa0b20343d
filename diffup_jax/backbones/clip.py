"""F2: CLIP's vision transformers and text tower (arXiv 2103.00020).

Both towers are stacks of pre-norm blocks (`towers.py`) with layer norms of epsilon 1e-5
and, in OpenAI's weights, the "quick" GELU x * sigmoid(1.702 x) (some of LAION's have
the exact one; a config.json says which). Patches are cut without padding and without a
bias; a class token comes first; there is a norm before the first block (the files spell
it `pre_layrnorm`).

The joint space. With x the tokens that enter the last block,

    embed  = unit(projection(post_norm(last block's class token)))          [b d]
    joint  = unit(projection(post_norm(out(value(norm1(x))))))          [b p q d]

`joint` is the dense path of MaskCLIP (arXiv 2112.01071): queries and keys of the last
attention are dropped, so that every cell keeps its own value. The residual and the MLP
of that block are dropped too, as in the paper's text and in ClearCLIP (2407.12442);
MaskCLIP's published code keeps them. Cells are unit vectors.

Another input size than the trained one: positions are resized as Hugging Face's
`interpolate_pos_encoding=True` does it: bicubic (a = -0.75), half-pixel centres, no
antialias, to the exact target size (no scale factor, hence no rounding trap); the class
token's stays. OpenAI's own code takes the trained size only.

Text: causal attention, final norm, the token at the end-of-text mark, a projection
without bias. The mark is the first one (transformers' rule); files from before its
change have `eos_token_id` 2, for which the largest id is taken, as OpenAI's code does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffup_jax.backbones import clip_files, towers
from diffup_jax.backbones.recipe import Normalise, Recipe, TextRecipe, check_size
from diffup_jax.backbones.towers import Tower, cells, unit
from diffup_jax.backbones.transformer import resize_positions
from diffup_jax.backbones.transformer_files import square
from diffup_jax.types import Features, Level

# CLIP's own channel statistics, used by every CLIP published since.
NORMALISE = Normalise(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), bgr=False
)


# Context length of CLIP's text towers (arXiv 2103.00020).
_TEXT_LENGTH = 77


class Text(NamedTuple):
    """Sizes of a text tower with answers of `joint` channels.

    `eos` is the id of the end-of-text mark, or None for "the largest id".
    """

    tower: Tower
    vocabulary: int
    context: int
    joint: int
    eos: int | None
    tokenizer: str


class Variant(NamedTuple):
    """One CLIP: patches of `patch` pixels, trained on `grid` x `grid` of them."""

    vision: Tower
    patch: int
    grid: int
    text: Text
    packaged: str
    hub: str
    licence: str
    debias: int


TEXT_512 = Text(
    Tower(512, 12, 8, 2048, "quick_gelu", 1e-5), 49408, _TEXT_LENGTH, 512, 49407, "clip"
)
_TEXT_768 = TEXT_512._replace(
    tower=Tower(768, 12, 12, 3072, "quick_gelu", 1e-5), joint=768
)
# OpenAI's weights: its own Hugging Face folders lack safetensors for some sizes; timm's
# have them for all, both towers in this one file, in OpenAI's layout.
HUB = "timm/{}.openai:open_clip_model.safetensors"
_B32 = Variant(
    vision=Tower(768, 12, 12, 3072, "quick_gelu", 1e-5),
    patch=32,
    grid=7,
    text=TEXT_512,
    packaged="",
    hub=HUB.format("vit_base_patch32_clip_224"),
    licence="MIT",
    debias=0,  # its effect on learned positions has not been measured
)
_L14 = _B32._replace(
    vision=Tower(1024, 24, 16, 4096, "quick_gelu", 1e-5),
    patch=14,
    grid=16,
    text=_TEXT_768,
    hub=HUB.format("vit_large_patch14_clip_224"),
)
# This project's own (`demo.pretrain_tiny_clip`), for drawn scenes. A word list in
# place of byte pairs, its marks being the first four tokens.
_TINY_S = Variant(
    vision=Tower(64, 2, 2, 256, "gelu_pytorch_tanh", 1e-5),
    patch=8,
    grid=24,
    text=Text(
        Tower(64, 2, 2, 128, "gelu_pytorch_tanh", 1e-5),
        vocabulary=83,
        context=_TEXT_LENGTH,
        joint=64,
        eos=3,
        tokenizer="tiny_clip.json",
    ),
    packaged="tiny_clip_s.safetensors",
    hub="",
    licence="MIT",
    debias=0,
)
VARIANTS: dict[str, Variant] = {
    "clip_b32": _B32,
    "clip_b16": _B32._replace(
        patch=16, grid=14, hub=HUB.format("vit_base_patch16_clip_224")
    ),
    "clip_l14": _L14,
    "clip_l14_336": _L14._replace(
        grid=24, hub=HUB.format("vit_large_patch14_clip_336")
    ),
    "tiny_clip_s": _TINY_S,
    "tiny_clip_m": _TINY_S._replace(
        vision=Tower(128, 5, 4, 512, "gelu_pytorch_tanh", 1e-5),
        text=_TINY_S.text._replace(joint=96),
        packaged="tiny_clip_m.safetensors",
    ),
}

# Trained parameters of both towers.
PARAMETERS: dict[str, int] = {
    "clip_b32": 151_277_313,
    "clip_b16": 149_620_737,
    "clip_l14": 427_616_513,
    "clip_l14_336": 427_944_193,
    "tiny_clip_s": 235_009,
    "tiny_clip_m": 1_186_177,
}


def recipe(name: str, *, dtype: Any) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype: Any) -> Recipe:
    """The recipe of any variant; `dtype` is what both towers compute in."""
    text = variant.text
    return Recipe(
        module=VisionTower(variant, dtype=dtype),
        levels=tuple(
            Level(f"block{j}", variant.patch, variant.vision.width)
            for j in range(variant.vision.depth)
        ),
        prior_levels=towers.prior_blocks(variant.vision.depth),
        normalise=NORMALISE,
        tables=clip_files.vision_tables(variant.vision.depth),
        packaged=variant.packaged,
        hub=variant.hub,
        licence=variant.licence,
        multiple_of=variant.patch,
        text=TextRecipe(
            module=TextTower(text, dtype=dtype),
            context_length=text.context,
            tokenizer=text.tokenizer,
            tables=clip_files.text_tables(text.tower.depth),
        ),
        debias=variant.debias,
    )


def from_config(config: Mapping[str, Any]) -> Variant | None:
    """The variant of a Hugging Face config.json; None for another family's.

    What an old file leaves out has transformers' defaults; `text_config_dict` and
    `vision_config_dict` of old files win, as there. Raises DiffUpError for an
    activation or an input that this module has not.
    """
    if config.get("model_type") != "clip":
        return None
    vision, text = (
        {
            **defaults,
            **(config.get(f"{part}_config") or {}),
            **(config.get(f"{part}_config_dict") or {}),
        }
        for part, defaults in (("vision", _VISION_DEFAULTS), ("text", _TEXT_DEFAULTS))
    )
    patch = square(vision, "patch_size")
    return Variant(
        vision=towers.tower_of(vision),
        patch=patch,
        grid=square(vision, "image_size") // patch,
        text=Text(
            tower=towers.tower_of(text),
            vocabulary=text["vocab_size"],
            context=text["max_position_embeddings"],
            joint=config.get("projection_dim", 512),
            eos=None if text["eos_token_id"] == 2 else text["eos_token_id"],
            tokenizer="clip",
        ),
        packaged="",
        hub="",
        licence="",
        debias=0,
    )


# What transformers fills in where a config.json is silent.
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "patch_size": 32,
    "image_size": 224,
}
_TEXT_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 49408,
    "max_position_embeddings": _TEXT_LENGTH,
    "eos_token_id": 49407,
}


class VisionTower(nn.Module):
    """Normalised images [b h w 3] to `Features`; h and w multiples of the patch.

    Levels are the block outputs without a final norm; `last` equals the last of them,
    for CLIP norms no patch token. `joint` is described in the module docstring.
    """

    variant: Variant
    dtype: Any = jnp.float32

    def setup(self):
        variant, width = self.variant, self.variant.vision.width
        normal = nn.initializers.normal(width**-0.5)
        self.patch = nn.Conv(
            width,
            (variant.patch, variant.patch),
            strides=variant.patch,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
        )
        self.class_token = self.param("class_token", normal, (width,))
        self.positions = self.param("positions", normal, (1 + variant.grid**2, width))
        self.pre_norm = towers.layer_norm(variant.vision, self.dtype)
        self.block = towers.blocks(variant.vision, self.dtype)
        self.post_norm = towers.layer_norm(variant.vision, self.dtype)
        self.projection = nn.Dense(variant.text.joint, use_bias=False, dtype=self.dtype)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Features:
        x, grid = self._tokens(images)
        levels = {}
        for j, block in enumerate(self.block):
            before, x = x, block(x, causal=False)
            levels[f"block{j}"] = cells(x[:, 1:], grid)
        joint = self._project(block.value_path(before[:, 1:]))
        return Features(levels, last=levels[f"block{j}"], joint=cells(joint, grid))

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """The image's unit vector in the joint space (the reference's image_embeds)."""
        x, _ = self._tokens(images)
        for block in self.block:
            x = block(x, causal=False)
        return self._project(x[:, 0])

    def _tokens(self, images):
        variant, width = self.variant, self.variant.vision.width
        check_size(images.shape, multiple=variant.patch, what="CLIP")
        x = self.patch(images)
        b, p, q, _ = x.shape
        table = self.positions[1:].reshape(variant.grid, variant.grid, width)
        table = resize_positions(table, (p, q), antialias=False).reshape(
            1, p * q, width
        )
        first = jnp.broadcast_to(self.class_token + self.positions[0], (b, 1, width))
        x = x.reshape(b, p * q, width) + table.astype(x.dtype)
        x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        return self.pre_norm(x), (p, q)

    def _project(self, x):
        return unit(self.projection(self.post_norm(x)))


class TextTower(nn.Module):
    """Token ids [n t], t up to the context length, to unit vectors [n d] float32."""

    text: Text
    dtype: Any = jnp.float32

    def setup(self):
        text, width = self.text, self.text.tower.width
        self.tokens = nn.Embed(text.vocabulary, width, dtype=self.dtype)
        self.positions = self.param(
            "positions", nn.initializers.normal(0.01), (text.context, width)
        )
        self.block = towers.blocks(text.tower, self.dtype)
        self.final_norm = towers.layer_norm(text.tower, self.dtype)
        self.projection = nn.Dense(text.joint, use_bias=False, dtype=self.dtype)
        self.log_scale = self.param(
            "log_scale", nn.initializers.constant(np.log(1 / 0.07)), ()
        )

    def __call__(self, ids: Int[Array, "n t"]) -> Float[Array, "n d"]:
        eos = self.text.eos
        marks = ids if eos is None else (ids == eos).astype(jnp.int32)
        x = self.hidden(ids)[jnp.arange(ids.shape[0]), jnp.argmax(marks, axis=-1)]
        return unit(self.projection(x))

    def hidden(self, ids: Int[Array, "n t"]) -> Float[Array, "n t c"]:
        """The reference's last_hidden_state: all tokens after the final norm."""
        x = self.tokens(ids)
        x = x + self.positions[None, : ids.shape[1]].astype(x.dtype)
        for block in self.block:
            x = block(x, causal=True)
        return self.final_norm(x)

    def scale(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(s, 0): s * image . text is the reference's logit."""
        return jnp.exp(self.log_scale), jnp.zeros(())
