"""The score of boundaries: what matches at each threshold, and ODS, OIS and AP of the counts.

Martin, Fowlkes and Malik 2004, "Learning to detect natural image boundaries using local brightness,
color, and texture cues", section III, and Arbeláez et al. 2011, "Contour detection and hierarchical
image segmentation", section 3.1. The rules are those of BSDS500's own program, which needs MATLAB;
where its matching is random (it draws the pairs that pixels without a match may take), this one is
a largest one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidi.errors import InputError
from vidi.ops.matching import candidates, match
from vidi.ops.thinning import thin as thinned
from vidi.types import Array

MAX_DISTANCE = 0.0075
"""How far apart two pixels may lie that are matched: a share of the image's diagonal."""
LEVELS = 99
BETWEEN = 100
"""So many points, both ends included, are looked at between two thresholds for the best F."""
RECALLS = np.arange(101) / 100


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one image, or of several added up: pixels at each of T thresholds, int64 [T] each."""

    matched_truth: Array
    """Pixels of the annotators' maps that are matched; each annotator's count by themselves."""
    truth: Array
    matched_prediction: Array
    """Predicted pixels that are matched to at least one annotator's."""
    prediction: Array

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.matched_truth + other.matched_truth,
            self.truth + other.truth,
            self.matched_prediction + other.matched_prediction,
            self.prediction + other.prediction,
        )

    @property
    def recall(self) -> Array:
        """float64 [T]; 0 where there is no truth."""
        return self.matched_truth / np.maximum(self.truth, 1)

    @property
    def precision(self) -> Array:
        """float64 [T]; 0 where nothing is predicted."""
        return self.matched_prediction / np.maximum(self.prediction, 1)


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a precision-recall curve."""

    threshold: float
    recall: float
    precision: float
    f: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The score of a whole data set."""

    ods: Point
    """The best F at one threshold for all images, between thresholds too."""
    ois: Point
    """All images' counts, each at its own best threshold; its threshold is NaN."""
    ap: float
    images: list[Point]
    """Each image's best F, between thresholds too."""
    curve: list[Point]
    """The whole data set at each threshold."""


def levels(number: int = LEVELS) -> Array:
    """So many thresholds, evenly between 0 and 1, both excluded: float64 [number]."""
    return np.linspace(1 / (number + 1), 1 - 1 / (number + 1), number)


def score(
    prediction: Array,
    truths: Array,
    thresholds: Array | None = None,
    *,
    max_distance: float = MAX_DISTANCE,
    thin: bool = True,
    name: str = "the prediction",
) -> Counts:
    """What of a prediction matches what each annotator drew, at each threshold.

    ``prediction``: [H, W], from 0 to 1. ``truths``: [A, H, W], a map per annotator; boundary where
    not 0. ``thresholds``: ascending, float [T]; without them :func:`levels`. At each, the pixels
    that reach it are thinned, unless ``thin`` is off, and matched one to one to each annotator's
    within ``max_distance`` of the diagonal. ``name`` is how errors call the prediction.

    A prediction without a pixel, and maps without one, count 0 of 0. Raises :class:`InputError` for
    sizes that differ, no annotator, and values that are not in [0, 1].
    """
    at = levels() if thresholds is None else np.asarray(thresholds, np.float64)
    assert at.ndim == 1 and len(at) and (np.diff(at) > 0).all(), "thresholds must ascend"
    _check(prediction, truths, name)
    drawn = truths != 0
    radius = max_distance * math.hypot(*prediction.shape)
    support = prediction >= at[0]
    pairs = [candidates(support, one, radius) for one in drawn]
    counts = np.zeros((4, len(at)), np.int64)
    counts[1] = np.count_nonzero(drawn)
    before = -1
    for t, threshold in enumerate(at):
        reached = prediction >= threshold
        now = int(np.count_nonzero(reached))
        if now == before:  # the same pixels
            counts[:, t] = counts[:, t - 1]
            continue
        before = now
        present = (thinned(reached) if thin else reached)[support]
        any_annotator = np.zeros(len(present), bool)
        for one in pairs:
            predicted, true = match(one, present)
            any_annotator |= predicted
            counts[0, t] += np.count_nonzero(true)
        counts[2, t] = np.count_nonzero(any_annotator)
        counts[3, t] = np.count_nonzero(present)
    return Counts(*counts)


