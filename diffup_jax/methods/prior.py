"""F4: the training-free method, and the prior that DiffUp's decoder refines.

Frozen backbone -> BAFT priors -> UAPF mean mu and variance. As a method of its own it
answers mu, thresholded by Otsu's criterion (IEEE T-SMC 1979); the evaluator also scores
mu at its best threshold. Nothing here is learnt.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from diffup_jax import baft, images, uapf
from diffup_jax.backbones import Backbone
from diffup_jax.types import Episode

_BINS = 64  # histogram bins of Otsu's threshold


class Fused(NamedTuple):
    """mean, variance [b n p q] at the prior grid; affinity [b pq pq] of the query."""

    mean: Float[Array, "b n p q"]
    variance: Float[Array, "b n p q"]
    affinity: Float[Array, "b pq pq"]


@dataclasses.dataclass(frozen=True)
class PriorSettings:
    """How priors are made.

    levels: names of backbone levels; empty = the backbone's own choice.
    temperature: tau of assembly and self-propagation.
    fusion_temperature: tau of UAPF's reliability weights.
    grid_stride: image pixels per cell of the prior grid.
    affinity_stride: image pixels per cell of the query self-affinity.
    """

    levels: tuple[str, ...]
    temperature: float
    fusion_temperature: float
    grid_stride: int
    affinity_stride: int


@dataclasses.dataclass(frozen=True)
class Prior:
    """The training-free method. `params` is {"backbone": ...}."""

    backbone: Backbone
    settings: PriorSettings
    trainable: tuple[str, ...] = ()

    def init(self, key: Key[Array, ""], episode: Episode) -> dict[str, Any]:
        """Only the frozen backbone; key and episode are part of the contract."""
        del key, episode
        return {"backbone": self.backbone.params}

    def loss(
        self, params: dict, keys: Key[Array, " b"], episode: Episode
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Binary cross entropy of the answer: a number to watch, not to descend."""
        prob, _ = self.predict(params, keys, episode)
        prob = jnp.clip(prob, 1e-4, 1 - 1e-4)
        target, valid = episode.query_mask, episode.query_valid[:, None]
        terms = target * jnp.log(prob) + (1 - target) * jnp.log(1 - prob)
        loss = -(terms * valid).sum() / jnp.maximum(valid.sum() * target.shape[1], 1)
        return loss, {"bce": loss}

    def predict(
        self, params: dict, keys: Key[Array, " b"], episode: Episode
    ) -> tuple[Float[Array, "b n h w"], dict[str, Array]]:
        """mu moved so that Otsu's threshold is 1/2, and the fused maps at h x w."""
        del keys
        size = episode.query.shape[1:3]
        fused = self.fuse(params, self.priors(params, episode), episode)
        mean = images.resize_maps(fused.mean, size)
        threshold = jax.vmap(jax.vmap(_otsu))(fused.mean)[:, :, None, None]
        # Piecewise linear: 0 -> 0, threshold -> 1/2, 1 -> 1.
        below = 0.5 * mean / jnp.maximum(threshold, 1e-6)
        above = 0.5 + 0.5 * (mean - threshold) / jnp.maximum(1 - threshold, 1e-6)
        prob = jnp.clip(jnp.where(mean <= threshold, below, above), 0, 1)
        maps = {
            "prior_mean": mean,
            "prior_variance": images.resize_maps(fused.variance, size),
            "uncertainty": jnp.sqrt(prob * (1 - prob)),
        }
        return prob, maps

    def priors(
        self, params: dict, episode: Episode
    ) -> tuple[baft.Priors, Float[Array, "b p q c"]]:
        """BAFT's priors of an episode and the query's deepest prior level.

        Raises:
          ValueError: at trace time, if the image is smaller than the prior grid.
        """
        b, n, k, h, w, _ = episode.support.shape
        apply = self.backbone.apply
        query = apply(params["backbone"], episode.query, normalised=False).levels
        flat = episode.support.reshape(b * n * k, h, w, 3)
        support = apply(params["backbone"], flat, normalised=False).levels
        names = self.settings.levels or self.backbone.prior_levels
        priors = baft.make_priors(
            tuple(query[name] for name in names),
            tuple(
                support[name].reshape(b, n, k, *support[name].shape[1:])
                for name in names
            ),
            cue_fg=episode.cue_fg,
            cue_bg=episode.cue_bg,
            shot_valid=episode.shot_valid,
            temperature=self.settings.temperature,
            grid=_grid((h, w), self.settings.grid_stride),
        )
        return priors, query[names[-1]]

    def fuse(
        self,
        params: dict,
        made: tuple[baft.Priors, Float[Array, "b p q c"]],
        episode: Episode,
        keep: Bool[Array, "b l o"] | None = None,
    ) -> Fused:
        """UAPF over the priors; `keep` drops whole levels and operators (training)."""
        priors, last = made
        b, n, levels, operators, k, p, q = priors.maps.shape
        m = levels * operators * k
        valid = priors.valid
        if keep is not None:
            valid = valid & keep[:, None, :, :, None]
        mean, variance = uapf.fuse(
            priors.maps.reshape(b, n, m, p, q),
            valid.reshape(b, n, m),
            reliability=priors.reliability.reshape(b, n, m),
            temperature=self.settings.fusion_temperature,
            floor=uapf.cue_floor(
                episode.cue_kind, episode.shot_valid, episode.text_valid
            ),
        )
        size = episode.query.shape[1:3]
        affinity = baft.episode_affinity(
            last,
            grid=_grid(size, self.settings.affinity_stride),
            temperature=self.settings.temperature,
        )
        return Fused(mean, variance, affinity)


def _grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return max(size[0] // stride, 1), max(size[1] // stride, 1)


def _otsu(mean: Float[Array, "p q"]) -> Float[Array, ""]:
    """The threshold that maximises the variance between the two sides."""
    edges = jnp.linspace(0.0, 1.0, _BINS + 1)
    counts = jnp.histogram(mean.reshape(-1), bins=edges)[0].astype(jnp.float32)
    centres = (edges[:-1] + edges[1:]) / 2
    below = jnp.cumsum(counts)
    first = jnp.cumsum(counts * centres)
    above = below[-1] - below
    gap = first / jnp.maximum(below, 1) - (first[-1] - first) / jnp.maximum(above, 1)
    between = below * above * jnp.square(gap)
    # Empty bins tie: the middle of the best run, so that two modes split half-way.
    best = between >= between.max() * (1 - 1e-6)
    return (edges[1:] * best).sum() / best.sum()
