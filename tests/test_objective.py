"""The loss: its two parts, what each of them sees, what no gradient passes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from flax import traverse_util

from diffup_jax.methods.diffup import objective
from diffup_jax.methods.diffup.chain import Chain
from diffup_jax.methods.diffup.decoder import Decoder, Facts
from diffup_jax.methods.diffup.disturbance import Draws
from diffup_jax.methods.diffup.options import LossSettings, ProcessSettings

R, B = 16, 2
NETWORK = Chain(Decoder("S", query_rgb=True, scm=True), dqm=False)
LOSSES = LossSettings(from_own=0.5, from_prior=0.5, self_conditioning=1.0)
PROCESS = ProcessSettings(diffusion=True)


class State(NamedTuple):
    """What the loss is asked of."""

    facts: Facts
    target: jax.Array
    valid: jax.Array


@pytest.fixture(scope="module")
def state():
    keys = jax.random.split(jax.random.key(0), 5)
    maps = lambda key: jax.random.uniform(key, (B, R, R))  # noqa: E731
    facts = Facts(
        mean=maps(keys[0]),
        variance=0.25 * maps(keys[1]),
        extent=jnp.zeros((B, 2)),
        rgb=jax.random.uniform(keys[3], (B, R, R, 3)),
    )
    return State(facts, jnp.round(maps(keys[4])), jnp.ones((B, R, R)))


@pytest.fixture(scope="module")
def params(state):
    x = jnp.zeros((B, R, R))
    shapes = jax.eval_shape(
        NETWORK.init, jax.random.key(0), state.facts, x, x[:, 0, 0], x
    )["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype) for x in leaves]
    return jax.tree.unflatten(tree, drawn)


def evaluated(params, state, **changes):
    """Loss, and its gradient by the last layer: a short way back, unless the answer of
    the first pass is differentiated too."""
    losses = msgspec.structs.replace(LOSSES, **changes)
    inner = {name: part for name, part in params["decoder"].items() if name != "head"}

    @jax.jit
    def run(head, state):
        draws = Draws(jax.random.split(jax.random.key(3), B))
        return objective.of_chain(
            NETWORK,
            {**params, "decoder": {**inner, "head": head}},
            draws,
            *state,
            losses=losses,
            process=PROCESS,
        )[0]

    value, grad = jax.value_and_grad(run)(params["decoder"]["head"], state)
    return float(value), np.concatenate(
        [np.ravel(x) for x in traverse_util.flatten_dict(grad).values()]
    )


def test_the_loss_is_the_mean_of_its_two_parts(params, state):
    """Gradients too, so none passes from the second part into the first answer."""
    whole, first, second = (
        evaluated(params, state, first_step=share) for share in (0.25, 1.0, 0.0)
    )
    for got, one, other in zip(whole, first, second, strict=True):
        np.testing.assert_allclose(got, 0.25 * one + 0.75 * other, rtol=1e-4, atol=1e-6)
    assert abs(first[0] - second[0]) > 1e-3


def test_the_second_part_sees_the_truth_only_where_it_is_told_to(params, state):
    """The first step never does: the target is in its loss alone."""
    flipped = state._replace(target=1 - state.target)

    def answers(state, **changes):
        # Without valid pixels but one, the loss is a function of what the network says
        # there; the target of that one pixel stays.
        valid = jnp.zeros((B, R, R)).at[:, 0, 0].set(1)
        target = state.target.at[:, 0, 0].set(1)
        seen = state._replace(valid=valid, target=target)
        return evaluated(params, seen, **changes)

    blind = [answers(x, from_own=0.5, from_prior=0.5)[0] for x in (state, flipped)]
    assert blind[0] == pytest.approx(blind[1], rel=1e-6)
    told = [answers(x, from_own=0.0, from_prior=0.0)[0] for x in (state, flipped)]
    assert abs(told[0] - told[1]) > 1e-4
