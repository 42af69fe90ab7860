"""Transposed convolution upsamples, and is no deconvolution.

A transposed convolution spreads each cell over a kernel of outputs, a stride apart, and adds up
where kernels overlap. With a tent for a kernel it *is* bilinear upsampling, which may then be
learned. Its name says what it is: the matrix of a convolution, transposed, which is what carries
gradients backwards; for all x and y, ⟨conv(x), y⟩ = ⟨x, convᵀ(y)⟩.

It undoes a convolution's shape, not its values. What undoes a blur is division in the Fourier
domain; there a transposed convolution multiplies once more, and blurs again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from vidi.data import scenes
from vidi.ops.bilinear import bilinear_kernel, bilinear_weight, transposed
from vidi.studies import Measured, Study, Table
from vidi.studies._sheet import BLUE, GREEN, GREY, ORANGE, sheet

CLAIM = 16

FACTORS = (2, 3, 4, 8)
ROUNDING = 1e-5
"""Float32's, of values from 0 to 1."""
EXACT = 1e-12
"""Float64's, relative."""
UNDONE = 1e-6
"""Relative error of a picture that a division has restored. The blur weakens its finest waves some
million times, and float64 keeps sixteen digits."""
DEVIATION = 1.25
"""Of the Gaussian that blurs, in pixels."""


class Errors(NamedTuple):
    """Relative errors of the pictures of :class:`Restored`."""

    blurred: float
    transposed: float
    divided: float
    rounded: float


class Restored(NamedTuple):
    """A blurred picture, and two attempts to undo that: float64 [H, W]."""

    blurred: Tensor
    transposed: Tensor
    divided: Tensor
    rounded: Tensor
    """Divided, after the blurred picture was kept in 256 steps of brightness."""


def enlarged(x: Tensor, factor: int) -> Tensor:
    """x [N, C, h, w] by a transposed convolution with bilinear weights: [N, C, f · h, f · w]."""
    size = torch.Size(n * factor for n in x.shape[2:])
    return transposed(x, bilinear_weight(x.shape[1], factor), factor, factor / 2, size)


def from_bilinear(x: Tensor, factor: int) -> float:
    """Its largest difference from PyTorch's bilinear interpolation."""
    wanted = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    return float((enlarged(x, factor) - wanted).abs().max())


def from_adjoint(stride: int, padding: int) -> tuple[float, float]:
    """⟨conv(x), y⟩ - ⟨x, convᵀ(y)⟩, relative to the norms' product, for random x, y and weights;
    and how far convᵀ(y) is from the gradient that y carries back through the convolution."""
    x = torch.randn(2, 3, 17, 14, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    out = F.conv2d(x, weight, stride=stride, padding=padding)
    y = torch.randn_like(out)
    # What the stride leaves over at the end belongs to the shape that is to be undone.
    rest = [(n + 2 * padding - 5) % stride for n in x.shape[2:]]
    back = F.conv_transpose2d(y, weight, stride=stride, padding=padding, output_padding=rest)
    (gradient,) = torch.autograd.grad(out, x, y)
    both = float(out.detach().norm() * y.norm())
    apart = float((out.detach() * y).sum() - (x.detach() * back).sum())
    return abs(apart) / both, float((back - gradient).norm() / gradient.norm())


def gaussian(deviation: float) -> Tensor:
    """float64 [s, s], reaching four deviations far, of sum one."""
    reach = math.ceil(4 * deviation)
    line = torch.exp(-(torch.arange(-reach, reach + 1).double() ** 2) / (2 * deviation**2))
    line = line / line.sum()
    kernel: Tensor = torch.outer(line, line)
    return kernel


def restored(picture: Tensor, kernel: Tensor) -> Restored:
    """Blur ``picture`` [H, W] by ``kernel`` [s, s], going round at the edges, and undo it."""
    reach = kernel.shape[0] // 2
    around = [reach] * 4

    def convolved(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x[None, None], around, mode="circular"), kernel[None, None])[0, 0]

    def transposed_(y: Tensor) -> Tensor:
        wrapped = F.pad(y[None, None], around, mode="circular")
        return F.conv_transpose2d(wrapped, kernel[None, None], padding=2 * reach)[0, 0]

    # The blur's factor for each wave is the transform of its answer to a single point.
    point = torch.zeros_like(picture)
    point[0, 0] = 1
    factors = torch.fft.rfft2(convolved(point))

    def divided(y: Tensor) -> Tensor:
        back: Tensor = torch.fft.irfft2(torch.fft.rfft2(y) / factors, s=y.shape)
        return back

    blurred = convolved(picture)
    steps = (blurred * 255).round() / 255
    return Restored(blurred, transposed_(blurred), divided(blurred), divided(steps))


