"""The decoder: every input acts, nothing depends on the backbone, sizes hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.uqdd import SIZES, STAGE_LEVELS, UQDD, Facts

R = 16


def inputs(b=2, seed=0):
    keys = jax.random.split(jax.random.key(seed), 7)
    facts = Facts(
        mean=jax.random.uniform(keys[0], (b, R, R)),
        variance=0.25 * jax.random.uniform(keys[1], (b, R, R)),
        extent=jax.random.normal(keys[6], (b, 2)),
        rgb=jax.random.uniform(keys[2], (b, R, R, 3)),
    )
    return {
        "facts": facts,
        "x": jax.random.normal(keys[3], (b, R, R)),
        "t": jax.random.uniform(keys[4], (b,)),
        "previous": jax.random.uniform(keys[5], (b, R, R, 2), minval=-1),
    }


def parameters(net):
    """Random everywhere: zero-initialised layers would hide what acts."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), **inputs())
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        tree, [jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype) for x in leaves]
    )


NET = UQDD("S", True)
PARAMS = parameters(NET)
RUN = jax.jit(lambda **x: NET.apply(PARAMS, **x))


def test_every_input_acts():
    grads = jax.jit(jax.grad(lambda x: jnp.sum(NET.apply(PARAMS, **x).logits[0] ** 2)))(
        inputs()
    )
    for name, grad in (grads | grads.pop("facts")._asdict()).items():
        assert float(jnp.abs(grad[0]).max()) > 0, name
        # Episodes never see each other.
        np.testing.assert_array_equal(grad[1], 0)


def test_an_untrained_decoder_answers_the_prior():
    given = inputs()
    params = jax.jit(NET.init)(jax.random.key(0), **given)
    logits = NET.apply(params, **given).logits
    np.testing.assert_array_equal(logits > 0, given["facts"].mean > 0.5)


def test_the_image_can_be_hidden():
    hidden = UQDD("S", False)
    params = parameters(hidden)
    given = inputs()
    first = hidden.apply(params, **given)
    other = given["facts"]._replace(rgb=1 - given["facts"].rgb)
    second = hidden.apply(params, **{**given, "facts": other})
    np.testing.assert_array_equal(first.logits, second.logits)


def test_two_halves_are_the_whole():
    """`condition` once, then `denoise`, is what one call does."""
    facts = inputs()
    condition = NET.apply(PARAMS, facts["facts"], method="condition")
    assert len(condition) == len(STAGE_LEVELS) + 2
    out = NET.apply(
        PARAMS, condition, facts["x"], facts["t"], facts["previous"], method="denoise"
    )
    for got, expected in zip(out, RUN(**facts), strict=True):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(got, expected, atol=1e-5 * scale)


def test_the_quality_module_reads_only_the_state():
    facts = inputs()
    out = RUN(**facts)
    other = RUN(**{**inputs(seed=1), "x": facts["x"]})
    np.testing.assert_array_equal(out.error, other.error)
    np.testing.assert_array_equal(out.quality, other.quality)
    assert float(out.error.min()) >= 0 and float(out.error.max()) <= 1
    quality = NET.apply(PARAMS, facts["x"], method="quality")
    np.testing.assert_allclose(quality, out.quality, rtol=1e-5)


@pytest.mark.parametrize("size", list(SIZES))
def test_sizes(size):
    shapes = jax.eval_shape(UQDD(size, True).init, jax.random.key(0), **inputs())
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert count <= 10e6
    names = shapes["params"]
    for part in ("scm", "stages", "static"):
        assert sum(name.startswith(f"{part}_") for name in names) == 7


def test_sizes_grow():
    counts = [
        sum(
            np.prod(x.shape)
            for x in jax.tree.leaves(
                jax.eval_shape(UQDD(size, True).init, jax.random.key(0), **inputs())
            )
        )
        for size in ("S", "B", "L")
    ]
    assert counts == sorted(counts)
