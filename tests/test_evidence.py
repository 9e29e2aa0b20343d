"""Laws of evidence: what shots are worth, and what their cues say of the class."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.methods.prior import evidence


def test_agreement_by_hand():
    prior = jnp.array([[0.9, 0.5], [0.1, 0.3]])
    fg = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    bg = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    assert float(evidence.agreement(prior, fg, bg)) == pytest.approx(0.8)
    # All that is not foreground, and an image that is nothing else.
    assert float(evidence.agreement(prior, fg, 1 - fg)) == pytest.approx(0.9 - 0.3)
    whole = jnp.ones((2, 2))
    assert float(evidence.agreement(prior, whole, 1 - whole)) == pytest.approx(0.45)


def test_presumed_background_by_hand():
    """A mask with ignored cells, a point, a point with a little background, padding."""
    fg, bg = np.zeros((2, 1, 1, 4, 2, 2), np.float32)
    fg[..., 0, 0] = 1
    bg[0, 0, 0] = [[0, 1], [1, 0]]
    bg[0, 0, 2] = [[0, 0.5], [0, 0]]
    valid = jnp.array([[[True, True, True, False]]])
    told = evidence.told(jnp.asarray(fg), jnp.asarray(bg), valid)
    np.testing.assert_array_equal(told[0, 0], [True, False, False, False])
    got = evidence.presumed(jnp.asarray(fg), jnp.asarray(bg), told)
    np.testing.assert_array_equal(got[0, 0, 0], [[0, 1], [1, 0]])
    for shot in got[0, 0, 1:]:
        np.testing.assert_array_equal(shot, [[0, 1], [1, 1]])


def test_extent_counts_the_shots_that_tell_it():
    """Hand-made: a mask of a quarter, a scribble that leaves most unknown, a mask that
    is sometimes padding, a cue that marks nothing.
    """
    fg = np.zeros((1, 1, 4, 8, 8), np.float32)
    bg = np.zeros_like(fg)
    fg[0, 0, 0, :4, :4] = 1
    bg[0, 0, 0] = 1 - fg[0, 0, 0]
    fg[0, 0, 1, 0, 0] = 1  # everything else unknown
    fg[0, 0, 2] = 1
    for valid, expected in (
        ((True, True, False, False), (np.log(0.25 + 1e-3) + 3, 1)),
        # An eighth of a side is 4 of 32 cells.
        ((False, True, False, False), (np.log(16 / 1024 + 1e-3) + 3, 0)),
        ((True, False, True, False), (np.log(0.625 + 1e-3) + 3, 1)),
        ((False, False, False, False), (0, 0)),
        ((False, False, False, True), (0, 0)),
    ):
        shots = jnp.array(valid).reshape(1, 1, 4)
        got = evidence.extent(
            jnp.asarray(fg), jnp.asarray(bg), shots, share=jnp.ones((1, 1, 4))
        )
        np.testing.assert_allclose(got[0, 0], expected, rtol=1e-5)


def test_extent_of_clicks_is_how_many_cells_they_touch():
    """Two in one cell are as one. Of more pictures the mean: a decoder that was trained
    with one may see five, and five clicks' extent must be one click's.
    """
    fg = np.zeros((1, 1, 2, 64, 64), bool)
    fg[0, 0, 0, :2, :2] = True  # one cell of 2 x 2 pixels
    fg[0, 0, 1, 40, [0, 20, 40]] = True

    def size(*valid, cue=fg):
        shots, share = jnp.array(valid).reshape(1, 1, 2), jnp.ones((1, 1, 2))
        none = jnp.zeros_like(cue)
        return evidence.extent(jnp.asarray(cue), none, shots, share=share)[0, 0]

    for cells, found in (
        (1, size(True, False)),
        (3, size(False, True)),
        (2, size(True, True)),
        (1, size(True, True, cue=fg[:, :, [0, 0]])),
    ):
        expected = (np.log(cells / 1024 + 1e-3) + 3, 0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("known", [True, False])
def test_extent_does_not_care_for_the_order_of_shots(known):
    rng = np.random.default_rng(0)
    fg = jnp.asarray(rng.random((2, 1, 4, 8, 8)) < 0.3, jnp.float32)
    bg = (1 - fg) * known
    valid = jnp.array([[[1, 1, 0, 1]], [[1, 0, 1, 1]]], bool)
    order = jnp.array([2, 0, 3, 1])
    share = jnp.array([[[1, 0.5, 0.5, 1]]] * 2)
    first = evidence.extent(fg, bg, valid, share=share)
    second = evidence.extent(
        fg[:, :, order],
        bg[:, :, order],
        valid[:, :, order],
        share=share[..., order],
    )
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_extent_of_a_repeated_shot_counts_once():
    rng = np.random.default_rng(0)
    fg = jnp.asarray(rng.random((1, 1, 2, 8, 8)) < 0.3, jnp.float32)
    thrice = fg[:, :, jnp.array([0, 0, 0, 1])]
    np.testing.assert_allclose(
        evidence.extent(
            thrice,
            1 - thrice,
            jnp.ones((1, 1, 4), bool),
            share=jnp.array([[[1 / 3, 1 / 3, 1 / 3, 1]]]),
        ),
        evidence.extent(
            fg, 1 - fg, jnp.ones((1, 1, 2), bool), share=jnp.ones((1, 1, 2))
        ),
        rtol=1e-5,
    )


def judged(support, valid=None, share=None, same=None):
    """Which shots judge, and what each counts, as {shot: count}."""
    k = len(support)
    which, counts = evidence.judges(
        jnp.asarray(support, jnp.float32).reshape(k, 1, 1, -1),
        valid=jnp.ones(k, bool) if valid is None else jnp.asarray(valid),
        same=jnp.eye(k, dtype=bool) if same is None else jnp.asarray(same),
        share=jnp.ones(k) if share is None else jnp.asarray(share, jnp.float32),
    )
    assert len(which) == min(k, evidence.MOST_JUDGES)
    pairs = zip(which.tolist(), counts.tolist(), strict=True)
    return {shot: count for shot, count in pairs if count}


def test_the_judges_of_many_shots_are_those_most_like_the_mean():
    """Of seven directions around a mean the two that lie furthest off judge none."""
    angles = np.radians([0, 10, -10, 20, -20, 80, -80])
    support = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert judged(support) == dict.fromkeys(range(5), 1)
    # Their order changes nothing.
    order = np.array([5, 3, 0, 6, 1, 4, 2])
    assert set(order[list(judged(support[order]))].tolist()) == set(range(5))
    # Few judge all, each by its share; padding judges none.
    shares = [0.5, 0.5, 1, 1, 1]
    valid = [True, True, True, False, True]
    assert judged(support[:5], valid, shares) == {0: 0.5, 1: 0.5, 2: 1, 4: 1}


def test_of_copies_one_judges_in_full():
    angles = np.radians([0, 0, 0, 10, -10, 80, 0])
    support = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    same = np.eye(7, dtype=bool)
    same[np.ix_([0, 1, 2], [0, 1, 2])] = True
    share = [1 / 3, 1 / 3, 1 / 3, 1, 1, 1, 1]
    valid = np.arange(7) < 6
    assert judged(support, valid, share, same) == {0: 1, 3: 1, 4: 1, 5: 1}
