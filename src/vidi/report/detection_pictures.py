"""Pictures of detections: boxes with names over an image, a sheet of what is right and wrong,
precision-recall curves, and the kinds of error.

Letters and lines are drawn on the pixels that are saved, at sizes that are read without zooming:
tiny images are enlarged, large ones shrunk.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image, ImageDraw, ImageFont

from vidi.ops.detection_errors import KINDS, kinds
from vidi.report.contact import colours_of
from vidi.report.names import plain
from vidi.report.pictures import BLUE, GREEN, GREY, ORANGE, RED, STYLE
from vidi.types import Array, Boxes, Detections, Sample

Colour = tuple[int, int, int]

LEAST = 0.5
"""The smallest score that is shown."""
LARGEST, USUAL = 1600, 640
"""A picture's longer side in pixels: at most, and about what smaller images are enlarged to."""
PANEL = 470, 560
"""Pixels of a panel on a sheet, width and height at most."""
GAP = 6
CROWDED = 12
"""From so many objects on, letters are smaller and lines thinner."""
LETTERS = 22
"""Of a class's name; the rest is cut off."""
BARS = 30
"""Classes in a picture of errors."""

KIND_COLOURS = {
    "correct": GREEN,
    "duplicate": BLUE,
    "wrong_class": "#a03fb0",
    "poor_box": ORANGE,
    "both": "#7a4a1d",
    "background": RED,
    "missed": "#ffffff",
}
KIND_NAMES = {
    "correct": "right",
    "duplicate": "found twice",
    "wrong_class": "wrong class",
    "poor_box": "poor box",
    "both": "wrong class, poor box",
    "background": "background",
    "missed": "missed",
}


@dataclass(frozen=True)
class Marked:
    """A box to be drawn: xyxy in pixels, and what stands at it ("" = nothing)."""

    box: tuple[float, float, float, float]
    text: str
    colour: Colour
    dashed: bool = False


def draw(
    image: Array,
    found: Detections,
    classes: Sequence[str],
    colours: Array,
    least: float = LEAST,
) -> Array:
    """The image with what was found in it: boxes in their classes' colours with name and score.

    ``image``: uint8 [H, W, 3]. ``colours``: uint8 [K, 3], of the classes. ``least``: the smallest
    score that is shown. The picture, uint8 [h, w, 3], is smaller than an image of more than 1600
    pixels a side, and a whole number of times larger than a tiny one.
    """
    picture, scale = legible(image)
    marked = [
        Marked(_scaled(box, scale), f"{_short(classes[k])} {score:.2f}", rgb(colours[k]))
        for box, k, score in zip(
            found.xyxy.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
        )
        if score >= least
    ]
    return _drawn(picture, marked)


def sheet(
    rows: Sequence[tuple[Sample, Detections]],
    classes: Sequence[str],
    path: Path,
    *,
    colours: Array | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    titles: Sequence[str] | None = None,
    least: float = LEAST,
) -> None:
    """At least one image twice: with its true boxes, and with what was found, each detection in the
    colour of its kind, and missed objects dashed.

    ``sizes``: (height, width) to which the boxes belong, where a sample's image was shrunk.
    ``colours``: of the classes, uint8 [K, 3]. Detections that score less than ``least`` are left
    out, and those that find a difficult object or a crowd are grey.
    """
    colours = colours_of(len(classes), colours)
    pairs = []
    for i, (sample, found) in enumerate(rows):
        height = sample.image.shape[0] if sizes is None else sizes[i][0]
        title = titles[i] if titles else sample.key
        pairs.append(_pair(sample, found, classes, colours, height, title, least))
    across = 1 if len(pairs) == 1 else 2
    lines = [_beside(pairs[k : k + across]) for k in range(0, len(pairs), across)]
    lines.append(_legend(lines[0].shape[1]))
    width = max(line.shape[1] for line in lines)
    whole = np.concatenate([_padded(line, width) for line in lines])
    out = np.pad(whole, ((GAP, 0), (2 * GAP, 0), (0, 0)), constant_values=255)
    path.write_bytes(cv2.imencode(".png", out[:, :, ::-1])[1].tobytes())


