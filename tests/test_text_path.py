"""Text as a cue: from the config through data, scoring and training to the answer."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from diffup_jax import baft, checkpoint, scoring, training
from diffup_jax import settings as setup
from diffup_jax.backbones import clip
from diffup_jax.backbones.towers import Tower
from diffup_jax.data import batches, episodes, lists, pipeline, protocols
from diffup_jax.data.augment import Augment
from diffup_jax.methods import disturbance
from diffup_jax.types import DiffUpError
from tests import datasets, runs

NAMES = ("red star", "green ring", "blue heart", "pink cross", "cyan arrow")
NAMES += ("yellow circle", "orange square", "purple triangle")
WITHOUT, WITH = ("mask", "point"), ("mask", "point", "text")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Label maps whose classes have names that the text tower can read."""
    root = datasets.write_label_maps(tmp_path_factory.mktemp("text"), train=40)
    facts = json.loads((root / "classes.json").read_text())
    for entry, name in zip(facts["classes"], NAMES, strict=True):
        entry["name"] = name
    (root / "classes.json").write_text(json.dumps(facts))
    return root


@pytest.fixture
def config(root, monkeypatch):
    """The tiny run, on an image-text backbone of one small block each."""
    row = clip.VARIANTS["tiny_clip_s"]
    tower = Tower(16, 1, 2, 16, "gelu_pytorch_tanh", 1e-5)
    row = row._replace(vision=tower, text=row.text._replace(tower=tower))
    monkeypatch.setitem(clip.VARIANTS, "tiny_clip_s", row)
    config = runs.get_config(str(root))
    config.backbone.name = "tiny_clip_s"
    return config


def training_batch(root, kinds, *, size=48):
    settings = setup.from_config(runs.get_config(str(root)))
    source = setup.open_split(settings, "train", shots=1)
    dataset = pipeline.training_dataset(
        source, (1, 2, 3), seed=0, steps=2, batch_size=size, image_size=16, max_shots=2,
        ways=1, cues=kinds, conventions=setup.conventions(settings),
        fewest_points=settings.train.fewest_points,
        augment=Augment(), on_error="stop", process_index=0, process_count=1,
    )  # fmt: skip
    return dataset[1].episode


def test_text_among_the_training_cues_changes_nothing_but_itself(root):
    old, new = training_batch(root, WITHOUT), training_batch(root, WITH)
    alone = ~new.shot_valid.any(axis=(1, 2))
    assert not old.text_valid.any() and old.shot_valid.any(axis=(1, 2)).all()
    for name in set(old._fields) - {"text_valid"}:
        before, after = getattr(old, name), getattr(new, name)
        assert (before[~alone] == after[~alone]).all(), name
    for name in ("query", "query_mask", "query_valid", "class_id"):
        assert (getattr(old, name) == getattr(new, name)).all(), name
    assert new.text_valid[alone].all()
    assert not new.support[alone].any() and not new.cue_fg[alone].any()
    # A third of 48 alone, half of the rest beside shots; 5 standard deviations wide.
    assert 1 <= alone.sum() <= 32
    assert 1 <= new.text_valid[~alone].sum() < (~alone).sum()
    only = training_batch(root, ("text",), size=8)
    assert only.text_valid.all() and not only.shot_valid.any()


