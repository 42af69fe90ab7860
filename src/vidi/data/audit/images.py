"""Images that cannot be read, and those that look as if something went wrong with them."""

from __future__ import annotations

import numpy as np

from vidi.data.audit.finding import Finding
from vidi.data.audit.looks import Seen
from vidi.data.audit.report import found

NARROW = 16
"""Levels of 256: an image that spans no more shows nothing to the eye."""
SMALL, SMALLER = 16, 4
"""Pixels of the shorter side; and as many times less than the median's."""
LARGE, LARGER = 50e6, 16
"""Pixels; and as many times more than the median."""
LONG, LONGER = 5.0, 2.5
"""Ratio of the sides; and as many times more than the median's."""


def unreadable(seen: Seen) -> list[Finding]:
    return found(
        seen,
        "image-unreadable",
        "error",
        seen.errors,
        what="{n} image[|s] cannot be read, or [is|are] not of the size that was annotated.",
        effect="Training stops at them before it begins, or leaves them out with --bad-images "
        "skip.",
        advice="Fetch them again, or remove them with their annotations.",
        detail=lambda row: seen.errors[row],
    )


def unfit(seen: Seen) -> list[Finding]:
    return found(
        seen,
        "annotation-unreadable",
        "error",
        seen.truth_errors,
        what="{n} annotation[|s] cannot be read, or [is|are] of another size than the image.",
        effect="Training stops at them: nothing can be learned from a label that lies elsewhere "
        "than the pixels.",
        advice="Make them again at the images' size (labels without interpolation), or remove "
        "the samples.",
        detail=lambda row: seen.truth_errors[row],
    )


def constant(seen: Seen) -> list[Finding]:
    flat = seen.readable & (seen.low == seen.high)
    return found(
        seen,
        "image-constant",
        "warning",
        np.flatnonzero(flat),
        what="{n} image[|s] [has|have] the same value in every pixel.",
        effect="They show nothing, and teach that nothing is their label.",
        advice="They are often failed downloads or exports. Look at them, and remove them.",
        detail=lambda row: f"all pixels are {seen.low[row]}",
    )


def narrow(seen: Seen) -> list[Finding]:
    span = seen.high.astype(int) - seen.low
    rows = seen.readable & (span > 0) & (span <= NARROW)
    return found(
        seen,
        "image-narrow",
        "warning",
        np.flatnonzero(rows),
        what=f"{{n}} image[|s] [uses|use] no more than {NARROW} of the 256 levels of brightness.",
        effect="To a network they are nearly blank. 10 or 12 bits in a 16-bit file look so: the "
        "file's white lies far above the camera's.",
        advice="Stretch the values to the file's full range, or remove blank images.",
        detail=lambda row: f"values from {seen.low[row]} to {seen.high[row]}",
    )


def sides(seen: Seen) -> list[Finding]:
    """Very small, very large, very long ones, among others that are not."""
    if not seen.readable.any():
        return []
    size = np.maximum(seen.sizes, 1).astype(np.float64)
    shorter, longer, area = size.min(1), size.max(1), size.prod(1)
    median = {
        name: float(np.median(value[seen.readable]))
        for name, value in (("shorter", shorter), ("area", area), ("aspect", longer / shorter))
    }

    def pixels(row: int) -> str:
        return f"{seen.sizes[row, 1]} × {seen.sizes[row, 0]} pixels"

    small = seen.readable & (shorter < SMALL) & (shorter * SMALLER < median["shorter"])
    large = seen.readable & (area > LARGE) & (area > LARGER * median["area"])
    long = seen.readable & (longer > LONG * shorter)
    long &= longer > LONGER * median["aspect"] * shorter
    return [
        *found(
            seen,
            "image-tiny",
            "warning",
            np.flatnonzero(small),
            what=f"{{n}} image[|s] [is|are] less than {SMALL} pixels wide or high, unlike others.",
            effect="Enlarged to the network's input they are a blur.",
            advice="They are often icons or thumbnails that came along. Remove them.",
            detail=pixels,
        ),
        *found(
            seen,
            "image-huge",
            "warning",
            np.flatnonzero(large),
            what="{n} image[|s] [has|have] more than 50 million pixels, many times the others'.",
            effect="Each costs seconds of decoding and much memory, and is shrunk to little.",
            advice="Shrink them, or cut them into parts.",
            detail=pixels,
        ),
        *found(
            seen,
            "image-aspect",
            "warning",
            np.flatnonzero(long),
            what="{n} image[|s] [is|are] far longer than wide, or wider than high, unlike others.",
            effect="A crop sees a small part of them, which may not show what the label says.",
            advice="Look at them: panoramas, banners and screenshots are seldom meant.",
            detail=pixels,
        ),
    ]


def colours(seen: Seen) -> list[Finding]:
    shows = seen.readable & (seen.high > seen.low)
    grey = shows & seen.grey
    mixed = 0 < grey.sum() < shows.sum()
    return found(
        seen,
        "image-grey",
        "info",
        np.flatnonzero(grey) if mixed else [],
        what="{n} image[|s] [is|are] grey, the others in colour.",
        effect="None, where grey ones are among all classes; else colour gives the class away.",
        advice="Look whether one class or split has most of them.",
    )


def frames(seen: Seen) -> list[Finding]:
    return found(
        seen,
        "frames-size",
        "error",
        seen.frames,
        what="{n} pair[|s] [has|have] frames of different sizes.",
        effect="Flow is defined between frames of one size; training stops at them.",
        advice="Make the frames again from the same camera and crop.",
        detail=lambda row: seen.frames[row],
    )
