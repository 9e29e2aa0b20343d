"""Fifty shots in one call: laws of shots where there are more than judge each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import backbones
from diffup_jax.methods import prior
from diffup_jax.methods.prior import baft, uapf
from diffup_jax.methods.prior.options import PriorSettings

GRID = (5, 5)
METHOD = prior.Prior(backbones.hollow("tiny"), PriorSettings())


def episode(k, *, side=4, channels=8, seed=0):
    """(query, support of k shots, w+, w-, validity): squares of one look on noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(1 + k, side, side, channels)).astype(np.float32)
    fg = np.zeros((k, 2 * side, 2 * side), np.float32)
    for i in range(k):
        y, x = rng.integers(0, side - 1, 2)
        fg[i, 2 * y : 2 * y + 4, 2 * x : 2 * x + 4] = 1
        features[1 + i, y : y + 2, x : x + 2, :2] += 3
    features[0, 1:3, 1:3, :2] += 3
    shots = (features[1:], fg, 1 - fg, np.ones(k, bool))
    return features[:1], *(x[None, None] for x in shots)


@jax.jit
def answer(case):
    """Reliability [o k], and the fused mean and variance [p q]."""
    query, support, fg, bg, valid = case
    memory = baft.remember((support,), fg=fg, bg=bg, valid=valid, temperature=0.1)
    none = jnp.zeros((1, 1), bool)
    priors = baft.make_priors(
        (query,), memory, text=None, text_valid=none, temperature=0.1, grid=GRID
    )
    floor = uapf.cue_floor(jnp.zeros(valid.shape, int), valid, none)
    fused = METHOD.fuse(priors, floor)
    return priors.reliability[0, 0, 0], fused.mean[0, 0], fused.variance[0, 0]


def shots_of(case, order):
    return case[0], *(x[:, :, order] for x in case[1:])


def same(got, expected, which=None):
    """Fused maps alike; reliabilities of the shots `which` too."""
    if which is not None:
        np.testing.assert_allclose(got[0], expected[0][:, which], atol=1e-5)
    for x, y in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("k", [5, 50])
def test_laws_of_shots(k):
    case = episode(k)
    whole = answer(case)
    mean, spread = (np.asarray(x) for x in whole[1:])
    assert mean[2, 2] > 0.8 and mean[[0, -1]].max() < mean[2, 2]
    assert spread.min() > 0.002 and 0.01 < spread.max() < uapf.MAX_VARIANCE
    order = np.random.default_rng(1).permutation(k)
    same(answer(shots_of(case, order)), whole, order)

    # Of k shots the last half are padding; whatever they hold.
    query, support, fg, bg, valid = case
    known = k // 2
    valid = valid & (np.arange(k) < known)
    padded = answer((query, support, fg, bg, valid))
    support, fg = support.copy(), fg.copy()
    support[:, :, known:], fg[:, :, known:] = 7.0, 0.3
    same(answer((query, support, fg, bg, valid)), padded, np.arange(k))
    assert not padded[0][:, known:].any()


def test_fifty_shots_that_are_two():
    """Copies and padding on either side of where few shots become many."""
    few = episode(2)
    expected = answer(few)
    copies = np.array([0] * 30 + [1] * 20)
    same(answer(shots_of(few, copies)), expected, copies)
    *padded, valid = shots_of(few, copies)
    valid = valid & np.isin(np.arange(50), (29, 30))
    same(answer((*padded, valid)), expected)
