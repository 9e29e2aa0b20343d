"""Benches read configs and changes of them before they load anything."""

from __future__ import annotations

import importlib

import pytest

from tests.bench import trials

CALLS = {
    "ablation": ["--out", "OUT"],
    "correction": ["--workdir", "OUT"],
    "steps": [],
}


@pytest.mark.parametrize("setting", ["losses.first", "loses.dice"])
@pytest.mark.parametrize("name", CALLS)
def test_a_misspelt_setting_is_refused(name, setting, monkeypatch, tmp_path):
    bench = importlib.import_module(f"tests.bench.{name}")
    rest = [str(tmp_path) if part == "OUT" else part for part in CALLS[name]]
    words = ["--config", "configs/quickstart.py", "--set", f"{setting}=1", *rest]
    monkeypatch.setattr("sys.argv", [name, *words])
    with pytest.raises(SystemExit, match=f"unknown setting '{setting}'"):
        bench.main()
    assert not list(tmp_path.iterdir())


def test_a_config_is_named_with_its_fold():
    named, plain = "configs/garments.py:2", "configs/garments.py"
    assert trials.config_of(named, {}).data.fold == 2
    assert trials.config_of(named, {}, fold=1).data.fold == 1
    assert trials.config_of(plain, {}, fold=3, seed=5).seed == 5
    assert trials.config_of(plain, {}).data.fold == 0


def test_fresh_is_of_a_chain(monkeypatch, capsys, tmp_path):
    words = ["--config", "configs/quickstart.py", "--workdir", str(tmp_path), "--fresh"]
    monkeypatch.setattr("sys.argv", ["correction", *words])
    with pytest.raises(SystemExit):
        importlib.import_module("tests.bench.correction").main()
    assert "without process.diffusion" in capsys.readouterr().err
