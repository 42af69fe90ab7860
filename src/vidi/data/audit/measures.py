"""The few numbers that are kept of a mask and of boundary maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vidi.types import Array

IGNORE = 255


@dataclass(frozen=True, slots=True)
class MaskLook:
    """``counts``: int64 [K], pixels by class. ``ignored``: pixels of 255. ``strange``: pixels of
    values that are no class, by value (at most 10 values). ``beyond``: their number."""

    counts: Array
    ignored: int
    strange: dict[int, int]
    beyond: int


class Masks:
    """Masks of N samples and K classes, by row. ``present``: bool [N, K]. ``top``: int32 [N], the
    commonest value; ``share``: float32 [N], its share of the pixels. ``ignored``: float32 [N],
    the share of 255. ``pixels``: int64 [N], of the mask; 0 where none was read."""

    def __init__(self, n: int, classes: int) -> None:
        self.present = np.zeros((n, classes), bool)
        self.top = np.zeros(n, np.int32)
        self.share = np.zeros(n, np.float32)
        self.ignored = np.zeros(n, np.float32)
        self.pixels = np.zeros(n, np.int64)
        self.strange: dict[int, dict[int, int]] = {}
        self.beyond: dict[int, int] = {}
        self.total = np.zeros(classes, np.int64)

    def add(self, row: int, one: MaskLook) -> None:
        pixels = int(one.counts.sum()) + one.ignored + one.beyond
        self.pixels[row] = pixels
        self.present[row] = one.counts > 0
        self.total += one.counts
        self.ignored[row] = one.ignored / pixels
        by_value = {IGNORE: one.ignored, **one.strange}
        if len(one.counts):
            by_value[int(one.counts.argmax())] = int(one.counts.max())
        top = max(by_value, key=lambda value: by_value[value])
        self.top[row], self.share[row] = top, by_value[top] / pixels
        if one.strange:
            self.strange[row], self.beyond[row] = one.strange, one.beyond


def look_at_mask(mask: Array, classes: int) -> MaskLook:
    """``mask``: whole numbers [H, W]."""
    if mask.dtype == np.uint8:
        values = np.arange(256)
        counts = np.bincount(mask.ravel(), minlength=256)
        values, counts = values[counts > 0], counts[counts > 0]
    else:
        values, counts = np.unique(mask, return_counts=True)
    of_class = np.zeros(classes, np.int64)
    known = (values >= 0) & (values < classes) & (values != IGNORE)
    of_class[values[known]] = counts[known]
    other = ~known & (values != IGNORE)
    strange = list(zip(values[other].tolist(), counts[other].tolist(), strict=True))
    return MaskLook(
        of_class,
        int(counts[values == IGNORE].sum()),
        dict(sorted(strange, key=lambda item: -item[1])[:10]),
        int(counts[other].sum()),
    )


@dataclass(frozen=True, slots=True)
class EdgeLook:
    """``shares``: the share of each annotator's pixels that are boundary (128 or more).
    ``highest``: the highest value of all maps."""

    shares: tuple[float, ...]
    highest: int


def look_at_edges(edges: Array) -> EdgeLook:
    """``edges``: uint8 [A, H, W]."""
    shares = tuple(float((one >= 128).mean()) for one in edges)
    return EdgeLook(shares, int(edges.max()) if edges.size else 0)
