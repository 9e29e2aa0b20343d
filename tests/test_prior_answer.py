"""The prior's answer: where it cuts, and what strokes on the query change of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.methods import asked
from diffup_jax.methods.prior import decision
from diffup_jax.types import DiffUpError, Strokes
from tests import episodes_made
from tests.toy import METHOD, PARAMS, SIZE, red_squares

ONE = red_squares(1)
# Two ways that ask for the same, so that only strokes tell them apart.
CASE = episodes_made.changed(
    ONE, **{k: jnp.repeat(x, 2, axis=1) for k, x in ONE.support._asdict().items()}
)
SHAPE = (1, 2, SIZE, SIZE)
KEYS = jax.random.split(jax.random.key(0), 1)


@pytest.fixture(scope="module")
def observed():
    memory = METHOD.encode(PARAMS, CASE.support)
    return jax.jit(METHOD.observe)(PARAMS, CASE.query, memory)


@jax.jit
def answer(observed, strokes=None):
    return METHOD.answer(PARAMS, KEYS, observed, strokes)


def strokes(mask=None):
    """Way 0: a disc in the object and one outside; way 1: a background disc."""
    inside = np.argwhere(np.asarray(CASE.query.mask[0, 0]) > 0).mean(axis=0)
    rows, columns = np.ogrid[:SIZE, :SIZE]

    def disc(y, x):
        return (rows - y) ** 2 + (columns - x) ** 2 <= 4

    fg, bg = np.zeros((2, *SHAPE), np.float32)
    fg[0, 0][disc(*inside)] = 1
    far = (inside + SIZE / 2) % SIZE
    bg[0, 0][disc(*far)] = 1
    bg[0, 1][disc(*far)] = 1
    return Strokes(jnp.asarray(fg), jnp.asarray(bg), mask)


def test_what_is_not_asked_twice_is_the_plain_answer(observed):
    whole = jax.jit(lambda case: asked(METHOD, PARAMS, KEYS, case))(CASE)
    for got, expected in zip(
        *map(jax.tree.leaves, (answer(observed), whole)), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_it_is_cut_where_otsu_cuts_the_mean(observed):
    found = answer(observed)
    np.testing.assert_array_equal(found.threshold, np.full((1, 2), 0.5))
    cut = float(decision.otsu(observed.fused.mean[0, 0]))
    mean = np.asarray(found.maps["prior_mean"][0, 0])
    clear = np.abs(mean - cut) > 1e-5
    assert 0 < cut < 1 and clear.mean() > 0.9
    probability = np.asarray(found.probability[0, 0])
    assert ((probability > 0.5) == (mean > cut))[clear].all()
    # Piecewise linear: 0 -> 0, cut -> 1/2, 1 -> 1.
    expected = np.interp(mean, [0, cut, 1], [0, 0.5, 1])
    np.testing.assert_allclose(probability, expected, atol=1e-5)


def test_no_strokes_change_nothing(observed):
    nothing = jnp.zeros(SHAPE)
    found, plain = answer(observed, Strokes(nothing, nothing)), answer(observed)
    for got, expected in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_strokes_are_honoured_and_reach_further(observed):
    drawn, plain = strokes(), answer(observed)
    found = np.asarray(answer(observed, drawn).probability)
    assert (found >= 0).all() and (found <= 1).all()
    fg, bg = (np.asarray(x) > 0 for x in drawn[:2])
    assert (found[fg] == 1).all() and (found[bg] == 0).all()
    # What is one way's foreground is not another's.
    assert (found[:, 1][fg[:, 0]] == 0).all()
    moved = found - np.asarray(plain.probability)
    silent = ~(fg | bg).any(axis=1)[0]
    assert moved[0, 0][silent].min() < -0.01  # around "not this"
    (top, left), (bottom, right) = (
        f(np.argwhere(fg[0, 0]), 0) for f in (np.min, np.max)
    )
    beside = np.s_[top - 2 : bottom + 3, left - 2 : right + 3]
    assert moved[0, 0][beside][silent[beside]].min() > -1e-6
    assert moved[0, 1][silent].max() <= 1e-6  # only "not this" was said of way 1


def test_a_mask_to_restart_from_is_not_read(observed):
    for value in (0.0, 1.0):
        masked = answer(observed, strokes(mask=jnp.full(SHAPE, value)))
        for got, expected in zip(
            *map(jax.tree.leaves, (masked, answer(observed, strokes()))), strict=True
        ):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["fg", "bg", "mask"])
def test_another_shape_is_refused_by_name(observed, name):
    wrong = strokes(mask=jnp.zeros(SHAPE))._replace(**{name: jnp.zeros((1, 1, 8, 8))})
    with pytest.raises(DiffUpError, match=rf"strokes\.{name} has shape \(1, 1, 8, 8\)"):
        METHOD.answer(PARAMS, KEYS, observed, wrong)
