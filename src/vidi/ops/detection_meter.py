"""The measures of detection: COCO's average precision and PASCAL VOC's two, over a whole set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from vidi.ops import average_precision, detection_matching
from vidi.ops.detection_errors import ErrorCounts
from vidi.ops.detection_matching import ALL, NEITHER, NO_BOXES, TRUE
from vidi.types import Array, Detections, Sample

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RANGES = (ALL, (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, ALL[1]))
"""All, small, medium and large areas, in square pixels: COCO's."""
MOST = 100
"""COCO counts that many detections of a class in one image, the surest."""


@dataclass(frozen=True, slots=True)
class _Image:
    """What the detections of one image are: labels and scores [D], by COCO [A, T, D], by VOC [D]"""

    key: str
    labels: Array
    scores: Array
    coco: Array
    voc: Array


class DetectionMeter:
    """Keeps what each detection is, without pictures or boxes: about 80 bytes a detection.

    Meters of several processes add up exactly: images go by their keys, so that equal scores are
    always ordered alike.

    COCO's measures are pycocotools' where nothing is difficult: 10 thresholds of overlap from 0.5
    to 0.95, areas by boxes, the surest 100 detections of a class in an image. ``difficult`` objects
    and crowds count for nothing in any measure.
    """

    def __init__(self, classes: int) -> None:
        self.objects = np.zeros((len(RANGES), classes), np.int64)
        """Those that count, by range of areas and class."""
        self.errors = ErrorCounts(classes)
        self._images: list[_Image] = []

    def update(self, predictions: list[Detections], samples: list[Sample]) -> None:
        """A sample whose ``boxes`` are None has no objects."""
        for found, sample in zip(predictions, samples, strict=True):
            boxes = NO_BOXES if sample.boxes is None else sample.boxes
            overlap = detection_matching.overlaps(found.xyxy, boxes)
            what, _ = detection_matching.coco(
                found, boxes, overlap, thresholds=THRESHOLDS, ranges=RANGES, most=MOST
            )
            voc = detection_matching.voc(found, boxes, overlap)
            self._images.append(_Image(sample.key, found.labels, found.scores, what, voc))
            area = detection_matching.areas(boxes.xyxy)
            counts = detection_matching.counting(boxes) & detection_matching.within(area, RANGES)
            for row, there in zip(self.objects, counts, strict=True):
                row += np.bincount(boxes.labels[there], minlength=len(row))
            self.errors.add(found, boxes, overlap, sample.key)

    def merge(self, other: DetectionMeter) -> None:
        self.objects += other.objects
        self._images += other._images
        self.errors.merge(other.errors)

    def compute(self) -> dict[str, float]:
        """map: average precision, averaged over thresholds of overlap and over the classes that
        occur; map50, map75: at one threshold; map_small, map_medium, map_large: of objects of up to
        32² pixels, up to 96², and beyond. recall100: the share of objects found, averaged as map is
        (Lin et al. 2014). map_voc07, map_voc10: PASCAL VOC's average precision at 11 recalls, and
        its later one under the whole curve (Everingham et al. 2010), at an overlap of 0.5. All in
        [0, 1]; NaN where nothing counts."""
        precision, recall, voc = self._tables()
        return {
            "map": _mean(precision[0]),
            "map50": _mean(precision[0, _threshold(0.5)]),
            "map75": _mean(precision[0, _threshold(0.75)]),
            "map_voc07": _mean(voc[0]),
            "map_voc10": _mean(voc[1]),
            "map_small": _mean(precision[1]),
            "map_medium": _mean(precision[2]),
            "map_large": _mean(precision[3]),
            "recall100": _mean(recall[0]),
        }

    def per_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """One row a class: its objects that count; all its detections; ap (at all thresholds) and
        ap50, as COCO's; voc07; and recall, the share of its objects found at an overlap of 0.5. NaN
        for a class without objects."""
        precision, recall, voc = self._tables()
        labels = np.concatenate([np.zeros(0, np.int64), *(one.labels for one in self._images)])
        detections = np.bincount(labels, minlength=self.objects.shape[1])
        return [
            {
                "class": name,
                "objects": int(self.objects[0, k]),
                "detections": int(detections[k]),
                "ap": float(precision[0, :, k].mean()),
                "ap50": float(precision[0, _threshold(0.5), k]),
                "voc07": float(voc[0, k]),
                "recall": float(recall[0, _threshold(0.5), k]),
            }
            for k, name in enumerate(names)
        ]

    def curves(self) -> list[tuple[Array, Array, Array]]:
        """For each class (recall, precision, scores), float64 [n], after each of its n detections
        that count, the surest first, at an overlap of 0.5 by COCO's matching. Empty for a class
        without objects."""
        out = []
        for k, (scores, coco, _) in enumerate(self._by_class()):
            counts = coco[0, 0] != NEITHER
            if not self.objects[0, k]:
                counts[:] = False
            true = coco[0, 0, counts] == TRUE
            recall, precision = average_precision.curve(true, max(1, self.objects[0, k]))
            out.append((recall, precision, scores[counts].astype(np.float64)))
        return out

    def _tables(self) -> tuple[Array, Array, Array]:
        """(COCO's average precision [A, T, C], the recall at the end [A, T, C], VOC's two average
        precisions [2, C]), NaN for classes without objects in that range."""
        (a, c), t = self.objects.shape, len(THRESHOLDS)
        precision, recall = np.full((a, t, c), np.nan), np.full((a, t, c), np.nan)
        voc = np.full((2, c), np.nan)
        ways: list[Callable[[Array, Array], float]]
        ways = [average_precision.voc07, average_precision.voc10]
        for k, (_, codes, simple) in enumerate(self._by_class()):
            for i in np.flatnonzero(self.objects[:, k]):
                for j in range(t):
                    one = _curve(codes[i, j], self.objects[i, k])
                    precision[i, j, k] = average_precision.coco(*one)
                    recall[i, j, k] = one[0][-1] if len(one[0]) else 0
            if self.objects[0, k]:
                one = _curve(simple, self.objects[0, k])
                voc[:, k] = [way(*one) for way in ways]
        return precision, recall, voc

    def _by_class(self) -> list[tuple[Array, Array, Array]]:
        """For each class (scores [n], codes by COCO [A, T, n], codes by VOC [n]) of all images'
        detections, the surest first."""
        images = sorted(self._images, key=lambda one: one.key)
        labels = np.concatenate([np.zeros(0, np.int64), *(one.labels for one in images)])
        scores = np.concatenate([np.zeros(0, np.float32), *(one.scores for one in images)])
        none = np.zeros((len(RANGES), len(THRESHOLDS), 0), np.int8)
        coco = np.concatenate([none, *(one.coco for one in images)], 2)
        voc = np.concatenate([np.zeros(0, np.int8), *(one.voc for one in images)])
        order = np.lexsort((-scores, labels))
        ends = np.searchsorted(labels[order], np.arange(self.objects.shape[1] + 1))
        rows = [order[i:j] for i, j in pairwise(ends)]
        return [(scores[row], coco[:, :, row], voc[row]) for row in rows]


def _threshold(value: float) -> int:
    """Where it is among the thresholds."""
    return int(np.abs(THRESHOLDS - value).argmin())


def _curve(codes: Array, objects: int) -> tuple[Array, Array]:
    return average_precision.curve(codes[codes != NEITHER] == TRUE, objects)


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
