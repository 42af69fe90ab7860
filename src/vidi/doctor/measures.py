"""Numbers of a run that several checks look at."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

from vidi.doctor.finding import Series
from vidi.doctor.records import Records, Row

OUTPUTS = 1.6
"""The losses of all three of GoogLeNet's outputs together, relative to the last one's."""


def losses(records: Records) -> list[tuple[int, float]]:
    """(step, training loss of that step), of all steps that were written down."""
    rows = [*records.vitals, *records.of("train")]
    found = {int(row["step"]): row["loss"] for row in rows if row.get("loss") is not None}
    return sorted(found.items())


def begin(records: Records) -> float | None:
    """The training loss before anything was learned."""
    early = [loss for step, loss in losses(records) if step <= 2]
    return early[0] if early else None


def end(records: Records) -> float | None:
    """The training loss of the run's last third: the middle one of those written down."""
    found = losses(records)
    if len(found) < 4:
        return None
    last = found[-1][0]
    late = [loss for step, loss in found if step > 2 * last / 3]
    return median(late)


def balanced(records: Records) -> dict[str, float]:
    """What it costs, in each of the task's losses, to call all answers equally likely; where that
    is known."""
    recipe, k = records.recipe, len(records.classes)
    if records.description.data.get("loss") or recipe.optimiser.sum_pixels:
        return {}
    factor = OUTPUTS if recipe.model.startswith("googlenet") else 1.0
    if records.task in ("classification", "segmentation"):
        return {"cross_entropy": factor * math.log(max(2, k))}
    if records.task == "multilabel":
        return {"binary_cross_entropy": factor * math.log(2)}
    if records.task == "detection":
        return {"cross_entropy": math.log(k + 1), "objectness": math.log(2)}
    return {}


def reference(records: Records) -> float | None:
    """What the training loss was before anything was learned: what equally likely answers cost,
    if that is all of the loss, else what the first step cost."""
    told = balanced(records)
    known = [v for name, v in told.items() if name != "objectness"]
    if records.task != "detection" and known:
        return known[0]
    return begin(records)


def weights(row: Row) -> dict[str, dict[str, float]]:
    """The matrices of a row, in the network's order, that are trained and not zero."""
    return {
        name: found
        for name, found in row["parameters"].items()
        if found["spread"] is not None and found["weight"] and found["gradient"] is not None
    }


def relative(row: Row, what: str) -> dict[str, float]:
    """The norm of each matrix's gradient or update, relative to its own."""
    return {
        name: found[what] / found["weight"]
        for name, found in weights(row).items()
        if found[what] is not None
    }


def motion(row: Row) -> float | None:
    """By how much of themselves the matrices change in the step: the middle one."""
    found = list(relative(row, "update").values())
    return median(found) if found else None


def path(records: Records) -> float | None:
    """How far the matrix that moves most has come in the whole run, at most, relative to itself:
    the sum of its updates' lengths, those between two looks taken as they were at the two."""
    rows = [(int(row["step"]), relative(row, "update")) for row in records.vitals]
    rows = [(step, found) for step, found in rows if found]
    if len(rows) < 2:
        return None
    total = max(rows[0][1].values())
    for (before, early), (after, late) in pairwise(rows):
        total += (after - before) * (max(early.values()) + max(late.values())) / 2
    return total + (records.steps - rows[-1][0]) * max(rows[-1][1].values())


def later(records: Records, after: int = 2) -> list[Row]:
    """The looks after that step: an output layer that begins at zero passes nothing back before."""
    return [row for row in records.vitals if row["step"] >= after]


def full_rate(records: Records, row: Row) -> bool:
    """Whether the step's rate is at least a third of the highest: no warm-up, and not the end."""
    return (row.get("lr") or 0.0) >= highest_rate(records) / 3


def highest_rate(records: Records) -> float:
    """What rows will say of the rate at its highest; a run may have been stopped before. They tell
    the rate of the first parameters, those of the trunk."""
    recipe = records.recipe
    trunk = float(recipe.optimiser.trunk_lr) if recipe.weights is not None else 1.0
    told = float(recipe.lr) * min(1.0, trunk)
    seen = [r["lr"] for r in [*records.vitals, *records.of("train")] if r.get("lr")]
    # Parts may have rates of their own; then what was seen is all that is known.
    return max(seen, default=told) if recipe.optimiser.rates else max([told, *seen])


def learning(records: Records) -> Series:
    """The training loss by step, and what equally likely answers cost."""
    found = losses(records)
    level = reference(records)
    values = [loss for _, loss in found]
    positive = [v for v in values if v > 0]
    wide = bool(positive) and max(positive) > 50 * min(positive)
    return Series(
        x=tuple(float(step) for step, _ in found),
        ys={"training loss": tuple(values)},
        xlabel="step",
        ylabel="loss",
        log=wide,
        threshold=level,
        meaning="nothing learned",
    )


def by_depth(values: dict[str, float], ylabel: str) -> Series:
    """One number per layer, in the network's order."""
    return Series(
        x=tuple(float(i) for i in range(len(values))),
        ys={ylabel: tuple(values.values())},
        xlabel="layer, from the input to the output",
        ylabel=ylabel,
        log=True,
        names=tuple(values),
    )


def over_steps(records: Records, part: str, names: list[str], key: str, ylabel: str) -> Series:
    """What the looks say under ``key`` of the first five names of layers or parameters (``part``),
    by step."""
    rows = records.vitals
    return Series(
        x=tuple(float(row["step"]) for row in rows),
        ys={n: tuple(row[part].get(n, {}).get(key) for row in rows) for n in names[:5]},
        xlabel="step",
        ylabel=ylabel,
    )


def rounded(rate: float) -> str:
    """A learning rate with one digit that counts, as one would type it."""
    return f"{float(f'{rate:.0e}'):g}"
