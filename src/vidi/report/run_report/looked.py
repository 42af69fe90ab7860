"""One pass over the split that is reported: its best and worst samples, and how sure it was."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from vidi.doctor.hardest import of_labels
from vidi.engine.evaluate import predictions, quick_meter
from vidi.errors import InputError
from vidi.report.run_report.subject import Opened
from vidi.tasks import classification, multilabel
from vidi.types import Array, Batch, Sample

MOST = 2000
"""Samples that are looked at."""
SECONDS = 60.0
"""No more is begun after so long. They come in random order, so that any part stands for all."""
DRAWN = {"classification": 8, "multilabel": 8}
"""The best and the worst samples that are drawn, each: so many."""
FEW = 4
"""Of tasks whose samples have several pictures."""


@dataclass(frozen=True)
class Shown:
    """A sample with what was predicted. ``score``: its loss where there are classes, else the
    task's own metric of this sample alone. Its image has the size that its annotations have."""

    key: str
    score: float
    sample: Sample = field(repr=False)
    prediction: Any = field(repr=False)


@dataclass(frozen=True)
class Looked:
    """``samples`` of the ``of`` that the split has. ``best`` first, ``worst`` last to worst; by
    ``score``, a metric's name. ``bins``: float64 [15, 3], of each confidence how many, its sum, and
    how many were right; None where an answer has no probability. ``seconds``: that it took."""

    samples: int
    of: int
    score: str
    best: tuple[Shown, ...]
    worst: tuple[Shown, ...]
    bins: Array | None
    seconds: float
    device: str


def look(opened: Opened, *, drawn: int | None = None) -> Looked:
    """Predict up to 2000 samples of the split, fewer where that takes over a minute.

    ``drawn``: so many of the best and worst are kept. What cannot be read is passed over.
    """
    task: Any = opened.task
    count = DRAWN.get(opened.dataset.task, FEW) if drawn is None else drawn
    some = copy.copy(opened.loader)
    some.ids = np.random.default_rng(0).permutation(opened.loader.ids)[:MOST]
    some.failures = {}
    of_labels = isinstance(task, classification.Task | multilabel.Task)
    lower = of_labels or bool(getattr(task, "lower_is_better", False))
    kept: list[Shown] = []
    bins = np.zeros((classification.BINS, 3)) if of_labels else None
    done = 0
    began = time.perf_counter()
    with contextlib.closing(
        predictions(opened.network, opened.task, some, opened.compute)
    ) as batches:
        for batch, found in batches:
            for row, sample, prediction in zip(
                np.flatnonzero(batch.valid), batch.samples, found, strict=True
            ):
                done += 1
                if bins is not None:
                    _count(bins, prediction, sample)
                score = _score(task, prediction, sample)
                if math.isfinite(score):
                    kept.append(_shown(batch, int(row), sample, prediction, score))
            kept.sort(key=lambda one: one.score if lower else -one.score)
            # Those between are neither.
            if len(kept) > 2 * count:
                kept = [*kept[:count], *kept[-count:]]
            if time.perf_counter() - began > SECONDS:
                break
    half = len(kept) // 2
    worst = kept[len(kept) - min(count, half) :] if half else []
    return Looked(
        samples=done,
        of=len(opened.loader.ids),
        score="loss" if of_labels else task.headline,
        best=tuple(kept[: min(count, len(kept) - len(worst))]),
        worst=tuple(reversed(worst)),
        bins=bins,
        seconds=time.perf_counter() - began,
        device=str(opened.compute.device),
    )


def _score(task: Any, prediction: Any, sample: Sample) -> float:
    """NaN where there is nothing to measure, such as of an image without objects."""
    if isinstance(prediction, classification.Prediction | multilabel.Prediction):
        return of_labels(prediction, sample)[0]
    meter = quick_meter(task)
    meter.update([prediction], [sample])
    try:
        return float(meter.compute()[task.headline])
    except InputError:  # the flow of no pixel is known
        return math.nan


def _count(bins: Array, prediction: Any, sample: Sample) -> None:
    """Adds the likeliest class's probability, or that of every label."""
    if isinstance(prediction, classification.Prediction):
        k = int(prediction.log_probabilities.argmax())
        said = np.exp(prediction.log_probabilities[k : k + 1])
        right = np.array([k == int(np.asarray(sample.label))])
    else:
        said, right = prediction.probabilities, np.asarray(sample.label, bool)
    # As the calibration error has them: a bin's upper end belongs to it.
    at = np.clip(np.ceil(said * len(bins)).astype(int) - 1, 0, len(bins) - 1)
    np.add.at(bins, at, np.stack([np.ones_like(said), said, right], 1))


def _shown(batch: Batch, row: int, sample: Sample, prediction: Any, score: float) -> Shown:
    if sample.label is None:
        size = (int(batch.sizes[row][1]), int(batch.sizes[row][0]))
        fields: dict[str, Any] = {"image": _resized(sample.image, size)}
        if sample.image2 is not None:
            fields["image2"] = _resized(sample.image2, size)
        sample = dataclasses.replace(sample, **fields)
    return Shown(sample.key, score, sample, prediction)


def _resized(image: Array, size: tuple[int, int]) -> Array:
    """``size``: width and height."""
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
