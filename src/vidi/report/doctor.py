"""The small picture of a finding: the numbers that it goes by."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vidi.doctor.finding import Finding, Series
from vidi.report.names import plain
from vidi.report.pictures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    STYLE,
    _figure,
    _finite,
    _save,
)

COLOURS = (BLUE, ORANGE, GREEN, RED, "#7b52ab")
NAMED = 24
"""As many names stand at the axis; of more, every second, third …"""


def draw(finding: Finding, path: Path) -> None:
    """Write the finding's series as a PNG. The finding must have one."""
    series = finding.series
    assert series is not None
    with matplotlib.rc_context(STYLE):
        named = bool(series.names)
        figure, (axes,) = _figure(6.4, 4.2 if named else 3.4, 1)
        for k, (name, values) in enumerate(series.ys.items()):
            marker = "o" if len(values) <= 60 else ""
            axes.plot(
                series.x,
                _finite(values),
                color=COLOURS[k % len(COLOURS)],
                marker=marker,
                markersize=3,
                linewidth=1.5,
                label=plain(name),
            )
        if series.log:
            axes.set_yscale("log", nonpositive="mask")
        _marks(axes, finding, series)
        axes.set(xlabel=plain(series.xlabel), ylabel=plain(series.ylabel))
        axes.set_title(f"{finding.severity}: {finding.code}", loc="left")
        if named:
            _names(axes, series)
        if len(series.ys) > 1 or series.threshold is not None:
            axes.legend(fontsize=8)
        _save(figure, path)


def _marks(axes: Axes, finding: Finding, series: Series) -> None:
    """The level that matters, and the step at which it was seen."""
    if series.threshold is not None:
        axes.axhline(
            series.threshold,
            color=RED,
            linestyle="--",
            linewidth=1,
            label=plain(series.meaning) or None,
        )
    inside = finding.step is not None and series.x and series.x[0] < finding.step < series.x[-1]
    if series.xlabel != "step":
        return
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if inside:
        assert finding.step is not None
        axes.axvline(finding.step, color=GREY, linestyle=":", linewidth=1)


def _names(axes: Axes, series: Series) -> None:
    step = -(-len(series.names) // NAMED)
    at = np.asarray(series.x)[::step]
    axes.set_xticks(at, [plain(_tail(n)) for n in series.names[::step]], rotation=90, fontsize=7)


def _tail(name: str) -> str:
    """The end of a long name tells layers apart."""
    return name if len(name) <= 24 else "…" + name[-23:]
