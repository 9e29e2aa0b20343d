"""Scenes in memory, with a category label for every pixel, and pairs of crops.

Drawn by worker processes, each scene a function of (seed, index) alone, with the noise
of a JPEG file as the files of `make_scenes` have it.
"""

from __future__ import annotations

import concurrent.futures
import io
import multiprocessing
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from tqdm import tqdm

from data_prep.make_scenes import deal, jpeg
from data_prep.scene_categories import categories
from data_prep.scene_drawing import draw_scene
from diffup_jax.types import DiffUpError

SIZE = 256  # pixels of each side

_SMALLEST = 0.004  # of the image: an object of fewer pixels is not matched


class Scenes(NamedTuple):
    """`labels` are 1 + the index of the category in its pool, 0 = background."""

    images: UInt8[np.ndarray, "b h w 3"]
    labels: Int[np.ndarray, "b h w"]


def draw_scenes(pool: str, count: int, *, seed: int, processes: int) -> Scenes:
    """`count` scenes of 256 x 256 with evenly dealt categories of `pool`."""
    hands = deal(np.random.default_rng(seed), count, pool=len(categories(pool)))
    jobs = [((seed, index), hand, pool) for index, hand in enumerate(hands)]
    # Not fork: the caller may have threads (JAX does).
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as workers:
        drawn = workers.map(_draw, jobs, chunksize=8)
        progress = tqdm(drawn, f"{pool} scenes", len(jobs), disable=None)
        return Scenes(*(np.stack(parts) for parts in zip(*progress, strict=True)))


def by_category(labels: Int[np.ndarray, "b h w"]) -> dict[int, Int[np.ndarray, " m"]]:
    """Category label -> the scenes that show enough of it, two at least.

    Raises DiffUpError when no category is in two scenes: nothing can be matched.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        values, counts = np.unique(label, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value and count >= _SMALLEST * label.size:
                members.setdefault(value, []).append(index)
    known = {v: np.array(members[v]) for v in sorted(members) if len(members[v]) > 1}
    if not known:
        raise DiffUpError(
            f"{len(labels)} scenes hold no category twice: 1-shot matching needs a "
            "support and a query of one category, draw more scenes (--scenes)"
        )
    return known


def pair_crops(
    generator: np.random.Generator,
    scenes: Scenes,
    *,
    members: dict[int, Int[np.ndarray, " m"]],
    pairs: int,
    crop: int,
) -> tuple[UInt8[np.ndarray, "b h w 3"], Bool[np.ndarray, "b h w"]]:
    """Crops of crop x crop pixels and the mask of a category, b = 2 pairs.

    Crop i and crop pairs + i show the same random category in two scenes. Each is
    placed at random about its object, turned and flipped at random.
    """
    known = tuple(members)
    halves: tuple[list, list] = ([], [])
    for _ in range(pairs):
        category = known[generator.integers(len(known))]
        two = generator.choice(members[category], 2, replace=False)
        for half, index in zip(halves, two, strict=True):
            half.append(_crop(generator, scenes, index, category, crop))
    images, masks = zip(*halves[0], *halves[1], strict=True)
    return np.stack(images), np.stack(masks)


def _crop(
    generator: np.random.Generator,
    scenes: Scenes,
    index: int,
    category: int,
    crop: int,
) -> tuple[np.ndarray, np.ndarray]:
    mask = scenes.labels[index] == category
    inside = np.argwhere(mask)
    anchor = inside[generator.integers(len(inside))]
    corner = anchor - generator.integers(crop // 8, crop - crop // 8, 2)
    y, x = np.clip(corner, 0, SIZE - crop)
    window = np.s_[y : y + crop, x : x + crop]
    turns, step = generator.integers(4), generator.choice([-1, 1])
    image, mask = (
        np.rot90(part[window], turns)[:, ::step]
        for part in (scenes.images[index], mask)
    )
    return image, mask


def _draw(job: tuple) -> tuple[np.ndarray, np.ndarray]:
    seed, hand, pool = job
    generator = np.random.default_rng(seed)
    chosen = [categories(pool)[index] for index in hand]
    scene = draw_scene(generator, chosen, size=SIZE)
    labels = np.zeros((SIZE, SIZE), np.int16)
    for one in scene.objects:
        labels[one.mask] = hand[chosen.index(one.category)] + 1
    with Image.open(io.BytesIO(jpeg(generator, scene.image))) as image:
        return np.asarray(image), labels
