"""Drawing the surfaces of a scene: what is seen, what is where, and what becomes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from vidi.data import geometry
from vidi.data.scenes import textures
from vidi.data.scenes.composition import Surface
from vidi.data.scenes.shapes import CELLS, EXTENT, table
from vidi.types import Array

_TO_TABLE = geometry.compose(
    geometry.translation(EXTENT, EXTENT), geometry.scaling(CELLS / 2 / EXTENT, CELLS / 2 / EXTENT)
)
_FROM_TABLE = np.linalg.inv(_TO_TABLE)
_NOWHERE = -1.0
"""The distance beyond a table."""
_HALF = 0.5
_ROW = 1024


@dataclass(frozen=True)
class Trace:
    """What is where in the first frame, and where it is in the second.

    ``instances``: int32 [H, W], the number of the nearest surface, 0 = background. ``flow``:
    float32 [H, W, 2], pixels. ``occluded``: bool [H, W]. Both are None where not asked for.
    """

    instances: Array
    flow: Array | None
    occluded: Array | None


def paint(
    surfaces: list[Surface], view: Array, size: tuple[int, int], *, second: bool, detail: float
) -> Array:
    """A frame as uint8 [h, w, 3]. ``view`` maps the scene to its pixels. ``detail``: how many
    pixels a unit of the scene has, as far as fine detail goes; the same for both frames."""
    ground = surfaces[0]
    out = _cloth(ground, _placed(ground, view, second), (0, 0, size[1], size[0]), detail)
    for surface in surfaces[1:]:
        placed = _placed(surface, view, second)
        area = _bounds(placed @ surface.pose, size)
        if area is None:
            continue
        x0, y0, x1, y1 = area
        # A pixel is as long in the shape's units as the map shrinks on average.
        pixel = 1 / scale_of(placed @ surface.pose)
        cover = _distances(surface, placed @ surface.pose, area) / np.float32(pixel)
        cover = np.clip(cover + np.float32(_HALF), 0, 1)[:, :, None]
        under = out[y0:y1, x0:x1]
        under += cover * (_cloth(surface, placed, area, detail) - under)
    return np.asarray(cv2.convertScaleAbs(out))


def trace(
    surfaces: list[Surface], view: Array, view2: Array, size: tuple[int, int], *, motion: bool
) -> Trace:
    """``view`` and ``view2`` map the scene to the pixels of the first and of the second frame."""
    h, w = size
    instances = np.zeros(size, np.int32)
    flow = np.empty((h, w, 2), np.float32) if motion else None
    back = np.linalg.inv(view)
    for k, surface in enumerate(surfaces):
        area: tuple[int, int, int, int] | None = (0, 0, w, h)
        inside: Array | bool = True
        if k > 0:
            area = _bounds(view @ surface.pose, size)
            if area is None:
                continue
            inside = _distances(surface, view @ surface.pose, area) > 0
        assert area is not None
        x0, y0, x1, y1 = area
        np.copyto(instances[y0:y1, x0:x1], np.int32(k), where=inside)
        if flow is not None:
            drift = view2 @ surface.motion @ back - np.eye(3)
            x = np.arange(x0, x1) + _HALF
            y = (np.arange(y0, y1) + _HALF)[:, None]
            for c in (0, 1):
                moved = drift[c, 0] * x + (drift[c, 1] * y + drift[c, 2])
                np.copyto(flow[y0:y1, x0:x1, c], moved, where=inside, casting="same_kind")
    occluded = None if flow is None else _occluded(surfaces, instances, flow, view2)
    return Trace(instances, flow, occluded)


def scale_of(matrix: Array) -> float:
    """How much longer lines become on average."""
    (a, b, _), (c, d, _), _ = matrix.tolist()
    return math.sqrt(abs(a * d - b * c))


def _occluded(surfaces: list[Surface], instances: Array, flow: Array, view2: Array) -> Array:
    """Whether a pixel's point leaves the frame, or is behind a nearer object in the second."""
    h, w = instances.shape
    x = flow[:, :, 0] + (np.arange(w, dtype=np.float32) + np.float32(_HALF))
    y = flow[:, :, 1] + (np.arange(h, dtype=np.float32) + np.float32(_HALF))[:, None]
    hidden = (x < 0) | (y < 0) | (x >= w) | (y >= h)
    for k, surface in enumerate(surfaces[1:], 1):
        placed = view2 @ surface.motion @ surface.pose
        area = _bounds(placed, (h, w))
        if area is None:
            continue
        x0, y0, x1, y1 = area
        near = (x >= x0) & (x < x1) & (y >= y0) & (y < y1) & (instances < k) & ~hidden
        at = np.flatnonzero(near)
        if not len(at):
            continue
        points = geometry.apply(
            _TO_TABLE @ np.linalg.inv(placed), np.stack([x.ravel()[at], y.ravel()[at]], 1)
        )
        hidden.ravel()[at] = _looked_up(table(surface.kind, surface.variant), points) > 0
    return np.asarray(hidden)


