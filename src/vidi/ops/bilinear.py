"""Bilinear interpolation as a transposed convolution, and as it is computed fastest.

A transposed convolution of stride f spreads every cell over a kernel of outputs and adds up where
kernels overlap. With a tent for a kernel that is bilinear interpolation (Long et al. 2015, section
3.3), which may then be learned. It is no deconvolution: it undoes the *shape* of a convolution of
stride f, not its values.

Where the cells stand decides the size of the tent. Cell k of a coarse grid has its centre at
``first`` + f·k on the fine one (pixel i covers [i, i+1)). A 2×2 pool averages over its cell, so its
centre is the middle, f/2; a 3×3 convolution of stride 2 with padding 1 looks at every second pixel,
so its centre is that pixel's, 1/2. The centre of the tent, half its size, minus ``first`` is the
number of outputs to cut off on the left, and must be whole: a whole ``first`` takes a tent of 2f
outputs, a half one of 2f - 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def tent_size(factor: int, first: float | None = None) -> int:
    """The side of the kernel that enlarges ``factor`` times, for cells that begin at ``first``.

    ``first``: the centre of cell 0, in fine pixels; ``factor / 2`` unless told, which gives the
    usual 2f - f mod 2: 4, 16, 32, 64 for 2, 8, 16, 32.
    """
    assert factor >= 1
    twice = factor if first is None else round(2 * first)
    return 2 * factor - twice % 2


def bilinear_kernel(factor: int, size: int | None = None) -> Tensor:
    """The tent [size, size] by which a transposed convolution of stride ``factor`` interpolates.

    ``size``: 2f - f mod 2 unless told; 2f - 1 has its peak on a pixel, 2f between two.
    """
    size = tent_size(factor) if size is None else size
    assert size in (2 * factor - 1, 2 * factor), "tents that meet add up to one everywhere"
    distance = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2).abs()
    line = 1 - distance / factor
    return torch.outer(line, line).float()


def bilinear_weight(channels: int, factor: int, size: int | None = None) -> Tensor:
    """The weight [channels, channels, size, size] that enlarges every channel for itself."""
    kernel = bilinear_kernel(factor, size)
    weight = kernel.new_zeros(channels, channels, *kernel.shape)
    weight[range(channels), range(channels)] = kernel
    return weight


def transposed(x: Tensor, weight: Tensor, factor: int, first: float, size: torch.Size) -> Tensor:
    """The transposed convolution of x [N, C, h, w] onto a grid of ``size`` (H, W) fine pixels.

    ``weight``: [C, K, s, s] with s = ``tent_size(factor, first)``; output [N, K, H, W]. The grid
    of cells is continued by its border, so that with ``bilinear_weight`` the output is the bilinear
    interpolation up to the image's edge, where a bare transposed convolution falls to zero.
    """
    if not torch.compiler.is_exporting():  # where sides may be unknown
        assert all(n * factor >= side for n, side in zip(x.shape[2:], size, strict=True))
    for dim in (2, 3):
        last = x.shape[dim] - 1
        x = torch.cat((x.narrow(dim, 0, 1), x, x.narrow(dim, last, 1)), dim=dim)
    cut = weight.shape[2] / 2 - first + factor
    offset = round(cut)
    assert offset == cut, "the tent's centre and the cells' must differ by whole pixels"
    y = F.conv_transpose2d(x, weight, stride=factor)
    return y[:, :, offset : offset + size[0], offset : offset + size[1]]


def enlarge(x: Tensor, factor: int, size: torch.Size) -> Tensor:
    """x [N, C, h, w], whose cells stand on every ``factor``-th pixel, interpolated to ``size``.

    Cell k is pixel factor·k, as after convolutions of stride 2 and padding 1: ``transposed`` with
    ``first = 1/2`` and the bilinear weight, without computing the zeros in that.
    """
    # While a graph is drawn, sides may be unknown: then a cell more does no harm, nor does a cut.
    drawn = torch.compiler.is_exporting()
    for dim in (2, 3):
        assert drawn or size[dim - 2] <= x.shape[dim] * factor
        if drawn or size[dim - 2] > (x.shape[dim] - 1) * factor + 1:
            # Pixels beyond the last cell look like it.
            x = torch.cat((x, x.narrow(dim, x.shape[dim] - 1, 1)), dim)
    height, width = ((n - 1) * factor + 1 for n in x.shape[2:])
    # torch's "corners" are the centres of the outermost pixels: cell k is then pixel factor·k.
    y = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
    return y if not drawn and y.shape[2:] == size else y[:, :, : size[0], : size[1]]
