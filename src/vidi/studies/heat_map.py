"""A classifier made convolutional gives a heat map at any image size.

A fully connected layer on a window of feature maps is a convolution with a kernel of that window's
size. So a classifier of small images runs over a large one in one go: each cell of its answer
equals the head, applied to the window of feature maps under it. Where the network has no padding
that is exactly what sliding the classifier over the image gives, for a fraction of the products;
where it has padding it is nearly so, since the zeros about each window are then missing.

Here a small network learns in seconds to tell ten digits and nothing from windows of 12 pixels, and
finds digits on a canvas that it never saw.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidi.api import Model, load, train
from vidi.models.convolutional import (
    Agreement,
    Convolutional,
    convolutionalize,
    slide,
    sliding_agreement,
)
from vidi.report.progress import Silent
from vidi.studies import Measured, Study, Table
from vidi.studies._digits import digits
from vidi.studies._sheet import BLUE, GREEN, RED, sheet
from vidi.types import Array

CLAIM = 15

WINDOW, DIGIT, STRIDE = 12, 8, 2
"""Pixels: what the classifier sees, a digit, and from one cell to the next."""
NOTHING = 10
NAMES = (*map(str, range(10)), "nothing")
EXACT = 1e-4
"""Largest difference as a share of the largest score: float32's rounding."""
NEARLY = (0.85, 1e-3)
"""With padding: at least this share of cells says the same class, and scores differ by at least
so much, as a share of the largest."""
FOUND = 0.8
"""Share of the digits on the canvas whose cell names them."""


@dataclass(frozen=True)
class Canvas:
    """Digits on a noisy ground. ``image``: uint8 [H, W]; ``labels``: of the digits whose upper left
    corners stand at ``corners`` [K, 2], row and column, both even."""

    image: Array
    labels: Array
    corners: Array


def canvas(pixels: Array, labels: Array, size: tuple[int, int], seed: int) -> Canvas:
    """As many of the digits [N, 64], 0 to 1, as find a place on ``size`` (h, w) in 200 trials."""
    generator = np.random.default_rng(seed)
    image = generator.uniform(0, 0.25, size)
    corners: list[tuple[int, int]] = []
    said: list[int] = []
    for i in generator.integers(0, len(pixels), 200):
        # Room for the window about it.
        y, x = (int(2 * generator.integers(1, (n - DIGIT) // 2)) for n in size)
        if any(abs(y - a) < DIGIT + 2 and abs(x - b) < DIGIT + 2 for a, b in corners):
            continue
        part = image[y : y + DIGIT, x : x + DIGIT]
        np.maximum(part, pixels[i].reshape(DIGIT, DIGIT), out=part)
        corners.append((y, x))
        said.append(int(labels[i]))
    return Canvas((image * 255).round().astype(np.uint8), np.array(said), np.array(corners))


def windows(pixels: Array, labels: Array, count: int, seed: int) -> list[tuple[Array, int]]:
    """About ``count`` windows of canvases: half with a digit in the middle, half with what lies
    about one. A digit off the middle by three pixels or more is nothing."""
    generator = np.random.default_rng(seed)
    out: list[tuple[Array, int]] = []
    while len(out) < count:
        one = canvas(pixels, labels, (64, 64), int(generator.integers(1 << 31)))
        inner = [n - WINDOW for n in one.image.shape]
        for (y, x), label in zip(one.corners - (WINDOW - DIGIT) // 2, one.labels, strict=True):
            off = generator.integers(-1, 2, 2)
            top, left = (int(v) for v in np.clip(np.add((y, x), off), 0, inner))
            out.append((_coloured(one.image[top : top + WINDOW, left : left + WINDOW]), int(label)))
            top, left = (int(generator.integers(0, n + 1)) for n in inner)
            middles = np.abs(one.corners - (WINDOW - DIGIT) // 2 - (top, left)).max(1)
            if middles.min() >= 3:
                crop = one.image[top : top + WINDOW, left : left + WINDOW]
                out.append((_coloured(crop), NOTHING))
    return out[:count]


def network(*, padded: bool) -> Any:
    """A builder of a classifier of 12 × 12 pixels: three 3 × 3 convolutions, a pool, two linear
    layers. ``net[0]`` gives the feature maps, ``net[1]`` is the head."""

    def build(num_classes: int) -> nn.Sequential:
        padding = int(padded)
        side = WINDOW // 2 if padded else 2
        return nn.Sequential(
            nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=padding), nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=padding), nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3, padding=padding), nn.ReLU(),
            ),
            nn.Sequential(
                nn.Flatten(), nn.Linear(32 * side * side, 64), nn.ReLU(),
                nn.Linear(64, num_classes),
            ),
        )  # fmt: skip

    return build


def learned(samples: list[tuple[Array, int]], *, padded: bool, steps: int) -> Model:
    """The network after so many steps on the windows."""
    some = max(1, len(samples) // 10)
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            {"train": samples[some:], "val": samples[:some]},
            run=Path(folder) / "run",
            model=network(padded=padded),
            image_size=WINDOW,
            batch_size=64,
            lr=0.005,
            optimiser={"name": "adamw", "weight_decay": 0.0},
            schedule={"name": "cosine", "warmup": 0.0},
            augmentation={"preset": "none"},
            regularisation={"label_smoothing": 0.0, "ema": 0.0},
            length={"steps": steps, "evaluate_every": 1e6},
            logging={"pictures": False, "vitals": False},
            data={"threads": 0},
            precision="fp32",
            device="cpu",
            channels_last=False,
            progress=Silent(),
        )
        return load(run.path, device="cpu", network=network(padded=padded))


@torch.no_grad()
def by_windows(net: Any, image: Tensor, dense: Convolutional) -> Tensor:
    """The head on each window of the feature maps of the whole image: [1, K, h, w]."""
    maps = net[0](image)
    h, w = dense.feature_window
    rows = [
        torch.stack(
            [net[1](maps[:, :, i : i + h, j : j + w]) for j in range(maps.shape[3] - w + 1)], 2
        )
        for i in range(maps.shape[2] - h + 1)
    ]
    return torch.stack(rows, 2)


def tensor(model: Model, image: Array) -> Tensor:
    """The picture as the network sees it, [1, 3, H, W]."""
    normalisation = model.compute.normalisation
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (normalisation.mean, normalisation.std))
    x = torch.from_numpy(_coloured(image)).permute(2, 0, 1) / 255
    return ((x - mean) / std)[None]


