"""YOLO's boxes: a text file per image, its classes and splits by a data.yaml or by folders.

A row is the class's number and the box's centre x, centre y, width and height as shares of the
image's sides. A row of a class and three or more points is an outline: its bounding box is taken,
and that is said. An image without a file, or with an empty one, is background.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vidi.data import export
from vidi.data.boxes import BoxRows, boxes_of, lost, no_area, some
from vidi.data.dataset import Dataset, FileImages, PathTable
from vidi.data.formats import Fake
from vidi.data.truth import BoxTable
from vidi.data.yolo_layout import (
    NAME_FILES,
    Layout,
    claims,
    files_below,
    find_layout,
    images_of,
    label_path,
    text_of,
)
from vidi.errors import InputError
from vidi.types import Array, Boxes, Notes, Sample

TASK = "detection"

FAR = 1.0
"""How far outside of the image, in shares of its sides, a number is still taken for one."""


def sniff(source: str) -> str | None:
    return claims(source)


def read(source: str) -> Dataset:
    """Raises :class:`InputError`, with the line, for a row that is no box, an unknown class and a
    number that is no share; for labels without an image and for an image in two splits."""
    layout = find_layout(source)
    table = PathTable()
    rows = BoxRows()
    splits: dict[str, Array] = {}
    seen: dict[str, str] = {}
    background: list[str] = []
    flat: list[str] = []
    outlines = unlabelled = 0
    for split in layout.sources:
        images = images_of(layout, split)
        start = len(table)
        for image in images:
            if image in seen:
                raise InputError(
                    f"{source}: {image} is in {seen[image]} and in {split}. An image has one "
                    "split; remove it from one of them."
                )
            seen[image] = split
            path = label_path(image)
            before = len(rows)
            if os.path.isfile(os.path.join(layout.folder, path)):
                outlines += _add_rows(layout, path, rows, flat)
            else:
                unlabelled += 1
            rows.end_image()
            if len(rows) == before:
                background.append(image)
        table.extend(images)
        splits[split] = np.arange(start, len(table))
    _check_labels(source, layout, seen)
    if not len(table):
        raise InputError(f"{source} is {layout.reason}, and there is no image in it.")
    shares = rows.table()
    notes = [f"{source} is {layout.reason}.", *layout.notes]
    if background:
        notes.append(
            f"{len(background):,} images have no object and are background ({unlabelled:,} of them "
            f"without a label file): {some(background)}."
        )
    if outlines:
        notes.append(f"{outlines:,} rows are outlines; their bounding boxes were taken.")
    if flat:
        notes.append(no_area(len(flat), len(rows), flat))
    names = layout.names
    if names is None:
        names = [str(k) for k in range(int(shares.labels.max(initial=-1)) + 1)]
        notes.append("No file names the classes; they are called by their numbers.")
    if not names:
        raise InputError(f"{source} has no box, and no file that names classes.")
    files = table.images(layout.folder)
    return Dataset(
        root=os.path.abspath(source),
        format="yolo",
        task=TASK,
        classes=tuple(names),
        images=files,
        labels=None,
        splits=splits,
        notes=notes,
        truth=_Shares(rows.numbers(), shares, files),
    )


class _Shares:
    """Boxes as shares of the sides of images, whose sizes are read when they are asked for."""

    def __init__(self, shares: Array, table: BoxTable, images: FileImages) -> None:
        self._shares = shares
        self._table = table
        self._images = images

    def fields(self, i: int) -> dict[str, Any]:
        boxes = self._table.boxes(i)
        height, width = self._images.size(i)
        shares = self._shares[self._table.offsets[i] : self._table.offsets[i + 1]]
        centre, half = shares[:, :2], shares[:, 2:] / 2
        xyxy = np.concatenate([centre - half, centre + half], axis=1)
        xyxy *= [width, height, width, height]
        return {
            "boxes": Boxes(
                xyxy=xyxy.astype(np.float32),
                labels=boxes.labels,
                difficult=boxes.difficult,
                crowd=boxes.crowd,
            )
        }

    def digest(self) -> bytes:
        shares = np.ascontiguousarray(self._shares)
        return hashlib.blake2b(self._table.digest() + shares.tobytes(), digest_size=16).digest()


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports boxes; crowds are left out. Raises :class:`InputError` for an image that cannot be
    read."""
    names = export.names(dataset)
    counts: Counter[str] = Counter()
    for split, ids in dataset.splits.items():
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True, exist_ok=True)
        for i in map(int, ids):
            export.save_image(dataset, i, str(folder / "images" / split / names[i]))
            boxes, instances = boxes_of(dataset, i)
            height, width = dataset.images.size(i)
            counts["instances"] += instances is not None
            counts["difficult"] += int((boxes.difficult & ~boxes.crowd).sum())
            counts["crowd"] += int(boxes.crowd.sum())
            lines = [
                " ".join([str(label), *map(str, _shares(box, height, width))]) + "\n"
                for box, label, crowd in zip(
                    boxes.xyxy.tolist(), boxes.labels.tolist(), boxes.crowd, strict=True
                )
                if not crowd
            ]
            path = folder / "labels" / split / f"{names[i]}.txt"
            path.write_text("".join(lines), encoding="utf-8")
    listed = [f"{split}: images/{split}" for split in dataset.splits]
    # A name in JSON's quotes is one in YAML's.
    quoted = [json.dumps(name, ensure_ascii=False) for name in dataset.classes]
    lines = ["path: .", *listed, "names:", *(f"  {k}: {name}" for k, name in enumerate(quoted))]
    (folder / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lost(
        counts,
        {
            "crowd": "crowds were left out: YOLO's rows would make each a single object.",
            "difficult": "difficult objects became ordinary ones.",
            "instances": "images lost the masks of their objects: these rows are boxes only.",
        },
    )


def fake(folder: Path) -> Fake:
    """Three splits by a data.yaml; an image with an empty label file and one without any."""
    rng = np.random.default_rng(7)
    rows = [["1 0.5 0.5 1 1", "0 0.25 0.25 0.5 0.25"], [], None, ["0 0.5 0.625 0.25 0.25"]]
    found: list[list[list[float]]] = [[[0, 0, 16, 8], [0, 1, 8, 3]], [], [], [[6, 4, 10, 6]]]
    labels = [[1, 0], [], [], [0]]
    splits: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for i, lines in enumerate(rows):
        split = ("train", "train", "val", "test")[i]
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
        key = f"images/{split}/{i}.png"
        (folder / key).write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
        if lines is not None:
            (folder / f"labels/{split}/{i}.txt").write_text("\n".join(lines))
        n = len(labels[i])
        boxes = Boxes(
            xyxy=np.array(found[i], np.float32).reshape(-1, 4),
            labels=np.array(labels[i], np.int64),
            difficult=np.zeros(n, bool),
            crowd=np.zeros(n, bool),
        )
        splits[split].append(Sample(key=key, image=image, boxes=boxes))
    (folder / "data.yaml").write_text(
        "# made by hand\npath: .\ntrain: images/train\nval: images/val  # for choosing\n"
        "test: images/test\n\nnc: 2\nnames: ['the ant', bee]\ndownload: |\n  a: text\n"
    )
    return Fake(str(folder), ("the ant", "bee"), splits)


def _add_rows(layout: Layout, path: str, rows: BoxRows, flat: list[str]) -> int:
    """Add a label file's boxes; gives how many of them were outlines."""
    outlines = 0
    full = os.path.join(layout.folder, path)
    for line, text in enumerate(text_of(full).splitlines(), 1):
        words = text.split()
        if not words:
            continue
        where = f"{full}, line {line}"
        if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
            raise InputError(
                f"{where}: {len(words)} numbers were found; a class and 4 numbers of a box (or an "
                f"outline of 3 or more points) are expected: {text[:80]!r}."
            )
        numbers = [_share(word, where) for word in words[1:]]
        if len(words) > 5:
            outlines += 1
            x, y = numbers[::2], numbers[1::2]
            low, high = (min(x), min(y)), (max(x), max(y))
            centre = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
            numbers = [*centre, *(b - a for a, b in zip(low, high, strict=True))]
        if min(numbers[2:]) <= 0:
            flat.append(f"{path}, line {line} ({' '.join(words)})")
        rows.add(numbers, _class(words[0], layout.names, where))
    return outlines


def _share(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {word!r} is no finite number. Correct it.")
    if not -FAR <= value <= 1 + FAR:
        raise InputError(
            f"{where}: {word} is no share of the image's side (0 to 1). If these are pixels, "
            "divide by the image's width and height."
        )
    return value


def _class(word: str, names: list[str] | None, where: str) -> int:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    most = 1e6 if names is None else len(names)
    if not (0 <= value < most and value == int(value)):
        known = "0, 1, 2 …" if names is None else f"0 to {len(names) - 1}"
        raise InputError(
            f"{where}: the class is {word}; a whole number ({known}) is expected. Correct it, or "
            "name the class in data.yaml."
        )
    return int(value)


def _shares(box: list[float], height: int, width: int) -> list[float]:
    """Centre and size as shares, in double precision, which brings the box back to the bit."""
    x0, y0, x1, y1 = box
    return [
        (x0 + x1) / 2 / width,
        (y0 + y1) / 2 / height,
        (x1 - x0) / width,
        (y1 - y0) / height,
    ]


def _check_labels(source: str, layout: Layout, images: dict[str, str]) -> None:
    """Label files whose image is not there."""
    known = {label_path(image) for image in images}
    folders = {
        label_path(f"{place}/x.jpg")[: -len("x.txt")]
        for places in layout.sources.values()
        for place in places
        if os.path.isdir(os.path.join(layout.folder, place))
    }
    orphans = [
        path
        for folder in sorted(folders)
        if os.path.isdir(os.path.join(layout.folder, folder))
        for path in files_below(layout.folder, folder)
        if path.endswith(".txt") and path not in known and os.path.basename(path) not in NAME_FILES
    ]
    if orphans:
        raise InputError(
            f"{source}: {len(orphans):,} label files have no image of their name: {some(orphans)}. "
            "Add the images, or remove the files."
        )
