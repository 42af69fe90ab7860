"""The toy trainer: forward, Jacobians, backward and update on one page, without autograd.

A network is a chain of functions and its loss is one number. The derivative of that number with
respect to anything in the chain is a product of Jacobians, one per function after it. Going
backward, each layer takes the derivative by its output and gives back the derivative by its input;
on the way it notes the derivative by its own weights. No layer knows its neighbours.

What is below is all there is to it: a linear layer, a ReLU, softmax with cross-entropy, a loop. It
must give the derivatives that PyTorch's autograd gives, in double precision, and learn to read
handwritten digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from vidi.studies import Measured, Study, Table
from vidi.studies._digits import Digits, digits
from vidi.studies._sheet import BLUE, GREEN, GREY, ORANGE, RED, sheet
from vidi.types import Array

CLAIM = 5

# ------------------------------------------------------------------------------------ the page
# x: a row of inputs per sample.    g: the loss's derivative by a layer's output, a row per sample.


class Linear:
    """o = W x + b. The Jacobian by x is W; by W_kj it is x_j in row k, and 0 elsewhere."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        self.weight = rng.normal(0, np.sqrt(2 / inputs), (outputs, inputs))
        self.bias = np.zeros(outputs)

    def forward(self, x: Array) -> Array:
        self.x = x
        return x @ self.weight.T + self.bias

    def jacobian(self, x: Array) -> Array:
        return self.weight

    def backward(self, g: Array) -> Array:
        self.weight_gradient = g.T @ self.x
        self.bias_gradient = g.sum(0)
        return g @ self.weight

    def update(self, rate: float) -> None:
        self.weight -= rate * self.weight_gradient
        self.bias -= rate * self.bias_gradient


class ReLU:
    """o = max(0, x). The Jacobian is diagonal: 1 where x > 0, and 0 elsewhere."""

    def forward(self, x: Array) -> Array:
        self.on: Array = x > 0
        return x * self.on

    def jacobian(self, x: Array) -> Array:
        return np.diag(np.where(x > 0, 1.0, 0.0))

    def backward(self, g: Array) -> Array:
        return g * self.on

    def update(self, rate: float) -> None:
        """It has no weights."""


class CrossEntropy:
    """p = softmax(o), loss = -log p of the true class, averaged. The derivative by o is p - y."""

    def forward(self, o: Array, labels: Array) -> float:
        shifted = o - o.max(1, keepdims=True)  # softmax stays, and exp does not overflow
        self.p: Array = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
        self.y: Array = np.eye(o.shape[1])[labels]
        return float(-np.log(self.p[self.y == 1]).mean())

    def backward(self) -> Array:
        return (self.p - self.y) / len(self.y)


