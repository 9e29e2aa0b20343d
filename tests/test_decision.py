"""Where a probability is cut: against every possible mask, and what must hold."""

import itertools

import jax
import numpy as np
import pytest

from diffup_jax.methods.prior import decision

CUT = jax.jit(decision.of_greatest_iou)


def _expected_iou(prob, mask):
    """Expected intersection over expected union, cell by cell."""
    both = sum(p for p, inside in zip(prob, mask, strict=True) if inside)
    either = sum(1 if inside else p for p, inside in zip(prob, mask, strict=True))
    return both / either


@pytest.mark.parametrize("power", [0.5, 1, 4])
def test_no_mask_has_a_greater_expected_iou(power):
    random = np.random.default_rng(0)
    for prob in random.random((8, 8)) ** power:
        cut = float(CUT(prob.reshape(2, 4)))
        masks = list(itertools.product((False, True), repeat=8))[1:]
        best = max(masks, key=lambda mask, prob=prob: _expected_iou(prob, mask))
        assert tuple(prob > cut) == best
        value = _expected_iou(prob, best)
        assert cut == pytest.approx(value / (1 + value), rel=1e-5)


def test_a_sure_map_is_cut_in_the_middle_and_an_unsure_one_below():
    random = np.random.default_rng(1)
    truth = (random.random((16, 16)) < 0.3).astype(np.float32)
    assert CUT(truth) == pytest.approx(0.5)
    cuts = [float(CUT(0.5 + (truth - 0.5) * sure)) for sure in (0.9, 0.6, 0.3)]
    assert sorted(cuts, reverse=True) == cuts and cuts[0] < 0.5


def test_where_nothing_is_likely_the_mask_is_empty():
    random = np.random.default_rng(2)
    for prob in (np.zeros((8, 8)), 0.05 * random.random((8, 8))):
        assert not (prob > float(CUT(prob))).any()


def test_the_order_of_cells_and_the_other_maps_of_a_batch_change_nothing():
    random = np.random.default_rng(3)
    prob = random.random((3, 2, 6, 6)).astype(np.float32) ** 3
    cuts = np.asarray(CUT(prob))
    assert cuts.shape == (3, 2)
    shuffled = random.permuted(prob.reshape(3, 2, 36), axis=-1).reshape(prob.shape)
    np.testing.assert_allclose(CUT(shuffled), cuts, rtol=1e-6)
    for place in np.ndindex(3, 2):
        assert CUT(prob[place]) == pytest.approx(cuts[place], rel=1e-6)


def test_half_is_half():
    prob = np.random.default_rng(4).random((2, 3, 4, 4))
    np.testing.assert_array_equal(jax.jit(decision.half)(prob), np.full((2, 3), 0.5))


def test_otsu_splits_two_modes():
    flat = np.repeat([0.1, 0.8], [300, 100]).reshape(20, 20).astype(np.float32)
    assert 0.1 < float(jax.jit(decision.otsu)(flat)) < 0.8
