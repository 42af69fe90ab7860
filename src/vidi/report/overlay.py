"""Segmentations as pictures: masks over their images, with borders and a legend; index PNG files.

Both have the data's own colours where it has any. Without, index PNGs have VOC's, which other
tools expect; pictures have the brighter ones of the contact sheets, since many of VOC's are dark,
and hardly told apart over a photograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from PIL import Image

from vidi.data.formats import voc_masks
from vidi.report import contact
from vidi.report.names import plain
from vidi.report.pictures import RED, STYLE, fitted
from vidi.types import Array

IGNORED = 255
SHOWN = 1600
"""Pixels of a picture's longer side; a larger image is shrunk."""
ROW = 640
"""The same, for a picture in a sheet's row."""
LEAST = 384
"""Smaller images are enlarged to about this, pixel by pixel, or borders would cover them."""
NAMED = 24
"""Classes in a legend; the rarest are left out."""
STRIP = 256
"""Rows that are painted at a time, so that large images need little memory."""


def palette(k: int, own: Array | None = None) -> Array:
    """Colours of k classes for pictures, uint8 [k, 3]: the data's ``own`` [at least k, 3], or else
    bright ones, neighbours in number far apart in hue."""
    return contact.colours_of(k, own)


def index_palette(own: Array | None = None) -> Array:
    """Colours for index PNGs, uint8 [256, 3]: VOC's, whose class 0 is black, under the data's own
    [K, 3]."""
    colours = voc_masks.palette(256)
    if own is not None:
        colours[: len(own)] = own[:256]
    return colours


def overlay(
    image: Array, mask: Array, palette: Array, alpha: float = 0.5, *, bare: int | None = None
) -> Array:
    """The mask in its classes' colours over the image, with thin borders: uint8 [H, W, 3].

    ``image``: uint8 [H, W, 3]; ``mask``: class numbers [H, W]; ``palette``: uint8 [K, 3].
    ``alpha``: the colour's share; borders have it whole. The class ``bare`` is left as the image
    is. Ignored pixels (255) are the image, hatched white; numbers of no class are magenta.
    """
    assert image.shape[:2] == mask.shape
    height, width = mask.shape
    numbers, table = _table(mask, palette)
    borders = _borders(numbers)
    out = np.empty_like(image)
    for top in range(0, height, STRIP):
        rows = slice(top, min(top + STRIP, height))
        piece, number = image[rows], numbers[rows]
        colour = table[number]
        painted = cv2.addWeighted(piece, 1 - alpha, colour, alpha, 0)
        edge = borders[rows]
        painted[edge] = colour[edge]
        left = number == len(table) - 2
        if bare is not None:
            left |= number == bare
        painted[left] = piece[left]
        painted[_hatching(rows, width) & (number == len(table) - 2)] = 255
        out[rows] = painted
    return out


