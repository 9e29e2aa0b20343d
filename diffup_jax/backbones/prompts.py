"""F2: the sentences around a class name, and what stands for background.

A text tower was trained on captions, so a bare name is put into templates; the answers
are averaged as CLIP does it (arXiv 2103.00020, section 3.1.4):

    t(name) = unit(mean over templates of unit(text(template with name)))

Zero-shot foreground is a softmax over one foreground text and a list of background
texts. The lists hold scenery and material that a dataset does not count as an object
(the practice of MaskCLIP, arXiv 2112.01071): a name that is also a class of the dataset
must not be among them, for it would take the foreground's cells whenever that class is
the one asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax.types import DiffUpError

# One template is the default; MORE_TEMPLATES costs its number of text passes per name.
TEMPLATES = ("a photo of a {name}",)
MORE_TEMPLATES = (
    *TEMPLATES,
    "a photo of the {name}",
    "a photo of many {name}",
    "a photo of a small {name}",
    "a photo of a large {name}",
    "a close-up of a {name}",
    "a blurry photo of a {name}",
    "a cropped photo of a {name}",
    "there is a {name} in the scene",
)

_SCENERY = (
    *("background", "sky", "cloud", "grass", "ground", "soil", "sand", "mud", "snow"),
    *("water", "sea", "river", "lake", "tree", "bush", "leaves", "rock", "mountain"),
    *("building", "house", "wall", "brick", "roof", "window", "door", "fence"),
    *("road", "street", "pavement", "bridge", "railway", "platform", "stairs"),
    *("floor", "carpet", "ceiling", "curtain", "shadow", "light"),
)
_INDOORS = (
    *("cupboard", "shelf", "counter", "mirror", "blanket", "pillow", "towel"),
    *("tablecloth", "plate", "paper", "cardboard box", "poster", "sign"),
)

# By dataset; "default" is scenery only, and fits any list of object classes.
BACKGROUNDS = {
    "default": _SCENERY,
    # Pascal's 20 classes leave most household objects to the background.
    "pascal": (*_SCENERY, *_INDOORS, "bed", "book", "keyboard", "bag", "food", "ball"),
    # COCO counts those six among its 80 classes, but no stuff.
    "coco": (*_SCENERY, *_INDOORS),
}


def class_prompts(name: str, *, templates: Sequence[str]) -> tuple[str, ...]:
    """One sentence per template. Underscores in `name` are read as spaces.

    Raises DiffUpError for an empty name, no template, and one without "{name}".
    """
    words = " ".join(name.replace("_", " ").split())
    broken = [t for t in templates if t.count("{name}") != 1]
    if not words or not templates or broken:
        raise DiffUpError(
            f"Prompts for the class {name!r} with the templates {tuple(templates)}: "
            "expected a name and at least one template, each with {name} in it once, "
            f"as in {TEMPLATES[0]!r}."
        )
    return tuple(template.replace("{name}", words) for template in templates)


def background_names(dataset: str) -> tuple[str, ...]:
    """The background list of a dataset. Raises DiffUpError for an unknown one."""
    if dataset not in BACKGROUNDS:
        raise DiffUpError(
            f"No background prompts for {dataset!r}; lists: {', '.join(BACKGROUNDS)}."
        )
    return BACKGROUNDS[dataset]


def average(embeddings: Float[Array, "*n t d"]) -> Float[Array, "*n d"]:
    """t(name) above, from one unit vector per template."""
    mean = embeddings.mean(axis=-2)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
