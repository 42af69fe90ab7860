"""Convolutions as matrix products, for layers that have more weights than their batch has pixels.

Libraries choose their ways of convolving for large maps. In the last layers of a classifier maps
are small and weights many: of ResNet-18's 512 channels at 4 × 4 pixels, in batches of 32, oneDNN
takes six times as long for the gradient of the weights as a product of matrices does, and twice as
long for the layer itself, in bfloat16. The product is the same sum, in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` without groups and dilation, padded with zeros. In training under autocast on
    a CPU it is a :func:`product` where the patches of the batch, as a matrix, are wider than tall;
    else, and in evaluation, what PyTorch makes of it."""

    def forward(self, x: Tensor) -> Tensor:
        learns = self.training and torch.is_grad_enabled()
        if not (learns and x.is_cpu and torch.is_autocast_enabled("cpu") and self._wide(x)):
            return super().forward(x)
        kind = torch.get_autocast_dtype("cpu")
        assert not isinstance(self.padding, str)
        out = product(x.to(kind), self.weight.to(kind), self.stride, self.padding)
        return out if self.bias is None else out + self.bias.to(kind).view(1, -1, 1, 1)

    def _wide(self, x: Tensor) -> bool:
        if x.ndim != 4:
            return False
        assert not isinstance(self.padding, str)
        h, w = _size(x.shape[2:], self.kernel_size, self.stride, self.padding)
        return 0 < len(x) * h * w < self.weight[0].numel()


def product(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """``F.conv2d``, [N, K, h, w] from [N, C, H, W] and [K, C, kh, kw] of one type, as the product
    of a matrix of patches and one of weights. Its gradients have none themselves."""
    found: Tensor = _Product.apply(x, weight, stride, padding)
    return found


def convert(network: nn.Module) -> nn.Module:
    """The network, its plain ``nn.Conv2d`` layers made :class:`Conv2d`, in place. Parameters, names
    and hooks stay. For networks whose weights lie channels-last, as what a product gives does."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _plain(module):
            module.__class__ = Conv2d
    return network


def _plain(layer: nn.Conv2d) -> bool:
    known = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return known and layer.groups == 1 and layer.dilation == (1, 1)


class _Product(torch.autograd.Function):
    """Every output pixel's patch is a row: [B·h·w, kh·kw·C], times the weights as columns."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        size = _size(x.shape[2:], weight.shape[2:], stride, padding)
        rows = _patches(x, weight.shape[2:], size, stride, padding)
        ctx.save_for_backward(rows, weight)
        ctx.rest = x.shape, stride, padding
        columns = weight.permute(0, 2, 3, 1).reshape(len(weight), -1).T
        out = torch.empty(
            (len(x), len(weight), *size),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        # Not returned as a view of the product, which nobody could change in place.
        torch.mm(rows, columns, out=out.permute(0, 2, 3, 1).view(len(rows), -1))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows, weight = ctx.saved_tensors
        shape, stride, padding = ctx.rest
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = conv2d_input(shape, weight, gradient, stride, padding)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            out, channels, height, width = weight.shape
            flat = gradient.permute(0, 2, 3, 1).reshape(-1, out)
            of_weight = (flat.T @ rows).view(out, height, width, channels).permute(0, 3, 1, 2)
        return of_x, of_weight, None, None


def _patches(
    x: Tensor,
    kernel: Sequence[int],
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """[B·h·w, kh·kw·C], for (h, w) of ``size``."""
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph))
    b, y, z, c = padded.stride()
    shape = (len(x), *size, kh, kw, x.shape[1])
    seen = padded.as_strided(shape, (b, y * sh, z * sw, y, z, c))
    return seen.reshape(len(x) * size[0] * size[1], -1)


def _size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    """Height and width of what a convolution gives."""
    h, w = (
        (length + 2 * p - k) // s + 1
        for length, k, s, p in zip(size, kernel, stride, padding, strict=True)
    )
    return h, w
