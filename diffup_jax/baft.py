"""F3: BAFT, from features and cues to backbone-agnostic priors. No parameters.

Symbols: q, s L2-normalised query and support features of one level, q*, s* the same
after the mean feature of the query was taken off both, w+ and w- the cue's known
foreground and background averaged over the level's cells, tau a temperature, p+- the
normalised w+- weighted means of s.

    (0) position debias   f <- (1 - B B') f                (some transformers only)
    (1) contrast          C(q)  = <q, p+> - <q, p->         (w- empty: first term only)
    (2) assembly          A(q)  = sum_s softmax_s(<q*, s*> / tau | w+ + w- > 0) w+(s)
    (3) self-propagation  S(P)(q) = sum_q' softmax_q'(<q*, q'*> / tau) P(q')
    (4) text              T(q)  = exp(<j, t> / tau_t) / (exp(<j, t> / tau_t)
                                  + sum_i exp(<j, u_i> / tau_t))
    (5) every map is min-max scaled to [0, 1] per image and resized to the prior grid

In (0) the columns of B are directions of feature space that tell where a cell is, found
on a blank image. In (4) j is a cell in the joint image-text space, t the class's text,
u_i the background texts. Visual priors are made per level, operator and shot: OPERATORS
= contrast, assembly and both self-propagated; text gives two, T and S(T).

Features behind a ReLU share a large mean, which leaves all cosines high and alike;
without it (2) and (3) tell cells apart, while (1), a difference, is worse for it
(measured, docs/results.md).

(2) and (3) never hold the matrix of positions against positions: keys are streamed, see
attention.py. Shots are streamed too, a few at a time.

How reliable each visual prior is, and which shots are repeats, says evidence.py; text:

    (6) r = mean r of the valid visual priors, each by its share; without any, 0

Many shots need not be held as many maps. With weights w over the shots of a level and
operator, sum_k w_k = 1 (uapf.py has them), what fusion asks of their maps P_k is

    (7) mean = sum_k w_k P_k,  spread = sum_k w_k P_k^2 - mean^2

The decoder also gets the query's own structure, as a matrix over positions:

    (8) similarity(q, q') = mean of <q*, q'*> over the levels, on one grid

That cues and multi-scale features become class- and backbone-agnostic priors is
DiffUp's (arXiv 2407.16182), assembly and propagation follow the same group's PGMA-Net,
(0) is INSID3's (arXiv 2603.28480), (4) reads CLIP as MaskCLIP does (arXiv 2112.01071);
the equations are this project's. The functions take arrays; no backbone is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffup_jax import attention, evidence, images
from diffup_jax.evidence import EMPTY

OPERATORS = ("contrast", "assembly", "propagated contrast", "propagated assembly")
TEXT_OPERATORS = ("text", "propagated text")

# Scores of shots that are computed side by side: 16 MB.
_SCORES = 1 << 22
# Shots whose maps are held at once where they are not all kept.
_BLOCK = 10
# Least length, relative to the feature, that `centred` takes for more than noise. Of
# real features 1 % were below 0.75.
_LEFT = 0.5
# Singular values below this share of the first are rounding, not position.
_RANK = 1e-5

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
    """All priors of an episode, equations (1)-(7). No matrix over positions of two
    images is held. With `pool`, no map per shot either: beside the features nothing
    grows with k but the cues at the levels' grids.

    Args:
      query: per level, features [b p_l q_l c_l].
      support: per level, features [b n k p_l q_l c_l]; k may be 0.
      cue_fg: w+ in [0, 1], or bool, at pixel resolution.
      cue_bg: w- in [0, 1], or bool, at pixel resolution.
      shot_valid: False marks padded shots; their maps are zero and invalid. A shot
        whose cue has no foreground at all is invalid too.
      text: T of equation (4), see `text_foreground`; None without a text tower.
      text_valid: False marks episodes without a text cue.
      temperature: tau.
      grid: size of the prior maps.
      pool: pool(valid, reliability, share=...), each [o k], gives w of equation (7);
        None keeps the maps of all shots.
    """
    valid = shot_valid & (cue_fg.max(axis=(-2, -1)) > 0)
    cues = [tuple(_coarse(w, s.shape[3:5]) for w in (cue_fg, cue_bg)) for s in support]
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
    """Equation (2), unscaled, of `centred` features; zero when no cell is known."""
    assembled = attention.attend(
        _flat(query),
        _flat(support),
        foreground.reshape(-1, 1),
        (foreground + background > EMPTY).reshape(-1),
        temperature=temperature,
    )
    return assembled.reshape(query.shape[:2])


def propagate(
    features: Float[Array, "p q c"], maps: Float[Array, "m p q"], *, temperature: float
) -> Float[Array, "m p q"]:
    """Equation (3), all maps in one pass over the `centred` features."""
    flat = _flat(features)
    values = maps.reshape(len(maps), -1).T
    everywhere = jnp.ones(len(flat), bool)
    spread = attention.attend(flat, flat, values, everywhere, temperature=temperature)
    return spread.T.reshape(maps.shape)


def centred(
    features: Float[Array, "p q c"], of: Float[Array, "u v c"]
) -> Float[Array, "p q c"]:
    """q* and s* above: L2-normalised after the mean feature of `of` was taken off.

    What is left of a cell that hardly differs from the mean (a plain wall) is noise:
    below a share of the whole feature it is not blown up to length one.
    """
    rest = features - of.mean(axis=(0, 1), keepdims=True)
    length, whole = (
        jnp.sum(jnp.square(x), axis=-1, keepdims=True) for x in (rest, features)
    )
    least = jnp.maximum(whole * _LEFT**2, images.EPSILON**2)
    return rest * jax.lax.rsqrt(jnp.maximum(length, least))


def text_foreground(
    joint: Float[Array, "b p q d"],
    text: Float[Array, "b n d"],
    background: Float[Array, "u d"],
    *,
    temperature: float,
) -> Float[Array, "b n p q"]:
    """Equation (4): probability of each way's text against the background texts.

    All three are normalised here; `temperature` is tau_t, the reciprocal of the model's
    logit scale unless a config says otherwise.
    """
    joint, text, background = map(images.unit, (joint, text, background))
    wanted = jnp.einsum("bpqd,bnd->bnpq", joint, text) / temperature
    others = jnp.einsum("bpqd,ud->bpqu", joint, background) / temperature
    return jax.nn.sigmoid(wanted - jax.nn.logsumexp(others, axis=-1)[:, None])


def position_basis(
    blank: Float[Array, "p q c"], *, components: int
) -> Float[Array, "c r"]:
    """B of equation (0): the leading directions in which cells of a blank image differ.

    A blank image has nothing to tell its cells apart but their places. r is
    `components`, or less where the image has fewer cells or channels; directions that
    hold nothing but rounding are zero columns, which remove nothing.
    """
    flat = images.unit(_flat(blank))
    flat = flat - flat.mean(axis=0, keepdims=True)
    _, strength, directions = jnp.linalg.svd(flat, full_matrices=False)
    count = min(components, len(flat) - 1, flat.shape[1] - 1)
    real = strength[:count] > jnp.maximum(strength[0] * _RANK, EMPTY)
    return directions[:count].T * real[None]


def without_position(
    features: Float[Array, "*b c"], basis: Float[Array, "c r"]
) -> Float[Array, "*b c"]:
    """Equation (0) on features that are L2-normalised first; not normalised after."""
    features = images.unit(features)
    return features - (features @ basis) @ basis.T


def similarity(
    levels: tuple[Float[Array, "b _ _ _"], ...], *, grid: tuple[int, int]
) -> Float[Array, "b pq pq"]:
    """Equation (8): how alike any two cells of an image are, in [-1, 1].

    Its shape depends on the grid only, not on the backbone that made the features. It
    stays a matrix because the decoder applies it at every step, on a small grid.
    """

    def one(features):
        own = centred(features, features)
        flat = _flat(own)
        return flat @ flat.T

    return sum(jax.vmap(one)(images.resize(each, grid)) for each in levels) / len(
        levels
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
    unit, own = images.unit(target), centred(target, target)

    def shot(i):
        features, *cue = (x[i] for x in shots)
        assembled = assembly(
            own, centred(features, target), *cue, temperature=temperature
        )
        return jnp.stack([contrast(unit, images.unit(features), *cue), assembled])

    side = min(_side_by_side(target, shots[0]), len(which))
    base = jax.lax.map(shot, which, batch_size=side)
    flat = base.reshape(-1, *base.shape[2:])
    spread = propagate(own, flat, temperature=temperature).reshape(base.shape)
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
        return evidence.agreement(images.min_max(contrast(unit, unit, *cue)), *cue)

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
    own = jax.vmap(centred)(query, query)
    spread = jax.vmap(lambda f, m: propagate(f, m, temperature=temperature))(
        own, coarse
    )
    maps = [images.resize_maps(images.min_max(m), grid) for m in (text, spread)]
    return jnp.stack(maps, axis=2)


def _flat(features):
    """[p q c] -> [pq c]."""
    return features.reshape(-1, features.shape[-1])
