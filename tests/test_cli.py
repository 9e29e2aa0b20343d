"""The command line: exit status, one message for a mistake, and no needless import."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffup_jax import __version__, cli
from tests import datasets

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def sound(tmp_path):
    return datasets.write_label_maps(tmp_path / "data")


def test_doctor_answers_0_for_a_sound_data_set(sound, capsys):
    assert cli.main(["doctor", str(sound)]) == 0
    told = capsys.readouterr().out
    assert "label_map" in told and "train: 24 images, 8 classes" in told


def test_doctor_answers_1_and_lists_all_problems(sound, capsys):
    for mask in sorted((sound / "masks").iterdir())[:3]:
        mask.write_bytes(b"no picture")
    assert cli.main(["doctor", str(sound)]) == 1
    told = capsys.readouterr().out
    for number in range(3):
        assert f"cannot read {sound / 'masks' / f'picture{number:03d}.png'}" in told
    assert "problems" in told.splitlines()[-1]


def test_split_and_kind_are_heard(sound, capsys):
    (sound / "masks/picture000.png").unlink()  # of train
    arguments = ["doctor", str(sound), "--kind", "label_map", "--split"]
    assert cli.main([*arguments, "test"]) == 0
    assert cli.main([*arguments, "train"]) == 1
    assert cli.main(["doctor", str(sound), "--kind", "coco"]) == 2
    assert "error: " in capsys.readouterr().err


def test_mistakes_are_one_message_and_status_2(tmp_path, capsys):
    assert cli.main(["doctor", str(tmp_path / "nowhere")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    for wrong in ([], ["cure"], ["doctor"], ["doctor", "x", "--loud"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(wrong)
        assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_version_is_told(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0 and __version__ in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["backbones", "list"], ["doctor", "."]])
def test_a_reader_that_goes_away_ends_it_quietly(words, sound):
    """As in `diffup ... | head`; here the reader is gone before the first word."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "diffup_jax", *words],
            cwd=sound,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_interrupt_is_one_line_and_status_130(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    command = dataclasses.replace(cli.COMMANDS["doctor"], run=interrupted)
    monkeypatch.setitem(cli.COMMANDS, "doctor", command)
    assert cli.main(["doctor", "."]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_doctor_works_without_jax(sound):
    script = (
        "import runpy, sys\n"
        "for name in ('jax', 'jaxlib', 'flax'): sys.modules[name] = None\n"
        "runpy.run_module('diffup_jax', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "doctor", str(sound)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no problems" in done.stdout
