"""A step cannot be trained by gradient, ReLU's corner does not matter, and units can die.

A perceptron's output is a step: its derivative is zero wherever there is one. Rosenblatt's rule
needs none (on an error, add the sample to the weights, or subtract it), and where a line separates
the classes it is done after at most (R/γ)² errors, R being the longest sample and γ the widest
margin (Novikoff 1962). ReLU has no derivative at 0, but no sum is ever exactly 0, so that any value
will do. Where ReLU gives 0 it passes nothing back: a unit that gives 0 for every sample is dead,
and stays as it is. A leaky one recovers.

Forward and backward are dual: what is a sum forward is a copy backward, and the reverse. Every
linear layer goes back by its transpose: a convolution by a transposed convolution, an average by
a spread.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.svm import SVC
from torch import Tensor, nn

from vidi.studies import Measured, Study, Table
from vidi.studies._digits import Digits, digits
from vidi.studies._sheet import BLUE, GREEN, GREY, ORANGE, RED, sheet
from vidi.types import Array

CLAIM = 6


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    data = digits(limit=500 if small else None)
    learned = perceptron(*two_clouds(60 if small else 200))
    epochs = 8 if small else 12
    corners = {at: train_with_corner(data, at, epochs) for at in (0.0, 0.5, 1.0)}
    dead = {
        (kind, rate): train_until_dead(data, kind, rate, epochs)
        for kind in ("ReLU", "leaky ReLU")
        for rate in (0.1, 0.5, 1.5)
    }
    buried = {kind: bury(data, kind, 30) for kind in ("ReLU", "leaky ReLU")}
    duals = {name: dual(forward, backward, size) for name, forward, backward, size in DUALS}
    slope = step_slope(learned)
    hits = sum(one.exact_zeros for one in corners.values())
    spread = max(one.accuracy for one in corners.values()) - min(
        one.accuracy for one in corners.values()
    )
    measured = (
        Measured(
            "step: largest slope of the output by any weight, over all samples (change of 1e-6)",
            slope,
            "0",
            slope == 0,
        ),
        Measured(
            "perceptron rule: errors left on the separable samples",
            learned.left,
            "0",
            learned.left == 0,
        ),
        Measured(
            "perceptron rule: errors made on the way",
            len(learned.weights) - 1,
            f"at most (R/γ)² = {learned.bound:,.0f}, the margin γ being a support vector machine's",
            len(learned.weights) - 1 <= learned.bound,
        ),
        Measured(
            "ReLU: sums that were exactly 0 in three trainings",
            hits,
            "0",
            hits == 0,
        ),
        Measured(
            "ReLU: spread of test accuracy with the derivative at 0 taken as 0, 1/2 and 1",
            spread,
            "0: it is never asked for",
            spread == 0,
        ),
        Measured(
            "share of dead units after training at a rate of 0.1",
            dead["ReLU", 0.1].share,
            "at most 0.1",
            dead["ReLU", 0.1].share <= 0.1,
        ),
        Measured(
            "share of dead units after training at a rate of 1.5",
            dead["ReLU", 1.5].share,
            "at least 3 times as many, and more than of leaky ones",
            dead["ReLU", 1.5].share
            >= max(3 * dead["ReLU", 0.1].share, 0.1, dead["leaky ReLU", 1.5].share),
        ),
        Measured(
            "a dead layer (bias -3): largest change of its weights in training",
            buried["ReLU"].moved,
            "0",
            buried["ReLU"].moved == 0,
        ),
        Measured(
            "the same, leaky: largest change, and then the share of units never above 0",
            f"{buried['leaky ReLU'].moved:.2f}, {buried['leaky ReLU'].share:.2f}",
            "above 0.01, below 1: it recovers",
            buried["leaky ReLU"].moved > 0.01 and buried["leaky ReLU"].share < 1,
        ),
        Measured(
            "dual pairs: largest difference of autograd's backward to the dual's forward",
            max(duals.values()),
            "at most 1e-12",
            max(duals.values()) <= 1e-12,
        ),
    )
    table = Table(
        "What goes back through what",
        ("forward: backward", "difference"),
        tuple(duals.items()),
    )
    return Study(
        measured,
        (
            (
                "Left: three units and their derivatives. Middle: the perceptron rule's lines, "
                "from the first error to the last. Right: units that are dead after training.",
                lambda path: _draw(path, learned, dead),
            ),
        ),
        (table,),
    )


# ------------------------------------------------------------------------------ the perceptron


class Learned(NamedTuple):
    x: Array
    """[n, 3], of which the third is 1: the bias's."""
    labels: Array
    """-1 or 1."""
    weights: list[Array]
    """At first, and after each error."""
    left: int
    bound: float


