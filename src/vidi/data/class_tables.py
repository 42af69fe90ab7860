"""Files that name the classes of masks, with their colours or without.

A name a line; or a colour and a name a line (CamVid's label_colors.txt: ``64 128 64  Animal``; also
``name,r,g,b``, and CVAT's labelmap.txt: ``name:r,g,b::``); or a CSV whose header names the columns
name, r, g and b (class_dict.csv).
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from vidi.data.images import read
from vidi.errors import InputError
from vidi.types import Array

FILES = (
    "classes.txt", "class_names.txt", "labels.txt", "classes.csv", "class_dict.csv",
    "label_colors.txt", "label_colours.txt", "labelmap.txt", "label_colors.csv", "colors.txt",
    "colours.txt", "colors.csv", "colours.csv",
)  # fmt: skip
VOID = frozenset({"void", "ignore", "ignored", "__ignore__", "unlabelled", "unlabeled"})
"""What a table of colours calls the pixels that have no class."""
MOST = 255
_FRONT = re.compile(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;:]+(\S.*?)")
_BACK = re.compile(r"(.*?\S)[\s,;:]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;:]*")
_CHANNELS = (("r", "red"), ("g", "green"), ("b", "blue"))
_NAME = ("name", "class", "class_name", "label", "classes")


@dataclass(frozen=True)
class ClassTable:
    """``colours``: uint8 [K, 3], in the order of the names."""

    file: str
    names: tuple[str, ...]
    colours: Array | None

    def without_void(self) -> tuple[tuple[str, ...], Array, list[str]]:
        """(classes, the class of each row, uint8 [K], names of the rows that are ignored).

        Only a table of colours has such rows: where a file gives names alone, each is a class.
        """
        ignored = [self.colours is not None and n.lower() in VOID for n in self.names]
        of_row = np.cumsum(np.logical_not(ignored)) - 1
        of_row[ignored] = 255
        kept = [n for n, void in zip(self.names, ignored, strict=True) if not void]
        void = [n for n, void in zip(self.names, ignored, strict=True) if void]
        return tuple(kept), of_row.astype(np.uint8), void


@dataclass(frozen=True)
class Tables:
    """The first file that only names the classes, and the first that gives their colours."""

    names: ClassTable | None
    colours: ClassTable | None


def find_tables(*folders: str) -> Tables:
    """Those in the first folder that has any. Raises :class:`InputError` for one that cannot be
    understood, with the line."""
    for folder in folders:
        inside = {name.lower(): name for name in sorted(os.listdir(folder), reverse=True)}
        found = [
            parse(os.path.join(folder, inside[name]))
            for name in FILES
            if name in inside and os.path.isfile(os.path.join(folder, inside[name]))
        ]
        if found:
            return Tables(
                next((t for t in found if t.colours is None), None),
                next((t for t in found if t.colours is not None), None),
            )
    return Tables(None, None)


def parse(path: str) -> ClassTable:
    """Raises :class:`InputError` for a line without a colour where others have one, a colour out of
    range, and a name or colour that stands twice."""
    try:
        text = read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error}). Save it as such.") from error
    lines = [(n, t.strip()) for n, t in enumerate(text.splitlines(), 1) if t.strip()]
    rows = _by_header(path, lines) or _by_pattern(path, lines)
    if rows is None:
        names, colours = tuple(text for _, text in lines), None
    else:
        names = tuple(name for _, name, _ in rows)
        colours = np.array([rgb for _, _, rgb in rows], np.int64).reshape(-1, 3)
        wrong = np.flatnonzero((colours > 255).any(1))
        if len(wrong):
            line, name, rgb = rows[int(wrong[0])]
            raise InputError(
                f"{path}, line {line}: the colour of {name} is {rgb}; each of red, green and blue "
                "lies between 0 and 255."
            )
        shared = [rgb for rgb, count in Counter(rgb for _, _, rgb in rows).items() if count > 1]
        if shared:
            both = [name for _, name, rgb in rows if rgb == shared[0]]
            raise InputError(
                f"{path}: {' and '.join(both)} have the same colour, {shared[0]}. Each class needs "
                "its own."
            )
        colours = colours.astype(np.uint8)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not 0 < len(names) <= MOST:
        what = f"names {twice[0]} twice" if twice else f"names {len(names)} classes"
        raise InputError(f"{path} {what}; one class a line is expected, at most {MOST}.")
    return ClassTable(os.path.basename(path), names, colours)


_Row = tuple[int, str, tuple[int, int, int]]


def _by_header(path: str, lines: list[tuple[int, str]]) -> list[_Row] | None:
    """The rows of a CSV whose first line names the columns; None: it does not."""
    if not lines:
        return None
    separator = max(",;\t", key=lines[0][1].count)
    cells = [cell.strip(' "').lower() for cell in lines[0][1].split(separator)]
    at = [next((cells.index(n) for n in names if n in cells), None) for names in _CHANNELS]
    name = next((cells.index(n) for n in _NAME if n in cells), None)
    if name is None or None in at:
        return None
    rows: list[_Row] = []
    for line, text in lines[1:]:
        row = next(csv.reader([text], delimiter=separator))
        try:
            red, green, blue = (int(row[k]) for k in at if k is not None)
            rows.append((line, row[name].strip(), (red, green, blue)))
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{path}, line {line}: {text!r}; a name, and red, green and blue as whole numbers "
                "are expected, by the header."
            ) from error
        if min(red, green, blue) < 0 or not rows[-1][1]:
            raise InputError(
                f"{path}, line {line}: {text!r} lacks a name, or a colour is negative."
            )
    return rows


def _by_pattern(path: str, lines: list[tuple[int, str]]) -> list[_Row] | None:
    """The rows of a table without a header; None: its first line is no name and colour."""
    rows: list[_Row] = []
    # CVAT's begins with a comment.
    for line, text in ((n, t) for n, t in lines if not t.startswith("#")):
        front, back = _FRONT.fullmatch(text), _BACK.fullmatch(text)
        if front is not None:
            name, rgb = front[4], front.group(1, 2, 3)
        elif back is not None:
            name, rgb = back[1], back.group(2, 3, 4)
        elif not rows:
            return None
        else:
            raise InputError(
                f"{path}, line {line}: {text!r}; a name and its red, green and blue are expected, "
                "as in the lines above."
            )
        red, green, blue = (int(v[:9]) for v in rgb)
        rows.append((line, name.strip(' "'), (red, green, blue)))
    return rows or None
