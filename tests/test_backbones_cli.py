"""`diffup backbones`: list and fetch as a person meets them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diffup_jax import backbones, cli, weights
from diffup_jax.types import Level

pytestmark = pytest.mark.usefixtures("no_network")


def _run(*arguments):
    return cli.main(["backbones", *arguments])


def test_list_has_a_line_for_every_backbone(capsys, monkeypatch):
    monkeypatch.setattr(backbones, "shapes", lambda recipe: pytest.fail("traced"))
    assert _run("list") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(backbones.names())
    assert head.split()[:4] == ["name", "parameters", "text", "licence"]
    (resnet50,) = (line for line in lines if line.startswith("resnet50 "))
    for part in ("23.5 M", " no ", "BSD-3-Clause", "timm/resnet50.tv_in1k"):
        assert part in resnet50
    assert resnet50.endswith(
        "stage3.block5: 16 x 1024, stage4.block0 stage4.block1 stage4.block2: 32 x 2048"
    )
    (clip,) = (line for line in lines if line.startswith("clip_b16 "))
    assert "149.6 M" in clip and " yes " in clip


def test_list_of_named_ones_shows_all_levels(capsys):
    assert _run("list", "tiny", "squeezenet1_1") == 0
    told = capsys.readouterr().out
    assert "1.0 M" in told
    assert "packaged" in told
    for level in (*backbones.recipe("tiny").levels, Level("fire2", 4, 128)):
        assert level.name in told
    assert _run("list", "tinny") == 2
    assert "Did you mean tiny" in capsys.readouterr().err


def test_list_waits_for_no_library_that_it_does_not_need():
    script = (
        "import sys\n"
        "from diffup_jax import cli\n"
        "assert cli.main(['backbones', 'list']) == 0\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert "flax" in loaded
    assert not loaded & {
        *("huggingface_hub", "transformers", "tokenizers", "torch"),
        *("optax", "orbax", "grain", "ml_collections"),
        *("matplotlib", "PIL", "scipy", "tensorflow", "tensorflow_datasets"),
    }


def test_fetch_tells_files_and_digest(capsys, tmp_path):
    backbone = backbones.get("tiny", weights="random")
    file = tmp_path / "mine.safetensors"
    weights.save(file, backbone.params, half=False)
    assert _run("fetch", "tiny", "--weights", str(file)) == 0
    told = capsys.readouterr().out
    assert backbone.digest in told
    assert str(file) in told


def test_fetch_offline_is_one_message_and_status_2(capsys, tmp_path):
    assert _run("fetch", "resnet18") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: The weights 'timm/resnet18.tv_in1k'")
    assert "diffup backbones fetch resnet18" in told
    assert "Traceback" not in told


def test_wrong_words_are_refused():
    for wrong in ([], ["lost"], ["check"], ["fetch"]):
        with pytest.raises(SystemExit) as stopped:
            _run(*wrong)
        assert stopped.value.code == 2
