"""Prepares PACO-Part: PACO-LVIS v1 annotations over the COCO 2017 images.

    python -m data_prep.paco_part --root DIR [--download]

makes and checks the layout that `diffup_jax/data/readers/paco_part.py` reads

    DIR/annotations/paco_lvis_v1_train.json, paco_lvis_v1_val.json
    DIR/paco_part.json                  the part classes, 448, by category id: those
                                        with a part annotation in the train file
    DIR/train2017/, DIR/val2017/        (a COCO folder of data_prep.coco20i will do)

Archives in `--archives` (default DIR/archives) are unpacked, and fetched first with
`--download`. The official files have the official numbers of images and classes
(`--subset` for a part of PACO), and every image the JSON names must be there. Run
again, it only does what is left.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep import command
from data_prep.archives import Archive, obtain, unpack
from data_prep.command import Row
from data_prep.lvis92i import image_names, images_rows
from diffup_jax.data.readers import paco_part, parts
from diffup_jax.files import read_json, write_changed
from diffup_jax.types import DiffUpError

# The archive was replaced since its hash was first published: only counts are checked.
JSON = Archive(
    "https://dl.fbaipublicfiles.com/paco/annotations/paco_lvis_v1.zip", None, None
)
IMAGES = {"train": 45790, "val": 2410}
CLASSES = 448


def prepare(root: Path, *, archives: Path, download: bool, subset: bool) -> list[Row]:
    """Does what the module docstring says; answers what is there and what is not.

    Raises DiffUpError for a damaged archive or JSON and for a failed download.
    """
    paths = {split: paco_part.annotation_path(root, split) for split in parts.SPLITS}
    if not all(path.is_file() for path in paths.values()):
        archive = obtain(JSON, archives, download=download)
        if archive is not None:
            unpack(archive, root / "annotations", members=_json_member)
    rows, named = [], {}
    for split in parts.SPLITS:
        path = paco_part.annotation_path(root, split)
        what = f"annotations/{path.name}"
        if not path.is_file():
            rows.append(Row(what, "missing", f"in {JSON.url}"))
            if split == "train":
                facts = "made from paco_lvis_v1_train.json"
                rows.append(Row(paco_part.TABLE, "missing", facts))
            continue
        content = read_json(path, fix=f"Get it again. Layout: {paco_part.LAYOUT}")
        named[split] = image_names(path, content)
        facts = f"{len(named[split])} images"
        good = subset or len(named[split]) == IMAGES[split]
        facts += "" if good else f"; the official file: {IMAGES[split]}"
        rows.append(Row(what, "there" if good else "wrong", facts))
        if split == "train":
            rows.append(write_table(root, path, content, subset=subset))
    rows += images_rows(root, named, archives=archives, download=download)
    return rows


def write_table(
    root: Path, path: Path, content: dict[str, Any], *, subset: bool
) -> Row:
    """Writes ROOT/paco_part.json: the part categories that the train file annotates.

    Raises DiffUpError when the content is no PACO file.
    """
    try:
        used = {e["category_id"] for e in content["annotations"]}
        classes = [
            {"id": entry["id"], "name": entry["name"]}
            for entry in sorted(content["categories"], key=lambda e: e["id"])
            if ":" in entry["name"] and entry["id"] in used
        ]
    except (KeyError, TypeError) as error:
        raise DiffUpError(
            f"{path} is no PACO file ({error!r}); get it again."
        ) from error
    text = json.dumps({"parts": classes}, indent=1) + "\n"
    target = root / paco_part.TABLE
    write_changed(target, text)
    good = subset or len(classes) == CLASSES
    facts = f"{len(classes)} part classes" + ("" if good else f", expected {CLASSES}")
    return Row(paco_part.TABLE, "there" if good else "wrong", facts)


def main(arguments: Sequence[str]) -> int:
    """The command line; see `command.run` for the exit status."""
    parser = command.parser(
        "paco_part",
        "Prepare and check PACO-Part.",
        root="PACO folder",
        archives="zip files",
        subset="PACO",
    )
    parser.add_argument("--download", action="store_true", help="fetch what is missing")
    return command.run(parser, arguments, prepare, title="PACO-Part")


def _json_member(name: str) -> str | None:
    file = PurePosixPath(name).name
    return file if file.startswith("paco_lvis_v1_") and file.endswith(".json") else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
