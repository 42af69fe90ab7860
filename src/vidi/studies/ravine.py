"""Too large a rate plays ping-pong across a ravine, a small one is slow, and noise does not hurt.

A ravine is steep across (curvature L) and flat along (curvature μ). The rate must suit the steep
direction: above 2/L each step jumps farther up the other wall, and it diverges; a little below, it
jumps from wall to wall and gets along all the same; far below, nothing jumps and nothing moves
along. At best, with a rate of 2/(L + μ), each step leaves (L - μ)/(L + μ) of the error. Where it is
flat in all directions the gradient is next to nothing, and descent stalls though it is far from
the end.

Stochastic gradient descent sees a few samples at a time. Many of its steps raise the loss of the
whole set, and it converges nevertheless, if its rate falls.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from vidi.studies import Measured, Study, Table
from vidi.studies._digits import Digits, digits
from vidi.studies._sheet import BLUE, GREEN, GREY, ORANGE, RED, sheet
from vidi.studies.cross_entropy import cross_entropy, gradient
from vidi.types import Array

CLAIM = 7
STEEP, FLAT = 20.0, 1.0
"""Curvature across the ravine (y) and along it (x)."""
START = (-10.0, 1.5)
RATES = {
    "diverges": 2.02 / STEEP,
    "ping-pong": 1.95 / STEEP,
    "best": 2 / (STEEP + FLAT),
    "small": 0.1 / STEEP,
}
DECAY = 0.01
"""λ of the softmax regression's penalty λ/2 |W|², which makes its optimum unique."""


def ravine(at: Array) -> Array:
    """½(μx² + Ly²)."""
    return np.asarray((FLAT * at[..., 0] ** 2 + STEEP * at[..., 1] ** 2) / 2)


def descend(rate: float, steps: int) -> Array:
    path = [np.array(START)]
    for _ in range(steps):
        path.append(path[-1] - rate * np.array([FLAT, STEEP]) * path[-1])
    return np.stack(path)


def plateau(x: Array | float) -> Array:
    """A pit in a plain: 1 - exp(-x²/2)."""
    return np.asarray(1 - np.exp(-np.square(x) / 2))


def on_the_plain(start: float, rate: float = 0.5, most: int = 200_000) -> int:
    """Steps until |x| is at most 0.01; ``most`` if it takes longer."""
    x = start
    for step in range(most):
        if abs(x) <= 0.01:
            return step
        x -= rate * x * float(np.exp(-x * x / 2))
    return most


class Noisy(NamedTuple):
    losses: Array
    """Of the whole set, at first and after each step."""
    optimum: float


