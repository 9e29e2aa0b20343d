"""Small benchmarks in the right file formats, written where the test says.

Images are 40 x 60; object number n of an image is the rectangle `box(n)` in the left
(0) or right (1) half. Writers answer the root that `open_source` takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask as coco_mask

from data_prep import lvis92i, paco_part
from tests import datasets

SIZE = (40, 60)
FSS = {"trn": ("fox", "bus", "axe"), "val": ("yak", "cup"), "test": ("elk", "drum")}
PACO = ("mug", "mug:handle", "mug:rim", "dog", "dog:ear", "dog:leg", "dog:tail")
VOC_PARTS = {  # superclass -> object -> parts, as in the published index
    "animals": {"bird": ("FACE", "WING"), "cat": ("FACE",)},
    "indoor": {"bottle": ("CAP",)},
    "person": {"person": ("FACE", "ARM")},
    "vehicles": {"aeroplane": ("TAIL", "WHEEL"), "car": ("WHEEL",)},
}


def write(kind: str, root: Path) -> Path:
    """A small instance of a benchmark of loose files, ready for `open_source`.

    Each has a class with 2 or more images in fold 0 of its test split.
    """
    if kind == "coco":
        return datasets.write_coco(root)
    if kind == "label_map":
        return datasets.write_label_maps(root)
    if kind == "fss1000":
        return write_fss(root)
    if kind == "lvis92i":
        write_lvis(root, images=[3] * 20)
        write_lvis(root, images=[3] * 20, split="train")
        lvis92i.prepare(root, archives=root, download=False, subset=True)
        return root
    if kind == "paco_part":
        write_paco(root)
        paco_part.prepare(root, archives=root, download=False, subset=True)
        return root
    if kind == "pascal_part":
        return write_pascal_part(root)
    if kind == "folder":
        for name in ("cup", "hat", "key"):
            write_class(root / name, images=3)
        return root
    return write_voc(root)


def box(number: int) -> tuple[int, int, int, int]:
    """y0 x0 y1 x1 of object `number` of an image, ends exclusive."""
    return (8, 5 + 30 * number, 32, 25 + 30 * number)


def inner(number: int, part: int) -> tuple[int, int, int, int]:
    """The box of part 0, 1, ... inside object `number`."""
    y0, x0, _, _ = box(number)
    return (y0 + 2 + 7 * part, x0 + 3, y0 + 7 + 7 * part, x0 + 9 + 3 * part)


def filled(*boxes: Sequence[int]) -> np.ndarray:
    """bool [40 60]: the union of some boxes."""
    mask = np.zeros(SIZE, bool)
    for y0, x0, y1, x1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def write_fss(root: Path, *, images: int = 4) -> Path:
    """FSS-1000's folders with the classes of `FSS`; class lists not in sorted order."""
    (root / "splits").mkdir(parents=True)
    for split, classes in FSS.items():
        (root / "splits" / f"{split}.txt").write_text("\n".join(classes) + "\n")
        for name in classes:
            write_class(root / "data" / name, images=images)
    return root


def write_class(folder: Path, *, images: int, white: int = 255) -> None:
    """1.jpg, 1.png, ...: mask i is box(i mod 2) in `white`."""
    folder.mkdir(parents=True)
    for number in range(images):
        mask = filled(box(number % 2))
        photograph(folder / f"{number + 1}.jpg", mask)
        Image.fromarray(mask.astype(np.uint8) * white).save(
            folder / f"{number + 1}.png"
        )


def write_lvis(root: Path, *, images: Sequence[int], split: str = "val") -> Path:
    """LVIS v1 with len(images) classes; class c is in the first images[c] images.

    Images are named by their address only; every other one lies in val2017.
    """
    entries, annotations = [], []
    for number in range(max(images)):
        folder, name = ("train2017", "val2017")[number % 2], f"{number + 1:012d}.jpg"
        (root / folder).mkdir(parents=True, exist_ok=True)
        photograph(root / folder / name, filled(box(0), box(1)))
        url = f"http://images.cocodataset.org/{folder}/{name}"
        entries.append({"id": number + 1, "coco_url": url, **_size()})
        for class_id, count in enumerate(images):
            for half in (0, 1) if number < count else ():
                annotations.append(
                    _annotation(len(annotations) + 1, number + 1, class_id + 1, half)
                )
    categories = [{"id": c + 1, "name": f"thing_{c}"} for c in range(len(images))]
    (root / "annotations").mkdir(exist_ok=True)
    content = {"images": entries, "annotations": annotations, "categories": categories}
    _json(root / "annotations" / f"lvis_v1_{split}.json", content)
    return root


def write_paco(root: Path, *, images: int = 4) -> Path:
    """PACO-LVIS v1: in each image a mug (left) and a dog (right) with all their parts.

    Segments are run lengths; the dog's legs are two segments, its tail only in train.
    """
    (root / "annotations").mkdir(parents=True)
    categories = [
        {"id": i + 1, "name": n, "supercategory": "PART" if ":" in n else "OBJECT"}
        for i, n in enumerate(PACO)
    ]
    for split, first in (("train", 1), ("val", 101)):
        (root / f"{split}2017").mkdir()
        entries, annotations = [], []
        for number in range(first, first + images):
            name = f"{split}2017/{number:012d}.jpg"
            photograph(root / name, filled(box(0), box(1)))
            entries.append({"id": number, "file_name": name, **_size()})
            for half, thing in enumerate(("mug", "dog")):
                owner = len(annotations) + 1
                shown = [n for n in PACO if n.split(":")[0] == thing]
                for part, category in enumerate(shown):
                    if split == "val" and category == "dog:tail":
                        continue
                    boxes = [box(half)] if part == 0 else [inner(half, part - 1)]
                    if category == "dog:leg":
                        boxes.append((28, 50, 31, 53))
                    for one in boxes:
                        entry = _regions(filled(one), len(annotations) + 1, number)
                        entry |= {"category_id": PACO.index(category) + 1}
                        annotations.append({**entry, "obj_ann_id": owner})
        content = {"images": entries, "annotations": annotations}
        path = root / "annotations" / f"paco_lvis_v1_{split}.json"
        _json(path, {**content, "categories": categories})
    return root


