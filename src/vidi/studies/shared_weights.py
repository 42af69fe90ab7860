"""Shared weights: a convolution is a fully connected layer that says the same everywhere.

A fully connected layer on 256 maps of 6 × 6 (9,216 responses) into 4,096 units learns 37.7 million
weights. A hundred filters of 10 × 10 pixels, shared by all places, learn ten thousand; filters of
1 × 1 a hundred. From 64 to 1,024 channels at 13 × 13 places a layer with weights of its own at each
place learns 11,075,584, and one that shares them, a 1 × 1 convolution, 65,536.

What sharing buys beside: shift the input, and the response shifts with it. A full layer must learn
each thing anew at each place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.models import count
from vidi.models.alexnets import alexnet
from vidi.studies import Measured, Study
from vidi.studies._digits import digits
from vidi.studies._sheet import BLUE, GREEN, ORANGE, sheet

CLAIM = 14

SIDE, BORDER = 8, 3
"""Pixels of the digits' sides, and about them."""
SHIFT = (2, 2)
"""Rows and columns by which the digit is moved."""
EXACT = 1e-12
"""Float64's rounding, relative."""
LOST = 0.5
"""A response is another one if it differs by half its norm."""


@dataclass(frozen=True)
class Layer:
    """A layer and the weights that it should have."""

    name: str
    module: nn.Module
    expected: int


def layers() -> list[Layer]:
    """The lecture's, without biases; on the meta device, where tensors take no memory."""
    with torch.device("meta"):
        full, own = nn.Linear(256 * 6 * 6, 4096, bias=False), unshared(64, 1024, 13)
        return [
            Layer("256 × 6 × 6 into 4,096, full", full, 37_748_736),
            Layer("100 filters of 10 × 10, shared", nn.Conv2d(1, 100, 10, bias=False), 10_000),
            Layer("100 filters of 1 × 1, shared", nn.Conv2d(1, 100, 1, bias=False), 100),
            Layer("64 into 1,024 at 13 × 13, each place its own", own, 11_075_584),
            Layer("64 into 1,024 at 13 × 13, shared", nn.Conv2d(64, 1024, 1, bias=False), 65_536),
        ]


def unshared(inputs: int, outputs: int, side: int) -> nn.Conv2d:
    """A linear layer of its own at each of ``side``² places.

    Places become groups of channels: [N, side² · inputs, 1, 1] to [N, side² · outputs, 1, 1].
    """
    places = side * side
    return nn.Conv2d(places * inputs, places * outputs, 1, groups=places, bias=False)


