"""Images with one label picture each: the simplest way to bring one's own data.

    ROOT/images/NAME.jpg or .png    the photographs
    ROOT/masks/NAME.png             mode L or P, pixel value = label
    ROOT/classes.json               {"classes": [{"label": 1, "name": "cat"}, ...]}
    ROOT/SPLIT.txt                  one NAME per line, for example train.txt, test.txt

A class may state its "index" and its "fold"; without them the index is the position in
the list and the fold is index mod 4. The optional key "ignore" of classes.json names
the label of pixels that count for nobody (often 255). Labels that no class claims are
background.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8, UInt16

from diffup_jax.data import rasters
from diffup_jax.files import read_json, read_text
from diffup_jax.types import DiffUpError

LAYOUT = "images/NAME.jpg, masks/NAME.png, classes.json and list files such as test.txt"


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMapSource:
    """A `sources.Source` over label pictures; made by `open_label_maps`."""

    name: str
    root: str
    class_names: tuple[str, ...]
    class_folds: tuple[int, ...]
    labels: tuple[int, ...]
    ignore_label: int | None
    images: dict[str, str]
    by_class: tuple[tuple[str, ...], ...]

    def image_ids(self, class_id: int) -> tuple[str, ...]:
        return self.by_class[class_id]

    def image(self, image_id: str) -> UInt8[np.ndarray, "h w 3"]:
        return rasters.read_image(self.images[image_id])

    def mask(
        self, image_id: str, class_id: int
    ) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """(mask, ignore); the mask is empty where the class is absent."""
        labels = rasters.read_labels(_mask_path(Path(self.root), image_id))
        mask = labels == self.labels[class_id]
        if self.ignore_label is None:
            return mask, np.zeros_like(mask)
        return mask, labels == self.ignore_label

    def instances(self, image_id: str, class_id: int) -> UInt16[np.ndarray, "h w"]:
        """The connected components of the mask: labels know no instances."""
        return rasters.components(self.mask(image_id, class_id)[0])


def open_label_maps(root: Path, *, split: str, min_area: float) -> LabelMapSource:
    """Opens the images named in ROOT/`split`.txt; reads every mask once.

    min_area: a class counts in an image only when it covers a larger fraction of it.
    Raises DiffUpError for a missing or malformed file, naming it.
    """
    classes, ignore = _read_classes(root)
    images = _find_images(root, _read_list(root, split))
    by_class: list[list[str]] = [[] for _ in classes]
    # PIL gives the interpreter lock back while it decodes: threads are enough.
    with ThreadPoolExecutor() as pool:
        counts = pool.map(lambda item: _counts(root, *item), images.items())
        for image_id, (pixels, histogram) in zip(images, counts, strict=True):
            for index, entry in enumerate(classes):
                if histogram[entry["label"]] > min_area * pixels:
                    by_class[index].append(image_id)
    return LabelMapSource(
        name=root.resolve().name,
        root=str(root),
        class_names=tuple(entry["name"] for entry in classes),
        class_folds=tuple(entry["fold"] for entry in classes),
        labels=tuple(entry["label"] for entry in classes),
        ignore_label=ignore,
        images=images,
        by_class=tuple(map(tuple, by_class)),
    )


def _read_classes(root: Path) -> tuple[list[dict], int | None]:
    path = root / "classes.json"
    form = 'Expected {"classes": [{"label": 1, "name": "cat"}, ...]}.'
    content = read_json(path, fix=f"{form} Layout: {LAYOUT}")
    entries = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DiffUpError(f"{path} names no classes. {form}")
    classes = []
    for position, entry in enumerate(entries):
        label = entry.get("label") if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if type(label) is not int or not 0 <= label <= 255 or not isinstance(name, str):
            raise DiffUpError(
                f"{path}: class {position} is {entry!r}; expected a label in 0..255 "
                "and a name."
            )
        index = entry.get("index", position)
        fold = entry.get("fold", index % 4 if type(index) is int else None)
        if type(fold) is not int or fold < 0:
            raise DiffUpError(
                f"{path}: class {name!r} has index {index!r}, fold {fold!r}; "
                "expected whole numbers from 0."
            )
        classes.append({"label": label, "name": name, "index": index, "fold": fold})
    classes.sort(key=lambda entry: entry["index"])
    if [entry["index"] for entry in classes] != list(range(len(classes))):
        raise DiffUpError(
            f"{path}: the class indices are {[e['index'] for e in classes]}; expected "
            f"each of 0..{len(classes) - 1} once. Leave them out to use the order."
        )
    ignore = content.get("ignore")
    labels = [entry["label"] for entry in classes]
    if len(set(labels)) < len(labels) or ignore in labels:
        raise DiffUpError(
            f"{path}: the labels {labels} and ignore {ignore} must all differ."
        )
    if ignore is not None and type(ignore) is not int:
        raise DiffUpError(f"{path}: ignore is {ignore!r}; expected a label in 0..255.")
    return classes, ignore


def _read_list(root: Path, split: str) -> list[str]:
    path = root / f"{split}.txt"
    lists = sorted(p.stem for p in root.glob("*.txt"))
    fix = (
        f"The list of a split has one image name per line, without folder and ending; "
        f"found in {root}: {lists}."
    )
    names = read_text(path, fix=fix).split("\n")
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise DiffUpError(f"{path} is empty; expected one image name per line.")
    return names


def _find_images(root: Path, names: list[str]) -> dict[str, str]:
    images = {p.stem: str(p) for p in _files(root / "images", (".png", ".jpeg"))}
    images |= {p.stem: str(p) for p in _files(root / "images", (".jpg",))}
    masks = {p.stem for p in _files(root / "masks", (".png",))}
    for kind, found in (("image", set(images)), ("mask", masks)):
        absent = [name for name in names if name not in found]
        if absent:
            raise DiffUpError(
                f"{len(absent)} of {len(names)} listed names have no {kind} in "
                f"{root / (kind + 's')}, the first is {absent[0]!r}. Add the files or "
                f"take the names out of the list. Layout: {LAYOUT}"
            )
    return {name: images[name] for name in names}


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise DiffUpError(f"the folder {folder} is missing. Layout: {LAYOUT}")
    return [path for path in folder.iterdir() if path.suffix.lower() in endings]


def _counts(root: Path, image_id: str, image_path: str) -> tuple[int, list[int]]:
    path = _mask_path(root, image_id)
    size, histogram = rasters.label_counts(path)
    height, width = rasters.image_size(image_path)
    if size != (height, width):
        raise DiffUpError(
            f"{path} is {size[0]} x {size[1]} pixels (rows x columns) but {image_path} "
            f"is {height} x {width}; make the mask from this very file."
        )
    return size[0] * size[1], histogram


def _mask_path(root: Path, image_id: str) -> Path:
    return root / "masks" / f"{image_id}.png"