def _looked_up(values: Array, points: Array) -> Array:
    """``values`` at ``points``, [N, 2] of (x, y) in its pixels, interpolated: float32 [N]."""
    n = len(points)
    rows = -(-n // _ROW)  # OpenCV takes no row of more than 32,767
    at = np.zeros((2, rows * _ROW), np.float32)
    at[:, :n] = points.T - _HALF
    found = cv2.remap(
        values,
        at[0].reshape(rows, _ROW),
        at[1].reshape(rows, _ROW),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_NOWHERE,
    )
    return np.asarray(found.ravel()[:n])


def _placed(surface: Surface, view: Array, second: bool) -> Array:
    return view @ surface.motion if second else view


def _bounds(matrix: Array, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The pixels (x0, y0, x1, y1) of the frame in which a shape under the matrix may be seen."""
    (a, b, x), (c, d, y), _ = matrix.tolist()
    # A table is a square about the origin.
    w, h = EXTENT * (abs(a) + abs(b)), EXTENT * (abs(c) + abs(d))
    x0, y0 = max(math.floor(x - w), 0), max(math.floor(y - h), 0)
    x1, y1 = min(math.ceil(x + w), size[1]), min(math.ceil(y + h), size[0])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _distances(surface: Surface, matrix: Array, area: tuple[int, int, int, int]) -> Array:
    """The shape's signed distances, in its own units, at the centres of the area's pixels."""
    return _warped(
        table(surface.kind, surface.variant), matrix @ _FROM_TABLE, area,
        cv2.BORDER_CONSTANT,
    )  # fmt: skip


def _cloth(
    surface: Surface, placed: Array, area: tuple[int, int, int, int], detail: float
) -> Array:
    """The surface's colours in the area, float32 [h, w, 3], as if it filled it."""
    levels = textures.pyramid(surface.texture)
    # A texture's pixel becomes one to two pixels of the frame. Were it not the same image of the
    # pyramid in both frames, one would be sharper.
    scale = detail * scale_of(surface.cloth)
    level = levels[min(max(math.ceil(-math.log2(scale)), 0), len(levels) - 1)]
    (h, w), (full_h, full_w) = level.shape[:2], levels[0].shape[:2]
    matrix = placed @ surface.cloth @ geometry.scaling(full_w / w, full_h / h)
    values = _warped(level, matrix, area, cv2.BORDER_REFLECT).astype(np.float32)
    return np.asarray(np.clip(cv2.transform(values, surface.colours), 0, 255))


def _warped(source: Array, matrix: Array, area: tuple[int, int, int, int], border: int) -> Array:
    """The source under the matrix, as far as it lies in the area (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = area
    # OpenCV puts the centre of pixel i at i, and asks for the way back.
    back = geometry.compose(
        geometry.translation(x0 + _HALF, y0 + _HALF),
        np.linalg.inv(matrix),
        geometry.translation(-_HALF, -_HALF),
    )
    return np.asarray(
        cv2.warpAffine(
            source,
            back[:2],
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=border,
            borderValue=_NOWHERE,
        )
    )
