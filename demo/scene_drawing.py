"""Draws one scene: objects of chosen categories over a textured background.

Everything is drawn from one `numpy.random.Generator`; the same generator state gives
the same pixels. Shapes are polygons, so an object that nothing covers is annotated by
the very outline it was drawn from. All lengths are for 256 pixels and scale with size.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

from demo.scene_categories import COLOURS, SHAPES, TEXTURES, Category
from demo.scene_categories import unit_outline as _unit_outline

_REFERENCE_SIZE = 256
_DIAMETER = (30.0, 110.0)  # pixels at the reference size
_SUPERSAMPLE = 4  # of the outline only; textures have analytic soft edges
_CROWD_SHARE = 0.04  # of the scenes: their first object is a crowd of small copies
_OVERLAP_SHARE = 0.45  # of the objects: placed to cover part of an earlier one
_KEPT = 0.5  # every earlier object keeps at least this share of its pixels


class Drawn(NamedTuple):
    """One object as it is seen, after everything in front of it.

    `mask` is disjoint from every other object's. `outline`, (x, y) in pixels with
    pixel i covering [i, i + 1], is None when one polygon cannot tell the mask: a hole,
    something in front, the image border, or a crowd.
    """

    category: Category
    mask: Bool[np.ndarray, "h w"]
    outline: Float[np.ndarray, "n 2"] | None
    crowd: bool


class Scene(NamedTuple):
    """An image and its objects, back to front."""

    image: UInt8[np.ndarray, "h w 3"]
    objects: tuple[Drawn, ...]


def draw_scene(
    generator: np.random.Generator, chosen: Sequence[Category], *, size: int
) -> Scene:
    """One size x size scene with one object per chosen category, the first at the back.

    Some objects are partly covered by later ones; an object of which nothing is left
    to see (possible only with far more objects than the usual 2..5) is left out.
    """
    canvas = _background(generator, size)
    objects: list[Drawn] = []
    areas: list[int] = []
    crowd = generator.random() < _CROWD_SHARE
    for position, category in enumerate(chosen):
        if crowd and position == 0:
            mask = np.zeros((size, size), bool)
            for outline in _crowd_outlines(generator, category, size):
                mask |= _paint(generator, canvas, category, outline)
            objects.append(Drawn(category, mask, None, True))
            areas.append(int(mask.sum()))
            continue
        outline = _place(generator, category, objects, areas, size)
        mask = _paint(generator, canvas, category, outline)
        for index, earlier in enumerate(objects):
            if (earlier.mask & mask).any():
                rest = earlier.mask & ~mask
                objects[index] = earlier._replace(mask=rest, outline=None)
        areas.append(int(mask.sum()))
        inside = all(ring.min() > 0 and ring.max() < size for ring in outline)
        simple = len(outline) == 1 and inside
        objects.append(Drawn(category, mask, outline[0] if simple else None, False))
    image = _photograph(generator, canvas)
    return Scene(image, tuple(one for one in objects if one.mask.any()))


def _outline(
    generator: np.random.Generator,
    category: Category,
    *,
    centre: np.ndarray,
    radius: float,
) -> list[np.ndarray]:
    """The category's shape turned, stretched and slightly bent, in image pixels."""
    angle, bend_phase = generator.uniform(0, 2 * np.pi, 2)
    stretch = np.exp(generator.uniform(-0.16, 0.16))
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, sin], [-sin, cos]]) * radius
    rings = []
    for ring in _unit_outline(SHAPES[category.shape]):
        bent = ring + 0.04 * np.sin(2.2 * ring[:, ::-1] + bend_phase)
        rings.append((bent * [stretch, 1 / stretch]) @ matrix + centre)
    return rings


def _crowd_outlines(
    generator: np.random.Generator, category: Category, size: int
) -> list[list[np.ndarray]]:
    unit = size / _REFERENCE_SIZE
    centre = generator.uniform(0.25, 0.75, 2) * size
    outlines = []
    for _ in range(generator.integers(6, 11)):
        offset = generator.uniform(-34, 34, 2) * unit
        radius = generator.uniform(8, 12) * unit
        outlines.append(
            _outline(generator, category, centre=centre + offset, radius=radius)
        )
    return outlines


