"""F5: a config, checked and turned into explicit settings. Configs stop here.

Every section is a frozen dataclass without defaults (configs/common.py is their one
home). A key that is missing, unknown or of the wrong type is refused by name before any
work starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any

from diffup_jax import backbones
from diffup_jax.data import pipeline, sources
from diffup_jax.data.augment import Augment
from diffup_jax.methods import Method
from diffup_jax.methods import diffup as diffup_method
from diffup_jax.methods import prior as prior_method
from diffup_jax.types import CUES, DiffUpError, Episode
from diffup_jax.uqdd import SIZES

METHODS = ("diffup", "prior")
PROTOCOLS = ("hsnet", "clean")


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """See configs/common.py."""

    name: str
    weights: str


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """See configs/common.py."""

    source: str
    root: str
    test_root: str
    train_split: str
    test_split: str
    fold: int
    image_size: int
    min_area: float
    skip_small_classes: bool
    crowd: str
    val_fraction: float
    workers: int


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """See configs/common.py."""

    steps: int
    batch_size: int
    max_shots: int
    cues: tuple[str, ...]
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    ema_decay: float
    log_every: int
    val_every: int
    val_episodes: int
    checkpoint_every: int
    keep: int
    multi_host: bool


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """See configs/common.py."""

    cues: tuple[str, ...]
    shots: tuple[int, ...]
    episodes: int
    protocol: str
    batch_size: int
    seed: int
    gallery: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """A whole run."""

    seed: int
    method: str
    backbone: BackboneSettings
    data: DataSettings
    augment: Augment
    prior: prior_method.PriorSettings
    decoder: diffup_method.DecoderSettings
    process: diffup_method.ProcessSettings
    sampler: diffup_method.SamplerSettings
    losses: diffup_method.LossSettings
    train: TrainSettings
    eval: EvalSettings


def from_config(config: Any) -> Settings:
    """Checked settings of a config (an ml_collections ConfigDict or plain mapping).

    Raises:
      DiffUpError: one error that lists every unknown, missing or unfitting key.
    """
    problems: list[str] = []
    settings = _section(Settings, config, "config", problems)
    if not problems:
        problems += _implausible(settings)
    if problems:
        raise DiffUpError("The config is not usable:\n  " + "\n  ".join(problems))
    return settings


def plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON values (tuples become lists)."""
    return _listed(dataclasses.asdict(settings))


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


def make_method(settings: Settings, backbone: backbones.Backbone) -> Method:
    """The method of a run over a backbone."""
    prior = prior_method.Prior(backbone, settings.prior)
    if settings.method == "prior":
        return prior
    return diffup_method.DiffUp(
        prior=prior,
        decoder=settings.decoder,
        process=settings.process,
        sampler=settings.sampler,
        losses=settings.losses,
    )


def open_split(settings: Settings, split: str) -> sources.Source:
    """The source of "train" or "test"."""
    data = settings.data
    root = data.root if split == "train" else data.test_root or data.root
    return sources.open_source(
        data.source,
        root=root,
        split=data.train_split if split == "train" else data.test_split,
        min_area=data.min_area,
        crowd=data.crowd,
    )


def example_episode(settings: Settings) -> Episode:
    """A blank episode of the run's shape, for initialisation."""
    return pipeline.blank(1, 1, settings.data.image_size)


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
        if dataclasses.is_dataclass(hints[key]):
            if not hasattr(given[key], "items"):  # a ConfigDict is no Mapping
                problems.append(f"{where}: expected a section, got {given[key]!r}")
                continue
            fields[key] = _section(hints[key], given[key], where, problems)
        else:
            fields[key] = _value(given[key], hints[key], where, problems)
    return None if problems else kind(**fields)


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


def _implausible(settings: Settings) -> list[str]:
    """Values of the right type that no run could use."""
    data, train, evaluation = settings.data, settings.train, settings.eval
    checks = [
        (settings.method in METHODS, "config.method", settings.method, METHODS),
        (
            settings.decoder.size in SIZES,
            "config.decoder.size",
            settings.decoder.size,
            tuple(SIZES),
        ),
        (
            evaluation.protocol in PROTOCOLS,
            "config.eval.protocol",
            evaluation.protocol,
            PROTOCOLS,
        ),
        (
            0 < data.val_fraction < 1,
            "config.data.val_fraction",
            data.val_fraction,
            "a share between 0 and 1",
        ),
        (
            0 <= train.ema_decay < 1,
            "config.train.ema_decay",
            train.ema_decay,
            "a number in [0, 1)",
        ),
        (
            0 <= data.min_area < 1,
            "config.data.min_area",
            data.min_area,
            "a share of the image in [0, 1)",
        ),
        (
            bool(evaluation.shots) and min(evaluation.shots) >= 1,
            "config.eval.shots",
            evaluation.shots,
            "numbers of at least 1",
        ),
    ]
    positive = {
        "train.steps": train.steps,
        "train.batch_size": train.batch_size,
        "train.max_shots": train.max_shots,
        "train.log_every": train.log_every,
        "train.val_every": train.val_every,
        "train.val_episodes": train.val_episodes,
        "train.checkpoint_every": train.checkpoint_every,
        "train.keep": train.keep,
        "sampler.steps": settings.sampler.steps,
        "sampler.samples": settings.sampler.samples,
        "eval.episodes": evaluation.episodes,
        "eval.batch_size": evaluation.batch_size,
        "decoder.mask_stride": settings.decoder.mask_stride,
        "prior.grid_stride": settings.prior.grid_stride,
        "prior.affinity_stride": settings.prior.affinity_stride,
        "data.image_size": data.image_size,
    }
    checks += [
        (value >= 1, f"config.{name}", value, "at least 1")
        for name, value in positive.items()
    ]
    above_zero = {
        "train.learning_rate": train.learning_rate,
        "train.clip_norm": train.clip_norm,
        "process.signal_scale": settings.process.signal_scale,
        "losses.time_bias": settings.losses.time_bias,
        "prior.temperature": settings.prior.temperature,
        "prior.fusion_temperature": settings.prior.fusion_temperature,
    }
    checks += [
        (value > 0, f"config.{name}", value, "more than 0")
        for name, value in above_zero.items()
    ]
    not_negative = {
        "train.warmup_steps": train.warmup_steps,
        "train.weight_decay": train.weight_decay,
        "process.condition_strength": settings.process.condition_strength,
        "eval.gallery": evaluation.gallery,
        "data.workers": data.workers,
    }
    checks += [
        (value >= 0, f"config.{name}", value, "at least 0")
        for name, value in not_negative.items()
    ]
    shares = {
        "sampler.eta": settings.sampler.eta,
        "augment.flip": settings.augment.flip,
        "augment.grey": settings.augment.grey,
        **{
            f"losses.{name}": getattr(settings.losses, name)
            for name in ("pure_noise", "from_own", "from_prior")
            + ("self_conditioning", "prior_dropout")
        },
    }
    checks += [
        (0 <= value <= 1, f"config.{name}", value, "a number in [0, 1]")
        for name, value in shares.items()
    ]
    # Text cues need a backbone with a text tower; none of those known has one.
    visual = CUES[:4]
    for name, cues in (("train", train.cues), ("eval", evaluation.cues)):
        checks.append(
            (
                bool(cues) and set(cues) <= set(visual),
                f"config.{name}.cues",
                cues,
                f"some of {', '.join(visual)}",
            )
        )
    return [
        f"{name}: got {value!r}, expected {expected}"
        for fine, name, value, expected in checks
        if not fine
    ]


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    return value
