"""Draws every cue convention, and measures how much of a mask each one marks.

    python -m demo.cue_pictures --out docs/cues.png

writes one picture: a row per object, a column per convention, on a pale grey scene with
foreground pink, known background blue and unknown as it is; scribbles and points are
drawn thicker than they are. The objects are from scenes this project draws itself
(`scene_drawing`): a whole one, one with a hole, one cut by the image border, one in two
or three pieces and one in more. A scene has one object of a class, so its pieces stand
for instances. Then it prints what each cue marks, a mean over all objects of `--scenes`
scenes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from demo.make_scenes import deal
from demo.scene_categories import categories
from demo.scene_drawing import draw_scene
from diffup_jax.data import cues, rasters
from diffup_jax.data.cues import Conventions
from diffup_jax.files import whole_or_absent
from diffup_jax.gallery import BACKGROUND, FOREGROUND, overlay
from diffup_jax.types import DiffUpError

_STANDARD = Conventions("tight", "stroke", 20)
# (name, kind, conventions), in the order of the columns.
VARIANTS = (
    ("mask", "mask", _STANDARD),
    ("box tight", "box", _STANDARD),
    ("box component", "box", Conventions("component", "stroke", 20)),
    ("box instance", "box", Conventions("instance", "stroke", 20)),
    ("scribble stroke", "scribble", _STANDARD),
    ("scribble skeleton", "scribble", Conventions("tight", "skeleton", 20)),
    ("point", "point", _STANDARD),
    ("text", "text", _STANDARD),
)

_SIZE = 384  # pixels a side of the scenes, the size cues are made at
_CELL = 140  # pixels a side of a picture
_GAP = 4
_HEAD = 16  # pixels of the line of names
_COLOURS = 256  # of the palette: grey scenes and two tints need no more
_VIEW = 1.5  # side of the part shown, relative to the object
_MOST_SCENES = 2000  # looked through for the objects of the picture


def draw(out: str | os.PathLike, *, seed: int) -> None:
    """Writes the picture, whole or not at all."""
    step = _CELL + _GAP
    chosen = _chosen(seed)
    page = Image.new("RGB", (len(VARIANTS) * step, _HEAD + len(chosen) * step), "white")
    pen = ImageDraw.Draw(page)
    for column, (name, _, _) in enumerate(VARIANTS):
        pen.text((column * step + 2, 2), name, fill="black")
    for row, (image, mask, class_name) in enumerate(chosen):
        pieces = rasters.components(mask)
        for column, (_, kind, conventions) in enumerate(VARIANTS):
            maps = _cue(kind, mask, pieces, conventions, f"object {row}")
            tinted = _tinted(image, kind, *maps)[_view(mask)]
            cell = Image.fromarray(tinted).resize(
                (_CELL, _CELL), Image.Resampling.BILINEAR
            )
            if kind == "text":
                words = f'"{class_name}"'
                ImageDraw.Draw(cell).text(
                    (_CELL / 2, _CELL / 2),
                    words.replace(" ", "\n"),
                    fill="white",
                    stroke_fill="black",
                    stroke_width=2,
                    anchor="mm",
                    align="center",
                )
            page.paste(cell, (column * step, _HEAD + row * step))
    plain = page.quantize(_COLOURS, dither=Image.Dither.NONE)
    with whole_or_absent(out) as partial:
        plain.save(partial, "png", optimize=True)


class Marked(NamedTuple):
    """What a cue marks: three mean fractions, and the median time it takes.

    `mask`: the mask's pixels that are marked foreground. `inside`: the marked
    foreground that lies in the mask, NaN where nothing is marked. `background`: the
    pixels outside the mask that are marked background. `milliseconds` of one core.
    """

    mask: float
    inside: float
    background: float
    milliseconds: float


def measure(*, scenes: int, seed: int) -> dict[str, Marked]:
    """Variant -> what it marks of the objects of `scenes` >= 1 scenes."""
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name, _, _ in VARIANTS}
    for number, (_, mask, _) in enumerate(_objects(scenes, seed)):
        pieces = rasters.components(mask)
        for name, kind, conventions in VARIANTS:
            start = time.process_time()
            fg, bg = _cue(kind, mask, pieces, conventions, f"object {number}")
            spent = time.process_time() - start
            inside = fg[mask].sum() / fg.sum() if fg.any() else np.nan
            row = (fg[mask].mean(), inside, bg[~mask].mean(), 1000 * spent)
            rows[name].append(row)
    found = {}
    for name, columns in rows.items():
        *means, spent = np.array(columns).T
        found[name] = Marked(*(float(m.mean()) for m in means), float(np.median(spent)))
    return found


def main(arguments: Sequence[str]) -> int:
    """The command line; exit status 2 and one line for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.cue_pictures",
        description="Draw every cue convention and measure what it marks.",
    )
    parser.add_argument("--out", required=True, help="picture to write, PNG")
    parser.add_argument("--scenes", type=int, default=200, help="scenes measured")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        if Path(options.out).suffix.lower() != ".png" or options.scenes < 1:
            raise DiffUpError(
                f"--out {options.out} --scenes {options.scenes}: expected a file "
                "ending in .png and at least one scene."
            )
        draw(options.out, seed=options.seed)
    except DiffUpError as error:
        print(f"cue_pictures: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(VARIANTS)} conventions")
    print("| cue | of the mask | inside the mask | of the background | ms |")
    print("|---|---|---|---|---|")
    for name, row in measure(scenes=options.scenes, seed=options.seed).items():
        told = [f"{100 * part:.1f} %" if part == part else "–" for part in row[:3]]
        print(f"| {name} | {' | '.join(told)} | {row.milliseconds:.2f} |")
    return 0


