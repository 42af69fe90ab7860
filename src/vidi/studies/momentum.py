"""Momentum damps the ping-pong: the accumulated amount does, the previous gradient hardly.

The slide writes: add α times the *previous gradient*. Its words, and everybody's practice, say: add
α times the *previous amount*, in which all gradients so far have accumulated. With the rate η:

    slide:    θ ← θ - η (g + α g_before)
    practice: v ← α v + η g,   θ ← θ - v

On a quadratic, both are linear recursions, so that the share of the error that a step leaves can be
reckoned: the largest root of z² - (1 - ηλ)z + αηλ, and of z² - (1 + α - ηλ)z + α, over the
curvatures λ from μ to L (κ = L/μ). Plain descent leaves (κ - 1)/(κ + 1) at best. Practice leaves
(√κ - 1)/(√κ + 1) at best, with α the square of that (Polyak 1964): of κ = 100 it makes 10. The
slide's formula stays near plain descent, and where ηL is above 1/α it diverges.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vidi.studies import Measured, Study, Table
from vidi.studies._sheet import GREEN, GREY, ORANGE, RED, sheet
from vidi.studies.ravine import steps_to
from vidi.types import Array

CLAIM = 8
STEEP, FLAT = 1.0, 0.01
"""Curvature across the ravine (y) and along it (x): κ = 100."""
CURVATURES = np.array([FLAT, STEEP])
START = np.array([-10.0, 1.0])
PING_PONG = (1.95 / STEEP, 0.5)
"""Rate and α: a rate at which plain descent jumps from wall to wall."""
FORMS = ("plain", "slide", "practice")
COLOURS = {"plain": ORANGE, "slide": RED, "practice": GREEN}


def descend(form: str, rate: float, alpha: float, steps: int) -> Array:
    """All positions [steps + 1, 2]. Plain descent has no α."""
    at, before, amount, path = START, np.zeros(2), np.zeros(2), [START]
    if form == "plain":
        alpha = 0.0
    for _ in range(steps):
        g = CURVATURES * at
        if form == "practice":
            amount = alpha * amount + rate * g
        else:
            amount = rate * (g + alpha * before)
        at, before = at - amount, g
        path.append(at)
    return np.stack(path)


def leaves(form: str, rate: Array, alpha: Array) -> Array:
    """The share of the error that a step leaves in the long run: of rates and alphas that broadcast
    together, the largest absolute root over the two curvatures."""
    found = []
    for curvature in CURVATURES:
        linear = (1 + alpha if form == "practice" else 1) - rate * curvature + 0j
        constant = alpha if form == "practice" else alpha * rate * curvature
        root = np.sqrt(linear**2 - 4 * constant)
        found.append(np.maximum(np.abs(linear + root), np.abs(linear - root)) / 2)
    return np.asarray(np.maximum(*found))


def best(form: str, fineness: int) -> tuple[float, float, float]:
    """(what a step leaves, rate, α) that a grid search finds, refined four times."""
    rates, alphas = (0.0, 4 / STEEP), (0.0, 0.0 if form == "plain" else 1.0)
    for _ in range(4):
        rate, alpha = np.meshgrid(
            np.linspace(*rates, fineness), np.linspace(*alphas, fineness), indexing="ij"
        )
        left = leaves(form, rate, alpha)
        i, j = np.unravel_index(left.argmin(), left.shape)
        found = float(left[i, j]), float(rate[i, j]), float(alpha[i, j])
        rates = _around(found[1], rates, fineness)
        alphas = _around(found[2], alphas, fineness)
    return found


def _around(centre: float, span: tuple[float, float], fineness: int) -> tuple[float, float]:
    half = 3 * (span[1] - span[0]) / fineness
    return max(0.0, centre - half), centre + half


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    found = {form: best(form, 101 if small else 401) for form in FORMS}
    kappa = STEEP / FLAT
    theory = {
        "plain": (kappa - 1) / (kappa + 1),
        "practice": (np.sqrt(kappa) - 1) / (np.sqrt(kappa) + 1),
    }
    paths = {form: descend(form, rate, alpha, 3000) for form, (_, rate, alpha) in found.items()}
    needed = {form: steps_to(np.linalg.norm(path, axis=1)) for form, path in paths.items()}
    same = {form: descend(form, *PING_PONG, 300) for form in FORMS}
    across = {form: float(np.abs(path[20:, 1]).max()) for form, path in same.items()}
    usual = descend("slide", PING_PONG[0], 0.9, 300)
    gone = float(np.linalg.norm(usual[-1]) / np.linalg.norm(START))
    ours = {form: off_torch(form) for form in ("slide", "practice")}
    checked = max(
        abs(float(np.log(observed(paths[form])) / np.log(found[form][0])) - 1)
        for form in ("plain", "slide")
    )
    measured = (
        Measured(
            "plain descent: what a step leaves at best (grid search)",
            found["plain"][0],
            f"(κ - 1)/(κ + 1) = {theory['plain']:.4f}, within 1e-3",
            abs(found["plain"][0] - theory["plain"]) <= 1e-3,
        ),
        Measured(
            "practice: what a step leaves at best (grid search)",
            found["practice"][0],
            f"(√κ - 1)/(√κ + 1) = {theory['practice']:.4f}, within 5e-3",
            abs(found["practice"][0] - theory["practice"]) <= 5e-3,
        ),
        Measured(
            "practice: that α",
            found["practice"][2],
            f"the square of it, {theory['practice'] ** 2:.4f}, within 0.01",
            abs(found["practice"][2] - theory["practice"] ** 2) <= 0.01,
        ),
        Measured(
            "practice: steps to a thousandth, as a share of plain descent's (each at its best)",
            needed["practice"] / needed["plain"],
            "at most 1/4",
            needed["practice"] <= needed["plain"] / 4,
        ),
        Measured(
            "slide: the same",
            needed["slide"] / needed["plain"],
            "at least 1/3: it does not change the order of magnitude",
            needed["slide"] >= needed["plain"] / 3,
        ),
        Measured(
            "plain and slide: the rate of decrease of real steps, against the reckoned one",
            checked,
            "equal within 5 %",
            checked <= 0.05,
        ),
        Measured(
            "at ηL = 1.95, α = 0.5: ping-pong left after 20 steps, of 1 (plain, α = 0: "
            f"{across['plain']:.2f}), practice",
            across["practice"],
            "at most a tenth of plain's: it damps the ravine",
            across["practice"] <= across["plain"] / 10,
        ),
        Measured(
            "the same, slide",
            across["slide"],
            "more than plain's: it does not",
            across["slide"] > across["plain"],
        ),
        Measured(
            "at ηL = 1.95, α = 0.9: the slide's distance after 300 steps, of the start's",
            gone,
            "above 1000: it diverges, as αηL > 1",
            gone > 1000,
        ),
        Measured(
            "largest difference of practice to torch.optim.SGD(momentum=0.9), 100 steps",
            ours["practice"],
            "at most 1e-12",
            ours["practice"] <= 1e-12,
        ),
        Measured(
            "largest difference of the slide's formula to it",
            ours["slide"],
            "more than 0.1: it is another method",
            ours["slide"] > 0.1,
        ),
    )
    table = Table(
        f"Each at its best, κ = {kappa:g}",
        ("form", "η L", "α", "a step leaves", "steps to a thousandth"),
        tuple(
            (form, found[form][1] * STEEP, found[form][2], found[form][0], needed[form])
            for form in FORMS
        ),
    )
    return Study(
        measured,
        (
            (
                "Above: 40 steps down the ravine with the same rate, at which plain descent plays "
                "ping-pong. Below: how the distance falls, each form with its best η and α; and "
                "what a step leaves for every rate and α (darker is better, red diverges; the star "
                "is the best), of the slide's formula and of practice.",
                lambda path: _draw(path, found, paths, same),
            ),
        ),
        (table,),
        (
            "If the slide means α times the previous gradient without the rate, its α is our ηα: "
            "the search over both covers it.",
        ),
    )


def observed(path: Array) -> float:
    """What a step left, by the slope of the distance's logarithm after the first 300 steps."""
    distance = np.linalg.norm(path, axis=1)[300:]
    return float(np.exp(np.polyfit(np.arange(len(distance)), np.log(distance), 1)[0]))


