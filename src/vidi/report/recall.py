"""The picture of proposals: recall against IoU, and against the number of proposals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import FuncFormatter

from vidi.data.recall import Recall
from vidi.report.names import plain
from vidi.report.pictures import BLUE, GREEN, GREY, ORANGE, RED, STYLE, _figure, _save

LECTURE = (10_000, 0.991)
"""Proposals and recall at an IoU of 0.5 of selective search's quality mode on VOC 2007 (Uijlings et
al. 2013, table 6), which the lecture quotes."""
SECONDS = 17
"""What they took per image there."""
SHOWN = (0.5, 0.7, 0.9)
"""IoU of the lines against the number of proposals."""
BELOW: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncol": 2, "fontsize": 8}
"""Where no line can lie under the legend."""


def draw(found: Recall, path: Path, *, title: str = "") -> None:
    """Write both panels as a PNG; without any box, empty ones."""
    with matplotlib.rc_context({**STYLE, "lines.markersize": 3.5}):
        figure, (overlap, number) = _figure(10, 4.7, 2)
        colours = (GREY, GREEN, ORANGE, BLUE)
        lines = _some_counts(found.counts)
        for c, colour in zip(lines, colours[-len(lines) :], strict=True):
            label = f"{found.counts[c]:,} proposals: {_share(found.average[c])} on average"
            overlap.plot(found.thresholds, found.table[c], "o-", color=colour, label=label)
        overlap.set(title="recall against IoU", xlabel="IoU at least", ylabel="recall")
        overlap.set_ylim(0, 1.02)
        overlap.legend(**BELOW)

        for threshold, colour in zip(SHOWN, (BLUE, ORANGE, GREEN), strict=True):
            near = int(np.argmin(np.abs(np.asarray(found.thresholds) - threshold)))
            label = f"IoU ≥ {found.thresholds[near]:g}"
            number.plot(found.counts, found.table[:, near], "o-", color=colour, label=label)
        number.plot(
            found.counts, found.average, color=GREY, linestyle="--", label="average from 0.5 to 1"
        )
        lecture = f"selective search, quality, VOC 2007, IoU ≥ 0.5: {LECTURE[1]}"
        number.plot(*LECTURE, "*", color=RED, markersize=11, label=lecture, clip_on=False)
        number.set(
            title="recall against number of proposals", xlabel="proposals per image, at most"
        )
        number.set_xscale("log")
        number.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        number.set_ylim(0, 1.02)
        number.legend(**BELOW)
        if title:
            figure.suptitle(plain(title), fontsize=10, fontweight="bold")
        _save(figure, path)


def _some_counts(counts: tuple[int, ...]) -> list[int]:
    """Places of at most four counts: the largest, and about a tenth of each before."""
    chosen = [len(counts) - 1]
    while len(chosen) < 4:
        fewer = [c for c in range(len(counts)) if counts[c] * 9 <= counts[chosen[0]]]
        if not fewer:
            break
        chosen.insert(0, fewer[-1])
    return chosen


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"