def precision_recall(
    rows: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Precision over recall at an overlap of 0.5, a curve per class: the greatest precision at that
    recall or more, whose mean is the average precision.

    ``rows``: per class ``{"class", "ap50", …}``, NaN where there is no object. ``curves``: in the
    same order ``{"recall", "precision", …}``, recall ascending. Of more than 12 classes the mean is
    drawn, and the best and the worst are named.
    """
    recall = np.linspace(0, 1, 101)
    named = [
        (
            float(row["ap50"]),
            _envelope(np.array(one["recall"], float), np.array(one["precision"], float), recall),
            row["class"],
        )
        for row, one in zip(rows, curves, strict=True)
        if not math.isnan(row["ap50"])
    ]
    named.sort(key=lambda item: -item[0])
    many = len(named) > CROWDED
    shown = [*named[:4], *named[-4:]] if many else named
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        if many:
            for _, precision, _ in named:
                axes.plot(recall, precision, color="#c9ced4", linewidth=0.7, zorder=1)
        hues = colours_of(len(shown)) / 255
        for (value, precision, name), hue in zip(shown, hues, strict=True):
            label = f"{value:.3f}  {plain(_short(name))}"
            axes.plot(recall, precision, color=hue, linewidth=1.5, label=label, zorder=3)
        if len(named) > 1:
            mean = np.mean([precision for _, precision, _ in named], axis=0)
            label = f"{np.mean([value for value, *_ in named]):.3f}  mean of {len(named)}"
            axes.plot(recall, mean, color="#222222", linewidth=2.6, label=label, zorder=4)
        axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.set_title("precision and recall at an overlap of 0.5")
        if named:
            title = "AP50, best and worst" if many else "AP50"
            figure.legend(
                loc="outside right upper", title=title, alignment="left", fontsize=8,
                title_fontsize=8,
            )  # fmt: skip
        figure.savefig(path, dpi=150)


# Boxes on pixels ---------------------------------------------------------------------------------


def _drawn(picture: Array, marked: Sequence[Marked]) -> Array:
    """The surest come first: their boxes lie over the others, and their names choose their
    places first."""
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    h, w = picture.shape[:2]
    crowded = len(marked) > CROWDED
    line = int(np.clip(max(h, w) / 300, 2, 5)) - (crowded and max(h, w) > 900)
    letters = font_of(int(np.clip(max(h, w) / 48, 12, 24) * (0.85 if crowded else 1)))
    corners = [_corners(one.box, h, w) for one in marked]
    for one, at in zip(reversed(marked), reversed(corners), strict=True):
        _outline(pen, at, one, line)
    tabs: list[tuple[int, int, int, int]] = []
    texts = []
    for one, at in zip(marked, corners, strict=True):
        if one.text:
            text = fitting(one.text, letters, w - 6)
            tabs.append(_place(at, _tab_size(text, letters), (h, w), tabs, line))
            texts.append((text, one.colour))
    for (text, colour), tab in zip(reversed(texts), reversed(tabs), strict=True):
        left, top, right, bottom = tab
        pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        at_text = (left + 3, (top + bottom) / 2)
        pen.text(at_text, text, font=letters, fill=_contrast(colour), anchor="lm")
    return np.asarray(canvas)


def _outline(
    pen: ImageDraw.ImageDraw, at: tuple[int, int, int, int], one: Marked, line: int
) -> None:
    left, top, right, bottom = at
    # Lines of a small box are thin, or it would be all line.
    line = max(1, min(line, (min(right - left, bottom - top) + 2) // 6))
    halo = (0, 0, 0) if _contrast(one.colour) == (0, 0, 0) else (255, 255, 255)
    pen.rectangle((left - 1, top - 1, right, bottom), outline=halo, width=line + 2)
    if not one.dashed:
        pen.rectangle((left, top, right - 1, bottom - 1), outline=one.colour, width=line)
        return
    dash = 5 * line
    for x in range(left, right, 2 * dash):
        for y in (top, bottom - line):
            pen.rectangle((x, y, min(x + dash, right) - 1, y + line - 1), fill=one.colour)
    for y in range(top, bottom, 2 * dash):
        for x in (left, right - line):
            pen.rectangle((x, y, x + line - 1, min(y + dash, bottom) - 1), fill=one.colour)


def _place(
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    within: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
    line: int,
) -> tuple[int, int, int, int]:
    """Where a tab of this size (w, h) stands: at a corner of its box, wholly inside the picture
    (h, w), and over as little of other tabs as can be."""
    left, top, right, bottom = box
    wide, tall = size
    height, width = within
    best, least = (0, 0, wide, tall), math.inf
    for rank, (x, y) in enumerate(
        (
            (left, top - tall),
            (left + line, top + line),
            (right - wide, top - tall),
            (left, bottom),
            (right - wide, bottom),
            (left + line, bottom - tall - line),
        )
    ):
        inside_x, inside_y = (
            max(0, min(x, width - wide)), max(0, min(y, height - tall)),
        )  # fmt: skip
        tab = (inside_x, inside_y, inside_x + wide, inside_y + tall)
        covered = sum(_common(tab, other) for other in taken)
        moved = abs(inside_x - x) + 2 * abs(inside_y - y)
        cost = covered + 0.5 * tall * moved + 0.01 * rank
        if cost < least:
            best, least = tab, cost
    return best


def _common(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, wide) * max(0, tall)


def _corners(box: tuple[float, ...], h: int, w: int) -> tuple[int, int, int, int]:
    """Whole pixels within the picture, one at least."""
    x0, y0, x1, y1 = np.nan_to_num(np.array(box), nan=0.0, posinf=1e6, neginf=-1e6).tolist()
    left, top = (int(np.clip(round(a), 0, side - 1)) for a, side in ((x0, w), (y0, h)))
    right, bottom = (int(np.clip(round(a), 0, side)) for a, side in ((x1, w), (y1, h)))
    return left, top, max(right, left + 1), max(bottom, top + 1)


@functools.cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Letters of a height of about ``size`` pixels."""
    # matplotlib brings it; it has the letters of most of Europe's languages.
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _tab_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    ascent, descent = font.getmetrics()
    return math.ceil(font.getlength(text)) + 6, ascent + descent


def fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """As much of the text's beginning as is no wider than ``width`` pixels."""
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text


def _contrast(colour: Colour) -> Colour:
    """Black on bright colours, white on dark ones."""
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if bright > 140 else (255, 255, 255)


def legible(image: Array) -> tuple[Array, float]:
    """The image at a size at which letters can be read on it, and how much larger it is."""
    h, w = image.shape[:2]
    longer = max(h, w)
    if longer > LARGEST:
        return _resized(image, LARGEST / longer)
    times = max(1, round(USUAL / longer))
    return image.repeat(times, axis=0).repeat(times, axis=1), float(times)


def _resized(image: Array, scale: float) -> tuple[Array, float]:
    h, w = image.shape[:2]
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how)), scale


