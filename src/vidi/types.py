"""The nouns that every layer shares. NumPy only: importing this file is instant.

Pixel ``i`` covers the interval ``[i, i + 1)``; its centre is ``i + 1/2``. Matrices map source
coordinates ``(x, y, 1)`` to target coordinates in that convention, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Annotated boxes of one image.

    ``xyxy``: float32 [N, 4] in pixels, exclusive ends. ``labels``: int64 [N]. ``difficult`` and
    ``crowd``: bool [N].
    """

    xyxy: Array
    labels: Array
    difficult: Array
    crowd: Array
    instances: Array | None = None
    """int64 [N]: the box's value in :attr:`Sample.instances`, where there is such a map; 0 = not in
    it."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """Objects found in one image, the surest first.

    ``xyxy``: float32 [D, 4] in pixels of the original image, exclusive ends. ``labels``: int64 [D].
    ``scores``: float32 [D], from 0 to 1.
    """

    xyxy: Array
    labels: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One item of a dataset, on the CPU. What is not annotated is ``None``.

    ``key`` is the sample's stable identity within its dataset: errors, metrics and reports name
    it. ``image`` is uint8 [H, W, 3], RGB.
    """

    key: str
    image: Array
    image2: Array | None = None
    """Second frame of a pair, uint8 [H, W, 3]."""
    label: int | Array | None = None
    """One class, or a 0/1 vector [K] where an image may have several."""
    boxes: Boxes | None = None
    proposals: Array | None = None
    """float32 [P, 4], xyxy in pixels."""
    mask: Array | None = None
    """uint8 or int32 [H, W]: a class's number; 255 = ignore."""
    instances: Array | None = None
    """int32 [H, W]: 0 = none; which box has which value, :attr:`Boxes.instances` says."""
    flow: Array | None = None
    """float32 [H, W, 2], pixels."""
    flow_valid: Array | None = None
    """bool [H, W]."""
    occluded: Array | None = None
    """bool [H, W]."""
    edges: Array | None = None
    """One boundary map per annotator, uint8 [A, H, W]: 0 to 255, 255 = boundary."""
    segments: Array | None = None
    """BSDS's segmentations, one per annotator, int32 [A, H, W]; boundaries lie between them."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a task makes of one sample: named network inputs and named targets, as arrays."""

    inputs: dict[str, Array]
    targets: dict[str, Array]


@dataclass(slots=True)
class Batch:
    """Encoded samples, stacked. Arrays on the CPU as the loader makes it, tensors on the device.

    ``inputs["image"]`` is uint8 [B, H, W, 3] as the loader makes it, normalised floating point
    [B, 3, H, W] when the task sees it. An array whose shape differs between samples is a list.
    """

    inputs: dict[str, Any]
    targets: dict[str, Any]
    keys: list[str]
    ids: Array
    """int64 [B]: each sample's index in the whole dataset."""
    matrices: Array
    """float64 [B, 3, 3]: original pixels to input pixels."""
    sizes: Array
    """int64 [B, 2]: height and width of the original image."""
    valid: Array
    """bool [B]: False where the sample could not be read; it then counts for nothing."""
    samples: list[Sample] = field(default_factory=list)
    """The samples themselves, when evaluation asked to keep them."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Per-channel mean and deviation of RGB values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Meter(Protocol):
    """A metric that is exact however the samples are shared out."""

    def update(self, predictions: list[Any], samples: list[Any]) -> None: ...

    def merge(self, other: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Samples(Protocol):
    """What a user may hand over instead of a path: anything indexable that yields samples.

    An item is a :class:`Sample`, or an ``(image, label)`` pair as torchvision's datasets give.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Notes = list[str]
"""Sentences that say what was found or decided, and why; printed, and saved with the run."""
