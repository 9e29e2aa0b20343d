"""F2: what a backbone file says about one of its variants.

A backbone is data first: which module, which levels, how its input is normalised, which
weight files it can read. `backbones.get` turns a recipe and a weights file into a
`Backbone`; nothing else needs to know one network from another.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn

from diffup_jax.types import Level
from diffup_jax.weights import Table


class Normalise(NamedTuple):
    """Input constants: `(image - mean) / std` on an RGB image in [0, 1].

    `mean` and `std` are in the order of the network's own input channels; `bgr` says
    that this order is blue, green, red. A network that was trained on 0..255 minus a
    mean has `std` 1/255.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool


class Recipe(NamedTuple):
    """One variant: `module` maps normalised images [b h w 3] to `types.Features`.

    `levels` are all levels the module returns, `prior_levels` the names a prior is
    built from unless told otherwise, `tables` the known layouts of weight files, and
    `packaged` the weights file shipped beside the code, or "" when there is none.
    """

    module: nn.Module
    levels: tuple[Level, ...]
    prior_levels: tuple[str, ...]
    normalise: Normalise
    tables: tuple[Table, ...]
    packaged: str
