"""Contact sheets: samples with their labels drawn, as a person would check them.

Boxes in their class's colour, masks laid over the image with a legend, flow in the colours of Baker
et al. 2011, boundaries in red, the second frame beside the first.
"""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vidi.report.names import plain
from vidi.report.pictures import STYLE
from vidi.types import Array, Boxes, Sample

SIDE = 320
"""Pixels of a tile's longer side."""
IGNORED = (255, 255, 255)
BACKGROUND = "background"
"""A first class of this name is not coloured: the picture shows it."""
MOST_NAMED = 24
"""Classes in a legend."""


def bare(classes: Sequence[str]) -> int | None:
    """The class that is not coloured, if there is one."""
    return 0 if classes and classes[0].lower() == BACKGROUND else None


def sheet(
    samples: Sequence[Sample],
    captions: Sequence[str],
    classes: Sequence[str],
    path: Path,
    *,
    title: str = "",
    palette: Array | None = None,
    columns: int = 4,
) -> None:
    """Write a sheet of at least one sample with their labels drawn, each with its caption below.

    ``palette``: uint8 [K, 3], the classes' colours; chosen where it is None.
    """
    colours = colours_of(len(classes), palette)
    tiles = [tile(sample, classes, colours) for sample in samples]
    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns)
    shown = sorted(set().union(*(_classes_in(s) for s in samples)))
    shown = [k for k in shown if 0 <= k < len(classes)]
    aspects = [t.shape[0] / t.shape[1] for t in tiles]
    # Each row is as high as its highest picture.
    tall = [min(max(aspects[i : i + columns]), 1.6) for i in range(0, len(tiles), columns)]
    lines = max((_wrapped(c).count("\n") + 1 for c in captions), default=1)
    width = 2.9 if tiles and max(t.shape[1] for t in tiles) <= SIDE else 4.2
    below = 0.28 * (-(-min(len(shown), MOST_NAMED) // 6)) if shown else 0.0
    text = 0.15 * lines + 0.06
    height = width * sum(tall) + rows * text + 0.3 + below
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(width * columns, height), layout="constrained")
        FigureCanvasAgg(figure)
        ratios = [width * part + text for part in tall]
        grid = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios).ravel()
        for axes in grid:
            axes.set_axis_off()
            axes.set_anchor("N")
        for axes, picture, caption in zip(grid[: len(tiles)], tiles, captions, strict=True):
            axes.imshow(picture, interpolation="nearest" if picture.shape[0] < 64 else None)
            axes.set_title(plain(_wrapped(caption)), fontsize=7, color="#333", fontweight="normal",
                           y=0, va="top", pad=-4)  # fmt: skip
        if title:
            # About 13 letters an inch.
            whole = textwrap.fill(title, max(20, int(13 * width * columns)))
            figure.suptitle(plain(whole), fontsize=10 if columns > 1 else 8, fontweight="bold")
        if shown:
            _legend(figure, shown, classes, colours)
        figure.savefig(path, dpi=110)