def write_pascal_part(root: Path, *, images: int = 3) -> Path:
    """The published form: JSON per image and the index. Each image shows one object
    twice (left and right, the right one without its last part)."""
    for folder in ("JPEGImages", "Annotations_Part_json_merged_part_classes"):
        (root / folder).mkdir(parents=True)
    index: dict = {}
    for kind, things in VOC_PARTS.items():
        index[kind] = {"object": {}}
        for thing, shown in things.items():
            lists: dict = {part: {"train": [], "val": []} for part in shown}
            index[kind]["object"][thing] = {"part": lists}
            for split in ("train", "val"):
                for number in range(images):
                    name = f"{thing}_{split}_{number}"
                    photograph(root / "JPEGImages" / f"{name}.jpg", filled(box(0)))
                    objects = [_thing(thing, shown, 0), _thing(thing, shown[:-1], 1)]
                    place = root / "Annotations_Part_json_merged_part_classes"
                    _json(place / f"{name}.json", {"object": objects})
                    for part in shown:
                        lists[part][split].append(name)
    _json(root / "all_obj_part_to_image.json", index)
    return root


def write_pascal_mats(root: Path, *, images: int = 2) -> Path:
    """The official form: .mat trees, JPEGImages and ImageSets/Main. Cats and a car."""
    for folder in ("JPEGImages", "Annotations_Part", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        names = [f"2010_{split}_{number}" for number in range(images)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            photograph(root / "JPEGImages" / f"{name}.jpg", filled(box(0), box(1)))
            cat = [("lear", inner(0, 0)), ("rear", inner(0, 1)), ("tail", inner(0, 2))]
            things = [_struct("cat", 0, cat), _struct("car", 1, [])]
            anno = {"imname": name, "objects": _array(things)}
            path = root / "Annotations_Part" / f"{name}.mat"
            scipy.io.savemat(path, {"anno": anno}, oned_as="row")
    return root


def write_voc(root: Path, *, split: str = "val", images: int = 2) -> Path:
    """VOC's folders: image i of class c shows c left and the next class right."""
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = []
    for class_id in range(20):
        for number in range(images):
            names.append(f"2012_{class_id:02d}{number:02d}")
            labels = np.zeros(SIZE, np.uint8)
            labels[filled(box(0))] = class_id + 1
            labels[filled(box(1))] = (class_id + 1) % 20 + 1
            labels[0] = 255
            photograph(root / "JPEGImages" / f"{names[-1]}.jpg", labels > 0)
            path = root / "SegmentationClassAug" / f"{names[-1]}.png"
            Image.fromarray(labels).save(path)
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    path.write_text("\n".join(names) + "\n")
    return root


def photograph(path: Path, bright: np.ndarray) -> None:
    """A dark image, `bright` where the mask is True."""
    pixels = np.full((*bright.shape, 3), 40, np.uint8)
    pixels[bright] = (250, 200, 90)
    Image.fromarray(pixels).save(path, quality=95)


def _size() -> dict:
    return {"height": SIZE[0], "width": SIZE[1]}


def _annotation(number: int, image: int, category: int, half: int) -> dict:
    y0, x0, y1, x1 = box(half)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": float((y1 - y0) * (x1 - x0)),
    }


def _regions(mask: np.ndarray, number: int, image: int) -> dict:
    runs = _runs(mask)
    ys, xs = np.nonzero(mask)
    x0, y0 = int(xs.min()), int(ys.min())
    return {
        "id": number,
        "image_id": image,
        "segmentation": runs,
        # A fraction of a pixel, as the real boxes have: corners are cut, not rounded.
        "bbox": [x0 + 0.5, y0 + 0.5, int(xs.max()) + 1 - x0, int(ys.max()) + 1 - y0],
        "area": float(mask.sum()),
    }


def _runs(mask: np.ndarray) -> dict:
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}


def _thing(name: str, shown: Sequence[str], half: int) -> dict:
    y0, x0, y1, x1 = box(half)
    # Corners in another order than x y x y, as text, as some files have them.
    corners = {"xmax": str(x1), "xmin": str(x0), "ymax": str(y1), "ymin": str(y0)}
    masks = [
        {"name": part, "mask": [_runs(filled(inner(half, at)))]}
        for at, part in enumerate(shown)
    ]
    return {"name": name, "bndbox": corners, "parts": masks}


def _struct(name: str, half: int, shown: Sequence[tuple]) -> dict:
    named = [
        {"part_name": part, "mask": filled(one).astype(np.uint8)} for part, one in shown
    ]
    return {
        "class": name,
        "class_ind": 1,
        "mask": filled(box(half)).astype(np.uint8),
        "parts": _array(named),
    }


def _array(structs: Sequence[dict]) -> np.ndarray:
    """A MATLAB struct array [1 n]; without structs an empty one, as VOC's cars have."""
    fields = structs[0] if structs else {"part_name": 0, "mask": 0}
    table = np.zeros((1, len(structs)), [(field, object) for field in fields])
    for at, struct in enumerate(structs):
        table[0, at] = tuple(struct[field] for field in fields)
    return table


def _json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
