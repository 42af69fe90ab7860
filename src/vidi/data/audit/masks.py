"""Masks whose values are not what was meant."""

from __future__ import annotations

import numpy as np

from vidi.data.audit.finding import Finding
from vidi.data.audit.looks import Seen
from vidi.data.audit.report import found
from vidi.types import Array

IGNORED = 0.99
"""From this share of 255 on, a mask teaches nothing."""
STRAY = 0.001
"""A mask with anything but one value, and less than this share of it, is nearly empty."""
ALL = 0.9


def check(seen: Seen) -> list[Finding]:
    masks = seen.masks
    if masks is None or not masks.pixels.any():
        return []
    k = len(seen.dataset.classes)
    there = masks.pixels > 0
    binary = _binary(seen)
    constant = there & (masks.share == 1)
    nearly = there & (masks.share > 1 - STRAY) & ~constant
    ignored = there & (masks.ignored >= IGNORED)

    def values(row: int) -> str:
        shown = ", ".join(f"{v} ({n:,} pixels)" for v, n in masks.strange[row].items())
        return f"values {shown}"

    def covers(row: int) -> str:
        name = "ignored" if masks.top[row] == 255 else f"of the value {masks.top[row]}"
        return f"{masks.share[row]:.2%} of the pixels are {name}"

    whole = bool(binary[there].mean() >= ALL)
    return [
        *found(
            seen,
            "mask-values",
            "error",
            masks.strange,
            what=f"{{n}} mask[|s] [has|have] values that are no class (0 to {k - 1}, or 255 for "
            "ignored pixels).",
            effect="There is no output for them: training fails, or takes them for something else.",
            advice="Many different values come of masks saved as JPEG or shrunk with "
            "interpolation: save as PNG, shrink by nearest neighbour. Few come of a class that the "
            "list lacks.",
            detail=values,
        ),
        *found(
            seen,
            "mask-binary",
            "error" if whole else "warning",
            np.flatnonzero(binary),
            what="{n} mask[|s] [holds|hold] 0 and 255 only"
            + ("." if whole else ", while others hold classes."),
            effect="255 means ignored pixels: all that is marked is left out, and background is "
            "all there is to learn.",
            advice="If 255 marks the object, make it 1 (mask // 255), or export with classes.",
        ),
        *found(
            seen,
            "mask-ignored",
            "warning",
            np.flatnonzero(ignored),
            what=f"{{n}} mask[|s] [is|are] 255, ignored, in at least {IGNORED:.0%} of the pixels.",
            effect="They cost time and teach nothing.",
            advice="Annotate or remove them.",
            detail=covers,
        ),
        *found(
            seen,
            "mask-nearly-empty",
            "warning",
            np.flatnonzero(nearly & ~ignored),
            what=f"{{n}} mask[|s] [has|have] one value, save less than {STRAY:.1%} of the pixels.",
            effect="A few stray pixels of a class teach its noise; once shrunk they are gone.",
            advice="Look at them: they are slips of the brush, or objects too small to be seen.",
            detail=covers,
        ),
        *found(
            seen,
            "mask-one-value",
            "info",
            np.flatnonzero(constant & ~ignored),
            what="{n} mask[|s] [has|have] one value throughout.",
            effect="None, if nothing else is on the image; else they teach to overlook it.",
            advice="Look at some of them for objects that were not annotated.",
            detail=covers,
        ),
    ]


def _binary(seen: Seen) -> Array:
    """Rows whose masks hold class 0 and 255 and nothing else."""
    masks = seen.masks
    assert masks is not None
    if not masks.present.shape[1]:
        return np.zeros(len(seen), bool)
    only = masks.present[:, 0] & ~masks.present[:, 1:].any(1) & (masks.ignored > 0)
    only[list(masks.strange)] = False
    # 255 as a thin border, which void often is, is no object.
    only &= masks.ignored >= STRAY
    return np.asarray(only)
