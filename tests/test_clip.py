"""CLIP's transformers without torch: sizes, books, resizing, text rules, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import CLIPConfig

from diffup_jax.backbones import clip
from diffup_jax.backbones.towers import Tower, prior_blocks
from diffup_jax.types import DiffUpError
from tests import tower_laws
from tests.tower_laws import run

SMALL = clip.Variant(
    vision=Tower(24, 3, 4, 40, "quick_gelu", 1e-5),
    patch=8,
    grid=4,
    text=clip.Text(Tower(16, 2, 2, 32, "quick_gelu", 1e-5), 50, 12, 20, 49, "clip"),
    packaged="",
    hub="",
    licence="",
    debias=0,
)


@functools.cache
def _small():
    recipe = clip.recipe_of(SMALL, dtype=jnp.float32)
    params = tower_laws.filled(tower_laws.image_shapes(recipe), seed=0)
    text = tower_laws.filled(tower_laws.text_shapes(recipe.text), seed=1)
    return recipe, params, text


def _images(*shape):
    return jax.random.normal(jax.random.key(0), (*shape, 3))


@pytest.mark.parametrize("name", clip.VARIANTS)
def test_every_variant_keeps_the_laws(name):
    # Three blocks of each tower: all blocks are alike, and tracing takes its time.
    variant = clip.VARIANTS[name]
    vision, tower = (t._replace(depth=3) for t in (variant.vision, variant.text.tower))
    variant = variant._replace(vision=vision, text=variant.text._replace(tower=tower))
    recipe = clip.recipe_of(variant, dtype=jnp.float32)
    shapes = tower_laws.image_shapes(recipe)
    tower_laws.assert_answers_its_levels(recipe, shapes)
    tower_laws.assert_books_balance(recipe, shapes)


def test_parameter_counts_are_the_published_ones():
    published = {
        "clip_b32": 151_277_313,
        "clip_b16": 149_620_737,
        "clip_l14": 427_616_513,
        "clip_l14_336": 427_944_193,
    }
    for name, total in published.items():
        recipe = clip.recipe(name, dtype=jnp.float32)
        assert len(recipe.levels) == clip.VARIANTS[name].vision.depth
        shapes = tower_laws.image_shapes(recipe)
        leaves = jax.tree.leaves((shapes, tower_laws.text_shapes(recipe.text)))
        assert sum(x.size for x in leaves) == total


def test_prior_levels_are_spread_over_the_second_half():
    assert prior_blocks(12) == ("block5", "block7", "block9", "block11")
    assert prior_blocks(24) == ("block11", "block15", "block19", "block23")
    assert prior_blocks(2) == ("block0", "block1")
    assert prior_blocks(1) == ("block0",)


def test_bfloat16_is_close():
    tower_laws.assert_bfloat16_is_close(clip.recipe_of, SMALL)


def test_a_size_that_does_not_fit_is_refused():
    recipe, params, _ = _small()
    for size in ((32, 30), (31, 32)):
        with pytest.raises(
            DiffUpError, match=rf"{size[0]} x {size[1]}.*multiples of 8"
        ):
            jax.eval_shape(recipe.module.apply, params, _images(1, *size))


def test_joint_and_embeddings_are_unit_vectors_and_differ_by_cell():
    recipe, params, text = _small()
    images = _images(2, 32, 48)
    joint = run(recipe.module, params, images).joint
    embed = run(recipe.module, params, images, method="embed")
    ids = jax.random.randint(jax.random.key(1), (3, 12), 0, 50)
    for x in (joint, embed, run(recipe.text.module, text, ids)):
        np.testing.assert_allclose(jnp.linalg.norm(x, axis=-1), 1, atol=1e-5)
    assert np.std(joint, axis=(1, 2)).min() > 1e-3


def _rolled(x):
    """Other channels: a shift or a factor of all of them a norm would take away."""
    return np.roll(x, 1, axis=-1)


def test_joint_comes_from_the_value_path_alone():
    """Queries, keys and the MLP of the last block change `last`, but not `joint`."""
    recipe, params, _ = _small()
    images = _images(1, 32, 32)
    before = run(recipe.module, params, images)
    for name in ("query", "key", "norm2", "fc1", "fc2"):
        changed = jax.tree.map(np.copy, params)
        last = changed["params"]["block_2"][name]
        changed["params"]["block_2"][name] = jax.tree.map(_rolled, last)
        after = run(recipe.module, changed, images)
        np.testing.assert_array_equal(before.joint, after.joint)
        assert np.abs(before.last - after.last).max() > 1e-3
    for name in ("value", "out", "norm1"):
        changed = jax.tree.map(np.copy, params)
        last = changed["params"]["block_2"][name]
        changed["params"]["block_2"][name] = jax.tree.map(_rolled, last)
        after = run(recipe.module, changed, images)
        assert np.abs(before.joint - after.joint).max() > 1e-3


def test_text_is_causal_and_ends_at_its_first_mark():
    recipe, _, params = _small()
    module = recipe.text.module
    ids = jnp.array([[1, 7, 9, 49, 3, 4, 5, 6, 7, 8, 9, 10]])
    other = ids.at[:, 4:].set(49)  # what follows the mark, as another padding has it
    assert np.abs(run(module, params, ids) - run(module, params, other)).max() < 1e-6
    hidden = [run(module, params, x, method="hidden") for x in (ids, other)]
    assert np.abs(hidden[0][:, :4] - hidden[1][:, :4]).max() < 1e-6
    assert np.abs(hidden[0][:, 4:] - hidden[1][:, 4:]).max() > 1e-2
    short = run(module, params, ids[:, :5])
    assert np.abs(run(module, params, ids) - short).max() < 1e-6


def test_scale_is_the_exponential_of_what_the_file_holds():
    recipe, _, params = _small()
    scale, bias = run(recipe.text.module, params, method="scale")
    np.testing.assert_allclose(scale, np.exp(params["params"]["log_scale"]), rtol=1e-6)
    assert bias == 0


def _config(variant):
    """A config.json of this size, as transformers writes it."""
    vision, text = (
        {
            "hidden_size": tower.width,
            "num_hidden_layers": tower.depth,
            "num_attention_heads": tower.heads,
            "intermediate_size": tower.hidden,
            "hidden_act": tower.activation,
            "layer_norm_eps": tower.epsilon,
        }
        for tower in (variant.vision, variant.text.tower)
    )
    vision |= {
        "patch_size": variant.patch,
        "image_size": variant.patch * variant.grid,
    }
    text |= {
        "vocab_size": variant.text.vocabulary,
        "max_position_embeddings": variant.text.context,
        "eos_token_id": variant.text.eos,
    }
    return CLIPConfig(
        vision_config=vision, text_config=text, projection_dim=variant.text.joint
    ).to_dict()


# The embedded ones have a word list, which no config.json names.
PUBLISHED = [v for name, v in clip.VARIANTS.items() if not name.startswith("tiny")]


@pytest.mark.parametrize("variant", [SMALL, *PUBLISHED])
def test_config_round_trip(variant):
    bare = variant._replace(hub="", licence="")
    assert clip.from_config(_config(variant)) == bare


def test_a_silent_config_has_the_defaults_and_an_old_one_its_overrides():
    bare = clip.VARIANTS["clip_b32"]._replace(hub="", licence="")
    assert clip.from_config({"model_type": "clip"}) == bare
    old = clip.from_config(
        {
            "model_type": "clip",
            "vision_config": {"patch_size": 32},
            "vision_config_dict": {"patch_size": 16},
            "text_config": {"eos_token_id": 2},
            "text_config_dict": None,
        }
    )
    assert (old.patch, old.grid) == (16, 14)
    assert old.text.eos is None
    assert clip.from_config({"model_type": "siglip"}) is None


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"hidden_act": "swish"}, "hidden_act 'swish'"),
        ({"image_size": [224, 336]}, "image_size"),
        ({"num_attention_heads": 7}, "768 for 7 heads"),
    ],
)
def test_configs_that_cannot_be_computed_are_refused(part, told):
    with pytest.raises(DiffUpError, match=told):
        clip.from_config({"model_type": "clip", "vision_config": part})
