"""Flow that is absurd, constant, or does not take the first frame to the second."""

from __future__ import annotations

from vidi.data.audit.alignment import FlowLook
from vidi.data.audit.finding import Finding
from vidi.data.audit.looks import Seen
from vidi.data.audit.report import found

FEW = 0.01
"""A smaller share of valid pixels is hardly any."""
ABSURD = 0.001
"""From this share of pixels on that move by more than the diagonal, they are no slip."""
FITS = 0.75
"""Another reading is believed when it leaves less than this of the zero flow's difference."""
SLOW = 1.0
"""Pixels: where nothing moves by more, the flow is nearly nothing."""


def check(seen: Seen) -> list[Finding]:
    look = seen.flows
    if not look:
        return []

    def where(test: object, rows: dict[int, FlowLook] = look) -> list[int]:
        assert callable(test)
        return [row for row, one in rows.items() if test(one)]

    other = where(_reads_otherwise)
    rest = {row: one for row, one in look.items() if not _reads_otherwise(one)}
    return [
        *found(
            seen,
            "flow-nan",
            "error",
            where(lambda f: f.bad > 0),
            what="{n} flow[|s] [has|have] values that are not finite, and [is|are] not marked "
            "invalid there.",
            effect="The loss is not finite from the first such pixel on.",
            advice="Mark these pixels as invalid (above 1e9 in a .flo, zero in KITTI's third "
            "channel).",
            detail=lambda row: f"{look[row].bad:.1%} of the valid pixels",
        ),
        *found(
            seen,
            "flow-scale",
            "error",
            other,
            what="{n} flow[|s] [fits its|fit their] frames if read otherwise than [it is|they "
            "are] written.",
            effect="A network learns the wrong motion, and its error is in no known unit.",
            advice="Convert the files: flow is (x, y) in pixels, from the first frame to the "
            "second, y downward. KITTI's PNG must be read at 16 bits.",
            detail=lambda row: (
                f"fits {look[row].better}: {look[row].better_ratio:.2f} of the zero flow's "
                f"difference{_as_is(look[row])}"
            ),
        ),
        *found(
            seen,
            "flow-absurd",
            "error",
            where(lambda f: f.beyond > ABSURD),
            what="{n} flow[|s] [moves|move] pixels by more than the image's diagonal.",
            effect="Such pixels outweigh all others in the loss.",
            advice="Unknown flow must be marked as invalid, not written as a large number.",
            detail=lambda row: (
                f"up to {look[row].largest:,.0f} pixels, {look[row].beyond:.1%} of the valid ones"
            ),
        ),
        *found(
            seen,
            "flow-constant",
            "warning",
            where(lambda f: f.constant),
            what="{n} flow[|s] [has|have] the same vector in every pixel.",
            effect="They teach that everything moves alike, or that nothing does.",
            advice="Look at the frames: failed exports look so.",
            detail=lambda row: f"every vector is {look[row].largest:.2f} pixels long",
        ),
        *found(
            seen,
            "flow-whole",
            "warning",
            where(lambda f: f.whole),
            what="{n} flow[|s] [has|have] whole numbers only.",
            effect="It was rounded, or stored in 8 bits: the error can hardly fall below half a "
            "pixel.",
            advice="Write floating point (.flo) or 16-bit PNG.",
            detail=lambda row: f"up to {look[row].largest:,.0f} pixels",
        ),
        *found(
            seen,
            "flow-invalid",
            "warning",
            where(lambda f: f.valid < FEW),
            what=f"{{n}} flow[|s] [is|are] valid in less than {FEW:.0%} of the pixels.",
            effect="Hardly anything is learned from them.",
            advice="Look whether the validity is read the right way round.",
            detail=lambda row: f"{look[row].valid:.2%} valid",
        ),
        *found(
            seen,
            "flow-no-better",
            "warning",
            where(lambda f: f.ratio is not None and f.ratio >= 1, rest),
            what="{n} flow[|s] [takes|take] the first frame no nearer to the second than no flow "
            "at all.",
            effect="The label says nothing of the images, or of others.",
            advice="Look whether frames and flow belong together, and in which order.",
            detail=lambda row: f"{look[row].ratio:.2f} times the zero flow's difference",
        ),
        *found(
            seen,
            "flow-still",
            "info",
            where(lambda f: f.largest < SLOW and not f.constant and f.valid > 0, rest),
            what=f"{{n}} flow[|s] [moves|move] nothing by as much as {SLOW:g} pixel.",
            effect="There is little to learn from them; normalised values look so.",
            advice="Look whether the flow is in pixels.",
            detail=lambda row: f"at most {look[row].largest:.2f} pixels",
        ),
    ]


def _reads_otherwise(one: FlowLook) -> bool:
    """Another reading fits well, and the flow as it is does not."""
    as_it_is = 1.0 if one.ratio is None else one.ratio
    return bool(one.better) and one.better_ratio < FITS and one.better_ratio < FITS * as_it_is


def _as_is(one: FlowLook) -> str:
    return "" if one.ratio is None else f", {one.ratio:.2f} as written"
