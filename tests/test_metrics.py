"""Metrics against a slow independent computation, and the laws of a mergeable state."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from diffup_jax import metrics
from diffup_jax.types import DiffUpError, Prediction
from tests.evaluations import episode_of

CLASSES = (3, 7, 11, 40)
SIZE = (13, 9)


def _batch(seed, *, b=4, n=1, classes=CLASSES[:3], ignored=0.2):
    """A random batch: (prediction, query, class ids); some masks are empty."""
    random = np.random.default_rng(seed)
    shape = (b, n, *SIZE)
    mask = random.random(shape) < random.choice([0.0, 0.3, 0.7], (b, n, 1, 1))
    prob = random.random(shape) * random.choice([0.4, 1.0], (b, n, 1, 1))
    # Values at bin edges and at the decision's own threshold are the risky ones.
    prob = np.where(random.random(shape) < 0.1, 0.5, prob)
    mean = np.where(random.random(shape) < 0.3, random.integers(0, 257, shape) / 256, 0)
    mean = np.where(mean > 0, mean, random.random(shape))
    maps = {
        "prior_mean": mean.astype(np.float32),
        "prior_variance": (random.random(shape) ** 6).astype(np.float32),
        "uncertainty": (0.3 * random.random(shape)).astype(np.float32),
        "spread": (0.5 * random.random(shape) ** 3).astype(np.float32),
    }
    valid = random.random((b, *SIZE)) >= ignored
    prediction = Prediction(
        prob.astype(np.float32), np.full((b, n), 0.5, np.float32), maps
    )
    class_id = random.choice(classes, (b, n)).astype(np.int32)
    return prediction, episode_of(mask, valid).query, class_id


def _with(prediction, **maps):
    return prediction._replace(maps={**prediction.maps, **maps})


def _row(prediction, i):
    """Episode i of a batch's prediction."""
    return jax.tree.map(lambda x: np.asarray(x)[i], prediction)


def _state(batches, *, first=0, classes=CLASSES):
    state = metrics.zero(classes)
    for prediction, query, class_id in batches:
        numbers = range(first, first + len(class_id))
        state = metrics.update(
            state,
            metrics.score(prediction, query),
            numbers=numbers,
            class_id=class_id,
        )
        first += len(class_id)
    return state


def _slow(batches, decide):
    """Dataset IoU per class and FB-IoU, pixel by pixel; `decide` -> labels [h w]."""
    totals = {c: [[0, 0], [0, 0]] for c in CLASSES}
    for prediction, query, class_id in batches:
        for b, n in np.ndindex(class_id.shape):
            mean = prediction.maps["prior_mean"][b]
            labels = decide(prediction.probability[b], mean)
            of_class = totals[int(class_id[b, n])]
            for y, x in np.argwhere(query.valid[b]):
                pred = int(labels[y, x] == n + 1)
                truth = int(query.mask[b, n, y, x])
                for side in (0, 1):
                    of_class[side][0] += pred == side and truth == side
                    of_class[side][1] += pred == side or truth == side
    per_class = [100 * totals[c][1][0] / max(totals[c][1][1], 1) for c in CLASSES]
    sides = [
        100
        * sum(t[side][0] for t in totals.values())
        / max(sum(t[side][1] for t in totals.values()), 1)
        for side in (0, 1)
    ]
    return per_class, sum(sides) / 2


def _argmax_with_background(prob, _):
    background = 1 - prob.max(axis=0, keepdims=True)
    return np.concatenate([background, prob]).argmax(axis=0)


def _same(first, second):
    one, other = jax.tree.flatten(first), jax.tree.flatten(second)
    return one[1] == other[1] and all(
        np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True)
    )


@pytest.mark.parametrize("ways", [1, 3])
def test_equals_the_slow_computation(ways):
    batches = [_batch(seed, n=ways) for seed in range(3)]
    scores = metrics.compute(_state(batches))
    per_class, fb_iou = _slow(batches, _argmax_with_background)
    np.testing.assert_array_equal(scores.per_class, per_class)
    assert scores.miou == pytest.approx(np.mean(per_class), rel=1e-14)
    assert scores.fb_iou == pytest.approx(fb_iou, rel=1e-14)


