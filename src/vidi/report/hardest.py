"""The sheet of the hardest samples: image, label, and what the network says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from vidi.doctor.hardest import Hard, Hardest
from vidi.report import contact
from vidi.tasks import boundaries, flow, segmentation
from vidi.types import Boxes, Detections, Sample

SURE = 0.5
"""Detections of that score or more are drawn."""


def draw(found: Hardest, path: Path) -> None:
    """Write the sheet. Where what is said is drawn (boxes, masks, flow, boundaries), two pictures
    stand side by side for each sample: its label, and the prediction."""
    samples, captions = [], []
    for row in found.rows:
        samples.append(row.sample)
        captions.append(_caption(row))
        if row.prediction is None:
            samples.append(_said(row.sample, row.shown))
            captions.append("what the network says")
    if not samples:
        return
    contact.sheet(
        samples,
        captions,
        found.classes,
        path,
        title=_title(found),
        palette=found.palette,
        columns=6,
    )


def _title(found: Hardest) -> str:
    of = " and ".join(f"{n:,} of {split}" for split, n in found.samples.items())
    return f"The {len(found.rows)} samples with the highest loss, of {of}"


def _caption(row: Hard) -> str:
    first = f"{row.key} ({row.split})" if not row.key.startswith(f"{row.split}/") else row.key
    lines = [f"{first}: loss {row.loss:.3g}"]
    if row.prediction is not None and row.probability is not None:
        lines.append(f"labelled {row.label}\nnetwork: {row.prediction}, {row.probability:.0%}")
    return "\n".join(lines)


def _said(sample: Sample, prediction: Any) -> Sample:
    """The prediction as if it was the label."""
    bare = Sample(key=sample.key, image=sample.image)
    if isinstance(prediction, segmentation.Prediction):
        return dataclasses.replace(bare, mask=prediction.mask)
    if isinstance(prediction, flow.Prediction):
        return dataclasses.replace(bare, flow=prediction.flow)
    if isinstance(prediction, boundaries.Prediction):
        soft = np.rint(255 * prediction.soft).astype(np.uint8)
        return dataclasses.replace(bare, edges=soft[None])
    assert isinstance(prediction, Detections)
    sure = prediction.scores >= SURE
    nothing = np.zeros(int(sure.sum()), bool)
    boxes = Boxes(
        xyxy=prediction.xyxy[sure],
        labels=prediction.labels[sure],
        difficult=nothing,
        crowd=nothing,
    )
    return dataclasses.replace(bare, boxes=boxes)
