"""DINOv3: published sizes, constants, and configs of any size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from transformers import Dinov2Config, DINOv3ViTConfig

from diffup_jax.backbones import dinov3
from diffup_jax.backbones.transformer import ALL_BIASES


def _millions(variant) -> float:
    module = dinov3.recipe_of(variant, dtype=jnp.float32).module
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6


# Millions of parameters as the paper's model table gives them.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("dinov3_s16", 21),
        ("dinov3_s16plus", 29),
        ("dinov3_b16", 86),
        ("dinov3_l16", 300),
        ("dinov3_h16plus", 840),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
    assert _millions(dinov3.VARIANTS[name]) == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("name", dinov3.VARIANTS)
def test_a_published_config_gives_the_variant(name):
    variant = dinov3.VARIANTS[name]
    config = DINOv3ViTConfig(
        hidden_size=variant.width,
        num_hidden_layers=variant.depth,
        num_attention_heads=variant.heads,
        intermediate_size=variant.hidden,
        use_gated_mlp=variant.gated,
        hidden_act=variant.activation,
        num_register_tokens=4,
    ).to_dict()
    expected = variant._replace(hub="", licence="")
    if name.endswith("_sat"):  # known from the preprocessor's config only
        expected = expected._replace(normalise=dinov3.IMAGENET)
    assert dinov3.from_config(config) == expected


def test_the_seven_billion_one_is_a_config():
    variant = dinov3.from_config(
        DINOv3ViTConfig(
            hidden_size=4096,
            num_hidden_layers=40,
            num_attention_heads=32,
            intermediate_size=8192,
            use_gated_mlp=True,
            hidden_act="silu",
            num_register_tokens=4,
            query_bias=False,
            value_bias=False,
        ).to_dict()
    )
    assert variant.biases == ("out", "mlp")
    assert _millions(variant) == pytest.approx(6716, rel=0.001)


def test_what_a_config_leaves_out_has_the_default_of_its_class():
    short = {"model_type": "dinov3_vit"}
    assert dinov3.from_config(short) == dinov3.from_config(DINOv3ViTConfig().to_dict())


def test_a_config_of_another_family_is_not_ours():
    assert dinov3.from_config(Dinov2Config().to_dict()) is None


def test_keys_have_no_bias():
    for variant in dinov3.VARIANTS.values():
        assert variant.biases == tuple(x for x in ALL_BIASES if x != "key")


def test_debias_takes_the_published_share_of_every_width():
    assert dinov3.VARIANTS["dinov3_l16"].debias == 500
    for variant in dinov3.VARIANTS.values():
        assert variant.debias / variant.width == pytest.approx(500 / 1024, rel=0.01)
