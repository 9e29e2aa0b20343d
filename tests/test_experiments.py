"""Programs read configs and changes of them before they load anything."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from experiments import overrides

CALLS = {
    "ablation": ["--out", "OUT"],
    "correction": ["--workdir", "OUT"],
    "steps": [],
}


@pytest.mark.parametrize("setting", ["diffup.losses.first", "losses.dice"])
@pytest.mark.parametrize("name", CALLS)
def test_a_misspelt_setting_is_refused(name, setting, monkeypatch, tmp_path):
    program = importlib.import_module(f"experiments.{name}")
    rest = [str(tmp_path) if part == "OUT" else part for part in CALLS[name]]
    words = ["--config", "configs/quickstart.py", "--set", f"{setting}=1", *rest]
    monkeypatch.setattr("sys.argv", [name, *words])
    with pytest.raises(SystemExit, match=f"unknown setting '{setting}'"):
        program.main()
    assert not list(tmp_path.iterdir())


def test_a_config_is_named_with_its_fold():
    named, plain = "configs/garments.py:2", "configs/garments.py"
    assert overrides.config_of(named, {}).data.fold == 2
    assert overrides.config_of(named, {}, fold=1).data.fold == 1
    assert overrides.config_of(plain, {}, fold=3, seed=5).seed == 5
    assert overrides.config_of(plain, {}).data.fold == 0


def test_fresh_is_of_a_chain(monkeypatch, capsys, tmp_path):
    words = ["--config", "configs/quickstart.py", "--workdir", str(tmp_path), "--fresh"]
    monkeypatch.setattr("sys.argv", ["correction", *words])
    with pytest.raises(SystemExit):
        importlib.import_module("experiments.correction").main()
    assert "without diffusion" in capsys.readouterr().err


def test_every_program_says_how_it_is_run():
    """Its head names the command, and nothing is computed when it is imported."""
    folder = Path(__file__).resolve().parent.parent / "experiments"
    libraries = {"__init__", "decoders", "overrides", "splits"}
    programs = {path.stem for path in folder.glob("*.py")} - libraries
    assert programs > CALLS.keys()
    for name in programs:
        module = importlib.import_module(f"experiments.{name}")
        assert f"python -m experiments.{name}" in module.__doc__
        assert callable(module.main)
