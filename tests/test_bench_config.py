"""Benches read configs and changes of them before they load anything."""

from __future__ import annotations

import importlib

import pytest

CALLS = {
    "ablation": ["--out", "OUT"],
    "correction": ["--workdir", "OUT"],
    "steps": [],
}


@pytest.mark.parametrize("name", CALLS)
def test_a_misspelt_setting_is_refused(name, monkeypatch, tmp_path):
    bench = importlib.import_module(f"tests.bench.{name}")
    rest = [str(tmp_path) if part == "OUT" else part for part in CALLS[name]]
    words = ["--config", "configs/quickstart.py", "--set", "losses.first=1", *rest]
    monkeypatch.setattr("sys.argv", [name, *words])
    with pytest.raises(SystemExit, match=r"unknown setting 'losses\.first'"):
        bench.main()
    assert not list(tmp_path.iterdir())
