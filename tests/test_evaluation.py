"""The evaluation loop: padding, keys, truths at their own size, what is shown."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from diffup_jax import evaluation, metrics, report
from diffup_jax.data import resize
from diffup_jax.data.batches import Truth
from diffup_jax.types import DiffUpError, Prediction
from tests.evaluations import (
    NAMES,
    SETTING,
    batches_of,
    class_ids,
    evaluated,
    reads_red,
    some_episodes,
)


def test_padded_episodes_do_not_count():
    episodes = some_episodes(7)
    one, three = evaluated(episodes, 1), evaluated(episodes, 3)
    assert len(three.ious) == 7
    for a, b in zip(one[:3], three[:3], strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    np.testing.assert_array_equal(one.ious, three.ious)
    assert one.scores.episodes.tolist() == [4, 3, 0]


def test_each_episode_has_its_own_key_and_a_second_pass_repeats_the_first():
    def noise(keys, episode):
        shape = episode.query.mask.shape[1:]
        prob = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
        return Prediction(prob, np.full(prob.shape[:2], 0.5), {})

    def run(key):
        batches = batches_of(some_episodes(4), 2)
        found = evaluation.predictions(noise, jax.random.key(key), batches)
        return [np.asarray(answer.probability) for *_, answer in found]

    first, second = run(0)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(run(0), [first, second])
    assert not np.array_equal(run(1)[0], first)


def test_a_wrong_number_of_episodes_is_refused():
    def run(batches, episodes):
        return evaluation.evaluate(
            reads_red,
            jax.random.key(0),
            batches,
            classes=(0, 4, 8),
            episodes=episodes,
            frame="square",
            seed=0,
            resamples=10,
        )

    with pytest.raises(DiffUpError, match="7 episodes were scored, 0 .* expected 8"):
        run(batches_of(some_episodes(7), 3), 8)
    with pytest.raises(DiffUpError, match="at least 1"):
        run([], 0)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("probability", r"probability of shape \(2, 1, 8, 4\), expected .*\[b n h w\]"),
        ("odd", r"odd of shape \(2, 1, 8, 4\), expected \(2, 1, 8, 8\)"),
        ("prior_mean", r"prior_mean of shape \(2, 1, 8, 4\)"),
        ("threshold", r"threshold of shape \(2,\), expected \(2, 1\) \[b n\]"),
    ],
)
def test_an_answer_of_another_shape_is_refused_by_name(part, words):
    def broken(keys, episode):
        found = reads_red(keys, episode)
        whole = found.probability
        maps = {**found.maps, "odd": whole}
        if part == "probability":
            return found._replace(probability=whole[..., ::2])
        if part == "threshold":
            return found._replace(threshold=found.threshold[:, 0])
        return found._replace(maps={**maps, part: whole[..., ::2]})

    batches = batches_of(some_episodes(2), 2)
    with pytest.raises(DiffUpError, match=words):
        next(evaluation.predictions(broken, jax.random.key(0), batches))


@pytest.mark.parametrize("own_size", [False, True])
def test_a_method_is_asked_for_nothing_but_its_answer(own_size):
    """No map is due; one that nobody knows is scored under its own name."""
    episodes = some_episodes(5)

    def bare(keys, episode):
        return reads_red(keys, episode)._replace(maps={})

    def telling(keys, episode):
        found = reads_red(keys, episode)
        return found._replace(maps={"doubt": found.maps["uncertainty"]})

    truths = own_truths(episodes) if own_size else None
    whole, plain, named = (
        evaluated(episodes, 3, ask=ask, truths=truths)
        for ask in (reads_red, bare, telling)
    )
    assert plain.scores.miou == named.scores.miou == whole.scores.miou > 0
    assert plain.scores.ece == whole.scores.ece > 0
    assert plain.scores.prior_miou is plain.scores.prior_threshold is None
    assert whole.scores.prior_miou > 0
    assert plain.scores.auroc == {}
    assert named.scores.auroc == {"doubt": whole.scores.auroc["uncertainty"]}
    assert 0 < named.scores.auroc["doubt"] < 1


def test_queries_left_out_change_no_other_episode_and_are_told():
    episodes = some_episodes(9)
    whole = evaluated(episodes, 4)
    some = evaluated(episodes, 4, left_out=[1, 4, 5, 6, 7])  # the second batch: all
    assert some.places.tolist() == [0, 2, 3, 8] and some.empty == 5
    np.testing.assert_array_equal(some.ious, whole.ious[[0, 2, 3, 8]])
    row = report.row(some, SETTING, names=NAMES)
    assert row["episodes"] == 4 and row["skipped"] == {"empty": 5, "damaged": 0}
    with pytest.raises(DiffUpError, match="0 episodes were scored, 9 empty"):
        evaluated(episodes, 4, left_out=range(9))


def own_truths(episodes):
    """The truth that the queries have at the network's own size."""
    query = episodes.query
    return [Truth(*of) for of in zip(query.mask, query.valid, strict=True)]


