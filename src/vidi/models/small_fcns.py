"""A small FCN that trains from scratch in minutes.

The idea of FCN-8s (Long et al. 2015) on a residual trunk (He et al. 2016) that is thin where maps
are large: scores from 1/16, 1/8, 1/4 and 1/2 of the resolution, each doubled by fixed bilinear
interpolation and added to the finer ones. The first convolution has a stride of 2, so the layers
that cost most in VGG, those at full resolution, are not there. Wider trunks, one more stage and
features instead of scores in the sums were tried, and in a short run were worse.

A sum of scores cannot move a border to where the image has an edge: what is an edge depends on the
classes on its two sides. So two layers look at the sum and the first features together, and say at
full resolution, four pixels a cell, by how much the cell's scores are off. The last doubling is
theirs too: interpolating all classes at full resolution would cost as much as they do.

Every strided convolution is 3×3 with padding 1, so cell k at 1/s stands on pixel s·k, and is
interpolated from there (``ops.bilinear.enlarge``).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.models.fcns import SOURCE
from vidi.models.resnets import BasicBlock, conv_bn_relu, initialise, stage
from vidi.ops.bilinear import enlarge


class SmallFCN(nn.Module):
    """Input [N, 3, H, W] of any size; output [N, num_classes, H, W].

    ``stem``: channels of the two convolutions at 1/2; ``widths`` and ``depths``: channels and
    blocks at 1/4, 1/8, 1/16; ``refined``: channels between the two layers that mend borders.
    """

    task = "segmentation"
    source = f"{SOURCE}, on a small residual trunk of ours"
    image_size = 256

    def __init__(
        self,
        num_classes: int,
        stem: tuple[int, int],
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        refined: int,
    ) -> None:
        super().__init__()
        first, channels = stem
        self.stem = nn.Sequential(*conv_bn_relu(3, first, 2), *conv_bn_relu(first, channels, 1))
        self.stages = nn.ModuleList()
        self.refine = nn.Sequential(
            *conv_bn_relu(channels + num_classes, refined, 1),
            nn.Conv2d(refined, 4 * num_classes, 1),
        )
        self.scores = nn.ModuleList([nn.Conv2d(channels, num_classes, 1)])
        for width, depth in zip(widths, depths, strict=True):
            self.stages.append(stage(BasicBlock, channels, width, depth, 2, "B"))
            self.scores.append(nn.Conv2d(width, num_classes, 1))
            channels = width
        initialise(self, zero_init_residual=True)
        for score in (*self.scores, self.refine[-1]):
            for parameter in score.parameters():  # as the paper: at first all classes are alike
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for module in self.stages:
            maps.append(module(maps[-1]))
        total: Tensor | None = None
        for score, y in zip(reversed(self.scores), reversed(maps), strict=True):
            own: Tensor = score(y)
            total = own if total is None else own + enlarge(total, 2, own.shape[2:])
        assert total is not None
        # Four pixels a cell: each class's sum, and by how much it is off at each of them.
        off = F.pixel_shuffle(self.refine(torch.cat((maps[0], total), 1)), 2)
        fine = F.interpolate(total, scale_factor=2.0, mode="nearest") + off
        height, width = x.shape[2:]
        return fine[:, :, :height, :width]


def fcn_small(
    num_classes: int = 21,
    *,
    stem: tuple[int, int] = (24, 32),
    widths: tuple[int, ...] = (64, 96, 128),
    depths: tuple[int, ...] = (1, 3, 3),
    refined: int = 32,
) -> SmallFCN:
    """A residual trunk of 16 layers down to 1/16 with FCN's sums of scores, 1.5 M parameters."""
    return SmallFCN(num_classes, stem, widths, depths, refined)
