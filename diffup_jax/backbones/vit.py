"""F2: ViT, DINO and MAE: one architecture, three ways to have trained it.

Supervised (arXiv 2010.11929), self-distilled (DINO, arXiv 2104.14294) and
reconstructing (MAE, arXiv 2111.06377). The network is `transformer.Transformer` with a
cls token, a table of positions (learned; MAE's is a fixed sine-cosine one, stored in
its files all the same), exact GELU, norm epsilon 1e-12, patches without padding.

The reference is Hugging Face's ViTModel and ViTMAEModel (nothing masked), with
`interpolate_pos_encoding=True`: bicubic, no antialias. The authors' own code has
epsilon 1e-6 for the same weights; `transformer` tells how its positions differ.

A config.json of model_type "vit" does not say how images were normalised, the
preprocessor_config.json beside it does: `from_config` answers with -1..1, as Google's
have it, and DINO's need `variant._replace(normalise=IMAGENET)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffup_jax.backbones import transformer
from diffup_jax.backbones.recipe import HALF, IMAGENET, Recipe
from diffup_jax.backbones.transformer import ALL_BIASES, Variant
from diffup_jax.backbones.transformer_files import Part, checked, square, table
from diffup_jax.weights import Table

_S16 = Variant(
    patch=16,
    width=384,
    depth=12,
    heads=6,
    hidden=1536,
    gated=False,
    activation="gelu",
    epsilon=1e-12,
    layer_scale=False,
    registers=0,
    positions=14,
    antialias=False,
    rotary=0.0,
    biases=ALL_BIASES,
    normalise=HALF,
    debias=0,
    # Google has no ViT-S at the hub; these are its "augreg" weights, converted.
    hub="WinKawaks/vit-small-patch16-224",
    licence="Apache-2.0",
)
_B16 = _S16._replace(
    width=768, heads=12, hidden=3072, hub="google/vit-base-patch16-224"
)
_L16 = _S16._replace(
    width=1024, depth=24, heads=16, hidden=4096, hub="google/vit-large-patch16-224"
)
_DINO_S16 = _S16._replace(normalise=IMAGENET, hub="facebook/dino-vits16")
_DINO_B16 = _B16._replace(normalise=IMAGENET, hub="facebook/dino-vitb16")
# The hub's cards say Apache-2.0, the authors' repository CC BY-NC 4.0: the stricter.
_MAE = {"normalise": IMAGENET, "licence": "CC-BY-NC-4.0"}

VARIANTS: dict[str, Variant] = {
    "vit_s16": _S16,
    "vit_b16": _B16,
    "vit_l16": _L16,
    "dino_s16": _DINO_S16,
    "dino_s8": _DINO_S16._replace(patch=8, positions=28, hub="facebook/dino-vits8"),
    "dino_b16": _DINO_B16,
    "dino_b8": _DINO_B16._replace(patch=8, positions=28, hub="facebook/dino-vitb8"),
    "mae_b16": _B16._replace(**_MAE, hub="facebook/vit-mae-base"),
    "mae_l16": _L16._replace(**_MAE, hub="facebook/vit-mae-large"),
}

# Trained parameters.
PARAMETERS: dict[str, int] = {
    "vit_s16": 21_665_664,
    "vit_b16": 85_798_656,
    "vit_l16": 303_301_632,
    "dino_s16": 21_665_664,
    "dino_s8": 21_670_272,
    "dino_b16": 85_798_656,
    "dino_b8": 85_807_872,
    "mae_b16": 85_798_656,
    "mae_l16": 303_301_632,
}

# What a config.json may leave out: the defaults of both config classes.
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}


def recipe(name: str, *, dtype: Any) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype: Any) -> Recipe:
    """The same for a variant of any size."""
    return transformer.recipe_of(variant, dtype=dtype, tables=tables(variant))


def from_config(config: Mapping[str, Any]) -> Variant | None:
    """The variant of a Hugging Face config of model_type "vit" or "vit_mae", or None.

    Raises DiffUpError for a size that the network has no form for.
    """
    kind = config.get("model_type")
    if kind not in ("vit", "vit_mae"):
        return None
    config = {**_DEFAULTS, **config}
    patch = square(config, "patch_size")
    variant = _S16._replace(
        patch=patch,
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        activation=config["hidden_act"],
        epsilon=config["layer_norm_eps"],
        positions=square(config, "image_size") // patch,
        biases=ALL_BIASES if config["qkv_bias"] else ("out", "mlp"),
        normalise=IMAGENET if kind == "vit_mae" else HALF,
        hub="",
        licence="",
    )
    return checked(variant, config)


# --- Conversion tables ----------------------------------------------------------------

_EMBEDDINGS = {
    "embed/patch": "embeddings.patch_embeddings.projection",
    "embed/cls": "embeddings.cls_token",
    "embed/positions": "embeddings.position_embeddings",
    "norm": "layernorm",
}
_HUGGING_FACE = {
    **_EMBEDDINGS,
    "block{j}/norm1": "encoder.layer.{j}.layernorm_before",
    "block{j}/attention/query": "encoder.layer.{j}.attention.attention.query",
    "block{j}/attention/key": "encoder.layer.{j}.attention.attention.key",
    "block{j}/attention/value": "encoder.layer.{j}.attention.attention.value",
    "block{j}/attention/out": "encoder.layer.{j}.attention.output.dense",
    "block{j}/norm2": "encoder.layer.{j}.layernorm_after",
    "block{j}/mlp/up": "encoder.layer.{j}.intermediate.dense",
    "block{j}/mlp/down": "encoder.layer.{j}.output.dense",
}
# What `state_dict()` of transformers 5 calls them, for those who save that.
_IN_MEMORY = {
    **_EMBEDDINGS,
    "block{j}/norm1": "layers.{j}.layernorm_before",
    "block{j}/attention/query": "layers.{j}.attention.q_proj",
    "block{j}/attention/key": "layers.{j}.attention.k_proj",
    "block{j}/attention/value": "layers.{j}.attention.v_proj",
    "block{j}/attention/out": "layers.{j}.attention.o_proj",
    "block{j}/norm2": "layers.{j}.layernorm_after",
    "block{j}/mlp/up": "layers.{j}.mlp.fc1",
    "block{j}/mlp/down": "layers.{j}.mlp.fc2",
}
# The authors' files of DINO and MAE, and timm's of all three.
_ORIGINAL = {
    "embed/patch": "patch_embed.proj",
    "embed/cls": "cls_token",
    "embed/positions": "pos_embed",
    "block{j}/norm1": "blocks.{j}.norm1",
    "block{j}/attention/query": Part("blocks.{j}.attn.qkv", 0, 3),
    "block{j}/attention/key": Part("blocks.{j}.attn.qkv", 1, 3),
    "block{j}/attention/value": Part("blocks.{j}.attn.qkv", 2, 3),
    "block{j}/attention/out": "blocks.{j}.attn.proj",
    "block{j}/norm2": "blocks.{j}.norm2",
    "block{j}/mlp/up": "blocks.{j}.mlp.fc1",
    "block{j}/mlp/down": "blocks.{j}.mlp.fc2",
    "norm": "norm",
}


def tables(variant: Variant) -> tuple[Table, ...]:
    """`hugging face`: saved ViTModel or ViTMAEModel; `..., with head`: the classes with
    a classifier or MAE's decoder around it; `original`: the authors' files and timm's.
    """
    heads = (r"pooler\..*", r"classifier\..*", r"decoder\..*", r".*mask_token")
    found = [
        table(variant, names, layout=layout + head, prefix=prefix, ignore=heads)
        for layout, names in (
            ("hugging face", _HUGGING_FACE),
            ("hugging face, in memory", _IN_MEMORY),
        )
        for head, prefix in (("", ""), (", with head", "vit."))
    ]
    heads = (r"head\..*", r"decoder_.*", r"mask_token")
    return (
        *found,
        table(variant, _ORIGINAL, layout="original", prefix="", ignore=heads),
    )
