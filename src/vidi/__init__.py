"""vidi: from a folder of images to a trained, understood and shipped vision network.

    run = vidi.train("photos/", model="resnet18", epochs=30)
    vidi.load(run.path).predict("cat.jpg")
    vidi.open("photos/")
    vidi.models.resnet18(num_classes=10)

What is listed here is the whole public interface; each name is imported when it is first used, so
that importing vidi is instant (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vidi import models
    from vidi.api import Model, Run, ensemble, examine, load, run_report, train
    from vidi.data.dataset import Dataset
    from vidi.data.open import open_data as open
    from vidi.engine.answers import (
        BoundaryMap,
        DetectedObjects,
        Evaluation,
        Prediction,
        Segmentation,
    )
    from vidi.engine.flow_fields import FlowField
    from vidi.engine.heatmaps import HeatMap
    from vidi.engine.learned_proposals import Proposed
    from vidi.errors import InputError, RunError
    from vidi.recipe import (
        Augmentation,
        Data,
        Length,
        Logging,
        Optimiser,
        Recipe,
        Regularisation,
        Schedule,
    )
    from vidi.report.compare import compare
    from vidi.types import Boxes, Detections, Sample

_HOME = {
    "train": "vidi.api",
    "load": "vidi.api",
    "ensemble": "vidi.api",
    "compare": "vidi.report.compare",
    "examine": "vidi.api",
    "run_report": "vidi.api",
    "open": "vidi.data.open:open_data",
    "Run": "vidi.api",
    "Model": "vidi.api",
    "Prediction": "vidi.engine.answers",
    "Segmentation": "vidi.engine.answers",
    "BoundaryMap": "vidi.engine.answers",
    "DetectedObjects": "vidi.engine.answers",
    "FlowField": "vidi.engine.flow_fields",
    "HeatMap": "vidi.engine.heatmaps",
    "Proposed": "vidi.engine.learned_proposals",
    "Evaluation": "vidi.engine.answers",
    "Dataset": "vidi.data.dataset",
    "Sample": "vidi.types",
    "Boxes": "vidi.types",
    "Detections": "vidi.types",
    "Recipe": "vidi.recipe",
    "Data": "vidi.recipe",
    "Optimiser": "vidi.recipe",
    "Schedule": "vidi.recipe",
    "Regularisation": "vidi.recipe",
    "Augmentation": "vidi.recipe",
    "Length": "vidi.recipe",
    "Logging": "vidi.recipe",
    "InputError": "vidi.errors",
    "RunError": "vidi.errors",
}

__all__ = [
    "train",
    "load",
    "ensemble",
    "compare",
    "examine",
    "run_report",
    "open",
    "models",
    "Run",
    "Model",
    "Prediction",
    "Segmentation",
    "BoundaryMap",
    "DetectedObjects",
    "FlowField",
    "HeatMap",
    "Proposed",
    "Evaluation",
    "Dataset",
    "Sample",
    "Boxes",
    "Detections",
    "Recipe",
    "Data",
    "Optimiser",
    "Schedule",
    "Regularisation",
    "Augmentation",
    "Length",
    "Logging",
    "InputError",
    "RunError",
]


def __getattr__(name: str) -> Any:
    if name == "models":
        return importlib.import_module("vidi.models")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, other = _HOME[name].partition(":")
    value = getattr(importlib.import_module(module), other or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
