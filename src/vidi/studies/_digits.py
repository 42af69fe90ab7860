"""The embedded handwritten digits as matrices, split as ``vidi train digits`` splits them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

from vidi.data.splits import every_nth
from vidi.types import Array


@dataclass(frozen=True)
class Digits:
    """A row per image, 64 pixels from 0 to 1; labels from 0 to 9."""

    train: Array
    train_labels: Array
    test: Array
    test_labels: Array


def digits(limit: int | None = None) -> Digits:
    """``limit``: as many training images, at most; the test images are always all 359 or so."""
    pixels, labels = load_digits(return_X_y=True)
    train, test = every_nth(labels, 5)
    # They are sorted by writer; a short beginning should know all of them.
    train = np.random.default_rng(0).permutation(train)[:limit]
    return Digits(pixels[train] / 16, labels[train], pixels[test] / 16, labels[test])
