"""F2: cells that are alike to the backbone share what the decoder found.

Symbols: S the similarity of the query's cells, a cosine; D their distance on its grid,
whose side is 1; h maps of the decoder, brought to that grid and back.

    (1) A_j = softmax(exp(s_j) S - exp(d_j) D^2)      heads j; s_j, d_j are learnt
    (2) h  <- h + O [A_j V h]_j

Attention by a matrix over positions: its size depends on the image alone, so no channel
of it depends on the backbone. This project's choice.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax import images
from diffup_jax.layers import Conv

# Before training, head j of equation (1) looks at cosines times _SHARPNESS[j], and at
# squared distances (the grid's side is 1) times _NEARNESS.
_SHARPNESS = (4.0, 8.0, 16.0, 32.0)
_NEARNESS = 4.0


class Alike(nn.Module):
    """The weights A_j of equation (1), rows sum to one."""

    @nn.compact
    def __call__(self, similarity: Float[Array, "b g g"]) -> Float[Array, "b j g g"]:
        heads = len(_SHARPNESS)
        sharp = self.param("sharpness", lambda _: jnp.log(jnp.asarray(_SHARPNESS)))
        # Not jnp.full of a Python number: its weak type is gone after one update, and
        # then the whole step would be compiled again.
        near = self.param(
            "nearness", lambda _: jnp.log(jnp.asarray([_NEARNESS] * heads))
        )
        side = _side(similarity)
        places = jnp.stack(jnp.mgrid[:side, :side], axis=-1).reshape(-1, 2) / side
        distance = jnp.square(places[:, None] - places[None]).sum(axis=-1)
        scale = lambda x: jnp.exp(x)[None, :, None, None]  # noqa: E731
        return nn.softmax(
            scale(sharp) * similarity[:, None] - scale(near) * distance[None, None],
            axis=-1,
        )


class Share(nn.Module):
    """Equation (2); O starts at zero."""

    @nn.compact
    def __call__(
        self, h: Float[Array, "b p q c"], alike: Float[Array, "b j g g"]
    ) -> Float[Array, "b p q c"]:
        channels = h.shape[-1]
        value = Conv(8, 1, name="value")(nn.silu(h))
        out = Conv(channels, 1, kernel_init=nn.initializers.zeros, name="out")
        return h + out(through(value, alike))


def through(
    maps: Float[Array, "b p q c"], alike: Float[Array, "b j g g"]
) -> Float[Array, "b p q jc"]:
    """A_j times maps, on the grid of A and back; heads side by side."""
    side = _side(alike)
    coarse = images.resize(maps, (side, side))
    flat = coarse.reshape(len(maps), side * side, -1)
    found = jnp.einsum("bjxy,byc->bxjc", alike, flat)
    return images.resize(found.reshape(len(maps), side, side, -1), maps.shape[1:3])


def nearest_level(maps: Float[Array, "b p ..."], alike: Float[Array, "b j g g"]) -> int:
    """The pyramid level whose grid is nearest to that of A."""
    octaves = math.log2(maps.shape[1] / _side(alike))
    return min(max(round(octaves), 0), 3)


def _side(matrix: Float[Array, "*b g g"]) -> int:
    return math.isqrt(matrix.shape[-1])
