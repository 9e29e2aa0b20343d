"""EfficientNet-Lite without torch: counts and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import backbones, weights
from diffup_jax.backbones import efficientnet

SMALL = efficientnet.Variant(
    widths=(8, 16, 16, 24, 24, 32, 40), depths=(1, 2, 1, 1, 2, 1, 1), hub="", licence=""
)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite1", 5_416_680),
        ("efficientnet_lite2", 6_092_072),
        ("efficientnet_lite3", 8_197_096),
        ("efficientnet_lite4", 13_006_568),
    ],
)
def test_parameter_counts_are_the_published_ones(name, total):
    """Less the classifier of 1000 classes, 1 281 000."""
    assert backbones.parameters(name) == total - 1_281_000


def test_bfloat16_is_near_float32():
    recipe = efficientnet.recipe_of(SMALL, dtype=jnp.float32)
    params = weights.random(backbones.shapes(recipe)["image"], seed=0)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("f")
    full, half = (
        jax.jit(efficientnet.EfficientNetLite(SMALL, dtype=dtype).apply)(params, images)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.last.dtype == jnp.bfloat16
    for name, want in full.levels.items():
        got = np.asarray(half.levels[name], np.float32)
        distance = np.abs(got - want).max() / np.abs(want).max()
        assert 0 < distance < 0.1, name


def test_no_hugging_face_config_is_a_lite_one():
    assert efficientnet.from_config({"model_type": "efficientnet"}) is None
