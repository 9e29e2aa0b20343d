"""Tiny data sets for tests, written where the test says.

Each image is a dark noisy ground with one bright rectangle per class it contains; the
colour of a rectangle tells its class, so a test can find the mask in the pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 64)


def write_coco(
    root: Path,
    *,
    split: str = "val2014",
    folder: str | None = None,
    classes: int = 8,
    images: int = 24,
    seed: int = 0,
) -> Path:
    """A COCO instances JSON with its images; answers `root`.

    Image i holds the classes i mod `classes` and i + 1 mod `classes`. Category ids are
    3, 6, 9, ... `folder` other than `split` holds the images under their 2017 names.
    """
    entries, annotations = [], []
    place = root / (folder or split)
    place.mkdir(parents=True, exist_ok=True)
    prefix = f"COCO_{split}_" if "2014" in split else ""
    for number in range(images):
        name = f"{number + 1:012d}.jpg"
        pixels, labels = _picture(number, classes, seed)
        stored = prefix + name if folder in (None, split) else name
        Image.fromarray(pixels).save(place / stored, quality=95)
        entries.append(
            {
                "id": number + 1,
                "file_name": prefix + name,
                "height": SIZE[0],
                "width": SIZE[1],
            }
        )
        for class_id in sorted(set(np.unique(labels).tolist()) - {0}):
            rows, columns = np.nonzero(labels == class_id)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            annotations.append(annotation(number + 1, 3 * class_id, box))
    content = {
        "images": entries,
        "annotations": annotations,
        "categories": [
            {"id": 3 * (c + 1), "name": f"class {c}"} for c in range(classes)
        ],
    }
    write_instances(root, split, content)
    return root


def annotation(
    image: int, category: int, box: Sequence[int], *, crowd: bool = False
) -> dict:
    """One rectangular region (x0, y0, x1, y1): a polygon, or run lengths if crowd."""
    x0, y0, x1, y1 = (int(v) for v in box)
    shape: list | dict = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    if crowd:
        mask = np.zeros(SIZE, bool)
        mask[y0:y1, x0:x1] = True
        flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(int)
        turns = np.flatnonzero(np.diff(flat))
        runs = np.diff(np.concatenate([[0], turns, [mask.size]]))
        shape = {"size": list(SIZE), "counts": runs.tolist()}
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": shape,
        "area": float((x1 - x0) * (y1 - y0)),
        "iscrowd": int(crowd),
    }


def write_instances(root: Path, split: str, content: dict) -> None:
    """ROOT/annotations/instances_SPLIT.json with the given content."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content), encoding="utf-8")


def write_label_maps(
    root: Path,
    *,
    classes: int = 8,
    train: int = 24,
    test: int = 16,
    seed: int = 0,
    ignore: int | None = 255,
) -> Path:
    """Images, label pictures, classes.json, train.txt and test.txt; answers `root`.

    Image i holds the classes i mod `classes` (label index + 1) and the next one. The
    first column of every mask is `ignore`, unless that is None.
    """
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"picture{i:03d}" for i in range(train + test)]
    for number, name in enumerate(names):
        pixels, labels = _picture(number, classes, seed)
        if ignore is not None:
            labels[:, 0] = ignore
        ending = ("jpg", "png")[number % 2]
        Image.fromarray(pixels).save(root / "images" / f"{name}.{ending}")
        Image.fromarray(labels).save(root / "masks" / f"{name}.png")
    (root / "train.txt").write_text("\n".join(names[:train]) + "\n", encoding="utf-8")
    (root / "test.txt").write_text("\n".join(names[train:]), encoding="utf-8")
    entries = [{"label": c + 1, "name": f"class {c}"} for c in range(classes)]
    content: dict = {"classes": entries}
    if ignore is not None:
        content["ignore"] = ignore
    (root / "classes.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def colour(class_id: int, classes: int) -> tuple[int, int, int]:
    """The colour of a class's rectangle."""
    return (255, 80 + 160 * class_id // classes, 80 + 160 * class_id // classes)


def _picture(number: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng((seed, number))
    height, width = SIZE
    pixels = generator.integers(0, 60, (height, width, 3)).astype(np.uint8)
    labels = np.zeros((height, width), np.uint8)
    for side in (0, 1):  # one class in the left half, the other in the right half
        class_id = (number + side) % classes
        y0, x0 = generator.integers(2, (height // 3, width // 8))
        y1, x1 = y0 + generator.integers(10, 24), x0 + generator.integers(10, 20)
        rows = slice(y0, y1)
        columns = slice(x0 + side * width // 2, x1 + side * width // 2)
        pixels[rows, columns] = colour(class_id, classes)
        labels[rows, columns] = class_id + 1
    return pixels, labels
