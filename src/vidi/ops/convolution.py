"""Convolutions as matrix products, for layers that have more weights than their batch has pixels.

Libraries choose their ways of convolving for large maps. In the last layers of a classifier maps
are small and weights many: of ResNet-18's 512 channels at 4 × 4 pixels, in batches of 32, oneDNN
takes six times as long for the gradient of the weights as a product of matrices does, and twice as
long for the layer itself, in bfloat16. The product is the same sum, in another order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` without groups and dilation, padded with zeros. In training under autocast it
    is a :func:`product` where the patches of the batch, as a matrix, are wider than tall; else, and
    in evaluation, what PyTorch makes of it."""

    def forward(self, x: Tensor) -> Tensor:
        learns = self.training and torch.is_grad_enabled()
        if not (learns and torch.is_autocast_enabled(x.device.type) and self._wide(x)):
            return super().forward(x)
        kind = torch.get_autocast_dtype(x.device.type)
        assert not isinstance(self.padding, str)
        out = product(x.to(kind), self.weight.to(kind), self.stride, self.padding)
        return out if self.bias is None else out + self.bias.to(kind).view(1, -1, 1, 1)

    def _wide(self, x: Tensor) -> bool:
        if x.ndim != 4:
            return False
        assert not isinstance(self.padding, str)
        pixels = len(x)
        for length, kernel, stride, padding in zip(
            x.shape[2:], self.kernel_size, self.stride, self.padding, strict=True
        ):
            pixels *= (length + 2 * padding - kernel) // stride + 1
        return 0 < pixels < self.weight[0].numel()


def product(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """``F.conv2d``, [N, K, h, w] from [N, C, H, W] and [K, C, kh, kw] of one type, as the product
    of a matrix of patches and one of weights. Its gradients have none themselves."""
    found: Tensor = _Product.apply(x, weight, stride, padding)
    return found


def convert(network: nn.Module) -> nn.Module:
    """The network, its plain ``nn.Conv2d`` layers made :class:`Conv2d`, in place. Parameters, names
    and hooks stay."""
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
        rows, size = _patches(x, weight.shape[2:], stride, padding)
        ctx.save_for_backward(rows, weight)
        ctx.rest = x.shape, stride, padding
        columns = weight.permute(0, 2, 3, 1).reshape(len(weight), -1).T
        return (rows @ columns).view(len(x), *size, len(weight)).permute(0, 3, 1, 2)

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
    x: Tensor, kernel: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """[B·h·w, kh·kw·C], and (h, w)."""
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph))
    batch, height, width, channels = padded.shape
    h, w = (height - kh) // sh + 1, (width - kw) // sw + 1
    b, y, z, c = padded.stride()
    seen = padded.as_strided((batch, h, w, kh, kw, channels), (b, y * sh, z * sw, y, z, c))
    return seen.reshape(batch * h * w, -1), (h, w)
