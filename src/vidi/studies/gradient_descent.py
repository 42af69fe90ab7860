"""Gradient descent finds a convex function's optimum, and otherwise a local one.

Step downhill, against the gradient, until nothing moves any more. Where the function is convex
there is one valley and every start ends in it. Where it is not, the start decides in which valley
one ends, and nothing tells that there is a deeper one. It stops wherever the gradient is zero: on
the very top of a hill, too, if it is put there.

The convex function is exp(x + 3y - 0.1) + exp(x - 3y - 0.1) + exp(-x - 0.1), least at
x = -log(2)/2, y = 0 (Boyd & Vandenberghe, Convex Optimization, section 9.3). The other is
Himmelblau's, (x² + y - 11)² + (x + y² - 7)², tilted by 2(x + y) so that one of its four valleys is
the deepest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.optimize import minimize, root

from vidi.studies import Measured, Study, Table
from vidi.studies._sheet import BLUE, GREEN, GREY, ORANGE, RED, sheet
from vidi.types import Array

CLAIM = 1
STILL = 1e-10
"""A step shorter than this is none."""
RATES = {"convex": 0.01, "hills": 0.005}
OPTIMUM = np.array([-np.log(2) / 2, 0.0])
SIDE = 5.0
"""Himmelblau's function is looked at from -SIDE to SIDE."""


def convex(at: Array) -> Array:
    """at [..., 2] -> [...]."""
    x, y = at[..., 0], at[..., 1]
    return np.asarray(np.exp(x + 3 * y - 0.1) + np.exp(x - 3 * y - 0.1) + np.exp(-x - 0.1))


def convex_gradient(at: Array) -> Array:
    x, y = at[..., 0], at[..., 1]
    up, down, left = np.exp(x + 3 * y - 0.1), np.exp(x - 3 * y - 0.1), np.exp(-x - 0.1)
    return np.stack([up + down - left, 3 * up - 3 * down], -1)