def scene(side: int) -> Tensor:
    """A generated scene in grey, float64 [side, side] from 0 to 1."""
    image = scenes.render(7, 14, size=(side, side), fields=()).image
    return torch.from_numpy(image).double().mean(2) / 255


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    """Equality, adjointness, and an attempt to undo a blur. ``small``: a smaller picture. ``full``
    and ``folder`` change nothing."""
    picture = scene(48 if small else 144)
    coarse = picture[::6, ::6].float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.rand(2, 3, 9, 7)
        upsampled = {factor: from_bilinear(x, factor) for factor in FACTORS}
        adjoint = [from_adjoint(stride, padding) for stride, padding in ((1, 0), (2, 1), (3, 2))]
    undo = restored(picture, gaussian(DEVIATION))
    errors = Errors(*(float((y - picture).norm() / picture.norm()) for y in undo))
    measured = [
        Measured(
            f"bilinear kernel, stride {factor}: largest difference from interpolation",
            error,
            f"at most {ROUNDING:g}",
            error <= ROUNDING,
        )
        for factor, error in upsampled.items()
    ]
    inner, gradient = (max(values) for values in zip(*adjoint, strict=True))
    measured += [
        Measured(
            "⟨conv(x), y⟩ - ⟨x, convᵀ(y)⟩, relative; strides 1, 2 and 3",
            inner,
            f"at most {EXACT:g}: it is the adjoint",
            inner <= EXACT,
        ),
        Measured(
            "convᵀ(y) less the gradient that autograd carries back, relative",
            gradient,
            f"at most {EXACT:g}",
            gradient <= EXACT,
        ),
        Measured(
            "a blurred picture, divided in the Fourier domain: relative error",
            errors.divided,
            f"at most {UNDONE:g}: this is deconvolution",
            errors.divided <= UNDONE,
        ),
        Measured(
            "the same blurred picture, transposed convolution: relative error",
            errors.transposed,
            f"above the blurred picture's own, {errors.blurred:.4f}: it is blurred again",
            errors.transposed > errors.blurred,
        ),
    ]
    return Study(
        measured=tuple(measured),
        pictures=(
            (
                "A blur, and two attempts to undo it: transposed convolution blurs again, division "
                "in the Fourier domain restores",
                lambda path: _draw_undo(path, picture, undo, errors),
            ),
            (
                "Bilinear kernels, how they add up to one, and a picture enlarged by them",
                lambda path: _draw_kernels(path, coarse),
            ),
        ),
        tables=(
            Table(
                "Relative error to the picture before the blur",
                ("picture", "error"),
                (
                    ("blurred", errors.blurred),
                    ("transposed convolution of it", errors.transposed),
                    ("division in the Fourier domain", errors.divided),
                    ("division, after rounding to 256 steps of brightness", errors.rounded),
                ),
            ),
        ),
        notes=(
            "Division restores only what arrives exactly: with the blurred picture rounded to 256 "
            f"steps of brightness the error is {errors.rounded:,.0f} times the picture, since the "
            "finest waves are multiplied by millions. In practice it is regularised (Wiener 1949).",
        ),
    )


def _draw_undo(path: Path, picture: Tensor, undo: Restored, errors: Errors) -> None:
    shown = (
        ("picture", picture, "", GREY),
        ("blurred", undo.blurred, f"error {errors.blurred:.1%}", GREY),
        ("transposed convolution", undo.transposed, f"error {errors.transposed:.1%}", ORANGE),
        ("division in the Fourier domain", undo.divided, f"error {errors.divided:.0e}", GREEN),
    )
    with sheet(path, 11.2, 3.3, columns=4) as panels:
        for axes, (title, image, below, colour) in zip(panels, shown, strict=True):
            _image(axes, image)
            axes.set(title=title, xlabel=below)
            for spine in axes.spines.values():
                spine.set(visible=True, color=colour, linewidth=3)


def _draw_kernels(path: Path, coarse: Tensor) -> None:
    factor = 6
    with sheet(path, 11.2, 6.2, rows=2, columns=3) as panels:
        for axes, f in zip(panels[:2], (2, 8), strict=True):
            kernel = bilinear_kernel(f)
            axes.imshow(kernel.numpy(), cmap="Blues", vmin=0)
            axes.set(title=f"kernel of stride {f}: {len(kernel)} × {len(kernel)}")
            axes.grid(visible=False)
            axes.set(xticks=[], yticks=[])
            if len(kernel) <= 4:
                most = float(kernel.max())
                for (i, j), value in np.ndenumerate(kernel.numpy()):
                    colour = "white" if value > most / 2 else "black"
                    axes.text(j, i, f"{value:g}", ha="center", va="center", color=colour)
        tents = panels[2]
        line = bilinear_kernel(4).sum(1).numpy() / 4
        total = np.zeros(32)
        for cell in range(7):
            at = np.arange(8) + 4 * cell
            total[at] += line
            colour = ORANGE if cell == 3 else BLUE
            tents.plot(at, line, "o-", color=colour, markersize=3, linewidth=1)
        tents.plot(np.arange(4, 28), total[4:28], color=GREY, linewidth=2, label="their sum")
        tents.set(title="kernels of stride 4, side by side", xlabel="output pixel", xlim=(3, 28))
        tents.set_ylim(0, 1.2)
        tents.legend(loc="upper right")
        x = coarse[None, None]
        repeated = F.conv_transpose2d(x, torch.ones(1, 1, factor, factor), stride=factor)[0, 0]
        for axes, title, image in (
            (panels[3], f"coarse: {coarse.shape[1]} × {coarse.shape[0]}", coarse),
            (panels[4], f"kernel of {factor} × {factor} ones: repeats", repeated),
            (panels[5], f"bilinear kernel of stride {factor}", enlarged(x, factor)[0, 0]),
        ):
            _image(axes, image)
            axes.set(title=title)


def _image(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
