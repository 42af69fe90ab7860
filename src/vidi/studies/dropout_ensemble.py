"""Five nets from random starts, voting, beat one; dropout comes near, and costs one.

Networks that begin at different random starts make different mistakes, so that most of five are
right more often than one of them; so is the one that the mean of their probabilities names. That
takes five times the work, in training and after it. Dropout leaves out each hidden unit with
probability a half in training, another choice for each image: one of 2ⁿ networks that share their
weights. At test time all units are there and the weights behind them are halved, which is about
the average of all these networks, for the price of one (Hinton et al. 2012).

About: of one layer with a softmax the halved weights are exactly the normalised geometric mean of
all 2ⁿ networks; of more layers they are near the mean over random masks. Today's way (inverted
dropout) doubles what is kept in training and does nothing at test time: with half the weights it is
the same network, in training as after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidi.studies import Measured, Study, Table
from vidi.studies._digits import digits
from vidi.studies._sheet import BLUE, GREEN, GREY, ORANGE, RED, sheet
from vidi.types import Array

CLAIM = 11
FIVE = 5
IMAGES = 100
"""So few are learned from that networks differ; all other digits are the test."""
BATCH = 50
RATE = 0.05
KEPT = 0.5

Weights = list[Tensor]
"""Of N networks at once: for each layer the weights [N, inputs, outputs] and biases [N, 1,
outputs]."""


@dataclass(frozen=True)
class Data:
    """Pixels [n, 64] and labels [n], to learn from and to test on."""

    x: Tensor
    y: Tensor
    test: Tensor
    labels: Tensor


def load() -> Data:
    held = digits()
    x, y = torch.tensor(held.train).float(), torch.tensor(held.train_labels)
    test, labels = torch.tensor(held.test).float(), torch.tensor(held.test_labels)
    rest, of_rest = x[IMAGES:], y[IMAGES:]
    return Data(x[:IMAGES], y[:IMAGES], torch.cat((test, rest)), torch.cat((labels, of_rest)))


def start(nets: int, widths: Sequence[int], seed: int) -> Weights:
    """Random starts (He et al. 2015)."""
    drawn = torch.Generator().manual_seed(seed)
    out = []
    for inputs, outputs in itertools.pairwise(widths):
        out.append(torch.randn(nets, inputs, outputs, generator=drawn) * (2 / inputs) ** 0.5)
        out.append(torch.zeros(nets, 1, outputs))
    return [part.requires_grad_() for part in out]


def forward(
    weights: Weights, x: Tensor, masks: Sequence[Tensor] = (), *, scale: float = 1.0
) -> Tensor:
    """Logits [N, n, 10]. ``masks``: for each hidden layer which units are there, [N, n, width];
    ``scale``: what is multiplied onto the weights behind them."""
    layers = len(weights) // 2
    for k in range(layers):
        weight, bias = weights[2 * k], weights[2 * k + 1]
        if k and masks:
            x = x * masks[k - 1]
        x = x @ (weight * scale if k else weight) + bias
        if k < layers - 1:
            x = x.relu()
    return x


def coins(shape: tuple[int, int], widths: Sequence[int], drawn: torch.Generator) -> list[Tensor]:
    """Masks of zeros and ones for the hidden layers."""
    return [(torch.rand(*shape, w, generator=drawn) < KEPT).float() for w in widths[1:-1]]


def train(
    data: Data, nets: int, widths: Sequence[int], steps: int, seed: int, *, dropout: bool
) -> Weights:
    """``nets`` networks, each with its own start, batches and masks."""
    weights = start(nets, widths, seed)
    drawn = torch.Generator().manual_seed(seed + 1)
    optimiser = torch.optim.SGD(weights, lr=RATE, momentum=0.9)
    for step in range(steps):
        rows = torch.randint(len(data.x), (nets, BATCH), generator=drawn)
        masks = coins((nets, BATCH), widths, drawn) if dropout else ()
        logits = forward(weights, data.x[rows], masks)
        # The sum over the networks: each has its own gradient.
        loss = F.cross_entropy(logits.flatten(0, 1), data.y[rows].flatten(), reduction="sum")
        optimiser.zero_grad()
        (loss / BATCH).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
    return [part.detach() for part in weights]


def voted(p: Tensor) -> Tensor:
    """What most of [M, n, K] say, int64 [n]; between equals the mean decides."""
    votes = F.one_hot(p.argmax(2), p.shape[2]).sum(0)
    return (votes + p.mean(0)).argmax(1)


def errors(said: Tensor, labels: Tensor) -> Array:
    """The share that is wrong, for each network [N] of what they say [N, n]."""
    return np.asarray((said != labels).double().mean(-1))


def entropy(p: Tensor, labels: Tensor) -> Array:
    """Mean cross-entropy [N] of probabilities [N, n, K]."""
    return np.asarray(-p[:, torch.arange(len(labels)), labels].log().double().mean(1))


def all_masks(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=torch.float64)


def one_layer(units: int) -> tuple[float, float]:
    """Largest difference of the halved weights, in a softmax behind ``units`` units, to the
    geometric mean of all 2ⁿ networks, and to their arithmetic mean."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(units, generator=drawn, dtype=torch.float64) * 2
    weight = torch.randn(units, 10, generator=drawn, dtype=torch.float64) / units**0.5
    log_p = ((all_masks(units) * x) @ weight).log_softmax(1)
    halved = (x @ (weight / 2)).softmax(0)
    geometric, arithmetic = log_p.mean(0).softmax(0), log_p.exp().mean(0)
    return float((geometric - halved).abs().max()), float((arithmetic - halved).abs().max())