class Network:
    """Layers one after another, and the loss at the end."""

    def __init__(self, *widths: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.layers: list[Linear | ReLU] = []
        for inputs, outputs in pairwise(widths):
            self.layers += [Linear(inputs, outputs, rng), ReLU()]
        self.layers.pop()  # the last layer's sums go to the softmax as they are
        self.loss = CrossEntropy()

    def outputs(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def forward(self, x: Array, labels: Array) -> float:
        return self.loss.forward(self.outputs(x), labels)

    def backward(self) -> Array:
        g = self.loss.backward()
        for layer in reversed(self.layers):
            g = layer.backward(g)
        return g

    def update(self, rate: float) -> None:
        for layer in self.layers:
            layer.update(rate)

    @property
    def linear(self) -> list[Linear]:
        return [layer for layer in self.layers if isinstance(layer, Linear)]


def train(
    network: Network, x: Array, labels: Array, *, epochs: int, rate: float, batch: int = 32
) -> Iterator[float]:
    """Stochastic gradient descent: the mean loss of each epoch's batches."""
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        losses = []
        for some in np.array_split(rng.permutation(len(x)), max(1, len(x) // batch)):
            losses.append(network.forward(x[some], labels[some]))
            network.backward()
            network.update(rate)
        yield float(np.mean(losses))


def accuracy(network: Network, x: Array, labels: Array) -> float:
    return float((network.outputs(x).argmax(1) == labels).mean())


# ----------------------------------------------------------------------- what it is checked by

WIDTHS = (64, 32, 16, 10)
REACHED = {False: 0.96, True: 0.90}
"""Test accuracy that it must reach; True: at the small size."""


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    data = digits(limit=800 if small else None)
    compared = against_autograd(Network(*WIDTHS, seed=1), data.train[:50], data.train_labels[:50])
    difference = max(float(np.abs(ours - theirs).max()) for ours, theirs in compared.values())
    chained = against_jacobians(Network(*WIDTHS, seed=1), data.train[0], data.train_labels[0])
    drift = against_sgd(data, steps=50)

    network = Network(*WIDTHS)
    losses, right = [], [accuracy(network, data.test, data.test_labels)]
    for loss in train(network, data.train, data.train_labels, epochs=15 if small else 40, rate=0.2):
        losses.append(loss)
        right.append(accuracy(network, data.test, data.test_labels))
    measured = (
        Measured(
            "largest difference between its gradients and autograd's, float64, 50 digits",
            difference,
            "at most 1e-12 (rounding)",
            difference <= 1e-12,
        ),
        Measured(
            "the same, between backward and the product of the Jacobian matrices written out",
            chained,
            "at most 1e-12",
            chained <= 1e-12,
        ),
        Measured(
            "largest difference of any weight to torch.optim.SGD's after 50 updates",
            drift,
            "at most 1e-10 (rounding, 50 times over)",
            drift <= 1e-10,
        ),
        Measured(
            f"accuracy on the {len(data.test)} test digits",
            right[-1],
            f"at least {REACHED[small]}; it began at {right[0]:.2f}",
            right[-1] >= REACHED[small],
        ),
    )
    counts = Table(
        "The largest gradient of each tensor, and how far autograd is from it",
        ("tensor", "largest", "difference"),
        tuple(
            (name, float(np.abs(ours).max()), float(np.abs(ours - theirs).max()))
            for name, (ours, theirs) in compared.items()
        ),
    )
    return Study(
        measured,
        (
            (
                "Left: every derivative against autograd's. Middle: the loss on the training "
                "digits and the errors on the test digits. Right: what it reads, and where it "
                "errs.",
                lambda path: _draw(path, compared, losses, right, network, data),
            ),
        ),
        (counts,),
    )


def against_autograd(network: Network, x: Array, labels: Array) -> dict[str, tuple[Array, Array]]:
    """Each tensor's gradient, ours and autograd's, by the tensor's name."""
    import torch

    network.forward(x, labels)
    by_input = network.backward()
    given = torch.tensor(x, requires_grad=True)
    theirs = [
        torch.tensor(value, requires_grad=True)
        for layer in network.linear
        for value in (layer.weight, layer.bias)
    ]
    o = given
    for k, (weight, bias) in enumerate(zip(theirs[::2], theirs[1::2], strict=True)):
        o = torch.nn.functional.linear(o if k == 0 else torch.relu(o), weight, bias)
    torch.nn.functional.cross_entropy(o, torch.tensor(labels)).backward()  # type: ignore[no-untyped-call]
    found = {}
    for k, layer in enumerate(network.linear):
        for kind, ours, tensor in (
            ("weight", layer.weight_gradient, theirs[2 * k]),
            ("bias", layer.bias_gradient, theirs[2 * k + 1]),
        ):
            assert tensor.grad is not None
            found[f"{kind} of layer {k + 1}"] = (ours, tensor.grad.numpy())
    assert given.grad is not None
    found["input"] = (by_input, given.grad.numpy())
    return found


def against_jacobians(network: Network, x: Array, label: int) -> float:
    """Backward against the chain of matrices, for one sample's derivative by its input."""
    network.forward(x[None], np.array([label]))
    by_input = network.backward()[0]
    matrices, at = [], x
    for layer in network.layers:
        matrices.append(layer.jacobian(at))
        at = layer.forward(at[None])[0]
    product = network.loss.p[0] - network.loss.y[0]
    for matrix in reversed(matrices):
        product = product @ matrix
    return float(np.abs(by_input - product).max())


def against_sgd(data: Digits, steps: int) -> float:
    """The same batches for ours and for PyTorch's modules and optimiser, from equal weights."""
    import torch
    from torch import nn

    ours = Network(*WIDTHS, seed=2)
    theirs = nn.Sequential(
        *(
            nn.ReLU() if isinstance(layer, ReLU) else nn.Linear(*layer.weight.shape[::-1])
            for layer in ours.layers
        )
    ).double()
    modules = [module for module in theirs if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for layer, module in zip(ours.linear, modules, strict=True):
            module.weight.copy_(torch.tensor(layer.weight))
            module.bias.copy_(torch.tensor(layer.bias))
    optimiser = torch.optim.SGD(theirs.parameters(), lr=0.1)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        some = rng.integers(len(data.train), size=32)
        x, labels = data.train[some], data.train_labels[some]
        ours.forward(x, labels)
        ours.backward()
        ours.update(0.1)
        optimiser.zero_grad()
        nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(labels)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return max(
        float(np.abs(layer.weight - module.weight.detach().numpy()).max())
        for layer, module in zip(ours.linear, modules, strict=True)
    )


def _draw(
    path: Path,
    compared: dict[str, tuple[Array, Array]],
    losses: list[float],
    right: list[float],
    network: Network,
    data: Digits,
) -> None:
    with sheet(path, 12, 4, columns=3, title="The toy trainer", ratios=(1, 1.15, 1.15)) as (
        check,
        curve,
        read,
    ):
        for k, (ours, theirs) in enumerate(compared.values()):
            colour = (BLUE, ORANGE, GREEN, RED, GREY)[k % 5]
            check.plot(theirs.ravel(), ours.ravel(), ".", color=colour, markersize=3)
        check.axline((0, 0), slope=1, color=GREY, linewidth=0.8, zorder=0)
        check.set(title="all derivatives", xlabel="PyTorch's autograd", ylabel="the toy trainer")
        check.set_aspect("equal", adjustable="datalim")

        epochs = np.arange(1, len(losses) + 1)
        curve.semilogy(epochs, losses, color=BLUE, label="training loss")
        curve.semilogy(
            np.arange(len(right)),
            np.maximum(1 - np.array(right), 1e-3),
            color=ORANGE,
            label="share of test digits misread",
        )
        curve.set(title=f"learning: {right[-1]:.1%} read right", xlabel="epoch")
        curve.legend()

        said = network.outputs(data.test).argmax(1)
        wrong = np.flatnonzero(said != data.test_labels)[:7]
        fine = np.flatnonzero(said == data.test_labels)[: 42 - len(wrong)]
        for place, i in enumerate(np.concatenate([fine, wrong])):
            top, left = 10 * (place // 7), 12 * (place % 7)
            image = data.test[i].reshape(8, 8)
            read.imshow(image, cmap="gray_r", extent=(left, left + 8, top + 8, top))
            colour = GREEN if said[i] == data.test_labels[i] else RED
            read.text(left + 8.5, top + 8, str(said[i]), color=colour, fontweight="bold")
        read.set(title="what it reads (red: wrong)", xlim=(-1, 84), ylim=(60, -1))
        read.axis("off")
