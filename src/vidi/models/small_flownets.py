"""A small flow network that trains from scratch in minutes.

FlowNetC's idea, towers whose features are compared at each displacement, with three departures that
let it learn from few pairs. The comparison is read as matching: a softmax over displacements, which
is trained as a classifier's, so that towers learn from it directly and what they learn holds for
motions that training never showed; its mean about the likeliest one is flow already. What is left
is estimated after the second frame's features were warped by the flow so far, twice, as in Sun et
al. 2018, PWC-Net. And there are batch normalisation and residual towers, thin where maps are large.

The end-point error of the softmax's mean over all displacements, as in Xu et al. 2022 (GMFlow,
section 3.2), learns later: while the softmax is broad, its mean says little of where it is high.
"""

from __future__ import annotations

import math
from itertools import cycle, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.models.flownets import SCALE, SOURCE, full_size, halves, padded
from vidi.models.resnets import BasicBlock, conv_bn_relu, initialise, stage
from vidi.ops.correlation import correlation
from vidi.ops.flow import warp


class SmallOutputs(NamedTuple):
    """Flow in pixels / 20, fp32 [N, 2, h, w] each, refined at 1/4 and at 1/8 of the padded image;
    and the matching's log-shares at 1/8, fp32 [N, D², h, w], of displacements by -reach to reach
    cells, row by row."""

    refined4: Tensor
    refined8: Tensor
    matching: Tensor


