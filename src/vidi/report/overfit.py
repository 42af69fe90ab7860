"""The picture of a batch that is learned by heart, or not: its loss over the steps."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.ticker import MaxNLocator

from vidi.doctor.overfit import Overfit
from vidi.report.names import plain
from vidi.report.pictures import BLUE, GREY, RED, STYLE, _figure, _save


def draw(found: Overfit, path: Path) -> None:
    """Write the curve as a PNG, its loss on a logarithmic axis."""
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _figure(7, 3.8, 1)
        steps = range(1, 1 + len(found.losses))
        colour = BLUE if found.learned else RED
        marker = "o" if len(found.losses) <= 30 else ""
        axes.plot(steps, found.losses, color=colour, marker=marker, markersize=3, linewidth=1.5)
        axes.axhline(
            found.losses[0], color=GREY, linestyle="--", linewidth=1, label="before the first step"
        )
        if min(found.losses) > 0:
            axes.set_yscale("log")
        said = "learned by heart" if found.learned else "not learned"
        axes.set(
            title=f"{plain(found.run)}, one batch of {len(found.keys)}: {said} "
            f"({found.metric} {found.first:.3g} → {found.last:.3g})",
            xlabel="step",
            ylabel="loss of the batch",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        _save(figure, path)
