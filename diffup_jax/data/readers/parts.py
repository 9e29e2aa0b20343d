"""Parts of objects: images cropped to one object, masks of its parts.

The source behind PACO-Part (paco_part.py) and Pascal-Part (pascal_part.py). An image id
is PHOTOGRAPH#OBJECT; image and mask are cut to the box of the object, and the mask is
the union of the segments of the part on this object.

Of several objects that show a part in one photograph, the one that shows most of it
stands for the class: a query and its supports are then never two crops of one
photograph. (The published code, Matcher's, draws the object at random.)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from pycocotools import mask as coco_mask

from diffup_jax.data import rasters
from diffup_jax.data.readers import coco_index
from diffup_jax.types import DiffUpError

SPLITS = ("train", "val")


class Part(NamedTuple):
    """The segments of one part class on one object.

    size: (h, w) of the photograph; box: the object's y0 x0 y1 x1, ends exclusive;
    regions: the segments as compressed run lengths of the whole photograph.
    """

    photograph: str
    object_id: int
    class_id: int
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    regions: list[dict]


@dataclasses.dataclass(frozen=True, eq=False)
class PartSource:
    """A `sources.Source` over cropped objects; made by `build`.

    Flat arrays, so that a worker process receives them quickly: object row r has photo
    `photos[r]`, `sizes[r]` and `boxes[r]`; the part with the i-th of the sorted keys
    r * classes + class has the run lengths codes[bounds[i] : bounds[i + 1]].
    """

    name: str
    root: str
    class_names: tuple[str, ...]
    class_folds: tuple[int, ...]
    by_class: tuple[tuple[str, ...], ...]
    rows: dict[str, int]
    photos: tuple[str, ...]
    sizes: np.ndarray
    boxes: np.ndarray
    keys: np.ndarray
    bounds: np.ndarray
    codes: np.ndarray

    def image_ids(self, class_id: int) -> tuple[str, ...]:
        return self.by_class[class_id]

    def image(self, image_id: str) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels of the object's box.

        Raises DiffUpError when the photograph has not the annotated size.
        """
        row = self.rows[image_id]
        image = rasters.read_image(self.photos[row])
        size = tuple(self.sizes[row].tolist())
        if image.shape[:2] != size:
            raise DiffUpError(
                "{} is {} x {} pixels (rows x columns) but was annotated at {} x {}; "
                "put the original file back.".format(
                    self.photos[row], *image.shape[:2], *size
                )
            )
        return image[self._crop(row)]

    def mask(
        self, image_id: str, class_id: int
    ) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """(mask, ignore) in the object's box; nothing is ignored."""
        row = self.rows[image_id]
        y0, x0, y1, x1 = self.boxes[row].tolist()
        mask = np.zeros((y1 - y0, x1 - x0), bool)
        key = row * len(self.class_names) + class_id
        at = int(np.searchsorted(self.keys, key))
        if at < len(self.keys) and self.keys[at] == key:
            code = self.codes[self.bounds[at] : self.bounds[at + 1]].tobytes()
            mask = _decode(code, *self.sizes[row].tolist())[self._crop(row)]
        return mask, np.zeros_like(mask)

    def instances(self, image_id: str, class_id: int) -> UInt16[np.ndarray, "h w"]:
        """The connected components of the mask: its segments are not told apart."""
        return rasters.components(self.mask(image_id, class_id)[0])

    def _crop(self, row: int) -> tuple[slice, slice]:
        y0, x0, y1, x1 = self.boxes[row].tolist()
        return slice(y0, y1), slice(x0, x1)