def _slowest(episodes, classes):
    """Section 4 of the protocols in integers and loops: mIoU, FB-IoU, IoU by class."""
    both = {c: [0, 0] for c in classes}
    either = {c: [0, 0] for c in classes}
    for prob, masks, valid, class_ids in episodes:
        ways, height, width = masks.shape
        for y in range(height):
            for x in range(width):
                if not valid[y, x]:
                    continue
                # argmax over {background, way 1..n}, the first of equal ones.
                best, label = 1 - max(prob[:, y, x]), 0
                for way in range(ways):
                    if prob[way, y, x] > best:
                        best, label = prob[way, y, x], way + 1
                for way, c in enumerate(class_ids):
                    pred, truth = int(label == way + 1), int(masks[way, y, x])
                    for b in (0, 1):
                        both[c][b] += pred == truth == b
                        either[c][b] += (
                            (pred == b) + (truth == b) - (pred == truth == b)
                        )
    per_class = [100.0 * both[c][1] / max(either[c][1], 1) for c in classes]
    sides = [
        100.0 * sum(both[c][b] for c in classes) / max(
            sum(either[c][b] for c in classes), 1)
        for b in (0, 1)
    ]  # fmt: skip
    return per_class, np.array(per_class).mean(), np.array(sides).mean()


@pytest.mark.parametrize("ways", [1, 2, 5])
def test_equals_an_independent_computation_to_the_last_digit(ways):
    """200 random episodes, of which many are empty, on the device and on the host.

    Ignored pixels, classes absent from the query and from the whole run, empty masks
    and empty predictions are among them; all maps are thirty-seconds, so that ties
    between ways and with the background are common.
    """
    random = np.random.default_rng(ways)
    classes = (2, 3, 5, 7, 11, 13, 17)
    size, batch, episodes = (6, 7), 20, []
    device, host = metrics.zero(classes), metrics.zero(classes)
    for first in range(0, 200, batch):
        shape = (batch, ways, *size)
        scale = random.choice([0, 8, 32], (batch, ways, 1, 1))
        prob = (random.integers(0, 33, shape) * scale / 1024).astype(np.float32)
        share = random.choice([0, 0.2, 0.6], (batch, ways, 1, 1))
        share[0] = 0
        masks = random.random(shape) < share
        valid = random.random((batch, *size)) < random.choice(
            [0.0, 0.7, 1], (batch, 1, 1)
        )
        class_id = np.stack(
            [random.choice(classes[:-1], ways, replace=False) for _ in range(batch)]
        ).astype(np.int32)
        maps = {name: random.random(shape, np.float32) for name in ("prior_mean", "u")}
        maps["prior_mean"][:, :, 0] = 0.5
        half = np.full(shape[:2], 0.5, np.float32)
        prediction = Prediction(prob, half, maps)
        counts = metrics.score(prediction, episode_of(masks, valid).query)
        numbers = range(first, first + batch)
        device = metrics.update(device, counts, numbers=numbers, class_id=class_id)
        for i in range(batch):
            episodes.append((prob[i], masks[i], valid[i], class_id[i].tolist()))
            one = metrics.score_on_host(_row(prediction, i), masks[i], valid[i])
            host = metrics.update(
                host, one, numbers=[first + i], class_id=class_id[i : i + 1]
            )
    assert _same(device, host)
    assert sum(not masks.any() for _, masks, _, _ in episodes) > 0
    assert sum(not (prob > 0.5).any() for prob, _, _, _ in episodes) > 10
    assert sum(not valid.any() for _, _, valid, _ in episodes) > 10
    per_class, miou, fb_iou = _slowest(episodes, classes)
    scores = metrics.compute(device)
    assert scores.per_class.tolist() == per_class and scores.absent == (17,)
    assert scores.miou == miou and scores.fb_iou == fb_iou


@pytest.mark.parametrize("prior", [True, False])
def test_the_host_counts_as_the_device_does_at_every_edge(prior):
    for seed in range(4):
        prediction, query, _ = _batch(seed, n=1 + seed % 3)
        prediction.maps["prior_variance"][0, 0, 0, :4] = (0.0, -0.0, 2.0**-20, 1.0)
        if not prior:
            del prediction.maps["prior_mean"]
        counts = metrics.score(prediction, query)
        assert (counts.prior is not None) == prior
        for i in range(len(query.mask)):
            one = metrics.score_on_host(
                _row(prediction, i), query.mask[i], query.valid[i]
            )
            row = jax.tree.map(lambda x, i=i: np.asarray(x)[i : i + 1], counts)
            assert _same(one, row)
    prediction.maps["uncertainty"][1, 0, 2, 2] = np.nan
    one = metrics.score_on_host(_row(prediction, 1), query.mask[1], query.valid[1])
    assert not one.finite[0]