def _cue(
    kind: str,
    mask: np.ndarray,
    pieces: np.ndarray,
    conventions: Conventions,
    name: str,
) -> tuple[np.ndarray, np.ndarray]:
    return cues.make_cue(
        kind,
        mask,
        generator=cues.cue_generator(0, name, 0),
        size=_SIZE,
        ignore=None,
        conventions=conventions,
        instances=pieces,
    )


def _tinted(image: np.ndarray, kind: str, fg: np.ndarray, bg: np.ndarray) -> np.ndarray:
    strength = 0.4 if kind == "box" else 0.7  # a box is only maybe foreground
    if kind in ("scribble", "point"):
        fg, strength = ndimage.binary_dilation(fg, np.ones((3, 3), bool)), 1.0
    # A pale grey scene: the only colours are the cue's.
    grey = image.astype(np.float32).mean(-1, keepdims=True)
    pale = np.repeat(np.rint(90 + 0.6 * grey).astype(np.uint8), 3, axis=-1)
    tinted = overlay(pale, bg, colour=BACKGROUND, strength=0.45)
    return overlay(tinted, fg, colour=FOREGROUND, strength=strength)


def _view(mask: np.ndarray) -> tuple[slice, slice]:
    """A square part of the image around the object, inside the image."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    side = round(_VIEW * max(part.stop - part.start for part in box))
    side = min(side, min(mask.shape))
    starts = [
        min(max((part.start + part.stop - side) // 2, 0), length - side)
        for part, length in zip(box, mask.shape, strict=True)
    ]
    return tuple(slice(start, start + side) for start in starts)


def _objects(scenes: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """(image, mask, class name) of every object of the scenes."""
    pool = categories("evaluated")
    hands = deal(np.random.default_rng(seed), scenes, pool=len(pool))
    for number, hand in enumerate(hands):
        generator = np.random.default_rng((seed, number))
        scene = draw_scene(generator, [pool[card] for card in hand], size=_SIZE)
        for one in scene.objects:
            yield scene.image, one.mask, one.category.name


def _chosen(seed: int) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """The first large object of each kind that the module docstring names."""
    wanted: dict[str, Callable[[np.ndarray, int, bool], bool]] = {
        "whole": lambda mask, parts, holes: parts == 1 and not holes and not _cut(mask),
        "hole": lambda mask, parts, holes: parts == 1 and holes,
        "border": lambda mask, parts, holes: parts == 1 and not holes and _cut(mask),
        "pieces": lambda mask, parts, holes: 2 <= parts <= 3,
        "more": lambda mask, parts, holes: parts >= 4,
    }
    found: dict[str, tuple[np.ndarray, np.ndarray, str]] = {}
    for image, mask, name in _objects(_MOST_SCENES, seed):
        areas = np.bincount(rasters.components(mask).ravel())[1:]
        if areas.sum() < 0.04 * mask.size or areas.min() < 0.1 * areas.max():
            continue
        holes = bool((ndimage.binary_fill_holes(mask) & ~mask).sum() > 0.1 * mask.sum())
        for kind, fits in wanted.items():
            if kind not in found and fits(mask, len(areas), holes):
                found[kind] = (image, mask, name)
        if len(found) == len(wanted):
            break
    return [found[kind] for kind in wanted if kind in found]


def _cut(mask: np.ndarray) -> bool:
    """Whether a mask touches the image border."""
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return any(edge.any() for edge in edges)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
