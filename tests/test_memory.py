"""One memory asked for many queries answers as if each were an episode of its own."""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.methods import asked, diffup
from diffup_jax.methods.diffup.options import DecoderSettings, DiffUpSettings
from tests import toy
from tests.episodes_made import changed, shots_at

KEYS = jax.random.split(jax.random.key(0), 3)
DIFFUP = diffup.DiffUp(
    toy.METHOD, DiffUpSettings(decoder=DecoderSettings(size="S", mask_stride=4))
)
CASES = {
    "text": lambda: toy.red_squares(0, text=True),
    "1 shot": lambda: toy.red_squares(1),
    "5 shots and text": lambda: toy.red_squares(5, text=True),
}


def random_decoder():
    shapes = jax.eval_shape(DIFFUP.init, jax.random.key(0), toy.red_squares(1))
    leaves, tree = jax.tree.flatten(shapes["decoder"])
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype) for x in leaves]
    return {"backbone": {}, "decoder": jax.tree.unflatten(tree, drawn)}


METHODS = {"prior": (toy.METHOD, toy.PARAMS), "diffup": (DIFFUP, random_decoder())}
# Other pictures, of which nothing is remembered.
QUERIES = [toy.red_squares(0, seed=seed).query for seed in (3, 4, 5)]


def compiled(method):
    return jax.jit(method.encode), jax.jit(method.predict)


def assert_alike(got, expected):
    """Predictions alike; of the uncertainty its square, smooth where it is 0."""
    assert got.maps.keys() == expected.maps.keys()
    squared = lambda x: x._replace(  # noqa: E731
        maps={**x.maps, "uncertainty": x.maps["uncertainty"] ** 2}
    )
    both = (jax.tree.leaves(squared(x)) for x in (got, expected))
    for x, y in zip(*both, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("cues", CASES)
@pytest.mark.parametrize("name", METHODS)
def test_one_memory_answers_every_query(name, cues):
    (method, params), case = METHODS[name], CASES[cues]()
    encode, predict = compiled(method)
    memory = encode(params, case.support)
    whole = jax.jit(lambda keys, case: asked(method, params, keys, case))
    answers = [
        predict(params, key[None], query, memory)
        for key, query in zip(KEYS, QUERIES, strict=True)
    ]
    for key, query, got in zip(KEYS, QUERIES, answers, strict=True):
        assert_alike(got, whole(key[None], case._replace(query=query)))
    assert float(jnp.abs(answers[0].probability - answers[1].probability).max()) > 0.1
    # Asked for at once: the memory's row for each of them.
    rows = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), memory)
    stack = lambda *parts: jnp.concatenate(parts)  # noqa: E731
    together = predict(params, KEYS, jax.tree.map(stack, *QUERIES), rows)
    assert_alike(together, jax.tree.map(stack, *answers))


def test_a_memory_of_several_ways_and_rows():
    """Each row and way of a batch remembers its own examples."""
    method, params = METHODS["prior"]
    encode, predict = compiled(method)
    cases = [[toy.red_squares(2, seed=s) for s in (i, 10 + i)] for i in range(2)]
    beside = lambda axis: lambda *x: jnp.concatenate(x, axis=axis)  # noqa: E731
    rows = [jax.tree.map(beside(1), *(c.support for c in row)) for row in cases]
    memory = encode(params, jax.tree.map(beside(0), *rows))
    queries = jax.tree.map(beside(0), *QUERIES[:2])
    got = predict(params, KEYS[:2], queries, memory).maps["prior_mean"]
    for row, way in np.ndindex(2, 2):
        alone = encode(params, cases[row][way].support)
        expected = predict(params, KEYS[:1], QUERIES[row], alone).maps["prior_mean"]
        np.testing.assert_allclose(got[row, way], expected[0, 0], atol=2e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_memory_may_be_kept(name):
    """On the host, and as bytes: the same answer, bit by bit."""
    method, params = METHODS[name]
    encode, predict = compiled(method)
    memory = encode(params, CASES["5 shots and text"]().support)
    leaves, tree = jax.tree.flatten(jax.device_get(memory))
    assert all(type(leaf) is np.ndarray for leaf in leaves)
    again = jax.tree.unflatten(tree, pickle.loads(pickle.dumps(leaves)))
    one, other = (
        predict(params, KEYS[:1], QUERIES[0], each) for each in (memory, again)
    )
    for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shots", [6, 9])
def test_many_shots_are_looked_at_a_few_at_a_time(shots):
    """More than are seen at once: the same memory as of each picture alone."""
    case = toy.red_squares(shots)
    encode, _ = compiled(toy.METHOD)
    memory = encode(toy.PARAMS, case.support)
    for shot in range(shots):
        alone = encode(toy.PARAMS, shots_at(case, [shot]).support)
        for got, one in zip(memory.examples.levels, alone.examples.levels, strict=True):
            for x, y in zip(got, one, strict=True):
                np.testing.assert_allclose(x[:, :, shot], y[:, :, 0], atol=1e-5)


def test_order_and_padding_of_seven_shots_change_no_answer():
    """Seven are more than judge each other."""
    method, params = METHODS["prior"]
    encode, predict = compiled(method)
    case = toy.red_squares(7)
    hidden = changed(case, valid=case.support.valid.at[:, :, 6].set(False))

    def mean(case):
        memory = encode(params, case.support)
        return predict(params, KEYS[:1], QUERIES[0], memory).maps["prior_mean"]

    for each in (case, hidden):
        moved = shots_at(each, [3, 6, 0, 5, 1, 4, 2])
        np.testing.assert_allclose(mean(moved), mean(each), atol=1e-5)
    np.testing.assert_allclose(mean(hidden), mean(shots_at(case, range(6))), atol=1e-5)
