"""F2: weight files and configs of the plain vision transformers.

Every layout of a weights file names the same modules. A layout here is a dictionary
from our module to theirs, in which "{j}" stands for the block; `table` turns it into
the rows of `weights.convert`, with the transform each kind of array needs. Fused
projections (one array for query, key and value) are a `Part` of their source.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffup_jax.backbones.transformer import ACTIVATIONS, Variant
from diffup_jax.types import DiffUpError
from diffup_jax.weights import Row, Table, oihw, same


class Part(NamedTuple):
    """Piece `index` of `of` equal ones of a fused source, along its first axis."""

    source: str
    index: int
    of: int


def square(config: Mapping[str, Any], key: str) -> int:
    """An integer of a Hugging Face config that may also be written [n, n]."""
    value = config[key]
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        raise DiffUpError(
            f"config.json has {key} {value}; only square ones are supported."
        )
    return sides.pop()


def checked(variant: Variant, config: Mapping[str, Any]) -> Variant:
    """The variant read from `config`, if this room can compute it."""
    size, rest = divmod(variant.width, variant.heads)
    rules = (
        (config["num_channels"] == 3, f"num_channels {config['num_channels']}", "3"),
        (
            variant.activation in ACTIVATIONS,
            f"hidden_act {variant.activation!r}",
            f"one of {', '.join(ACTIVATIONS)}",
        ),
        (
            rest == 0 and (size % 4 == 0 or not variant.rotary),
            f"hidden_size {variant.width} for {variant.heads} heads",
            "a multiple of the heads" + " times 4" * bool(variant.rotary),
        ),
    )
    for holds, found, wanted in rules:
        if not holds:
            raise DiffUpError(f"config.json has {found}; supported: {wanted}.")
    return variant


def table(
    variant: Variant,
    names: Mapping[str, str | Part],
    *,
    layout: str,
    prefix: str,
    ignore: tuple[str, ...],
) -> Table:
    """The table of one file layout.

    `names` maps our modules to theirs without `prefix`; "{j}" is the block's number in
    both. Names of modules that this variant does not have are passed over.
    """
    rows = []
    for ours, leaves in _modules(variant):
        for j in range(variant.depth) if ours.startswith("block{j}") else (0,):
            name, index, of = _part(names[ours])
            source = prefix + name.format(j=j)
            for theirs, leaf, transform in leaves:
                if of > 1:
                    transform = functools.partial(_piece, transform, index, of)
                target = f"params/{ours.format(j=j)}{leaf}"
                rows.append(Row(source + theirs, target, transform))
    return Table(layout, tuple(rows), ignore)


_Leaf = tuple[str, str, Any]


def _modules(variant: Variant) -> Iterator[tuple[str, tuple[_Leaf, ...]]]:
    """Every module with parameters and its leaves: their suffix, ours, transform."""
    bias = (".bias", "/bias", same)
    norm, vector = ((".weight", "/scale", same), bias), (("", "", same),)
    yield "embed/patch", ((".weight", "/kernel", oihw), bias)
    yield "embed/cls", vector
    if variant.registers:
        yield "embed/registers", vector
    if variant.positions:
        yield "embed/positions", vector
    for name in ("norm1", "norm2"):
        yield f"block{{j}}/{name}", norm
    for name in ("query", "key", "value", "out"):
        yield f"block{{j}}/attention/{name}", _linear(name in variant.biases)
    for name in ("gate", "up", "down") if variant.gated else ("up", "down"):
        yield f"block{{j}}/mlp/{name}", _linear("mlp" in variant.biases)
    if variant.layer_scale:
        for name in ("scale1", "scale2"):
            yield f"block{{j}}/{name}", (("", "/scale", same),)
    yield "norm", norm


def _linear(bias: bool) -> tuple[_Leaf, ...]:
    weight = (".weight", "/kernel", np.transpose)
    return (weight, (".bias", "/bias", same)) if bias else (weight,)


def _part(name: str | Part) -> Part:
    return name if isinstance(name, Part) else Part(name, 0, 1)


def _piece(transform, index: int, of: int, array: np.ndarray) -> np.ndarray:
    return transform(np.split(array, of)[index])
