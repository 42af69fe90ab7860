"""COCO's run lengths: a mask as the lengths of its runs of 0 and 1, column by column.

The first run is of zeros (its length may be 0), then they alternate; together they are as long as
the mask has pixels. They are written as a list, or as a string of printable characters: from the
third on a run is stored as its difference to the one two before it, in groups of five bits, lowest
first, bit 6 marking that more follow, with 48 added to make it a character. The layout is that of
the COCO API (Lin et al., "Microsoft COCO", 2014).
"""

from __future__ import annotations

import numpy as np

from vidi.errors import InputError
from vidi.types import Array

_CHARACTER = 48
_MOST_GROUPS = 12
"""Five bits each: 60 bits hold any length."""


def from_string(text: bytes, where: str) -> Array:
    """The run lengths, int64 [R], of COCO's compressed string. Raises :class:`InputError`."""
    runs: list[int] = []
    value = shift = 0
    for k, byte in enumerate(text):
        group = byte - _CHARACTER
        if not 0 <= group < 64 or shift >= 5 * _MOST_GROUPS:
            raise InputError(
                f"{where}: the run lengths are damaged at character {k + 1} of {len(text)}. Export "
                "them again."
            )
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:  # the sign
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise InputError(f"{where}: the run lengths are cut short. Export them again.")
    return np.array(runs, np.int64)


def to_string(runs: Array) -> str:
    """COCO's compressed string of run lengths, int [R]."""
    out = bytearray()
    for k, run in enumerate(runs.tolist()):
        value = run - int(runs[k - 2]) if k > 2 else run
        while True:
            group = value & 31
            value >>= 5
            more = value != (-1 if group & 16 else 0)
            out.append(group + 32 * more + _CHARACTER)
            if not more:
                break
    return out.decode("ascii")


def to_mask(runs: Array, height: int, width: int, where: str) -> Array:
    """bool [height, width] of run lengths, int64 [R].

    Raises :class:`InputError` where they are negative or do not add up to the mask's pixels.
    """
    total = sum(runs.tolist())  # in whole numbers that cannot overflow
    if total != height * width or (len(runs) and int(runs.min()) < 0):
        raise InputError(
            f"{where}: the run lengths add up to {total:,} pixels; {width} × {height} = "
            f"{height * width:,} are expected, in runs that are not negative. Export them again."
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def of_mask(mask: Array) -> Array:
    """The run lengths, int64 [R], of a bool mask [H, W]."""
    flat = np.asarray(mask, bool).ravel(order="F")
    if not flat.size:
        return np.zeros(0, np.int64)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = np.concatenate([[0] if flat[0] else [], changes, [flat.size]]).astype(np.int64)
    return np.diff(ends, prepend=0)
