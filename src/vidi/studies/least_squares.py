"""Least squares has a closed form, and a million rows need no large matrix.

The x that makes |Ax - b|² least is (AᵀA)⁻¹Aᵀb. With a million rows A is large; AᵀA is not, and it
is a sum over the rows, so that one pass over the data, a block at a time, is enough. Gradient
descent does not even need that: its gradient, Aᵀ(Ax - b), is a sum over the rows too, and it ends
at the same x. Stochastic gradient descent uses each row once, and is near.

Here a row holds the first ten Chebyshev polynomials at a place t, and b is a wave with noise, so
that x is the curve through a million points. NumPy's ``lstsq``, which needs all of A, is the judge.
The normal equations square A's condition number: where that is large (above about 1e6), ``lstsq``
is to be trusted and they are not.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vidi.studies import Measured, Study, Table
from vidi.studies._sheet import BLUE, GREEN, GREY, ORANGE, RED, sheet
from vidi.types import Array

CLAIM = 2
COLUMNS = 10
BLOCK = 5_000
"""Rows at a time."""
NOISE = 0.5


def blocks(rows: int) -> Iterator[tuple[Array, Array]]:
    """A and b, a block of rows after another: the same ones each time."""
    for start in range(0, rows, BLOCK):
        rng = np.random.default_rng((0, start))
        t = rng.uniform(-1, 1, min(BLOCK, rows - start))
        yield features(t), wave(t) + rng.normal(0, NOISE, len(t))


def features(t: Array) -> Array:
    return np.polynomial.chebyshev.chebvander(t, COLUMNS - 1)


def wave(t: Array) -> Array:
    return np.asarray(np.sin(5 * t) * np.exp(-t))


def normal_equations(rows: int) -> tuple[Array, Array]:
    """AᵀA/n and Aᵀb/n, in one pass."""
    square, right = np.zeros((COLUMNS, COLUMNS)), np.zeros(COLUMNS)
    for a, b in blocks(rows):
        square += a.T @ a / rows
        right += a.T @ b / rows
    return square, right


def closed_form(rows: int) -> Array:
    return np.linalg.solve(*normal_equations(rows))


def descend(rows: int, rate: float, passes: int, towards: Array) -> tuple[Array, list[float]]:
    """Gradient descent, one step a pass, and its distance to ``towards`` after each."""
    x, distances = np.zeros(COLUMNS), [float(np.linalg.norm(towards))]
    for _ in range(passes):
        gradient = np.zeros(COLUMNS)
        for a, b in blocks(rows):
            gradient += a.T @ (a @ x - b) / rows
        step = rate * gradient
        x = x - step
        distances.append(float(np.linalg.norm(x - towards)))
        if np.abs(step).max() < 1e-10:
            break
    return x, distances


def stochastic(rows: int, rate: float) -> Array:
    """One pass of mini-batches of 100 rows; the mean over the second half of the way."""
    x, total, counted, seen = np.zeros(COLUMNS), np.zeros(COLUMNS), 0, 0
    for a, b in blocks(rows):
        for start in range(0, len(a), 100):
            some, target = a[start : start + 100], b[start : start + 100]
            x = x - rate * some.T @ (some @ x - target) / len(some)
            seen += len(some)
            if seen > rows / 2:
                total, counted = total + x, counted + 1
    return total / counted


def with_all_rows(rows: int) -> Array:
    """NumPy's answer, from the whole matrix."""
    parts = list(blocks(rows))
    a = np.concatenate([part for part, _ in parts])
    b = np.concatenate([part for _, part in parts])
    x: Array = np.linalg.lstsq(a, b)[0]
    return x


class Peak(NamedTuple):
    value: Array
    bytes: int
    """Most memory at one time that NumPy held for it."""


