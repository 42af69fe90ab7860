"""A sheet of panels in the package's style, for the studies' pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vidi.report.pictures import BLUE, GREEN, GREY, ORANGE, RED, STYLE

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "RED", "sheet"]


@contextlib.contextmanager
def sheet(
    path: Path,
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    title: str = "",
    ratios: Sequence[float] | None = None,
) -> Iterator[list[Axes]]:
    """The panels, row by row; the PNG is written at the end.

    ``width``, ``height``: of the whole, in inches of 150 pixels; ``ratios``: of the columns.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios)
        if title:
            figure.suptitle(title, fontsize=11, fontweight="bold")
        yield list(panels.flat)
        figure.savefig(path, dpi=150)
