"""VGG without torch: counts, grids, layouts, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import backbones, weights
from diffup_jax.backbones import vgg

SMALL = vgg.VARIANTS["vgg16_bn"]._replace(widths=(4, 6, 8, 8, 12))


def _params(variant):
    shapes = backbones.shapes(vgg.recipe_of(variant, dtype=jnp.float32))["image"]
    return weights.random(shapes, seed=0)


@pytest.mark.parametrize(("name", "total"), [("vgg16", 0), ("vgg16_bn", 8448)])
def test_parameter_counts_are_the_published_ones(name, total):
    """138 357 544 and 138 365 992, less the classifier's 123 642 856."""
    assert backbones.parameters(name) == 138_357_544 - 123_642_856 + total


def test_prior_levels_are_conv4_3_and_stage_5():
    assert backbones.recipe("vgg16").prior_levels == (
        "stage4.block2",
        *(f"stage5.block{i}" for i in range(3)),
    )


@pytest.mark.parametrize("size", [(64, 48), (67, 81), (1, 17)])
def test_a_level_has_a_cell_for_every_pixel(size):
    recipe = vgg.recipe_of(SMALL, dtype=jnp.float32)
    answer = jax.eval_shape(
        recipe.module.apply,
        backbones.shapes(recipe)["image"],
        jax.ShapeDtypeStruct((2, *size, 3), jnp.float32),
    )
    for level in recipe.levels:
        grid = tuple(-(-pixels // level.stride) for pixels in size)
        assert answer.levels[level.name].shape == (2, *grid, level.channels)


def test_padding_at_the_end_changes_nothing_inside():
    """A size that is no multiple of 16 equals the next one filled with the border's
    minus infinity: far from the added border both answer the same.
    """
    params = _params(SMALL)
    images = np.random.default_rng(0).normal(size=(1, 96, 96, 3)).astype("f")
    apply = jax.jit(vgg.VGG(SMALL).apply)
    whole, cut = apply(params, images), apply(params, images[:, :95, :95])
    for name in ("stage2.block1", "stage3.block2"):
        got, want = cut.levels[name][:, :12, :12], whole.levels[name][:, :12, :12]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_near_float32():
    params = _params(SMALL)
    images = np.random.default_rng(0).normal(size=(1, 32, 48, 3)).astype("f")
    full, half = (
        jax.jit(vgg.VGG(SMALL, dtype=dtype).apply)(params, images).last
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.bfloat16
    distance = np.abs(np.asarray(half, np.float32) - full).max() / np.abs(full).max()
    assert 0 < distance < 0.05


@pytest.mark.parametrize("head", ["classifier.0.weight", "head.fc.bias"])
def test_heads_of_torchvision_and_timm_are_left_unused(head):
    recipe = vgg.recipe_of(SMALL, dtype=jnp.float32)
    (table,) = recipe.tables
    assert table.rows[0].source == "features.0.weight"
    assert table.rows[-1].source == "features.41.running_var"
    shapes = backbones.shapes(recipe)["image"]
    params = weights.random(shapes, seed=0)
    flat = {}
    for row in table.rows:
        value = params
        for key in row.target.split("/"):
            value = value[key]
        flat[row.source] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    flat[head] = np.zeros(3, np.float32)
    made = weights.convert(table, flat, target_shapes=shapes, what="test")
    assert weights.digest(made) == weights.digest(params)


def test_no_hugging_face_config_is_a_vgg():
    assert vgg.from_config({"model_type": "vgg"}) is None
