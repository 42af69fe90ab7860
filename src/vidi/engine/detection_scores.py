"""Detections that lie in files, whatever made them, against the boxes of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidi.data import detection_files
from vidi.data.dataset import Dataset
from vidi.data.open import open_data
from vidi.data.truth import BoxTable
from vidi.errors import InputError
from vidi.tasks.detection import Task
from vidi.types import Boxes, Notes, Sample


@dataclass(frozen=True)
class FileScore:
    """``metrics`` and ``details``: as :class:`vidi.tasks.detection.Task` has them of a run.
    ``data``, ``split``: what was scored against. ``count``: images."""

    data: str
    split: str
    count: int
    metrics: dict[str, float]
    details: dict[str, Any]
    notes: Notes


def score(
    predictions: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    done: Callable[[int, int], None] | None = None,
) -> FileScore:
    """Score detections: COCO's results (.json), or a folder of VOC's XML or YOLO's text files.

    ``data``: a data set with boxes; :func:`vidi.data.detection_files.read` says which image a
    detection is of. ``split``: test where there is one, else validation, else training. ``done``
    hears after each image how many of how many there are.

    Raises :class:`InputError` for detections that cannot be read or belong to no image.
    """
    dataset = open_data(str(Path(data).expanduser()), task="detection", carve_val=False)
    chosen = split or next(s for s in ("test", "val", "train") if s in dataset.splits)
    if chosen not in dataset.splits:
        raise InputError(f"{data} has no split {chosen!r}; it has {', '.join(dataset.splits)}.")
    found, notes = detection_files.read(predictions, dataset, chosen)
    task = Task(dataset.classes)
    meter = task.meter()
    ids = [int(i) for i in dataset.splits[chosen]]
    for k, i in enumerate(ids):
        key = dataset.images.key(i)
        sample = Sample(key=key, image=np.zeros((1, 1, 3), np.uint8), boxes=_boxes(dataset, i))
        meter.update([found[key]], [sample])
        if done is not None:
            done(k + 1, len(ids))
    return FileScore(str(data), chosen, len(ids), meter.compute(), task.details(meter), notes)


def _boxes(dataset: Dataset, i: int) -> Boxes:
    """The boxes alone where they lie in memory: the masks that come along take long to decode."""
    if isinstance(dataset.truth, BoxTable):
        return dataset.truth.boxes(i)
    boxes: Boxes = dataset.annotations(i)["boxes"]
    return boxes
