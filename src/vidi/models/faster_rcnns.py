"""Faster R-CNN: the network proposes its regions itself, from the maps it has computed anyway.

Ren et al. 2015: a region proposal network looks at each cell of the maps and says, of a few boxes
of fixed shapes about it (anchors), how likely each is an object, and how it is to be moved to be
the object's box (section 3.1). The surest, without those that lie on surer ones, are the regions of
a Fast R-CNN on the same maps: milliseconds instead of seconds. All trains at once (section 3.2, the
"approximate joint training": regions are taken as given, without a gradient).

Lin et al. 2017, "Feature pyramid networks for object detection", takes the maps of several
resolutions for that, each for boxes of its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vidi.models.fast_rcnns import exact
from vidi.ops import anchors as grids
from vidi.ops import boxes as ops
from vidi.ops.regions import regions_of

SOURCE = "Ren et al. 2015, Faster R-CNN (arXiv:1506.01497)"
_AT_ONCE = 4096
"""Regions whose cells are in memory at a time, in evaluation."""


class Anchored(NamedTuple):
    """What is said of all anchors of a batch, fp32; map after map, row after row."""

    logits: Tensor
    """[B, A]: of being an object."""
    deltas: Tensor
    """[B, A, 4]: how each is to be moved (:func:`vidi.ops.boxes.encode`)."""
    anchors: Tensor
    """[A, 4], in pixels of the input."""
    counts: tuple[int, ...]
    """Anchors of each map; they sum up to A."""


class Outputs(NamedTuple):
    """As of Fast R-CNN (:class:`vidi.models.fast_rcnns.Outputs`), and what came before it."""

    logits: Tensor
    """[K, 1 + C], the background first."""
    deltas: Tensor
    """[K, 4 C]: in training divided by ``delta_std``, in evaluation as they are."""
    scores: None
    regions: Tensor
    """[K, 5]: what those are of."""
    anchored: Anchored


Choose = Callable[[list[Tensor]], Tensor]


class FasterRCNN(nn.Module):
    """Input: images [B, 3, H, W] of any size. Output: :class:`Outputs`.

    ``forward(image)`` looks at what it proposes itself. Regions [K, 5] may be given instead, as to
    a Fast R-CNN, or a function: it hears of the proposals of each image, [P, 4], and says which
    regions are looked at; that is how training samples them. ``sizes``: heights and widths of the
    images in a padded batch, beyond which nothing is proposed.

    A network gives ``pyramid(image)``, maps from fine to coarse at 1/``strides``; ``told(maps)``,
    of each map the logits [B, a, h, w] and deltas [B, 4 a, h, w] of its anchors; ``shapes()``, of
    each map the anchors [a, 4] of its first cell; and ``respond(maps, regions)``: of each region
    logits [K, 1 + C] and deltas [K, 4 (1 + C)].

    One whose anchors are to be fitted to the data also has their ``sides`` [..., 2], takes others
    by ``set_anchors(sides [N, 2])``, and names by ``of_anchors`` what says if they are objects.

    ``before``, ``after``: the surest anchors of a map, and the proposals of an image, at most, in
    training and in evaluation. ``overlap``: of two proposals of a map that overlap by more, the
    less sure one goes.
    """

    task = "detection"
    proposes = True
    source = SOURCE
    beta = 1.0
    """Where smooth L1 turns from square to straight."""
    heads: tuple[str, ...] = ()
    """What gives the outputs, by the start of its parameters' names."""
    frozen: tuple[str, ...] = ()
    """Parts that stay as they are in training that begins with a classifier's weights."""
    delta_std: Tensor

    def __init__(
        self,
        *,
        strides: tuple[int, ...],
        before: tuple[int, int],
        after: tuple[int, int],
        overlap: float = 0.7,
    ) -> None:
        super().__init__()
        self.strides, self.before, self.after, self.overlap = strides, before, after, overlap
        usual = torch.tensor([0.1, 0.1, 0.2, 0.2])
        self.register_buffer("delta_std", usual, persistent=False)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def told(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        raise NotImplementedError

    def shapes(self) -> list[Tensor]:
        raise NotImplementedError

    def respond(self, maps: list[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(
        self,
        image: Tensor,
        regions: Tensor | Choose | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Outputs:
        maps = self.pyramid(image)
        anchored = self.anchored(maps)
        if not isinstance(regions, Tensor):
            whole = [(image.shape[2], image.shape[3])] * len(image)
            scored = self.scored_proposals(anchored, whole if sizes is None else sizes)
            proposed = [boxes for boxes, _ in scored]
            regions = regions_of(proposed) if regions is None else regions(proposed)
        parts = (regions,) if self.training else torch.split(regions, _AT_ONCE)
        told = [self.respond(maps, part) for part in parts]
        logits, deltas = (torch.cat(x) for x in zip(*told, strict=True))
        deltas = deltas[:, 4:]
        if not self.training:
            deltas = deltas * self.delta_std.repeat(deltas.shape[1] // 4)
        return Outputs(logits, deltas, None, regions, anchored)

    def anchored(self, maps: list[Tensor]) -> Anchored:
        logits, deltas, anchors = [], [], []
        rows = zip(maps, self.told(maps), self.shapes(), self.strides, strict=True)
        for y, (objects, moves), shapes, stride in rows:
            b, a, h, w = objects.shape
            logits.append(objects.permute(0, 2, 3, 1).reshape(b, -1))
            moves = moves.view(b, a, 4, h, w).permute(0, 3, 4, 1, 2)
            deltas.append(moves.reshape(b, -1, 4))
            anchors.append(grids.grid((y.shape[2], y.shape[3]), stride, shapes))
        counts = tuple(x.shape[0] for x in anchors)  # which may be unknown while a graph is drawn
        return Anchored(
            exact(torch.cat(logits, 1)), exact(torch.cat(deltas, 1)), torch.cat(anchors), counts
        )

    @torch.no_grad()
    def scored_proposals(
        self, anchored: Anchored, sizes: Sequence[tuple[int, int]], count: int | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each image proposals [P, 4], the surest first, and their logits [P].

        ``count``: so many at most instead of ``after``, of so many anchors of a map at least: up to
        ``after`` it gives the first of those that the detector sees.
        """
        before, after = self.before[not self.training], self.after[not self.training]
        if count is not None:
            before, after = max(before, count), count
        rows, level = [], []
        first = 0
        for k, n in enumerate(anchored.counts):
            top = ops.surest(anchored.logits[:, first : first + n], min(before, n))
            rows.append(top + first)
            level.append(top.new_full((top.shape[1],), k))
            first += n
        each, of = torch.cat(rows, 1), torch.cat(level)
        out = []
        for logits, deltas, own, size in zip(
            anchored.logits, anchored.deltas, each, sizes, strict=True
        ):
            boxes = ops.decode(anchored.anchors[own], deltas[own])
            boxes, scores = ops.clip(boxes, size), logits[own]
            sides = boxes[:, 2:] - boxes[:, :2]
            real = (sides >= 1e-3).all(1)  # what lies outside the image is cut to nothing
            boxes, scores, apart = boxes[real], scores[real], of[real]
            kept, sure = ops.suppress(boxes, scores, apart, self.overlap)
            out.append((boxes[kept[:after]], sure[:after]))
        return out
