"""COCO instance annotations as a segmentation source (COCO-20i).

    ROOT/annotations/instances_SPLIT.json    SPLIT such as val2014, train2017, val
    ROOT/SPLIT/*.jpg                         the images

Instead of ROOT/SPLIT the images may lie in ROOT/train_val_2017 or in ROOT/train2017
and ROOT/val2017; a 2014 name such as COCO_val2014_000000000139.jpg is then found as
000000000139.jpg. Class k is the rank of the category id (0..79 for COCO) and is novel
in fold k mod 4 (interleaved, as in HSNet). Image ids are the stems of the JSON's own
file names, so a list of episodes is the same for 2014 and 2017 files.

The mask of a class is the union of its instances that are not crowd regions. Crowd
regions, by option:

    "hsnet"    they count nowhere: their pixels are background like any other
    "ignore"   crowd pixels of the class, outside its instances, are ignored

Under both, an image with nothing but a crowd region of a class does not contain the
class. The published COCO-20i lists agree with the first rule. They were made from
pictures with one label per pixel (a later annotation hides an earlier one), which the
union does not reproduce where instances of two classes overlap.
"""

from __future__ import annotations

import dataclasses
import json
import os
from array import array
from collections import defaultdict
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from pycocotools import mask as coco_mask

from diffup_jax.data import rasters
from diffup_jax.types import DiffUpError

CROWD = ("hsnet", "ignore")
FOLDS = 4
LAYOUT = "annotations/instances_SPLIT.json, images in SPLIT/ or train_val_2017/"

# Below this many annotated pixels a polygon may cover no pixel centre at all.
_DOUBTFUL_AREA = 64

