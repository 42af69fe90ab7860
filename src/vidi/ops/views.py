"""Labels per pixel from several views of an image: its mirror image, and other sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Logits = Callable[[Tensor], Tensor]
"""A dense network: [B, C, h, w] to logits [B, K, h, w]."""


def single(flip: bool, scales: Sequence[float]) -> bool:
    """Whether there is nothing to average."""
    return not flip and tuple(scales) == (1.0,)


def average(
    logits: Logits,
    squash: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    flip: bool,
    scales: Sequence[float],
) -> Tensor:
    """Probabilities summed over all views, [B, K, H, W] for images [B, C, H, W].

    ``squash``: makes probabilities of logits. ``flip``: every view's mirror image, too. ``scales``:
    sizes of the image, relative to its own.
    """
    size = image.shape[2:]
    total: Tensor | None = None
    for scale in scales:
        view = image
        if scale != 1:
            sides = [max(1, round(side * scale)) for side in size]
            view = F.interpolate(
                image, sides, mode="bilinear", align_corners=False, antialias=scale < 1
            )
        for mirrored in (False, True) if flip else (False,):
            found = logits(view.flip(3) if mirrored else view)
            found = found.flip(3) if mirrored else found
            found = F.interpolate(found, size, mode="bilinear", align_corners=False)
            total = squash(found) if total is None else total + squash(found)
    assert total is not None
    return total


def by_size(image: Tensor | list[Tensor]) -> list[tuple[list[int], Tensor]]:
    """(rows, images [B, C, H, W]) for each size that there is: padded images would not give what
    they give alone."""
    if isinstance(image, Tensor):
        return [(list(range(len(image))), image)]
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, one in enumerate(image):
        rows.setdefault(tuple(one.shape), []).append(row)
    return [(same, torch.cat([image[row] for row in same])) for same in rows.values()]
