"""CLIP's residual networks without torch: sizes, books, dense path, configs, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.backbones import clip, clip_resnet
from diffup_jax.backbones.towers import Tower
from diffup_jax.types import DiffUpError
from tests import tower_laws
from tests.tower_laws import run

SMALL = clip_resnet.Variant(
    width=8,
    blocks=(1, 1, 2, 1),
    heads=4,
    grid=2,
    text=clip.Text(Tower(16, 1, 2, 64, "quick_gelu", 1e-5), 30, 10, 20, None, "clip"),
    packaged="",
    hub="",
    licence="",
)


@functools.cache
def _small():
    recipe = clip_resnet.recipe_of(SMALL, dtype=jnp.float32)
    return recipe, tower_laws.filled(tower_laws.image_shapes(recipe), seed=0)


@functools.cache
def _full(name):
    recipe = clip_resnet.recipe(name, dtype=jnp.float32)
    return recipe, tower_laws.image_shapes(recipe)


def _images(*shape):
    return jax.random.normal(jax.random.key(0), (*shape, 3))


@pytest.mark.parametrize("name", clip_resnet.VARIANTS)
def test_every_variant_keeps_the_laws(name):
    recipe, shapes = _full(name)
    tower_laws.assert_answers_its_levels(recipe, shapes)
    tower_laws.assert_books_balance(recipe, shapes)
    last = {"clip_rn50": 5, "clip_rn101": 22}[name]
    stage4 = (f"stage4.block{i}" for i in range(3))
    assert recipe.prior_levels == (f"stage3.block{last}", *stage4)


def test_parameter_counts_are_the_published_ones():
    for name, total in (("clip_rn50", 102_007_137), ("clip_rn101", 119_688_033)):
        recipe, shapes = _full(name)
        leaves = (shapes["params"], tower_laws.text_shapes(recipe.text))
        assert sum(x.size for x in jax.tree.leaves(leaves)) == total


def test_bfloat16_is_close():
    tower_laws.assert_bfloat16_is_close(clip_resnet.recipe_of, SMALL)


def test_a_size_that_does_not_fit_is_refused():
    recipe, params = _small()
    with pytest.raises(DiffUpError, match="64 x 80.*multiples of 32"):
        jax.eval_shape(recipe.module.apply, params, _images(1, 64, 80))


def test_joint_is_a_map_of_each_cell_of_the_last_level():
    """No position, no other cell: permuted cells give permuted joint features."""
    recipe, params = _small()
    answer = run(recipe.module, params, _images(2, 64, 96))
    pool = params["params"]["pool"]
    value, out = (pool[name] for name in ("value", "out"))
    want = answer.last @ value["kernel"] + value["bias"].reshape(1, 1, 1, -1)
    want = want @ out["kernel"] + out["bias"].reshape(1, 1, 1, -1)
    want /= np.linalg.norm(want, axis=-1, keepdims=True)
    np.testing.assert_allclose(answer.joint, want, atol=1e-5)


def test_embed_uses_positions_at_any_size():
    recipe, params = _small()
    for size in ((64, 64), (32, 96)):
        embed = run(recipe.module, params, _images(2, *size), method="embed")
        np.testing.assert_allclose(jnp.linalg.norm(embed, axis=-1), 1, atol=1e-5)
        moved = jax.tree.map(np.copy, params)
        moved["params"]["pool"]["positions"] *= -1
        other = run(recipe.module, moved, _images(2, *size), method="embed")
        assert np.abs(embed - other).max() > 1e-3


def test_config_of_open_clip():
    """The file beside timm's safetensors; open_clip reads text at the largest id."""
    config = {
        "model_cfg": {
            "embed_dim": 1024,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": 224,
                "layers": [3, 4, 6, 3],
                "width": 64,
                "patch_size": None,
            },
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": 512,
                "heads": 8,
                "layers": 12,
            },
        }
    }
    want = clip_resnet.VARIANTS["clip_rn50"]
    want = want._replace(hub="", licence="", text=want.text._replace(eos=None))
    assert clip_resnet.from_config(config) == want
    del config["model_cfg"]["quick_gelu"]
    assert clip_resnet.from_config(config).text.tower.activation == "gelu"


@pytest.mark.parametrize(
    "config",
    [{"model_type": "clip"}, {"model_cfg": {"vision_cfg": {"layers": 12}}}, {}],
)
def test_configs_of_other_families_are_passed_over(config):
    assert clip_resnet.from_config(config) is None
