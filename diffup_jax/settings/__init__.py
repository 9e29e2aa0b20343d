"""F5: a config, checked and turned into explicit settings. Configs stop here.

sections.py names every key and its type, checks.py the values no run could use. A key
that is missing, unknown or of the wrong type is refused by name before any work starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any

from diffup_jax import backbones
from diffup_jax.backbones import prompts
from diffup_jax.data import batches, cues, protocols, sources
from diffup_jax.methods import Method
from diffup_jax.methods import diffup as diffup_method
from diffup_jax.methods import prior as prior_method
from diffup_jax.methods import text as text_method
from diffup_jax.settings.checks import implausible
from diffup_jax.settings.sections import Settings, TrainSettings
from diffup_jax.types import DiffUpError, Episode

__all__ = [
    "Settings",
    "TrainSettings",
    "conventions",
    "example_episode",
    "from_config",
    "in_turn",
    "make_backbone",
    "make_method",
    "make_text",
    "open_split",
    "plain",
    "require_text",
]


def from_config(config: Any) -> Settings:
    """Checked settings of a config (an ml_collections ConfigDict or plain mapping).

    Raises:
      DiffUpError: one error that lists every unknown, missing or unfitting key.
    """
    problems: list[str] = []
    settings = _section(Settings, config, "config", problems)
    if not problems:
        problems += implausible(settings)
    if problems:
        raise DiffUpError("The config is not usable:\n  " + "\n  ".join(problems))
    return settings


def plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON values (tuples become lists)."""
    return _listed(dataclasses.asdict(settings))


def in_turn(settings: Settings) -> dict[str, Settings]:
    """Settings of a run over each backbone that its training takes in turn.

    The first, named "", are the run's own; the others differ from them in the backbone,
    its levels and scales, and have the names of config.train.also_over.
    """
    turns = {"": settings}
    for name, other in settings.train.also_over.items():
        turns[name] = dataclasses.replace(
            settings,
            backbone=dataclasses.replace(
                settings.backbone, name=name, weights=other.weights
            ),
            prior=dataclasses.replace(
                settings.prior, levels=other.levels, scales=other.scales
            ),
        )
    return turns


def make_backbone(settings: Settings) -> backbones.Backbone:
    """The frozen backbone of a run.

    Raises:
      DiffUpError: unknown name, missing or unfitting weights, unknown prior level.
    """
    backbone = backbones.get(settings.backbone.name, weights=settings.backbone.weights)
    known = [level.name for level in backbone.levels]
    unknown = [name for name in settings.prior.levels if name not in known]
    if unknown:
        raise DiffUpError(
            f"config.prior.levels names {unknown}, which backbone {backbone.name!r} "
            f"does not have. Its levels: {', '.join(known)}. Use () for its own choice."
        )
    return backbone


def require_text(settings: Settings, cues_asked: Sequence[str]) -> None:
    """Raises DiffUpError if one of the cues is a text and the backbone reads none."""
    name = settings.backbone.name
    if cues.any_text(cues_asked) and backbones.recipe(name).text is None:
        raise DiffUpError(
            f"The cues {', '.join(cues_asked)} hold text, but backbone {name!r} has no "
            "text tower. Use one that has, with --config.backbone.name=NAME (see the "
            "column 'text' of: diffup backbones list), or leave the text out."
        )


def make_text(
    settings: Settings,
    backbone: backbones.Backbone,
    names: Sequence[str],
    *,
    cues_asked: Sequence[str],
) -> text_method.TextTable | None:
    """What a source's class names mean; None if no cue is a text, nothing is run then.

    Raises:
      DiffUpError: see methods.text.text_table.
    """
    if not cues.any_text(cues_asked):
        return None
    options = settings.text
    backgrounds = options.backgrounds
    if len(backgrounds) == 1:
        backgrounds = prompts.background_names(backgrounds[0])
    return text_method.text_table(
        backbone,
        names,
        templates=options.templates,
        backgrounds=backgrounds,
        temperature=options.temperature or None,
    )


