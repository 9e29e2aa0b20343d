"""ConvNeXt V2 without torch: announced levels, complete tables, bf16, sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import ConvNextV2Config

from diffup_jax import weights
from diffup_jax.backbones import convnext
from diffup_jax.types import DiffUpError

SMALL = convnext.Variant(widths=(8, 12), depths=(2, 1), patch=4, hub="", licence="")


def _recipe(variant, dtype=jnp.float32):
    return convnext.recipe_of(variant, dtype=dtype)


@functools.cache
def _shapes(variant):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(_recipe(variant).module.init, jax.random.key(0), image)


def _images(*size: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(1, *size, 3)).astype("float32")


def _apply(images, dtype=jnp.float32):
    params = weights.random(_shapes(SMALL), seed=1)
    return jax.jit(_recipe(SMALL, dtype).module.apply)(params, images)


@pytest.mark.parametrize("name", convnext.VARIANTS)
def test_levels_are_what_was_announced(name):
    size = (96, 64)
    recipe = convnext.recipe(name, dtype=jnp.float32)
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    shapes = _shapes(convnext.VARIANTS[name])
    answer = jax.eval_shape(recipe.module.apply, shapes, image)
    assert sorted(answer.levels) == sorted(level.name for level in recipe.levels)
    for level in recipe.levels:
        grid = tuple(pixels // level.stride for pixels in size)
        assert answer.levels[level.name].shape == (2, *grid, level.channels)
    assert answer.last.shape == answer.levels[recipe.levels[-1].name].shape
    assert answer.joint is None
    assert recipe.multiple_of == recipe.levels[-1].stride == 32


@pytest.mark.parametrize("name", convnext.VARIANTS)
def test_prior_levels_are_end_of_stage_3_and_all_of_stage_4(name):
    depths = convnext.VARIANTS[name].depths
    assert convnext.recipe(name, dtype=jnp.float32).prior_levels == (
        f"stage3.block{depths[2] - 1}",
        *(f"stage4.block{block}" for block in range(depths[3])),
    )


@pytest.mark.parametrize("name", convnext.VARIANTS)
def test_tables_name_every_parameter_once(name):
    wanted = weights.own_layout(_shapes(convnext.VARIANTS[name])).rows
    for table in convnext.recipe(name, dtype=jnp.float32).tables:
        assert sorted(row.target for row in table.rows) == sorted(
            row.target for row in wanted
        )
        assert len({row.source for row in table.rows}) == len(table.rows)


def test_parameter_counts_are_the_published_ones():
    """Meta's table, in millions, with a norm and a head of 1000 classes."""
    for name, millions in (
        ("convnextv2_atto", "3.7"),
        ("convnextv2_femto", "5.2"),
        ("convnextv2_pico", "9.1"),
        ("convnextv2_nano", "15.6"),
        ("convnextv2_t", "28.6"),
        ("convnextv2_b", "89"),
        ("convnextv2_l", "198"),
        ("convnextv2_h", "660"),
    ):
        variant = convnext.VARIANTS[name]
        head = variant.widths[-1] * 1002 + 1000
        count = head + sum(x.size for x in jax.tree.leaves(_shapes(variant)))
        digits = len(millions.partition(".")[2])
        assert f"{count / 1e6:.{digits}f}" == millions, name


@pytest.mark.parametrize("size", [(44, 64), (64, 33)])
def test_a_size_that_does_not_fit_is_refused(size):
    with pytest.raises(DiffUpError, match=rf"{size[0]} x {size[1]} .*multiples of 8"):
        _apply(_images(*size))


def test_bfloat16_is_close_and_is_what_comes_out():
    images = _images(40, 64)
    exact, half = (_apply(images, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    for name, want in exact.levels.items():
        got = half.levels[name]
        assert got.dtype == jnp.bfloat16
        error = np.abs(np.asarray(got, np.float32) - want).mean() / np.abs(want).mean()
        assert 0 < error < 0.05, name


def test_a_quiet_grid_gives_no_division_by_zero():
    assert np.isfinite(_apply(np.zeros((1, 16, 16, 3), np.float32)).last).all()


@pytest.mark.parametrize("name", convnext.VARIANTS)
def test_config_of_every_variant_gives_the_variant(name):
    variant = convnext.VARIANTS[name]
    config = ConvNextV2Config(
        hidden_sizes=list(variant.widths), depths=list(variant.depths)
    ).to_dict()
    assert convnext.from_config(config) == variant._replace(hub="", licence="")


def test_configs_of_others_are_passed_on_and_unknown_kinds_refused():
    config = ConvNextV2Config().to_dict()
    assert convnext.from_config(config | {"model_type": "convnext"}) is None
    assert convnext.from_config({}) is None
    for change, named in (
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"num_channels": 4}, "num_channels 4"),
        ({"patch_size": [4, 4]}, r"patch_size \[4, 4\]"),
        ({"depths": [3, 3]}, r"depths \(3, 3\)"),
    ):
        with pytest.raises(DiffUpError, match=named):
            convnext.from_config(config | change)
    del config["hidden_sizes"]
    with pytest.raises(DiffUpError, match="has no 'hidden_sizes'"):
        convnext.from_config(config)
