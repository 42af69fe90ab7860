"""Depth hurts plain networks, and their training error first of all; residual ones it does not.

A plain network of 56 layers has a *higher training error* than one of 20, though it could copy
that one and pass its output on through the rest: it is not overfitting, it cannot be trained. With
F(x) + x in place of F(x) passing on is the zero function, and 56 layers train as 20 do (He et al.
2016).

Here CIFAR's networks of the paper, with and without the additions, at half their width, learn the
digits at 8 × 8 pixels by the paper's rule with the same shape of schedule, in minutes.
``--full`` is the paper's section 4.2 whole: depths 20, 32, 44 and 56, full width, 64,000 steps on
CIFAR-10, which is to lie in ``cifar10`` in the study's folder (or a link to it). It goes on where
it was.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vidi import recipe as recipes
from vidi.api import reopen, train
from vidi.engine.evaluate import evaluate
from vidi.engine.run import read_metrics
from vidi.errors import InputError
from vidi.models.resnets import BasicBlock, conv_bn_relu, initialise, stage
from vidi.recipe import Recipe
from vidi.recipes.classification import cifar_he2016
from vidi.report.progress import Silent
from vidi.studies import Measured, Study, Table, Value
from vidi.studies._digits import digits
from vidi.studies._sheet import BLUE, GREY, ORANGE, sheet
from vidi.types import Array

CLAIM = 13

DEPTHS = (20, 32, 44, 56)
STEPS = 64_000
"""Of the paper's recipe; the rate falls at a half and three quarters of them."""
PAPER = {
    ("resnet", 20): 8.75, ("resnet", 32): 7.51, ("resnet", 44): 7.17, ("resnet", 56): 6.97,
    ("plain", 20): 9.5, ("plain", 32): 10.0, ("plain", 44): 12.0, ("plain", 56): 13.5,
}  # fmt: skip
"""Test error in %: table 6, and readings of figure 6, left, for the plain ones."""
OF_PAPER = 0.7
"""Percentage points by which a residual net's test error may be off the paper's."""
WORSE, ALIKE = 0.10, 0.02
"""Training error: by how much, at least, the deeper plain net's is higher, and at most the deeper
residual net's. Shares; in the whole recipe they are ``FULL_WORSE`` and ``FULL_ALIKE``."""
FULL_WORSE, FULL_ALIKE = 0.01, 0.005


@dataclass(frozen=True)
class Trained:
    """One training, as its run tells it."""

    kind: str
    depth: int
    seed: int
    steps: Array
    losses: Array
    """Training loss on average since the evaluation before, at ``steps``."""
    training: float
    """Error of the last weights on the training set, without augmentation; a share."""
    held_out: float
    """The same on the test split, or the validation split where there is none."""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.depth}"


def narrow(kind: str, depth: int, width: int) -> Any:
    """A builder of the paper's network of ``depth`` 6n + 2 with ``width`` channels in the first
    stage, where the paper has 16. Option A shortcuts, or none."""
    shortcut: Any = "A" if kind == "resnet" else None
    n = (depth - 2) // 6

    def build(num_classes: int) -> nn.Sequential:
        net = nn.Sequential(
            *conv_bn_relu(3, width, 1),
            stage(BasicBlock, width, width, n, 1, shortcut),
            stage(BasicBlock, width, 2 * width, n, 2, shortcut),
            stage(BasicBlock, 2 * width, 4 * width, n, 2, shortcut),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, num_classes),
        )
        initialise(net, zero_init_residual=False)
        return net

    return build


def short_recipe(steps: int, seed: int, evaluate_every: float = 2.0) -> Recipe:
    """The paper's, for 8 × 8 pixels, fewer steps and without augmentation."""
    changes = {
        "image_size": 8, "seed": seed, "augmentation": {"preset": "none"}, "data.threads": 0,
        "length": {"steps": steps, "evaluate_every": evaluate_every}, "precision": "fp32",
        "logging": {"pictures": False, "vitals": False}, "device": "cpu",
    }  # fmt: skip
    return recipes.replace(whole_recipe(), changes)


def whole_recipe() -> Recipe:
    """The paper's own: the named recipe, with all parameters decayed."""
    changes = {"optimiser": {"decay_biases_and_norms": True}, "length": {"steps": STEPS}}
    return recipes.replace(cifar_he2016(), changes)


