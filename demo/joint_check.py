"""How well a joint image-text space works on drawn scenes, without training anything.

Retrieval: SCENES scenes and a sentence about each; the share of the scenes that score
highest with their own sentence, and of the sentences with their own scene.

Dense text: an episode is one category of one scene. With unit vectors t+ of the
category's prompt and t- of the background's,

    (1) P(q) = <joint(q), t+> - <joint(q), t->,   min-max scaled per image

is thresholded as `prior_check` does it, the best threshold for all episodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from demo import prior_check, scene_captions
from diffup_jax import images
from diffup_jax.backbones import Backbone, prompts

SCENES = 100
_CHUNK = 40


def retrieval(
    backbone: Backbone,
    scenes: tuple[UInt8[np.ndarray, "b h w 3"], Int[np.ndarray, "b h w"]],
) -> tuple[float, float]:
    """(right caption of an image, right image of a caption), shares of the first
    SCENES scenes; they must be of the pretraining categories.
    """
    pixels, labels = (part[:SCENES] for part in scenes)
    generator = np.random.default_rng(0)
    names = [scene_captions.scene_name(one) for one in labels]
    texts = scene_captions.sentences(generator, names)
    parts = [
        np.asarray(backbone.score(pixels[at : at + _CHUNK], texts))
        for at in range(0, len(pixels), _CHUNK)
    ]
    scores = np.concatenate(parts)
    own = np.arange(len(pixels))
    return tuple(float((scores.argmax(axis=axis) == own).mean()) for axis in (1, 0))


def text_iou(
    backbone: Backbone,
    scenes: tuple[UInt8[np.ndarray, "b h w 3"], Int[np.ndarray, "b h w"]],
    names: Sequence[str],
    *,
    pairs: prior_check.Pairs,
) -> float:
    """Best-threshold mIoU in [0, 1] of (1) on the queries of `pairs`; `names` are the
    categories' (label 1 first).
    """
    pixels, labels = scenes
    template = prompts.TEMPLATES[0]
    background = template.replace("{name}", "background")
    texts = [template.replace("{name}", name) for name in names]
    vectors = backbone.encode_text([background, *texts])
    contrast = np.asarray(vectors - vectors[:1])[pairs.category]
    joint = [
        np.asarray(backbone(pixels[at : at + _CHUNK]).joint)
        for at in range(0, len(pixels), _CHUNK)
    ]
    found = np.einsum("epqd,ed->epq", np.concatenate(joint)[pairs.query], contrast)
    size = labels.shape[1] // 2, labels.shape[2] // 2
    maps = images.resize_maps(images.min_max(jnp.asarray(found)), size)
    truth = labels[pairs.query, 1::2, 1::2] == pairs.category[:, None, None]
    return prior_check.best_iou(np.asarray(maps), truth, pairs.category)
