"""The picture of a comparison: learning curves over one another, and where the seeds ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from vidi.report.compare import Comparison, Group
from vidi.report.names import plain
from vidi.report.pictures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    STYLE,
    _figure,
    _save,
    _short,
    _values,
)

COLOURS = (BLUE, ORANGE, GREEN, RED, GREY, "#7b52ab", "#1aa6a6", "#b0629a", "#9a8a1f", "#444")
"""Of the groups, in turn."""


def curves(found: Comparison, path: Path) -> None:
    """Training loss and the headline over the epochs, a line for each run, a colour for each group;
    beside them what each seed came to, with mean and deviation. Runs that are not finished are
    dashed."""
    with matplotlib.rc_context(STYLE):
        figure, (loss, metric, last) = _figure(12, 4, 3, (1.2, 1.2, 0.8))
        losses(loss, found)
        headlines(metric, found)
        ends(last, found)
        handles, labels = metric.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        _save(figure, path)


def losses(axes: Axes, found: Comparison) -> None:
    """The training loss of each run."""
    _lines(axes, found, lambda rows: _values(rows, "train_loss"))
    axes.set(title="training loss", xlabel="epoch")


def headlines(axes: Axes, found: Comparison) -> None:
    """The headline metric of each run, on validation."""
    _lines(axes, found, lambda rows: _values([row["metrics"] for row in rows], found.headline))
    axes.set(title=f"validation {found.headline}", xlabel="epoch")


def _lines(
    axes: Axes,
    found: Comparison,
    values: Callable[[Sequence[Mapping[str, Any]]], Sequence[float]],
) -> None:
    """``values``: of the rows of a run's evaluations."""
    for k, group in enumerate(found.groups):
        for j, run in enumerate(group.runs):
            rows = [row for row in run.rows if row["event"] == "evaluation"]
            axes.plot(
                [row["epoch"] for row in rows],
                values(rows),
                "-" if run.unfinished is None else "--",
                color=colour(k),
                marker="o" if len(rows) <= 30 else "",
                markersize=3,
                linewidth=1.2,
                label=plain(label(group)) if j == 0 else "",
            )
    axes.set_xlim(left=0)


def ends(axes: Axes, found: Comparison) -> None:
    """A dot for each seed, a bar from one deviation below the mean to one above."""
    split = "test" if ("test", found.headline) in found.spreads else "val"
    for k, group in enumerate(found.groups):
        values = [*group.values(split, found.headline).values()]
        aside = 0.12 * (np.arange(len(values)) - (len(values) - 1) / 2)
        axes.plot(k + aside, values, "o", color=colour(k), markersize=5, alpha=0.8)
        spread = found.spreads.get((split, found.headline), {}).get(group.letter)
        if spread is not None and spread.deviation is not None:
            axes.errorbar(
                [k + 0.35], [spread.mean], [spread.deviation], fmt="_", color=colour(k), capsize=3
            )
    axes.set_xticks(range(len(found.groups)), [group.letter for group in found.groups])
    axes.set_xlim(-0.6, len(found.groups) - 0.4)
    said = {"test": "test", "val": "validation"}[split]
    axes.set_title(f"{said} {found.headline}, best weights")


def colour(k: int) -> str:
    """Of the k-th group."""
    return COLOURS[k % len(COLOURS)]


def label(group: Group) -> str:
    """What its colour stands for."""
    more = "" if len(group.runs) == 1 else f", {len(group.runs)} runs"
    return f"{group.letter}: {_short(group.runs[0].name)}{more}"
