"""BAFT against a slow reading of its equations, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.methods.prior import baft, evidence
from tests.test_operators import (
    TAU,
    features,
    slow_assembly,
    slow_contrast,
    slow_propagate,
    unit,
)

GRID = (6, 6)


def episode(k=3, *, seed=0, b=2, n=1):
    """Two levels of unlike grids and channels; cues at 24 pixels."""
    query = (features(seed, b, 6, 6, 8), features(seed + 1, b, 3, 3, 16))
    support = (
        features(seed + 2, b, n, k, 6, 6, 8),
        features(seed + 3, b, n, k, 3, 3, 16),
    )
    fg = np.zeros((b, n, k, 24, 24), np.float32)
    rng = np.random.default_rng(seed)
    for place in np.ndindex(b, n, k):
        y, x = rng.integers(0, 12, 2)
        fg[place][y : y + 10, x : x + 8] = 1
    return {
        "query": tuple(map(jnp.asarray, query)),
        "support": tuple(map(jnp.asarray, support)),
        "fg": jnp.asarray(fg),
        "bg": jnp.asarray(1 - fg),
        "valid": jnp.ones((b, n, k), bool),
    }


@jax.jit
def PRIORS(query, support, fg, bg, valid, text=None, text_valid=None):
    if text_valid is None:
        text_valid = jnp.zeros(valid.shape[:2], bool)
    memory = baft.remember(support, fg=fg, bg=bg, valid=valid, temperature=TAU)
    return baft.make_priors(
        query,
        memory,
        text=text,
        text_valid=text_valid,
        temperature=TAU,
        grid=GRID,
    )


def make(case, **changes):
    return PRIORS(**{**case, **changes})


def slow_priors(q, s, fg, bg):
    """Equations (1)-(3) and (5) of one query, and evidence.py's (2) and (3)."""
    scale = lambda x: (x - x.min()) / (x.max() - x.min())  # noqa: E731

    def onto(target, i):
        own, other = (unit(x - target.mean(axis=(0, 1))) for x in (target, s[i]))
        base = [
            slow_contrast(target, s[i], fg[i], bg[i]),
            slow_assembly(own, other, fg[i], bg[i]),
        ]
        return [scale(x) for x in (*base, *(slow_propagate(own, x) for x in base))]

    def agree(x, i):
        return (x * fg[i]).sum() / fg[i].sum() - (x * bg[i]).sum() / bg[i].sum()

    shots = range(len(s))
    maps = np.array([onto(q, i) for i in shots])
    if len(s) == 1:
        own = agree(scale(slow_contrast(s[0], s[0], fg[0], bg[0])), 0)
        return maps, np.full((1, 4), own)
    scores = [
        [
            np.mean([agree(onto(s[j], i)[o], j) for j in shots if j != i])
            for o in range(4)
        ]
        for i in shots
    ]
    return maps, np.array(scores)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("budget", [1, 1 << 22])
def test_priors_are_their_equations_however_shots_are_streamed(k, budget, monkeypatch):
    """A few shots at a time (one, here) or all at once."""
    monkeypatch.setattr(baft, "_SCORES", budget)
    jax.clear_caches()  # the budget is read while tracing
    case = episode(k, b=1)
    got = make(case)
    fg, bg = (
        np.asarray(case[name])[0, 0].reshape(k, 6, 4, 6, 4).mean((2, 4))
        for name in ("fg", "bg")
    )
    q, s = np.asarray(case["query"][0])[0], np.asarray(case["support"][0])[0, 0]
    maps, reliability = slow_priors(q, s, fg, bg)
    np.testing.assert_allclose(np.swapaxes(got.maps[0, 0, 0], 0, 1), maps, atol=1e-5)
    np.testing.assert_allclose(got.reliability[0, 0, 0].T, reliability, atol=1e-5)


def test_what_all_features_share_changes_no_assembly():
    case, common = episode(), [features(9, c) / 2 for c in (8, 16)]
    moved = make(
        case,
        **{
            name: tuple(
                jnp.asarray(np.asarray(x) + c)
                for x, c in zip(case[name], common, strict=True)
            )
            for name in ("query", "support")
        },
    )
    kept = [baft.OPERATORS.index(o) for o in ("assembly", "propagated assembly")]
    np.testing.assert_allclose(
        moved.maps[:, :, :, kept], make(case).maps[:, :, :, kept], atol=2e-5
    )
    contrast = baft.OPERATORS.index("contrast")
    assert not np.allclose(moved.maps[:, :, :, contrast], make(case).maps[:, :, :, 0])


