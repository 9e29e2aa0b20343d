"""DINOv2 against Hugging Face's torch implementations, from their files."""

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install 'diffup-jax[parity]'"
)

from transformers import (  # noqa: E402
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)

from diffup_jax import weights  # noqa: E402
from diffup_jax.backbones import dinov2  # noqa: E402
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
    "image_size": 70,
    "patch_size": 14,
}
KINDS = {
    "plain": (Dinov2Model, Dinov2Config),
    "registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig),
}


# Own grid; larger and not square; smaller, where antialias matters.
@pytest.mark.parametrize("size", [(70, 70), (98, 154), (28, 42)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_level_agrees_with_the_reference(tmp_path, kind, gated, size):
    model, config = KINDS[kind]
    model = randomise(model(config(**SIZES, use_swiglu_ffn=gated)))
    config, source = saved(model, tmp_path)
    variant = dinov2.from_config(config)
    layout, params = convert(dinov2, variant, source)
    assert layout == "hugging face"
    compare(dinov2, variant, params, model, size)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_other_layouts_give_the_same_parameters(tmp_path, kind, gated):
    """A classifier's file, a state dict, and the authors' fused names."""
    model, config = KINDS[kind]
    model = randomise(model(config(**SIZES, use_swiglu_ffn=gated)))
    config, source = saved(model, tmp_path / "body")
    variant = dinov2.from_config(config)
    _, params = convert(dinov2, variant, source)
    wrapper, prefix = {
        "plain": (Dinov2ForImageClassification, "dinov2"),
        "registers": (
            Dinov2WithRegistersForImageClassification,
            "dinov2_with_registers",
        ),
    }[kind]
    wrapped = wrapper(model.config)
    getattr(wrapped, prefix).load_state_dict(model.state_dict())
    torch.save(model.state_dict(), tmp_path / "model.pth")
    for layout, file in {
        "hugging face, with head": saved(wrapped, tmp_path / "head")[1],
        "hugging face, in memory": weights.read(tmp_path / "model.pth"),
        "original": _original(source, variant),
    }.items():
        found, same = convert(dinov2, variant, file)
        assert found == layout
        assert weights.digest(params) == weights.digest(same)


def _original(source, variant) -> dict[str, np.ndarray]:
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.register_tokens": "register_tokens",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer": "blocks",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "weights_in": "w12",
        "weights_out": "w3",
        "layernorm": "norm",
    }
    renamed = {}
    for key, value in source.items():
        if ".attention.attention." in key:
            continue
        for theirs, original in names.items():
            key = key.replace(theirs, original)
        renamed[key] = value
    for j in range(variant.depth):
        for leaf in ("weight", "bias"):
            root = f"encoder.layer.{j}.attention.attention"
            renamed[f"blocks.{j}.attn.qkv.{leaf}"] = np.concatenate(
                [source[f"{root}.{part}.{leaf}"] for part in ("query", "key", "value")]
            )
    return renamed