def _scaled(box: Sequence[float], scale: float) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (scale * v for v in box)
    return x0, y0, x1, y1


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"


def rgb(colour: Any) -> Colour:
    """Of "#rrggbb", or of three numbers."""
    if isinstance(colour, str):
        return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
    r, g, b = (int(v) for v in colour)
    return r, g, b


# The sheet ---------------------------------------------------------------------------------------


def _pair(
    sample: Sample,
    found: Detections,
    classes: Sequence[str],
    colours: Array,
    height: int,
    title: str,
    least: float,
) -> Array:
    """The image with its truth, and with what was found, under a title. ``height``: in pixels, of
    the image to which the boxes belong."""
    truth, told, counts = judged(sample, found, classes, colours, height, least)
    gap = np.full((truth.shape[0], GAP, 3), 255, np.uint8)
    panels = np.concatenate([truth, gap, told], axis=1)
    return np.concatenate([_heading(title, counts, panels.shape[1]), panels])


def judged(
    sample: Sample,
    found: Detections,
    classes: Sequence[str],
    colours: Array,
    height: int,
    least: float = LEAST,
) -> tuple[Array, Array, str]:
    """(the image with its true boxes, the same with what was found, each detection in the colour of
    its kind and missed objects dashed, how many were found and how many are wrong, in words).

    ``colours``: of the classes, uint8 [K, 3]. ``height``: in pixels, of the image to which the
    boxes belong.
    """
    h, w = sample.image.shape[:2]
    picture, _ = _resized(sample.image, min(PANEL[0] / w, PANEL[1] / h))
    scale = picture.shape[0] / height
    boxes = sample.boxes if sample.boxes is not None else _no_boxes()
    kind, missed = kinds(found, boxes, least)
    truth = [
        Marked(
            _scaled(box, scale),
            _short(classes[label]),
            rgb(colours[label]),
            dashed=bool(boxes.difficult[n] or boxes.crowd[n]),
        )
        for n, (box, label) in enumerate(
            zip(boxes.xyxy.tolist(), boxes.labels.tolist(), strict=True)
        )
    ]
    told = [
        Marked(
            _scaled(found.xyxy[d].tolist(), scale),
            f"{_short(classes[int(found.labels[d])])} {found.scores[d]:.2f}",
            rgb(KIND_COLOURS[KINDS[kind[d]]] if kind[d] >= 0 else GREY),
        )
        for d in np.flatnonzero(found.scores >= least)
    ]
    # Errors before what is right: they are what one looks for.
    order = sorted(range(len(told)), key=lambda k: told[k].colour == rgb(GREEN))
    told = [told[k] for k in order]
    told += [
        Marked(
            _scaled(boxes.xyxy[n].tolist(), scale),
            _short(classes[int(boxes.labels[n])]),
            rgb(KIND_COLOURS["missed"]),
            dashed=True,
        )
        for n in np.flatnonzero(missed)
    ]
    right = int((kind == KINDS.index("correct")).sum())
    wrong = int((kind >= 0).sum()) - right
    counts = f"{right} of {right + int(missed.sum())} found, {wrong} wrong"
    return _drawn(picture, truth), _drawn(picture, told), counts


