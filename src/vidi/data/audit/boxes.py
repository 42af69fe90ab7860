"""Boxes that cannot be learned, or are not what was meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vidi.data.audit.finding import Finding, Severity
from vidi.data.audit.looks import Seen
from vidi.data.audit.report import found
from vidi.types import Array

POINT = 1.0
"""A side of at most one pixel is none: formats that include a box's end make a pixel of nothing."""
TINY = 4.0
"""Pixels of the shorter side."""
OVER = 1.5
"""Pixels by which a box may stand out of its image: formats count from 0 or 1, and round."""
WHOLE = 0.98
"""Share of the image that a box covers, to be called all of it."""
COMMON = 0.01
"""Tiny boxes are a warning from this share of all on."""
MANY_WHOLE = 0.05
SAME = 0.5
"""Pixels by which all sides of a box may differ from another's, to count as the same."""


def check(seen: Seen) -> list[Finding]:
    """Each box is told its worst fault only, except that it may be a duplicate as well."""
    boxes = seen.boxes
    if boxes is None or not len(boxes):
        return []
    names = seen.dataset.classes
    xyxy = boxes.xyxy.astype(np.float64)
    left = np.ones(len(boxes), bool)

    def take(which: Any) -> Array:
        """The boxes of ``which`` that no earlier fault has taken."""
        mine = np.asarray(which & left)
        left[mine] = False
        return np.flatnonzero(mine)

    def said(at: Array) -> dict[int, str]:
        """The first of the boxes at ``at``, by row, as text."""
        out: dict[int, str] = {}
        for i in at.tolist():
            k = int(boxes.labels[i])
            name = names[k] if 0 <= k < len(names) else f"class {k}"
            sides = ", ".join(f"{v:g}" for v in boxes.xyxy[i].tolist())
            out.setdefault(
                int(boxes.rows[i]), f"box {int(boxes.numbers[i]) + 1}, {name}: ({sides})"
            )
        return out

    def report(
        code: str, severity: Severity, at: Array, what: str, effect: str, advice: str
    ) -> list[Finding]:
        texts = said(at)
        return found(
            seen,
            code,
            severity,
            texts,
            what=what,
            effect=effect,
            advice=advice,
            detail=texts.__getitem__,
            count=len(at),
        )

    scale = _scale(xyxy, report)
    if scale:  # in pixels they have every other fault as well
        return scale
    return [
        *_broken(xyxy, boxes.labels, len(names), take, report),
        *_placed(seen, xyxy, take, report),
        *_sized(seen, xyxy, left, report),
        *_repeated(seen, xyxy, report),
    ]


Report = Callable[[str, Severity, Array, str, str, str], list[Finding]]
Take = Callable[[Any], Array]


def _broken(xyxy: Array, labels: Array, k: int, take: Take, report: Report) -> list[Finding]:
    width, height = xyxy[:, 2] - xyxy[:, 0], xyxy[:, 3] - xyxy[:, 1]
    dropped = "It is no box: a loss of it is not finite or zero, or its image fails."
    return [
        *report(
            "box-nan",
            "error",
            take(~np.isfinite(xyxy).all(1)),
            "{n} box[|es] [has|have] a side that is not a finite number.",
            dropped,
            "Annotate again, or remove.",
        ),
        *report(
            "box-class",
            "error",
            take((labels < 0) | (labels >= k)),
            f"{{n}} box[|es] [is|are] of a class outside 0 to {k - 1}.",
            "There is no output for it: training fails at it.",
            "Correct the class, or the list of classes.",
        ),
        *report(
            "box-inverted",
            "error",
            take((width < 0) | (height < 0)),
            "{n} box[|es] [ends|end] left of or above where [it begins|they begin].",
            dropped,
            "Exchange the corners. If there are many, the format may be another: (x, y, width, "
            "height) read as corners looks so.",
        ),
        *report(
            "box-no-area",
            "error",
            take((width <= POINT) | (height <= POINT)),
            "{n} box[|es] [has|have] no area: a side of at most one pixel.",
            "Nothing lies in them, and each counts as an object that is never found.",
            "They are slips of the annotator's mouse: remove them.",
        ),
    ]


def _scale(xyxy: Array, report: Report) -> list[Finding]:
    """All boxes within [0, 1] × [0, 1] were meant as shares of the image."""
    finite = xyxy[np.isfinite(xyxy).all(1)]
    if not len(finite) or finite.max() > 1.0 or finite.min() < 0 or not finite.any():
        return []
    return report(
        "box-scale",
        "error",
        np.arange(len(xyxy)),
        "All {n} box[|es] [lies|lie] between 0 and 1: shares of the image's sides, not pixels.",
        "In pixels they are nothing, and nothing is learned.",
        "Multiply by the image's width and height, or say the format that they are in (YOLO's are "
        "shares).",
    )


