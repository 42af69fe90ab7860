"""Segmentation: one class per pixel. Softmax and cross-entropy at every pixel.

Long, Shelhamer & Darrell 2015, "Fully convolutional networks for semantic segmentation": section
4.4 for the loss, section 5 for the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.ops import tiles, views
from vidi.tasks import masked
from vidi.types import Array, Batch, Encoded, Meter, Notes, Sample

IGNORE = 255
"""The class of pixels that count for nothing."""
BAND = 1 << 24
"""Scores that are held at once while a prediction is brought to the image's size."""


@dataclass(frozen=True)
class Prediction:
    """``mask``: uint8 [H, W], or int32 for more than 256 classes: the likeliest class of each pixel
    of the original image."""

    mask: Array


@dataclass
class Task:
    """``class_weights``: float32 [K], each class's weight in the loss. ``sum_pixels``: the loss is
    summed over an image's pixels and averaged over images, as in the paper; else it is averaged
    over all valid pixels. ``loss``: the user's own, called with logits [B, K, H, W] and labels
    int64 [B, H, W], of which some are 255; it gives one value per pixel [B, H, W], or their
    mean."""

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    class_weights: Array | None = None
    sum_pixels: bool = False
    loss: Callable[..., Tensor] | None = None
    headline: str = "miou"
    padding: ClassVar[dict[str, int]] = {"mask": IGNORE}
    _tiled: tiles.Tiled = field(default_factory=tiles.Tiled)

    @property
    def notes(self) -> Notes:
        """What should be known of predictions that were made in tiles."""
        return self._tiled.notes

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def encode(self, sample: Sample, rng: Any, *, train: bool) -> Encoded:
        if not train:  # the meter looks at the sample's own mask, at full size
            return Encoded({"image": sample.image}, {})
        assert sample.mask is not None
        return Encoded({"image": sample.image}, {"mask": sample.mask})

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """The sum of the valid pixels' class weights, or, for summed losses, the images."""
        if self.sum_pixels:
            return {"cross_entropy": batch.targets["valid"].float().sum()}
        return {"cross_entropy": self._pixel_weights(batch).sum()}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the softmax at each valid pixel. Auxiliary heads (a NamedTuple of
        outputs) are added at the weight that the network states."""
        outputs = model(batch.inputs["image"])
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        auxiliary = getattr(getattr(model, "module", model), "aux_weight", 0.0)
        weights = self._pixel_weights(batch)
        label = batch.targets["mask"].long()
        total = torch.zeros((), device=heads[0].device)
        for i, logits in enumerate(heads):
            if logits is not None:
                value = masked(self._per_pixel(logits.float(), label), weights > 0)
                total = total + (1.0 if i == 0 else auxiliary) * (weights * value).sum()
        return {"cross_entropy": total}

    def signs(self, batch: Batch) -> dict[str, float]:
        """The share of ignored pixels."""
        return {"ignored": float((batch.targets["mask"] == IGNORE).float().mean())}

    def halved(self, batch: Batch) -> Batch:
        """On every second pixel of each side: labels are those there, images the average of what
        is about it."""
        image = F.avg_pool2d(batch.inputs["image"], 3, 2, padding=1, count_include_pad=False)
        mask = batch.targets["mask"][:, ::2, ::2]
        return replace(batch, inputs={"image": image}, targets=batch.targets | {"mask": mask})

    def predict(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ) -> list[Prediction]:
        """``flip``, ``scales``: probabilities averaged over the image, its mirror image, and both
        at several sizes. Images of one size go through the network together; large ones go alone,
        in tiles where they would not fit into memory (:mod:`vidi.ops.tiles`)."""

        def network(image: Tensor) -> Tensor:
            return self._scores(model, image, flip, scales)

        out: list[Any] = [None] * len(batch)
        for rows, images in views.by_size(batch.inputs["image"]):
            seen = (images.shape[2], images.shape[3])
            if seen[0] * seen[1] > tiles.SMALL and (batch.sizes[rows] == seen).all():
                for row, image in zip(rows, images, strict=True):
                    out[row] = Prediction(self._tiled(network, image, views=(flip, *scales)))
                continue
            for row, score in zip(rows, network(images), strict=True):
                h, w = (int(side) for side in batch.sizes[row])
                out[row] = Prediction(likeliest(score, (h, w)))
        return out

    def meter(self) -> SegmentationMeter:
        return SegmentationMeter(len(self.classes))

    def details(self, meter: Meter) -> dict[str, Any]:
        assert isinstance(meter, SegmentationMeter)
        return {
            "per_class": meter.per_class(self.classes),
            "confusion": meter.confusion.tolist(),
        }

    def _pixel_weights(self, batch: Batch) -> Tensor:
        """float32 [B, H, W]; zero where the pixel or the whole sample counts for nothing."""
        mask = batch.targets["mask"]
        counts = (mask != IGNORE) & batch.targets["valid"].view(-1, 1, 1)
        weights: Tensor = counts.float()
        if self.class_weights is not None:
            table = torch.as_tensor(self.class_weights, device=mask.device)
            weights = weights * table[torch.where(counts, mask, 0).long()]
        return weights

    def _per_pixel(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(logits, label).expand(label.shape)
        return F.cross_entropy(
            logits,
            label,
            reduction="none",
            ignore_index=IGNORE,
            label_smoothing=self.label_smoothing,
        )

    def _scores(
        self, model: nn.Module, image: Tensor, flip: bool, scales: Sequence[float]
    ) -> Tensor:
        """[B, K, h, w]: logits, or, where views are averaged, probabilities."""
        if views.single(flip, scales):
            return _logits(model, image)
        return views.average(
            lambda view: _logits(model, view),
            lambda logits: logits.softmax(1),
            image,
            flip=flip,
            scales=scales,
        )


def likeliest(scores: Tensor, size: tuple[int, int]) -> Array:
    """The class with the highest score at each pixel of an image of that size, uint8 (int32 for
    more than 256 classes) [H, W]; scores, [K, h, w], are interpolated bilinearly before."""
    k, h, w = scores.shape
    height, width = size
    kind = np.uint8 if k <= 256 else np.int32
    if (h, w) == size:
        return scores.argmax(0).cpu().numpy().astype(kind)
    # Band by band: all scores at the full size of a large photograph would fill the memory.
    out = np.empty(size, kind)
    y = (torch.arange(height, dtype=torch.float64) + 0.5) * h / height - 0.5
    y = y.clamp(0, h - 1)
    above = y.floor().long().clamp(max=max(0, h - 2))
    share = (y - above).to(scores).view(1, -1, 1)
    below = (above + 1).clamp(max=h - 1)
    step = max(1, BAND // (k * width))
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        band = torch.lerp(scores[:, above[rows]], scores[:, below[rows]], share[:, rows])
        wide = F.interpolate(
            band[None], (band.shape[1], width), mode="bilinear", align_corners=False
        )
        out[rows] = wide[0].argmax(0).cpu().numpy()
    return out


class SegmentationMeter:
    """Counts only, so that meters of several processes add up exactly."""

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), np.int64)
        """[truth, predicted], in pixels."""

    def update(self, predictions: list[Prediction], samples: list[Sample]) -> None:
        k = len(self.confusion)
        for prediction, sample in zip(predictions, samples, strict=True):
            assert sample.mask is not None
            assert sample.mask.shape == prediction.mask.shape
            valid = sample.mask != IGNORE
            both = sample.mask[valid].astype(np.int64) * k + prediction.mask[valid]
            self.confusion += np.bincount(both, minlength=k * k).reshape(k, k)

    def merge(self, other: SegmentationMeter) -> None:
        self.confusion += other.confusion

    def compute(self) -> dict[str, float]:
        """miou: intersection over union, averaged over the classes that occur or are predicted.
        pixel_accuracy: the share of pixels that are right. mean_accuracy: that share within each
        class that occurs, averaged. fw_iou: IoU weighted by how often a class occurs. All in [0, 1]
        (Long et al. 2015, section 5)."""
        right = np.diag(self.confusion).astype(np.float64)
        truth, said = self.confusion.sum(1), self.confusion.sum(0)
        iou, recall = _ratio(right, truth + said - right), _ratio(right, truth)
        total = max(1, int(truth.sum()))
        return {
            "miou": _mean(iou),
            "pixel_accuracy": float(right.sum()) / total,
            "mean_accuracy": _mean(recall),
            "fw_iou": float((truth * np.nan_to_num(iou)).sum()) / total,
        }

    def per_class(self, classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """One row a class: its share of the pixels, IoU, recall (that class's accuracy),
        precision."""
        right = np.diag(self.confusion).astype(np.float64)
        truth, said = self.confusion.sum(1), self.confusion.sum(0)
        columns = {
            "share": truth / max(1, int(truth.sum())),
            "iou": _ratio(right, truth + said - right),
            "recall": _ratio(right, truth),
            "precision": _ratio(right, said),
        }
        return [
            {"class": name} | {column: float(values[k]) for column, values in columns.items()}
            for k, name in enumerate(classes)
        ]


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    outputs = model(image)
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits.float()


def _ratio(above: Array, below: Array) -> Array:
    """NaN where nothing is counted."""
    out = np.full(len(above), np.nan)
    np.divide(above, below, out=out, where=below > 0)
    return out


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
