"""A CSV (or TSV) of path and label: one row per image, with a column for the split or not.

Paths are relative to the table. A header names the columns (path, label, split, or usual synonyms);
without one, the first is the path, the second the label, a third the split.

An image may have several labels if the header says so: by a column called labels or tags, whose
cells name any number of classes (separated by the first of | ; , that occurs in the column, else by
blanks; rows of one path add up), or by a column per class that holds 0 or 1.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vidi.data import export
from vidi.data.boxes import lost, some, within
from vidi.data.dataset import SPLITS, Dataset, PathTable
from vidi.data.formats import Fake
from vidi.data.formats.folders import is_image, split_of
from vidi.data.images import unreadable
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample

PATH = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path")
LABEL = ("label", "class", "class_name", "category", "target")
LABELS = ("labels", "tags")
SPLIT = ("split", "set", "subset", "partition")
MASK = ("mask", "mask_path", "mask_file", "mask_filename", "mask_file_name", "segmentation_mask")
"""A table whose header names these, and no label, is of masks; see
:mod:`vidi.data.formats.masks_table`."""
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
    if is_box_header(source) or is_mask_header(source):
        return None
    return "a table of path and label, by its name"


def is_box_header(source: str) -> bool:
    """Whether the table's first line names the four sides of a box."""
    named = _named(source)
    return all(named.intersection(names) for names in SIDES)


def is_mask_header(source: str) -> bool:
    """Whether the table's first line names a column of masks, and none of labels."""
    named = _named(source)
    return bool(named & {*MASK}) and not named & {*LABEL, *LABELS}


def _named(source: str) -> set[str]:
    try:
        with open(source, encoding="utf-8-sig") as file:
            cells = re.split("[,;\t]", file.readline(1 << 16).lower())
    except (OSError, UnicodeDecodeError):  # reading it will say why
        return set()
    return {cell.strip(' "\n') for cell in cells}


