"""DiffUp without diffusion: the same decoder answers once, from nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import images
from diffup_jax.methods import decision, objective
from diffup_jax.methods.prior.correction import Strokes
from tests.test_diffup import KEYS, LOSSES, METHOD, episode, randomised

CASE = episode()
SIZE = CASE.query.shape[1:3]
OTHER_KEYS = jax.random.split(jax.random.key(9), 2)
ONE = dataclasses.replace(
    METHOD,
    process=dataclasses.replace(METHOD.process, diffusion=False),
    sampler=dataclasses.replace(
        METHOD.sampler, steps=1, samples=1, warm_start=False, prior_dropout=0.0
    ),
    losses=dataclasses.replace(LOSSES, prior_dropout=0.0, prior_gamma=0.0),
)


@pytest.fixture(scope="module")
def params():
    return randomised(ONE.init(jax.random.key(0), CASE))


@pytest.fixture(scope="module")
def prepared(params):
    return jax.jit(ONE.prepare)(params, CASE)


@jax.jit
def answer(params, keys, prepared, strokes=None):
    return ONE.predict_prepared(params, keys, prepared, SIZE, query_strokes=strokes)


@pytest.fixture(scope="module")
def said(params, prepared):
    """The logits of the network at R, given nothing."""

    @jax.jit
    def run(params, prepared):
        facts = objective.facts_of(ONE._state(prepared))
        nothing = jnp.zeros_like(facts.mean)
        out = ONE._network.apply(
            {"params": params["decoder"]},
            facts,
            nothing,
            jnp.ones(len(nothing)),
            nothing,
        )
        return out.logits

    return run(params, prepared)


def test_the_mask_is_cut_where_its_expected_iou_is_greatest(params, prepared, said):
    _, maps = answer(params, KEYS, prepared)
    expected = decision.of_greatest_iou(jax.nn.sigmoid(said))
    np.testing.assert_allclose(maps["threshold"][:, 0], expected, rtol=1e-4)
    half = dataclasses.replace(
        ONE, sampler=dataclasses.replace(ONE.sampler, threshold="half")
    )
    run = jax.jit(lambda *a: half.predict_prepared(*a, SIZE))
    prob, plain = run(params, KEYS, prepared)
    np.testing.assert_array_equal(plain["threshold"], 0.5)
    np.testing.assert_array_equal(prob, answer(params, KEYS, prepared)[0])


def test_the_tree_is_that_of_diffusion_without_dqm():
    tree = jax.eval_shape(ONE.init, jax.random.key(0), CASE)["decoder"]
    chain = jax.eval_shape(METHOD.init, jax.random.key(0), CASE)["decoder"]
    del chain["quality_module"]
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(tree) == shapes(chain)


def test_the_answer_is_what_the_network_says_given_nothing(params, prepared, said):
    prob, maps = answer(params, KEYS, prepared)
    expected = images.resize_maps(jax.nn.sigmoid(said), SIZE)
    np.testing.assert_allclose(prob[:, 0], expected, atol=1e-5)
    assert float(prob.std()) > 0
    assert float(maps["spread"].max()) == 0
    again, _ = answer(params, OTHER_KEYS, prepared)
    np.testing.assert_array_equal(again, prob)


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
    assert float(loss) == pytest.approx(bce + LOSSES.dice * dice, rel=1e-4)
    # Nothing is drawn but the disturbance of the priors, which is off here.
    assert float(jax.jit(ONE.loss_prepared)(params, OTHER_KEYS, prepared)[0]) == loss


def test_the_disturbance_of_the_priors_is_drawn(params, prepared):
    drawn = jax.jit(dataclasses.replace(ONE, losses=LOSSES).loss_prepared)
    first, other = (float(drawn(params, k, prepared)[0]) for k in (KEYS, OTHER_KEYS))
    assert abs(first - other) > 1e-4


def test_samples_of_parts_of_the_priors_differ(params, prepared):
    method = dataclasses.replace(
        ONE, sampler=dataclasses.replace(ONE.sampler, samples=4, prior_dropout=0.5)
    )
    run = jax.jit(lambda *a: method.predict_prepared(*a, SIZE))
    _, maps = run(params, KEYS, prepared)
    assert float(maps["spread"].max()) > 1e-3


def test_strokes_are_honoured_and_the_mask_is_not_read(params, prepared):
    shape = CASE.query_mask.shape
    fg = jnp.zeros(shape).at[:, :, 30:34, 30:34].set(1)
    bg = jnp.zeros(shape).at[:, :, 4:8, 50:54].set(1)
    plain, _ = answer(params, KEYS, prepared)
    prob, maps = answer(params, KEYS, prepared, Strokes(fg, bg))
    np.testing.assert_array_equal(maps["threshold"], 0.5)
    assert (prob[fg > 0] == 1).all() and (prob[bg > 0] == 0).all()
    elsewhere = (fg + bg) == 0
    assert float(jnp.abs(prob - plain)[elsewhere].max()) > 0.02
    masked, _ = answer(params, KEYS, prepared, Strokes(fg, bg, 1 - plain))
    np.testing.assert_array_equal(masked, prob)


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
