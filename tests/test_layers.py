"""Laws of layers.py: `Conv` is flax's convolution, however it is computed."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.layers import Conv


class Plain(nn.Module):
    """`Conv` with nothing but nn.Conv in it."""

    features: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x):
        half = self.kernel // 2
        return nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=(self.stride, self.stride),
            padding=((half, half), (half, half)),
            name="conv",
        )(x)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("shape", "features"),
    [((2, 8, 6, 5), 4), ((2, 7, 9, 3), 6), ((2, 7, 8, 1), 4), ((2, 8, 8, 4), 1)],
)
def test_conv_is_flax_conv(kernel, stride, shape, features):
    ours, plain = Conv(features, kernel, stride), Plain(features, kernel, stride)
    x = jax.random.normal(jax.random.key(0), shape)
    params = plain.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(1), x), params)

    def loss(module):
        def value(params, x):
            y = module.apply(params, x)
            return jnp.sum(jnp.sin(3 * y)), y

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))

    jax.tree.map(_near, loss(ours)(params, x), loss(plain)(params, x))


@pytest.mark.parametrize("kernel", [1, 3])
def test_conv_of_bfloat16_and_frozen_parameters(kernel):
    """bfloat16 features meet float32 parameters as in nn.Conv; gradients can stop."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3)).astype(jnp.bfloat16)
    ours, plain = Conv(4, kernel), Plain(4, kernel, 1)
    params = plain.init(jax.random.key(1), x)
    got, want = ours.apply(params, x), plain.apply(params, x)
    assert got.dtype == want.dtype
    _near(got, want)
    frozen = jax.grad(lambda p: ours.apply(jax.lax.stop_gradient(p), x).sum())(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(frozen))


def _near(got, want):
    """Within 1e-5 of the largest value."""
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
