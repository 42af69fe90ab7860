"""A detector's whole function: from the bytes of one image to boxes in its own pixels.

What :class:`vidi.tasks.detection.Task` makes of a network's outputs is drawn into the graph: boxes
are decoded, cut off at the image's borders, suppressed class by class, and the surest are given.
How many there are differs from image to image, so there is one image a call.

A Faster R-CNN proposes regions itself; R-CNN and Fast R-CNN are told them, in pixels of the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidi.data import augment
from vidi.data.dataset import Dataset
from vidi.deploy import resizing
from vidi.deploy.function import Function, Sides, frozen
from vidi.engine import defaults, propose
from vidi.engine.prepare import kept_size
from vidi.errors import InputError
from vidi.models.fast_rcnns import FastRCNN
from vidi.models.faster_rcnn_resnets import ResNetFasterRCNN
from vidi.models.faster_rcnns import FasterRCNN
from vidi.models.rcnns import RCNN
from vidi.ops import boxes as ops
from vidi.recipe import Detection, Recipe
from vidi.tasks.detection import SMALLEST
from vidi.types import Array

REGIONS = 40
"""In the example that the graph is drawn with."""


class Detect(Function):
    """``boxes``: float32 [D, 4], xyxy in pixels of the image; ``scores``: float32 [D], from 0 to 1;
    ``labels``: int64 [D]; the surest first.

    ``settings``: the recipe's. ``side``: to what the image's shorter side is brought, its longer
    one being ``longest`` at most, in pixels; None leaves the image as it is.
    """

    settings: Detection
    side: int | None = None
    longest = 0
    steps: list[tuple[int, int]] | None = None
    """The sizes of an image on its way to the network, where all have one."""

    @property
    def outputs(self) -> dict[str, Sides]:
        return {"boxes": ("detections", 4), "scores": ("detections",), "labels": ("detections",)}

    def _inside(self) -> str:
        if self.side is None:
            return super()._inside()
        return (
            f"The model brings its shorter side to {self.side} pixels, or its longer one to "
            f"{self.longest} where that would be longer,"
        )

    def fitted(self, levels: Tensor) -> Tensor:
        steps = self.steps
        if steps is None:
            sides = (resizing.side(levels.shape[2]), resizing.side(levels.shape[3]))
            steps = [known(*step) for step in self.sizes(*sides)]
        for height, width in steps:
            levels = resizing.resized(levels, height, width)
        return levels

    def sizes(self, height: Tensor, width: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What an image of that height and width is resized to, step by step; int64 scalars."""
        out = []
        if self.shorter is not None:
            out.append(resizing.kept(height, width, self.shorter))
        if self.side is not None:
            out.append(target(*(out[-1] if out else (height, width)), self.side, self.longest))
        return out

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        seen = self.seen(image)
        network: Any = self.network
        maps = network.pyramid(seen)
        regions = proposed(network, network.anchored(maps), (seen.shape[2], seen.shape[3]))
        logits, deltas = network.respond(maps, regions)
        deltas = deltas[:, 4:]
        deltas = deltas * network.delta_std.repeat(deltas.shape[1] // 4)
        return self.found(image, seen, regions, logits.float().softmax(1)[:, 1:], deltas)

    def found(
        self, image: Tensor, seen: Tensor, regions: Tensor, scores: Tensor, deltas: Tensor | None
    ) -> dict[str, Tensor]:
        """The answer, of ``regions`` [P, 5] in pixels of ``seen``, their ``scores`` [P, C] and
        ``deltas`` [P, 4 C]."""
        classes = scores.shape[1]
        if deltas is None:
            moved = regions[:, None, 1:].expand(-1, classes, -1)
        else:
            moved = ops.decode(regions[:, 1:], deltas.float()).reshape(-1, classes, 4)
        moved = ops.clip(moved, (seen.shape[2], seen.shape[3]))
        least, most = self.settings.least_score, self.settings.most
        kept = torch.stack(
            [surest(moved[:, k], scores[:, k], least, self.settings.nms) for k in range(classes)],
            1,
        )
        # In one row, region by region: of equal scores the first region comes first, as in the run.
        ranked = torch.where(kept, scores, -1).flatten().sort(descending=True, stable=True)
        order = ranked.indices[ranked.values > least][:most]
        scale = torch.stack(
            [
                resizing.side(of).float() / resizing.side(to).float()
                for of, to in ((image.shape[2], seen.shape[3]), (image.shape[1], seen.shape[2]))
            ]
        )
        boxes = ops.clip(
            moved.reshape(-1, 4)[order] * scale.repeat(2), (image.shape[1], image.shape[2])
        )
        return {"boxes": boxes, "scores": scores.flatten()[order], "labels": order % classes}


class DetectIn(Detect):
    """The same of a network that is told where to look: its second input is ``regions``, float32
    [P, 4], xyxy in pixels of the image."""

    @property
    def inputs(self) -> dict[str, Sides]:
        return {**super().inputs, "regions": ("regions", 4)}

    def example(self) -> dict[str, Tensor]:
        found = super().example()
        _, height, width, _ = found["image"].shape
        at = torch.arange(REGIONS) / REGIONS / 2
        regions = torch.stack((at * width, at * height, (at + 0.5) * width, (0.9 - at) * height), 1)
        return {**found, "regions": regions}

    def forward(self, image: Tensor, regions: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        seen = self.seen(image)
        scale = torch.stack(
            [
                resizing.side(to).double() / resizing.side(of).double()
                for of, to in ((image.shape[2], seen.shape[3]), (image.shape[1], seen.shape[2]))
            ]
        )
        moved = (regions.double() * scale.repeat(2)).float()
        moved = ops.clip(moved, (seen.shape[2], seen.shape[3]))
        sizeable = ((moved[:, 2:] - moved[:, :2]) >= SMALLEST).all(1)
        regions = regions_of_one(moved)
        scores, deltas = _looked_at(self.network, seen, regions)
        # What is too small to look at counts for nothing.
        scores = torch.where(sizeable[:, None], scores, 0)
        return self.found(image, seen, regions, scores, deltas)


def function(model: Any, size: tuple[int, int] | None = None) -> Detect:
    """The whole function of a run that detects.

    ``model``: a :class:`vidi.api.Model`. ``size``: the only (height, width) that is taken.

    Raises :class:`InputError` for a run whose decoding cannot be drawn as a graph.
    """
    recipe: Recipe = model.recipe
    if recipe.detection.soft_nms != "none":
        raise InputError(
            f"This run suppresses boxes softly (--detection.soft-nms {recipe.detection.soft_nms}), "
            "one after the other, which no format can hold as a graph. Export a run with "
            "--detection.soft-nms none."
        )
    if isinstance(model.network, ResNetFasterRCNN):
        raise InputError(
            f"{recipe.model} looks at each region on the map of its size, and which regions these "
            "are is known only when it runs: torch cannot draw that as a graph. No format can hold "
            "this run yet. Export one of vidi's small networks, such as faster_rcnn_small, or "
            "serve this run with `vidi serve`."
        )
    network = frozen(model.network)
    told = recipe.data.proposals != propose.NETWORK
    if not told and not isinstance(network, FasterRCNN):
        raise InputError(
            f"How {recipe.model} proposes regions is its own, and not to be drawn as a graph. "
            "Export a run of vidi's networks, such as faster_rcnn_small."
        )
    kind = DetectIn if told else Detect
    whole = kind(network, model.compute.normalisation, size, kept_size(recipe))
    whole.batch = 1
    whole.settings = recipe.detection
    if augment.EVALUATION.get(recipe.augmentation.crop) == "shorter":
        assert recipe.image_size != "auto"
        whole.side = recipe.image_size
        longest = recipe.augmentation.longest
        whole.longest = round(augment.LONGER * whole.side) if longest == "auto" else longest
    elif augment.EVALUATION.get(recipe.augmentation.crop) != "whole":
        raise InputError(
            f"This run's images are cropped by {recipe.augmentation.crop}, and a detector's are "
            "exported whole or by their shorter side."
        )
    if size is not None:
        height, width = (torch.tensor(side) for side in size)
        whole.steps = [known(*step) for step in whole.sizes(height, width)]
    return whole.eval()


def told(dataset: Dataset, ids: Array, recipe: Recipe) -> list[Array]:
    """Of each sample at ``ids`` the regions that its run looks at: float32 [P, 4] in pixels of the
    image, at full size. None, where the network proposes them itself."""
    if recipe.data.proposals == propose.NETWORK:
        return []
    held = propose.attach(dataset, ids, recipe, threads=defaults.cores())
    return [np.asarray(held.annotations(int(i))["proposals"], np.float32) for i in ids]


def target(height: Tensor, width: Tensor, shorter: int, longest: int) -> tuple[Tensor, Tensor]:
    """The sides of an image once it is as :func:`vidi.data.augment.target` has it, by whole numbers
    alone: int64 scalars."""
    least, greatest = torch.minimum(height, width), torch.maximum(height, width)
    sides = [
        torch.minimum(_rounded(side * shorter, least), _rounded(side * longest, greatest))
        for side in (height, width)
    ]
    return sides[0].clamp(min=1), sides[1].clamp(min=1)


def _rounded(above: Tensor, below: Tensor) -> Tensor:
    """The whole number nearest to a ratio, of two the even one, as Python rounds."""
    twice = 2 * above + below
    found = twice // (2 * below)
    return found - (found % 2) * (twice % (2 * below) == 0)


def known(height: Tensor, width: Tensor) -> tuple[int, int]:
    """The sides as numbers. While a graph is drawn each becomes a number of its own that is not
    known: what depends on it need not be followed back to the image's sides."""
    found = []
    for side in (height, width):
        number: Any = side.item()
        torch._check(number >= 1)
        found.append(number)
    return found[0], found[1]


def surest(boxes: Tensor, scores: Tensor, least: float, threshold: float) -> Tensor:
    """bool [N]: of boxes [N, 4] with scores [N] above ``least`` those that overlap no surer one,
    itself kept, by more than ``threshold``. As :func:`vidi.ops.boxes.suppress` of one class, in
    fp32."""
    from torchvision.ops import nms  # on use: it takes a second to import

    rows = (scores > least).nonzero()[:, 0]
    kept = rows[nms(columns(boxes[rows]), scores[rows], threshold)]
    flags = torch.zeros_like(scores).scatter(0, kept, torch.ones_like(scores[kept]))
    return flags > 0


def proposed(network: FasterRCNN, anchored: Any, size: tuple[int, int]) -> Tensor:
    """The regions [P, 5] that a network looks at in one image of ``size`` (h, w), the surest first;
    as :meth:`FasterRCNN.scored_proposals` chooses them in evaluation."""
    before, after = network.before[1], network.after[1]
    found, sure, start = [], [], 0
    for count in anchored.counts:
        logits = anchored.logits[0, start : start + count]
        deltas = anchored.deltas[0, start : start + count]
        anchors = anchored.anchors[start : start + count]
        start = start + count
        most = torch.sym_min(before, count)
        scores, rows = (x[:most] for x in logits.sort(descending=True, stable=True))
        boxes = ops.clip(ops.decode(anchors[rows], deltas[rows]), size)
        # What lies outside the image is cut to nothing, which suppresses nothing.
        real = ((boxes[:, 2:] - boxes[:, :2]) >= 1e-3).all(1)
        kept = surest(boxes, scores, -torch.inf, network.overlap) & real
        found.append(boxes[kept])
        sure.append(scores[kept])
    order = torch.cat(sure).sort(descending=True, stable=True).indices[:after]
    return regions_of_one(torch.cat(found)[order])


def regions_of_one(boxes: Tensor) -> Tensor:
    """Regions [P, 5] of the only image in a batch, of boxes [P, 4]."""
    boxes = columns(boxes)
    return torch.cat((torch.zeros_like(boxes[:, :1]), boxes), 1)


def columns(boxes: Tensor) -> Tensor:
    """Boxes [N, 4], put together of their columns: OpenVINO wants to know beforehand that there are
    four, and loses sight of it where rows are chosen."""
    return torch.stack([boxes[:, side] for side in range(4)], 1)


def _looked_at(network: nn.Module, seen: Tensor, regions: Tensor) -> tuple[Tensor, Tensor | None]:
    """(scores [P, C], deltas [P, 4 C]) of regions [P, 5]. All of them at once: how many there are
    is not known while the graph is drawn."""
    if isinstance(network, FastRCNN):
        y = network.responses(network.pooled(network.maps(seen), regions))
        logits, deltas = network.cls_score(y), network.bbox_pred(y)[:, 4:]
        deltas = deltas * network.delta_std.flatten() + network.delta_mean.flatten()
        return logits.softmax(1)[:, 1:], deltas
    if isinstance(network, RCNN):
        _, deltas, scores = network._found(*network.describe(seen, regions))
        return scores, deltas
    outputs = network(seen, regions)
    scores = outputs.scores
    if scores is None:
        scores = outputs.logits.float().softmax(1)[:, 1:]
    return scores, outputs.deltas
