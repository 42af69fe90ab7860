"""Boxes as tensors: overlap, regression targets, and the suppression of what is found twice.

Boxes are xyxy with exclusive ends, in pixels: widths are plain differences. A box without area, or
an inverted one, overlaps nothing. float64 stays float64; all else is worked on in float32.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

THINNEST = 2**-10
"""Pixels. Where one divides by a side, or takes its logarithm, it is at least this long."""
LARGEST = math.log(1000 / 16)
"""The logarithm of how many times a box may be decoded to be as long as its region."""


def areas(xyxy: Tensor) -> Tensor:
    """[N], in square pixels, of boxes [N, 4]: 0 where a side is not positive."""
    x0, y0, x1, y1 = _exact(xyxy).unbind(1)
    return (x1 - x0).clamp_min(0) * (y1 - y0).clamp_min(0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [N, M] of each of ``a`` [N, 4] with each of ``b`` [M, 4]."""
    both = _intersections(a, b)
    return _ratio(both, areas(a)[:, None] + areas(b) - both)


def covered(a: Tensor, b: Tensor) -> Tensor:
    """[N, M]: the share of the area of each of ``a`` [N, 4] that lies within each of ``b`` [M, 4].

    COCO's overlap with a crowd, of which a detection need only find a part.
    """
    return _ratio(_intersections(a, b), areas(a)[:, None])


def encode(regions: Tensor, boxes: Tensor) -> Tensor:
    """What box regression learns for ``boxes`` [N, 4], given ``regions`` [N, 4]: [N, 4].

    How far the centre moves, x and y, in sides of the region, and the logarithms of how many times
    it becomes as wide and as high. Girshick et al. 2014, "Rich feature hierarchies for accurate
    object detection and semantic segmentation", appendix C. Sides below :data:`THINNEST` count as
    that.
    """
    centre, sides = _centres(regions)
    target, target_sides = _centres(boxes)
    sides, target_sides = sides.clamp_min(THINNEST), target_sides.clamp_min(THINNEST)
    return torch.cat(((target - centre) / sides, (target_sides / sides).log()), 1)


def decode(regions: Tensor, deltas: Tensor) -> Tensor:
    """Boxes [K, 4 C], one per class, of ``regions`` [K, 4] and ``deltas`` [K, 4 C]: the reverse of
    :func:`encode`.

    A side grows to at most exp(:data:`LARGEST`) times the region's, so that a network that is still
    wild gives no infinite boxes. Of a region without area come boxes without area.
    """
    centre, sides = (x[:, None] for x in _centres(regions))
    each = _exact(deltas).reshape(deltas.shape[0], deltas.shape[1] // 4, 4)
    centre = centre + each[..., :2] * sides
    half = each[..., 2:].clamp_max(LARGEST).exp() * sides / 2
    return torch.cat((centre - half, centre + half), 2).flatten(1)


def clip(xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4], cut off at the borders of an image of ``size`` (h, w)."""
    height, width = size
    x, y = xyxy[..., 0::2].clamp(0, width), xyxy[..., 1::2].clamp(0, height)
    return torch.stack((x, y), -1).flatten(-2)


def surest(scores: Tensor, count: int) -> Tensor:
    """int64 [B, K]: the ``count`` highest of each row of ``scores``, float32 [B, N], in order; of
    equal ones, of which a plain ground has many, the one that was given first comes first, where
    ``topk`` takes any."""
    if scores.dtype != torch.float32:  # which takes longer
        return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    bits = (scores.detach() + 0.0).view(torch.int32)  # -0 is 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    behind = torch.arange(scores.shape[1], device=scores.device)
    return ((ordered << 32) - behind).topk(count, 1).indices


def suppress(
    xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    threshold: float,
    *,
    soft: Literal["none", "linear", "gaussian"] = "none",
    sigma: float = 0.5,
    least: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """(kept int64 [K], their scores [K]), the surest first: non-maximum suppression per class.

    ``xyxy`` [N, 4], ``scores`` [N] and ``labels`` int64 [N] may be of many classes. Of equal scores
    the one that was given first comes first.

    ``none``: a box goes that overlaps a surer one, itself kept, by an IoU above ``threshold``.
    ``linear`` and ``gaussian`` are soft-NMS (Bodla et al. 2017, "Soft-NMS: improving object
    detection with one line of code", figure 2 and equations 2 and 3), for scores in [0, 1]: a surer
    box multiplies the score by 1 - IoU where that is at least ``threshold``, or by
    exp(-IoU² / ``sigma``) at any IoU; a box goes whose score falls below ``least``. These two run
    on the CPU, as they take the boxes of a class one after another, and hold all overlaps within
    a class.
    """
    if soft == "none":
        kept = _hard(xyxy, scores, labels, threshold)
    else:
        scores, kept = _soft(xyxy, scores, labels, threshold, soft == "linear", sigma, least)
    order = scores.argsort(descending=True, stable=True)
    rows = order[kept[order]]
    return rows, scores[rows]


def _hard(xyxy: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    # Classes are kept apart by moving their boxes apart, which must neither meet those of a class
    # below, hence nothing negative, nor cost digits, hence float64: Apple's GPUs have none.
    device = torch.device("cpu") if xyxy.device.type == "mps" else xyxy.device
    boxes, score = (x.to(device).double() for x in (xyxy, scores))
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=device)
    if len(boxes):
        from torchvision.ops import batched_nms  # on use: it takes a second to import

        apart = boxes - boxes.min()
        kept[batched_nms(apart, score, labels.to(device), threshold)] = True
    return kept.to(xyxy.device)


def _soft(
    xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    threshold: float,
    linear: bool,
    sigma: float,
    least: float,
) -> tuple[Tensor, Tensor]:
    """(faded scores [N], kept bool [N]) of soft-NMS."""
    assert least > 0, "what has faded to nothing would stay"
    boxes, score, label = (x.detach().cpu() for x in (xyxy, _exact(scores), labels))
    faded, kept = score.double().numpy().copy(), np.zeros(len(score), bool)
    for one in np.unique(label):
        # What is below `least` could only make fade what is so as well.
        rows = np.flatnonzero((label.numpy() == one) & (faded >= least))
        here = boxes[torch.from_numpy(rows)].double()
        overlap = iou(here, here).numpy()
        if linear:
            factors = np.where(overlap >= threshold, 1 - overlap, 1)
        else:
            factors = np.exp(-(overlap**2) / sigma)
        left = faded[rows]
        for _ in rows:
            surest = left.argmax()
            if left[surest] < least:
                break
            faded[rows[surest]], kept[rows[surest]] = left[surest], True
            left *= factors[surest]
            left[surest] = 0
    return torch.from_numpy(faded).to(scores), torch.from_numpy(kept).to(scores.device)


def _intersections(a: Tensor, b: Tensor) -> Tensor:
    """[N, M], in square pixels. One axis after the other, in place: a third of the memory."""
    first, second = _exact(a)[:, None], _exact(b)
    width, height = (
        torch.minimum(first[..., i + 2], second[:, i + 2])
        .sub_(torch.maximum(first[..., i], second[:, i]))
        .clamp_min_(0)
        for i in (0, 1)
    )
    return width.mul_(height)


def _ratio(both: Tensor, whole: Tensor) -> Tensor:
    return both / whole.clamp_min(torch.finfo(both.dtype).tiny)  # 0 / 0 is no overlap


def _centres(xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """(centres [N, 2], widths and heights [N, 2])."""
    exact = _exact(xyxy)
    low, high = exact[:, :2], exact[:, 2:]
    return (low + high) / 2, high - low


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
