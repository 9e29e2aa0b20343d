"""Configs: what may stand in one, how a mistake is told, and what makes a run the same.

How a section is read is tested in test_sections.py; here are the sections there are.
"""

from __future__ import annotations

import importlib
import json

import pytest
from msgspec import structs

from configs import common
from diffup_jax import config as configs
from diffup_jax import sections
from diffup_jax.data import benchmarks, cues, sources
from diffup_jax.sections import Role
from diffup_jax.types import DiffUpError
from tests import datasets, runs

CONFIGS = sorted(path.stem for path in (runs.ROOT / "configs").glob("*.py"))
FOLDED = ("coco_mini", "garments", "garments_two", "lvis92i", "paco_part")
FOLDED += ("pascal_part", "coco_to_pascal", "quickstart", "quickstart_text")


def refused(config) -> str:
    with pytest.raises(DiffUpError) as caught:
        configs.from_config(config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "argument"),
    [*((name, None) for name in CONFIGS), *((name, "2") for name in FOLDED)],
)
def test_every_config_of_the_project_is_read(name, argument):
    get_config = importlib.import_module(f"configs.{name}").get_config
    settings = configs.from_config(get_config(argument) if argument else get_config())
    if argument:
        assert settings.data.fold == 2
    row = benchmarks.BENCHMARKS[settings.data.source]
    if row.folds is not None:
        assert 0 <= settings.data.fold < row.folds
    # As JSON and back it is the same: a checkpoint keeps the config this way.
    saved = json.loads(json.dumps(sections.plain(settings)))
    assert configs.from_config(saved) == settings
    assert configs.from_config(configs.values(settings)) == settings
    assert settings.data.conventions == cues.Conventions("tight", "stroke", 20)
    data = structs.replace(settings.data, root="absent", test_root="")
    with pytest.raises(DiffUpError, match="data root .* Expected layout"):
        sources.open_split(data, "test", shots=1)


def test_folds_and_folders_of_the_other_configs():
    folder = importlib.import_module("configs.folder")
    assert folder.get_config("mine").data.root == "mine"
    for fold in range(4):
        for family in ("coco", "pascal"):
            module = importlib.import_module(f"configs.{family}_fold{fold}")
            assert module.get_config().data.fold == fold


def test_a_config_holds_only_what_it_changes():
    assert configs.from_config({}) == configs.from_config(common.get_config())
    settings = configs.from_config({"train": {"steps": 7}, "method": "prior"})
    assert settings.train.steps == 7 and settings.train.batch_size == 32
    assert not hasattr(settings, "diffup")


def test_sections_of_other_methods_are_not_read():
    config = common.get_config().to_dict()
    config["diffup"]["sampler"]["steps"] = "many"
    assert "config.diffup.sampler.steps: got 'many'" in refused(config)
    config["method"] = "prior"
    configs.from_config(config)


def test_every_mistake_is_named_in_one_error():
    config = common.get_config().to_dict()
    config["train"]["stepz"] = 3
    config["learning"] = {}
    config["diffup"]["losses"] = 0.5
    config["eval"]["cues"] = ("mask", "dot")
    told = refused(config).splitlines()
    assert told[0] == "The config is not usable:" and len(told) == 5
    for line in (
        "config.learning: unknown key; known: ",
        "config.train.stepz: unknown key; did you mean config.train.steps?",
        "config.diffup.losses: expected a section, got 0.5",
        "config.eval.cues: got ('mask', 'dot'), expected for 'dot' one of mask, box,",
    ):
        assert sum(each.strip().startswith(line) for each in told) == 1, line