def trained(
    kind: str, depth: int, data: Any, recipe: Recipe, run: Path, *, network: Any = None
) -> Trained:
    """Train, or go on, or read what is finished. ``network``: in place of the recipe's model."""
    model = network if network is not None else f"{kind}{depth}"
    rows = read_metrics(run) if run.is_dir() else []
    if not any(row["event"] == "end" and row["step"] == recipe.length.steps for row in rows):
        found = train(data, run=run, recipe=recipe, model=model, resume=True, progress=Silent())
        if found.interrupted:
            raise KeyboardInterrupt
    made = reopen(run, weights="last", data=data, device=recipe.device, network=network)
    errors = []
    for loader in (made.plain, made.loaders.get("test", made.loaders["val"])):
        meter, _, _ = evaluate(made.model, made.task, loader, made.compute)
        errors.append(1 - meter.compute()["accuracy"])
    rows = [row for row in read_metrics(run) if row["event"] == "evaluation"]
    return Trained(
        kind=kind,
        depth=depth,
        seed=recipe.seed,
        steps=np.array([row["step"] for row in rows]),
        losses=np.array([row["train_loss"] for row in rows], float),
        training=errors[0],
        held_out=errors[1],
    )


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    """Plain and residual networks, shallow and deep. ``small``: 8 against 20 layers, on fewer
    digits. ``full``: the paper's. ``folder``: where the runs are kept and go on."""
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return _whole(folder) if full else _short(folder, small=small)


def _short(folder: Path, *, small: bool) -> Study:
    depths, width, steps, seeds, every = ((20, 56), 8, 280, 3, 2.0)
    data = samples()
    if small:
        depths, width, steps, seeds, every = ((8, 20), 4, 20, 1, 5.0)
        data = {split: some[:256] for split, some in data.items()}
    found = [
        trained(
            kind,
            depth,
            data,
            short_recipe(steps, seed, every),
            folder / f"{kind}-{depth}-{seed}",
            network=narrow(kind, depth, width),
        )
        for seed in range(seeds)
        for kind in ("plain", "resnet")
        for depth in depths
    ]
    measured = judged(found, depths[0], depths[-1], WORSE, ALIKE)
    title = f"digits, 8 × 8 pixels, {steps} steps, half the paper's width or less"
    return _study(measured, found, title, ())


def _whole(folder: Path) -> Study:
    source = folder / "cifar10"
    if not source.exists():
        raise InputError(
            f"{source} does not exist. The whole recipe needs CIFAR-10 there: put the folder of "
            "its files (data_batch_1 …), or a link to it, at that place."
        )
    found = [
        trained(kind, depth, str(source), whole_recipe(), folder / f"{kind}-{depth}")
        for depth in DEPTHS
        for kind in ("resnet", "plain")
    ]
    measured = judged(found, DEPTHS[0], DEPTHS[-1], FULL_WORSE, FULL_ALIKE)
    for one in found:
        if one.kind == "resnet":
            wanted, error = PAPER[one.kind, one.depth], 100 * one.held_out
            measured.append(
                Measured(
                    f"{one.name}: test error in %",
                    error,
                    f"{wanted} in the paper, within {OF_PAPER:g}",
                    abs(error - wanted) <= OF_PAPER,
                )
            )
    notes = (
        "45,000 of the 50,000 training images are learned from; the others are for validation. The "
        "mean is subtracted per channel, not per pixel.",
        "The paper's errors of plain networks are read off its figure, to half a point.",
    )
    return _study(measured, found, f"CIFAR-10, {STEPS:,} steps", notes)


def samples() -> dict[str, list[tuple[Array, int]]]:
    """The digits, as images and labels."""
    found = digits()

    def pairs(pixels: Array, labels: Array) -> list[tuple[Array, int]]:
        grey = (pixels * 255).round().astype(np.uint8).reshape(-1, 8, 8, 1)
        return [(np.repeat(g, 3, 2), int(k)) for g, k in zip(grey, labels, strict=True)]

    return {
        "train": pairs(found.train, found.train_labels),
        "val": pairs(found.test, found.test_labels),
    }


