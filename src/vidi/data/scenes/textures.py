"""The scenes' surfaces: photographs that lie in scikit-image's package, and patterns.

Each is a pyramid of halved images, slightly blurred: a surface that is drawn smaller takes a
smaller one and does not flicker when it moves.
"""

from __future__ import annotations

import math
import os
from functools import cache
from importlib.util import find_spec

import cv2
import numpy as np

from vidi.data.draws import normal
from vidi.data.images import decode, read
from vidi.errors import InputError
from vidi.types import Array

PHOTOGRAPHS = (
    "astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png",
    "hubble_deep_field.jpg", "ihc.png", "camera.png", "brick.png", "grass.png", "gravel.png",
    "coins.png", "moon.png",
)  # fmt: skip
"""Those of scikit-image's that are part of the installed package: nothing is downloaded."""
GREY = 7
"""From this one on they are grey, and are coloured as the patterns are."""
PATTERNS = (
    "stripes", "bars", "checks", "dots", "rings", "waves", "marble", "speckles", "leopard",
    "clouds", "shade",
)  # fmt: skip
CALM = 2
"""So many of the last patterns may lie behind objects that are to be easy to see."""
SIDE = 256
"""Pixels of a pattern's side."""
SMALLEST = 8
"""No image of a pyramid has a shorter side than this (pixels)."""
BLUR = 0.65
"""Deviation of the blur, in pixels of the pyramid's image. Without it, finest detail would change
with each fraction of a pixel that a surface moves by, as it does not in a camera."""


@cache
def pyramid(number: int) -> tuple[Array, ...]:
    """A surface at full size, half of it, and so on: uint8 [h, w] or [h, w, 3].

    ``number``: a photograph, or, from ``len(PHOTOGRAPHS)`` on, a pattern.
    """
    n = len(PHOTOGRAPHS)
    top = _photograph(number) if number < n else _pattern(PATTERNS[number - n])
    levels = [top]
    while min(levels[-1].shape[:2]) >= 2 * SMALLEST:
        h, w = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (w // 2, h // 2), interpolation=cv2.INTER_AREA))
    blurred = tuple(cv2.GaussianBlur(level, (0, 0), BLUR) for level in levels)
    for level in blurred:
        level.setflags(write=False)
    return blurred


def size(number: int) -> tuple[int, int]:
    """Height and width of a surface at full size."""
    height, width = pyramid(number)[0].shape[:2]
    return height, width


def _photograph(number: int) -> Array:
    found = find_spec("skimage")
    folder = (found.submodule_search_locations or [""])[0] if found is not None else ""
    path = os.path.join(folder, "data", PHOTOGRAPHS[number])
    if not os.path.isfile(path):
        raise InputError(
            f"The scenes are drawn with the photographs inside scikit-image's package, and {path} "
            "is not there. Install scikit-image from its wheel."
        )
    pixels = decode(read(path), path)[0]
    return np.ascontiguousarray(pixels[:, :, 0]) if number >= GREY else pixels


def _pattern(name: str) -> Array:
    """Grey values that fill 0 to 255; the pattern's left and right, top and bottom fit."""
    y, x = np.mgrid[:SIDE, :SIDE] * (2 * math.pi / SIDE)
    soft = 3.0  # how many times steeper than a sine an edge is: sharp, yet without jags
    match name:
        case "stripes":
            v = np.sin(8 * x)
        case "bars":
            v = np.tanh(soft * np.sin(6 * x))
        case "checks":
            v = np.tanh(soft * np.sin(5 * x)) * np.tanh(soft * np.sin(5 * y))
        case "dots":
            v = np.tanh(soft * (np.cos(7 * x) + np.cos(7 * y) - 0.7))
        case "rings":
            v = np.tanh(soft * np.sin(14 * np.hypot(np.sin(x / 2), np.sin(y / 2))))
        case "waves":
            v = np.tanh(soft * np.sin(7 * x + 1.5 * np.sin(3 * y)))
        case "marble":
            v = np.sin(4 * x + 2 * y + 3 * _noise(2.0, "marble"))
        case "clouds":
            v = _noise(1.8, "clouds")
        case "speckles":
            v = _noise(0.9, "speckles")
        case "leopard":
            noise = _noise(2.2, "leopard", lowest=5)
            v = np.tanh(soft * (np.abs(noise) - 0.6))
        case _:
            v = np.sin(x) + np.sin(y)
    low, high = np.quantile(v, (0.005, 0.995))
    return np.asarray(np.clip((v - low) / (high - low) * 255, 0, 255).round().astype(np.uint8))


def _noise(fall: float, name: str, lowest: float = 1) -> Array:
    """Noise whose amplitudes fall as frequency to the power ``-fall``, of deviation 1; what has
    fewer than ``lowest`` waves a side is left out."""
    white = normal(0, 0, np.arange(SIDE), name, SIDE)
    f = np.fft.fftfreq(SIDE, 1 / SIDE)
    radius = np.hypot(f[:, None], f[None, :])
    gain = np.where(radius >= lowest, np.maximum(radius, 1) ** -fall, 0)
    shaped = np.fft.ifft2(np.fft.fft2(white) * gain).real
    return np.asarray(shaped / shaped.std())
