"""Text on real photographs, with a classifier in the place of a text tower.

No file of a trained image-text network is at hand. But the last layer of SqueezeNet 1.0
is one vector per ImageNet class in the space of its last features, which is what a text
tower makes of a name. So every part of the text path meets real weights and pictures:
the table, the dense softmax against backgrounds, propagation, and fusion with a mask.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from diffup_jax import backbones, evaluation, images, methods, weights
from diffup_jax.data import episodes, pipeline, protocols
from diffup_jax.data.options import DataSettings
from diffup_jax.data.sources import open_source
from diffup_jax.methods.prior import Prior
from diffup_jax.methods.prior.options import PriorSettings
from diffup_jax.methods.prior.text import TextSpace
from tests.real.test_squeezenet import FILES, SAME_THING

# ImageNet's few classes that are no object: mountains, shores, walls, fences, blinds.
SCENERY = (421, 489, 716, 825, 858, 904, 905, 912, 970, *range(972, 981))
_TEMPERATURE = 0.05
_EACH = 5  # episodes of a class
_SIZE = 288


class _Joint(nn.Module):
    """The last features as the joint space of the classifier's vectors."""

    inner: nn.Module

    @nn.compact
    def __call__(self, x):
        found = self.inner(x)
        return found._replace(joint=images.unit(found.last))


def _units(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def score(realdata):
    """(cue, shift) -> (the prior's mIoU, that of "everything"), in percent; each class
    is asked for by the name of the one `shift` places on.
    """
    file = realdata / "weights" / FILES["squeezenet1_0"]
    plain = backbones.get("squeezenet1_0", weights=str(file))
    backbone = dataclasses.replace(
        plain,
        module=_Joint(plain.module),
        params={"params": {"inner": plain.params["params"]}},
    )
    vectors = _units(weights.read(file)["conv_final/weight"][:, :, 0, 0])
    source = open_source(
        "coco",
        root=str(realdata / "coco"),
        split="train2017",
        min_area=0.02,
        crowd="hsnet",
    )
    classes = [
        number
        for number, name in enumerate(source.class_names)
        if name in SAME_THING and len(source.image_ids(number)) > 1
    ]
    draws = episodes.clean_draws(
        source, classes, shots=1, count=_EACH * len(classes), seed=0
    )

    method = Prior(backbone, PriorSettings())
    # In the place of what a text tower makes of the names of backgrounds.
    method._found["text"] = TextSpace(vectors[list(SCENERY)], _TEMPERATURE)
    ask = jax.jit(functools.partial(methods.asked, method))

    def texts(shift):
        table = np.zeros((len(source.class_names), vectors.shape[1]), np.float32)
        for number, other in zip(classes, np.roll(classes, -shift), strict=True):
            own = sorted(SAME_THING[source.class_names[other]])
            table[number] = _units(vectors[own].mean(0))
        return table

    def asked(cue, shift=0):
        batches = pipeline.evaluation_batches(
            source,
            draws,
            numbers=range(len(draws)),
            cue=cue,
            protocol=protocols.get("clean"),
            data=DataSettings(image_size=_SIZE),
            batch_size=8,
            seed=0,
            texts=texts(shift),
            workers=0,
        )
        found = evaluation.evaluate(
            lambda keys, episode: ask({"backbone": backbone.params}, keys, episode),
            jax.random.key(0),
            batches,
            classes=classes,
            episodes=len(draws),
            frame="square",
            seed=0,
            resamples=1,
        ).scores
        return found.prior_miou, found.everything_foreground

    return asked


def test_names_find_their_classes(score):
    """Zero-shot: no support, only the class's vector."""
    own, everything = score("text")
    other, _ = score("text", shift=1)
    print(f"text {own:.1f}, another name {other:.1f}, everything {everything:.1f}")
    assert own > everything + 12
    assert own > other + 10


def test_a_name_adds_to_a_mask(score):
    mask, _ = score("mask")
    both, _ = score("mask+text")
    print(f"mask {mask:.1f}, mask and text {both:.1f}")
    assert both > mask
