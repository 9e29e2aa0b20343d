"""Pictures and masks of people's own files, understood instead of assumed.

A picture is RGB, upright: the turn that a camera wrote into the file (EXIF) is done, as
every viewer and label tool does it. More than 8 bits are scaled by the type's range;
what shows through alpha is white.

What a mask file means is read from its values, never from its brightness:

    two values, 0 and v          v is the object
    0, 1 and 255                 1 is the object, 255 is ignored
    a palette                    its indices, by the same rules
    alpha that varies            at least half opaque is the object
    many values of grey          a soft mask: at least half of the largest possible
    anything else                refused, with the values that were found

`label` chooses the value that is the object, where there are several.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from diffup_jax.types import DiffUpError

# A picture: a file, an array [h w 3] or [h w] (uint8, uint16, or float in [0, 1]), or
# PIL's.
Picture = str | os.PathLike | np.ndarray | Image.Image

# From so many different values on, a grey picture is a soft mask and no list of labels.
_SOFT = 16
_ANGLE = 0x0112  # EXIF's orientation


class ObjectMask(NamedTuple):
    """The object, and where the file says what a pixel is; `meaning` in words."""

    mask: Bool[np.ndarray, "h w"]
    known: Bool[np.ndarray, "h w"]
    meaning: str


def read_picture(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels, upright.

    Raises DiffUpError for a file that is absent or no image, and for an array of
    another shape, type or range.
    """
    if isinstance(picture, Image.Image):
        return _rgb(picture, "the picture")
    if isinstance(picture, str | os.PathLike):
        return _rgb(_opened(picture), os.fspath(picture))
    return _rgb_array(np.asarray(picture))


def read_mask(mask: Picture, *, label: int | None = None) -> ObjectMask:
    """The object of a mask file or array; an array of bool means what it says.

    Raises DiffUpError for values of which it is not clear what they mean, for a lossy
    file of labels, and for one without the object.
    """
    if isinstance(mask, str | os.PathLike):
        name = os.fspath(mask)
        values, soft = _values(_opened(mask), name)
    elif isinstance(mask, Image.Image):
        name = "the mask"
        values, soft = _values(mask, name)
    else:
        name, values, soft = "the mask", np.asarray(mask), None
        if values.ndim != 2:
            raise DiffUpError(
                f"the mask has shape {values.shape}; expected [h w], one number or "
                "bool for each pixel."
            )
        if values.dtype == bool:
            values, soft = values.astype(np.uint8), None
        elif np.issubdtype(values.dtype, np.floating):
            if not (
                np.isfinite(values).all() and 0 <= values.min() <= values.max() <= 1
            ):
                raise DiffUpError(
                    f"the mask has values from {values.min()} to {values.max()}; "
                    "expected a float mask in [0, 1], or whole numbers."
                )
            values, soft = (values >= 0.5).astype(np.uint8), None
    found = _understood(values, soft, label, name)
    if not found.mask.any():
        raise DiffUpError(
            f"{name} marks no pixel ({found.meaning}); expected an object. Choose "
            "another value with mask_label, or give another cue."
        )
    return found


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    mask: np.ndarray,
    *,
    colour: tuple[int, int, int],
    strength: float,
) -> UInt8[np.ndarray, "h w 3"]:
    """Tint `image` with `colour` by `strength` [0, 1] times `mask` [0, 1].

    Pixels where the mask is 0 come back unchanged.
    """
    share = strength * mask[..., None].astype(np.float32)
    mixed = image * (1 - share) + np.asarray(colour, np.float32) * share
    mixed = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return np.where(share > 0, mixed, image)


def _opened(path: str | os.PathLike) -> Image.Image:
    name = os.fspath(path)
    if not Path(name).is_file():
        raise DiffUpError(f"there is no file {name!r}; give the path of a picture.")
    try:
        with Image.open(path) as picture:
            picture.load()
            picture.getexif()  # read while the file is open
            return picture
    except Exception as error:  # PIL raises half a dozen types for a broken file
        raise DiffUpError(
            f"cannot read {name!r}: {error}. Expected a whole image file; copy or save "
            "it again."
        ) from error


