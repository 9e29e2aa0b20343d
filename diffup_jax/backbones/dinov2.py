"""F2: DINOv2 (arXiv 2304.07193), without and with registers (arXiv 2309.16588).

`transformer.Transformer` with layer scale, a learned table of positions at 37 x 37, in
g a gated mlp (SwiGLU), elsewhere one with exact GELU. Norm epsilon 1e-6, patches of 14
without padding. Registers stand between cls and patches and have no position.

The reference is Hugging Face's Dinov2Model and Dinov2WithRegistersModel. Positions are
resized bicubic, without antialias in the models without registers, with it in those
that have them. `transformer` tells how the authors' code differs from both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffup_jax.backbones import transformer
from diffup_jax.backbones.recipe import IMAGENET, Recipe
from diffup_jax.backbones.transformer import ALL_BIASES, Variant
from diffup_jax.backbones.transformer_files import Part, checked, square, table
from diffup_jax.weights import Table


def swiglu_hidden(width: int, ratio: int | float) -> int:
    """Channels inside the gated mlp: two thirds of a plain one's, so that both have as
    many parameters, rounded up to a multiple of 8."""
    return (int(int(width * ratio) * 2 / 3) + 7) // 8 * 8


_S14 = Variant(
    patch=14,
    width=384,
    depth=12,
    heads=6,
    hidden=1536,
    gated=False,
    activation="gelu",
    epsilon=1e-6,
    layer_scale=True,
    registers=0,
    positions=37,
    antialias=False,
    rotary=0.0,
    biases=ALL_BIASES,
    normalise=IMAGENET,
    debias=0,
    hub="facebook/dinov2-small",
    licence="Apache-2.0",
)
_PLAIN = {
    "dinov2_s14": _S14,
    "dinov2_b14": _S14._replace(
        width=768, heads=12, hidden=3072, hub="facebook/dinov2-base"
    ),
    "dinov2_l14": _S14._replace(
        width=1024, depth=24, heads=16, hidden=4096, hub="facebook/dinov2-large"
    ),
    "dinov2_g14": _S14._replace(
        width=1536,
        depth=40,
        heads=24,
        hidden=swiglu_hidden(1536, 4),
        gated=True,
        activation="silu",
        hub="facebook/dinov2-giant",
    ),
}

VARIANTS: dict[str, Variant] = _PLAIN | {
    f"{name}_reg": plain._replace(
        registers=4,
        antialias=True,
        hub=plain.hub.replace("dinov2-", "dinov2-with-registers-"),
    )
    for name, plain in _PLAIN.items()
}

# Trained parameters.
PARAMETERS: dict[str, int] = {
    "dinov2_s14": 22_056_192,
    "dinov2_b14": 86_579_712,
    "dinov2_l14": 304_367_616,
    "dinov2_g14": 1_136_479_232,
    "dinov2_s14_reg": 22_057_728,
    "dinov2_b14_reg": 86_582_784,
    "dinov2_l14_reg": 304_371_712,
    "dinov2_g14_reg": 1_136_485_376,
}

# What a config.json may leave out: the defaults of the two config classes.
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
_MORE_DEFAULTS = {
    "dinov2": {"patch_size": 14, "num_register_tokens": 0},
    "dinov2_with_registers": {"patch_size": 16, "num_register_tokens": 4},
}


def recipe(name: str, *, dtype: Any) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype: Any) -> Recipe:
    """The same for a variant of any size."""
    return transformer.recipe_of(variant, dtype=dtype, tables=tables(variant))


def from_config(config: Mapping[str, Any]) -> Variant | None:
    """The variant of a Hugging Face config of model_type "dinov2" or
    "dinov2_with_registers", or None.

    Raises DiffUpError for a size that the network has no form for.
    """
    kind = config.get("model_type")
    if kind not in _MORE_DEFAULTS:
        return None
    config = {**_DEFAULTS, **_MORE_DEFAULTS[kind], **config}
    patch, gated = square(config, "patch_size"), config["use_swiglu_ffn"]
    width, ratio = config["hidden_size"], config["mlp_ratio"]
    variant = _S14._replace(
        patch=patch,
        width=width,
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=swiglu_hidden(width, ratio) if gated else int(width * ratio),
        gated=gated,
        # The gated mlp is SwiGLU whatever hidden_act says.
        activation="silu" if gated else config["hidden_act"],
        epsilon=config["layer_norm_eps"],
        registers=config["num_register_tokens"],
        positions=square(config, "image_size") // patch,
        antialias=kind == "dinov2_with_registers",
        biases=ALL_BIASES if config["qkv_bias"] else ("out", "mlp"),
        hub="",
        licence="",
    )
    return checked(variant, config)


# --- Conversion tables ----------------------------------------------------------------

_SHARED = {
    "embed/patch": "embeddings.patch_embeddings.projection",
    "embed/cls": "embeddings.cls_token",
    "embed/registers": "embeddings.register_tokens",
    "embed/positions": "embeddings.position_embeddings",
    "block{j}/norm1": "encoder.layer.{j}.norm1",
    "block{j}/scale1": "encoder.layer.{j}.layer_scale1.lambda1",
    "block{j}/norm2": "encoder.layer.{j}.norm2",
    "block{j}/scale2": "encoder.layer.{j}.layer_scale2.lambda1",
    "norm": "layernorm",
}
_ATTENTION = {
    "block{j}/attention/query": "encoder.layer.{j}.attention.attention.query",
    "block{j}/attention/key": "encoder.layer.{j}.attention.attention.key",
    "block{j}/attention/value": "encoder.layer.{j}.attention.attention.value",
    "block{j}/attention/out": "encoder.layer.{j}.attention.output.dense",
}
# What `state_dict()` of transformers 5 calls them, for those who save that.
_ATTENTION_IN_MEMORY = {
    "block{j}/attention/query": "encoder.layer.{j}.attention.q_proj",
    "block{j}/attention/key": "encoder.layer.{j}.attention.k_proj",
    "block{j}/attention/value": "encoder.layer.{j}.attention.v_proj",
    "block{j}/attention/out": "encoder.layer.{j}.attention.o_proj",
}
_MLP = {
    "block{j}/mlp/up": "encoder.layer.{j}.mlp.fc1",
    "block{j}/mlp/down": "encoder.layer.{j}.mlp.fc2",
}
_GATED = {
    "block{j}/mlp/gate": Part("encoder.layer.{j}.mlp.weights_in", 0, 2),
    "block{j}/mlp/up": Part("encoder.layer.{j}.mlp.weights_in", 1, 2),
    "block{j}/mlp/down": "encoder.layer.{j}.mlp.weights_out",
}
_GATED_IN_MEMORY = {
    "block{j}/mlp/gate": "encoder.layer.{j}.mlp.gate_proj",
    "block{j}/mlp/up": "encoder.layer.{j}.mlp.up_proj",
    "block{j}/mlp/down": "encoder.layer.{j}.mlp.down_proj",
}
_ORIGINAL = {
    "embed/patch": "patch_embed.proj",
    "embed/cls": "cls_token",
    "embed/registers": "register_tokens",
    "embed/positions": "pos_embed",
    "block{j}/norm1": "blocks.{j}.norm1",
    "block{j}/attention/query": Part("blocks.{j}.attn.qkv", 0, 3),
    "block{j}/attention/key": Part("blocks.{j}.attn.qkv", 1, 3),
    "block{j}/attention/value": Part("blocks.{j}.attn.qkv", 2, 3),
    "block{j}/attention/out": "blocks.{j}.attn.proj",
    "block{j}/scale1": "blocks.{j}.ls1.gamma",
    "block{j}/norm2": "blocks.{j}.norm2",
    "block{j}/scale2": "blocks.{j}.ls2.gamma",
    "norm": "norm",
}
_ORIGINAL_MLP = {
    "block{j}/mlp/up": "blocks.{j}.mlp.fc1",
    "block{j}/mlp/down": "blocks.{j}.mlp.fc2",
}
_ORIGINAL_GATED = {
    "block{j}/mlp/gate": Part("blocks.{j}.mlp.w12", 0, 2),
    "block{j}/mlp/up": Part("blocks.{j}.mlp.w12", 1, 2),
    "block{j}/mlp/down": "blocks.{j}.mlp.w3",
}


def tables(variant: Variant) -> tuple[Table, ...]:
    """`hugging face`: a saved Dinov2Model, Dinov2WithRegistersModel or one of their
    backbone classes; `..., with head`: their classifiers; `original`: the files of
    torch.hub.
    """
    gated = variant.gated
    model = "dinov2_with_registers." if variant.registers else "dinov2."
    layouts = (
        ("hugging face", _SHARED | _ATTENTION | (_GATED if gated else _MLP)),
        (
            "hugging face, in memory",
            _SHARED | _ATTENTION_IN_MEMORY | (_GATED_IN_MEMORY if gated else _MLP),
        ),
    )
    unused = (r"(.*\.)?mask_token", r"classifier\..*")
    found = [
        table(variant, names, layout=layout + head, prefix=prefix, ignore=unused)
        for layout, names in layouts
        for head, prefix in (("", ""), (", with head", model))
    ]
    original = _ORIGINAL | (_ORIGINAL_GATED if gated else _ORIGINAL_MLP)
    return (
        *found,
        table(variant, original, layout="original", prefix="", ignore=unused),
    )
