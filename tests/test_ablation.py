"""The rows of experiments.ablation are settings that exist, and its table adds up."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from diffup_jax import config as configs
from diffup_jax import sections, training
from diffup_jax.data import episodes
from experiments import ablation, decoders, overrides, splits


def settings_of(row):
    """The whole config of a row, full name -> value."""
    config = overrides.config_of("configs/garments.py", row, fold=0, seed=0)
    return sections.flat(sections.plain(configs.from_config(config)))


@pytest.mark.parametrize("name", ablation.ROWS)
def test_a_row_differs_from_the_config_by_what_it_names(name):
    row = ablation.ROWS[name]
    assert settings_of(row) == {**settings_of({}), **row}


def test_no_row_is_another_under_a_second_name():
    found = [json.dumps(settings_of(row)) for row in ablation.ROWS.values()]
    assert len(set(found)) == len(found)


def test_a_misspelt_setting_is_refused():
    with pytest.raises(SystemExit, match=r"unknown setting 'diffup\.losses\.first'"):
        settings_of({"diffup.losses.first": 1.0})


def test_a_decoder_is_known_by_what_trained_it(tmp_path, monkeypatch):
    """--score changes no training; other training data are another decoder."""
    trained, scored = [], []

    def decoder(options, settings, file):
        trained.append((settings.data.points, file.name))
        return {}

    def scores(options, asking, params):
        scored.append(asking.data.points)
        return {}

    monkeypatch.setattr(ablation, "_decoder", decoder)
    monkeypatch.setattr(ablation, "_scored", scores)
    asking = {"episodes": 4, "cue": "point", "shots": 1, "drawn": 0, "swap": ""}
    options = argparse.Namespace(
        config="configs/garments.py", on="novel", kept=6, out=tmp_path, **asking
    )
    for changes, score in (
        ({}, {}),
        ({}, {"data.points": 3}),
        ({"data.points": 3}, {}),
        ({"diffup.sampler.threshold": "half"}, {}),
        ({"data.workers": 1}, {}),
        ({"backbone.weights": "random"}, {}),
    ):
        options.score = score
        ablation.result(options, changes, fold=0, seed=0)
    # Workers change no number: what is there is taken.
    assert [points for points, _ in trained] == [20, 20, 3, 20, 20]
    assert scored == [20, 3, 3, 20, 20]
    name, same, other, cut, weights = (file for _, file in trained)
    assert name == same == cut and len({name, other, weights}) == 3
    assert len(list(tmp_path.glob("*.json"))) == 5


def test_a_decoder_over_two_backbones_sees_the_rows_of_each_in_turn(
    tmp_path, monkeypatch
):
    class Cache:
        def __init__(self, first):
            self.first = first

        def batch(self, rows):
            return self.first + rows

    def step(state, frozen, batch):
        seen.append(batch)
        return state, {"loss": 0.0}

    seen = []
    average = {"decoder": {"x": np.ones(2)}}
    state = training.TrainState(np.zeros(()), average, average, ())
    monkeypatch.setattr(training, "init_state", lambda *arguments: (state, {}))
    monkeypatch.setattr(training, "make_step", lambda *arguments, **named: step)
    rows = [
        decoders.Rows(argparse.Namespace(loss_prepared=None), Cache(first), numbers)
        for first, numbers in ((0, np.arange(0, 40, 2)), (100, np.arange(12)))
    ]
    changes = {"train.steps": 5, "train.warmup_steps": 1}
    settings = configs.from_config(
        overrides.config_of("configs/garments.py", changes, fold=0, seed=0)
    )
    file = tmp_path / "decoder.npz"
    made = decoders.trained(settings, rows, file=file)
    own, other = seen[0::2], seen[1::2]
    assert [len(x) for x in seen] == [12] * 5
    assert all((x < 40).all() and (x % 2 == 0).all() for x in own)
    assert {*np.concatenate(own[:2]).tolist()} == {*range(0, 40, 2)}  # an epoch: 20
    assert [sorted(x) for x in other] == [[*range(100, 112)]] * 2
    np.testing.assert_array_equal(made["decoder"]["x"], np.ones(2))
    again = decoders.trained(settings, (), file=file)
    np.testing.assert_array_equal(again["decoder"]["x"], np.ones(2))
    assert len(seen) == 5


def test_another_backbone_in_turn_is_another_decoder(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(
        ablation, "_decoder", lambda options, settings, file: names.append(file.name)
    )
    monkeypatch.setattr(ablation, "_scored", lambda *arguments: {})
    options = argparse.Namespace(
        config="configs/garments.py", on="novel", kept=6, out=tmp_path, episodes=4,
        cue="mask", shots=1, drawn=0, swap="", score={},
    )  # fmt: skip
    other = {"tiny": {"weights": "random", "levels": [], "scales": [1.0]}}
    for changes in ({}, {"train.also_over": other}):
        ablation.result(options, changes, fold=0, seed=0)
    assert len(set(names)) == 2


def test_fewer_shots_are_the_first_of_the_same_episodes():
    draws = (
        episodes.Draw((3,), "q", (("a", "b", "c"),)),
        episodes.Draw((4,), "r", (("d", "e", "f", "g"),)),
    )
    split = splits.Split("novel", None, (), (), None, (3, 4), draws)
    fewer = splits.first_shots(split, 2)
    assert [d.supports for d in fewer.draws] == [(("a", "b"),), (("d", "e"),)]
    assert [d.query for d in fewer.draws] == ["q", "r"]
    assert fewer.sha != split.sha
    assert splits.first_shots(split, 3).draws[0] == draws[0]
    with pytest.raises(SystemExit, match="4 shots of episodes that have 3"):
        splits.first_shots(split, 4)


def found(miou, shift):
    """A result of 40 episodes of two classes, every IoU the same."""
    rows = {
        "class": np.repeat([3, 8], 20).tolist(),
        "intersection": [miou + shift] * 40,
        "union": [100] * 40,
    }
    return {"miou": miou + shift, "prior": 20.0, "everything": 5.0, "rows": rows}


def test_the_table_pairs_episodes():
    """Episodes of equal IoU leave no interval; the difference is that of the rows."""
    table = ablation.table(
        {"one forward": [found(30, 1), found(40, 1)], "full": [found(30, 3)] * 2}
    )
    lines = {line.split("|")[1].strip(): line for line in table.split("\n")}
    assert "36.0 (36.0 to 36.0)" in lines["one forward"]
    assert "33.0 (33.0 to 33.0)" in lines["full"]
    assert "-3.0 (-3.0 to -3.0)" in lines["full"]
    assert lines["one forward"].split("|")[3].strip() == ""
    assert lines["one forward"].split("|")[-2].strip() == "31.0 41.0"
