"""F2: a frozen network with its weights, and how images reach it.

It is frozen: gradients stop at its outputs, which are float32 whatever it computes in.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from diffup_jax.backbones.recipe import Normalise, TextRecipe
from diffup_jax.types import DiffUpError, Features, Level


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A network with its weights.

    `levels` lists every level it answers, in order, `prior_levels` the names used for
    priors unless a config says otherwise; images must have sides that are multiples of
    `multiple_of`. `digest` identifies the weights of all towers (16 hex digits),
    `weights` says where they came from: "packaged", "random", the path or the Hugging
    Face id. `text` and `text_params` are the text tower and its weights, or None;
    `folder` is where its tokenizer's files are; `debias` as in `Recipe`.
    """

    name: str
    module: nn.Module
    params: dict[str, Any]
    levels: tuple[Level, ...]
    prior_levels: tuple[str, ...]
    normalise: Normalise
    digest: str
    weights: str
    multiple_of: int
    debias: int
    text: TextRecipe | None
    text_params: dict[str, Any] | None
    folder: Path

    @property
    def has_text(self) -> bool:
        """Whether there are `Features.joint`, `encode_text` and `score`."""
        return self.text is not None

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
        return _frozen(self.module.apply(params, x))

    def __call__(
        self,
        images: Shaped[Array | np.ndarray, "b h w 3"],
        normalised: bool = False,
    ) -> Features:
        """`apply` with the backbone's own weights, compiled once per image shape."""
        return self._compiled(self.params, images, normalised=normalised)

    def tokenize(self, texts: Sequence[str]) -> Int[np.ndarray, "n t"]:
        """Texts to the token ids of the text tower, t its context length.

        Raises DiffUpError without a text tower or without the tokenizer's files.
        """
        self._with_text()
        if isinstance(texts, str):
            raise DiffUpError(f"One string {texts!r} given; expected a list of texts.")
        return self._tokenizer(texts)

    @functools.cached_property
    def _tokenizer(self):
        from diffup_jax.backbones import tokenizer

        text = self._with_text()
        return tokenizer.get(
            text.tokenizer, folder=self.folder, length=text.context_length
        )

    def apply_text(
        self, text_params: dict[str, Any], ids: Int[Array | np.ndarray, "n t"]
    ) -> Float[Array, "n d"]:
        """Token ids to embeddings of length 1; pure in `text_params`, no gradient."""
        return _frozen(self._with_text().module.apply(text_params, ids))

    def encode_text(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Texts to embeddings of length 1 in the space of `Features.joint`."""
        return self._compiled_text(self.text_params, self.tokenize(texts))

    def score(
        self, images: Shaped[Array | np.ndarray, "b h w 3"], texts: Sequence[str]
    ) -> Float[Array, "b n"]:
        """The reference's global score of each image for each text (its logits)."""
        embeddings = self.encode_text(texts)
        return self._compiled_score(self.params, self.text_params, images, embeddings)

    def _with_text(self) -> TextRecipe:
        if self.text is None:
            raise DiffUpError(
                f"Backbone {self.name!r} has no text tower. Ones that have: see the "
                "column 'text' of: diffup backbones list"
            )
        return self.text

    def _score(self, params, text_params, images, embeddings):
        x = to_network(images, self.normalise)
        own = self.module.apply(params, x, method="embed").astype(jnp.float32)
        scale, bias = self.text.module.apply(text_params, method="scale")
        return _frozen(scale * own @ embeddings.T + bias)

    @functools.cached_property
    def _compiled(self):
        return jax.jit(self.apply, static_argnames="normalised")

    @functools.cached_property
    def _compiled_text(self):
        return jax.jit(self.apply_text)

    @functools.cached_property
    def _compiled_score(self):
        return jax.jit(self._score)


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


def _frozen(answer):
    """float32, and no way back for a gradient."""
    as_float = jax.tree.map(lambda x: x.astype(jnp.float32), answer)
    return jax.lax.stop_gradient(as_float)
