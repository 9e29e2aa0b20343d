"""COCO instance annotations as a segmentation source (COCO-20i).

    ROOT/annotations/instances_SPLIT.json    SPLIT such as val2014, train2017, val
    ROOT/SPLIT/*.jpg                         the images

Instead of ROOT/SPLIT the images may lie in ROOT/train_val_2017 or in ROOT/train2017
and ROOT/val2017; a 2014 name such as COCO_val2014_000000000139.jpg is then found as
000000000139.jpg. Class k is the rank of the category id (0..79 for COCO) and is novel
in fold k mod 4 (interleaved, as in HSNet). Image ids are the stems of the JSON's own
file names, so a list of episodes is the same for 2014 and 2017 files.

Where instances of two classes overlap, by option:

    "union"    the mask of a class is the union of its instances, whatever lies on top
    "painted"  each pixel has one class, that of the last annotation covering it: no
               pair of the published COCO-20i lists is hidden by that rule

Crowd regions, by option:

    "hsnet"    they count nowhere: their pixels are background like any other
    "ignore"   crowd pixels of the class, outside its mask, are ignored

Under all of them, an image with nothing but a crowd region of a class does not contain
the class. The JSON is parsed once, see coco_index.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from pycocotools import mask as coco_mask

from diffup_jax.arrays import Arrays
from diffup_jax.data import rasters
from diffup_jax.data.readers import coco_index
from diffup_jax.types import DiffUpError

CROWD = ("hsnet", "ignore")
OVERLAP = ("union", "painted")
FOLDS = 4
LAYOUT = "annotations/instances_SPLIT.json, images in SPLIT/ or train_val_2017/"


@dataclasses.dataclass(frozen=True, eq=False)
class CocoSource:
    """A `sources.Source` over instance annotations; made by `open_coco`.

    A worker process receives the path of `index`, the class lists and `places` (uint8
    per image: which of `folders` holds it, and under which name), no annotation.
    """

    name: str
    root: str
    class_names: tuple[str, ...]
    class_folds: tuple[int, ...]
    by_class: tuple[tuple[str, ...], ...]
    index: Arrays
    folders: tuple[str, ...]
    places: np.ndarray
    crowd: str
    overlap: str

    @property
    def paths(self) -> dict[str, str]:
        """The file of every image of the JSON, also of those without a class."""
        names = [name.decode() for name in self.index["names"].tolist()]
        return {name: self._path(row) for row, name in enumerate(names)}

    def path(self, image_id: str) -> str:
        """The file that holds the image."""
        return self._path(self._row(image_id))

    def image_ids(self, class_id: int) -> tuple[str, ...]:
        return self.by_class[class_id]

    def image(self, image_id: str) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels. Raises DiffUpError when they have not the annotated size."""
        row = self._row(image_id)
        image = rasters.read_image(self._path(row))
        if image.shape[:2] != self._size(row):
            raise DiffUpError(
                f"{self._path(row)} is {image.shape[0]} x {image.shape[1]} pixels "
                "(rows x columns) but was annotated at "
                "{} x {}; put the original file back.".format(*self._size(row))
            )
        return image

    def mask(
        self, image_id: str, class_id: int
    ) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """(mask, ignore); the mask is empty where the class is absent."""
        row = self._row(image_id)
        own, crowds, later = self._annotations(row, class_id)
        if self.overlap == "painted" and later:
            marks = [(one, one in own) for one in sorted(own + later)]
            mask = self._paint(row, marks) > 0
        else:
            mask = self._union(row, own)
        if self.crowd == "hsnet":
            return mask, np.zeros_like(mask)
        return mask, self._union(row, crowds) & ~mask

    def instances(self, image_id: str, class_id: int) -> UInt16[np.ndarray, "h w"]:
        """0 outside the mask, 1..m its annotated instances, the largest first.

        Where two of them overlap a pixel belongs to the smaller one ("union"), or to
        the later one ("painted").
        """
        row = self._row(image_id)
        own, _, later = self._annotations(row, class_id)
        if self.overlap == "painted":
            order = sorted(own + later)
        else:
            areas = {one: _area(self._shape(row, [one])) for one in own}
            order = sorted(own, key=lambda one: -areas[one])
        numbers = {one: number for number, one in enumerate(own, 1)}
        return _by_size(self._paint(row, [(one, numbers.get(one, 0)) for one in order]))

    def _row(self, image_id: str) -> int:
        names, wanted = self.index["names"], image_id.encode()
        # In their own width, or numpy would copy all names to that of the one.
        row = int(np.searchsorted(names, np.array(wanted, names.dtype)))
        if row == len(names) or names[row] != wanted:
            raise DiffUpError(
                f"no image {image_id!r} in {self.root}; the episode list or the image "
                "id is of other data."
            )
        return row

    def _path(self, row: int) -> str:
        name = self._file_name(row)
        folder, renamed = divmod(int(self.places[row]), 2)
        return os.path.join(self.folders[folder], _renamed(name) if renamed else name)

    def _file_name(self, row: int) -> str:
        return (self.index["names"][row] + self.index["endings"][row]).decode()

    def _size(self, row: int) -> tuple[int, int]:
        height, width = self.index["sizes"][row].tolist()
        return height, width

    def _annotations(self, row: int, class_id: int) -> tuple[list[int], ...]:
        """(instances of the class, its crowds, instances of others after its first)."""
        first, last = self.index["first"][row : row + 2].tolist()
        classes = self.index["classes"][first:last].tolist()
        crowd = self.index["crowd"][first:last].tolist()
        own, crowds, later = [], [], []
        for at, (of, is_crowd) in enumerate(zip(classes, crowd, strict=True), first):
            if of == class_id:
                (crowds if is_crowd else own).append(at)
            elif own and not is_crowd:
                later.append(at)
        return own, crowds, later

    def _shape(self, row: int, annotations: Sequence[int]) -> dict | None:
        """The union of some annotations as compressed run lengths; None = nothing."""
        size = self._size(row)
        found = [
            part
            for one in annotations
            for part in coco_index.shape(self.index, one, *size)
        ]
        return coco_mask.merge(found) if len(found) > 1 else next(iter(found), None)

    def _union(self, row: int, annotations: Sequence[int]) -> np.ndarray:
        shape = self._shape(row, annotations)
        if shape is None:
            return np.zeros(self._size(row), bool)
        return _upright(_covered(shape), *self._size(row))

    def _paint(self, row: int, marks: Sequence[tuple[int, int]]) -> np.ndarray:
        """int32 [h w]: the number of the last of (annotation, number) at each pixel."""
        height, width = self._size(row)
        canvas = np.zeros(height * width, np.int32)
        for number, group in itertools.groupby(marks, key=lambda mark: int(mark[1])):
            shape = self._shape(row, [annotation for annotation, _ in group])
            if shape is not None:
                canvas[_covered(shape)] = number
        return _upright(canvas, height, width)


