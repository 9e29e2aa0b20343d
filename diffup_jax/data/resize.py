"""How an image enters the network, and how an answer returns to the image's own size.

    square   the whole image becomes [s s], its aspect lost: bilinear for the image, the
             nearest rule of the hsnet protocol for labels (see rasters.py)
    pad      the longer side becomes s, the aspect is kept, both sides are then cut to
             multiples of 8; the picture lies in the upper left corner. The rest of the
             image is 0, black, before any backbone normalises it, and every pixel there
             is ignored (the label 255 of the published code). The pfenet protocol
             (PFENet, arXiv 2008.01449).

An answer [s s] returns by bilinear interpolation with aligned corners, as in both
published evaluations: pixel i of L reads position i (s - 1) / (L - 1). In "pad" the
square of side max(h, w) is filled that way and its first h rows and w columns are the
answer; the published code scores the whole square, of which it ignores the same rest.

Pixels of an image come in all sizes, so this room is numpy and PIL on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16
from PIL import Image

from diffup_jax.data import rasters
from diffup_jax.types import DiffUpError

FRAMES = ("square", "pad")

# The published code of "pad" wants sides that its network halves three times.
_MULTIPLE = 8


class View(NamedTuple):
    """An image and its labels, at its own size or, from `enter` on, [size size].

    `masks` has one map per way, `ignore` is True on ignored pixels and padding,
    `instances` numbers a support's instances from 1 (None when nobody asked).
    """

    image: UInt8[np.ndarray, "h w 3"]
    masks: Bool[np.ndarray, "n h w"]
    ignore: Bool[np.ndarray, "h w"]
    instances: UInt16[np.ndarray, "h w"] | None


def enter(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Bool[np.ndarray, "n h w"],
    ignore: Bool[np.ndarray, "h w"],
    instances: UInt16[np.ndarray, "h w"] | None,
    *,
    frame: str,
    size: int,
) -> View:
    """The view that queries are scored with: a small object may lose every pixel.

    Raises DiffUpError for an unknown frame.
    """
    rows, columns = _content(image.shape[:2], frame, size)

    def labels(part: np.ndarray, fill: int) -> np.ndarray:
        return _placed(_nearest(part, frame, rows, columns), size, fill=fill)

    return View(
        _placed(_resized(image, rows, columns), size, fill=0),
        np.stack([labels(mask, 0) for mask in masks]),
        labels(ignore, 1),
        None if instances is None else labels(instances, 0),
    )


def enter_support(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Bool[np.ndarray, "n h w"],
    ignore: Bool[np.ndarray, "h w"],
    instances: UInt16[np.ndarray, "h w"] | None,
    *,
    frame: str,
    size: int,
) -> View:
    """`enter`, but a first mask with pixels keeps at least the best-covered one.

    A support without a single foreground pixel could give no cue.
    """
    view = enter(image, masks, ignore, instances, frame=frame, size=size)
    if not view.masks[0].any() and masks[0].any():
        rows, columns = _content(image.shape[:2], frame, size)
        cover = Image.fromarray(masks[0].astype(np.float32)).resize(
            (columns, rows), Image.Resampling.BOX
        )
        view = keep_pixel(view, np.argmax(_placed(np.asarray(cover), size, fill=0)))
    return view


def keep_pixel(view: View, place: int | np.integer) -> View:
    """The view with the pixel of flat index `place` in the first mask."""
    masks, ignore = view.masks.copy(), view.ignore.copy()
    masks[0].flat[place], ignore.flat[place] = True, False
    instances = view.instances
    if instances is not None:
        instances = instances.copy()
        instances.flat[place] = 1  # the largest
    return View(view.image, masks, ignore, instances)


def leave(
    values: Float[np.ndarray, "s s"], shape: tuple[int, int], *, frame: str
) -> Float[np.ndarray, "h w"]:
    """A map of the network at the (h, w) of the image it belongs to, same type.

    Raises DiffUpError for an unknown frame.
    """
    _require(frame)
    height, width = shape
    target = shape if frame == "square" else (max(shape), max(shape))
    for axis, length in enumerate(target):
        last = values.shape[axis] - 1
        places = np.linspace(0, last, length) if length > 1 else np.zeros(1)
        low = np.minimum(places.astype(np.int64), max(last - 1, 0))
        high = np.minimum(low + 1, last)
        share = (places - low).astype(values.dtype)
        share = share[:, None] if axis == 0 else share
        first, second = values.take(low, axis), values.take(high, axis)
        values = first + share * (second - first)
    return values[:height, :width]


def _content(shape: tuple[int, int], frame: str, size: int) -> tuple[int, int]:
    """Rows and columns of the frame that the image fills."""
    _require(frame)
    if frame == "square":
        return size, size
    longer = max(shape)
    sides = (size if n == longer else int(n * (size / longer)) for n in shape)
    rows, columns = (max(n // _MULTIPLE, 1) * _MULTIPLE for n in sides)
    return rows, columns


def _require(frame: str) -> None:
    if frame not in FRAMES:
        raise DiffUpError(f"unknown frame {frame!r}; expected one of {FRAMES}.")


def _resized(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    picture = Image.fromarray(image)
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR))


def _nearest(labels: np.ndarray, frame: str, rows: int, columns: int) -> np.ndarray:
    if frame == "square":
        resize = rasters.resize_mask if labels.dtype == bool else rasters.resize_labels
        return resize(labels, rows)
    height, width = labels.shape
    down = (np.arange(rows) * (height / rows)).astype(np.int64)
    across = (np.arange(columns) * (width / columns)).astype(np.int64)
    return labels[down[:, None], across[None, :]]


def _placed(part: np.ndarray, size: int, *, fill: int) -> np.ndarray:
    """`part` [rows columns ...] in the upper left corner of a [size size ...] array."""
    rows, columns = part.shape[:2]
    if rows == columns == size:
        return part
    whole = np.full((size, size, *part.shape[2:]), fill, part.dtype)
    whole[:rows, :columns] = part
    return whole
