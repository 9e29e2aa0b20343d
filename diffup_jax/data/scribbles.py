"""Scribbles inside a mask, in two conventions.

    stroke      1..20 random walks that start in the mask, cut to it. Half of all
                scribbles are large (10..30 corners, brush 3..10 px at a side of 512),
                half small (6..22 corners, brush 2.5..5 px): the free-form strokes of
                PGMA-Net and VRP-SAM.
    skeleton    one line along the longest path of the medial axis of the largest
                component, smoothed as far as it stays inside (brush 2.5..5 px at 512),
                cut to the component: the idea of the DAVIS interactive robot (Caelles
                et al., arXiv 1803.00557).

The medial axis is thinned on a grid of at most 96 cells a side: a hand draws no finer,
and it takes a millisecond whatever the size of the object. The axis of a disc or a
square is a point; a component rounder than that has a line gets a straight line through
its deepest point, along its longest direction, that reaches 0.6 of the depth both ways.

No scribble is empty and none leaves the mask.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from diffup_jax.data import rasters

_STROKES = 20
# (fewest corners, most corners, thinnest brush, thickest brush); pixels at side 512
_PRESETS = ((10, 30, 3.0, 10.0), (6, 22, 2.5, 5.0))
# A stroke is a random walk: steps of this many pixels at side 512, turning gently.
_STEP = (8.0, 40.0)
_TURN = 0.9

_BRUSH = (2.5, 5.0)  # of a skeleton line, pixels at side 512
_CELLS = 96  # the longest side of the grid on which the medial axis is thinned
# Widths of the smoothing as a share of the path, the strongest first.
_SMOOTH = (1 / 12, 1 / 24, 1 / 48)
_REACH = 0.6  # of the depth: how far a straight line goes either way


def stroke(
    mask: Bool[np.ndarray, "h w"], *, generator: np.random.Generator
) -> Bool[np.ndarray, "h w"]:
    """1..20 random strokes inside a mask that has at least one pixel."""
    height, width = mask.shape
    unit = max(height, width) / 512
    fewest, most, thinnest, thickest = _PRESETS[generator.integers(len(_PRESETS))]
    pixels = np.flatnonzero(mask)
    strokes = generator.integers(1, _STROKES + 1)
    starts = pixels[generator.integers(len(pixels), size=strokes)]
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    for start in starts:
        corners = int(generator.integers(fewest, most + 1))
        brush = generator.uniform(thinnest, thickest) * unit
        turns = generator.uniform(-_TURN, _TURN, corners)
        turns[0] = generator.uniform(0, 2 * math.pi)
        heading = np.cumsum(turns)
        step = generator.uniform(*_STEP, corners) * unit
        x = start % width + np.cumsum(step * np.cos(heading))
        y = start // width + np.cumsum(step * np.sin(heading))
        path = [(float(start % width), float(start // width))]
        path += zip(x.tolist(), y.tolist(), strict=True)
        pen.line(path, fill=1, width=max(1, round(brush)), joint="curve")
    drawn = np.array(canvas).astype(bool)
    # The pen rounds: without this a thin start could leave a one-pixel mask.
    drawn.flat[starts] = True
    return drawn & mask


def skeleton(
    mask: Bool[np.ndarray, "h w"], *, generator: np.random.Generator
) -> Bool[np.ndarray, "h w"]:
    """One line along the middle of the largest component of a non-empty mask.

    The generator draws the brush alone: the line is a function of the mask.
    """
    brush = generator.uniform(*_BRUSH) * max(mask.shape) / 512
    component = rasters.components(mask) == 1
    box = ndimage.find_objects(component.view(np.uint8))[0]
    inside = component[box]
    line = _middle(inside)
    canvas = Image.new("L", inside.shape[::-1])
    pen = ImageDraw.Draw(canvas)
    path = [(float(x), float(y)) for y, x in line]
    pen.line(path, fill=1, width=max(1, round(brush)), joint="curve")
    drawn = np.array(canvas).astype(bool) & inside
    if not drawn.any():
        # A line of a pixel or two beside a bent thread: its nearest pixel will do.
        rows, columns = np.nonzero(inside)
        y, x = line[len(line) // 2]
        nearest = np.argmin((rows - y) ** 2 + (columns - x) ** 2)
        drawn[rows[nearest], columns[nearest]] = True
    scribble = np.zeros_like(mask)
    scribble[box] = drawn
    return scribble


def _middle(inside: np.ndarray) -> np.ndarray:
    """The line [n 2] of (y, x), float pixels, along the middle of one component."""
    # Deferred: scikit-image takes a second to import, and only this needs it.
    from skimage.morphology import skeletonize

    counts, centres, step = _grid(inside)
    cells = counts > 0
    depths = ndimage.distance_transform_edt(np.pad(cells, 1))[1:-1, 1:-1]
    points = centres[tuple(_longest_path(skeletonize(cells)).T)]
    length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    depth = depths.max() * step
    if length < depth:
        deepest = np.unravel_index(depths.argmax(), cells.shape)
        return _chord(cells, centres[deepest], depth)
    for share in _SMOOTH:
        smooth = ndimage.gaussian_filter1d(
            points, share * len(points), axis=0, mode="nearest"
        )
        if inside[tuple(np.rint(smooth).astype(int).T)].all():
            return smooth
    return points


def _grid(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(pixels per cell [p q], their mean (y, x) [p q 2], pixels of a cell's side)."""
    step = -(-max(inside.shape) // _CELLS)
    rows, columns = (-(-length // step) for length in inside.shape)
    padded = np.zeros((rows * step, columns * step), np.float32)
    padded[: inside.shape[0], : inside.shape[1]] = inside
    blocks = padded.reshape(rows, step, columns, step)
    offset = np.arange(step, dtype=np.float32)
    by_row, by_column = blocks.sum(3), blocks.sum(1)
    counts = by_row.sum(1)
    share = np.maximum(counts, 1)
    y = np.einsum("psq,s->pq", by_row, offset) / share
    x = np.einsum("pqs,s->pq", by_column, offset) / share
    y += step * np.arange(rows)[:, None]
    x += step * np.arange(columns)[None, :]
    return counts, np.stack([y, x], -1), step


def _longest_path(thin: np.ndarray) -> np.ndarray:
    """The cells [n 2] of the longest shortest path in a thin, connected line.

    From any cell to the farthest, and from there to the farthest again: exact where the
    line has no loop, and still a long path where it has.
    """
    number = np.full(np.array(thin.shape) + 2, -1)
    cells = np.argwhere(thin)
    number[1:-1, 1:-1][thin] = np.arange(len(cells))
    starts, stops, lengths = [], [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        beside = number[cells[:, 0] + 1 + dy, cells[:, 1] + 1 + dx]
        joined = np.flatnonzero(beside >= 0)
        starts.append(joined)
        stops.append(beside[joined])
        lengths.append(np.full(len(joined), math.hypot(dy, dx)))
    edges = (np.concatenate(starts), np.concatenate(stops))
    graph = sparse.csr_array(
        (np.concatenate(lengths), edges), shape=(len(cells), len(cells))
    )
    first = _distances(graph, 0)[0]
    distances, before = _distances(graph, int(first.argmax()))
    path = [int(distances.argmax())]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    return cells[path]


def _distances(graph: sparse.csr_array, start: int) -> tuple[np.ndarray, np.ndarray]:
    """(distance, cell before) of every cell; -1 where no path reaches it."""
    distances, before = csgraph.dijkstra(
        graph, directed=False, indices=start, return_predecessors=True
    )
    return np.where(np.isfinite(distances), distances, -1), before


def _chord(cells: np.ndarray, centre: np.ndarray, depth: float) -> np.ndarray:
    """A straight line [2 2] through `centre` along the longest direction of a shape."""
    places = np.argwhere(cells) - np.argwhere(cells).mean(0)
    # Eigenvalues rise: along the last direction the cells spread most.
    direction = np.linalg.eigh(places.T @ places)[1][:, -1]
    reach = _REACH * depth * direction
    return np.stack([centre - reach, centre + reach])
