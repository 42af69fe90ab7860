"""One answer, of any task, as an object ready for JSON: what `vidi predict --json` prints and
`vidi serve` answers, but for the names of files."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from vidi.data.flowfiles import kitti_png
from vidi.engine.answers import BoundaryMap, DetectedObjects, Prediction, Segmentation
from vidi.engine.flow_fields import FlowField
from vidi.report.drawn import Answer
from vidi.report.names import readable
from vidi.types import Array


def as_json(
    answer: Answer,
    classes: Sequence[str],
    *,
    top: int = 5,
    least: float = 0.0,
    arrays: bool = False,
) -> dict[str, Any]:
    """An answer as strings, numbers, lists and dicts. What is not finite is None.

    classification: ``label``, ``probability``, ``labels``, ``top``: pairs of class and probability,
    the ``top`` likeliest. segmentation: ``size`` (height, width), ``shares``: class to share of the
    pixels. boundaries: ``size``, the ``mean`` and the ``largest`` probability. detection: ``size``,
    ``objects``: each with ``class``, ``score``, ``box`` (x0, y0, x1, y1 in pixels, exclusive ends),
    those that score ``least`` or more. flow: ``size``, ``mean_motion`` and ``largest_motion`` in
    pixels, ``photometric_error`` and ``photometric_error_zero`` (see :class:`FlowField`).

    ``arrays``: what has a value for each pixel, too, as PNG in base64: ``mask`` (grey, class
    numbers, 16 bits where a byte does not hold them), ``map`` (grey, 255 = 1), ``flow`` (KITTI's
    16-bit PNG, see :func:`vidi.data.flowfiles.read_kitti`).
    """
    match answer:
        case Prediction():
            return _classified(answer, classes, top)
        case Segmentation():
            shares = {readable(name): share for name, share in answer.shares.items()}
            said: dict[str, Any] = {"size": list(answer.mask.shape), "shares": shares}
            return said | ({"mask": _base64(_numbers(answer.mask))} if arrays else {})
        case BoundaryMap():
            return _outlined(answer.soft) | ({"map": _base64(_grey(answer.soft))} if arrays else {})
        case DetectedObjects():
            return {"size": list(answer.size), "objects": _objects(answer, least)}
        case FlowField():
            return _moving(answer) | (
                {"flow": _base64(kitti_png(answer.flow)[0])} if arrays else {}
            )


def _classified(answer: Prediction, classes: Sequence[str], top: int) -> dict[str, Any]:
    likeliest = np.argsort(-answer.probabilities, kind="stable")[:top]
    return {
        "label": readable(answer.label),
        "probability": _number(answer.probability),
        "labels": [readable(name) for name in answer.labels],
        "top": [[readable(classes[k]), _number(answer.probabilities[k])] for k in likeliest],
    }


def _outlined(soft: Array) -> dict[str, Any]:
    return {
        "size": list(soft.shape),
        "mean": _number(soft.mean(dtype=np.float64)),
        "largest": _number(soft.max()),
    }


def _objects(answer: DetectedObjects, least: float) -> list[dict[str, Any]]:
    found = answer.found
    return [
        {"class": readable(name), "score": _number(score), "box": [_number(v) for v in box]}
        for name, score, box in zip(answer.names, found.scores, found.xyxy, strict=True)
        if score >= least
    ]


def _moving(answer: FlowField) -> dict[str, Any]:
    sizes = np.hypot(answer.flow[..., 0], answer.flow[..., 1])
    return {
        "size": list(sizes.shape),
        "mean_motion": _number(sizes.mean(dtype=np.float64)),
        "largest_motion": _number(sizes.max()),
        "photometric_error": _number(answer.photometric_error),
        "photometric_error_zero": _number(answer.photometric_error_zero),
    }


def _number(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return float(value) if math.isfinite(value) else None


def _numbers(mask: Array) -> bytes:
    return _png(mask if mask.dtype == np.uint8 else mask.astype(np.uint16))


def _grey(soft: Array) -> bytes:
    return _png(np.rint(255 * soft.clip(0, 1)).astype(np.uint8))


def _png(pixels: Array) -> bytes:
    """uint8 or uint16 [H, W]."""
    return bytes(cv2.imencode(".png", pixels)[1].tobytes())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