def _placed(seen: Seen, xyxy: Array, take: Take, report: Report) -> list[Finding]:
    assert seen.boxes is not None
    h, w = seen.sizes[seen.boxes.rows].T.astype(np.float64)
    known = (h > 0) & (w > 0)
    off = (xyxy[:, 0] >= w) | (xyxy[:, 1] >= h) | (xyxy[:, 2] <= 0) | (xyxy[:, 3] <= 0)
    over = (xyxy[:, 0] < -OVER) | (xyxy[:, 1] < -OVER)
    over |= (xyxy[:, 2] > w + OVER) | (xyxy[:, 3] > h + OVER)
    wrong_size = "The annotation was perhaps made for the image at another size, or turned."
    return [
        *report(
            "box-outside",
            "error",
            take(known & off),
            "{n} box[|es] [lies|lie] outside [its image|their images] altogether.",
            "There is nothing to see in them; each counts as an object that is never found.",
            f"{wrong_size} Correct or remove them.",
        ),
        *report(
            "box-over-edge",
            "warning",
            take(known & over),
            "{n} box[|es] [reaches|reach] over the edge of [its image|their images].",
            "They are clipped to it, and are wrong if the image was cropped or shrunk since.",
            f"{wrong_size} If not, nothing need be done.",
        ),
    ]


def _sized(seen: Seen, xyxy: Array, left: Array, report: Report) -> list[Finding]:
    assert seen.boxes is not None
    size = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0)
    area = seen.sizes[seen.boxes.rows].astype(np.float64).prod(1)
    tiny = np.flatnonzero(left & (size.min(1) < TINY))
    whole = np.flatnonzero(left & (area > 0) & (size.prod(1) >= WHOLE * area))
    return [
        *report(
            "box-tiny",
            "warning" if len(tiny) > COMMON * len(xyxy) else "info",
            tiny,
            f"{{n}} box[|es] [is|are] less than {TINY:g} pixels wide or high.",
            "Once the image is shrunk to the network's input nothing is left of them; they cost "
            "recall.",
            "Train on larger images or on parts of them, or remove them.",
        ),
        *report(
            "box-whole",
            "warning" if len(whole) > MANY_WHOLE * len(xyxy) else "info",
            whole,
            "{n} box[|es] [covers|cover] the whole image.",
            "If the object does not, the network learns that boxes end at the image's edge.",
            "Look at them: exported classification data looks so.",
        ),
    ]


def _repeated(seen: Seen, xyxy: Array, report: Report) -> list[Finding]:
    boxes = seen.boxes
    assert boxes is not None
    finite = np.isfinite(xyxy).all(1)
    again: list[int] = []
    torn: list[int] = []
    order = np.flatnonzero(finite & ~boxes.crowd)
    order = order[np.lexsort((xyxy[order, 0], boxes.rows[order]))]
    rows, x, label = boxes.rows[order], xyxy[order], boxes.labels[order]
    # Same boxes begin at the same x: only runs of near equal ones are compared, not all pairs.
    step = 1
    while step < len(order):
        near = (rows[step:] == rows[:-step]) & (x[step:, 0] - x[:-step, 0] <= SAME)
        if not near.any():
            break
        same = near & (np.abs(x[step:] - x[:-step]) <= SAME).all(1)
        twin = label[step:] == label[:-step]
        again += order[step:][same & twin].tolist()
        torn += order[step:][same & ~twin].tolist()
        step += 1
    return [
        *report(
            "box-duplicate",
            "warning",
            np.unique(np.array(again, np.int64)),
            "{n} box[|es] [stands|stand] there twice: the same class at the same place.",
            "The object counts twice, and one of the two is never found: average precision cannot "
            "reach 1.",
            "Remove one of each.",
        ),
        *report(
            "box-conflict",
            "warning",
            np.unique(np.array(torn, np.int64)),
            "{n} box[|es] [lies|lie] exactly where one of another class lies.",
            "The network is told both, and learns neither well.",
            "Decide on one, unless an object may be of two classes.",
        ),
    ]


def without(seen: Seen) -> list[Finding]:
    """Images without a box."""
    if seen.boxes is None or not len(seen):
        return []
    has = np.zeros(len(seen), bool)
    has[seen.boxes.rows] = True
    empty = np.flatnonzero(~has)
    most = len(empty) > 0.5 * len(seen)
    return found(
        seen,
        "image-without-box",
        "warning" if most else "info",
        empty,
        what="{n} image[|s] [has|have] no box.",
        effect="They teach what background is; if something is on them, they teach to overlook it.",
        advice="Look at some of them for objects that were not annotated.",
    )
