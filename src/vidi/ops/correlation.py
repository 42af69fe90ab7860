"""FlowNetC's correlation layer: how alike two feature maps are, at each displacement.

Dosovitskiy et al. 2015, section 3, equation 1, for patches of one cell. Written as matrix products:
of cells that lie a whole number of strides apart, a stretch of a row of the first map is multiplied
by what it may reach of all rows of the second that it may move to. That gives every horizontal
displacement, of which the band of those within reach is kept: more products than needed, but a
processor does them many times faster than sums over shifted maps. Beside inputs and output there
are, at any time, copies of one image's maps and two blocks of :data:`PRODUCTS` products, which are
rows of such stretches; the gradient is written by hand for the same reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PRODUCTS = 1 << 21
"""In a block, 8 MB in fp32; more only where a single stretch has more, as far as it may move."""
COLUMNS = 64
"""Cells of a row that are multiplied at once: the longer, the smaller the band's part."""


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
    if torch.compiler.is_exporting():
        return _by_rows(first.to(exact), second.to(exact), reach, stride)
    with contextlib.nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
        found: Tensor = _Correlation.apply(first.to(exact), second.to(exact), reach, stride)
    return found


def _by_rows(first: Tensor, second: Tensor, reach: int, stride: int) -> Tensor:
    """The same without a loop over cells, whose number may be unknown while a graph is drawn. Each
    row is multiplied by all it may reach, so that more products than needed are held."""
    n, c, h, w = first.shape
    far = reach * stride
    a = first.permute(0, 2, 3, 1) / c
    b = F.pad(second, (far, far, far, far)).permute(0, 2, 1, 3)
    rows = []
    for j in range(2 * reach + 1):
        products = a @ b[:, j * stride : j * stride + h]
        # Cell x begins at its column x: in rows one longer, all begin at the first.
        skewed = F.pad(products.flatten(2), (0, w)).reshape(n, h, w, w + 2 * far + 1)
        rows.append(skewed[..., : 2 * far + 1 : stride])
    return torch.stack(rows, 1).permute(0, 1, 4, 2, 3).flatten(1, 2)


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
            target = out[image, :, :, rows, columns]
            height, width, _ = a.shape
            for ys, xs, reached in _blocks(height, width, reach):
                products = a.new_zeros((d, *(s.stop - s.start for s in (ys, xs, reached))))
                for j, own, there in _moves(ys, reach, height):
                    into = products[j, own.start - ys.start : own.stop - ys.start]
                    other = b[there, reached].transpose(1, 2)
                    torch.baddbmm(into, a[own, xs], other, beta=0, alpha=1 / c, out=into)
                for i, own, _ in _moves(xs, reach, width):
                    target[:, i, ys, own] = _band(products, i - reach, xs, reached)
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
            source = gradient[image, :, :, rows, columns]
            to_a, to_b = torch.zeros_like(a), torch.zeros_like(b)
            height, width, _ = a.shape
            for ys, xs, reached in _blocks(height, width, reach):
                products = a.new_zeros((d, *(s.stop - s.start for s in (ys, xs, reached))))
                for i, own, _ in _moves(xs, reach, width):
                    _band(products, i - reach, xs, reached).copy_(source[:, i, ys, own])
                for j, own, there in _moves(ys, reach, height):
                    part = products[j, own.start - ys.start : own.stop - ys.start]
                    to_a[own, xs].baddbmm_(part, b[there, reached], alpha=1 / c)
                    part = part.transpose(1, 2)
                    to_b[there, reached].baddbmm_(part, a[own, xs], alpha=1 / c)
            to_first[image, :, rows, columns] = to_a.permute(2, 0, 1)
            to_second[image, :, rows, columns] = to_b.permute(2, 0, 1)
        return to_first, to_second, None, None


def _grids(images: int, stride: int) -> Iterator[tuple[int, slice, slice]]:
    """(image, rows, columns): each image's cells as grids of those that are a stride apart."""
    for image in range(images):
        for y in range(stride):
            for x in range(stride):
                yield image, slice(y, None, stride), slice(x, None, stride)


def _blocks(height: int, width: int, reach: int) -> Iterator[tuple[slice, slice, slice]]:
    """(rows, columns, the second map's columns that these reach): each cell once."""
    for left in range(0, width, COLUMNS):
        xs = slice(left, min(width, left + COLUMNS))
        reached = slice(max(0, left - reach), min(width, xs.stop + reach))
        each = (2 * reach + 1) * (xs.stop - left) * (reached.stop - reached.start)
        tall = max(1, PRODUCTS // each)
        for top in range(0, height, tall):
            yield slice(top, min(height, top + tall)), xs, reached


def _moves(cells: slice, reach: int, length: int) -> Iterator[tuple[int, slice, slice]]:
    """(displacement's number, the cells that it does not lead out of the map, where it leads)."""
    for number in range(2 * reach + 1):
        by = number - reach
        start, stop = max(cells.start, -by), min(cells.stop, length - by)
        if start < stop:
            yield number, slice(start, stop), slice(start + by, stop + by)


def _band(products: Tensor, by: int, columns: slice, reached: slice) -> Tensor:
    """Those of cells ``by`` columns apart, [D, rows, n], of all [D, rows, columns, reached]."""
    return products.diagonal(by + columns.start - reached.start, 2, 3)


def _cells(x: Tensor) -> Tensor:
    """[h, w, C], contiguous, of [C, h, w]."""
    return x.permute(1, 2, 0).contiguous()
