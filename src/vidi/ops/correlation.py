"""FlowNetC's correlation layer: how alike two feature maps are, at each displacement.

Dosovitskiy et al. 2015, section 3, equation 1, for patches of one cell. Written as matrix products:
of cells that lie a whole number of strides apart, one row of the first map is multiplied by all
rows of the second that it may move to. That gives every horizontal displacement, of which the band
of those within reach is kept: more products than needed, but a processor does them many times
faster than sums over shifted maps. Only one such group of rows exists at a time, so next to nothing
is held beside inputs and output; the gradient is written by hand for the same reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def correlation(
    first: Tensor, second: Tensor, *, displacement: int = 20, stride: int = 2
) -> Tensor:
    """[N, D², H, W], D = 2·(displacement // stride) + 1, of maps [N, C, H, W], in fp32 or fp64.

    Channel j·D + i at (y, x) is the mean over channels of ``first`` at (y, x) times ``second`` at
    (y + s·(j - D // 2), x + s·(i - D // 2)), s the stride: rows first, as the paper's own
    implementation. Beyond the map ``second`` is zero. The defaults are the paper's: 441 channels.
    """
    assert first.shape == second.shape
    reach = displacement // stride
    kind = first.device.type
    # bf16 has too few digits for sums over hundreds of channels.
    exact = first.dtype if first.dtype == torch.float64 else torch.float32
    with contextlib.nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
        found: Tensor = _Correlation.apply(first.to(exact), second.to(exact), reach, stride)
    return found


class _Correlation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, reach: int, stride: int) -> Tensor:
        ctx.save_for_backward(first, second)
        ctx.sizes = reach, stride
        n, c, h, w = first.shape
        d = 2 * reach + 1
        out = first.new_zeros((n, d, d, h, w))
        for image, rows, columns in _grids(n, stride):
            a, b = (_cells(x[image, :, rows, columns]) for x in (first, second))
            height, width, _ = a.shape
            a = a / c
            b = F.pad(b, (0, 0, 0, 0, reach, reach))
            products = a.new_empty((d, height, width, width))
            for j in range(d):
                torch.bmm(a, b[j : j + height].transpose(1, 2), out=products[j])
            target = out[image, :, :, rows, columns]
            for i, xs in _bands(width, reach):
                target[:, i, :, xs] = products.diagonal(i - reach, 2, 3)
        return out.view(n, d * d, h, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        first, second = ctx.saved_tensors
        reach, stride = ctx.sizes
        n, c, h, w = first.shape
        d = 2 * reach + 1
        gradient = gradient.view(n, d, d, h, w)
        to_first, to_second = torch.empty_like(first), torch.empty_like(second)
        for image, rows, columns in _grids(n, stride):
            a, b = (_cells(x[image, :, rows, columns]) for x in (first, second))
            height, width, _ = a.shape
            b = F.pad(b, (0, 0, 0, 0, reach, reach))
            source = gradient[image, :, :, rows, columns]
            products = a.new_zeros((d, height, width, width))
            for i, xs in _bands(width, reach):
                products.diagonal(i - reach, 2, 3).copy_(source[:, i, :, xs])
            to_a, to_b = torch.zeros_like(a), torch.zeros_like(b)
            for j in range(d):
                to_a.baddbmm_(products[j], b[j : j + height])
                to_b[j : j + height].baddbmm_(products[j].transpose(1, 2), a)
            to_first[image, :, rows, columns] = to_a.permute(2, 0, 1) / c
            to_second[image, :, rows, columns] = to_b[reach : reach + height].permute(2, 0, 1) / c
        return to_first, to_second, None, None


def _grids(images: int, stride: int) -> Iterator[tuple[int, slice, slice]]:
    """(image, rows, columns): each image's cells as grids of those that are a stride apart."""
    for image in range(images):
        for y in range(stride):
            for x in range(stride):
                yield image, slice(y, None, stride), slice(x, None, stride)


def _bands(width: int, reach: int) -> Iterator[tuple[int, slice]]:
    """(horizontal displacement's number, columns from which it does not lead out of the map)."""
    for i in range(2 * reach + 1):
        start, end = max(0, reach - i), min(width, width + reach - i)
        if start < end:
            yield i, slice(start, end)


def _cells(x: Tensor) -> Tensor:
    """[h, w, C], contiguous, of [C, h, w]."""
    return x.permute(1, 2, 0).contiguous()
