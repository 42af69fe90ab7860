"""Thick lines to lines of one pixel."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from vidi.types import Array

_NEIGHBOURS = np.array([[8, 4, 2], [16, 0, 1], [32, 64, 128]], np.float32)
"""The bit of each neighbour, from the east anticlockwise."""


def thin(mask: Array) -> Array:
    """Lines of one pixel in place of thick ones, bool [H, W]; nothing falls apart or vanishes.

    Guo and Hall 1989, "Parallel thinning with two-subiteration algorithms", algorithm A1, until
    nothing changes. It is what MATLAB's ``bwmorph(..., "thin", Inf)`` does, and so BSDS.
    """
    left: Array = mask.astype(np.uint8)
    while True:
        before = cv2.countNonZero(left)
        for gone in _deletable():
            around = cv2.filter2D(left, cv2.CV_8U, _NEIGHBOURS, borderType=cv2.BORDER_CONSTANT)
            left[cv2.LUT(around, gone) > 0] = 0
        if cv2.countNonZero(left) == before:
            return left.astype(bool)


@cache
def _deletable() -> tuple[Array, Array]:
    """For each of the 256 neighbourhoods, 1 where its centre goes; of the two subiterations."""
    code = np.arange(256)
    # The paper's x1 .. x8, and x9 = x1: from the east anticlockwise.
    x = [(code & 1 << k % 8) > 0 for k in range(9)]
    crossings = sum((~x[k] & (x[k + 1] | x[k + 2])).astype(int) for k in (0, 2, 4, 6))
    odd = sum((x[k] | x[k + 1]).astype(int) for k in (0, 2, 4, 6))
    even = sum((x[k + 1] | x[k + 2]).astype(int) for k in (0, 2, 4, 6))
    least = np.minimum(odd, even)
    common = (crossings == 1) & (least >= 2) & (least <= 3)
    first = common & ~((x[1] | x[2] | ~x[7]) & x[0])
    second = common & ~((x[5] | x[6] | ~x[3]) & x[4])
    return first.astype(np.uint8), second.astype(np.uint8)
