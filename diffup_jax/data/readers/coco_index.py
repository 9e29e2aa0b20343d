"""An instances JSON as flat arrays, parsed once and mapped from then on.

`open_index` answers the arrays of a file instances_SPLIT.json. They lie in the user's
cache folder (`files.cache_folder`), never among the data, which may be shared or read
only. The key is the hash of the JSON's content and the version of this reader: size and
time of a file alone would let an edited JSON pass.

    names [n]            image ids (stems of the file names) in order, UTF-8
    endings [n]          what follows the stem, such as ".jpg"
    sizes [n 2]          height and width
    first [n + 1]        annotations first[i] .. first[i + 1] are those of image i, in
                         the order of the JSON
    classes, crowd, is_runs, part, parts [a]
                         of each annotation: class, crowd or not, and where its shape
                         is: polygons part .. part + parts, or the run lengths `part`
    corners, corner_of   polygon p is corners[corner_of[p] : corner_of[p + 1]], in
                         fifths of a pixel (see `_fifths`)
    runs, run_of         compressed run lengths, one string after the other
    pair_of [classes + 1], pair_image, pair_area, pair_seen [pairs]
                         by class: the images with an instance that is no crowd, its
                         annotated area, and whether it covers any pixel

604 907 annotations make 85 MB.
"""

from __future__ import annotations

import gc
import hashlib
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from diffup_jax import arrays as stores
from diffup_jax import files
from diffup_jax.arrays import Arrays
from diffup_jax.types import DiffUpError

# Part of the key: a change of what the arrays mean must change it.
_VERSION = "coco 1"

# Below this many annotated pixels a shape may cover no pixel centre at all.
_DOUBTFUL_AREA = 64


class _Annotation(msgspec.Struct, gc=False):
    """What is read of an annotation; everything else of it is passed over."""

    image_id: int | str
    category_id: int | str
    segmentation: msgspec.Raw  # decoded one by one: all at once they fill gigabytes
    area: float
    iscrowd: int = 0


class _Content(msgspec.Struct, gc=False):
    """An instances JSON."""

    images: list[dict]
    categories: list[dict]
    annotations: list[_Annotation]


_FORM = msgspec.json.Decoder(list[list[float]] | dict)


def open_index(path: Path) -> Arrays:
    """The arrays of an instances JSON; facts: {"classes": names by rank of the id}.

    Raises DiffUpError for a missing or malformed JSON and when no index can be written.
    """
    try:
        content = files.file_hash(path)
    except OSError as error:
        raise DiffUpError(f"cannot read {path}: {error.strerror}.") from error
    key = hashlib.sha256(f"{_VERSION} {content}".encode()).hexdigest()[:32]
    return _kept(key, lambda: _parse(path))


def open_visible(index: Arrays) -> Arrays:
    """{"pixels": of each pair of the index, those that the painted picture shows}.

    In that picture each pixel has the class of the last annotation that covers it
    (crowd regions are not painted). Counted once, about 15 s for 600 000 annotations.
    """
    key = hashlib.sha256(f"painted {index.key}".encode()).hexdigest()[:32]
    return _kept(key, lambda: ({"pixels": _visible(index)}, {}))


def shape(
    index: Arrays | dict[str, np.ndarray], annotation: int, height: int, width: int
) -> list[dict]:
    """The compressed run lengths whose union is an annotation's shape, maybe none."""
    part = int(index["part"][annotation])
    if index["is_runs"][annotation]:
        first, last = index["run_of"][part : part + 2].tolist()
        counts = index["runs"][first:last].tobytes()
        return [{"size": [height, width], "counts": counts}]
    parts = int(index["parts"][annotation])
    if not parts:
        return []
    bounds = index["corner_of"][part : part + parts + 1].tolist()
    corners = _pixels(index["corners"][bounds[0] : bounds[-1]])
    polygons = [
        corners[start - bounds[0] : stop - bounds[0]]
        for start, stop in zip(bounds, bounds[1:], strict=False)
    ]
    return coco_mask.frPyObjects(polygons, height, width)