def _heading(title: str, counts: str, width: int) -> Array:
    """The title at the left and the counts at the right, in a line above the panels."""
    canvas = Image.new("RGB", (width, 22), "white")
    pen = ImageDraw.Draw(canvas)
    font = font_of(13)
    room = width - math.ceil(font.getlength(counts)) - 12
    # Keys are paths: the end says which image it is.
    while len(title) > 1 and font.getlength(title) > room:
        title = "…" + title[2:]
    pen.text((1, 11), title, font=font, fill=(60, 60, 60), anchor="lm")
    pen.text((width - 1, 11), counts, font=font, fill=(60, 60, 60), anchor="rm")
    return np.asarray(canvas)


def _legend(width: int) -> Array:
    font = font_of(14)
    entries = [
        ("left: the truth; right:", None),
        *((KIND_NAMES[name], rgb(colour)) for name, colour in KIND_COLOURS.items()),
        ("counts for nothing", rgb(GREY)),
    ]
    canvas = Image.new("RGB", (width, 400), "white")
    pen = ImageDraw.Draw(canvas)
    x, y = 2, 6
    for text, colour in entries:
        wide = math.ceil(font.getlength(text)) + (0 if colour is None else 30) + 18
        if x + wide > width and x > 2:
            x, y = 2, y + 24
        if colour is not None:
            one = Marked((0, 0, 0, 0), "", colour, dashed=text == KIND_NAMES["missed"])
            _outline(pen, (x, y + 1, x + 24, y + 17), one, 3)
        at = x + (0 if colour is None else 30)
        pen.text((at, y + 9), text, font=font, fill=(40, 40, 40), anchor="lm")
        x += wide
    return np.asarray(canvas)[: y + 28]


def _beside(pairs: Sequence[Array]) -> Array:
    tall = max(pair.shape[0] for pair in pairs)
    width = max(pair.shape[1] for pair in pairs)
    parts = []
    for pair in pairs:
        out = np.full((tall + 2 * GAP, width + 3 * GAP, 3), 255, np.uint8)
        out[: pair.shape[0], : pair.shape[1]] = pair
        parts.append(out)
    return np.concatenate(parts, axis=1)


def _padded(line: Array, width: int) -> Array:
    return np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255)


