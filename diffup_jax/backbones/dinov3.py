"""F2: DINOv3's vision transformers (arXiv 2508.10104).

`transformer.Transformer` with rotary positions in place of a table (every image spans
-1..1 each way, so no size needs resizing), four registers, layer scale, and keys
without a bias. Exact GELU; S+, H+ and 7B have gated mlps with SiLU. Norm epsilon 1e-5,
patches of 16 without padding.

The reference is Hugging Face's DINOv3ViTModel in eval mode. Its `mask_token` has no use
here. The authors' files keep a bias of the keys together with a mask that makes it
zero; both are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffup_jax.backbones import transformer
from diffup_jax.backbones.recipe import IMAGENET, Normalise, Recipe
from diffup_jax.backbones.transformer import ALL_BIASES, Variant
from diffup_jax.backbones.transformer_files import Part, checked, square, table
from diffup_jax.weights import Table

# Mean and deviation of the satellite images of the "sat493m" weights.
_SATELLITE = Normalise((0.430, 0.411, 0.296), (0.213, 0.156, 0.143), bgr=False)


def debias_components(width: int) -> int:
    """Directions that tell position: 500 of the 1024 of L (INSID3, arXiv 2603.28480),
    for other widths the same share."""
    return round(width * 500 / 1024)


_S16 = Variant(
    patch=16,
    width=384,
    depth=12,
    heads=6,
    hidden=1536,
    gated=False,
    activation="gelu",
    epsilon=1e-5,
    layer_scale=True,
    registers=4,
    positions=0,
    antialias=False,
    rotary=100.0,
    biases=tuple(name for name in ALL_BIASES if name != "key"),
    normalise=IMAGENET,
    debias=debias_components(384),
    hub="facebook/dinov3-vits16-pretrain-lvd1689m",
    licence="DINOv3",
)
_L16 = _S16._replace(
    width=1024,
    depth=24,
    heads=16,
    hidden=4096,
    debias=debias_components(1024),
    hub="facebook/dinov3-vitl16-pretrain-lvd1689m",
)

VARIANTS: dict[str, Variant] = {
    "dinov3_s16": _S16,
    "dinov3_s16plus": _S16._replace(
        gated=True,
        activation="silu",
        hub="facebook/dinov3-vits16plus-pretrain-lvd1689m",
    ),
    "dinov3_b16": _S16._replace(
        width=768,
        heads=12,
        hidden=3072,
        debias=debias_components(768),
        hub="facebook/dinov3-vitb16-pretrain-lvd1689m",
    ),
    "dinov3_l16": _L16,
    "dinov3_l16_sat": _L16._replace(
        normalise=_SATELLITE, hub="facebook/dinov3-vitl16-pretrain-sat493m"
    ),
    "dinov3_h16plus": _S16._replace(
        width=1280,
        depth=32,
        heads=20,
        hidden=5120,
        gated=True,
        activation="silu",
        debias=debias_components(1280),
        hub="facebook/dinov3-vith16plus-pretrain-lvd1689m",
    ),
}

# Trained parameters.
PARAMETERS: dict[str, int] = {
    "dinov3_s16": 21_596_160,
    "dinov3_s16plus": 28_692_480,
    "dinov3_b16": 85_659_648,
    "dinov3_l16": 303_128_576,
    "dinov3_l16_sat": 303_128_576,
    "dinov3_h16plus": 840_591_360,
}

# What a config.json may leave out: the defaults of the config class.
_DEFAULTS = {
    "patch_size": 16,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "num_channels": 3,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "use_gated_mlp": False,
    "num_register_tokens": 0,
}
_BIAS_KEYS = {
    "query": "query_bias",
    "key": "key_bias",
    "value": "value_bias",
    "out": "proj_bias",
    "mlp": "mlp_bias",
}


def recipe(name: str, *, dtype: Any) -> Recipe:
    """Everything `backbones.get` needs for the variant `name` (a key of VARIANTS)."""
    return recipe_of(VARIANTS[name], dtype=dtype)


def recipe_of(variant: Variant, *, dtype: Any) -> Recipe:
    """The same for a variant of any size."""
    return transformer.recipe_of(variant, dtype=dtype, tables=tables(variant))


def from_config(config: Mapping[str, Any]) -> Variant | None:
    """The variant of a Hugging Face config of model_type "dinov3_vit", or None.

    Raises DiffUpError for a size that the network has no form for.
    """
    if config.get("model_type") != "dinov3_vit":
        return None
    config = {**_DEFAULTS, **config}
    width = config["hidden_size"]
    variant = _S16._replace(
        patch=square(config, "patch_size"),
        width=width,
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        gated=config["use_gated_mlp"],
        activation=config["hidden_act"],
        epsilon=config["layer_norm_eps"],
        registers=config["num_register_tokens"],
        rotary=float(config["rope_theta"]),
        biases=tuple(name for name in ALL_BIASES if config[_BIAS_KEYS[name]]),
        debias=debias_components(width),
        hub="",
        licence="",
    )
    return checked(variant, config)


# --- Conversion tables ----------------------------------------------------------------

_EMBEDDINGS = {
    "embed/patch": "embeddings.patch_embeddings",
    "embed/cls": "embeddings.cls_token",
    "embed/registers": "embeddings.register_tokens",
    "norm": "norm",
}
_BLOCKS = {
    "block{j}/norm1": "layer.{j}.norm1",
    "block{j}/attention/query": "layer.{j}.attention.q_proj",
    "block{j}/attention/key": "layer.{j}.attention.k_proj",
    "block{j}/attention/value": "layer.{j}.attention.v_proj",
    "block{j}/attention/out": "layer.{j}.attention.o_proj",
    "block{j}/scale1": "layer.{j}.layer_scale1.lambda1",
    "block{j}/norm2": "layer.{j}.norm2",
    "block{j}/mlp/gate": "layer.{j}.mlp.gate_proj",
    "block{j}/mlp/up": "layer.{j}.mlp.up_proj",
    "block{j}/mlp/down": "layer.{j}.mlp.down_proj",
    "block{j}/scale2": "layer.{j}.layer_scale2.lambda1",
}
# What `state_dict()` of transformers 5 calls them, for those who save that.
_IN_MEMORY = _EMBEDDINGS | {key: f"model.{name}" for key, name in _BLOCKS.items()}
_ORIGINAL = {
    "embed/patch": "patch_embed.proj",
    "embed/cls": "cls_token",
    "embed/registers": "storage_tokens",
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
    "block{j}/mlp/gate": "blocks.{j}.mlp.w1",
    "block{j}/mlp/up": "blocks.{j}.mlp.w2",
    "block{j}/mlp/down": "blocks.{j}.mlp.w3",
}


def tables(variant: Variant) -> tuple[Table, ...]:
    """`hugging face`: a saved DINOv3ViTModel or DINOv3ViTBackbone; `original`: the
    files of the authors' repository."""
    mask = (r"(.*\.)?mask_token",)
    names = _ORIGINAL | (_ORIGINAL_GATED if variant.gated else _ORIGINAL_MLP)
    buffers = (r"rope_embed\.periods", r"blocks\.\d+\.attn\.qkv\.bias_mask")
    return (
        *(
            table(variant, theirs, layout=layout, prefix="", ignore=mask)
            for layout, theirs in (
                ("hugging face", _EMBEDDINGS | _BLOCKS),
                ("hugging face, in memory", _IN_MEMORY),
            )
        ),
        table(variant, names, layout="original", prefix="", ignore=mask + buffers),
    )
