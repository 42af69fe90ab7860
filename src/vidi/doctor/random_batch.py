"""A batch of random images with random targets, for a network that has no data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vidi.errors import InputError
from vidi.types import Batch

REGIONS = 6
"""Of an image: two of background, the others objects."""
FASTEST = 6.0
"""Deviation of motion in x and y, in pixels."""


def random_batch(kind: str, *, classes: int, side: int, samples: int, seed: int = 0) -> Batch:
    """``samples`` images of ``side`` pixels, as noise, on the CPU, and what the task ``kind`` asks.

    Raises InputError for a task that is none of a network's.
    """
    g = torch.Generator().manual_seed(seed)
    shape = (samples, side, side)

    def whole(high: int, size: tuple[int, ...]) -> Tensor:
        return torch.randint(high, size, generator=g)

    inputs = {"image": torch.randn((samples, 3, side, side), generator=g)}
    if kind == "classification":
        targets = {"label": whole(classes, (samples,))}
    elif kind == "multilabel":
        targets = {"label": whole(2, (samples, classes)).float()}
    elif kind == "segmentation":
        ignored = whole(8, shape) == 0
        targets = {"mask": whole(classes, shape).masked_fill(ignored, 255).to(torch.uint8)}
    elif kind == "boundaries":
        targets = {"edges": (whole(6, shape) == 0).float()}
    elif kind == "flow":
        inputs["image2"] = torch.randn((samples, 3, side, side), generator=g)
        motion = FASTEST * torch.randn((*shape, 2), generator=g)
        targets = {"flow": motion, "known": whole(8, shape) > 0}
    elif kind == "detection":
        targets = _of_detection(classes, side, samples, g)
    else:
        raise InputError(f"There are no random targets for the task {kind!r}.")
    ones = np.ones(samples, bool)
    return Batch(
        inputs=inputs,
        targets={**targets, "valid": torch.from_numpy(ones)},
        keys=[str(i) for i in range(samples)],
        ids=np.arange(samples),
        matrices=np.tile(np.eye(3), (samples, 1, 1)),
        sizes=np.tile([side, side], (samples, 1)),
        valid=ones,
    )


def _of_detection(classes: int, side: int, samples: int, g: torch.Generator) -> dict[str, Tensor]:
    """For networks that are given regions, and for those that make them."""
    corners = torch.rand((samples, REGIONS, 2), generator=g) * 0.4 * side
    sides = (0.3 + 0.3 * torch.rand((samples, REGIONS, 2), generator=g)) * side
    regions = torch.cat((corners, corners + sides), 2)
    labels = 1 + torch.randint(classes, (samples, REGIONS), generator=g)
    labels[:, :2] = 0
    return {
        "regions": regions,
        "labels": labels,
        "deltas": 0.1 * torch.randn((samples, REGIONS, 4), generator=g),
        "boxes": regions[:, 2:],
        "classes": labels[:, 2:] - 1,
        "kinds": torch.zeros((samples, REGIONS - 2), dtype=torch.uint8),
        "size": torch.full((samples, 2), side),
        "seed": torch.arange(samples),
    }