def make_method(
    settings: Settings,
    backbone: backbones.Backbone,
    *,
    text: text_method.TextTable | None = None,
) -> Method:
    """The method of a run over a backbone; `text` as `make_text` answers it."""
    prior = prior_method.Prior(backbone, settings.prior, text)
    if settings.method == "prior":
        return prior
    return diffup_method.DiffUp(
        prior=prior,
        decoder=settings.decoder,
        process=settings.process,
        sampler=settings.sampler,
        losses=settings.losses,
    )


def open_split(settings: Settings, split: str, *, shots: int) -> sources.Source:
    """The source of "train" or "test" for episodes of that many shots.

    A protocol with an area rule of its own tests by that rule alone (see draws.py).
    """
    data = settings.data
    training = split == "train"
    protocol = protocols.get(settings.eval.protocol)
    own_rule = protocol.min_pixels or protocol.min_area
    return sources.open_source(
        data.source,
        root=data.root if training else data.test_root or data.root,
        split=data.train_split if training else data.test_split,
        min_area=data.min_area if training or not own_rule else 0.0,
        crowd=data.crowd,
        overlap=data.overlap,
        shots=shots,
    )


def conventions(settings: Settings) -> cues.Conventions:
    """What "box", "scribble" and "point" mean in this run."""
    data = settings.data
    return cues.Conventions(box=data.box, scribble=data.scribble, points=data.points)


def example_episode(settings: Settings) -> Episode:
    """A blank episode of the run's shape, for initialisation."""
    return batches.blank(1, 1, settings.data.image_size)


def _section(kind, values: Any, name: str, problems: list[str]):
    """An instance of the dataclass `kind`; problems are collected, not raised."""
    hints = typing.get_type_hints(kind)
    given = dict(values.items())
    for key in sorted(given.keys() - hints.keys()):
        close = difflib.get_close_matches(key, hints, n=1)
        hint = f"did you mean {name}.{close[0]}?" if close else f"known: {list(hints)}"
        problems.append(f"{name}.{key}: unknown key; {hint}")
    fields = {}
    for key in hints:
        where = f"{name}.{key}"
        if key not in given:
            problems.append(f"{where}: missing (configs/common.py has its default)")
            continue
        of_name = typing.get_origin(hints[key]) is dict
        if of_name or dataclasses.is_dataclass(hints[key]):
            if not hasattr(given[key], "items"):  # a ConfigDict is no Mapping
                problems.append(f"{where}: expected a section, got {given[key]!r}")
                continue
            kind_of, read = hints[key], _section
            if of_name:
                kind_of, read = typing.get_args(hints[key])[1], _sections
            fields[key] = read(kind_of, given[key], where, problems)
        else:
            fields[key] = _value(given[key], hints[key], where, problems)
    return None if problems else kind(**fields)


def _sections(kind, values: Any, name: str, problems: list[str]) -> dict[str, Any]:
    """A section of sections of one kind, each under a name of the user's choice."""
    found = {}
    for key, value in values.items():
        if hasattr(value, "items"):
            found[key] = _section(kind, value, f"{name}.{key}", problems)
        else:
            problems.append(f"{name}.{key}: expected a section, got {value!r}")
    return found


def _value(value: Any, hint: Any, where: str, problems: list[str]):
    """`value` as the type `hint`: numbers, strings, switches and tuples of them."""
    if isinstance(hint, types.GenericAlias):
        inner, *rest = typing.get_args(hint)
        if not isinstance(value, list | tuple):
            value = (value,)
        if inner is str and all(isinstance(item, str) for item in value):
            # "--config.eval.cues=mask,box" arrives as one string.
            parts = [part.strip() for item in value for part in item.split(",")]
            value = tuple(part for part in parts if part)
        if rest != [...] and len(value) != 1 + len(rest):
            problems.append(f"{where}: expected {1 + len(rest)} values, got {value!r}")
        return tuple(_value(item, inner, where, problems) for item in value)
    right = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        str: isinstance(value, str),
    }[hint]
    if not right:
        problems.append(f"{where}: expected {hint.__name__}, got {value!r}")
        return value
    return hint(value)


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    return value
