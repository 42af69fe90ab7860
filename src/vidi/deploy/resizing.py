"""Resizing inside a graph: products with matrices of weights, made from the image's sides.

The steps are those that evaluation takes (``vidi.data.images.shrink``,
``vidi.data.augment.matrix``, ``vidi.data.geometry.resize``): by areas along an axis that shrinks,
bilinearly along one that grows, rounded to whole grey levels after each. Weights come of whole
numbers and one division, so that every format computes the very same.

Sides are scalar tensors here, not numbers: a graph is drawn once, for images of all sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidi.data import augment

TIE = 1e-4
"""A level so near a half is one but for rounding: fp32 sums are as far off as 0.00003."""
UNIT = 2048
"""OpenCV interpolates with shares that are whole numbers of 1 / 2048."""


def side(length: int | torch.SymInt) -> Tensor:
    """A side of an image, in pixels, as int64 scalar; while a graph is drawn it may be unknown."""
    return torch.full((1,), length, dtype=torch.int64)[0]  # OpenVINO makes no scalars so


def areas(rows: Tensor, count: Tensor, start: Tensor, length: Tensor, pixels: Tensor) -> Tensor:
    """float32 [R, N]: the share of each of N source pixels in some output pixels.

    ``rows``: int64 [R], which of ``count`` output pixels, that divide ``length`` source pixels from
    ``start`` on evenly. ``pixels``: int64 [N], the source pixels.
    """
    # In units of 1 / count of a source pixel.
    low = (rows * length)[:, None]
    left = ((pixels - start) * count)[None]
    shared = torch.minimum(low + length, left + count) - torch.maximum(low, left)
    return shared.clamp(min=0).float() / length.float()


def bilinear(rows: Tensor, count: Tensor, length: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The same for interpolation between pixel centres, of ``length`` pixels from the first on: the
    shares of each output pixel's first neighbour, and those of its second. Beyond the outermost
    centres the outermost pixel goes on."""
    # In units of 1 / (2 count) of a source pixel, from the centre of the first.
    at = ((2 * rows + 1) * length - count).clamp(min=0)
    at = torch.minimum(at, 2 * count * (length - 1))[:, None]
    behind = at - 2 * count * pixels[None]
    shares = (2 * count - behind.abs()).clamp(min=0).float() / (2 * count).float()
    shares = torch.round(shares * UNIT) / UNIT
    return shares * (behind >= 0).float(), shares * (behind < 0).float()


def averaged(image: Tensor, rows: Tensor, columns: Tensor, halved: Tensor) -> Tensor:
    """Whole grey levels float32 [B, C, R, S], of an image [B, C, H, W] and areas [R, H], [S, W].

    ``halved``: bool, whether both sides become half as long. Then sums of four pixels are divided
    by four with halves rounded up; else halves become even. OpenCV has it so, but that it takes
    sums for them which are a half but for rounding, as they come. No other library sums in its
    order: all are to take the same, and so take such sums for halves.
    """
    twice = 2 * (rows @ image @ columns.mT + 0.125 * halved.float())
    whole = torch.round(twice)
    return torch.round(torch.where((twice - whole).abs() < 2 * TIE, whole, twice) / 2)


def interpolated(
    image: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]
) -> Tensor:
    """The same of bilinear shares, with OpenCV's arithmetic: it cuts off after 1/128 of a level
    along rows, and after 1/4 of each of the two neighbours along columns."""
    wide = torch.floor(image @ (columns[0] + columns[1]).mT * 128) / 128
    quarters = torch.floor(4 * (rows[0] @ wide)) + torch.floor(4 * (rows[1] @ wide))
    return torch.floor((quarters + 2) / 4)


def kept(height: Tensor, width: Tensor, shorter: int) -> tuple[Tensor, Tensor]:
    """Height and width once the shorter of them is ``shorter`` at most. See
    :func:`vidi.data.images.shrink`."""
    least = torch.minimum(height, width)
    to = torch.minimum(least, side(shorter))
    return (2 * height * to + least) // (2 * least), (2 * width * to + least) // (2 * least)


def centred(image: Tensor, shorter: int, size: int) -> Tensor:
    """Shrunk until the shorter side is ``shorter``, if it is longer, and the centre of that resized
    to ``size``: [B, C, size, size] from whole grey levels float32 [B, C, H, W].

    Only what the centre shows is computed of the first step.
    """
    height, width = (side(n) for n in image.shape[2:])
    h, w = kept(height, width, shorter)
    shown = [augment.shown(n, size) for n in range(shorter + 1)]
    seen = torch.tensor(shown).index_select(0, torch.minimum(h, w).view(1))[0]
    window = torch.arange(max(shown))
    weights = [
        areas(window + (few - seen) // 2, few, side(0), many, torch.arange(n))
        for few, many, n in ((h, height, image.shape[2]), (w, width, image.shape[3]))
    ]
    halved = (height == 2 * h) & (width == 2 * w)
    found = averaged(image, weights[0], weights[1], halved)
    out, whole = torch.arange(size), side(size)
    shares = areas(out, whole, side(0), seen, window)
    smaller = averaged(found, shares, shares, seen == 2 * size)
    neighbours = bilinear(out, whole, seen, window)
    return torch.where(seen >= size, smaller, interpolated(found, neighbours, neighbours))


def shrunk(image: Tensor, shorter: int) -> Tensor:
    """Shrunk until the shorter side is ``shorter``, if it is longer."""
    height, width = image.shape[2:]
    least = torch.sym_min(height, width)
    to = torch.sym_min(least, shorter)
    h, w = ((2 * n * to + least) // (2 * least) for n in (height, width))
    weights = [
        areas(torch.arange(few), side(few), side(0), side(many), torch.arange(many))
        for few, many in ((h, height), (w, width))
    ]
    halved = (side(height) == 2 * side(h)) & (side(width) == 2 * side(w))
    return averaged(image, weights[0], weights[1], halved)


def resized(image: Tensor, height: Any, width: Any) -> Tensor:
    """Resized as :func:`vidi.data.geometry.resize` does it: by areas along the sides that become
    shorter, then bilinearly along those that grow."""
    shares, neighbours, halves = [], [], []
    for many, out in zip(image.shape[2:], (height, width), strict=True):
        rows, pixels = torch.arange(out), torch.arange(many)
        whole, length = side(out), side(many)
        few = torch.minimum(length, whole)
        shares.append(areas(rows, few, side(0), length, pixels))
        neighbours.append(bilinear(rows, whole, few, rows))
        halves.append(length == 2 * whole)
    found = averaged(image, shares[0], shares[1], halves[0] & halves[1])
    return interpolated(found, neighbours[0], neighbours[1])


def squashed(image: Tensor, shorter: int, size: int) -> Tensor:
    """Shrunk until the shorter side is ``shorter``, if it is longer, and resized to
    [B, C, size, size], whatever its proportions."""
    return resized(shrunk(image, shorter), size, size)
