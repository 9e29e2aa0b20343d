"""F5: the frozen backbones of a training run, which its steps take in turn.

Step i, from 0, is over backbone i mod n of config.backbone and config.train.also_over.
The decoder sees nothing of a backbone but maps, so its parameters, the optimiser's
state and the average are one for all. What that brings: docs/results.md. This project's
choice.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffup_jax import settings as setup
from diffup_jax import training_data
from diffup_jax.backbones import Backbone
from diffup_jax.data.sources import Source
from diffup_jax.methods import diffup, text
from diffup_jax.settings import Settings
from diffup_jax.types import DiffUpError


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """A run over one of its backbones.

    name: as config.train.also_over has it, "" of config.backbone. settings: the run's,
    with that backbone's in place of its own.
    """

    name: str
    settings: Settings
    backbone: Backbone
    text: text.TextTable | None
    method: diffup.DiffUp


def require_text(settings: Settings) -> None:
    """Raises DiffUpError if a training cue is a text and one of the backbones has none.

    Neither data nor weights are opened for it.
    """
    for name, each in setup.in_turn(settings).items():
        with _named(name):
            setup.require_text(each, each.train.cues)


def open_turns(settings: Settings, class_names: Sequence[str]) -> tuple[Turn, ...]:
    """Every backbone of a run, that of config.backbone first.

    Raises:
      DiffUpError: for a backbone, weights, levels or an image size that cannot be used,
        with the name of the backbone that is meant.
    """
    return tuple(
        _opened(name, each, class_names)
        for name, each in setup.in_turn(settings).items()
    )


def facts(turns: Sequence[Turn]) -> dict[str, Any]:
    """The run's settings as a checkpoint keeps them, with the digests of all weights.

    Files of weights may move, so only the digests of further backbones are in it.
    """
    found = setup.plain(turns[0].settings)
    found["backbone"]["digest"] = turns[0].backbone.digest
    for turn in turns[1:]:
        other = found["train"]["also_over"][turn.name]
        del other["weights"]
        other["digest"] = turn.backbone.digest
    return found


def frozen(turn: Turn, mesh: Mesh) -> dict[str, Any]:
    """The parameters of a turn that are not trained, on every device."""
    params = {"backbone": turn.backbone.params}
    return jax.device_put(params, NamedSharding(mesh, P()))


def cached_batches(
    turns: Sequence[Turn],
    frozen: Sequence[dict[str, Any]],
    mesh: Mesh,
    source: Source,
    classes: Sequence[int],
    *,
    workdir: str,
) -> grain.MapDataset:
    """Batches of the caches of all turns, one after the other.

    Raises:
      DiffUpError: see training_data.cached_batches.
    """
    steps, n = turns[0].settings.train.steps, len(turns)
    caches = [
        training_data.cached_batches(
            turn.settings, turn.method, params, mesh, source, classes,
            steps=len(range(place, steps, n)), workdir=workdir,
        )
        for place, (turn, params) in enumerate(zip(turns, frozen, strict=True))
    ]  # fmt: skip
    return grain.MapDataset.range(steps).map(lambda i: caches[i % n][i // n])


def told(turns: Sequence[Turn]) -> Iterator[str]:
    """A line for each backbone."""
    for turn in turns:
        word = "also over" if turn.name else "backbone"
        weights, digest = turn.backbone.weights, turn.backbone.digest
        yield f"{word} {turn.backbone.name}, weights {weights} ({digest})"
        if turn.text is not None:
            yield f"text {turn.text.told(turn.settings.text.templates)}"


def _opened(name: str, settings: Settings, class_names: Sequence[str]) -> Turn:
    with _named(name):
        backbone = setup.make_backbone(settings)
        table = setup.make_text(
            settings, backbone, class_names, cues_asked=settings.train.cues
        )
        method = setup.make_method(settings, backbone, text=table)
        if name:  # the first is tried by initialisation
            params, example = {"backbone": backbone.params}, setup.example_episode
            jax.eval_shape(method.prepare, params, example(settings))
    return Turn(name, settings, backbone, table, method)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of a further backbone say which it is, and what its keys are called."""
    try:
        yield
    except DiffUpError as error:
        if not name:
            raise
        where = f"config.train.also_over.{name}"
        message = str(error)
        for key in ("backbone.weights", "prior.levels"):
            message = message.replace(
                f"config.{key}", f"{where}.{key.partition('.')[2]}"
            )
        raise DiffUpError(f"{where}: {message}") from error