class SmallFlowNet(nn.Module):
    """Two images [N, 3, H, W] of any size; flow in pixels, [N, 2, H, W]; :class:`SmallOutputs` in
    training.

    ``stem``: channels at 1/2; ``widths`` and ``depths``: channels and blocks at 1/4, 1/8, 1/16;
    ``matching``: channels that are compared. ``reach``: how far, in cells of 1/8; ``near``: the
    same after warping. ``mending8``, ``mending4``: channels of the layers that refine at 1/8 and
    1/4; those at 1/8 see ever farther.
    """

    task = "flow"
    source = f"{SOURCE}, with a small network of ours that matches"
    image_size = 256
    divisor = 16
    scales = (4, 8)
    """Pixels per cell of each flow, in each direction."""
    matching_scale = 8
    """Those of the matching."""

    def __init__(
        self,
        stem: int,
        widths: tuple[int, int, int],
        depths: tuple[int, int, int],
        matching: int,
        reach: int,
        near: int,
        mending8: tuple[int, ...],
        mending4: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.reach, self.near = reach, near
        self.stem = nn.Sequential(*conv_bn_relu(3, stem, 2))
        self.stage4 = stage(BasicBlock, stem, widths[0], depths[0], 2, "B")
        self.stage8 = stage(BasicBlock, widths[0], widths[1], depths[1], 2, "B")
        self.stage16 = stage(BasicBlock, widths[1], widths[2], depths[2], 2, "B")
        self.lateral = nn.Conv2d(widths[1], matching, 1)
        self.above = nn.Conv2d(widths[2], matching, 1)
        self.norm = nn.BatchNorm2d(matching)

        # The matched flow, how sure it is, what is alike nearby, and what is seen.
        seen8 = 3 + (2 * near + 1) ** 2 + matching + widths[1]
        self.mend8 = _layers(seen8, mending8, dilations=(1, 2, 4, 1))
        self.flow8 = nn.Conv2d(mending8[-1], 2, 1)
        # At 1/4 a layer costs four times as much: few features of each frame go into it.
        self.thin = nn.Conv2d(widths[0], mending4[0] // 2, 1)
        seen4 = 2 + 2 * (mending4[0] // 2) + mending8[-1]
        self.mend4 = _layers(seen4, mending4, dilations=(1,))
        self.flow4 = nn.Conv2d(mending4[-1], 2, 1)
        initialise(self, zero_init_residual=False)
        for head in (self.flow8, self.flow4):
            for parameter in head.parameters():  # at first the matched flow stands as it is
                nn.init.zeros_(parameter)

    def forward(self, image: Tensor, image2: Tensor) -> Tensor | SmallOutputs:
        size = image.shape[2:]
        both = padded(torch.cat((image, image2)), self.divisor)
        maps4 = self.stage4(self.stem(both))
        maps8 = self.stage8(maps4)
        coarse = self.above(self.stage16(maps8))
        wide = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        first, second = halves(self.norm(self.lateral(maps8) + wide).float())

        matching = self._match(first, second)
        matched, sure = _likeliest(matching.exp(), self.matching_scale / SCALE)
        moved, _ = warp(second, matched * (SCALE / 8))
        alike = self._alike(first, moved, self.near)
        own8 = maps8[: image.shape[0]]
        hidden = self.mend8(torch.cat((matched, sure, alike, first, own8), 1))
        refined8 = matched + self.flow8(hidden).float()

        start = F.interpolate(refined8, scale_factor=2, mode="bilinear", align_corners=False)
        start = start.detach()
        hidden = F.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=False)
        own4, other4 = halves(self.thin(maps4))
        moved, _ = warp(other4, start * (SCALE / 4))
        hidden = self.mend4(torch.cat((start, own4, moved, hidden), 1))
        refined4 = start + self.flow4(hidden).float()
        if self.training:
            return SmallOutputs(refined4, refined8, matching)
        return full_size(refined4, self.scales[0], size)

    def _alike(self, first: Tensor, second: Tensor, reach: int) -> Tensor:
        """Products of features [N, C, h, w] over the root of C: of unrelated ones, of deviation 1;
        of equal ones, about √C."""
        return math.sqrt(first.shape[1]) * correlation(first, second, displacement=reach, stride=1)

    def _match(self, first: Tensor, second: Tensor) -> Tensor:
        """The log-shares [N, D², h, w] of a softmax over all displacements within reach."""
        alike = self._alike(first, second, self.reach)
        offsets = torch.arange(-self.reach, self.reach + 1, device=first.device)
        # What would lie outside the second frame is no candidate.
        rows, columns = (_inside(n, offsets) for n in first.shape[2:])
        inside = rows[:, None, :, None] & columns[None, :, None, :]
        return alike.masked_fill(~inside.flatten(0, 1), -math.inf).log_softmax(1)


def _likeliest(shares: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """(flow [N, 2, h, w], the largest share [N, 1, h, w]) of shares [N, D², h, w]: the mean of the
    likeliest displacement and its neighbours, each of D² being ``step`` from the next."""
    side = math.isqrt(shares.shape[1])
    largest, best = shares.max(1, keepdim=True)
    around = torch.arange(-1, 2, device=shares.device)
    x = best % side + around.repeat(3).view(1, 9, 1, 1)
    y = best // side + around.repeat_interleave(3).view(1, 9, 1, 1)
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    near = shares.gather(1, torch.where(inside, side * y + x, best)) * inside
    near = near / near.sum(1, keepdim=True)
    # Not as a product of matrices, which autocast would take in bf16.
    mean = [(near * (to - side // 2)).sum(1, keepdim=True) for to in (x, y)]
    return step * torch.cat(mean, 1), largest


def _inside(length: int, offsets: Tensor) -> Tensor:
    """bool [D, length]: whether a cell moved by each offset is still one."""
    moved = torch.arange(length, device=offsets.device) + offsets[:, None]
    return (moved >= 0) & (moved < length)


def _layers(inputs: int, widths: tuple[int, ...], dilations: tuple[int, ...]) -> nn.Sequential:
    """A layer for each width; the dilations begin anew where there are more."""
    shapes = zip(pairwise((inputs, *widths)), cycle(dilations), strict=False)
    return nn.Sequential(
        *(nn.Sequential(*conv_bn_relu(*ends, 1, dilation)) for ends, dilation in shapes)
    )


def flownet_small(
    *,
    stem: int = 16,
    widths: tuple[int, int, int] = (32, 64, 96),
    depths: tuple[int, int, int] = (1, 2, 1),
    matching: int = 64,
    reach: int = 8,
    near: int = 3,
    mending8: tuple[int, ...] = (96, 64, 64, 32),
    mending4: tuple[int, ...] = (32, 32),
) -> SmallFlowNet:
    """Towers of 9 layers that are matched at 1/8, up to 64 pixels away, and two refinements."""
    return SmallFlowNet(stem, widths, depths, matching, reach, near, mending8, mending4)