def test_text_is_no_shot_of_an_evaluation(root):
    settings = setup.from_config(runs.get_config(str(root)))
    source = setup.open_split(settings, "test", shots=3)
    draws = episodes.clean_draws(source, (0, 4), shots=3, count=4, seed=0)
    empty = tuple(draw._replace(supports=((),)) for draw in draws)

    def batch(cue, draws=draws):
        (only,) = pipeline.evaluation_batches(
            source, draws, numbers=range(4), cue=cue, protocol=protocols.get("clean"),
            conventions=setup.conventions(settings), image_size=16, batch_size=4,
            seed=0, workers=0, on_error="stop",
        )  # fmt: skip
        return only.episode

    mixed, visual = batch("mask+text+point"), batch("mask+point")
    assert mixed.text_valid.all() and not visual.text_valid.any()
    for name in set(mixed._fields) - {"text_valid"}:
        assert (getattr(mixed, name) == getattr(visual, name)).all(), name
    for text, shots in ((batch("text"), 3), (batch("text", empty), 1)):
        assert text.shot_valid.shape == (4, 1, shots) and not text.shot_valid.any()
        assert text.text_valid.all() and not text.support.any()
        assert (text.query == visual.query).all()
    with pytest.raises(DiffUpError, match=r"\[0\] supports"):
        batch("mask+text", empty)


def test_text_changes_the_answer_only_where_it_is_valid(config):
    config.method = "prior"
    settings = setup.from_config(config)
    backbone = setup.make_backbone(settings)
    assert setup.make_text(settings, backbone, NAMES, cues_asked=WITHOUT) is None
    text = setup.make_text(settings, backbone, NAMES, cues_asked=["mask+text"])
    assert text.classes.shape[0] == len(NAMES)
    assert "a photo of a {name}" in text.told(settings.text.templates)

    case = batches.blank(3, 1, 64)
    rng = np.random.default_rng(0)
    case.query[:] = rng.integers(0, 255, case.query.shape)
    case.support[:] = rng.integers(0, 255, case.support.shape)
    case.cue_fg[..., 8:40, 8:40] = 1
    case.cue_bg[:] = 1 - case.cue_fg
    case.shot_valid[:2] = True
    case.text_valid[1:] = True  # mask; mask and text; text alone
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"backbone": backbone.params}

    def answer(table):
        method = setup.make_method(settings, backbone, text=table)
        predict = jax.jit(method.predict)
        return lambda case: np.asarray(predict(params, keys, case)[0])

    reading = answer(text)
    seen, read = answer(None)(case), reading(case)
    np.testing.assert_allclose(read[0], seen[0], atol=1e-5)
    assert np.abs(read[1] - seen[1]).max() > 1e-3
    assert np.isfinite(read).all() and read[2].std() > 1e-3
    # Another class is another text.
    other = reading(case._replace(class_id=case.class_id + 1))
    np.testing.assert_allclose(other[0], read[0], atol=1e-5)
    assert np.abs(other[2] - read[2]).max() > 1e-3


def test_zero_shot_and_mixtures_are_scored(config, tmp_path, capsys):
    config.method = "prior"
    config.eval.cues, config.eval.shots = ("text", "mask", "mask+text"), (1,)
    config.eval.gallery = 2
    output = tmp_path / "results.json"
    rows = scoring.score_run(config, workdir=None, output=str(output))
    scored = [(row["cue"], row["shots"]) for row in rows]
    assert scored == [("mask", 1), ("mask+text", 1), ("text", 0)]
    assert rows[0]["prior_miou"] != rows[1]["prior_miou"]
    assert all(np.isfinite(row["miou"]) and row["episodes"] == 6 for row in rows)
    # The same queries, without supports.
    folder = tmp_path / "episodes"
    (one, _), (zero, facts) = (
        lists.read_draws(next(folder.glob(f"*_{shots}shot.jsonl"))) for shots in (1, 0)
    )
    assert [x.query for x in one] == [x.query for x in zero] and facts["shots"] == 0
    assert all(x.supports == ((),) for x in zero)
    assert facts["sha"] == rows[2]["episodes_sha"] != rows[0]["episodes_sha"]
    told = capsys.readouterr().out
    assert "text alone has no shots: scored once, 0-shot" in told
    assert 'text: "a photo of a {name}" against' in told

    # From either list, the 1-shot one or its own, it is the same row.
    config.eval.cues, config.eval.shots, config.eval.gallery = ("text",), (0,), 0
    for listed in sorted(folder.iterdir()):
        config.eval.episodes_file = str(listed)
        again = scoring.score_run(config, workdir=None, output=str(output))
        assert again == rows[2:]


