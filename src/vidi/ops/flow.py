"""Tensors of flow: the second frame seen through it, and flow at coarser resolutions."""

from __future__ import annotations

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


def resized(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow [N, 2, h, w] of an image that is resized to ``size`` (H, W): interpolated bilinearly,
    and longer or shorter as the image's sides are."""
    h, w = flow.shape[2:]
    if (h, w) == size:
        return flow
    wide = F.interpolate(flow, size, mode="bilinear", align_corners=False)
    return wide * wide.new_tensor((size[1] / w, size[0] / h)).view(1, 2, 1, 1)