def test_a_methods_own_threshold_takes_the_place_of_one_half():
    random = np.random.default_rng(5)
    for ways in (1, 3):
        plain, query, _ = _batch(ways, n=ways)
        prob = plain.probability
        own = random.uniform(0.1, 0.5, prob.shape[:2]).astype(np.float32)
        own[0] = 0.5
        prediction = plain._replace(threshold=own)
        counts = metrics.score(prediction, query)
        largest = prob.argmax(axis=1)[:, None] == np.arange(ways)[:, None, None]
        # Moved by what lies between the two thresholds, 1/2 decides the same.
        moved = np.where(prob > own[:, :, None, None], 0.75, 0.25) * largest
        expected = metrics.score(
            plain._replace(probability=moved.astype(np.float32)), query
        )
        at_half = metrics.score(plain, query)
        np.testing.assert_array_equal(counts.intersection, expected.intersection)
        np.testing.assert_array_equal(counts.union, expected.union)
        assert _same(counts.errors, expected.errors)
        np.testing.assert_array_equal(counts.intersection[0], at_half.intersection[0])
        assert np.any(counts.union != at_half.union)
        np.testing.assert_array_equal(counts.probability, at_half.probability)
        for i in range(len(prob)):
            one = metrics.score_on_host(
                _row(prediction, i), query.mask[i], query.valid[i]
            )
            row = jax.tree.map(lambda x, i=i: np.asarray(x)[i : i + 1], counts)
            assert _same(one, row)


def test_ignored_pixels_change_nothing():
    prediction, query, class_id = _batch(0, ignored=0.5)
    other, other_query, _ = _batch(1, ignored=0.5)
    keep = query.valid[:, None]
    kept = lambda a, b: np.where(keep, a, b)  # noqa: E731
    changed = prediction._replace(
        probability=kept(prediction.probability, other.probability),
        maps=jax.tree.map(kept, prediction.maps, other.maps),
    )
    changed_query = query._replace(mask=kept(query.mask, other_query.mask))
    assert not np.array_equal(changed.probability, prediction.probability)
    assert _same(
        _state([(prediction, query, class_id)]),
        _state([(changed, changed_query, class_id)]),
    )


def test_an_absent_class_counts_as_zero_and_is_named():
    prediction, query, class_id = _batch(2, b=12, classes=CLASSES[:2])
    exact = prediction._replace(probability=query.mask.astype(np.float32))
    scores = metrics.compute(_state([(exact, query, class_id)]))
    assert scores.absent == CLASSES[2:]
    assert scores.episodes.tolist()[2:] == [0, 0]
    present = scores.per_class[:2]
    assert scores.miou == pytest.approx(present.sum() / len(CLASSES))


def test_perfect_is_100_and_inverted_is_0():
    prediction, query, class_id = _batch(3, b=24)
    assert set(class_id.ravel()) == set(CLASSES[:3])
    truth = query.mask.astype(np.float32)

    def scores(probability):
        found = _with(prediction, prior_mean=truth)._replace(probability=probability)
        state = _state([(found, query, class_id)], classes=CLASSES[:3])
        return metrics.compute(state)

    perfect = scores(truth)
    assert perfect.miou == perfect.fb_iou == perfect.prior_miou == 100
    wrong = scores(1 - truth)
    assert wrong.miou == wrong.fb_iou == 0


def test_everything_foreground_is_what_a_constant_prediction_scores():
    prediction, query, class_id = _batch(4)
    ones = prediction._replace(probability=np.ones_like(prediction.probability))
    scores = metrics.compute(_state([(ones, query, class_id)]))
    assert scores.everything_foreground == pytest.approx(scores.miou, rel=1e-14)


@pytest.mark.parametrize("maps", [("prior_mean", "u"), ("u",), ()])
def test_split_and_merge_is_the_whole_in_any_order(maps):
    """Also of a method without a prior, and of one that tells nothing else."""
    batches = [_batch(seed) for seed in range(4)]
    batches = [
        (
            found._replace(maps=dict.fromkeys(maps, found.maps["prior_mean"])),
            query,
            class_id,
        )
        for found, query, class_id in batches
    ]
    whole = _state(batches)
    parts = [_state([batch], first=4 * i) for i, batch in enumerate(batches)]
    forwards, backwards = metrics.zero(CLASSES), metrics.zero(CLASSES)
    for part in parts:
        forwards = metrics.merge(forwards, part)
        backwards = metrics.merge(part, backwards)
    pairs = metrics.merge(
        metrics.merge(parts[3], parts[1]), metrics.merge(parts[0], parts[2])
    )
    for state in (forwards, backwards, pairs):
        assert _same(whole, state)
    assert len(set(whole.episode)) == 16
    assert (whole.prior is not None) == ("prior_mean" in maps)
    assert set(whole.errors) == set(maps) - {"prior_mean"}
    scores = metrics.compute(whole)
    told = scores.prior_miou is not None, scores.prior_threshold is not None
    assert told == ("prior_mean" in maps,) * 2
    assert scores.auroc.keys() == whole.errors.keys()


def test_padding_is_not_counted():
    prediction, query, class_id = _batch(5)
    counts = metrics.score(prediction, query)
    padded = metrics.update(
        metrics.zero(CLASSES), counts, numbers=range(3), class_id=class_id[:3]
    )
    cut = jax.tree.map(lambda x: x[:3], (prediction, query, class_id))
    assert _same(padded, _state([cut]))


