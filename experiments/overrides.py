"""Configs that programs change on their command line."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from typing import Any


def changes_of(texts: Iterable[str]) -> dict[str, Any]:
    """Changes of a config from KEY=VALUE, values as JSON."""
    parts = (text.partition("=") for text in texts)
    return {key: json.loads(value) for key, _, value in parts}


def config_of(
    named: str,
    changes: dict[str, Any],
    *,
    fold: int | None = None,
    seed: int | None = None,
) -> Any:
    """The config FILE[:FOLD] with another fold or seed (None: its own), dotted changes.

    Raises:
      SystemExit: if a change names no setting.
    """
    path, _, own = named.partition(":")
    fold = str(fold) if fold is not None else own or None
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = module.get_config() if fold is None else module.get_config(fold)
    if seed is not None:
        config.seed = seed
    for name, value in changes.items():
        *sections, key = name.split(".")
        part = config
        for section in sections:
            part = part.get(section, {})
        if key not in part:
            raise SystemExit(f"unknown setting {name!r}: see `diffup config`")
        part[key] = type(part[key])(value) if part[key] is not None else value
    return config