def read(source: str) -> Dataset:
    """Raises :class:`InputError`, with line numbers, for a table without path and label, a row that
    lacks one, a path that points nowhere or out of the table's folder, one path with two splits or,
    where an image has one, with two labels."""
    folder = os.path.dirname(os.path.abspath(source))
    rows = rows_of(source)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{source} is empty; a table of path and label is expected.")
    columns = _columns(source, first[1], next(rows, (0, []))[1])
    rows = rows_of(source)
    if columns.has_header:
        next(rows)

    found: dict[str, _Image] = {}
    repeated = 0
    for line, row in rows:
        where = f"{source}, line {line}"
        if len(row) <= columns.last:
            raise InputError(
                f"{where}: {len(row)} columns were found where at least {columns.last + 1} are "
                f"expected: {','.join(row)!r}."
            )
        path, label = row[columns.path].strip(), _label(row, columns, where)
        if not path or not (label or columns.many):
            raise InputError(f"{where}: the {'label' if path else 'path'} is empty.")
        path = _inside(path, folder, where)
        split = "train" if columns.split is None else split_of(row[columns.split])
        if split is None:
            raise InputError(
                f"{where}: {row[columns.split or 0]!r} is no split; train, val or test is expected."
            )
        before = found.setdefault(path, _Image(split, line, label, []))
        if before.line == line:
            continue
        same = before.label == label
        if before.split != split or not (same or columns.labels is not None):
            rule = "split" if columns.labels is not None else "class and one split"
            rule = "row" if columns.one_hot else rule
            raise InputError(
                f"{source}: {path} stands in line {before.line} as {before.label} "
                f"({before.split}) and in line {line} as {label} ({split}). An image has one "
                f"{rule}; remove one of the rows."
            )
        before.further.extend([] if same else [label])
        repeated += same
    if not found:
        raise InputError(f"{source} has a header and no rows.")
    _check_there(source, folder, found)

    notes = [f"{source} is a table of path and label; {columns.told}."]
    classes, labels, more = _labels(source, columns, list(found.values()))
    notes += more
    if repeated:
        notes.append(f"{repeated:,} rows repeat another and count once.")
    of_split = np.array([SPLITS.index(image.split) for image in found.values()], np.int64)
    table = PathTable()
    table.extend(found)
    return Dataset(
        root=os.path.abspath(source),
        format="table",
        task="multilabel" if columns.many else "classification",
        classes=classes,
        images=table.images(folder),
        labels=labels,
        splits={s: np.flatnonzero(of_split == k) for k, s in enumerate(SPLITS) if k in of_split},
        notes=notes,
    )


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports one label an image as labels.csv with path, label and split; several as a column per
    class. Raises :class:`InputError` for an image that cannot be read, and for names of classes
    that would be read as something else."""
    labels, classes = dataset.labels, dataset.classes
    assert labels is not None
    many = labels.ndim > 1
    reserved = {*PATH, *LABEL, *LABELS, *SPLIT, *MASK}
    bad = [c for c in classes if not c or c != c.strip()]
    if many:
        bad += [c for c in classes if c.lower() in reserved or re.search(r"[;\t\r\n]", c)]
    if bad or (many and len(classes) < 2):
        raise InputError(
            f"{dataset.root}: a table cannot hold the classes {some(bad or classes)}. A class's "
            "name has no blanks at its ends. Where an image may have several labels, there are at "
            "least two classes, none called path, label, split and the like, or with a semicolon."
        )
    (folder / "pictures").mkdir(parents=True)
    names = export.names(dataset)
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", *(classes if many else ["label"]), "split"])
        for split, ids in dataset.splits.items():
            for i in map(int, ids):
                name = export.save_image(dataset, i, folder / "pictures" / names[i])
                label = labels[i].astype(int).tolist() if many else [classes[int(labels[i])]]
                table.writerow([f"pictures/{name}", *label, split])
    if many:
        return []
    unused = [name for k, name in enumerate(classes) if not (labels == k).any()]
    return lost(
        Counter(unused=len(unused), order=classes != sorted_names(set(classes))),
        {
            "unused": f"classes have no image and are lost: {some(unused)}.",
            "order": "order of classes was lost: a table's are sorted by name.",
        },
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
    """``one_hot``: names and numbers of the columns that are classes."""

    path: int
    label: int | None
    labels: int | None
    one_hot: dict[str, int]
    split: int | None
    has_header: bool
    told: str

    @property
    def many(self) -> bool:
        return self.label is None

    @property
    def last(self) -> int:
        return max(self.path, self.label or 0, self.labels or 0, *self.one_hot.values(), 0)


@dataclass(frozen=True)
class _Image:
    """``label``: the cell, or the names of the columns that hold 1."""

    split: str
    line: int
    label: str | tuple[str, ...]
    further: list[str | tuple[str, ...]]


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


def _columns(source: str, first: list[str], second: list[str]) -> _Columns:
    """Which column is what, by the first row if it is a header; ``second`` is the row below it."""
    cells = [cell.strip().lower() for cell in first]
    path, label, labels, split = (
        next((cells.index(name) for name in known if name in cells), None)
        for known in (PATH, LABEL, LABELS, SPLIT)
    )
    if path is not None:
        others = [k for k in range(len(cells)) if k not in (path, label, labels, split)]
        told = f"its header names the columns {first[path].strip()} and "
        one_hot: dict[str, int] = {}
        if label is not None:
            told += first[label].strip()
            labels = None
        elif labels is not None:
            told += f"{first[labels].strip()}, so that an image may have several labels"
        elif len(others) > 1 and all(_flag(second, k) is not None for k in others):
            one_hot = {first[k].strip(): k for k in others}
            told += f"{len(others)} classes, so that an image may have several labels"
            if len(one_hot) < len(others) or "" in one_hot:
                raise InputError(
                    f"{source}, line 1: a class's column has no name, or two have the same: "
                    f"{','.join(first)!r}. Name each."
                )
        if label is not None or labels is not None or one_hot:
            told += f", and {first[split].strip()} for the split" if split is not None else ""
            passed = [] if one_hot else [first[k].strip() or f"number {k + 1}" for k in others]
            told += f"; the columns {some(passed)} were passed over" if passed else ""
            return _Columns(path, label, labels, one_hot, split, True, told)
    if len(cells) >= 2 and is_image(cells[0]):
        has_split = len(cells) > 2 and split_of(cells[2]) is not None
        told = "without a header, so the first column is the path and the second the label"
        told += ", the third the split" if has_split else ""
        return _Columns(0, 1, None, {}, 2 if has_split else None, False, told)
    raise InputError(
        f"{source}, line 1: {','.join(first)!r} names no column of paths ({', '.join(PATH)}) and "
        f"one of labels ({', '.join(LABEL)}; {', '.join(LABELS)} for several; or a column of 0 and "
        "1 per class), and does not begin with an image's path. Write a header: path,label."
    )


def _flag(row: list[str], column: int) -> bool | None:
    """Whether a class's column says that the image has it; None: it says neither."""
    text = row[column].strip() if column < len(row) else "-"
    return {"1": True, "1.0": True, "0": False, "0.0": False}.get(text)


