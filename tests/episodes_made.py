"""Episodes made up for tests: squares of one colour on noise, and parts of episodes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffup_jax.types import CUES, Episode, Query, Support

COLOURS = ((230, 40, 40), (40, 230, 40), (40, 60, 240))
SIZE = 64


def episode_of(query, target, images, fg, *, bg=None, kind="mask") -> Episode:
    """An episode whose shots are all valid, without text.

    query [b h w 3], target [b n h w], images [b n k h w 3], fg [b n k h w]; bg: all
    that is not fg unless given.
    """
    ways, each = fg.shape[:2], fg.shape[:3]
    fg = jnp.asarray(fg, jnp.float32)
    support = Support(
        images=jnp.asarray(images),
        fg=fg,
        bg=1 - fg if bg is None else jnp.asarray(bg, jnp.float32),
        kind=jnp.full(each, CUES.index(kind), jnp.int32),
        valid=jnp.ones(each, bool),
        text=jnp.zeros((*ways, 0)),
        text_valid=jnp.zeros(ways, bool),
    )
    query = jnp.asarray(query)
    valid = jnp.ones(query.shape[:3], bool)
    return Episode(support, Query(query, valid, jnp.asarray(target, jnp.float32)))


def squares(b=2, n=1, k=3, *, seed=0, size=SIZE) -> Episode:
    """Coloured squares on noise; the cue is the whole square.

    The square of a query has the colour of its way 0.
    """
    rng = np.random.default_rng(seed)

    def picture(colour):
        image = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
        y, x = rng.integers(4, size // 2, 2)
        mask = np.zeros((size, size), np.float32)
        mask[y : y + 3 * size // 8, x : x + 3 * size // 8] = 1
        image[mask > 0] = colour
        return image, mask

    images = np.zeros((b, n, k, size, size, 3), np.uint8)
    fg = np.zeros((b, n, k, size, size), np.float32)
    query = np.zeros((b, size, size, 3), np.uint8)
    target = np.zeros((b, n, size, size), np.float32)
    for i in range(b):
        query[i], target[i, 0] = picture(COLOURS[i % 3])
        for j, shot in np.ndindex(n, k):
            images[i, j, shot], fg[i, j, shot] = picture(COLOURS[(i + j) % 3])
    return episode_of(query, target, images, fg)


def shots_at(case: Episode, places) -> Episode:
    """The episode with the shots `places` of each way, in that order."""
    places = jnp.asarray(places)
    shots = {
        name: getattr(case.support, name)[:, :, places]
        for name in ("images", "fg", "bg", "kind", "valid")
    }
    return case._replace(support=case.support._replace(**shots))


def rows_at(case, places):
    """Rows of anything that has one for each episode, in that order."""
    return jax.tree.map(lambda x: x[jnp.asarray(places)], case)


def way_of(case: Episode, way: int) -> Episode:
    """The episode of one of its ways alone."""
    support = Support(*(x[:, way : way + 1] for x in case.support))
    mask = case.query.mask[:, way : way + 1]
    return Episode(support, case.query._replace(mask=mask))


def changed(case: Episode, **changes) -> Episode:
    """The episode with fields of its support replaced."""
    return case._replace(support=case.support._replace(**changes))


def rubbish_in(case: Episode, shot: int) -> Episode:
    """The shot is padding, and holds what no shot should."""
    support = case.support
    return changed(
        case,
        valid=support.valid.at[:, :, shot].set(False),
        images=support.images.at[:, :, shot].set(255),
        fg=support.fg.at[:, :, shot].set(0.3),
        bg=support.bg.at[:, :, shot].set(1.0),
        kind=support.kind.at[:, :, shot].set(0),
    )
