"""The samples with the highest loss: first of all those whose label is wrong.

A network learns what most labels say before it learns single ones by heart, so that a sample which
it finds hard after all is rare, or is labelled wrongly (Arpit et al. 2017, "A closer look at
memorization in deep networks"). Trained until it has learned every sample by heart, it finds none
of training's wrong labels any more; those of validation it does.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch

from vidi.data.loader import Loader
from vidi.engine.device import to_device
from vidi.engine.evaluate import predictions
from vidi.engine.prepare import Prepared
from vidi.tasks import classification, multilabel
from vidi.types import Array, Sample

DOUBTFUL = 0.5
"""A class that is said at this probability, and is not the label, makes the label doubtful."""
SURE = 0.8
"""From this probability on the network is called sure."""
BY_HEART = 0.995
"""Training samples that were learned to this share hide their wrong labels."""


@dataclass(frozen=True)
class Hard:
    """One sample. ``loss``: in nats, where there are classes; else the task's own. ``label``: what
    it is said to be, ``prediction``: what the network says, and ``probability`` how surely (for
    several labels: of the label that it is most wrong about); None for other tasks."""

    key: str
    split: str
    loss: float
    label: str | None
    prediction: str | None
    probability: float | None
    sample: Sample = field(repr=False, compare=False)
    shown: Any = field(repr=False, compare=False)
    """The task's prediction."""

    @property
    def doubtful(self) -> bool:
        """Whether the network says something else, more likely than not."""
        return (
            self.probability is not None
            and self.prediction != self.label
            and self.probability >= DOUBTFUL
        )

    @property
    def sure(self) -> bool:
        """Whether the network is sure of something else."""
        return self.doubtful and self.probability is not None and self.probability >= SURE

    def as_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "split": self.split,
            "loss": self.loss,
            "label": self.label,
            "prediction": self.prediction,
            "probability": self.probability,
            "doubtful": self.doubtful,
        }


@dataclass(frozen=True)
class Hardest:
    """``rows``: the hardest first. ``samples``, ``mean``: of each split, how many were looked at
    and their mean loss. ``fitted``: the share of training samples that are predicted as labelled,
    where there is one class each. ``classes`` and ``palette``: for the picture."""

    task: str
    rows: tuple[Hard, ...]
    samples: dict[str, int]
    mean: dict[str, float]
    fitted: float | None
    classes: tuple[str, ...]
    palette: Array | None = field(repr=False, compare=False, default=None)

    @property
    def by_heart(self) -> bool:
        """Whether training's labels were learned by heart, wrong ones too."""
        return self.fitted is not None and self.fitted >= BY_HEART

    def as_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "samples": self.samples,
            "mean_loss": self.mean,
            "fitted": self.fitted,
            "rows": [row.as_json() for row in self.rows],
        }

    def lines(self) -> list[str]:
        looked = " and ".join(
            f"{n:,} of {split} (mean loss {self.mean[split]:.3g})"
            for split, n in self.samples.items()
        )
        out = [f"The {len(self.rows)} samples with the highest loss, of {looked}:"]
        wide = max((len(row.key) for row in self.rows), default=0)
        for row in self.rows:
            said = ""
            if row.prediction is not None and row.probability is not None:
                said = (
                    f"  {row.label}, but the network says {row.prediction} ({row.probability:.0%})"
                )
                if row.prediction == row.label:
                    said = f"  {row.label}, as the network says ({row.probability:.0%})"
            out.append(f"  {row.loss:8.3f}  {row.split:<5}  {row.key:<{wide}}{said}")
        sure = sum(row.sure for row in self.rows)
        doubtful = sum(row.doubtful for row in self.rows) - sure
        if sure:
            out.append(
                f"{sure} of them {_are(sure)} labelled one thing, and the network is sure of "
                f"another ({SURE:.0%} and more): look at {'it' if sure == 1 else 'those'} first."
            )
        if doubtful:
            out.append(
                f"{doubtful} {'more' if sure else 'of them'} {_are(doubtful)} labelled one thing, "
                "and the network says another."
            )
        if self.by_heart:
            out.append(
                f"{self.fitted:.1%} of the training samples are predicted as labelled: wrong "
                "labels among them were learned by heart, and are not found so. A shorter "
                "training, or one with more augmentation, finds them."
            )
        return out


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def hardest(made: Prepared, count: int = 24) -> Hardest:
    """The ``count`` samples of training and validation with the highest loss, each as evaluation
    sees it: centred, without augmentation, the network as it predicts.

    Of classification -log p of the label, without weights and smoothing; of several labels its mean
    over them; of other tasks the losses of the sample by itself, added up as training adds them.
    """
    made.model.eval()
    found: list[tuple[float, str, int]] = []
    samples, mean = {}, {}
    right = 0
    for split, loader in (("train", made.plain), ("val", made.loaders["val"])):
        losses = []
        for i, loss, hit in _losses(made, loader):
            losses.append(loss)
            found.append((loss, split, i))
            right += hit and split == "train"
        samples[split] = len(losses)
        mean[split] = float(np.mean(losses)) if losses else math.nan
    # What is not a number is worse than any that is.
    found.sort(key=lambda row: -row[0] if math.isfinite(row[0]) else -math.inf)
    rows = _shown(made, found[:count])
    single = isinstance(made.task, classification.Task)
    palette = made.description.data.get("palette")
    return Hardest(
        task=made.description.recipe.task,
        rows=tuple(rows),
        samples=samples,
        mean=mean,
        fitted=right / max(1, samples["train"]) if single else None,
        classes=made.description.classes,
        palette=None if palette is None else np.asarray(palette, np.uint8),
    )


