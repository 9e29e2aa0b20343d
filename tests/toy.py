"""A backbone that is right by construction, and episodes that it understands.

Its features are the mean colours of cells (with a loud code of the place, if asked),
and its texts are colours by name.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffup_jax import backbones
from diffup_jax.backbones.recipe import Normalise, TextRecipe
from diffup_jax.methods import prior
from diffup_jax.methods.prior.options import PriorSettings, TextSettings
from diffup_jax.types import Episode, Features, Level
from tests import episodes_made

SIZE, CELL = 32, 4
GRID = SIZE // CELL
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
PARAMS = {"backbone": {}}


class Eye(nn.Module):
    """Mean colours of cells, beside `loudness` times where the cell is."""

    loudness: float

    def __call__(self, x):
        b, h, w, c = x.shape
        cells = x.reshape(b, h // CELL, CELL, w // CELL, CELL, c).mean(axis=(2, 4))
        y, x = jnp.meshgrid(*(jnp.linspace(-1, 1, n) for n in cells.shape[1:3]))
        place = self.loudness * jnp.broadcast_to(
            jnp.stack([x, y], -1), (*cells.shape[:3], 2)
        )
        one = jnp.ones((*cells.shape[:3], 1))
        level = jnp.concatenate([cells, place, 0.3 * one], axis=-1)
        return Features({"a": level}, level, cells)


class Voice(nn.Module):
    """Logit scale of a text tower."""

    def scale(self):
        return jnp.float32(20.0), jnp.float32(0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Toy(backbones.Backbone):
    """Embeds the colours that a sentence names."""

    def encode_text(self, texts):
        found = [
            sum((np.array(v) for k, v in COLOURS.items() if k in text), np.zeros(3))
            + 0.0001 * len(text)
            for text in texts
        ]
        found = np.array(found, np.float32)
        return jnp.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True))


def backbone(*, loudness=0.0, debias=0) -> Toy:
    return Toy(
        name="toy",
        module=Eye(loudness),
        params={},
        levels=(Level("a", CELL, 6),),
        prior_levels=("a",),
        normalise=Normalise((0, 0, 0), (1, 1, 1), bgr=False),
        digest="",
        weights="made up",
        multiple_of=CELL,
        debias=debias,
        text=TextRecipe(Voice(), 77, "none", ()),
        text_params={},
        folder=Path(),
    )


def settings(*, grid_stride=CELL, **changes) -> PriorSettings:
    text = TextSettings(
        templates=("a photo of a {name}", "{name}"), backgrounds=("green", "blue")
    )
    return PriorSettings(
        temperature=0.05, grid_stride=grid_stride, text=text, **changes
    )


METHOD = prior.Prior(backbone(), settings())
RED = METHOD.embed_text(["red"])


def picture(rng, *colours):
    """Green and blue noise with a square of each colour; their masks [c h w]."""
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    image[..., 1:] = rng.random((SIZE, SIZE, 2))
    masks = np.zeros((len(colours), SIZE, SIZE), np.float32)
    for i, colour in enumerate(colours):
        # Side by side, so that one never hides another.
        room = 4 // len(colours)
        y, x = rng.integers(0, 4), 4 * i + rng.integers(0, room)
        side = CELL * 4 // len(colours)
        masks[i, CELL * y : CELL * y + 16, CELL * x : CELL * x + side] = 1
        image[masks[i] > 0] = colour
    return image, masks


def red_squares(shots=2, *, text=False, visual=True, seed=0, order=None) -> Episode:
    """One episode: a red square in the query and in each shot; its word if asked.

    visual: False makes the shots padding; order: which of them are there.
    """
    rng = np.random.default_rng(seed)
    red = (0.9, 0.1, 0.1)
    query, target = picture(rng, red)
    pairs = [picture(rng, red) for _ in range(shots)]
    pairs = pairs if order is None else [pairs[i] for i in order]
    shape = (1, 1, len(pairs), SIZE, SIZE)
    case = episodes_made.episode_of(
        query[None],
        target[None],
        np.array([p for p, _ in pairs], np.float32).reshape(*shape, 3),
        np.array([m for _, m in pairs], np.float32).reshape(shape),
    )
    case = episodes_made.changed(case, valid=case.support.valid & visual)
    return with_text(case) if text else case


def with_text(case: Episode, valid=True) -> Episode:
    """The episode with the word "red" for every way."""
    ways = case.support.text_valid.shape
    text = jnp.broadcast_to(jnp.asarray(RED[None]), (*ways, RED.shape[-1]))
    return episodes_made.changed(case, text=text, text_valid=jnp.full(ways, valid))


def cells(mask) -> np.ndarray:
    """Which cells [g g] a mask [h w] fills by more than half."""
    return np.asarray(mask).reshape(GRID, CELL, GRID, CELL).mean((1, 3)) > 0.5
