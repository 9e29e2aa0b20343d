"""Laws of the fusion: what must not, and what must, change mean and variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffup_jax.methods.prior import uapf


def fuse(maps, valid, reliability, floor=0.01, share=None, rejected=None):
    share = np.ones(np.shape(valid)) if share is None else share
    size = (*np.shape(maps)[:2], *np.shape(maps)[3:])
    rejected = np.zeros(size) if rejected is None else rejected
    return uapf.fuse(
        jnp.asarray(maps, jnp.float32),
        jnp.asarray(valid),
        reliability=jnp.asarray(reliability, jnp.float32),
        share=jnp.asarray(share, jnp.float32),
        temperature=0.1,
        floor=jnp.full(np.shape(maps)[:2], floor),
        rejected=jnp.asarray(rejected, jnp.float32),
    )


def case(seed, m=5):
    rng = np.random.default_rng(seed)
    valid = rng.random((2, 1, m)) < 0.7
    valid[:, :, 0] = True
    return rng.random((2, 1, m, 3, 3)), valid, rng.uniform(-1, 1, (2, 1, m))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_order_does_not_matter(seed):
    maps, valid, r = case(seed)
    order = np.random.default_rng(seed).permutation(maps.shape[2])
    for got, expected in zip(
        fuse(maps[:, :, order], valid[:, :, order], r[:, :, order]),
        fuse(maps, valid, r),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_an_invalid_prior_changes_nothing(seed):
    maps, valid, r = case(seed)
    spoilt, rubbish = maps.copy(), r.copy()
    spoilt[~valid], rubbish[~valid] = 1e6, 1e6
    for got, expected in zip(
        fuse(spoilt, valid, rubbish), fuse(maps, valid, r), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_against_a_plain_sum(seed):
    maps, valid, r = case(seed)
    mean, variance = fuse(maps, valid, r)
    for b in range(2):
        w = np.where(valid[b, 0], np.exp(r[b, 0] / 0.1), 0)
        w = w / w.sum()
        mu = sum(w[i] * maps[b, 0, i] for i in range(5))
        var = 0.01
        for weight, p in zip(w, maps[b, 0], strict=True):
            var = var + weight * uapf.DISAGREED * (p - mu) ** 2
            var = var + weight * uapf.LEFT_OPEN * p * (1 - p)
        np.testing.assert_allclose(mean[b, 0], mu, atol=1e-5)
        np.testing.assert_allclose(variance[b, 0], np.minimum(var, 0.25), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_copies_at_a_part_of_the_share_are_one_prior(seed):
    maps, valid, r = case(seed)
    copied = [np.repeat(x, [3, 1, 1, 1, 1], axis=2) for x in (maps, valid, r)]
    share = np.broadcast_to([1 / 3] * 3 + [1] * 4, copied[1].shape)
    for got, expected in zip(
        fuse(*copied, share=share), fuse(maps, valid, r), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_equal_priors_are_as_unsure_as_one_of_them(seed):
    one, valid, r = case(seed)
    maps = np.repeat(one[:, :, :1], one.shape[2], axis=2)
    mean, variance = fuse(maps, valid, r)
    np.testing.assert_allclose(mean, maps[:, :, 0], atol=1e-6)
    _, alone = fuse(one[:, :, :1], valid[:, :, :1], r[:, :, :1])
    np.testing.assert_allclose(variance, alone, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_certain_priors_that_agree_leave_only_the_floor(seed):
    one, valid, r = case(seed)
    maps = np.repeat(one[:, :, :1].round(), one.shape[2], axis=2)
    mean, variance = fuse(maps, valid, r)
    np.testing.assert_allclose(mean, maps[:, :, 0], atol=1e-6)
    np.testing.assert_allclose(variance, 0.01, atol=1e-6)


def test_a_prior_that_decides_less_is_less_sure():
    maps = np.array([[0.05, 0.3], [0.5, 0.98]])[None, None, None]
    _, variance = fuse(maps, np.ones((1, 1, 1), bool), np.zeros((1, 1, 1)))
    assert np.argsort(np.ravel(variance)).tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize("agreed", [0.0, 1.0])
def test_priors_that_disagree_are_less_sure_than_certain_ones(agreed):
    every = np.ones((1, 1, 2), bool), np.zeros((1, 1, 2))
    _, sure = fuse(np.full((1, 1, 2, 1, 1), agreed), *every)
    _, unsure = fuse(np.reshape([0.0, 1.0], (1, 1, 2, 1, 1)), *every)
    assert unsure.item() > sure.item()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_weights_are_a_mean_or_nothing(seed):
    """Finite, not negative, of sum 1 with a valid prior and 0 without."""
    _, valid, r = case(seed)
    valid[1] = False
    weights = uapf.fusion_weights(
        jnp.asarray(valid),
        jnp.asarray(1e3 * r, jnp.float32),
        share=jnp.ones(valid.shape),
        temperature=0.01,
    )
    assert np.isfinite(weights).all() and float(weights.min()) >= 0
    np.testing.assert_allclose(weights.sum(axis=2)[:, 0], [1, 0], atol=1e-5)


def test_what_is_rejected_lowers_the_mean_alone():
    maps, valid, r = case(0)
    rejected = np.random.default_rng(1).random((2, 1, 3, 3))
    rejected[0, 0, 0] = 0, 1, 0.25
    mean, variance = fuse(maps, valid, r, rejected=rejected)
    plain, unsure = fuse(maps, valid, r)
    np.testing.assert_allclose(mean, plain * (1 - rejected), atol=1e-6)
    assert mean[0, 0, 0, 0] == plain[0, 0, 0, 0] and mean[0, 0, 0, 1] == 0
    np.testing.assert_array_equal(variance, unsure)
    # Also where nothing else is known.
    mean, variance = fuse(maps, np.zeros_like(valid), r, rejected=rejected)
    np.testing.assert_allclose(mean, 0.5 * (1 - rejected), atol=1e-6)
    np.testing.assert_array_equal(variance, uapf.MAX_VARIANCE)


def test_no_priors_at_all():
    mean, variance = fuse(
        np.zeros((1, 2, 0, 3, 3)), np.zeros((1, 2, 0), bool), np.zeros((1, 2, 0))
    )
    np.testing.assert_array_equal(mean, 0.5)
    np.testing.assert_array_equal(variance, uapf.MAX_VARIANCE)


def test_nothing_valid_is_wholly_unsure():
    maps, valid, r = case(0)
    mean, variance = fuse(maps, np.zeros_like(valid), r)
    np.testing.assert_array_equal(mean, 0.5)
    np.testing.assert_array_equal(variance, uapf.MAX_VARIANCE)
    weights = uapf.fusion_weights(
        jnp.zeros((1, 1, 4), bool),
        jnp.zeros((1, 1, 4)),
        share=jnp.ones((1, 1, 4)),
        temperature=0.1,
    )
    np.testing.assert_array_equal(weights, 0)


def test_the_reliable_prior_weighs_more():
    maps = np.stack([np.zeros((2, 2)), np.ones((2, 2))])[None, None]
    mean, _ = fuse(maps, np.ones((1, 1, 2), bool), [[[0.1, 0.4]]])
    assert (np.asarray(mean) > 0.9).all()


def test_variance_never_exceeds_what_is_possible():
    maps = np.full((1, 1, 2, 2, 2), 0.5)
    every = np.ones((1, 1, 2), bool), np.zeros((1, 1, 2))
    assert float(fuse(maps, *every)[1].max()) < uapf.MAX_VARIANCE
    _, variance = fuse(maps, *every, floor=0.2)
    np.testing.assert_array_equal(variance, uapf.MAX_VARIANCE)


def floor(kinds, valid, text=False):
    return float(
        uapf.cue_floor(jnp.array([[kinds]]), jnp.array([[valid]]), jnp.array([[text]]))[
            0, 0
        ]
    )


def test_floors_follow_how_much_a_cue_tells():
    alone = [floor([kind], [True]) for kind in range(4)] + [floor([0], [False], True)]
    assert alone == sorted(alone) and len(set(alone)) == 5
    assert floor([3, 0], [True, True]) == alone[0]  # more cues never make it less sure
    assert floor([3, 0], [True, False]) == alone[3]
    assert floor([0], [False]) == uapf.MAX_VARIANCE


kind = st.integers(0, len(uapf.FLOORS) - 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(kind, max_size=4), kind, st.booleans())
def test_one_more_cue_never_raises_the_floor(kinds, more, text):
    """A point beside a mask, a mask beside a point, anything beside text."""
    before = floor(kinds + [0], [True] * len(kinds) + [False], text)
    after = floor([*kinds, more], [True] * (len(kinds) + 1), text)
    assert after <= before
    assert floor([*kinds, more], [True] * (len(kinds) + 1), True) <= after


def test_gradients_are_finite_without_priors():
    grad = jax.grad(
        lambda m: sum(
            x.sum()
            for x in uapf.fuse(
                m,
                jnp.zeros((1, 1, 2), bool),
                reliability=jnp.zeros((1, 1, 2)),
                share=jnp.ones((1, 1, 2)),
                temperature=0.1,
                floor=jnp.zeros((1, 1)),
                rejected=jnp.zeros((1, 1, 2, 2)),
            )
        )
    )(jnp.ones((1, 1, 2, 2, 2)))
    assert np.isfinite(grad).all()
    assert pytest.approx(0) == float(jnp.abs(grad).max())
