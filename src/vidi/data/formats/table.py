"""A CSV (or TSV) of path and label: one row per image, with a column for the split or not.

Paths are relative to the table. A header names the columns (path, label, split, or usual synonyms);
without one, the first is the path, the second the label, a third the split.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vidi.data.dataset import SPLITS, Dataset, PathTable
from vidi.data.formats import Fake
from vidi.data.formats.folders import is_image, split_of
from vidi.data.images import unreadable
from vidi.errors import InputError
from vidi.types import Sample

PATH = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path")
LABEL = ("label", "class", "class_name", "category", "target")
SPLIT = ("split", "set", "subset", "partition")
SIDES = (
    ("xmin", "x_min", "x1", "left"),
    ("ymin", "y_min", "y1", "top"),
    ("xmax", "x_max", "x2", "right"),
    ("ymax", "y_max", "y2", "bottom"),
)
"""A table whose header names these has a box a row; see :mod:`vidi.data.formats.boxes_table`."""
MOST_SHOWN = 20

TASK = "classification"


def sniff(source: str) -> str | None:
    if not source.lower().endswith((".csv", ".tsv")) or not os.path.isfile(source):
        return None
    if is_box_header(source):
        return None
    return "a table of path and label, by its name"


def is_box_header(source: str) -> bool:
    """Whether the table's first line names the four sides of a box."""
    try:
        with open(source, encoding="utf-8-sig") as file:
            cells = re.split("[,;\t]", file.readline(1 << 16).lower())
    except (OSError, UnicodeDecodeError):  # reading it will say why
        return False
    named = {cell.strip(' "\n') for cell in cells}
    return all(named.intersection(names) for names in SIDES)


def read(source: str) -> Dataset:
    """Raises :class:`InputError`, with line numbers, for a table without path and label, a row that
    lacks one, a path that points nowhere, and one path with two labels."""
    folder = os.path.dirname(os.path.abspath(source))
    rows = rows_of(source)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{source} is empty; a table of path and label is expected.")
    columns, is_header = _columns(source, first[1])
    if not is_header:
        rows = rows_of(source)

    paths: list[str] = []
    names: list[str] = []
    splits: list[int] = []
    lines: list[int] = []
    seen: dict[str, int] = {}
    repeated = 0
    nowhere: list[str] = []
    for line, row in rows:
        if len(row) <= columns.last:
            raise InputError(
                f"{source}, line {line}: {len(row)} columns were found where at least "
                f"{columns.last + 1} are expected: {','.join(row)!r}."
            )
        path, label = row[columns.path].strip().replace("\\", "/"), row[columns.label].strip()
        if not path or not label:
            raise InputError(f"{source}, line {line}: the {'label' if path else 'path'} is empty.")
        split = "train" if columns.split is None else split_of(row[columns.split])
        if split is None:
            raise InputError(
                f"{source}, line {line}: {row[columns.split or 0]!r} is no split; train, val or "
                "test is expected."
            )
        before = seen.setdefault(path, len(paths))
        if before < len(paths):
            if (names[before], splits[before]) != (label, SPLITS.index(split)):
                raise InputError(
                    f"{source}: {path} stands in line {lines[before]} as {names[before]} "
                    f"({SPLITS[splits[before]]}) and in line {line} as {label} ({split}). An image "
                    "has one class and one split; remove one of the rows."
                )
            repeated += 1
            continue
        if not os.path.isfile(os.path.join(folder, path)):
            nowhere.append(f"line {line}: {path}")
        paths.append(path)
        names.append(label)
        splits.append(SPLITS.index(split))
        lines.append(line)
    if nowhere:
        shown = "; ".join(nowhere[:MOST_SHOWN]) + (" …" if len(nowhere) > MOST_SHOWN else "")
        raise InputError(
            f"{source}: {len(nowhere):,} of {len(paths):,} rows point to no file, seen from the "
            f"folder of the table ({folder}): {shown}. Correct or remove them."
        )
    if not paths:
        raise InputError(f"{source} has a header and no rows.")

    classes = sorted_names(set(names))
    number = {name: k for k, name in enumerate(classes)}
    of_split = np.array(splits, np.int64)
    table = PathTable()
    table.extend(paths)
    notes = [f"{source} is a table of path and label; {columns.told}."]
    if repeated:
        notes.append(f"{repeated:,} rows repeat another and count once.")
    return Dataset(
        root=os.path.abspath(source),
        format="table",
        task="classification",
        classes=classes,
        images=table.images(folder),
        labels=np.array([number[name] for name in names], np.int64),
        splits={s: np.flatnonzero(of_split == k) for k, s in enumerate(SPLITS) if k in splits},
        notes=notes,
    )


def fake(folder: Path) -> Fake:
    """A table with a header and the three splits, the images (PNG) in a folder beside it."""
    rng = np.random.default_rng(1)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    rows = ["path,label,split"]
    for i in range(12):
        split = ("train", "train", "val", "test")[i % 4]
        label = i // 4 % 2
        image = rng.integers(0, 256, (9, 8 + i, 3), dtype=np.uint8)
        key = f"pictures/{i}.png"
        (folder / key).write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
        splits[split].append(Sample(key=key, image=image, label=label))
        rows.append(f"{key},{('hot, dry', 'wet')[label]},{split}".replace("hot, dry", '"hot, dry"'))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return Fake(str(folder / "labels.csv"), ("hot, dry", "wet"), splits)


@dataclass(frozen=True)
class _Columns:
    path: int
    label: int
    split: int | None
    told: str

    @property
    def last(self) -> int:
        return max(self.path, self.label, self.split or 0)


def rows_of(source: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells), blank lines left out."""
    try:
        with open(source, newline="", encoding="utf-8-sig") as file:
            start = file.readline()
            file.seek(0)
            # The separator that the first line has most of; a comma where it has none.
            separator = max(",;\t", key=start.count)
            reader = csv.reader(file, delimiter=separator, strict=True)
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
    except OSError as error:
        raise InputError(unreadable(source, error)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not text in UTF-8 ({error}). Save it as such.") from error
    except csv.Error as error:
        raise InputError(f"{source}, line {reader.line_num}: {error}.") from error


def _columns(source: str, first: list[str]) -> tuple[_Columns, bool]:
    """Which column is what, and whether the first row said so."""
    cells = [cell.strip().lower() for cell in first]
    path, label, split = (
        next((cells.index(name) for name in known if name in cells), None)
        for known in (PATH, LABEL, SPLIT)
    )
    if path is not None and label is not None:
        told = f"its header names the columns {first[path].strip()} and {first[label].strip()}"
        told += f", and {first[split].strip()} for the split" if split is not None else ""
        return _Columns(path, label, split, told), True
    if len(cells) >= 2 and is_image(cells[0]):
        has_split = len(cells) > 2 and split_of(cells[2]) is not None
        told = "without a header, so the first column is the path and the second the label"
        told += ", the third the split" if has_split else ""
        return _Columns(0, 1, 2 if has_split else None, told), False
    raise InputError(
        f"{source}, line 1: {','.join(first)!r} names no column of paths ({', '.join(PATH)}) and "
        f"one of labels ({', '.join(LABEL)}), and does not begin with an image's path. Write a "
        "header: path,label."
    )


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """In the order of the numbers where all are numbers: 2 before 10."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
