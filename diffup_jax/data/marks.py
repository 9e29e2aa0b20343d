"""What a person draws on a picture, as pixels: boxes, points, lines."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from diffup_jax.data import pictures
from diffup_jax.types import DiffUpError

# Width of a drawn line, in image sides.
_BRUSH = 6 / 384


def boxes(box: Any, shape: tuple[int, int], name: str) -> Bool[np.ndarray, "h w"]:
    """Pixels inside a box (x0, y0, x1, y1), end exclusive, or inside several.

    Raises DiffUpError for boxes that are none, or hold no pixel of the picture.
    """
    corners = np.asarray(box, np.float64)
    corners = corners[None] if corners.ndim == 1 else corners
    height, width = shape
    inside = np.zeros(shape, bool)
    if corners.ndim != 2 or corners.shape[1] != 4 or not np.isfinite(corners).all():
        raise DiffUpError(
            f"the box {box!r} of {name} is none; expected (x0, y0, x1, y1), or a list "
            "of those."
        )
    for x0, y0, x1, y1 in corners:
        left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
        right, bottom = min(int(np.ceil(x1)), width), min(int(np.ceil(y1)), height)
        if x1 <= x0 or y1 <= y0 or left >= right or top >= bottom:
            raise DiffUpError(
                f"the box {(x0, y0, x1, y1)} of {name} holds no pixel of the {width} x "
                f"{height} picture; expected (x0, y0, x1, y1) in pixels with x0 < x1 "
                "and y0 < y1."
            )
        inside[top:bottom, left:right] = True
    return inside


def put_points(
    fg: np.ndarray,
    bg: np.ndarray,
    points: Any,
    labels: Any,
    *,
    radius: float,
    name: str,
) -> None:
    """Draws points (x, y) as discs, in place: label 1 on `fg`, 0 on `bg`.

    radius: in image sides. name: whose they are, for errors. Raises DiffUpError for
    points that are none, lie outside, or have labels of another number.
    """
    if points is None:
        if labels is not None:
            raise DiffUpError(f"{name} has point_labels without points.")
        return
    places = np.asarray(points, np.float64)
    if places.ndim != 2 or places.shape[1] != 2 or not len(places):
        raise DiffUpError(
            f"the points {points!r} of {name} are none; expected [(x, y), ...]."
        )
    labels = [1] * len(places) if labels is None else list(labels)
    if len(labels) != len(places) or not set(labels) <= {0, 1}:
        raise DiffUpError(
            f"{name} has {len(places)} points with the point_labels {labels}; expected "
            "1 (on the object) or 0 (beside it) for each."
        )
    height, width = fg.shape
    radius = max(radius * max(fg.shape), 0.5)
    rows, columns = np.ogrid[:height, :width]
    for (x, y), label in zip(places, labels, strict=True):
        if not (0 <= x < width and 0 <= y < height):
            raise DiffUpError(
                f"the point {(x, y)} of {name} lies outside of the {width} x {height} "
                "picture; expected pixels (x, y)."
            )
        disc = (rows - int(y)) ** 2 + (columns - int(x)) ** 2 <= radius**2
        (fg if label else bg)[disc] = True


def drawn(scribble: Any, shape: tuple[int, int], name: str) -> np.ndarray:
    """Pixels of lines [(x, y), ...], or of a drawn picture; none of None.

    Raises DiffUpError for lines that are none or leave the picture.
    """
    if scribble is None:
        return np.zeros(shape, bool)
    lines = isinstance(scribble, list | tuple)
    if not lines:
        found = pictures.read_mask(scribble).mask
        check_size(found.shape, shape, name)
        return found
    height, width = shape
    canvas = Image.new("1", (width, height))
    pen = ImageDraw.Draw(canvas)
    brush = max(round(_BRUSH * max(shape)), 1)
    if scribble and np.ndim(scribble[0]) == 1:
        scribble = [scribble]
    for line in scribble:
        corners = np.asarray(line, np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2 or not np.isfinite(corners).all():
            raise DiffUpError(f"{name} has the line {line!r}; expected [(x, y), ...].")
        inside = (corners >= 0) & (corners < (width, height))
        if not inside.all():
            raise DiffUpError(
                f"{name} leaves the {width} x {height} picture at "
                f"{tuple(corners[~inside.all(axis=1)][0])}; expected pixels (x, y)."
            )
        flat = [tuple(map(float, corner)) for corner in corners]
        if len(flat) > 1:
            pen.line(flat, fill=1, width=brush, joint="curve")
        for x, y in flat:
            r = brush / 2
            pen.ellipse((x - r, y - r, x + r, y + r), fill=1)
    return np.array(canvas)


def check_size(found: tuple[int, int], shape: tuple[int, int], name: str) -> None:
    if found != shape:
        raise DiffUpError(
            f"{name} is {found[1]} x {found[0]} pixels, its picture {shape[1]} x "
            f"{shape[0]}; expected the same size."
        )
