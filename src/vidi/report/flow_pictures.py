"""Pictures of flow: the colour wheel, flow with the wheel as its legend, a sheet of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vidi.engine.flow_fields import FlowField
from vidi.report.contact import flow_colours
from vidi.report.names import plain
from vidi.report.pictures import STYLE, fitted
from vidi.types import Array, Sample

WHEEL = 80
"""Pixels of the legend's wheel."""
PAD = 8
LEAST = 1.0
"""Pixels of full saturation, at least: what hardly moves is not shown in strong colours."""


def full(flow: Array, valid: Array | None = None) -> float:
    """The motion, in pixels, that is shown in full saturation: the 99th percentile of its sizes.

    ``flow``: [H, W, 2]. ``valid``: bool [H, W].
    """
    sizes = np.hypot(flow[..., 0], flow[..., 1])
    known = np.isfinite(sizes) if valid is None else np.isfinite(sizes) & valid
    return max(LEAST, float(np.percentile(sizes[known], 99))) if known.any() else LEAST


def wheel(side: int = WHEEL) -> Array:
    """The colours of all directions up to full saturation, uint8 [side, side, 3], on white: a pixel
    of the disc has the colour of the flow from the disc's centre to it."""
    at = (np.arange(side) + 0.5) * 2 / side - 1
    x, y = np.meshgrid(at, at)
    out = flow_colours(np.stack([x, y], 2), largest=1.0)
    out[np.hypot(x, y) > 1] = 255
    return out


def picture(flow: Array, valid: Array | None = None, largest: float | None = None) -> Array:
    """The flow in colours, and at its right the wheel with the motion of full saturation in pixels:
    uint8 [max(H, 116), W + 96, 3].

    ``flow``: [H, W, 2]; ``valid``: bool [H, W]; ``largest``: by :func:`full` unless told.
    """
    most = full(flow, valid) if largest is None else largest
    h, w = flow.shape[:2]
    tall = max(h, WHEEL + 20 + 2 * PAD)
    out = np.full((tall, w + WHEEL + 2 * PAD, 3), 255, np.uint8)
    out[:h, :w] = flow_colours(flow, valid, most)
    out[PAD : PAD + WHEEL, w + PAD : w + PAD + WHEEL] = wheel()
    text = f"{most:.3g} px"
    (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
    at = (w + PAD + (WHEEL - wide) // 2, PAD + WHEEL + 16)
    cv2.putText(out, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (60, 60, 60), 1, cv2.LINE_AA)
    return out


def save(pixels: Array, path: Path) -> None:
    """uint8 [H, W, 3] as PNG."""
    _, packed = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    path.write_bytes(packed.tobytes())


def sheet(
    rows: Sequence[tuple[Sample, Array]], path: Path, *, titles: Sequence[str] | None = None
) -> None:
    """A row per pair: first frame, second frame, true flow, predicted flow, error, and the second
    frame as the prediction brings it back to the first.

    ``rows``: the sample, with its flow, and the predicted flow, float32 [H, W, 2]. True and
    predicted flow share their colours' scale, which stands beside the wheel. The error is white up
    to black at a quarter of that scale; what is not known is grey in it and black in the truth.
    """
    names = ("frame 1", "frame 2", "true flow", "predicted flow", "error", "frame 2 warped back")
    lines = [
        (sample, *_line(sample, predicted, titles[i] if titles else ""))
        for i, (sample, predicted) in enumerate(rows)
    ]
    width = 2.3
    tall = [s.image.shape[0] / s.image.shape[1] * width + 0.2 for s, *_ in lines]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(len(names) * width + 0.8, sum(tall) + 0.35), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0, wspace=0)  # type: ignore[union-attr,call-arg]
        FigureCanvasAgg(figure)
        widths = [*[width] * len(names), 0.8]
        grid = figure.subplots(
            len(lines), len(widths), squeeze=False, height_ratios=tall, width_ratios=widths
        )
        for k, (cells, (_, pictures, said, most)) in enumerate(zip(grid, lines, strict=True)):
            for axes in cells:
                axes.set_axis_off()
            for axes, name, one, text in zip(cells, names, pictures, said, strict=False):
                axes.imshow(fitted(one))
                heading = plain(f"{name}\n{text}" if k == 0 else text)
                axes.set_title(heading, fontsize=7, color="#333", fontweight="normal", pad=2)
            cells[-1].imshow(wheel())
            cells[-1].set_title(f"{most:.3g} px", fontsize=7, color="#333", fontweight="normal",
                                pad=2)  # fmt: skip
        figure.savefig(path, dpi=150)


def _line(sample: Sample, predicted: Array, title: str) -> tuple[list[Array], list[str], float]:
    """The pictures of a row, what is said above each, and the scale of the colours."""
    assert sample.flow is not None
    assert sample.image2 is not None
    h, w = predicted.shape[:2]
    first, second = (cv2.resize(frame, (w, h)) for frame in (sample.image, sample.image2))
    valid = np.ones((h, w), bool) if sample.flow_valid is None else sample.flow_valid
    most = full(sample.flow, valid)
    apart = np.hypot(*np.moveaxis(predicted - sample.flow, 2, 0))
    shade = np.rint(255 * (1 - np.clip(4 * apart / most, 0, 1))).astype(np.uint8)
    error = np.repeat(shade[..., None], 3, 2)
    error[~valid] = (150, 170, 190)
    epe = f"EPE {apart[valid].mean():.2f} px" if valid.any() else ""
    pictures = [
        first,
        second,
        flow_colours(sample.flow, valid, most),
        flow_colours(predicted, None, most),
        error,
        FlowField(sample.key, "", first, second, predicted).warped,
    ]
    return pictures, [title, "", "", "", epe, ""], most
