"""How many of the annotated boxes are among the proposals: what a detector on them can reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vidi.data.overlap import iou
from vidi.types import Array, Boxes

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(11))
"""IoU from 0.5 to 1 by 0.05."""
COUNTS = (1, 3, 10, 30, 100, 200, 300, 500, 1000, 2000, 3000, 5000, 10_000)
"""Numbers of proposals per image, from 1 to 10,000."""
_BLOCK = 1 << 22
"""Pairs of boxes that are compared at once, to bound the memory."""


@dataclass(frozen=True)
class Recall:
    """The share of annotated boxes that a proposal covers.

    ``table``: float64 [C, T], for the first ``counts[c]`` proposals of each image at an IoU of at
    least ``thresholds[t]``. ``average``: float64 [C], average recall: twice the area under recall
    against IoU from 0.5 to 1, exactly (Hosang et al. 2016, "What makes for effective detection
    proposals?", section 5.4). ``boxes``: how many boxes were to be found, ``left_out`` how many
    difficult or crowd boxes, and boxes without area, were not asked for. ``proposals``: float64
    [C], the number there was per image, on average. All recalls are NaN where there is no box.
    """

    thresholds: tuple[float, ...]
    counts: tuple[int, ...]
    table: Array
    average: Array
    boxes: int
    left_out: int
    proposals: Array


def recall(
    proposals: Sequence[Array],
    boxes: Sequence[Boxes],
    thresholds: Sequence[float] = THRESHOLDS,
    counts: Sequence[int] = COUNTS,
) -> Recall:
    """Recall of the proposals of N images, over all their boxes.

    ``proposals``: float32 [P, 4] per image, the best first. Difficult and crowd boxes, and those
    without area, are left out. A proposal may cover several boxes.
    """
    return _recall(best_overlaps(proposals, boxes, counts), proposals, boxes, thresholds, counts)


def recall_per_class(
    proposals: Sequence[Array],
    boxes: Sequence[Boxes],
    classes: Sequence[str],
    thresholds: Sequence[float] = THRESHOLDS,
    counts: Sequence[int] = COUNTS,
) -> tuple[Recall, Mapping[str, Recall]]:
    """Recall over all boxes, and that of each class's boxes alone, by one comparison."""
    best = best_overlaps(proposals, boxes, counts)
    labels = np.concatenate([np.zeros(0, np.int64), *(b.labels for b in boxes)])
    return (
        _recall(best, proposals, boxes, thresholds, counts),
        {
            name: _recall(best, proposals, boxes, thresholds, counts, labels == k)
            for k, name in enumerate(classes)
        },
    )


def best_overlaps(
    proposals: Sequence[Array], boxes: Sequence[Boxes], counts: Sequence[int]
) -> Array:
    """float64 [C, M]: the highest IoU of each of the images' M boxes with the first ``counts[c]``
    proposals of its image; 0 where there is none."""
    found = [np.zeros((len(counts), 0))]
    for offered, wanted in zip(proposals, boxes, strict=True):
        best = np.zeros((len(counts), len(wanted)))
        running = np.zeros(len(wanted))
        start = 0
        # In order of their number, each proposal is compared once.
        for c in np.argsort(counts, kind="stable"):
            end = min(int(counts[c]), len(offered))
            step = max(1, _BLOCK // max(1, len(wanted)))
            for low in range(start, end, step):
                pairs = iou(offered[low : min(end, low + step)], wanted.xyxy)
                running = np.maximum(running, pairs.max(axis=0, initial=0.0))
            start = max(start, end)
            best[c] = running
        found.append(best)
    return np.concatenate(found, axis=1)


def _recall(
    best: Array,
    proposals: Sequence[Array],
    boxes: Sequence[Boxes],
    thresholds: Sequence[float],
    counts: Sequence[int],
    chosen: Array | None = None,
) -> Recall:
    """``chosen``: bool [M], the boxes that are asked for."""
    asked = np.concatenate([np.zeros(0, bool), *map(_asked, boxes)])
    wanted = np.ones_like(asked) if chosen is None else chosen
    kept = best[:, asked & wanted]
    n = kept.shape[1]
    levels = np.asarray(thresholds, np.float64)
    # A proposal that equals a box has an IoU of 1 up to the rounding of its coordinates.
    hits = (kept[:, :, None] >= levels - 1e-6).sum(axis=1)
    area = 2 * np.clip(kept - 0.5, 0, None).sum(axis=1)
    there = [[min(c, len(p)) for p in proposals] for c in counts]
    nothing = np.nan
    return Recall(
        thresholds=tuple(thresholds),
        counts=tuple(counts),
        table=hits / n if n else np.full(hits.shape, nothing),
        average=area / n if n else np.full(len(kept), nothing),
        boxes=n,
        left_out=int((wanted & ~asked).sum()),
        proposals=np.array([np.mean(t) if t else nothing for t in there]),
    )


def _asked(boxes: Boxes) -> Array:
    area = np.all(boxes.xyxy[:, 2:] > boxes.xyxy[:, :2], axis=1)
    return np.asarray(~boxes.difficult & ~boxes.crowd & area)
