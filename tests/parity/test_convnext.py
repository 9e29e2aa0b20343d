"""ConvNeXt V2 against Hugging Face's torch implementation, level by level, from the
file. Everything is random and offline; norms and GRN are drawn away from their
defaults (a fresh GRN is the identity).
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install 'diffup-jax[parity]'"
)

import jax.numpy as jnp  # noqa: E402
from transformers import (  # noqa: E402
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
)

from diffup_jax import weights  # noqa: E402
from diffup_jax.backbones import convnext  # noqa: E402
from tests.parity.agreement import agree_all  # noqa: E402

SMALL = convnext.Variant(
    widths=(8, 12, 16, 24), depths=(2, 1, 3, 2), patch=4, hub="", licence=""
)


def _reference(variant: convnext.Variant, kind=ConvNextV2Model):
    torch.manual_seed(0)
    model = kind(
        ConvNextV2Config(
            hidden_sizes=list(variant.widths),
            depths=list(variant.depths),
            num_stages=len(variant.depths),
            patch_size=variant.patch,
            num_labels=5,
        )
    ).eval()
    for name, value in model.named_parameters():
        if "grn" in name:
            torch.nn.init.normal_(value, std=0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.2)
        elif value.ndim == 1:
            torch.nn.init.uniform_(value, 0.5, 1.5)
        else:
            torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
    return model


def _file_keys(model, folder) -> dict[str, np.ndarray]:
    model.save_pretrained(folder)
    return weights.read(folder / "model.safetensors")


def _convert(variant: convnext.Variant, source):
    recipe = convnext.recipe_of(variant, dtype=jnp.float32)
    shapes = jax.eval_shape(
        recipe.module.init, jax.random.key(0), np.zeros((1, 64, 64, 3), "f")
    )
    table, _ = weights.best_table(recipe.tables, source, target_shapes=shapes)
    params = weights.convert(table, source, target_shapes=shapes, what="test")
    return table.layout, params


def _reference_levels(model, images) -> dict[str, np.ndarray]:
    """Stem, every block's output and the last hidden state, as NHWC."""
    body = getattr(model, "convnextv2", model)
    modules = {"stem": body.embeddings} | {
        f"stage{s + 1}.block{b}": block
        for s, stage in enumerate(body.encoder.stages)
        for b, block in enumerate(stage.layers)
    }
    found = {}
    for name, module in modules.items():
        module.register_forward_hook(
            lambda _module, _inputs, out, name=name: found.__setitem__(name, out)
        )
    with torch.no_grad():
        found["last"] = body(
            torch.from_numpy(images.transpose(0, 3, 1, 2))
        ).last_hidden_state
    return {name: out.numpy().transpose(0, 2, 3, 1) for name, out in found.items()}


def _assert_levels_agree(variant, params, model, images):
    expected = _reference_levels(model, images)
    module = convnext.recipe_of(variant, dtype=jnp.float32).module
    answer = jax.jit(module.apply)(params, images)
    agree_all(answer.levels | {"last": answer.last}, expected)


def _images(*size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")


@pytest.mark.parametrize("size", [(96, 96), (64, 160)])
def test_every_level_agrees_with_the_reference(tmp_path, size):
    model = _reference(SMALL)
    layout, params = _convert(SMALL, _file_keys(model, tmp_path))
    assert layout == "hugging face"
    _assert_levels_agree(SMALL, params, model, _images(*size))


def test_other_sizes_and_a_classifier_agree(tmp_path):
    variant = SMALL._replace(widths=(8, 20), depths=(1, 2), patch=2)
    model = _reference(variant, ConvNextV2ForImageClassification)
    assert convnext.from_config(model.config.to_dict()) == variant
    layout, params = _convert(variant, _file_keys(model, tmp_path))
    assert layout == "hugging face, classifier"
    _assert_levels_agree(variant, params, model, _images(28, 36))


def _old(key: str) -> str:
    return key.replace("grn.weight", "grn.gamma").replace("grn.bias", "grn.beta")


def _meta(key: str) -> str:
    parts = _old(key).removeprefix("convnextv2.").split(".")
    if parts[0] == "embeddings":
        at = "0" if parts[1] == "patch_embeddings" else "1"
        return f"downsample_layers.0.{at}.{parts[-1]}"
    if parts[0] == "classifier":
        return f"head.{parts[-1]}"
    if parts[0] == "encoder" and parts[3] == "downsampling_layer":
        return ".".join(["downsample_layers", parts[2], *parts[4:]])
    if parts[0] == "encoder":
        parts = ["stages", parts[2], *parts[4:]]
    return ".".join(parts).replace("layernorm", "norm")


def _timm(key: str) -> str:
    meta = _meta(key).replace("gamma", "weight").replace("beta", "bias")
    parts = meta.split(".")
    if parts[0] == "downsample_layers":
        root = "stem" if parts[1] == "0" else f"stages.{parts[1]}.downsample"
        return f"{root}.{parts[2]}.{parts[3]}"
    if parts[0] == "stages":
        parts = ["stages", parts[1], "blocks", *parts[2:]]
    if parts[0] in ("norm", "head"):
        parts = ["head", "fc" if parts[0] == "head" else "norm", parts[1]]
    key = ".".join(parts).replace("dwconv", "conv_dw").replace("grn", "mlp.grn")
    return key.replace("pwconv", "mlp.fc")


def _like_convolution(value: np.ndarray) -> np.ndarray:
    return value[:, :, None, None] if value.ndim == 2 else value


@pytest.mark.parametrize(
    ("layout", "rename", "reshape"),
    [
        ("hugging face, classifier, gamma and beta", _old, np.asarray),
        ("meta", _meta, np.asarray),
        ("timm", _timm, _like_convolution),
        ("timm", _timm, np.squeeze),
    ],
)
def test_other_layouts_give_identical_params(tmp_path, layout, rename, reshape):
    source = _file_keys(_reference(SMALL, ConvNextV2ForImageClassification), tmp_path)
    _, params = _convert(SMALL, source)
    renamed = {
        rename(key): reshape(value) if "dw" not in key else value
        for key, value in source.items()
    }
    assert len(renamed) == len(source)
    found, same = _convert(SMALL, renamed)
    assert found == layout
    assert weights.digest(params) == weights.digest(same)