@pytest.mark.parametrize("frame", resize.FRAMES)
def test_scoring_at_own_sizes(frame):
    """Against resizing each map alone and counting it alone, whatever the batches."""
    episodes = some_episodes(5)
    random = np.random.default_rng(1)
    truths = []
    for _ in range(5):
        h, w = random.integers(4, 30, 2)
        valid = random.random((h, w)) < 0.8
        truths.append(Truth((random.random((1, h, w)) < 0.4) & valid, valid))
    three = evaluated(episodes, 3, truths=truths, frame=frame)
    one = evaluated(episodes, 1, truths=truths, frame=frame)
    jax.tree.map(np.testing.assert_array_equal, three[:3], one[:3])
    prob = np.asarray(reads_red(None, episodes).probability)
    both = either = 0
    for place, truth in enumerate(truths):
        if class_ids(5)[place, 0] != 4:
            continue
        own = resize.leave(prob[place, 0], truth.valid.shape, frame=frame) > 0.5
        both += np.count_nonzero(own & truth.masks[0] & truth.valid)
        either += np.count_nonzero((own | truth.masks[0]) & truth.valid)
    assert three.scores.per_class[1] == 100 * both / either
    assert three.state.union.sum(axis=1).max() <= 2 * 30 * 30
    # At the network's own size in a square frame both ways of counting agree.
    host = evaluated(episodes, 3, truths=own_truths(episodes))
    device = evaluated(episodes, 3)
    jax.tree.map(np.testing.assert_array_equal, host[:3], device[:3])
    assert isinstance(host.state, metrics.State)


def test_a_methods_own_threshold_counts_alike_at_both_sizes():
    episodes = some_episodes(5)

    def low(keys, episode):
        found = reads_red(keys, episode)
        return found._replace(threshold=found.probability.mean(axis=(2, 3)))

    device = evaluated(episodes, 3, ask=low)
    host = evaluated(episodes, 3, ask=low, truths=own_truths(episodes))
    jax.tree.map(np.testing.assert_array_equal, device[:3], host[:3])
    assert (device.state.union != evaluated(episodes, 3).state.union).any()


@pytest.mark.parametrize("episodes", [0, 1, 5, 24, 25, 26, 31, 100])
def test_gallery_choice(episodes):
    random = np.random.default_rng(episodes)
    ious = random.random(episodes + 3) * 100
    empty = random.choice(episodes + 3, 3, replace=False)
    ious[empty] = np.nan
    chosen = evaluation.gallery_choice(ious, 24)
    assert len(chosen) == len(set(chosen)) == min(24, episodes)
    assert not set(chosen) & set(empty)
    assert np.all(np.diff(ious[chosen]) <= 0)
    if episodes >= 24:
        ranked = np.sort(ious[~np.isnan(ious)])
        np.testing.assert_array_equal(ious[chosen[-8:]], ranked[:8][::-1])
        np.testing.assert_array_equal(ious[chosen[:8]], ranked[::-1][:8])
