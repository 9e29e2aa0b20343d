"""F4: BAFT, from features and cues to backbone-agnostic priors. No parameters.

Priors are made per level, operator and shot: contrast (1), assembly (2) and both
self-propagated (3), equations of operators.py; text gives two, T (4) and S(T). P is a
map, w+ and w- the cue's known foreground and background averaged over a level's cells;
of strokes and points, what they leave unsaid counts as background (evidence.py).

    (5) every map is min-max scaled to [0, 1] per image and resized to the prior grid

No matrix of positions against positions is held: keys are streamed, see attention.py.
Shots are streamed too, a few at a time. What is of the examples alone (features,
prototypes, cues at the levels' grids, reliability) is made once, by `remember`.

How reliable each visual prior is, and which shots are repeats, says evidence.py; text:

    (6) r = mean r of the valid visual priors, each by its share; without any, 0

A negative example has background only: it makes no prior, it takes away from them.
With m+ and m- the largest cosine of a query cell with a cell of the class and with one
of a negative example, per level,

    (7) N = mean over levels of max(0, tanh((m- - m+) / (2 tau)))

so that a cell that is at least as much like the class keeps what it had.

That cues and multi-scale features become class- and backbone-agnostic priors is
DiffUp's (arXiv 2407.16182); the equations are this project's. The functions take
arrays; no backbone is imported.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffup_jax import attention, images
from diffup_jax.methods.prior import evidence, operators
from diffup_jax.methods.prior.evidence import EMPTY

OPERATORS = ("contrast", "assembly", "propagated contrast", "propagated assembly")
TEXT_OPERATORS = ("text", "propagated text")

# Scores of shots that are computed side by side: 16 MB.
_SCORES = 1 << 22
# m+ of equation (7) where no example shows the class (text alone): clearly alike.
_ALIKE = 0.5


class Examples(NamedTuple):
    """The shots at one level: features, the cue's w+ and w-, and contrast's p+ - p-."""

    features: Float[Array, "b n k u v c"]
    foreground: Float[Array, "b n k u v"]
    background: Float[Array, "b n k u v"]
    prototype: Float[Array, "b n k c"]


class Remembered(NamedTuple):
    """What of the examples answers any query.

    shows [b n k]: valid shots that show the class; negative: that show what is not it;
    share [b n k] in (0, 1]: see evidence.py; reliability [b n l o k] in [-1, 1].
    """

    levels: tuple[Examples, ...]
    shows: Bool[Array, "b n k"]
    negative: Bool[Array, "b n k"]
    share: Float[Array, "b n k"]
    reliability: Float[Array, "b n l o k"]


class Priors(NamedTuple):
    """What BAFT makes of an episode.

    Of every shot: maps [b n l o k p q] in [0, 1], valid [b n l o k], reliability
    [b n l o k] in [-1, 1], share [b n k] in (0, 1], see evidence.py. The same of text,
    t of TEXT_OPERATORS or 0 without text: text_maps [b n t p q], text_valid [b n t],
    text_reliability [b n t]. rejected [b n p q]: N of equation (7).
    """

    maps: Float[Array, "b n l o k p q"]
    valid: Bool[Array, "b n l o k"]
    reliability: Float[Array, "b n l o k"]
    share: Float[Array, "b n k"]
    text_maps: Float[Array, "b n t p q"]
    text_valid: Bool[Array, "b n t"]
    text_reliability: Float[Array, "b n t"]
    rejected: Float[Array, "b n p q"]


def remember(
    support: tuple[Float[Array, "b n k _ _ _"], ...],
    *,
    fg: evidence.Cue,
    bg: evidence.Cue,
    valid: Bool[Array, "b n k"],
    temperature: float,
) -> Remembered:
    """The part of the priors that no query is needed for.

    Args:
      support: per level, features [b n k p_l q_l c_l]; k may be 0.
      fg, bg: w+ and w- in [0, 1], or bool, at pixel resolution.
      valid: False marks padded shots.
      temperature: tau.
    """
    marked = fg.any(axis=(-2, -1)) if fg.dtype == bool else fg.max(axis=(-2, -1)) > 0
    shows = valid & marked
    negative = valid & ~marked & (bg > 0).any(axis=(-2, -1))
    told = evidence.told(fg, bg, shows)
    cues = []
    for features in support:
        grid = features.shape[3:5]
        foreground = images.area_average(fg, grid)
        background = images.area_average(bg, grid)
        background = jnp.where(
            negative[..., None, None],
            background,
            evidence.presumed(foreground, background, told),
        )
        cues.append((foreground, background))
    same, share = evidence.repeats(support, cues, valid=shows)
    levels, reliability = [], []
    over_ways = lambda f: jax.vmap(jax.vmap(f))  # noqa: E731
    for features, cue in zip(support, cues, strict=True):
        prototype = jax.vmap(over_ways(operators.prototype))(features, *cue)
        levels.append(Examples(features, *cue, prototype))
        trusted = over_ways(
            lambda *shots: _reliability(*shots, temperature=temperature)
        )
        reliability.append(trusted(levels[-1], shows, same, share))
    reliability = jnp.stack(reliability, axis=2)
    reliability = jnp.where(shows[:, :, None, None], reliability, 0.0)
    return Remembered(tuple(levels), shows, negative, share, reliability)


def make_priors(
    query: tuple[Float[Array, "b ..."], ...],
    memory: Remembered,
    *,
    text: Float[Array, "b n u v"] | None,
    text_valid: Bool[Array, "b n"],
    temperature: float,
    grid: tuple[int, int],
) -> Priors:
    """All priors of a query, equations (1)-(7).

    Args:
      query: per level, features [b p_l q_l c_l].
      memory: of the examples at the same levels.
      text: T of equation (4), operators.text_foreground; None without text.
      text_valid: False marks episodes without a text cue.
      temperature: tau.
      grid: size of the prior maps.
    """
    shows, count = memory.shows, memory.shows.shape[2]

    def of_level(query, examples):
        def one(query, examples):
            maps = _onto(query, examples, jnp.arange(count), temperature)
            return images.resize_maps(maps, grid)

        return jax.vmap(jax.vmap(one, (None, 0)))(query, examples)

    none = (*shows.shape[:2], len(OPERATORS), 0, *grid)
    maps = jnp.stack(
        [
            of_level(*level) if count else jnp.zeros(none)
            for level in zip(query, memory.levels, strict=True)
        ],
        axis=2,
    )
    valid = jnp.broadcast_to(shows[:, :, None, None], memory.reliability.shape)
    text_maps = jnp.zeros((*text_valid.shape, 0, *grid))
    if text is not None:
        text_maps = _text(query[-1], text, temperature, grid)
    text_maps = jnp.where(text_valid[:, :, None, None, None], text_maps, 0.0)
    kinds = (*text_valid.shape, text_maps.shape[2])
    counted = valid * memory.share[:, :, None, None]
    mean = (memory.reliability * counted).sum(axis=(2, 3, 4))
    mean = mean / jnp.maximum(counted.sum(axis=(2, 3, 4)), EMPTY)
    return Priors(
        maps=jnp.where(valid[..., None, None], maps, 0.0),
        valid=valid,
        reliability=memory.reliability,
        share=memory.share,
        text_maps=text_maps,
        text_valid=jnp.broadcast_to(text_valid[:, :, None], kinds),
        text_reliability=jnp.broadcast_to(mean[:, :, None], kinds),
        rejected=_rejected(query, memory, temperature, grid),
    )


def _onto(target, examples, which, temperature):
    """Maps [o i p q], scaled, of one image by the shots `which` [i] of examples [k].

    Shots are read from where they lie: neither the scan nor `vmap` copies the others.
    """
    unit, own = images.unit(target), operators.centred(target, target)

    def shot(i):
        features, foreground, background, prototype = (x[i] for x in examples)
        assembled = operators.assembly(
            own,
            operators.centred(features, target),
            foreground,
            background,
            temperature=temperature,
        )
        return jnp.stack([unit @ prototype, assembled])

    side = min(_side_by_side(target, examples.features), len(which))
    base = jax.lax.map(shot, which, batch_size=side)
    flat = base.reshape(-1, *base.shape[2:])
    spread = operators.propagate(own, flat, temperature=temperature).reshape(base.shape)
    maps = jnp.concatenate([base, spread], axis=1)
    return images.min_max(jnp.swapaxes(maps, 0, 1))


def _reliability(examples, shows, same, share, *, temperature):
    """How far each operator is to be trusted of shots [k ...]: [o k]."""
    support, *cues, prototype = examples
    count = len(support)
    if not count:
        return jnp.zeros((len(OPERATORS), 0))

    def itself(i):
        own = images.min_max(images.unit(support[i]) @ prototype[i])
        return evidence.agreement(own, *(w[i] for w in cues))

    alone = jax.lax.map(itself, jnp.arange(count), batch_size=count)
    alone = jnp.broadcast_to(alone, (len(OPERATORS), count))
    if count == 1:
        return alone
    which, counts = evidence.judges(support, valid=shows, same=same, share=share)

    def judged(j):
        """How well every other shot predicts the cue of one: [o k], its own 0."""
        others = (j + jnp.arange(1, count)) % count
        maps = _onto(support[j], examples, others, temperature)
        cue = (jnp.broadcast_to(w[j], maps.shape) for w in cues)
        found = evidence.agreement(maps, *cue)
        return jnp.zeros(alone.shape, found.dtype).at[:, others].set(found)

    return evidence.reliability(
        jax.lax.map(judged, which),
        alone,
        which=which,
        counts=counts,
        valid=shows,
        same=same,
    )


def _rejected(query, memory, temperature, grid):
    """Equation (7) at the grid; nothing is computed where no example is negative."""
    shape = (*memory.shows.shape[:2], *grid)
    if not memory.shows.shape[2]:
        return jnp.zeros(shape)

    def one(query, examples, shows, negative):
        own = operators.centred(query, query)
        flat = own.reshape(-1, own.shape[-1])

        def shot(best, part):
            (features, foreground, background, _), shows, negative = part
            keys = operators.centred(features, query).reshape(-1, own.shape[-1])
            alike = flat @ keys.T
            # A small object fills no cell: its fullest ones are its own.
            of_class = foreground >= jnp.maximum(foreground.max() / 2, EMPTY)
            known = [shows & of_class, negative & (background > 0)]
            found = [
                jnp.where(here.reshape(1, -1), alike, -1.0).max(axis=1)
                for here in known
            ]
            return jnp.maximum(best, jnp.stack(found)), None

        start = jnp.stack([jnp.full(len(flat), -1.0)] * 2)
        (like, unlike), _ = jax.lax.scan(shot, start, (examples, shows, negative))
        like = jnp.where(shows.any(), like, _ALIKE)
        apart = jnp.maximum(jnp.tanh((unlike - like) / (2 * temperature)), 0)
        return images.resize_maps(apart.reshape(query.shape[:2]), grid)

    def found():
        over = jax.vmap(jax.vmap(one, (None, 0, 0, 0)))
        levels = [
            over(features, examples, memory.shows, memory.negative)
            for features, examples in zip(query, memory.levels, strict=True)
        ]
        rejected = sum(levels) / len(levels)
        some = memory.negative.any(axis=2)[:, :, None, None]
        return jnp.where(some, rejected, 0.0)

    return jax.lax.cond(memory.negative.any(), found, lambda: jnp.zeros(shape))


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