def two_clouds(n: int) -> tuple[Array, Array]:
    """Points of two classes with a gap between them."""
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (3 * n, 2))
    x = x[np.abs(x @ [0.6, 0.8] - 0.8) > 0.1][:n]
    return np.column_stack([x, np.ones(len(x))]), np.sign(x @ [0.6, 0.8] - 0.8).astype(int)


def perceptron(x: Array, labels: Array) -> Learned:
    """Rosenblatt's rule, until a whole pass is without error."""
    weights, done = [np.zeros(3)], False
    while not done:
        done = True
        for one, label in zip(x, labels, strict=True):
            if label * (one @ weights[-1]) <= 0:
                weights.append(weights[-1] + label * one)
                done = False
    # The widest margin of a plane through the origin of the three: a hard support vector machine
    # on the points and their mirror images, which is symmetric and so has no bias of its own.
    machine = SVC(kernel="linear", C=1e6)
    machine.fit(np.concatenate([x, -x]), np.concatenate([labels, -labels]))
    normal = machine.coef_[0]
    margin = float((labels * (x @ normal)).min() / np.linalg.norm(normal))
    bound = float((np.linalg.norm(x, axis=1).max() / margin) ** 2)
    return Learned(x, labels, weights, int((labels * (x @ weights[-1]) <= 0).sum()), bound)


def step_slope(learned: Learned) -> float:
    """By how much a perceptron's output changes per change of a weight, at most."""
    weight = np.array([0.3, -0.7, 0.2])
    said = np.heaviside(learned.x @ weight, 0.5)
    return max(
        float(np.abs(np.heaviside(learned.x @ (weight + 1e-6 * one), 0.5) - said).max() / 1e-6)
        for one in np.eye(3)
    )


# ---------------------------------------------------------------------------------------- ReLU


class Corner(torch.autograd.Function):
    """ReLU whose derivative at 0 is what one likes."""

    at_zero = 0.0
    exact_zeros = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        Corner.exact_zeros += int((x == 0).sum())
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.where(x == 0, Corner.at_zero, (x > 0).to(g))


class Cornered(NamedTuple):
    exact_zeros: int
    accuracy: float


def train_with_corner(data: Digits, at_zero: float, epochs: int) -> Cornered:
    Corner.at_zero, Corner.exact_zeros = at_zero, 0
    network = _network(Corner.apply)
    _train(network, data, 0.1, epochs)
    return Cornered(Corner.exact_zeros, _accuracy(network, data))


class Dead(NamedTuple):
    share: float
    """Of the hidden units, those whose sum is above 0 for no sample."""
    moved: float
    """Largest change of any of the hidden layer's weights."""
    accuracy: float


def train_until_dead(data: Digits, kind: str, rate: float, epochs: int) -> Dead:
    return _judge(_network(ACTIVATIONS[kind]), data, rate, epochs)


def bury(data: Digits, kind: str, epochs: int) -> Dead:
    """A hidden layer that begins dead: its sums are all far below 0."""
    network = _network(ACTIVATIONS[kind])
    with torch.no_grad():
        network.hidden.bias.fill_(-3)
    return _judge(network, data, 0.5, epochs)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": F.relu,
    "leaky ReLU": lambda x: F.leaky_relu(x, 0.1),
}


class _Net(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(64, 64), nn.Linear(64, 10)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.activation(self.hidden(x)))
        return out


def _network(activation: Callable[[Tensor], Tensor]) -> _Net:
    torch.manual_seed(0)
    return _Net(activation).double()


