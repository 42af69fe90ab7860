"""ResNet: learn what to add to the input, and depth stops hurting.

He et al. 2016: plain networks get a *higher training error* when made deeper, though the deeper
one could copy the shallower one and pass its output on. So let blocks compute F(x) + x: passing on
is then the zero function. Residual nets of 18 to 152 layers improve with depth; ``plain18`` and
``plain34`` are the same layers without the additions, the paper's control.

Where a block changes shape, its shortcut must too (section 3.3): option A subsamples and pads the
new channels with zeros, without a parameter; B, the default, is a 1×1 convolution there; C is one
on every shortcut.

Often wrong: the published bottleneck (v1, ``resnet50_v1``) has its stride in the first 1×1
convolution, torchvision's (v1.5, ``resnet50``) in the 3×3: same parameters, other outputs, more
multiply-adds, about half a point better. Batch normalisation comes after each convolution, before
ReLU, and the last ReLU of a block after the addition. Weights are He's initialisation. Starting the
last γ of each block at zero is Goyal et al.'s (2017), not the paper's: an option here.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vidi.errors import InputError

Shortcut = Literal["A", "B", "C"]


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, new channels zero. Has no parameters."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        return f"new_channels={self.new_channels}, stride={self.stride}"


def shortcut_module(kind: Shortcut, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """The shortcut of a block from ``inputs`` to ``outputs`` channels; None is the identity."""
    changes = inputs != outputs or stride != 1
    if kind == "C" or (kind == "B" and changes):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )
    return PadShortcut(outputs - inputs, stride) if changes else None


class BasicBlock(nn.Module):
    """Two 3×3 convolutions (figure 5, left). ``shortcut=None`` makes it plain."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.residual = shortcut is not None
        self.downsample = shortcut_module(shortcut, inputs, width, stride) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.residual:
            y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class Bottleneck(nn.Module):
    """1×1 to reduce, 3×3, 1×1 to restore (figure 5, right), with the stride in the 3×3 (v1.5)."""

    expansion = 4
    stride_in_first = False

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut | None) -> None:
        super().__init__()
        outputs = width * self.expansion
        first, second = (stride, 1) if self.stride_in_first else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.residual = shortcut is not None
        self.downsample = shortcut_module(shortcut, inputs, outputs, stride) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.residual:
            y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class BottleneckV1(Bottleneck):
    """The paper's own: the stride in the first 1×1 convolution."""

    stride_in_first = True


Block = type[BasicBlock] | type[Bottleneck]


