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

Reliability of a prior is how well the same level, operator and shot predict a cue that
is known:

    (6) k >= 2: r = mean over the other shots j of agreement(prior on s_j, cue of j)
    (7) k = 1:  r = agreement(contrast of the support on itself, its cue), all operators
    (8) agreement(P, w) = mean of P where w+ less mean of P where w- (unknown
        background: where not w+)
    (9) text:   r = mean r of the valid visual priors; without any, 0 (uniform)

Repeated evidence counts once. Shots with the same features and the same cue on every
level (what BAFT sees of them) are one group of g shots; each has the share 1 / g in
fusion, in the means of (6) and (10), and no shot is an "other" of its own group: else a
copy would vouch for itself. So [A, A, B] gives what [A, B] gives.

Min-max scaling forgets how much of an image the class covers; the cue knows:

   (10) extent = (log(a + 0.001) + 3, 1), a the mean share of w+ over the shots whose
        cue says of most pixels what they are (mask, box); (0, 0) without such a shot
   (11) layout = mean of w+ over the same shots, at the prior grid

The decoder also gets the query's own structure, as a matrix over positions:

   (12) similarity(q, q') = mean of <q*, q'*> over the levels, on one grid

That cues and multi-scale features become class- and backbone-agnostic priors is
DiffUp's (arXiv 2407.16182), assembly and propagation follow the same group's PGMA-Net,
(0) is INSID3's (arXiv 2603.28480), (4) reads CLIP as MaskCLIP does (arXiv 2112.01071);
the equations are this project's. The functions take arrays; no backbone is imported.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffup_jax import attention, images

OPERATORS = ("contrast", "assembly", "propagated contrast", "propagated assembly")
TEXT_OPERATORS = ("text", "propagated text")

# Weights below this count as "no pixel of the cue in this cell".
_EMPTY = 1e-6
# Shots are the same when |a - b|^2 <= this (|a|^2 + |b|^2), features and cues alike:
# far above the rounding of any backbone, far below two photographs or two strokes.
_SAME = 1e-4
# Scores of shots that are computed side by side: 16 MB.
_SCORES = 1 << 22
# Least length, relative to the feature, that `centred` takes for more than noise. Of
# real features 1 % were below 0.75.
_LEFT = 0.5
# Singular values below this share of the first are rounding, not position.
_RANK = 1e-5

_Cue = Bool[Array, "b n k h w"] | Float[Array, "b n k h w"]


class Priors(NamedTuple):
    """What BAFT makes of an episode.

    maps [b n l o k p q] in [0, 1]; valid [b n l o k]; reliability [b n l o k] in
    [-1, 1]; share [b n k] in (0, 1], 1 / g above. The same of text, t of
    TEXT_OPERATORS or 0 without a text tower: text_maps [b n t p q], text_valid [b n t],
    text_reliability [b n t].
    """

    maps: Float[Array, "b n l o k p q"]
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
    cue_fg: _Cue,
    cue_bg: _Cue,
    shot_valid: Bool[Array, "b n k"],
    text: Float[Array, "b n u v"] | None,
    text_valid: Bool[Array, "b n"],
    temperature: float,
    grid: tuple[int, int],
) -> Priors:
    """All priors of an episode, equations (1)-(9). No matrix over positions of two
    images is held; what is (features, their unit form, maps) grows with k.

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
    """
    valid = shot_valid & (cue_fg.max(axis=(-2, -1)) > 0)
    cues = [
        tuple(images.area_average(w, s.shape[3:5]) for w in (cue_fg, cue_bg))
        for s in support
    ]
    same, share = _repeats(support, cues, valid)
    levels = [
        _level(q, s, *w, valid, same, share, temperature, grid)
        for q, s, w in zip(query, support, cues, strict=True)
    ]
    maps = jnp.stack([maps for maps, _ in levels], axis=2)
    reliability = jnp.stack([score for _, score in levels], axis=2)
    valid = jnp.broadcast_to(valid[:, :, None, None], reliability.shape)
    reliability = jnp.where(valid, reliability, 0.0)
    maps = jnp.where(valid[..., None, None], maps, 0.0)

    text_maps = jnp.zeros((*text_valid.shape, 0, *grid))
    if text is not None:
        text_maps = _text(query[-1], text, temperature, grid)
    text_maps = jnp.where(text_valid[:, :, None, None, None], text_maps, 0.0)
    kinds = (*text_valid.shape, text_maps.shape[2])
    counted = valid * share[:, :, None, None]
    mean = (reliability * counted).sum(axis=(2, 3, 4))
    mean = mean / jnp.maximum(counted.sum(axis=(2, 3, 4)), _EMPTY)
    return Priors(
        maps=maps,
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
        (foreground + background > _EMPTY).reshape(-1),
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
    real = strength[:count] > jnp.maximum(strength[0] * _RANK, _EMPTY)
    return directions[:count].T * real[None]


def without_position(
    features: Float[Array, "*b c"], basis: Float[Array, "c r"]
) -> Float[Array, "*b c"]:
    """Equation (0) on features that are L2-normalised first; not normalised after."""
    features = images.unit(features)
    return features - (features @ basis) @ basis.T


def agreement(
    maps: Float[Array, "*b p q"],
    foreground: Float[Array, "*b p q"],
    background: Float[Array, "*b p q"],
) -> Float[Array, "*b"]:
    """Equation (8), in [-1, 1]; 0 where the cue has no foreground."""
    unknown = (background.max(axis=(-2, -1), keepdims=True)) < _EMPTY
    background = jnp.where(unknown, 1 - foreground, background)

    def mean(weights):
        total = weights.sum(axis=(-2, -1))
        return (maps * weights).sum(axis=(-2, -1)) / jnp.maximum(total, _EMPTY)

    some = foreground.max(axis=(-2, -1)) > 0
    return jnp.where(some, mean(foreground) - mean(background), 0.0)


def extent(
    cue_fg: _Cue,
    cue_bg: _Cue,
    shot_valid: Bool[Array, "b n k"],
    *,
    share: Float[Array, "b n k"],
) -> Float[Array, "b n 2"]:
    """Equation (10): how large the class is in the supports, and whether it is known.

    The first number runs from about -3.9 (one pixel) to 3 (the whole image).
    """
    covered = cue_fg.mean(axis=(-2, -1))
    counted = _told(cue_fg, cue_bg, shot_valid) * share
    shots = counted.sum(axis=2)
    known = shots > 0
    mean = (covered * counted).sum(axis=2) / jnp.where(known, shots, 1.0)
    size = jnp.where(known, jnp.log(mean + 1e-3) + 3, 0.0)
    return jnp.stack([size, known.astype(size.dtype)], axis=-1)


def layout(
    cue_fg: _Cue,
    cue_bg: _Cue,
    shot_valid: Bool[Array, "b n k"],
    *,
    share: Float[Array, "b n k"],
    grid: tuple[int, int],
) -> Float[Array, "b n p q"]:
    """Equation (11): where the class lies in the supports; zero where none tells."""
    counted = _told(cue_fg, cue_bg, shot_valid) * share
    shots = jnp.maximum(counted.sum(axis=2), _EMPTY)[:, :, None, None]
    covered = images.area_average(cue_fg, grid)
    return (covered * counted[..., None, None]).sum(axis=2) / shots


def similarity(
    levels: tuple[Float[Array, "b _ _ _"], ...], *, grid: tuple[int, int]
) -> Float[Array, "b pq pq"]:
    """Equation (12): how alike any two cells of an image are, in [-1, 1].

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


def _level(query, support, fg, bg, valid, same, share, temperature, grid):
    """maps [b n o k p q] at the grid and reliability [b n o k] of one level."""
    shots = support.shape[2]
    if shots == 0:
        b, n = support.shape[:2]
        return (
            jnp.zeros((b, n, len(OPERATORS), 0, *grid)),
            jnp.zeros((b, n, len(OPERATORS), 0)),
        )

    def onto(target, support, fg, bg):
        """Maps [o k p q], scaled, of one image and shots [k ...]."""
        unit, own = images.unit(target), centred(target, target)

        def shot(args):
            features, *cue = args
            assembled = assembly(
                own, centred(features, target), *cue, temperature=temperature
            )
            return jnp.stack([contrast(unit, images.unit(features), *cue), assembled])

        side = _side_by_side(target, support)
        base = jax.lax.map(shot, (support, fg, bg), batch_size=min(side, shots))
        flat = base.reshape(-1, *base.shape[2:])
        spread = propagate(own, flat, temperature=temperature).reshape(base.shape)
        maps = jnp.concatenate([base, spread], axis=1)
        return images.min_max(jnp.swapaxes(maps, 0, 1))

    def episode(query, support, fg, bg, *counted):
        return (
            onto(query, support, fg, bg),
            _reliability(onto, support, fg, bg, *counted),
        )

    over_ways = jax.vmap(episode, (None, *[0] * 6))
    maps, reliability = jax.vmap(over_ways)(query, support, fg, bg, valid, same, share)
    return images.resize_maps(maps, grid), reliability


def _reliability(onto, support, fg, bg, valid, same, share):
    """Equations (6) and (7) for shots [k ...]; returns [o k]."""
    shots = support.shape[0]
    unit = images.unit(support)
    own = images.min_max(jax.vmap(contrast)(unit, unit, fg, bg))
    alone = jnp.broadcast_to(agreement(own, fg, bg), (len(OPERATORS), shots))
    if shots == 1:
        return alone

    def known(args):
        """How well every shot predicts the cue of one: [o k]."""
        target, target_fg, target_bg = args
        maps = onto(target, support, fg, bg)
        return agreement(
            maps,
            jnp.broadcast_to(target_fg, maps.shape),
            jnp.broadcast_to(target_bg, maps.shape),
        )

    scores = jax.lax.map(known, (support, fg, bg))  # [j o k]
    others = (valid[:, None] & valid[None] & ~same) * share[:, None]  # [j k]
    count = others.sum(axis=0)[None]
    left_out = (scores * others[:, None]).sum(axis=0) / jnp.where(count > 0, count, 1)
    return jnp.where(count > 0, left_out, alone)


def _told(cue_fg, cue_bg, shot_valid):
    """Shots [b n k] whose cue says of most pixels what they are."""
    covered = cue_fg.mean(axis=(-2, -1))
    told = covered + cue_bg.mean(axis=(-2, -1)) > 0.5
    return told & shot_valid & (covered > 0)


def _repeats(support, cues, valid):
    """Which shots are the same [b n k k] (each is so with itself), and their share."""
    k = valid.shape[2]
    same = jnp.ones((*valid.shape, k), bool)
    for features, level in zip(support, cues, strict=True):
        for x in (images.unit(features), *level):
            size = math.prod(x.shape[3:])
            same = same & _alike(x.reshape(*x.shape[:3], size))
    same = same | jnp.eye(k, dtype=bool)[None, None]
    count = (same & valid[:, :, None]).sum(axis=3)
    return same, 1.0 / jnp.maximum(count, 1)


def _alike(x):
    """[b n k x] -> [b n k k], by squared distance against squared lengths."""
    inner = jnp.einsum("bnix,bnjx->bnij", x, x, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.einsum("bnii->bni", inner)
    both = squared[:, :, :, None] + squared[:, :, None]
    return both - 2 * inner <= _SAME * both


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