def _losses(made: Prepared, loader: Loader) -> Iterator[tuple[int, float, bool]]:
    """(index in the data set, loss, whether the likeliest class is the label) of each sample."""
    task: Any = made.task
    if isinstance(task, classification.Task | multilabel.Task):
        for batch, found in predictions(made.model, made.task, loader, made.compute):
            ids = batch.ids[batch.valid]
            for i, sample, prediction in zip(ids, batch.samples, found, strict=True):
                loss, hit = of_labels(prediction, sample)
                yield int(i), loss, hit
        return
    # The targets of training, of images as evaluation sees them, one by one: of several at once
    # a task gives the sum.
    single = copy.copy(loader)
    single.batch_size = 1
    single.encode = lambda sample, rng: task.encode(sample, rng, train=True)
    compute = made.compute
    with torch.inference_mode():
        for batch in single.epoch(0):
            if not batch.valid[0]:
                continue
            on_device = to_device(
                batch, compute.device, compute.normalisation, compute.channels_last
            )
            with compute.autocast():
                sums = task.losses(made.model, on_device)
            weights = task.weights(on_device)
            # Of a sample without a single pixel that counts there is nothing to be wrong about.
            parts = [float(v) / float(weights[k]) for k, v in sums.items() if float(weights[k])]
            yield int(batch.ids[0]), sum(parts), False


def of_labels(prediction: Any, sample: Sample) -> tuple[float, bool]:
    """(loss, whether the likeliest class is the label); of several labels the mean of their losses,
    and no more."""
    if isinstance(prediction, classification.Prediction):
        label = int(np.asarray(sample.label))
        log_p = prediction.log_probabilities
        return -float(log_p[label]), int(log_p.argmax()) == label
    return float(_each_label(prediction, sample).mean()), False


def _each_label(prediction: Any, sample: Sample) -> Array:
    """float64 [K]: -log of the probability of what each label is."""
    p, truth = prediction.probabilities, np.asarray(sample.label, bool)
    tiny = np.finfo(np.float64).tiny
    return np.asarray(-np.log(np.maximum(np.where(truth, p, 1 - p), tiny)))


def _shown(made: Prepared, rows: list[tuple[float, str, int]]) -> Iterator[Hard]:
    """The rows with sample and prediction."""
    looked: dict[int, tuple[Sample, Any]] = {}
    for split, loader in (("train", made.plain), ("val", made.loaders["val"])):
        ids = np.array([i for _, own, i in rows if own == split], np.int64)
        if not len(ids):
            continue
        few = copy.copy(loader)
        few.ids = ids
        for batch, found in predictions(made.model, made.task, few, made.compute):
            valid = np.flatnonzero(batch.valid)
            for row, sample, prediction in zip(valid, batch.samples, found, strict=True):
                if sample.label is None:  # annotated in pixels of the whole image
                    h, w = (int(side) for side in batch.sizes[row])
                    sample = dataclasses.replace(sample, image=cv2.resize(sample.image, (w, h)))
                looked[int(batch.ids[row])] = sample, prediction
    for loss, split, i in rows:
        sample, prediction = looked[i]
        label, said, probability = words(prediction, sample, made.description.classes)
        yield Hard(sample.key, split, loss, label, said, probability, sample, prediction)


def words(
    prediction: Any, sample: Sample, classes: tuple[str, ...]
) -> tuple[str | None, str | None, float | None]:
    """(label, prediction, its probability) in words."""
    if isinstance(prediction, classification.Prediction):
        p = prediction.probabilities
        k = int(p.argmax())
        return classes[int(np.asarray(sample.label))], classes[k], float(p[k])
    if isinstance(prediction, multilabel.Prediction):
        truth = np.asarray(sample.label, bool)
        k = int(_each_label(prediction, sample).argmax())
        said = prediction.probabilities[k]
        there = classes[k] if truth[k] else f"no {classes[k]}"
        other = classes[k] if said >= multilabel.THRESHOLD else f"no {classes[k]}"
        return there, other, float(max(said, 1 - said))
    return None, None, None
