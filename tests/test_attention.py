"""Streamed attention against the matrix that it never holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import attention

TAU = 0.05


def naive(query, keys, values, valid, *, temperature):
    """Equation (1) with the whole matrix."""
    scores = jnp.einsum("nc,sc->ns", query, keys) / temperature
    scores = jnp.where(valid[None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=1)
    return jnp.where(valid.any(), weights, 0.0) @ jnp.where(valid[:, None], values, 0.0)


def case(n, s, c, v, seed=0):
    rng = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    valid = rng.random(s) < 0.6
    valid[s // 2] = True
    return (
        jnp.asarray(unit(rng.normal(size=(n, c))), jnp.float32),
        jnp.asarray(unit(rng.normal(size=(s, c))), jnp.float32),
        jnp.asarray(rng.normal(size=(s, v)), jnp.float32),
        jnp.asarray(valid),
    )


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks of at most 8 keys, so that few keys make many blocks."""
    monkeypatch.setattr(attention, "_SCORES", 1)
    monkeypatch.setattr(attention, "_FEWEST_KEYS", 8)


@pytest.mark.parametrize("shape", [(5, 3, 4, 1), (9, 8, 6, 1), (20, 61, 7, 3)])
def test_blocks_add_up(shape, short_blocks):
    args = case(*shape)
    got = attention.attend(*args, temperature=TAU)
    np.testing.assert_allclose(got, naive(*args, temperature=TAU), atol=1e-5)


def test_invalid_keys_change_nothing(short_blocks):
    query, keys, values, valid = case(6, 30, 4, 1)
    answer = functools.partial(attention.attend, temperature=TAU)
    loud = jnp.where(valid[:, None], keys, 50 * query[:1])
    rubbish = jnp.where(valid[:, None], values, 1e6)
    np.testing.assert_allclose(
        answer(query, loud, rubbish, valid),
        answer(query, keys, values, valid),
        atol=1e-5,
    )
    np.testing.assert_array_equal(answer(query, keys, values, valid & False), 0.0)


def test_the_sharpest_softmax_is_safe(short_blocks):
    """Scores of +-10 000 overflow exp; the answer is the best key's value."""
    query, keys, values, _ = case(6, 30, 4, 1)
    valid = jnp.ones(30, bool)
    got = attention.attend(query, keys, values, valid, temperature=1e-4)
    best = jnp.argmax(query @ keys.T, axis=1)
    np.testing.assert_allclose(got, values[best], atol=1e-3)


def test_half_precision_features_are_summed_in_full(short_blocks):
    query, keys, values, valid = case(20, 61, 64, 2)
    query, keys = query.astype(jnp.bfloat16), keys.astype(jnp.bfloat16)
    got = attention.attend(query, keys, values, valid, temperature=TAU)
    same = (query.astype(jnp.float32), keys.astype(jnp.float32), values, valid)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, naive(*same, temperature=TAU), atol=1e-4)


def test_gradients_are_right(short_blocks):
    query, keys, values, valid = case(5, 20, 4, 2)
    aim = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)), jnp.float32)

    def slope(answer):
        return jax.grad(
            lambda q, s, v: (answer(q, s, v, valid, temperature=0.5) * aim).sum(),
            argnums=(0, 1, 2),
        )(query, keys, values)

    for got, expected in zip(slope(attention.attend), slope(naive), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_mapped_axes_and_one_query_for_many_values(short_blocks):
    query, keys, values, valid = case(5, 20, 4, 2)
    many = jnp.stack([values, -values, values + 1])
    got = jax.vmap(lambda v: attention.attend(query, keys, v, valid, temperature=TAU))(
        many
    )
    for one, v in zip(got, many, strict=True):
        expected = naive(query, keys, v, valid, temperature=TAU)
        np.testing.assert_allclose(one, expected, atol=1e-5)


def test_memory_grows_with_positions_not_with_their_square():
    def bytes_for(n):
        shapes = ((n, 8), (n, 8), (n, 1))
        args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
        args.append(jax.ShapeDtypeStruct((n,), bool))
        program = jax.jit(functools.partial(attention.attend, temperature=TAU))
        return program.lower(*args).compile().memory_analysis().temp_size_in_bytes

    small, large = bytes_for(120**2 // 4), bytes_for(120**2)
    assert large < 5 * small
    assert large < 0.1 * 4 * 120**4
