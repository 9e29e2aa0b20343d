"""F0: arrays of pixels. Resizing, averaging over areas, scaling and masked pooling.

All functions are pure, take leading batch axes and are jit-able.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

# Added to every denominator that a user's data can drive to zero.
EPSILON = 1e-6


def to_float(images: Num[Array, "*batch h w c"]) -> Float[Array, "*batch h w c"]:
    """Images as floats in [0, 1]; uint8 is divided by 255, floats pass unchanged."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    return images.astype(jnp.float32)


def resize(
    maps: Float[Array, "*batch h w c"], size: tuple[int, int]
) -> Float[Array, "*batch p q c"]:
    """Bilinear resize with half-pixel centres; shrinking averages (antialias)."""
    if maps.shape[-3:-1] == tuple(size):
        return maps
    shape = (*maps.shape[:-3], *size, maps.shape[-1])
    return jax.image.resize(maps, shape, method="linear", antialias=True)


def resize_images(
    images: Num[Array, "*batch h w c"], size: tuple[int, int]
) -> Num[Array, "*batch p q c"]:
    """`resize` for images; those of that size pass unchanged, others become floats."""
    if images.shape[-3:-1] == tuple(size):
        return images
    return resize(to_float(images), size)


def resize_maps(
    maps: Float[Array, "*batch h w"], size: tuple[int, int]
) -> Float[Array, "*batch p q"]:
    """`resize` for maps without a channel axis."""
    return resize(maps[..., None], size)[..., 0]


def area_average(
    maps: Bool[Array, "*batch h w"] | Float[Array, "*batch h w"],
    grid: tuple[int, int],
) -> Float[Array, "*batch p q"]:
    """Mean of each grid cell, exact for any ratio of sizes; True counts as 1.

    A cell that covers a fraction of a pixel takes that fraction of it, so the mean of
    the result equals the mean of the input and one marked pixel never vanishes.
    """
    rows = jnp.asarray(_overlap(maps.shape[-2], grid[0]))
    columns = jnp.asarray(_overlap(maps.shape[-1], grid[1]))
    if maps.dtype == jnp.bool_:
        maps = maps.astype(rows.dtype)
    return jnp.einsum("ph,...hw,qw->...pq", rows, maps, columns)


def min_max(maps: Float[Array, "*batch p q"]) -> Float[Array, "*batch p q"]:
    """Each map scaled to [0, 1]; a constant map becomes zero."""
    low = maps.min(axis=(-2, -1), keepdims=True)
    high = maps.max(axis=(-2, -1), keepdims=True)
    return (maps - low) / jnp.maximum(high - low, EPSILON)


def masked_mean(
    features: Float[Array, "*batch p q c"], weights: Float[Array, "*batch p q"]
) -> Float[Array, "*batch c"]:
    """Weighted mean over positions; zero where all weights are zero."""
    total = weights.sum(axis=(-2, -1))
    summed = jnp.einsum("...pqc,...pq->...c", features, weights)
    return summed / jnp.maximum(total, EPSILON)[..., None]


def unit(features: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
    """L2-normalised over the last axis; a zero vector stays zero."""
    squared = jnp.sum(features * features, axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squared, EPSILON**2))


def _overlap(pixels: int, cells: int) -> np.ndarray:
    """[cells pixels]: share of each pixel in each cell's mean; rows sum to one."""
    edges = np.arange(cells + 1) * (pixels / cells)
    starts = np.arange(pixels)
    low = np.maximum(edges[:-1, None], starts[None])
    high = np.minimum(edges[1:, None], starts[None] + 1)
    return (np.clip(high - low, 0, None) * (cells / pixels)).astype(np.float32)
