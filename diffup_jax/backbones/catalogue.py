"""F2: the table of all backbones as a person reads it (`diffup backbones list`).

Parameters are counted from the modules' shapes. That takes half a second for each
network, so the counts are kept in the store of converted weights, under the hash of the
code they were counted from.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from diffup_jax import backbones
from diffup_jax.backbones import stores
from diffup_jax.types import Level


class Entry(NamedTuple):
    """One line: `parameters` counts both towers, `levels` are the ones shown."""

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
    counts = _counts(names or backbones.names())
    found = []
    for name in names or backbones.names():
        recipe = backbones.recipe(name)
        shown = (x for x in recipe.levels if names or x.name in recipe.prior_levels)
        found.append(
            Entry(
                name=name,
                parameters=counts[name],
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
                levels_text(entry.levels),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def levels_text(levels: Sequence[Level]) -> str:
    """`stage3.block5: 16 x 1024, stage4.block0 stage4.block1: 32 x 2048`: neighbours of
    one stride and size are told together.
    """
    groups = itertools.groupby(levels, key=lambda x: (x.stride, x.channels))
    return ", ".join(
        f"{' '.join(level.name for level in group)}: {stride} x {channels}"
        for (stride, channels), group in groups
    )


def count(name: str) -> int:
    """Trained parameters of all towers; norm statistics are none."""
    shapes = backbones.shapes(backbones.recipe(name))
    leaves = jax.tree.leaves([part["params"] for part in shapes.values()])
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)


def _counts(names: Sequence[str]) -> dict[str, int]:
    folder = stores.cache_folder()
    file = folder / f"counts-{stores.converter('')}.json"
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    new = {name: count(name) for name in names if name not in known}
    if new:
        known |= new
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(known), encoding="utf-8")
            os.replace(partial, file)
            for old in folder.glob("counts-*.json"):
                if old != file:
                    old.unlink(missing_ok=True)
        except OSError:
            pass  # counted again next time
    return known
