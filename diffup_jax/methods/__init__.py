"""F4: methods. A method encodes examples into a memory and answers queries by it.

    init(key, episode) -> params                       a dict of named parts: those in
                                                       `trainable`, and "backbone"
    encode(params, support) -> memory                  a pytree; of the support alone
    predict(params, keys, query, memory) -> Prediction
    loss(params, keys, episode) -> (scalar, metrics)   per-device mean, no collectives

`keys` holds one random key per episode, so that what an episode draws depends neither
on its batch nor on the number of devices. A memory may be kept and asked for as many
queries as one likes. Facts of the class:

    name       what config.method calls it
    version    saved with checkpoints and prior caches; raised when parameters of the
               same names and shapes, or kept priors, would mean something else
    trainable  names of the parts of `params` that the optimiser updates; () = none
    uses_backbone, reads_text
    SECTIONS   name -> type of the config sections that are the method's own
    make(settings, backbone)  the method of a run; backbone is None if it uses none

Optional, each found by its name:

    prepare(params, episode) -> prepared          what a prior cache may keep of
    loss_prepared(params, keys, prepared)         training episodes, and `loss` of it
    embed_text(phrases) -> [n d] float32          `Support.text`; where reads_text
    observe(params, query, memory) -> observed    what of an answer depends on nothing
    answer(params, keys, observed, strokes)       trained or said, and the Prediction
                                                  from it; types.Strokes correct it
    in_words()                                    how it answers, for a report

Training, evaluation, report, gallery and `diffup_jax.load` know nothing else of one. A
new method is a file here with `METHOD`, and a config.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Array

from diffup_jax.types import DiffUpError, Episode, Prediction, Query, Support


@runtime_checkable
class Method(Protocol):
    """The contract above."""

    name: ClassVar[str]
    version: ClassVar[int]
    trainable: ClassVar[tuple[str, ...]]
    uses_backbone: ClassVar[bool]
    reads_text: ClassVar[bool]
    SECTIONS: ClassVar[Mapping[str, type]]

    @classmethod
    def make(cls, settings: Any, backbone: Any) -> Method: ...

    def init(self, key: Array, episode: Episode) -> dict[str, Any]: ...

    def encode(self, params: dict[str, Any], support: Support) -> Any: ...

    def predict(
        self, params: dict[str, Any], keys: Array, query: Query, memory: Any
    ) -> Prediction: ...

    def loss(
        self, params: dict[str, Any], keys: Array, episode: Episode
    ) -> tuple[Array, dict[str, Array]]: ...


# Methods that live elsewhere: `register` adds them.
_REGISTERED: dict[str, type] = {}


def register(method: type) -> type:
    """Makes a method of another package known under its name; answers it.

    Call it where the config is made. A name in a checkpoint alone imports nothing.
    """
    _REGISTERED[method.name] = method
    return method


def names() -> tuple[str, ...]:
    """Every name `get` knows: what lies in this folder, and what was registered."""
    own = {module.name for module in pkgutil.iter_modules(__path__)}
    return tuple(sorted(own | _REGISTERED.keys()))


def get(name: str) -> type:
    """The class of a method. Raises DiffUpError for an unknown name."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in names():
        return importlib.import_module(f"{__name__}.{name}").METHOD
    raise DiffUpError(
        f"unknown method {name!r}; known: {', '.join(names())}. Choose one with "
        "--config.method=NAME; a method of your own is known once the config file "
        "that registers it is named with --config."
    )


def asked(method: Method, params: dict, keys: Array, episode: Episode) -> Prediction:
    """The answer to an episode whose examples nobody asks again."""
    memory = method.encode(params, episode.support)
    return method.predict(params, keys, episode.query, memory)


def in_words(method: Method) -> str:
    """How a method answers, for a report; "" if it has no words for it."""
    told = getattr(method, "in_words", None)
    return told() if told else ""