def hills(at: Array) -> Array:
    x, y = at[..., 0], at[..., 1]
    return np.asarray((x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2 + 2 * (x + y))


def hills_gradient(at: Array) -> Array:
    x, y = at[..., 0], at[..., 1]
    a, b = x**2 + y - 11, x + y**2 - 7
    return np.stack([4 * x * a + 2 * b + 2, 2 * a + 4 * y * b + 2], -1)


GRADIENTS = {"convex": convex_gradient, "hills": hills_gradient}


def positions(name: str, start: Array) -> Iterator[Array]:
    """From one start [2], or many at once [n, 2], until none moves."""
    at = np.asarray(start, np.float64)
    while True:
        yield at
        step = RATES[name] * GRADIENTS[name](at)
        if np.abs(step).max() < STILL:
            break
        at = at - step


def descend(name: str, start: Array, most: int = 20_000) -> Array:
    """All positions [steps + 1, ..., 2], at most so many steps."""
    return np.stack(list(islice(positions(name, start), most + 1)))


def end(name: str, start: Array, most: int = 20_000) -> Array:
    """The last of them."""
    (last,) = deque(islice(positions(name, start), most + 1), maxlen=1)
    return last


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    rng = np.random.default_rng(0)
    n = 30 if small else 300
    starts = rng.uniform((-1.8, -0.7), (0.6, 0.7), (n, 2))
    away = float(np.linalg.norm(end("convex", starts) - OPTIMUM, axis=-1).max())

    many = rng.uniform(-SIDE, SIDE, (n, 2))
    ends = end("hills", many)
    valleys = distinct(ends)
    best = valleys[np.argmin(hills(valleys))]
    found = float((np.linalg.norm(ends - best, axis=-1) < 1e-3).mean())
    # A method that knows nothing of ours cannot get any lower from where we ended.
    lower = max(
        float(hills(valley) - minimize(hills, valley, method="Nelder-Mead", tol=1e-10).fun)
        for valley in valleys
    )
    grid = np.stack(np.meshgrid(*[np.linspace(-SIDE, SIDE, 401)] * 2), -1)
    lowest = float(hills(grid).min())
    top = np.asarray(root(hills_gradient, (-0.3, -0.9)).x)
    on_top = end("hills", top, most=100)
    beside = end("hills", top + 1e-3)
    measured = (
        Measured(
            f"convex: the farthest that any of {n} starts ended from the optimum",
            away,
            "at most 1e-6",
            away <= 1e-6,
        ),
        Measured(
            f"not convex: different places where {n} starts ended",
            len(valleys),
            "more than one; the function has 4 valleys",
            len(valleys) == 4,
        ),
        Measured(
            "not convex: how much lower Nelder-Mead gets from any of them",
            lower,
            "nothing (at most 1e-8): each is a local optimum",
            lower <= 1e-8,
        ),
        Measured(
            "not convex: share of starts that ended in the deepest valley",
            found,
            "some, not all (0.05 to 0.95); the others do not know that there is a deeper one",
            0.05 <= found <= 0.95,
        ),
        Measured(
            "the deepest end, above the lowest value on a grid of 401 × 401",
            float(hills(best)) - lowest,
            "not above it (at most 0)",
            float(hills(best)) <= lowest,
        ),
        Measured(
            "distance moved from the exact top of the hill, in 100 steps",
            float(np.linalg.norm(on_top - top)),
            "at most 1e-6: the gradient is zero there, and it stops",
            float(np.linalg.norm(on_top - top)) <= 1e-6,
        ),
        Measured(
            "distance moved from 0.001 beside it",
            float(np.linalg.norm(beside - top)),
            "at least 1: it rolls down",
            float(np.linalg.norm(beside - top)) >= 1,
        ),
    )
    table = Table(
        "The valleys of the second function",
        ("x", "y", "value", "share of starts"),
        tuple(
            (
                float(x),
                float(y),
                float(hills(np.array([x, y]))),
                float((np.linalg.norm(ends - (x, y), axis=-1) < 1e-3).mean()),
            )
            for x, y in valleys[np.argsort(hills(valleys))]
        ),
    )
    return Study(
        measured,
        (
            (
                "Left: one valley, and every start ends in it. Right: four; the colour of a "
                "place tells in which of them one ends who starts there. The star is the deepest.",
                lambda path: _draw(path, valleys, best, top),
            ),
        ),
        (table,),
    )


def distinct(ends: Array) -> Array:
    """The places of which all ``ends`` [n, 2] are within a thousandth."""
    places: list[Array] = []
    for one in ends:
        if all(np.linalg.norm(one - place) > 1e-3 for place in places):
            places.append(one)
    return np.stack(places)


def _draw(path: Path, valleys: Array, best: Array, top: Array) -> None:
    with sheet(path, 11, 5.2, columns=2, title="Gradient descent") as (one, many):
        x, y = np.meshgrid(np.linspace(-2, 1, 200), np.linspace(-1, 1, 200))
        values = convex(np.stack([x, y], -1))
        levels = np.geomspace(values.min() * 1.01, values.max(), 16)
        one.contour(x, y, values, levels, colors=GREY, linewidths=0.6)
        starts = np.array([(-1.8, -0.8), (-1.8, 0.6), (0.6, 0.7), (0.4, -0.75), (-0.7, 0.9)])
        for k, start in enumerate(starts):
            way = descend("convex", start)
            one.plot(*way.T, "o-", color=(BLUE, ORANGE, GREEN, RED, "#7a5195")[k], markersize=2.5)
            one.plot(*start, "o", color=(BLUE, ORANGE, GREEN, RED, "#7a5195")[k], markersize=7)
        one.plot(*OPTIMUM, "*", color="black", markersize=15, zorder=5)
        one.set(title="convex: one end, wherever one starts", xlabel="x", ylabel="y")
        one.grid(False)

        line = np.linspace(-SIDE, SIDE, 201)
        x, y = np.meshgrid(line, line)
        at = np.stack([x, y], -1)
        ends = end("hills", at.reshape(-1, 2), most=500)
        whose = np.linalg.norm(ends[:, None] - valleys, axis=-1).argmin(1).reshape(x.shape)
        colours = (BLUE, ORANGE, GREEN, RED)
        many.contourf(x, y, whose, np.arange(len(valleys) + 1) - 0.5, colors=colours, alpha=0.28)
        levels = np.geomspace(3, 900, 14) + hills(best) - 2
        many.contour(x, y, hills(at), levels, colors=GREY, linewidths=0.6)
        starts = np.array([(0.3, 0.6), (-0.4, 0.7), (-0.6, -2.2), (0.6, -2.3), (-4.4, 0.5)])
        for start in [*starts, top + 0.02]:
            way = descend("hills", start)
            many.plot(*way.T, "o-", color="black", markersize=2, linewidth=1)
            many.plot(*start, "o", color="black", markersize=6)
        many.plot(*top, "^", color="white", markeredgecolor="black", markersize=11, zorder=6)
        many.annotate(
            "on the top: no gradient,\nno movement",
            (float(top[0]), float(top[1])),
            (0.4, -4.8),
            arrowprops={"arrowstyle": "->", "relpos": (0, 1)},
            zorder=7,
        )
        for valley in valleys:
            deepest = np.array_equal(valley, best)
            many.plot(
                *valley,
                "*" if deepest else "o",
                color="white",
                markeredgecolor="black",
                markersize=18 if deepest else 9,
                zorder=6,
            )
        many.set(title="not convex: the start decides", xlabel="x", ylabel="y")
        many.grid(False)
