"""F2: frozen feature extractors behind one door, `get(name, weights=...)`.

A backbone is data (a recipe: module, levels, normalisation, file layouts) plus weights.
Its answer is `types.Features`: named levels of known stride and channels. It is frozen:
gradients stop at its outputs. New networks are a new file here with `VARIANTS` and
`recipe(name)`, and one more entry in the tuple of files below.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.resources
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from diffup_jax import weights as weight_files
from diffup_jax.backbones import resnet, squeezenet
from diffup_jax.backbones.recipe import Normalise
from diffup_jax.types import DiffUpError, Features, Level

_FILES = (resnet, squeezenet)
# Untrained weights are named by the word alone, so they must be the same every time.
_RANDOM_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A network with its weights.

    `levels` lists every level it answers, in order, `prior_levels` the names used for
    priors unless a config says otherwise; `digest` identifies the weights (16 hex
    digits), `weights` says where they came from: "packaged", "random" or the path.
    """

    name: str
    module: nn.Module
    params: dict[str, Any]
    levels: tuple[Level, ...]
    prior_levels: tuple[str, ...]
    normalise: Normalise
    digest: str
    weights: str
    has_text: bool

    def apply(
        self,
        params: dict[str, Any],
        images: Shaped[Array | np.ndarray, "b h w 3"],
        *,
        normalised: bool,
    ) -> Features:
        """Images to features; pure in `params`, to be called under the caller's jit.

        Images are RGB, uint8 or float in [0, 1]; with `normalised` they are taken as
        they are, already in the network's own scale and channel order. No gradient
        flows to the images or to `params`.
        """
        x = images if normalised else to_network(images, self.normalise)
        return jax.lax.stop_gradient(self.module.apply(params, x))

    def __call__(
        self,
        images: Shaped[Array | np.ndarray, "b h w 3"],
        normalised: bool = False,
    ) -> Features:
        """`apply` with the backbone's own weights, compiled once per image shape."""
        return self._compiled(self.params, images, normalised=normalised)

    @functools.cached_property
    def _compiled(self):
        return jax.jit(self.apply, static_argnames="normalised")


def names() -> tuple[str, ...]:
    """Every name `get` knows."""
    return tuple(name for file in _FILES for name in file.VARIANTS)


def get(name: str, *, weights: str | None) -> Backbone:
    """The backbone `name` with weights from "" or None (the file packaged with it), a
    path (environment variables are expanded), or "random".

    Raises DiffUpError for an unknown name, a backbone without packaged weights, a
    missing or damaged file, and a file of another network.
    """
    file = next((f for f in _FILES if name in f.VARIANTS), None)
    if file is None:
        close = difflib.get_close_matches(name, names(), cutoff=0.4)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise DiffUpError(
            f"Unknown backbone {name!r}.{hint} Known: {', '.join(names())}. "
            "Choose one with --config.backbone.name=NAME."
        )
    recipe = file.recipe(name)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    # Shapes only: running (or even compiling) the initialisers takes many seconds.
    shapes = jax.eval_shape(recipe.module.init, jax.random.key(0), image)
    if weights == "random":
        params, origin = weight_files.random(shapes, seed=_RANDOM_SEED), "random"
    else:
        path, origin = _locate(name, recipe.packaged, weights)
        source = weight_files.read(path)
        tables = (*recipe.tables, weight_files.own_layout(shapes))
        table, known = weight_files.best_table(tables, source, target_shapes=shapes)
        params = weight_files.convert(
            table,
            source,
            target_shapes=shapes,
            what=(
                f"Backbone {name!r} was asked for, and {known} of the {len(source)} "
                f"keys of the file {path!r} fit it"
            ),
        )
    return Backbone(
        name=name,
        module=recipe.module,
        params=jax.tree.map(jnp.asarray, params),
        levels=recipe.levels,
        prior_levels=recipe.prior_levels,
        normalise=recipe.normalise,
        digest=weight_files.digest(params),
        weights=origin,
        has_text=False,
    )


def to_network(
    images: Shaped[Array | np.ndarray, "b h w 3"], normalise: Normalise
) -> Float[Array, "b h w 3"]:
    """RGB uint8, or float in [0, 1], to the network's scale and channel order."""
    x = jnp.asarray(images)
    if x.dtype == jnp.uint8:
        x = x.astype(jnp.float32) / 255
    elif not jnp.issubdtype(x.dtype, jnp.floating):
        raise DiffUpError(
            f"Images of dtype {x.dtype} given to a backbone; expected uint8, or float "
            "in [0, 1]. Convert them first."
        )
    if normalise.bgr:
        x = x[..., ::-1]
    mean, std = (
        jnp.asarray(v, x.dtype).reshape(1, 1, 1, 3)
        for v in (normalise.mean, normalise.std)
    )
    return (x - mean) / std


def _locate(name: str, packaged: str, weights: str | None) -> tuple[str, str]:
    """(path to read, what to call it) for a weights option that is not "random"."""
    if weights:
        path = os.path.expandvars(weights)
        return path, path
    if not packaged:
        raise DiffUpError(
            f"Backbone {name!r} has no weights packaged with it, and the option for a "
            f"file is empty ({weights!r}). {weight_files.PROVIDE}"
        )
    return str(importlib.resources.files(__package__) / packaged), "packaged"
