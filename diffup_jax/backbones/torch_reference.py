"""F2: ResNet, VGG and EfficientNet-Lite once more, in torch, to compare with (needs the
extra `parity`).

Plain modules with torchvision's names (timm's for EfficientNet-Lite), so that their
files load without renaming, and with torchvision's rule of dilation; ours share nothing
with them but the variant's sizes. Other families have their reference in transformers.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

from diffup_jax.backbones import efficientnet, resnet, vgg


class ResNet(nn.Module):
    """[b 3 h w] to {level name: [b c p q]}, in order."""

    def __init__(self, variant: resnet.Variant):
        super().__init__()
        width, kernel = variant.stem_width, variant.stem_kernel
        self.conv1 = nn.Conv2d(3, width, kernel, 2, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if variant.stem_pool else nn.Identity()
        block = _Bottleneck if variant.bottleneck else _Basic
        self.stages, dilation = len(variant.blocks), 1
        for stage in range(self.stages):
            stride, before = variant.strides[stage], dilation
            if variant.dilate[stage]:
                dilation, stride = dilation * stride, 1
            blocks = []
            for index in range(variant.blocks[stage]):
                step = (stride, before) if index == 0 else (1, dilation)
                blocks.append(block(width, variant.widths[stage], *step))
                width = variant.widths[stage] * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        found = {"stem": x}
        for stage in range(1, self.stages + 1):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = found[f"stage{stage}.block{index}"] = block(x)
        return found


class _Block(nn.Module):
    def _shortcut(self, inner: int, outer: int, stride: int) -> None:
        self.downsample = nn.Identity()
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )


class _Basic(_Block):
    expansion = 1

    def __init__(self, inner: int, width: int, stride: int, dilation: int):
        super().__init__()
        pad = {"padding": dilation, "dilation": dilation, "bias": False}
        self.conv1 = nn.Conv2d(inner, width, 3, stride, **pad)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, **pad)
        self.bn2 = nn.BatchNorm2d(width)
        self._shortcut(inner, width, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class _Bottleneck(_Block):
    expansion = 4

    def __init__(self, inner: int, width: int, stride: int, dilation: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride, dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self._shortcut(inner, 4 * width, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class VGG(nn.Module):
    """[b 3 h w] to {level name: [b c p q]}, in order."""

    def __init__(self, variant: vgg.Variant):
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        self.names, channels = {}, 3
        for stage, width in enumerate(variant.widths):
            if stage:
                layers[str(len(layers))] = nn.MaxPool2d(2, 2, ceil_mode=True)
            for block in range(variant.blocks[stage]):
                layers[str(len(layers))] = nn.Conv2d(channels, width, 3, padding=1)
                if variant.norm:
                    layers[str(len(layers))] = nn.BatchNorm2d(width)
                self.names[len(layers)] = f"stage{stage + 1}.block{block}"
                layers[str(len(layers))] = nn.ReLU()
                channels = width
        self.features = nn.Sequential(layers)

    def forward(self, x):
        found = {}
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.names:
                found[self.names[index]] = x
        return found


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
