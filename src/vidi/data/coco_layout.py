"""Where COCO's JSON files and their images lie.

instances_train2017.json in annotations and the images in train2017, images/train2017 or images; or
one JSON beside its images, in a folder per split or not (as Roboflow writes
_annotations.coco.json).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from vidi.data.boxes import SizedImages, some
from vidi.data.coco_file import CocoFile, parse
from vidi.data.dataset import SPLITS, PathTable
from vidi.data.formats.folders import MOST_WRAPPERS, is_image, split_of
from vidi.data.images import unreadable
from vidi.errors import InputError
from vidi.types import Array, Notes

_WINDOW = 1 << 18
"""Bytes at the start and at the end of a JSON by which it is recognised."""
_BOX = re.compile(rb'"bbox"\s*:\s*\[\s*[-\d]')
_SHAPE = re.compile(rb'"segmentation"\s*:\s*(\[\s*\[|\{)')


@dataclass(frozen=True)
class Layout:
    folder: str
    """Absolute; all paths are relative to it."""
    files: dict[str, str]
    """JSON files by split."""
    unclear: list[str]
    """Further ones, whose split is not known or taken."""
    has_boxes: bool
    has_shapes: bool

    @property
    def told(self) -> str:
        return " and ".join(self.files.values())


@dataclass
class Found:
    """What all files of a layout hold; images in the order of their splits."""

    files: list[CocoFile]
    images: SizedImages
    splits: dict[str, Array]
    categories: dict[int, str]
    notes: Notes = field(default_factory=list)

    @property
    def starts(self) -> list[int]:
        """The index of each file's first image."""
        counts = [len(file.images) for file in self.files]
        return [0, *accumulate(counts)]


def find_layout(source: str) -> Layout | None:
    if source.lower().endswith(".json"):
        if not os.path.isfile(source):
            return None
        marks = _marks(source)
        if marks is None:
            return None
        folder, name = os.path.split(os.path.abspath(source))
        if os.path.basename(folder).lower() == "annotations":
            folder, inner = os.path.split(folder)
            name = f"{inner}/{name}"
        return Layout(folder, {_split_of_file(name) or "train": name}, [], *marks)
    base = ""
    for _ in range(MOST_WRAPPERS + 1):
        folder = os.path.join(source, base)
        if not os.path.isdir(folder):
            return None
        found = _in_folder(os.path.abspath(folder))
        if found is not None:
            return found
        inside = [f for f in _names(folder) if os.path.isdir(os.path.join(folder, f))]
        if len(inside) != 1:
            return None
        base = f"{base}{inside[0]}/"
    return None


def read_all(source: str, layout: Layout, *, boxes: bool) -> Found:
    """Raises :class:`InputError` for files of unclear split, for images that are not there, and for
    categories that differ between the files."""
    if layout.unclear:
        raise InputError(
            f"{source}: besides {layout.told}, the files {some(layout.unclear)} hold annotations "
            "too, and which split they are is not clear. Name one file for each of train, val and "
            "test, or name the JSON file itself as data."
        )
    files: list[CocoFile] = []
    table = PathTable()
    splits: dict[str, Array] = {}
    listed: dict[str, set[str]] = {}
    for split in (s for s in SPLITS if s in layout.files):
        name = layout.files[split]
        file = parse(os.path.join(layout.folder, name), boxes=boxes)
        if files and file.categories != files[0].categories:
            raise InputError(
                f"{file.path} and {files[0].path} have different categories: "
                f"{_differing(files[0].categories, file.categories)}. They need the same, with the "
                "same ids."
            )
        prefix = _image_folder(layout.folder, name, split, file.images)
        paths = [prefix + image for image in file.images]
        missing = [p for p in paths if not os.path.isfile(os.path.join(layout.folder, p))]
        if missing:
            raise InputError(
                f"{file.path}: {len(missing):,} of its {len(paths):,} images are not there: "
                f"{some(missing)}. Add them, or remove them from the file."
            )
        start = len(table)
        table.extend(paths)
        splits[split] = np.arange(start, len(table))
        listed.setdefault(prefix, set()).update(file.images)
        files.append(file)
    if not len(table):
        raise InputError(f"{source}: {layout.told} lists no images.")
    notes = []
    for prefix, names in listed.items():
        others = [n for n in _names(os.path.join(layout.folder, prefix)) if is_image(n)]
        others = [n for n in others if n not in names]
        if others:
            notes.append(
                f"{len(others):,} images in {prefix or layout.folder} are in no JSON and were left "
                f"out: {some(others)}."
            )
    return Found(
        files,
        SizedImages(
            table.images(layout.folder),
            np.concatenate([file.sizes for file in files]),
            "height and width in the JSON",
        ),
        splits,
        files[0].categories,
        notes,
    )