def _no_boxes() -> Boxes:
    no = np.zeros(0, bool)
    return Boxes(
        xyxy=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), difficult=no, crowd=no
    )


# Curves ------------------------------------------------------------------------------------------


def _envelope(recall: Array, precision: Array, at: Array) -> Array:
    """At each recall the greatest precision at that recall or more; 0 where it is not reached."""
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return np.asarray(best[np.searchsorted(recall, at, side="left")])


# Kinds of error ----------------------------------------------------------------------------------


def errors(rows: Sequence[Mapping[str, Any]], gains: Mapping[str, float], path: Path) -> None:
    """What the detections of each class are, as shares of them; how many objects are missed; and
    what AP50 would gain if there were no errors of a kind.

    ``rows`` and ``gains``: as :class:`vidi.ops.detection_errors.ErrorCounts` has them. The first
    bar is of all classes, where there are several; of many, those with the most objects are shown.
    """
    total: dict[str, Any] = {
        name: sum(row[name] for row in rows) for name in ("objects", "missed", *KINDS)
    }
    order = sorted(rows, key=lambda row: -row["objects"])
    shown = [total | {"class": "all classes"}] * (len(rows) > 1) + order[:BARS]
    tall = 1.5 + 0.24 * len(shown)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(10.5, max(tall, 3.2)), layout="constrained")
        FigureCanvasAgg(figure)
        kinds_axes, missed_axes, gains_axes = figure.subplots(1, 3, width_ratios=(1.7, 0.75, 1))
        _kinds(kinds_axes, shown)
        _missed(missed_axes, shown)
        _gains(gains_axes, gains, len(shown))
        if len(order) > BARS:
            figure.suptitle(f"The {BARS} of {len(order)} classes with the most objects", fontsize=9)
        handles, labels = kinds_axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=6, fontsize=8)
        figure.savefig(path, dpi=150)


def _kinds(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    counts = np.array([[row[name] for name in KINDS] for row in rows], float)
    sums = counts.sum(1)
    shares = counts / np.maximum(1, sums)[:, None]
    y = np.arange(len(rows))
    left = np.zeros(len(rows))
    for name, share in zip(KINDS, shares.T, strict=True):
        axes.barh(y, share, left=left, color=KIND_COLOURS[name], label=KIND_NAMES[name])
        left += share
    for k, n in enumerate(sums):
        axes.annotate(
            f"{int(n):,}", (1, k), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=7, color=GREY, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(y, [plain(_short(row["class"])) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_title("detections, by kind (at the right: how many)")


def _missed(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    shares = [row["missed"] / max(1, row["objects"]) for row in rows]
    axes.barh(np.arange(len(rows)), shares, color="#6b7280")
    for k, (row, share) in enumerate(zip(rows, shares, strict=True)):
        inside = share > 0.6
        axes.annotate(
            f"{row['missed']:,} of {row['objects']:,}", (share, k), va="center", fontsize=7,
            xytext=(-3 if inside else 3, 0), textcoords="offset points",
            ha="right" if inside else "left", color="white" if inside else "#444",
        )  # fmt: skip
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_title("objects missed")


def _gains(axes: Axes, gains: Mapping[str, float], beside: int) -> None:
    """``beside``: how many bars the other panels have."""
    known = {name: value for name, value in gains.items() if math.isfinite(value)}
    names = sorted(known, key=lambda name: -known[name])
    colours = ["#6b7280" if name == "missed" else KIND_COLOURS[name] for name in names]
    values = [known[name] for name in names]
    axes.barh(np.arange(len(names)), values, color=colours, height=0.7)
    most = max([0.01, *values])
    for k, value in enumerate(values):
        axes.annotate(
            f"{value:+.3f}", (max(value, 0), k), xytext=(3, 0), textcoords="offset points",
            va="center", fontsize=8, color="#444",
        )  # fmt: skip
    axes.set_yticks(np.arange(len(names)), [KIND_NAMES[name] for name in names], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(len(names), beside) - 0.5, -0.5)
    axes.set_xlim(min([0.0, *values]), 1.25 * most)
    axes.set_title("AP50 would gain without")
