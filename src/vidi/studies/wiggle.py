"""Wiggling one weight at a time is right and hopelessly slow; backpropagation is the same at once.

To learn without any calculus, change one weight by ε = 1e-6 and see whether the loss falls:

    θ ← θ + ε · sign(L(θ) - L(θ + ε))

That asks for one forward pass per weight. Backpropagation gives the direction for all weights, the
same one, for two more forward passes' worth of work: each layer multiplies by its weights once
forward, and backward once for its input and once for its weights (the first layer's input needs
none).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vidi import models
from vidi.studies import Measured, Study, Table
from vidi.studies._digits import Digits, digits
from vidi.studies._sheet import BLUE, GREY, ORANGE, RED, sheet
from vidi.studies.toy_trainer import Network
from vidi.types import Array

CLAIM = 4
EPSILON = 1e-6
NOISE = 1e-8
"""Slopes below this drown in the loss's rounding: its 1e-16 divided by ε is 1e-10."""


def wiggled(network: Network, data: Digits) -> tuple[Array, Array]:
    """Of every weight: the slope that one wiggle finds, and the derivative by backpropagation."""
    loss = network.forward(data.train, data.train_labels)
    network.backward()
    slopes, derivatives = [], []
    for layer in network.linear:
        for values, gradient in (
            (layer.weight, layer.weight_gradient.copy()),
            (layer.bias, layer.bias_gradient.copy()),
        ):
            for index in np.ndindex(*values.shape):
                kept = values[index]
                values[index] = kept + EPSILON
                slopes.append((network.forward(data.train, data.train_labels) - loss) / EPSILON)
                values[index] = kept
                derivatives.append(gradient[index])
    return np.array(slopes), np.array(derivatives)


def by_wiggling(network: Network, data: Digits, passes: int, epsilon: float) -> list[float]:
    """Weights drawn at random, one after another: the loss after each forward pass."""
    rng = np.random.default_rng(0)
    tensors = [values for layer in network.linear for values in (layer.weight, layer.bias)]
    sizes = np.array([values.size for values in tensors])
    losses = [network.forward(data.train, data.train_labels)]
    while len(losses) <= passes:
        tensor = tensors[rng.choice(len(tensors), p=sizes / sizes.sum())]
        index = np.unravel_index(rng.integers(tensor.size), tensor.shape)
        before, kept = losses[-1], tensor[index]
        tensor[index] = kept + epsilon
        losses.append(network.forward(data.train, data.train_labels))
        direction = np.sign(before - losses[-1])
        if direction < 1:
            tensor[index] = kept + epsilon * direction
            # Where it stands now has to be known for the next: one more pass.
            losses[-1] = before
            losses.append(network.forward(data.train, data.train_labels))
    return losses


def by_backpropagation(network: Network, data: Digits, updates: int) -> list[float]:
    losses = []
    for _ in range(updates):
        losses.append(network.forward(data.train, data.train_labels))
        network.backward()
        network.update(0.5)
    losses.append(network.forward(data.train, data.train_labels))
    return losses


class Work(NamedTuple):
    """Multiply-adds for one image, by PyTorch's own count."""

    weights: int
    forward: int
    backward: int
    first: int
    """Of forward, the first layer's."""

    @property
    def ratio(self) -> float:
        return self.backward / self.forward