@pytest.mark.parametrize("ways", [1, 2])
def test_best_threshold_equals_brute_force(ways):
    batches = [_batch(seed, n=ways) for seed in (6, 7)]
    scores = metrics.compute(_state(batches))

    def at(threshold):
        def decide(_, mean):
            return np.where(mean.max(axis=0) >= threshold, 1 + mean.argmax(axis=0), 0)

        return np.mean(_slow(batches, decide)[0])

    # The reported number is what its threshold gives, and no sampled one gives more.
    assert scores.prior_miou == pytest.approx(at(scores.prior_threshold), rel=1e-12)
    edges = [*range(0, 256, 16), 1, 255, int(256 * scores.prior_threshold) + 1]
    assert all(at(edge / 256) <= scores.prior_miou + 1e-9 for edge in edges)


def test_auroc_equals_counting_pairs():
    batches = [_batch(seed) for seed in (8, 9)]
    scores = metrics.compute(_state(batches))
    assert set(scores.auroc) == {"prior_variance", "uncertainty", "spread"}
    for name, measured in scores.auroc.items():
        right, wrong = [], []
        for prediction, query, _ in batches:
            error = (prediction.probability > 0.5) != query.mask
            valid = np.broadcast_to(query.valid[:, None], error.shape)
            right.extend(prediction.maps[name][valid & ~error])
            wrong.extend(prediction.maps[name][valid & error])
        more = np.subtract.outer(wrong, right)
        expected = np.mean((more > 0) + 0.5 * (more == 0))
        # Values within a thirty-second of an octave count as equal.
        assert measured == pytest.approx(expected, abs=2e-3)


def test_auroc_of_known_orders():
    prediction, query, class_id = _batch(10)
    error = (prediction.probability > 0.5) != query.mask

    def auroc(values, probability=prediction.probability):
        found = _with(prediction, u=values)._replace(probability=probability)
        return metrics.compute(_state([(found, query, class_id)])).auroc["u"]

    knows = np.where(error, 2e-3, 1e-3).astype(np.float32)
    assert auroc(knows) == 1.0 and auroc(3e-3 - knows) == 0.0
    assert auroc(np.full_like(knows, 0.7)) == 0.5
    # Zero everywhere orders nothing; nor is there an order where all pixels are right.
    assert auroc(0 * knows) is auroc(-0.0 * knows) is None
    assert auroc(knows, query.mask.astype(np.float32)) is None


def test_interval_holds_the_estimate_and_shrinks_with_episodes():
    few = _state([_batch(seed) for seed in range(6)])
    many = _state([_batch(seed) for seed in range(60)])
    widths = []
    for state in (few, many):
        low, high = metrics.bootstrap_interval(state, seed=0, resamples=1000)
        assert low < metrics.compute(state).miou < high
        widths.append(high - low)
    assert 2 < widths[0] / widths[1] < 5  # about the root of 10
    again = metrics.bootstrap_interval(many, seed=0, resamples=1000)
    assert again == (low, high)
    assert metrics.bootstrap_interval(many, seed=1, resamples=1000) != again


def test_interval_of_equal_episodes_has_no_width():
    repeated = _state([_batch(11, b=1)] * 5)
    low, high = metrics.bootstrap_interval(repeated, seed=0, resamples=50)
    assert low == high == pytest.approx(metrics.compute(repeated).miou)


def test_episode_ious_and_empty_masks():
    prediction, query, class_id = _batch(12, b=3, n=2, ignored=0.0)
    mask = np.zeros_like(query.mask)
    mask[0, :, :5] = 1  # one episode with two masks, one with one, one with none
    mask[1, 1, 2:4] = 1
    prob = np.zeros_like(prediction.probability)
    prob[0, 0, :5], prob[1, 1, 2:3] = 0.9, 0.9
    found = prediction._replace(probability=prob)
    state = _state([(found, query._replace(mask=mask), class_id)])
    np.testing.assert_allclose(metrics.episode_ious(state), [50, 50, np.nan])


def test_refusals_name_the_value():
    prediction, query, class_id = _batch(13)
    state = _state([(prediction, query, class_id)])
    with pytest.raises(DiffUpError, match="episode 0 was scored twice"):
        metrics.merge(state, state)
    with pytest.raises(DiffUpError, match="one fold"):
        metrics.merge(state, metrics.zero((1, 2)))
    with pytest.raises(DiffUpError, match="another fold"):
        _state([(prediction, query, class_id)], classes=(99,))
    with pytest.raises(DiffUpError, match="each once"):
        metrics.zero(())
    prediction.maps["spread"][2, 0, 0, 0] = np.nan
    with pytest.raises(DiffUpError, match="episode 2 holds a NaN"):
        _state([(prediction, query, class_id)])
