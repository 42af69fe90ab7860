"""Average precision: what is left of a precision-recall curve as one number, in three ways.

Each function takes the curve of one class: ``recall`` and ``precision``, float [n], after each of
n detections, the surest first. Nothing found, an empty curve, is worth 0.
"""

from __future__ import annotations

import numpy as np

from vidi.types import Array

# Quotients, not sums of 0.1: a recall of exactly 3/10 must reach the level of 3/10.
ELEVEN = np.arange(11) / 10
# Here as pycocotools has them, some of which lie a rounding above n/100.
HUNDRED = np.linspace(0, 1, 101)


def curve(true: Array, objects: int) -> tuple[Array, Array]:
    """(recall, precision), float64 [n], of detections that are ``true`` or not, bool [n], the
    surest first, where there are that many objects (at least one)."""
    right = np.cumsum(true, dtype=np.float64)
    return right / objects, right / np.arange(1, len(right) + 1)


def voc07(recall: Array, precision: Array) -> float:
    """The mean, over the recalls 0, 0.1, …, 1, of the best precision at that recall or beyond
    (Everingham et al. 2010, section 4.2; PASCAL VOC until 2009)."""
    return _at(ELEVEN, recall, precision)


def voc10(recall: Array, precision: Array) -> float:
    """The area under the curve, where precision is the best at that recall or beyond (PASCAL VOC
    from 2010, devkit section 3.4.1)."""
    return float(np.sum(np.diff(recall, prepend=0) * _best_beyond(precision)))


def coco(recall: Array, precision: Array) -> float:
    """As :func:`voc07`, at the recalls 0, 0.01, …, 1 (COCO; Lin et al. 2014)."""
    return _at(HUNDRED, recall, precision)


def _at(levels: Array, recall: Array, precision: Array) -> float:
    """Beyond the last recall the precision is 0."""
    best = np.append(_best_beyond(precision), 0)
    return float(best[np.searchsorted(recall, levels, side="left")].mean())


def _best_beyond(precision: Array) -> Array:
    return np.maximum.accumulate(np.asarray(precision, np.float64)[::-1])[::-1]
