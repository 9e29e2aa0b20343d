"""F4: what an episode's shots are worth, and what their cues say of the class.

Symbols as in baft.py: w+ and w- are a cue's known foreground and background. No
parameters. Reliability of a prior is how well the same level, operator and shot predict
a cue that is known:

    (1) agreement(P, w) = mean of P where w+ less mean of P where w-
    (2) k >= 2: r = mean over the judges j, other shots, of agreement(prior on s_j, cue
        of j)
    (3) k = 1:  r = agreement(contrast of the support on itself, its cue), all operators

The judges are all valid shots. Of more than MOST_JUDGES shots only so many judge, per
level those whose mean feature is most like the mean of all: the work then grows with k,
not with k * k, and what a shot is worth depends on no query. With as many different
shots or fewer, padding and copies apart, all of them judge.

Repeated evidence counts once. Shots with the same features and the same cue on every
level (what BAFT sees of them) are one group of g shots; each has the share 1 / g in
fusion, in the means of (2) and (4), and no shot is an "other" of its own group: else a
copy would vouch for itself. So [A, A, B] gives what [A, B] gives.

Min-max scaled priors have forgotten how much of an image the class covers; the cue
knows:

    (4) extent = (log(a + 0.001) + 3, 1), a the mean share of w+ over the shots whose
        cue says of most pixels what they are (mask, box)
        without such a shot (log(a + 0.001) + 3, 0), a the mean share of 32 x 32 cells
        that w+ touches: how much of the object a shot shows
        without a shot that marks anything (0, 0)

A cue that leaves most of its picture unsaid (scribble, point) is taken to mean that
the rest is background; what it misses of the object weighs little among so much:

    (5) w- := 1 - w+ of shots whose cue says of at most half of the pixels what they are

Without it nothing holds such a prior back from all that resembles the object a little,
and assembly has no second side to choose (measured, docs/log/results.md).

The equations are this project's choice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffup_jax import images

# Shots that judge the others; with up to so many, each is judged by all.
MOST_JUDGES = 5

# Weights below this count as "no pixel of the cue in this cell".
EMPTY = 1e-6
# Cells a side that equation (4) counts what is touched by.
_CELLS = 32
# Shots are the same when |a - b|^2 <= this (|a|^2 + |b|^2), features and cues alike:
# far above the rounding of any backbone, far below two photographs or two strokes.
_SAME = 1e-4

Cue = Bool[Array, "b n k h w"] | Float[Array, "b n k h w"]


def told(
    cue_fg: Cue, cue_bg: Cue, shot_valid: Bool[Array, "b n k"]
) -> Bool[Array, "b n k"]:
    """Valid shots whose cue says of more than half of the pixels what they are."""
    covered = cue_fg.mean(axis=(-2, -1))
    known = covered + cue_bg.mean(axis=(-2, -1)) > 0.5
    return known & shot_valid & (covered > 0)


def presumed(
    foreground: Float[Array, "b n k p q"],
    background: Float[Array, "b n k p q"],
    known: Bool[Array, "b n k"],
) -> Float[Array, "b n k p q"]:
    """w- with equation (5): the background of cues that `told` leaves out."""
    rest = jnp.maximum(1 - foreground, 0)
    return jnp.where(known[..., None, None], background, rest)


def agreement(
    maps: Float[Array, "*b p q"],
    foreground: Float[Array, "*b p q"],
    background: Float[Array, "*b p q"],
) -> Float[Array, "*b"]:
    """Equation (1), in [-1, 1]; 0 where the cue has no foreground."""

    def mean(weights):
        total = weights.sum(axis=(-2, -1))
        return (maps * weights).sum(axis=(-2, -1)) / jnp.maximum(total, EMPTY)

    some = foreground.max(axis=(-2, -1)) > 0
    return jnp.where(some, mean(foreground) - mean(background), 0.0)


def judges(
    support: Float[Array, "k u v c"],
    *,
    valid: Bool[Array, " k"],
    same: Bool[Array, "k k"],
    share: Float[Array, " k"],
) -> tuple[Int[Array, " j"], Float[Array, " j"]]:
    """Which shots judge on a level, and what each counts; j = min(k, MOST_JUDGES).

    Of a group of the same shots only the first may be chosen among many. A judge that
    is missing, for want of different shots, counts 0.
    """
    if len(support) <= MOST_JUDGES:
        return jnp.arange(len(support)), valid * share
    # [i j]: shot i, which comes before j, is the same.
    before = jnp.triu(same & valid[:, None], k=1)
    first = valid & ~before.any(axis=0)
    each = images.unit(support.mean(axis=(-3, -2)))
    of_all = images.unit((each * (valid * share)[:, None]).sum(axis=0, keepdims=True))
    likeness = jnp.where(first, (each * of_all).sum(axis=-1), -jnp.inf)
    most, which = jax.lax.top_k(likeness, MOST_JUDGES)
    return which, jnp.isfinite(most).astype(share.dtype)


def reliability(
    scores: Float[Array, "j o k"],
    alone: Float[Array, "o k"],
    *,
    which: Int[Array, " j"],
    counts: Float[Array, " j"],
    valid: Bool[Array, " k"],
    same: Bool[Array, "k k"],
) -> Float[Array, "o k"]:
    """Equations (2) and (3).

    Args:
      scores: agreement of every shot's priors with the cue of each judge.
      alone: agreement of every shot's priors with its own cue.
      which, counts: the judges, see `judges`.
    """
    others = (valid[None] & ~same[which]) * counts[:, None]
    count = others.sum(axis=0)[None]
    left_out = (scores * others[:, None]).sum(axis=0) / jnp.where(count > 0, count, 1)
    return jnp.where(count > 0, left_out, alone)


def repeats(
    support: tuple[Float[Array, "b n k _ _ _"], ...],
    cues: list[tuple[Float[Array, "b n k _ _"], ...]],
    *,
    valid: Bool[Array, "b n k"],
) -> tuple[Bool[Array, "b n k k"], Float[Array, "b n k"]]:
    """Which shots are the same (each is so with itself), and their share 1 / g.

    Args:
      support: features of every level.
      cues: w+ and w- at the grid of every level.
    """
    k = valid.shape[2]
    same = jnp.ones((*valid.shape, k), bool)
    for features, level in zip(support, cues, strict=True):
        same = same & _alike(_inner(features))
        for cue in level:
            same = same & _alike(_products(cue))
    same = same | jnp.eye(k, dtype=bool)[None, None]
    count = (same & valid[:, :, None]).sum(axis=3)
    return same, 1.0 / jnp.maximum(count, 1)


def extent(
    cue_fg: Cue,
    cue_bg: Cue,
    shot_valid: Bool[Array, "b n k"],
    *,
    share: Float[Array, "b n k"],
) -> Float[Array, "b n 2"]:
    """Equation (4): how large the class is in the supports, and whether it is known.

    The first number runs from about -3.9 (one pixel) to 3 (the whole image). Where it
    is not known, it says how much a cue touches: -3.2 (a click) to about 0 (strokes),
    of many shots no more than of one, for a decoder may have been trained with one.
    """
    covered = cue_fg.mean(axis=(-2, -1))
    marking = shot_valid & (covered > 0)

    def mean(values, counted):
        weights = counted * share
        total = weights.sum(axis=2)
        return (values * weights).sum(axis=2) / jnp.where(total > 0, total, 1.0)

    whole = told(cue_fg, cue_bg, shot_valid)
    known = whole.any(axis=2)
    shown = jnp.where(known, mean(covered, whole), mean(_touched(cue_fg), marking))
    size = jnp.where(marking.any(axis=2), jnp.log(shown + 1e-3) + 3, 0.0)
    return jnp.stack([size, known.astype(size.dtype)], axis=-1)


def _touched(cue):
    """Share of the cells that each cue [b n k h w] touches, [b n k]."""
    cells = images.area_average(cue > 0, (_CELLS, _CELLS))
    return (cells > 0).mean(axis=(-2, -1), dtype=cells.dtype)


def _inner(features):
    """Inner products [b n k k] of unit features, row by row: no unit copy of them."""
    features = jax.lax.stop_gradient(features)
    b, n, k, rows = features.shape[:4]

    def row(i, inner):
        part = jax.lax.dynamic_index_in_dim(features, i, 3, keepdims=False)
        return inner + _products(images.unit(part))

    return jax.lax.fori_loop(0, rows, row, jnp.zeros((b, n, k, k)))


def _products(x):
    """[b n k _ _] -> [b n k k]."""
    precise = jax.lax.Precision.HIGHEST
    return jnp.einsum("bnixy,bnjxy->bnij", x, x, precision=precise)


def _alike(inner):
    """Squared distance against squared lengths, from inner products [b n k k]."""
    squared = jnp.einsum("bnii->bni", inner)
    both = squared[:, :, :, None] + squared[:, :, None]
    return both - 2 * inner <= _SAME * both
