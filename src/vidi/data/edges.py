"""Boundary maps: drawn from segmentations as BSDS draws them, and moved by a matrix."""

from __future__ import annotations

import math

import cv2
import numpy as np

from vidi.data import geometry
from vidi.ops.thinning import thin
from vidi.types import Array

ON = 255
"""A boundary's value."""
OUTSIDE = -1
"""A segment number below 0 lies outside the image: nothing is drawn against it."""
KEPT = 4
"""A thin line takes in the pixels where bilinear interpolation leaves a quarter of its value."""
THIN = 0.95
"""A map's lines count as one pixel wide when thinning leaves at least this share of them."""


def boundaries(segments: Array) -> Array:
    """Where segments meet: uint8 [A, H, W], 0 or 255, from numbers of segments, int [A, H, W].

    A pixel is on the boundary if its right, lower or lower right neighbour is of another segment;
    then lines are thinned. These are BSDS500's own Boundaries of its Segmentation, to the pixel.
    Numbers below 0 are outside.
    """
    out = np.zeros(segments.shape, np.uint8)
    h, w = segments.shape[1:]
    for k, one in enumerate(segments):
        drawn, inside = np.zeros((h, w), bool), one >= 0
        for y, x in ((0, 1), (1, 0), (1, 1)):
            here, there = np.s_[: h - y, : w - x], np.s_[y:, x:]
            drawn[here] |= (one[here] != one[there]) & inside[here] & inside[there]
        out[k] = thin(drawn) * np.uint8(ON)
    return out


def warp(
    edges: Array | None, segments: Array | None, matrix: Array, size: tuple[int, int]
) -> tuple[Array | None, Array | None]:
    """Both under the matrix: uint8 [A, h, w] and int32 [A, h, w].

    ``edges``: uint8 [A, H, W], ``segments``: int32 [A, H, W]; either may be ``None``, and stays so.
    Outside the source there is no boundary, and the segment is -1.

    Segments are moved as labels, and the boundaries are drawn from them, so that lines stay one
    pixel wide and lie as BSDS would lay them. Pixels that are only shifted by whole ones
    are copied. Mirrored ones are drawn: of the two pixels at a boundary it is always the left or
    upper one that is marked, in a mirrored image too. Without segments, see :func:`warp_lines`.
    """
    moved = None
    if segments is not None:
        moved = np.empty((len(segments), *size), segments.dtype)
        for k, one in enumerate(segments):
            moved[k] = geometry.labels(one, matrix, size, OUTSIDE)
    if edges is None:
        return None, moved
    if moved is not None and not geometry.shifts(matrix):
        return boundaries(moved), moved
    lines = np.empty((len(edges), *size), edges.dtype)
    for k, one in enumerate(edges):
        lines[k] = warp_lines(one, matrix, size)
    return lines, moved


def warp_lines(edges: Array, matrix: Array, size: tuple[int, int]) -> Array:
    """A boundary map under the matrix, uint8 [h, w], from uint8 [H, W], so that no line vanishes.

    Where the matrix shrinks, each pixel first takes the maximum over the area that one target
    pixel covers; then follows bilinear interpolation. If the lines are one pixel wide, they are
    thinned to that again, at their full value. Thicker or soft ones grow and shrink with the image.
    Whole-pixel shifts and mirrors copy.
    """
    if geometry.copies(matrix):
        return geometry.nearest(edges, matrix, size, 0)
    x, y = geometry.sources(matrix, size)
    shrink_x, shrink_y = geometry.shrinkage(matrix)
    if max(shrink_x, shrink_y) > 1 + geometry.WHOLE:
        area = np.ones((_odd(shrink_y), _odd(shrink_x)), np.uint8)
        wide = cv2.dilate(edges, area)
    else:
        wide = edges
    soft = cv2.remap(wide, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    on = edges > 0
    if thin(on).sum() < THIN * on.sum():
        return np.asarray(soft)
    full = cv2.dilate(wide, np.ones((3, 3), np.uint8))
    full = cv2.remap(full, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    kept = (soft > 0) & (soft >= full // KEPT)
    return np.asarray(full * thin(kept))


def _odd(factor: float) -> int:
    """The smallest odd number of pixels that covers the factor."""
    return 2 * math.ceil((factor - geometry.WHOLE - 1) / 2) + 1 if factor > 1 else 1
