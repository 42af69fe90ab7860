"""The picture of slices: the metric of each part of a split, with its interval."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vidi.doctor.slices import THIRDS, Slice, Slices
from vidi.report.names import plain
from vidi.report.pictures import GREEN, GREY, RED, STYLE

MOST = 40
"""Parts that are drawn: all but classes, and of these the worst."""


def draw(found: Slices, path: Path) -> None:
    """A point a part, its interval as a bar, grouped by what the samples were parted by, the worst
    on top; red or green where it differs from the rest beyond chance. The dashed line is the whole
    split."""
    rows = _chosen(found)
    height = 0.9 + 0.24 * (len(rows) + len({row.by for row in rows}))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, max(2.2, height)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        at, names, y = [], [], 0.0
        last = rows[0].by if rows else ""
        for row in rows:
            y -= 1.0 if row.by == last else 1.8
            last = row.by
            at.append(y)
            names.append(plain(f"{row.by} {row.name}  (n {row.n:,})"))
            colour = GREY
            if row.differs:
                colour = RED if found.worse(row) else GREEN
            if np.isfinite(row.low):
                axes.barh(y, row.high - row.low, left=row.low, height=0.6, color=colour, alpha=0.4)
            axes.plot(row.value, y, "o", color=colour, markersize=5)
        axes.axvline(found.value, color="#333", linestyle="--", linewidth=1)
        axes.set_yticks(at, names, fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{found.metric} with its 95 % interval")
        axes.set_title(
            f"{found.split}: {found.metric} {found.value:.3f}, {found.samples:,} samples"
            "\nred, green: worse, better than the rest beyond chance"
        )
        figure.savefig(path, dpi=150)


def _chosen(found: Slices) -> list[Slice]:
    """Group by group, classes first; within one the worst first."""
    classes = [row for row in found.rows if row.by == "class"]
    others = [row for row in found.rows if row.by != "class"]
    shown = classes[: max(0, MOST - len(others))]
    shown += sorted(others, key=lambda row: list(THIRDS).index(row.by))
    return [row for row in shown if np.isfinite(row.value)]
