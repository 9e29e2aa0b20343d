"""EfficientNet-Lite once more, in torch, to compare with; transformers has none.

Plain modules with timm's names, so that its files load without renaming; ours share
nothing with them but the variant's sizes.
"""

from __future__ import annotations

from torch import nn
from torch.nn import functional

from diffup_jax.backbones import efficientnet

# Of EfficientNet-B0, stage by stage: kernel, stride of the first block, widening.
_EFFICIENTNET = (
    *((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6)),
    *((5, 1, 6), (5, 2, 6), (3, 1, 6)),
)


class EfficientNetLite(nn.Module):
    """[b 3 h w] to {level name: [b c p q]}, in order."""

    def __init__(self, variant: efficientnet.Variant):
        super().__init__()
        self.conv_stem, self.bn1, width = _Same(3, 32, 3, 2), _norm(32), 32
        self.blocks = nn.Sequential()
        for (kernel, stride, expand), channels, depth in zip(
            _EFFICIENTNET, variant.widths, variant.depths, strict=True
        ):
            stage = nn.Sequential()
            for index in range(depth):
                step = stride if index == 0 else 1
                block = _Inverted if expand > 1 else _Separable
                stage.append(block(width, channels, kernel, step, expand))
                width = channels
            self.blocks.append(stage)
        self.conv_head, self.bn2 = _Same(width, 1280, 1, 1), _norm(1280)

    def forward(self, x):
        x, found = functional.relu6(self.bn1(self.conv_stem(x))), {}
        for stage, blocks in enumerate(self.blocks, start=1):
            for index, block in enumerate(blocks):
                x = found[f"stage{stage}.block{index}"] = block(x)
        found["head"] = functional.relu6(self.bn2(self.conv_head(x)))
        return found


class _Same(nn.Conv2d):
    """ceil(size / stride) cells; an odd padding has its larger half at the end."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, groups=1):
        super().__init__(inner, outer, kernel, stride, groups=groups, bias=False)

    def forward(self, x):
        padding: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            kernel, stride = self.kernel_size[0], self.stride[0]
            whole = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            padding += [whole // 2, whole - whole // 2]
        return super().forward(functional.pad(x, padding))


class _Separable(nn.Module):
    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expand: int):
        super().__init__()
        self.conv_dw = _Same(inner, inner, kernel, stride, groups=inner)
        self.bn1, self.bn2 = _norm(inner), _norm(outer)
        self.conv_pw = _Same(inner, outer, 1, 1)
        self.skip = stride == 1 and inner == outer

    def forward(self, x):
        y = functional.relu6(self.bn1(self.conv_dw(x)))
        y = self.bn2(self.conv_pw(y))
        return x + y if self.skip else y


class _Inverted(nn.Module):
    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = inner * expand
        self.conv_pw, self.bn1 = _Same(inner, wide, 1, 1), _norm(wide)
        self.conv_dw = _Same(wide, wide, kernel, stride, groups=wide)
        self.bn2 = _norm(wide)
        self.conv_pwl, self.bn3 = _Same(wide, outer, 1, 1), _norm(outer)
        self.skip = stride == 1 and inner == outer

    def forward(self, x):
        y = functional.relu6(self.bn1(self.conv_pw(x)))
        y = functional.relu6(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.skip else y


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)
