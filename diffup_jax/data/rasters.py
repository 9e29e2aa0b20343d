"""Pixel files read, resized and taken apart; the one data room with PIL's decoders.

Images are resized with PIL's bilinear filter (antialiased when shrinking). Masks are
resized by the nearest rule of the hsnet protocol, which is the legacy rule of the
field's scoring code: target row i reads source row floor(i * h / size), computed in
float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from PIL import Image
from scipy import ndimage

from diffup_jax.types import DiffUpError


class Facts(NamedTuple):
    """What a picture file holds, known by decoding all of it.

    `labels` are the values of a mode L or P picture, empty for other modes; `digest`
    tells files with equal bytes.
    """

    height: int
    width: int
    mode: str
    labels: frozenset[int]
    digest: str


def facts(path: str | os.PathLike[str]) -> Facts:
    """Reads and decodes a whole picture file.

    Raises DiffUpError naming the file when it is absent, truncated or no image.
    """
    try:
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            found = picture.histogram() if picture.mode in ("L", "P") else []
            return Facts(
                height=picture.height,
                width=picture.width,
                mode=picture.mode,
                labels=frozenset(np.flatnonzero(found).tolist()),
                digest=hashlib.sha256(content).hexdigest(),
            )
    except Exception as error:  # PIL raises half a dozen types for a broken file
        raise _unreadable(path, error) from error


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB pixels of an image file, uint8, in the orientation they are stored in.

    Read-only: they are decoded for every episode, and a copy to write to is not free.
    Raises DiffUpError naming the file when it is absent, truncated or no image.
    """
    with _open(path) as picture:
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def read_labels(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w"]:
    """The integer labels of a mask file of mode L (values) or P (palette indices).

    Raises DiffUpError naming the file for other modes: a colour mask has no labels.
    """
    with _open(path) as picture:
        _require_labels(path, picture)
        return np.array(picture)


def label_counts(path: str | os.PathLike[str]) -> tuple[tuple[int, int], list[int]]:
    """The (height, width) of a mask file and how many pixels carry labels 0..255."""
    with _open(path) as picture:
        _require_labels(path, picture)
        return (picture.height, picture.width), picture.histogram()


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """The (height, width) an image file declares; its pixels are not decoded."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except Exception as error:  # PIL raises half a dozen types for a broken file
        raise _unreadable(path, error) from error


def resize_image(
    image: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "s s 3"]:
    """Square bilinear resize to [size size 3], uint8."""
    return np.asarray(
        Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    )


def resize_mask(mask: Bool[np.ndarray, "h w"], size: int) -> Bool[np.ndarray, "s s"]:
    """Square nearest resize to [size size], as the hsnet protocol scores labels.

    A small object may lose every pixel: query labels are scored that way.
    """
    if not mask.any():  # as ignored pixels mostly are
        return np.zeros((size, size), bool)
    rows, columns = (_nearest(length, size) for length in mask.shape)
    # Rows first: whole rows are copied, not single pixels (six times faster).
    return mask[rows][:, columns]


def resize_support_mask(
    mask: Bool[np.ndarray, "h w"], size: int
) -> Bool[np.ndarray, "s s"]:
    """`resize_mask`, but a mask with pixels keeps at least the best-covered one.

    A support without a single foreground pixel could give no cue.
    """
    resized = resize_mask(mask, size)
    if not resized.any() and mask.any():
        resized = best_covered(mask, size)
    return resized


def resize_labels(
    labels: UInt16[np.ndarray, "h w"], size: int
) -> UInt16[np.ndarray, "s s"]:
    """`resize_mask` for a map of numbers, such as the instances of a class."""
    rows, columns = (_nearest(length, size) for length in labels.shape)
    return labels[rows][:, columns]


def components(mask: Bool[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """The 8-connected components of a mask: 0 outside, 1..m, the largest is 1.

    Of two equal ones the upper (then the left) comes first. Beyond 65535 components the
    smallest share the last number.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3, 3), bool))
    if count < 2:
        return labels.astype(np.uint16)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    rank = np.zeros(count + 1, np.uint16)
    rank[1 + np.argsort(-areas, kind="stable")] = np.minimum(
        np.arange(1, count + 1), np.iinfo(np.uint16).max
    )
    return rank[labels]


def best_covered(mask: Bool[np.ndarray, "h w"], size: int) -> Bool[np.ndarray, "s s"]:
    """Square mask with one True: the target pixel of which `mask` covers most."""
    coverage = Image.fromarray(mask.astype(np.float32)).resize(
        (size, size), Image.Resampling.BOX
    )
    one = np.zeros((size, size), bool)
    one.flat[np.argmax(np.asarray(coverage))] = True
    return one


def _nearest(length: int, size: int) -> np.ndarray:
    # float32 on purpose: double precision picks another row at exact multiples.
    scale = np.float32(length) / np.float32(size)
    rows = np.floor(np.arange(size, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(rows, length - 1)


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    try:
        picture = Image.open(path)
    except Exception as error:  # PIL raises half a dozen types for a broken file
        raise _unreadable(path, error) from error
    with picture:
        try:
            picture.load()  # decodes now: truncation is told with the file's name
        except Exception as error:
            raise _unreadable(path, error) from error
        yield picture


def _unreadable(path: str | os.PathLike[str], error: Exception) -> DiffUpError:
    return DiffUpError(
        f"cannot read {os.fspath(path)}: {error}. Expected a whole image file; "
        "copy or download this file again, or take it out of the list."
    )


def _require_labels(path: str | os.PathLike[str], picture: Image.Image) -> None:
    if picture.mode not in ("L", "P"):
        raise DiffUpError(
            f"the mask {os.fspath(path)} has mode {picture.mode}; expected one label "
            "per pixel, PNG mode L or P. Save it as an 8-bit grey or palette PNG."
        )