def peak(compute: Callable[[], Array]) -> Peak:
    tracemalloc.start()
    try:
        value = compute()
        return Peak(value, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    rows = 100_000 if small else 1_000_000
    counts = [rows // 10, rows // 3, rows]
    reference = [peak(partial(with_all_rows, n)) for n in counts]
    closed = [peak(partial(closed_form, n)) for n in counts]
    x = closed[-1].value
    square, _ = normal_equations(rows)
    steepest, flattest = np.linalg.eigvalsh(square)[[-1, 0]]
    end, distances = descend(rows, 2 / (steepest + flattest), 200, x)
    # No eigenvalue is above the trace, so this rate is safe for batches too.
    near = stochastic(rows, 1 / float(np.trace(square)))
    # The spread of the solution itself, had the noise been drawn again: σ √(trace (AᵀA)⁻¹).
    spread = NOISE * float(np.sqrt(np.trace(np.linalg.inv(square)) / rows))
    off = float(np.linalg.norm(near - x))
    matrix = rows * COLUMNS * 8
    measured = (
        Measured(
            "largest difference: closed form, a block at a time, to lstsq of the whole matrix",
            float(np.abs(x - reference[-1].value).max()),
            "at most 1e-10",
            float(np.abs(x - reference[-1].value).max()) <= 1e-10,
        ),
        Measured(
            f"largest difference: gradient descent's end, after {len(distances) - 1} passes, "
            "to the closed form",
            float(np.abs(end - x).max()),
            "at most 1e-8 (it stops when no step is above 1e-10)",
            float(np.abs(end - x).max()) <= 1e-8,
        ),
        Measured(
            "distance of one pass of mini-batches to the closed form, in spreads of the solution",
            off / spread,
            "at most 5: nearer than that, the data itself does not tell",
            off <= 5 * spread,
        ),
        Measured(
            f"memory of the closed form, as a share of the matrix's {matrix / 1e6:,.0f} MB",
            closed[-1].bytes / matrix,
            f"at most {0.5 if small else 0.05}",
            closed[-1].bytes <= (0.5 if small else 0.05) * matrix,
        ),
        Measured(
            "its memory with ten times the rows, as a multiple",
            closed[-1].bytes / closed[0].bytes,
            "1 (within 0.05): it does not depend on the number of rows",
            abs(closed[-1].bytes / closed[0].bytes - 1) <= 0.05,
        ),
        Measured(
            "lstsq's memory with ten times the rows, as a multiple",
            reference[-1].bytes / reference[0].bytes,
            "8 to 12",
            8 <= reference[-1].bytes / reference[0].bytes <= 12,
        ),
    )
    table = Table(
        f"{rows:,} rows of {COLUMNS}",
        ("method", "passes over the data", "most memory, MB", "distance to lstsq"),
        (
            ("lstsq, whole matrix", 1, reference[-1].bytes / 1e6, 0.0),
            (
                "closed form, in blocks",
                1,
                closed[-1].bytes / 1e6,
                float(np.linalg.norm(x - reference[-1].value)),
            ),
            (
                "gradient descent, in blocks",
                len(distances) - 1,
                peak(lambda: descend(rows, 0.1, 1, x)[0]).bytes / 1e6,
                float(np.linalg.norm(end - reference[-1].value)),
            ),
            (
                "mini-batches",
                1,
                peak(lambda: stochastic(rows, 0.01)).bytes / 1e6,
                float(np.linalg.norm(near - reference[-1].value)),
            ),
        ),
    )
    memory = {
        "lstsq, whole matrix": [p.bytes / 1e6 for p in reference],
        "closed form, in blocks": [p.bytes / 1e6 for p in closed],
    }
    return Study(
        measured,
        (
            (
                "Left: the curve through all points (darker: more of them). Middle: gradient "
                "descent reaches the closed form. Right: the memory that each needs.",
                lambda path: _draw(path, rows, x, distances, counts, memory),
            ),
        ),
        (table,),
    )


def _draw(
    path: Path,
    rows: int,
    x: Array,
    distances: list[float],
    counts: list[int],
    memory: dict[str, list[float]],
) -> None:
    title = f"Least squares with {rows:,} rows"
    with sheet(path, 12, 4, columns=3, title=title, ratios=(1.3, 1, 1)) as (fit, way, need):
        t, b = [], []
        for a, target in blocks(min(rows, 200_000)):
            t.append(a[:, 1])  # the second Chebyshev polynomial is t itself
            b.append(target)
        fit.hexbin(np.concatenate(t), np.concatenate(b), gridsize=70, cmap="Greys", mincnt=1)
        line = np.linspace(-1, 1, 300)
        fit.plot(line, features(line) @ x, color=RED, linewidth=2, label="Ax")
        fit.plot(line, wave(line), "--", color=ORANGE, linewidth=1.2, label="without noise")
        fit.set(title="the curve through them", xlabel="t", ylabel="b")
        fit.legend(loc="lower right")
        way.semilogy(distances, ".-", color=BLUE, markersize=3)
        way.set(
            title="gradient descent gets there too",
            xlabel="passes over the data",
            ylabel="distance to (AᵀA)⁻¹Aᵀb",
        )
        for (name, values), colour in zip(memory.items(), (GREY, GREEN), strict=True):
            need.loglog(counts, values, "o-", color=colour, label=name)
        need.set(title="memory", xlabel="rows", ylabel="MB", ylim=(0.3, 1.5e3))
        need.legend(loc="upper left")
