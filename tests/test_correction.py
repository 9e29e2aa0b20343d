"""Strokes on the query: the laws of correction.py and of DiffUp's answer with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.methods.prior import correction
from diffup_jax.types import DiffUpError, Strokes
from tests.episodes_made import SIZE, rows_at, squares
from tests.test_diffup import KEYS, METHOD, randomised

CASE = squares(n=2)
SHAPE = CASE.query.mask.shape


@pytest.fixture(scope="module")
def params():
    return randomised(METHOD.init(jax.random.key(0), CASE))


@jax.jit
def observe(params, case):
    memory = METHOD.encode(params, case.support)
    return METHOD.observe(params, case.query, memory)


ANSWER = jax.jit(METHOD.answer)


@pytest.fixture(scope="module")
def observed(params):
    return observe(params, CASE)


@pytest.fixture(scope="module")
def plain(params, observed):
    return ANSWER(params, KEYS, observed, None)


def strokes(seed=0, mask=None):
    """One foreground and one background disc per episode and way, apart."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:SIZE, :SIZE]
    said = np.zeros((2, *SHAPE), np.float32)
    for i, j in np.ndindex(SHAPE[:2]):
        for k in range(2):
            y = rng.integers(6, SIZE - 6)
            x = rng.integers(6, 12) + 24 * k + 12 * j
            said[k, i, j][(rows - y) ** 2 + (columns - x) ** 2 <= 9] = 1
    return Strokes(*map(jnp.asarray, said), mask)


def test_without_strokes_the_answer_is_the_plain_one(params, observed, plain):
    nothing = jnp.zeros(SHAPE)
    found = ANSWER(params, KEYS, observed, Strokes(nothing, nothing))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), found, plain)


@pytest.mark.parametrize("restart", [False, True])
def test_a_stroke_is_honoured_and_reaches_further(params, observed, plain, restart):
    drawn = strokes(mask=plain.probability if restart else None)
    prob, threshold, maps = ANSWER(params, KEYS, observed, drawn)
    assert float(prob.min()) >= 0 and float(prob.max()) <= 1
    np.testing.assert_array_equal(threshold, 0.5)
    for way in range(2):
        other = np.asarray(drawn.fg[:, 1 - way]) > 0
        mine, not_mine = (np.asarray(x[:, way]) > 0 for x in drawn[:2])
        assert (prob[:, way][mine & ~other & ~not_mine] == 1).all()
        # What is another way's foreground is no longer this way's.
        assert (prob[:, way][(not_mine | other) & ~mine] == 0).all()
    said = np.asarray(drawn.fg + drawn.bg).any(axis=1)[:, None]
    moved = np.abs(np.asarray(prob - plain.probability))
    assert (moved * ~said).max() > 0.05
    assert float(maps["uncertainty"][drawn.fg > 0].max()) < 1e-3


def test_the_mask_is_what_the_chain_restarts_from(params, observed):
    low, high = (
        ANSWER(params, KEYS, observed, strokes(mask=jnp.full(SHAPE, value))).probability
        for value in (0.1, 0.9)
    )
    assert float((high - low).mean()) > 0.01


def test_episodes_permute(params, observed, plain):
    drawn = strokes(mask=plain.probability)
    prob = ANSWER(params, KEYS, observed, drawn).probability
    turned = [rows_at(x, [1, 0]) for x in (KEYS, observed, drawn)]
    moved = ANSWER(params, *turned).probability
    np.testing.assert_allclose(moved[::-1], prob, atol=2e-4)


def test_strokes_may_be_boolean():
    drawn = strokes()
    as_bool = Strokes(drawn.fg > 0, drawn.bg > 0)
    for mine, floats in zip(
        correction.checked(as_bool, SHAPE)[:2],
        correction.checked(drawn, SHAPE)[:2],
        strict=True,
    ):
        np.testing.assert_array_equal(mine, floats)


def test_a_contradiction_says_nothing():
    both = jnp.ones(SHAPE)
    fg, bg, _ = correction.checked(Strokes(both, both), SHAPE)
    assert float(fg.max()) == float(bg.max()) == 0


@pytest.mark.parametrize("name", ["fg", "bg", "mask"])
def test_another_shape_is_refused(params, observed, name):
    bad = strokes(mask=jnp.zeros(SHAPE))._replace(**{name: jnp.zeros((2, 1, 8, 8))})
    with pytest.raises(DiffUpError, match=rf"strokes\.{name} has shape"):
        jax.eval_shape(METHOD.answer, params, KEYS, observed, bad)


