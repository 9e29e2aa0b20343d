"""A method of another package: a pixel with the example's mean colour is in the mask.

    p = sigmoid(sharpness (reach - |rgb - mean rgb of the examples' foreground|))

Two numbers are trained. There is no backbone, no prior, and no map that says where it
is unsure: whatever in this project needs one of these would refuse it.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from diffup_jax.sections import FREE, Above, Section, Within
from diffup_jax.types import Prediction


class RedSettings(Section):
    """reach: the first one, in units of rgb; cut: the threshold of a mask."""

    reach: Annotated[float, Above(0)] = 0.1
    cut: Annotated[float, Within(0, 1), FREE] = 0.5


class Red:
    name, version, trainable = "red", 1, ("rule",)
    uses_backbone = reads_text = False
    SECTIONS = {"red": RedSettings}

    def __init__(self, settings):
        self.settings = settings

    @classmethod
    def make(cls, settings, backbone):
        return cls(settings.red)

    def init(self, key, episode):
        return {
            "rule": {"reach": jnp.full(1, self.settings.reach), "sharp": jnp.ones(1)}
        }

    def encode(self, params, support):
        weight = (support.fg * support.valid[..., None, None])[..., None]
        total = (_floats(support.images) * weight).sum((2, 3, 4))
        return total / jnp.maximum(weight.sum((2, 3, 4)), 1)

    def predict(self, params, keys, query, memory):
        logits = self._logits(params, query, memory)
        cut = jnp.full(memory.shape[:2], self.settings.cut)
        return Prediction(jax.nn.sigmoid(logits), cut, {})

    def loss(self, params, keys, episode):
        logits = self._logits(
            params, episode.query, self.encode(params, episode.support)
        )
        each = optax.sigmoid_binary_cross_entropy(logits, episode.query.mask * 1.0)
        valid = episode.query.valid[:, None]
        return (each * valid).sum() / (valid.sum() * logits.shape[1]), {}

    def _logits(self, params, query, memory):
        far = _floats(query.image)[:, None] - memory[:, :, None, None]
        distance = jnp.linalg.norm(far, axis=-1)
        return 10 * params["rule"]["sharp"][0] * (params["rule"]["reach"][0] - distance)


def _floats(images):
    return images / 255.0 if images.dtype == jnp.uint8 else images
