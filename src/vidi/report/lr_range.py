"""The picture of a sweep over rates: the loss against the rate."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator

from vidi.doctor.lr_range import LrRange
from vidi.report.names import plain
from vidi.report.pictures import BLUE, GREY, ORANGE, RED, STYLE, _figure, _save


def draw(found: LrRange, path: Path) -> None:
    """Write the curve as a PNG, with the suggestion and the run's own rate."""
    seen = found.sweep
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _figure(7, 4, 1)
        axes.plot(seen.rates, seen.losses, color=BLUE, alpha=0.3, linewidth=0.8, label="each step")
        axes.plot(seen.rates, seen.smoothed, color=BLUE, linewidth=1.8, label="smoothed")
        if seen.suggestion is not None:
            axes.axvline(
                seen.suggestion, color=RED, linewidth=1.5, label=f"suggestion: {seen.suggestion:g}"
            )
        axes.axvline(
            found.lr,
            color=ORANGE,
            linewidth=1.5,
            linestyle="--",
            label=f"the run's own: {found.lr:g}",
        )
        if seen.rises is not None:
            axes.axvspan(seen.rises, seen.rates[-1], color=GREY, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, (1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: ""))
        # Beyond the cliff a loss may tower over all that matters.
        low, high = float(np.min(seen.smoothed)), float(np.max(seen.smoothed))
        axes.set_ylim(low - 0.1 * (high - low), high + 0.15 * (high - low))
        axes.set(
            title=f"{plain(found.run)}, {found.optimiser}: the loss while the rate rises",
            xlabel="learning rate",
            ylabel="training loss",
        )
        axes.legend(loc="lower left")
        _save(figure, path)
