"""Laws of BAFT's shots: their order, padding, repeats, odd cues, and none at all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.methods.prior import evidence
from tests.test_baft import GRID, episode, make
from tests.test_operators import features


def at(case, shots):
    """The case with the shots of these places."""
    shots = jnp.asarray(shots)
    return {
        **case,
        "support": tuple(s[:, :, shots] for s in case["support"]),
        **{name: case[name][:, :, shots] for name in ("fg", "bg", "valid")},
    }


@pytest.mark.parametrize("order", [[2, 0, 1], [3, 6, 0, 5, 1, 4, 2]])
def test_shots_only_permute(order):
    """Seven are more than judge each other."""
    assert 3 < evidence.MOST_JUDGES < 7
    case, order = episode(len(order)), jnp.array(order)
    moved, whole = make(at(case, order)), make(case)
    np.testing.assert_allclose(moved.maps, whole.maps[:, :, :, :, order], atol=1e-5)
    np.testing.assert_allclose(
        moved.reliability, whole.reliability[..., order], atol=1e-5
    )


@pytest.mark.parametrize("k", [3, 7])
def test_what_shots_are_worth_depends_on_no_query(k):
    case = episode(k)
    other = make(case, query=episode(k, seed=9)["query"])
    for name in ("reliability", "share", "valid"):
        np.testing.assert_array_equal(getattr(other, name), getattr(make(case), name))
    assert not np.allclose(other.maps, make(case).maps, atol=0.1)


def test_padding_changes_nothing():
    """A padded shot, whatever it holds, leaves the others and their reliability."""
    case = episode()
    valid = case["valid"].at[:, :, 2].set(False)
    padded = make(case, valid=valid)
    rubbish = make(
        case,
        valid=valid,
        support=tuple(s.at[:, :, 2].set(7.0) for s in case["support"]),
        fg=case["fg"].at[:, :, 2].set(0.3),
    )
    for got, expected in zip(*map(jax.tree.leaves, (rubbish, padded)), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    two = make(at(case, [0, 1]))
    np.testing.assert_allclose(padded.maps[:, :, :, :, :2], two.maps, atol=1e-5)
    np.testing.assert_allclose(padded.reliability[..., :2], two.reliability, atol=1e-5)
    np.testing.assert_array_equal(padded.maps[:, :, :, :, 2], 0)


def test_a_lone_valid_shot_checks_itself():
    """K = 3 with one valid shot has the reliability of K = 1."""
    case = episode()
    valid = case["valid"].at[:, :, 1:].set(False)
    one = make(at(case, [0]))
    got = make(case, valid=valid)
    np.testing.assert_allclose(got.reliability[..., :1], one.reliability, atol=1e-6)


def test_a_shot_that_matches_the_others_is_more_reliable():
    """Two shots share a look; the third marks noise. Leave-one-out finds it."""
    rng = np.random.default_rng(0)
    look, other = features(5, 8), features(6, 8)
    support = np.zeros((1, 1, 3, 6, 6, 8), np.float32)
    fg = np.zeros((1, 1, 3, 24, 24), np.float32)
    for k in range(3):
        support[0, 0, k] = other + 0.1 * rng.normal(size=(6, 6, 8))
        support[0, 0, k, 1:3, 1:4] = look + 0.1 * rng.normal(size=(2, 3, 8))
        fg[0, 0, k, 4:12, 4:16] = 1
    fg[0, 0, 2] = 0
    fg[0, 0, 2, 12:24, 0:8] = 1  # a wrong cue: background
    case = {
        "query": (jnp.asarray(support[:, 0, 0]),),
        "support": (jnp.asarray(support),),
        "fg": jnp.asarray(fg),
        "bg": jnp.asarray(1 - fg),
        "valid": jnp.ones((1, 1, 3), bool),
    }
    reliability = np.asarray(make(case).reliability)[0, 0, 0]
    assert (reliability[:, 2] < reliability[:, :2].min(axis=1)).all()


@pytest.mark.parametrize(
    "name, fg, bg",
    [
        ("one pixel, rest unknown", "pixel", 0.0),
        ("whole image foreground", 1.0, 0.0),
        ("no pixel known", 0.0, 0.0),
        ("all background", 0.0, 1.0),
    ],
)
def test_odd_cues_stay_finite(name, fg, bg):
    case = episode(k=2)
    shape = case["fg"].shape
    filled = (
        jnp.zeros(shape).at[..., 5, 7].set(1.0)
        if fg == "pixel"
        else jnp.full(shape, fg)
    )
    priors = make(case, fg=filled, bg=jnp.full(shape, bg))
    parts = [np.asarray(part, np.float32) for part in jax.tree.leaves(priors)]
    assert all(np.isfinite(part).all() for part in parts)
    # A cue that shows no foreground says nothing of the class.
    assert bool(priors.valid.all()) == (fg != 0.0)


def test_repeated_shots_count_once():
    """[A, A, B] says what [A, B] says: reliabilities alike, A's share halved."""
    case, order = episode(k=2), jnp.array([0, 0, 1])
    twice, once = make(at(case, order)), make(case)
    np.testing.assert_array_equal(once.share, 1.0)
    np.testing.assert_allclose(twice.share, np.full((2, 1, 3), [0.5, 0.5, 1]))
    np.testing.assert_allclose(
        twice.reliability, once.reliability[..., order], atol=1e-5
    )
    # Copies alone are one shot: nothing but the check on itself.
    copies = make(at(case, [0, 0]))
    alone = make(case, valid=case["valid"].at[:, :, 1].set(False))
    np.testing.assert_allclose(
        copies.reliability[..., 1], alone.reliability[..., 0], atol=1e-5
    )


@pytest.mark.parametrize("change", ["another stroke", "another picture", "padding"])
def test_what_is_no_repeat_counts_in_full(change):
    case = at(episode(k=2), [0, 0])
    point = jnp.zeros_like(case["fg"])
    if change == "another stroke":
        case["fg"] = point.at[:, :, 0, 3, 3].set(1).at[:, :, 1, 9, 9].set(1)
        case["bg"] = point
    elif change == "another picture":
        other = episode(k=2, seed=9)["support"]
        mixed = [
            jnp.concatenate(
                [a[:, :, :1], 0.9 * a[:, :, :1] + 0.3 * b[:, :, :1]], axis=2
            )
            for a, b in zip(case["support"], other, strict=True)
        ]
        case["support"] = tuple(mixed)
    else:
        case["valid"] = case["valid"].at[:, :, 1].set(False)
    np.testing.assert_array_equal(make(case).share[:, :, 0], 1.0)


def test_no_shots_at_all():
    case = episode(k=1)
    none = at(case, jnp.zeros(0, int))
    priors = make(none)
    assert priors.maps.shape == (2, 1, 2, 4, 0, *GRID)
    text = make(none, text=jnp.ones((2, 1, 3, 3)), text_valid=jnp.ones((2, 1), bool))
    assert bool(text.text_valid.all()) and not text.text_reliability.any()


def test_no_gradient_breaks_on_empty_cues():
    case = episode(k=2)
    grad = jax.jit(
        jax.grad(
            lambda s: make(
                case, support=s, fg=case["fg"] * 0, bg=case["bg"] * 0
            ).maps.sum()
        )
    )(case["support"])
    assert all(np.isfinite(x).all() for x in grad)
