"""DINOv2: published sizes, the gated mlp's, and configs of any size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from transformers import Dinov2Config, Dinov2WithRegistersConfig, ViTConfig

from diffup_jax.backbones import dinov2


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dinov2_s14", 22_056_576),
        ("dinov2_b14", 86_580_480),
        ("dinov2_l14", 304_368_640),
        ("dinov2_g14", 1_136_480_768),
    ],
)
def test_parameter_counts_are_the_published_ones(name, count):
    """Published with the mask token, for which we have no use; registers add four."""
    for extra, registers in (("", 0), ("_reg", 4)):
        variant = dinov2.VARIANTS[name + extra]
        module = dinov2.recipe_of(variant, dtype=jnp.float32).module
        image = jax.ShapeDtypeStruct((1, 14, 14, 3), jnp.float32)
        shapes = jax.eval_shape(module.init, jax.random.key(0), image)
        total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert total == count + (registers - 1) * variant.width


@pytest.mark.parametrize("name", dinov2.VARIANTS)
def test_a_published_config_gives_the_variant(name):
    variant = dinov2.VARIANTS[name]
    kind = Dinov2WithRegistersConfig if variant.registers else Dinov2Config
    config = kind(
        hidden_size=variant.width,
        num_hidden_layers=variant.depth,
        num_attention_heads=variant.heads,
        use_swiglu_ffn=variant.gated,
        patch_size=14,
        image_size=518,
    ).to_dict()
    assert dinov2.from_config(config) == variant._replace(hub="", licence="")


@pytest.mark.parametrize("kind", [Dinov2Config, Dinov2WithRegistersConfig])
def test_what_a_config_leaves_out_has_the_default_of_its_class(kind):
    short = {"model_type": kind.model_type}
    assert dinov2.from_config(short) == dinov2.from_config(kind().to_dict())


def test_a_config_of_another_family_is_not_ours():
    assert dinov2.from_config(ViTConfig().to_dict()) is None


@pytest.mark.parametrize("width", [24, 100, 384, 768, 1024, 1536])
def test_the_gated_mlp_is_two_thirds_rounded_up_to_eights(width):
    hidden = dinov2.swiglu_hidden(width, 4)
    assert hidden % 8 == 0
    assert 0 <= hidden - 8 * width / 3 + 1 <= 9
    assert dinov2.swiglu_hidden(1536, 4) == 4096


def test_registers_change_the_default_weights():
    assert dinov2.VARIANTS["dinov2_g14"].hub == "facebook/dinov2-giant"
    with_registers = dinov2.VARIANTS["dinov2_g14_reg"]
    assert with_registers.hub == "facebook/dinov2-with-registers-giant"
    assert with_registers.antialias and not dinov2.VARIANTS["dinov2_g14"].antialias
