"""Anchors: boxes laid over an image on grids, of which a network says what is an object.

Ren et al. 2015, "Faster R-CNN: towards real-time object detection with region proposal networks",
section 3.1. Boxes are xyxy in pixels of the network's input, centred on the cells of a map.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vidi.ops import boxes as ops
from vidi.types import Array

BACKGROUND = -1
"""The object of an anchor that overlaps none enough."""
UNCOUNTED = -2
"""The object of an anchor that is neither: it overlaps one too little, or what does not count."""
ROUNDS = 100
"""Of fitting, at most."""
CANDIDATES = 500
"""Boxes that fitting may begin with."""


def about(sides: Tensor, centre: float) -> Tensor:
    """Boxes [a, 4] of widths and heights ``sides`` [a, 2] about the pixel position ``centre``."""
    return torch.cat((centre - sides / 2, centre + sides / 2), 1)


def grid(cells: tuple[int, int], stride: int, boxes: Tensor) -> Tensor:
    """Anchors [h · w · a, 4] of a map of ``cells`` (h, w), ``stride`` pixels apart, row by row, and
    for each cell ``boxes`` [a, 4], which are those of the cell (0, 0)."""
    y, x = (torch.arange(n, device=boxes.device, dtype=boxes.dtype) * stride for n in cells)
    y, x = torch.meshgrid(y, x, indexing="ij")
    moved = torch.stack((x, y, x, y), -1).view(-1, 1, 4)
    return (moved + boxes).view(-1, 4)


def assign(
    anchors: Tensor, truth: Tensor, high: float, low: float, ignored: Tensor | None = None
) -> Tensor:
    """Which object each of the ``anchors`` [A, 4] is to be: int64 [A], a row of ``truth`` [N, 4],
    :data:`BACKGROUND` or :data:`UNCOUNTED`.

    Section 3.1.2: an object from an overlap of ``high`` on, and whatever overlaps an object most of
    all anchors, lest it have none; such an anchor is the object that it overlaps most itself.
    Background below ``low``. ``ignored``, bool [A]: what is not to be background either.
    """
    if not len(truth):
        found = anchors.new_full((len(anchors),), BACKGROUND, dtype=torch.int64)
    else:
        overlap = ops.iou(truth, anchors)  # few rows: what follows goes along memory
        most, nearest = overlap.max(0)
        found = nearest.masked_fill(most < high, UNCOUNTED)
        found = found.masked_fill(most < low, BACKGROUND)
        best = overlap.amax(1, keepdim=True)
        # Equal overlaps count all; an object outside every anchor is nobody's.
        needed = ((overlap == best) & (best > 0)).any(0)
        found = nearest.where(needed, found)
    if ignored is not None:
        found = found.masked_fill(ignored & (found == BACKGROUND), UNCOUNTED)
    return found


def sample(found: Tensor, drawn: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """(objects int64 [P], background int64 [Q]): rows of ``found`` (see :func:`assign`), at most
    ``count`` together, of which objects ``share`` at most; those that ``drawn`` [A] smallest."""
    objects, background = ((found >= 0).nonzero()[:, 0], (found == BACKGROUND).nonzero()[:, 0])
    objects = _first(objects, drawn, int(count * share))
    return objects, _first(background, drawn, count - len(objects))


def _first(rows: Tensor, drawn: Tensor, most: int) -> Tensor:
    if len(rows) <= most:
        return rows
    return rows[drawn[rows].topk(most, largest=False).indices]


def fit(sides: Array, weights: Array, count: int) -> tuple[Array, float]:
    """(``count`` widths and heights that suit boxes best, float32 [count, 2], by area; how much
    they overlap the best of them on average).

    ``sides``: float64 [N, 2], widths and heights; ``weights``: float64 [N], what each counts.
    Redmon & Farhadi 2017, "YOLO9000: better, faster, stronger", section 2 ("dimension clusters"):
    k-means with 1 - IoU as the distance, of boxes about one centre. Means are geometric, as sides
    differ by factors. It begins with the boxes that, taken one after the other, bring most, so that
    nothing is drawn.
    """
    unique, which = np.unique(np.maximum(sides, 1e-3), axis=0, return_inverse=True)
    sides, weights = unique, np.bincount(which.ravel(), weights)
    candidates = sides[np.linspace(0, len(sides) - 1, min(CANDIDATES, len(sides))).astype(int)]
    overlap = _about_one_centre(sides, candidates)
    best, chosen = np.zeros(len(sides)), []
    for _ in range(count):
        gains = weights @ (overlap - best[:, None]).clip(0)
        chosen.append(int(gains.argmax()))
        best = np.maximum(best, overlap[:, chosen[-1]])
    shapes = candidates[chosen]
    near = np.full(len(sides), -1)
    for _ in range(ROUNDS):
        overlap = _about_one_centre(sides, shapes)
        before, near = near, overlap.argmax(1)
        if (near == before).all():
            break
        for k in range(count):
            own = near == k
            if own.any():
                mean = np.average(np.log(sides[own]), axis=0, weights=weights[own])
                shapes[k] = np.exp(mean)
    shapes = shapes[np.argsort(shapes.prod(1), kind="stable")]
    best = _about_one_centre(sides, shapes).max(1)
    return shapes.astype(np.float32), float(np.average(best, weights=weights))


def _about_one_centre(sides: Array, shapes: Array) -> Array:
    """IoU float64 [N, K] of boxes of those widths and heights, one centre all."""
    both = np.minimum(sides[:, None], shapes[None]).prod(2)
    return np.asarray(both / (sides.prod(1)[:, None] + shapes.prod(1) - both))
