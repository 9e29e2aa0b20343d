"""Rasters: resizing rules, components, and what a file is told to hold."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage

from diffup_jax.data import rasters
from diffup_jax.types import DiffUpError

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=14))


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(mask=MASKS)
def test_components_are_maximal_and_sorted(mask):
    numbers = rasters.components(mask)
    assert numbers.dtype == np.uint16 and ((numbers > 0) == mask).all()
    count = ndimage.label(mask, np.ones((3, 3)))[1]
    areas = [np.count_nonzero(numbers == n) for n in range(1, count + 1)]
    assert numbers.max() == count and areas == sorted(areas, reverse=True)
    for number in range(1, count + 1):
        one = numbers == number
        assert ndimage.label(one, np.ones((3, 3)))[1] == 1, "one piece"
        around = ndimage.binary_dilation(one, np.ones((3, 3))) & ~one
        assert not mask[around].any(), "all of it"


def test_more_components_than_numbers_share_the_last():
    mask = np.zeros((600, 600), bool)
    mask[::2, ::2] = True  # 90 000 single pixels
    mask[0:2, 0:2] = True  # joins the pixel's three neighbours to it
    numbers = rasters.components(mask)
    assert ((numbers > 0) == mask).all() and numbers.max() == 65535
    assert (numbers == 1).sum() == 7


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(mask=MASKS, size=strategies.integers(1, 20))
def test_labels_are_resized_as_masks_are(mask, size):
    labels = rasters.components(mask)
    small = rasters.resize_labels(labels, size)
    assert small.dtype == np.uint16 and small.shape == (size, size)
    for number in range(int(labels.max()) + 1):
        one = rasters.resize_mask(labels == number, size)
        assert ((small == number) == one).all()


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(mask=MASKS, size=strategies.integers(1, 20))
def test_a_support_never_loses_its_mask(mask, size):
    assert rasters.resize_support_mask(mask, size).any() == mask.any()


def test_facts_of_a_picture(tmp_path):
    labels = np.zeros((4, 6), np.uint8)
    labels[1, 2:4] = (7, 255)
    Image.fromarray(labels).save(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "b.png")
    Image.fromarray(np.dstack([labels] * 3)).save(tmp_path / "c.png")
    a, b, c = (rasters.facts(tmp_path / f"{n}.png") for n in "abc")
    assert a[:3] == (4, 6, "L") and a.labels == {0, 7, 255} and a == b
    assert c.mode == "RGB" and not c.labels and c.digest != a.digest


def test_a_truncated_picture_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / "whole.jpg"
    Image.fromarray(noise).save(path)
    (tmp_path / "half.jpg").write_bytes(path.read_bytes()[:2000])
    rasters.facts(path)
    for name in ("half.jpg", "absent.jpg"):
        with pytest.raises(DiffUpError, match=name):
            rasters.facts(tmp_path / name)
