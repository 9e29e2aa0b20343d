"""ResNet against Hugging Face's torch implementation, level by level, from the file.

Everything is random and offline. Norm statistics are drawn away from their defaults, so
that a swapped mean and variance, or a wrong epsilon, cannot hide.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install 'diffup-jax[parity]'"
)

import safetensors.numpy  # noqa: E402
from transformers import (  # noqa: E402
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)

from diffup_jax import backbones, weights  # noqa: E402
from diffup_jax.backbones import resnet  # noqa: E402
from diffup_jax.types import DiffUpError  # noqa: E402
from tests.parity.agreement import agree_all  # noqa: E402

SMALL = resnet.Variant(
    bottleneck=True,
    stem_width=8,
    stem_kernel=7,
    stem_pool=True,
    widths=(4, 8, 12, 16),
    blocks=(2, 1, 3, 2),
    strides=(1, 2, 2, 2),
    dilate=(False,) * 4,
    prior_levels=("stage4.block1",),
    packaged="",
    hub="",
    licence="",
)
BASIC = SMALL._replace(bottleneck=False)


def _reference(variant: resnet.Variant, kind=ResNetModel):
    torch.manual_seed(0)
    model = kind(
        ResNetConfig(
            embedding_size=variant.stem_width,
            hidden_sizes=[
                (4 if variant.bottleneck else 1) * width for width in variant.widths
            ],
            depths=list(variant.blocks),
            layer_type="bottleneck" if variant.bottleneck else "basic",
            num_labels=5,
        )
    ).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Small scales: a deep random network then neither explodes nor dies.
            torch.nn.init.uniform_(module.weight, 0.3, 0.7)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.3, 2.0)
    return model


def _file_keys(model, folder) -> dict[str, np.ndarray]:
    model.save_pretrained(folder)
    return weights.read(folder / "model.safetensors")


def _convert(variant: resnet.Variant, source):
    shapes = jax.eval_shape(
        resnet.ResNet(variant).init, jax.random.key(0), np.zeros((1, 64, 64, 3), "f")
    )
    table, _ = weights.best_table(resnet.tables(variant), source, target_shapes=shapes)
    params = weights.convert(table, source, target_shapes=shapes, what="test")
    return table.layout, params


def _reference_levels(model, variant, images) -> dict[str, np.ndarray]:
    """Stem and every block's output of the torch model, as NHWC."""
    body = getattr(model, "resnet", model)
    modules = {"stem": body.embedder} | {
        f"stage{s + 1}.block{b}": layer
        for s, stage in enumerate(body.encoder.stages)
        for b, layer in enumerate(stage.layers)
    }
    found = {}
    for name, module in modules.items():
        module.register_forward_hook(
            lambda _module, _inputs, out, name=name: found.__setitem__(name, out)
        )
    with torch.no_grad():
        model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    return {name: out.numpy().transpose(0, 2, 3, 1) for name, out in found.items()}


def _assert_levels_agree(variant, params, model, images):
    expected = _reference_levels(model, variant, images)
    answer = jax.jit(resnet.ResNet(variant).apply)(params, images)
    agree_all(answer.levels, expected)
    np.testing.assert_array_equal(answer.last, answer.levels[list(expected)[-1]])


@pytest.mark.parametrize("variant", [SMALL, BASIC], ids=["bottleneck", "basic"])
@pytest.mark.parametrize("size", [(64, 64), (75, 98)])
def test_every_level_agrees_with_the_reference(tmp_path, size, variant):
    model = _reference(variant)
    layout, params = _convert(variant, _file_keys(model, tmp_path))
    assert layout == "hugging face"
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")
    _assert_levels_agree(variant, params, model, images)


@pytest.mark.parametrize(
    "dilate", [(False, False, False, True), (False, False, True, True)]
)
@pytest.mark.parametrize("size", [(64, 64), (75, 98)])
def test_dilated_levels_agree_with_the_reference(tmp_path, size, dilate):
    """The reference is transformers' network, dilated by torchvision's rule in place:
    strides of a stage become a factor of the dilation of all that follows its first
    3x3 convolution.
    """
    model = _reference(SMALL)
    source = _file_keys(model, tmp_path)
    dilation = 1
    for stage, dilated in zip(model.encoder.stages, dilate, strict=True):
        if not dilated:
            continue
        for index, block in enumerate(stage.layers):
            convolution = block.layer[1].convolution
            convolution.dilation = (dilation,) * 2
            if index == 0:
                dilation *= convolution.stride[0]
                convolution.stride = (1, 1)
                block.shortcut.convolution.stride = (1, 1)
            convolution.padding = convolution.dilation
    variant = SMALL._replace(dilate=dilate)
    assert resnet.levels(variant)[-1].stride == 32 // 2 ** sum(dilate)
    _, params = _convert(variant, source)
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")
    _assert_levels_agree(variant, params, model, images)


