"""Metrics against a slow independent computation, and the laws of a mergeable state."""

from __future__ import annotations

import numpy as np
import pytest

from diffup_jax import metrics
from diffup_jax.types import DiffUpError, Episode

CLASSES = (3, 7, 11, 40)
SIZE = (13, 9)


def _batch(seed, *, b=4, n=1, classes=CLASSES[:3], ignored=0.2):
    """A random batch: (prob, maps, episode); some masks and predictions are empty."""
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
    episode = Episode(
        query=np.zeros((b, *SIZE, 3), np.uint8),
        query_mask=mask.astype(np.float32),
        query_valid=random.random((b, *SIZE)) >= ignored,
        support=np.zeros((b, n, 1, *SIZE, 3), np.uint8),
        cue_fg=np.zeros((b, n, 1, *SIZE), np.float32),
        cue_bg=np.zeros((b, n, 1, *SIZE), np.float32),
        cue_kind=np.zeros((b, n, 1), np.int32),
        text_ids=np.zeros((b, n, 77), np.int32),
        shot_valid=np.ones((b, n, 1), bool),
        text_valid=np.zeros((b, n), bool),
        class_id=random.choice(classes, (b, n)).astype(np.int32),
    )
    return prob.astype(np.float32), maps, episode


def _state(batches, *, first=0, classes=CLASSES):
    state = metrics.zero(classes)
    for prob, maps, episode in batches:
        numbers = range(first, first + len(prob))
        state = metrics.update(
            state,
            metrics.score(prob, maps, episode),
            numbers=numbers,
            class_id=episode.class_id,
        )
        first += len(prob)
    return state


def _slow(batches, decide):
    """Dataset IoU per class and FB-IoU, pixel by pixel; `decide` -> labels [h w]."""
    totals = {c: [[0, 0], [0, 0]] for c in CLASSES}
    for prob, maps, episode in batches:
        for b in range(prob.shape[0]):
            labels = decide(prob[b], maps["prior_mean"][b])
            for n in range(prob.shape[1]):
                of_class = totals[int(episode.class_id[b, n])]
                for y, x in np.argwhere(episode.query_valid[b]):
                    pred = int(labels[y, x] == n + 1)
                    truth = int(episode.query_mask[b, n, y, x] == 1)
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
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


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
        masks = random.random(shape) < share
        valid = random.random((batch, *size)) < random.choice(
            [0.0, 0.7, 1], (batch, 1, 1)
        )
        class_id = np.stack(
            [random.choice(classes[:-1], ways, replace=False) for _ in range(batch)]
        ).astype(np.int32)
        maps = {name: random.random(shape, np.float32) for name in metrics.MAPS}
        maps["spread"] = maps["uncertainty"] ** 2
        maps["prior_mean"][:, :, 0] = 0.5
        _, _, episode = _batch(0, b=batch, n=ways)
        episode = episode._replace(
            query_mask=masks.astype(np.float32), query_valid=valid, class_id=class_id
        )
        counts = metrics.score(prob, maps, episode)
        numbers = range(first, first + batch)
        device = metrics.update(device, counts, numbers=numbers, class_id=class_id)
        for i in range(batch):
            episodes.append((prob[i], masks[i], valid[i], class_id[i].tolist()))
            one = metrics.score_on_host(
                prob[i], {n: m[i] for n, m in maps.items()}, masks[i], valid[i]
            )
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


def test_the_host_counts_as_the_device_does_at_every_edge():
    for seed in range(4):
        prob, maps, episode = _batch(seed, n=1 + seed % 3)
        maps["prior_variance"][0, 0, 0, :4] = (0.0, -0.0, 2.0**-20, 1.0)
        counts = metrics.score(prob, maps, episode)
        for i in range(len(prob)):
            one = metrics.score_on_host(
                prob[i], {n: m[i] for n, m in maps.items()},
                episode.query_mask[i] > 0.5, episode.query_valid[i],
            )  # fmt: skip
            assert _same(one, [np.asarray(part)[i : i + 1] for part in counts])
    maps["uncertainty"][1, 0, 2, 2] = np.nan
    one = metrics.score_on_host(
        prob[1], {n: m[1] for n, m in maps.items()},
        episode.query_mask[1] > 0.5, episode.query_valid[1],
    )  # fmt: skip
    assert not one.finite[0]


def test_a_methods_own_threshold_takes_the_place_of_one_half():
    random = np.random.default_rng(5)
    for ways in (1, 3):
        prob, maps, episode = _batch(ways, n=ways)
        own = random.uniform(0.1, 0.5, prob.shape[:2]).astype(np.float32)
        own[0] = 0.5
        counts = metrics.score(prob, {**maps, metrics.THRESHOLD: own}, episode)
        largest = prob.argmax(axis=1)[:, None] == np.arange(ways)[:, None, None]
        # Moved by what lies between the two thresholds, 1/2 decides the same.
        moved = np.where(prob > own[:, :, None, None], 0.75, 0.25) * largest
        expected = metrics.score(moved.astype(np.float32), maps, episode)
        plain = metrics.score(prob, maps, episode)
        np.testing.assert_array_equal(counts.intersection, expected.intersection)
        np.testing.assert_array_equal(counts.union, expected.union)
        np.testing.assert_array_equal(counts.uncertainty, expected.uncertainty)
        np.testing.assert_array_equal(counts.intersection[0], plain.intersection[0])
        assert np.any(counts.union != plain.union)
        np.testing.assert_array_equal(counts.probability, plain.probability)
        for i in range(len(prob)):
            mine = {name: values[i] for name, values in maps.items()}
            one = metrics.score_on_host(
                prob[i],
                {**mine, metrics.THRESHOLD: own[i]},
                episode.query_mask[i] > 0.5,
                episode.query_valid[i],
            )
            assert _same(one, [np.asarray(part)[i : i + 1] for part in counts])


