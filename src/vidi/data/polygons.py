"""Which pixels a polygon covers: those whose centre lies inside it, by the even-odd rule.

A pixel's centre is half a pixel from its corner, so a polygon round whole pixels covers just these,
and neighbours that share an edge never share a pixel. (OpenCV's ``fillPoly`` paints the outline
too, which makes every object half a pixel larger on each side.)
"""

from __future__ import annotations

import math

import numpy as np

from vidi.types import Array


def fill(mask: Array, points: Array) -> None:
    """Set what a polygon covers in ``mask``, bool [H, W]. ``points``: float64 [P, 2], x and y in
    pixels, the first pixel's corner at (0, 0); what lies outside of the mask is cut off."""
    height, width = mask.shape
    if len(points) < 3 or not height or not width:
        return
    low, high = points.min(0), points.max(0)
    top, bottom = _centre(low[1], height), _centre(high[1], height)
    left, right = _centre(low[0], width), _centre(high[0], width)
    if top >= bottom or left >= right:
        return
    start, end = points, np.roll(points, -1, axis=0)
    rows = np.arange(top, bottom) + 0.5
    # Half-open, so that a row through a corner is crossed once where the outline goes on.
    crossed = (start[:, 1, None] <= rows) != (end[:, 1, None] <= rows)
    edge, row = np.nonzero(crossed)
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    x = x0 + (rows[row] - y0) * ((x1 - x0) / (y1 - y0))
    # From each crossing on, the pixels whose centre lies to the right of it change sides.
    column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64) - left
    span = right - left + 1
    changes = np.bincount(row * span + column, minlength=(bottom - top) * span)
    inside = np.cumsum(changes.reshape(bottom - top, span)[:, :-1], axis=1) % 2 == 1
    mask[top:bottom, left:right] |= inside


def _centre(at: float, size: int) -> int:
    """The first pixel whose centre is not before ``at``."""
    return int(min(max(math.ceil(min(max(at, -1.0), size + 1.0) - 0.5), 0), size))