def wrong_pixels(image: Array, truth: Array, prediction: Array) -> Array:
    """The image, pale and grey, with wrong pixels red; ignored ones are hatched white. uint8
    [H, W, 3]."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    out: Array = np.repeat((100 + 0.55 * grey).astype(np.uint8)[:, :, None], 3, axis=2)
    valid = truth != IGNORED
    red = np.array([int(RED[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    out[valid & (truth != prediction)] = red
    out[~valid & _hatching(slice(0, truth.shape[0]), truth.shape[1])] = 255
    return out


def legend(mask: Array, classes: Sequence[str]) -> list[tuple[int, str, float]]:
    """(number, name, share) of the classes that occur, the largest first; shares are of the pixels
    [H, W] that are not ignored."""
    counts = _counts(mask, len(classes))
    total = max(1, int((mask != IGNORED).sum()) if len(classes) <= IGNORED else int(counts.sum()))
    order = np.argsort(-counts, kind="stable")
    return [(int(k), classes[k], float(counts[k]) / total) for k in order if counts[k]]


def save_index_png(path: str | Path, mask: Array, palette: Array | None = None) -> None:
    """Class numbers [H, W] as a PNG file, which vidi and other tools read back the same.

    8 bits with a palette, so that viewers show colours: uint8 [K, 3], the rest VOC's, as all of it
    is where it is None. A mask of a wider type with numbers above 255 has 16 bits, which PNG has in
    grey alone; so have all where the palette has more than 256 colours.
    """
    assert mask.min() >= 0 and mask.max() < 2**16, "a PNG's numbers are 0 to 65535"
    if (palette is not None and len(palette) > 256) or mask.max() > 255:
        image = Image.fromarray(mask.astype(np.uint16))
    else:
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette(index_palette(palette).ravel().tolist())
    image.save(path, format="PNG", compress_level=6 if mask.size < 2**22 else 1)


def prediction_picture(
    image: Array,
    mask: Array,
    classes: Sequence[str],
    palette: Array,
    path: Path,
    truth: Array | None = None,
) -> None:
    """One prediction as a person looks at it: the mask over the image, a legend of the classes that
    occur with their shares; where the truth is given, it and the wrong pixels are beside.

    ``image``: uint8 [H, W, 3]; ``mask`` and ``truth``: class numbers [H, W]; ``palette``: uint8
    [K, 3].
    """
    rows = legend(mask, classes)
    entries = [(k, f"{name}  {_percent(share)}") for k, name, share in rows]
    side = SHOWN if truth is None else SHOWN // 2
    small, shown = _fitted(image, side), _fitted(mask, side)
    bare = contact.bare(classes)
    panels = [("", overlay(small, shown, palette, bare=bare))]
    if truth is not None:
        true = _fitted(truth, side)
        panels = [
            ("prediction", panels[0][1]),
            ("truth", overlay(small, true, palette, bare=bare)),
            (_score(mask, truth), wrong_pixels(small, true, shown)),
        ]
        others = {k for k, _ in entries}
        entries += [
            (k, f"{name}  not predicted")
            for k, name, _ in legend(truth, classes)
            if k not in others
        ]
    _sheet([panels], entries, palette, bare, path, width=7.0 if truth is None else 4.2)


def segmentation_sheet(
    images: Sequence[Array],
    truths: Sequence[Array],
    predictions: Sequence[Array],
    classes: Sequence[str],
    palette: Array,
    path: Path,
    *,
    titles: Sequence[str] = (),
) -> None:
    """A row per sample: image, truth, prediction, wrong pixels; below, the classes that occur.

    ``images``: uint8 [H, W, 3] each, of any size; ``truths`` and ``predictions``: class numbers
    [H, W]. Six to eight samples fit a page. ``titles`` stand over the images.
    """
    bare = contact.bare(classes)
    rows = []
    counts = np.zeros(len(classes), np.int64)
    for i, (image, truth, mask) in enumerate(zip(images, truths, predictions, strict=True)):
        counts += _counts(truth, len(classes)) + _counts(mask, len(classes))
        small, true, shown = (_fitted(array, ROW) for array in (image, truth, mask))
        rows.append(
            [
                (titles[i] if titles else ("" if i else "image"), small),
                ("" if i else "truth", overlay(small, true, palette, bare=bare)),
                ("" if i else "prediction", overlay(small, shown, palette, bare=bare)),
                (_score(mask, truth), wrong_pixels(small, true, shown)),
            ]
        )
    order = np.argsort(-counts, kind="stable")
    entries = [(int(k), classes[k]) for k in order if counts[k]]
    _sheet(rows, entries, palette, bare, path, width=2.8)


def _sheet(
    rows: Sequence[Sequence[tuple[str, Array]]],
    entries: Sequence[tuple[int, str]],
    palette: Array,
    bare: int | None,
    path: Path,
    *,
    width: float,
) -> None:
    """Rows of titled panels, ``width`` inches each, and the legend of (class, text) below."""
    columns = len(rows[0])
    titled = [0.22 if any(title for title, _ in row) else 0.02 for row in rows]
    tall = [
        min(1.6, max(picture.shape[0] / picture.shape[1] for _, picture in row)) * width + title
        for row, title in zip(rows, titled, strict=True)
    ]
    across = max(1, int(width * columns / 1.75))
    lines = -(-min(len(entries), NAMED + 1) // across)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, hspace=0, wspace=0)
        height = sum(tall) + 0.2 * lines + 0.15
        figure = Figure(figsize=(width * columns, height), layout=layout)
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=tall)
        for line, row in zip(grid, rows, strict=True):
            for axes, (title, picture) in zip(line, row, strict=True):
                _panel(axes, title, picture)
        if entries:
            handles: list[Any] = [_swatch(k, text, palette, bare) for k, text in entries[:NAMED]]
            if len(entries) > NAMED:
                handles.append(Patch(facecolor="none", label=f"and {len(entries) - NAMED} more"))
            figure.legend(
                handles=handles, loc="outside lower center", ncols=across, fontsize=7,
                handlelength=1.2, columnspacing=1.2,
            )  # fmt: skip
        figure.savefig(path, dpi=150)


def _panel(axes: Axes, title: str, picture: Array) -> None:
    axes.set_axis_off()
    axes.imshow(picture, interpolation="antialiased")
    if title:
        axes.set_title(plain(title), fontsize=8, color="#333", fontweight="normal", pad=3)


def _swatch(k: int, text: str, palette: Array, bare: int | None) -> Patch:
    if k == bare:
        return Patch(
            facecolor="white", edgecolor="#aaa", linewidth=0.6, label=f"{plain(text)} (bare)"
        )
    colour = palette[k] / 255 if k < len(palette) else (0, 0, 0)
    return Patch(facecolor=colour, edgecolor="#aaa", linewidth=0.3, label=plain(text))


def _table(mask: Array, palette: Array) -> tuple[Array, Array]:
    """The mask's numbers as rows of a table of colours: K classes, ignored, and no class."""
    k = len(palette)
    table = np.concatenate([palette, [[255, 255, 255], [255, 0, 255]]]).astype(np.uint8)
    kind = np.uint8 if k + 2 <= 256 else np.int32
    if mask.dtype == np.uint8:
        change = np.full(256, k + 1, np.int32)
        change[: min(k, 256)] = np.arange(min(k, 256))
        change[IGNORED] = k
        return change.astype(kind)[mask], table
    numbers = np.where((mask >= 0) & (mask < k), mask, k + 1)
    numbers[mask == IGNORED] = k
    return numbers.astype(kind), table