def build(
    root: Path,
    *,
    path: Path,
    names: tuple[str, ...],
    folds: tuple[int, ...],
    found: Sequence[Part],
    folders: Sequence[Path],
    min_area: float,
) -> PartSource:
    """The source over the parts found, whose photographs lie in `folders`.

    path: the annotations, for messages. min_area: a part counts in an image only when
    it covers a larger fraction of the object's box. Raises DiffUpError when a
    photograph is in no folder.
    """
    merged = {}  # (photograph, object, class) -> (its pixels in the box, counts)
    best: dict[tuple[str, int], tuple[int, int]] = {}
    things: dict[tuple[str, int], Part] = {}
    for part in found:
        part = part._replace(box=_inside(part.box, part.size))
        runs = coco_mask.merge(part.regions)
        area = _area(runs, part)
        things[part.photograph, part.object_id] = part
        merged[part.photograph, part.object_id, part.class_id] = area, runs["counts"]
        y0, x0, y1, x1 = part.box
        at = (part.photograph, part.class_id)
        if area > max(min_area * (y1 - y0) * (x1 - x0), best.get(at, (0, 0))[0]):
            best[at] = area, part.object_id
    chosen = sorted({(photo, thing) for (photo, _), (_, thing) in best.items()})
    place = {key: row for row, key in enumerate(chosen)}
    ids = [f"{Path(photo).stem}#{thing}" for photo, thing in chosen]
    by_class: list[list[str]] = [[] for _ in names]
    for (photo, class_id), (_, thing) in sorted(best.items()):
        by_class[class_id].append(ids[place[photo, thing]])
    # A chosen object keeps all its parts: a query's other ways look for them too.
    codes = sorted(
        (place[photo, thing] * len(names) + class_id, counts)
        for (photo, thing, class_id), (_, counts) in merged.items()
        if (photo, thing) in place
    )
    photos = _photographs(path, folders, sorted({photo for photo, _ in chosen}))
    return PartSource(
        name=root.resolve().name,
        root=str(root),
        class_names=names,
        class_folds=folds,
        by_class=tuple(map(tuple, by_class)),
        rows={image_id: row for row, image_id in enumerate(ids)},
        photos=tuple(photos[photo] for photo, _ in chosen),
        sizes=np.array([things[key].size for key in chosen], np.int32).reshape(-1, 2),
        boxes=np.array([things[key].box for key in chosen], np.int32).reshape(-1, 4),
        keys=np.array([key for key, _ in codes], np.int64),
        bounds=np.cumsum([0, *(len(code) for _, code in codes)], dtype=np.int64),
        codes=np.frombuffer(b"".join(code for _, code in codes), np.uint8),
    )


def require_split(name: str, split: str) -> None:
    """Raises DiffUpError unless the split is one of the two."""
    if split not in SPLITS:
        raise DiffUpError(f"{name} has no split {split!r}; expected {SPLITS}.")


def compress(shape: dict | list, height: int, width: int) -> list[dict]:
    """The compressed run lengths whose union is a COCO segmentation, maybe none.

    Raises TypeError or ValueError for run lengths that do not fill height x width.
    """
    if isinstance(shape, list):
        polygons = [polygon for polygon in shape if len(polygon) >= 6]
        return coco_mask.frPyObjects(polygons, height, width) if polygons else []
    return [
        {
            "size": [height, width],
            "counts": coco_index.checked_counts(shape, height, width),
        }
    ]


def _decode(counts: bytes, height: int, width: int) -> np.ndarray:
    lengths = coco_index.run_lengths(counts)
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def _inside(box: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box cut to the image, at least one pixel in each direction."""
    height, width = size
    y0, x0 = min(max(box[0], 0), height - 1), min(max(box[1], 0), width - 1)
    y1, x1 = max(min(box[2], height), y0 + 1), max(min(box[3], width), x0 + 1)
    return y0, x0, y1, x1


def _area(runs: dict, part: Part) -> int:
    """Pixels of the part in the object's box."""
    x, y, width, height = coco_mask.toBbox(runs).tolist()
    y0, x0, y1, x1 = part.box
    if x >= x0 and y >= y0 and x + width <= x1 and y + height <= y1:
        return int(coco_mask.area(runs))
    return int(_decode(runs["counts"], *part.size)[y0:y1, x0:x1].sum())


def _photographs(
    path: Path, folders: Sequence[Path], names: Sequence[str]
) -> dict[str, str]:
    """File name -> where it is. One listing per folder, not a question per file."""
    listed: dict[str, str] = {}
    for folder in folders:
        if folder.is_dir():
            listed |= {name: str(folder / name) for name in os.listdir(folder)}
    absent = [name for name in names if name not in listed]
    if absent:
        raise DiffUpError(
            f"{len(absent)} of {len(names)} photographs named in {path} are absent, "
            f"the first is {absent[0]}. Searched {', '.join(map(str, folders))}. "
            "Download them, or correct data.root."
        )
    return {name: listed[name] for name in names}