def judged(
    found: list[Trained], shallow: int, deep: int, worse: float, alike: float
) -> list[Measured]:
    """The claim, in the seed where it holds least."""

    def training(kind: str, depth: int) -> Array:
        return np.array([o.training for o in found if (o.kind, o.depth) == (kind, depth)])

    plain = training("plain", deep) - training("plain", shallow)
    residual = training("resnet", deep) - training("resnet", shallow)
    against = training("plain", deep) - training("resnet", deep)
    every = f"in each of {len(plain)} seeds" if len(plain) > 1 else "one seed"
    return [
        Measured(
            f"training error of plain-{deep} less plain-{shallow}'s",
            least := float(plain.min()),
            f"at least {worse:g}, {every}: deeper is worse",
            least >= worse,
        ),
        Measured(
            f"training error of resnet-{deep} less resnet-{shallow}'s",
            most := float(residual.max()),
            f"at most {alike:g}, {every}: deeper is no worse",
            most <= alike,
        ),
        Measured(
            f"training error of plain-{deep} less resnet-{deep}'s",
            least := float(against.min()),
            f"at least {worse:g}, {every}: the additions are all that differs",
            least >= worse,
        ),
    ]


def _study(
    measured: list[Measured], found: list[Trained], title: str, notes: tuple[str, ...]
) -> Study:
    whole = len(found) and any((o.kind, o.depth) in PAPER for o in found) and "CIFAR" in title
    rows: list[tuple[Value, ...]] = []
    for name, some in _by_name(found).items():
        training, held_out = (
            100 * float(np.mean([getattr(o, what) for o in some]))
            for what in ("training", "held_out")
        )
        row: tuple[Value, ...] = (name, float(some[0].losses[-1]), training, held_out)
        rows.append((*row, PAPER[some[0].kind, some[0].depth]) if whole else row)
    heads = ("network", "training loss", "training error, %", "held-out error, %")
    return Study(
        measured=tuple(measured),
        pictures=(
            (
                "Training loss of plain and residual networks, and training error at the end",
                lambda path: _draw(path, found, title),
            ),
        ),
        tables=(
            Table(
                f"At the end: {title}",
                (*heads, "the paper's, %") if whole else heads,
                tuple(rows),
            ),
        ),
        notes=notes,
    )


def _by_name(found: list[Trained]) -> Mapping[str, list[Trained]]:
    out: dict[str, list[Trained]] = {}
    for one in found:
        out.setdefault(one.name, []).append(one)
    return out


def _draw(path: Path, found: list[Trained], title: str) -> None:
    depths = sorted({one.depth for one in found})
    widths = dict(zip(depths, np.linspace(1.2, 2.8, len(depths)), strict=True))
    colours = {"plain": ORANGE, "resnet": BLUE}
    with sheet(path, 11.5, 4.0, columns=3, ratios=(1, 1, 0.9), title=title) as panels:
        for axes, kind in zip(panels, ("plain", "resnet"), strict=False):
            for name, some in _by_name([o for o in found if o.kind == kind]).items():
                deepest = some[0].depth == depths[-1]
                for k, one in enumerate(some):
                    axes.plot(
                        one.steps,
                        one.losses,
                        color=colours[kind] if deepest else GREY,
                        linewidth=widths[one.depth],
                        label=name if k == 0 else None,
                    )
            axes.set(title="plain" if kind == "plain" else "residual", xlabel="step")
            axes.legend(loc="upper right")
        top = 1.05 * max(float(one.losses.max()) for one in found)
        panels[0].set_ylabel("training loss")
        for axes in panels[:2]:
            axes.set_ylim(0, top)
        bars = panels[2]
        for k, some in enumerate(_by_name(found).values()):
            errors = [one.training for one in some]
            mean = float(np.mean(errors))
            bars.bar(k, mean, 0.6, color=colours[some[0].kind])
            bars.plot([k] * len(errors), errors, "o", color="white", markeredgecolor=GREY, ms=4)
            bars.text(k, max(errors) + 0.01, f"{mean:.1%}", ha="center", va="bottom")
        names = list(_by_name(found))
        bars.set_xticks(range(len(names)), names, rotation=0 if len(names) <= 4 else 60)
        bars.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        bars.set(title="training error at the end")
        bars.margins(y=0.15)
        bars.grid(axis="x", visible=False)