def _borders(numbers: Array) -> Array:
    """bool [H, W]: pixels beside another class, as wide as is seen when the whole is looked at."""
    edge = np.zeros(numbers.shape, np.uint8)
    across, down = numbers[:, 1:] != numbers[:, :-1], numbers[1:] != numbers[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    more = max(numbers.shape) // SHOWN
    if more:
        edge = np.asarray(cv2.dilate(edge, np.ones((2 * more + 1, 2 * more + 1), np.uint8)))
    return edge.astype(bool)


def _hatching(rows: slice, width: int) -> Array:
    y, x = np.ogrid[rows, :width]
    return np.asarray((x + y) % 6 < 2)


def _counts(mask: Array, k: int) -> Array:
    """int64 [K]: pixels of each class; what is ignored, or no class, is not counted."""
    inside = mask[(mask >= 0) & (mask < k) & (mask != IGNORED)]
    return np.bincount(inside.ravel(), minlength=k)


def _score(mask: Array, truth: Array) -> str:
    valid = truth != IGNORED
    share = float((mask != truth)[valid].mean()) if valid.any() else 0.0
    return f"wrong: {_percent(share)}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}"


def _fitted(array: Array, side: int) -> Array:
    """Shrunk to a longer side of at most ``side``, images by areas, masks by nearest pixels; or
    enlarged a whole number of times."""
    height, width = array.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        times = max(1, LEAST // max(height, width))
        return array.repeat(times, axis=0).repeat(times, axis=1)
    if array.ndim == 3:
        return fitted(array, side)
    return nearest(array, max(1, round(height * scale)), max(1, round(width * scale)))


def nearest(mask: Array, h: int, w: int) -> Array:
    """Class numbers at another size, [h, w]: each pixel has those of the nearest."""
    height, width = mask.shape
    rows = ((np.arange(h) + 0.5) * height / h).astype(int)
    columns = ((np.arange(w) + 0.5) * width / w).astype(int)
    return np.asarray(mask[rows[:, None], columns])