def tile(sample: Sample, classes: Sequence[str], colours: Array) -> Array:
    """The sample with its labels drawn: uint8 [h, w, 3], the longer side of each panel at most 320
    pixels. Flow has two panels: the first frame, and the flow in colours."""
    image = _fitted(sample.image, cv2.INTER_AREA)
    scale = image.shape[1] / sample.image.shape[1]
    panels = [image]
    if sample.mask is not None:
        mask = _fitted(sample.mask, cv2.INTER_NEAREST)
        panels[0] = overlaid(image, mask, colours, bare=bare(classes))
    if sample.flow is not None:
        valid = None
        if sample.flow_valid is not None:
            valid = _fitted(sample.flow_valid.astype(np.uint8), cv2.INTER_NEAREST) > 0
        panels.append(flow_colours(_fitted(sample.flow, cv2.INTER_NEAREST), valid))
    if sample.edges is not None:
        # Thin lines must outlive the shrinking: the strongest of the pixels that become one.
        shown = _strongest(sample.edges, image.shape[:2])
        red = np.array([230, 20, 20], np.float32)
        panels[0] = (image * (1 - shown) + red * shown).astype(np.uint8)
        every = _mean(sample.edges, image.shape[:2])
        panels.append(np.repeat((255 - 255 * every).astype(np.uint8)[:, :, None], 3, axis=2))
    if sample.boxes is not None:
        panels[0] = _boxed(image, sample.boxes, scale, colours)
    if len(panels) == 1:
        return panels[0]
    gap = np.full((image.shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=1)


def colours_of(k: int, palette: Array | None = None) -> Array:
    """uint8 [K, 3]: one colour per class, neighbours in number far apart in hue."""
    if palette is not None and len(palette) >= k:
        return np.asarray(palette[:k], np.uint8)
    golden = 0.618034
    rows = [
        colorsys.hsv_to_rgb((0.02 + golden * i) % 1, (0.85, 0.65, 0.95)[i % 3], (0.95, 0.8)[i % 2])
        for i in range(k)
    ]
    return (np.array(rows).reshape(-1, 3) * 255).round().astype(np.uint8)


def overlaid(
    image: Array, mask: Array, colours: Array, *, weight: float = 0.55, bare: int | None = None
) -> Array:
    """The mask in its classes' colours over the image, both [h, w]. Ignored pixels (255) are
    hatched white, values of no class black; the class ``bare`` is left as it is."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours[:255]
    numbers = np.clip(mask.astype(np.int64), -1, 10**6)
    strange = (numbers < 0) | ((numbers >= len(colours)) & (numbers != 255))
    over = table[np.where(strange | (numbers > 255), 0, numbers)]
    out: Array = image * (1 - weight) + over * weight
    if bare is not None:
        out[numbers == bare] = image[numbers == bare]
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    ignored: Array = np.asarray(numbers == 255)
    out[ignored] = image[ignored]
    out[ignored & ((x + y) % 6 < 2)] = IGNORED
    out[strange] = 0
    painted: Array = out.round().astype(np.uint8)
    return painted


def flow_colours(flow: Array, valid: Array | None = None, largest: float | None = None) -> Array:
    """Flow as colour: hue is its direction, saturation its size; zero is white, unknown is black.

    ``flow``: [h, w, 2]; ``largest``: the size, in pixels, of full saturation (the 99th percentile
    where it is None). The wheel is that of Baker et al. 2011, "A Database and Evaluation
    Methodology for Optical Flow", section 4.
    """
    known = np.asarray(np.isfinite(flow).all(2))
    if valid is not None:
        known &= valid
    flow = np.where(known[..., None], flow, 0).astype(np.float64)
    size = np.hypot(flow[..., 0], flow[..., 1])
    if largest is None:
        largest = float(np.percentile(size[known], 99)) if known.any() else 0.0
    size = size / max(largest, 1e-6)
    wheel = _wheel()
    # Position on the wheel: angle -pi … pi of (-u, -v) to 0 … its length.
    at = (np.arctan2(-flow[..., 1], -flow[..., 0]) / np.pi + 1) / 2 * (len(wheel) - 1)
    low = np.floor(at).astype(int)
    share = (at - low)[..., None]
    colour = (1 - share) * wheel[low] + share * wheel[(low + 1) % len(wheel)]
    within = np.minimum(size, 1)[..., None]
    out: Array = 1 - within * (1 - colour)
    out[size > 1] *= 0.75
    out[~known] = 0
    painted: Array = (out * 255).round().astype(np.uint8)
    return painted


def _wheel() -> Array:
    """[55, 3]: from red over yellow, green, cyan, blue and magenta back to red, in steps of Baker
    et al. that match how finely the eye tells the hues."""
    parts = (
        (15, 0, 1, True),
        (6, 0, 1, False),
        (4, 1, 2, True),
        (11, 1, 2, False),
        (13, 2, 0, True),
        (6, 2, 0, False),
    )
    rows = []
    for steps, one, other, rising in parts:
        for i in range(steps):
            colour = [0.0, 0.0, 0.0]
            colour[one] = 1.0 if rising else 1 - i / steps
            colour[other] = i / steps if rising else 1.0
            rows.append(colour)
    return np.array(rows)


def _boxed(image: Array, boxes: Boxes, scale: float, colours: Array) -> Array:
    out = image.copy()
    h, w = image.shape[:2]
    for xyxy, label in zip(boxes.xyxy, boxes.labels.tolist(), strict=True):
        if not np.isfinite(xyxy).all():
            continue
        left, top, right, bottom = (
            int(v) for v in np.clip(np.rint(xyxy * scale), -1, 2 * max(h, w))
        )
        colour = tuple(int(c) for c in colours[label]) if 0 <= label < len(colours) else (0, 0, 0)
        corners = (left, top), (max(right - 1, left), max(bottom - 1, top))
        cv2.rectangle(out, *corners, (255, 255, 255), 3, cv2.LINE_AA)
        cv2.rectangle(out, *corners, colour, 2, cv2.LINE_AA)
        if min(right - left, bottom - top) <= 3:  # a box of nothing is seen by a ring about it
            cv2.circle(out, (left, top), 8, (255, 255, 255), 4, cv2.LINE_AA)
            cv2.circle(out, (left, top), 8, colour, 2, cv2.LINE_AA)
    return out


def _legend(figure: Figure, shown: list[int], classes: Sequence[str], colours: Array) -> None:
    named = shown[:MOST_NAMED]
    handles: list[Any] = [Patch(facecolor=colours[k] / 255, label=plain(classes[k])) for k in named]
    if len(shown) > len(named):
        handles.append(Patch(facecolor="none", label=f"and {len(shown) - len(named)} more"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7)


def _classes_in(sample: Sample) -> set[int]:
    found: set[int] = set()
    if sample.boxes is not None:
        found |= set(np.asarray(sample.boxes.labels).tolist())
    if sample.mask is not None:
        found |= set(np.unique(sample.mask).tolist()) - {255}
    return found


def _fitted(array: Array, interpolation: int) -> Array:
    h, w = array.shape[:2]
    scale = min(1.0, SIDE / max(h, w))
    if scale == 1.0:
        return array
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    if array.dtype not in (np.uint8, np.float32):
        array = array.astype(np.float32)  # what OpenCV resizes; class numbers stay whole in it
    return np.asarray(cv2.resize(array, size, interpolation=interpolation))


def _strongest(edges: Array, shape: tuple[int, int]) -> Array:
    """[h, w, 1] in [0, 1]: where any annotator has a boundary."""
    return _shrunk(edges.max(0), shape)


def _mean(edges: Array, shape: tuple[int, int]) -> Array:
    """[h, w] in [0, 1]: the share of annotators that have a boundary there."""
    every = [_shrunk(one, shape)[..., 0] for one in edges]
    return np.asarray(np.mean(every, 0))


def _shrunk(array: Array, shape: tuple[int, int]) -> Array:
    h, w = array.shape
    if (h, w) == shape:
        return array[..., None].astype(np.float32) / 255
    rows = (np.arange(shape[0]) * h) // shape[0]
    columns = (np.arange(shape[1]) * w) // shape[1]
    joined = np.maximum.reduceat(np.maximum.reduceat(array, rows, axis=0), columns, axis=1)
    return joined[..., None].astype(np.float32) / 255


def _wrapped(caption: str, width: int = 46, most: int = 3) -> str:
    """Broken into lines, within words if need be: keys are paths without spaces."""
    lines = []
    for line in caption.split("\n"):
        lines += textwrap.wrap(line, width, break_on_hyphens=False) or [""]
    return "\n".join(lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + "…"])