def run_lengths(counts: bytes) -> np.ndarray:
    """Compressed counts as numbers of pixels, from background on, in column order.

    Each run is written as little-endian groups of five bits (character - 48; bit 32 =
    more groups follow, bit 16 of the last = negative); runs from the fourth on are
    differences to the run before the previous one.
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(groups & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(groups)) - np.repeat(first, last - first + 1)
    lengths = np.add.reduceat((groups & 31) << (5 * place), first)
    negative = groups[last] & 16 != 0
    lengths -= np.where(negative, np.int64(1) << (5 * (last - first + 1)), 0)
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths


def _kept(
    key: str, make: Callable[[], tuple[dict[str, np.ndarray], dict[str, Any]]]
) -> Arrays:
    """The store of this key in the cache folder, of the arrays and facts of `make`."""
    path = files.cache_folder("index") / f"{key}.index"

    def write() -> None:
        made, facts = make()
        try:
            stores.write(path, key, made, facts=facts)
        except OSError as error:
            raise DiffUpError(
                f"no place for an index ({path}: {error.strerror or error}). Make the "
                "folder writable, or name another in the variable DIFFUP_CACHE."
            ) from error

    return stores.open_or_make(path, key, write)


def _parse(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    collecting = gc.isenabled()
    gc.disable()  # nothing to collect in JSON, and looking for it takes half the time
    try:
        try:
            text = files.read_text(path, fix="Download it again.")
            content = msgspec.json.decode(text, type=_Content)
            del text
            return _arrays(content)
        except msgspec.ValidationError:  # before its base class; told below
            raise
        except msgspec.DecodeError as error:
            raise DiffUpError(
                f"{path} is not valid JSON ({error}); download it again."
            ) from error
    except (msgspec.ValidationError, LookupError, TypeError, ValueError) as error:
        raise DiffUpError(
            f"{path} is not a COCO instances file: {type(error).__name__} {error}. "
            "Expected images (id, file_name, height, width), categories (id, name) "
            "and annotations (image_id, category_id, segmentation, area)."
        ) from error
    finally:
        if collecting:
            gc.enable()


def _arrays(content: _Content) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    categories = sorted(content.categories, key=lambda entry: entry["id"])
    rank = {entry["id"]: index for index, entry in enumerate(categories)}
    images = sorted(
        ((_file_name(e).stem, e) for e in content.images), key=lambda image: image[0]
    )
    stems = [stem for stem, _ in images]
    twice = {a for a, b in zip(stems, stems[1:], strict=False) if a == b}
    if twice:
        raise TypeError(f"two images are named {min(twice)}")
    rows = {entry["id"]: row for row, (_, entry) in enumerate(images)}
    sizes = [(int(e["height"]), int(e["width"])) for _, e in images]
    arrays = _shapes(content.annotations, rows, rank, sizes)
    facts = {"classes": [str(entry["name"]) for entry in categories]}
    arrays |= {
        "names": _texts(stems),
        "endings": _texts([_file_name(e).suffix for _, e in images]),
        "sizes": np.array(sizes, np.int32).reshape(-1, 2),
    }
    return arrays | _pairs(arrays, len(categories)), facts


def _file_name(entry: dict) -> Path:
    # LVIS names its images by their address only.
    return Path(entry["file_name"] if "file_name" in entry else entry["coco_url"])


def _texts(texts: list[str]) -> np.ndarray:
    return np.array([text.encode() for text in texts] or [b""], "S")[: len(texts)]


def _shapes(annotations, rows, rank, sizes) -> dict[str, np.ndarray]:
    """The annotations, sorted by image, and their shapes in the order of the JSON."""
    numbers = [array("q") for _ in range(6)]
    row_of, class_of, crowd_of, runs_of, part_of, parts_of = numbers
    area_of, corners, runs = array("d"), array("d"), bytearray()
    corner_of, run_of = array("q", [0]), array("q", [0])
    for entry in annotations:
        row = rows[entry.image_id]
        form = _FORM.decode(entry.segmentation)
        row_of.append(row)
        class_of.append(rank[entry.category_id])
        crowd_of.append(bool(entry.iscrowd))
        area_of.append(entry.area)
        runs_of.append(isinstance(form, dict))
        if isinstance(form, dict):
            part_of.append(len(run_of) - 1)
            parts_of.append(1)
            runs += checked_counts(form, *sizes[row])
            run_of.append(len(runs))
            continue
        part_of.append(len(corner_of) - 1)
        for polygon in form:
            if len(polygon) >= 6:  # pycocotools would read four numbers as a box
                corners.extend(polygon)
                corner_of.append(len(corners))
        parts_of.append(len(corner_of) - 1 - part_of[-1])
    row_of = np.array(row_of, np.int64)
    order = np.argsort(row_of, kind="stable")
    table = {
        "classes": np.array(class_of, np.int32)[order],
        "crowd": np.array(crowd_of, bool)[order],
        "is_runs": np.array(runs_of, bool)[order],
        "part": np.array(part_of, np.int32)[order],
        "parts": np.array(parts_of, np.int32)[order],
        "areas": np.array(area_of, np.float64)[order],
        "first": np.searchsorted(row_of[order], np.arange(len(sizes) + 1)),
    }
    return table | {
        "corners": _fifths(np.frombuffer(corners, np.float64)),
        "corner_of": np.array(corner_of, np.int64),
        "runs": np.frombuffer(bytes(runs), np.uint8),
        "run_of": np.array(run_of, np.int64),
    }


def _fifths(corners: np.ndarray) -> np.ndarray:
    """Corners as pycocotools rounds them first of all: whole fifths of a pixel.

    Its rasteriser begins with (int)(5 x + 0.5): nothing else of a corner is used, so
    this loses no pixel and takes a quarter of the room. `_pixels` is the way back.
    """
    fifths = np.trunc(5.0 * corners + 0.5)
    if not (np.abs(fifths) < 2**31).all():
        raise TypeError("a corner of a polygon is not a finite number")
    small = not len(fifths) or np.abs(fifths).max() < 2**15
    return fifths.astype(np.int16 if small else np.int32)


def _pixels(fifths: np.ndarray) -> np.ndarray:
    # The cast to int cuts towards zero, so negative corners need a value below.
    return (fifths - 0.75 * (fifths < 0)) / 5.0


def checked_counts(form: dict, height: int, width: int) -> bytes:
    """Compressed counts of a run-length shape, checked: C code will trust them."""
    if tuple(form["size"]) != (height, width):
        raise TypeError(f"run lengths of size {form['size']} in {height} x {width}")
    counts = form["counts"]
    if isinstance(counts, list):
        if min(counts, default=-1) < 0 or sum(counts) != height * width:
            raise TypeError(f"run lengths that do not fill {height} x {width}")
        return coco_mask.frPyObjects(form, height, width)["counts"]
    counts = counts.encode() if isinstance(counts, str) else counts
    lengths = run_lengths(counts)
    if lengths.min() < 0 or lengths.sum() != height * width:
        raise TypeError(f"run lengths that do not fill {height} x {width}")
    return counts


def _pairs(arrays: dict[str, np.ndarray], classes: int) -> dict[str, np.ndarray]:
    """Which images have an instance of which class, sorted by class, then image."""
    images = len(arrays["sizes"])
    counted = np.flatnonzero(~arrays["crowd"])
    rows = np.repeat(np.arange(images), np.diff(arrays["first"]))[counted]
    keys, pair = np.unique(
        arrays["classes"][counted].astype(np.int64) * images + rows, return_inverse=True
    )
    area = np.bincount(pair, arrays.pop("areas")[counted], minlength=len(keys))
    seen = np.ones(len(keys), bool)
    doubtful = area <= _DOUBTFUL_AREA
    seen[doubtful] = False
    for at in np.flatnonzero(doubtful[pair]):
        height, width = arrays["sizes"][rows[at]].tolist()
        drawn = shape(arrays, int(counted[at]), height, width)
        seen[pair[at]] |= any(coco_mask.area(one) for one in drawn)
    return {
        "pair_of": np.searchsorted(keys, np.arange(classes + 1) * images),
        "pair_image": (keys % max(images, 1)).astype(np.int32),
        "pair_area": area.astype(np.float64),
        "pair_seen": seen,
    }


def _visible(index: Arrays) -> np.ndarray:
    """Pixels of each pair in the painted picture, from run lengths alone.

    Going back from the last annotation, each shows what it adds to the union.
    """
    images = len(index["sizes"])
    classes = np.repeat(np.arange(len(index["pair_of"]) - 1), np.diff(index["pair_of"]))
    place = {
        key: at
        for at, key in enumerate((classes * images + index["pair_image"]).tolist())
    }
    pixels = np.zeros(len(classes), np.int64)
    first, sizes = index["first"].tolist(), index["sizes"].tolist()
    class_of, crowd = index["classes"].tolist(), index["crowd"].tolist()
    for row in range(images):
        union, total = [], 0
        for annotation in range(first[row + 1] - 1, first[row] - 1, -1):
            drawn = shape(index, annotation, *sizes[row])
            if crowd[annotation] or not drawn:
                continue
            union = [coco_mask.merge(union + drawn)]
            more = int(coco_mask.area(union[0]))
            pixels[place[class_of[annotation] * images + row]] += more - total
            total = more
    return pixels
