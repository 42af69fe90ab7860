"""A CSV (or TSV) with a row per box: path, xmin, ymin, xmax, ymax, label.

Further columns may be split, difficult and crowd (0 or 1). Boxes count from 0 and exclude their
ends: the first pixel alone is 0, 0, 1, 1. A row whose sides and label are empty is an image without
objects. Paths are relative to the table; a header names the columns, in any order.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vidi.data import export
from vidi.data.boxes import (
    BoxRows,
    area_notes,
    boxes_of,
    decimals,
    lost,
    number,
    plain,
    some,
    within,
)
from vidi.data.dataset import SPLITS, Dataset, PathTable
from vidi.data.formats import Fake
from vidi.data.formats.folders import split_of
from vidi.data.formats.table import (
    LABEL,
    PATH,
    SIDES,
    SPLIT,
    is_box_header,
    rows_of,
    sorted_names,
)
from vidi.errors import InputError
from vidi.types import Boxes, Notes, Sample

TASK = "detection"

HEADER = ("path", "xmin", "ymin", "xmax", "ymax", "label", "split", "difficult", "crowd")


def sniff(source: str) -> str | None:
    if not source.lower().endswith((".csv", ".tsv")) or not os.path.isfile(source):
        return None
    return "a table with a row per box, by its header" if is_box_header(source) else None


def read(source: str) -> Dataset:
    """Raises :class:`InputError`, with the line, for a row that lacks something, a side that is no
    finite number, a path that points nowhere or out of the folder, an image in two splits."""
    folder = os.path.dirname(os.path.abspath(source))
    rows = rows_of(source)
    columns = _columns(source, next(rows)[1])
    images: dict[str, _Image] = {}
    numbers: dict[str, int] = {}
    for line, row in rows:
        where = f"{source}, line {line}"
        if len(row) != columns.count:
            raise InputError(
                f"{where}: {len(row)} columns were found where the header names {columns.count}: "
                f"{','.join(row)!r}."
            )
        cells = [cell.strip() for cell in row]
        path, label = cells[columns.path], cells[columns.label]
        if not path:
            raise InputError(f"{where}: the path is empty.")
        path = within(path, where)
        split = "train" if columns.split is None else split_of(cells[columns.split])
        if split is None:
            raise InputError(
                f"{where}: {cells[columns.split or 0]!r} is no split; train, val or test is "
                "expected."
            )
        image = images.setdefault(path, _Image(split, line, []))
        if image.split != split:
            raise InputError(
                f"{where}: {path} is in {split} here and in {image.split} in line {image.line}. An "
                "image has one split; correct one of the rows."
            )
        sides = [cells[k] for k in columns.sides]
        if not label and not any(sides):
            continue
        if not label:
            raise InputError(f"{where}: the label is empty.")
        box = [number(side, name, where) for side, name in zip(sides, HEADER[1:5], strict=True)]
        difficult = _flag(cells, columns.difficult, where)
        crowd = _flag(cells, columns.crowd, where)
        image.boxes.append((box, numbers.setdefault(label, len(numbers)), difficult, crowd))
    if not images:
        raise InputError(f"{source} has a header and no rows.")
    nowhere = [
        f"line {image.line}: {path}"
        for path, image in images.items()
        if not os.path.isfile(os.path.join(folder, path))
    ]
    if nowhere:
        raise InputError(
            f"{source}: {len(nowhere):,} of its {len(images):,} images are not there, seen from "
            f"the folder of the table ({folder}): {some(nowhere)}. Correct or remove the rows."
        )
    if not numbers:
        raise InputError(f"{source} has no box in any row.")

    classes = sorted_names(set(numbers))
    table, boxes = PathTable(), BoxRows()
    table.extend(images)
    for image in images.values():
        for found in image.boxes:
            boxes.add(*found)
        boxes.end_image()
    truth = boxes.table(np.array([classes.index(name) for name in numbers], np.int64))
    files = table.images(folder)
    of_split = np.array([SPLITS.index(image.split) for image in images.values()])
    notes = [
        f"{source} is a table with a row per box; sides count pixels from 0 and exclude their ends."
    ]
    if columns.passed:
        notes.append(f"The columns {some(columns.passed)} were passed over.")
    empty = [path for path, image in images.items() if not image.boxes]
    if empty:
        notes.append(f"{len(empty):,} images have no object and are background: {some(empty)}.")
    return Dataset(
        root=os.path.abspath(source),
        format="boxes_table",
        task=TASK,
        classes=classes,
        images=files,
        labels=None,
        splits={s: np.flatnonzero(of_split == k) for k, s in enumerate(SPLITS) if k in of_split},
        notes=[*notes, *area_notes(truth, files)],
        truth=truth,
    )


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports boxes into boxes.csv, images into a folder per split. Raises :class:`InputError` for
    an image that cannot be read."""
    folder.mkdir(parents=True, exist_ok=True)
    names = export.names(dataset)
    used: set[int] = set()
    counts: Counter[str] = Counter()
    with (folder / "boxes.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for split, ids in dataset.splits.items():
            (folder / split).mkdir(exist_ok=True)
            for i in map(int, ids):
                name = os.path.basename(
                    export.save_image(dataset, i, str(folder / split / names[i]))
                )
                path = f"{split}/{name}"
                boxes, instances = boxes_of(dataset, i)
                counts["instances"] += instances is not None
                used |= set(boxes.labels.tolist())
                if not len(boxes):
                    table.writerow([path, "", "", "", "", "", split, "", ""])
                for k, sides in enumerate(decimals(boxes.xyxy)):
                    label = dataset.classes[int(boxes.labels[k])]
                    flags = (int(boxes.difficult[k]), int(boxes.crowd[k]))
                    table.writerow([path, *map(plain, sides), label, split, *flags])
    unused = [name for k, name in enumerate(dataset.classes) if k not in used]
    counts["unused"] = len(unused)
    counts["order"] = dataset.classes != sorted_names(set(dataset.classes))
    return lost(
        counts,
        {
            "instances": "images lost the masks of their objects: a table has boxes only.",
            "unused": f"classes have no box and are lost: {some(unused)}.",
            "order": "order of classes was lost: a table's are sorted by name.",
        },
    )


def fake(folder: Path) -> Fake:
    """Four images in three splits; one without objects, one box difficult, one a crowd."""
    rng = np.random.default_rng(6)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = ["label,xmin,ymin,xmax,ymax,filename,split,crowd,difficult"]
    found: list[list[tuple[Any, ...]]] = [
        [("cat", 0, 0, 1, 1, 0, 0), ('"ant, red"', 2.5, 1, 7, 6, 1, 0)],
        [],
        [("cat", 1, 1, 8, 5, 0, 1)],
        [('"ant, red"', 3, 3, 5, 6, 0, 0)],
    ]
    splits: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for i, objects in enumerate(found):
        split = ("train", "train", "val", "test")[i]
        image = rng.integers(0, 256, (7, 8 + i, 3), dtype=np.uint8)
        key = f"pictures/{i}.png"
        (folder / key).write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
        rows += [
            f"{name},{a},{b},{c},{d},{key},{split},{crowd},{hard}"
            for name, a, b, c, d, crowd, hard in objects
        ]
        rows += [] if objects else [f",,,,,{key},{split},,"]
        boxes = Boxes(
            xyxy=np.array([o[1:5] for o in objects], np.float32).reshape(-1, 4),
            labels=np.array([o[0] == "cat" for o in objects], np.int64),
            difficult=np.array([o[6] for o in objects], bool),
            crowd=np.array([o[5] for o in objects], bool),
        )
        splits[split].append(Sample(key=key, image=image, boxes=boxes))
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    return Fake(str(folder / "boxes.csv"), ("ant, red", "cat"), splits)


@dataclass
class _Image:
    split: str
    line: int
    boxes: list[tuple[list[float], int, bool, bool]]


@dataclass(frozen=True)
class _Columns:
    path: int
    label: int
    sides: list[int]
    split: int | None
    difficult: int | None
    crowd: int | None
    count: int
    passed: list[str]


def _columns(source: str, first: list[str]) -> _Columns:
    cells = [cell.strip().lower() for cell in first]
    named = (PATH, LABEL, *SIDES, SPLIT, ("difficult",), ("crowd", "iscrowd"))
    twice = [cell for cell, count in Counter(cells).items() if count > 1]
    if twice:
        raise InputError(f"{source}, line 1: the header names {some(twice)} twice.")
    at = [next((cells.index(n) for n in known if n in cells), None) for known in named]
    path, label, x0, y0, x1, y1 = at[:6]
    if path is None or label is None:
        raise InputError(
            f"{source}, line 1: {','.join(first)!r} names no column of "
            f"{'paths' if path is None else 'labels'} "
            f"({', '.join(PATH if path is None else LABEL)}). Name it in the header."
        )
    sides = [side for side in (x0, y0, x1, y1) if side is not None]
    assert len(sides) == 4
    passed = [cell for k, cell in enumerate(cells) if k not in at]
    return _Columns(path, label, sides, at[6], at[7], at[8], len(cells), passed)


def _flag(cells: list[str], column: int | None, where: str) -> bool:
    text = "" if column is None else cells[column]
    if text not in ("", "0", "1"):
        raise InputError(f"{where}: {text!r} where 0 or 1 is expected.")
    return text == "1"
