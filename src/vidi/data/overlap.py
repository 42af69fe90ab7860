"""How much boxes overlap."""

from __future__ import annotations

import numpy as np

from vidi.types import Array


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of each box of ``a`` [N, 4] with each of ``b`` [M, 4]: float64
    [N, M].

    Boxes are xyxy with exclusive ends, so widths are plain differences. A box without area, or an
    inverted one, overlaps nothing.
    """
    first, second = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (a, b))
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    union = _areas(first)[:, None] + _areas(second)[None] - both
    return np.asarray(np.divide(both, union, out=np.zeros_like(both), where=both > 0))


def _areas(boxes: Array) -> Array:
    return np.asarray(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1))
