"""PACO-Part: the parts of PACO-LVIS v1, 448 classes such as "mug:handle" in 4 folds.

    ROOT/annotations/paco_lvis_v1_train.json, paco_lvis_v1_val.json   or in ROOT
    ROOT/paco_part.json    the part classes (python -m data_prep.paco_part)
    ROOT/train2017/, val2017/                                  or below ROOT/coco/

The classes are the part categories with an annotation in the train file, by category
id; class k is novel in fold k mod 4. Images are crops of objects, see parts.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diffup_jax.data.readers import lvis, parts
from diffup_jax.files import read_json
from diffup_jax.types import DiffUpError

FOLDS = 4
LAYOUT = (
    "annotations/paco_lvis_v1_SPLIT.json, paco_part.json, images in train2017/ and "
    "val2017/"
)
TABLE = "paco_part.json"


def open_paco_part(root: Path, *, split: str, min_area: float) -> parts.PartSource:
    """Opens ROOT/annotations/paco_lvis_v1_`split`.json.

    min_area: a part counts in an image only when it covers a larger fraction of the
    object's box. Raises DiffUpError for missing or malformed files and for photographs
    that the JSON names but no folder holds.
    """
    parts.require_split("PACO-Part", split)
    path = annotation_path(root, split)
    names, index = _read_table(root)
    content = read_json(path, fix=f"Get it again. Layout: {LAYOUT}")
    try:
        sizes = {
            e["id"]: (int(e["height"]), int(e["width"])) for e in content["images"]
        }
        files = {e["id"]: Path(e["file_name"]).name for e in content["images"]}
        found = list(_paco_parts(content["annotations"], index, sizes, files))
    except (KeyError, TypeError, AttributeError) as error:
        raise DiffUpError(
            f"{path} is not a PACO file: {type(error).__name__} {error}. Expected "
            "images (id, file_name, height, width) and annotations (id, obj_ann_id, "
            "image_id, category_id, bbox, segmentation)."
        ) from error
    folders = lvis.image_folders(root)
    folds = tuple(k % FOLDS for k in range(len(names)))
    return parts.build(
        root,
        path=path,
        names=names,
        folds=folds,
        found=found,
        folders=folders,
        min_area=min_area,
    )


def annotation_path(root: Path, split: str) -> Path:
    """Where the JSON of a split lies: in ROOT/annotations, or in ROOT."""
    name = f"paco_lvis_v1_{split}.json"
    return root / name if (root / name).is_file() else root / "annotations" / name


def _read_table(root: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """(names, category id -> class) of the part classes."""
    path = root / TABLE
    fix = (
        f"Run python -m data_prep.paco_part --root {root}, which makes it from "
        f"paco_lvis_v1_train.json. Layout: {LAYOUT}"
    )
    content = read_json(path, fix=fix)
    try:
        names = tuple(str(row["name"]) for row in content["parts"])
        ids = [int(row["id"]) for row in content["parts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DiffUpError(f"{path} is malformed ({error!r}). {fix}") from error
    return names, {category: index for index, category in enumerate(ids)}


def _paco_parts(annotations, index, sizes, files) -> Iterable[parts.Part]:
    boxes = {e["id"]: e["bbox"] for e in annotations if e["id"] == e["obj_ann_id"]}
    grouped: dict[tuple[int, int, int], list[dict]] = {}
    for entry in annotations:
        class_id = index.get(entry["category_id"])
        if class_id is not None:
            key = (entry["image_id"], entry["obj_ann_id"], class_id)
            regions = parts.compress(entry["segmentation"], *sizes[key[0]])
            grouped.setdefault(key, []).extend(regions)
    for (image, thing, class_id), regions in grouped.items():
        x, y, width, height = boxes[thing]
        # Corners are cut to whole numbers as in the published code.
        box = (int(y), int(x), int(y + height), int(x + width))
        yield parts.Part(files[image], thing, class_id, sizes[image], box, regions)