def painted(file: CocoFile, j: int, height: int, width: int) -> list[tuple[int, Array]]:
    """The masks of image ``j``'s objects, bool [height, width], in the order in which they are laid
    over one another: crowds first, then from large to small. With each its index in the file."""
    first, end = int(file.offsets[j]), int(file.offsets[j + 1])
    masks = [
        (m, file.shapes.mask(m, height, width)) for m in range(first, end) if file.shapes.kinds[m]
    ]
    return sorted(masks, key=lambda item: (not file.crowd[item[0]], -int(item[1].sum())))


def _in_folder(folder: str) -> Layout | None:
    inside = _names(folder)
    places = [""]
    places += [f"{f}/" for f in inside if f.lower() in ("annotations", "annotation")]
    places += [f"{f}/" for f in inside if split_of(f) and os.path.isdir(os.path.join(folder, f))]
    named = [
        place + name
        for place in places
        if os.path.isdir(os.path.join(folder, place))
        for name in _names(os.path.join(folder, place))
        if name.lower().endswith(".json") and not name.startswith(".")
    ]
    # COCO's captions and key points are of the same images.
    instances = [n for n in named if os.path.basename(n).startswith("instances_")]
    marked = {n: found for n in instances or named if (found := _marks(f"{folder}/{n}"))}
    if not marked:
        return None
    files: dict[str, str] = {}
    unclear: list[str] = []
    for name in marked:
        split = _split_of_file(name) or ("train" if len(marked) == 1 else None)
        if split is None or split in files:
            unclear.append(name)
        else:
            files[split] = name
    ordered = {split: files[split] for split in SPLITS if split in files}
    boxes, shapes = (any(found[k] for found in marked.values()) for k in range(2))
    return Layout(folder, ordered, unclear, boxes, shapes)


def _marks(path: str) -> tuple[bool, bool] | None:
    """Whether a JSON seems to hold boxes, and masks; None: it is not of COCO's kind."""
    try:
        with open(path, "rb") as file:
            seen = file.read(_WINDOW)
            size = os.fstat(file.fileno()).st_size
            if size > len(seen):
                file.seek(max(len(seen), size - _WINDOW))
                seen += file.read()
    except OSError:
        return None
    if not seen.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return None
    if sum(word in seen for word in (b'"images"', b'"annotations"', b'"categories"')) < 2:
        return None
    boxes, shapes = bool(_BOX.search(seen)), bool(_SHAPE.search(seen))
    # Where neither is to be seen it may be either: an empty file, say, is one of boxes.
    return (boxes or not shapes), shapes


def _split_of_file(name: str) -> str | None:
    """train, val or test, by the file's name or its folder's."""
    folder, file = os.path.split(name)
    words = re.split(r"[_.\-\s]+", os.path.splitext(file)[0])
    found = {split for word in words if (split := split_of(word)) is not None}
    return found.pop() if len(found) == 1 else split_of(folder)


def _image_folder(folder: str, name: str, split: str, images: list[str]) -> str:
    """Where the images of a JSON file lie: the first likely place that holds one of the first."""
    place, file = os.path.split(name)
    stem = os.path.splitext(file)[0].removeprefix("instances_")
    own = [place] if split_of(place) else []
    splits = [f for f in _names(folder) if split_of(f) == split]
    inner = _names(os.path.join(folder, "images")) if os.path.isdir(f"{folder}/images") else []
    inner = [f"images/{f}" for f in inner if split_of(f) == split]
    likely = [*own, *(f"{f}/images" for f in own), stem, f"images/{stem}", *splits, *inner]
    likely += [*(f"{f}/images" for f in splits), "images", "JPEGImages", "", place]
    for candidate in likely:
        prefix = f"{candidate}/" if candidate else ""
        if any(os.path.isfile(os.path.join(folder, prefix + image)) for image in images[:20]):
            return prefix
    return f"{likely[0]}/" if os.path.isdir(os.path.join(folder, likely[0])) else ""


def _differing(a: dict[int, str], b: dict[int, str]) -> str:
    pairs = [f"{k}: {a.get(k)} and {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
    return some(pairs)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(unreadable(folder, error)) from error
