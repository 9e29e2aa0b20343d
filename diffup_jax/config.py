"""F5: a run's settings: every section, typed; read from a config, compared with a run.

The sections `backbone`, `train` and `eval` are declared here, `data` and `augment` in
the data room, a method's own in the method's file. Their declarations are the one home
of every default, range and role; a config file (configs/) changes what it must. Configs
stop here: a key that is unknown or a value that no run could use is refused by name
before any work starts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from diffup_jax import backbones, methods, sections
from diffup_jax.backbones import Backbone
from diffup_jax.data import cues, episodes, protocols
from diffup_jax.data.augment import Augment
from diffup_jax.data.options import DataSettings
from diffup_jax.methods.prior.options import PriorSettings, Scales
from diffup_jax.sections import (
    FREE,
    KEPT,
    MODEL,
    Above,
    AtLeast,
    OneOf,
    Role,
    Section,
)
from diffup_jax.types import CUES, DiffUpError

_Count = Annotated[int, AtLeast(1), FREE]


class BackboneSettings(Section):
    """The frozen network.

    name: see `diffup backbones list`. weights: a file, a folder, a Hugging Face id,
      "random" by name, or "": the weights packaged with it or its default id.
    """

    name: str = "resnet50"
    # Files may move; the digest of what is in them is compared.
    weights: Annotated[str, FREE] = ""


class Over(Section):
    """A further frozen backbone of a training; levels and scales as in `prior`."""

    weights: Annotated[str, FREE] = ""
    levels: tuple[str, ...] = ()
    scales: Scales = (1.0,)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from PriorSettings(levels=self.levels, scales=self.scales).problems()


class TrainSettings(Section):
    """How a method is trained.

    batch_size: episodes of a step, of all devices together. max_shots: an episode has 1
      to so many; ways: its classes. cues: kinds its shots have; with "text" among them
      an episode has the class name alone as often as any other cue, and beside its
      shots in half of the others. fewest_points: a point cue has this many to
      data.points pixels, few as often as many (log-uniform).
    learning_rate .. ema_decay: AdamW with warm-up and cosine decay, clipping by global
      norm, and the average of the parameters that evaluation uses.
    log_every, val_every, checkpoint_every: in steps; val_episodes: of a validation;
      keep: the newest checkpoints.
    val_classes: so many base classes are left out of the training, and validation is on
      them: a method that only gets better on classes it knows shows there. 0 =
      validation on the classes that train, none is lost.
    prior_cache: episodes whose priors are made once, kept on disk and walked again and
      again (docs/method.md), in prior_cache_dir, "" = WORKDIR/prior_cache; 0 = every
      episode is new.
    also_over: further backbones by name, which the steps take in turn with
      config.backbone so that a swap costs less.
    multi_host: True on clusters of several hosts: jax.distributed.initialize().
    """

    steps: Annotated[int, AtLeast(1)] = 60_000
    batch_size: Annotated[int, AtLeast(1)] = 32
    max_shots: Annotated[int, AtLeast(1), KEPT] = 5
    ways: Annotated[int, Meta(ge=1, le=episodes.MOST_WAYS), KEPT] = 1
    cues: Annotated[tuple[str, ...], Meta(min_length=1), OneOf(*CUES), KEPT] = (
        "mask",
        "box",
        "scribble",
        "point",
    )
    fewest_points: Annotated[int, AtLeast(1), KEPT] = 1
    learning_rate: Annotated[float, Above(0)] = 5e-4
    warmup_steps: Annotated[int, AtLeast(0)] = 500
    weight_decay: Annotated[float, AtLeast(0)] = 1e-2
    clip_norm: Annotated[float, Above(0)] = 1.0
    ema_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.9995
    log_every: _Count = 50
    val_every: _Count = 2000
    val_episodes: _Count = 200
    val_classes: Annotated[int, AtLeast(0)] = 0
    checkpoint_every: _Count = 1000
    keep: _Count = 3
    prior_cache: Annotated[int, AtLeast(0)] = 0
    prior_cache_dir: Annotated[str, FREE] = ""
    also_over: dict[str, Over] = {}
    multi_host: Annotated[bool, FREE] = False

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.prior_cache and self.multi_host:
            yield (
                "prior_cache",
                "0 with train.multi_host: a cache is made and read by one host",
            )
        least = 1 + len(self.also_over)
        if self.steps < least:
            yield (
                "steps",
                (
                    f"at least {least}, one for each backbone of train.also_over and "
                    "config.backbone"
                ),
            )


class EvalSettings(Section):
    """What is scored, and how.

    cues: of the shots; several kinds in one episode: "mask+scribble", shot i takes kind
      i mod 2; "text" alone is zero-shot, "mask+text" has it beside the shots.
    shots: 0 is for text alone, which is scored with it whether listed or not. ways:
      classes of an episode; protocols denet and clean know several.
    episodes: 0 = the published number of the benchmark and protocol. episodes_file: a
      list written by data_prep.freeze_episodes; "" = drawn now. protocol: a row of
      data/protocols.py. gallery: episodes shown in gallery.html; 0 = no gallery.
    """

    cues: Annotated[tuple[str, ...], Meta(min_length=1), FREE] = (
        "mask",
        "box",
        "scribble",
        "point",
    )
    shots: Annotated[
        tuple[Annotated[int, AtLeast(0)], ...], Meta(min_length=1), FREE
    ] = (1, 5)
    ways: _Count = 1
    episodes: Annotated[int, AtLeast(0), FREE] = 0
    episodes_file: Annotated[str, FREE] = ""
    protocol: Annotated[str, OneOf(*protocols.PROTOCOLS), FREE] = "hsnet"
    batch_size: _Count = 8
    seed: Annotated[int, FREE] = 0
    gallery: Annotated[int, AtLeast(0), FREE] = 24

    def problems(self) -> Iterator[tuple[str, str]]:
        protocol = protocols.PROTOCOLS[self.protocol]
        if self.ways > protocol.most_ways:
            yield (
                "ways",
                f"1 to {protocol.most_ways}, the ways of protocol {protocol.name}",
            )
        least = min((shots for shots in self.shots if shots), default=0)
        for cue in self.cues:
            parts = cue.split("+")
            if not set(parts) <= set(CUES) or len(set(parts)) < len(parts):
                yield (
                    "cues",
                    f"for {cue!r} one of {', '.join(CUES)}, or several joined by '+'",
                )
            elif len(cues.marking(parts)) > least:
                yield (
                    "cues",
                    f"for {cue!r} a shot for each of its kinds; eval.shots has {least}",
                )


class Settings(Section):
    """A whole run: these sections, and the method's own (see `settings_type`)."""

    seed: int = 0
    method: Annotated[str, MODEL] = "diffup"
    backbone: BackboneSettings = BackboneSettings()
    data: DataSettings = DataSettings()
    augment: Augment = Augment()
    train: TrainSettings = TrainSettings()
    eval: EvalSettings = EvalSettings()