def inverted(weights: Weights, x: Tensor, masks: Sequence[Tensor]) -> float:
    """Largest difference, in training and after it, between the lecture's network and the inverted
    one with half the weights."""
    exact = [part.double() for part in weights]
    half = [part / 2 if k and k % 2 == 0 else part for k, part in enumerate(exact)]
    x, masks = x.double(), [mask.double() for mask in masks]
    doubled = [mask / KEPT for mask in masks]
    in_training = forward(exact, x, masks) - forward(half, x, doubled)
    after = forward(exact, x, scale=KEPT) - forward(half, x)
    return float(max(in_training.abs().max(), after.abs().max()))


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    nets, repeats = (10, 30) if small else (20, 200)
    widths = (64, 96, 96, 10) if small else (64, 128, 128, 10)
    steps = 400 if small else 600
    data = load()
    one = forward(train(data, nets, widths, steps, 0, dropout=False), data.test).softmax(2)
    dropped = train(data, FIVE, widths, steps, 100, dropout=True)
    scaled = forward(dropped, data.test, scale=KEPT).softmax(2)
    drawn = torch.Generator().manual_seed(1)
    passes, distances, mean = [], [], torch.zeros_like(scaled)
    for k in range(1, repeats + 1):
        masks = coins((FIVE, len(data.test)), widths, drawn)
        mean += (forward(dropped, data.test, masks).softmax(2) - mean) / k
        passes.append(k)
        distances.append(float((mean - scaled).abs().sum(2).mean() / 2))

    # Groups of five that share no network would be few: drawn, each group differs.
    rng = np.random.default_rng(0)
    groups = [rng.choice(nets, FIVE, replace=False) for _ in range(200)]
    vote = np.array([errors(voted(one[g])[None], data.labels)[0] for g in groups])
    average = torch.stack([one[g].mean(0) for g in groups])
    alone = errors(one.argmax(2), data.labels)
    by_group = np.array([alone[g].mean() for g in groups])
    found = {
        "one network": (alone, entropy(one, data.labels), 1.0),
        "five, voting": (vote, np.array([np.nan]), 5.0),
        "five, averaged": (
            errors(average.argmax(2), data.labels),
            entropy(average, data.labels),
            5.0,
        ),
        "dropout, weights halved": (
            errors(scaled.argmax(2), data.labels),
            entropy(scaled, data.labels),
            1.0,
        ),
        f"dropout, mean of {repeats} masks": (
            errors(mean.argmax(2), data.labels),
            entropy(mean, data.labels),
            float(repeats),
        ),
    }
    error = {name: float(e.mean()) for name, (e, _, _) in found.items()}
    loss = {name: float(h.mean()) for name, (_, h, _) in found.items()}
    beaten = float((vote < by_group).mean())
    closed = (loss["one network"] - loss["dropout, weights halved"]) / (
        loss["one network"] - loss["five, averaged"]
    )
    agree = float((mean.argmax(2) == scaled.argmax(2)).double().mean())
    geometric, arithmetic = one_layer(12)
    same = inverted(dropped, data.test[:64], coins((FIVE, 64), widths, drawn))
    gain = error["five, voting"] / error["one network"]
    measured = (
        Measured(
            "error of five, voting, as a share of the error of one (mean of 200 groups)",
            gain,
            "at most 0.97",
            gain <= 0.97,
        ),
        Measured(
            "share of the groups whose vote beats the mean of their members",
            beaten,
            "at least 0.9",
            beaten >= 0.9,
        ),
        Measured(
            "error of dropout with halved weights, as a share of the error of one",
            error["dropout, weights halved"] / error["one network"],
            "below 1",
            error["dropout, weights halved"] < error["one network"],
        ),
        Measured(
            "of what five, averaged, gain in cross-entropy, dropout's one network gains",
            closed,
            "at least half",
            closed >= 0.5,
        ),
        Measured(
            "the class of the halved weights is that of the mean over masks, share of images",
            agree,
            "at least 0.95",
            agree >= 0.95,
        ),
        Measured(
            "one layer: halved weights to the geometric mean of all 4,096 networks, difference",
            geometric,
            "at most 1e-12",
            geometric <= 1e-12,
        ),
        Measured(
            "halved weights to inverted dropout with half the weights, largest difference",
            same,
            "at most 1e-12",
            same <= 1e-12,
        ),
    )
    rows = tuple(
        (name, float(e.mean()), float(h.mean()) if np.isfinite(h).all() else "–", cost)
        for name, (e, h, cost) in found.items()
    )
    table = Table(
        f"{IMAGES} images to learn from, {len(data.test):,} to test on",
        ("", "error", "cross-entropy", "forward passes an image"),
        rows,
    )
    return Study(
        measured,
        (
            (
                "Left: each dot is a network, or a group of five; the line is the mean. Right: the "
                "mean over random masks, as more of them are drawn, and its distance to the halved "
                "weights.",
                lambda path: _draw(path, found, passes, distances),
            ),
        ),
        (table,),
        (
            f"The arithmetic mean of the 4,096 networks is another: off by up to {arithmetic:.3f}.",
            "Halved weights are like a geometric mean, which is surer than the mean over masks: "
            f"their probabilities stay {distances[-1]:.2f} apart (half the sum of the differences) "
            "however many masks are drawn, while the class is nearly always the same.",
        ),
    )


