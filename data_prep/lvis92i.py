"""Prepares LVIS-92i: LVIS v1 annotations over the COCO 2017 images.

    python -m data_prep.lvis92i --root DIR [--download]

makes and checks the layout that `diffup_jax/data/readers/lvis.py` reads

    DIR/annotations/lvis_v1_train.json, lvis_v1_val.json
    DIR/lvis92i.json                    the val images of each class, from which the
                                        ten folds follow
    DIR/train2017/, DIR/val2017/        (a COCO folder of data_prep.coco20i will do)

Archives in `--archives` (default DIR/archives) are unpacked, and fetched first with
`--download`. The official files have the official numbers of images, annotations and
classes (`--subset` for a part of LVIS), and every image the JSON names must be there.
Run again, it only does what is left.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data_prep import command
from data_prep.archives import Archive, below, obtain, unpack
from data_prep.coco20i import ARCHIVES as COCO
from data_prep.command import Row
from diffup_jax.data.readers import lvis
from diffup_jax.files import read_json, write_changed
from diffup_jax.types import DiffUpError

IMAGE_FOLDERS = ("train2017", "val2017")
JSON = {
    split: Archive(
        f"https://dl.fbaipublicfiles.com/LVIS/lvis_v1_{split}.json.zip", None, None
    )
    for split in lvis.SPLITS
}


class Counts(NamedTuple):
    """Images, annotations and classes of a JSON."""

    images: int
    annotations: int
    classes: int


OFFICIAL = {
    "train": Counts(100170, 1270141, 1203),
    "val": Counts(19809, 244707, 1203),
}


def prepare(root: Path, *, archives: Path, download: bool, subset: bool) -> list[Row]:
    """Does what the module docstring says; answers what is there and what is not.

    Raises DiffUpError for a damaged archive or JSON and for a failed download.
    """
    rows, contents = [], {}
    for split in lvis.SPLITS:
        path = lvis.annotation_path(root, split)
        if not path.is_file():
            archive = obtain(JSON[split], archives, download=download)
            if archive is not None:
                unpack(archive, root / "annotations", members=_json_member)
        content = _read(path)
        rows.append(_json_row(path, split, content, subset))
        if content is not None:
            # Of a gigabyte of annotations only these are needed again.
            contents[split] = image_names(path, content)
            if split == "val":
                rows.append(write_table(root, path, content))
    if "val" not in contents:
        rows.append(Row(lvis.TABLE, "missing", "made from lvis_v1_val.json"))
    rows += images_rows(root, contents, archives=archives, download=download)
    return rows


def write_table(root: Path, path: Path, content: dict[str, Any]) -> Row:
    """Writes ROOT/lvis92i.json: for each class the val images that show it.

    Raises DiffUpError when the content is no LVIS file.
    """
    try:
        shown: dict[int, set[int]] = {e["id"]: set() for e in content["categories"]}
        for entry in content["annotations"]:
            shown[entry["category_id"]].add(entry["image_id"])
        classes = [
            {"id": e["id"], "name": e["name"], "val_images": len(shown[e["id"]])}
            for e in sorted(content["categories"], key=lambda e: e["id"])
        ]
    except (KeyError, TypeError) as error:
        raise DiffUpError(
            f"{path} is no LVIS file ({error!r}); get it again."
        ) from error
    text = json.dumps({"classes": classes}, indent=1) + "\n"
    target = root / lvis.TABLE
    write_changed(target, text)
    kept = sum(row["val_images"] > 1 for row in classes)
    facts = f"{kept} of {len(classes)} classes have 2 or more val images: "
    facts += f"{kept // lvis.FOLDS} in each of {lvis.FOLDS} folds for one shot"
    return Row(lvis.TABLE, "there", facts)


def image_names(path: Path, content: dict[str, Any]) -> list[str]:
    """The file names of the images of an LVIS or PACO JSON.

    LVIS names images by their address (coco_url) only. Raises DiffUpError when an
    image has neither.
    """
    try:
        return [
            PurePosixPath(e["file_name"] if "file_name" in e else e["coco_url"]).name
            for e in content["images"]
        ]
    except (KeyError, TypeError) as error:
        raise DiffUpError(
            f"{path} names no images ({error!r}); get it again."
        ) from error


def images_rows(
    root: Path, named: dict[str, list[str]], *, archives: Path, download: bool
) -> list[Row]:
    """Unpacks train2017 and val2017 where images are absent; says what is there.

    named: split -> file names of images, which may lie in either folder.
    """
    wanted = {name for names in named.values() for name in names}
    for folder in IMAGE_FOLDERS:
        if wanted - _present(root):
            archive = obtain(COCO[folder], archives, download=download)
            if archive is not None:
                unpack(archive, root, members=below("", [folder]))
    rows, present = [], _present(root)
    for split, names in named.items():
        absent = [name for name in names if name not in present]
        facts = f"{len(names) - len(absent)} of {len(names)} images"
        if absent:
            urls = ", ".join(COCO[folder].url for folder in IMAGE_FOLDERS)
            facts += f", the first absent is {absent[0]}; get {urls}"
        state = "missing" if absent else "there"
        rows.append(Row(f"images of {split}", state, facts))
    return rows


def main(arguments: Sequence[str]) -> int:
    """The command line; see `command.run` for the exit status."""
    parser = command.parser(
        "lvis92i",
        "Prepare and check LVIS-92i.",
        root="LVIS folder",
        archives="zip files",
        subset="LVIS",
    )
    parser.add_argument("--download", action="store_true", help="fetch what is missing")
    return command.run(parser, arguments, prepare, title="LVIS-92i")


def _json_member(name: str) -> str | None:
    file = PurePosixPath(name).name
    return file if file.startswith("lvis_v1_") and file.endswith(".json") else None


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path, fix="Unpack it again.") if path.is_file() else None


def _json_row(path: Path, split: str, content: Any, subset: bool) -> Row:
    what = f"annotations/{path.name}"
    if content is None:
        return Row(what, "missing", f"in {JSON[split].url}")
    if not isinstance(content, dict):
        return Row(what, "wrong", "no JSON object")
    keys = ("images", "annotations", "categories")
    counts = Counts(*(len(content.get(key, ())) for key in keys))
    facts = "{} images, {} annotations, {} classes".format(*counts)
    if counts == OFFICIAL[split] or subset:
        return Row(what, "there", facts)
    official = "{}, {}, {}".format(*OFFICIAL[split])
    return Row(what, "wrong", f"{facts}; the official file: {official}")


def _present(root: Path) -> set[str]:
    folders = [folder for folder in lvis.image_folders(root) if folder.is_dir()]
    return {name for folder in folders for name in os.listdir(folder)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
