"""The embedded handwritten digits: 1,797 grey images of 8 × 8 pixels, ten classes.

They come with scikit-learn: the test set of the UCI machine learning repository's "Optical
Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vidi.data.dataset import ArrayImages, Dataset
from vidi.data.formats import Fake
from vidi.data.splits import every_nth
from vidi.types import Array, Sample

NAME = "digits"
CLASSES = tuple(str(digit) for digit in range(10))

TASK = "classification"


def sniff(source: str) -> str | None:
    return "digits is the name of embedded data" if source == NAME else None


def read(source: str) -> Dataset:
    """Every fifth image of each class is for testing, always the same ones."""
    pixels, labels = _load()
    train, test = every_nth(labels, 5)
    return Dataset(
        root=NAME,
        format="digits",
        task="classification",
        classes=CLASSES,
        images=ArrayImages(pixels, {"digits": len(pixels)}),
        labels=labels,
        splits={"train": train, "test": test},
        notes=[
            "digits is embedded: 1,797 handwritten digits of 8 × 8 pixels. Every fifth of each "
            "class is for testing."
        ],
    )


def fake(folder: Path) -> Fake:
    """Nothing is written: the real ones are at hand."""
    pixels, labels = _load()
    train, test = every_nth(labels, 5)
    samples = [
        Sample(
            key=f"digits/{i:06d}",
            image=np.repeat(pixels[i][:, :, None], 3, 2),
            label=int(labels[i]),
        )
        for i in range(len(labels))
    ]
    return Fake(
        NAME, CLASSES, {"train": [samples[i] for i in train], "test": [samples[i] for i in test]}
    )


def _load() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits  # takes a second to import

    found = load_digits()
    # Brightness is counted from 0 to 16.
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    return pixels, found.target.astype(np.int64)