def off_torch(form: str) -> float:
    """Our path against PyTorch's optimiser on the same ravine."""
    at = torch.tensor(START, requires_grad=True)
    optimiser = torch.optim.SGD([at], lr=1.0, momentum=0.9)
    path = [START]
    for _ in range(100):
        optimiser.zero_grad()
        (torch.tensor(CURVATURES) * at**2 / 2).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        path.append(at.detach().numpy().copy())
    return float(np.abs(np.stack(path) - descend(form, 1.0, 0.9, 100)).max())


def _draw(
    path: Path,
    found: dict[str, tuple[float, float, float]],
    paths: dict[str, Array],
    same: dict[str, Array],
) -> None:
    with sheet(path, 12, 7, rows=2, columns=3, title="Momentum in a ravine") as panels:
        x, y = np.meshgrid(np.linspace(-11, 4, 200), np.linspace(-2, 2, 200))
        values = (FLAT * x**2 + STEEP * y**2) / 2
        for axes, form in zip(panels[:3], FORMS, strict=True):
            axes.contour(x, y, values, np.geomspace(0.005, 2, 12), colors=GREY, linewidths=0.5)
            way = same[form][:41]
            axes.plot(*way.T, "o-", color=COLOURS[form], markersize=2.5, linewidth=0.9)
            axes.plot(0, 0, "*", color="black", markersize=13, zorder=5)
            axes.set(
                title=f"{form}: η L = 1.95" + ("" if form == "plain" else ", α = 0.5"),
                xlabel="x: flat",
                xlim=(-11, 4),
                ylim=(-1.6, 1.6),
            )
            axes.grid(False)
        panels[0].set_ylabel("y: steep")

        fall, *maps = panels[3:]
        for form in FORMS:
            distance = np.linalg.norm(paths[form], axis=1)
            fall.semilogy(
                distance[:401] / distance[0],
                color=COLOURS[form],
                label=f"{form}: a step leaves {found[form][0]:.3f}",
            )
        fall.set(
            title="each at its best", xlabel="step", ylabel="distance to the optimum, of the first"
        )
        fall.set_ylim(1e-8, 1e2)
        fall.legend(loc="upper right")

        rates, alphas = np.meshgrid(np.linspace(0, 4, 300), np.linspace(0, 1, 200))
        for axes, form in zip(maps, ("slide", "practice"), strict=True):
            share = leaves(form, rates / STEEP, alphas)
            shown = axes.contourf(
                rates, alphas, share, np.linspace(0.8, 1, 11), cmap="Greens_r", extend="min"
            )
            axes.contourf(rates, alphas, share, [1.0, 1e9], colors=[RED], alpha=0.25)
            _, its_rate, its_alpha = found[form]
            axes.plot(its_rate * STEEP, its_alpha, "*", color="black", markersize=13)
            axes.set(title=f"{form}: what a step leaves", xlabel="η L", ylabel="α")
            axes.grid(False)
        axes.figure.colorbar(shown, ax=axes, ticks=[0.8, 0.85, 0.9, 0.95, 1.0])
