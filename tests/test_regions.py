"""Regions without labels: laws on any image, and what they are cut along."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from diffup_jax.data import cues, pipeline, regions
from diffup_jax.data.augment import Augment
from diffup_jax.data.episodes import Draw
from diffup_jax.data.sources import fold_classes, open_source
from tests import datasets


def _region(image, seed):
    return regions.region(image, generator=np.random.default_rng(seed))


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    colours=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_any_image_has_a_region(height, width, colours, seed):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, colours, (height, width, 3)).astype(np.uint8) * 40
    mask = _region(image, seed)
    assert mask.shape == (height, width) and mask.dtype == bool
    assert mask.any()


def test_same_generator_same_region_another_another():
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3)).astype(np.uint8)
    assert np.array_equal(_region(image, 1), _region(image, 1))
    masks = {_region(image, seed).tobytes() for seed in range(10)}
    assert len(masks) > 5


def test_area_and_connectedness():
    generator = np.random.default_rng(0)
    image = np.zeros((120, 160, 3), np.uint8)
    for _ in range(12):  # a collage: pieces of every size
        y, x = generator.integers(0, (90, 120))
        image[y : y + 30, x : x + 40] = generator.integers(0, 255, 3)
    for seed in range(40):
        mask = _region(image, seed)
        assert 0.005 < mask.mean() < 0.55
        # One piece and neighbours that touch it: connected, up to the resampling.
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        largest = np.bincount(labels.ravel())[1:].max()
        assert largest > 0.9 * mask.sum(), count


@pytest.mark.parametrize("seed", range(4))
def test_regions_follow_the_edges_of_the_image(seed):
    """A region of a two-coloured image crosses its edge less than a shifted one."""
    image = np.full((96, 96, 3), 40, np.uint8)
    yy, xx = np.indices((96, 96))
    disc = (yy - 48) ** 2 + (xx - 48) ** 2 < 24**2
    image[disc] = (220, 60, 60)
    inside = [
        share
        for number in range(30)
        for share in [_region(image, 100 * seed + number)[disc].mean()]
    ]
    # Mostly the disc is in or out; place alone would cut it anywhere.
    clear = [share for share in inside if share < 0.1 or share > 0.9]
    assert len(clear) >= 15


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = datasets.write_label_maps(tmp_path_factory.mktemp("label_maps"), train=32)
    return open_source(
        "label_map", root=str(root), split="train", min_area=0.0, crowd="hsnet"
    )


def batches(source, *, share, ways=1, steps=6):
    dataset = pipeline.training_dataset(
        source,
        fold_classes(source, 0, role="base"),
        seed=0,
        steps=steps,
        batch_size=8,
        image_size=32,
        max_shots=2,
        ways=ways,
        cues=("mask", "box", "scribble", "point"),
        conventions=cues.Conventions(box="instance", scribble="stroke"),
        augment=Augment(regions=share),
        on_error="stop",
        process_index=0,
        process_count=1,
    )
    return [dataset[step].episode for step in range(steps)]


def test_the_share_of_episodes_is_what_was_asked_for(source):
    classes = np.concatenate([b.class_id[:, 0] for b in batches(source, share=0.4)])
    assert 8 < (classes < 0).sum() < 32  # of 48; never none, never all
    assert set(classes[classes < 0]) == {-1}


def test_episodes_of_regions_are_whole(source):
    """Every region episode has a query mask and cues; ways never share a pixel."""
    for batch in batches(source, share=1.0, ways=2, steps=3):
        assert (batch.class_id == [-1, -2]).all()
        assert batch.query_mask[:, 0].any(axis=(-2, -1)).all()
        assert (batch.cue_fg.any(axis=(-2, -1)) == batch.shot_valid).all()
        assert batch.shot_valid.any(axis=-1).all()


def test_regions_come_from_the_query_image_alone(source):
    draw = Draw((0, 1), source.image_ids(0)[0], (("a", "b"), ("c", "d")))
    other, view = regions.episode(source, draw, generator=np.random.default_rng(0))
    assert other.supports == ((draw.query,) * 2,) * 2
    assert np.array_equal(view.image(draw.query), source.image(draw.query))
    first, second = (view.mask(draw.query, c)[0] for c in other.class_ids)
    assert first.any() and second.any()
    assert (view.instances(draw.query, -1) > 0).sum() == first.sum()
