"""Soft boundary maps to ridges of one or two pixels: non-maximum suppression."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vidi.types import Array

SMOOTH = 1
"""Radius of the triangle filter that the map itself goes through, pixels."""
SMOOTH_NORMAL = 4
"""The same for the map whose second derivatives give the normal."""
BORDER = 5
"""Within so many pixels of the image's border, values fade linearly to 0."""
TOLERANCE = 1.01
"""A pixel stays if it is at least its neighbours' value divided by this."""


def suppress(prediction: Array) -> Array:
    """The map where it is largest along the boundary's normal, 0 elsewhere: float32 [H, W].

    ``prediction``: float [H, W]. The map is smoothed by a triangle filter; the normal comes from
    the second derivatives of a smoother one; a pixel stays if it is no less than the values one
    pixel away on both sides, interpolated bilinearly. This, with these constants, is what published
    figures on BSDS500 rest on (Dollár and Zitnick 2015, "Fast edge detection using structured
    forests", and the toolbox that came with it).
    """
    if min(prediction.shape) < 2:  # all of it is border
        return np.zeros(prediction.shape, np.float32)
    soft = _triangle(prediction.astype(np.float32), SMOOTH)
    angle = _normal(_triangle(soft, SMOOTH_NORMAL))
    y, x = np.indices(soft.shape, np.float32)
    across, down = np.cos(angle), np.sin(angle)
    kept = soft > 0
    for side in (-1, 1):
        at = [y + side * down, x + side * across]
        kept &= soft * TOLERANCE >= ndimage.map_coordinates(soft, at, order=1, mode="nearest")
    fade = [np.minimum(1, np.minimum(i, i[::-1]) / BORDER) for i in map(np.arange, soft.shape)]
    return np.asarray(soft * kept * fade[0][:, None] * fade[1], np.float32)


def _triangle(values: Array, radius: int) -> Array:
    rising = np.arange(1, radius + 2)
    kernel = np.concatenate([rising, rising[-2::-1]]) / (radius + 1) ** 2
    for axis in (0, 1):
        values = ndimage.convolve1d(values, kernel, axis, mode="reflect")
    return values


def _normal(smooth: Array) -> Array:
    """The normal's angle, radians from the x axis towards the y axis, float [H, W].

    The toolbox takes the arc tangent of the *ratio of the second derivatives*, which is the
    tangent's square: right along the axes and diagonals, up to 10 degrees off between them. It is
    kept, since the figures were made with it. Where the mixed derivative is exactly 0 the toolbox
    takes the angle 0, whatever the boundary's direction; here the ratio decides there too.
    """
    down, across = np.gradient(smooth)
    across_across = np.gradient(across, axis=1)
    down_down, down_across = np.gradient(down)
    sign = np.where(down_across > 0, -1, 1)
    return np.asarray(np.arctan(down_down * sign / (across_across + 1e-5)))
