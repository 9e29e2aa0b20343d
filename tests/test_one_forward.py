"""DiffUp without diffusion: the same decoder answers once, from nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import images
from diffup_jax.methods.prior import decision
from diffup_jax.types import Strokes
from tests.episodes_made import squares
from tests.test_diffup import KEYS, METHOD, randomised, settings

CASE = squares()
SIZE = CASE.query.image.shape[1:3]
OTHER_KEYS = jax.random.split(jax.random.key(9), 2)
DISTURBED = settings(
    process={"diffusion": False},
    sampler={"steps": 1, "samples": 1, "warm_start": False},
)
ONE = settings(DISTURBED, losses={"prior_dropout": 0.0, "prior_gamma": 0.0})


@pytest.fixture(scope="module")
def params():
    return randomised(ONE.init(jax.random.key(0), CASE))


@pytest.fixture(scope="module")
def prepared(params):
    return jax.jit(ONE.prepare)(params, CASE)


@pytest.fixture(scope="module")
def observed(params):
    memory = jax.jit(ONE.encode)(params, CASE.support)
    return jax.jit(ONE.observe)(params, CASE.query, memory)


ANSWER = jax.jit(ONE.answer)


@pytest.fixture(scope="module")
def said(params, prepared):
    """The logits of the network at R."""

    @jax.jit
    def run(params, prepared):
        fused = ONE.prior.fuse(prepared.priors, prepared.floor)
        facts = ONE._facts(fused, prepared.extent, prepared.rgb)
        return ONE._network.apply({"params": params["decoder"]}, facts)

    return run(params, prepared)


def test_the_mask_is_cut_where_its_expected_iou_is_greatest(params, observed, said):
    found = ANSWER(params, KEYS, observed, None)
    expected = decision.of_greatest_iou(jax.nn.sigmoid(said))
    np.testing.assert_allclose(found.threshold[:, 0], expected, rtol=1e-4)
    half = settings(ONE, sampler={"threshold": "half"})
    plain = jax.jit(half.answer)(params, KEYS, observed, None)
    np.testing.assert_array_equal(plain.threshold, np.full((2, 1), 0.5))
    np.testing.assert_array_equal(plain.probability, found.probability)


def test_the_network_is_the_inner_module_of_the_chain():
    """Its tree is a part of the chain's, so a chain may begin with its parameters."""
    tree = jax.eval_shape(ONE.init, jax.random.key(0), CASE)["decoder"]
    chain = jax.eval_shape(METHOD.init, jax.random.key(0), CASE)["decoder"]["decoder"]
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(tree) == shapes(chain)


def test_the_answer_is_what_the_network_says(params, observed, said):
    prob, _, maps = ANSWER(params, KEYS, observed, None)
    expected = images.resize_maps(jax.nn.sigmoid(said), SIZE)
    np.testing.assert_allclose(prob[:, 0], expected, atol=1e-5)
    assert float(prob.std()) > 0
    assert set(maps) == {"prior_mean", "prior_variance", "uncertainty"}
    again = ANSWER(params, OTHER_KEYS, observed, None)
    np.testing.assert_array_equal(again.probability, prob)


def test_the_loss_is_bce_and_dice_of_that_answer(params, prepared, said):
    prepared = prepared._replace(valid=prepared.valid.at[:, :, :5].set(0))
    loss, terms = jax.jit(ONE.loss_prepared)(params, KEYS, prepared)
    y = np.asarray(prepared.target[:, 0], np.float64)
    v = np.asarray(prepared.valid, np.float64)
    p = 1 / (1 + np.exp(-np.asarray(said, np.float64)))
    pixels = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    bce = np.mean([(pixels * v)[i].sum() / v[i].sum() for i in range(len(y))])
    overlap, mass = ((x * v).sum(axis=(1, 2)) for x in (p * y, p + y))
    dice = np.mean(1 - (2 * overlap + 1) / (mass + 1))
    assert set(terms) == {"bce", "dice"}
    assert float(loss) == pytest.approx(bce + ONE.settings.losses.dice * dice, rel=1e-4)
    # Nothing is drawn but the disturbance of the priors, which is off here.
    assert float(jax.jit(ONE.loss_prepared)(params, OTHER_KEYS, prepared)[0]) == loss


def test_the_disturbance_of_the_priors_is_drawn(params, prepared):
    drawn = jax.jit(DISTURBED.loss_prepared)
    first, other = (float(drawn(params, k, prepared)[0]) for k in (KEYS, OTHER_KEYS))
    assert abs(first - other) > 1e-4


def test_strokes_are_honoured_and_the_mask_is_not_read(params, observed):
    shape = CASE.query.mask.shape
    fg = jnp.zeros(shape).at[:, :, 30:34, 30:34].set(1)
    bg = jnp.zeros(shape).at[:, :, 4:8, 50:54].set(1)
    plain = ANSWER(params, KEYS, observed, None).probability
    prob, threshold, _ = ANSWER(params, KEYS, observed, Strokes(fg, bg))
    np.testing.assert_array_equal(threshold, np.full((2, 1), 0.5))
    assert (prob[fg > 0] == 1).all() and (prob[bg > 0] == 0).all()
    elsewhere = (fg + bg) == 0
    assert float(jnp.abs(prob - plain)[elsewhere].max()) > 0.02
    masked = ANSWER(params, KEYS, observed, Strokes(fg, bg, 1 - plain))
    np.testing.assert_array_equal(masked.probability, prob)


def test_it_learns():
    params = ONE.init(jax.random.key(0), CASE)
    prepared = jax.jit(ONE.prepare)(params, CASE)

    @jax.jit
    def step(params):
        loss = lambda p: ONE.loss_prepared(p, KEYS, prepared)[0]  # noqa: E731
        value, grad = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, grad), value

    values = []
    for _ in range(25):
        params, value = step(params)
        values.append(float(value))
    assert values[-1] < 0.8 * values[0]