def _place(
    generator: np.random.Generator,
    category: Category,
    objects: list[Drawn],
    areas: list[int],
    size: int,
) -> list[np.ndarray]:
    """An outline that leaves enough of every earlier object to be recognised.

    `areas` are the earlier objects' pixels before anything covered them. Each refused
    try shrinks the object and asks for a little less: it always ends.
    """
    unit = size / _REFERENCE_SIZE
    smallest, largest = _DIAMETER[0] / 2 * unit, _DIAMETER[1] / 2 * unit
    # Room to shrink: the smallest ones are those that found no place at first.
    radius = generator.uniform(1.15 * smallest, largest)
    sizes = [int(one.mask.sum()) for one in objects]
    kept = _KEPT
    while True:
        margin = 0.75 * radius
        centre = generator.uniform(margin, size - margin, 2)
        if objects and generator.random() < _OVERLAP_SHARE:
            index = generator.integers(len(objects))
            rows, columns = np.nonzero(objects[index].mask)
            distance = (0.75 * np.sqrt(sizes[index] / np.pi) + 0.75 * radius) * 0.9
            turn = generator.uniform(0, 2 * np.pi)
            near = np.array([columns.mean(), rows.mean()])
            near += distance * np.array([np.cos(turn), np.sin(turn)])
            centre = np.clip(near, margin, size - margin)
        outline = _outline(generator, category, centre=centre, radius=radius)
        box, alpha = _rasterise(outline, size)
        window = np.s_[box[0] : box[2], box[1] : box[3]]
        solid = alpha >= 128
        lost = [int((one.mask[window] & solid).sum()) for one in objects]
        left = np.array(sizes) - np.array(lost)
        if (left >= kept * np.array(areas)).all():
            return outline
        radius = max(0.93 * radius, smallest)
        kept -= 0.01


# --- painting: the canvas is float32 [3 h w], 0..255; planes make numpy fast ---


def _rasterise(outline: list[np.ndarray], size: int) -> tuple[tuple, np.ndarray]:
    """The box (y0, x0, y1, x1) inside the image and its coverage, 0..255 [h w]."""
    low = np.floor(outline[0].min(0)).astype(int) - 1
    high = np.ceil(outline[0].max(0)).astype(int) + 1
    x0, y0 = np.clip(low, 0, size - 1)
    x1, y1 = np.clip(high, [x0 + 1, y0 + 1], size)
    scale = _SUPERSAMPLE
    patch = Image.new("L", ((x1 - x0) * scale, (y1 - y0) * scale))
    draw = ImageDraw.Draw(patch)
    for index, ring in enumerate(outline):
        # Pillow's coordinates name pixel centres, ours pixel corners.
        points = (ring - [x0, y0]) * scale - 0.5
        draw.polygon(points.ravel().tolist(), fill=0 if index else 255)
    return (y0, x0, y1, x1), np.asarray(patch.reduce(scale))


def _paint(
    generator: np.random.Generator,
    canvas: np.ndarray,
    category: Category,
    outline: list[np.ndarray],
) -> np.ndarray:
    """Paints the object and its shadow onto the canvas; returns its mask [h w]."""
    size = canvas.shape[-1]
    unit = size / _REFERENCE_SIZE
    box, coverage = _rasterise(outline, size)
    window = np.s_[box[0] : box[2], box[1] : box[3]]
    radius = float(np.abs(outline[0] - outline[0].mean(0)).max())
    if generator.random() < 0.6:
        _shadow(generator, canvas, coverage, box)
    centre = outline[0].mean(0).astype(np.float32)
    y = np.arange(box[0], box[2], dtype=np.float32)[:, None] - centre[1]
    x = np.arange(box[1], box[3], dtype=np.float32)[None] - centre[0]
    period = max(radius * generator.uniform(0.38, 0.6), 6.0 * unit)
    second = _pattern(generator, TEXTURES[category.texture], x, y, period)
    main, other = (c[:, None, None] for c in _object_colours(generator, category))
    paint = main + second * (other - main)

    # A light from one side makes the object look solid and its colour uneven.
    turn = generator.uniform(0, 2 * np.pi)
    strength = np.float32(generator.uniform(0.05, 0.28) / radius)
    paint *= 1 + strength * _slope(turn, x, y)
    alpha = coverage.astype(np.float32) / 255
    seen = canvas[:, *window]
    seen += alpha * (paint - seen)
    mask = np.zeros((size, size), bool)
    mask[window] = coverage >= 128
    return mask


