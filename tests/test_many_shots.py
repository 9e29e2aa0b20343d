"""Many shots: pooled as they stream by, the answer is that of all maps held."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import backbones, baft, uapf
from diffup_jax.methods import prior

GRID = (5, 5)
METHOD = prior.Prior(
    backbones.hollow("tiny"),
    prior.PriorSettings(
        levels=(),
        scales=(1.0,),
        temperature=0.1,
        fusion_temperature=0.1,
        grid_stride=8,
        affinity_stride=16,
    ),
)


def episode(k, *, side=4, channels=8, seed=0):
    """(query, support of k shots, w+, w-, validity): squares of one look on noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(1 + k, side, side, channels)).astype(np.float32)
    fg = np.zeros((k, 2 * side, 2 * side), np.float32)
    for i in range(k):
        y, x = rng.integers(0, side - 1, 2)
        fg[i, 2 * y : 2 * y + 4, 2 * x : 2 * x + 4] = 1
        features[1 + i, y : y + 2, x : x + 2, :2] += 3
    features[0, 1:3, 1:3, :2] += 3
    shots = (features[1:], fg, 1 - fg, np.ones(k, bool))
    return features[:1], *(x[None, None] for x in shots)


ALL = np.ones((1, 1, len(baft.OPERATORS)), bool)


@functools.partial(jax.jit, static_argnames="pooled")
def _answer(case, keep, *, pooled):
    """Reliability [o k], and the fused mean and variance [p q]."""
    query, support, fg, bg, valid = case
    text_valid = jnp.zeros((1, 1), bool)
    priors = baft.make_priors(
        (query,),
        (support,),
        cue_fg=fg,
        cue_bg=bg,
        shot_valid=valid,
        text=None,
        text_valid=text_valid,
        temperature=0.1,
        grid=GRID,
        pool=METHOD._shot_weights if pooled else None,
    )
    assert priors.maps.shape[4] == (1 if pooled else support.shape[2])
    made = prior.Made(
        priors=priors,
        floor=uapf.cue_floor(jnp.zeros(valid.shape, int), valid, text_valid),
        extent=jnp.zeros((1, 1, 2)),
        layout=jnp.zeros((1, 1, *GRID)),
        similarity=jnp.zeros((1, 4, 4)),
    )
    fused = METHOD.fuse(made, keep)
    return priors.reliability[0, 0, 0], fused.mean[0, 0], fused.variance[0, 0]


def answer(case, *, pooled, keep=ALL):
    return _answer(case, keep, pooled=pooled)


def shots_of(case, order):
    return case[0], *(x[:, :, order] for x in case[1:])


def same(got, expected, which=None):
    """Fused maps alike; reliabilities of the shots `which` too."""
    if which is not None:
        np.testing.assert_allclose(got[0], expected[0][:, which], atol=1e-5)
    for x, y in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5, 50])
def test_streamed_is_held(k):
    case = episode(k)
    streamed, held = (answer(case, pooled=x) for x in (True, False))
    same(streamed, held, np.arange(k))
    spread = np.asarray(held[2])
    assert 0.01 < spread.max() < uapf.MAX_VARIANCE
    # Operators that training or a sample leaves out.
    keep = np.array([[[True, False, False, True]]])
    streamed, held = (answer(case, keep=keep, pooled=x) for x in (True, False))
    same(streamed, held, np.arange(k))


@pytest.mark.parametrize("k", [2, 5, 50])
def test_laws_of_shots(k):
    case = episode(k)
    whole = answer(case, pooled=True)
    order = np.random.default_rng(1).permutation(k)
    same(answer(shots_of(case, order), pooled=True), whole, order)

    # Of k shots the last half are padding; whatever they hold.
    query, support, fg, bg, valid = case
    known = k // 2
    valid = valid & (np.arange(k) < known)
    padded = answer((query, support, fg, bg, valid), pooled=True)
    support, fg = support.copy(), fg.copy()
    support[:, :, known:], fg[:, :, known:] = 7.0, 0.3
    same(answer((query, support, fg, bg, valid), pooled=True), padded, np.arange(k))
    assert not padded[0][:, known:].any()


def test_fifty_shots_that_are_two():
    """Copies and padding on either side of where few shots become many."""
    few = episode(2)
    expected = answer(few, pooled=False)
    copies = np.array([0] * 30 + [1] * 20)
    same(answer(shots_of(few, copies), pooled=True), expected, copies)
    *padded, valid = shots_of(few, copies)
    valid = valid & np.isin(np.arange(50), (29, 30))
    same(answer((*padded, valid), pooled=True), expected)


def test_memory_does_not_grow_with_the_shots():
    """Beside features and cues as they come: what XLA counts, of 10 shots and of 50."""

    def temporary(k):
        case = episode(k, side=16, channels=32)
        program = _answer.lower(case, ALL, pooled=True).compile()
        return program.memory_analysis().temp_size_in_bytes

    ten, fifty = temporary(10), temporary(50)
    features = 4 * 16 * 16 * 32  # bytes of one shot
    # What grows is the cues at the level's grid: 2 numbers a cell beside 32 channels.
    assert fifty - ten < 40 * features / 8, (ten, fifty)
