"""The pictures of a run: learning curves, confusion matrix, predictions.

Drawn with matplotlib's ``Figure`` itself, never with ``pyplot``: no window is opened, and a
notebook's own figures and backend stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vidi.report.names import plain
from vidi.types import Array

BLUE, ORANGE, GREY, RED, GREEN = "#1f6fb4", "#e07a1f", "#8a8f98", "#c8322b", "#2c8a4b"

STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "legend.frameon": False,
}

SIDE = 480
"""Pixels of a picture on a sheet of predictions, at most."""
NAMED, COUNTED = 60, 20
"""Up to so many classes, a confusion matrix has names at its axes, and counts in its cells."""
LONG = 100_000
"""A count from which on it does not fit into its cell."""


def curves(
    history: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    headline: str = "accuracy",
    lower_is_better: bool = False,
) -> None:
    """Loss, headline metric and learning rate over the epochs.

    ``history``: the rows of metrics.jsonl. A value that was not finite (null there) leaves a gap.
    ``lower_is_better``: of the headline.
    """
    with matplotlib.rc_context(STYLE):
        figure, (loss, metric, rate) = _figure(11, 3.4, 3, (1.2, 1.2, 0.8))
        losses(loss, history)
        headlines(metric, history, headline, lower_is_better=lower_is_better)
        rates(rate, history)
        _save(figure, path)


def losses(axes: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """The loss of training, step by step and between evaluations, and that of validation."""
    steps, rows = _of(history, "train"), _of(history, "evaluation")
    epochs = [row["epoch"] for row in rows]
    axes.plot(
        [row["epoch"] for row in steps],
        _values(steps, "loss"),
        color=BLUE,
        alpha=0.25,
        linewidth=0.8,
    )
    _line(axes, epochs, _values(rows, "train_loss"), BLUE, "training")
    validation = [row["metrics"].get("cross_entropy") for row in rows]
    if any(v is not None for v in validation):
        _line(axes, epochs, _finite(validation), ORANGE, "validation")
    axes.set(title="loss", xlabel="epoch")
    # The first steps' loss may tower over all that matters.
    later = [v for v in _values(steps, "loss")[len(steps) // 10 :] if np.isfinite(v)]
    if later:
        shown = [*later, *_finite(validation), *_values(rows, "train_loss")]
        axes.set_ylim(0, 1.05 * float(np.nanmax(shown)))
    if rows:
        axes.legend()
    axes.set_xlim(left=0)


def headlines(
    axes: Axes,
    history: Sequence[Mapping[str, Any]],
    headline: str,
    *,
    lower_is_better: bool = False,
) -> None:
    """The headline metric of each evaluation, the best of them in red."""
    rows = _of(history, "evaluation")
    epochs = [row["epoch"] for row in rows]
    values = _finite([row["metrics"].get(headline) for row in rows])
    _line(axes, epochs, values, ORANGE, "validation")
    if np.isfinite(values).any():
        # The last of equals, as the engine keeps it.
        found = np.nanargmin if lower_is_better else np.nanargmax
        best = len(values) - 1 - int(found(values[::-1]))
        axes.plot(epochs[best], values[best], "o", color=RED, markersize=6)
        axes.set_title(f"{headline}: best {values[best]:.4f} at epoch {epochs[best]:.4g}")
    else:
        axes.set_title(headline)
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)


def rates(axes: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """The learning rate, step by step."""
    steps = _of(history, "train")
    axes.plot([row["epoch"] for row in steps], _values(steps, "lr"), color=GREEN)
    axes.set(title="learning rate", xlabel="epoch")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def confusion(matrix: Array, classes: Sequence[str], path: Path, *, unit: str = "samples") -> None:
    """The confusion matrix, rows (true classes) scaled to sum to one.

    ``matrix``: int [K, K], [truth, predicted]. Names stand at the axes, and counts in the cells
    (shares of the true class where counts are too long), as long as they fit; beyond that the most
    frequent confusions are listed beside the picture. ``unit``: what is counted.
    """
    counts = np.asarray(matrix, np.int64)
    k = len(classes)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = float(np.clip(1.8 + 0.42 * k, 4.2, 11))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, (axes, *beside) = (
            _figure(side + 4.8, side, 2, (1, 0.4)) if k > NAMED else _figure(side + 0.8, side, 1)
        )
        # The square root shows rare confusions, too, which is what one looks for.
        norm = PowerNorm(0.5, 0, 1)
        shown = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, ticks=(0, 0.01, 0.05, 0.2, 0.5, 1))
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)
        bar.set_label("share of the true class")
        correct = np.trace(counts) / max(1, counts.sum())
        axes.set_title(f"{counts.sum():,} {unit}, {correct:.2%} right")
        axes.set(xlabel="predicted", ylabel="true")
        for spine in axes.spines.values():
            spine.set_visible(False)
        if k <= NAMED:
            names = [plain(_short(name)) for name in classes]
            long = max(map(len, names)) > 3
            size = 9 if k <= 30 else 7
            axes.set_xticks(range(k), names, rotation=90 if long else 0, fontsize=size)
            axes.set_yticks(range(k), names, fontsize=size)
            axes.tick_params(length=0)
        else:
            axes.set(xlabel="predicted (number of the class)", ylabel="true (number of the class)")
            beside[0].set_axis_off()
            listed = plain(_commonest(counts, classes))
            beside[0].text(0, 1, listed, va="top", fontsize=9, linespacing=1.6)
        if k <= COUNTED:
            long = counts.max(initial=0) >= LONG
            for i, j in zip(*np.nonzero(counts), strict=True):
                colour = "white" if shares[i, j] > 0.3 else "#333"
                text = f"{shares[i, j]:.0%}" if long else f"{counts[i, j]:,}"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
        _save(figure, path)


def predictions(
    images: Sequence[Array],
    truths: Sequence[str],
    predicted: Sequence[tuple[str, float]],
    path: Path,
    *,
    title: str = "",
    columns: int = 8,
) -> None:
    """A grid of images with what was predicted; mistakes in red, with the truth.

    ``images``: uint8 [H, W, 3] each, of any size. ``predicted``: (class, probability).
    """
    columns = min(columns, max(1, len(images)))
    rows = -(-len(images) // columns)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.35 * columns, 1.6 * rows + 0.5), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, image, truth, (label, probability) in zip(
            grid[: len(images)], images, truths, predicted, strict=True
        ):
            axes.imshow(image, interpolation="nearest" if max(image.shape) < 64 else "antialiased")
            right = label == truth
            text = f"{plain(_short(label))}  {probability:.0%}"
            if not right:
                text += f"\nis {plain(_short(truth))}"
            axes.set_title(text, fontsize=8, color="#333" if right else RED, fontweight="normal")
        if title:
            figure.suptitle(plain(title), fontsize=10, fontweight="bold")
        _save(figure, path)


def fitted(picture: Array, side: int = SIDE) -> Array:
    """Shrunk by areas to a longer side of at most ``side``; uint8 [H, W] or [H, W, 3]."""
    h, w = picture.shape[:2]
    scale = side / max(h, w)
    if scale >= 1:
        return picture
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _commonest(counts: Array, classes: Sequence[str], most: int = 25) -> str:
    off = counts - np.diag(np.diag(counts))
    lines = ["most frequent confusions (true → predicted)", ""]
    for flat in np.argsort(-off, axis=None, kind="stable")[:most]:
        i, j = np.unravel_index(flat, off.shape)
        if not off[i, j]:
            break
        share = off[i, j] / counts[i].sum()
        lines.append(f"{off[i, j]:,} ({share:.0%})  {_short(classes[i])} → {_short(classes[j])}")
    return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


def _figure(
    width: float, height: float, panels: int, ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False, width_ratios=ratios)
    return figure, list(axes[0])


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str) -> None:
    marker = "o" if len(x) <= 30 else ""
    axes.plot(x, y, color=colour, marker=marker, markersize=3, linewidth=1.5, label=label)


def _of(history: Sequence[Mapping[str, Any]], event: str) -> list[Mapping[str, Any]]:
    return [row for row in history if row["event"] == event]


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return _finite([row.get(name) for row in rows])


def _finite(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
