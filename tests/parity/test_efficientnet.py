"""EfficientNet-Lite against its torch reference, level by level, in both layouts.

Neither transformers nor this project's extras have it, so the reference is
`efficientnet_lite.EfficientNetLite`, which pads and repeats by rules of its own. Norm
statistics are random.
"""

import re

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install 'diffup-jax[parity]'"
)

import safetensors.torch  # noqa: E402

from diffup_jax import weights  # noqa: E402
from diffup_jax.backbones import efficientnet  # noqa: E402
from tests.parity import efficientnet_lite  # noqa: E402
from tests.parity.agreement import agree_all  # noqa: E402

SMALL = efficientnet.Variant(
    widths=(8, 16, 16, 24, 24, 32, 40), depths=(1, 2, 1, 1, 2, 1, 1), hub="", licence=""
)


def _reference():
    torch.manual_seed(0)
    model = efficientnet_lite.EfficientNetLite(SMALL)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.3, 2.0)
    return model.eval()


def _convert(state, folder):
    safetensors.torch.save_file(state, folder / "model.safetensors")
    source = weights.read(folder / "model.safetensors")
    module = efficientnet.EfficientNetLite(SMALL)
    image = np.zeros((1, 64, 64, 3), "f")
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    tables = efficientnet.tables(SMALL)
    table, _ = weights.best_table(tables, source, target_shapes=shapes)
    params = weights.convert(table, source, target_shapes=shapes, what="test")
    return table.layout, params


# Odd sizes are padded on both sides where even ones are at the end alone; of 4 pixels a
# stage at stride 2 makes one cell of one, and still has no shortcut.
@pytest.mark.parametrize("size", [(96, 64), (75, 97), (4, 4)])
def test_every_level_agrees_with_the_reference(tmp_path, size):
    model = _reference()
    layout, params = _convert(model.state_dict(), tmp_path)
    assert layout == "timm"
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")
    answer = jax.jit(efficientnet.EfficientNetLite(SMALL).apply)(params, images)
    with torch.no_grad():
        want = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    agree_all(
        answer.levels, {k: v.numpy().transpose(0, 2, 3, 1) for k, v in want.items()}
    )
    np.testing.assert_array_equal(answer.last, answer.levels["head"])


def test_the_layout_of_efficientnet_pytorch_is_the_same_network(tmp_path):
    """Blocks counted through, norms from 0 for the one after the expansion."""
    state, renamed = _reference().state_dict(), {}
    first = np.cumsum((0, *SMALL.depths))
    parts = {"pw": "expand", "dw": "depthwise", "pwl": "project"}
    for key, value in state.items():
        found = re.fullmatch(r"blocks\.(\d)\.(\d)\.(conv_|bn)(\w+)\.(\w+)", key)
        if found is None:
            key = key.replace("conv_", "_conv_").replace("bn2", "_bn1")
            renamed[key.replace("bn1.", "_bn0.") if key[0] == "b" else key] = value
            continue
        stage, block, kind, which, leaf = found.groups()
        number = first[int(stage)] + int(block)
        if kind == "bn":
            # The first stage has no expansion, so its count starts one later.
            name = f"_bn{int(which) - (stage != '0')}"
        else:
            part = "project" if (stage, which) == ("0", "pw") else parts[which]
            name = f"_{part}_conv"
        renamed[f"_blocks.{number}.{name}.{leaf}"] = value
    renamed["_fc.weight"] = torch.zeros(3, 3)
    layout, params = _convert(renamed, tmp_path)
    assert layout == "efficientnet-pytorch"
    _, same = _convert(state, tmp_path)
    assert weights.digest(params) == weights.digest(same)
