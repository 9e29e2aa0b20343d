"""F2: what a backbone file says about one of its variants.

A backbone is data first: which module, which levels, how its input is normalised, which
weight files it can read and where published ones are. `backbones.get` turns a recipe
and a weights file into a `Backbone`; nothing else needs to know one network from
another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from diffup_jax.types import DiffUpError, Level
from diffup_jax.weights import Row, Table, same

# What a network may compute in, by name; its parameters stay float32.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Normalise(NamedTuple):
    """Input constants: `(image - mean) / std` on an RGB image in [0, 1].

    `mean` and `std` are in the order of the network's own input channels; `bgr` says
    that this order is blue, green, red. A network that was trained on 0..255 minus a
    mean has `std` 1/255.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool


# ImageNet's channel mean and standard deviation (torchvision, timm, DINO, DINOv2).
IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), bgr=False)
# -1..1 (the ViTs of big_vision, SigLIP).
HALF = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), bgr=False)


class TextRecipe(NamedTuple):
    """The text tower of a network with a joint image-text space of d dimensions.

    `module` maps token ids [n t] int32 to embeddings [n d] float32 of length 1; its
    method `scale()` answers the pair (scale, bias) of scalars with which
    `scale * image . text + bias` is the reference's score (bias 0 for CLIP).
    `context_length` is t, `tokenizer` the name `tokenizer.get` knows, and `tables` the
    layouts of the text part of the same weight files (their `ignore` names the image
    tower; the image tables' `ignore` names the text tower).

    The image module of such a network fills `Features.joint` ([b p q d], cells of
    length 1) and has a method `embed(images)`, the global embedding [b d], length 1.
    """

    module: nn.Module
    context_length: int
    tokenizer: str
    tables: tuple[Table, ...]


class Recipe(NamedTuple):
    """One variant: `module` maps normalised images [b h w 3] to `types.Features`.

    module: a linen module with the field `dtype` (what it computes in).
    levels: all levels the module returns, in order.
    prior_levels: the names a prior is built from unless told otherwise.
    normalise: what the weights were trained with.
    tables: the known layouts of weight files.
    packaged: the weights file shipped beside the code, or "" when there is none.
    hub: Hugging Face id of the default weights, or "" when there are none.
    licence: of the default weights: an SPDX id or a short name; "" when not known.
    multiple_of: height and width of an input must be multiples of this (1: any size).
    text: the text tower, or None.
    debias: components of position debias (0 = off), design of the BAFT priors.
    """

    module: nn.Module
    levels: tuple[Level, ...]
    prior_levels: tuple[str, ...]
    normalise: Normalise
    tables: tuple[Table, ...]
    packaged: str
    hub: str
    licence: str
    multiple_of: int
    text: TextRecipe | None
    debias: int


def check_size(shape: tuple[int, ...], *, multiple: int, what: str) -> None:
    """Raises DiffUpError unless rows and columns of [b h w c] are multiples.

    For a module's first line, at trace time; `what` names the network.
    """
    height, width = shape[1:3]
    if height % multiple or width % multiple:
        raise DiffUpError(
            f"{what} was given images of {height} x {width} pixels; it cuts them into "
            f"patches, so both must be multiples of {multiple}. Nearest sizes: "
            f"{_nearest(height, multiple)} x {_nearest(width, multiple)}."
        )


def batch_norm(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of a batch norm by torch's names, `theirs` in the file, `ours` here."""
    return tuple(
        Row(f"{theirs}.{source}", f"{collection}/{ours}/{leaf}", same)
        for source, collection, leaf in (
            ("weight", "params", "scale"),
            ("bias", "params", "bias"),
            ("running_mean", "batch_stats", "mean"),
            ("running_var", "batch_stats", "var"),
        )
    )


def dtype_of(name: Any) -> Any:
    """The compute dtype called `name`: "float32" or "bfloat16"."""
    if name not in DTYPES:
        raise DiffUpError(
            f"A backbone computes in {' or '.join(DTYPES)}, not in {name!r}."
        )
    return DTYPES[name]


def _nearest(size: int, multiple: int) -> int:
    return max(multiple, (size + multiple // 2) // multiple * multiple)
