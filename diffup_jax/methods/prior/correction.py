"""F4: a user's strokes on the query itself become certain pixels and their regions.

Symbols: f, b in [0, 1] the strokes, "this is foreground" and "this is not", at h x w;
S+ and S- the cells of the similarity's grid that hold some of them; s one such cell,
with the stroke's mean place y_s (in image sides) and mean colour g_s in it; A(x, s) the
similarity of the query's cells, the mean of their cosines over the backbone's levels;
mu, sigma^2, p a mean, a variance, a probability at R.

    (1) f_i    <- f_i (1 - b_i),  b_i <- b_i (1 - f_i),  b_i = max(b_i, f of the
                  other ways): a pixel called both says nothing
    (2) d(x,s) = (1 - A(x, s)) / a + |g_x - g_s| / c + |x - y_s| / r
    (3) w+(x)  = max_{s in S+} W+ exp(-d(x, s)),  w- of S- and W-;  0 without strokes
    (4) mu'    = (mu + w+) / (1 + w+ + w-)       the same for p
    (5) sigma'^2 = max(sigma^2 / (1 + w+ + w-), floor)
    (6) where there is a stroke: mu' = p' = f / (f + b) and sigma'^2 = floor

(4) and (5) are the fusion of independent estimates when a stroke's word for x has the
variance sigma^2 / w: it counts as W+- priors where it was given, and the less the less
x looks like, has the colour of and lies near the stroke. The maximum in (3) and not a
sum, because a long or repeated stroke is no stronger evidence than a short one.
Everything is this project's choice; DiffUp (arXiv 2407.16182) has no strokes on the
query. W+-, a, c and r were chosen on base classes, see docs/method.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from diffup_jax import images
from diffup_jax.methods.prior import uapf
from diffup_jax.types import DiffUpError, Strokes

WEIGHT = 27.0  # W+
# W-. Less: what is not the class often looks like it and lies beside it, and one "not
# this" as strong as a "this" took the class away with its surroundings.
AGAINST = 12.0
LIKENESS = 0.2  # a, of a distance of cosines
COLOUR = 0.36  # c, of a colour distance between 0 and sqrt(3)
REACH = 0.093  # r, in image sides
RESTART = 0.25  # time from which the chain restarts

# Cells a side of the grid of A, and image pixels per pixel where (3) is worked out for
# a method whose answer has no resolution of its own.
_CELLS = 16
_STRIDE = 4

# The floor of a mask cue: nothing is known more surely than what the user says.
_FLOOR = uapf.FLOORS[0]
# Distance that means "never": exp(-_FAR) is 0 in 32 bits.
_FAR = 200.0


class Evidence(NamedTuple):
    """What strokes say of every pixel: w+, w- of (3), and f, b after (1)."""

    towards: Float[Array, "b p q"]
    against: Float[Array, "b p q"]
    fg: Float[Array, "b p q"]
    bg: Float[Array, "b p q"]


def checked(strokes: Strokes, shape: tuple[int, ...]) -> Strokes:
    """The strokes as floats after equation (1).

    Raises:
      DiffUpError: if fg, bg or mask has another shape than `shape`, [b n h w].
    """
    for name, values in strokes._asdict().items():
        found = getattr(values, "shape", None)
        if found != shape and not (name == "mask" and values is None):
            raise DiffUpError(
                f"strokes.{name} has shape {found}; expected {shape} [b n h w], "
                "the query's own size and one map per way. Draw the strokes on the "
                "image as the method sees it."
            )
    mask = None if strokes.mask is None else jnp.asarray(strokes.mask, jnp.float32)
    fg, bg = (jnp.asarray(x, jnp.float32) for x in (strokes.fg, strokes.bg))
    if shape[1] > 1:
        others = [jnp.delete(fg, i, axis=1).max(axis=1) for i in range(shape[1])]
        bg = jnp.maximum(bg, jnp.stack(others, axis=1))
    return Strokes(fg * (1 - bg), bg * (1 - fg), mask)


def similarity(
    levels: tuple[Float[Array, "b _ _ _"], ...],
) -> Float[Array, "b g g"]:
    """A: how alike any two cells of an image are, on one square grid, in [-1, 1].

    A resize is linear, so the products of resized features are the resized products of
    each level's own cells, which are fewer and have no channels to be resized.
    """

    def one(features):
        size = (_CELLS, _CELLS)
        centred = features - features.mean(axis=(0, 1), keepdims=True)
        p, q, channels = features.shape
        if p * q > channels:
            found = images.resize(centred, size).reshape(_CELLS**2, channels)
            gram = found @ found.T
        else:
            flat = centred.reshape(p * q, channels)
            half = images.resize((flat @ flat.T).reshape(p, q, p * q), size)
            half = half.reshape(_CELLS**2, p * q).T.reshape(p, q, _CELLS**2)
            gram = images.resize(half, size).reshape(_CELLS**2, _CELLS**2)
        length = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), images.EPSILON**2))
        return gram / (length[:, None] * length[None])

    return sum(jax.vmap(one)(level) for level in levels) / len(levels)


def of_probability(
    prob: Float[Array, "b n h w"],
    strokes: Strokes,
    image: Shaped[Array, "b h w 3"],
    similarity: Float[Array, "b g g"],
) -> Float[Array, "b n h w"]:
    """Equations (3), (4) and (6) of a method's answer at the query's size.

    Args:
      strokes: as `checked` answers them.
      similarity: of the query's cells.
    """
    n, size = prob.shape[1], prob.shape[2:]
    coarse = tuple(max(x // _STRIDE, _CELLS) for x in size)
    rgb = images.resize(images.to_float(image), coarse)
    said = evidence(
        strokes, jnp.repeat(rgb, n, axis=0), jnp.repeat(similarity, n, axis=0)
    )
    whole = said._replace(
        towards=images.resize_maps(said.towards, size),
        against=images.resize_maps(said.against, size),
        fg=_folded(strokes.fg),
        bg=_folded(strokes.bg),
    )
    return mean(whole, _folded(prob)).reshape(prob.shape)


def evidence(
    strokes: Strokes,
    rgb: Float[Array, "b p q 3"],
    similarity: Float[Array, "b uv uv"],
) -> Evidence:
    """Equation (3), one episode and way after the other, ways folded into b.

    Args:
      strokes: as `checked` answers them.
      rgb: the query in [0, 1] at R, the size of the answer.
      similarity: A, over a square grid of any size.
    """
    size = rgb.shape[1:3]
    fg, bg = (images.area_average(_folded(x), size) for x in strokes[:2])

    def one(args):
        *both, colour, alike = args
        return jnp.stack([_weight(stroke, colour, alike) for stroke in both])

    weights = jax.lax.map(one, (fg, bg, rgb, similarity))
    return Evidence(WEIGHT * weights[:, 0], AGAINST * weights[:, 1], fg, bg)


def present(said: Evidence, strokes: Strokes) -> Float[Array, "b p q"] | None:
    """The corrected mask of the strokes at R, None without one."""
    if strokes.mask is None:
        return None
    return mean(said, images.resize_maps(_folded(strokes.mask), said.fg.shape[1:]))


def honoured(
    prob: Float[Array, "samples b n h w"], strokes: Strokes
) -> Float[Array, "samples b n h w"]:
    """Equation (6) at the strokes' own size: what was said, exactly."""
    fg, bg = strokes.fg[None], strokes.bg[None]
    return prob * (1 - fg - bg) + fg


