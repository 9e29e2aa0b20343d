"""Configs: what may stand in one, and how a mistake is told, here and at the doors."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest

from configs import common
from diffup_jax import settings as setup
from diffup_jax.data import benchmarks, cues
from diffup_jax.types import DiffUpError
from tests import datasets, runs

CONFIGS = sorted(path.stem for path in (runs.ROOT / "configs").glob("*.py"))


def refused(config) -> str:
    with pytest.raises(DiffUpError) as caught:
        setup.from_config(config)
    return str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_the_project_is_read(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    settings = setup.from_config(config)
    # As JSON and back it is the same: a checkpoint keeps the config this way.
    assert setup.from_config(json.loads(json.dumps(setup.plain(settings)))) == settings


def test_unknown_and_missing_keys_are_named_together():
    config = common.get_config().to_dict()
    config["train"]["stepz"] = 3
    config["learning"] = {}
    del config["eval"]["seed"]
    config["losses"] = 0.5
    told = refused(config)
    assert "config.train.stepz: unknown key; did you mean config.train.steps?" in told
    assert "config.learning: unknown key" in told
    assert "config.eval.seed: missing" in told
    assert "config.losses: expected a section, got 0.5" in told
    assert len(told.splitlines()) == 5


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("train", "steps", "many", "expected int, got 'many'"),
        ("train", "steps", True, "expected int, got True"),
        ("train", "steps", 2.0, "expected int, got 2.0"),
        ("train", "multi_host", 1, "expected bool, got 1"),
        ("train", "learning_rate", "1e-3", "expected float"),
        ("backbone", "name", 50, "expected str, got 50"),
        ("eval", "shots", (1, "5"), "expected int, got '5'"),
        ("augment", "scale", (0.5,), r"expected 2 values, got \(0.5,\)"),
        ("train", "steps", 0, "got 0, expected at least 1"),
        ("train", "fewest_points", 0, "got 0, expected at least 1"),
        ("train", "cues", ("mask", "dot"), "expected some of mask, box"),
        ("train", "learning_rate", float("nan"), "got nan, expected more than 0"),
        ("train", "ema_decay", 1.0, r"expected a number in \[0, 1\)"),
        ("eval", "protocol", "voc", r"expected \('hsnet', 'original', 'pfenet', "),
        ("eval", "ways", 2, "expected 1 to 1, the ways of protocol hsnet"),
        ("eval", "ways", 0, "got 0, expected 1 to 1"),
        ("train", "ways", 6, "got 6, expected 1 to 5"),
        ("eval", "episodes", -1, "got -1, expected at least 0"),
        ("eval", "cues", ("mask+",), r"got 'mask\+', expected one of mask, box"),
        ("eval", "cues", ("box+box",), r"got 'box\+box', expected one of mask"),
        ("eval", "cues", ("mask+box",), "a shot for each of its kinds; .* has 1"),
        ("eval", "cues", (), "expected some of mask, box"),
        ("data", "source", "imagenet", r"expected \('coco', 'voc', "),
        ("data", "box", "loose", r"expected \('tight', 'component', 'instance'\)"),
        ("data", "scribble", "line", r"expected \('stroke', 'skeleton'\)"),
        ("data", "crowd", "no", r"expected \('hsnet', 'ignore'\)"),
        ("data", "on_error", "go on", r"expected \('stop', 'skip'\)"),
        ("eval", "shots", (), "expected numbers of at least 1"),
        ("eval", "shots", (-1,), "expected numbers of at least 1"),
        ("text", "templates", ("a photo",), "sentences with {name} in each once"),
        ("text", "templates", (), "sentences with {name} in each once"),
        ("text", "backgrounds", ("voc",), "one of the lists default, pascal, coco"),
        ("text", "backgrounds", (), "one of the lists default"),
        ("text", "temperature", -1.0, "at least 0"),
        ("decoder", "size", "XL", r"got 'XL', expected \('S', 'B', 'L'\)"),
        ("data", "val_fraction", 0.0, "expected a share between 0 and 1"),
        ("sampler", "threshold", "otsu", r"got 'otsu', expected \('iou', 'half'\)"),
        ("losses", "from_own", 1.5, r"expected a number in \[0, 1\]"),
    ],
)
def test_a_value_that_cannot_be_is_named(section, key, value, words):
    config = common.get_config().to_dict()
    config[section][key] = value
    with pytest.raises(DiffUpError, match=rf"config\.{section}\.{key}: .*{words}"):
        setup.from_config(config)


def test_values_that_cannot_go_together_are_named():
    config = common.get_config()
    config.decoder.dqm = False
    config.sampler.warm_start = True
    config.losses.from_own = 0.7
    config.losses.from_prior = 0.6
    config.process.diffusion = True
    with pytest.raises(DiffUpError, match=r"warm_start: got True.*decoder\.dqm"):
        setup.from_config(config)
    with pytest.raises(DiffUpError, match=r"from_prior: got 1\.(29|3).*at most 1"):
        setup.from_config(config)


def test_a_chain_is_not_asked_of_one_forward():
    config = common.get_config()
    config.sampler.steps = 4
    config.sampler.samples = 3
    config.sampler.warm_start = True
    told = refused(config)
    for name in ("steps: got 4", "samples: got 3", "warm_start: got True"):
        assert f"config.sampler.{name}" in told
    assert told.count("config.process.diffusion=True") == 3
    config.process.diffusion = True
    setup.from_config(config)


def test_samples_of_one_forward_need_something_to_differ_by():
    config = common.get_config()
    config.sampler.samples = 3
    config.sampler.prior_dropout = 0.2
    setup.from_config(config)


def test_a_mixture_with_shots_for_its_kinds_and_several_ways_are_fine():
    config = common.get_config()
    config.eval.cues = ("mask+scribble", "box+point+mask")
    config.eval.shots = (3, 5)
    config.eval.protocol = "clean"
    config.eval.ways = 5
    settings = setup.from_config(config)
    assert settings.eval.cues == ("mask+scribble", "box+point+mask")
    config.eval.shots = (2, 5)
    assert "'box+point+mask'" in refused(config) and refused(config).count("\n") == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_names_a_split_and_fold_its_benchmark_knows(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    row = benchmarks.BENCHMARKS[config.data.source]
    if row.folds is not None:
        assert 0 <= config.data.fold < row.folds
    settings = setup.from_config(config)
    assert setup.conventions(settings) == cues.Conventions("tight", "stroke", 20)
    with pytest.raises(DiffUpError, match="data root .* Expected layout"):
        missing = dataclasses.replace(settings.data, root="absent", test_root="")
        setup.open_split(dataclasses.replace(settings, data=missing), "test", shots=1)


def test_folds_and_folders_of_the_configs_with_an_argument():
    for name in ("lvis92i", "paco_part", "pascal_part", "coco_to_pascal"):
        module = importlib.import_module(f"configs.{name}")
        assert module.get_config("2").data.fold == 2
    folder = importlib.import_module("configs.folder")
    assert folder.get_config("mine").data.root == "mine"
    for fold in range(4):
        module = importlib.import_module(f"configs.pascal_fold{fold}")
        assert module.get_config().data.fold == fold


def test_words_of_the_command_line():
    """`--config.eval.cues=mask,box` arrives as ('mask,box',), one number as itself."""
    config = common.get_config()
    config.eval.cues = ("mask, box",)
    config.train.learning_rate = 1
    settings = setup.from_config(config)
    assert settings.eval.cues == ("mask", "box")
    assert settings.train.learning_rate == 1.0
    plain = config.to_dict()
    plain["eval"]["cues"], plain["eval"]["shots"] = "point", 3
    settings = setup.from_config(plain)
    assert settings.eval.cues == ("point",) and settings.eval.shots == (3,)


def test_levels_the_backbone_does_not_have_are_told():
    config = runs.get_config("absent")
    config.prior.levels = ("stage9",)
    settings = setup.from_config(config)
    with pytest.raises(DiffUpError, match=r"\['stage9'\].*'tiny'.*Its levels: "):
        setup.make_backbone(settings)


@pytest.mark.parametrize(
    ("door", "flags", "words"),
    [
        ("train", ("--config.train.stepz=3",), ("stepz", "steps")),
        ("train", (), ("the data root 'absent' is not a folder",)),
    ],
    ids=["unknown key", "missing data"],
)
def test_a_mistake_at_a_door_is_one_line_and_status_2(door, flags, words, tmp_path):
    where = ("--config", "tests/runs.py:absent", "--workdir", str(tmp_path / "run"))
    status, out, err = runs.finish(runs.door(door, *where, *flags, devices=1))
    assert status == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_at_a_door(tmp_path):
    root = datasets.write_label_maps(tmp_path / "data")
    status, out, err = runs.finish(
        runs.door(
            *("eval", "--config", f"tests/runs.py:{root}", "--config.method=prior"),
            *("--output", str(tmp_path / "results.json")),
            *("--config.backbone.name=squeezenet1_1", "--config.eval.shots=1"),
            f"--config.backbone.weights={packaged_tiny()}",
            devices=1,
        )
    )
    assert status == 2 and not out
    assert err.startswith("error: Backbone 'squeezenet1_1' was asked for")
    assert "Traceback" not in err and "tiny.safetensors" in err
    assert not (tmp_path / "results.json").exists()


def packaged_tiny():
    return runs.ROOT / "diffup_jax" / "backbones" / "tiny.safetensors"
