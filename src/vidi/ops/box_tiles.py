"""Objects in large images, tile by tile: the windows that are looked at, and one list of objects.

What a dense network says of a pixel can be put together exactly (:mod:`vidi.ops.tiles`); objects
cannot. A window's border cuts some of them, and where windows overlap, two see the same object. So
windows overlap by more than the objects are large, and of what several windows say of one object
that of the best view stays:

1. The window that is the whole image finds what is too large for a tile. It sees all at a coarser
   scale, so what it says yields to a tile that holds the object whole.
2. What reaches to a border that is not the image's is taken for a *fragment*. It yields to a whole
   detection in which it lies. If it was a smaller object of its own, another window shows it whole.
3. Of two windows' detections that still overlap, the surer stays. Within a window nothing is
   suppressed again: that was done when it was looked at, and with soft-NMS overlaps may stay.

What one window alone sees, well inside it, comes out as that window has it.

The slicing and the look at the whole image are those of Akyon et al. 2022, "Slicing aided hyper
inference and fine-tuning for small object detection". Their suppression ranks by score alone, by
which a sure half of an object beats the whole of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vidi.ops import boxes as ops
from vidi.types import Array, Detections

WITHIN = 0.7
"""A fragment of which this share of the area lies in a whole detection is a part of that."""
AS_SURE = 0.5
"""A detection yields to a better view that has this share of its score or more. It does not yield
to one of the hundreds that are hardly above nothing, which would be left alone."""
NEAR = 2.0
"""Pixels of the network's input: what ends closer to a border reaches to it."""
NEAR_SHARE = 0.05
"""The same in sides of the box: how well a network tells where a box ends goes with its size."""


def windows(size: tuple[int, int], tile: int, overlap: int) -> Array:
    """Where the tiles of an image of ``size`` (h, w) lie: int64 [N, 4], xyxy, row by row.

    All are ``tile`` × ``tile`` pixels, evenly spread to whole pixels, each ``overlap`` or more over
    the next one. An image that is lower (or narrower) than a tile has one row (or column) of them,
    which reach beyond its lower (or right) border. An image that fits into a tile has none.
    """
    assert 0 <= overlap < tile
    if max(size) <= tile:
        return np.zeros((0, 4), np.int64)
    rows, columns = (_starts(length, tile, overlap) for length in size)
    y, x = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
    return np.stack([x, y, x + tile, y + tile], 1)


def cut(image: Array, window: Array, fill: tuple[int, ...]) -> Array:
    """The image's pixels [h, w, C] in a window (x0, y0, x1, y1) that begins within it; what lies
    beyond it has the colour ``fill``."""
    x0, y0, x1, y1 = window.tolist()
    seen: Array = image[y0:y1, x0:x1]
    if seen.shape[:2] == (y1 - y0, x1 - x0):
        return seen
    out = np.empty((y1 - y0, x1 - x0, image.shape[2]), image.dtype)
    out[...] = fill
    out[: seen.shape[0], : seen.shape[1]] = seen
    return out


def within(xyxy: Array, window: Array) -> Array:
    """float32 [M, 4], in pixels of the window: those of ``xyxy`` [N, 4] that lie in it by half of
    their area or more, cut off at its border."""
    clipped = _clipped(xyxy, window)
    kept = 2 * _areas(clipped) >= _areas(xyxy)
    return np.asarray(clipped[kept] - np.tile(window[:2], 2), np.float32)


