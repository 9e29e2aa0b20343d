"""Pascal-Part: parts of the VOC 2010 objects, folds by kind of object.

    ROOT/JPEGImages/NAME.jpg                                   ROOT = .../VOC2010
    ROOT/Annotations_Part_json_merged_part_classes/NAME.json
    ROOT/all_obj_part_to_image.json   which images of a split have which part

This is the form that the field's code reads (Matcher and its successors);
`python -m data_prep.pascal_part` also makes it from the official .mat files. The
annotation of an image is {"object": [{"name", "bndbox": {"xmin", ...}, "parts":
[{"name", "mask": [COCO run lengths, ...]}, ...]}, ...]}.

Folds: animals, indoor, person, vehicles. A part that one of the two splits has no image
of is no class, nor is the tail of the aeroplane. Images are crops of objects, see
parts.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diffup_jax.data.readers import parts
from diffup_jax.files import read_json
from diffup_jax.types import DiffUpError

ANNOTATIONS = "Annotations_Part_json_merged_part_classes"
INDEX = "all_obj_part_to_image.json"
LAYOUT = f"JPEGImages/, {ANNOTATIONS}/ and {INDEX}"
SUPERCLASSES = ("animals", "indoor", "person", "vehicles")

_LEFT_OUT = ("aeroplane", "TAIL")


def open_pascal_part(root: Path, *, split: str, min_area: float) -> parts.PartSource:
    """Opens the images that ROOT/all_obj_part_to_image.json lists for a split.

    min_area: a part counts in an image only when it covers a larger fraction of the
    object's box. Raises DiffUpError for missing or malformed files and for photographs
    that the index lists but JPEGImages lacks.
    """
    parts.require_split("Pascal-Part", split)
    root = pascal_root(root)
    listed = read_index(root)
    wanted: dict[str, dict[tuple[str, str], int]] = {}
    for class_id, (_, thing, part, images) in enumerate(listed):
        for name in images[split]:
            wanted.setdefault(name, {})[(thing, part)] = class_id
    found: list[parts.Part] = []
    for name in sorted(wanted):
        path = root / ANNOTATIONS / f"{name}.json"
        content = read_json(path, fix=f"Get or make it again. Layout: {LAYOUT}")
        try:
            found += _pascal_parts(content["object"], wanted[name], f"{name}.jpg")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DiffUpError(
                f"{path} is no part annotation: {type(error).__name__} {error}. "
                "Expected object: [{name, bndbox, parts: [{name, mask: [...]}]}]; make "
                "it again with python -m data_prep.pascal_part."
            ) from error
    names = tuple(f"{thing}:{part.lower()}" for _, thing, part, _ in listed)
    folds = tuple(SUPERCLASSES.index(kind) for kind, *_ in listed)
    return parts.build(
        root,
        path=root / INDEX,
        names=names,
        folds=folds,
        found=found,
        folders=(root / "JPEGImages",),
        min_area=min_area,
    )


def pascal_root(root: Path) -> Path:
    """The VOC2010 folder in `root` or `root` itself."""
    inner = root / "VOCdevkit" / "VOC2010"
    return inner if inner.is_dir() else root


def read_index(root: Path) -> list[tuple[str, str, str, dict[str, list[str]]]]:
    """The classes of Pascal-Part: (superclass, object, part, images of each split).

    Raises DiffUpError when the index is missing or malformed.
    """
    path = root / INDEX
    content = read_json(path, fix=f"Get or make it again. Layout: {LAYOUT}")
    try:
        return [
            (kind, thing, part, {s: [str(i) for i in images[s]] for s in parts.SPLITS})
            for kind in SUPERCLASSES
            for thing, entry in content[kind]["object"].items()
            for part, images in entry["part"].items()
            if (thing, part) != _LEFT_OUT and all(images[s] for s in parts.SPLITS)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DiffUpError(
            f"{path} is malformed: {type(error).__name__} {error}. Expected "
            '{superclass: {"object": {name: {"part": {name: {"train": [], "val": '
            "[]}}}}} for " + ", ".join(SUPERCLASSES) + "."
        ) from error


def _pascal_parts(things, wanted, photograph) -> Iterable[parts.Part]:
    for number, thing in enumerate(things):
        grouped: dict[int, list[dict]] = {}
        for part in thing["parts"]:
            class_id = wanted.get((thing["name"], part["name"]))
            if class_id is not None:
                grouped.setdefault(class_id, []).extend(part["mask"])
        corners = thing["bndbox"]
        # The corners are used as they are, from 1 or not, as in the published code.
        box = tuple(int(float(corners[k])) for k in ("ymin", "xmin", "ymax", "xmax"))
        for class_id, masks in grouped.items():
            if masks:
                size = (int(masks[0]["size"][0]), int(masks[0]["size"][1]))
                regions = [r for mask in masks for r in parts.compress(mask, *size)]
                yield parts.Part(photograph, number, class_id, size, box, regions)