def slow_similarity(levels):
    """Features less their mean, resized to 16 x 16; cosines; the mean over levels."""
    found = []
    for features in levels:
        b, *_, c = features.shape
        centred = features - features.mean(axis=(1, 2), keepdims=True)
        small = jax.image.resize(centred, (b, 16, 16, c), "linear", antialias=True)
        flat = np.asarray(small, np.float64).reshape(b, 256, c)
        flat = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
        found.append(flat @ flat.swapaxes(1, 2))
    return np.mean(found, axis=0)


@pytest.mark.parametrize(
    "shapes",
    [
        [(16, 16, 8)],  # the grid itself
        [(24, 24, 8)],  # finer, few channels: the features are resized
        [(20, 20, 512)],  # finer, more channels than cells: their products are
        [(6, 6, 8)],  # coarser
        [(5, 7, 64)],
        [(24, 20, 8), (5, 5, 512), (16, 16, 300)],
    ],
)
def test_similarity_is_the_mean_of_cosines_on_one_grid(shapes):
    rng = np.random.default_rng(0)
    levels = tuple(
        jnp.asarray(1 + rng.normal(size=(2, *shape)), jnp.float32) for shape in shapes
    )
    got = correction.similarity(levels)
    np.testing.assert_allclose(got, slow_similarity(levels), atol=2e-4)


class TestEvidence:
    """Equations (2)-(6), on two halves of an image that differ in colour and kind."""

    R, CELLS = 16, 8

    def evidence(self, fg, bg):
        left = np.arange(self.R) < self.R // 2
        rgb = np.broadcast_to(left[None, None, :, None], (1, self.R, self.R, 3))
        half = np.tile(np.arange(self.CELLS) < self.CELLS // 2, self.CELLS)
        raw = np.where(half[:, None] == half[None], 1.0, 0.1)
        strokes = Strokes(*(jnp.asarray(x[None, None], jnp.float32) for x in (fg, bg)))
        similarity = jnp.asarray(raw[None], jnp.float32)
        return correction.evidence(strokes, jnp.asarray(rgb, jnp.float32), similarity)

    def dot(self, y, x):
        fg = np.zeros((32, 32))
        fg[y : y + 2, x : x + 2] = 1
        return fg

    def test_a_stroke_speaks_for_its_own_region(self):
        found = self.evidence(self.dot(16, 12), np.zeros((32, 32)))
        towards = np.asarray(found.towards[0])
        assert towards[8, 6] > 10 * towards[8, 9]  # across the edge, as near
        assert towards[8, 5] > towards[8, 2] > 0  # less from further away
        assert float(found.against.max()) == 0

    def test_a_repeated_stroke_is_no_stronger(self):
        one, two = self.dot(16, 12), self.dot(16, 12) + self.dot(24, 4)
        nothing = np.zeros((32, 32))
        first, second = (self.evidence(s, nothing).towards[0] for s in (one, two))
        np.testing.assert_allclose(second[8, 6], first[8, 6], rtol=1e-5)
        assert (np.asarray(second) >= np.asarray(first) - 1e-6).all()

    def test_mean_and_variance(self):
        found = self.evidence(self.dot(16, 12), self.dot(16, 20))
        half, uncertain = jnp.full((1, 16, 16), 0.5), jnp.full((1, 16, 16), 0.25)
        mean = np.asarray(correction.mean(found, half))[0]
        variance = np.asarray(correction.variance(found, uncertain))[0]
        assert mean[8, 6] == 1 and mean[8, 10] == 0
        assert mean[8, 5] > 0.9 and mean[8, 11] < 0.1
        np.testing.assert_allclose(variance[8, [6, 10]], 0.002, atol=1e-6)
        assert variance.max() <= 0.25 and variance[8, 5] < variance[0, 0]

    def test_foreground_and_background_differ_by_a_factor_alone(self):
        """And "not this" is the weaker word."""
        fg, bg = self.dot(16, 12), self.dot(16, 20)
        straight, turned = self.evidence(fg, bg), self.evidence(bg, fg)
        for one, other in ((straight, turned), (turned, straight)):
            np.testing.assert_allclose(
                one.towards / correction.WEIGHT,
                other.against / correction.AGAINST,
                rtol=1e-5,
            )
            np.testing.assert_array_equal(one.fg, other.bg)
            assert float(one.towards.max()) > float(other.against.max()) > 0
