"""What a look at a thousand training images tells: colours, sizes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidi.data.dataset import Images
from vidi.errors import InputError
from vidi.types import Array, Normalisation

LOOK = 1000
SHORTER = 256
"""Large images are looked at shrunk to this shorter side (pixels): their colours are the same."""


@dataclass(frozen=True)
class Survey:
    """``sides``: int64 [n, 2], original heights and widths of the images looked at."""

    normalisation: Normalisation
    grey: bool
    sides: Array

    @property
    def shorter(self) -> int:
        """The median shorter side."""
        return int(np.median(self.sides.min(1)))

    @property
    def longest(self) -> int:
        return int(self.sides.max())


def survey(images: Images, ids: Array) -> Survey:
    """Look at up to 1000 evenly spaced images: the same ones in every process and on every day.

    The normalisation is each channel's mean and deviation over all pixels looked at, each image
    weighing the same, to four decimals. Images that cannot be read are passed over here; the
    check of the images speaks of them.
    """
    chosen = _some(ids)
    with ThreadPoolExecutor(thread_name_prefix="vidi-survey") as pool:
        found = [f for f in pool.map(lambda i: _look(images, int(i)), chosen) if f is not None]
    if not found:
        raise InputError(
            f"None of the {len(chosen)} training images that were looked at can be read."
        )
    mean = np.mean([f.mean for f in found], 0)
    # A constant data set has no deviation to divide by.
    std = np.sqrt(np.maximum(np.mean([f.square for f in found], 0) - mean**2, 1e-4))
    r, g, b = (round(float(v), 4) for v in mean)
    sr, sg, sb = (round(float(v), 4) for v in std)
    return Survey(
        Normalisation((r, g, b), (sr, sg, sb)),
        all(f.grey for f in found),
        np.array([f.side for f in found], np.int64),
    )


def class_pixels(truth: Callable[[int], dict[str, Any]], ids: Array, classes: int) -> Array:
    """int64 [K]: the pixels of each class in up to 1000 evenly spaced masks.

    ``truth``: what is annotated of a sample. Masks that cannot be read are passed over here.
    """

    def counted(i: int) -> Array:
        try:
            mask: Array = truth(i)["mask"]
        except InputError:
            return np.zeros(classes, np.int64)
        # The last number is that of ignored pixels, or none has it.
        return np.bincount(mask.ravel(), minlength=classes)[:classes]

    with ThreadPoolExecutor(thread_name_prefix="vidi-survey") as pool:
        return np.asarray(np.stack(list(pool.map(counted, _some(ids).tolist()))).sum(0))


def _some(ids: Array) -> Array:
    return ids[np.linspace(0, len(ids) - 1, min(LOOK, len(ids))).round().astype(np.int64)]


@dataclass(frozen=True)
class _Look:
    """One image's mean and mean square per channel, in [0, 1]; height and width."""

    mean: Array
    square: Array
    side: tuple[int, int]
    grey: bool


def _look(images: Images, i: int) -> _Look | None:
    try:
        image, side = images.load(i, SHORTER)
    except InputError:
        return None
    pixels = image.reshape(-1, 3)
    # Second moments of uint8 by table: exact in integers, and an eighth of the floats' time.
    counts = np.stack([np.bincount(pixels[:, c], minlength=256) for c in range(3)])
    levels = np.arange(256) / 255
    grey = bool((pixels[:, :1] == pixels[:, 1:]).all())
    return _Look(counts @ levels / len(pixels), counts @ levels**2 / len(pixels), side, grey)
