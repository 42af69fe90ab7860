"""Classification: one class per image. Softmax and cross-entropy."""

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

BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017, section 2."""


@dataclass(frozen=True)
class Prediction:
    """float64 [K] each."""

    log_probabilities: Array

    @property
    def probabilities(self) -> Array:
        return np.asarray(np.exp(self.log_probabilities))


@dataclass
class Task:
    """``class_weights``: float32 [K], each class's weight in the loss. ``loss``: the user's own,
    called with logits [B, K] and labels int64 [B]; it gives one value per sample [B], or their
    mean."""

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    class_weights: Array | None = None
    loss: Callable[..., Tensor] | None = None
    headline: str = "accuracy"
    padding: ClassVar[dict[str, int]] = {}

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def encode(self, sample: Sample, rng: Any, *, train: bool) -> Encoded:
        return Encoded({"image": sample.image}, {"label": np.asarray(sample.label, np.int64)})

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """The sum of the samples' class weights; mixed samples weigh in proportion."""
        return {"cross_entropy": sum((w for _, w in self._targets(batch)), torch.zeros(())).sum()}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the softmax. Auxiliary heads (a NamedTuple of outputs) are added at the
        weight that the network states (GoogLeNet: 0.3; Szegedy et al. 2015, section 5)."""
        outputs = model(batch.inputs["image"])
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        auxiliary = getattr(getattr(model, "module", model), "aux_weight", 0.0)
        total = torch.zeros((), device=heads[0].device)
        for i, logits in enumerate(heads):
            if logits is None:
                continue
            logits = logits.float()
            for label, weight in self._targets(batch):
                value = masked(self._per_sample(logits, label), batch.targets["valid"])
                total = total + (1.0 if i == 0 else auxiliary) * (weight * value).sum()
        return {"cross_entropy": total}

    def predict(self, model: nn.Module, batch: Batch, *, flip: bool = False) -> list[Prediction]:
        """``flip``: the probabilities of the image and its mirror image, averaged."""
        image = batch.inputs["image"]
        log_p = _log_probabilities(model, image)
        if flip:
            both = torch.stack([log_p, _log_probabilities(model, image.flip(3))])
            log_p = both.logsumexp(0) - np.log(2)
        return [Prediction(row) for row in log_p.numpy()]

    def meter(self) -> ClassificationMeter:
        return ClassificationMeter(len(self.classes))

    def details(self, meter: Meter) -> dict[str, Any]:
        assert isinstance(meter, ClassificationMeter)
        return {
            "per_class": meter.per_class(self.classes),
            "confusion": meter.confusion.tolist(),
        }

    def _targets(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """(labels [B], weights [B]): one pair, or two where images were mixed."""
        t = batch.targets
        valid = t["valid"].float()
        if "mix_lambda" not in t:
            pairs = [(t["label"], valid)]
        else:
            share = t["mix_lambda"].float()
            pairs = [(t["label"], valid * share), (t["mix:label"], valid * (1 - share))]
        if self.class_weights is None:
            return pairs
        table = torch.as_tensor(self.class_weights, device=valid.device)
        return [(label, weight * table[label]) for label, weight in pairs]

    def _per_sample(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(logits, label).expand(len(label))
        return F.cross_entropy(
            logits, label, reduction="none", label_smoothing=self.label_smoothing
        )


class ClassificationMeter:
    """Counts and sums only, so that meters of several processes add up exactly."""

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), np.int64)
        """[truth, predicted]"""
        self.in_top5 = np.zeros(classes, np.int64)
        self.cross_entropy = 0.0
        self.bins = np.zeros((BINS, 3))
        """Per bin of confidence: samples, sum of confidence, samples that were right."""

    def update(self, predictions: list[Prediction], samples: list[Sample]) -> None:
        if not predictions:
            return
        log_p = np.stack([p.log_probabilities for p in predictions]).astype(np.float64)
        label = np.array([s.label for s in samples], np.int64)
        rows = np.arange(len(label))
        predicted = log_p.argmax(1)
        np.add.at(self.confusion, (label, predicted), 1)
        # A label is in the top five when fewer than five classes rank above it.
        above = (log_p > log_p[rows, label][:, None]).sum(1)
        np.add.at(self.in_top5, label, above < 5)
        self.cross_entropy -= float(log_p[rows, label].sum())
        confidence = np.exp(log_p.max(1))
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        right = predicted == label
        np.add.at(self.bins, bins, np.stack([np.ones_like(confidence), confidence, right], 1))

    def merge(self, other: ClassificationMeter) -> None:
        self.confusion += other.confusion
        self.in_top5 += other.in_top5
        self.cross_entropy += other.cross_entropy
        self.bins += other.bins

    def compute(self) -> dict[str, float]:
        """accuracy, error and top5 (the share with the label among the five likeliest) in [0, 1];
        cross_entropy in nats; ece, the expected calibration error (Guo et al. 2017, eq. 3)."""
        n = max(1, int(self.confusion.sum()))
        accuracy = float(np.trace(self.confusion)) / n
        filled = self.bins[self.bins[:, 0] > 0]
        return {
            "accuracy": accuracy,
            "error": 1 - accuracy,
            "top5": float(self.in_top5.sum()) / n,
            "cross_entropy": self.cross_entropy / n,
            "ece": float(np.abs(filled[:, 1] - filled[:, 2]).sum()) / n,
        }

    def per_class(self, classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """One row a class: samples, recall (that class's accuracy), precision, F1, top5."""
        rows = []
        for k, name in enumerate(classes):
            samples, named = int(self.confusion[k].sum()), int(self.confusion[:, k].sum())
            hit = int(self.confusion[k, k])
            rows.append(
                {
                    "class": name,
                    "samples": samples,
                    "recall": hit / samples if samples else float("nan"),
                    "precision": hit / named if named else float("nan"),
                    "f1": 2 * hit / (samples + named) if samples + named else float("nan"),
                    "top5": int(self.in_top5[k]) / samples if samples else float("nan"),
                }
            )
        return rows


def _log_probabilities(model: nn.Module, image: Tensor) -> Tensor:
    """float64 [B, K]."""
    outputs = model(image)
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits.float().cpu().double().log_softmax(1)  # MPS has no float64