def open_coco(
    root: Path, *, split: str, min_area: float, crowd: str, overlap: str = "union"
) -> CocoSource:
    """Opens ROOT/annotations/instances_`split`.json and finds its images.

    min_area: a class counts in an image only when it covers more than this fraction of
    it: under "union" the areas of its instances as annotated are summed, under
    "painted" its pixels are counted. Raises DiffUpError for a missing or malformed JSON
    and for images that the JSON names but no folder holds.
    """
    folders = dict.fromkeys((split, "train_val_2017", "train2017", "val2017"))
    return open_instances(
        root / "annotations" / f"instances_{split}.json",
        root=root,
        folders=[root / name for name in folders],
        min_area=min_area,
        crowd=crowd,
        overlap=overlap,
    )


def open_instances(
    path: Path,
    *,
    root: Path,
    folders: Sequence[Path],
    min_area: float,
    crowd: str,
    overlap: str = "union",
) -> CocoSource:
    """`open_coco` for an instances JSON anywhere, its images in any of `folders`."""
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob("instances_*.json"))
        raise DiffUpError(
            f"{path} is missing; found {found} there. Give one of these splits or "
            f"download the annotations. Layout: {LAYOUT}"
        )
    if crowd not in CROWD or overlap not in OVERLAP:
        raise DiffUpError(
            f"crowd rule {crowd!r}, overlap rule {overlap!r}; expected one of {CROWD} "
            f"and one of {OVERLAP}."
        )
    index = coco_index.open_index(path)
    names = tuple(index.facts["classes"])
    source = CocoSource(
        name=root.resolve().name,
        root=str(root),
        class_names=names,
        class_folds=tuple(rank % FOLDS for rank in range(len(names))),
        by_class=(),
        index=index,
        folders=tuple(map(str, folders)),
        places=_find_images(index, path, folders),
        crowd=crowd,
        overlap=overlap,
    )
    if overlap == "painted":
        covered = coco_index.open_visible(index)["pixels"]
    else:
        covered = index["pair_area"]
    pixels = index["sizes"].astype(np.int64).prod(1)[index["pair_image"]]
    counts = (covered > min_area * pixels) & index["pair_seen"]
    stems = [name.decode() for name in index["names"].tolist()]
    bounds = index["pair_of"].tolist()
    by_class = [
        tuple(stems[row] for row in index["pair_image"][a:b][counts[a:b]].tolist())
        for a, b in itertools.pairwise(bounds)
    ]
    return dataclasses.replace(source, by_class=tuple(by_class))


