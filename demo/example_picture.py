"""The picture of README.md: two examples of a thing, and the answer on other pictures.

    python -m demo.example_picture --model runs/quickstart_text \
        --scenes runs/scenes --out docs/example.png

A class that the model never trained on (a novel class of its fold) in scenes that this
project draws itself: a mask on the first example, a box on the second, and the answer
on two more pictures. Which class is shown is fixed by --number, not chosen by how good
the answer is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import diffup_jax
from diffup_jax import Example
from diffup_jax.data import sources
from diffup_jax.data.pictures import overlay
from diffup_jax.files import whole_or_absent
from diffup_jax.result import COLOURS
from diffup_jax.types import DiffUpError

_CELL, _GAP, _HEAD = 220, 6, 18
_COLOURS = 256  # of the palette


def draw(model: str, scenes: str, out: str, *, number: int) -> str:
    """Writes the picture; answers the class it shows and the IoUs of the answers.

    Raises:
      DiffUpError: for a model or scenes that are not there.
    """
    loaded = diffup_jax.load(model)
    source = sources.open_source(
        "coco", root=scenes, split="val", min_area=0.01, crowd="hsnet"
    )
    novel = sources.fold_classes(source, loaded.settings.data.fold, role="novel")
    usable = [c for c in novel if len(source.image_ids(c)) >= 4]
    if not usable:
        raise DiffUpError(
            f"no novel class of {scenes!r} has the four pictures that are shown; draw "
            "more scenes (demo.make_scenes --images)."
        )
    shown = usable[number % len(usable)]
    names = source.image_ids(shown)[:4]
    pictures = [source.image(name) for name in names]
    masks = [source.mask(name, shown)[0] for name in names]
    rows, columns = np.nonzero(masks[1])
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    task = loaded.fit(
        [Example(pictures[0], mask=masks[0]), Example(pictures[1], box=box)]
    )
    results = list(task.predict(pictures[2:]))
    boxed = Image.fromarray(pictures[1])
    ImageDraw.Draw(boxed).rectangle(
        (box[0], box[1], box[2] - 1, box[3] - 1), outline=COLOURS[1], width=3
    )
    tint = {"colour": COLOURS[1], "strength": 0.55}
    cells = {
        "example: a mask": overlay(pictures[0], masks[0], **tint),
        "example: a box": np.asarray(boxed),
        "answer": results[0].overlay(),
        "another": results[1].overlay(),
    }
    step = _CELL + _GAP
    page = Image.new("RGB", (len(cells) * step - _GAP, _HEAD + _CELL), "white")
    pen = ImageDraw.Draw(page)
    for column, (words, picture) in enumerate(cells.items()):
        pen.text((column * step + 2, 3), words, fill="black")
        small = Image.fromarray(picture).resize((_CELL, _CELL))
        page.paste(small, (column * step, _HEAD))
    plain = page.quantize(_COLOURS, dither=Image.Dither.NONE)
    with whole_or_absent(out) as partial:
        plain.save(partial, "png", optimize=True)
    ious = [
        (r.mask & m).sum() / max((r.mask | m).sum(), 1)
        for r, m in zip(results, masks[2:], strict=True)
    ]
    listed = ", ".join(f"{100 * iou:.0f}" for iou in ious)
    return f"{source.class_names[shown]}: IoU {listed}"


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a trained run")
    parser.add_argument("--scenes", required=True, help="demo.make_scenes --out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--number", type=int, default=1, help="of the novel class")
    options = parser.parse_args(arguments)
    try:
        told = draw(
            options.model, options.scenes, str(options.out), number=options.number
        )
    except DiffUpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
