"""Text as a cue: from the config through data, scoring and training to the answer."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from diffup_jax import config as configs
from diffup_jax import methods, scoring, training, training_data
from diffup_jax.backbones import clip
from diffup_jax.backbones.towers import Tower
from diffup_jax.data import batches, episodes, lists, pipeline, protocols, sources
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


TABLE = np.random.default_rng(0).normal(size=(len(NAMES), 5)).astype(np.float32)


def opened(root, split, shots):
    """Settings of the run, and one of its splits."""
    settings = configs.from_config(runs.get_config(str(root)))
    source = sources.open_split(settings.data, split, shots=shots, rule=None)
    return settings, source


def training_batch(root, kinds, *, size=48):
    settings, source = opened(root, "train", 1)
    recipe = dataclasses.replace(
        training_data.recipe_of(settings, source, (1, 2, 3), texts=(TABLE,)),
        batch_size=size, max_shots=2, cues=kinds,
    )  # fmt: skip
    dataset = pipeline.training_dataset(
        recipe, steps=2, process_index=0, process_count=1
    )
    return dataset[1].episode


def fields(episode):
    """Every array of an episode but those of text."""
    support = episode.support._asdict() | episode.query._asdict()
    return {k: v for k, v in support.items() if not k.startswith("text")}


def test_text_among_the_training_cues_changes_nothing_but_itself(root):
    old, new = training_batch(root, WITHOUT), training_batch(root, WITH)
    alone = ~new.support.valid.any(axis=(1, 2))
    assert not old.support.text_valid.any()
    assert old.support.valid.any(axis=(1, 2)).all()
    for (name, before), after in zip(
        fields(old).items(), fields(new).values(), strict=True
    ):
        assert (before[~alone] == after[~alone]).all(), name
    for before, after in zip(old.query, new.query, strict=True):
        assert (before == after).all()
    support, read = new.support, new.support.text_valid
    assert read[alone].all()
    assert not support.images[alone].any() and not support.fg[alone].any()
    # The row of the table of the class that is asked for, nothing where none is read.
    among = (support.text[read][:, None] == TABLE[None, [1, 2, 3]]).all(axis=-1)
    assert (among.sum(axis=1) == 1).all() and among.any(axis=0).all()
    assert not support.text[~read].any()
    # A third of 48 alone, half of the rest beside shots; 5 standard deviations wide.
    assert 1 <= alone.sum() <= 32
    assert 1 <= read[~alone].sum() < (~alone).sum()
    only = training_batch(root, ("text",), size=8).support
    assert only.text_valid.all() and not only.valid.any()


def test_text_is_no_shot_of_an_evaluation(root):
    settings, source = opened(root, "test", 3)
    draws = episodes.clean_draws(source, (0, 4), shots=3, count=4, seed=0)
    empty = tuple(draw._replace(supports=((),)) for draw in draws)

    def batch(cue, draws=draws):
        (only,) = pipeline.evaluation_batches(
            source, draws, numbers=range(4), cue=cue, protocol=protocols.get("clean"),
            data=settings.data, batch_size=4, seed=0, texts=TABLE, workers=0,
        )  # fmt: skip
        asked = TABLE[only.class_ids] * only.episode.support.text_valid[..., None]
        np.testing.assert_array_equal(only.episode.support.text, asked)
        return only.episode

    mixed, visual = batch("mask+text+point"), batch("mask+point")
    assert mixed.support.text_valid.all() and not visual.support.text_valid.any()
    for (name, one), other in zip(
        fields(mixed).items(), fields(visual).values(), strict=True
    ):
        assert (one == other).all(), name
    for text, shots in ((batch("text"), 3), (batch("text", empty), 1)):
        support = text.support
        assert support.valid.shape == (4, 1, shots) and not support.valid.any()
        assert support.text_valid.all() and not support.images.any()
        assert (text.query.image == visual.query.image).all()
    with pytest.raises(DiffUpError, match=r"\[0\] supports"):
        batch("mask+text", empty)


def test_text_changes_the_answer_only_where_it_is_valid(config):
    config.method = "prior"
    method, backbone = configs.open_method(configs.from_config(config))
    table = method.embed_text(NAMES)
    assert len(table) == len(NAMES)
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, atol=1e-5)
    assert "a photo of a {name}" in method.text_in_words()

    case = batches.blank(3, 1, 64, text=table.shape[1])
    support, rng = case.support, np.random.default_rng(0)
    for pictures in (case.query.image, support.images):
        pictures[:] = rng.integers(0, 255, pictures.shape)
    support.fg[..., 8:40, 8:40] = True
    support.bg[:] = ~support.fg
    support.valid[:2] = True
    support.text[:] = table[0]
    support.text_valid[1:] = True  # mask; mask and text; text alone
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"backbone": backbone.params}
    ask = jax.jit(lambda case: methods.asked(method, params, keys, case).probability)

    def answer(**changes):
        asked = case._replace(support=support._replace(**changes))
        return np.asarray(ask(asked))

    seen, read = answer(text=support.text[..., :0]), answer()
    np.testing.assert_allclose(read[0], seen[0], atol=1e-5)
    assert np.abs(read[1] - seen[1]).max() > 1e-3
    assert np.isfinite(read).all() and read[2].std() > 1e-3
    # Another class is another text.
    other = answer(text=np.broadcast_to(table[1], support.text.shape))
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
    plan = scoring._plan(configs.from_config(config))
    both = ("mask", "box+text")
    assert list(plan.items()) == [(5, both), (1, both), (0, ("text",))]
    assert "0-shot: only text is scored, not mask, box+text" in capsys.readouterr().out
    config.eval.shots = (0,)
    with pytest.raises(DiffUpError, match="for 'mask' a shot for each"):
        configs.from_config(config)


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
    config.prior.text.backgrounds = ("sky", "road")
    with pytest.raises(DiffUpError, match="config.prior.text.backgrounds: was"):
        training.train(config, str(tmp_path))
    config.prior.text.backgrounds = ("default",)
    training.train(config, str(tmp_path))
    runs.assert_same_bits(runs.saved_state(tmp_path, 2), whole)


def test_how_text_is_read_is_free_where_none_is(root):
    config = runs.get_config(str(root))
    facts = configs.run_facts(configs.from_config(config), {})
    config.prior.text.backgrounds = ("sky", "road")
    changed = configs.from_config(config)
    now = configs.run_facts(changed, {})
    configs.check_same_run(changed, facts, now, "run")
    config.train.cues = WITH
    changed = configs.from_config(config)
    now = configs.run_facts(changed, {})
    with pytest.raises(DiffUpError, match="config.prior.text.backgrounds: was"):
        configs.check_same_run(changed, facts, now, "run")
