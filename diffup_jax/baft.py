"""F3: BAFT, from features and cues to backbone-agnostic priors. No parameters.

Symbols: q, s L2-normalised query and support features of one level, w+ and w- the
cue's known foreground and background averaged over the level's cells, tau a
temperature, p+- the normalised w+- weighted means of s.

    (1) contrast          C(q)  = <q, p+> - <q, p->         (w- empty: first term only)
    (2) assembly          A(q)  = sum_s softmax_s(<q, s> / tau | w+ + w- > 0) w+(s)
    (3) self-propagation  S(P)(q) = sum_q' softmax_q'(<q, q'> / tau) P(q')
    (4) every map is min-max scaled to [0, 1] per image and resized to the prior grid

Priors are made per level, operator and shot: OPERATORS = contrast, assembly and both
self-propagated. Reliability of a prior is how well the same level, operator and shot
predict a cue that is known:

    (5) k >= 2: r = mean over the other shots j of agreement(prior on s_j, cue of j)
    (6) k = 1:  r = agreement(contrast of the support on itself, its cue), all operators
    (7) agreement(P, w) = mean of P where w+ less mean of P where w- (unknown
        background: where not w+)

That cues and multi-scale features become class- and backbone-agnostic priors is
DiffUp's (arXiv 2407.16182), assembly and propagation follow the same group's PGMA-Net;
the equations are this project's. The functions take arrays; no backbone is imported.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffup_jax import images

OPERATORS = ("contrast", "assembly", "propagated contrast", "propagated assembly")

# Weights below this count as "no pixel of the cue in this cell".
_EMPTY = 1e-6


class Priors(NamedTuple):
    """maps [b n l o k p q] in [0, 1]; valid [b n l o k]; reliability [b n l o k]."""

    maps: Float[Array, "b n l o k p q"]
    valid: Bool[Array, "b n l o k"]
    reliability: Float[Array, "b n l o k"]


def make_priors(
    query: tuple[Float[Array, "b ..."], ...],
    support: tuple[Float[Array, "b n k ..."], ...],
    *,
    cue_fg: Float[Array, "b n k h w"],
    cue_bg: Float[Array, "b n k h w"],
    shot_valid: Bool[Array, "b n k"],
    temperature: float,
    grid: tuple[int, int],
) -> Priors:
    """All priors of an episode, equations (1)-(7).

    Args:
      query: per level, features [b p_l q_l c_l].
      support: per level, features [b n k p_l q_l c_l].
      cue_fg: w+ in [0, 1] at pixel resolution.
      cue_bg: w- in [0, 1] at pixel resolution.
      shot_valid: False marks padded shots; their maps are zero and invalid. A shot
        whose cue has no foreground at all is invalid too.
      temperature: tau.
      grid: size of the prior maps.
    """
    levels = [
        _level(q, s, cue_fg, cue_bg, shot_valid, temperature, grid)
        for q, s in zip(query, support, strict=True)
    ]
    maps = jnp.stack([maps for maps, _ in levels], axis=2)
    reliability = jnp.stack([score for _, score in levels], axis=2)
    valid = shot_valid & (cue_fg.max(axis=(-2, -1)) > 0)
    valid = jnp.broadcast_to(valid[:, :, None, None], reliability.shape)
    keep = valid[..., None, None]
    return Priors(jnp.where(keep, maps, 0.0), valid, jnp.where(valid, reliability, 0.0))


def contrast(
    query: Float[Array, "p q c"],
    support: Float[Array, "u v c"],
    foreground: Float[Array, "u v"],
    background: Float[Array, "u v"],
) -> Float[Array, "p q"]:
    """Equation (1), unscaled. `query` and `support` are L2-normalised."""
    positive = images.unit(images.masked_mean(support, foreground))
    negative = images.unit(images.masked_mean(support, background))
    return query @ (positive - negative)


def assembly(
    query: Float[Array, "p q c"],
    support: Float[Array, "u v c"],
    foreground: Float[Array, "u v"],
    background: Float[Array, "u v"],
    *,
    temperature: float,
) -> Float[Array, "p q"]:
    """Equation (2), unscaled; zero everywhere when no cell is known."""
    known = (foreground + background > _EMPTY).reshape(1, 1, -1)
    scores = jnp.einsum("pqc,uvc->pquv", query, support) / temperature
    scores = jnp.where(known, scores.reshape(*scores.shape[:2], -1), -jnp.inf)
    # Subtracting the row's largest score keeps exp finite; 0 where nothing is known.
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
    total = jnp.maximum(weights.sum(axis=-1), 1e-12)
    return weights @ foreground.reshape(-1) / total


def self_affinity(
    features: Float[Array, "p q c"], *, temperature: float
) -> Float[Array, "pq pq"]:
    """Row-stochastic softmax(<q, q'> / tau) of equation (3)."""
    flat = features.reshape(-1, features.shape[-1])
    return jax.nn.softmax(flat @ flat.T / temperature, axis=-1)


def propagate(
    affinity: Float[Array, "pq pq"], maps: Float[Array, "*m p q"]
) -> Float[Array, "*m p q"]:
    """Equation (3) applied to any number of maps at once."""
    flat = maps.reshape(*maps.shape[:-2], -1)
    return jnp.einsum("xy,...y->...x", affinity, flat).reshape(maps.shape)


def agreement(
    maps: Float[Array, "*b p q"],
    foreground: Float[Array, "*b p q"],
    background: Float[Array, "*b p q"],
) -> Float[Array, "*b"]:
    """Equation (7), in [-1, 1]; 0 where the cue has no foreground."""
    unknown = (background.max(axis=(-2, -1), keepdims=True)) < _EMPTY
    background = jnp.where(unknown, 1 - foreground, background)

    def mean(weights):
        total = weights.sum(axis=(-2, -1))
        return (maps * weights).sum(axis=(-2, -1)) / jnp.maximum(total, _EMPTY)

    some = foreground.max(axis=(-2, -1)) > 0
    return jnp.where(some, mean(foreground) - mean(background), 0.0)


def episode_affinity(
    features: Float[Array, "b p q c"], *, grid: tuple[int, int], temperature: float
) -> Float[Array, "b pq pq"]:
    """Query self-affinity on a fixed grid: a matrix over positions of the image.

    Its shape depends on the grid only, not on the backbone that made the features.
    """
    features = images.unit(images.resize(features, grid))
    return jax.vmap(lambda f: self_affinity(f, temperature=temperature))(features)


def _level(query, support, cue_fg, cue_bg, shot_valid, temperature, grid):
    """maps [b n o k p q] at the grid and reliability [b n o k] of one level."""
    query, support = images.unit(query), images.unit(support)
    cells = support.shape[3:5]
    foreground = images.area_average(cue_fg, cells)
    background = images.area_average(cue_bg, cells)

    def operators(query, affinity, support, fg, bg):
        """Four maps [o p q], scaled, of one query image and one shot."""
        base = jnp.stack(
            [
                contrast(query, support, fg, bg),
                assembly(query, support, fg, bg, temperature=temperature),
            ]
        )
        return images.min_max(jnp.concatenate([base, propagate(affinity, base)]))

    def episode(query, support, fg, bg, valid):
        """One query, shots [k ...]: maps [o k p q], reliability [o k]."""
        affine = lambda f: self_affinity(f, temperature=temperature)  # noqa: E731
        over_shots = jax.vmap(operators, (None, None, 0, 0, 0), 1)
        maps = over_shots(query, affine(query), support, fg, bg)
        return maps, _reliability(over_shots, affine, support, fg, bg, valid)

    over_ways = jax.vmap(episode, (None, 0, 0, 0, 0))
    maps, reliability = jax.vmap(over_ways)(
        query, support, foreground, background, shot_valid
    )
    return images.resize_maps(maps, grid), reliability


def _reliability(over_shots, affine, support, fg, bg, valid):
    """Equations (5) and (6) for shots [k ...]; returns [o k]."""
    shots = support.shape[0]
    own = images.min_max(jax.vmap(contrast)(support, support, fg, bg))
    alone = jnp.broadcast_to(agreement(own, fg, bg), (len(OPERATORS), shots))
    if shots == 1:
        return alone

    def onto(target, target_fg, target_bg):
        """How well every shot predicts the cue of one: [o k]."""
        maps = over_shots(target, affine(target), support, fg, bg)
        return agreement(
            maps,
            jnp.broadcast_to(target_fg, maps.shape),
            jnp.broadcast_to(target_bg, maps.shape),
        )

    scores = jax.lax.map(lambda args: onto(*args), (support, fg, bg))  # [j o k]
    others = valid[:, None] & valid[None] & ~jnp.eye(shots, dtype=bool)  # [j k]
    count = others.sum(axis=0)[None]
    left_out = (scores * others[:, None]).sum(axis=0) / jnp.maximum(count, 1)
    return jnp.where(count > 0, left_out, alone)
