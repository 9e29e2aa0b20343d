"""A tiny evaluation: random episodes, their batches, and a method that reads red."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffup_jax import evaluation
from diffup_jax.data.batches import EvaluationBatch
from diffup_jax.report import Setting
from diffup_jax.types import Episode

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
    method="diffusion",
    steps=4,
    samples=1,
    threshold="iou",
    weights="step 100",
)


def some_episodes(count, *, size=8):
    random = np.random.default_rng(0)
    return Episode(
        query=random.integers(0, 256, (count, size, size, 3), np.uint8),
        query_mask=(random.random((count, 1, size, size)) < 0.4).astype(np.float32),
        query_valid=random.random((count, size, size)) < 0.9,
        support=random.integers(0, 256, (count, 1, 1, size, size, 3), np.uint8),
        cue_fg=np.ones((count, 1, 1, size, size), np.float32),
        cue_bg=np.zeros((count, 1, 1, size, size), np.float32),
        cue_kind=np.zeros((count, 1, 1), np.int32),
        text_ids=np.zeros((count, 1, 77), np.int32),
        shot_valid=np.ones((count, 1, 1), bool),
        text_valid=np.zeros((count, 1), bool),
        class_id=(4 * (np.arange(count) % 2)).astype(np.int32)[:, None],
    )


def batches_of(episodes, size, *, left_out=(), truths=None):
    """The last batch is padded by repeating its first episode, as a reader does.

    left_out: places of queries that count as empty.
    """
    total = len(episodes.query)
    for start in range(0, total, size):
        stretch = np.arange(start, min(start + size, total))
        places = np.setdiff1d(stretch, left_out)
        rows = np.resize(places, size) if len(places) else np.resize(stretch, size)
        yield EvaluationBatch(
            Episode(*(part[rows] for part in episodes)),
            places,
            () if truths is None else tuple(truths[place] for place in places),
            len(stretch) - len(places),
            (),
        )


@jax.jit
def reads_red(keys, episode):
    mean = episode.query[..., 0].astype(jnp.float32)[:, None] / 255
    maps = {
        "prior_mean": mean,
        "prior_variance": mean * (1 - mean),
        "uncertainty": 0.1 * mean,
        "spread": 0.2 * mean,
        "prior_of_one_level": mean[..., :4],
    }
    return mean, maps


def evaluated(episodes, size, *, frame="square", **arguments):
    return evaluation.evaluate(
        reads_red,
        jax.random.key(0),
        batches_of(episodes, size, **arguments),
        classes=(0, 4, 8),
        episodes=len(episodes.query),
        frame=frame,
        seed=0,
        resamples=200,
    )
