"""A data set packed into ArrayRecord shards by `data_prep.array_records`.

    ROOT/SPLIT/dataset_info.json, features.json      of tensorflow-datasets
    ROOT/SPLIT/*.array_record-*                      the shards
    ROOT/SPLIT/packed.json                           classes, lists of images, sizes

A few large files instead of many small ones, read at random through
`tensorflow_datasets.data_source` (TensorFlow is not needed). Image ids, class lists,
pixels, masks, ignored pixels and instances are those of the source that was packed, so
its episodes are too. One record holds one image:

    id         the image id
    image      the original file, byte for byte (PNG where there was none)
    labels     mode-L PNG: the value of a class where it is, 255 where ignored
    overlaps   further such pictures, for classes that share pixels with those before or
               ignore other pixels, and where 254 classes are in one picture already
    classes, layers, values
               of each class with pixels: its picture (0 = `labels`) and its value
               there: class + 1 where the data set has at most 254 classes
    instances  of each picture a PNG of the instances' numbers within their class, or
               nothing where they are the connected components

A class that is not listed has no pixel, and ignores those of `labels`.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from PIL import Image

from diffup_jax.data import rasters
from diffup_jax.files import read_json
from diffup_jax.types import DiffUpError

LAYOUT = "SPLIT/packed.json, dataset_info.json, features.json and *.array_record files"

# What tensorflow-datasets calls the images of a folder; its own splits are not used.
RECORDS = "images"
# Values of no class: of pixels nobody counts, and of none (background is 0).
IGNORE = 255
ABSENT = 256

# How many classes one picture of values 1..254 can hold.
_VALUES = 254


class Records:
    """The records of one folder by number, opened where and when they are first read.

    Pickled as the folder's path: every worker opens the shards itself. Each thread
    keeps the last record it read, because an image and its masks are asked in turn.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self._opening = threading.Lock()
        self._source: Any = None
        self._last = threading.local()

    def __getitem__(self, number: int) -> dict[str, Any]:
        last = getattr(self._last, "record", (None, {}))
        if last[0] != number:
            last = number, self._open()[number]
            self._last.record = last
        return last[1]

    def __reduce__(self):
        return Records, (self.folder,)

    def _open(self) -> Any:
        with self._opening:
            if self._source is None:
                # Two seconds to import: only for those who read records.
                import tensorflow_datasets as tfds

                as_stored = tfds.decode.SkipDecoding()
                self._source = tfds.builder_from_directory(self.folder).as_data_source(
                    split=RECORDS, decoders={"image": as_stored, "labels": as_stored}
                )
            return self._source


@dataclasses.dataclass(frozen=True, eq=False)
class PackedSource:
    """A `sources.Source` over records; made by `open_packed`.

    `kind` is that of the source that was packed, whose rules of drawing still hold;
    `names` is sorted.
    """

    name: str
    root: str
    class_names: tuple[str, ...]
    class_folds: tuple[int, ...]
    by_class: tuple[tuple[str, ...], ...]
    kind: str
    names: tuple[str, ...]
    records: Records

    def image_ids(self, class_id: int) -> tuple[str, ...]:
        return self.by_class[class_id]

    def encoded(self, image_id: str) -> bytes:
        """The image's file as it was packed."""
        return self._record(image_id)["image"]

    def image(self, image_id: str) -> UInt8[np.ndarray, "h w 3"]:
        picture = _decode(self.encoded(image_id), f"{self.root}: image {image_id}")
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))

    def mask(
        self, image_id: str, class_id: int
    ) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """(mask, ignore); the mask is empty where the class is absent."""
        layer, value = self._place(image_id, class_id)
        labels = self._labels(image_id, layer)
        return labels == value, labels == IGNORE

    def instances(self, image_id: str, class_id: int) -> UInt16[np.ndarray, "h w"]:
        """0 outside the mask, 1..m the instances of the source that was packed."""
        layer, value = self._place(image_id, class_id)
        mask = self._labels(image_id, layer) == value
        stored = self._record(image_id)["instances"][layer]
        if not stored:
            return rasters.components(mask)
        numbers = np.array(_decode(stored, f"{self.root}: instances of {image_id}"))
        return np.where(mask, numbers, 0).astype(np.uint16)

    def _record(self, image_id: str) -> dict[str, Any]:
        number = bisect.bisect_left(self.names, image_id)
        if number == len(self.names) or self.names[number] != image_id:
            raise DiffUpError(
                f"no image {image_id!r} in {self.root}; the episode list or the image "
                "id is of other data."
            )
        record = self.records[number]
        if record["id"] != image_id.encode():
            raise DiffUpError(
                f"record {number} of {self.root} holds {record['id']!r} instead of "
                f"{image_id!r}; its files are mixed up. Pack the data again."
            )
        return record

    def _place(self, image_id: str, class_id: int) -> tuple[int, int]:
        """(picture, value) of a class; one that is absent has a value nobody uses."""
        record = self._record(image_id)
        for known, layer, value in zip(
            record["classes"], record["layers"], record["values"], strict=True
        ):
            if known == class_id:
                return int(layer), int(value)
        return 0, ABSENT

    def _labels(self, image_id: str, layer: int) -> np.ndarray:
        record = self._record(image_id)
        stored = record["overlaps"][layer - 1] if layer else record["labels"]
        return np.array(_decode(stored, f"{self.root}: labels of {image_id}"))


