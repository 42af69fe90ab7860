"""Zero-one loss has no useful gradient; softmax with cross-entropy has p - y.

What counts is the number of errors, but a small change of the weights changes no decision: the
derivative is zero, or there is none. Cross-entropy of softmax has one everywhere, and a simple one:
what was said minus what is true, p - y. Its value is the Kullback-Leibler divergence from target to
prediction plus the target's own entropy; that is a constant, so that to minimise the one is to
minimise the other. With two classes, softmax is the sigmoid of the difference of the two outputs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit, rel_entr, softmax
from scipy.stats import entropy
from torch import Tensor

from vidi.studies import Measured, Study
from vidi.studies._digits import digits
from vidi.studies._sheet import BLUE, GREEN, GREY, ORANGE, RED, sheet
from vidi.types import Array

CLAIM = 3
EPSILON = 1e-6
"""By how much a weight is changed."""


def cross_entropy(o: Array, y: Array) -> Array:
    """Of outputs and targets (probabilities), both [n, classes]: one value a row."""
    high = o.max(-1, keepdims=True)
    log_p = o - high - np.log(np.exp(o - high).sum(-1, keepdims=True))
    return -np.asarray((y * log_p).sum(-1))


def gradient(o: Array, y: Array) -> Array:
    """∂L/∂o."""
    e = np.exp(o - o.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True) - y)


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    rng = np.random.default_rng(0)
    n = 50 if small else 500
    o = rng.normal(0, 3, (n, 10))
    targets = {
        "one class": np.eye(10)[rng.integers(10, size=n)],
        "probabilities": rng.dirichlet(np.ones(10), n),
    }
    measured = [*without_gradient(200 if small else 1000)]
    for kind, y in targets.items():
        ours = gradient(o, y)
        auto = float(np.abs(ours - by_autograd(o, y)).max())
        finite = float(np.abs(ours - by_differences(o, y)).max())
        measured += [
            Measured(
                f"largest difference of p - y to autograd (target: {kind})",
                auto,
                "at most 1e-12",
                auto <= 1e-12,
            ),
            Measured(
                f"largest difference of p - y to finite differences (target: {kind})",
                finite,
                "at most 1e-7 (central, of 1e-6)",
                finite <= 1e-7,
            ),
        ]
    y = 0.9 * rng.dirichlet(np.full(10, 0.3)) + 0.01
    history = minimise(y, 2000)
    gap = np.array([h - k for h, k in history])
    off = float(np.abs(gap - entropy(y)).max())
    measured += [
        Measured(
            "cross-entropy minus KL divergence (SciPy's), at every step of a descent: its largest "
            "difference to the target's entropy",
            off,
            "at most 1e-12: the two fall together",
            off <= 1e-12,
        ),
        Measured(
            "KL divergence at the end of the descent",
            history[-1][1],
            f"at most 1e-6; it began at {history[0][1]:.2f}",
            history[-1][1] <= 1e-6,
        ),
    ]
    measured += two_classes(rng.normal(0, 5, n), rng.integers(2, size=n))
    return Study(
        tuple(measured),
        (
            (
                "Left: one output moves past the others' 0; the errors know only right and wrong. "
                "Middle: the gradient is the difference of two bars. Right: both fall by the same "
                "amount.",
                lambda path: _draw(path, history, float(entropy(y))),
            ),
        ),
    )


def without_gradient(images: int) -> list[Measured]:
    """A linear classifier of the digits: which weights, changed a little, change which loss?"""
    data = digits(limit=images)
    y = np.eye(10)[data.train_labels]
    weight = np.random.default_rng(1).normal(0, 0.1, (10, 64))
    lit = data.train.max(0) > 0  # a pixel that is black in all images has no say
    errors, moved, changed, counted = _errors(weight, data.train, y), 0, 0, 0
    loss = float(cross_entropy(data.train @ weight.T, y).mean())
    for index in np.ndindex(*weight.shape):
        if not lit[index[1]]:
            continue
        counted += 1
        other = weight.copy()
        other[index] += EPSILON
        moved += _errors(other, data.train, y) != errors
        changed += float(cross_entropy(data.train @ other.T, y).mean()) != loss
    return [
        Measured(
            f"share of {counted} weights that change the number of errors when changed by 1e-6",
            moved / counted,
            "at most 0.01: nearly all derivatives are zero",
            moved <= 0.01 * counted,
        ),
        Measured(
            "share of them that change the cross-entropy",
            changed / counted,
            "all (at least 0.99)",
            changed >= 0.99 * counted,
        ),
    ]


def _errors(weight: Array, x: Array, y: Array) -> int:
    return int(((x @ weight.T).argmax(1) != y.argmax(1)).sum())


def by_autograd(o: Array, y: Array) -> Array:
    given = torch.tensor(o, requires_grad=True)
    loss: Tensor = F.cross_entropy(given, torch.tensor(y), reduction="sum")
    (found,) = torch.autograd.grad(loss, given)
    return np.asarray(found)


def by_differences(o: Array, y: Array) -> Array:
    found = np.empty_like(o)
    for k in range(o.shape[1]):
        step = EPSILON * np.eye(o.shape[1])[k]
        found[:, k] = (cross_entropy(o + step, y) - cross_entropy(o - step, y)) / (2 * EPSILON)
    return found


def minimise(y: Array, steps: int) -> list[tuple[float, float]]:
    """(cross-entropy, KL) on the way down from equal outputs, one target."""
    o, history = np.zeros_like(y), []
    for _ in range(steps):
        # SciPy's KL, from its own softmax: not computed from the cross-entropy.
        history.append((float(cross_entropy(o, y)), float(rel_entr(y, softmax(o)).sum())))
        o = o - 2.0 * gradient(o, y)
    return history


def two_classes(o: Array, y: Array) -> list[Measured]:
    """Softmax of (0, o) against the sigmoid of o; labels y 0 or 1."""
    both = np.stack([np.zeros_like(o), o], -1)
    p = softmax(both, axis=-1)[:, 1]
    ours = gradient(both, np.eye(2)[y])[:, 1]
    theirs = F.binary_cross_entropy_with_logits(
        torch.tensor(o), torch.tensor(y, dtype=torch.float64), reduction="none"
    ).numpy()
    off = float(np.abs(p - expit(o)).max())
    slope = float(np.abs(ours - (expit(o) - y)).max())
    loss = float(np.abs(cross_entropy(both, np.eye(2)[y]) - theirs).max())
    return [
        Measured(
            "two classes: largest difference of softmax to sigmoid",
            off,
            "at most 1e-12",
            off <= 1e-12,
        ),
        Measured(
            "two classes: largest difference of the gradient to sigmoid(o) - y",
            slope,
            "at most 1e-12",
            slope <= 1e-12,
        ),
        Measured(
            "two classes: largest difference of the loss to PyTorch's binary cross-entropy",
            loss,
            "at most 1e-12",
            loss <= 1e-12,
        ),
    ]


def _draw(path: Path, history: list[tuple[float, float]], own: float) -> None:
    with sheet(path, 12, 4, columns=3, title="Softmax and cross-entropy") as (losses, bars, fall):
        line = np.linspace(-4, 4, 401)
        both = np.stack([line, np.zeros_like(line)], -1)
        y = np.broadcast_to([1.0, 0.0], both.shape)
        losses.plot(line, cross_entropy(both, y), color=BLUE, label="cross-entropy")
        losses.plot(line, gradient(both, y)[:, 0], "--", color=BLUE, label="its derivative, p - y")
        losses.plot(line, np.where(line < 0, 1.0, 0.0), color=RED, label="zero-one loss")
        losses.plot(line, np.zeros_like(line), "--", color=RED, label="its derivative")
        losses.set(title="two losses", xlabel="output of the true class, minus the other's")
        losses.legend(loc="upper right")

        o = np.array([0.5, 2.2, -0.4, 1.1, 0.0])
        y = np.eye(5)[3]
        place = np.arange(5)
        bars.bar(place - 0.27, softmax(o), 0.25, color=BLUE, label="p: what was said")
        bars.bar(place, y, 0.25, color=GREEN, label="y: what is true")
        bars.bar(place + 0.27, gradient(o, y), 0.25, color=ORANGE, label="p - y: the gradient")
        bars.axhline(0, color=GREY, linewidth=0.8)
        bars.set(title="the gradient by the outputs", xlabel="class", ylim=(-1, 1.75))
        bars.legend(loc="upper left")

        steps = np.arange(len(history)) + 1
        fall.semilogx(steps, [h for h, _ in history], color=BLUE, label="cross-entropy")
        fall.semilogx(steps, [k for _, k in history], color=ORANGE, label="KL divergence")
        fall.axhline(own, color=GREY, linestyle=":", label="entropy of the target")
        fall.set(title="they fall together", xlabel="step", ylim=(-0.1, None))
        fall.legend(loc="upper right")