@functools.cache
def settings_type(method: str) -> type[Settings]:
    """Settings with the sections of a method. Raises DiffUpError for an unknown one."""
    own = methods.get(method).SECTIONS
    return msgspec.defstruct(
        "Settings",
        [(name, kind, kind()) for name, kind in own.items()],
        bases=(Settings,),
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
        module=__name__,
    )


def from_config(config: Any) -> Settings:
    """Checked settings of a config (an ml_collections ConfigDict or plain mapping).

    What it leaves out has its default; sections of other methods are not read.

    Raises:
      DiffUpError: one error that lists every unknown or unfitting key.
    """
    values = dict(config.items())
    kind = settings_type(values.get("method", "diffup"))
    others = {name for each in methods.names() for name in methods.get(each).SECTIONS}
    for name in others - set(kind.__struct_fields__):
        values.pop(name, None)
    problems: list[str] = []
    settings = sections.read(kind, values, "config", problems)
    if problems:
        raise DiffUpError("The config is not usable:\n  " + "\n  ".join(problems))
    return settings


def values(settings: Section) -> dict[str, Any]:
    """Every section as a dictionary, tuples as tuples: what a config holds."""

    def of(value):
        if isinstance(value, Section):
            return values(value)
        if isinstance(value, dict):
            return {name: of(part) for name, part in value.items()}
        return value

    names = settings.__struct_fields__
    return {name: of(getattr(settings, name)) for name in names}