@pytest.mark.parametrize("variant", [SMALL, BASIC], ids=["bottleneck", "basic"])
def test_from_folder_builds_the_size_of_the_config(tmp_path, variant):
    model = _reference(variant, ResNetForImageClassification)
    folder = tmp_path / "mine"
    model.save_pretrained(folder)
    backbone = backbones.from_folder(folder)
    assert backbone.name == "mine"
    assert backbone.levels == resnet.levels(variant)
    images = np.random.default_rng(1).normal(size=(1, 64, 32, 3)).astype("float32")
    _assert_levels_agree(variant, backbone.params, model, images)


def test_full_size_resnet50_agrees_with_the_reference(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUP_CACHE", str(tmp_path / "cache"))
    variant = resnet.VARIANTS["resnet50"]
    model = _reference(variant, ResNetForImageClassification)
    source = _file_keys(model, tmp_path)
    assert all(key.startswith(("resnet.", "classifier.")) for key in source)
    backbone = backbones.get("resnet50", weights=str(tmp_path / "model.safetensors"))
    images = np.random.default_rng(1).normal(size=(1, 96, 64, 3)).astype("float32")
    _assert_levels_agree(variant, backbone.params, model, images)


def _torchvision_key(key: str) -> str:
    """The torchvision name of a Hugging Face key; both name the same network."""
    key = key.removeprefix("resnet.")
    head, _, leaf = key.rpartition(".")
    norm = ".normalization" in head
    parts = head.split(".")
    if parts[0] == "classifier":
        return f"fc.{leaf}"
    if parts[0] == "embedder":
        return f"{'bn1' if norm else 'conv1'}.{leaf}"
    root = f"layer{int(parts[2]) + 1}.{parts[4]}"
    if parts[5] == "shortcut":
        return f"{root}.downsample.{int(norm)}.{leaf}"
    return f"{root}.{'bn' if norm else 'conv'}{int(parts[6]) + 1}.{leaf}"


@pytest.mark.parametrize("kind", [ResNetModel, ResNetForImageClassification])
def test_torchvision_layout_gives_identical_params(tmp_path, kind):
    source = _file_keys(_reference(SMALL, kind), tmp_path)
    renamed = {_torchvision_key(key): value for key, value in source.items()}
    assert len(renamed) == len(source)
    _, params = _convert(SMALL, source)
    layout, same = _convert(SMALL, renamed)
    assert layout == "torchvision"
    assert weights.digest(params) == weights.digest(same)


def test_torch_file_gives_the_same_as_safetensors(tmp_path):
    model = _reference(SMALL)
    source = _file_keys(model, tmp_path)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    from_torch = weights.read(tmp_path / "model.pth")
    assert from_torch.keys() == source.keys()
    first, second = (_convert(SMALL, s)[1] for s in (source, from_torch))
    assert weights.digest(first) == weights.digest(second)


def test_torch_file_with_code_or_nesting_is_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(DiffUpError, match=r"not a flat state dict.*state_dict"):
        weights.read(tmp_path / "nested.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(DiffUpError, match="cannot be read"):
        weights.read(tmp_path / "module.pth")


def test_half_precision_torch_formats_are_read(tmp_path):
    values = torch.tensor([1.5, -2.0])
    torch.save({"a": values.bfloat16(), "b": values.half()}, tmp_path / "x.pt")
    read = weights.read(tmp_path / "x.pt")
    assert set(read) == {"a", "b"}
    for array in read.values():
        np.testing.assert_array_equal(array, [1.5, -2.0])
    safetensors.numpy.save_file(read, tmp_path / "x.safetensors")
    assert weights.read(tmp_path / "x.safetensors").keys() == read.keys()
