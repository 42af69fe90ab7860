"""Heat maps: a class's probability laid over the image, and a sheet of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vidi.engine.heatmaps import HeatMap
from vidi.report.names import plain
from vidi.report.pictures import STYLE, _save, _short
from vidi.types import Array

COLOURS = "inferno"
NORM = PowerNorm(0.5, 0, 1)
"""The square root shows weak evidence, too, and is the same for all pictures."""
TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.5, 1)
LARGEST = 1200
"""Pixels of the longer side that are drawn; a figure has no more."""
ON_A_SHEET = 24


def draw(found: HeatMap, path: Path) -> None:
    """Write the image beside itself with the map over it, as a PNG, with a scale of colours."""
    h, w = found.image.shape[:2]
    across = w < 1.6 * h  # a broad image stands above, not beside, its map
    unit = 3.6 / max(h, w) if across else 7.2 / w
    wide, high = max(2.2, w * unit), max(1.2, h * unit)
    size = (2 * wide + 1.0, high + 0.6) if across else (wide + 1.0, 2 * high + 0.6)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = list(figure.subplots(*((1, 2) if across else (2, 1)), squeeze=False).ravel())
        image, heat = _fitted(found)
        for axes, panel in zip(grid, (image, _blended(image, heat)), strict=True):
            axes.set_axis_off()
            axes.imshow(panel)
        _scale(figure, grid, shrink=0.9)
        figure.suptitle(_title(found), fontsize=10, fontweight="bold")
        _save(figure, path)


def sheet(found: Sequence[HeatMap], path: Path, *, columns: int = 4) -> None:
    """Write the first 24 maps as one PNG, each image beside its map."""
    shown = list(found)[:ON_A_SHEET]
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3.1 * columns + 0.8, 1.72 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, one in zip(grid[: len(shown)], shown, strict=True):
            image, heat = _fitted(one)
            side = max(image.shape[:2])
            both = np.full((side, 2 * side + side // 24, 3), 255, np.uint8)
            for x, panel in ((0, image), (side + side // 24, _blended(image, heat))):
                top, left = (side - panel.shape[0]) // 2, x + (side - panel.shape[1]) // 2
                both[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
            axes.imshow(both)
            axes.set_title(_title(one), fontsize=8, color="#333", fontweight="normal", pad=3)
        _scale(figure, list(grid), shrink=min(0.9, 3 / rows))
        _save(figure, path)


def _scale(figure: Figure, panels: list[Axes], *, shrink: float) -> None:
    bar = figure.colorbar(
        ScalarMappable(NORM, COLOURS), ax=panels, shrink=shrink, pad=0.02, aspect=24, ticks=TICKS
    )
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label("probability in the window about the pixel", fontsize=8)


def _fitted(found: HeatMap) -> tuple[Array, Array]:
    """Image and map, the longer side at most ``LARGEST``."""
    step = -(-max(found.image.shape[:2]) // LARGEST)
    return found.image[::step, ::step], found.over()[::step, ::step]


def _blended(image: Array, heat: Array) -> Array:
    """uint8 [H, W, 3]: the map's colours over the grey image, which stays to be seen."""
    grey = image @ np.array([0.299, 0.587, 0.114])
    colours = matplotlib.colormaps[COLOURS](NORM(heat))[..., :3] * 255
    out: Array = (0.45 * grey[..., None] + 0.55 * colours).round().astype(np.uint8)
    return out


def _title(found: HeatMap) -> str:
    return f"{plain(_short(found.label))}  {found.probability:.0%}"