def test_ignored_pixels_change_nothing():
    prob, maps, episode = _batch(0, ignored=0.5)
    other_prob, other_maps, other = _batch(1, ignored=0.5)
    keep = episode.query_valid[:, None]
    changed = (
        np.where(keep, prob, other_prob),
        {name: np.where(keep, maps[name], other_maps[name]) for name in maps},
        episode._replace(
            query_mask=np.where(keep, episode.query_mask, other.query_mask)
        ),
    )
    assert not np.array_equal(changed[0], prob)
    assert _same(_state([(prob, maps, episode)]), _state([changed]))


def test_an_absent_class_counts_as_zero_and_is_named():
    prob, maps, episode = _batch(2, b=12, classes=CLASSES[:2])
    scores = metrics.compute(_state([(episode.query_mask, maps, episode)]))
    assert scores.absent == CLASSES[2:]
    assert scores.episodes.tolist()[2:] == [0, 0]
    present = scores.per_class[:2]
    assert scores.miou == pytest.approx(present.sum() / len(CLASSES))


def test_perfect_is_100_and_inverted_is_0():
    prob, maps, episode = _batch(3, b=24)
    assert set(episode.class_id.ravel()) == set(CLASSES[:3])
    truth = episode.query_mask
    maps["prior_mean"] = truth
    perfect = metrics.compute(_state([(truth, maps, episode)], classes=CLASSES[:3]))
    assert perfect.miou == perfect.fb_iou == perfect.prior_miou == 100
    wrong = metrics.compute(_state([(1 - truth, maps, episode)], classes=CLASSES[:3]))
    assert wrong.miou == wrong.fb_iou == 0


def test_everything_foreground_is_what_a_constant_prediction_scores():
    prob, maps, episode = _batch(4)
    scores = metrics.compute(_state([(np.ones_like(prob), maps, episode)]))
    assert scores.everything_foreground == pytest.approx(scores.miou, rel=1e-14)


def test_split_and_merge_is_the_whole_in_any_order():
    batches = [_batch(seed) for seed in range(4)]
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


def test_padding_is_not_counted():
    prob, maps, episode = _batch(5)
    counts = metrics.score(prob, maps, episode)
    class_id = episode.class_id[:3]
    padded = metrics.update(
        metrics.zero(CLASSES), counts, numbers=range(3), class_id=class_id
    )
    cut = (
        prob[:3],
        {name: values[:3] for name, values in maps.items()},
        Episode(*(part[:3] for part in episode)),
    )
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
    for name, measured in (
        ("prior_variance", scores.auroc_variance),
        ("uncertainty", scores.auroc_uncertainty),
        ("spread", scores.auroc_spread),
    ):
        right, wrong = [], []
        for prob, maps, episode in batches:
            error = (prob > 0.5) != (episode.query_mask > 0.5)
            valid = np.broadcast_to(episode.query_valid[:, None], error.shape)
            right.extend(maps[name][valid & ~error])
            wrong.extend(maps[name][valid & error])
        more = np.subtract.outer(wrong, right)
        expected = np.mean((more > 0) + 0.5 * (more == 0))
        # Values within a thirty-second of an octave count as equal.
        assert measured == pytest.approx(expected, abs=2e-3)


def test_auroc_of_known_orders():
    prob, maps, episode = _batch(10)
    error = (prob > 0.5) != (episode.query_mask > 0.5)
    maps["prior_variance"] = np.where(error, 2e-3, 1e-3).astype(np.float32)
    maps["uncertainty"] = np.full_like(prob, 0.0)
    scores = metrics.compute(_state([(prob, maps, episode)]))
    assert (scores.auroc_variance, scores.auroc_uncertainty) == (1.0, 0.5)
    maps["prior_variance"] *= -np.float32(0)
    scores = metrics.compute(_state([(prob, maps, episode)]))
    assert scores.auroc_variance == 0.5
    scores = metrics.compute(_state([(episode.query_mask, maps, episode)]))
    assert scores.auroc_variance is None


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
    prob, maps, episode = _batch(11, b=1)
    repeated = _state([(prob, maps, episode)] * 5)
    low, high = metrics.bootstrap_interval(repeated, seed=0, resamples=50)
    assert low == high == pytest.approx(metrics.compute(repeated).miou)


def test_episode_ious_and_empty_masks():
    prob, maps, episode = _batch(12, b=3, n=2, ignored=0.0)
    mask = np.zeros_like(episode.query_mask)
    mask[0, :, :5] = 1  # one episode with two masks, one with one, one with none
    mask[1, 1, 2:4] = 1
    prob = np.zeros_like(prob)
    prob[0, 0, :5], prob[1, 1, 2:3] = 0.9, 0.9
    state = _state([(prob, maps, episode._replace(query_mask=mask))])
    np.testing.assert_allclose(metrics.episode_ious(state), [50, 50, np.nan])


def test_refusals_name_the_value():
    prob, maps, episode = _batch(13)
    state = _state([(prob, maps, episode)])
    with pytest.raises(DiffUpError, match="episode 0 was scored twice"):
        metrics.merge(state, state)
    with pytest.raises(DiffUpError, match="one fold"):
        metrics.merge(state, metrics.zero((1, 2)))
    with pytest.raises(DiffUpError, match="another fold"):
        _state([(prob, maps, episode)], classes=(99,))
    with pytest.raises(DiffUpError, match="each once"):
        metrics.zero(())
    broken = dict(maps, prior_variance=maps["prior_variance"].copy())
    broken["prior_variance"][2, 0, 0, 0] = np.nan
    with pytest.raises(DiffUpError, match="episode 2 holds a NaN"):
        _state([(prob, broken, episode)])
