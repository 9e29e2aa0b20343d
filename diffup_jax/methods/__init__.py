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

# Saved with checkpoints and prior caches. Raised by whoever changes what priors are, or
# what parameters of the same names and shapes answer, so that neither is ever used as
# another one than it was made for.
# 2: the stem sees sqrt(abar) x_t; the prior's variance holds what priors leave open.
# 3: process.diffusion; without it there is no noise and no DQM.
# 4: what scribbles and points leave unsaid counts as background.
# 5: extent tells how much scribbles and points touch.
REVISION = 5


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
