"""F4: what training does to priors, so that no backbone's habits are learnt.

Prior dropout leaves out whole (level, operator) pairs; a monotone distortion
P -> P^gamma changes every histogram. Both are this project's choice.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from diffup_jax.methods.prior.baft import Priors


class Draws:
    """Named random draws, one key per episode: adding one changes no other."""

    def __init__(self, keys: Key[Array, " b"]):
        self._keys = keys
        self.count = len(keys)

    def __call__(
        self, name: str, draw: Callable[..., Array], shape: tuple[int, ...]
    ) -> Array:
        """`draw(key, shape)` per episode: [b *shape]."""
        number = sum(ord(letter) * 31**i for i, letter in enumerate(name)) % (2**31)
        return jax.vmap(lambda key: draw(jax.random.fold_in(key, number), shape))(
            self._keys
        )


def disturb(
    priors: Priors, draws: Draws, *, dropout: float, log_gamma: float
) -> tuple[Priors, Bool[Array, "b l o"]]:
    """Distorted priors, and which pairs of level and operator are kept.

    Args:
      dropout: probability of leaving out each pair, and each text operator.
      log_gamma: standard deviation of log gamma.
    """
    # The luckiest pair always stays: an episode without priors teaches nothing.
    u = draws("keep", jax.random.uniform, priors.maps.shape[2:4])
    keep = (u > dropout) | (u == u.max(axis=(1, 2), keepdims=True))
    gamma = draws("gamma", jax.random.normal, priors.maps.shape[1:5])
    priors = priors._replace(maps=_distorted(priors.maps, log_gamma * gamma))
    if priors.text_maps.shape[2]:
        kinds = priors.text_maps.shape[1:3]
        u = draws("text keep", jax.random.uniform, kinds[1:])
        kept = (u > dropout) | (u == u.max(axis=1, keepdims=True))
        gamma = draws("text gamma", jax.random.normal, kinds)
        priors = priors._replace(
            text_maps=_distorted(priors.text_maps, log_gamma * gamma),
            text_valid=priors.text_valid & kept[:, None],
        )
    return priors, keep


def _distorted(
    maps: Float[Array, "*m p q"], log_gamma: Float[Array, "*m"]
) -> Float[Array, "*m p q"]:
    # P = 0 stays 0 for every gamma; the floor keeps the power finite.
    gamma = jnp.exp(log_gamma)[..., None, None]
    return jnp.where(maps > 0, jnp.maximum(maps, 1e-6) ** gamma, 0.0)