def test_an_unknown_method_is_told_with_those_there_are():
    assert "unknown method 'diffap'; known: diffup, prior" in refused(
        {"method": "diffap"}
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.steps", 0, "expected int >= 1"),
        ("train.multi_host", 1, "expected bool"),
        ("train.fewest_points", 0, "expected int >= 1"),
        ("train.cues", ("mask", "dot"), "expected some of mask, box"),
        ("train.cues", (), "length >= 1"),
        ("train.learning_rate", float("nan"), "expected float > 0"),
        ("train.ema_decay", 1.0, "expected float < 1"),
        ("train.ways", 6, "expected int <= 5"),
        ("backbone.name", 50, "expected str"),
        ("augment.scale", (0.5,), "expected values of length 2"),
        ("augment.scale", (1.2, 0.5), r"expected \(least, most\)"),
        ("augment.scale", (0.0, 1.0), "expected float > 0"),
        ("augment.aspect", 0.5, "expected float >= 1"),
        ("augment.hue", 0.7, "expected float <= 0.5"),
        ("augment.brightness", 1.0, "expected float < 1"),
        ("eval.protocol", "voc", "expected some of hsnet, original, pfenet, "),
        ("eval.ways", 2, "expected 1 to 1, the ways of protocol hsnet"),
        ("eval.ways", 0, "expected int >= 1"),
        ("eval.episodes", -1, "expected int >= 0"),
        ("eval.cues", (), "length >= 1"),
        ("eval.cues", ("mask+",), r"expected for 'mask\+' one of mask, box"),
        ("eval.cues", ("box+box",), r"expected for 'box\+box' one of mask"),
        ("eval.cues", ("mask+box",), "a shot for each of its kinds; .* has 1"),
        ("eval.shots", (), "length >= 1"),
        ("eval.shots", (-1,), "expected int >= 0"),
        ("data.source", "imagenet", "expected some of coco, voc, "),
        ("data.box", "loose", "expected some of tight, component, instance"),
        ("data.scribble", "line", "expected some of stroke, skeleton"),
        ("data.crowd", "no", "expected one of 'hsnet', 'ignore'"),
        ("data.on_error", "go on", "expected one of 'stop', 'skip'"),
        ("data.val_fraction", 0.0, "expected float > 0"),
        ("data.min_area", 1.0, "expected float < 1"),
        ("data.workers", -1, "expected int >= 0"),
        ("prior.scales", (), "length >= 1"),
        ("prior.scales", (1.0, 1.0), "expected different numbers"),
        ("prior.scales", (5.0,), "expected float <= 4"),
        ("prior.text.templates", ("a photo",), "sentences with {name} in each once"),
        ("prior.text.templates", (), "length >= 1"),
        ("prior.text.backgrounds", ("voc",), "one of the lists default, pascal, coco"),
        ("prior.text.backgrounds", (), "length >= 1"),
        ("prior.text.temperature", -1.0, "expected float >= 0"),
        ("diffup.decoder.size", "XL", "expected some of S, B, L"),
        ("diffup.sampler.threshold", "otsu", "expected some of iou, half"),
        ("diffup.losses.from_own", 1.5, "expected float <= 1"),
        ("diffup.losses.from_own", 0.8, "from_own .* from_prior at most 1"),
    ],
)
def test_a_value_that_cannot_be_is_named(key, value, words):
    config = common.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(DiffUpError, match=rf"config\.{key}: got .*{words}"):
        configs.from_config(config.to_dict())


def test_a_chain_is_not_asked_of_one_forward():
    config = common.get_config()
    sampler = config.diffup.sampler
    sampler.steps, sampler.samples, sampler.warm_start = 4, 3, True
    told = refused(config)
    for name in ("steps: got 4", "samples: got 3", "warm_start: got True"):
        assert f"config.diffup.sampler.{name}" in told
    assert told.count("diffup.process.diffusion=True") == 3
    config.diffup.process.diffusion = True
    configs.from_config(config)
    config.diffup.decoder.dqm = False
    assert "config.diffup.sampler.warm_start: got True" in refused(config)


def test_a_mixture_with_shots_for_its_kinds_and_several_ways_are_fine():
    config = common.get_config()
    config.eval.cues = ("mask+scribble", "box+point+mask")
    config.eval.shots = (3, 5)
    config.eval.protocol = "clean"
    config.eval.ways = 5
    settings = configs.from_config(config)
    assert settings.eval.cues == ("mask+scribble", "box+point+mask")
    config.eval.shots = (2, 5)
    assert "'box+point+mask'" in refused(config) and refused(config).count("\n") == 1


