"""Resizing, averaging and pooling against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import images

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (7, 2), (8, 8), (11, 9)])
def test_area_average_is_the_mean_of_what_a_cell_covers(grid):
    maps = RNG.random((2, 8, 8)).astype(np.float32)
    # Every pixel split into p x q equal parts makes any ratio a whole number.
    fine = maps.repeat(grid[0], axis=1).repeat(grid[1], axis=2)
    expected = fine.reshape(2, grid[0], 8, grid[1], 8).mean(axis=(2, 4))
    np.testing.assert_allclose(
        images.area_average(jnp.asarray(maps), grid), expected, atol=1e-6
    )


def test_boolean_maps_are_zeros_and_ones():
    maps = RNG.random((2, 3, 40, 56)) < 0.3
    both = (images.area_average(jnp.asarray(x), (9, 8)) for x in (maps, maps * 1.0))
    one, other = map(np.asarray, both)
    assert one.dtype == other.dtype == np.float32 and (one == other).all()


def test_one_marked_pixel_never_vanishes():
    maps = np.zeros((1, 384, 384), np.float32)
    maps[0, 200, 17] = 1
    assert float(images.area_average(jnp.asarray(maps), (23, 23)).max()) > 0


def test_uint8_and_floats_are_the_same_image():
    pixels = RNG.integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        images.to_float(jnp.asarray(pixels)),
        images.to_float(jnp.asarray(pixels / np.float32(255))),
        atol=1e-7,
    )


def test_min_max_spans_zero_to_one_and_survives_constants():
    maps = jnp.asarray(RNG.normal(size=(3, 5, 5)), jnp.float32).at[2].set(4.0)
    scaled = images.min_max(maps)
    np.testing.assert_allclose(scaled[:2].min(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(scaled[:2].max(axis=(1, 2)), 1, atol=1e-6)
    np.testing.assert_array_equal(scaled[2], 0)


def test_masked_mean_reads_only_the_mask():
    features = jnp.asarray(RNG.normal(size=(4, 4, 3)), jnp.float32)
    mask = jnp.zeros((4, 4)).at[1, 2].set(1.0).at[3, 0].set(1.0)
    expected = (features[1, 2] + features[3, 0]) / 2
    np.testing.assert_allclose(images.masked_mean(features, mask), expected, atol=1e-5)
    np.testing.assert_array_equal(images.masked_mean(features, mask * 0), 0)


def test_resize_keeps_a_constant_and_does_nothing_at_its_own_size():
    maps = jnp.full((2, 6, 6), 0.3)
    np.testing.assert_allclose(images.resize_maps(maps, (13, 4)), 0.3, atol=1e-6)
    assert images.resize(maps[..., None], (6, 6)).shape == (2, 6, 6, 1)


def test_unit_vectors():
    vectors = jnp.asarray(RNG.normal(size=(5, 8)), jnp.float32).at[0].set(0.0)
    lengths = jnp.linalg.norm(images.unit(vectors), axis=-1)
    np.testing.assert_allclose(lengths, [0, 1, 1, 1, 1], atol=1e-5)
