"""Equal initial weights never separate: the network does not train.

Units that begin equal see equal inputs and get equal derivatives, so that every update leaves them
equal. A hidden layer of 32 such units is worth one. If all weights are zero, nothing comes back to
the hidden layer at all. A random start is what makes the units differ; how small it is hardly
matters, as long as it is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from vidi.studies import Measured, Study, Table
from vidi.studies._digits import Digits, digits
from vidi.studies._sheet import BLUE, GREY, ORANGE, RED, sheet
from vidi.studies.toy_trainer import Network, accuracy, train
from vidi.types import Array

CLAIM = 10
HIDDEN = 32
EQUAL = 0.02
"""The weight that all begin with."""


class Trained(NamedTuple):
    spread: list[float]
    """Largest difference between two hidden units' weights: at first, and after each epoch."""
    moved: float
    """Largest change of a hidden unit's weight."""
    right: list[float]
    """Test accuracy, likewise."""
    weights: Array
    """[hidden, 64] at the end."""


def follow(network: Network, data: Digits, epochs: int) -> Trained:
    hidden = network.linear[0]
    before = hidden.weight.copy()
    spread = [_spread(hidden.weight)]
    right = [accuracy(network, data.test, data.test_labels)]
    for _ in train(network, data.train, data.train_labels, epochs=epochs, rate=0.1):
        spread.append(_spread(hidden.weight))
        right.append(accuracy(network, data.test, data.test_labels))
    return Trained(spread, float(np.abs(hidden.weight - before).max()), right, hidden.weight)


def _spread(weight: Array) -> float:
    return float((weight.max(0) - weight.min(0)).max())


def filled(value: float, hidden: int = HIDDEN) -> Network:
    """All weights of all layers equal."""
    network = Network(64, hidden, 10)
    for layer in network.linear:
        layer.weight[:] = value
    return network


def scattered(scale: float) -> Network:
    """Equal, but for a small random part."""
    network, rng = filled(EQUAL), np.random.default_rng(1)
    for layer in network.linear:
        layer.weight += rng.normal(0, scale, layer.weight.shape)
    return network


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    data = digits()
    epochs = 20 if small else 50
    found = {
        "random": follow(Network(64, HIDDEN, 10), data, epochs),
        "equal": follow(filled(EQUAL), data, epochs),
        "all zero": follow(filled(0.0), data, epochs),
        "equal, a thousandth random": follow(scattered(EQUAL / 1000), data, 2 * epochs),
    }
    single = follow(filled(EQUAL, hidden=1), data, epochs)
    equal, random, zero = found["equal"], found["random"], found["all zero"]
    mended = found["equal, a thousandth random"]
    measured = (
        Measured(
            "equal start: largest difference between two hidden units, in all of training",
            max(equal.spread),
            "at most 1e-9 (the order of summing may leave rounding)",
            max(equal.spread) <= 1e-9,
        ),
        Measured(
            "equal start: largest change of their weights",
            equal.moved,
            "above 0.01: they do move, all alike",
            equal.moved > 0.01,
        ),
        Measured(
            "equal start: test accuracy at the end",
            equal.right[-1],
            "at most 0.5, and at least 0.3 below a random start's",
            equal.right[-1] <= min(0.5, random.right[-1] - 0.3),
        ),
        Measured(
            "all zero: largest change of a hidden weight",
            zero.moved,
            "0: nothing comes back",
            zero.moved == 0,
        ),
        Measured(
            "random start: test accuracy at the end",
            random.right[-1],
            "at least 0.9",
            random.right[-1] >= 0.9,
        ),
        Measured(
            "equal but for a random thousandth: test accuracy at the end",
            mended.right[-1],
            "at least 0.3 above the equal start's: the units separate",
            mended.right[-1] >= equal.right[-1] + 0.3,
        ),
    )
    table = Table(
        f"Test accuracy and spread of {HIDDEN} hidden units (chance: 0.10)",
        ("start", "accuracy", "spread at first", "spread at the end"),
        (
            *((name, it.right[-1], it.spread[0], it.spread[-1]) for name, it in found.items()),
            ("a single hidden unit", single.right[-1], 0.0, 0.0),
        ),
    )
    return Study(
        measured,
        (
            (
                "Left: how far apart the hidden units are. Middle: what the network reads. Right: "
                "the weights of 12 hidden units after training, from an equal start and from a "
                "random one (blue negative, red positive).",
                lambda path: _draw(path, found),
            ),
        ),
        (table,),
    )


COLOURS = {
    "random": BLUE,
    "equal": RED,
    "all zero": GREY,
    "equal, a thousandth random": ORANGE,
}


def _draw(path: Path, found: dict[str, Trained]) -> None:
    with sheet(path, 12, 4, columns=4, title="Symmetry", ratios=(1.2, 1.2, 0.75, 0.75)) as (
        apart,
        read,
        *both,
    ):
        for name, it in found.items():
            style = "--" if name == "all zero" else "-"
            # Zero has no place on a logarithmic axis: it lies on the floor.
            apart.semilogy(np.maximum(it.spread, 1e-17), style, color=COLOURS[name], label=name)
            read.plot(it.right, style, color=COLOURS[name], label=name)
        apart.set(title="how far units are apart", xlabel="epoch", ylabel="largest difference")
        apart.set_ylim(3e-18, 1e3)
        apart.set_yticks([1e-17, 1e-12, 1e-8, 1e-4, 1], ["0", "1e-12", "1e-8", "1e-4", "1"])
        apart.minorticks_off()
        read.set(title="test accuracy", xlabel="epoch", ylim=(0, 1.4))
        read.set_yticks(np.arange(0, 1.1, 0.2))
        read.legend(loc="upper left")
        for axes, name in zip(both, ("equal", "random"), strict=True):
            weights = found[name].weights[:12].reshape(12, 8, 8)
            high = float(np.abs(weights).max())
            for k, weight in enumerate(weights):
                top, left = 10 * (k // 3), 10 * (k % 3)
                axes.imshow(
                    weight,
                    cmap="RdBu_r",
                    vmin=-high,
                    vmax=high,
                    extent=(left, left + 8, top + 8, top),
                )
            axes.set(title=f"units, {name} start", xlim=(-1, 29), ylim=(39, -1))
            axes.axis("off")
