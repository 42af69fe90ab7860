"""What is answered about an image, one class per task (flow: :mod:`vidi.engine.flow_fields`), and
what an evaluation gives."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from vidi.ops.suppression import suppress
from vidi.types import Array, Detections


@dataclass(frozen=True)
class Prediction:
    """What a run says of one image. ``label``: the likeliest class, at ``probability``. ``labels``:
    all that the image is said to have, which may be several or none where the run is multi-label.
    ``probabilities``: float64 [K], one per class."""

    path: str
    label: str
    probability: float
    labels: tuple[str, ...]
    probabilities: Array


@dataclass(frozen=True)
class Segmentation:
    """What a segmentation run says of one image. ``mask``: uint8 (int32 for more than 256 classes)
    [H, W], a class's number for each pixel. ``shares``: the classes that it holds, by their share
    of the pixels, the largest first."""

    path: str
    mask: Array
    shares: dict[str, float]


@dataclass(frozen=True)
class BoundaryMap:
    """What a boundary run says of one image. ``soft``: float32 [H, W], 0 to 1: how likely each
    pixel is on a boundary. ``thin``: that after non-maximum suppression, one or two pixels wide."""

    path: str
    soft: Array

    @functools.cached_property
    def thin(self) -> Array:
        return suppress(self.soft)


@dataclass(frozen=True)
class DetectedObjects:
    """What a detection run finds in one image. ``size``: its height and width. ``found``: boxes,
    labels and scores, the surest first. ``names``: the class of each."""

    path: str
    size: tuple[int, int]
    found: Detections
    names: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """A run's score on a split. ``details`` holds the rows per class and the confusion matrix."""

    run: str
    data: str
    split: str
    samples: int
    metrics: dict[str, float]
    details: dict[str, Any]
