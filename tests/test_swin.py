"""Swin without torch: announced levels, complete tables, windows, padding, bf16."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import SwinConfig

from diffup_jax import weights
from diffup_jax.backbones import swin
from diffup_jax.types import DiffUpError

SMALL = swin.VARIANTS["swin_t"]._replace(
    width=8, depths=(2, 2), heads=(2, 2), window=4, hub="", licence=""
)


def _recipe(variant, dtype=jnp.float32):
    return swin.recipe_of(variant, dtype=dtype)


@functools.cache
def _shapes(variant):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(_recipe(variant).module.init, jax.random.key(0), image)


@functools.cache
def _params(variant):
    # Random also where `weights.random` has constants: biases of positions, norms.
    generator = np.random.default_rng(2)
    return jax.tree.map(
        lambda x: np.float32(0.7) * x + generator.normal(0, 0.1, x.shape).astype("f"),
        weights.random(_shapes(variant), seed=1),
    )


def _images(*size: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(1, *size, 3)).astype("float32")


def _apply(variant, images, dtype=jnp.float32):
    return jax.jit(_recipe(variant, dtype).module.apply)(_params(variant), images)


@pytest.mark.parametrize("size", [(97, 131), (384, 384)])
@pytest.mark.parametrize("name", swin.VARIANTS)
def test_levels_are_what_was_announced(name, size):
    recipe = swin.recipe(name, dtype=jnp.float32)
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    answer = jax.eval_shape(recipe.module.apply, _shapes(swin.VARIANTS[name]), image)
    assert sorted(answer.levels) == sorted(level.name for level in recipe.levels)
    for level in recipe.levels:
        grid = tuple(-(-pixels // level.stride) for pixels in size)
        assert answer.levels[level.name].shape == (2, *grid, level.channels)
    assert answer.last.shape == answer.levels[recipe.levels[-1].name].shape
    assert answer.joint is None
    strides = [level.stride for level in recipe.levels]
    assert (strides[0], strides[-1]) == (4, 32)


@pytest.mark.parametrize("name", swin.VARIANTS)
def test_prior_levels_are_end_of_stage_3_and_all_of_stage_4(name):
    end = swin.VARIANTS[name].depths[2] - 1
    assert swin.recipe(name, dtype=jnp.float32).prior_levels == (
        f"stage3.block{end}",
        "stage4.block0",
        "stage4.block1",
    )


@pytest.mark.parametrize("name", swin.VARIANTS)
def test_tables_name_every_parameter_once(name):
    shapes = _shapes(swin.VARIANTS[name])
    wanted = sorted(row.target for row in weights.own_layout(shapes).rows)
    for table in swin.recipe(name, dtype=jnp.float32).tables:
        assert sorted(row.target for row in table.rows) == wanted
        # A fused projection feeds three targets, every other source one.
        uses = collections.Counter(row.source for row in table.rows)
        assert all(n == (3 if ".qkv." in s else 1) for s, n in uses.items())


def test_parameter_counts_are_the_published_ones():
    """The paper's 29, 50, 88 and 197 million, less heads of 1000 classes."""
    for name, total in (
        ("swin_t", 28_288_354),
        ("swin_s", 49_606_258),
        ("swin_b", 87_768_224),
        ("swin_l", 196_532_476),
    ):
        variant = swin.VARIANTS[name]
        count = sum(x.size for x in jax.tree.leaves(_shapes(variant)))
        last = variant.width * 2 ** (len(variant.depths) - 1)
        assert count == total - last * 1000 - 1000


def test_a_change_stays_within_the_windows_it_meets():
    """Block 0 mixes one window; block 1 also the windows rolled over it, and never the
    far edges that rolling brings side by side.
    """
    images = _images(48, 48)  # a grid of 12 x 12, three windows a side
    changed = images.copy()
    changed[:, :4, :4] += 1
    before, after = (_apply(SMALL, x).levels for x in (images, changed))
    for level, reach in (("stem", 1), ("stage1.block0", 4), ("stage1.block1", 6)):
        moved = np.abs(np.asarray(after[level] - before[level]))[0].max(-1) > 0
        assert moved[:reach, :reach].all()
        assert not moved[reach:].any()
        assert not moved[:, reach:].any()


def test_a_size_that_does_not_fit_is_filled_with_zeros():
    images = _images(29, 42)
    filled = np.pad(images, ((0, 0), (0, 3), (0, 2), (0, 0)))
    got, want = (_apply(SMALL, x).last for x in (images, filled))
    np.testing.assert_array_equal(got, want)


def test_bfloat16_is_close_and_is_what_comes_out():
    images = _images(48, 56)
    exact, half = (_apply(SMALL, images, t) for t in (jnp.float32, jnp.bfloat16))
    for name, want in (exact.levels | {"last": exact.last}).items():
        got = half.last if name == "last" else half.levels[name]
        assert got.dtype == jnp.bfloat16
        error = np.abs(np.asarray(got, np.float32) - want).mean() / np.abs(want).mean()
        assert 0 < error < 0.05, name
    assert {x.dtype for x in jax.tree.leaves(_params(SMALL))} == {np.dtype("float32")}


@pytest.mark.parametrize("name", swin.VARIANTS)
def test_config_of_every_variant_gives_the_variant(name):
    variant = swin.VARIANTS[name]
    config = SwinConfig(
        embed_dim=variant.width,
        depths=list(variant.depths),
        num_heads=list(variant.heads),
        window_size=variant.window,
    ).to_dict()
    assert swin.from_config(config) == variant._replace(hub="", licence="")


def test_configs_of_others_are_passed_on_and_unknown_kinds_refused():
    config = SwinConfig().to_dict()
    assert swin.from_config(config | {"model_type": "swinv2"}) is None
    assert swin.from_config({}) is None
    for change, named in (
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings True"),
        ({"num_channels": 4}, "num_channels 4"),
        ({"patch_size": [4, 4]}, r"patch_size \[4, 4\]"),
        ({"depths": [2]}, r"depths \(2,\)"),
    ):
        with pytest.raises(DiffUpError, match=named):
            swin.from_config(config | change)
    del config["window_size"]
    with pytest.raises(DiffUpError, match="has no 'window_size'"):
        swin.from_config(config)