def test_words_of_the_command_line():
    """`--config.eval.cues=mask,box` arrives as ('mask,box',), one number as itself."""
    config = common.get_config()
    config.eval.cues = ("mask, box",)
    config.train.learning_rate = 1
    settings = configs.from_config(config)
    assert settings.eval.cues == ("mask", "box")
    assert settings.train.learning_rate == 1.0
    plain = config.to_dict()
    plain["eval"]["cues"], plain["eval"]["shots"] = "point", 3
    settings = configs.from_config(plain)
    assert settings.eval.cues == ("point",) and settings.eval.shots == (3,)


def test_levels_the_backbone_does_not_have_are_told():
    config = runs.get_config("absent")
    config.prior.levels = ("stage9",)
    with pytest.raises(DiffUpError, match=r"\['stage9'\].*'tiny'.*Its levels: "):
        configs.open_method(configs.from_config(config))


def facts(change=None, *, digest="abc", cues=None):
    """`run_facts` of the small run, as JSON brings it back, after a change."""
    config = runs.get_config("here")
    if cues:
        config.train.cues = cues
    for key, value in (change or {}).items():
        with config.ignore_type():
            config.update_from_flattened_dict({key: value})
    settings = configs.from_config(config)
    run = configs.run_facts(settings, {"backbone": digest})
    return settings, json.loads(json.dumps(run))


def continued(then, settings_and_now):
    settings, now = settings_and_now
    configs.check_same_run(settings, then, now, "runs/x")


FREE_TO_CHANGE = {
    "data.root": "there",
    "data.test_root": "elsewhere",
    "data.test_split": "val",
    "data.workers": 5,
    "data.on_error": "skip",
    "backbone.weights": "",
    "train.log_every": 7,
    "train.val_every": 7,
    "train.val_episodes": 7,
    "train.checkpoint_every": 7,
    "train.keep": 7,
    "train.prior_cache_dir": "kept",
    "train.multi_host": True,
    "eval.cues": ("point",),
    "eval.shots": (5,),
    "eval.seed": 9,
    "eval.protocol": "original",
    "diffup.sampler.eta": 0.0,
    "diffup.sampler.threshold": "iou",
}


@pytest.mark.parametrize("key", FREE_TO_CHANGE)
def test_a_run_may_go_on_with_another(key):
    _, then = facts()
    continued(then, facts({key: FREE_TO_CHANGE[key]}))


@pytest.mark.parametrize(
    ("key", "was", "now"),
    [
        ("seed", 0, 1),
        ("backbone.name", "'tiny'", "tiny_clip_s"),
        ("data.source", "'label_map'", "folder"),
        ("data.train_split", "'train'", "test"),
        ("data.fold", 0, 1),
        ("data.image_size", 64, 96),
        ("data.points", 20, 5),
        ("data.val_fraction", 0.4, 0.5),
        ("augment.flip", 0.5, 0.0),
        ("augment.scale", r"\[0.5, 1.2\]", (0.5, 1.0)),
        ("train.steps", 24, 25),
        ("train.learning_rate", 0.0005, 1.0),
        ("train.cues", r"\['mask', 'box', 'scribble', 'point'\]", ("mask",)),
        ("train.prior_cache", 0, 6),
        ("train.val_classes", 0, 2),
        ("prior.scales", r"\[1.0\]", (0.5,)),
        ("prior.fusion_temperature", 0.1, 0.2),
        ("diffup.decoder.size", "'S'", "B"),
        ("diffup.process.condition_strength", 0.0, 0.5),
        ("diffup.losses.dice", 1.0, 2.0),
    ],
)
def test_a_run_does_not_go_on_with_another(key, was, now):
    _, then = facts()
    shown = list(now) if isinstance(now, tuple) else now
    escaped = repr(shown).replace("[", r"\[").replace("]", r"\]")
    told = rf"'runs/x' holds .*\n  config\.{key}: was {was}, now {escaped}\nContinue"
    with pytest.raises(DiffUpError, match=told):
        continued(then, facts({key: now}))


