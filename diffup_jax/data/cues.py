"""Weak cues made from a support mask: what a user would have drawn.

A cue is two boolean maps, known foreground and known background; a pixel with neither
is unknown. Ignored pixels are unknown in every cue.

    mask        foreground = the mask; background = the rest
    box         foreground = the filled box, meaning "maybe"; background as follows
      tight       one tight box around the whole mask; background = everything outside
                  (PGMA-Net, VRP-SAM)
      component   one tight box per connected component; background = outside all (BAM)
      instance    the tight box of the largest instance; background = outside the boxes
                  of all instances, so what the others' boxes hold is unknown (PANet)
    scribble    foreground = the scribble; the rest is unknown
      stroke      random strokes inside the mask
      skeleton    the middle line of the largest component; for both see scribbles.py
    point       foreground = 20 random pixels of the mask (VRP-SAM), or as many as the
                conventions say, or all where it has fewer; the rest is unknown
    text        the class name: both maps are empty

The field has no standard; docs/cues.md shows them all. No cue but a text is ever empty,
and none calls a pixel of the mask background.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, UInt16
from scipy import ndimage

from diffup_jax.data import rasters, scribbles
from diffup_jax.types import CUES, DiffUpError

# The cues that mark pixels, and so need a mask.
KINDS = ("mask", "box", "scribble", "point")
BOXES = ("tight", "component", "instance")
SCRIBBLES = ("stroke", "skeleton")

# The cues that are drawn at random.
DRAWN = ("scribble", "point")


@dataclasses.dataclass(frozen=True)
class Conventions:
    """What "box", "scribble" and "point" mean: one of BOXES, one of SCRIBBLES, pixels.

    Raises DiffUpError for any other name and for no point.
    """

    box: str
    scribble: str
    points: int

    def __post_init__(self) -> None:
        for name, known in (("box", BOXES), ("scribble", SCRIBBLES)):
            value = getattr(self, name)
            if value not in known:
                raise DiffUpError(
                    f"unknown {name} convention {value!r}; expected one of {known}."
                )
        if self.points < 1:
            raise DiffUpError(
                f"a point cue of {self.points} pixels; expected at least 1."
            )

    def with_fewer_points(
        self, generator: np.random.Generator, *, fewest: int
    ) -> Conventions:
        """The same with fewest..points pixels, log-uniform: 1-4 as often as 5-20.

        fewest: at least 1; from `points` on it is always `points`.
        """
        fewest = min(fewest, self.points)
        few = fewest * (self.points / fewest) ** generator.random()
        return dataclasses.replace(self, points=round(float(few)))

    def told(self, kinds: Iterable[str]) -> str:
        """What those of the kinds mean that could mean something else, in words."""
        words = {
            "box": f"{self.box} box",
            "scribble": f"{self.scribble} scribble",
            "point": f"point of {self.points} px",
        }
        return ", ".join(words[kind] for kind in kinds if kind in words)


def make_cue(
    kind: str,
    mask: Bool[np.ndarray, "s s"],
    *,
    generator: np.random.Generator | None,
    size: int,
    ignore: Bool[np.ndarray, "s s"] | None,
    conventions: Conventions,
    instances: UInt16[np.ndarray, "s s"] | None,
) -> tuple[Bool[np.ndarray, "s s"], Bool[np.ndarray, "s s"]]:
    """(known foreground, known background) of a mask.

    mask: [size size], at least one pixel outside `ignore` (None = nothing ignored),
        unless the cue is a text. generator: for the kinds in DRAWN, else None will do.
    instances: 0 outside, 1..m the instances of the class; for the `instance` box, where
        None = the connected components of the mask.

    Raises DiffUpError for an unknown kind, an empty mask, and a mask that is not
    [size size].
    """
    if kind not in CUES:
        raise DiffUpError(f"no cue is called {kind!r}; use one of {CUES}.")
    if mask.shape != (size, size):
        raise DiffUpError(
            f"the support mask is {mask.shape}; expected ({size}, {size}). Resize it "
            "before making the cue."
        )
    known = np.ones_like(mask) if ignore is None else ~ignore
    mask = mask & known
    nothing = np.zeros_like(mask)
    if kind != "text" and not mask.any():
        raise DiffUpError(
            "the support mask has no foreground pixel; expected at least one. Give a "
            "mask that marks the object."
        )
    if kind == "mask":
        foreground, background = mask, ~mask
    elif kind == "box":
        foreground, background = _box(mask, conventions.box, instances)
    elif kind == "scribble":
        draw = {"stroke": scribbles.stroke, "skeleton": scribbles.skeleton}[
            conventions.scribble
        ]
        foreground, background = draw(mask, generator=generator), nothing
    elif kind == "point":
        foreground, background = _points(mask, generator, conventions.points), nothing
    else:
        foreground = background = nothing
    return foreground & known, background & known


def mixture(cue: str) -> tuple[str, ...]:
    """The kinds of an evaluation cue: "mask+text" -> ("mask", "text").

    Shot i takes kind i mod the number of those that mark pixels (`marking`); a text is
    no shot, it stands beside all of them. Raises DiffUpError for an unknown kind and
    for one that is named twice.
    """
    kinds = tuple(cue.split("+"))
    if any(kind not in CUES for kind in kinds) or len(set(kinds)) < len(kinds):
        raise DiffUpError(
            f"cue {cue!r} is unknown; expected one of {CUES}, or some of them joined "
            'by "+", such as "mask+scribble".'
        )
    return kinds


def marking(kinds: Iterable[str]) -> tuple[str, ...]:
    """Those of the kinds that mark pixels: the ones a shot can have."""
    return tuple(kind for kind in kinds if kind in KINDS)


def any_text(cues: Iterable[str]) -> bool:
    """Whether one of the cues, or of a mixture's kinds, is a text."""
    return any("text" in cue.split("+") for cue in cues)


def cue_generator(seed: int, image_id: str, class_id: int) -> np.random.Generator:
    """The generator of one support's cue: the same in every run, worker and machine."""
    text = f"{seed}/{class_id}/{image_id}"
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


def _box(
    mask: np.ndarray, convention: str, instances: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    if convention == "tight":
        foreground = _filled(mask.shape, ndimage.find_objects(mask.view(np.uint8)))
        return foreground, ~foreground
    if convention == "component":
        boxes = ndimage.find_objects(rasters.components(mask))
        foreground = _filled(mask.shape, boxes)
        return foreground, ~foreground
    labels = np.where(mask, instances, 0) if instances is not None else np.zeros(1, int)
    if not labels.any():
        # Resizing may take every instance and leave the one pixel of a support's mask.
        labels = rasters.components(mask)
    boxes = ndimage.find_objects(labels)
    largest = np.bincount(labels.ravel())[1:].argmax()
    every = _filled(mask.shape, [box for box in boxes if box is not None])
    return _filled(mask.shape, [boxes[largest]]), ~(every | mask)


def _filled(shape: tuple[int, ...], boxes: list[tuple[slice, ...]]) -> np.ndarray:
    filled = np.zeros(shape, bool)
    for box in boxes:
        filled[box] = True
    return filled


def _points(mask: np.ndarray, generator: np.random.Generator, most: int) -> np.ndarray:
    pixels = np.flatnonzero(mask)
    count = min(most, len(pixels))
    points = np.zeros_like(mask)
    points.flat[pixels[generator.choice(len(pixels), count, replace=False)]] = True
    return points
