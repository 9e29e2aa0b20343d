"""Scenes in memory, with a category label for every pixel: what pretraining reads.

Drawn by worker processes, each scene a function of (seed, index) alone, with the noise
of a JPEG file as the files of `make_scenes` have it.
"""

from __future__ import annotations

import concurrent.futures
import io
import multiprocessing
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from tqdm import tqdm

from demo.make_scenes import deal, jpeg
from demo.scene_categories import categories
from demo.scene_drawing import draw_scene

SIZE = 256  # pixels of each side


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


def crops(
    generator: np.random.Generator, scenes: Scenes, *, batch: int, crop: int
) -> tuple[UInt8[np.ndarray, "b h w 3"], Int[np.ndarray, "b h w"]]:
    """`batch` random crops of crop x crop pixels, each turned and flipped at random."""
    count = len(scenes.images)
    chosen = generator.choice(count, batch, replace=count < batch)
    pairs = []
    for index in chosen:
        y, x = generator.integers(0, SIZE - crop + 1, 2)
        window = np.s_[y : y + crop, x : x + crop]
        turns, step = generator.integers(4), generator.choice([-1, 1])
        pairs.append(
            [np.rot90(part[index][window], turns)[:, ::step] for part in scenes]
        )
    images, labels = (np.stack(parts) for parts in zip(*pairs, strict=True))
    return images, labels


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
