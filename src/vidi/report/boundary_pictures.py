"""Pictures of boundaries: the precision-recall curve, a sheet of predictions, maps as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vidi.ops.suppression import suppress
from vidi.report.names import plain
from vidi.report.pictures import BLUE, GREEN, GREY, ORANGE, RED, STYLE, fitted
from vidi.types import Array

HUMAN = (0.7235, 0.9014)
"""Recall and precision of people on BSDS500, where the benchmark's own plots have them: F 0.80."""
COLOURS = (RED, BLUE, GREEN, ORANGE, "#7b4fa3", "#4a4a4a")


def precision_recall(
    curves: Mapping[str, Mapping[str, Any]], path: Path, *, human: bool = False
) -> None:
    """Precision over recall with lines of equal F, and the point of the best F on each curve.

    ``curves``: by name ``{"curve": [{"recall", "precision", …}, …], "ods_at": {…}}`` and, if it is
    there, ``"metrics"`` with ods, ois and ap. ``human``: mark how well people agree on BSDS500.
    """
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(5.2, 4.9), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        _iso_f(axes)
        if human:
            axes.plot(*HUMAN, "o", color=GREEN, markersize=8, label="human, F = 0.80", zorder=4)
        for (name, one), colour in zip(curves.items(), _cycled(len(curves)), strict=True):
            points = [p for p in one["curve"] if p["precision"] > 0 or p["recall"] > 0]
            recall, precision = ([p[key] for p in points] for key in ("recall", "precision"))
            best = one["ods_at"]
            label = f"{plain(name)}: ODS {best['f']:.3f}"
            metrics = one.get("metrics", {})
            label += "".join(
                f", {key.upper()} {metrics[key]:.3f}" for key in ("ois", "ap") if key in metrics
            )
            axes.plot(recall, precision, color=colour, linewidth=1.8, label=label, zorder=3)
            axes.plot(best["recall"], best["precision"], "o", color=colour, markersize=6, zorder=4)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision", aspect="equal")
        axes.legend(loc="lower left", fontsize=8, facecolor="white", framealpha=0.9, frameon=True)
        figure.savefig(path, dpi=150)


def sheet(
    images: Sequence[Array],
    truths: Sequence[Array],
    predictions: Sequence[Array],
    path: Path,
    *,
    titles: Sequence[str] | None = None,
) -> None:
    """A row per sample: image, what annotators drew (the darker, the more of them), the soft
    prediction, and its thin lines.

    ``images``: uint8 [H, W, 3]. ``truths``: uint8 [A, H, W]. ``predictions``: float [H, W].
    """
    rows = []
    for i, (image, truth, soft) in enumerate(zip(images, truths, predictions, strict=True)):
        marked = (truth > 0).mean(0)
        thin = suppress(soft)
        thin = thin / max(1e-6, float(thin.max()))
        rows.append(
            [
                (titles[i] if titles else "" if i else "image", fitted(image)),
                ("" if i else "annotators", _paper(marked)),
                ("" if i else "prediction", _paper(soft)),
                ("" if i else "suppressed", _paper(thin)),
            ]
        )
    width = 2.6
    tall = [
        max(p.shape[0] / p.shape[1] for _, p in row) * width
        + (0.22 if any(t for t, _ in row) else 0)
        for row in rows
    ]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(4 * width, sum(tall) + 0.15), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0, wspace=0)  # type: ignore[union-attr,call-arg]
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), 4, squeeze=False, height_ratios=tall)
        for line, row in zip(grid, rows, strict=True):
            for axes, (title, picture) in zip(line, row, strict=True):
                axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set(visible=True, color="#cccccc", linewidth=0.5)
                if title:
                    axes.set_title(
                        plain(title), fontsize=8, color="#333", fontweight="normal", pad=3
                    )
        figure.savefig(path, dpi=150)


def save_map(values: Array, path: Path) -> None:
    """A boundary map, float [H, W] from 0 to 1, as grey PNG of 8 bits, 255 = 1."""
    _, packed = cv2.imencode(".png", np.rint(255 * values.clip(0, 1)).astype(np.uint8))
    path.write_bytes(packed.tobytes())


def _iso_f(axes: Axes) -> None:
    for f in np.arange(1, 10) / 10:
        # F = 2PR / (P + R), so P = FR / (2R - F), which is 1 at R = F / (2 - F).
        r = np.linspace(f / (2 - f), 1, 200)
        axes.plot(r, f * r / (2 * r - f), color="#cfd8cf", linewidth=0.8, zorder=1)
        axes.annotate(
            f"{f:.1f}", (1, f / (2 - f)), xytext=(3, -3), textcoords="offset points",
            fontsize=7, color=GREY, annotation_clip=False,
        )  # fmt: skip
    axes.annotate("F", (1, 1), xytext=(3, -3), textcoords="offset points", fontsize=7, color=GREY)


def _cycled(n: int) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(n)]


def _paper(share: Array) -> Array:
    """Dark lines on white, uint8."""
    grey = np.rint(255 * (1 - np.clip(share, 0, 1))).astype(np.uint8)
    return fitted(grey)
