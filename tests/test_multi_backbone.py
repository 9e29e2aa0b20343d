"""Training over several backbones: in turn, resumed, refused by name."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from configs import common
from diffup_jax import config as configs
from diffup_jax import multi_backbone, training
from diffup_jax.data import sources
from diffup_jax.types import DiffUpError
from tests import datasets, runs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return datasets.write_label_maps(tmp_path_factory.mktemp("two"), train=40)


@pytest.fixture
def config(root):
    """Six steps, and `tiny_clip_s` as the second backbone."""
    config = runs.get_config(str(root))
    config.train.steps = 6
    config.train.val_every = 100
    config.train.checkpoint_every = 3
    config.train.also_over.tiny_clip_s = common.over(scales=(0.5, 1.0))
    return config


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_same_backbone_in_turn_with_itself_is_a_plain_run(config, tmp_path):
    config.train.steps = config.train.checkpoint_every = runs.STEPS  # compiled once
    config.train.also_over = {}
    plain = training.train(config, str(tmp_path / "plain"))
    own = {"weights": "random", "levels": (), "scales": config.prior.scales}
    config.train.also_over.tiny = own
    twice = training.train(config, str(tmp_path / "twice"))
    assert_equal(plain, twice)


@pytest.fixture
def taken(monkeypatch):
    """(backbone, scales) of every step taken; a step halves and adds what it is given.

    Nothing is compiled for it, and which batch came when shows in the average.
    """
    seen = []

    def make_step(loss, *rest, **named):
        method = loss.__self__

        def step(state, frozen, batch):
            of = method.prior.backbone
            given, own = jax.tree.leaves(frozen)[0], jax.tree.leaves(of.params)[0]
            np.testing.assert_array_equal(given, own)
            seen.append((of.name, method.prior.settings.scales))
            value = sum(float(np.mean(x)) for x in jax.tree.leaves(batch) if x.size)
            average = jax.tree.map(lambda x: x / 2 + value, state.average)
            metrics = {"loss": np.float32(value), "grad_norm": np.float32(1)}
            return state._replace(step=state.step + 1, average=average), metrics

        return step

    monkeypatch.setattr(training, "make_step", make_step)
    monkeypatch.setattr(training, "_validate", lambda *arguments: {"val_miou": 1.0})
    return seen


@pytest.mark.parametrize("kept", [0, 6])
def test_steps_take_turns_and_a_resumed_run_goes_on_with_the_right_one(
    config, tmp_path, monkeypatch, taken, kept
):
    """Cut after an odd number of steps: the next is the second backbone's."""
    config.train.prior_cache = kept
    config.train.prior_cache_dir = str(tmp_path / "kept")
    straight = training.train(config, str(tmp_path / "straight"))
    assert taken == [("tiny", (1.0,)), ("tiny_clip_s", (0.5, 1.0))] * 3
    assert len(list((tmp_path / "kept").glob("*.arrays"))) == (2 if kept else 0)

    runs.train_until(5, config, tmp_path / "cut", monkeypatch)
    taken.clear()
    resumed = training.train(config, str(tmp_path / "cut"))
    assert [name for name, _ in taken] == ["tiny_clip_s", "tiny", "tiny_clip_s"]
    assert_equal(straight, resumed)


def test_validation_tells_each_backbone(config, tmp_path, capsys, taken, monkeypatch):
    config.train.steps = config.train.val_every = 2
    given = []

    def validate(ask, params, source, draws, settings, texts):
        first = np.asarray(jax.tree.leaves(params["backbone"])[0])
        given.append(first)
        return {"val_miou": float(first.size), "val_prior_miou": 1.0}

    monkeypatch.setattr(training, "_validate", validate)
    training.train(config, str(tmp_path))
    assert "also over tiny_clip_s, weights" in capsys.readouterr().out
    (line,) = [x for x in runs.metrics(tmp_path) if "val_miou" in x]
    (other,) = [x for x in runs.metrics(tmp_path) if "val_miou_tiny_clip_s" in x]
    settings = configs.from_config(config)
    source = sources.open_split(settings.data, "train", shots=1)
    for own, size in zip(
        multi_backbone.open_turns(settings, source),
        (line["val_miou"], other["val_miou_tiny_clip_s"]),
        strict=True,
    ):
        assert jax.tree.leaves(own.backbone.params)[0].size == size
    assert given[0].size != given[1].size
    assert other["step"] == line["step"] == 2
    assert other["val_prior_miou_tiny_clip_s"] == line["val_prior_miou"] == 1


def test_a_run_goes_on_over_the_same_backbones_only(config, tmp_path, taken):
    config.train.steps = 2
    training.train(config, str(tmp_path))
    config.train.also_over.tiny_clip_s.scales = (1.0,)
    with pytest.raises(DiffUpError, match=r"also_over\.tiny_clip_s\.scales: was"):
        training.train(config, str(tmp_path))
    del config.train.also_over.tiny_clip_s
    config.train.also_over.tiny_clip_m = common.over()
    with pytest.raises(DiffUpError) as caught:
        training.train(config, str(tmp_path))
    told = str(caught.value)
    assert "digest of tiny_clip_s: was" in told
    assert "digest of tiny_clip_m: was None, now" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.train.also_over.update(resnet5=common.over()),
            r"also_over\.resnet5.*Unknown backbone 'resnet5'",
        ),
        (
            lambda c: c.train.also_over.tiny_clip_s.update(levels=("no",)),
            r"also_over\.tiny_clip_s\.levels names \['no'\]",
        ),
        (
            lambda c: c.train.also_over.tiny_clip_s.update(weights="nowhere"),
            r"(?s)nowhere.*--config\.train\.also_over\.tiny_clip_s\.weights=",
        ),
        (
            lambda c: c.train.also_over.tiny_clip_s.update(scales=()),
            r"config\.train\.also_over\.tiny_clip_s\.scales: got \(\)",
        ),
        (
            lambda c: c.train.update(steps=1),
            r"config\.train\.steps: got 1, expected at least 2, one for each backbone",
        ),
        (
            lambda c: c.train.also_over.tiny_clip_s.update(size=3),
            r"also_over\.tiny_clip_s\.size: unknown key",
        ),
        (
            lambda c: c.train.also_over.update(tiny_clip_m="FILE"),
            r"also_over\.tiny_clip_m: expected a section, got 'FILE'",
        ),
        (
            lambda c: (
                c.train.update(cues=("mask", "text")),
                c.backbone.update(name="tiny_clip_m", weights=""),
                c.train.also_over.update(tiny=common.over("random")),
            ),
            r"also_over\.tiny: .*'tiny' has no text tower",
        ),
    ],
)
def test_what_cannot_be_a_turn_is_told_before_any_work(
    config, tmp_path, change, message
):
    with config.unlocked():
        change(config)
    with pytest.raises(DiffUpError, match=message):
        training.train(config, str(tmp_path))
    assert not list(tmp_path.iterdir())
