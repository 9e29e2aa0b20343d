"""F4: what text cues mean: embeddings of phrases, and of what is none of them.

One phrase is a mean over templates (backbones/prompts.py), so any phrase can be asked
of any image; the class names of a data set are only one source of phrases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffup_jax.backbones import Backbone, prompts

_SENTENCES = 64  # embedded at once


class TextSpace(NamedTuple):
    """backgrounds [u d]: unit vectors of what is no class; temperature: tau_t of the
    softmax between them and a way's text, see operators.py.
    """

    backgrounds: Float[np.ndarray, "u d"]
    temperature: float


def text_space(
    backbone: Backbone,
    *,
    templates: Sequence[str],
    backgrounds: Sequence[str],
    temperature: float,
) -> TextSpace:
    """What every text is compared with.

    Args:
      backgrounds: names, or the one name of a list of prompts.BACKGROUNDS.
      temperature: tau_t; 0 for the model's own, the reciprocal of its logit scale.

    Raises:
      DiffUpError: without a text tower or its tokenizer's files.
    """
    if len(backgrounds) == 1 and backgrounds[0] in prompts.BACKGROUNDS:
        backgrounds = prompts.background_names(backgrounds[0])
    others = embed(backbone, backgrounds, templates=templates)
    if not temperature:
        scale, _ = backbone.text.module.apply(backbone.text_params, method="scale")
        temperature = 1 / float(scale)
    return TextSpace(others, temperature)


def embed(
    backbone: Backbone, phrases: Sequence[str], *, templates: Sequence[str]
) -> Float[np.ndarray, "n d"]:
    """One unit vector per phrase: the mean over its sentences.

    Raises DiffUpError without a text tower, for an empty phrase and for a template
    without {name}.
    """
    groups = [prompts.class_prompts(name, templates=templates) for name in phrases]
    sentences = [sentence for group in groups for sentence in group]
    # Batches of one size, so that the text tower is compiled once.
    padded = sentences + sentences[-1:] * (-len(sentences) % _SENTENCES)
    parts = [
        backbone.encode_text(padded[start : start + _SENTENCES])
        for start in range(0, len(padded), _SENTENCES)
    ]
    found = jnp.concatenate(parts)[: len(sentences)]
    found = found.reshape(len(phrases), len(templates), found.shape[-1])
    return np.asarray(prompts.average(found))


def in_words(space: TextSpace, templates: Sequence[str]) -> str:
    """How text is read, for whoever reads a result."""
    sentences = ", ".join(f'"{template}"' for template in templates)
    return (
        f"{sentences} against {len(space.backgrounds)} backgrounds, temperature "
        f"{space.temperature:.3g}"
    )
