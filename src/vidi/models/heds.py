"""HED: every stage of a classifier says where boundaries are, and their weighted sum says it best.

Xie & Tu 2015: VGG-16 without its last pool and its fully connected layers; after the last
convolution of each of the five resolutions a 1×1 convolution gives a map of boundaries, which is
brought to full size by fixed bilinear interpolation; a 1×1 convolution of the five, whose weights
start at 0.2, is the sixth, fused output. All six are trained against the same truth (deep
supervision, section 3.1), so early stages learn fine boundaries and late ones those of objects.

A 2×2 pool's cell k at 1/s covers pixels s·k to s·(k + 1), so its centre is that square's. The paper
pads the image by 35 pixels and crops what comes out; here nothing is padded by so much, pools round
up, and the border is continued instead. Weights do not depend on it.

Often left out: the fused output is no average of the others' probabilities, but a sum of their
logits. The paper's best figure (ODS 0.782) is the fused output's; the average of fused and side
outputs has the better average precision (its table 4).
"""

import contextlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.models import vggs
from vidi.models.fcns import complete, fitting
from vidi.models.resnets import BasicBlock, conv_bn_relu, initialise, stage
from vidi.ops.bilinear import enlarge

SOURCE = "Xie & Tu 2015, Holistically-nested edge detection (ICCV)"


class Outputs(NamedTuple):
    """Logits of a boundary, [N, 1, H, W] each, the side outputs from fine to coarse."""

    fused: Tensor
    side1: Tensor
    side2: Tensor
    side3: Tensor
    side4: Tensor
    side5: Tensor | None = None


class HED(nn.Module):
    """Input [N, 3, H, W] of any size; six outputs of that size, the fused one first.

    ``trunk``: VGG's ``features``, with one side output a resolution.
    """

    task = "boundaries"
    source = SOURCE
    image_size = 400

    def __init__(self, trunk: nn.Sequential) -> None:
        super().__init__()
        self.features = trunk[:-1]
        initialise(self, zero_init_residual=False)
        widths = []
        width = 0
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.zeros_(module.bias)
                width = module.out_channels
            elif isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True  # a last row of pixels is not lost
                widths.append(width)
        # Zero: at first boundaries are as likely as not, everywhere.
        self.sides = nn.ModuleList(_zero(nn.Conv2d(n, 1, 1)) for n in (*widths, width))
        self.fuse = fusing(len(self.sides))

    def forward(self, x: Tensor) -> Outputs:
        size = x.shape[2:]
        maps = []
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                maps.append(x)
            x = module(x)
        maps.append(x)
        sides = [
            spread(side(y).float(), 2**k, size)
            for k, (side, y) in enumerate(zip(self.sides, maps, strict=True))
        ]
        return outputs(self.fuse, sides)

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
        """The file's name for each own tensor that it can give, from a VGG-16 or an FCN on one;
        None if its trunk is another."""
        found = fitting(self, tensors)
        return found if complete(self, found, ("sides.", "fuse.")) else None