def _train(network: nn.Module, data: Digits, rate: float, epochs: int) -> None:
    optimiser = torch.optim.SGD(network.parameters(), lr=rate)
    x, labels = torch.tensor(data.train), torch.tensor(data.train_labels)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for some in torch.split(torch.randperm(len(x), generator=order), 32):
            optimiser.zero_grad()
            F.cross_entropy(network(x[some]), labels[some]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def _judge(network: _Net, data: Digits, rate: float, epochs: int) -> Dead:
    before = network.hidden.weight.detach().clone()
    _train(network, data, rate, epochs)
    with torch.no_grad():
        sums = network.hidden(torch.tensor(data.train))
        share = float((sums <= 0).all(0).double().mean())
        moved = float((network.hidden.weight - before).abs().max())
    return Dead(share, moved, _accuracy(network, data))


def _accuracy(network: nn.Module, data: Digits) -> float:
    with torch.no_grad():
        said = network(torch.tensor(data.test)).argmax(1)
    return float((said == torch.tensor(data.test_labels)).double().mean())


# ------------------------------------------------------------------------------------- duality

_KERNEL = torch.randn(5, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
DUALS: tuple[
    tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], tuple[int, ...]], ...
] = (
    ("sum of 4: copied to 4", lambda x: x.sum(0), lambda g: g.expand(4, 6), (4, 6)),
    ("copied to 4: sum of 4", lambda x: x.expand(4, 6), lambda g: g.sum(0), (6,)),
    (
        "average of 2 × 2: spread over 2 × 2",
        lambda x: F.avg_pool2d(x, 2),
        lambda g: g.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4,
        (1, 3, 8, 8),
    ),
    (
        "enlarged by copying: sum over 2 × 2",
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
        lambda g: 4 * F.avg_pool2d(g, 2),
        (1, 3, 4, 4),
    ),
    (
        "convolution: transposed convolution",
        lambda x: F.conv2d(x, _KERNEL),
        lambda g: F.conv_transpose2d(g, _KERNEL),
        (1, 3, 8, 8),
    ),
    (
        "transposed convolution: convolution",
        lambda x: F.conv_transpose2d(x, _KERNEL),
        lambda g: F.conv2d(g, _KERNEL),
        (1, 5, 6, 6),
    ),
)


def dual(
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], Tensor],
    size: tuple[int, ...],
) -> float:
    """Autograd's way back through ``forward``, against ``backward`` run forward."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, dtype=torch.float64, generator=generator, requires_grad=True)
    out = forward(x)
    g = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    (found,) = torch.autograd.grad(out, x, g)
    return float((found - backward(g)).abs().max())


# ------------------------------------------------------------------------------------- picture


def _draw(path: Path, learned: Learned, dead: dict[tuple[str, float], Dead]) -> None:
    with sheet(path, 12, 4, columns=3, title="Units") as (shapes, lines, died):
        x = np.linspace(-3, 3, 601)
        sigmoid = 1 / (1 + np.exp(-x))
        for name, values, slope, colour in (
            ("step", np.heaviside(x, 0.5), np.where(x == 0, np.nan, 0), RED),
            ("sigmoid", sigmoid, sigmoid * (1 - sigmoid), GREEN),
            ("ReLU", np.maximum(x, 0), np.where(x == 0, np.nan, x > 0), BLUE),
        ):
            shapes.plot(x, values, color=colour, label=name)
            shapes.plot(x, slope, "--", color=colour, linewidth=1.2)
        shapes.plot([], [], "--", color=GREY, label="derivative")
        shapes.set(title="output and derivative", xlabel="sum", ylim=(-0.1, 3))
        shapes.legend(loc="upper left")

        for label, colour in ((-1, BLUE), (1, ORANGE)):
            lines.plot(*learned.x[learned.labels == label, :2].T, ".", color=colour, markersize=4)
        t = np.array([-4.0, 4.0])
        known = [w for w in learned.weights[1:] if abs(w[1]) > 1e-9]
        for k, weight in enumerate(known[:-1]):
            lines.plot(
                t,
                -(weight[0] * t + weight[2]) / weight[1],
                color=GREY,
                linewidth=0.7,
                alpha=0.15 + 0.5 * k / len(known),
                label="after an error" if k == len(known) - 2 else None,
            )
        last = known[-1]
        lines.plot(t, -(last[0] * t + last[2]) / last[1], color="black", label="after the last")
        lines.set(
            title=f"perceptron rule: {len(learned.weights) - 1} errors, then none",
            xlim=(-3, 3),
            ylim=(-3, 3.9),
            xlabel="x",
            ylabel="y",
        )
        lines.legend(loc="upper right")

        rates = sorted({rate for _, rate in dead})
        for kind, colour, shift in (("ReLU", BLUE, -0.2), ("leaky ReLU", ORANGE, 0.2)):
            shares = [dead[kind, rate].share for rate in rates]
            right = [dead[kind, rate].accuracy for rate in rates]
            place = np.arange(len(rates)) + shift
            died.bar(place, shares, 0.38, color=colour, label=kind)
            for at, share, accuracy in zip(place, shares, right, strict=True):
                died.text(at, share + 0.02, f"reads\n{accuracy:.0%}", ha="center", fontsize=8)
        died.set_xticks(np.arange(len(rates)), [f"{rate:g}" for rate in rates])
        died.set(
            title="units whose sum is never above 0",
            xlabel="learning rate",
            ylabel="share of 64 hidden units",
            ylim=(0, 1.2),
        )
        died.legend(loc="upper left")