def _shadow(
    generator: np.random.Generator,
    canvas: np.ndarray,
    coverage: np.ndarray,
    box: tuple[int, int, int, int],
) -> None:
    size = canvas.shape[-1]
    unit = size / _REFERENCE_SIZE
    dark = generator.uniform(0.25, 0.6)
    y, x = (np.array(box[:2]) + generator.uniform(-7, 7, 2) * unit).astype(int)
    soft = Image.fromarray(coverage).filter(ImageFilter.BoxBlur(2.5 * unit))
    y0, x0 = max(y, 0), max(x, 0)
    rows = np.asarray(soft)[y0 - y : size - y, x0 - x : size - x]
    height, width = rows.shape
    shade = 1 - np.float32(dark / 255) * rows
    canvas[:, y0 : y0 + height, x0 : x0 + width] *= shade


def _pattern(
    generator: np.random.Generator,
    texture: str,
    x: np.ndarray,
    y: np.ndarray,
    period: float,
) -> np.ndarray:
    """The share of the second colour, [h w] in [0, 1], with edges one pixel soft."""
    if texture == "plain":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    turn, first, second = generator.uniform(0, 2 * np.pi, 3)
    wave = np.float32(2 * np.pi / period)
    u = wave * _slope(turn, x, y) + np.float32(first)
    v = wave * _slope(turn, y, -x) + np.float32(second)
    if texture == "striped":
        level = np.sin(u)
    elif texture == "dotted":
        level = (np.cos(u) + np.cos(v)) - np.float32(0.55)
    elif texture == "checked":
        level = 1.6 * np.sin(0.6 * u) * np.sin(0.6 * v)
    else:
        level = np.sin(u + 1.9 * np.sin(0.6 * v)) - np.float32(0.1)
    return np.clip(0.5 + level * np.float32(period / 6), 0, 1)


