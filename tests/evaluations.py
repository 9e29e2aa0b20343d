"""A tiny evaluation: random episodes, their batches, and a method that reads red."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffup_jax import evaluation
from diffup_jax.data.batches import EvaluationBatch
from diffup_jax.report import Setting
from diffup_jax.types import Episode, Prediction, Query, Support

NAMES = {0: "cat", 4: "dog", 8: "[bold]owl"}
SETTING = Setting(
    dataset="coco",
    fold=0,
    protocol="hsnet",
    image_size=384,
    backbone="resnet50",
    weights_digest="0123456789abcdef",
    cue="mask",
    convention="",
    shots=1,
    ways=1,
    episodes_sha="aeb00fa3d011d93e",
    seed=0,
    method="diffup",
    settings="one forward, cut at 1/2",
    weights="step 100",
)


def episode_of(masks, valid, *, shots=1):
    """An episode with this truth [b n h w]; nothing else in it says anything."""
    b, n, h, w = masks.shape
    return Episode(
        Support(
            images=np.zeros((b, n, shots, h, w, 3), np.uint8),
            fg=np.ones((b, n, shots, h, w), bool),
            bg=np.zeros((b, n, shots, h, w), bool),
            kind=np.zeros((b, n, shots), np.int32),
            valid=np.ones((b, n, shots), bool),
            text=np.zeros((b, n, 0), np.float32),
            text_valid=np.zeros((b, n), bool),
        ),
        Query(np.zeros((b, h, w, 3), np.uint8), valid, masks),
    )


def some_episodes(count, *, size=8):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (count, size, size, 3), np.uint8)
    masks = random.random((count, 1, size, size)) < 0.4
    made = episode_of(masks, random.random((count, size, size)) < 0.9)
    return made._replace(query=made.query._replace(image=image))


def class_ids(count):
    """Of `some_episodes`: cat, dog, cat, dog, ..."""
    return (4 * (np.arange(count) % 2)).astype(np.int32)[:, None]


def batches_of(episodes, size, *, left_out=(), truths=None):
    """The last batch is padded by repeating its first episode, as a reader does.

    left_out: places of queries that count as empty.
    """
    total = len(episodes.query.image)
    classes = class_ids(total)
    for start in range(0, total, size):
        stretch = np.arange(start, min(start + size, total))
        places = np.setdiff1d(stretch, left_out)
        rows = np.resize(places, size) if len(places) else np.resize(stretch, size)
        yield EvaluationBatch(
            jax.tree.map(lambda part, rows=rows: part[rows], episodes),
            classes[rows],
            places,
            () if truths is None else tuple(truths[place] for place in places),
            len(stretch) - len(places),
            (),
        )


@jax.jit
def reads_red(keys, episode):
    mean = episode.query.image[..., 0].astype(jnp.float32)[:, None] / 255
    maps = {
        "prior_mean": mean,
        "prior_variance": mean * (1 - mean),
        "uncertainty": 0.1 * mean,
        "spread": 0.2 * mean,
    }
    return Prediction(mean, jnp.full(mean.shape[:2], 0.5), maps)


def evaluated(episodes, size, *, ask=reads_red, frame="square", **arguments):
    return evaluation.evaluate(
        ask,
        jax.random.key(0),
        batches_of(episodes, size, **arguments),
        classes=(0, 4, 8),
        episodes=len(episodes.query.image),
        frame=frame,
        seed=0,
        resamples=200,
    )
