"""The nameable categories of the drawn scenes, and the outlines of their shapes.

A category is one shape x one texture x one colour ("striped red star"). Of the
10 x 5 x 8 = 400 combinations, 80 are "evaluated" and the other 320 are kept for
pretraining a backbone, so that no backbone of this project has met a category it is
tested on. With shape s in 0..9, step j in 0..7, colour c and texture t:

    (1) category 8 s + j:   c = (j + s) mod 8,   t = (s + 2 j) mod 5

Every shape then occurs 8 times, every colour 10 times, every texture 16 times, and
each of the four interleaved folds (index mod 4) holds every shape twice, every colour
two or three times and every texture four times: a novel class is a new combination,
not a new colour.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from diffup_jax.types import DiffUpError

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "crescent", "heart")
SHAPES += ("hexagon", "arrow")
TEXTURES = ("plain", "striped", "dotted", "checked", "wavy")
# Name -> hue in degrees, saturation, value. Far enough apart to survive the lighting.
COLOURS = {
    "red": (358, 0.90, 0.85),
    "orange": (27, 0.95, 0.95),
    "yellow": (54, 0.90, 0.95),
    "green": (125, 0.80, 0.65),
    "cyan": (183, 0.80, 0.85),
    "blue": (222, 0.90, 0.85),
    "purple": (274, 0.75, 0.70),
    "pink": (328, 0.50, 0.98),
}
POOLS = ("evaluated", "pretraining")


class Category(NamedTuple):
    """One combination; the three numbers index SHAPES, TEXTURES and COLOURS."""

    name: str
    shape: int
    texture: int
    colour: int


@functools.cache
def categories(pool: str) -> tuple[Category, ...]:
    """The 80 "evaluated" (rule (1)) or the 320 "pretraining" categories, in order.

    Raises DiffUpError for any other pool.
    """
    if pool not in POOLS:
        raise DiffUpError(f"pool {pool!r} is unknown: use one of {', '.join(POOLS)}")
    evaluated = []
    for shape in range(len(SHAPES)):
        for step in range(len(COLOURS)):
            colour = (step + shape) % len(COLOURS)
            texture = (shape + 2 * step) % len(TEXTURES)
            evaluated.append(_category(shape, texture, colour))
    if pool == "evaluated":
        return tuple(evaluated)
    everything = (
        _category(shape, texture, colour)
        for shape in range(len(SHAPES))
        for texture in range(len(TEXTURES))
        for colour in range(len(COLOURS))
    )
    return tuple(one for one in everything if one not in evaluated)


@functools.cache
def unit_outline(shape: str) -> tuple[np.ndarray, ...]:
    """Rings of (x, y) points [n 2] about the unit disk: the outer one, then holes."""
    turn = 2 * np.pi
    circle = _arc(1.0, 0.0, turn, 49)[:-1]
    if shape == "circle":
        return (circle,)
    if shape == "ring":
        return (circle, 0.52 * circle)
    if shape in ("square", "triangle", "hexagon"):
        corners = {"triangle": 3, "square": 4, "hexagon": 6}[shape]
        return (_arc(1.0, 0.0, turn, corners + 1)[:-1],)
    if shape == "star":
        radius = np.tile([1.0, 0.42], 5)[:, None]
        return (radius * _arc(1.0, 0.0, turn, 11)[:-1],)
    if shape == "cross":
        a, b = 0.30, 0.95
        quarter = [(b, -a), (b, a), (a, a)]
        rotate = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1))]
        rotate += [-one for one in rotate]
        return (np.concatenate([np.array(quarter) @ one for one in rotate]),)
    if shape == "crescent":
        # Two circles through the same two tips, seen at +-open from the centre.
        open_angle = 0.75
        tip = np.array([np.cos(open_angle), np.sin(open_angle)])
        centre = 0.55
        inner_radius = float(np.hypot(tip[0] - centre, tip[1]))
        inner_angle = float(np.arctan2(tip[1], tip[0] - centre))
        outer = _arc(1.0, open_angle, turn - open_angle, 40)
        inner = _arc(inner_radius, turn - inner_angle, inner_angle, 32)[1:-1]
        return (np.concatenate([outer, inner + [centre, 0.0]]) + [0.1, 0.0],)
    if shape == "heart":
        t = np.linspace(0, turn, 49)[:-1]
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return (np.stack([x, y - 2.0], -1) / 17.0,)
    head, neck, shaft = 0.15, 0.75, 0.28
    half = [(1.0, 0.0), (head, neck), (head, shaft), (-0.95, shaft)]
    return (np.array(half + [(x, -y) for x, y in half[:0:-1]]),)


def _category(shape: int, texture: int, colour: int) -> Category:
    name = f"{TEXTURES[texture]} {tuple(COLOURS)[colour]} {SHAPES[shape]}"
    return Category(name, shape, texture, colour)


def _arc(radius: float, start: float, stop: float, points: int) -> np.ndarray:
    angle = np.linspace(start, stop, points)
    return radius * np.stack([np.cos(angle), np.sin(angle)], -1)
