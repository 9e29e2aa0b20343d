"""The decoder: every input acts, nothing depends on the backbone, sizes hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffup_jax.sharing import Alike, Share

from diffup_jax.methods.diffup.decoder import SIZES, STAGE_LEVELS, UQDD, Facts

R = 16
CELLS = (R // 2) ** 2  # of the similarity
ON = {"query_rgb": True, "layout": True, "affinity": True, "scm": True, "dqm": True}


def network(size="S", **switches):
    return UQDD(size, **{**ON, **switches})


def inputs(b=2, seed=0):
    keys = jax.random.split(jax.random.key(seed), 9)
    facts = Facts(
        mean=jax.random.uniform(keys[0], (b, R, R)),
        variance=0.25 * jax.random.uniform(keys[1], (b, R, R)),
        extent=jax.random.normal(keys[6], (b, 2)),
        layout=jax.random.uniform(keys[7], (b, R, R)),
        similarity=jax.random.uniform(keys[8], (b, CELLS, CELLS), minval=-1),
        rgb=jax.random.uniform(keys[2], (b, R, R, 3)),
    )
    return {
        "facts": facts,
        "x": jax.random.normal(keys[3], (b, R, R)),
        "t": jax.random.uniform(keys[4], (b,)),
        "previous": jax.random.uniform(keys[5], (b, R, R), minval=-1),
    }


def parameters(net, *args):
    """Random everywhere: zero-initialised layers would hide what acts."""
    given = {} if args else inputs()
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args, **given)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        tree, [jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype) for x in leaves]
    )


NET = network()
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


@pytest.mark.parametrize(
    ("switch", "field"),
    [("query_rgb", "rgb"), ("layout", "layout"), ("affinity", "similarity")],
)
def test_a_switch_hides_its_input(switch, field):
    hidden = network(**{switch: False})
    params = parameters(hidden)
    given = inputs()
    first = hidden.apply(params, **given)
    other = given["facts"]._replace(**{field: 1 - getattr(given["facts"], field)})
    second = hidden.apply(params, **{**given, "facts": other})
    np.testing.assert_array_equal(first.logits, second.logits)


def test_without_scm_the_previous_answer_is_unknown_and_the_condition_is_not():
    net = network(scm=False)
    params = parameters(net)
    given = inputs()
    first = net.apply(params, **given).logits
    other = net.apply(params, **{**given, "previous": -given["previous"]}).logits
    np.testing.assert_array_equal(first, other)
    facts = given["facts"]._replace(mean=1 - given["facts"].mean)
    moved = net.apply(params, **{**given, "facts": facts}).logits
    assert float(jnp.abs(moved - first).max()) > 0


def test_without_dqm_nothing_is_said_of_the_state():
    net = network(dqm=False)
    out = net.apply(parameters(net), **inputs())
    assert not out.error.any() and not out.quality.any()


def test_pure_noise_is_not_seen():
    """At t = 1 x_t says nothing, so nothing is taken from it but DQM's estimates."""
    net = network(dqm=False)
    params = parameters(net)
    given = inputs()

    def at(t, x):
        return net.apply(params, **{**given, "t": jnp.full(2, t), "x": x}).logits

    other = -given["x"]
    first, second = at(1.0, given["x"]), at(1.0, other)
    np.testing.assert_allclose(first, second, atol=1e-4 * float(jnp.abs(first).max()))
    assert float(jnp.abs(at(0.5, given["x"]) - at(0.5, other)).max()) > 1e-2


def test_alike_cells_share():
    """Rows of A sum to one; cells that are alike outweigh others at equal distance."""
    side = 4
    similar = np.full((1, side**2, side**2), -0.2, np.float32)
    similar[0, 0, [0, 3]] = 0.9  # the first cell and the last of its row
    similar = jnp.asarray(similar)
    weights = Alike().apply(Alike().init(jax.random.key(0), similar), similar)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert (weights[0, :, 0, 3] > weights[0, :, 0, 12]).all()


def test_what_is_shared_does_not_depend_on_the_order_of_cells():
    """Sharing is attention: cells permuted in S and in h are permuted in the answer."""
    side = 4
    h = jax.random.normal(jax.random.key(0), (1, side, side, 16))
    alike = jax.nn.softmax(jax.random.normal(jax.random.key(1), (1, 4, 16, 16)))
    params = parameters(Share(), h, alike)
    order = np.random.default_rng(0).permutation(side**2)
    move = lambda x: x.reshape(1, side**2, -1)[:, order].reshape(x.shape)  # noqa: E731
    moved = Share().apply(params, move(h), alike[:, :, order][..., order])
    np.testing.assert_allclose(moved, move(Share().apply(params, h, alike)), atol=1e-5)


def test_two_halves_are_the_whole():
    """`condition` once, then `denoise`, is what one call does."""
    facts = inputs()
    condition = NET.apply(PARAMS, facts["facts"], method="condition")
    assert len(condition.stages) == len(STAGE_LEVELS)
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
    shapes = jax.eval_shape(network(size).init, jax.random.key(0), **inputs())
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert count <= 10e6
    names = shapes["params"]
    for part in ("modulation", "stages", "static"):
        assert sum(name.startswith(f"{part}_") for name in names) == 7


def test_sizes_grow():
    counts = [
        sum(
            np.prod(x.shape)
            for x in jax.tree.leaves(
                jax.eval_shape(network(size).init, jax.random.key(0), **inputs())
            )
        )
        for size in ("S", "B", "L")
    ]
    assert counts == sorted(counts)
