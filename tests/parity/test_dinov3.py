"""DINOv3 against Hugging Face's torch implementation, from its file."""

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install 'diffup-jax[parity]'"
)

from transformers import DINOv3ViTConfig, DINOv3ViTModel  # noqa: E402

from diffup_jax import weights  # noqa: E402
from diffup_jax.backbones import dinov3  # noqa: E402
from tests.parity.vision_transformers import (  # noqa: E402
    compare,
    convert,
    randomise,
    saved,
)

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 48,
    "patch_size": 16,
    "num_register_tokens": 4,
}
# As S, B and L are; as S+ and H+; as 7B; and as none is. With rotary positions a bias
# of the keys matters, while softmax is blind to it without them.
KINDS = {
    "plain": {},
    "gated": {"use_gated_mlp": True, "hidden_act": "silu"},
    "fewer biases": {
        "use_gated_mlp": True,
        "hidden_act": "silu",
        "query_bias": False,
        "value_bias": False,
    },
    "key bias only": {
        "query_bias": False,
        "key_bias": True,
        "value_bias": False,
        "proj_bias": False,
        "mlp_bias": False,
    },
}


@pytest.mark.parametrize("size", [(48, 48), (80, 112)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_level_agrees_with_the_reference(tmp_path, kind, size):
    model = randomise(DINOv3ViTModel(DINOv3ViTConfig(**SIZES, **KINDS[kind])))
    config, source = saved(model, tmp_path)
    variant = dinov3.from_config(config)
    layout, params = convert(dinov3, variant, source)
    assert layout == "hugging face"
    compare(dinov3, variant, params, model, size)


@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_other_layouts_give_the_same_parameters(tmp_path, kind):
    """A state dict, and the authors' fused names with their masked bias of the keys."""
    model = randomise(DINOv3ViTModel(DINOv3ViTConfig(**SIZES, **KINDS[kind])))
    config, source = saved(model, tmp_path)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    variant = dinov3.from_config(config)
    _, params = convert(dinov3, variant, source)
    for layout, file in {
        "hugging face, in memory": weights.read(tmp_path / "model.pth"),
        "original": _original(source, variant),
    }.items():
        found, same = convert(dinov3, variant, file)
        assert found == layout
        assert weights.digest(params) == weights.digest(same)


def _original(source, variant) -> dict[str, np.ndarray]:
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.register_tokens": "storage_tokens",
        "embeddings.patch_embeddings": "patch_embed.proj",
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layer.": "blocks.",
    }
    gated = "layer.0.mlp.gate_proj.weight" in source
    for ours, original in (
        {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
        if gated
        else {"up_proj": "fc1", "down_proj": "fc2"}
    ).items():
        names[ours] = original
    renamed = {"rope_embed.periods": np.ones(2, "float32")}
    for key, value in source.items():
        if "q_proj" in key or "k_proj" in key or "v_proj" in key:
            continue
        for theirs, original in names.items():
            key = key.replace(theirs, original)
        renamed[key] = value
    width = variant.width
    for j in range(variant.depth):
        root = f"layer.{j}.attention"
        renamed[f"blocks.{j}.attn.qkv.weight"] = np.concatenate(
            [source[f"{root}.{part}_proj.weight"] for part in "qkv"]
        )
        bias = [source[f"{root}.{part}_proj.bias"] for part in "qv"]
        # The keys' third is masked: whatever stands there, even NaN, must not matter.
        renamed[f"blocks.{j}.attn.qkv.bias"] = np.concatenate(
            [bias[0], np.full(width, np.nan, "float32"), bias[1]]
        )
        renamed[f"blocks.{j}.attn.qkv.bias_mask"] = np.repeat(
            np.array([1, 0, 1], "float32"), width
        )
    return renamed