def test_boolean_cues_are_zeros_and_ones():
    case = episode()
    cues = {name: case[name] > 0.5 for name in ("fg", "bg")}
    one, other = make(case), make(case, **cues)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and (a == b).all()
    valid, share = case["valid"], jnp.ones(case["valid"].shape)
    assert (
        evidence.extent(*cues.values(), valid, share=share)
        == evidence.extent(case["fg"], case["bg"], valid, share=share)
    ).all()


def strokes(case, background=0.0):
    """The case with a few cells of each cue marked, some as background."""
    fg, bg = jnp.zeros_like(case["fg"]), jnp.zeros_like(case["bg"])
    fg = fg.at[..., 4:8, 4:10].set(1)
    return {**case, "fg": fg, "bg": bg.at[..., :4, 16:].set(background)}


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("background", [0.0, 1.0])
def test_what_strokes_leave_unsaid_is_background(k, background):
    sparse = strokes(episode(k), background)
    whole = make({**sparse, "bg": 1 - sparse["fg"]})
    for got, expected in zip(
        jax.tree.leaves(make(sparse)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_what_a_mask_leaves_unsaid_stays_unknown():
    """Ignored cells of a mask: what is in them changes nothing."""
    case = episode(k=1)
    case["fg"] = jnp.zeros_like(case["fg"]).at[..., :8, :8].set(1)
    case["bg"] = (1 - case["fg"]).at[..., 16:, :].set(0)
    support = [x.copy() for x in map(np.asarray, case["support"])]
    for features_ in support:
        rows = features_.shape[3]
        features_[:, :, :, rows * 2 // 3 :] = features_[:, :, :, :1, :1]
    moved = make({**case, "support": tuple(map(jnp.asarray, support))})
    np.testing.assert_allclose(moved.maps, make(case).maps, atol=1e-6)


def test_maps_are_scaled_and_reliabilities_bounded():
    priors = make(episode())
    assert priors.maps.shape == (2, 1, 2, len(baft.OPERATORS), 3, *GRID)
    assert float(priors.maps.min()) >= 0 and float(priors.maps.max()) <= 1
    assert bool(priors.valid.all())
    assert float(jnp.abs(priors.reliability).max()) <= 1


def test_text_makes_two_priors_as_reliable_as_the_shots():
    case = episode(k=2)
    text = jnp.asarray(np.random.default_rng(0).random((2, 1, 3, 3)), jnp.float32)
    valid = jnp.array([[True], [False]])
    got, without = make(case, text=text, text_valid=valid), make(case)
    for field in ("maps", "valid", "reliability", "share"):
        np.testing.assert_array_equal(getattr(got, field), getattr(without, field))
    assert without.text_maps.shape == (2, 1, 0, *GRID)
    assert got.text_maps.shape == (2, 1, len(baft.TEXT_OPERATORS), *GRID)
    assert float(got.text_maps.max()) <= 1 and float(got.text_maps.min()) >= 0
    np.testing.assert_array_equal(got.text_maps[1], 0)
    np.testing.assert_array_equal(got.text_valid[:, 0], [[True] * 2, [False] * 2])
    np.testing.assert_allclose(
        got.text_reliability[0, 0], got.reliability[0].mean(), atol=1e-5
    )
    # S(T) by the last level's features, here on the text's own grid.
    q = np.asarray(case["query"][1][0])
    own = unit(q - q.mean(axis=(0, 1)))
    spread = slow_propagate(own, np.asarray(text[0, 0]))
    spread = (spread - spread.min()) / (spread.max() - spread.min())
    expected = jax.image.resize(spread, GRID, "linear")
    np.testing.assert_allclose(got.text_maps[0, 0, 1], expected, atol=1e-5)


def test_the_class_is_found_where_it_is():
    """Query cells that look like the support's foreground score highest."""
    look, other = features(1, 16), features(2, 16)
    rng = np.random.default_rng(0)
    query = other + 0.05 * rng.normal(size=(1, 6, 6, 16))
    query[:, 3:5, 1:3] = look + 0.05 * rng.normal(size=(1, 2, 2, 16))
    support = np.broadcast_to(other, (1, 1, 1, 6, 6, 16)).copy()
    support[..., 0:2, 0:2, :] = look
    fg = np.zeros((1, 1, 1, 24, 24), np.float32)
    fg[..., 0:8, 0:8] = 1
    case = {
        "query": (jnp.asarray(query, jnp.float32),),
        "support": (jnp.asarray(support, jnp.float32),),
        "fg": jnp.asarray(fg),
        "bg": jnp.asarray(1 - fg),
        "valid": jnp.ones((1, 1, 1), bool),
    }
    for prior in np.asarray(make(case).maps)[0, 0, 0, :, 0]:
        inside = prior[3:5, 1:3].min()
        prior = prior.copy()
        prior[3:5, 1:3] = 0
        assert inside > 0.8 and prior.max() < 0.3