def mean(found: Evidence, values: Float[Array, "b p q"]) -> Float[Array, "b p q"]:
    """Equations (4) and (6) of a mean or a probability; as it was without strokes."""
    total = 1 + found.towards + found.against
    moved = (values + found.towards) / total
    return moved * (1 - found.fg - found.bg) + found.fg


def variance(found: Evidence, values: Float[Array, "b p q"]) -> Float[Array, "b p q"]:
    """Equations (5) and (6) of a variance of at least the smallest floor."""
    fallen = jnp.maximum(values / (1 + found.towards + found.against), _FLOOR)
    said = found.fg + found.bg
    return fallen * (1 - said) + _FLOOR * said


def _folded(x: Float[Array, "b n h w"]) -> Float[Array, "bn h w"]:
    return x.reshape(-1, *x.shape[2:])


def _weight(stroke, rgb, similarity):
    """exp(-d) of equation (3) to the nearest cell, [p q], of one stroke map [p q]."""
    p, q = stroke.shape
    side = int(similarity.shape[-1] ** 0.5)
    cells = (side, side)
    share = images.area_average(stroke, cells).reshape(-1)
    held = share > 0
    # Where in the image and how coloured each cell's part of the stroke is.
    rows, columns = jnp.meshgrid(
        (jnp.arange(p) + 0.5) / p, (jnp.arange(q) + 0.5) / q, indexing="ij"
    )
    facts = jnp.concatenate([jnp.stack([rows, columns], axis=-1), rgb], axis=-1)
    seeds = images.area_average(jnp.moveaxis(facts, -1, 0) * stroke[None], cells)
    seeds = seeds.reshape(5, -1) / jnp.where(held, share, 1.0)[None]

    unlike = images.resize(1 - similarity.reshape(side, side, -1), (p, q))
    length = lambda x: jnp.sqrt(jnp.square(x).sum(axis=2))  # noqa: E731
    apart = facts[..., None] - seeds[None, None]
    distance = unlike / LIKENESS + length(apart[:, :, :2]) / REACH
    distance = distance + length(apart[:, :, 2:]) / COLOUR
    nearest = jnp.where(held[None, None], distance, _FAR).min(axis=-1)
    return jnp.exp(-nearest)
