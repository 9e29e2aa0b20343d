"""F4: methods. A method turns an episode into a probability map.

    init(key, episode) -> params                        a dict of named parts
    loss(params, keys, episode) -> (scalar, metrics)    per-device mean, no collectives
    predict(params, keys, episode) -> (prob [b n h w], named maps [b n h w])
                                                        "threshold" among them is [b n]
    trainable: names of the parts of `params` that the optimiser updates

`keys` holds one random key per episode, so that what an episode draws depends neither
on its batch nor on the number of devices. Loop, evaluator, viewer and exporter know
nothing else of a method.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array

from diffup_jax.types import Episode


@runtime_checkable
class Method(Protocol):
    """The contract above."""

    trainable: tuple[str, ...]

    def init(self, key: Array, episode: Episode) -> dict[str, Any]: ...

    def loss(
        self, params: dict[str, Any], keys: Array, episode: Episode
    ) -> tuple[Array, dict[str, Array]]: ...

    def predict(
        self, params: dict[str, Any], keys: Array, episode: Episode
    ) -> tuple[Array, dict[str, Array]]: ...
