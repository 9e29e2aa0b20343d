"""F1: linen blocks used by more than one network of this project."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Conv(nn.Module):
    """Square convolution with explicit padding k // 2, as torch pads.

    Flax's "SAME" pads stride-2 convolutions by (0, 1) and would shift the grid by half
    a cell against every published network.
    """

    features: int
    kernel: int
    stride: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        half = self.kernel // 2
        return nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=(self.stride, self.stride),
            padding=((half, half), (half, half)),
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            conv_general_dilated=_convolve,
            name="conv",
        )(x)


def time_features(t: Float[Array, " b"], *, size: int) -> Float[Array, "b size"]:
    """Sines and cosines of t at geometric frequencies from 1/2 to 32 turns."""
    turns = jnp.geomspace(0.5, 32.0, size // 2)
    angles = 2 * jnp.pi * t[:, None] * turns[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def norm(channels: int, *, affine: bool, name: str | None = None) -> nn.GroupNorm:
    """GroupNorm with groups of 16 channels (fewer channels: one group)."""
    groups = max(channels // 16, 1)
    return nn.GroupNorm(groups, use_bias=affine, use_scale=affine, name=name)


def _convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options,
) -> Float[Array, "b p q d"]:
    """What nn.Conv calls: lax's convolution, or a product over channels for 1 x 1.

    XLA takes the gradient of a kernel as a convolution whose window is the whole image.
    On a CPU that costs many times the forward pass; the product's gradient does not.
    """
    if kernel.shape[:2] == (1, 1) and max(strides) == 1:
        return jnp.dot(x, kernel[0, 0], precision=options["precision"])
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
