"""Of what kind the errors of detection are: found twice, taken for another class, badly placed, …

In the manner of Hoiem et al. 2012, "Diagnosing error in object detectors", and of Bolya et al.
2020, "TIDE: a general toolbox for identifying object detection errors", with one difference: what
lies well on an object of another class is of the wrong class, even where it touches one of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidi.ops import average_precision, detection_matching
from vidi.ops.detection_matching import NEITHER, NO_BOXES, TRUE
from vidi.types import Array, Boxes, Detections, Sample

KINDS = ("correct", "duplicate", "wrong_class", "poor_box", "both", "background")
"""What a detection may be. Duplicate: its object is found by a surer one. Wrong class: it lies on
an object of another class. Poor box: it overlaps an object of its class, but too little. Both: so
it does, and the object is of another class. Background: it overlaps nothing."""
CORRECT, DUPLICATE, WRONG_CLASS, POOR_BOX, BOTH, BACKGROUND = range(6)
NONE = -1
"""The kind of a detection that counts for nothing."""
LEAST = 0.1
"""What overlaps less overlaps nothing."""


def kinds(found: Detections, boxes: Boxes, score: float, iou: float = 0.5) -> tuple[Array, Array]:
    """(each detection's kind, int8 [D]: an index into :data:`KINDS`, or -1; which objects are
    missed, bool [N]).

    Detections below the score count for nothing, and so does what finds a difficult object or lies
    in a crowd. Of the objects that count, those are missed that no correct detection finds.
    ``iou``: the least overlap of what lies on an object.
    """
    kind, meant = _judged(found, boxes, detection_matching.overlaps(found.xyxy, boxes), iou)
    # The surest choose first: what is below the score has changed nothing above it.
    kind = np.where(found.scores >= score, kind, NONE).astype(np.int8)
    missed = detection_matching.counting(boxes)
    missed[meant[kind == CORRECT]] = False
    return kind, missed


@dataclass(frozen=True, slots=True)
class _Image:
    """Of D detections: labels, scores, kinds; ``mended``: the class [D] of the object that would be
    found if this error were mended, -1 = none would."""

    key: str
    labels: Array
    scores: Array
    kinds: Array
    mended: Array


class ErrorCounts:
    """The errors in a whole set, at any score, at an overlap of 0.5."""

    def __init__(self, classes: int) -> None:
        self.objects = np.zeros(classes, np.int64)
        """Those that count."""
        self.unseen = np.zeros(classes, np.int64)
        """Those of them that no detection finds, whatever its score, and that no mended class or
        box would find."""
        self._images: list[_Image] = []

    def update(self, predictions: list[Detections], samples: list[Sample]) -> None:
        for found, sample in zip(predictions, samples, strict=True):
            boxes = NO_BOXES if sample.boxes is None else sample.boxes
            overlap = detection_matching.overlaps(found.xyxy, boxes)
            self.add(found, boxes, overlap, sample.key)

    def add(self, found: Detections, boxes: Boxes, overlap: Array, key: str) -> None:
        """One image; ``overlap``: float64 [D, G], of its detections and boxes, where that is known
        already (:func:`vidi.ops.detection_matching.overlaps`)."""
        kind, meant = _judged(found, boxes, overlap, 0.5)
        counts = detection_matching.counting(boxes)
        self.objects += np.bincount(boxes.labels[counts], minlength=len(self.objects))
        missed = counts.copy()
        missed[meant[kind == CORRECT]] = False
        unseen = missed.copy()
        mended = np.full(len(found), -1, np.int64)
        order = np.argsort(-found.scores, kind="stable")
        for error in (WRONG_CLASS, POOR_BOX):
            # Of several errors about one object only the surest finds it when they are mended.
            these = order[kind[order] == error]
            objects, first = np.unique(meant[these], return_index=True)
            open_ = missed[objects]
            mended[these[first[open_]]] = boxes.labels[objects[open_]]
            unseen[objects] = False
        self.unseen += np.bincount(boxes.labels[unseen], minlength=len(self.unseen))
        self._images.append(_Image(key, found.labels, found.scores, kind, mended))

    def merge(self, other: ErrorCounts) -> None:
        self.objects += other.objects
        self.unseen += other.unseen
        self._images += other._images

    def rows(self, names: Sequence[str], score: float) -> list[dict[str, Any]]:
        """One row a class, of detections with that score at least: how many objects count, how many
        of these are missed, and how many detections that are said to be of that class are of each
        kind. Objects are the sum of correct and missed."""
        labels, scores, kind, _ = self._all()
        counted = (scores >= score) & (kind != NONE)
        classes = len(self.objects)
        both = np.bincount(
            labels[counted] * len(KINDS) + kind[counted], minlength=classes * len(KINDS)
        ).reshape(classes, len(KINDS))
        missed = self.objects - both[:, CORRECT]
        return [
            {"class": name, "objects": int(self.objects[k]), "missed": int(missed[k])}
            | {what: int(both[k, i]) for i, what in enumerate(KINDS)}
            for k, name in enumerate(names)
        ]

    def gains(self) -> dict[str, float]:
        """What average precision at an overlap of 0.5 (COCO's, averaged over classes) would gain if
        there were no errors of one kind: "missed" and all of :data:`KINDS` but the first (Bolya et
        al. 2020, section 2.3). NaN without objects.

        A wrong class or a poor box becomes right, or goes away if its object is found already; so
        do duplicates, background and what is wrong in both. Missed objects that nothing points to
        count no longer. Gains do not add up: mending one kind makes room for another.
        """
        labels, scores, kind, mended = self._all()
        kept, right = kind != NONE, kind == CORRECT

        def precision(labels: Array, kept: Array, right: Array, objects: Array) -> float:
            values = []
            for k in np.flatnonzero(self.objects):
                rows = np.flatnonzero(kept & (labels == k))
                rows = rows[np.argsort(-scores[rows], kind="stable")]
                curve = average_precision.curve(right[rows], max(1, int(objects[k])))
                values.append(average_precision.coco(*curve))
            return float(np.mean(values)) if values else float("nan")

        before = precision(labels, kept, right, self.objects)
        out = {"missed": precision(labels, kept, right, self.objects - self.unseen) - before}
        for error, name in list(enumerate(KINDS))[1:]:
            here = kind == error
            good = here & (mended >= 0)
            now = np.where(good, mended, labels)
            out[name] = precision(now, kept & (~here | good), right | good, self.objects) - before
        return out

    def _all(self) -> tuple[Array, Array, Array, Array]:
        """Labels, scores, kinds and what is mended, of all images' detections."""
        images = sorted(self._images, key=lambda one: one.key)
        return (
            np.concatenate([np.zeros(0, np.int64), *(one.labels for one in images)]),
            np.concatenate([np.zeros(0, np.float32), *(one.scores for one in images)]),
            np.concatenate([np.zeros(0, np.int8), *(one.kinds for one in images)]),
            np.concatenate([np.zeros(0, np.int64), *(one.mended for one in images)]),
        )


def _judged(found: Detections, boxes: Boxes, overlap: Array, iou: float) -> tuple[Array, Array]:
    """(kinds int8 [D], the object that each detection is about: int64 [D], -1 = none)."""
    if not len(boxes):
        return np.full(len(found), BACKGROUND, np.int8), np.full(len(found), -1, np.int64)
    codes, taken = detection_matching.coco(found, boxes, overlap, thresholds=np.array([iou]))
    code = codes[0, 0]
    own = found.labels[:, None] == boxes.labels
    # Nothing is badly placed on a crowd, or of a wrong class: it is no one object.
    same = np.where(own & ~boxes.crowd, overlap, 0)
    other = np.where(~own & ~boxes.crowd, overlap, 0)
    near, beside = same.max(1), other.max(1)
    tests = {
        NONE: code == NEITHER,
        CORRECT: code == TRUE,
        DUPLICATE: near >= iou,
        WRONG_CLASS: beside >= iou,
        POOR_BOX: near >= LEAST,
        BOTH: beside >= LEAST,
    }
    kind = np.select(list(tests.values()), list(tests), BACKGROUND).astype(np.int8)
    meant = np.select(
        [kind == CORRECT, kind == WRONG_CLASS, (kind == DUPLICATE) | (kind == POOR_BOX)],
        [taken[0, 0], other.argmax(1), same.argmax(1)],
        -1,
    )
    return kind, meant