def merge(
    found: Sequence[Detections],
    windows: Array,
    size: tuple[int, int],
    *,
    threshold: float,
    pixel: float = 1.0,
) -> Detections:
    """One list, the surest first, of what was found in each of ``windows`` (int64 [V, 4], xyxy) of
    an image of ``size`` (h, w), in pixels of that window.

    A window that holds the image is the coarser look at all of it. ``threshold``: of two windows'
    detections of a class that overlap by a larger IoU, the surer stays; of equal ones that which
    was given first. ``pixel``: image pixels in a pixel of the network's input, for tiles.
    """
    assert len(found) == len(windows) > 0
    height, width = size
    image = np.array([0, 0, width, height])
    view = np.repeat(np.arange(len(found)), [len(one) for one in found])
    all_boxes = np.concatenate([one.xyxy for one in found]) + np.tile(windows[:, :2], 2)[view]
    every = Detections(
        xyxy=_clipped(all_boxes, image).astype(np.float32),
        labels=np.concatenate([one.labels for one in found]),
        scores=np.concatenate([one.scores for one in found]),
    )
    holds = (windows[:, :2] <= 0) & (windows[:, 2:] >= (width, height))
    coarse = np.asarray(holds.all(1))[view]
    fragment = _reaches(every.xyxy, windows[view], image, pixel)
    # Of a window that reaches beyond the image, what was found out there is nothing.
    left = _areas(every.xyxy) > 0

    whole = np.flatnonzero(left & ~fragment & ~coarse)
    rows = np.flatnonzero(left & coarse)
    same = _iou(every.xyxy[rows], every.xyxy[whole]) > threshold
    left[_yielding(every, rows, whole, same)] = False
    whole = np.flatnonzero(left & ~fragment)
    for k in range(len(found)):  # all at a time would be gigabytes for many tiles
        rows = np.flatnonzero(left & fragment & (view == k))
        part = _covered(every.xyxy[rows], every.xyxy[whole]) >= WITHIN
        left[_yielding(every, rows, whole, part)] = False
    return _rows(every, _surest(every, view, np.flatnonzero(left), threshold))


def _starts(length: int, tile: int, overlap: int) -> Array:
    """Where tiles begin along a side."""
    room = max(0, length - tile)
    steps = -(-room // (tile - overlap))
    # Rounded down all the same way, no step is longer than the longest allowed.
    return np.arange(steps + 1) * room // max(1, steps)


def _reaches(xyxy: Array, windows: Array, image: Array, pixel: float) -> Array:
    """bool [N]: whether a box [N, 4] reaches to a border of its window [N, 4] that lies within the
    image."""
    sides = np.tile(xyxy[:, 2:] - xyxy[:, :2], 2)
    near = np.abs(xyxy - windows) <= np.maximum(NEAR * pixel, NEAR_SHARE * sides)
    inner = np.concatenate([windows[:, :2] > image[:2], windows[:, 2:] < image[2:]], 1)
    return np.asarray((near & inner).any(1))


def _yielding(every: Detections, rows: Array, rivals: Array, match: Array) -> Array:
    """Those of ``rows`` that are of one class with a rival they ``match``, which is as sure."""
    match = match & (every.labels[rows][:, None] == every.labels[rivals])
    match &= AS_SURE * every.scores[rows][:, None] <= every.scores[rivals]
    return np.asarray(rows[match.any(1)])


def _surest(every: Detections, view: Array, rows: Array, threshold: float) -> Array:
    """Those of ``rows``, the surest first, that no surer one of another view overlaps."""
    rows = rows[np.argsort(-every.scores[rows], kind="stable")]
    xyxy, labels, views = every.xyxy[rows], every.labels[rows], view[rows]
    weaker: list[Array] = [rows[:0]] * len(rows)
    for one in np.unique(views):
        own = np.flatnonzero(views == one)
        rival = _iou(xyxy[own], xyxy) > threshold
        rival &= (labels[own][:, None] == labels) & (views != one)
        for place, others in zip(own.tolist(), rival, strict=True):
            weaker[place] = place + 1 + np.flatnonzero(others[place + 1 :])
    left = np.ones(len(rows), bool)
    for place, beaten in enumerate(weaker):
        if left[place]:
            left[beaten] = False
    return np.asarray(rows[left])


def _rows(detections: Detections, rows: Array) -> Detections:
    return Detections(
        xyxy=detections.xyxy[rows], labels=detections.labels[rows], scores=detections.scores[rows]
    )


def _clipped(xyxy: Array, window: Array) -> Array:
    """float64 [N, 4]: cut off at the border of the window (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = window.tolist()
    return np.clip(xyxy.astype(np.float64), [x0, y0, x0, y0], [x1, y1, x1, y1])


def _areas(xyxy: Array) -> Array:
    return ops.areas(torch.from_numpy(xyxy)).numpy()


def _iou(a: Array, b: Array) -> Array:
    return ops.iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def _covered(a: Array, b: Array) -> Array:
    return ops.covered(torch.from_numpy(a), torch.from_numpy(b)).numpy()
