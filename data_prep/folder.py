"""Checks a folder of one's own pictures and deals its classes into folds.

    python -m data_prep.folder --root DIR [--split all] [--folds N]

reads what `diffup_jax/data/readers/class_folders.py` reads (DIR/CLASS/NAME.jpg and
NAME.png, or one COCO instances JSON), lists every problem it finds, and says how many
images each class has. Without DIR/classes.json all classes are novel in fold 0: right
for testing a trained network. To train on the folder itself, `--folds N` writes
DIR/classes.json with class k in fold k mod N; a file that is there with other folds is
refused, because results are named after folds. Pictures are only read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep import command
from data_prep.command import Row
from diffup_jax.data import rasters
from diffup_jax.data.readers import class_folders
from diffup_jax.files import write_whole
from diffup_jax.types import DiffUpError


def prepare(root: Path, *, split: str, folds: int | None) -> list[Row]:
    """Does what the module docstring says; answers what is there and what is not.

    Raises DiffUpError when there is no such folder or split, and for --folds that
    contradict a classes.json.
    """
    if not root.is_dir():
        raise DiffUpError(f"{root} is not a folder; --root names the pictures' folder.")
    if class_folders.find_json(root, split) is None:
        problems = _problems(root if split == "all" else root / split)
        if problems:
            return problems
    source = class_folders.open_folder(root, split=split, min_area=0.0, crowd="hsnet")
    if folds is not None:
        write_folds(root, source.class_names, folds)
        source = class_folders.open_folder(
            root, split=split, min_area=0.0, crowd="hsnet"
        )
    return [_class_row(source, index) for index in range(len(source.class_names))]


def write_folds(root: Path, names: Sequence[str], folds: int) -> None:
    """Writes ROOT/classes.json with class k in fold k mod `folds`.

    Raises DiffUpError for fewer than 2 folds or fewer classes than folds, and when the
    file is there with other folds.
    """
    if not 2 <= folds <= len(names):
        raise DiffUpError(
            f"--folds {folds} with {len(names)} classes: expected 2 .. {len(names)}, "
            "so that each fold has a class and others to train on."
        )
    entries = [{"name": name, "fold": k % folds} for k, name in enumerate(names)]
    path = root / class_folders.CLASSES
    if path.is_file():
        if class_folders.read_folds(root, names) != tuple(e["fold"] for e in entries):
            raise DiffUpError(
                f"{path} is there with other folds; remove it to deal them anew."
            )
        return
    write_whole(path, json.dumps({"classes": entries}, indent=1) + "\n")


def main(arguments: Sequence[str]) -> int:
    """The command line; see `command.run` for the exit status."""
    parser = command.parser(
        "folder",
        "Check a folder of pictures.",
        root="the folder",
        archives=None,
        subset=None,
    )
    parser.add_argument("--split", default="all", help="all, or a folder or JSON in it")
    parser.add_argument("--folds", type=int, help="deal the classes into N folds")
    return command.run(parser, arguments, prepare, title="pictures")


def _problems(place: Path) -> list[Row]:
    """One row for each file or class folder that is not as it should be."""
    rows, pairs = [], {}
    folders = sorted(p for p in place.glob("*") if p.is_dir() and p.name[0] != ".")
    for folder in folders:
        try:
            found = class_folders.read_pairs(folder)
        except DiffUpError as error:
            rows.append(Row(folder.name, "wrong", str(error)))
            continue
        pairs |= {f"{folder.name}/{name}": pair for name, pair in found.items()}
    for name, (image, mask) in tqdm(pairs.items(), desc="check", disable=None):
        try:
            foreground = class_folders.read_mask(mask)
            size = rasters.read_image(image).shape[:2]
        except DiffUpError as error:
            rows.append(Row(name, "wrong", str(error)))
            continue
        if foreground.shape != size:
            sizes = "{} x {} and {} x {}".format(*size, *foreground.shape)
            rows.append(Row(name, "wrong", f"image and mask differ in size: {sizes}"))
        elif not foreground.any():
            rows.append(Row(name, "wrong", "the mask has no foreground"))
    return rows


def _class_row(source: Any, index: int) -> Row:
    images, fold = len(source.image_ids(index)), source.class_folds[index]
    facts = f"{images} images, novel in fold {fold}"
    if images > 1:
        return Row(source.class_names[index], "there", facts)
    facts += "; an episode needs 2, a query and a support"
    return Row(source.class_names[index], "missing", facts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
