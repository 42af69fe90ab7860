"""Which detections of one image find which of its objects: COCO's way, and PASCAL VOC's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidi.types import Array, Boxes, Detections

FALSE, TRUE, NEITHER = 0, 1, 2
"""What a detection is. Neither: it counts for nothing."""
ALL = (0.0, 1e10)
"""A range of areas, in square pixels."""
NO_BOXES = Boxes(
    xyxy=np.zeros((0, 4), np.float32),
    labels=np.zeros(0, np.int64),
    difficult=np.zeros(0, bool),
    crowd=np.zeros(0, bool),
)
"""Of an image without objects."""


def overlaps(found: Array, boxes: Boxes) -> Array:
    """Intersection over union of detections, float32 [D, 4], and objects: float64 [D, G]. For
    crowds: the share of the detection that lies within.

    A box without area, or an inverted one, overlaps nothing.
    """
    a, b = found.astype(np.float64)[:, None], boxes.xyxy.astype(np.float64)[None]
    wide = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    high = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    both = wide.clip(0) * high.clip(0)
    own = areas(found)[:, None]
    whole = np.where(boxes.crowd[None], own, own + areas(boxes.xyxy)[None] - both)
    return np.asarray(np.divide(both, whole, out=np.zeros_like(both), where=both > 0))


def areas(xyxy: Array) -> Array:
    """Of boxes [N, 4], in square pixels: float64 [N]; 0 for an inverted one."""
    sides = (xyxy[:, 2:].astype(np.float64) - xyxy[:, :2]).clip(0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def counting(boxes: Boxes) -> Array:
    """Which objects count, bool [N]: those that are neither difficult nor crowds. Finding one of
    the others is no success, missing it no failure."""
    return np.asarray(~(boxes.difficult | boxes.crowd))


def within(area: Array, ranges: Sequence[tuple[float, float]]) -> Array:
    """Which of the areas [N] lie in each range, ends included: bool [A, N]."""
    low, high = np.array(ranges, np.float64).T[..., None]
    return np.asarray((area >= low) & (area <= high))


def coco(
    found: Detections,
    boxes: Boxes,
    overlap: Array,
    *,
    thresholds: Array,
    ranges: Sequence[tuple[float, float]] = (ALL,),
    most: int | None = None,
) -> tuple[Array, Array]:
    """(what each detection is, int8 [A, T, D]; the object it finds, int64 [A, T, D], -1 = none).

    For each of A ranges of areas and T thresholds of overlap (``overlap``: as :func:`overlaps`).
    The surest first, each detection takes the object of its class, among those not yet taken, that
    it overlaps most and at least by the threshold; one that counts goes before one that does not. A
    crowd may be taken again and again. Objects outside the range do not count either. What finds
    an object that does not count, or finds nothing and lies outside the range itself, is neither.
    ``most``: the detections of a class that count, the surest.

    It is pycocotools' matching, ties included. (There, only crowds do not count; a difficult object
    is treated as one outside the range.) Thresholds ascend; there are at most 62 in all ranges.
    """
    shape = (len(ranges), len(thresholds), len(found))
    outside = ~within(areas(found.xyxy), ranges)
    what = np.full(shape, FALSE, np.int8)
    what[outside[:, None].repeat(len(thresholds), 1)] = NEITHER
    which = np.full(shape, -1, np.int64)
    order = np.argsort(-found.scores, kind="stable")
    if most is not None:
        late = _place(found.labels[order]) >= most
        what[:, :, order[late]] = NEITHER
        order = order[~late]
    limit = np.minimum(thresholds, 1 - 1e-10)
    near = (overlap[order] >= limit[0]) & (found.labels[order, None] == boxes.labels)
    place, g = np.nonzero(near)
    d = order[place]
    # All ranges and thresholds at once, a bit for each: which of them a pair may be taken at.
    bits = len(ranges) * len(thresholds)
    assert bits < 63 and (np.diff(thresholds) > 0).all()
    reached = (1 << np.searchsorted(limit, overlap[d, g], side="right")) - 1
    step = 1 << len(thresholds) * np.arange(len(ranges))
    counts = counting(boxes) & within(areas(boxes.xyxy), ranges)
    may = np.concatenate([reached * (step @ counts)[g], reached * (step @ ~counts)[g]])
    place, d, g = np.tile(place, 2), np.tile(d, 2), np.tile(g, 2)
    idle = np.arange(len(may)) >= len(may) // 2
    # The surest first; of its objects those that count, what it overlaps most, the last of equals.
    pairs = np.lexsort((-g, -overlap[d, g], idle, place))
    pairs = pairs[may[pairs] > 0]
    every = (1 << bits) - 1
    free, many = [every] * len(boxes), boxes.crowd.tolist()
    got, last, wanted = [], -1, every
    rows = zip(d[pairs].tolist(), g[pairs].tolist(), may[pairs].tolist(), strict=True)
    for detection, item, mask in rows:
        if detection != last:
            last, wanted = detection, every
        hit = mask & free[item] & wanted
        wanted ^= hit
        if not many[item]:
            free[item] ^= hit
        got.append(hit)
    hits, bit = np.nonzero(np.array(got, np.int64)[:, None] >> np.arange(bits) & 1)
    hits = pairs[hits]
    what.reshape(bits, -1)[bit, d[hits]] = np.where(idle[hits], NEITHER, TRUE)
    which.reshape(bits, -1)[bit, d[hits]] = g[hits]
    return what, which


def voc(found: Detections, boxes: Boxes, overlap: Array, threshold: float = 0.5) -> Array:
    """What each detection is, int8 [D], by PASCAL VOC's devkit (section 3.4.1 of 2010's).

    A detection belongs to the object of its class that it overlaps most (the first of equals). If
    by less than the threshold, it is false; if the object is difficult, neither; else true if no
    surer detection has found the object, and false if one has. Beyond the devkit, which knows no
    crowds: what would be false is neither where it lies in a crowd of its class.
    """
    what = np.full(len(found), FALSE, np.int8)
    if not len(boxes):
        return what
    own = np.where(found.labels[:, None] == boxes.labels, overlap, 0)
    alone = np.where(boxes.crowd, 0, own)
    best = alone.argmax(1)
    near = alone.max(1) >= threshold
    crowded = np.where(boxes.crowd, own, 0).max(1) >= threshold
    what[crowded] = NEITHER
    what[near & boxes.difficult[best]] = NEITHER
    order = np.argsort(-found.scores, kind="stable")
    order = order[(near & ~boxes.difficult[best])[order]]
    _, first = np.unique(best[order], return_index=True)
    what[order[first]] = TRUE
    return what


def _place(labels: Array) -> Array:
    """How many elements of the same label go before each, int64 [N]."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    start = np.searchsorted(ordered, ordered, side="left")
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - start
    return place
