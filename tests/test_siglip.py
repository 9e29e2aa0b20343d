"""SigLIP 2 without torch: sizes, books, the pooling head, text length, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import Siglip2Config, SiglipConfig

from diffup_jax.backbones import siglip
from diffup_jax.backbones.towers import Tower
from diffup_jax.types import DiffUpError
from tests import tower_laws
from tests.tower_laws import run

SMALL = siglip.Variant(
    vision=Tower(24, 2, 4, 40, "gelu_pytorch_tanh", 1e-6),
    patch=8,
    grid=4,
    naflex=False,
    text=Tower(16, 2, 2, 32, "gelu_pytorch_tanh", 1e-6),
    vocabulary=30,
    context=8,
    packaged="",
    hub="",
    licence="",
    debias=0,
)
NAFLEX = SMALL._replace(naflex=True)


@functools.cache
def _small():
    recipe = siglip.recipe_of(SMALL, dtype=jnp.float32)
    params = tower_laws.filled(tower_laws.image_shapes(recipe), seed=0)
    text = tower_laws.filled(tower_laws.text_shapes(recipe.text), seed=1)
    return recipe, params, text


def _images(*shape):
    return jax.random.normal(jax.random.key(0), (*shape, 3))


@pytest.mark.parametrize("name", siglip.VARIANTS)
def test_every_variant_keeps_the_laws(name):
    # Two blocks of each tower: all blocks are alike, and tracing takes its time.
    variant = siglip.VARIANTS[name]
    vision, text = (t._replace(depth=2) for t in (variant.vision, variant.text))
    recipe = siglip.recipe_of(
        variant._replace(vision=vision, text=text), dtype=jnp.float32
    )
    shapes = tower_laws.image_shapes(recipe)
    tower_laws.assert_answers_its_levels(recipe, shapes)
    tower_laws.assert_books_balance(recipe, shapes)
    assert variant.naflex is name.endswith("naflex")


def test_parameter_count_is_the_published_one():
    """The paper's 375 million of base, of which 86 million are the image tower."""
    recipe = siglip.recipe("siglip2_b16_224", dtype=jnp.float32)
    image = tower_laws.image_shapes(recipe)
    leaves = jax.tree.leaves((image, tower_laws.text_shapes(recipe.text)))
    assert round(sum(x.size for x in leaves) / 1e6) == 375
    head = sum(x.size for x in jax.tree.leaves(image["params"]["head"]))
    body = sum(x.size for x in jax.tree.leaves(image)) - head
    assert round(body / 1e6) == 86


def test_bfloat16_is_close():
    tower_laws.assert_bfloat16_is_close(siglip.recipe_of, SMALL)


def test_a_size_that_does_not_fit_is_refused():
    recipe, params, _ = _small()
    with pytest.raises(DiffUpError, match="32 x 30.*multiples of 8"):
        jax.eval_shape(recipe.module.apply, params, _images(1, 32, 30))


def test_text_of_another_length_is_refused():
    """The answer is read at the last position, so padding is part of the input."""
    recipe, _, text = _small()
    with pytest.raises(DiffUpError, match="7 ids.*exactly 8"):
        jax.eval_shape(recipe.text.module.apply, text, jnp.zeros((2, 7), jnp.int32))


def test_naflex_differs_only_where_positions_are_resized():
    recipe, params, _ = _small()
    naflex = siglip.recipe_of(NAFLEX, dtype=jnp.float32)
    own, other = _images(1, 32, 32), _images(1, 16, 48)
    pairs = [
        [run(r.module, params, images).last for r in (recipe, naflex)]
        for images in (own, other)
    ]
    np.testing.assert_allclose(*pairs[0], atol=1e-5)
    assert np.abs(pairs[1][0] - pairs[1][1]).max() > 1e-3


def test_one_cell_is_pooled_to_itself():
    """A picture of one patch: the dense and the global embedding are the same."""
    recipe, params, _ = _small()
    images = _images(3, 8, 8)
    joint = run(recipe.module, params, images).joint
    embed = run(recipe.module, params, images, method="embed")
    np.testing.assert_allclose(joint[:, 0, 0], embed, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(embed, axis=-1), 1, atol=1e-5)


def _config(variant):
    """A config.json of this size, as transformers writes it."""
    vision, text = (
        {
            "hidden_size": tower.width,
            "num_hidden_layers": tower.depth,
            "num_attention_heads": tower.heads,
            "intermediate_size": tower.hidden,
        }
        for tower in (variant.vision, variant.text)
    )
    vision |= {"patch_size": variant.patch}
    vision |= (
        {"num_patches": variant.grid**2}
        if variant.naflex
        else {"image_size": variant.patch * variant.grid}
    )
    text |= {
        "vocab_size": variant.vocabulary,
        "max_position_embeddings": variant.context,
        "projection_size": variant.vision.width,
    }
    kind = Siglip2Config if variant.naflex else SiglipConfig
    return kind(vision_config=vision, text_config=text).to_dict()


@pytest.mark.parametrize("variant", [SMALL, NAFLEX, *siglip.VARIANTS.values()])
def test_config_round_trip(variant):
    bare = variant._replace(hub="", licence="")
    assert siglip.from_config(_config(variant)) == bare


def test_a_published_config_is_almost_silent():
    """The whole file of google/siglip2-base-patch16-512, but for its versions."""
    config = {
        "initializer_factor": 1.0,
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model", "vocab_size": 256000},
        "vision_config": {"image_size": 512, "model_type": "siglip_vision_model"},
    }
    bare = siglip.VARIANTS["siglip2_b16_512"]._replace(hub="", licence="")
    assert siglip.from_config(config) == bare
    assert siglip.from_config({"model_type": "clip"}) is None


@pytest.mark.parametrize(
    ("vision", "told"),
    [
        ({"vision_use_head": False}, "vision_use_head False"),
        ({"hidden_size": 1536}, "1536 channels.*texts of 768"),
        ({"hidden_act": "swish"}, "hidden_act 'swish'"),
    ],
)
def test_configs_that_cannot_be_computed_are_refused(vision, told):
    with pytest.raises(DiffUpError, match=told):
        siglip.from_config({"model_type": "siglip", "vision_config": vision})
