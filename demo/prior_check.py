"""How good features are for few-shot matching: a training-free 1-shot yardstick.

Every episode is one category, one support image with its mask and another image, the
query. With L2-normalised features of one level,

    (1) P(q) = <q, p+> - <q, p->, min-max scaled per image     (operators.prototype)

is thresholded with one threshold for all episodes, the best one: the number is the mean
over categories of each category's intersection over union. A backbone that does not
separate the categories gives what "everything is foreground" gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from diffup_jax import images
from diffup_jax.methods.prior import operators
from diffup_jax.types import DiffUpError

_CHUNK = 40  # images or episodes per call
_SMALLEST = 0.004  # of the image: an object of fewer pixels makes no episode
_LEVELS = 40  # thresholds tried: 0, 1/40 ... 39/40


class Pairs(NamedTuple):
    """Episodes as indices into the scenes: category [e] is the label's value."""

    support: Int[np.ndarray, " e"]
    query: Int[np.ndarray, " e"]
    category: Int[np.ndarray, " e"]


def choose_pairs(
    generator: np.random.Generator, labels: Int[np.ndarray, "b h w"], *, episodes: int
) -> Pairs:
    """`episodes` pairs of different images, the categories taken in turn.

    Labels hold a category number, 0 = background. Raises DiffUpError when no category
    is in two images.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        values, counts = np.unique(label, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value and count >= _SMALLEST * label.size:
                members.setdefault(value, []).append(index)
    known = [value for value in sorted(members) if len(members[value]) > 1]
    if not known:
        raise DiffUpError(
            f"{len(labels)} scenes hold no category twice: the 1-shot check needs a "
            "support and a query of one category, draw more scenes"
        )
    chosen = []
    for episode in range(episodes):
        category = known[episode % len(known)]
        support, query = generator.choice(members[category], 2, replace=False)
        chosen.append((support, query, category))
    return Pairs(*np.array(chosen).T)


def prior_iou(
    features: Callable[[Array], Sequence[Float[Array, "b p q c"]]],
    scenes: tuple[UInt8[np.ndarray, "b h w 3"], Int[np.ndarray, "b h w"]],
    *,
    pairs: Pairs,
) -> list[float]:
    """Best-threshold mIoU in [0, 1] of each level's prior (1), then of their mean."""
    pixels, labels = scenes
    chunks = []
    for at in range(0, len(pixels), _CHUNK):
        found = features(pixels[at : at + _CHUNK])
        chunks.append([np.asarray(images.unit(jnp.asarray(f))) for f in found])
    levels = [np.concatenate(parts) for parts in zip(*chunks, strict=True)]
    size = labels.shape[1] // 2, labels.shape[2] // 2
    wanted = pairs.category[:, None, None]
    cues = (labels[pairs.support] == wanted).astype(np.float32)
    truth = labels[pairs.query, 1::2, 1::2] == wanted

    @jax.jit
    def prior(query, support, cue):
        cue = images.area_average(cue, support.shape[1:3])
        direction = jax.vmap(operators.prototype)(support, cue, 1 - cue)
        maps = jnp.einsum("epqc,ec->epq", query, direction)
        return images.resize_maps(images.min_max(maps), size)

    maps = []
    for level in levels:
        parts = []
        for at in range(0, len(cues), _CHUNK):
            some = np.s_[at : at + _CHUNK]
            query, support = level[pairs.query[some]], level[pairs.support[some]]
            parts.append(np.asarray(prior(query, support, cues[some])))
        maps.append(np.concatenate(parts))
    maps.append(np.mean(maps, axis=0))
    return [best_iou(one, truth, pairs.category) for one in maps]


def foreground_iou(labels: Int[np.ndarray, "b h w"], *, pairs: Pairs) -> float:
    """The same number when every pixel is called foreground: what chance gives."""
    truth = labels[pairs.query] == pairs.category[:, None, None]
    return best_iou(np.ones(truth.shape, np.float32), truth, pairs.category)


def best_iou(maps: np.ndarray, truth: np.ndarray, category: np.ndarray) -> float:
    """Best over thresholds of the mean over categories; one pass by histograms."""
    classes, row = np.unique(category, return_inverse=True)
    shape = len(classes), _LEVELS
    level = np.minimum((maps * _LEVELS).astype(np.int64), _LEVELS - 1)
    cell = level + _LEVELS * row[:, None, None]
    found, right = (
        np.bincount(cells.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
        for cells in (cell, cell[truth])
    )
    # Pixels at or above each level: sums from the top.
    found, right = (h[:, ::-1].cumsum(1)[:, ::-1] for h in (found, right))
    either = found + right[:, :1] - right
    return float((right / np.maximum(either, 1)).mean(0).max())
