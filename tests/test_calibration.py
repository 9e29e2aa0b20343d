"""Calibration against a slow computation, pixel by pixel, and on known predictors."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from diffup_jax import metrics
from diffup_jax.types import Prediction
from tests.evaluations import episode_of

CLASSES = (2, 5, 9)
SIZE = (11, 8)


def _state(batches):
    state, first = metrics.zero(CLASSES), 0
    for prediction, query, class_id in batches:
        counts = metrics.score(prediction, query)
        numbers = range(first, first + len(class_id))
        state = metrics.update(state, counts, numbers=numbers, class_id=class_id)
        first += len(class_id)
    return state


def _random(seed, *, b, n, samples):
    """Episodes with ignored pixels and empty masks, and `samples` drawn answers."""
    random = np.random.default_rng(seed)
    shape = (b, n, *SIZE)
    masks = random.random(shape) < random.choice([0.0, 0.2, 0.6], (b, n, 1, 1))
    valid = random.random((b, *SIZE)) < random.choice([0.0, 0.6, 1.0], (b, 1, 1))
    drawn = random.random((*shape, samples)) ** random.choice([1, 4], (b, n, 1, 1, 1))
    # Ends and edges of bins, and halves between the kept levels, are the risky values.
    risky = random.choice([0, 1, 0.5, 1 / 16, 0.125 - 2**-9, 33.5 / 256], shape)
    drawn = np.where(random.random((*shape, 1)) < 0.2, risky[..., None], drawn)
    drawn = drawn.astype(np.float32)
    half = np.full((b, n), 0.5, np.float32)
    maps = {"spread": drawn.std(axis=-1)}
    class_id = np.stack([random.permutation(CLASSES)[:n] for _ in range(b)])
    found = Prediction(drawn.mean(axis=-1), half, maps)
    return found, episode_of(masks, valid).query, class_id


def _pixels(batches):
    """(p rounded to 1/256, truth, spread, wrong) of every valid pixel of every way."""
    found = []
    for prediction, query, class_id in batches:
        for b in range(len(class_id)):
            for y, x in np.argwhere(query.valid[b]):
                ways = [float(p) for p in prediction.probability[b, :, y, x]]
                for n, p in enumerate(ways):
                    truth = int(query.mask[b, n, y, x])
                    pred = p > 0.5 and ways.index(max(ways)) == n
                    claim = math.floor(p * 256 + 0.5) / 256
                    spread = float(prediction.maps["spread"][b, n, y, x])
                    found.append((claim, truth, spread, int(pred) != truth))
    return found


def _slow_ece(pixels, *, least):
    """Of bins of a sixteenth, those from `least` on."""
    bins = {}
    for p, truth, *_ in pixels:
        if p >= least:
            bins.setdefault(min(int(16 * p), 15), []).append((p, truth))
    total = sum(len(inside) for inside in bins.values())
    gaps = [
        len(inside) * abs(np.subtract(*np.mean(inside, axis=0)))
        for inside in bins.values()
    ]
    return sum(gaps) / total, bins, total


@pytest.mark.parametrize(("ways", "samples"), [(1, 4), (1, 1), (3, 3)])
def test_equals_the_slow_computation(ways, samples):
    batches = [_random(seed, b=5, n=ways, samples=samples) for seed in range(4)]
    assert not all(query.mask.any((2, 3)).all() for _, query, _ in batches)
    scores = metrics.compute(_state(batches))
    pixels = _pixels(batches)
    ece, bins, total = _slow_ece(pixels, least=0)
    assert scores.ece == pytest.approx(ece, rel=1e-12)
    assert scores.ece_foreground == pytest.approx(
        _slow_ece(pixels, least=1 / 16)[0], rel=1e-12
    )
    table = scores.reliability
    for k in range(16):
        inside = np.array(bins.get(k, np.zeros((0, 2))))
        assert table.share[k] == pytest.approx(len(inside) / total, rel=1e-12)
        if len(inside):
            found = table.confidence[k], table.frequency[k]
            np.testing.assert_allclose(found, inside.mean(axis=0), rtol=1e-12)
        else:
            assert np.isnan(table.confidence[k]) and np.isnan(table.frequency[k])
    if samples == 1:  # its spread is zero everywhere
        assert scores.auroc == {"spread": None}
        return
    right = [spread for *_, spread, wrong in pixels if not wrong]
    more = np.subtract.outer([spread for *_, spread, wrong in pixels if wrong], right)
    expected = np.mean((more > 0) + 0.5 * (more == 0))
    # Values within a thirty-second of an octave count as equal.
    assert scores.auroc["spread"] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("told", [True, False])
def test_host_and_device_count_alike_and_merging_in_any_order_changes_nothing(told):
    batches = [_random(seed, b=4, n=1 + seed, samples=2) for seed in range(3)]
    if not told:
        for prediction, _, _ in batches:
            del prediction.maps["spread"]
    whole = _state(batches)
    parts, number = [], 0
    for prediction, query, class_id in batches:
        for i in range(len(class_id)):
            row = jax.tree.map(lambda x, i=i: x[i], prediction)
            counts = metrics.score_on_host(row, query.mask[i], query.valid[i])
            part = metrics.update(
                metrics.zero(CLASSES), counts, numbers=[number],
                class_id=class_id[i : i + 1],
            )  # fmt: skip
            parts.append(part)
            number += 1
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(parts))
        merged = metrics.zero(CLASSES)
        for place in order:
            merged = metrics.merge(parts[place], merged)
        jax.tree.map(np.testing.assert_array_equal, merged, whole)
    assert set(whole.errors) == set(metrics.compute(whole).auroc)
    assert set(whole.errors) == ({"spread"} if told else set())


def _of_predictor(prob, truth):
    """The scores of one large picture; p and truth [h w]."""
    prob, truth = (np.asarray(x)[None, None] for x in (prob, truth))
    prob = np.broadcast_to(prob, truth.shape).astype(np.float32)
    found = Prediction(prob, np.full((1, 1), 0.5, np.float32), {})
    query = episode_of(truth, np.ones_like(truth[:, 0])).query
    return metrics.compute(_state([(found, query, np.array([[2]]))]))


def test_a_calibrated_predictor_has_no_error_and_a_constant_one_its_own():
    random = np.random.default_rng(0)
    # As in pictures, most pixels are sure background.
    prob = random.random((800, 800)) ** 4
    truth = random.random((800, 800)) < prob
    calibrated = _of_predictor(prob, truth)
    assert calibrated.ece < 0.003 and calibrated.ece_foreground < 0.006
    half = _of_predictor(prob / 2, truth)
    assert half.ece == pytest.approx(np.mean(prob / 2), abs=0.003)
    constant = _of_predictor(0.75, truth)
    expected = pytest.approx(0.75 - truth.mean(), rel=1e-12)
    assert constant.ece == constant.ece_foreground == expected
    assert _of_predictor(1.0, ~truth & False).ece == 1
    assert _of_predictor(truth, truth).ece == 0
    # A blank answer is hardly wrong over all pixels, and shows nothing.
    rare = truth & (random.random(truth.shape) < 0.1)
    blank = _of_predictor(0.0, rare)
    assert blank.ece == pytest.approx(rare.mean()) and blank.ece_foreground is None


def test_nothing_scored_has_no_error():
    scores = metrics.compute(metrics.zero(CLASSES))
    assert scores.ece is scores.ece_foreground is scores.prior_miou is None
    assert scores.auroc == {}
    assert not scores.reliability.share.any()
