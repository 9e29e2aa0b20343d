"""Prepares Pascal-Part: part annotations of the VOC 2010 objects.

    python -m data_prep.pascal_part --root DIR [--download]

makes and checks the layout that `diffup_jax/data/readers/pascal_part.py` reads

    DIR/JPEGImages/NAME.jpg                                from the VOC 2010 tar
    DIR/ImageSets/Main/train.txt, val.txt                  the same
    DIR/Annotations_Part_json_merged_part_classes/NAME.json
    DIR/all_obj_part_to_image.json

The last two are published, ready made, with Matcher (pascal.zip on Google Drive, which
gives no plain address); unpack them into DIR and the command only checks them. Without
them they are made here from DIR/Annotations_Part/NAME.mat, the official annotations
(trainval.tar.gz), with the part names merged by `merged_name`: left and right, front
and back, upper and lower, and the numbers of several are dropped (lfuleg -> LEG,
window_3 -> WINDOW). Matcher's own merging is not published as a rule, so the classes
made here are like its 100 but not the same: say which you used beside a result.

Archives in `--archives` (default DIR/archives) are unpacked, and fetched first with
`--download`. Run again, it only does what is left: one JSON per image, each whole.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from pycocotools import mask as coco_mask
from tqdm import tqdm

from data_prep import command
from data_prep.archives import Archive, below, obtain, unpack
from data_prep.command import Row
from diffup_jax.data.readers import parts, pascal_part
from diffup_jax.files import read_json, read_text, write_changed, write_whole
from diffup_jax.types import DiffUpError

VOC = Archive(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
    None,
    "da459979d0c395079b5c75ee67908abb",
)
PARTS = Archive("http://roozbehm.info/pascal-parts/trainval.tar.gz", None, None)
READY = "https://drive.google.com/file/d/1WaM0VM6I9b3u3v3w-QzFLJI8d3NRumTK"
MATS = "Annotations_Part"
OFFICIAL_MATS = 10103
CLASSES = 100
SUPERCLASS = {
    **dict.fromkeys(("bird", "cat", "cow", "dog", "horse", "sheep"), "animals"),
    **dict.fromkeys(("bottle", "chair", "pottedplant", "sofa"), "indoor"),
    **dict.fromkeys(("table", "diningtable", "tvmonitor"), "indoor"),
    "person": "person",
    **dict.fromkeys(("aeroplane", "bicycle", "boat", "bus", "car"), "vehicles"),
    **dict.fromkeys(("motorbike", "train"), "vehicles"),
}

_MADE_BY = "data_prep.pascal_part"
# What remains of a name like lfuleg, rightmirror or cbackside_2, and what it is called.
_CORES = {
    "ear": "EAR",
    "eye": "EYE",
    "ebrow": "EYEBROW",
    "wing": "WING",
    "horn": "HORN",
    "leg": "LEG",
    "foot": "FOOT",
    "ho": "HOOF",
    "pa": "PAW",
    "arm": "ARM",
    "hand": "HAND",
    "wheel": "WHEEL",
    "mirror": "MIRROR",
    "liplate": "PLATE",
    "side": "SIDE",
}
_PLACE = r"(?:[hc]?(?:front|back|left|right|roof)|[lr]?[fb]?[ul]?|[lr])"
_PLACED = re.compile(rf"{_PLACE}({'|'.join(_CORES)})")


def merged_name(part: str) -> str:
    """The class of an official part name: lfuleg -> LEG, coach_2 -> COACH."""
    part = re.sub(r"_\d+$", "", part)
    placed = _PLACED.fullmatch(part)
    return _CORES[placed[1]] if placed else part.upper()


def prepare(root: Path, *, archives: Path, download: bool, subset: bool) -> list[Row]:
    """Does what the module docstring says; answers what is there and what is not.

    Raises DiffUpError for a damaged archive, .mat or JSON and for a failed download.
    """
    root = pascal_part.pascal_root(root)
    ready = (root / pascal_part.INDEX).is_file() and not _is_ours(root)
    if not (root / "JPEGImages").is_dir() or not _lists(root):
        archive = obtain(VOC, archives, download=download)
        if archive is not None:
            folders = ("JPEGImages", "ImageSets/Main")
            unpack(archive, root, members=below("VOCdevkit/VOC2010", folders))
    if not ready and len(_names(root / MATS, ".mat")) < OFFICIAL_MATS:
        archive = obtain(PARTS, archives, download=download)
        if archive is not None:
            unpack(archive, root, members=below("", [MATS]))
    rows = [] if ready else make(root, subset=subset)
    return [*rows, *_check(root, ready, subset)]


def make(root: Path, *, subset: bool) -> list[Row]:
    """Writes the annotations and the index from the .mat files; says what is there."""
    mats = _names(root / MATS, ".mat")
    done = _names(root / pascal_part.ANNOTATIONS, ".json")
    for name in tqdm(sorted(mats - done), desc="convert .mat", disable=None):
        content = read_mat(root / MATS / f"{name}.mat")
        target = root / pascal_part.ANNOTATIONS / f"{name}.json"
        write_whole(target, json.dumps(content))
    facts = f"{len(mats)} files"
    if not mats:
        facts = f"get {PARTS.url}, or the ready annotations {READY}"
        return [Row(MATS, "missing", facts)]
    good = subset or len(mats) == OFFICIAL_MATS
    facts += "" if good else f", expected {OFFICIAL_MATS}"
    rows = [Row(MATS, "there" if good else "wrong", facts)]
    lists = _lists(root)
    if not lists:
        return [*rows, Row("ImageSets/Main", "missing", f"in {VOC.url}")]
    text = json.dumps(build_index(root, lists), indent=1) + "\n"
    target = root / pascal_part.INDEX
    write_changed(target, text)
    return rows


def read_mat(path: Path) -> dict[str, Any]:
    """The objects of one official annotation, parts merged, masks as run lengths.

    The box of an object is the tight box of its mask, ends exclusive. Raises
    DiffUpError naming the file when it is no such annotation.
    """
    try:
        anno = scipy.io.loadmat(path, simplify_cells=True)["anno"]
        things = []
        for thing in _each(anno["objects"]):
            columns, rows = (np.flatnonzero(thing["mask"].any(axis)) for axis in (0, 1))
            if not len(rows):
                continue
            merged: dict[str, list[dict]] = {}
            for part in _each(thing["parts"]):
                shape = np.asfortranarray(part["mask"] > 0).astype(np.uint8)
                runs = coco_mask.encode(shape)
                counts = runs["counts"].decode("ascii")
                one = {"size": list(shape.shape), "counts": counts}
                merged.setdefault(merged_name(str(part["part_name"])), []).append(one)
            things.append(
                {
                    "name": str(thing["class"]),
                    "bndbox": {
                        "xmin": int(columns[0]),
                        "ymin": int(rows[0]),
                        "xmax": int(columns[-1]) + 1,
                        "ymax": int(rows[-1]) + 1,
                    },
                    "parts": [{"name": k, "mask": v} for k, v in merged.items()],
                }
            )
    except Exception as error:  # scipy raises a dozen types for a damaged file
        raise DiffUpError(
            f"{path} is no Pascal-Part annotation ({type(error).__name__}: {error}); "
            f"unpack it again from {PARTS.url}."
        ) from error
    return {"object": things}


def build_index(root: Path, lists: dict[str, list[str]]) -> dict[str, Any]:
    """The content of all_obj_part_to_image.json: images by superclass, object, part."""
    index: dict[str, Any] = {kind: {"object": {}} for kind in pascal_part.SUPERCLASSES}
    for split, names in lists.items():
        for name in tqdm(names, desc=f"index {split}", disable=None):
            path = root / pascal_part.ANNOTATIONS / f"{name}.json"
            if not path.is_file():
                continue  # some VOC images have no part annotation
            content = read_json(path, fix=f"Get it again. Layout: {pascal_part.LAYOUT}")
            shown = {
                (o["name"], p["name"]) for o in content["object"] for p in o["parts"]
            }
            for thing, part in shown:
                kind = SUPERCLASS.get(thing)
                if kind is None:
                    raise DiffUpError(f"{path} names an unknown object {thing!r}.")
                entry = index[kind]["object"].setdefault(thing, {"part": {}})["part"]
                images = entry.setdefault(part, {s: [] for s in parts.SPLITS})
                images[split].append(name)
    for kind in pascal_part.SUPERCLASSES:
        things = index[kind]["object"]
        index[kind]["object"] = {
            thing: {"part": dict(sorted(things[thing]["part"].items()))}
            for thing in sorted(things)
        }
    return {"made_by": _MADE_BY, **index}


def main(arguments: Sequence[str]) -> int:
    """The command line; see `command.run` for the exit status."""
    parser = command.parser(
        "pascal_part",
        "Prepare and check Pascal-Part.",
        root="VOC2010 folder",
        archives="archives",
        subset="it",
    )
    parser.add_argument("--download", action="store_true", help="fetch what is missing")
    return command.run(parser, arguments, prepare, title="Pascal-Part")


def _check(root: Path, ready: bool, subset: bool) -> Iterator[Row]:
    if not (root / pascal_part.INDEX).is_file():
        yield Row(
            pascal_part.INDEX, "missing", "made from the .mat files and the lists"
        )
        return
    listed = pascal_part.read_index(root)
    facts = f"{len(listed)} part classes" + ("" if ready else ", merged here")
    # Only the published merging has a published number.
    good = subset or not ready or len(listed) == CLASSES
    facts += "" if good else f", expected {CLASSES}"
    yield Row(pascal_part.INDEX, "there" if good else "wrong", facts)
    images = {i for *_, of in listed for split in parts.SPLITS for i in of[split]}
    for folder, ending in (("JPEGImages", ".jpg"), (pascal_part.ANNOTATIONS, ".json")):
        absent = sorted(images - _names(root / folder, ending))
        facts = f"{len(images) - len(absent)} of {len(images)} images listed"
        if absent:
            facts += f", the first absent is {absent[0]}"
            facts += f"; in {VOC.url}" if folder == "JPEGImages" else ""
        yield Row(folder, "missing" if absent else "there", facts)


def _is_ours(root: Path) -> bool:
    content = read_json(
        root / pascal_part.INDEX, fix=f"Remove it. Layout: {pascal_part.LAYOUT}"
    )
    return isinstance(content, dict) and content.get("made_by") == _MADE_BY


def _lists(root: Path) -> dict[str, list[str]]:
    """The images of each split by VOC's own lists, {} when they are not there."""
    paths = {s: root / "ImageSets" / "Main" / f"{s}.txt" for s in parts.SPLITS}
    if not all(path.is_file() for path in paths.values()):
        return {}
    fix = f"Unpack it again from {VOC.url}."
    return {s: read_text(path, fix=fix).split() for s, path in paths.items()}


def _names(folder: Path, ending: str) -> set[str]:
    if not folder.is_dir():
        return set()
    return {n.removesuffix(ending) for n in os.listdir(folder) if n.endswith(ending)}


def _each(value: Any) -> list:
    """A MATLAB struct array as scipy simplifies it: one dict, several, or none."""
    return [value] if isinstance(value, dict) else list(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
