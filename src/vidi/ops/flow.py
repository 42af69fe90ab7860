"""Tensors of flow: the second frame seen through it, and flow at coarser resolutions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(image: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """(the second frame seen from the first [N, C, H, W], where that is known: bool [N, H, W]).

    Each pixel takes the value of ``image`` [N, C, H, W] at its centre moved by ``flow``
    [N, 2, H, W], x and y in pixels, bilinearly between pixel centres; beyond the image the nearest
    pixel's. Known is what does not leave the image. Flow that is not finite is seen as zero, and
    unknown.
    """
    height, width = image.shape[2:]
    exact = torch.float64 if image.dtype == torch.float64 else torch.float32
    finite = flow.isfinite().all(1)
    moved = torch.where(finite[:, None], flow, 0).to(exact)
    x = torch.arange(width, device=flow.device, dtype=exact) + 0.5 + moved[:, 0]
    y = torch.arange(height, device=flow.device, dtype=exact)[:, None] + 0.5 + moved[:, 1]
    known = finite & (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    # grid_sample's -1 and 1 are the image's borders, where corners are not aligned.
    grid = torch.stack((x * (2 / width) - 1, y * (2 / height) - 1), 3)
    seen = F.grid_sample(
        image.to(exact), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return seen, known


def coarser(flow: Tensor, known: Tensor, cell: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(flow [N, 2, h, w], share [N, h, w]): means over squares of ``cell`` pixels, in pixels still.

    Of ``flow`` [N, 2, H, W] only pixels that are ``known`` [N, H, W] go into a square's mean;
    ``share``, in [0, 1], says how many of its pixels these are. ``size``: (h, w); squares may reach
    beyond the image, where nothing is known. The flow of a square without a known pixel is zero.
    """
    (height, width), (h, w) = flow.shape[2:], size
    assert h * cell >= height and w * cell >= width, "the squares do not cover the image"
    weight = known[:, None].to(flow.dtype)
    # Not multiplied: what is unknown may be NaN.
    both = torch.cat((torch.where(known[:, None], flow, 0), weight), 1)
    both = F.avg_pool2d(F.pad(both, (0, w * cell - width, 0, h * cell - height)), cell)
    share = both[:, 2:]
    return both[:, :2] / share.clamp_min(torch.finfo(flow.dtype).tiny), share[:, 0]


def matching_loss(log_shares: Tensor, flow: Tensor) -> Tensor:
    """Cross-entropy [N, h, w] of a softmax over displacements, where flow lies between them.

    ``log_shares`` [N, D², h, w]: of displacements by -(D - 1)/2 to (D - 1)/2 cells, row by row.
    ``flow`` [N, 2, h, w], in cells. The truth is the four displacements about the flow, with the
    weights of bilinear interpolation; those that are no candidates, beyond reach or outside the
    second frame, are left out.
    """
    side = math.isqrt(log_shares.shape[1])
    height, width = flow.shape[2:]
    x = torch.arange(width, device=flow.device)
    y = torch.arange(height, device=flow.device)[:, None]
    whole = flow.floor()
    right, down = (flow - whole).unbind(1)
    first = whole.clamp(-2 * side, 2 * side).long()  # far beyond reach is as good as further
    total = torch.zeros_like(right)
    for j, below in ((0, 1 - down), (1, down)):
        for i, beside in ((0, 1 - right), (1, right)):
            dx, dy = first[:, 0] + i, first[:, 1] + j
            column, row = dx + side // 2, dy + side // 2
            candidate = (column >= 0) & (column < side) & (row >= 0) & (row < side)
            candidate &= (x + dx >= 0) & (x + dx < width) & (y + dy >= 0) & (y + dy < height)
            at = torch.where(candidate, row * side + column, 0)[:, None]
            found = log_shares.gather(1, at)[:, 0]
            # Not multiplied: what is no candidate may be infinitely unlikely.
            total = total - torch.where(candidate, found, 0) * below * beside
    return total


def resized(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow [N, 2, h, w] of an image that is resized to ``size`` (H, W): interpolated bilinearly,
    and longer or shorter as the image's sides are."""
    h, w = flow.shape[2:]
    if (h, w) == size:
        return flow
    wide = F.interpolate(flow, size, mode="bilinear", align_corners=False)
    return wide * wide.new_tensor((size[1] / w, size[0] / h)).view(1, 2, 1, 1)
