"""Training augmentation: one geometric resample and one colour matrix per image.

Geometry: a random window of the image, smaller (zoom in) or larger (zoom out, padded)
than it, maybe mirrored, goes to the square target in a single resample; image, mask
and ignore share it exactly. Colour: brightness, contrast, saturation, hue and grey are
all affine in RGB, so they are one 3 x 4 matrix.

    rgb' = b [ c (S H rgb) + (1 - c) m ]     H rotation of hue, S saturation,
                                              c contrast about the mean grey m,
                                              b brightness
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from diffup_jax.data import rasters

# ITU-R 601 luma: the grey of PIL's own conversion.
_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)

# A window must keep this part of the class (random crops without it teach nothing).
_MIN_KEPT = 0.3
_TRIES = 6


@dataclasses.dataclass(frozen=True)
class Augment:
    """How far augmentation may go; `Augment()` is the recommended setting.

    flip: probability of mirroring. scale: (least, most) side of the window as a
    fraction of the image's side; below 1 zooms in, above 1 pads. aspect: the window's
    two fractions differ by a factor of up to this, >= 1. brightness, contrast,
    saturation: largest relative change, in [0, 1). hue: largest turn as a fraction of
    the circle, in [0, 0.5]. grey: probability of losing all colour.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.5, 1.2)
    aspect: float = 1.25
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.03
    grey: float = 0.05


def augment(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    ignore: Bool[np.ndarray, "h w"],
    *,
    generator: np.random.Generator,
    settings: Augment,
    size: int,
) -> tuple[
    UInt8[np.ndarray, "s s 3"], Bool[np.ndarray, "s s"], Bool[np.ndarray, "s s"]
]:
    """A random variant of an image, its mask and its ignored pixels, at [size size].

    Padding is ignored. A window keeps at least 30 % of the mask's pixels, else the
    image stays uncropped; a mask with pixels never comes out empty.
    """
    window = _window(mask, generator, settings)
    mirrored = generator.random() < settings.flip
    matrix = _colour(image, generator, settings)
    labels = mask + 2 * ignore.view(np.uint8)

    picture = _resample(image, window, size, Image.Resampling.BILINEAR, fill=None)
    picture = picture.convert("RGB", matrix)
    target = _resample(labels, window, size, Image.Resampling.NEAREST, fill=2)
    new_image, new_labels = np.asarray(picture), np.asarray(target)
    if mirrored:
        new_image, new_labels = new_image[:, ::-1], new_labels[:, ::-1]
    new_mask = new_labels == 1
    if not new_mask.any() and mask.any():
        # Too thin for the nearest rule: keep the pixel of which it covers most.
        inside = _resample(
            mask.astype(np.float32), window, size, Image.Resampling.BOX, fill=0
        )
        cover = np.asarray(inside)[:, ::-1] if mirrored else np.asarray(inside)
        new_mask = np.zeros((size, size), bool)
        new_mask.flat[np.argmax(cover)] = True
    return new_image, new_mask, (new_labels >= 2) & ~new_mask


def plain(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    ignore: Bool[np.ndarray, "h w"],
    *,
    size: int,
) -> tuple[
    UInt8[np.ndarray, "s s 3"], Bool[np.ndarray, "s s"], Bool[np.ndarray, "s s"]
]:
    """The same three maps resized to [size size] and nothing else.

    The support rule for masks: one with pixels never comes out empty.
    """
    small = rasters.resize_support_mask(mask, size)
    return (
        rasters.resize_image(image, size),
        small,
        rasters.resize_mask(ignore, size) & ~small,
    )


def _window(
    mask: np.ndarray, generator: np.random.Generator, settings: Augment
) -> tuple[float, float, float, float]:
    """(y0, x0, y1, x1) in pixels of the image; may reach beyond it."""
    height, width = mask.shape
    total = np.count_nonzero(mask)
    for _ in range(_TRIES):
        side = generator.uniform(*settings.scale)
        stretch = settings.aspect ** generator.uniform(-0.5, 0.5)
        spans = (height * side * stretch, width * side / stretch)
        # Slack is negative when the window is larger than the image: both cases slide.
        y0, x0 = (
            generator.random() * (length - span)
            for length, span in zip((height, width), spans, strict=True)
        )
        y1, x1 = y0 + spans[0], x0 + spans[1]
        rows = slice(max(0, math.ceil(y0)), min(height, int(y1)))
        columns = slice(max(0, math.ceil(x0)), min(width, int(x1)))
        if np.count_nonzero(mask[rows, columns]) >= max(_MIN_KEPT * total, 1):
            return y0, x0, y1, x1
    return 0.0, 0.0, float(height), float(width)


def _resample(array, window, size, filter_, *, fill):
    """The window as a [size size] picture; pixels outside the image get `fill`."""
    height, width = array.shape[:2]
    y0, x0, y1, x1 = window
    (top, bottom, v0, v1) = _axis(y0, y1, height, size)
    (left, right, u0, u1) = _axis(x0, x1, width, size)
    part = Image.fromarray(array).resize(
        (right - left, bottom - top), filter_, box=(u0, v0, u1, v1)
    )
    if part.size == (size, size):
        return part
    if fill is None:
        fill = tuple(int(v) for v in array[::8, ::8].mean((0, 1)))
    canvas = Image.new(part.mode, (size, size), fill)
    canvas.paste(part, (left, top))
    return canvas


def _axis(start, stop, length, size):
    """Target pixels [low, high) inside the image and the source span they read.

    The borders are rounded in the target, then mapped back: the resample stays exact.
    """
    scale = (stop - start) / size
    low = max(0, math.ceil(-start / scale - 1e-6))
    high = min(size, math.floor((length - start) / scale + 1e-6))
    high = max(high, low + 1)
    first = min(max(start + low * scale, 0.0), length - 1e-3)
    last = min(max(start + high * scale, first + 1e-3), float(length))
    return low, high, first, last


def _colour(
    image: np.ndarray, generator: np.random.Generator, settings: Augment
) -> tuple[float, ...]:
    brightness, contrast, saturation = (
        1 + generator.uniform(-amount, amount)
        for amount in (settings.brightness, settings.contrast, settings.saturation)
    )
    angle = 2 * math.pi * generator.uniform(-settings.hue, settings.hue)
    if generator.random() < settings.grey:
        saturation = 0.0
    turn = saturation * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    chroma = np.eye(3)
    chroma[1:, 1:] = turn
    matrix = np.empty((3, 4))
    matrix[:, :3] = brightness * contrast * (_RGB @ chroma @ _YIQ)
    # Every eighth pixel tells the mean well enough and costs nothing.
    mean = image[::8, ::8].mean((0, 1)) @ _LUMA
    matrix[:, 3] = brightness * (1 - contrast) * mean
    return tuple(matrix.ravel().tolist())
