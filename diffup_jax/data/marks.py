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
    fg: Bool[np.ndarray, "p q"],
    bg: Bool[np.ndarray, "p q"],
    points: Any,
    labels: Any,
    *,
    shape: tuple[int, int],
    radius: float,
    name: str,
) -> None:
    """Draws points (x, y) as discs, in place: label 1 on `fg`, 0 on `bg`.

    shape: (h, w) of the picture that the points are in; the maps may be of another
    size. radius: in image sides; every point has a pixel. name: whose they are, for
    errors. Raises DiffUpError for points that are none, lie outside, or have labels of
    another number.
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
    height, width = shape
    rows, columns = np.ogrid[: fg.shape[0], : fg.shape[1]]
    radius = max(radius * max(fg.shape), 0.5)
    for (x, y), label in zip(places, labels, strict=True):
        if not (0 <= x < width and 0 <= y < height):
            raise DiffUpError(
                f"the point {(float(x), float(y))} of {name} lies outside of the "
                f"{width} x {height} picture; expected pixels (x, y)."
            )
        row, column = int(y * fg.shape[0] / height), int(x * fg.shape[1] / width)
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        (fg if label else bg)[disc] = True


def drawn(
    scribble: Any, *, shape: tuple[int, int], canvas: tuple[int, int], name: str
) -> Bool[np.ndarray, "p q"]:
    """Pixels [canvas] of lines [(x, y), ...], or of a drawn picture; none of None.

    shape: (h, w) of the picture that was drawn on. Raises DiffUpError for lines that
    are none or leave the picture.
    """
    if scribble is None:
        return np.zeros(canvas, bool)
    if not isinstance(scribble, list | tuple):
        found = pictures.read_mask(scribble).mask
        check_size(found.shape, shape, name)
        share = Image.fromarray(found.astype(np.float32)).resize(
            canvas[::-1], Image.Resampling.BOX
        )
        return np.asarray(share) > 0
    height, width = shape
    picture = Image.new("1", canvas[::-1])
    pen = ImageDraw.Draw(picture)
    brush = max(round(_BRUSH * max(canvas)), 1)
    if scribble and np.ndim(scribble[0]) == 1:
        scribble = [scribble]
    for line in scribble:
        corners = np.asarray(line, np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2 or not np.isfinite(corners).all():
            raise DiffUpError(f"{name} has the line {line!r}; expected [(x, y), ...].")
        inside = (corners >= 0) & (corners < (width, height))
        if not inside.all():
            x, y = map(float, corners[~inside.all(axis=1)][0])
            raise DiffUpError(
                f"{name} leaves the {width} x {height} picture at {(x, y)}; expected "
                "pixels (x, y)."
            )
        flat = [
            (float(x) * canvas[1] / width, float(y) * canvas[0] / height)
            for x, y in corners
        ]
        if len(flat) > 1:
            pen.line(flat, fill=1, width=brush, joint="curve")
        for x, y in flat:
            r = brush / 2
            pen.ellipse((x - r, y - r, x + r, y + r), fill=1)
    return np.array(picture)


def check_size(found: tuple[int, int], shape: tuple[int, int], name: str) -> None:
    """Raises DiffUpError unless a mask has the size of its picture."""
    if found != shape:
        raise DiffUpError(
            f"{name} is {found[1]} x {found[0]} pixels, its picture {shape[1]} x "
            f"{shape[0]}; expected the same size."
        )