def summary(counts: Sequence[Counts], thresholds: Array | None = None) -> Summary:
    """The score of a data set from its images' counts at the same thresholds.

    AP is the precision at recalls 0, 0.01, ..., 1, interpolated linearly, summed and divided by
    100, as the original program takes it: 0 outside the recalls that the curve reaches. So it is
    low where weak predictions are missing, and 0 where the curve is a single point, as a binary
    map's is, however good.

    Raises :class:`InputError` where no image's truth has a single pixel.
    """
    assert counts, "no image"
    at = levels() if thresholds is None else np.asarray(thresholds, np.float64)
    whole = sum(counts[1:], start=counts[0])
    if not whole.truth.any():
        raise InputError(
            f"The ground truth of {len(counts)} {'image' if len(counts) == 1 else 'images'} has no "
            "boundary pixel, so there is nothing to score against. Check that boundaries are "
            "drawn as values above 0."
        )
    chosen = [int(np.argmax(f_measure(one.recall, one.precision))) for one in counts]
    best = [_at(one, t) for one, t in zip(counts, chosen, strict=True)]
    own = sum(best[1:], start=best[0])
    return Summary(
        ods=_best(at, whole.recall, whole.precision),
        ois=_points(np.array([np.nan]), own.recall, own.precision)[0],
        ap=_average_precision(whole.recall, whole.precision),
        images=[_best(at, one.recall, one.precision) for one in counts],
        curve=_points(at, whole.recall, whole.precision),
    )


def f_measure(recall: Array, precision: Array) -> Array:
    """The harmonic mean, of the arguments' shape; 0 where both are 0."""
    both = recall + precision
    return np.asarray(2 * recall * precision / np.where(both > 0, both, 1))


def _check(prediction: Array, truths: Array, name: str) -> None:
    if truths.ndim != 3 or not len(truths):
        raise InputError(
            f"The ground truth for {name} has the shape {truths.shape}; expected one map per "
            "annotator, [A, H, W], and at least one."
        )
    if prediction.shape != truths.shape[1:]:
        found = " × ".join(map(str, prediction.shape))
        expected = " × ".join(map(str, truths.shape[1:]))
        raise InputError(
            f"The size of {name} is {found}, but its ground truth is {expected} (height × width). "
            "Predict at the image's full size; resizing a prediction would move its lines."
        )
    if not prediction.size:
        raise InputError(f"There is no pixel in {name}: its size is 0.")
    least, most = float(prediction.min()), float(prediction.max())
    if not (least >= 0 and most <= 1):  # NaN too
        raise InputError(
            f"The values of {name} run from {least:g} to {most:g}; expected 0 to 1. "
            "Divide what was read from an 8-bit file by 255."
        )


def _at(counts: Counts, t: int) -> Counts:
    here = np.s_[t : t + 1]
    return Counts(
        counts.matched_truth[here],
        counts.truth[here],
        counts.matched_prediction[here],
        counts.prediction[here],
    )


def _points(thresholds: Array, recall: Array, precision: Array) -> list[Point]:
    columns = (thresholds, recall, precision, f_measure(recall, precision))
    return [Point(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def _best(thresholds: Array, recall: Array, precision: Array) -> Point:
    """The point of the best F; recall and precision run linearly between thresholds."""
    share = np.linspace(0, 1, BETWEEN)
    curves = [thresholds, recall, precision]
    if len(thresholds) > 1:
        curves = [(c[:-1, None] * (1 - share) + c[1:, None] * share).ravel() for c in curves]
    k = int(np.argmax(f_measure(*curves[1:])))
    return _points(*(c[k : k + 1] for c in curves))[0]


def _average_precision(recall: Array, precision: Array) -> float:
    reached, first = np.unique(recall, return_index=True)
    if len(reached) < 2:
        return 0.0
    at = np.interp(RECALLS, reached, precision[first], left=0, right=0)
    return float(at.sum() / 100)
