"""F7: the frozen backbones of a training run, which its steps take in turn.

Step i, from 0, is over backbone i mod n of config.backbone and config.train.also_over.
A decoder sees nothing of a backbone but maps, so its parameters, the optimiser's state
and the average are one for all. What that brings: docs/log/results.md. This project's
choice.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import msgspec
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffup_jax import config as configs
from diffup_jax import prior_cache, training_data
from diffup_jax.backbones import Backbone
from diffup_jax.config import Settings
from diffup_jax.data.batches import Texts, Training
from diffup_jax.data.sources import Source
from diffup_jax.methods import Method
from diffup_jax.types import DiffUpError


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """A run over one of its backbones.

    name: as config.train.also_over has it, "" of config.backbone. settings: the run's,
    with that backbone's in place of its own. backbone: None of a method without one.
    texts: embeddings of the source's class names, None if no cue is a text.
    """

    name: str
    settings: Settings
    backbone: Backbone | None
    method: Method
    texts: Texts | None


def require_text(settings: Settings) -> None:
    """Raises DiffUpError if a training cue is a text and one of the backbones has none.

    Neither data nor weights are opened for it.
    """
    for name, each in _in_turn(settings).items():
        with _named(name):
            configs.require_text(each, each.train.cues)


def open_turns(settings: Settings, source: Source) -> tuple[Turn, ...]:
    """Every backbone of a run, that of config.backbone first.

    Raises:
      DiffUpError: for a backbone, weights, levels or an image size that cannot be used,
        with the name of the backbone that is meant.
    """
    return tuple(
        _opened(name, each, source) for name, each in _in_turn(settings).items()
    )


def digests(turns: Sequence[Turn]) -> dict[str, str]:
    """Of the weights of every backbone, by its name in the config."""
    return {
        turn.name or "backbone": turn.backbone.digest
        for turn in turns
        if turn.backbone is not None
    }


def recipe_of(
    turns: Sequence[Turn], source: Source, classes: Sequence[int]
) -> Training:
    """What the run's training episodes are made of, every backbone's texts in turn."""
    texts = tuple(turn.texts for turn in turns if turn.texts is not None)
    return training_data.recipe_of(turns[0].settings, source, classes, texts=texts)


def frozen(turn: Turn, mesh: Mesh) -> dict[str, Any]:
    """The parameters of a turn that are not trained, on every device."""
    params = {"backbone": turn.backbone.params} if turn.backbone else {}
    return jax.device_put(params, NamedSharding(mesh, P()))


def cached_batches(
    turns: Sequence[Turn],
    frozen: Sequence[dict[str, Any]],
    mesh: Mesh,
    recipe: Training,
    *,
    workdir: str,
) -> grain.MapDataset:
    """Batches of the caches of all turns, one after the other.

    Raises:
      DiffUpError: for a method that prepares nothing, and see training_data.open_cache.
    """
    options, n = turns[0].settings.train, len(turns)
    parts = []
    for at, (turn, params) in enumerate(zip(turns, frozen, strict=True)):
        if not hasattr(turn.method, "loss_prepared"):
            raise DiffUpError(
                f"config.train.prior_cache={options.prior_cache}, but method "
                f"{turn.method.name!r} keeps nothing; expected 0."
            )
        steps = len(range(at, options.steps, n))
        texts = () if turn.texts is None else (turn.texts,)
        cache = training_data.open_cache(
            turn.settings,
            turn.method,
            turn.backbone.digest if turn.backbone else "",
            params,
            mesh,
            dataclasses.replace(recipe, texts=texts),
            # No more than the run looks at.
            episodes=min(options.prior_cache, steps * options.batch_size),
            folder=options.prior_cache_dir or f"{workdir}/prior_cache",
        )
        parts.append(
            prior_cache.batches(
                cache,
                steps=steps,
                batch_size=options.batch_size,
                seed=turn.settings.seed,
            )
        )
    return grain.MapDataset.range(options.steps).map(lambda i: parts[i % n][i // n])


def in_words(turns: Sequence[Turn]) -> Iterator[str]:
    """A line for each backbone."""
    for turn in turns:
        if turn.backbone is not None:
            word = "also over" if turn.name else "backbone"
            weights, digest = turn.backbone.weights, turn.backbone.digest
            yield f"{word} {turn.backbone.name}, weights {weights} ({digest})"
        if turn.texts is not None:
            yield f"text {turn.method.text_in_words()}"


def _in_turn(settings: Settings) -> dict[str, Settings]:
    """Settings of a run over each backbone that its training takes in turn.

    The first, named "", are the run's own; the others differ from them in the backbone,
    its levels and scales, and have the names of config.train.also_over. Raises
    DiffUpError for further backbones of a method without priors.
    """
    if settings.train.also_over and not hasattr(settings, "prior"):
        raise DiffUpError(
            f"config.train.also_over names {sorted(settings.train.also_over)}, but "
            f"method {settings.method!r} has no priors that backbones could differ in; "
            "leave it out."
        )
    turns = {"": settings}
    for name, other in settings.train.also_over.items():
        replace = msgspec.structs.replace
        turns[name] = replace(
            settings,
            backbone=replace(settings.backbone, name=name, weights=other.weights),
            prior=replace(settings.prior, levels=other.levels, scales=other.scales),
        )
    return turns


def _opened(name: str, settings: Settings, source: Source) -> Turn:
    with _named(name):
        method, backbone = configs.open_method(settings)
        texts = training_data.class_texts(method, source, settings.train.cues)
        if name:  # the first is tried by initialisation
            params = {"backbone": backbone.params}
            one = training_data.example(settings)
            jax.eval_shape(method.prepare, params, one)
    return Turn(name, settings, backbone, method, texts)


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
