"""What a network sees of regions: RoI pooling, RoI align, and crops warped to one size.

Regions are float32 [K, 5]: the index of an image in the batch, then x0, y0, x1, y1 in pixels of
the network's input. A region may be of any size, lie partly or wholly outside the image, and have
no area; but its image must be there. K may be 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def regions_of(boxes: Sequence[Tensor]) -> Tensor:
    """Regions [K, 5] of the boxes [K_i, 4] of each image of a batch, image after image."""
    rows = [torch.cat((x.new_full((len(x), 1), i), x), 1) for i, x in enumerate(boxes)]
    return torch.cat(rows) if rows else torch.zeros(0, 5)


def pool(features: Tensor, regions: Tensor, size: tuple[int, int] | int, scale: float) -> Tensor:
    """RoI pooling: the maximum of ``features`` [B, C, h, w] in each of ``size`` (rows, columns)
    bins of each of ``regions`` [K, 5], [K, C, *size], in fp32 or fp64.

    ``scale``: the map's cells per pixel, 1/16 for VGG-16. Girshick 2015, "Fast R-CNN", section 2.1,
    and He et al. 2014 on spatial pyramid pooling; as the paper's own code has it: a region goes
    from the cell round(x0 · scale) to the cell round(x1 · scale), both included, and is at least
    one cell wide; a bin goes from the floor of its start to the ceiling of its end, so that bins
    may share cells; one that lies outside the map is 0. The gradient goes to the first maximum.
    """
    from torchvision.ops import roi_pool  # on use: it takes a second to import

    maps = _exact(features)  # whatever autocast made of them
    out: Tensor = roi_pool(maps, regions.to(maps.dtype), size, scale)
    return out


def align(
    features: Tensor,
    regions: Tensor,
    size: tuple[int, int] | int,
    scale: float,
    sampling: int = 2,
) -> Tensor:
    """RoI align: the mean, in each bin, of ``sampling``² points of ``features`` [B, C, h, w], which
    lie evenly and are interpolated bilinearly, [K, C, *size], in fp32 or fp64.

    He et al. 2017, "Mask R-CNN", section 3. Nothing is rounded: the middle of the cell (i, j) is
    at (j + 0.5, i + 0.5) / ``scale`` pixels. Points up to one cell beyond the outermost cells'
    middles have these cells' values; further out they are 0.
    """
    maps = _exact(features)
    rows, columns = (size, size) if isinstance(size, int) else size
    where = regions.to(maps.dtype)
    if maps.device.type != "cpu" or torch.compiler.is_exporting():
        return _aligned(maps, where, (rows, columns), scale, sampling)
    # torchvision's gradient on a CPU takes a third of a small network's step. A point is a weighted
    # sum of four cells, and a bin one of all its points' cells: what bags of an embedding are.
    b, c, height, width = maps.shape
    _, x0, y0, x1, y1 = where.unbind(1)
    y, down = _cells(y0 * scale, y1 * scale, rows, sampling, height)
    x, across = _cells(x0 * scale, x1 * scale, columns, sampling, width)
    y = y + where[:, 0].long().view(-1, 1, 1) * height
    cells = y[:, :, None, :, None] * width + x[:, None, :, None, :]
    weights = down[:, :, None, :, None] * across[:, None, :, None, :]
    each = 4 * sampling**2
    out = F.embedding_bag(
        cells.view(-1, each),
        maps.permute(0, 2, 3, 1).reshape(b * height * width, c),
        mode="sum",
        per_sample_weights=weights.view(-1, each),
    )
    return out.view(-1, rows, columns, c).permute(0, 3, 1, 2)


def _cells(
    low: Tensor, high: Tensor, bins: int, sampling: int, length: int
) -> tuple[Tensor, Tensor]:
    """Of regions from ``low`` to ``high`` [K], in cells along one side of a map: the cells that the
    points of each bin lie between, int64 [K, bins, 2 sampling], and their weights in its mean."""
    points = bins * sampling
    centres = (torch.arange(points, device=low.device, dtype=low.dtype) + 0.5) / points
    at = low[:, None] + (high - low)[:, None] * centres - 0.5
    outside = (at < -1) | (at > length)
    at = at.clamp(0, length - 1)
    first = at.floor().clamp(max=max(0, length - 2))
    share = at - first
    cells = torch.stack((first, (first + 1).clamp(max=length - 1)), -1).long()
    weights = torch.stack((1 - share, share), -1).masked_fill(outside[..., None], 0) / sampling
    return cells.view(-1, bins, 2 * sampling), weights.view(-1, bins, 2 * sampling)


def _aligned(
    maps: Tensor, regions: Tensor, size: tuple[int, int], scale: float, sampling: int
) -> Tensor:
    from torchvision.ops import roi_align

    out: Tensor = roi_align(maps, regions, size, scale, sampling, aligned=True)
    return out


@torch.no_grad()
def warp(images: Tensor, regions: Tensor, size: int, context: int) -> Tensor:
    """What R-CNN's network sees: ``regions`` [K, 5] of ``images`` [B, 3, H, W], each stretched to
    squares [K, 3, size, size] with ``context`` pixels about it on each side, in fp32 or fp64.

    Girshick et al. 2014, "Rich feature hierarchies for accurate object detection and semantic
    segmentation", section 2.1 and appendix A ("warp"; there size 227, context 16). The context is
    counted in the square, so that the more is taken in about a region the larger it is. Outside the
    image all is 0, which is the mean of normalised images. Each pixel is interpolated bilinearly at
    its centre; as in the paper's own code, a region that shrinks is not smoothed before.
    """
    assert 0 <= context < size / 2, "no pixels are left for the region"
    images = _exact(images)
    height, width = images.shape[2:]
    index, low, high = regions.to(images.dtype).tensor_split((1, 3), 1)
    margin = (high - low) * (context / (size - 2 * context))
    low, high = low - margin, high + margin
    # One point per bin, at its centre.
    out = _aligned(images, torch.cat((index, low, high), 1), (size, size), 1.0, 1)
    # Align goes on a little beyond the border.
    centres = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) / size
    x, y = (low[:, :, None] + (high - low)[:, :, None] * centres).unbind(1)  # [K, size] each
    inside = ((y >= 0) & (y <= height))[:, :, None] & ((x >= 0) & (x <= width))[:, None, :]
    return out.mul_(inside[:, None])


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
