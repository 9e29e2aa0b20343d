"""ViT, DINO and MAE: published sizes, constants, and configs of any size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from transformers import Dinov2Config, ViTConfig, ViTMAEConfig

from diffup_jax import weights
from diffup_jax.backbones import vit
from diffup_jax.backbones.recipe import HALF, IMAGENET
from diffup_jax.types import DiffUpError


def _shapes(variant):
    module = vit.recipe_of(variant, dtype=jnp.float32).module
    image = jax.ShapeDtypeStruct((1, variant.patch, variant.patch, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), image)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_s16", 21_665_664),
        ("vit_b16", 85_798_656),
        ("vit_l16", 303_301_632),
        ("dino_s8", 21_670_272),
        ("dino_b8", 85_807_872),
    ],
)
def test_parameter_counts_are_the_published_ones(name, count):
    """Without head and pooler."""
    shapes = _shapes(vit.VARIANTS[name])
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("name", vit.VARIANTS)
def test_a_published_config_gives_the_variant(name):
    variant = vit.VARIANTS[name]
    kind = ViTMAEConfig if name.startswith("mae") else ViTConfig
    config = kind(
        hidden_size=variant.width,
        num_hidden_layers=variant.depth,
        num_attention_heads=variant.heads,
        intermediate_size=variant.hidden,
        patch_size=variant.patch,
        image_size=variant.patch * variant.positions,
    ).to_dict()
    normalise = IMAGENET if name.startswith("mae") else HALF
    assert vit.from_config(config) == variant._replace(
        hub="", licence="", normalise=normalise
    )


@pytest.mark.parametrize("kind", [ViTConfig, ViTMAEConfig])
def test_what_a_config_leaves_out_has_the_default_of_its_class(kind):
    short = {"model_type": kind.model_type}
    assert vit.from_config(short) == vit.from_config(kind().to_dict())


def test_a_config_of_another_family_is_not_ours():
    assert vit.from_config(Dinov2Config().to_dict()) is None
    assert vit.from_config({}) is None


def test_images_are_normalised_as_the_weights_were_trained():
    for name, variant in vit.VARIANTS.items():
        want = HALF if name.startswith("vit") else IMAGENET
        assert variant.normalise == want, name


def test_a_file_of_another_position_grid_says_so():
    """Weights of 384 pixels do not slip into the model of 224."""
    small = vit.VARIANTS["vit_s16"]._replace(width=24, depth=1, heads=3, hidden=24)
    other = small._replace(positions=24)
    table = vit.recipe_of(small, dtype=jnp.float32).tables[0]
    flat = flatten_dict(weights.random(_shapes(other), seed=0), sep="/")
    source = {
        row.source: flat[row.target].transpose(3, 2, 0, 1)
        if flat[row.target].ndim == 4
        else flat[row.target].T
        if row.target.endswith("kernel")
        else flat[row.target]
        for row in table.rows
    }
    with pytest.raises(DiffUpError, match=r"(?s)of another shape.*position_embeddings"):
        weights.convert(table, source, target_shapes=_shapes(small), what="test")
    assert weights.convert(table, source, target_shapes=_shapes(other), what="test")
