"""Weak cues made from a support mask: what a user would have drawn.

A cue is two maps, known foreground and known background, each in {0, 1}; a pixel with
neither is unknown. Ignored pixels are unknown in every cue.

    mask       foreground = the mask; background = the rest
    box        one filled tight box around the whole mask (end exclusive) is foreground,
               meaning "maybe"; everything outside is background
    scribble   1..20 random strokes inside the mask; the rest is unknown. Half of all
               scribbles are large (10..30 corners, brush 3..10 px at a side of 512),
               half small (6..22 corners, brush 2.5..5 px)
    point      20 random pixels of the mask, or all where it has fewer; the rest is
               unknown

The field has no standard; these follow PGMA-Net and VRP-SAM (tight box) and the
free-form strokes both use for scribbles. Strokes start inside the mask, so a cue is
never empty.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image, ImageDraw

from diffup_jax.types import DiffUpError

KINDS = ("mask", "box", "scribble", "point")

_POINTS = 20
_STROKES = 20
# (fewest corners, most corners, thinnest brush, thickest brush); pixels at side 512
_PRESETS = ((10, 30, 3.0, 10.0), (6, 22, 2.5, 5.0))
# A stroke is a random walk: steps of this many pixels at side 512, turning gently.
_STEP = (8.0, 40.0)
_TURN = 0.9


def make_cue(
    kind: str,
    mask: Bool[np.ndarray, "s s"],
    *,
    generator: np.random.Generator,
    size: int,
    ignore: Bool[np.ndarray, "s s"] | None = None,
) -> tuple[Float32[np.ndarray, "s s"], Float32[np.ndarray, "s s"]]:
    """(known foreground, known background) of a mask, float {0, 1}.

    mask: [size size], at least one pixel outside `ignore` (None = nothing ignored).
    generator: consulted by scribble and point only. Raises DiffUpError for an unknown
    kind, an empty mask, and a mask that is not [size size].
    """
    if kind not in KINDS:
        raise DiffUpError(f"no cue {kind!r} can be made from a mask; use {KINDS}.")
    if mask.shape != (size, size):
        raise DiffUpError(
            f"the support mask is {mask.shape}; expected ({size}, {size}). Resize it "
            "before making the cue."
        )
    known = np.ones_like(mask) if ignore is None else ~ignore
    mask = mask & known
    if not mask.any():
        raise DiffUpError(
            "the support mask has no foreground pixel; expected at least one. Give a "
            "mask that marks the object."
        )
    if kind == "mask":
        foreground, background = mask, ~mask
    elif kind == "box":
        foreground = _box(mask)
        background = ~foreground
    else:
        draw = _scribble if kind == "scribble" else _points
        foreground, background = draw(mask, generator), np.zeros_like(mask)
    return (
        (foreground & known).astype(np.float32),
        (background & known).astype(np.float32),
    )


def cue_generator(seed: int, image_id: str, class_id: int) -> np.random.Generator:
    """The generator of one support's cue: the same in every run, worker and machine."""
    text = f"{seed}/{class_id}/{image_id}"
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


def _box(mask: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def _points(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    pixels = np.flatnonzero(mask)
    count = min(_POINTS, len(pixels))
    points = np.zeros_like(mask)
    points.flat[pixels[generator.choice(len(pixels), count, replace=False)]] = True
    return points


def _scribble(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    side = mask.shape[0]
    fewest, most, thinnest, thickest = _PRESETS[generator.integers(len(_PRESETS))]
    pixels = np.flatnonzero(mask)
    strokes = generator.integers(1, _STROKES + 1)
    starts = pixels[generator.integers(len(pixels), size=strokes)]
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    for start in starts:
        corners = int(generator.integers(fewest, most + 1))
        width = generator.uniform(thinnest, thickest) * side / 512
        turns = generator.uniform(-_TURN, _TURN, corners)
        turns[0] = generator.uniform(0, 2 * math.pi)
        heading = np.cumsum(turns)
        step = generator.uniform(*_STEP, corners) * side / 512
        x = start % side + np.cumsum(step * np.cos(heading))
        y = start // side + np.cumsum(step * np.sin(heading))
        path = [(float(start % side), float(start // side))]
        path += zip(x.tolist(), y.tolist(), strict=True)
        pen.line(path, fill=1, width=max(1, round(width)), joint="curve")
    drawn = np.array(canvas).astype(bool)
    # The pen rounds: without this a thin start could leave a one-pixel mask.
    drawn.flat[starts] = True
    return drawn & mask
