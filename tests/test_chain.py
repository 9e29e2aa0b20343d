"""The chain's network: the decoder inside it, and what x_t, t and DQM add to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.methods.diffup import chain
from diffup_jax.methods.diffup.chain import Chain
from diffup_jax.methods.diffup.decoder import Condition, Decoder
from diffup_jax.methods.diffup.options import ProcessSettings, SamplerSettings
from tests.test_decoder import R, facts, parameters


def network(*, scm=True, dqm=True):
    return Chain(Decoder("S", query_rgb=True, scm=scm), dqm)


def inputs(seed=0):
    """facts, x, t and previous of two rows."""
    keys = jax.random.split(jax.random.key(seed + 100), 3)
    return (
        facts(seed=seed),
        jax.random.normal(keys[0], (2, R, R)),
        jax.random.uniform(keys[1], (2,)),
        jax.random.uniform(keys[2], (2, R, R), minval=-1),
    )


def made(**switches):
    """A network with random parameters, compiled, and these parameters."""
    net = network(**switches)
    params = parameters(net, *inputs())
    return jax.jit(lambda *args: net.apply(params, *args)), net, params


RUN, NET, PARAMS = made()


def test_every_input_acts():
    loss = lambda args: jnp.sum(NET.apply(PARAMS, *args).logits[0] ** 2)  # noqa: E731
    seen, *rest = jax.jit(jax.grad(loss))(inputs())
    named = seen._asdict() | dict(zip(("x", "t", "previous"), rest, strict=True))
    for name, grad in named.items():
        assert float(jnp.abs(grad[0]).max()) > 0, name
        # Episodes never see each other.
        np.testing.assert_array_equal(grad[1], 0)


@pytest.mark.parametrize("scm", [True, False])
@pytest.mark.parametrize("dqm", [True, False])
def test_a_fresh_chain_that_is_shown_nothing_is_its_decoder(scm, dqm):
    """At any time; what time and DQM do to the stages begins at zero."""
    net, given = network(scm=scm, dqm=dqm), facts()
    nothing = jnp.zeros((2, R, R))
    fresh = jax.jit(net.init)(jax.random.key(0), given, nothing, jnp.ones(2), nothing)
    # A decoder that is trained: its own zeros would hide the rest.
    inner = parameters(net.decoder, given)
    params = {"params": {**fresh["params"], "decoder": inner["params"]}}
    expected = jax.jit(lambda x: net.decoder.apply(inner, x))(given)
    run = jax.jit(lambda x, t, previous: net.apply(params, given, x, t, previous))
    scale = float(jnp.abs(expected).max())
    for t in (0.0, 0.3, 1.0):
        got = run(nothing, jnp.full(2, t), nothing).logits
        np.testing.assert_allclose(got, expected, atol=1e-5 * scale)
    # Pure noise and no answer of its own yet: what a chain begins with.
    noise = jax.random.normal(jax.random.key(1), (2, R, R))
    first = run(noise, jnp.ones(2), nothing).logits
    np.testing.assert_allclose(first, expected, atol=1e-4 * scale)
    assert float(jnp.abs(run(noise, jnp.zeros(2), nothing).logits - first).max()) > 0.01


def test_without_scm_the_previous_answer_is_unknown_and_the_condition_is_not():
    run, *_ = made(scm=False)
    seen, *state, previous = inputs()
    first = run(seen, *state, previous).logits
    np.testing.assert_array_equal(first, run(seen, *state, -previous).logits)
    moved = run(seen._replace(mean=1 - seen.mean), *state, previous).logits
    assert float(jnp.abs(moved - first).max()) > 0


def test_without_dqm_nothing_is_said_of_the_state():
    run, *_ = made(dqm=False)
    out = run(*inputs())
    assert not out.error.any() and not out.quality.any()


def test_pure_noise_is_not_seen():
    """At t = 1 x_t says nothing, so nothing is taken from it but DQM's estimates."""
    run, *_ = made(dqm=False)
    seen, x, _, previous = inputs()
    at = lambda t, x: run(seen, x, jnp.full(2, t), previous).logits  # noqa: E731
    first, second = at(1.0, x), at(1.0, -x)
    np.testing.assert_allclose(first, second, atol=1e-4 * float(jnp.abs(first).max()))
    assert float(jnp.abs(at(0.5, x) - at(0.5, -x)).max()) > 1e-2


