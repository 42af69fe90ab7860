"""Boundary maps that are inverted, empty, or no boundaries."""

from __future__ import annotations

import numpy as np

from vidi.data.audit.finding import Finding
from vidi.data.audit.looks import Seen
from vidi.data.audit.report import found

INVERTED = 0.5
"""Share of boundary pixels: more than half an image is not boundary."""
FILLED = 0.25
"""Lines of one pixel cover a few percent; regions cover more than this."""


def check(seen: Seen) -> list[Finding]:
    look = seen.edges
    if not look:
        return []
    most = {row: max(one.shares, default=0.0) for row, one in look.items()}
    empty = {row: sum(share == 0 for share in one.shares) for row, one in look.items()}
    dim = [row for row, one in look.items() if 0 < one.highest < 128]
    blank = [row for row, one in look.items() if not one.highest]

    def share(row: int) -> str:
        return f"{most[row]:.0%} of the pixels are boundary"

    some = [
        row for row, n in empty.items() if 0 < n < len(look[row].shares) and row not in dim
    ]  # fmt: skip
    return [
        *found(
            seen,
            "edges-inverted",
            "error",
            [row for row in look if most[row] > INVERTED],
            what="{n} boundary map[|s] [is|are] boundary in more than half of the pixels.",
            effect="White on black is expected; the network learns all but the boundaries.",
            advice="Invert the maps (255 minus the value).",
            detail=share,
        ),
        *found(
            seen,
            "edges-filled",
            "warning",
            [row for row in look if FILLED < most[row] <= INVERTED],
            what=f"{{n}} boundary map[|s] [is|are] boundary in more than {FILLED:.0%} of the "
            "pixels.",
            effect="Regions or very thick lines teach no place for a boundary.",
            advice="Draw the outlines of the regions, thin.",
            detail=share,
        ),
        *found(
            seen,
            "edges-scale",
            "error",
            dim,
            what="{n} boundary map[|s] [holds|hold] no value of 128 or more.",
            effect="255 is boundary; such maps count as empty, or nearly.",
            advice="Multiply the values so that a sure boundary is 255.",
            detail=lambda row: f"the highest value is {look[row].highest}",
        ),
        *found(
            seen,
            "edges-empty",
            "warning",
            blank,
            what="{n} sample[|s] [has|have] no boundary pixel at all.",
            effect="Every boundary that is found there counts as wrong.",
            advice="Annotate them, or remove them.",
            detail=lambda row: f"by {len(look[row].shares)} annotators",
        ),
        *found(
            seen,
            "edges-annotator",
            "info",
            some,
            what="{n} sample[|s] [has|have] an annotator who drew nothing.",
            effect="The mean over annotators is lower there.",
            advice="Leave that annotator out, if it is a slip.",
            detail=lambda row: f"{empty[row]} of {len(look[row].shares)}",
        ),
    ]


def shares(seen: Seen) -> float:
    """The mean share of boundary pixels over all annotators of all samples."""
    every = [share for one in seen.edges.values() for share in one.shares]
    return float(np.mean(every)) if every else 0.0