_Pair = tuple[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class CocoSource:
    """A `sources.Source` over instance annotations; made by `open_coco`.

    `polygons` holds the x, y of all polygons in one array (polygon i is
    polygons[bounds[i] : bounds[i + 1]]): a worker process receives the whole data set
    as a few flat arrays. float64, because rounding the corners moves pixels.
    """

    name: str
    root: str
    class_names: tuple[str, ...]
    class_folds: tuple[int, ...]
    by_class: tuple[tuple[str, ...], ...]
    paths: dict[str, str]
    sizes: dict[str, tuple[int, int]]
    polygons: np.ndarray
    bounds: np.ndarray
    polygon_ids: dict[_Pair, tuple[int, ...]]
    runs: dict[_Pair, tuple[dict, ...]]
    crowds: dict[_Pair, tuple[dict, ...]]

    def image_ids(self, class_id: int) -> tuple[str, ...]:
        return self.by_class[class_id]

    def image(self, image_id: str) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels. Raises DiffUpError when they have not the annotated size."""
        image = rasters.read_image(self.paths[image_id])
        if image.shape[:2] != self.sizes[image_id]:
            raise DiffUpError(
                f"{self.paths[image_id]} is {image.shape[0]} x {image.shape[1]} pixels "
                "(rows x columns) but was annotated at "
                "{} x {}; put the original file back.".format(*self.sizes[image_id])
            )
        return image

    def mask(
        self, image_id: str, class_id: int
    ) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """(mask, ignore). Raises DiffUpError when the class has no pixel here."""
        pair = (image_id, class_id)
        mask = self._union(image_id, self._instances(pair))
        if not mask.any():
            raise DiffUpError(
                f"image {image_id} has no pixel of class {class_id} "
                f"({self.class_names[class_id]}) in {self.root}; correct its "
                "annotations, or leave it out with a larger min_area."
            )
        return mask, self._union(image_id, self.crowds.get(pair, ())) & ~mask

    def _instances(self, pair: _Pair) -> list[dict]:
        corners = [
            self.polygons[self.bounds[i] : self.bounds[i + 1]]
            for i in self.polygon_ids.get(pair, ())
        ]
        drawn = coco_mask.frPyObjects(corners, *self.sizes[pair[0]]) if corners else []
        return [*drawn, *self.runs.get(pair, ())]

    def _union(self, image_id: str, regions: list[dict] | tuple[dict, ...]):
        if not regions:
            return np.zeros(self.sizes[image_id], bool)
        return _decode(coco_mask.merge(list(regions)))


def open_coco(root: Path, *, split: str, min_area: float, crowd: str) -> CocoSource:
    """Opens ROOT/annotations/instances_`split`.json and finds its images.

    min_area: a class counts in an image only when the areas of its instances, as
    annotated, sum to more than this fraction of the image. Raises DiffUpError for a
    missing or malformed JSON and for images that the JSON names but no folder holds.
    """
    path = root / "annotations" / f"instances_{split}.json"
    content = _read_json(path)
    try:
        categories = sorted(content["categories"], key=lambda entry: entry["id"])
        rank = {entry["id"]: index for index, entry in enumerate(categories)}
        names = tuple(entry["name"] for entry in categories)
        stems = {e["id"]: Path(e["file_name"]).stem for e in content["images"]}
        sizes = {
            stems[e["id"]]: (int(e["height"]), int(e["width"]))
            for e in content["images"]
        }
        paths = _find_images(root, path, split, content["images"])
        regions = _read_regions(content["annotations"], stems, rank, sizes, crowd)
    except (KeyError, TypeError, AttributeError) as error:
        raise DiffUpError(
            f"{path} is not a COCO instances file: {type(error).__name__} {error}. "
            "Expected images (id, file_name, height, width), categories (id, name) "
            "and annotations (image_id, category_id, segmentation, area)."
        ) from error
    areas, *pixels = regions
    source = CocoSource(
        root.resolve().name,
        str(root),
        names,
        tuple(index % FOLDS for index in range(len(names))),
        (),
        paths,
        sizes,
        *pixels,
    )
    by_class: list[list[str]] = [[] for _ in names]
    for pair in sorted(areas):
        height, width = sizes[pair[0]]
        large = areas[pair] > min_area * height * width
        if large and (areas[pair] > _DOUBTFUL_AREA or _has_pixel(source, pair)):
            by_class[pair[1]].append(pair[0])
    return dataclasses.replace(source, by_class=tuple(map(tuple, by_class)))


def _decode(runs: dict) -> np.ndarray:
    """The mask of compressed run lengths, bool [h w].

    pycocotools has a decoder, but it hands numpy 2 an array of a deprecated form. Each
    run is written as little-endian groups of five bits (character - 48; bit 32 = more
    groups follow, bit 16 of the last = negative); runs from the fourth on are
    differences to the run before the previous one. Runs alternate from background, in
    column order.
    """
    groups = np.frombuffer(runs["counts"], np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(groups & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(groups)) - np.repeat(first, last - first + 1)
    lengths = np.add.reduceat((groups & 31) << (5 * place), first)
    negative = groups[last] & 16 != 0
    lengths -= np.where(negative, np.int64(1) << (5 * (last - first + 1)), 0)
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    values = np.arange(len(lengths)) % 2 == 1
    height, width = runs["size"]
    return np.ascontiguousarray(np.repeat(values, lengths).reshape(width, height).T)


def _has_pixel(source: CocoSource, pair: _Pair) -> bool:
    return bool(source._union(pair[0], source._instances(pair)).any())


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        found = sorted(p.name for p in path.parent.glob("instances_*.json"))
        raise DiffUpError(
            f"{path} is missing; found {found} there. Give one of these splits or "
            f"download the annotations. Layout: {LAYOUT}"
        ) from None
    except ValueError as error:
        raise DiffUpError(
            f"{path} is not valid JSON ({error}); download it again."
        ) from error


def _find_images(
    root: Path, json_path: Path, split: str, images: list[dict]
) -> dict[str, str]:
    """Image id -> file. One listing per folder: a disk is asked once, not per image."""
    folders = dict.fromkeys((split, "train_val_2017", "train2017", "val2017"))
    listed: dict[str, str] = {}
    for folder in reversed([root / name for name in folders]):
        if folder.is_dir():
            listed |= {name: str(folder / name) for name in os.listdir(folder)}
    paths, absent = {}, []
    for entry in images:
        name = Path(entry["file_name"]).name
        renamed = name.rsplit("_", 1)[-1] if name.startswith("COCO_") else name
        found = listed.get(name) or listed.get(renamed)
        if found is None:
            absent.append(name)
        else:
            paths[Path(name).stem] = found
    if absent:
        raise DiffUpError(
            f"{len(absent)} of {len(images)} images named in {json_path} are absent, "
            f"the first is {absent[0]}. Searched "
            f"{', '.join(str(root / name) for name in folders)}. Download the images "
            "or use the JSON of the images you have."
        )
    return paths


def _read_regions(annotations, stems, rank, sizes, crowd):
    """Sorts the annotations into flat arrays, see CocoSource."""
    areas: dict[_Pair, float] = defaultdict(float)
    corners, bounds = array("d"), array("q", [0])
    polygon_ids: dict[_Pair, list[int]] = defaultdict(list)
    runs: dict[_Pair, list[dict]] = defaultdict(list)
    crowds: dict[_Pair, list[dict]] = defaultdict(list)
    for entry in annotations:
        pair = (stems[entry["image_id"]], rank[entry["category_id"]])
        is_crowd = bool(entry.get("iscrowd", 0))
        if is_crowd and crowd == "hsnet":
            continue
        shape = entry["segmentation"]
        if is_crowd or isinstance(shape, dict):
            regions = _compress(shape, *sizes[pair[0]])
            (crowds if is_crowd else runs)[pair].extend(regions)
        else:
            for polygon in shape:
                if len(polygon) < 6:
                    continue  # pycocotools would read four numbers as a box
                corners.extend(polygon)
                bounds.append(len(corners))
                polygon_ids[pair].append(len(bounds) - 2)
        if not is_crowd:
            areas[pair] += entry["area"]
    return (
        dict(areas),
        np.array(corners, np.float64),
        np.array(bounds, np.int64),
        *({k: tuple(v) for k, v in d.items()} for d in (polygon_ids, runs, crowds)),
    )


def _compress(shape: dict | list, height: int, width: int) -> list[dict]:
    if isinstance(shape, list):
        return coco_mask.frPyObjects([p for p in shape if len(p) >= 6], height, width)
    if tuple(shape["size"]) != (height, width):
        raise TypeError(f"run lengths of size {shape['size']} in {height} x {width}")
    if isinstance(shape["counts"], list):
        return [coco_mask.frPyObjects(shape, height, width)]
    counts = shape["counts"]
    counts = counts.encode() if isinstance(counts, str) else counts
    return [{"size": list(shape["size"]), "counts": counts}]