def named(grid: Tensor, drawn: Canvas, names: tuple[str, ...]) -> list[bool]:
    """Of each digit, whether the cell whose window has it in the middle names it."""
    cells = (drawn.corners - (WINDOW - DIGIT) // 2) // STRIDE
    said = grid[0].argmax(0)
    return [
        names[int(said[i, j])] == str(label)
        for (i, j), label in zip(cells.tolist(), drawn.labels, strict=True)
    ]


def products(run: Any) -> int:
    """Multiply-adds of what ``run`` computes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    """Trains two classifiers and looks at a canvas. ``small``: a shorter training, which finds
    fewer digits. ``full`` and ``folder`` change nothing."""
    data = digits()
    count, steps, size = (1500, 130, (32, 64)) if small else (12_000, 900, (48, 112))
    samples = _sorted(windows(data.train, data.train_labels, count, seed=1))
    drawn = canvas(data.test, data.test_labels, size, seed=2)
    found_at_least = 0.4 if small else FOUND
    measured: list[Measured] = []
    grids: list[Tensor] = []
    rows = []
    for padded in (False, True):
        model = learned(samples, padded=padded, steps=steps)
        net, image = model.network, tensor(model, drawn.image)
        dense = convolutionalize(net, image_size=WINDOW)
        with torch.no_grad():
            grid = dense(image)
        under = by_windows(net, image, dense)
        apart = float((grid - under).abs().max() / under.abs().max())
        agreement = sliding_agreement(net, image, image_size=WINDOW)
        name = "with padding" if padded else "without padding"
        measured.append(
            Measured(
                f"{name}: a cell less the head on the window of maps under it, largest, relative",
                apart,
                f"at most {EXACT:g}",
                apart <= EXACT,
            )
        )
        measured += _against_sliding(agreement, padded=padded)
        at_once = products(lambda: dense(image))  # noqa: B023  it is called here
        one_by_one = products(lambda: slide(net, image, WINDOW, STRIDE))  # noqa: B023
        rows.append((name, agreement.largest, agreement.rms, agreement.same_class,
                     at_once / 1e6, one_by_one / 1e6, one_by_one / at_once))  # fmt: skip
        grids.append(grid.softmax(1))
        if not padded:
            share = float(np.mean(named(grid, drawn, model.classes)))
            measured.append(
                Measured(
                    f"share of {len(drawn.labels)} digits on a new canvas whose cell names them",
                    share,
                    f"at least {found_at_least:g}; by chance 0.09",
                    share >= found_at_least,
                )
            )
            measured.append(
                Measured(
                    "multiply-adds of sliding over those of the whole canvas at once",
                    one_by_one / at_once,
                    "at least 3: windows that overlap share their work",
                    one_by_one >= 3 * at_once,
                )
            )
            classes = model.classes
    return Study(
        measured=tuple(measured),
        pictures=(
            (
                "A classifier of 12 × 12 pixels, run once over a canvas: what it finds, and the "
                "heat maps of single classes",
                lambda path: _draw(path, drawn, grids[0][0].numpy(), classes),
            ),
        ),
        tables=(
            Table(
                "Convolutionalized against slid window by window",
                ("network", "largest difference", "rms", "same class", "at once, MMAC",
                 "slid, MMAC", "ratio"),
                tuple(rows),
            ),
        ),
    )  # fmt: skip


def _against_sliding(agreement: Agreement, *, padded: bool) -> list[Measured]:
    if not padded:
        return [
            Measured(
                "without padding: a cell less the classifier on that window of the image, largest",
                agreement.largest,
                f"at most {EXACT:g} of the largest score: sliding, exactly",
                agreement.largest <= EXACT,
            )
        ]
    same, differing = NEARLY
    return [
        Measured(
            "with padding: share of cells that say the same class as sliding",
            agreement.same_class,
            f"at least {same:g}: nearly",
            agreement.same_class >= same,
        ),
        Measured(
            "with padding: the largest difference to sliding, as a share of the largest score",
            agreement.largest,
            f"at least {differing:g}: not exactly",
            agreement.largest >= differing,
        ),
    ]


def _coloured(image: Array) -> Array:
    return np.repeat(image[..., None], 3, 2)


def _sorted(samples: list[tuple[Array, int]]) -> list[tuple[Array, int]]:
    """With every class among the first eleven, so that training and validation both have all."""
    first = [next(k for k, (_, label) in enumerate(samples) if label == c) for c in range(11)]
    rest = [sample for k, sample in enumerate(samples) if k not in set(first)]
    return [samples[k] for k in first] + rest


def _draw(path: Path, drawn: Canvas, heat: Array, classes: tuple[str, ...]) -> None:
    """``heat``: [K, h, w], the probabilities."""
    numbers, times = np.unique(drawn.labels, return_counts=True)
    shown = numbers[np.argsort(-times, kind="stable")][:2]
    h, w = drawn.image.shape
    with sheet(path, 11, 2 * 5.5 * h / w + 0.9, rows=2, columns=2) as panels:
        for axes in panels:
            axes.imshow(drawn.image, cmap="gray", vmin=0, vmax=255, extent=(0, w, h, 0))
            axes.set(xticks=[], yticks=[], xlim=(0, w), ylim=(h, 0))
            axes.grid(visible=False)
        panels[0].set_title(f"canvas of {w} × {h} pixels, and one window of {WINDOW}")
        panels[0].add_patch(
            Rectangle((1, 1), WINDOW, WINDOW, fill=False, edgecolor=BLUE, linewidth=2)
        )
        _name_peaks(panels[1], drawn, heat, classes)
        for axes, number in zip(panels[2:], shown, strict=True):
            cells = heat[classes.index(str(number))]
            edge = (WINDOW - STRIDE) / 2
            extent = (edge, edge + STRIDE * cells.shape[1], edge + STRIDE * cells.shape[0], edge)
            axes.images[0].set_clim(0, 450)  # dim, so that the heat is seen
            seen = np.minimum(1, 2 * cells)
            axes.imshow(cells, cmap="autumn", vmin=0, vmax=1, alpha=seen, extent=extent)
            axes.set(xlim=(0, w), ylim=(h, 0), title=f"heat map of {number}: where is one?")


def _name_peaks(axes: Axes, drawn: Canvas, heat: Array, classes: tuple[str, ...]) -> None:
    """What each cell that is surer than its neighbours says, at its place."""
    digit = [classes.index(str(k)) for k in range(10)]
    best, sure = heat[digit].argmax(0), heat[digit].max(0)
    truth = {
        tuple(cell): int(label)
        for cell, label in zip(
            ((drawn.corners - (WINDOW - DIGIT) // 2) // STRIDE).tolist(), drawn.labels, strict=True
        )
    }
    for i, j in np.argwhere(sure > 0.5):
        near = sure[max(0, i - 3) : i + 4, max(0, j - 3) : j + 4]
        if sure[i, j] < near.max():
            continue
        y, x = (WINDOW / 2 + STRIDE * v for v in (i, j))
        at = [label for (a, b), label in truth.items() if max(abs(a - i), abs(b - j)) <= 1]
        colour = GREEN if at == [int(best[i, j])] else RED
        axes.add_patch(
            Rectangle((x - 4.5, y - 4.5), 9, 9, fill=False, edgecolor=colour, linewidth=1.5)
        )
        axes.text(
            x + 4.2, y - 4.2, str(best[i, j]), color="white", fontsize=8, fontweight="bold",
            ha="right", va="top", bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.set_title("found: green right, red wrong")
