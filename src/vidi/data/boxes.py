"""What all formats of boxes share: collecting boxes, checking paths, writing numbers exactly."""

from __future__ import annotations

import posixpath
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal

import numpy as np

from vidi.data.dataset import Dataset, FileImages
from vidi.data.truth import BoxTable
from vidi.errors import InputError
from vidi.types import Array, Boxes, Notes

MOST_SHOWN = 10
MOST_PIXELS = 1e9
"""No image is that large; a number beyond it is no coordinate."""


class BoxRows:
    """Collects the boxes of one image after the other, without a Python object per box."""

    def __init__(self) -> None:
        self._xyxy = array("d")
        self._labels = array("q")
        self._difficult = bytearray()
        self._crowd = bytearray()
        self._offsets = array("q", [0])

    def __len__(self) -> int:
        return len(self._labels)

    def add(
        self, xyxy: Sequence[float], label: int, difficult: bool = False, crowd: bool = False
    ) -> None:
        assert len(xyxy) == 4
        self._xyxy.extend(xyxy)
        self._labels.append(label)
        self._difficult.append(difficult)
        self._crowd.append(crowd)

    def end_image(self) -> None:
        self._offsets.append(len(self._labels))

    def numbers(self) -> Array:
        """float64 [M, 4]: the boxes as they were added."""
        return np.array(self._xyxy, np.float64).reshape(-1, 4)

    def table(self, order: Array | None = None) -> BoxTable:
        """``order``: int64 [K], the final number of each label that was added."""
        labels = np.array(self._labels, np.int64)
        return BoxTable(
            self.numbers(),
            labels if order is None or not len(labels) else order[labels],
            np.frombuffer(bytes(self._difficult), np.uint8),
            np.frombuffer(bytes(self._crowd), np.uint8),
            np.array(self._offsets, np.int64),
        )


class SizedImages(FileImages):
    """Image files whose annotation says their size: a file of another size is refused when it is
    looked at. ``sizes``: int [N, 2], height and width; 0 where nothing is said."""

    def __init__(self, files: FileImages, sizes: Array, says: str) -> None:
        super().__init__(files.root, files._blob, files._offsets)
        self._sizes = sizes
        self._says = says

    def size(self, i: int) -> tuple[int, int]:
        return self._checked(i, super().size(i))

    def load(self, i: int, shorter: int | None) -> tuple[Array, tuple[int, int]]:
        image, size = super().load(i, shorter)
        return image, self._checked(i, size)

    def _checked(self, i: int, size: tuple[int, int]) -> tuple[int, int]:
        height, width = self._sizes[i].tolist()
        if height and width and (height, width) != size:
            turned = (
                " Its sides are exchanged: it may have been turned since, or carry an EXIF "
                "orientation that the annotation ignores."
                if (width, height) == size
                else ""
            )
            raise InputError(
                f"{self.path(i)} is {size[1]} × {size[0]} pixels, and its annotation "
                f"({self._says}) is for {width} × {height}.{turned} Put the image there that was "
                "annotated, or correct the annotation."
            )
        return size


def number(value: object, what: str, where: str) -> float:
    """A coordinate, given as text or as a number. Raises :class:`InputError` where it is none, or
    not finite."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if isinstance(value, bool) or not abs(found) < MOST_PIXELS:
        raise InputError(f"{where}: {what} is {value!r}; a finite number is expected. Correct it.")
    return found


def within(path: str, where: str) -> str:
    """A path that an annotation gives, with "/" and without "." and "..".

    Raises :class:`InputError` where it is absolute or climbs out of the folder.
    """
    clean = posixpath.normpath(path.strip().replace("\\", "/"))
    if clean.startswith(("/", "../")) or clean in ("..", ".") or re.match(r"[A-Za-z]:", clean):
        raise InputError(
            f"{where}: the path {path!r} does not lie in the dataset's folder. Write it relative "
            "to that, without climbing out of it."
        )
    if "\0" in clean:
        raise InputError(f"{where}: the path {path!r} holds a zero character. Correct it.")
    return clean


def area_notes(boxes: BoxTable, images: FileImages) -> Notes:
    """Which boxes have no area, or an inverted one."""
    flat = np.any(boxes.xyxy[:, 2:] <= boxes.xyxy[:, :2], axis=1)
    found = np.flatnonzero(flat)
    if not len(found):
        return []
    owner = np.searchsorted(boxes.offsets, found[:MOST_SHOWN], side="right") - 1
    shown = [
        f"{images.key(int(i))} ({', '.join(f'{v:g}' for v in boxes.xyxy[m])})"
        for i, m in zip(owner, found, strict=False)
    ]
    return [no_area(len(found), len(flat), shown)]


def no_area(count: int, of: int, shown: Iterable[str]) -> str:
    where = some(shown, count)
    return f"{count:,} of {of:,} boxes have no area and stay as they were read: {where}."


def some(names: Iterable[str], count: int | None = None) -> str:
    """The first ten names, and how many more there are."""
    listed = list(names)
    more = (len(listed) if count is None else count) - MOST_SHOWN
    return "; ".join(listed[:MOST_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def sorted_classes(names: Iterable[str]) -> tuple[tuple[str, ...], Array]:
    """Names in their order of appearance to (classes sorted by name, each one's new number)."""
    listed = list(names)
    classes = tuple(sorted(listed))
    number = {name: k for k, name in enumerate(classes)}
    return classes, np.array([number[name] for name in listed], np.int64)


def decimals(xyxy: Array) -> list[list[Decimal]]:
    """float32 [N, 4] as the shortest decimal numbers that are read back the same, so that sums and
    differences of them can be written exactly."""
    return [[Decimal(str(value)) for value in row] for row in xyxy.astype(np.float32)]


def plain(number: Decimal) -> str:
    """12 rather than 12.0, and never with an exponent."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") or "0" if "." in text else text


def boxes_of(dataset: Dataset, i: int) -> tuple[Boxes, Array | None]:
    """The boxes of sample ``i`` and its map of instances."""
    fields = dataset.annotations(i)
    boxes: Boxes = fields["boxes"]
    if not np.isfinite(boxes.xyxy).all():
        raise InputError(f"{dataset.images.key(i)}: a box's coordinates are not finite numbers.")
    return boxes, fields.get("instances")


def lost(counts: Counter[str], total: dict[str, str]) -> Notes:
    """Sentences for what a format cannot hold: ``total`` maps a kind to its sentence's end."""
    return [f"{counts[kind]:,} {rest}" for kind, rest in total.items() if counts[kind]]
