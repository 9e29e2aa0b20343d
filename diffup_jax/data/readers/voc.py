"""Pascal VOC 2012 with the SBD masks (Pascal-5i), and anything laid out like it.

    ROOT/JPEGImages/NAME.jpg
    ROOT/SegmentationClassAug/NAME.png      VOC + SBD, or else ROOT/SegmentationClass/
    ROOT/SegmentationObject/NAME.png        optional, tells the instances
    ROOT/ImageSets/Segmentation/SPLIT.txt   such as train, val, trainaug

ROOT may also be a folder that holds this one as VOC2012 or VOCdevkit/VOC2012. Masks are
PNG of mode P or L: 0 = background, class c has label c + 1, 255 = void, the boundary
that only the official masks have. Class c is novel in fold c // 5 (Pascal-5i, arXiv
1709.03410: contiguous folds).

A line of a list is NAME, and the image then counts for every class it shows, or
NAME__CC with a class number CC from 01, as in the published few-shot lists: the image
then counts for that class alone, in the order of the lines. Those lists leave out small
objects by a rule of their own that pixel counts do not reproduce, so to train and test
on the published pairs use them (`data_prep.pascal5i --lists` installs them).

Void is answered as `ignore` for every image. Nobody scores it in a query. In a support
the hsnet protocol calls it background, which is the protocol's choice and not a fact
of the files: see `support_ignore` in protocols.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8, UInt16

from diffup_jax.data import rasters
from diffup_jax.files import read_text
from diffup_jax.types import DiffUpError

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
FOLD_SIZE = 5
VOID = 255
LAYOUT = (
    "JPEGImages/NAME.jpg, SegmentationClassAug/NAME.png (or SegmentationClass), "
    "ImageSets/Segmentation/SPLIT.txt"
)
MASKS = ("SegmentationClassAug", "SegmentationClass")

# Where below ROOT the folders may lie.
INSIDE = ("", "VOC2012", "VOCdevkit/VOC2012")


@dataclasses.dataclass(frozen=True, eq=False)
class VocSource:
    """A `sources.Source` over VOC's folders; made by `open_voc`.

    `masks` is the name of the folder the labels are read from.
    """

    name: str
    root: str
    masks: str
    class_names: tuple[str, ...]
    class_folds: tuple[int, ...]
    by_class: tuple[tuple[str, ...], ...]

    def image_ids(self, class_id: int) -> tuple[str, ...]:
        return self.by_class[class_id]

    def image(self, image_id: str) -> UInt8[np.ndarray, "h w 3"]:
        return rasters.read_image(_image_path(Path(self.root), image_id))

    def mask(
        self, image_id: str, class_id: int
    ) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """(mask, void), disjoint; the mask is empty where the class is absent."""
        labels = self._labels(image_id)
        return labels == class_id + 1, labels == VOID

    def instances(self, image_id: str, class_id: int) -> UInt16[np.ndarray, "h w"]:
        """The objects of SegmentationObject, or else the connected components.

        Mask pixels that no object claims are instances by connection.
        """
        mask = self._labels(image_id) == class_id + 1
        path = Path(self.root) / "SegmentationObject" / f"{image_id}.png"
        if not path.is_file():
            return rasters.components(mask)
        objects = rasters.read_labels(path)
        if objects.shape != mask.shape:
            raise DiffUpError(
                f"{path} is {objects.shape[0]} x {objects.shape[1]} pixels (rows x "
                f"columns) but the labels of {image_id} are {mask.shape[0]} x "
                f"{mask.shape[1]}; put the official file back."
            )
        return _largest_first(mask, objects)

    def _labels(self, image_id: str) -> np.ndarray:
        return rasters.read_labels(Path(self.root) / self.masks / f"{image_id}.png")


def open_voc(root: Path, *, split: str, min_area: float) -> VocSource:
    """Opens the images of ImageSets/Segmentation/`split`.txt; reads every mask once.

    min_area: a class counts in an image only when it covers a larger fraction of it.
    Raises DiffUpError for a missing folder, list, image or mask, a line that names no
    class or a class its mask does not show, labels other than 0..20 and 255, and a
    mask with another size than its image.
    """
    root, masks = _find(root)
    pairs = read_list(root / "ImageSets" / "Segmentation" / f"{split}.txt")
    names = list(dict.fromkeys(name for name, _ in pairs))
    _require_files(root / "JPEGImages", names, ".jpg")
    _require_files(root / masks, names, ".png")
    # PIL gives the interpreter lock back while it decodes: threads are enough.
    with ThreadPoolExecutor() as pool:
        shares = pool.map(lambda name: _shares(root, masks, name), names)
        share_of = dict(zip(names, shares, strict=True))
    by_class: list[dict[str, None]] = [{} for _ in CLASSES]
    for name, stated in pairs:
        if stated is not None and not share_of[name][stated]:
            raise DiffUpError(
                f"the list {split!r} names {name} for class {stated + 1:02d} "
                f"({CLASSES[stated]}), but {root / masks / name}.png has no such "
                "pixel. Use the masks that the list was made for."
            )
        for class_id in range(len(CLASSES)) if stated is None else (stated,):
            if share_of[name][class_id] > min_area:
                by_class[class_id][name] = None
    return VocSource(
        name=root.resolve().name,
        root=str(root),
        masks=masks,
        class_names=CLASSES,
        class_folds=tuple(c // FOLD_SIZE for c in range(len(CLASSES))),
        by_class=tuple(map(tuple, by_class)),
    )


def read_list(path: Path) -> list[tuple[str, int | None]]:
    """The lines of a list: (image name, class index from 0, or None for any class).

    Lists with columns (VOC's per-class lists, PFENet's pairs of paths) are refused.
    Raises DiffUpError when the file is absent, empty or has such a line.
    """
    found = sorted(p.stem for p in path.parent.glob("*.txt"))
    fix = f"Lists found: {found}. `python -m data_prep.pascal5i` writes them."
    pairs: list[tuple[str, int | None]] = []
    lines = read_text(path, fix=fix).splitlines()
    for line in filter(None, map(str.strip, lines)):
        name, mark, number = line.partition("__")
        known = number.isdecimal() and 1 <= int(number) <= len(CLASSES)
        if not name or " " in line or "/" in line or (mark and not known):
            raise DiffUpError(
                f"{path}: the line {line!r} is not NAME or NAME__CC with CC in "
                f"01..{len(CLASSES)}."
            )
        pairs.append((name, int(number) - 1 if mark else None))
    if not pairs:
        raise DiffUpError(f"{path} is empty; expected one image name per line.")
    return pairs


def wrong_labels(histogram: list[int]) -> list[int]:
    """The labels of a mask, given how often each occurs, that VOC does not have."""
    known = {*range(len(CLASSES) + 1), VOID}
    return [label for label, n in enumerate(histogram) if n and label not in known]


def _find(root: Path) -> tuple[Path, str]:
    for inside in INSIDE:
        for masks in MASKS:
            if (root / inside / masks).is_dir():
                return root / inside, masks
    raise DiffUpError(
        f"{root} holds no folder {' or '.join(MASKS)}. Give the folder VOC2012, or one "
        f"that holds VOCdevkit/VOC2012. Layout: {LAYOUT}"
    )


def _require_files(folder: Path, names: Iterable[str], ending: str) -> None:
    if not folder.is_dir():
        raise DiffUpError(f"the folder {folder} is missing. Layout: {LAYOUT}")
    found = {path.name for path in folder.iterdir()}
    absent = [name for name in names if name + ending not in found]
    if absent:
        raise DiffUpError(
            f"{len(absent)} listed images have no file in {folder}, the first is "
            f"{absent[0]}{ending}. Add the files, or take the names out of the list."
        )


def _shares(root: Path, masks: str, name: str) -> list[float]:
    """The fraction of an image that each class covers."""
    path = root / masks / f"{name}.png"
    (height, width), histogram = rasters.label_counts(path)
    wrong = wrong_labels(histogram)
    if wrong:
        raise DiffUpError(
            f"{path} has the labels {wrong}; expected 0..{len(CLASSES)} and {VOID}. "
            "Put the official mask back."
        )
    image = _image_path(root, name)
    size = rasters.image_size(image)
    if size != (height, width):
        raise DiffUpError(
            f"{path} is {height} x {width} pixels (rows x columns) but {image} is "
            f"{size[0]} x {size[1]}; put the official files back."
        )
    return [n / (height * width) for n in histogram[1 : len(CLASSES) + 1]]


def _image_path(root: Path, name: str) -> Path:
    return root / "JPEGImages" / f"{name}.jpg"


def _largest_first(mask: np.ndarray, objects: np.ndarray) -> np.ndarray:
    claimed = mask & (objects != 0) & (objects != VOID)
    loose = rasters.components(mask & ~claimed).astype(np.int64)
    numbers = np.where(claimed, objects, loose + VOID * (loose > 0))
    areas = np.bincount(numbers[mask], minlength=1)
    found = np.flatnonzero(areas)
    rank = np.zeros(len(areas), np.uint16)
    order = found[np.argsort(-areas[found], kind="stable")]
    rank[order] = np.arange(1, len(order) + 1)
    return np.where(mask, rank[numbers * mask], 0).astype(np.uint16)
