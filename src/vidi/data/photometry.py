"""Colours: what changes pixel values and moves nothing. Images are uint8 RGB, changed in place.

The order is fixed: brightness, contrast, saturation, hue and the channels' factors (one affine map
of RGB), gamma, the policy's other operations, noise, erasing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from vidi.data import draws
from vidi.data.augment import AUTOCONTRAST, EQUALIZE, POSTERIZE, SHARPNESS, SOLARIZE, Plan
from vidi.types import Array

GREY = np.array([0.299, 0.587, 0.114])
"""Luma of RGB (ITU-R BT.601), as Pillow's and OpenCV's grey."""
_YIQ = np.array([GREY, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_RGB = np.linalg.inv(_YIQ)
_GRAINS = 1 << 20
"""Numbers of the noise that all images take a part of."""
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def apply(plan: Plan, row: int, image: Array, fill: tuple[int, int, int]) -> None:
    """The plan's colours of that row, in place on the input image, uint8 [S, S, 3].

    ``fill``: the colour of what is erased.
    """
    _apply(plan, row, image, [image])
    _finish(plan, row, image, 0, fill)


def apply_pair(
    plan: Plan, row: int, first: Array, second: Array, fill: tuple[int, int, int]
) -> None:
    """The same on both frames of a pair, in place: equal pixels stay equal, since means and
    histograms are taken of both frames together. After that, the second frame's brightness,
    contrast and saturation change by ``plan.colour2``, if it is there, and each frame gets noise
    of its own."""
    both = np.concatenate([first, second])
    parts = [both[: len(first)], both[len(first) :]]
    _apply(plan, row, both, parts)
    if plan.colour2 is not None:
        twist(parts[1], *plan.colour2[row].tolist())
    for k, frame in enumerate(parts):
        _finish(plan, row, frame, k, fill)
    first[...], second[...] = parts


def _apply(plan: Plan, row: int, image: Array, frames: list[Array]) -> None:
    """``frames``: views of the image, which is one of them or a pair."""
    if plan.colour is not None or plan.channels is not None:
        own = (1.0, 1.0, 1.0, 0.0) if plan.colour is None else plan.colour[row].tolist()
        channels = (1.0, 1.0, 1.0) if plan.channels is None else plan.channels[row].tolist()
        brightness, contrast, saturation, hue = own
        twist(image, brightness, contrast, saturation, hue, channels)
    if plan.gamma is not None:
        gamma(image, float(plan.gamma[row]))
    if plan.ops is not None and plan.amounts is not None:
        for op, amount in zip(plan.ops[row].tolist(), plan.amounts[row].tolist(), strict=True):
            if op == SHARPNESS:
                for frame in frames:
                    sharpness(frame, amount)
            elif op == POSTERIZE:
                posterize(image, int(amount))
            elif op == SOLARIZE:
                solarize(image, amount)
            elif op == AUTOCONTRAST:
                autocontrast(image)
            elif op == EQUALIZE:
                equalize(image)


def _finish(plan: Plan, row: int, frame: Array, which: int, fill: tuple[int, int, int]) -> None:
    """Noise and erasing. ``which``: 0 = the first or only frame, 1 = the second."""
    if plan.noise is not None and plan.grain is not None:
        grain(frame, float(plan.noise[row]), float(plan.grain[row, which]))
    if plan.erased is not None:
        x0, y0, x1, y1 = plan.erased[row].tolist()
        frame[y0:y1, x0:x1] = fill


def twist(
    image: Array,
    brightness: float = 1.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
    channels: Sequence[float] = (1.0, 1.0, 1.0),
) -> None:
    """Brightness, contrast, saturation and each of the channels by a factor, hue by a turn (1 = the
    whole circle).

    Brightness multiplies; contrast moves away from the image's mean grey; saturation moves away
    from each pixel's grey; hue turns the chroma plane of YIQ, which leaves grey and luma alone
    (rather than HSV's hexagon, whose turn changes luma). All of it is one affine map of RGB, and
    only its result is clipped.
    """
    if brightness == contrast == saturation == 1 and hue == 0 and tuple(channels) == (1, 1, 1):
        return
    # What contrast and brightness leave of the image's mean grey, added to every channel.
    mean = float(GREY @ cv2.mean(image)[:3]) if contrast != 1 else 0.0
    matrix = np.empty((3, 4))
    matrix[:, :3] = saturation * np.eye(3) + (1 - saturation) * GREY
    if hue != 0:
        c, s = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
        matrix[:, :3] = _RGB @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ _YIQ @ matrix[:, :3]
    matrix[:, :3] *= brightness * contrast
    matrix[:, 3] = (1 - contrast) * brightness * mean
    matrix *= np.array(channels)[:, None]
    cv2.transform(image, matrix, dst=image)


def gamma(image: Array, exponent: float) -> None:
    """Values from 0 (black) to 1 (white) to this power."""
    if exponent != 1:
        levels = 255 * (np.arange(256) / 255) ** exponent
        cv2.LUT(image, np.rint(levels).astype(np.uint8), dst=image)


def grain(image: Array, deviation: float, which: float) -> None:
    """Gaussian noise, its deviation a share of white, rounded and clipped. ``which``, in [0, 1),
    chooses a part of one long list of normal numbers, as drawing new ones for each image takes
    longer than all else together."""
    if deviation > 0:
        # From the first half, so that even a large image takes no part twice at a short distance.
        part = _grains()[int(which * _GRAINS / 2) :]
        noise = np.resize(part, image.shape)
        cv2.addWeighted(image, 1, noise, 255 * deviation, 0, dst=image, dtype=cv2.CV_8U)


@functools.cache
def _grains() -> Array:
    """float32 [n], standard normal."""
    numbers = draws.normal(0, 0, np.zeros(1, np.int64), "grain", _GRAINS)
    return np.asarray(numbers[0], np.float32)


def sharpness(image: Array, factor: float) -> None:
    """Away from (or, below 1, towards) the image smoothed by Pillow's 3x3 kernel; the outermost
    pixels stay, as in Pillow."""
    if factor == 1 or min(image.shape[:2]) < 3:
        return
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    inner = np.s_[1:-1, 1:-1]
    image[inner] = cv2.addWeighted(image, factor, smooth, 1 - factor, 0)[inner]


def posterize(image: Array, kept: int) -> None:
    """Only the highest bits of each value are kept."""
    if kept < 8:
        np.bitwise_and(image, np.uint8(256 - (1 << (8 - kept))), out=image)


def solarize(image: Array, threshold: float) -> None:
    """Values at or above the threshold are inverted."""
    levels = np.arange(256)
    cv2.LUT(image, np.where(levels >= threshold, 255 - levels, levels).astype(np.uint8), dst=image)


def autocontrast(image: Array) -> None:
    """Each channel stretched to 0 .. 255; a constant one stays."""
    table = np.empty((1, 256, 3), np.uint8)
    for c in range(3):
        low, high = int(image[..., c].min()), int(image[..., c].max())
        levels = np.arange(256)
        scaled = (levels - low) * (255 / (high - low)) if high > low else levels
        table[0, :, c] = np.clip(scaled, 0, 255).astype(np.uint8)
    cv2.LUT(image, table, dst=image)


def equalize(image: Array) -> None:
    """Each channel's histogram made flat, as Pillow does it."""
    table = np.empty((1, 256, 3), np.uint8)
    for c in range(3):
        counts = cv2.calcHist([image], [c], None, [256], [0, 256]).ravel().astype(np.int64)
        filled = counts[counts > 0]
        step = (int(filled.sum()) - int(filled[-1])) // 255
        if step == 0:
            table[0, :, c] = np.arange(256)
        else:
            before = np.cumsum(counts) - counts
            table[0, :, c] = np.clip((step // 2 + before) // step, 0, 255)
    cv2.LUT(image, table, dst=image)


def mixup(image: Array, partner: Array, share: float) -> None:
    """``share`` of the image and the rest of its partner, rounded; in place."""
    cv2.addWeighted(image, share, partner, 1 - share, 0, dst=image)


def paste(image: Array, partner: Array, box: tuple[int, int, int, int]) -> None:
    """The partner's pixels within the box (xyxy); in place."""
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = partner[y0:y1, x0:x1]
