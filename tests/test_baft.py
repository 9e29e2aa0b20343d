"""BAFT against a slow reading of its equations, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import baft

TAU = 0.1
GRID = (6, 6)


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
    args = [jnp.asarray(x) for x in (q, s, fg, bg)]
    np.testing.assert_allclose(
        baft.contrast(*args), slow_contrast(q, s, fg, bg), atol=1e-5
    )
    np.testing.assert_allclose(
        baft.assembly(*args, temperature=TAU), slow_assembly(q, s, fg, bg), atol=1e-5
    )
    prior = np.random.default_rng(3).random((5, 6)).astype(np.float32)
    affinity = baft.self_affinity(jnp.asarray(q), temperature=TAU)
    np.testing.assert_allclose(affinity.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        baft.propagate(affinity, jnp.asarray(prior)),
        slow_propagate(q, prior),
        atol=1e-5,
    )


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
        "cue_fg": jnp.asarray(fg),
        "cue_bg": jnp.asarray(1 - fg),
        "shot_valid": jnp.ones((b, n, k), bool),
    }


PRIORS = jax.jit(
    lambda query, support, cue_fg, cue_bg, shot_valid: baft.make_priors(
        query,
        support,
        cue_fg=cue_fg,
        cue_bg=cue_bg,
        shot_valid=shot_valid,
        temperature=TAU,
        grid=GRID,
    )
)


def make(case, **changes):
    return PRIORS(**{**case, **changes})


def test_maps_are_scaled_and_reliabilities_bounded():
    priors = make(episode())
    assert priors.maps.shape == (2, 1, 2, len(baft.OPERATORS), 3, *GRID)
    assert float(priors.maps.min()) >= 0 and float(priors.maps.max()) <= 1
    assert bool(priors.valid.all())
    assert float(jnp.abs(priors.reliability).max()) <= 1


def test_shots_only_permute():
    case, order = episode(), jnp.array([2, 0, 1])
    moved = make(
        case,
        support=tuple(s[:, :, order] for s in case["support"]),
        cue_fg=case["cue_fg"][:, :, order],
        cue_bg=case["cue_bg"][:, :, order],
    )
    whole = make(case)
    np.testing.assert_allclose(moved.maps, whole.maps[:, :, :, :, order], atol=1e-5)
    np.testing.assert_allclose(
        moved.reliability, whole.reliability[..., order], atol=1e-5
    )


def test_padding_changes_nothing():
    """A padded shot, whatever it holds, leaves the others and their reliability."""
    case = episode()
    valid = case["shot_valid"].at[:, :, 2].set(False)
    padded = make(case, shot_valid=valid)
    rubbish = make(
        case,
        shot_valid=valid,
        support=tuple(s.at[:, :, 2].set(7.0) for s in case["support"]),
        cue_fg=case["cue_fg"].at[:, :, 2].set(0.3),
    )
    for got, expected in zip(rubbish, padded, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    two = make(
        case,
        support=tuple(s[:, :, :2] for s in case["support"]),
        cue_fg=case["cue_fg"][:, :, :2],
        cue_bg=case["cue_bg"][:, :, :2],
        shot_valid=case["shot_valid"][:, :, :2],
    )
    np.testing.assert_allclose(padded.maps[:, :, :, :, :2], two.maps, atol=1e-5)
    np.testing.assert_allclose(padded.reliability[..., :2], two.reliability, atol=1e-5)
    np.testing.assert_array_equal(padded.maps[:, :, :, :, 2], 0)


def test_a_lone_valid_shot_checks_itself():
    """K = 3 with one valid shot has the reliability of K = 1."""
    case = episode()
    valid = case["shot_valid"].at[:, :, 1:].set(False)
    one = make(
        case,
        support=tuple(s[:, :, :1] for s in case["support"]),
        cue_fg=case["cue_fg"][:, :, :1],
        cue_bg=case["cue_bg"][:, :, :1],
        shot_valid=case["shot_valid"][:, :, :1],
    )
    got = make(case, shot_valid=valid)
    np.testing.assert_allclose(got.reliability[..., :1], one.reliability, atol=1e-6)


def test_a_shot_that_matches_the_others_is_more_reliable():
    """Two shots share a look; the third marks noise. Leave-one-out finds it."""
    rng = np.random.default_rng(0)
    look, other = features(5, 8), features(6, 8)
    support = np.zeros((1, 1, 3, 6, 6, 8), np.float32)
    fg = np.zeros((1, 1, 3, 24, 24), np.float32)
    for k in range(3):
        support[0, 0, k] = other + 0.1 * rng.normal(size=(6, 6, 8))
        support[0, 0, k, 1:3, 1:4] = look + 0.1 * rng.normal(size=(2, 3, 8))
        fg[0, 0, k, 4:12, 4:16] = 1
    fg[0, 0, 2] = 0
    fg[0, 0, 2, 12:24, 0:8] = 1  # a wrong cue: background
    case = {
        "query": (jnp.asarray(support[:, 0, 0]),),
        "support": (jnp.asarray(support),),
        "cue_fg": jnp.asarray(fg),
        "cue_bg": jnp.asarray(1 - fg),
        "shot_valid": jnp.ones((1, 1, 3), bool),
    }
    reliability = np.asarray(make(case).reliability)[0, 0, 0]
    assert (reliability[:, 2] < reliability[:, :2].min(axis=1)).all()


@pytest.mark.parametrize(
    "name, fg, bg",
    [
        ("one pixel, rest unknown", "pixel", 0.0),
        ("whole image foreground", 1.0, 0.0),
        ("no pixel known", 0.0, 0.0),
        ("all background", 0.0, 1.0),
    ],
)
def test_odd_cues_stay_finite(name, fg, bg):
    case = episode(k=2)
    shape = case["cue_fg"].shape
    filled = (
        jnp.zeros(shape).at[..., 5, 7].set(1.0)
        if fg == "pixel"
        else jnp.full(shape, fg)
    )
    priors = make(case, cue_fg=filled, cue_bg=jnp.full(shape, bg))
    assert all(np.isfinite(np.asarray(part, np.float32)).all() for part in priors)
    # A cue that shows no foreground says nothing of the class.
    assert bool(priors.valid.all()) == (fg != 0.0)


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
        "cue_fg": jnp.asarray(fg),
        "cue_bg": jnp.asarray(1 - fg),
        "shot_valid": jnp.ones((1, 1, 1), bool),
    }
    for prior in np.asarray(make(case).maps)[0, 0, 0, :, 0]:
        inside = prior[3:5, 1:3].min()
        prior = prior.copy()
        prior[3:5, 1:3] = 0
        assert inside > 0.8 and prior.max() < 0.3


def test_agreement_by_hand():
    prior = jnp.array([[0.9, 0.5], [0.1, 0.3]])
    fg = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    bg = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    assert float(baft.agreement(prior, fg, bg)) == pytest.approx(0.8)
    # Unknown background: everything that is not foreground.
    unknown = float(baft.agreement(prior, fg, jnp.zeros((2, 2))))
    assert unknown == pytest.approx(0.9 - 0.3, abs=1e-6)


def test_affinity_has_the_grid_of_the_image_for_any_backbone():
    for side, channels in ((12, 32), (5, 512)):
        affinity = baft.episode_affinity(
            jnp.asarray(features(0, 2, side, side, channels)),
            grid=(6, 6),
            temperature=TAU,
        )
        assert affinity.shape == (2, 36, 36)
        np.testing.assert_allclose(affinity.sum(axis=-1), 1, atol=1e-5)


def test_no_gradient_breaks_on_empty_cues():
    case = episode(k=2)
    grad = jax.jit(
        jax.grad(
            lambda s: make(
                case, support=s, cue_fg=case["cue_fg"] * 0, cue_bg=case["cue_bg"] * 0
            ).maps.sum()
        )
    )(case["support"])
    assert all(np.isfinite(x).all() for x in grad)