class SmallHED(nn.Module):
    """Input [N, 3, H, W] of any size; five outputs of that size, the fused one first.

    A departure from HED: its side outputs see their own stage alone, and here the finer ones see
    the coarser maps as well, merged from coarse to fine. From scratch, fine stages alone know
    little of objects.

    ``stem``: channels of the two convolutions at 1/2; ``widths`` and ``depths``: channels and
    blocks at 1/4, 1/8, 1/16; ``merged``: channels in which the resolutions meet.
    """

    task = "boundaries"
    source = f"{SOURCE}, on a small residual trunk of ours"
    image_size = 256

    def __init__(
        self,
        stem: tuple[int, int],
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        merged: int,
    ) -> None:
        super().__init__()
        first, channels = stem
        self.stem = nn.Sequential(*conv_bn_relu(3, first, 2), *conv_bn_relu(first, channels, 1))
        self.stages = nn.ModuleList()
        maps = (channels, *widths)
        for width, depth in zip(widths, depths, strict=True):
            self.stages.append(stage(BasicBlock, channels, width, depth, 2, "B"))
            channels = width
        self.lateral = nn.ModuleList(nn.Conv2d(n, merged, 1) for n in maps)
        self.merge = nn.ModuleList(
            nn.Sequential(*conv_bn_relu(merged, merged, 1)) for _ in self.lateral
        )
        self.sides = nn.ModuleList(nn.Conv2d(merged, 1, 1) for _ in self.lateral)
        self.fuse = fusing(len(self.sides))
        initialise(self, zero_init_residual=False)
        for side in self.sides:
            assert isinstance(side, nn.Conv2d)
            _zero(side)
        _even(self.fuse)

    def forward(self, x: Tensor) -> Outputs:
        y = self.stem(x)
        maps = [y]
        for module in self.stages:
            y = module(y)
            maps.append(y)
        sides: list[Tensor] = []
        above: Tensor | None = None
        # From coarse to fine: what a fine stage cannot know, whether a line is an object's, comes
        # from the coarser ones.
        for k in reversed(range(len(maps))):
            y = self.lateral[k](maps[k])
            if above is not None:
                y = y + enlarge(above, 2, y.shape[2:])
            above = self.merge[k](y)
            sides.insert(0, enlarge(self.sides[k](above).float(), 2 << k, x.shape[2:]))
        return outputs(self.fuse, sides)

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
        """The file's name for each own tensor that it can give, from a network with the same
        stem and stages; None if its trunk is another."""
        found = fitting(self, tensors)
        return found if complete(self, found, ("lateral.", "merge.", "sides.", "fuse.")) else None


def spread(x: Tensor, factor: int, size: torch.Size) -> Tensor:
    """x [N, C, h, w], whose cells cover squares of ``factor`` pixels, interpolated to ``size``.

    ``vidi.ops.bilinear.transposed`` with ``first = factor / 2`` and the bilinear weight, without
    computing the zeros in that.
    """
    if factor == 1:
        return x
    y = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    return y[:, :, : size[0], : size[1]]


def outputs(fuse: nn.Module, sides: list[Tensor]) -> Outputs:
    """The side outputs [N, 1, H, W], and before them what ``fuse`` makes of them all.

    In fp32 whatever the network computes in: with bf16's 256 steps per octave neighbours become
    equal, and of equals non-maximum suppression cannot take the largest.
    """
    kind = sides[0].device.type
    with contextlib.nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
        return Outputs(fuse(torch.cat(sides, 1)), *sides)


def fusing(sides: int) -> nn.Conv2d:
    """The 1×1 convolution that begins as the sides' average (0.2 each of five)."""
    return _even(nn.Conv2d(sides, 1, 1))


def _even(layer: nn.Conv2d) -> nn.Conv2d:
    assert layer.bias is not None
    nn.init.constant_(layer.weight, 1 / layer.in_channels)
    nn.init.zeros_(layer.bias)
    return layer


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def hed() -> HED:
    """HED on VGG-16: 14,716,171 parameters."""
    return HED(vggs.trunk(vggs.VGG16))


def hed_bn() -> HED:
    """HED on VGG-16 with batch normalisation, which trains without published weights."""
    return HED(vggs.trunk(vggs.VGG16, batch_norm=True))


def hed_small(
    *,
    stem: tuple[int, int] = (16, 24),
    widths: tuple[int, ...] = (48, 96, 128),
    depths: tuple[int, ...] = (1, 2, 2),
    merged: int = 24,
) -> SmallHED:
    """A residual trunk of 12 layers down to 1/16 with side outputs from 1/2 on, 0.9 M parameters;
    each resolution's output knows what the coarser ones see. It is thin, so that a run of minutes
    sees many images: twice as wide it was worse after the same time."""
    return SmallHED(stem, widths, depths, merged)