def _draw(
    path: Path,
    found: dict[str, tuple[Array, Array, float]],
    passes: list[int],
    distances: list[float],
) -> None:
    colours = (GREY, BLUE, GREEN, RED, ORANGE)
    with sheet(path, 11, 4.2, columns=2, title="Five networks, or one with dropout",
               ratios=(1.7, 1)) as (dots, far):  # fmt: skip
        rng = np.random.default_rng(0)
        for k, (name, colour) in enumerate(zip(found, colours, strict=True)):
            error = found[name][0]
            across = k + rng.uniform(-0.22, 0.22, len(error))
            dots.plot(across, 100 * error, "o", color=colour, markersize=4, alpha=0.45)
            mean = 100 * float(error.mean())
            dots.plot([k - 0.35, k + 0.35], [mean, mean], color=colour, linewidth=2.5)
            dots.annotate(f"{mean:.1f} %", (k + 0.36, mean), fontsize=8, color=colour, va="center")
        costs = [
            f"{name.replace(', ', chr(10))}\n{cost:g} pass{'' if cost == 1 else 'es'}"
            for name, (_, _, cost) in found.items()
        ]
        dots.set_xticks(range(len(found)), costs, fontsize=8)
        dots.set(ylabel="error on digits not learned from, %", xlim=(-0.6, len(found) - 0.2))
        far.semilogx(passes, distances, color=ORANGE, linewidth=2)
        far.set_ylim(bottom=0)
        far.set(
            title="mean over masks, to halved weights",
            xlabel="masks in the mean",
            ylabel="difference of the probabilities",
        )
