"""F4: what text cues mean: the embeddings of a source's class names, made once.

An episode names a row by `class_id`. One row is a mean over templates, which the token
ids of one prompt could not tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffup_jax.backbones import Backbone, prompts
from diffup_jax.types import DiffUpError

_PROMPTS = 64  # sentences embedded at once


@dataclasses.dataclass(frozen=True, eq=False)
class TextTable:
    """What a text tower says of a source's classes, and of what is none of them.

    classes [c d]: one unit vector per class, row = `Episode.class_id`; backgrounds
    [u d]: likewise; temperature: tau_t of the softmax between them, see operators.py.
    """

    classes: Float[np.ndarray, "c d"]
    backgrounds: Float[np.ndarray, "u d"]
    temperature: float

    def told(self, templates: Sequence[str]) -> str:
        """The table in words, for whoever reads a result."""
        sentences = ", ".join(f'"{template}"' for template in templates)
        return (
            f"{sentences} against {len(self.backgrounds)} backgrounds, temperature "
            f"{self.temperature:.3g}"
        )


def text_table(
    backbone: Backbone,
    names: Sequence[str],
    *,
    templates: Sequence[str],
    backgrounds: Sequence[str],
    temperature: float | None,
) -> TextTable:
    """Embeds class and background names in all templates (backbones/prompts.py).

    Args:
      names: class names by class id.
      templates, backgrounds: see prompts.TEMPLATES and prompts.background_names; a
        background that is also a class is left out (it would take the class's cells).
      temperature: tau_t; None for the model's own, the reciprocal of its logit scale.

    Raises:
      DiffUpError: without a text tower, its tokenizer's files or a background.
    """
    taken = {_plain(name) for name in names}
    backgrounds = [name for name in backgrounds if _plain(name) not in taken]
    if not backgrounds:
        raise DiffUpError(
            "No background name is left that is not a class too; text needs at least "
            "one to be compared with. Add scenery to the list of backgrounds."
        )
    classes, others = (
        _embed(backbone, group, templates) for group in (names, backgrounds)
    )
    if temperature is None:
        scale, _ = backbone.text.module.apply(backbone.text_params, method="scale")
        temperature = 1 / float(scale)
    return TextTable(classes, others, temperature)


def _embed(
    backbone: Backbone, names: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "c d"]:
    """One unit vector per name: the mean over its sentences."""
    groups = [prompts.class_prompts(name, templates=templates) for name in names]
    sentences = [sentence for group in groups for sentence in group]
    # Batches of one size, so that the text tower is compiled once.
    padded = sentences + sentences[-1:] * (-len(sentences) % _PROMPTS)
    parts = [
        backbone.encode_text(padded[start : start + _PROMPTS])
        for start in range(0, len(padded), _PROMPTS)
    ]
    found = jnp.concatenate(parts)[: len(sentences)]
    found = found.reshape(len(names), len(templates), found.shape[-1])
    return np.asarray(prompts.average(found))


def _plain(name: str) -> str:
    """A class name for comparison."""
    return " ".join(name.replace("_", " ").lower().split())
