"""F2: the table of all backbones as a person reads it (`diffup backbones list`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from diffup_jax import backbones
from diffup_jax.types import Level


class Entry(NamedTuple):
    """One line: `parameters` is of all towers, `levels` are the ones shown."""

    name: str
    parameters: int
    levels: tuple[Level, ...]
    text: bool
    weights: str
    licence: str


def entries(names: Sequence[str]) -> list[Entry]:
    """Those backbones with all their levels; all backbones, with the levels of their
    priors, when `names` is empty. Raises DiffUpError for an unknown name.
    """
    found = []
    for name in names or backbones.names():
        recipe = backbones.recipe(name)
        shown = (x for x in recipe.levels if names or x.name in recipe.prior_levels)
        found.append(
            Entry(
                name=name,
                parameters=backbones.parameters(name),
                levels=tuple(shown),
                text=recipe.text is not None,
                weights="packaged" if recipe.packaged else recipe.hub or "none",
                licence=recipe.licence or "-",
            )
        )
    return found


def text(entries: Sequence[Entry]) -> str:
    """The table, a head and one line for each entry."""
    head = ("name", "parameters", "text", "licence", "default weights")
    lines = [(*head, "levels: stride x channels")]
    for entry in entries:
        lines.append(
            (
                entry.name,
                f"{entry.parameters / 1e6:.1f} M",
                "yes" if entry.text else "no",
                entry.licence,
                entry.weights,
                _levels_text(entry.levels),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _levels_text(levels: Sequence[Level]) -> str:
    """`stage3.block5: 16 x 1024, stage4.block0 stage4.block1: 32 x 2048`: neighbours of
    one stride and size are told together.
    """
    groups = itertools.groupby(levels, key=lambda x: (x.stride, x.channels))
    return ", ".join(
        f"{' '.join(level.name for level in group)}: {stride} x {channels}"
        for (stride, channels), group in groups
    )
