"""Prepares COCO-20i from the 2014 images, or the 2017 images + 2014 annotations.

    python -m data_prep.coco20i --root DIR                    what is there, finish it
    python -m data_prep.coco20i --root DIR --download 2017    fetch what is missing

makes and checks

    DIR/annotations/instances_{train,val}2014.json            official, never touched
    DIR/train2014/ DIR/val2014/                               or, with the 2017 images:
    DIR/train_val_2017/                                       train2017 + val2017 in one
    DIR/annotations/instances_{train,val}2014_renamed.json    2017 file names

The two years hold the same 123 287 photographs, dealt differently: COCO-20i needs the
2014 deal, so train2017 and val2017 are merged (hard links: no space; `--copy` where the
disk cannot link), and COCO_train2014_000000000009.jpg becomes 000000000009.jpg in a
renamed copy of the JSON. Our own reader finds the merged images through the official
JSON too; the renamed one is for programs that do not, and for splits such as
"val2014_renamed".

Archives in `--archives` (default DIR/archives) are used when their folder is not whole;
without `--download` the command says where to get them. Every image that the JSON names
must be there, and the official files have the official numbers of images and
annotations (`--subset` for a part of COCO). Run again, it only does what is left.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data_prep import command
from data_prep.archives import Archive, below, obtain, unpack
from data_prep.command import Row
from diffup_jax.files import read_json, whole_or_absent, write_changed
from diffup_jax.types import DiffUpError

SPLITS = ("train2014", "val2014")
MERGED = "train_val_2017"
PARTS = ("train2017", "val2017")

_HOST = "http://images.cocodataset.org"
ARCHIVES = {
    "annotations": Archive(
        f"{_HOST}/annotations/annotations_trainval2014.zip",
        252872794,
        "0a379cfc70b0e71301e0f377548639bd",
    ),
    "train2014": Archive(
        f"{_HOST}/zips/train2014.zip", 13510573713, "0da8c0bd3d6becc4dcb32757491aca88"
    ),
    "val2014": Archive(
        f"{_HOST}/zips/val2014.zip", 6645013297, "a3d79f5ed8d289b7a7554ce06a5782b3"
    ),
    "train2017": Archive(
        f"{_HOST}/zips/train2017.zip", 19336861798, "cced6f7f71b7629ddf16f17bbcfab6b2"
    ),
    "val2017": Archive(
        f"{_HOST}/zips/val2017.zip", 815585330, "442b8da7639aecaf257c1dceb8ba8c80"
    ),
}


class Counts(NamedTuple):
    """Images named by a JSON, those of them with an annotation, and annotations."""

    images: int
    annotated: int
    annotations: int


OFFICIAL = {
    "train2014": Counts(82783, 82081, 604907),
    "val2014": Counts(40504, 40137, 291875),
}
_IMAGES_2017 = {"train2017": 118287, "val2017": 5000}

# The value of a file name, its 2014 prefix apart.
_FILE_NAME = re.compile(
    rb'("file_name"\s*:\s*")(?:[^"/]*/)*COCO_(?:train|val)2014_(\d{12}\.jpg")'
)


def prepare(
    root: Path, *, archives: Path, download: str | None, copy: bool, subset: bool
) -> list[Row]:
    """Does what the module docstring says; answers what is there and what is not.

    download: "2014" or "2017", the images to fetch, or None. Raises DiffUpError for a
    damaged archive or JSON, a failed download, and images that cannot be linked.
    """
    rows = []
    named: dict[str, list[str]] = {}
    if not all(_json_path(root, split).is_file() for split in SPLITS):
        wanted = {f"annotations/instances_{split}.json" for split in SPLITS}
        archive = obtain(ARCHIVES["annotations"], archives, download=bool(download))
        if archive is not None:
            unpack(archive, root, members=lambda n: n if n in wanted else None)
    for split in SPLITS:
        row, names = _annotations(root, split, subset)
        rows.append(row)
        if names is not None:
            named[split] = names
    use_2017 = download == "2017" or (
        download is None and not any(_listed(root / split) for split in SPLITS)
    )
    folders = PARTS if use_2017 else SPLITS
    if not (use_2017 and named and not _absent(root, named, merged=True)):
        for folder in folders:
            expected = None if use_2017 else named.get(folder)
            _images(root, folder, archives, bool(download), expected)
    if use_2017:
        rows.append(merge(root, copy=copy))
    for split, names in named.items():
        rows.append(_images_row(root, split, names, merged=use_2017))
        if use_2017:
            rows.append(rename(root, split))
    return rows


def merge(root: Path, *, copy: bool) -> Row:
    """Puts every image of train2017 and val2017 into train_val_2017.

    Hard links, or copies when asked; what is there already stays. Raises DiffUpError
    when a link cannot be made, and for two different images of one name.
    """
    parts = [root / part for part in PARTS if (root / part).is_dir()]
    entries = [e for part in parts for e in os.scandir(part) if e.name.endswith(".jpg")]
    target = root / MERGED
    for entry in tqdm(entries, desc=f"merge into {MERGED}", unit="file", disable=None):
        _put(Path(entry.path), target / entry.name, copy)
    there = sum(name.endswith(".jpg") for name in _listed(target))
    # A user may have removed the parts after merging: the images are what counts.
    return Row(MERGED, "there" if there else "missing", f"{there} images")


def rename(root: Path, split: str) -> Row:
    """Writes instances_`split`_renamed.json: 2017 file names, all else byte for byte.

    The original file is only read. Raises DiffUpError when a file name is in no known
    form.
    """
    path = _json_path(root, split)
    target = _json_path(root, f"{split}_renamed")
    content = path.read_bytes()
    renamed, count = _FILE_NAME.subn(rb"\1\2", content)
    left = len(re.findall(rb'"file_name"\s*:\s*"[^"]*COCO_', renamed))
    if left:
        raise DiffUpError(
            f"{path} has {left} file names in another form than "
            "COCO_train2014_000000000009.jpg; use the official JSON."
        )
    del content
    facts = f"{count} file names changed, original untouched"
    write_changed(target, renamed)
    return Row(f"annotations/{target.name}", "there", facts)


def main(arguments: Sequence[str]) -> int:
    """The command line; see `command.run` for the exit status."""
    parser = command.parser(
        "coco20i",
        "Prepare and check COCO-20i.",
        root="COCO folder",
        archives="zip files",
        subset="COCO",
    )
    parser.add_argument(
        "--download", choices=("2014", "2017"), help="fetch what is missing"
    )
    parser.add_argument(
        "--copy", action="store_true", help="copy into train_val_2017, do not link"
    )
    return command.run(parser, arguments, prepare, title="COCO-20i")


def _json_path(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _annotations(root: Path, split: str, subset: bool) -> tuple[Row, list[str] | None]:
    path = _json_path(root, split)
    what = f"annotations/{path.name}"
    if not path.is_file():
        facts = f"in {ARCHIVES['annotations'].url}"
        return Row(what, "missing", facts), None
    fix = f"Unpack it again from {ARCHIVES['annotations'].url}."
    content = read_json(path, fix=fix)
    try:
        names = [Path(entry["file_name"]).name for entry in content["images"]]
        annotated = [entry["image_id"] for entry in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise DiffUpError(
            f"{path} is no COCO instances file ({type(error).__name__}: {error}). {fix}"
        ) from error
    counts = Counts(len(names), len(set(annotated)), len(annotated))
    facts = "{} images, {} with annotations, {} annotations".format(*counts)
    if counts == OFFICIAL[split] or subset:
        return Row(what, "there", facts), names
    official = "{}, {}, {}".format(*OFFICIAL[split])
    return Row(what, "wrong", f"{facts}; the official file: {official}"), names


def _images(
    root: Path, folder: str, archives: Path, download: bool, names: list[str] | None
) -> None:
    """Unpacks the archive of an image folder, unless the folder is whole."""
    present = _listed(root / folder)
    if names is None:  # a 2017 folder: its own JSON is not needed, its count is known
        complete = len(present) >= _IMAGES_2017.get(folder, 1 << 60)
    else:
        complete = present.issuperset(names)
    if not complete:
        archive = obtain(ARCHIVES[folder], archives, download=download)
        if archive is not None:
            unpack(archive, root, members=below("", [folder]))


def _images_row(root: Path, split: str, names: list[str], *, merged: bool) -> Row:
    absent = _absent(root, {split: names}, merged=merged)
    where = MERGED if merged else split
    facts = f"{len(names) - len(absent)} of {len(names)} images in {where}"
    if not absent:
        return Row(f"images of {split}", "there", facts)
    urls = ARCHIVES[split].url
    if merged:
        urls = f"{' and '.join(ARCHIVES[part].url for part in PARTS)} or {urls}"
    facts += f", the first absent is {absent[0]}; get {urls}"
    return Row(f"images of {split}", "missing", facts)


def _absent(root: Path, named: dict[str, list[str]], *, merged: bool) -> list[str]:
    absent = []
    for split, names in named.items():
        found = _listed(root / (MERGED if merged else split))
        if merged:
            names = [name.rsplit("_", 1)[-1] for name in names]
        absent += [name for name in names if name not in found]
    return absent


def _listed(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _put(source: Path, target: Path, copy: bool) -> None:
    if target.exists():
        if target.stat().st_size != source.stat().st_size:
            raise DiffUpError(
                f"{target} and {source} are different images; remove the wrong one."
            )
        return
    with whole_or_absent(target) as partial:
        if copy:
            shutil.copyfile(source, partial)
            return
        try:
            os.link(source, partial)
        except OSError as error:
            raise DiffUpError(
                f"cannot hard-link {source} to {target} ({error.strerror}); run the "
                "command with --copy, which needs the space of the images once more."
            ) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
