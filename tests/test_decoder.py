"""The decoder: every input acts, nothing depends on the backbone, sizes hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.methods.diffup.decoder import SIZES, STAGE_LEVELS, Decoder, Facts

R = 16
NET = Decoder("S", query_rgb=True, scm=True)


def facts(b=2, seed=0) -> Facts:
    keys = jax.random.split(jax.random.key(seed), 4)
    return Facts(
        mean=jax.random.uniform(keys[0], (b, R, R)),
        variance=0.25 * jax.random.uniform(keys[1], (b, R, R)),
        extent=jax.random.normal(keys[2], (b, 2)),
        rgb=jax.random.uniform(keys[3], (b, R, R, 3)),
    )


def parameters(net, *args):
    """Random everywhere: zero-initialised layers would hide what acts."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        tree, [jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype) for x in leaves]
    )


def count(net) -> int:
    shapes = jax.eval_shape(net.init, jax.random.key(0), facts())
    return sum(np.prod(x.shape) for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("scm", [True, False])
def test_every_input_acts(scm):
    net = NET.clone(scm=scm)
    params = parameters(net, facts())
    grads = jax.jit(jax.grad(lambda x: jnp.sum(net.apply(params, x)[0] ** 2)))(facts())
    for name, grad in grads._asdict().items():
        assert float(jnp.abs(grad[0]).max()) > 0, name
        # Episodes never see each other.
        np.testing.assert_array_equal(grad[1], 0)


def test_an_untrained_decoder_answers_the_prior():
    given = facts()
    logits = NET.apply(jax.jit(NET.init)(jax.random.key(0), given), given)
    np.testing.assert_allclose(logits, 3 * (2 * given.mean - 1), atol=1e-5)


def test_a_switch_hides_the_image():
    hidden = NET.clone(query_rgb=False)
    given = facts()
    run = jax.jit(lambda x: hidden.apply(parameters(hidden, given), x))
    other = given._replace(rgb=1 - given.rgb)
    np.testing.assert_array_equal(run(given), run(other))


def test_two_halves_are_the_whole():
    """`condition` once, then `decode`, is what one call does."""
    given = facts()
    params = parameters(NET, given)

    @jax.jit
    def halves(given):
        condition = NET.apply(params, given, method="condition")
        assert len(condition.stages) == len(STAGE_LEVELS)
        return NET.apply(params, condition, method="decode")

    expected = jax.jit(lambda x: NET.apply(params, x))(given)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(halves(given), expected, atol=1e-5 * scale)


@pytest.mark.parametrize("size", list(SIZES))
def test_sizes(size):
    net = NET.clone(size=size)
    assert count(net) <= 10e6
    names = jax.eval_shape(net.init, jax.random.key(0), facts())["params"]
    for part in ("stages", "static"):
        assert sum(name.startswith(f"{part}_") for name in names) == 7


def test_sizes_grow():
    counts = [count(NET.clone(size=size)) for size in ("S", "B", "L")]
    assert counts == sorted(counts) and counts[0] < counts[2]
