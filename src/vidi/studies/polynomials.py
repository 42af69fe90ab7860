"""A 9th-order polynomial overfits what a line fits; a penalty λΣw² repairs it.

Twelve points lie on a line, with noise. A polynomial of order 9 comes nearer to them than a line
does, by following the noise, and is far off between them. With a penalty on its weights it comes
close to the line again, though it keeps all ten of them:

    w = (AᵀA + λI)⁻¹Aᵀb

λ is chosen on points held out; the error is then measured on others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.linear_model import Ridge

from vidi.studies import Measured, Study, Table
from vidi.studies._sheet import BLUE, GREEN, GREY, ORANGE, RED, sheet
from vidi.types import Array

CLAIM = 9
POINTS, NOISE = 12, 0.3
LAMBDAS = np.geomspace(1e-8, 1e3, 45)


def line(t: Array) -> Array:
    return np.asarray(0.5 + t)


def features(t: Array, order: int) -> Array:
    """1, t, t² …"""
    return np.vander(t, order + 1, increasing=True)


def fit(t: Array, b: Array, order: int, penalty: float = 0.0) -> Array:
    """The weights; the constant's is penalised like the others."""
    a = features(t, order)
    if penalty == 0:
        # What the closed form says, without squaring A's condition number.
        plain: Array = np.linalg.lstsq(a, b)[0]
        return plain
    return np.linalg.solve(a.T @ a + penalty * np.eye(order + 1), a.T @ b)


def error(weights: Array, t: Array, b: Array) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean((features(t, len(weights) - 1) @ weights - b) ** 2)))


def draw_points(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    t = rng.uniform(-1, 1, n)
    return t, line(t) + rng.normal(0, NOISE, n)


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    rng = np.random.default_rng(1)
    rounds = 30 if small else 300
    kinds = ("order 1", "order 9", "order 9, penalty")
    training: dict[str, list[float]] = {kind: [] for kind in kinds}
    held_out: dict[str, list[float]] = {kind: [] for kind in kinds}
    sizes: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        t, b = draw_points(rng, POINTS)
        chosen = choose(t, b, *draw_points(rng, 200))
        other = draw_points(rng, 1000)
        for kind, weights in zip(
            kinds, (fit(t, b, 1), fit(t, b, 9), fit(t, b, 9, chosen)), strict=True
        ):
            training[kind].append(error(weights, t, b))
            held_out[kind].append(error(weights, *other))
            sizes[kind].append(float((weights**2).sum()))
    lower = float(np.mean(np.array(training["order 9"]) < training["order 1"]))
    middle = {kind: float(np.median(values)) for kind, values in held_out.items()}

    t, b = draw_points(rng, POINTS)
    off_line = float(np.abs(fit(t, b, 1) - np.polynomial.polynomial.polyfit(t, b, 1)).max())
    off_ridge = max(
        float(np.abs(fit(t, b, 9, penalty) - ridge(t, b, 9, penalty)).max())
        for penalty in (1e-3, 0.1, 10.0)
    )
    measured = (
        Measured(
            "order 1: largest difference of a weight to NumPy's polyfit",
            off_line,
            "at most 1e-10",
            off_line <= 1e-10,
        ),
        Measured(
            "order 9 with penalty: the same to scikit-learn's Ridge, for three λ",
            off_ridge,
            "at most 1e-8",
            off_ridge <= 1e-8,
        ),
        Measured(
            f"share of {rounds} draws in which order 9 is nearer to its training points",
            lower,
            "all of them",
            lower == 1,
        ),
        Measured(
            "held-out error of order 9, as a multiple of the line's (median over the draws)",
            middle["order 9"] / middle["order 1"],
            "at least 3: it overfits",
            middle["order 9"] >= 3 * middle["order 1"],
        ),
        Measured(
            "the same with the penalty",
            middle["order 9, penalty"] / middle["order 1"],
            "at most 1.2: it is repaired",
            middle["order 9, penalty"] <= 1.2 * middle["order 1"],
        ),
    )
    table = Table(
        f"Medians over {rounds} draws of {POINTS} points; the noise is {NOISE}",
        ("polynomial", "training error", "held-out error", "Σw²"),
        tuple(
            (
                kind,
                float(np.median(training[kind])),
                middle[kind],
                float(np.median(sizes[kind])),
            )
            for kind in kinds
        ),
    )
    return Study(
        measured,
        (
            (
                "One draw: a line, an order of 9, and the same with a penalty, through the same "
                "points. Right: the held-out error against λ.",
                _draw,
            ),
        ),
        (table,),
    )


def choose(t: Array, b: Array, held: Array, its: Array) -> float:
    """The λ with the least error on points held out."""
    return float(min(LAMBDAS, key=lambda penalty: error(fit(t, b, 9, penalty), held, its)))


def ridge(t: Array, b: Array, order: int, penalty: float) -> Array:
    found = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(features(t, order), b)
    weights: Array = found.coef_
    return weights


def _draw(path: Path) -> None:
    rng = np.random.default_rng(12)
    t, b = draw_points(rng, POINTS)
    held, its = draw_points(rng, 1000)
    chosen = choose(t, b, held, its)
    with sheet(path, 12, 3.8, columns=4, title="Order 9 where a line is enough") as panels:
        at = np.linspace(-1.05, 1.05, 400)
        for axes, (name, weights, colour) in zip(
            panels,
            (
                ("order 1", fit(t, b, 1), GREEN),
                ("order 9", fit(t, b, 9), RED),
                (f"order 9, λ = {chosen:.2g}", fit(t, b, 9, chosen), BLUE),
            ),
            strict=False,
        ):
            axes.plot(at, line(at), "--", color=GREY, linewidth=1, label="without noise")
            axes.plot(at, features(at, len(weights) - 1) @ weights, color=colour, linewidth=2)
            axes.plot(t, b, "o", color="black", markersize=4.5, label="training points")
            axes.set(
                title=name,
                xlabel=f"error: {error(weights, t, b):.2f} here, "
                f"{error(weights, held, its):.2f} on others",
                xlim=(-1.1, 1.1),
                ylim=(-1.6, 3),
            )
        panels[0].legend(loc="upper left")
        last = panels[3]
        fits = [fit(t, b, 9, penalty) for penalty in LAMBDAS]
        last.loglog(LAMBDAS, [error(w, t, b) for w in fits], color=ORANGE, label="training")
        last.loglog(LAMBDAS, [error(w, held, its) for w in fits], color=BLUE, label="held out")
        last.axhline(
            error(fit(t, b, 1), held, its), color=GREEN, linestyle="--", label="the line, held out"
        )
        last.set(title="error of order 9 against λ", xlabel="λ", ylim=(0.2, 1.4))
        last.set_yticks([0.2, 0.3, 0.5, 1.0], ["0.2", "0.3", "0.5", "1"])
        last.minorticks_off()
        last.legend(loc="upper center")