def conv_bn_relu(
    inputs: int, outputs: int, stride: int, dilation: int = 1
) -> tuple[nn.Module, ...]:
    """A 3×3 convolution, its normalisation and ReLU, for an ``nn.Sequential``."""
    return (
        nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def stage(
    block: Block, inputs: int, width: int, depth: int, stride: int, shortcut: Shortcut | None
) -> nn.Sequential:
    """``depth`` blocks at one resolution; the first has the stride and the change of width."""
    if shortcut not in ("A", "B", "C", None):
        raise InputError(
            f"The shortcut {shortcut!r} is unknown: use 'A' (zero-padded channels), 'B' (1×1 "
            "convolution where the shape changes) or 'C' (1×1 convolution everywhere)."
        )
    blocks: list[nn.Module] = [block(inputs, width, stride, shortcut)]
    for _ in range(depth - 1):
        blocks.append(block(width * block.expansion, width, 1, shortcut))
    return nn.Sequential(*blocks)


def initialise(network: nn.Module, *, zero_init_residual: bool) -> None:
    """He's initialisation for every convolution; γ = 0 at each block's end if asked."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init_residual and isinstance(module, BasicBlock) and module.residual:
            nn.init.zeros_(module.bn2.weight)
        elif zero_init_residual and isinstance(module, Bottleneck) and module.residual:
            nn.init.zeros_(module.bn3.weight)


class ResNet(nn.Module):
    """Input [N, 3, H, W] of any size, usually 224; output [N, num_classes] (table 1)."""

    source = "He et al. 2016, Deep residual learning for image recognition (arXiv:1512.03385)"
    image_size = 224

    def __init__(
        self,
        block: Block,
        depths: tuple[int, int, int, int],
        num_classes: int,
        *,
        shortcut: Shortcut | None,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        out = block.expansion
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(block, 64, 64, depths[0], 1, shortcut)
        self.layer2 = stage(block, 64 * out, 128, depths[1], 2, shortcut)
        self.layer3 = stage(block, 128 * out, 256, depths[2], 2, shortcut)
        self.layer4 = stage(block, 256 * out, 512, depths[3], 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * out, num_classes)
        initialise(self, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


_18 = (2, 2, 2, 2)
_34 = (3, 4, 6, 3)  # 50 layers have as many blocks, of three convolutions instead of two
_101 = (3, 4, 23, 3)
_152 = (3, 8, 36, 3)


def resnet18(
    num_classes: int = 1000, *, shortcut: Shortcut = "B", zero_init_residual: bool = False
) -> ResNet:
    """ResNet of 18 layers, 11,689,512 parameters (11,515,688 with ``shortcut="A"``)."""
    return ResNet(
        BasicBlock, _18, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual
    )


def resnet34(
    num_classes: int = 1000, *, shortcut: Shortcut = "B", zero_init_residual: bool = False
) -> ResNet:
    """ResNet of 34 layers, 21,797,672 parameters (21,623,848 with ``shortcut="A"``)."""
    return ResNet(
        BasicBlock, _34, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual
    )


def resnet50(
    num_classes: int = 1000, *, shortcut: Shortcut = "B", zero_init_residual: bool = False
) -> ResNet:
    """ResNet of 50 layers (v1.5, torchvision's), 25,557,032 parameters."""
    return ResNet(
        Bottleneck, _34, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual
    )


def resnet101(
    num_classes: int = 1000, *, shortcut: Shortcut = "B", zero_init_residual: bool = False
) -> ResNet:
    """ResNet of 101 layers (v1.5, torchvision's), 44,549,160 parameters."""
    return ResNet(
        Bottleneck, _101, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual
    )


def resnet152(
    num_classes: int = 1000, *, shortcut: Shortcut = "B", zero_init_residual: bool = False
) -> ResNet:
    """ResNet of 152 layers (v1.5, torchvision's), 60,192,808 parameters."""
    return ResNet(
        Bottleneck, _152, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual
    )


def resnet50_v1(
    num_classes: int = 1000, *, shortcut: Shortcut = "B", zero_init_residual: bool = False
) -> ResNet:
    """The paper's ResNet of 50 layers: stride in the first 1×1 convolution of a block."""
    return ResNet(
        BottleneckV1, _34, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual
    )


def resnet101_v1(
    num_classes: int = 1000, *, shortcut: Shortcut = "B", zero_init_residual: bool = False
) -> ResNet:
    """The paper's ResNet of 101 layers: stride in the first 1×1 convolution of a block."""
    return ResNet(
        BottleneckV1, _101, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual
    )


def resnet152_v1(
    num_classes: int = 1000, *, shortcut: Shortcut = "B", zero_init_residual: bool = False
) -> ResNet:
    """The paper's ResNet of 152 layers: stride in the first 1×1 convolution of a block."""
    return ResNet(
        BottleneckV1, _152, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual
    )


def plain18(num_classes: int = 1000) -> ResNet:
    """ResNet-18 without its shortcuts, 11,515,688 parameters: the paper's control."""
    return ResNet(BasicBlock, _18, num_classes, shortcut=None)


def plain34(num_classes: int = 1000) -> ResNet:
    """ResNet-34 without its shortcuts, 21,623,848 parameters: worse than ``plain18``."""
    return ResNet(BasicBlock, _34, num_classes, shortcut=None)
