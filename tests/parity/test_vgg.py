"""VGG against a network written in torch from the paper's table, level by level.

Neither transformers nor this project's extras have a VGG, so the reference stands here:
one Sequential with torchvision's numbering. Norm statistics are random.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install 'diffup-jax[parity]'"
)

import safetensors.torch  # noqa: E402

from diffup_jax import weights  # noqa: E402
from diffup_jax.backbones import vgg  # noqa: E402
from tests.parity.agreement import agree  # noqa: E402

SMALL = vgg.VARIANTS["vgg16"]._replace(widths=(4, 6, 8, 8, 12))


def _layers(norm: bool) -> list[torch.nn.Module]:
    """2, 2, 3, 3, 3 convolutions, a pool after each group, as torchvision has them."""
    nn, layers, before = torch.nn, [], 3
    for width, count in zip(SMALL.widths, (2, 2, 3, 3, 3), strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(before, width, kernel_size=3, padding=1))
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers.append(nn.ReLU(inplace=False))
            before = width
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True))
    return layers


def _reference(norm: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.features = torch.nn.Sequential(*_layers(norm))
    model.classifier = torch.nn.Linear(2, 2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.3, 2.0)
    return model.eval()


def _convert(variant, model, folder):
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    source = weights.read(folder / "model.safetensors")
    shapes = jax.eval_shape(
        vgg.VGG(variant).init, jax.random.key(0), np.zeros((1, 32, 32, 3), "f")
    )
    (table,) = vgg.tables(variant)
    return weights.convert(table, source, target_shapes=shapes, what="test")


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("size", [(64, 64), (75, 98)])
def test_every_level_agrees_with_the_reference(tmp_path, size, norm):
    variant, model = SMALL._replace(norm=norm), _reference(norm)
    params = _convert(variant, model, tmp_path)
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")
    answer = jax.jit(vgg.VGG(variant).apply)(params, images)
    names = iter(level.name for level in vgg.levels(variant))
    x = torch.from_numpy(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for layer in model.features:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                name, want = next(names), x.numpy().transpose(0, 2, 3, 1)
                agree(name, answer.levels[name], want)
    np.testing.assert_array_equal(answer.last, answer.levels[name])
    assert next(names, None) is None
