"""Detection: boxes with classes. Regions that something proposes are classified, and moved.

Girshick et al. 2014, "Rich feature hierarchies" (R-CNN), and Girshick 2015, "Fast R-CNN": section
2.3 for the sampling of regions and the losses. Ren et al. 2015, "Faster R-CNN": section 3.1 for
those of anchors. Where proposals are given, the truth meets them in the loader's threads; where the
network makes them, between its two halves. What it sees of a region is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.data import draws, geometry
from vidi.data.overlap import iou
from vidi.ops import anchors as grids
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
    int64 [K], 0 = background; it gives one value per region [K].

    ``proposes``: the network makes the proposals itself (:class:`~vidi.models.faster_rcnns`).
    ``anchors``: of them it learns from so many per image, half of them objects at most; an anchor
    is background below the first of ``anchor_iou``, an object from the second on."""

    classes: tuple[str, ...]
    proposes: bool = False
    regions: int = 64
    foreground: float = 0.25
    foreground_iou: float = 0.5
    background_iou: tuple[float, float] = (0.1, 0.5)
    anchors: int = 256
    anchor_iou: tuple[float, float] = (0.3, 0.7)
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
        ``deltas`` float32 [R, 4]; in evaluation all ``proposals`` float32 [P, 4].

        Where the network proposes, nothing in evaluation, and in training what it needs to sample
        by itself: the ``boxes`` float32 [N, 4], their ``classes`` int64 [N], ``kinds`` uint8 [N]
        (1 = difficult, 2 = crowd), the image's ``size`` int64 [2], and a ``seed`` int64 []."""
        if self.proposes:
            return Encoded({"image": sample.image}, _truth(sample, rng) if train else {})
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
        """The regions that count: both losses are means over all of them (section 2.3). Where the
        network proposes, as many regions and anchors as are sampled if there are enough."""
        if self.proposes:
            images = batch.targets["valid"].float().sum()
            regions, anchors = self.regions * images, self.anchors * images
            return {
                "cross_entropy": regions,
                "boxes": regions,
                "objectness": anchors,
                "anchors": anchors,
            }
        n = self._counted(batch).sum()
        return {"cross_entropy": n, "boxes": n}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy over classes and background; for objects smooth L1 of their class's deltas,
        which are brought to mean 0 and deviation 1 by the network's figures of them. Of anchors
        likewise: cross-entropy of being an object, and smooth L1 of objects' deltas."""
        if self.proposes:
            return self._learned(model, batch)
        given = batch.targets["regions"]
        outputs = model(batch.inputs["image"], regions_of(list(given)))
        counted = self._counted(batch).flatten()
        labels = batch.targets["labels"].flatten().clamp_min(0)
        true = batch.targets["deltas"].flatten(0, 1)
        return self._of_regions(model, outputs, labels, true, counted)

    def _of_regions(
        self, model: nn.Module, outputs: Any, labels: Tensor, true: Tensor, counted: Tensor
    ) -> dict[str, Tensor]:
        """The two losses of K regions: ``labels`` int64 [K], ``true`` deltas [K, 4], ``counted``
        [K], 0 where one counts for nothing."""
        value = masked(self._per_region(outputs.logits.float(), labels), counted > 0)
        losses = {"cross_entropy": (counted * value).sum()}
        if outputs.deltas is not None:
            network: Any = getattr(model, "module", model)
            rows = torch.arange(len(labels), device=labels.device)
            k = (labels - 1).clamp_min(0)
            told = outputs.deltas.float().unflatten(1, (-1, 4))[rows, k]
            if hasattr(network, "delta_mean"):  # a user's own network may learn them as they are
                true = (true - network.delta_mean[k]) / network.delta_std[k]
            elif hasattr(network, "delta_std"):
                true = true / network.delta_std
            beta = getattr(network, "beta", 1.0)
            off = F.smooth_l1_loss(told, true, reduction="none", beta=beta).sum(1)
            counted = counted * (labels > 0)
            losses["boxes"] = (counted * masked(off, counted > 0)).sum()
        return losses

    def _learned(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        truths = [_boxes(batch.targets, row) for row in range(len(batch))]
        sampled: list[tuple[Array, Array, Array]] = []

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def choose(proposals: list[Tensor]) -> Tensor:
            for (boxes, rng), proposed in zip(truths, proposals, strict=True):
                sampled.append(self.sample(sizeable(proposed.cpu().numpy()), boxes, rng))
            return regions_of([torch.from_numpy(r) for r, _, _ in sampled]).to(image.device)

        image = batch.inputs["image"]
        sizes = [(int(h), int(w)) for h, w in batch.targets["size"].tolist()]
        outputs = model(image, choose, sizes)
        regions, labels, matched = (np.concatenate(x) for x in zip(*sampled, strict=True))
        counted = torch.cat(
            [valid.expand(len(r)) for valid, (r, _, _) in zip(_valid(batch), sampled, strict=True)]
        )
        label, true = (
            torch.from_numpy(x).to(image.device) for x in (labels, deltas(regions, matched))
        )
        losses = self._of_regions(model, outputs, label, true, counted)
        beta = getattr(getattr(model, "module", model), "beta", 1.0)
        objectness, moves = image.new_zeros(()), image.new_zeros(())
        for (boxes, rng), valid, logits, told in zip(
            truths, _valid(batch), outputs.anchored.logits, outputs.anchored.deltas, strict=True
        ):
            of_objects, of_moves = self._of_anchors(
                outputs.anchored.anchors, logits, told, boxes, rng, beta
            )
            objectness = objectness + masked(of_objects, valid > 0)
            moves = moves + masked(of_moves, valid > 0)
        return losses | {"objectness": objectness, "anchors": moves}

    def _of_anchors(
        self, anchors: Tensor, logits: Tensor, told: Tensor, boxes: Boxes, rng: Any, beta: float
    ) -> tuple[Tensor, Tensor]:
        """The two losses, summed over an image's sampled anchors."""
        counts = ~(boxes.difficult | boxes.crowd)
        truth = torch.from_numpy(boxes.xyxy[counts]).to(anchors.device)
        ignored = None
        if not counts.all():
            ignored = torch.from_numpy(_within(anchors.cpu().numpy(), boxes)).to(anchors.device)
        low, high = self.anchor_iou
        found = grids.assign(anchors, truth, high, low, ignored)
        # On the CPU: the numbers drawn are float64, which Apple's GPUs have not.
        drawn = torch.from_numpy(rng.uniform("anchors", len(anchors)))
        objects, background = (
            rows.to(anchors.device) for rows in grids.sample(found.cpu(), drawn, self.anchors, 0.5)
        )
        rows = torch.cat((objects, background))
        wanted = torch.zeros_like(logits[rows])
        wanted[: len(objects)] = 1
        of_objects = F.binary_cross_entropy_with_logits(logits[rows], wanted, reduction="sum")
        true = ops.encode(anchors[objects], truth[found[objects]])
        of_moves = F.smooth_l1_loss(told[objects], true, reduction="sum", beta=beta)
        return of_objects, of_moves

    def signs(self, batch: Batch) -> dict[str, float]:
        """The share of objects among the sampled regions; where the network proposes, they are not
        sampled yet, and it is the number of true boxes per image."""
        if self.proposes:
            boxes = sum(len(_boxes(batch.targets, row)[0].xyxy) for row in range(len(batch)))
            return {"boxes": boxes / max(1, len(batch))}
        counted = self._counted(batch) > 0
        objects = (batch.targets["labels"] > 0) & counted
        return {"foreground": float(objects.sum() / counted.sum().clamp_min(1))}

    def predict(self, model: nn.Module, batch: Batch, *, flip: bool = False) -> list[Detections]:
        """``flip``: scores and boxes averaged over the image and its mirror image."""
        out = []
        for row, image in enumerate(batch.inputs["image"]):
            image = image if image.dim() == 4 else image[None]
            proposals = None if self.proposes else batch.targets["proposals"][row]
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
        proposals: Tensor | None,
        back: Array,
        size: tuple[int, int],
        flip: bool,
    ) -> Detections:
        """``proposals``: None where the network makes them. ``back``: the matrix from input to
        original pixels; ``size``: of the original (h, w)."""
        if proposals is not None and not len(proposals):
            return NOTHING
        regions = None if proposals is None else regions_of([proposals])
        scores, xyxy, regions = self._scored(model, image, regions)
        if flip:
            mirrored = regions_of([_mirrored(regions[:, 1:], image.shape[3])])
            others, moved, _ = self._scored(model, image.flip(3), mirrored)
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

    def _scored(
        self, model: nn.Module, image: Tensor, regions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(scores [P, C], boxes [P, C, 4] in input pixels, the regions [P, 5]), fp32."""
        outputs = model(image, regions)
        if regions is None:
            regions = outputs.regions
        assert regions is not None
        scores = outputs.scores
        if scores is None:
            scores = outputs.logits.float().softmax(1)[:, 1:]
        if outputs.deltas is None:
            moved = regions[:, None, 1:].expand(-1, scores.shape[1], -1)
        else:
            moved = ops.decode(regions[:, 1:], outputs.deltas.float())
        return scores.float(), moved.reshape(*scores.shape, 4), regions


NOTHING = Detections(
    xyxy=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), scores=np.zeros(0, np.float32)
)


@dataclass(frozen=True)
class _Seeded:
    """Draws of a sample whose seed, epoch and index were mixed into one number."""

    seed: int

    def uniform(self, name: str, n: int = 1) -> Array:
        return np.asarray(draws.uniform(self.seed, 0, np.zeros(1, np.int64), name, n)[0])


def _truth(sample: Sample, rng: Any) -> dict[str, Array]:
    assert sample.boxes is not None
    boxes = sample.boxes
    seed = int(rng.uniform("seed")[0] * 2**53)
    return {
        "boxes": np.ascontiguousarray(boxes.xyxy, np.float32),
        "classes": boxes.labels,
        "kinds": boxes.difficult.astype(np.uint8) + 2 * boxes.crowd.astype(np.uint8),
        "size": np.array(sample.image.shape[:2], np.int64),
        "seed": np.array(seed, np.int64),
    }


def _boxes(targets: dict[str, Any], row: int) -> tuple[Boxes, _Seeded]:
    xyxy, labels, kinds = (targets[k][row].cpu().numpy() for k in ("boxes", "classes", "kinds"))
    boxes = Boxes(xyxy=xyxy, labels=labels, difficult=kinds % 2 == 1, crowd=kinds >= 2)
    return boxes, _Seeded(int(targets["seed"][row]))


def _valid(batch: Batch) -> Tensor:
    valid: Tensor = batch.targets["valid"].float()
    return valid


Truths = Callable[[int], dict[str, Any]]
"""Gives a sample's annotations by name."""


def objects(truth: Truths, ids: Array, classes: int) -> Array:
    """int64 [C]: how many objects of each class there are in the samples ``ids``."""
    out = np.zeros(classes, np.int64)
    for i in ids.tolist():
        boxes = truth(i)["boxes"]
        out += np.bincount(boxes.labels[_counted_boxes(boxes)], minlength=classes)
    return out


def _counted_boxes(boxes: Boxes) -> Array:
    return np.asarray(~(boxes.difficult | boxes.crowd))


def box_sides(
    truth: Truths, ids: Array, objects: Array, scale: Callable[[int], float], look: int = 1000
) -> tuple[Array, Array]:
    """(widths and heights float64 [N, 2] of boxes in input pixels, what each counts [N]).

    ``look``: as many samples of ``ids`` with objects, of which there must be one, are looked at,
    evenly spread. ``objects``, int64 [C]: how
    many of each class there are; each class counts the same, or the anchors would suit the most
    frequent alone. ``scale``: a sample's input pixels per pixel.
    """
    some = [i for i in ids.tolist() if _counted_boxes(truth(i)["boxes"]).any()]
    rows = np.linspace(0, len(some) - 1, min(look, len(some))).round().astype(int)
    sides, weights = [], []
    for row in rows.tolist():
        i = some[row]
        boxes = truth(i)["boxes"]
        counts = _counted_boxes(boxes)
        xyxy = boxes.xyxy[counts].astype(np.float64)
        sides.append((xyxy[:, 2:] - xyxy[:, :2]) * scale(i))
        weights.append(1 / objects[boxes.labels[counts]])
    return np.concatenate(sides), np.concatenate(weights)


def delta_statistics(
    truth: Truths, ids: Array, classes: int, look: int = 1000
) -> tuple[Array, Array]:
    """(mean float32 [C, 4], deviation float32 [C, 4]) of each class's deltas, by the proposals that
    overlap its objects by half or more.

    ``truth`` gives ``boxes`` and ``proposals``. ``look``: as many
    samples of ``ids`` are looked at for the deltas, evenly spread. A class with less than two such
    proposals has the usual 0 and (0.1, 0.1, 0.2, 0.2).
    """
    found: list[list[Array]] = [[] for _ in range(classes)]
    rows = np.linspace(0, len(ids) - 1, min(look, len(ids))).round().astype(int)
    for i in ids[rows].tolist():
        fields = truth(i)
        boxes = fields["boxes"]
        counts = ~(boxes.difficult | boxes.crowd)
        xyxy, labels = boxes.xyxy[counts], boxes.labels[counts]
        proposals = sizeable(fields["proposals"])
        if not len(xyxy) or not len(proposals):
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
    return mean, std


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