def _slope(turn: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The coordinate along direction `turn`, float32 [h w]."""
    return np.float32(np.cos(turn)) * x + np.float32(np.sin(turn)) * y


def _object_colours(
    generator: np.random.Generator, category: Category
) -> tuple[np.ndarray, np.ndarray]:
    hue, saturation, value = tuple(COLOURS.values())[category.colour]
    hue = hue + generator.uniform(-6, 6)
    saturation = np.clip(saturation + generator.uniform(-0.1, 0.1), 0, 1)
    value = np.clip(value + generator.uniform(-0.12, 0.08), 0, 1)
    main = _rgb(hue, saturation, value)
    towards = 245.0 if generator.random() < 0.6 else 15.0
    share = np.float32(generator.uniform(0.65, 0.95))
    return main, main + share * (np.float32(towards) - main)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    rgb = colorsys.hsv_to_rgb(hue / 360 % 1, float(saturation), float(value))
    return np.array(rgb, np.float32) * 255


def _background(generator: np.random.Generator, size: int) -> np.ndarray:
    """Clouds of colour, blobs as bright as objects, line patterns, smooth grain."""
    cells = int(generator.integers(2, 6))
    centre_hue = generator.uniform(0, 360)
    spread = generator.uniform(15, 160)
    top = generator.uniform(0.15, 0.75)
    brightness = generator.uniform(0.35, 0.85)

    def colour() -> np.ndarray:
        hue = centre_hue + generator.uniform(-spread, spread)
        value = np.clip(brightness + generator.uniform(-0.22, 0.22), 0.08, 1)
        return _rgb(hue, generator.uniform(0.05, top), value)

    coarse = np.stack([colour() for _ in range(cells * cells)]).astype(np.uint8)
    clouds = Image.fromarray(coarse.reshape(cells, cells, 3))
    clouds = clouds.resize((size // 2, size // 2), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(clouds)
    for _ in range(generator.integers(0, 7)):
        x, y = generator.uniform(-0.1, 1.0, 2) * size / 2
        width, height = generator.uniform(0.08, 0.5, 2) * size / 2
        vivid = _rgb(generator.uniform(0, 360), generator.uniform(0.2, 0.95), 0.8)
        fill = tuple(int(c) for c in (vivid if generator.random() < 0.5 else colour()))
        if generator.random() < 0.6:
            draw.ellipse([x, y, x + width, y + height], fill=fill)
        else:
            end = [x + 2 * width, y + 2 * height]
            draw.line([x, y, *end], fill=fill, width=max(size // 20, 1))
    # Soft enough that nobody takes a blob for an unlabelled circle.
    blur = ImageFilter.BoxBlur(generator.uniform(2.5, 7.0) * size / 512)
    clouds = clouds.filter(blur).resize((size, size), Image.Resampling.BILINEAR)
    canvas = np.asarray(clouds).transpose(2, 0, 1).astype(np.float32, order="C")

    unit = np.float32(_REFERENCE_SIZE / size)
    y, x = (axis.astype(np.float32) * unit for axis in np.ogrid[0:size, 0:size])
    relief = np.zeros((size, size), np.float32)
    for _ in range(generator.integers(0, 3)):
        period = np.exp(generator.uniform(np.log(7), np.log(48)))
        texture = TEXTURES[generator.integers(1, len(TEXTURES))]
        lines = _pattern(generator, texture, x, y, period)
        relief += lines * np.float32(generator.uniform(-45, 45))
    cells = max(int(size * generator.uniform(0.1, 0.5)), 2)
    grain = generator.standard_normal((cells, cells), dtype=np.float32)
    grain = Image.fromarray(grain * np.float32(generator.uniform(2, 14)))
    grain = grain.resize((size, size), Image.Resampling.BILINEAR)
    canvas += relief + np.asarray(grain)
    return np.clip(canvas, 0, 255, out=canvas)


def _photograph(generator: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Light from one side, a lens, a sensor, a tone curve: float canvas to uint8."""
    size = canvas.shape[-1]
    turn = generator.uniform(0, 2 * np.pi)
    strength = np.float32(generator.uniform(0, 0.6))
    y = np.linspace(-0.5, 0.5, size, dtype=np.float32)[:, None]
    x = y.reshape(1, size)
    light = 1 + strength * _slope(turn, x, y)
    light -= np.float32(generator.uniform(0, 0.5)) * (x * x + y * y)
    balance = generator.uniform(0.93, 1.07, 3) * generator.uniform(0.8, 1.15)
    noise = generator.standard_normal((size, size), dtype=np.float32)
    noise *= np.float32(generator.uniform(0.5, 7))
    for plane, factor in zip(canvas, balance.astype(np.float32), strict=True):
        plane *= factor * light
        plane += noise
    pixels = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if generator.random() < 0.5:
        radius = generator.uniform(0.2, 1.0) * size / _REFERENCE_SIZE
        image = image.filter(ImageFilter.BoxBlur(radius))
    contrast, shift = generator.uniform(0.8, 1.2), generator.uniform(-14, 14)
    gamma = np.exp(generator.uniform(-0.25, 0.25))
    tone = 255 * (np.arange(256) / 255) ** gamma
    tone = np.clip(contrast * (tone - 127.5) + 127.5 + shift, 0, 255)
    return np.array(image.point(tone.astype(np.uint8).tolist() * 3))