def test_every_change_of_a_run_is_told_at_once():
    _, then = facts()
    with pytest.raises(DiffUpError) as caught:
        continued(then, facts({"seed": 3, "train.steps": 5, "eval.seed": 4}))
    assert str(caught.value).count(": was ") == 2


def test_a_method_and_its_sections_are_part_of_the_run():
    _, then = facts()
    with pytest.raises(DiffUpError, match=r"config\.method: was 'diffup', now 'prior'"):
        continued(then, facts({"method": "prior"}))


def test_other_weights_are_another_run_wherever_they_lie():
    _, then = facts()
    with pytest.raises(DiffUpError, match="digest of backbone: was 'abc', now 'xyz'"):
        continued(then, facts(digest="xyz"))


def test_what_only_text_cues_read_is_free_where_there_are_none():
    change = {"prior.text.temperature": 0.5, "prior.text.backgrounds": ("coco",)}
    _, then = facts()
    continued(then, facts(change))
    _, then = facts(cues=("mask", "text"))
    with pytest.raises(DiffUpError) as caught:
        continued(then, facts(change, cues=("mask", "text")))
    assert "config.prior.text.temperature: was 0.0, now 0.5" in str(caught.value)
    assert "config.prior.text.backgrounds: was ['default']" in str(caught.value)


def test_what_kept_priors_depend_on():
    """Every field that changes an episode or a prior, and none that only trains."""
    settings = configs.from_config(runs.get_config("here"))
    kept = set(sections.fields_with(settings, Role.KEPT))
    assert {
        *("data.root", "data.source", "data.fold", "data.image_size", "data.box"),
        *("data.on_error", "data.val_fraction", "data.train_split", "data.min_area"),
        *("train.cues", "train.max_shots", "train.ways", "train.fewest_points"),
        *("augment.flip", "augment.scale", "augment.hue"),
        *("prior.levels", "prior.scales", "prior.temperature", "prior.grid_stride"),
        *("prior.text.templates", "diffup.decoder.mask_stride"),
    } <= kept
    of_augment = {f"augment.{name}" for name in settings.augment.__struct_fields__}
    assert of_augment <= kept
    assert not kept & {
        *("train.steps", "train.learning_rate", "train.batch_size", "eval.seed"),
        *("prior.fusion_temperature", "diffup.decoder.size", "diffup.losses.dice"),
        *("data.workers", "data.test_split", "backbone.weights"),
    }


def test_a_model_is_bound_to_what_its_parameters_mean():
    settings = configs.from_config(runs.get_config("here"))
    bound = sections.fields_with(settings, sections.MODEL)
    assert bound == {
        "method": "diffup",
        "diffup.decoder.size": "S",
        "diffup.decoder.mask_stride": 8,
        "diffup.decoder.query_rgb": True,
        "diffup.decoder.scm": True,
        "diffup.decoder.dqm": True,
        "diffup.process.diffusion": False,
        "diffup.process.signal_scale": 1.0,
        "diffup.process.condition_strength": 0.0,
    }


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
    packaged = runs.ROOT / "diffup_jax" / "backbones" / "tiny.safetensors"
    status, out, err = runs.finish(
        runs.door(
            *("eval", "--config", f"tests/runs.py:{root}", "--config.method=prior"),
            *("--output", str(tmp_path / "results.json")),
            *("--config.backbone.name=squeezenet1_1", "--config.eval.shots=1"),
            f"--config.backbone.weights={packaged}",
            devices=1,
        )
    )
    assert status == 2 and not out
    assert err.startswith("error: Backbone 'squeezenet1_1' was asked for")
    assert "Traceback" not in err and "tiny.safetensors" in err
    assert not (tmp_path / "results.json").exists()
