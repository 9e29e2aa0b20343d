"""ViT and MAE against Hugging Face's torch implementations, from their files."""

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install 'diffup-jax[parity]'"
)

from transformers import (  # noqa: E402
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from diffup_jax import weights  # noqa: E402
from diffup_jax.backbones import vit  # noqa: E402
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
    "image_size": 40,
    "patch_size": 8,
}
DECODER = {
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 8,
}


# Own grid; larger and not square; smaller.
@pytest.mark.parametrize("size", [(40, 40), (56, 88), (24, 32)])
@pytest.mark.parametrize("kind", [ViTModel, ViTForImageClassification])
def test_every_level_agrees_with_vit(tmp_path, kind, size):
    model = randomise(kind(ViTConfig(**SIZES)))
    config, source = saved(model, tmp_path)
    variant = vit.from_config(config)
    layout, params = convert(vit, variant, source)
    assert layout == "hugging face" + ", with head" * (kind is not ViTModel)
    body = getattr(model, "vit", model)
    compare(vit, variant, params, body, size, interpolate_pos_encoding=True)


@pytest.mark.parametrize("size", [(40, 40), (56, 88)])
@pytest.mark.parametrize("kind", [ViTMAEModel, ViTMAEForPreTraining])
def test_every_level_agrees_with_mae(tmp_path, kind, size):
    config = ViTMAEConfig(**SIZES, **DECODER, mask_ratio=0.0)
    model = randomise(kind(config))
    config, source = saved(model, tmp_path)
    variant = vit.from_config(config)
    _, params = convert(vit, variant, source)
    # Patches are shuffled by the order of their noise: rising noise leaves them alone.
    noise = torch.arange(size[0] * size[1] // 64).float().expand(2, -1)
    body = getattr(model, "vit", model)
    compare(
        vit,
        variant,
        params,
        body,
        size,
        interpolate_pos_encoding=True,
        noise=noise,
    )


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "quick_gelu", "relu"])
def test_other_activations_and_no_qkv_bias_agree(tmp_path, act):
    model = randomise(ViTModel(ViTConfig(**SIZES, hidden_act=act, qkv_bias=False)))
    config, source = saved(model, tmp_path)
    variant = vit.from_config(config)
    _, params = convert(vit, variant, source)
    compare(vit, variant, params, model, (40, 40), interpolate_pos_encoding=True)


def test_a_state_dict_gives_the_same_parameters(tmp_path):
    model = randomise(ViTForMaskedImageModeling(ViTConfig(**SIZES)))
    config, source = saved(model, tmp_path)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    variant = vit.from_config(config)
    layout, params = convert(vit, variant, weights.read(tmp_path / "model.pth"))
    assert layout == "hugging face, in memory, with head"
    _, same = convert(vit, variant, source)
    assert weights.digest(params) == weights.digest(same)


def test_original_layout_gives_the_same_parameters(tmp_path):
    """The authors' files (and timm's) fuse query, key and value into one array."""
    model = randomise(ViTForImageClassification(ViTConfig(**SIZES)))
    config, source = saved(model, tmp_path)
    variant = vit.from_config(config)
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer": "blocks",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layernorm": "norm",
        "classifier": "head",
    }
    renamed = {}
    for key, value in source.items():
        key = key.removeprefix("vit.")
        if ".attention.attention." in key:
            continue
        for theirs, original in names.items():
            key = key.replace(theirs, original)
        renamed[key] = value
    for j in range(variant.depth):
        for leaf in ("weight", "bias"):
            root = f"vit.encoder.layer.{j}.attention.attention"
            renamed[f"blocks.{j}.attn.qkv.{leaf}"] = np.concatenate(
                [source[f"{root}.{part}.{leaf}"] for part in ("query", "key", "value")]
            )
    layout, params = convert(vit, variant, renamed)
    assert layout == "original"
    _, same = convert(vit, variant, source)
    assert weights.digest(params) == weights.digest(same)
