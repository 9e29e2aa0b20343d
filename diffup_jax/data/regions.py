"""Regions of an image that nobody labelled: training targets without a class.

Training images also show the novel classes, and there they are always background. A
decoder trained on base classes alone learns that, and answers "nothing" where a novel
class stands. A share of training episodes therefore asks for a random region: the
support is one augmented view of the image, the query another, and only what the cue
says tells what is asked for.

    (1) every pixel is (L, a, b, u y, u x): its colour over the spread of all colours,
        its place in [0, 1] times u, at a longer side of 96
    (2) k-means with k = 4..13 clusters; the connected parts of a cluster are pieces
    (3) region = one piece and 0..2 neighbours, 1 % to 50 % of the image

That superpixels can stand in for classes is Ouyang et al.'s (arXiv 2007.09886); the
clustering, the growth and their mixture with labelled episodes are this project's.
No label is read.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from diffup_jax.data import rasters
from diffup_jax.data.episodes import Draw
from diffup_jax.data.sources import Source

_SIDE = 96
_CLUSTERS = (4, 14)
_PLACE_WEIGHT = (0.5, 4.0)
_ROUNDS = 6
# Shares of the image: of a region, of a piece it may start from and grow by.
_AREA = (0.01, 0.5)
_START, _GROW = 0.01, 0.004
_NEIGHBOURS = 3


def region(
    image: UInt8[np.ndarray, "h w 3"], *, generator: np.random.Generator
) -> Bool[np.ndarray, "h w"]:
    """A random region of the image, never empty.

    A pure function of the pixels and the generator's state. An image without structure
    (one colour) is divided by place.
    """
    pieces = _pieces(image, generator)
    areas = np.bincount(pieces.ravel()) / pieces.size
    large = np.flatnonzero(areas >= _START)
    start = generator.choice(large) if len(large) else int(areas.argmax())
    mask = pieces == start
    for _ in range(generator.integers(_NEIGHBOURS)):
        ring = ndimage.binary_dilation(mask) & ~mask
        beside = np.unique(pieces[ring])
        share = mask.mean() + areas[beside]
        beside = beside[(areas[beside] >= _GROW) & (share <= _AREA[1])]
        if len(beside):
            mask |= pieces == generator.choice(beside)
    grown = Image.fromarray(mask.view(np.uint8) * 255).resize(
        image.shape[1::-1], Image.Resampling.BILINEAR
    )
    answer = np.asarray(grown) > 127
    # Smaller than a pixel of the original: its most covered pixel stands for it.
    return answer if answer.any() else np.asarray(grown) == np.asarray(grown).max()


def episode(
    source: Source, draw: Draw, *, generator: np.random.Generator
) -> tuple[Draw, Source]:
    """An episode of the same form that asks for regions of the draw's query image.

    Query and supports are that one image, so they must be augmented to differ. Its
    classes are -1, -2, ... and known only to the source that comes with it. A later
    way leaves out what an earlier one has, unless nothing would be left.
    """
    image = source.image(draw.query)
    masks: list[np.ndarray] = []
    for _ in draw.supports:
        mask = region(image, generator=generator)
        rest = mask & ~np.any(masks, axis=0) if masks else mask
        masks.append(rest if rest.any() else mask)
    supports = tuple((draw.query,) * len(images) for images in draw.supports)
    classes = tuple(-1 - way for way in range(len(masks)))
    return Draw(classes, draw.query, supports), _Regions(draw.query, image, masks)


@dataclasses.dataclass(frozen=True, eq=False)
class _Regions:
    """One image and its regions as a source; class -1 - i is region i."""

    image_id: str
    pixels: np.ndarray
    masks: list[np.ndarray]
    name: str = "regions"
    root: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(f"region {i}" for i in range(len(self.masks)))

    @property
    def class_folds(self) -> tuple[int, ...]:
        return (-1,) * len(self.masks)

    def image_ids(self, class_id: int) -> tuple[str, ...]:
        return (self.image_id,)

    def image(self, image_id: str) -> np.ndarray:
        return self.pixels

    def mask(self, image_id: str, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        mask = self.masks[-1 - class_id]
        return mask, np.zeros_like(mask)

    def instances(self, image_id: str, class_id: int) -> np.ndarray:
        return rasters.components(self.masks[-1 - class_id])


def _pieces(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Labels 0.. of connected parts, at most 96 pixels a side."""
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    colours = np.asarray(picture.convert("LAB"), np.float32)
    # Two channels of LAB are signed bytes that wrap round in PIL's pixels.
    colours[..., 1:] = (colours[..., 1:] + 128) % 256
    colours = ndimage.gaussian_filter(colours, (1, 1, 0))
    weight = generator.uniform(*_PLACE_WEIGHT)
    place = np.indices(colours.shape[:2]).transpose(1, 2, 0) / max(small)
    points = np.concatenate(
        [colours / (colours.std() + 1e-3), weight * place], axis=-1
    ).reshape(-1, 5)
    clusters = min(int(generator.integers(*_CLUSTERS)), len(points))
    # Distinct pixels as first centres: no cluster starts empty.
    first = points[generator.choice(len(points), clusters, replace=False)]
    _, labels = kmeans2(points, first, iter=_ROUNDS, minit="matrix", missing="warn")
    labels = ndimage.median_filter(labels.reshape(colours.shape[:2]), 3)
    pieces, count = np.zeros_like(labels), 0
    for cluster in range(clusters):
        parts, number = ndimage.label(labels == cluster)
        pieces += np.where(parts > 0, parts + count, 0)
        count += number
    return pieces - 1
