"""The scenes' classes: shapes that differ by form, as tables of signed distances.

A shape lies in a square from -1 to 1 and touches its sides: the longer side of its box is 2. Its
distance is positive inside and negative outside, in those units, so a shape under any affine map is
one interpolation of a table, and the width of its anti-aliased rim follows from the map.
"""

from __future__ import annotations

import math
import threading
from functools import cache

import numpy as np

from vidi.types import Array

CLASSES = (
    "circle", "square", "triangle", "star", "cross", "ring", "crescent", "heart", "arrow", "corner",
)  # fmt: skip
VARIANTS = 3
"""Forms of each class: thicker or thinner, sharper or blunter."""
EXTENT = 1.15
"""The tables reach from -1.15 to 1.15: beyond that there is nothing of a shape."""
CELLS = 256
"""Rows and columns of a table."""


_ONE_AT_A_TIME = threading.Lock()


def table(kind: int, variant: int) -> Array:
    """Signed distances of a shape, float32 [256, 256]; the centre of cell i is at
    (i + ½) / 256 · 2.3 - 1.15."""
    with _ONE_AT_A_TIME:  # else each thread of a loader makes all of them at its first scene
        return _table(kind, variant)


@cache
def _table(kind: int, variant: int) -> Array:
    u = ((np.arange(CELLS) + 0.5) / CELLS * 2 - 1) * EXTENT
    x, y = np.meshgrid(u, u)
    found = _distance(CLASSES[kind], variant / (VARIANTS - 1), x, y)
    found = np.ascontiguousarray(found, np.float32)
    found.setflags(write=False)
    return found


@cache
def area(kind: int, variant: int) -> float:
    """The shape's area, in the shape's units squared."""
    return float((table(kind, variant) > 0).mean()) * (2 * EXTENT) ** 2


def _distance(name: str, t: float, x: Array, y: Array) -> Array:
    """``t``: 0 to 1, from one form of the class to the other."""
    if name == "circle":
        return 1 - np.hypot(x, y)
    if name == "ring":
        width = 0.3 + 0.2 * t
        radius = 1 - width / 2
        return width / 2 - np.abs(np.hypot(x, y) - radius)
    if name == "crescent":
        # A disc without a second one beside it. What is left lies in the middle of the square.
        bitten = np.hypot(x - 0.8 - 0.15 * t, y) - 0.85
        return np.asarray(np.minimum(1 - np.hypot(x - 0.35, y), bitten))
    if name == "heart":
        return _polygon(_heart(t), 0.02, x, y)
    corners, blunt = _corners(name, t)
    return _polygon(corners, blunt, x, y)


def _corners(name: str, t: float) -> tuple[Array, float]:
    """A polygon's corners, float64 [N, 2], and the radius by which they are rounded."""
    if name == "square":
        side = 0.98 - 0.14 * t
        return np.array([(-1, -side), (1, -side), (1, side), (-1, side)]), 0.03 + 0.1 * t
    if name == "triangle":
        half = 0.85 + 0.15 * t
        return np.array([(0, -1), (half, 1), (-half, 1)]), 0.03 + 0.06 * t
    if name == "star":
        turns = np.arange(10) * math.pi / 5 - math.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.38 + 0.12 * t)
        return np.stack([radii * np.cos(turns), radii * np.sin(turns)], 1), 0.02
    if name == "cross":
        a = 0.26 + 0.14 * t
        return np.array(
            [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a),
             (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
        ), 0.03  # fmt: skip
    if name == "arrow":
        a, head = 0.2 + 0.1 * t, 0.05 + 0.15 * t
        return np.array(
            [(-1, -a), (head, -a), (head, -0.8), (1, 0), (head, 0.8), (head, a), (-1, a)]
        ), 0.03
    assert name == "corner"
    a = 0.5 + 0.25 * t
    return np.array([(-0.9, -1), (a - 0.9, -1), (a - 0.9, 1 - a), (0.9, 1 - a), (0.9, 1),
                     (-0.9, 1)]), 0.03  # fmt: skip


def _heart(t: float) -> Array:
    """The usual heart curve, x = 16 sin³ a, made to fill the square."""
    a = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    x = np.sin(a) ** 3
    y = -(13 * np.cos(a) - 5 * np.cos(2 * a) - (1 + 2 * t) * np.cos(3 * a) - np.cos(4 * a)) / 16
    y -= (y.max() + y.min()) / 2
    return np.stack([x, y], 1) / max(1, float(y.max()))


def _polygon(corners: Array, blunt: float, x: Array, y: Array) -> Array:
    """The distance to a polygon, positive inside. Its corners are rounded by the radius ``blunt``:
    the polygon is shrunk by it and what lies within ``blunt`` of the smaller one belongs to it."""
    corners = np.asarray(corners, np.float64) * (1 - blunt)
    px, py = x.ravel(), y.ravel()
    squared = np.full(px.shape, np.inf)
    inside = np.zeros(px.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((px - ax) * ex + (py - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        squared = np.minimum(squared, (px - ax - along * ex) ** 2 + (py - ay - along * ey) ** 2)
        if ey != 0:  # a ray to the right crosses the side
            inside ^= ((ay > py) != (by > py)) & (px < ax + (py - ay) * ex / ey)
    distance = np.sqrt(squared)
    return np.asarray(np.where(inside, distance, -distance).reshape(x.shape) + blunt)
