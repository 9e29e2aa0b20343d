"""F3: BAFT, from features and cues to backbone-agnostic priors. No parameters.

Priors are made per level, operator and shot: contrast (1), assembly (2) and both
self-propagated (3), equations of operators.py; text gives two, T (4) and S(T). P is a
map, w+ and w- the cue's known foreground and background averaged over a level's cells;
of strokes and points, what they leave unsaid counts as background (evidence.py).

    (5) every map is min-max scaled to [0, 1] per image and resized to the prior grid

No matrix of positions against positions is held: keys are streamed, see attention.py.
Shots are streamed too, a few at a time.

How reliable each visual prior is, and which shots are repeats, says evidence.py; text:

    (6) r = mean r of the valid visual priors, each by its share; without any, 0

Many shots need not be held as many maps. With weights w over the shots of a level and
operator, sum_k w_k = 1 (uapf.py has them), what fusion asks of their maps P_k is

    (7) mean = sum_k w_k P_k,  spread = sum_k w_k P_k^2 - mean^2

That cues and multi-scale features become class- and backbone-agnostic priors is
DiffUp's (arXiv 2407.16182); the equations are this project's. The functions take
arrays; no backbone is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffup_jax import attention, evidence, images, operators
from diffup_jax.evidence import EMPTY

OPERATORS = ("contrast", "assembly", "propagated contrast", "propagated assembly")
TEXT_OPERATORS = ("text", "propagated text")

# Scores of shots that are computed side by side: 16 MB.
_SCORES = 1 << 22
# Shots whose maps are held at once where they are not all kept.
_BLOCK = 10

# (valid, reliability, share), each [o k], -> weights [o k] of the shots.
_Pool = Callable[..., Float[Array, "o k"]]


class Priors(NamedTuple):
    """What BAFT makes of an episode.

    maps [b n l o g p q] in [0, 1], g = k, or 1 of pooled shots: equation (7)'s mean,
    with its spread [b n l o 1 p q] (None of shots that were not pooled). Of every shot,
    pooled or not: valid [b n l o k]; reliability [b n l o k] in [-1, 1]; share [b n k]
    in (0, 1], see evidence.py. The same of text, t of TEXT_OPERATORS or 0 without a
    text tower: text_maps [b n t p q], text_valid [b n t], text_reliability [b n t].
    """

    maps: Float[Array, "b n l o g p q"]
    spread: Float[Array, "b n l o 1 p q"] | None
    valid: Bool[Array, "b n l o k"]
    reliability: Float[Array, "b n l o k"]
    share: Float[Array, "b n k"]
    text_maps: Float[Array, "b n t p q"]
    text_valid: Bool[Array, "b n t"]
    text_reliability: Float[Array, "b n t"]


def make_priors(
    query: tuple[Float[Array, "b ..."], ...],
    support: tuple[Float[Array, "b n k ..."], ...],
    *,
    cue_fg: evidence.Cue,
    cue_bg: evidence.Cue,
    shot_valid: Bool[Array, "b n k"],
    text: Float[Array, "b n u v"] | None,
    text_valid: Bool[Array, "b n"],
    temperature: float,
    grid: tuple[int, int],
    pool: _Pool | None,
) -> Priors:
    """All priors of an episode, equations (5)-(7). No matrix over positions of two
    images is held. With `pool`, no map per shot either: beside the features nothing
    grows with k but the cues at the levels' grids.

    Args:
      query: per level, features [b p_l q_l c_l].
      support: per level, features [b n k p_l q_l c_l]; k may be 0.
      cue_fg: w+ in [0, 1], or bool, at pixel resolution.
      cue_bg: w- in [0, 1], or bool, at pixel resolution.
      shot_valid: False marks padded shots; their maps are zero and invalid. A shot
        whose cue has no foreground at all is invalid too.
      text: T of equation (4), operators.text_foreground; None without a text tower.
      text_valid: False marks episodes without a text cue.
      temperature: tau.
      grid: size of the prior maps.
      pool: pool(valid, reliability, share=...), each [o k], gives w of equation (7);
        None keeps the maps of all shots.
    """
    valid = shot_valid & (cue_fg.max(axis=(-2, -1)) > 0)
    told = evidence.told(cue_fg, cue_bg, valid)

    def coarse(grid):
        foreground, background = (_coarse(w, grid) for w in (cue_fg, cue_bg))
        return foreground, evidence.presumed(foreground, background, told)

    cues = [coarse(features.shape[3:5]) for features in support]
    same, share = evidence.repeats(support, cues, valid=valid)
    levels = [
        _level(
            q,
            (s, *w),
            valid,
            same,
            share,
            temperature=temperature,
            grid=grid,
            pool=pool,
        )
        for q, s, w in zip(query, support, cues, strict=True)
    ]
    maps, spread, reliability = jax.tree.map(lambda *x: jnp.stack(x, axis=2), *levels)
    valid = jnp.broadcast_to(valid[:, :, None, None], reliability.shape)
    reliability = jnp.where(valid, reliability, 0.0)
    if pool is None:
        maps = jnp.where(valid[..., None, None], maps, 0.0)

    text_maps = jnp.zeros((*text_valid.shape, 0, *grid))
    if text is not None:
        text_maps = _text(query[-1], text, temperature, grid)
    text_maps = jnp.where(text_valid[:, :, None, None, None], text_maps, 0.0)
    kinds = (*text_valid.shape, text_maps.shape[2])
    counted = valid * share[:, :, None, None]
    mean = (reliability * counted).sum(axis=(2, 3, 4))
    mean = mean / jnp.maximum(counted.sum(axis=(2, 3, 4)), EMPTY)
    return Priors(
        maps=maps,
        spread=spread,
        valid=valid,
        reliability=reliability,
        share=share,
        text_maps=text_maps,
        text_valid=jnp.broadcast_to(text_valid[:, :, None], kinds),
        text_reliability=jnp.broadcast_to(mean[:, :, None], kinds),
    )


def _level(query, shots, valid, same, share, *, temperature, grid, pool):
    """Maps [b n o g p q] at the grid, their spread, and reliability [b n o k].

    shots: features [b n k p q c] of one level, w+ and w- [b n k p q].
    """
    count = shots[0].shape[2]
    if count == 0:
        none = (*valid.shape[:2], len(OPERATORS), 0)
        return jnp.zeros((*none, *grid)), None, jnp.zeros(none)

    def episode(query, shots, valid, same, share):
        reliability = _reliability(query, shots, valid, same, share, temperature)
        if pool is None:
            maps = _onto(query, shots, jnp.arange(count), temperature)
            return images.resize_maps(maps, grid), None, reliability
        known, part = (jnp.broadcast_to(x, reliability.shape) for x in (valid, share))
        weights = pool(known, reliability, share=part)
        return (*_pooled(query, shots, weights, temperature, grid), reliability)

    over_ways = jax.vmap(episode, (None, 0, 0, 0, 0))
    return jax.vmap(over_ways)(query, shots, valid, same, share)


def _onto(target, shots, which, temperature):
    """Maps [o i p q], scaled, of one image by the shots `which` [i] of shots [k ...].

    Shots are read from where they lie: neither the scan nor `vmap` copies the others.
    """
    unit, own = images.unit(target), operators.centred(target, target)

    def shot(i):
        features, *cue = (x[i] for x in shots)
        contrasted = operators.contrast(unit, images.unit(features), *cue)
        assembled = operators.assembly(
            own, operators.centred(features, target), *cue, temperature=temperature
        )
        return jnp.stack([contrasted, assembled])

    side = min(_side_by_side(target, shots[0]), len(which))
    base = jax.lax.map(shot, which, batch_size=side)
    flat = base.reshape(-1, *base.shape[2:])
    spread = operators.propagate(own, flat, temperature=temperature).reshape(base.shape)
    maps = jnp.concatenate([base, spread], axis=1)
    return images.min_max(jnp.swapaxes(maps, 0, 1))


def _pooled(query, shots, weights, temperature, grid):
    """Equation (7) at the grid, mean and spread [o 1 p q]; weights [o k]."""
    which = _blocks(weights.shape[1])
    rest = which.size - weights.shape[1]
    weights = jnp.pad(weights, ((0, 0), (0, rest))).reshape(-1, *which.shape)

    def add(sums, block):
        which, weights = block
        maps = images.resize_maps(_onto(query, shots, which, temperature), grid)
        maps = jnp.where(weights[..., None, None] > 0, maps, 0.0)
        powers = jnp.stack([maps, jnp.square(maps)])
        return sums + jnp.einsum(
            "oi,toipq->topq", weights, powers, precision=jax.lax.Precision.HIGHEST
        ), None

    nothing = jnp.zeros((2, len(weights), *grid))
    blocks = (jnp.asarray(which), jnp.swapaxes(weights, 0, 1))
    (mean, second), _ = jax.lax.scan(add, nothing, blocks)
    spread = jnp.maximum(second - jnp.square(mean), 0.0)
    return mean[:, None], spread[:, None]


def _reliability(query, shots, valid, same, share, temperature):
    """How far each operator is to be trusted of shots [k ...]: [o k]."""
    support, *cues = shots
    count = len(support)

    def itself(i):
        unit, cue = images.unit(support[i]), [w[i] for w in cues]
        own = images.min_max(operators.contrast(unit, unit, *cue))
        return evidence.agreement(own, *cue)

    alone = jax.lax.map(itself, jnp.arange(count), batch_size=min(count, _BLOCK))
    alone = jnp.broadcast_to(alone, (len(OPERATORS), count))
    if count == 1:
        return alone
    which, counts = evidence.judges(query, support, valid=valid, same=same, share=share)

    def judged(j):
        """How well every shot predicts the cue of one: [o k]."""

        def agree(block):
            maps = _onto(support[j], shots, block, temperature)
            cue = (jnp.broadcast_to(w[j], maps.shape) for w in cues)
            return evidence.agreement(maps, *cue)

        scores = jax.lax.map(agree, jnp.asarray(_blocks(count)))  # [m o i]
        scores = jnp.swapaxes(scores, 0, 1).reshape(len(OPERATORS), -1)
        return scores[:, :count]

    return evidence.reliability(
        jax.lax.map(judged, which),
        alone,
        which=which,
        counts=counts,
        valid=valid,
        same=same,
    )


def _blocks(shots):
    """Indices [m i] of blocks of at most _BLOCK shots; the last shot fills them up."""
    count = -(-shots // _BLOCK)
    size = -(-shots // count)
    return np.minimum(np.arange(count * size), shots - 1).reshape(count, size)


def _coarse(cue, grid):
    """Cues [b n k h w] at a level's grid; of many, a few at a time become floats."""
    shots = cue.shape[2]
    if shots <= _BLOCK:
        return images.area_average(cue, grid)
    one = lambda i: images.area_average(cue[:, :, i], grid)  # noqa: E731
    coarse = jax.lax.map(one, jnp.arange(shots), batch_size=_BLOCK)
    return jnp.moveaxis(coarse, 0, 2)


def _side_by_side(target, support):
    """How many shots to look at at once."""
    positions = target.shape[0] * target.shape[1]
    block = attention.key_block(positions, support.shape[1] * support.shape[2])
    return max(_SCORES // (positions * block), 1)


def _text(query, text, temperature, grid):
    """Text maps [b n t p q] at the grid: T and S(T) by the features of one level."""
    coarse = images.resize_maps(text, query.shape[1:3])
    own = jax.vmap(operators.centred)(query, query)
    spread = jax.vmap(lambda f, m: operators.propagate(f, m, temperature=temperature))(
        own, coarse
    )
    maps = [images.resize_maps(images.min_max(m), grid) for m in (text, spread)]
    return jnp.stack(maps, axis=2)