def work(network: nn.Module, side: int) -> Work:
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    counts: list[int] = []
    first.register_forward_hook(lambda m, _, out: counts.append(m.weight[0].numel() * out.numel()))
    with FlopCounterMode(display=False) as forward:
        out = network(torch.zeros(1, 3, side, side))
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return Work(
        sum(p.numel() for p in network.parameters()),
        forward.get_total_flops() // 2,
        backward.get_total_flops() // 2,
        counts[0],
    )


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    data = digits(limit=100 if small else 400)
    widths = (64, 8, 10) if small else (64, 32, 10)
    slopes, derivatives = wiggled(Network(*widths), data)
    clear = np.abs(derivatives) > NOISE
    same = float((np.sign(slopes) == np.sign(derivatives))[clear].mean())
    off = float(np.abs(slopes - derivatives).max())

    updates = 30 if small else 200
    passes = 3 * updates
    back = by_backpropagation(Network(*widths), data, updates)
    ways = {eps: by_wiggling(Network(*widths), data, passes, eps) for eps in (EPSILON, 0.01)}
    slow = ways[EPSILON]
    fell, gained = slow[0] - slow[-1], back[0] - back[-1]
    torch.manual_seed(0)
    chosen = (("mlp", 28), ("resnet20", 32), *(() if small else (("resnet18", 64),)))
    counted = {
        name: work(models.build(name, num_classes=10, image_size=side).eval(), side)
        for name, side in chosen
    }
    astray = max(abs(it.ratio - (2 - it.first / it.forward)) for it in counted.values())
    least = min(it.ratio for name, it in counted.items() if name != "mlp")
    measured = (
        Measured(
            f"share of the {int(clear.sum())} weights whose wiggle points where backpropagation "
            f"does ({int((~clear).sum())} with a slope under 1e-8 set aside)",
            same,
            "all of them",
            same == 1.0,
        ),
        Measured(
            "largest difference of a wiggle's slope to the derivative",
            off,
            "at most 1e-5 (ε times the curvature)",
            off <= 1e-5,
        ),
        Measured(
            f"by how much wiggling lowers the loss in {passes} forward passes, of {slow[0]:.2f}",
            fell,
            "more than nothing",
            fell > 0,
        ),
        Measured(
            "by how much backpropagation does, with that work, as a multiple of it",
            gained / fell,
            "at least 1,000",
            gained >= 1000 * fell,
        ),
        Measured(
            "work backward, in forwards: its largest difference to 2 less the first layer's share",
            astray,
            "at most 0.01",
            astray <= 0.01,
        ),
        Measured(
            "the least of it, over the convolutional networks",
            least,
            "about twice: 1.9 to 2 (the MLP's first layer does most of its work)",
            1.9 <= least <= 2,
        ),
    )
    table = Table(
        "Multiply-adds for one update of all weights, one image",
        ("network", "weights", "forward", "backward", "ratio", "wiggling / backpropagation"),
        tuple(
            (
                f"{name}, {side} px",
                it.weights,
                it.forward,
                it.backward,
                it.ratio,
                (it.weights + 1) / (1 + it.ratio),
            )
            for (name, side), it in zip(chosen, counted.values(), strict=True)
        ),
    )
    return Study(
        measured,
        (
            (
                "Left: one wiggle's slope against the derivative, a point per weight. Middle: the "
                "loss for the same work (an update by backpropagation counts as three passes). "
                "Right: forward passes' worth of work for one update of all weights.",
                lambda path: _draw(path, slopes, derivatives, ways, back, table),
            ),
        ),
        (table,),
    )


def _draw(
    path: Path,
    slopes: Array,
    derivatives: Array,
    ways: dict[float, list[float]],
    back: list[float],
    table: Table,
) -> None:
    with sheet(path, 12, 4, columns=3, title="Wiggling against backpropagation") as panels:
        agree, loss, cost = panels
        agree.plot(derivatives, slopes, ".", color=BLUE, markersize=3)
        agree.axline((0, 0), slope=1, color=GREY, linewidth=0.8, zorder=0)
        agree.set(
            title="the same slope",
            xlabel="derivative by backpropagation, all at once",
            ylabel="slope by wiggling, one by one",
        )
        for (epsilon, losses), colour in zip(ways.items(), (RED, ORANGE), strict=True):
            loss.plot(losses, color=colour, label=f"wiggling by {epsilon:g}")
        loss.plot(3 * np.arange(len(back)), back, color=BLUE, label="backpropagation")
        loss.set(title="the same work", xlabel="forward passes' worth", ylabel="training loss")
        loss.set_ylim(0, 1.45 * back[0])
        loss.legend(loc="upper right")

        place = np.arange(len(table.rows))
        weights = np.array([float(row[1]) for row in table.rows])
        ratios = np.array([float(row[4]) for row in table.rows])
        for by, shift, values, colour in (
            ("wiggling", -0.2, weights + 1, RED),
            ("backpropagation", 0.2, 1 + ratios, BLUE),
        ):
            cost.bar(place + shift, values, 0.38, color=colour, label=by)
            for k, value in zip(place, values, strict=True):
                text = f"{value:,.0f}" if value > 100 else f"{value:.2f}"
                cost.text(k + shift, value * 1.3, text, ha="center", fontsize=8)
        cost.set_yscale("log")
        cost.set_ylim(1, 1000 * weights.max())
        cost.set_xticks(place, [str(row[0]) for row in table.rows])
        cost.set(title="one update of all weights", ylabel="forward passes' worth of work")
        cost.legend(loc="upper left")