def softmax_regression(data: Digits, epochs: int, batch: int = 32) -> Noisy:
    """SGD with a falling rate on a convex loss, and the optimum that SciPy's L-BFGS finds."""
    y = np.eye(10)[data.train_labels]
    x = np.column_stack([data.train, np.ones(len(data.train))])

    def slope(weight: Array, some: Array) -> Array:
        return (
            np.asarray(gradient(x[some] @ weight, y[some]).T @ x[some] / len(some)).T
            + DECAY * weight
        )

    def loss(weight: Array) -> float:
        return float(cross_entropy(x @ weight, y).mean()) + DECAY / 2 * float((weight**2).sum())

    everything = np.arange(len(x))
    found = minimize(
        lambda flat: loss(flat.reshape(65, 10)),
        np.zeros(650),
        jac=lambda flat: slope(flat.reshape(65, 10), everything).ravel(),
        method="L-BFGS-B",
        options={"maxiter": 10_000, "ftol": 1e-14, "gtol": 1e-9},
    )
    rng = np.random.default_rng(0)
    weight, step = np.zeros((65, 10)), 0
    losses = [loss(weight)]
    for _ in range(epochs):
        for some in np.array_split(rng.permutation(len(x)), len(x) // batch):
            weight = weight - 0.5 / (1 + step / 50) * slope(weight, some)
            losses.append(loss(weight))
            step += 1
    return Noisy(np.array(losses), float(found.fun))


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    paths = {name: descend(rate, 2000) for name, rate in RATES.items()}
    distances = {name: np.linalg.norm(path, axis=1) for name, path in paths.items()}
    needed = {name: steps_to(distance) for name, distance in distances.items()}
    across = np.sign(paths["ping-pong"][:50, 1])
    jumps = float((across[1:] != across[:-1]).mean())
    best = distances["best"]
    factor = float((best[100] / best[50]) ** (1 / 50))
    theory = (STEEP - FLAT) / (STEEP + FLAT)
    noisy = softmax_regression(digits(), epochs=12 if small else 30)
    rising = float((np.diff(noisy.losses) > 0).mean())
    excess = float(noisy.losses[-1]) - noisy.optimum
    first = float(noisy.losses[0]) - noisy.optimum
    near, far = on_the_plain(2.0), on_the_plain(4.5)
    measured = (
        Measured(
            "rate 2.02/L: distance to the optimum after 500 steps, as a multiple of the start's",
            float(distances["diverges"][500] / distances["diverges"][0]),
            "above 1: it diverges",
            distances["diverges"][500] > distances["diverges"][0],
        ),
        Measured(
            "rate 1.95/L: share of its first steps that jump to the other wall",
            jumps,
            "all of them",
            jumps == 1,
        ),
        Measured(
            "rate 1.95/L: steps until within 0.001 of the start's distance",
            needed["ping-pong"],
            f"more than the best rate's {needed['best']}, and it does arrive (within 2,000)",
            needed["best"] < needed["ping-pong"] < 2000,
        ),
        Measured(
            "rate 2/(L + μ): what a step leaves of the error",
            factor,
            f"(L - μ)/(L + μ) = {theory:.4f}, within 0.001",
            abs(factor - theory) <= 1e-3,
        ),
        Measured(
            "rate 0.1/L: steps needed",
            needed["small"],
            f"at least 5 times the best rate's {needed['best']}",
            needed["small"] >= 5 * needed["best"],
        ),
        Measured(
            "flat region: steps to the pit from 4.5, as a multiple of those from 2",
            far / near,
            "at least 100, for little more than twice the way",
            far >= 100 * near,
        ),
        Measured(
            "SGD on the digits: share of steps that raise the loss of the whole set",
            rising,
            "at least 0.1",
            rising >= 0.1,
        ),
        Measured(
            "SGD on the digits: the loss's excess at the end over the optimum (L-BFGS), as a "
            "share of the first",
            excess / first,
            "at most 0.01: it converges",
            0 <= excess <= 0.01 * first,
        ),
    )
    table = Table(
        f"The ravine: L = {STEEP:g}, μ = {FLAT:g}",
        ("rate", "times L", "steps to a thousandth", "a step leaves (theory)"),
        tuple(
            (
                name,
                rate * STEEP,
                needed[name] if needed[name] < 2000 else "never",
                max(abs(1 - rate * STEEP), abs(1 - rate * FLAT)),
            )
            for name, rate in RATES.items()
        ),
    )
    return Study(
        measured,
        (
            (
                "Above: 25 steps down the ravine at three rates. Below: how the distance "
                "falls; a plain, where there is a dot every 20 steps; and SGD, whose loss goes up "
                "and down on its way.",
                lambda path: _draw(path, paths, distances, noisy),
            ),
        ),
        (table,),
    )


def steps_to(distance: Array) -> int:
    """Steps until the distance is, for good, a thousandth of the first; all of them if never."""
    above = np.flatnonzero(distance > 1e-3 * distance[0])
    return int(above[-1]) + 1 if len(above) else 0


COLOURS = {"diverges": RED, "ping-pong": ORANGE, "best": GREEN, "small": BLUE}


def _draw(path: Path, paths: dict[str, Array], distances: dict[str, Array], noisy: Noisy) -> None:
    with sheet(path, 12, 7, rows=2, columns=3, title="Down a ravine") as panels:
        x, y = np.meshgrid(np.linspace(-11, 5, 200), np.linspace(-2.2, 2.2, 200))
        values = ravine(np.stack([x, y], -1))
        shown = ("ping-pong", "best", "small")
        titles = ("too large: ping-pong", "the best one rate can do", "small: slow")
        for axes, name, title in zip(panels[:3], shown, titles, strict=True):
            axes.contour(x, y, values, np.geomspace(0.2, 120, 12), colors=GREY, linewidths=0.5)
            way = paths[name][:26]
            axes.plot(*way.T, "o-", color=COLOURS[name], markersize=3, linewidth=1)
            axes.plot(0, 0, "*", color="black", markersize=13, zorder=5)
            axes.set(
                title=f"{title} ({RATES[name] * STEEP:.3g}/L)", xlabel="x: flat", xlim=(-11, 5)
            )
            axes.grid(False)
        panels[0].set_ylabel("y: steep")

        fall, plain, noise = panels[3:]
        for name, distance in distances.items():
            fall.semilogy(
                distance[:300] / distance[0],
                color=COLOURS[name],
                label=f"{name}: {RATES[name] * STEEP:.3g}/L",
            )
        fall.set(
            title="distance to the optimum", xlabel="step", ylabel="of the first", ylim=(1e-6, 1e5)
        )
        fall.legend(loc="upper left", ncol=2)

        line = np.linspace(-5.5, 5.5, 400)
        plain.plot(line, plateau(line), color=GREY)
        for start, colour in ((-4.2, RED), (1.7, GREEN)):
            at, dots = start, []
            for step in range(1000):
                if step % 20 == 0:
                    dots.append(at)
                at -= 0.5 * at * float(np.exp(-at * at / 2))
            plain.plot(dots, plateau(np.array(dots)), "o", color=colour, markersize=5)
            arrived = on_the_plain(start)
            plain.text(
                start - (0.9 if start < 0 else 0.2),
                float(plateau(start)) + (0.06 if start < 0 else -0.07),
                f"  from {start:g}: {arrived:,} steps",
                color=colour,
            )
        plain.set(
            title="a plain with a pit: it stalls", xlabel="x", ylabel="loss", ylim=(-0.05, 1.3)
        )

        noise.loglog(
            np.arange(1, len(noisy.losses) + 1), noisy.losses - noisy.optimum, color=BLUE, lw=0.9
        )
        noise.set(
            title="SGD on digits: up and down, and down",
            xlabel="step",
            ylabel="loss above the optimum",
        )
        # A closer look; the steps that raise it are red.
        closer = noise.inset_axes((0.07, 0.07, 0.5, 0.42))
        some = np.arange(200, 240)
        above = noisy.losses[200:240] - noisy.optimum
        closer.plot(some, above, color=BLUE, linewidth=1)
        for k in np.flatnonzero(np.diff(above) > 0):
            closer.plot(some[k : k + 2], above[k : k + 2], color=RED, linewidth=1.5)
        closer.set_title("from step 200 to 240; red: it rises", fontsize=8, fontweight="normal")
        closer.set(xticks=[], yticks=[])