def _covered(shape: dict) -> np.ndarray:
    """Compressed run lengths as bool [w * h], column after column.

    pycocotools has a decoder, but it hands numpy 2 an array of a deprecated form.
    """
    lengths = coco_index.run_lengths(shape["counts"])
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def _upright(columns: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(columns.reshape(width, height).T)


def _area(shape: dict | None) -> int:
    return 0 if shape is None else int(coco_mask.area(shape))


def _by_size(numbers: np.ndarray) -> np.ndarray:
    """The same regions numbered 1, 2, ... from the largest on."""
    areas = np.bincount(numbers.ravel())
    order = 1 + np.argsort(-areas[1:], kind="stable")
    rank = np.zeros(len(areas), np.uint16)
    # Beyond 65535 instances the smallest share the last number.
    rank[order] = np.minimum(np.arange(1, len(areas)), np.iinfo(np.uint16).max)
    return rank[numbers]


def _find_images(index: Arrays, path: Path, folders: Sequence[Path]) -> np.ndarray:
    """uint8 per image, see CocoSource. A disk is asked once per folder, not per image.

    The first of `folders` that has the file wins, its own name before the 2017 name.
    """
    listed = [
        frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()
        for folder in folders
    ]
    places = np.zeros(len(index["names"]), np.uint8)
    absent = []
    for row, (stem, ending) in enumerate(
        zip(index["names"].tolist(), index["endings"].tolist(), strict=True)
    ):
        name = (stem + ending).decode()
        tries = ((name, 0), (_renamed(name), 1))
        found = [
            2 * at + renamed
            for name, renamed in tries
            for at, files in enumerate(listed)
            if name in files
        ]
        if found:
            places[row] = found[0]
        else:
            absent.append(name)
    if absent:
        raise DiffUpError(
            f"{len(absent)} of {len(places)} images named in {path} are absent, "
            f"the first is {absent[0]}. Searched "
            f"{', '.join(map(str, folders))}. Download the images "
            "or use the JSON of the images you have."
        )
    return places


def _renamed(name: str) -> str:
    """The 2017 name of a 2014 image."""
    return name.rsplit("_", 1)[-1] if name.startswith("COCO_") else name