def test_two_halves_are_the_whole():
    """`condition` once, then `denoise`, is what one call does."""
    seen, *state = inputs()
    condition = NET.apply(PARAMS, seen, method="condition")
    out = NET.apply(PARAMS, condition, *state, method="denoise")
    for got, expected in zip(out, RUN(seen, *state), strict=True):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(got, expected, atol=1e-5 * scale)


def test_the_quality_module_reads_only_the_state():
    seen, x, *rest = inputs()
    out = RUN(seen, x, *rest)
    others = inputs(seed=1)
    other = RUN(others[0], x, *others[2:])
    np.testing.assert_array_equal(out.error, other.error)
    np.testing.assert_array_equal(out.quality, other.quality)
    assert float(out.error.min()) >= 0 and float(out.error.max()) <= 1
    quality = NET.apply(PARAMS, x, method="quality")
    np.testing.assert_allclose(quality, out.quality, rtol=1e-5)


def drawn(answer, *, present=None, steps=1, quality=None, **sampler):
    """`chain.drawn` of a network that answers logits as a function of x, t, previous.

    Also what it was asked: (t, previous) of each step.
    """
    asked = []

    def apply(name, *args):
        if name == "quality":
            return quality
        _, x, t, previous = args
        jax.debug.callback(lambda *seen: asked.append(seen), t, previous, ordered=True)
        return chain.Denoised(answer(x, t, previous), x, t)

    nothing = jnp.zeros((2, 8, 8, 1))
    found = chain.drawn(
        apply,
        Condition((), nothing, nothing),
        mean=jnp.full((2, 8, 8), 0.8),
        present=present,
        keys=jax.random.split(jax.random.key(0), (2, 2)),
        process=ProcessSettings(diffusion=True, signal_scale=2.0),
        sampler=SamplerSettings(steps=steps, **sampler),
    )
    jax.effects_barrier()
    return found, asked


def test_the_end_of_a_chain_is_the_last_answer():
    logits = jax.random.normal(jax.random.key(1), (2, 8, 8))
    for steps in (1, 3):
        found, asked = drawn(lambda *_: logits, steps=steps)
        np.testing.assert_allclose(found, jax.nn.sigmoid(logits), atol=1e-5)
        times = [t for t, _ in asked]
        np.testing.assert_allclose(
            times, np.repeat([1 - np.arange(steps) / steps], 2, 0).T, atol=1e-6
        )
        # At first it knows no answer of its own, then its last one in [-1, 1].
        np.testing.assert_array_equal(asked[0][1], 0)
        for _, previous in asked[1:]:
            np.testing.assert_allclose(previous, np.tanh(logits / 2), atol=1e-5)


def test_a_mask_at_hand_is_where_the_chain_restarts():
    mask = (jax.random.uniform(jax.random.key(2), (2, 8, 8)) < 0.5) * 1.0
    found, asked = drawn(lambda x, t, previous: 8 * previous, present=mask, steps=2)
    (start, previous), _ = asked
    np.testing.assert_allclose(start, 0.25)
    np.testing.assert_allclose(previous, 2 * mask - 1, atol=1e-6)
    np.testing.assert_array_equal(found > 0.5, mask > 0.5)


def test_a_warm_start_is_later_for_a_better_prior():
    quality = jnp.array([0.6, 0.9])
    _, asked = drawn(lambda x, *_: x, quality=quality, warm_start=True)
    start = asked[0][0]
    assert 0 < start[1] < start[0] < 1
