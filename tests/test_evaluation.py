"""The evaluation loop: padding, keys, the results file and the printed table."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import evaluation, metrics, report
from diffup_jax.data import frames
from diffup_jax.data.batches import EvaluationBatch, Truth
from diffup_jax.report import Setting
from diffup_jax.types import DiffUpError, Episode

NAMES = {0: "cat", 4: "dog", 8: "[bold]owl"}
KEYS = [
    *("dataset", "fold", "protocol", "image_size", "backbone", "weights_digest"),
    *("cue", "shots", "ways", "episodes", "episodes_sha", "seed", "method"),
    *("steps", "samples", "threshold"),
    *("miou", "miou_ci95", "fb_iou", "prior_miou", "prior_threshold", "per_class"),
]
SETTING = Setting(
    dataset="coco",
    fold=0,
    protocol="hsnet",
    image_size=384,
    backbone="resnet50",
    weights_digest="0123456789abcdef",
    cue="mask",
    shots=1,
    ways=1,
    episodes_sha="aeb00fa3d011d93e",
    seed=0,
    method="diffusion",
    steps=4,
    samples=1,
    threshold="iou",
    weights="step 100",
)


def _episodes(count, *, size=8):
    random = np.random.default_rng(0)
    return Episode(
        query=random.integers(0, 256, (count, size, size, 3), np.uint8),
        query_mask=(random.random((count, 1, size, size)) < 0.4).astype(np.float32),
        query_valid=random.random((count, size, size)) < 0.9,
        support=random.integers(0, 256, (count, 1, 1, size, size, 3), np.uint8),
        cue_fg=np.ones((count, 1, 1, size, size), np.float32),
        cue_bg=np.zeros((count, 1, 1, size, size), np.float32),
        cue_kind=np.zeros((count, 1, 1), np.int32),
        text_ids=np.zeros((count, 1, 77), np.int32),
        shot_valid=np.ones((count, 1, 1), bool),
        text_valid=np.zeros((count, 1), bool),
        class_id=(4 * (np.arange(count) % 2)).astype(np.int32)[:, None],
    )


def _batches(episodes, size, *, left_out=(), truths=None):
    """The last batch is padded by repeating its first episode, as a reader does.

    left_out: places of queries that count as empty.
    """
    total = len(episodes.query)
    for start in range(0, total, size):
        stretch = np.arange(start, min(start + size, total))
        places = np.setdiff1d(stretch, left_out)
        rows = np.resize(places, size) if len(places) else np.resize(stretch, size)
        yield EvaluationBatch(
            Episode(*(part[rows] for part in episodes)),
            places,
            () if truths is None else tuple(truths[place] for place in places),
            len(stretch) - len(places),
            (),
        )


@jax.jit
def _predict(keys, episode):
    mean = episode.query[..., 0].astype(jnp.float32)[:, None] / 255
    maps = {
        "prior_mean": mean,
        "prior_variance": mean * (1 - mean),
        "uncertainty": 0.1 * mean,
        "spread": 0.2 * mean,
        "prior_of_one_level": mean[..., :4],
    }
    return mean, maps


def _evaluate(episodes, size, *, frame="square", **arguments):
    return evaluation.evaluate(
        _predict,
        jax.random.key(0),
        _batches(episodes, size, **arguments),
        classes=(0, 4, 8),
        episodes=len(episodes.query),
        frame=frame,
        seed=0,
        resamples=200,
    )


def test_padded_episodes_do_not_count():
    episodes = _episodes(7)
    one, three = _evaluate(episodes, 1), _evaluate(episodes, 3)
    assert len(three.ious) == 7
    for a, b in zip(one[:3], three[:3], strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    np.testing.assert_array_equal(one.ious, three.ious)
    assert one.scores.episodes.tolist() == [4, 3, 0]


def test_each_episode_has_its_own_key_and_a_second_pass_repeats_the_first():
    def noise(keys, episode):
        one = jax.vmap(
            lambda key: jax.random.uniform(key, episode.query_mask.shape[1:])
        )
        prob = one(keys)
        return prob, dict.fromkeys(metrics.MAPS, prob)

    def run(key):
        batches = _batches(_episodes(4), 2)
        found = evaluation.predictions(noise, jax.random.key(key), batches)
        return [np.asarray(prob) for _, _, prob, _ in found]

    first, second = run(0)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(run(0), [first, second])
    assert not np.array_equal(run(1)[0], first)


def test_a_wrong_number_of_episodes_is_refused():
    def run(batches, episodes):
        return evaluation.evaluate(
            _predict,
            jax.random.key(0),
            batches,
            classes=(0, 4, 8),
            episodes=episodes,
            frame="square",
            seed=0,
            resamples=10,
        )

    with pytest.raises(DiffUpError, match="7 episodes were scored, 0 .* expected 8"):
        run(_batches(_episodes(7), 3), 8)
    with pytest.raises(DiffUpError, match="at least 1"):
        run([], 0)


def test_a_broken_predict_is_refused():
    def small(key, episode):
        prob, maps = _predict(key, episode)
        return prob[..., ::2], maps

    def silent(key, episode):
        prob, maps = _predict(key, episode)
        return prob, {"prior_mean": maps["prior_mean"]}

    def narrow(key, episode):
        prob, maps = _predict(key, episode)
        return prob, {**maps, "spread": maps["spread"][..., ::2]}

    def flat(key, episode):
        prob, maps = _predict(key, episode)
        return prob, {**maps, "threshold": prob[:, 0, 0, 0]}

    for predict, words in (
        (flat, "threshold of shape"),
        (small, "prob of shape"),
        (silent, "'prior_variance'"),
        (narrow, "spread of shape"),
    ):
        with pytest.raises(DiffUpError, match=words):
            batches = _batches(_episodes(2), 2)
            next(evaluation.predictions(predict, jax.random.key(0), batches))


def test_queries_left_out_change_no_other_episode_and_are_told():
    episodes = _episodes(9)
    whole = _evaluate(episodes, 4)
    some = _evaluate(episodes, 4, left_out=[1, 4, 5, 6, 7])  # the second batch: all
    assert some.places.tolist() == [0, 2, 3, 8] and some.empty == 5
    np.testing.assert_array_equal(some.ious, whole.ious[[0, 2, 3, 8]])
    row = report.row(some, SETTING, names=NAMES)
    assert row["episodes"] == 4 and row["skipped"] == {"empty": 5, "damaged": 0}
    with pytest.raises(DiffUpError, match="0 episodes were scored, 9 empty"):
        _evaluate(episodes, 4, left_out=range(9))


@pytest.mark.parametrize("frame", frames.FRAMES)
def test_scoring_at_own_sizes(frame):
    """Against resizing each map alone and counting it alone, whatever the batches."""
    episodes = _episodes(5)
    random = np.random.default_rng(1)
    truths = []
    for _ in range(5):
        h, w = random.integers(4, 30, 2)
        valid = random.random((h, w)) < 0.8
        truths.append(Truth((random.random((1, h, w)) < 0.4) & valid, valid))
    three = _evaluate(episodes, 3, truths=truths, frame=frame)
    one = _evaluate(episodes, 1, truths=truths, frame=frame)
    jax.tree.map(np.testing.assert_array_equal, three[:3], one[:3])
    prob = np.asarray(_predict(None, episodes)[0])
    both = either = 0
    for place, truth in enumerate(truths):
        if episodes.class_id[place, 0] != 4:
            continue
        own = frames.leave(prob[place, 0], truth.valid.shape, frame=frame) > 0.5
        both += np.count_nonzero(own & truth.masks[0] & truth.valid)
        either += np.count_nonzero((own | truth.masks[0]) & truth.valid)
    assert three.scores.per_class[1] == 100 * both / either
    assert three.state.union.sum(axis=1).max() <= 2 * 30 * 30
    # At the network's own size in a square frame both ways of counting agree.
    own = [
        Truth(mask > 0.5, valid)
        for mask, valid in zip(episodes.query_mask, episodes.query_valid, strict=True)
    ]
    host = _evaluate(episodes, 3, truths=own)
    device = _evaluate(episodes, 3)
    jax.tree.map(np.testing.assert_array_equal, host[:3], device[:3])
    assert isinstance(host.state, metrics.State)


def test_a_methods_own_threshold_counts_alike_at_both_sizes():
    episodes = _episodes(5)
    truths = [
        Truth(mask > 0.5, valid)
        for mask, valid in zip(episodes.query_mask, episodes.query_valid, strict=True)
    ]

    def low(keys, episode):
        prob, maps = _predict(keys, episode)
        return prob, {**maps, "threshold": prob.mean(axis=(2, 3))}

    found = [
        evaluation.evaluate(
            predict,
            jax.random.key(0),
            _batches(episodes, 3, **own),
            classes=(0, 4, 8),
            episodes=5,
            frame="square",
            seed=0,
            resamples=10,
        )
        for predict, own in ((low, {}), (low, {"truths": truths}), (_predict, {}))
    ]
    jax.tree.map(np.testing.assert_array_equal, found[0][:3], found[1][:3])
    assert (found[0].state.union != found[2].state.union).any()


def test_results_file(tmp_path):
    result = _evaluate(_episodes(7), 3)
    row = report.row(result, SETTING, names=NAMES)
    assert list(row)[: len(KEYS)] == KEYS
    assert tuple(row) == report.ROW_KEYS
    path = tmp_path / "deep" / "results.json"
    report.write_results(path, [row])
    first = path.read_bytes()
    assert json.loads(first) == {"rows": [row]}
    assert [each.name for each in path.parent.iterdir()] == ["results.json"]
    assert row["episodes"] == 7 and row["weights"] == "step 100"
    low, high = row["miou_ci95"]
    assert low <= row["miou"] <= high
    assert [each["episodes"] for each in row["per_class"]] == [4, 3, 0]
    assert [each["name"] for each in row["per_class"]] == list(NAMES.values())
    assert row["absent_classes"] == ["[bold]owl"]
    # The error is where the spread, a multiple of the uncertainty, says it is.
    assert row["auroc_spread"] == pytest.approx(row["auroc_uncertainty"], abs=0.02)
    table = row["reliability"]
    gaps = [b["share"] * abs(b["confidence"] - b["frequency"]) for b in table]
    assert row["ece"] == pytest.approx(sum(gaps))
    shown = sum(b["share"] for b in table[1:])
    assert row["ece_foreground"] == pytest.approx(sum(gaps[1:]) / shown)
    # Running again writes the same bytes: no time, no machine in the file.
    again = report.row(_evaluate(_episodes(7), 3), SETTING, names=NAMES)
    report.write_results(path, [again])
    assert path.read_bytes() == first


def test_what_does_not_exist_is_null_and_a_dash(capsys):
    """A method without samples, and bins of p without a pixel."""

    def blank(keys, episode):
        prob = jnp.zeros_like(episode.query_mask)
        return prob, dict.fromkeys(metrics.MAPS, prob)

    result = evaluation.evaluate(
        blank,
        jax.random.key(0),
        _batches(_episodes(4), 2),
        classes=(0, 4, 8),
        episodes=4,
        frame="square",
        seed=0,
        resamples=10,
    )
    row = report.row(result, SETTING, names=NAMES)
    assert row["auroc_spread"] is row["ece_foreground"] is None
    first, *others = row["reliability"]
    assert first["share"] == 1 and first["frequency"] == row["ece"] > 0
    assert others == [{"confidence": None, "frequency": None, "share": 0.0}] * 15
    json.dumps(row, allow_nan=False)
    report.print_table([row])
    shown = capsys.readouterr().out
    assert f"{row['ece']:.3f}" in shown and shown.split().count("-") >= 2


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    report.write_results(path, [{"miou": 1.0}])
    with pytest.raises(ValueError):
        report.write_results(path, [{"miou": float("nan")}])
    assert json.loads(path.read_text()) == {"rows": [{"miou": 1.0}]}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("columns", ["40", "120"])
def test_table_shows_every_row_and_its_setting(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    result = _evaluate(_episodes(7), 3)
    settings = [
        SETTING,
        SETTING._replace(cue="scribble+text", shots=5),
        SETTING._replace(fold=2),
    ]
    rows = [report.row(result, each, names=NAMES) for each in settings]
    report.print_table(rows)
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    for fact in ("coco fold 0", "coco fold 2", "hsnet", "384 px", "resnet50"):
        assert fact in words
    for fact in ("0123456789abcdef", "step 100", "4 steps", "seed 0", "[bold]owl"):
        assert fact in words
    assert shown.count("aeb00fa3d011d93e") == 3
    assert words.count("protocol") == 2  # one table per setting
    low, high = rows[0]["miou_ci95"]
    assert shown.count(f"{rows[0]['miou']:.1f} ({low:.1f}-{high:.1f})") == 3
    names = ("auroc_variance", "auroc_spread", "auroc_uncertainty")
    sure = [f"{rows[0][name]:.3f}" for name in ("ece", "ece_foreground")]
    sure += [f"{rows[0][name]:.2f}" for name in names]
    assert words.count(" ".join(sure)) == 3
    assert "…" not in shown


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


@pytest.mark.parametrize(
    ("method", "steps", "samples", "threshold", "words"),
    [
        ("prior", 0, 0, "otsu", "prior, cut by Otsu's criterion"),
        ("one forward", 1, 1, "half", "one forward, cut at 1/2"),
        ("one forward", 1, 4, "half", "one forward, 4 samples, cut at 1/2"),
        ("diffusion", 1, 1, "half", "diffusion, 1 step, cut at 1/2"),
        (
            "diffusion",
            2,
            4,
            "iou",
            "diffusion, 2 steps, 4 samples, cut for the greatest expected IoU",
        ),
    ],
)
def test_a_report_says_how_its_masks_were_made(
    method, steps, samples, threshold, words
):
    facts = {"method": method, "steps": steps, "samples": samples}
    facts["threshold"] = threshold
    assert report.sampler(facts) == words