def _label(row: list[str], columns: _Columns, where: str) -> str | tuple[str, ...]:
    at = columns.labels if columns.label is None else columns.label
    if at is not None:
        return row[at].strip()
    wrong = [name for name, k in columns.one_hot.items() if _flag(row, k) is None]
    if wrong:
        raise InputError(
            f"{where}: {row[columns.one_hot[wrong[0]]]!r} in the column {wrong[0]}; 0 or 1 is "
            "expected, since every column besides the path and the split is a class."
        )
    return tuple(name for name, k in columns.one_hot.items() if _flag(row, k))


def _inside(path: str, folder: str, where: str) -> str:
    """The path from the table's folder on. An absolute one may lie elsewhere: many keep their
    tables apart from their images, and it says openly where it points."""
    if not os.path.isabs(path):
        return within(path, where)
    inside = os.path.normpath(path).startswith(os.path.join(folder, ""))
    return os.path.relpath(path, folder) if inside else path


def _check_there(source: str, folder: str, found: dict[str, _Image]) -> None:
    nowhere = [
        f"line {image.line}: {path}"
        for path, image in found.items()
        if not os.path.isfile(os.path.join(folder, path))
    ]
    if nowhere:
        shown = "; ".join(nowhere[:MOST_SHOWN]) + (" …" if len(nowhere) > MOST_SHOWN else "")
        raise InputError(
            f"{source}: {len(nowhere):,} of {len(found):,} rows point to no file, seen from the "
            f"folder of the table ({folder}): {shown}. Correct or remove them."
        )


def _labels(
    source: str, columns: _Columns, images: list[_Image]
) -> tuple[tuple[str, ...], Array, Notes]:
    """The classes, and each image's: int64 [N], or bool [N, K] where there may be several."""
    if not columns.many:
        names = [str(image.label) for image in images]
        classes = sorted_names(set(names))
        number = {name: k for k, name in enumerate(classes)}
        return classes, np.array([number[name] for name in names], np.int64), []
    notes: Notes = []
    cells: list[list[str]] = []
    if columns.one_hot:
        classes = tuple(columns.one_hot)
        cells = [[*image.label] for image in images]
    else:
        texts = [[str(t) for t in (image.label, *image.further)] for image in images]
        mark = next((m for m in "|;," if any(m in t for row in texts for t in row)), None)
        cells = [[n.strip() for t in row for n in t.split(mark) if n.strip()] for row in texts]
        classes = sorted_names({name for row in cells for name in row})
        notes.append(f"Labels are separated by {repr(mark) if mark else 'blanks'}.")
    if len(classes) < 2:
        raise InputError(
            f"{source} names {len(classes)} classes ({', '.join(classes)}); at least two are "
            "expected where an image may have several."
        )
    number = {name: k for k, name in enumerate(classes)}
    labels = np.zeros((len(images), len(classes)), bool)
    for i, row in enumerate(cells):
        labels[i, [number[name] for name in row]] = True
    counts = labels.sum(1)
    notes.append(
        f"An image has {int(counts.min())} to {int(counts.max())} labels, {counts.mean():.1f} on "
        f"average; {int((counts == 0).sum()):,} have none."
    )
    return classes, labels, notes


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """In the order of the numbers where all are numbers: 2 before 10."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