def open_packed(root: Path, *, split: str, min_area: float) -> PackedSource:
    """Opens ROOT/`split`.

    min_area: a class counts in an image only when it covers a larger fraction of its
    pixels. The lists were made with a min_area of their own, which is the least that
    can be asked: 0 or the same number gives them as they are. Raises DiffUpError for a
    smaller one, for a folder that is missing or malformed and for shards cut short.
    """
    folder = root / split
    path = folder / "packed.json"
    found = sorted(p.parent.name for p in root.glob("*/packed.json"))
    fix = (
        f"Packed splits found in {root}: {found}. Pack one with "
        f"python -m data_prep.array_records --out {root}. Layout: {LAYOUT}"
    )
    facts = read_json(path, fix=fix)
    try:
        least, files = float(facts["min_area"]), dict(facts["files"])
        names = tuple(facts["images"])
        by_class = [
            [(names[number], share > min_area) for number, share in rows]
            for rows in facts["by_class"]
        ]
        title, classes = str(facts["name"]), tuple(map(str, facts["class_names"]))
        folds = tuple(map(int, facts["class_folds"]))
        kind = str(facts["made_from"]["source"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DiffUpError(
            f"{path} is not the list of a packed data set ({type(error).__name__}: "
            f"{error}). Pack the data again."
        ) from error
    if 0 < min_area < least:
        raise DiffUpError(
            f"min_area is {min_area} but {folder} was packed with {least}: smaller "
            "objects are not in its lists. Pack the data again, or use min_area 0 for "
            "the lists as they are."
        )
    for name, size in files.items():
        shard = folder / name
        if not shard.is_file() or shard.stat().st_size != size:
            raise DiffUpError(
                f"{shard} is absent or has not its {size} bytes. Copy the folder again "
                "or pack the data again."
            )
    as_packed = min_area in (0, least)
    return PackedSource(
        name=title,
        root=str(folder),
        class_names=classes,
        class_folds=folds,
        by_class=tuple(
            tuple(name for name, large in rows if large or as_packed)
            for rows in by_class
        ),
        kind=kind,
        names=names,
        records=Records(str(folder)),
    )


def encode(source: Any, image_id: str, files: Sequence[str]) -> dict[str, Any]:
    """One record, see py, with "shares" {class: fraction of the image} and
    "is_original" beside.

    files: where the image's original bytes may be; a file counts when its pixels are
    those of the source, which may have cut or turned them.
    """
    image = source.image(image_id)
    classes, places, values, shares = [], [], [], {}
    few = len(source.class_names) <= _VALUES
    usual, seen = _seen(source, image_id)
    layers = [_Layer(usual)]
    for class_id, mask, ignore in seen:
        numbers = source.instances(image_id, class_id)
        if mask.shape != image.shape[:2] or not np.array_equal(numbers > 0, mask):
            raise DiffUpError(
                f"{source.name} breaks its contract: the instances of class {class_id} "
                f"in image {image_id} do not cover its mask, or not the image."
            )
        place = next(
            (at for at, layer in enumerate(layers) if layer.takes(mask, ignore)),
            len(layers),
        )
        if place == len(layers):
            layers.append(_Layer(ignore))
        value = class_id + 1 if few else layers[place].count + 1
        layers[place].put(mask, numbers, value)
        classes.append(class_id)
        places.append(place)
        values.append(value)
        shares[class_id] = float(mask.mean())
    original = _original(image, files)
    return {
        "id": image_id,
        "image": original or _png(image),
        "labels": _png(layers[0].labels),
        "overlaps": [_png(layer.labels) for layer in layers[1:]],
        "instances": [layer.numbers_png() for layer in layers],
        "classes": classes,
        "layers": places,
        "values": values,
        "shares": shares,
        "is_original": original is not None,
    }


class _Layer:
    """One label picture while it is filled: classes that share no pixel."""

    def __init__(self, ignore: np.ndarray):
        self.labels = np.where(ignore, IGNORE, 0).astype(np.uint8)
        self._ignore = ignore
        self._numbers = np.zeros(ignore.shape, np.uint16)
        self._connected = True
        self.count = 0

    def takes(self, mask: np.ndarray, ignore: np.ndarray) -> bool:
        free = self.count < _VALUES and not self.labels[mask].any()
        return free and np.array_equal(self._ignore, ignore)

    def put(self, mask: np.ndarray, numbers: np.ndarray, value: int) -> None:
        self.labels[mask] = value
        self._numbers += np.where(mask, numbers, 0).astype(np.uint16)
        self._connected &= np.array_equal(numbers, rasters.components(mask))
        self.count += 1

    def numbers_png(self) -> bytes:
        """The instances; nothing where they are the connected components."""
        if self._connected:
            return b""
        small = self._numbers.max() < 256
        return _png(self._numbers.astype(np.uint8) if small else self._numbers)


def _seen(source: Any, image_id: str) -> tuple[np.ndarray, list[tuple]]:
    """(ignore of absent classes, [(class, mask, ignore)] of those that need a place).

    A class needs one when it has pixels or ignores others than absent classes do.
    """
    usual, seen = None, []
    for class_id in range(len(source.class_names)):
        mask, ignore = source.mask(image_id, class_id)
        if usual is None and not mask.any():
            usual = ignore
        elif mask.any() or not np.array_equal(ignore, usual):
            seen.append((class_id, mask, ignore))
    return (seen[0][2] if usual is None else usual), seen


def _original(image: np.ndarray, files: Sequence[str]) -> bytes | None:
    """The bytes of the first of the files that is this very image."""
    for file in files:
        content = Path(file).read_bytes()
        with contextlib.suppress(Exception), Image.open(io.BytesIO(content)) as picture:
            # Other formats are no images to tensorflow-datasets.
            known = picture.format in ("JPEG", "PNG")
            if known and np.array_equal(np.asarray(picture.convert("RGB")), image):
                return content
    return None


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def _decode(content: bytes, told: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except Exception as error:  # PIL raises half a dozen types for a broken file
        raise DiffUpError(
            f"{told} cannot be read: {error}. Copy or pack the data again."
        ) from error
    return picture
