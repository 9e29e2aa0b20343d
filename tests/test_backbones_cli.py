"""`diffup backbones`: list, fetch and check as a person meets them."""

from __future__ import annotations

import builtins

import pytest
import safetensors.numpy

from diffup_jax import backbones, cli, weights
from diffup_jax.backbones import catalogue
from diffup_jax.types import Level

pytestmark = pytest.mark.usefixtures("no_network")


def _run(*arguments):
    return cli.main(["backbones", *arguments])


def test_list_has_a_line_for_every_backbone(capsys, monkeypatch):
    monkeypatch.setattr(catalogue, "count", lambda name: 1_500_000)
    assert _run("list") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(backbones.names())
    assert head.split()[:4] == ["name", "parameters", "text", "licence"]
    (resnet50,) = (line for line in lines if line.startswith("resnet50 "))
    for part in ("1.5 M", " no ", "BSD-3-Clause", "timm/resnet50.tv_in1k"):
        assert part in resnet50
    assert resnet50.endswith(
        "stage3.block5: 16 x 1024, stage4.block0 stage4.block1 stage4.block2: 32 x 2048"
    )


def test_list_of_named_ones_shows_all_levels_and_counts_once(capsys, monkeypatch):
    assert _run("list", "tiny", "squeezenet1_1") == 0
    told = capsys.readouterr().out
    assert "1.0 M" in told
    assert "packaged" in told
    for level in (*backbones.recipe("tiny").levels, Level("fire2", 4, 128)):
        assert level.name in told
    assert _run("list", "tinny") == 2
    assert "Did you mean tiny" in capsys.readouterr().err
    monkeypatch.setattr(catalogue, "count", lambda name: pytest.fail("counted again"))
    assert _run("list", "tiny") == 0


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


def test_check_says_that_it_needs_torch(capsys, monkeypatch):
    ordinary = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return ordinary(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    assert _run("check", "tiny") == 2
    assert "diffup-jax[parity]" in capsys.readouterr().err


def test_wrong_words_are_refused():
    for wrong in ([], ["lost"], ["check"], ["fetch"]):
        with pytest.raises(SystemExit) as stopped:
            _run(*wrong)
        assert stopped.value.code == 2


# --- With torch -----------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip(
        "torch", reason="comparing needs the extra: pip install 'diffup-jax[parity]'"
    )


def _hugging_face(folder, torch):
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    sizes = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    model = ResNetModel(ResNetConfig(layer_type="basic", **sizes))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.3, 2.0)
    model.save_pretrained(folder)
    return folder


def test_check_compares_a_hugging_face_folder(torch, tmp_path, capsys):
    folder = _hugging_face(tmp_path / "folder", torch)
    assert _run("check", "resnet18", "--weights", str(folder)) == 0
    told = capsys.readouterr().out
    for level in ("stage1.block1", "stage4.block1", "last", "agrees: largest"):
        assert level in told


def test_check_compares_a_torchvision_file_at_every_level(torch, tmp_path, capsys):
    from diffup_jax.backbones import resnet

    folder = _hugging_face(tmp_path / "folder", torch)
    variant = resnet.VARIANTS["resnet18"]
    torchvision, hugging_face, _ = resnet.tables(variant)
    names = {row.target: row.source for row in torchvision.rows}
    arrays = weights.read(folder / "model.safetensors")
    state = {names[row.target]: arrays[row.source] for row in hugging_face.rows}
    file = tmp_path / "resnet18.safetensors"
    safetensors.numpy.save_file(state, file)
    assert _run("check", "resnet18", "--weights", str(file)) == 0
    told = capsys.readouterr().out
    for level in backbones.recipe("resnet18").levels:
        assert level.name in told


def test_check_compares_efficientnet_lite(torch, tmp_path, capsys):
    from safetensors.torch import save_file

    from diffup_jax.backbones import efficientnet, torch_reference

    torch.manual_seed(0)
    variant = efficientnet.VARIANTS["efficientnet_lite0"]
    file = tmp_path / "lite0.safetensors"
    save_file(torch_reference.EfficientNetLite(variant).state_dict(), file)
    assert _run("check", "efficientnet_lite0", "--weights", str(file)) == 0
    told = capsys.readouterr().out
    for level in ("stage1.block0", "stage6.block3", "head", "agrees: largest"):
        assert level in told


def test_check_finds_a_difference(torch, tmp_path, capsys, monkeypatch):
    from diffup_jax.backbones import resnet

    folder = _hugging_face(tmp_path / "folder", torch)
    wrong = resnet.VARIANTS["resnet18"]._replace(dilate=(False, False, False, True))
    monkeypatch.setitem(resnet.VARIANTS, "resnet18", wrong)
    monkeypatch.setattr("diffup_jax.backbones.check.TOLERANCE", 0.0)
    assert _run("check", "resnet18", "--weights", str(folder)) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_check_without_a_reference_says_so(torch, capsys):
    assert _run("check", "tiny") == 2
    assert "no reference for 'packaged'" in capsys.readouterr().err
    assert _run("check", "tiny", "--weights", "random") == 2
    assert "have no reference" in capsys.readouterr().err