def defaults(method: str) -> dict[str, Any]:
    """`values` of a method's run that changes nothing."""
    return values(settings_type(method)(method=method))


def open_method(settings: Settings) -> tuple[methods.Method, Backbone | None]:
    """The method of a run over its backbone.

    Raises:
      DiffUpError: for a backbone, weights or levels that cannot be used.
    """
    kind, backbone = methods.get(settings.method), None
    if kind.uses_backbone:
        options = settings.backbone
        backbone = backbones.get(options.name, weights=options.weights)
    return kind.make(settings, backbone), backbone


def require_text(settings: Settings, asked: Sequence[str]) -> None:
    """Raises DiffUpError if one of the cues is a text and the method reads none.

    Neither data nor weights are opened for it.
    """
    if not cues.any_text(asked):
        return
    method, name = methods.get(settings.method), settings.backbone.name
    told = f"The cues {', '.join(asked)} hold text, but "
    if not method.reads_text:
        raise DiffUpError(f"{told}method {method.name!r} reads none. Leave it out.")
    if method.uses_backbone and backbones.recipe(name).text is None:
        raise DiffUpError(
            f"{told}backbone {name!r} has no text tower. Use one that has, with "
            "--config.backbone.name=NAME (see the column 'text' of: diffup backbones "
            "list), or leave the text out."
        )


def check_same_run(
    settings: Settings, saved: dict[str, Any], facts: dict[str, Any], workdir: str
) -> None:
    """A checkpoint is continued only by the config and the weights that made it.

    Args:
      saved: what `run_facts` answered when the run began.
      facts: what it answers now.

    Raises:
      DiffUpError: with every value that changed and alters a number of the training.
    """
    then = saved["identity"]
    now = facts["identity"]
    # What no cue reads alters nothing.
    free = () if cues.any_text(settings.train.cues) else _TEXT
    changed = [
        f"config.{key}: was {then.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key) and not key.startswith(free)
    ]
    if changed:
        raise DiffUpError(
            f"{workdir!r} holds a run with another config:\n  "
            + "\n  ".join(changed)
            + "\nContinue it with its own values, or choose another --workdir."
        )


def model_changes(now: Settings, then: dict[str, Any]) -> list[str]:
    """What of a trained model's config differs, one sentence a field.

    then: the config it was trained with, as JSON values.
    """
    before = sections.flat(then)
    return [
        f"config.{name}: was {before.get(name)!r}, now {value!r}"
        for name, value in sections.fields_with(now, Role.MODEL).items()
        if before.get(name) != value
    ]


def check_version(run: dict[str, Any], told: str) -> None:
    """Raises DiffUpError if another version of the method made what `told` names.

    run: as `run_facts` answers it.
    """
    method = methods.get(run["config"]["method"])
    if run["version"] != method.version:
        raise DiffUpError(
            f"{told} was written by version {run['version']} of the method "
            f"{method.name}, this is version {method.version}: its parameters would "
            "answer otherwise than they were trained to. Train again, or use the "
            "diffup-jax that trained it."
        )


# Fields that only text cues read.
_TEXT = ("prior.text.",)


def run_facts(settings: Settings, digests: dict[str, str]) -> dict[str, Any]:
    """What a checkpoint keeps of its run: the whole config, and its identity.

    digests: of the weights of every backbone, by its name in the run.
    """
    identity = sections.fields_with(settings, Role.RUN)
    identity |= {f"digest of {name}": digest for name, digest in digests.items()}
    return {
        "config": sections.plain(settings),
        "identity": identity,
        "version": methods.get(settings.method).version,
    }
