"""Sentences about drawn scenes: what an embedded text tower learns its words from.

A name is put into the templates of `prompts`. Names are those of whole categories
("striped red star"), of one word of them ("star", "striped thing", "red thing"), of
scenery, for the background, and of several objects of a scene ("striped red star and a
plain blue ring"). The word list is every word of all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from demo.scene_categories import COLOURS, SHAPES, TEXTURES, categories
from diffup_jax.backbones import prompts

WHOLE = tuple(one.name for one in categories("pretraining"))
# One tuple of names for each attribute, in the order of `scene_categories`.
PARTS = (
    SHAPES,
    tuple(f"{word} thing" for word in TEXTURES),
    tuple(f"{word} thing" for word in COLOURS),
)
# An unknown word is scenery too: a prompt list may hold words that are not in ours.
_SCENERY = (*prompts.BACKGROUNDS["default"], *("unknownword",) * 5)
NAME_TOKENS = 12  # of the longest sentence about one name, with two marks
SCENE_TOKENS = 24  # of the longest one about a scene
_NAMED = 3  # objects in a sentence about a scene, at most
_SMALLEST = 0.004  # of the image: smaller objects are not named


def words() -> tuple[str, ...]:
    """The word list, in alphabetical order."""
    everything = (*SHAPES, *TEXTURES, *COLOURS, "thing", "and")
    everything += prompts.MORE_TEMPLATES + prompts.BACKGROUNDS["default"]
    text = " ".join(everything).replace("{name}", "").lower()
    return tuple(sorted(set(re.findall(r"[a-z0-9]+", text))))


def sentences(generator: np.random.Generator, names: Sequence[str]) -> list[str]:
    """Each name in a template drawn at random."""
    chosen = generator.integers(len(prompts.MORE_TEMPLATES), size=len(names))
    return [
        prompts.MORE_TEMPLATES[which].replace("{name}", name)
        for which, name in zip(chosen, names, strict=True)
    ]


def scenery(generator: np.random.Generator, count: int) -> list[str]:
    """`count` names for background."""
    return [str(name) for name in generator.choice(_SCENERY, count)]


def scene_name(labels: Int[np.ndarray, "h w"]) -> str:
    """The largest objects of a label map (1 + index into WHOLE; 0 = background), as
    one name; "" when there is no object.
    """
    values, counts = np.unique(labels, return_counts=True)
    seen = [
        (count, value)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        if value and count >= _SMALLEST * labels.size
    ]
    chosen = sorted(seen, reverse=True)[:_NAMED]
    return " and a ".join(WHOLE[value - 1] for _, value in chosen)
