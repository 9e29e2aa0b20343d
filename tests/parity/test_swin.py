"""Swin against Hugging Face's torch implementation, level by level, from the file.

Everything is random and offline. Norms and bias tables are drawn away from their
defaults. The reference is built anew for each size: it keeps a window it has shrunk.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install 'diffup-jax[parity]'"
)

import jax.numpy as jnp  # noqa: E402
from transformers import (  # noqa: E402
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
)

from diffup_jax import weights  # noqa: E402
from diffup_jax.backbones import swin  # noqa: E402
from tests.parity.agreement import agree_all  # noqa: E402

SMALL = swin.VARIANTS["swin_t"]._replace(
    width=8, depths=(2, 2, 4, 2), heads=(1, 2, 4, 4), window=3, hub="", licence=""
)


def _reference(variant: swin.Variant, kind=SwinModel):
    torch.manual_seed(0)
    model = kind(
        SwinConfig(
            # Only masked image modelling asks for it, when it is built.
            image_size=64,
            embed_dim=variant.width,
            depths=list(variant.depths),
            num_heads=list(variant.heads),
            window_size=variant.window,
            patch_size=variant.patch,
            mlp_ratio=variant.mlp_ratio,
            qkv_bias=variant.qkv_bias,
            layer_norm_eps=variant.eps,
            num_labels=5,
        )
    ).eval()
    for name, value in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.uniform_(value, 0.5, 1.5)
        elif name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(value, std=1.0)
        elif name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.2)
        else:
            torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
    return model


def _file_keys(model, folder) -> dict[str, np.ndarray]:
    model.save_pretrained(folder)
    return weights.read(folder / "model.safetensors")


def _convert(variant: swin.Variant, source):
    recipe = swin.recipe_of(variant, dtype=jnp.float32)
    shapes = jax.eval_shape(
        recipe.module.init, jax.random.key(0), np.zeros((1, 64, 64, 3), "f")
    )
    table, _ = weights.best_table(recipe.tables, source, target_shapes=shapes)
    params = weights.convert(table, source, target_shapes=shapes, what="test")
    return table.layout, params


def _reference_levels(model, images, **options) -> dict[str, np.ndarray]:
    """Stem, every block's output and the last hidden state, as [b p q c]."""
    body = getattr(model, "swin", model)
    grids, found = {}, {}
    patch = body.config.patch_size
    grid = tuple(-(-size // patch) for size in images.shape[1:3])
    modules = {"stem": body.embeddings}
    for s, stage in enumerate(body.encoder.layers):
        for b, block in enumerate(stage.blocks):
            modules[f"stage{s + 1}.block{b}"] = block
            grids[f"stage{s + 1}.block{b}"] = tuple(-(-n // 2**s) for n in grid)
    grids |= {"stem": grid, "last": grids[f"stage{s + 1}.block{b}"]}
    for name, module in modules.items():
        module.register_forward_hook(
            lambda _module, _inputs, out, name=name: found.__setitem__(name, out[0])
        )
    with torch.no_grad():
        found["last"] = body(
            torch.from_numpy(images.transpose(0, 3, 1, 2)), **options
        ).last_hidden_state
    return {
        name: out.numpy().reshape(len(images), *grids[name], -1)
        for name, out in found.items()
    }


def _assert_levels_agree(variant, params, expected, images):
    module = swin.recipe_of(variant, dtype=jnp.float32).module
    answer = jax.jit(module.apply)(params, images)
    agree_all(answer.levels | {"last": answer.last}, expected)


def _images(*size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")


# Grids of stages 1 to 4 at 96 x 96: 24, 12, 6, 3 (multiples of the window, the last one
# not rolled); at 121 x 150: 31 x 38, 16 x 19, 8 x 10, 4 x 5, all padded and rolled, the
# image too, and odd grids before two mergings.
@pytest.mark.parametrize("size", [(96, 96), (121, 150)])
def test_every_level_agrees_with_the_reference(tmp_path, size):
    model = _reference(SMALL)
    layout, params = _convert(SMALL, _file_keys(model, tmp_path))
    assert layout == "hugging face"
    images = _images(*size)
    _assert_levels_agree(SMALL, params, _reference_levels(model, images), images)


def test_an_even_window_and_other_sizes_agree(tmp_path):
    variant = SMALL._replace(
        width=12,
        depths=(3, 2),
        heads=(3, 2),
        window=4,
        patch=2,
        mlp_ratio=1.5,
        qkv_bias=False,
        eps=1e-3,
    )
    model = _reference(variant)
    config = model.config.to_dict()
    assert swin.from_config(config) == variant
    _, params = _convert(variant, _file_keys(model, tmp_path))
    images = _images(21, 44)
    _assert_levels_agree(variant, params, _reference_levels(model, images), images)


def test_grids_smaller_than_the_window_are_padded_to_it(tmp_path):
    """The reference has no such path of its own, so its parts are told what to do."""
    variant = SMALL._replace(window=5)
    model = _reference(variant)
    _, params = _convert(variant, _file_keys(model, tmp_path))
    images = _images(32, 48)  # grids 8 x 12, 4 x 6, 2 x 3, 1 x 2
    for stage in model.encoder.layers[1:]:
        for block in stage.blocks:
            block.shift_size = 0
    expected = _reference_levels(model, images, always_partition=True)
    _assert_levels_agree(variant, params, expected, images)


@pytest.mark.parametrize(
    "kind", [SwinForImageClassification, SwinForMaskedImageModeling]
)
def test_models_with_a_head_convert(tmp_path, kind):
    model = _reference(SMALL, kind)
    layout, params = _convert(SMALL, _file_keys(model, tmp_path))
    assert layout == "hugging face, with head"
    images = _images(96, 112)
    _assert_levels_agree(SMALL, params, _reference_levels(model, images), images)


def _other_layout(source, layout: str) -> dict[str, np.ndarray]:
    """The same network under another layout's keys, with its fused projections."""
    qkv = [f"attention.self.{x}" for x in ("query", "key", "value")]
    torchvision = layout == "torchvision"
    names = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.norm": "patch_embed.norm",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.self.rel": "attn.rel",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.0" if torchvision else "mlp.fc1",
        "output.dense": "mlp.3" if torchvision else "mlp.fc2",
        "encoder.": "",
    }
    found = {}
    for key, value in source.items():
        if qkv[0] in key:
            value = np.concatenate([source[key.replace(qkv[0], x)] for x in qkv])
            key = key.replace(qkv[0], "attn.qkv")
        elif qkv[1] in key or qkv[2] in key:
            continue
        for old, new in names.items():
            key = key.replace(old, new)
        parts = key.split(".")
        if parts[0] == "layernorm":
            parts[0] = "norm"
        if parts[0] == "layers":
            stage, downsample = int(parts[1]), parts[2] == "downsample"
            if layout == "timm" and downsample:
                parts[1] = str(stage + 1)
            if torchvision:
                at = 2 * stage + (2 if downsample else 1)
                parts = ["features", str(at), *parts[3:]]
        if torchvision and parts[0] == "patch_embed":
            parts = ["features", "0", "0" if parts[1] == "proj" else "2", parts[2]]
        found[".".join(parts)] = value
    some = next(key for key in found if key.endswith("attn.proj.weight"))
    buffer = some.replace("proj.weight", "relative_position_index")
    head = "head.fc.weight" if layout == "timm" else "head.weight"
    return found | {buffer: np.zeros((9, 9), int), head: np.zeros((5, 64), "f")}


@pytest.mark.parametrize("layout", ["microsoft", "timm", "torchvision"])
def test_other_layouts_give_identical_params(tmp_path, layout):
    source = _file_keys(_reference(SMALL), tmp_path)
    _, params = _convert(SMALL, source)
    found, same = _convert(SMALL, _other_layout(source, layout))
    assert found == layout
    assert weights.digest(params) == weights.digest(same)
