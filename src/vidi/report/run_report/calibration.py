"""Whether probabilities mean what they say: of those at 80 %, are 80 % right?

The reliability diagram of Guo et al. 2017, "On calibration of modern neural networks", section 2.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from vidi.report.html import Html
from vidi.report.pictures import BLUE, GREY
from vidi.report.run_report.drawing import chart, figure
from vidi.report.run_report.looked import Looked
from vidi.report.run_report.page import paragraph, section, split_name
from vidi.report.run_report.subject import Subject
from vidi.types import Array


def shown(subject: Subject, looked: Looked | None) -> Html:
    """The section; nothing where the samples were not looked at, or answers have no probability."""
    if looked is None or looked.bins is None or not looked.samples:
        return Html("")
    bins = looked.bins
    filled = bins[:, 0] > 0
    gap = (bins[filled, 1] - bins[filled, 2]).sum() / bins[:, 0].sum()
    error = np.abs(bins[filled, 1] - bins[filled, 2]).sum() / bins[:, 0].sum()
    mean = bins[:, 1].sum() / bins[:, 0].sum()
    right = bins[:, 2].sum() / bins[:, 0].sum()
    if subject.task == "multilabel":
        first = (
            f"Labels are given a probability of {mean:.1%} on average, and {right:.1%} are there"
        )
    else:
        first = (
            f"The likeliest class is given a probability of {mean:.1%} on average, and {right:.1%} "
            "of these answers are right"
        )
    of = (
        f"all {looked.of:,}"
        if looked.samples == looked.of
        else f"{looked.samples:,} of {looked.of:,}"
    )
    words = (
        f"{first}: {_said(float(gap))}. Bin by bin the two are {error:.4f} apart (the expected "
        f"calibration error), on {of} {split_name(subject.split)} images."
    )
    parts = [
        chart(
            lambda axes: _reliability(axes, bins),
            f"Reliability diagram: probability against the share that is right; error {error:.4f}",
        ),
        chart(lambda axes: _histogram(axes, bins), "How often each probability is given"),
    ]
    drawn = Html(f'<div class="charts">{"".join(figure(one) for one in parts)}</div>')
    return section("calibration", "Calibration", paragraph(words), drawn)


def _said(gap: float) -> str:
    if abs(gap) < 0.01:
        return "it is about as sure as it should be"
    return "it is surer than it should be" if gap > 0 else "it is less sure than it could be"


def _reliability(axes: Axes, bins: Array) -> None:
    """A bar a bin as high as the share that is right, and a mark at the mean probability."""
    filled = bins[:, 0] > 0
    at = (np.arange(len(bins)) + 0.5)[filled] / len(bins)
    right = bins[filled, 2] / bins[filled, 0]
    said = bins[filled, 1] / bins[filled, 0]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    axes.bar(at, right, width=0.9 / len(bins), color=BLUE, alpha=0.75)
    axes.plot(said, right, "o", color=BLUE, markersize=3.5)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability given", title="share that is right")


def _histogram(axes: Axes, bins: Array) -> None:
    at = (np.arange(len(bins)) + 0.5) / len(bins)
    axes.bar(at, bins[:, 0] / bins[:, 0].sum(), width=0.9 / len(bins), color=GREY)
    axes.set(xlim=(0, 1), xlabel="probability given", title="share of the answers")
