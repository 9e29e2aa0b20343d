"""The operators against a slow reading of their equations, and their laws."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import images
from diffup_jax.methods.prior import operators

TAU = 0.1


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def features(seed, *shape):
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=shape)).astype(np.float32)


def slow_contrast(q, s, fg, bg):
    mean = lambda w: unit((s * w[..., None]).sum((0, 1))) if w.sum() else 0  # noqa: E731
    p, n = mean(fg), mean(bg)
    return np.array([[float(np.dot(x, p - n)) for x in row] for row in q])


def slow_assembly(q, s, fg, bg):
    out = np.zeros(q.shape[:2])
    cells = [(i, j) for i, j in np.ndindex(*fg.shape) if fg[i, j] + bg[i, j] > 1e-6]
    for a, b in np.ndindex(*out.shape):
        weights = np.array([np.exp(q[a, b] @ s[c] / TAU) for c in cells])
        values = np.array([fg[c] for c in cells])
        out[a, b] = (weights * values).sum() / weights.sum()
    return out


def slow_propagate(q, prior):
    flat = q.reshape(-1, q.shape[-1])
    weights = np.exp(flat @ flat.T / TAU)
    return (weights / weights.sum(1, keepdims=True) @ prior.reshape(-1)).reshape(
        prior.shape
    )


def cue(seed, shape, *, known=True):
    rng = np.random.default_rng(seed)
    fg = (rng.random(shape) < 0.4).astype(np.float32)
    fg.flat[0] = 1
    return fg, (1 - fg if known else np.zeros_like(fg))


@pytest.mark.parametrize("known", [True, False])
def test_operators_are_their_equations(known):
    q, s = features(0, 5, 6, 8), features(1, 4, 4, 8)
    fg, bg = cue(2, (4, 4), known=known)
    shot = [jnp.asarray(x) for x in (s, fg, bg)]
    # Of any length: the support's features and the query's are normalised.
    long = operators.prototype(3 * shot[0], *shot[1:])
    np.testing.assert_allclose(
        images.unit(2 * jnp.asarray(q)) @ long, slow_contrast(q, s, fg, bg), atol=1e-5
    )
    np.testing.assert_allclose(
        operators.assembly(jnp.asarray(q), *shot, temperature=TAU),
        slow_assembly(q, s, fg, bg),
        atol=1e-5,
    )
    prior = np.random.default_rng(3).random((2, 5, 6)).astype(np.float32)
    spread = operators.propagate(jnp.asarray(q), jnp.asarray(prior), temperature=TAU)
    for got, one in zip(spread, prior, strict=True):
        np.testing.assert_allclose(got, slow_propagate(q, one), atol=1e-5)


def slow_text(joint, text, others):
    """Equation (4) of unit vectors, cell by cell, of one way."""
    found = np.zeros(joint.shape[:2])
    for y, x in np.ndindex(*found.shape):
        wanted = np.exp(joint[y, x] @ text / TAU)
        rest = sum(np.exp(other @ joint[y, x] / TAU) for other in others)
        found[y, x] = wanted / (wanted + rest)
    return found


def text_foreground(*parts):
    made = (jnp.asarray(3 * x) for x in parts)  # of any length
    return np.asarray(operators.text_foreground(*made, temperature=TAU))


def test_text_is_a_softmax_against_the_background():
    joint, text, others = (
        features(0, 2, 3, 4, 8),
        features(1, 2, 2, 8),
        features(2, 5, 8),
    )
    got = text_foreground(joint, text, others)
    for b, n in np.ndindex(2, 2):
        expected = slow_text(joint[b], text[b, n], others)
        np.testing.assert_allclose(got[b, n], expected, rtol=1e-4)


def test_a_background_that_is_a_ways_text_is_none_for_that_way_alone():
    joint, text, others = (
        features(0, 1, 3, 4, 8),
        features(1, 1, 2, 8),
        features(2, 3, 8),
    )
    others[1] = text[0, 0]
    got = text_foreground(joint, text, others)
    own = slow_text(joint[0], text[0, 0], others[[0, 2]])
    np.testing.assert_allclose(got[0, 0], own, rtol=1e-4)
    np.testing.assert_allclose(
        got[0, 1], slow_text(joint[0], text[0, 1], others), rtol=1e-4
    )
    # It would have taken the class's cells, and one that is nearly alike does.
    near = others.copy()
    near[1] = unit(text[0, 0] + 0.05 * features(3, 8))
    taken = text_foreground(joint, text, near)[0, 0]
    np.testing.assert_allclose(taken, slow_text(joint[0], text[0, 0], near), rtol=1e-4)
    assert (taken < own).all()
    # Nothing but the text itself: there is no background, so all is the class.
    np.testing.assert_array_equal(text_foreground(joint, text, others[1:2])[0, 0], 1)


def with_position(seed, content, code):
    rng = np.random.default_rng(seed)
    noise = 0.02 * rng.normal(size=(*code.shape[:2], content.shape[-1]))
    return (content + code + noise).astype(np.float32)


def test_position_debias_recovers_the_content():
    """Content plus a louder code of the place: cells match by place until it goes."""
    code = 3 * features(0, 6, 6, 3) @ features(1, 3, 32)
    kinds = features(2, 4, 32)
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 4, (2, 6, 6))
    q = with_position(4, kinds[first], code)
    s = with_position(5, kinds[second], code)
    blank = with_position(6, np.ones(32) * 0.1, code)

    def hits(q, s):
        best = np.argmax(unit(q).reshape(36, -1) @ unit(s).reshape(36, -1).T, axis=1)
        return (second.reshape(-1)[best] == first.reshape(-1)).mean()

    basis = operators.position_basis(jnp.asarray(blank), components=3)
    assert basis.shape == (32, 3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-5)
    free = [operators.without_position(jnp.asarray(x), basis) for x in (q, s)]
    free = [np.asarray(x) for x in free]
    np.testing.assert_allclose(free[0] @ basis, 0, atol=1e-5)
    assert hits(q, s) < 0.6 and hits(*free) > 0.95


def test_a_blank_that_tells_no_position_removes_nothing():
    flat = jnp.ones((4, 4, 8))
    basis = operators.position_basis(flat, components=5)
    f = jnp.asarray(features(0, 2, 4, 4, 8))
    np.testing.assert_allclose(operators.without_position(f, basis), f, atol=1e-6)
    # More components than an image has cells: what is there.
    few = operators.position_basis(jnp.asarray(features(1, 2, 2, 8)), components=500)
    assert few.shape == (8, 3)
