"""Multi-label classification: an image may have any of the classes, or none. Sigmoid and binary
cross-entropy; one question per class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.tasks import masked
from vidi.types import Array, Batch, Encoded, Meter, Sample

THRESHOLD = 0.5
"""A class is said to be there from this probability on."""


@dataclass(frozen=True)
class Prediction:
    """float64 [K]: each class's own probability; they need not sum to one."""

    probabilities: Array


@dataclass
class Task:
    """``loss``: the user's own, called with logits [B, K] and targets float32 [B, K]; it gives one
    value per sample [B], or their mean."""

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    class_weights: Array | None = None
    loss: Callable[..., Tensor] | None = None
    headline: str = "map"
    padding: ClassVar[dict[str, int]] = {}

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def encode(self, sample: Sample, rng: Any, *, train: bool) -> Encoded:
        return Encoded({"image": sample.image}, {"label": np.asarray(sample.label, np.float32)})

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        return {"binary_cross_entropy": batch.targets["valid"].float().sum()}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy, averaged over the classes. Auxiliary heads as in classification.

        Of mixed images the targets are mixed as well: the loss is linear in them.
        """
        outputs = model(batch.inputs["image"])
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        auxiliary = getattr(getattr(model, "module", model), "aux_weight", 0.0)
        target = self._target(batch)
        total = torch.zeros((), device=target.device)
        for i, logits in enumerate(heads):
            if logits is not None:
                value = masked(self._per_sample(logits.float(), target), batch.targets["valid"])
                total = total + (1.0 if i == 0 else auxiliary) * value.sum()
        return {"binary_cross_entropy": total}

    def predict(self, model: nn.Module, batch: Batch, *, flip: bool = False) -> list[Prediction]:
        """``flip``: the probabilities of the image and its mirror image, averaged."""
        image = batch.inputs["image"]
        p = _probabilities(model, image)
        if flip:
            p = (p + _probabilities(model, image.flip(3))) / 2
        return [Prediction(row) for row in p.numpy()]

    def meter(self) -> MultilabelMeter:
        return MultilabelMeter(len(self.classes))

    def details(self, meter: Meter) -> dict[str, Any]:
        assert isinstance(meter, MultilabelMeter)
        return {"per_class": meter.per_class(self.classes)}

    def _target(self, batch: Batch) -> Tensor:
        target: Tensor = batch.targets["label"]
        if "mix_lambda" in batch.targets:
            share = batch.targets["mix_lambda"].float()[:, None]
            target = share * target + (1 - share) * batch.targets["mix:label"]
        return target * (1 - self.label_smoothing) + self.label_smoothing / 2

    def _per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(logits, target).expand(len(target))
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)


class MultilabelMeter:
    """Keeps all probabilities: average precision needs their order over the whole set."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.found: list[Array] = []
        """float64 [B, K] each."""
        self.truth: list[Array] = []
        """bool [B, K] each."""

    def update(self, predictions: list[Prediction], samples: list[Sample]) -> None:
        if predictions:
            self.found.append(np.stack([p.probabilities for p in predictions]))
            self.truth.append(np.stack([np.asarray(s.label, bool) for s in samples]))

    def merge(self, other: MultilabelMeter) -> None:
        self.found += other.found
        self.truth += other.truth

    def compute(self) -> dict[str, float]:
        """map: the mean over the classes that occur of their average precision (the area under
        precision over recall, without interpolation); f1: over all decisions at probability 0.5
        (micro); f1_macro: the mean over the classes that occur or are said to; all in [0, 1].
        binary_cross_entropy: in nats, averaged over images and classes."""
        p, truth = self._all()
        rows = self.per_class(tuple(map(str, range(self.classes))))
        hit = float((truth & (p >= THRESHOLD)).sum())
        either = float(truth.sum() + (p >= THRESHOLD).sum())
        tiny = np.finfo(np.float64).tiny
        entropy = -np.where(truth, np.log(np.maximum(p, tiny)), np.log1p(-np.minimum(p, 1 - 1e-16)))
        return {
            "map": _mean([row["ap"] for row in rows]),
            "f1": 2 * hit / either if either else 1.0,
            "f1_macro": _mean([row["f1"] for row in rows]),
            "binary_cross_entropy": float(entropy.mean()) if entropy.size else 0.0,
        }

    def per_class(self, classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """One row a class: images that have it, average precision; recall, precision and F1 at
        probability 0.5."""
        from sklearn.metrics import average_precision_score

        p, truth = self._all()
        rows = []
        for k, name in enumerate(classes):
            positive, said = int(truth[:, k].sum()), int((p[:, k] >= THRESHOLD).sum())
            hit = int((truth[:, k] & (p[:, k] >= THRESHOLD)).sum())
            nan = float("nan")
            rows.append(
                {
                    "class": name,
                    "samples": positive,
                    "ap": float(average_precision_score(truth[:, k], p[:, k])) if positive else nan,
                    "recall": hit / positive if positive else nan,
                    "precision": hit / said if said else nan,
                    "f1": 2 * hit / (positive + said) if positive + said else nan,
                }
            )
        return rows

    def _all(self) -> tuple[Array, Array]:
        nothing = np.zeros((0, self.classes))
        return (
            np.concatenate([nothing, *self.found]),
            np.concatenate([nothing.astype(bool), *self.truth]),
        )


def _mean(values: list[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else 0.0


def _probabilities(model: nn.Module, image: Tensor) -> Tensor:
    """float64 [B, K]."""
    outputs = model(image)
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits.float().cpu().double().sigmoid()  # MPS has no float64
