"""Boundaries: how likely each pixel is on one. Sigmoid and class-balanced cross-entropy.

Xie & Tu 2015, "Holistically-nested edge detection": section 3.1 for the loss (equations 2 and 3),
section 4 for how annotators are fused. The score is :mod:`vidi.ops.boundaries`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.ops import boundaries, tiles, views
from vidi.ops.boundary_scoring import Scoring
from vidi.types import Array, Batch, Encoded, Meter, Notes, Sample

IGNORE = 255
"""A target of this value counts for nothing."""
MARKED = 128
"""An annotator's map, 0 to 255, marks a pixel from this value on."""
AGREE = 3
"""Xie & Tu 2015, section 4: so many annotators make a boundary."""
QUICK = 9
"""Thresholds of the score during training; the curve between them is taken as straight."""


@dataclass(frozen=True)
class Prediction:
    """``soft``: float32 [H, W], 0 to 1, of each pixel of the original image; lines are as wide as
    the network leaves them. :func:`vidi.ops.suppression.suppress` thins them."""

    soft: Array


@dataclass
class Task:
    """``agree``: annotators that make a boundary; all of them where they are fewer.
    ``disagreement``: pixels that some mark, but fewer, are no boundary (negative), as in the paper;
    or are ignored (Liu et al. 2017, "Richer convolutional features for edge detection", section
    3.2); or are as much of one as there are annotators (share): one of three marks makes 1/3.
    ``sum_pixels``: the loss is summed over an image's pixels and averaged over images, as in the
    paper; else it is averaged over all valid pixels by their weights. ``loss``: the user's own,
    called with logits [B, 1, H, W] and targets float32 [B, H, W] (0 to 1, or 255 where ignored); it
    gives one value per pixel [B, H, W], or their mean."""

    classes: tuple[str, ...] = ()
    label_smoothing: float = 0.0
    sum_pixels: bool = False
    loss: Callable[..., Tensor] | None = None
    agree: int = AGREE
    disagreement: Literal["negative", "ignore", "share"] = "negative"
    headline: str = "ods"
    outputs: int = 1
    padding: ClassVar[dict[str, int]] = {"edges": IGNORE}
    _tiled: tiles.Tiled = field(default_factory=tiles.Tiled)

    @property
    def notes(self) -> Notes:
        """What should be known of predictions that were made in tiles."""
        return self._tiled.notes

    def encode(self, sample: Sample, rng: Any, *, train: bool) -> Encoded:
        if not train:  # the meter looks at the sample's own maps, at full size
            return Encoded({"image": sample.image}, {})
        assert sample.edges is not None
        target = fused(sample.edges, self.agree, self.disagreement)
        if sample.segments is not None:  # beyond the image there is none
            target[(sample.segments < 0).all(0)] = IGNORE
        return Encoded({"image": sample.image}, {"edges": target})

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """The sum of the valid pixels' weights, or, for summed losses, the images; the same for the
        fused output and for the side outputs together."""
        if self.sum_pixels:
            total = batch.targets["valid"].float().sum()
        else:
            total = self._pixel_weights(batch).sum()
        return {"fuse": total, "sides": total}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Class-balanced cross-entropy of the sigmoid: of the first output, and the sum of that of
        the others, where there are any."""
        outputs = model(batch.inputs["image"])
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = self._pixel_weights(batch)
        out: dict[str, Tensor] = {}
        for i, logits in enumerate(heads):
            if logits is None:
                continue
            value = self._per_pixel(logits.float(), batch.targets["edges"])
            # What does not count may be anything, infinite too.
            total = (weights * value.where(weights > 0, 0.0)).sum()
            name = "sides" if i else "fuse"
            out[name] = out[name] + total if name in out else total
        return out

    def signs(self, batch: Batch) -> dict[str, float]:
        """The share of pixels that are a boundary, of those that are not ignored."""
        edges = batch.targets["edges"]
        known = edges != IGNORE
        return {"positives": float(((edges > 0) & known).sum() / known.sum().clamp_min(1))}

    def predict(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ) -> list[Prediction]:
        """The first output's sigmoid. ``flip``, ``scales``: averaged over the image, its mirror
        image, and both at several sizes. Images of one size go through the network together; large
        ones go alone, in tiles where they would not fit into memory (:mod:`vidi.ops.tiles`)."""

        def network(image: Tensor) -> Tensor:
            if views.single(flip, scales):
                return _logits(model, image).sigmoid()
            count = len(scales) * (2 if flip else 1)
            return (
                views.average(
                    lambda view: _logits(model, view),
                    torch.sigmoid,
                    image,
                    flip=flip,
                    scales=scales,
                )
                / count
            )

        out: list[Any] = [None] * len(batch)
        for rows, images in views.by_size(batch.inputs["image"]):
            seen = (images.shape[2], images.shape[3])
            large = seen[0] * seen[1] > tiles.SMALL
            for row, one in zip(rows, images if large else network(images), strict=True):
                soft = one
                if large:
                    found = self._tiled(
                        network, one, views=(flip, *scales), reduce=lambda values: values[0]
                    )
                    soft = torch.from_numpy(found)
                h, w = (int(side) for side in batch.sizes[row])
                if seen != (h, w):
                    soft = F.interpolate(soft[None], (h, w), mode="bilinear", align_corners=False)
                # Averaging may leave a hair more than 1.
                out[row] = Prediction(soft.clamp(0, 1).cpu().numpy().reshape(h, w))
        return out

    def meter(self) -> BoundaryMeter:
        return BoundaryMeter(boundaries.LEVELS)

    def quick_meter(self) -> BoundaryMeter:
        """For the evaluations between epochs: the same score from fewer thresholds."""
        return BoundaryMeter(QUICK)

    def details(self, meter: Meter) -> dict[str, Any]:
        assert isinstance(meter, BoundaryMeter)
        summary = meter.summary()
        return {
            "curve": [dataclasses.asdict(point) for point in summary.curve],
            "ods_at": dataclasses.asdict(summary.ods),
        }

    def _pixel_weights(self, batch: Batch) -> Tensor:
        """float32 [B, H, W]: of an image's P positive and N negative pixels, N / (P + N) for each
        positive and P / (P + N) for each negative one; 0 for what is ignored or unreadable. What
        is a share of a boundary is positive.

        So an image without a boundary counts for nothing, and so does one without anything else:
        the paper's formula, taken at its word.
        """
        edges = batch.targets["edges"]
        valid = batch.targets["valid"].view(-1, 1, 1)
        positive, negative = (edges > 0) & (edges != IGNORE) & valid, (edges == 0) & valid
        p, n = (x.sum((1, 2), keepdim=True).float() for x in (positive, negative))
        total = (p + n).clamp_min(1)
        weights: Tensor = positive * (n / total) + negative * (p / total)
        return weights

    def _per_pixel(self, logits: Tensor, edges: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(logits, edges).expand(edges.shape)
        target = edges.where(edges != IGNORE, 0.0)
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")


def fused(edges: Array, agree: int, disagreement: str) -> Array:
    """One target of all annotators' maps, float32 [H, W]: 1 where at least ``agree`` of them mark a
    pixel (or all, where they are fewer), 0 where none does; where some do, 0, 255, or how many of
    those needed they are.

    ``edges``: uint8 [A, H, W], 0 to 255.
    """
    marks = (edges >= MARKED).sum(0, dtype=np.float32)
    target = np.minimum(marks / min(agree, len(edges)), 1)
    if disagreement != "share":
        target[(target > 0) & (target < 1)] = IGNORE if disagreement == "ignore" else 0
    return np.asarray(target, np.float32)


class BoundaryMeter:
    """Counts only, so that meters of several processes add up exactly."""

    def __init__(self, levels: int) -> None:
        self.thresholds = boundaries.levels(levels)
        self.scoring = Scoring(self.thresholds, thinned=True)

    def update(self, predictions: list[Prediction], samples: list[Sample]) -> None:
        for prediction, sample in zip(predictions, samples, strict=True):
            assert sample.edges is not None
            self.scoring.add(prediction.soft, sample.edges, sample.key)

    def merge(self, other: BoundaryMeter) -> None:
        self.scoring.extend(other.scoring.counts())

    def summary(self) -> boundaries.Summary:
        return boundaries.summary(self.scoring.counts(), self.thresholds)

    def compute(self) -> dict[str, float]:
        """ods: the best F-measure at one threshold for all images. ois: that with each image at its
        own best threshold. ap: average precision. All in [0, 1] (Arbeláez et al. 2011, section
        3.1), after non-maximum suppression and thinning, matched one to one to each annotator."""
        summary = self.summary()
        return {"ods": summary.ods.f, "ois": summary.ois.f, "ap": summary.ap}


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    outputs = model(image)
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits.float()