def at_each_place(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The :func:`unshared` layer on maps [N, C, h, w]: [N, K, h, w]."""
    n, c, h, w = x.shape
    apart = x.permute(0, 2, 3, 1).reshape(n, h * w * c, 1, 1)
    answers: Tensor = layer(apart)
    return answers.view(n, h, w, -1).permute(0, 3, 1, 2)


def tied(inputs: int, outputs: int, side: int) -> float:
    """The largest difference between a 1 × 1 convolution and a layer with weights at each place
    that are all set to the convolution's."""
    shared = nn.Conv2d(inputs, outputs, 1, bias=False).double()
    own = unshared(inputs, outputs, side).double()
    x = torch.randn(2, inputs, side, side, dtype=torch.float64)
    with torch.no_grad():
        own.weight.copy_(shared.weight.repeat(side * side, 1, 1, 1))
        difference = (at_each_place(own, x) - shared(x)).abs().max()
    return float(difference)


def as_matrix(layer: nn.Module, side: int) -> Tensor:
    """The matrix [side², side²] of a linear layer from one map to one: its answers to single
    pixels, as columns."""
    pixels = torch.eye(side * side, dtype=torch.float64).view(-1, 1, side, side)
    with torch.no_grad():
        answers: Tensor = layer(pixels)
    return answers.flatten(1).T


def shifted(x: Tensor) -> Tensor:
    """Moved by ``SHIFT``; what leaves on one side comes in on the other."""
    return x.roll(SHIFT, dims=(-2, -1))


def unlike(layer: nn.Module, x: Tensor) -> float:
    """How far the response to the shifted image is from the shifted response, relatively."""
    with torch.no_grad():
        moved, response = layer(shifted(x)), shifted(layer(x))
    return float((moved - response).norm() / response.norm())


def full_layer(side: int) -> nn.Sequential:
    """From all pixels to all: maps [N, 1, side, side] to such."""
    pixels = side * side
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, pixels, bias=False), nn.Unflatten(1, (1, side, side))
    )


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    """Counts, and what a shift does. ``small``, ``full`` and ``folder`` change nothing: it takes a
    second."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        counted = [(layer, count.parameters(layer.module)) for layer in layers()]
        with torch.device("meta"):
            real = count.parameters(alexnet().classifier[1]) - 4096
        image = torch.from_numpy(digits(1).test[0]).view(1, 1, SIDE, SIDE)
        digit = F.pad(image.double(), [BORDER] * 4)
        side = digit.shape[-1]
        # Circular, so that nothing is lost at the edge and the equality is exact.
        shared = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False).double()
        every, copied = full_layer(side).double(), full_layer(side).double()
        with torch.no_grad():
            next(copied.parameters()).copy_(as_matrix(shared, side))
        matrices = as_matrix(full_layer(SIDE).double(), SIDE), as_matrix(shared, SIDE)
        same = tied(3, 5, 4)
    convolution, connected, from_matrix = (unlike(m, digit) for m in (shared, every, copied))
    measured = [
        Measured(f"weights, {layer.name}", found, f"{layer.expected:,}", found == layer.expected)
        for layer, found in counted
    ]
    measured += [
        Measured(
            "weights of AlexNet's first fully connected layer, as the package builds it",
            real,
            "37,748,736 too: it is that layer",
            real == 4096 * 9216,
        ),
        Measured(
            "a layer with its own weights at each place, all set alike, less the 1 × 1 convolution",
            same,
            f"at most {EXACT:g}: sharing is all that differs",
            same <= EXACT,
        ),
        Measured(
            "shift the digit: shared weights' response, less the shifted response, relative",
            convolution,
            f"at most {EXACT:g}",
            convolution <= EXACT,
        ),
        Measured(
            "the same of a full layer with random weights",
            connected,
            f"at least {LOST:g}: nothing of the response is found again",
            connected >= LOST,
        ),
        Measured(
            "the same of a full layer that is given the convolution's matrix",
            from_matrix,
            f"at most {EXACT:g}: a convolution is such a layer, with weights tied",
            from_matrix <= EXACT,
        ),
        Measured(
            f"different weights in the convolution's matrix of {SIDE * SIDE} × {SIDE * SIDE}",
            different := len(np.unique(matrices[1].numpy())),
            "10: nine, and zero",
            different == 10,
        ),
    ]
    return Study(
        measured=tuple(measured),
        pictures=(
            (
                "Weights to be learned, and the two layers' matrices: the convolution's repeats "
                "nine numbers",
                lambda path: _draw_counts(path, [(a.name, n) for a, n in counted], matrices),
            ),
            (
                "A digit is shifted: the shared layer's response is shifted with it, the full "
                "layer's is another one",
                lambda path: _draw_shift(path, digit, shared, every),
            ),
        ),
        notes=(
            "The lecture's slide counts 2,359,296 responses on 256 maps of 6 × 6; they are 9,216.",
        ),
    )


def _draw_counts(
    path: Path, counted: list[tuple[str, int]], matrices: tuple[Tensor, Tensor]
) -> None:
    with sheet(path, 12, 3.8, columns=3, ratios=(1.9, 1, 1)) as (bars, full, shared):
        names = [name for name, _ in counted]
        numbers = [number for _, number in counted]
        colours = [BLUE if "shared" in name else ORANGE for name in names]
        drawn = bars.barh(names, numbers, color=colours)
        bars.bar_label(drawn, [f"{n:,}" for n in numbers], padding=4)
        bars.set_xscale("log")
        bars.set_xlim(10, 3e9)
        bars.invert_yaxis()
        bars.grid(axis="y", visible=False)
        bars.set(title="weights to be learned", xlabel="weights (logarithmic)")
        for axes, matrix, title in zip(
            (full, shared),
            matrices,
            ("a full layer's matrix,\n64 pixels to 64", "a 3 × 3 convolution's,\n9 weights shared"),
            strict=True,
        ):
            most = float(matrix.abs().max())
            axes.imshow(
                matrix.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest"
            )
            axes.set(title=title, xlabel="input pixel", ylabel="output")
            axes.grid(visible=False)


def _draw_shift(path: Path, digit: Tensor, shared: nn.Module, every: nn.Module) -> None:
    with torch.no_grad():
        rows = [
            ("image", digit, shifted(digit)),
            ("shared weights", shared(digit), shared(shifted(digit))),
            ("full layer", every(digit), every(shifted(digit))),
        ]
    title = "the digit is shifted: what does the response do?"
    with sheet(path, 7.6, 5.4, rows=2, columns=3, title=title) as panels:
        for column, (name, before, after) in enumerate(rows):
            most = float(before.abs().max())
            for row, x in enumerate((before, after)):
                axes = panels[row * 3 + column]
                if column:
                    axes.imshow(x[0, 0].numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
                else:
                    axes.imshow(x[0, 0].numpy(), cmap="gray")
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
                for spine in axes.spines.values():
                    spine.set(visible=True, color=GREEN if column == 1 else ORANGE, linewidth=2)
                    spine.set_visible(column > 0)
            panels[column].set_title(name)
        panels[0].set_ylabel("as it is")
        panels[3].set_ylabel(f"{SHIFT[0]} pixels down, {SHIFT[1]} right")
        panels[4].set_xlabel("the same, shifted")
        panels[5].set_xlabel("another one")
