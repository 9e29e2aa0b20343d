"""Training augmentation: one geometric resample and one colour matrix per image.

Geometry: a random window of the image, smaller (zoom in) or larger (zoom out, padded)
than it, maybe mirrored, goes to the square target in a single resample; image, masks,
ignore and instances share it exactly. Colour: brightness, contrast, saturation, hue and
grey are all affine in RGB, so they are one 3 x 4 matrix.

    rgb' = b [ c (S H rgb) + (1 - c) m ]     H rotation of hue, S saturation,
                                              c contrast about the mean grey m,
                                              b brightness
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from msgspec import Meta
from PIL import Image

from diffup_jax.data.resize import View, keep_pixel
from diffup_jax.sections import KEPT, Above, AtLeast, Section, Within

# ITU-R 601 luma: the grey of PIL's own conversion.
_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)

# A window must keep this part of the class (random crops without it teach nothing).
_MIN_KEPT = 0.3
_TRIES = 6


_Share = Annotated[float, Within(0, 1), KEPT]
_Change = Annotated[float, Meta(ge=0, lt=1), KEPT]
_Side = Annotated[float, Above(0)]


class Augment(Section):
    """How far augmentation may go; the defaults are the recommended setting.

    flip: probability of mirroring. scale: (least, most) side of the window as a
    fraction of the image's side; below 1 zooms in, above 1 pads. aspect: the window's
    two fractions differ by a factor of up to this. brightness, contrast, saturation:
    largest relative change. hue: largest turn as a fraction of the circle. grey:
    probability of losing all colour.
    """

    flip: _Share = 0.5
    scale: Annotated[tuple[_Side, _Side], KEPT] = (0.5, 1.2)
    aspect: Annotated[float, AtLeast(1), KEPT] = 1.25
    brightness: _Change = 0.3
    contrast: _Change = 0.3
    saturation: _Change = 0.3
    hue: Annotated[float, Within(0, 0.5), KEPT] = 0.03
    grey: _Share = 0.05

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.scale[0] > self.scale[1]:
            yield "scale", "(least, most), the least first"


def augment(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Bool[np.ndarray, "n h w"],
    ignore: Bool[np.ndarray, "h w"],
    instances: UInt16[np.ndarray, "h w"] | None,
    *,
    generator: np.random.Generator,
    settings: Augment,
    size: int,
) -> View:
    """A random variant of an image and its labels, at [size size].

    masks: one per way, at most 5. instances: 0 outside, 1..m, or None.

    Padding is ignored. A window keeps at least 30 % of the first mask's pixels, else
    the image stays uncropped; a first mask with pixels never comes out empty.
    """
    window = _window(masks[0], generator, settings)
    mirrored = generator.random() < settings.flip
    matrix = _colour(image, generator, settings)

    picture = _resample(image, window, size, Image.Resampling.BILINEAR, fill=None)
    new_image = np.asarray(picture.convert("RGB", matrix))
    # All labels of a pixel in one number: a bit per way, the ignore bit, the instance.
    ways = len(masks)
    padded = 1 << ways
    codes = padded * ignore.view(np.uint8)
    for way, mask in enumerate(masks):
        codes |= mask.view(np.uint8) << way
    if instances is not None:
        codes = codes | instances.astype(np.int32) << ways + 1
    target = _resample(codes, window, size, Image.Resampling.NEAREST, fill=padded)
    new_codes = np.asarray(target)
    if mirrored:
        new_image, new_codes = new_image[:, ::-1], new_codes[:, ::-1]
    new_ignore = new_codes & padded != 0
    view = View(
        new_image,
        np.stack([new_codes & 1 << way != 0 for way in range(ways)]) & ~new_ignore,
        new_ignore,
        None
        if instances is None
        else (new_codes >> ways + 1).astype(np.uint16) * ~new_ignore,
    )
    if not view.masks[0].any() and masks[0].any():
        # Too thin for the nearest rule: keep the pixel of which it covers most.
        inside = _resample(
            masks[0].astype(np.float32), window, size, Image.Resampling.BOX, fill=0
        )
        cover = np.asarray(inside)[:, ::-1] if mirrored else np.asarray(inside)
        view = keep_pixel(view, np.argmax(cover))
    return view


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
