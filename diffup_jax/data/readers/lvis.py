"""LVIS-92i: LVIS v1 over the COCO 2017 images, dealt into ten folds.

    ROOT/annotations/lvis_v1_train.json, lvis_v1_val.json   or directly in ROOT
    ROOT/lvis92i.json      the val images of each class (python -m data_prep.lvis92i)
    ROOT/train2017/, val2017/                               or below ROOT/coco/

Class index = rank of the category id. The classes with more val images than an episode
has shots are kept, in that order, and dealt like cards: fold f has kept[f + 10 v] for
v < n // 10, which is 92 classes for one shot. The rest is in no fold (-1): never novel.
The folds of a 5-shot run are therefore other ones, as in the published code. A class
mask is the union of its annotations; LVIS has no crowd regions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from diffup_jax.data.readers import coco
from diffup_jax.files import read_json
from diffup_jax.types import DiffUpError

FOLDS = 10
LAYOUT = (
    "annotations/lvis_v1_SPLIT.json, lvis92i.json, images in train2017/ and val2017/"
)
SPLITS = ("train", "val")
TABLE = "lvis92i.json"


def open_lvis92i(
    root: Path, *, split: str, min_area: float, shots: int
) -> coco.CocoSource:
    """Opens ROOT/annotations/lvis_v1_`split`.json as a `coco.CocoSource`.

    min_area: as in coco.py. Raises DiffUpError for an unknown split, a table that is
    missing or of other classes, and everything `coco.open_instances` finds wrong.
    """
    if split not in SPLITS:
        raise DiffUpError(f"LVIS-92i has no split {split!r}; expected {SPLITS}.")
    names, counts = read_table(root)
    path = annotation_path(root, split)
    if not path.is_file():
        raise DiffUpError(
            f"{path} is missing. Run python -m data_prep.lvis92i --root {root}, which "
            f"says where to get it. Layout: {LAYOUT}"
        )
    source = coco.open_instances(
        path, root=root, folders=image_folders(root), min_area=min_area, crowd="hsnet"
    )
    if source.class_names != names:
        raise DiffUpError(
            f"{path} has {len(source.class_names)} classes that are not the "
            f"{len(names)} of {root / TABLE}. Run python -m data_prep.lvis92i again."
        )
    return dataclasses.replace(source, class_folds=deal_folds(counts, shots=shots))


def deal_folds(images: Sequence[int], *, shots: int) -> tuple[int, ...]:
    """The fold of each class, -1 for none; images[c]: the val images of class c."""
    kept = [index for index, count in enumerate(images) if count > shots]
    folds = [-1] * len(images)
    for position, index in enumerate(kept[: len(kept) // FOLDS * FOLDS]):
        folds[index] = position % FOLDS
    return tuple(folds)


def annotation_path(root: Path, split: str) -> Path:
    """Where the JSON of a split lies: in ROOT/annotations, or in ROOT."""
    name = f"lvis_v1_{split}.json"
    beside = root / name
    return beside if beside.is_file() else root / "annotations" / name


def image_folders(root: Path) -> tuple[Path, ...]:
    """Where the COCO 2017 images may lie. Val images of LVIS are in both sets."""
    return tuple(
        place / name
        for place in (root, root / "coco")
        for name in ("train2017", "val2017", "train_val_2017")
    )


def read_table(root: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(names, val images) of the classes by ROOT/lvis92i.json.

    Raises DiffUpError when the file is missing or malformed.
    """
    path = root / TABLE
    fix = (
        f"Run python -m data_prep.lvis92i --root {root}, which makes it from "
        f"lvis_v1_val.json. Layout: {LAYOUT}"
    )
    content = read_json(path, fix=fix)
    try:
        rows = content["classes"]
        names = tuple(str(row["name"]) for row in rows)
        counts = tuple(int(row["val_images"]) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise DiffUpError(f"{path} is malformed ({error!r}). {fix}") from error
    return names, counts