def _rgb(picture: Image.Image, name: str) -> np.ndarray:
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bits(picture, name)
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """A grey picture of 16 or 32 bits, or of floats, as one of 8."""
    values, turn = np.asarray(picture), picture.getexif().get(_ANGLE)
    low, high = float(values.min()), float(values.max())
    if picture.mode == "F" and (low < 0 or high > 1):
        raise DiffUpError(
            f"{name} holds floats from {low:g} to {high:g}; expected [0, 1]. Save it "
            "as an 8- or 16-bit picture."
        )
    if low < 0 or high > 65535:
        raise DiffUpError(
            f"{name} holds numbers from {low:g} to {high:g} (mode {picture.mode}); "
            "expected 16 bits, 0 to 65535. Save it as an 8- or 16-bit picture."
        )
    top = 1.0 if picture.mode == "F" else 65535.0
    made = Image.fromarray(np.rint(values / top * 255).astype(np.uint8))
    if turn:
        made.getexif()[_ANGLE] = turn
    return made


def _rgb_array(values: np.ndarray) -> np.ndarray:
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    if values.ndim != 3 or values.shape[2] != 3 or not values.size:
        raise DiffUpError(
            f"the picture is an array of shape {values.shape}; expected [h w 3] (RGB, "
            "channels last) or [h w]."
        )
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return np.rint(values / 65535 * 255).astype(np.uint8)
    floats = np.issubdtype(values.dtype, np.floating)
    if not floats or not (
        np.isfinite(values).all() and 0 <= values.min() <= values.max() <= 1
    ):
        raise DiffUpError(
            f"the picture is an array of {values.dtype} from {values.min()} to "
            f"{values.max()}; expected uint8, uint16, or float in [0, 1]."
        )
    return np.rint(values * 255).astype(np.uint8)


def _values(picture: Image.Image, name: str) -> tuple[np.ndarray, int | None]:
    """One number a pixel, upright, and the largest possible one of a soft mask."""
    lossy = picture.format in ("JPEG", "JPEG2000", "MPO")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "P":
        return np.asarray(picture), None
    if picture.mode in ("1", "L") or picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.int64), 255 if lossy else _top(picture)
    if picture.has_transparency_data:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        if alpha.min() < alpha.max():
            return (alpha >= 128).astype(np.uint8), None
    colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    if (colours == colours[:, :1]).all():
        return colours[:, 0].reshape(picture.size[::-1]), 255
    found = np.unique(colours, axis=0)
    if len(found) > 2 or lossy:
        raise DiffUpError(
            f"{name} has {len(found)} colours; expected two, or a grey or palette "
            "picture whose values say what a pixel is. Save one mask for the object."
        )
    dark = found[np.argmin(found.sum(axis=1))]
    return (colours != dark).any(axis=1).reshape(picture.size[::-1]).astype(int), None


def _top(picture: Image.Image) -> int:
    return 255 if picture.mode in ("1", "L") else 65535


def _understood(
    values: np.ndarray, soft: int | None, label: int | None, name: str
) -> ObjectMask:
    everywhere = np.ones(values.shape, bool)
    found = np.unique(values).tolist()
    if label is not None:
        if label not in found:
            raise DiffUpError(
                f"{name} has no pixel of value {label}; its values: {_listed(found)}."
            )
        known = values != 255 if label != 255 else everywhere
        return ObjectMask(values == label, known, f"{label} is the object")
    if soft is not None and len(found) >= _SOFT:
        return ObjectMask(
            values >= (soft + 1) / 2, everywhere, "soft grey, cut at half"
        )
    others = [value for value in found if value != 0]
    if len(others) == 1:
        return ObjectMask(values != 0, everywhere, f"{others[0]} is the object")
    if others == [1, 255]:
        return ObjectMask(values == 1, values != 255, "1 is the object, 255 is ignored")
    if not others:
        return ObjectMask(values != 0, everywhere, "0 everywhere")
    raise DiffUpError(
        f"{name} holds the values {_listed(found)}, and it is not clear which is the "
        "object. Choose one with mask_label=VALUE."
    )


def _listed(found: list[int]) -> str:
    shown = ", ".join(map(str, found[:12]))
    return shown if len(found) <= 12 else f"{shown} and {len(found) - 12} more"
