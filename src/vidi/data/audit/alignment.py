"""Does the flow take the first frame to the second? If not, does the flow read otherwise?

Two frames judge their flow without any other truth: the second frame, looked up where the flow
points, should resemble the first more than it does where nothing is moved (brightness constancy,
Horn and Schunck 1981). Where it does not, the usual misreadings of a flow file are tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from vidi.types import Array

POINTS = 16_384
"""Pixels at which the frames are compared, on a grid: enough for a mean."""
MOST = 64.0
"""A difference in brightness counts up to this: occlusions must not decide."""
FEWEST = 50
"""Points that must move inside the image for a judgement."""
MOVES = 1.0
"""Pixels."""

READINGS: dict[str, Callable[[Array, int, int], Array]] = {
    "in shares of the image's sides": lambda f, h, w: f * np.array([w, h], np.float32),
    "in shares of half the image's sides": lambda f, h, w: f * np.array([w, h], np.float32) / 2,
    "with its sign turned": lambda f, h, w: -f,
    "with x and y exchanged": lambda f, h, w: f[..., ::-1],
    "with y upward": lambda f, h, w: f * np.array([1, -1], np.float32),
    # A 16-bit PNG holds 64 · flow + 2^15. Of its 8 higher bits, a step is 4 pixels, and zero lies
    # where 128 begins.
    "as the upper 8 bits of KITTI's 16": lambda f, h, w: (f - 127.5) * 4,
    "as KITTI's formula on the upper 8 bits": lambda f, h, w: (f * 64 + 2**15 - 127.5) * 4,
}
"""What a flow may turn out to be: name, and the pixels that it then means."""


@dataclass(frozen=True, slots=True)
class FlowLook:
    """``bad``: the share of valid pixels that are not finite. ``valid``: the share of valid pixels.
    ``largest``: pixels. ``beyond``: the share of valid pixels that move by more than the image's
    diagonal. ``constant``: all vectors are equal. ``whole``: all are whole numbers. ``ratio``: the
    frames' difference along the flow over that without it; None where too little moves to tell.
    ``better``, ``better_ratio``: the reading under which the flow fits best, and its ratio."""

    bad: float
    valid: float
    largest: float
    beyond: float
    constant: bool
    whole: bool
    ratio: float | None
    better: str = ""
    better_ratio: float = 1.0


def look_at_flow(
    flow: Array,
    valid: Array | None,
    occluded: Array | None,
    first: Array | None,
    second: Array | None,
) -> FlowLook:
    """``flow``: float32 [H, W, 2]; ``valid``, ``occluded``: bool [H, W] or None; the frames uint8
    [H, W, 3], or None where they cannot be compared."""
    h, w = flow.shape[:2]
    known = np.ones((h, w), bool) if valid is None else np.asarray(valid, bool)
    finite = np.isfinite(flow).all(2)
    usable = known & finite
    n = int(known.sum())
    vectors = flow[usable]
    sizes = np.hypot(vectors[:, 0], vectors[:, 1])
    look = {
        "bad": 1 - usable.sum() / n if n else 0.0,
        "valid": n / (h * w),
        "largest": float(sizes.max(initial=0)),
        "beyond": float((sizes > np.hypot(h, w)).mean()) if len(sizes) else 0.0,
    }
    constant = len(vectors) > 1 and bool((np.ptp(vectors, axis=0) < 1e-6).all())
    whole = len(vectors) > 1 and not constant and bool((vectors == np.rint(vectors)).all())
    if first is None or second is None or not len(vectors):
        return FlowLook(**look, constant=constant, whole=whole, ratio=None)
    seen = usable if occluded is None else usable & ~np.asarray(occluded, bool)
    compare = _comparison(seen, first, second)
    ratio = compare(flow)
    better, better_ratio = "", 1.0
    if ratio is None or ratio > 0.9:
        with np.errstate(invalid="ignore", over="ignore"):
            others = {name: compare(read(flow, h, w)) for name, read in READINGS.items()}
        fits = {name: r for name, r in others.items() if r is not None}
        if fits:
            better = min(fits, key=lambda name: fits[name])
            better_ratio = fits[better]
    return FlowLook(
        **look,
        constant=constant,
        whole=whole,
        ratio=ratio,
        better=better,
        better_ratio=better_ratio,
    )


def _comparison(seen: Array, first: Array, second: Array) -> Callable[[Array], float | None]:
    """A function of a flow, [H, W, 2]: the frames' difference along it over that without it, at
    ``seen`` pixels that it moves within the image."""
    h, w = seen.shape
    # Slightly blurred: half a pixel's error on a sharp texture must not count as no match.
    one, two = (
        cv2.GaussianBlur(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (5, 5), 1.2).astype(np.float32)
        for f in (first, second)
    )
    step = max(1, int(np.sqrt(h * w / POINTS)))
    y, x = np.mgrid[step // 2 : h : step, step // 2 : w : step]
    chosen = seen[y, x]
    y, x = y[chosen], x[chosen]
    start = one[y, x]
    still = np.minimum(np.abs(two[y, x] - start), MOST)

    def compare(flow: Array) -> float | None:
        u, v = flow[y, x, 0], flow[y, x, 1]
        to_x, to_y = x + u, y + v
        inside = (to_x >= 0) & (to_x <= w - 1) & (to_y >= 0) & (to_y <= h - 1)
        moved = np.hypot(u, v) >= MOVES
        use = inside & moved
        # A reading that throws most of the image out of it fits nothing.
        if use.sum() < FEWEST or inside.mean() < 0.25 or not still[use].mean() >= 1:
            return None
        there = cv2.remap(
            two,
            to_x[use].astype(np.float32)[None],
            to_y[use].astype(np.float32)[None],
            cv2.INTER_LINEAR,
        )[0]
        along = np.minimum(np.abs(there - start[use]), MOST)
        return float(along.mean() / still[use].mean())

    return compare
