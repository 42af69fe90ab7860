"""Detection: boxes with classes. Regions that something proposes are classified, and moved.

Girshick et al. 2014, "Rich feature hierarchies" (R-CNN), and Girshick 2015, "Fast R-CNN": section
2.3 for the sampling of regions and the losses. The truth meets the proposals here, in the loader's
threads; what the network sees of a region is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.data import geometry
from vidi.data.overlap import iou
from vidi.ops import boxes as ops
from vidi.ops.detection_meter import DetectionMeter
from vidi.ops.regions import regions_of
from vidi.tasks import masked
from vidi.types import Array, Batch, Boxes, Detections, Encoded, Meter, Sample

UNCOUNTED = -1
"""The label of a region that counts for nothing: there were too few to sample."""
SMALLEST = 1.0
"""Proposals with a shorter side, in input pixels, are left out."""
SURE = 0.5
"""Detections of that score or more are told by their kind of error."""


@dataclass
class Task:
    """``regions``: sampled per image, of which the share ``foreground`` at most are objects: those
    that overlap one by ``foreground_iou`` or more; background by an overlap in ``background_iou``.
    ``nms``, ``soft_nms``: see :func:`vidi.ops.boxes.suppress`. ``least_score``, ``most``: which
    detections are given. ``loss``: the user's own, called with logits [K, 1 + C] and labels
    int64 [K], 0 = background; it gives one value per region [K]."""

    classes: tuple[str, ...]
    regions: int = 64
    foreground: float = 0.25
    foreground_iou: float = 0.5
    background_iou: tuple[float, float] = (0.1, 0.5)
    nms: float = 0.3
    soft_nms: Literal["none", "linear", "gaussian"] = "none"
    least_score: float = 0.01
    most: int = 100
    label_smoothing: float = 0.0
    loss: Callable[..., Tensor] | None = None
    headline: str = "map"
    padding: ClassVar[dict[str, int]] = {}

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def encode(self, sample: Sample, rng: Any, *, train: bool) -> Encoded:
        """In training ``regions`` float32 [R, 4], ``labels`` int64 [R] (0 = background) and
        ``deltas`` float32 [R, 4]; in evaluation all ``proposals`` float32 [P, 4]."""
        assert sample.proposals is not None
        proposals = sizeable(sample.proposals)
        if not train:
            return Encoded({"image": sample.image}, {"proposals": proposals})
        assert sample.boxes is not None
        regions, labels, matched = self.sample(proposals, sample.boxes, rng)
        if len(regions) < self.regions:
            # Shapes are those of other images: the whole of this one, counting for nothing.
            h, w = sample.image.shape[:2]
            more = self.regions - len(regions)
            whole = np.tile(np.array([[0, 0, w, h]], np.float32), (more, 1))
            regions = np.concatenate([regions, whole])
            matched = np.concatenate([matched, whole])
            labels = np.concatenate([labels, np.full(more, UNCOUNTED)])
        return Encoded(
            {"image": sample.image},
            {"regions": regions, "labels": labels, "deltas": deltas(regions, matched)},
        )

    def sample(self, proposals: Array, boxes: Boxes, rng: Any) -> tuple[Array, Array, Array]:
        """(regions float32 [R, 4], labels int64 [R], the object's box for each [R, 4]) of an image,
        R at most ``regions``; of background the region itself is given as its box.

        The true boxes are regions too. Difficult objects and crowds are neither objects nor
        background. Where an overlap from the least of ``background_iou`` on is too rare (in an
        image without objects there is none), lesser ones fill up.
        """
        counts = ~(boxes.difficult | boxes.crowd)
        truth, classes = boxes.xyxy[counts], boxes.labels[counts]
        regions = np.concatenate([truth, proposals]).astype(np.float32)
        overlap = iou(regions, truth)
        nearest = overlap.argmax(1) if len(truth) else np.zeros(len(regions), np.int64)
        most = overlap.max(1, initial=0.0)
        low, high = self.background_iou
        objects = most >= self.foreground_iou
        background = (most < high) & ~objects & ~_within(regions, boxes)

        drawn = rng.uniform("regions", len(regions)) if len(regions) else np.zeros(0)
        wanted = round(self.foreground * self.regions)
        fore = _first(np.flatnonzero(objects), drawn, wanted)
        # A region that overlaps less comes after all that overlap enough.
        back = _first(np.flatnonzero(background), drawn + (most < low), self.regions - len(fore))
        chosen = np.concatenate([fore, back])
        labels = np.zeros(len(chosen), np.int64)
        labels[: len(fore)] = 1 + classes[nearest[fore]]
        matched = regions[chosen]
        matched[: len(fore)] = truth[nearest[fore]]
        return regions[chosen], labels, matched

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """The regions that count: both losses are means over all of them (section 2.3)."""
        n = self._counted(batch).sum()
        return {"cross_entropy": n, "boxes": n}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy over classes and background; for objects smooth L1 of their class's deltas,
        which are brought to mean 0 and deviation 1 by the network's figures of them."""
        given = batch.targets["regions"]
        outputs = model(batch.inputs["image"], regions_of(list(given)))
        counted = self._counted(batch).flatten()
        labels = batch.targets["labels"].flatten().clamp_min(0)
        value = masked(self._per_region(outputs.logits.float(), labels), counted > 0)
        losses = {"cross_entropy": (counted * value).sum()}
        if outputs.deltas is not None:
            network: Any = getattr(model, "module", model)
            rows = torch.arange(len(labels), device=labels.device)
            k = (labels - 1).clamp_min(0)
            told = outputs.deltas.float().view(len(rows), -1, 4)[rows, k]
            true = batch.targets["deltas"].flatten(0, 1)
            if hasattr(network, "delta_std"):  # a user's own network may learn them as they are
                true = (true - network.delta_mean[k]) / network.delta_std[k]
            off = F.smooth_l1_loss(told, true, reduction="none").sum(1)
            counted = counted * (labels > 0)
            losses["boxes"] = (counted * masked(off, counted > 0)).sum()
        return losses

    def predict(self, model: nn.Module, batch: Batch, *, flip: bool = False) -> list[Detections]:
        """``flip``: scores and boxes averaged over the image and its mirror image."""
        out = []
        for row, image in enumerate(batch.inputs["image"]):
            image = image if image.dim() == 4 else image[None]
            proposals = batch.targets["proposals"][row]
            size = (int(batch.sizes[row][0]), int(batch.sizes[row][1]))
            back = np.linalg.inv(batch.matrices[row])
            out.append(self._detect(model, image, proposals, back, size, flip))
        return out

    def meter(self) -> DetectionMeter:
        return DetectionMeter(len(self.classes))

    def details(self, meter: Meter) -> dict[str, Any]:
        assert isinstance(meter, DetectionMeter)
        return {
            "per_class": meter.per_class(self.classes),
            "curves": [
                {"class": name, "recall": recall.tolist(), "precision": precision.tolist()}
                for name, (recall, precision, _) in zip(self.classes, meter.curves(), strict=True)
            ],
            "errors": meter.errors.rows(self.classes, SURE),
            "gains": meter.errors.gains(),
        }

    def _counted(self, batch: Batch) -> Tensor:
        """float32 [B, R]: 0 where a region, or the whole sample, counts for nothing."""
        labels: Tensor = batch.targets["labels"]
        counts: Tensor = (labels != UNCOUNTED) & batch.targets["valid"].view(-1, 1)
        return counts.float()

    def _per_region(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(logits, labels).expand(labels.shape)
        return F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        )

    def _detect(
        self,
        model: nn.Module,
        image: Tensor,
        proposals: Tensor,
        back: Array,
        size: tuple[int, int],
        flip: bool,
    ) -> Detections:
        """``back``: the matrix from input to original pixels; ``size``: of the original (h, w)."""
        if not len(proposals):
            return NOTHING
        scores, xyxy = self._scored(model, image, proposals)
        if flip:
            mirrored = _mirrored(proposals, image.shape[3])
            others, moved = self._scored(model, image.flip(3), mirrored)
            scores = (scores + others) / 2
            xyxy = (xyxy + _mirrored(moved, image.shape[3])) / 2
        xyxy = ops.clip(xyxy, (image.shape[2], image.shape[3]))
        rows, labels = (scores > self.least_score).nonzero(as_tuple=True)
        found = xyxy[rows, labels]
        kept, sure = ops.suppress(
            found,
            scores[rows, labels],
            labels,
            self.nms,
            soft=self.soft_nms,
            least=max(self.least_score, 1e-6),
        )
        kept, sure = kept[: self.most], sure[: self.most]
        told = geometry.hulls(back, found[kept].cpu().numpy().astype(np.float64))
        h, w = size
        return Detections(
            xyxy=np.clip(told, 0, [w, h, w, h]).astype(np.float32),
            labels=labels[kept].cpu().numpy(),
            scores=sure.cpu().numpy(),
        )

    def _scored(self, model: nn.Module, image: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """(scores [P, C], boxes [P, C, 4] in input pixels), fp32."""
        outputs = model(image, regions_of([proposals]))
        scores = outputs.scores
        if scores is None:
            scores = outputs.logits.float().softmax(1)[:, 1:]
        if outputs.deltas is None:
            return scores.float(), proposals[:, None].expand(-1, scores.shape[1], -1)
        moved = ops.decode(proposals, outputs.deltas.float())
        return scores.float(), moved.view(len(moved), -1, 4)


NOTHING = Detections(
    xyxy=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), scores=np.zeros(0, np.float32)
)


def delta_statistics(
    truth: Callable[[int], dict[str, Any]], ids: Array, classes: int, look: int = 1000
) -> tuple[Array, Array, Array]:
    """(objects int64 [C], mean float32 [C, 4], deviation float32 [C, 4]): how many objects of each
    class there are, and its deltas, by the proposals that overlap them by half or more.

    ``truth``: gives a sample's fields, ``boxes`` and ``proposals`` among them. ``look``: as many
    samples of ``ids`` are looked at for the deltas, evenly spread. A class with less than two such
    proposals has the usual 0 and (0.1, 0.1, 0.2, 0.2).
    """
    objects = np.zeros(classes, np.int64)
    found: list[list[Array]] = [[] for _ in range(classes)]
    looked = set(np.linspace(0, len(ids) - 1, min(look, len(ids))).round().astype(int).tolist())
    for k, i in enumerate(ids.tolist()):
        fields = truth(i)
        boxes = fields["boxes"]
        counts = ~(boxes.difficult | boxes.crowd)
        xyxy, labels = boxes.xyxy[counts], boxes.labels[counts]
        objects += np.bincount(labels, minlength=classes)
        proposals = sizeable(fields["proposals"])
        if k not in looked or not len(xyxy) or not len(proposals):
            continue
        overlap = iou(proposals, xyxy)
        rows = np.flatnonzero(overlap.max(1) >= 0.5)
        nearest = overlap[rows].argmax(1)
        moved = deltas(proposals[rows], xyxy[nearest])
        for label in np.unique(labels[nearest]):
            found[label].append(moved[labels[nearest] == label])
    mean = np.zeros((classes, 4), np.float32)
    std = np.tile(np.array([0.1, 0.1, 0.2, 0.2], np.float32), (classes, 1))
    for label, parts in enumerate(found):
        if sum(map(len, parts)) >= 2:
            together = np.concatenate(parts)
            mean[label], std[label] = together.mean(0), np.maximum(together.std(0), 1e-3)
    return objects, mean, std


def deltas(regions: Array, boxes: Array) -> Array:
    """float32 [R, 4]: what moves each region to its box (:func:`vidi.ops.boxes.encode`)."""
    moved: Array = ops.encode(
        torch.from_numpy(regions.astype(np.float32)), torch.from_numpy(boxes.astype(np.float32))
    ).numpy()
    return moved


def sizeable(proposals: Array) -> Array:
    """Those whose sides have a pixel at least."""
    sides = (proposals[:, 2:] - proposals[:, :2]).min(1, initial=np.inf)
    return np.ascontiguousarray(proposals[sides >= SMALLEST], np.float32)


def _within(regions: Array, boxes: Boxes) -> Array:
    """bool [R]: whether half of the region is a crowd's, or it overlaps a difficult object by half
    (and may be it)."""
    out = np.zeros(len(regions), bool)
    crowd, difficult = boxes.xyxy[boxes.crowd], boxes.xyxy[boxes.difficult & ~boxes.crowd]
    if len(difficult):
        out |= iou(regions, difficult).max(1) >= 0.5
    if len(crowd):
        pair = torch.from_numpy(regions), torch.from_numpy(crowd.astype(np.float32))
        out |= (ops.covered(*pair) >= 0.5).any(1).numpy()
    return out


def _first(rows: Array, drawn: Array, most: int) -> Array:
    """Up to ``most`` of the rows, those that drew the smallest numbers, as they drew."""
    return np.asarray(rows[np.argsort(drawn[rows], kind="stable")[:most]])


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], -1)
