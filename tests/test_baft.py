"""BAFT against a slow reading of its equations, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import baft, evidence, operators

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
        operators.contrast(*args), slow_contrast(q, s, fg, bg), atol=1e-5
    )
    np.testing.assert_allclose(
        operators.assembly(*args, temperature=TAU),
        slow_assembly(q, s, fg, bg),
        atol=1e-5,
    )
    prior = np.random.default_rng(3).random((2, 5, 6)).astype(np.float32)
    spread = operators.propagate(jnp.asarray(q), jnp.asarray(prior), temperature=TAU)
    for got, one in zip(spread, prior, strict=True):
        np.testing.assert_allclose(got, slow_propagate(q, one), atol=1e-5)


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


@jax.jit
def PRIORS(query, support, cue_fg, cue_bg, shot_valid, text=None, text_valid=None):
    if text_valid is None:
        text_valid = jnp.zeros(shot_valid.shape[:2], bool)
    return baft.make_priors(
        query,
        support,
        cue_fg=cue_fg,
        cue_bg=cue_bg,
        shot_valid=shot_valid,
        text=text,
        text_valid=text_valid,
        temperature=TAU,
        grid=GRID,
        pool=None,
    )


def make(case, **changes):
    return PRIORS(**{**case, **changes})


def slow_priors(q, s, fg, bg):
    """Equations (1)-(3) and (5)-(8) of one query and distinct valid shots [k ...]."""
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
        for name in ("cue_fg", "cue_bg")
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
    cues = {name: case[name] > 0.5 for name in ("cue_fg", "cue_bg")}
    one, other = make(case), make(case, **cues)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and (a == b).all()
    valid, share = case["shot_valid"], jnp.ones(case["shot_valid"].shape)
    assert (
        evidence.extent(*cues.values(), valid, share=share)
        == evidence.extent(case["cue_fg"], case["cue_bg"], valid, share=share)
    ).all()


def strokes(case, background=0.0):
    """The case with a few cells of each cue marked, some as background."""
    fg, bg = jnp.zeros_like(case["cue_fg"]), jnp.zeros_like(case["cue_bg"])
    fg = fg.at[..., 4:8, 4:10].set(1)
    return {**case, "cue_fg": fg, "cue_bg": bg.at[..., :4, 16:].set(background)}


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("background", [0.0, 1.0])
def test_what_strokes_leave_unsaid_is_background(k, background):
    sparse = strokes(episode(k), background)
    whole = make({**sparse, "cue_bg": 1 - sparse["cue_fg"]})
    for got, expected in zip(
        jax.tree.leaves(make(sparse)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_what_a_mask_leaves_unsaid_stays_unknown():
    """Ignored cells of a mask: what is in them changes nothing."""
    case = episode(k=1)
    case["cue_fg"] = jnp.zeros_like(case["cue_fg"]).at[..., :8, :8].set(1)
    case["cue_bg"] = (1 - case["cue_fg"]).at[..., 16:, :].set(0)
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


def test_text_is_a_softmax_against_the_background():
    joint, text, others = (
        features(0, 2, 3, 4, 8),
        features(1, 2, 1, 8),
        features(2, 5, 8),
    )
    got = operators.text_foreground(
        *(jnp.asarray(3 * x) for x in (joint, text, others)), temperature=TAU
    )
    for b, y, x in np.ndindex(2, 3, 4):
        wanted = np.exp(joint[b, y, x] @ text[b, 0] / TAU)
        rest = np.exp(others @ joint[b, y, x] / TAU).sum()
        assert float(got[b, 0, y, x]) == pytest.approx(
            wanted / (wanted + rest), rel=1e-4
        )


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


def test_similarity_has_the_grid_of_the_image_for_any_backbone():
    levels = [
        jnp.asarray(features(0, 2, side, side, channels))
        for side, channels in ((6, 32), (5, 512))
    ]
    both = operators.similarity(tuple(levels), grid=(6, 6))
    assert both.shape == (2, 36, 36)
    assert float(jnp.abs(both).max()) <= 1 + 1e-5
    np.testing.assert_allclose(both, jnp.swapaxes(both, 1, 2), atol=1e-5)
    # The mean over levels; of one level by hand.
    apart = [operators.similarity((level,), grid=(6, 6)) for level in levels]
    np.testing.assert_allclose(both, sum(apart) / 2, atol=1e-5)
    plain = np.asarray(levels[0], np.float64).reshape(2, 36, 32)
    plain = plain - plain.mean(axis=1, keepdims=True)
    plain /= np.linalg.norm(plain, axis=-1, keepdims=True)
    np.testing.assert_allclose(apart[0], plain @ plain.swapaxes(1, 2), atol=1e-4)