def test_what_is_scored_with_how_many_shots(config, capsys):
    config.eval.cues, config.eval.shots = ("text", "mask", "box+text"), (0, 5, 1)
    plan = scoring._plan(setup.from_config(config))
    both = ("mask", "box+text")
    assert list(plan.items()) == [(5, both), (1, both), (0, ("text",))]
    assert "0-shot: only text is scored, not mask, box+text" in capsys.readouterr().out
    config.eval.shots = (0,)
    with pytest.raises(DiffUpError, match="'mask', expected a shot for each"):
        setup.from_config(config)


@pytest.mark.parametrize("cue", ["text", "mask+text"])
def test_a_backbone_without_a_text_tower_is_told_before_any_work(tmp_path, cue):
    config = runs.get_config("absent")  # the data are not even looked for
    config.eval.cues = (cue,)
    words = "backbone 'tiny' has no text tower.*--config.backbone.name"
    with pytest.raises(DiffUpError, match=words):
        scoring.score_run(config, workdir=None, output=str(tmp_path / "x.json"))
    config.train.cues = ("mask", "text")
    with pytest.raises(DiffUpError, match=words):
        training.train(config, str(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_training_with_text_goes_on_where_it_was(config, tmp_path):
    config.train.cues = WITH
    config.train.steps, config.train.checkpoint_every = 2, 1
    config.train.val_every, config.train.val_episodes = 2, 2
    training.train(config, str(tmp_path))
    whole = runs.saved_state(tmp_path, 2)
    assert all(np.isfinite(array).all() for array in whole.values())
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    config.text.backgrounds = ("sky", "road")
    with pytest.raises(DiffUpError, match="config.text.backgrounds: was"):
        training.train(config, str(tmp_path))
    config.text.backgrounds = ("default",)
    training.train(config, str(tmp_path))
    runs.assert_same_bits(runs.saved_state(tmp_path, 2), whole)


def test_a_run_from_before_text_cues_goes_on():
    config = common.get_config()
    facts = setup.plain(setup.from_config(config))
    saved = {name: part for name, part in facts.items() if name != "text"}
    checkpoint.check_same_run(facts, saved, "run")
    facts["train"] = {**facts["train"], "cues": list(WITH)}
    with pytest.raises(DiffUpError, match="config.text.temperature: was None, now 0.0"):
        checkpoint.check_same_run(facts, saved, "run")


def test_training_disturbs_text_as_it_does_visual_priors():
    rng = np.random.default_rng(0)
    b, n, t = 64, 2, len(baft.TEXT_OPERATORS)
    maps = rng.random((b, n, t, 3, 3)).astype(np.float32)
    maps[..., 0, 0] = 0
    visual = jnp.zeros((b, n, 1, 1, 1))
    priors = baft.Priors(
        maps=jnp.zeros((b, n, 1, 1, 1, 3, 3)), spread=None, valid=visual > 0,
        reliability=visual, share=jnp.ones((b, n, 1)), text_maps=jnp.asarray(maps),
        text_valid=jnp.arange(b)[:, None, None] + jnp.zeros((1, n, t), int) > 4,
        text_reliability=jnp.zeros((b, n, t)),
    )  # fmt: skip
    draws = disturbance.Draws(jax.random.split(jax.random.key(0), b))
    after, _ = disturbance.disturb(priors, draws, dropout=0.2, log_gamma=0.3)
    found = np.asarray(after.text_maps)
    assert (found[..., 0, 0] == 0).all() and np.abs(found - maps).max() > 0.05
    one, other = (np.argsort(x.reshape(b, n, t, 9), axis=-1) for x in (maps, found))
    assert (one == other).all()  # monotone
    valid = np.asarray(after.text_valid)
    assert not valid[:5].any() and valid[5:].any(axis=-1).all()
    assert not valid[5:].all()
