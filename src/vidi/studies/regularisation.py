"""What regularises: more data, pooling and augmentation.

A network that could learn its training set by heart is kept from it by more samples, by pooling,
which forgets where exactly something was, and by augmentation, which shows each sample differently
every time. What they close is the gap between the error on the training set and on images that were
held out.

Here digits stand at random places of a canvas half as large again. A small convolutional network
learns from few of them, with none of the three, with each, and with all.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vidi.api import load, train
from vidi.report.progress import Silent
from vidi.studies import Measured, Study, Table
from vidi.studies._digits import digits
from vidi.studies._sheet import BLUE, GREY, ORANGE, sheet
from vidi.types import Array

CLAIM = 12

SIDE, DIGIT = 12, 8
"""Pixels of the canvas and of a digit."""
BEYOND, SMALL_BEYOND = 3.0, 2.0
"""So many standard errors of the difference are beyond noise; the second number in the small form,
whose two random starts tell little of the deviation."""

AUGMENTED = {"shift": 1.5 / SIDE, "rotation": 8.0, "scale": 0.08}

Samples = list[tuple[Array, int]]


@dataclass(frozen=True)
class Setting:
    """What is done against learning by heart."""

    name: str
    more: bool = False
    pooling: bool = False
    augmentation: bool = False


SETTINGS = (
    Setting("none of them"),
    Setting("more data", more=True),
    Setting("pooling", pooling=True),
    Setting("augmentation", augmentation=True),
    Setting("all three", more=True, pooling=True, augmentation=True),
)


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    few: int
    many: int
    held_out: int
    steps: int
    seeds: int
    width: int = 8


def network(pooling: bool, width: int) -> Any:
    """A builder of two 3 × 3 convolutions, each with or without a 2 × 2 pool, and a linear layer.

    Without pools there are 16 times as many responses, each with weights of its own.
    """

    def build(num_classes: int) -> nn.Sequential:
        pool = nn.MaxPool2d(2) if pooling else nn.Identity()
        side = SIDE // 4 if pooling else SIDE
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), pool,
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), pool,
            nn.Flatten(), nn.Linear(2 * width * side * side, num_classes),
        )  # fmt: skip

    return build


def placed(split: str, count: int, seed: int) -> Samples:
    """``count`` digits, chosen and placed on canvases by ``seed``. ``split``: train or test."""
    data = digits()
    pixels, labels = (
        (data.train, data.train_labels) if split == "train" else (data.test, data.test_labels)
    )
    generator = np.random.default_rng(seed)
    out = []
    for i in generator.permutation(len(labels))[:count]:
        canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
        y, x = generator.integers(0, SIDE - DIGIT + 1, 2)
        grey = (pixels[i] * 255).round().reshape(DIGIT, DIGIT, 1)
        canvas[y : y + DIGIT, x : x + DIGIT] = grey
        out.append((canvas, int(labels[i])))
    return out


def errors(setting: Setting, size: Size, seed: int) -> tuple[float, float]:
    """(error on the training samples, error on held-out ones) after training; shares."""
    samples = placed("train", size.many if setting.more else size.few, seed)
    held_out = placed("test", size.held_out, 1000)
    build = network(setting.pooling, size.width)
    augmentation = {"preset": "none"} | (AUGMENTED if setting.augmentation else {})
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            samples,
            val=held_out,
            run=Path(folder) / "run",
            model=build,
            image_size=SIDE,
            batch_size=50,
            lr=0.005,
            optimiser={"name": "adamw", "weight_decay": 0.0},
            schedule={"name": "cosine", "warmup": 0.0},
            augmentation=augmentation,
            regularisation={"label_smoothing": 0.0, "ema": 0.0},
            # One evaluation, at the end: these are the last weights, not the best.
            length={"steps": size.steps, "evaluate_every": 1e6},
            logging={"pictures": False, "vitals": False},
            data={"threads": 0},
            precision="fp32",
            device="cpu",
            seed=seed,
            progress=Silent(),
        )
        found = load(run.path, device="cpu", network=build)
        predicted = found.predict([image for image, _ in samples])
    names = found.classes
    wrong = [p.label != names[k] for p, (_, k) in zip(predicted, samples, strict=True)]
    return float(np.mean(wrong)), 1 - run.metrics["accuracy"]


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    """Trains each setting from several random starts, on other digits each. ``small``: fewer and
    shorter, and without pooling, which so short a training does not tell apart. ``full`` and
    ``folder`` change nothing."""
    size = Size(80, 600, 120, 60, 2) if small else Size(200, 1400, 360, 450, 3)
    settings = [s for s in SETTINGS if not (small and s.pooling)]
    found = {
        setting.name: np.array([errors(setting, size, seed) for seed in range(size.seeds)])
        for setting in settings
    }
    without = found[SETTINGS[0].name]
    measured = []
    beyond = SMALL_BEYOND if small else BEYOND
    for name, both in list(found.items())[1:]:
        gap, gap_without = both[:, 1] - both[:, 0], without[:, 1] - without[:, 0]
        measured.append(_falls(f"gap between the errors, {name}", gap, gap_without, beyond))
        measured.append(_falls(f"held-out error, {name}", both[:, 1], without[:, 1], beyond))
    rows = tuple(
        (
            name,
            *(f"{100 * v.mean():.1f} ± {100 * v.std(ddof=1):.1f}" for v in both.T),
            f"{100 * (both[:, 1] - both[:, 0]).mean():.1f}",
        )
        for name, both in found.items()
    )
    return Study(
        measured=tuple(measured),
        pictures=(
            (
                "Training and held-out error of the same network with none, each and all of what "
                "regularises; points are single trainings",
                lambda path: _draw(path, found, size),
            ),
        ),
        tables=(
            Table(
                f"Error in %, mean ± deviation over {size.seeds} random starts; "
                f"{size.few} digits, more data {size.many}",
                ("setting", "training", "held out", "gap"),
                rows,
            ),
        ),
    )


def _falls(what: str, with_it: Array, without: Array, beyond: float) -> Measured:
    """That the mean is lower than without, by more than noise explains."""
    error = math.sqrt((with_it.var(ddof=1) + without.var(ddof=1)) / len(without))
    below = float(without.mean() - with_it.mean())
    return Measured(
        what,
        float(with_it.mean()),
        f"below {without.mean():.3f}, which it is with none of them, by at least {beyond:g} "
        f"standard errors ({beyond * error:.3f})",
        below >= beyond * error and below > 0,
    )


def _draw(path: Path, found: dict[str, Array], size: Size) -> None:
    with sheet(path, 9, 4.2) as (axes,):
        at = np.arange(len(found))
        for k, (name, colour, shift) in enumerate(
            (("training", BLUE, -0.19), ("held out", ORANGE, 0.19))
        ):
            values = np.array([both[:, k] for both in found.values()])
            bars = axes.bar(at + shift, values.mean(1), 0.36, color=colour, label=name)
            for bar, some in zip(bars, values, strict=True):
                middle = bar.get_x() + bar.get_width() / 2
                axes.text(middle, some.max() + 0.015, f"{some.mean():.0%}", ha="center")
            for one in values.T:
                axes.plot(at + shift, one, "o", color="white", markeredgecolor=GREY, markersize=4)
        axes.set_xticks(at, list(found))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        axes.grid(axis="x", visible=False)
        axes.set(title="error of one small network on digits", ylabel="error")
        axes.set_ylim(0, 1.15 * max(both.max() for both in found.values()))
        axes.set_xlabel(f"{size.few} digits are learned from; with more data {size.many:,}")
        axes.legend()
