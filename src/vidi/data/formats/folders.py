"""A folder per class, in folders per split or not: train/cat/1.jpg, or cat/1.jpg.

Images may lie deeper below their class's folder. Folders such as ``images`` or ``masks`` are never
classes. Only names are looked at, no file is opened, so a million of them take seconds.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from vidi.data import export
from vidi.data.dataset import SPLITS, Dataset, PathTable
from vidi.data.formats import Fake
from vidi.data.images import unreadable
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample

EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".jp2", ".avif",
    # Not read, but meant as images: better a sentence than to leave them out.
    ".heic", ".heif",
})  # fmt: skip

SYNONYMS = {
    "train": "train", "training": "train", "trn": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip

NEVER_CLASSES = frozenset({
    "images", "image", "img", "imgs", "jpegimages", "masks", "mask", "labels", "label",
    "annotations", "annotation", "imagesets", "segmentationclass", "segmentationobject",
    "segmentations", "groundtruth", "ground_truth", "gt", "boundaries", "edges", "contours",
    "edge_maps", "edge_map", "flow", "flows", "flow_occ", "flow_noc", "bboxes", "boxes",
    "instances",
})  # fmt: skip

_IGNORED = frozenset({
    "__MACOSX", "Thumbs.db", "thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "lost+found",
    "__pycache__",
})  # fmt: skip

_ANNOTATED = re.compile(r"(.+?)[-_]?(annots?|annotations?|labels?|masks?|gt)")

_LOOKED_AT = 3
"""Folders, and levels of them, that are looked into for files of flow."""

MOST_WRAPPERS = 4
"""Folders in folders that are looked through; a link to the folder itself must end somewhere."""

TASK = "classification"


def split_of(name: str) -> str | None:
    """train, val or test, if a folder (or a table's cell) of that name is one; train2017 too."""
    return SYNONYMS.get(re.sub(r"[-_]?(19|20)\d\d$", "", name.strip().lower()))


def annotated_split(name: str) -> str | None:
    """train, if a folder is called trainannot, train_labels or the like: CamVid's masks."""
    match = _ANNOTATED.fullmatch(name.lower())
    return None if match is None or split_of(match[1]) is None else match[1]


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def sniff(source: str) -> str | None:
    layout = _layout(source)
    return None if layout is None else layout.reason


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for an empty class, classes that differ between splits, and two
    folders for one split."""
    layout = _layout(source)
    assert layout is not None
    table = PathTable()
    other: Counter[str] = Counter()
    classes = tuple(sorted({c for folders in layout.classes.values() for c in folders}))
    number = {name: k for k, name in enumerate(classes)}
    _check_same_classes(source, layout)
    labels: list[Array] = []
    splits: dict[str, Array] = {}
    empty: list[str] = []
    for split in (s for s in SPLITS if s in layout.classes):
        start = len(table)
        for name in layout.classes[split]:
            before = len(table)
            relative = f"{layout.prefixes[split]}{name}/"
            _collect(os.path.join(source, relative), relative, table, other, ())
            labels.append(np.full(len(table) - before, number[name], np.int64))
            if len(table) == before:
                empty.append(relative.rstrip("/"))
        splits[split] = np.arange(start, len(table))
    if empty:
        raise InputError(
            f"{source}: there is no image in {_some(empty)}. Each class needs some; add them, or "
            "remove the folder."
        )
    notes = [f"{source} is {layout.reason}.", *layout.notes]
    if other:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(other.items()))
        notes.append(f"Files that are no images by their name were passed over: {kinds}.")
    return Dataset(
        root=os.path.abspath(source),
        format="folders",
        task="classification",
        classes=classes,
        images=table.images(os.path.abspath(source)),
        labels=np.concatenate(labels),
        splits=splits,
        notes=notes,
    )


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports SPLIT/CLASS/NAME. Raises :class:`InputError` for an image that cannot be read, for
    several labels an image, classes missing from a split, and names that no folder can have."""
    labels, classes = dataset.labels, dataset.classes
    assert labels is not None
    if labels.ndim > 1:
        raise InputError(
            f"{dataset.root} has several labels an image, which a folder per class cannot hold. "
            "Use --to table."
        )
    bad = [
        name
        for name in classes
        if not re.fullmatch(r"[^./\\:\x00-\x1f][^/\\:\x00-\x1f]*", name)
        or name.lower() in NEVER_CLASSES
        or name in _IGNORED
        or is_image(name)
    ]
    if bad:
        raise InputError(
            f"{dataset.root}: no folder of a class can be called {_some(bad)}. Use --to table, or "
            "rename the classes."
        )
    used = np.unique(labels)
    parts = {split: ids for split, ids in dataset.splits.items() if len(ids)}
    for split in parts:
        absent = [classes[k] for k in used if not (dataset.split(split).labels == k).any()]
        if absent:
            raise InputError(
                f"{dataset.root}: {split} has no image of {_some(absent)}, and a folder per class "
                "needs the same classes in every split. Use --to table."
            )
    names = export.names(dataset)
    for split, ids in parts.items():
        for k in used:
            (folder / split / classes[k]).mkdir(parents=True)
        for i in map(int, ids):
            export.save_image(dataset, i, folder / split / classes[int(labels[i])] / names[i])
    unused = [name for k, name in enumerate(classes) if k not in used]
    notes = []
    if unused:
        notes.append(f"{len(unused):,} classes have no image and are lost: {_some(unused)}.")
    if list(classes) != sorted(classes):
        notes.append("The order of the classes was lost: folders are sorted by name.")
    return notes


def fake(folder: Path) -> Fake:
    """Two classes in train/, val/ and test/, as PNG; some of them in a folder further below."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[Sample]] = {}
    for split, n in (("train", 4), ("val", 2), ("test", 2)):
        splits[split] = []
        for label, name in enumerate(("cat", "dog")):
            for i in range(n):
                key = f"{split}/{name}/{'more/' if i % 2 else ''}{i:03d}.png"
                image = rng.integers(0, 256, (10 + i, 12, 3), dtype=np.uint8)
                path = folder / key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
                splits[split].append(Sample(key=key, image=image, label=label))
        splits[split].sort(key=lambda s: (s.label, s.key.count("/"), s.key))
    return Fake(str(folder), ("cat", "dog"), splits)


@dataclass
class _Layout:
    reason: str
    classes: dict[str, list[str]]
    """Names of the class folders, by split."""
    prefixes: dict[str, str]
    """Where a split's class folders lie, from the source on: "" or "train/"."""
    notes: list[str] = field(default_factory=list)


def _layout(source: str, wrapper: str = "") -> _Layout | None:
    """How the folder is to be read, by its first levels of names; None: not in this format.

    ``wrapper``: folders that hold nothing but one folder, from the source on.
    """
    inside = os.path.join(source, wrapper)
    if not os.path.isdir(inside):
        return None
    images, folders, _ = _scan(inside)
    found = _split_layout(inside, wrapper, folders)
    if found is None and len(folders) == 1 and not images and wrapper.count("/") < MOST_WRAPPERS:
        deeper = _layout(source, f"{wrapper}{folders[0]}/")
        if deeper is not None:
            return deeper
    found = found or _flat_layout(inside, wrapper, folders)
    if found is not None and wrapper:
        found.notes.append(f"All of it lies in {wrapper}.")
    if found is not None and images:
        found.notes.append(
            f"{len(images):,} images lie beside the folders, without a class, and were left out "
            f"(the first is {wrapper}{images[0]})."
        )
    return found


def _split_layout(inside: str, wrapper: str, folders: list[str]) -> _Layout | None:
    """Folders called train, val, test with a folder per class in each."""
    named: dict[str, str] = {}
    classes: dict[str, list[str]] = {}
    unlabelled: list[str] = []
    for folder in folders:
        split = split_of(folder)
        if split is None:
            continue
        path = os.path.join(inside, folder)
        below = _scan(path)[1]
        within = [f for f in below if f.lower() not in NEVER_CLASSES]
        if _is_flow(path, below) or not any(_holds_image(os.path.join(path, f)) for f in within):
            unlabelled.append(folder)
            continue
        if split in named:
            raise InputError(
                f"{inside} has two folders for the split {split}: {named[split]} and {folder}. "
                "Keep one of them."
            )
        named[split], classes[split] = folder, within
    if not classes:
        return None
    notes = [
        f"{folder} holds no folder per class and was left out." for folder in sorted(unlabelled)
    ]
    others = [f for f in folders if f not in named.values() and f not in unlabelled]
    if others:
        notes.append(f"{_some(others)} beside the splits was passed over.")
    of_class = {len(found) for found in classes.values()}
    count = f" ({of_class.pop()} classes)" if len(of_class) == 1 else ""
    ordered = [named[s] for s in SPLITS if s in named]
    reason = f"a folder per class{count} in each of the folders {_and(ordered)}"
    return _Layout(reason, classes, {s: f"{wrapper}{f}/" for s, f in named.items()}, notes)


def _flat_layout(inside: str, wrapper: str, folders: list[str]) -> _Layout | None:
    """A folder per class, without splits."""
    never = [f for f in folders if f.lower() in NEVER_CLASSES or annotated_split(f)]
    classes = [f for f in folders if f not in never]
    if all(split_of(f) for f in classes):  # so too if there are none
        return None
    if any(_is_dataset(os.path.join(inside, f)) for f in classes) or _is_flow(inside, folders):
        return None
    if not any(_holds_image(os.path.join(inside, f)) for f in classes):
        return None
    notes = [
        f"{f} is taken for a class: there are folders beside it that are no splits."
        for f in classes
        if split_of(f)
    ]
    if never:
        notes.append(f"{_some(never)} is never a class and was passed over.")
    reason = f"a folder per class ({len(classes)} classes), without splits"
    return _Layout(reason, {"train": classes}, {"train": wrapper}, notes)


def _is_dataset(folder: str, depth: int = 2) -> bool:
    """Whether a folder is a whole dataset of its own, or holds one, rather than a class."""
    within = _scan(folder)[1]
    if any(split_of(f) for f in within) or sum(f.lower() in NEVER_CLASSES for f in within) > 1:
        return True
    return depth > 0 and any(_is_dataset(os.path.join(folder, f), depth - 1) for f in within)


def _is_flow(folder: str, folders: list[str]) -> bool:
    """Whether a folder that holds these folders is a set of frames with flow (Sintel's, KITTI's,
    Middlebury's, or one with .flo files), whose folders are no classes."""
    names = {f.lower() for f in folders}
    if names & {"flow_occ", "flow_noc", "image_0", "image_2", "colored_0", "other-gt-flow"}:
        return True
    if len(names & {"clean", "final", "flow"}) > 1:
        return True
    above, name = os.path.split(os.path.abspath(folder))
    if name.lower() in ("clean", "final") and os.path.isdir(os.path.join(above, "flow")):
        return True
    return any(_holds_flow(os.path.join(folder, f), _LOOKED_AT) for f in folders[:_LOOKED_AT])


def _holds_flow(folder: str, depth: int) -> bool:
    """Whether a .flo file lies directly in a folder, or in the first one that it holds."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, 1000)]
    except OSError:  # reading it will say why
        return False
    if any(name.lower().endswith(".flo") for name in names):
        return True
    below = (os.path.join(folder, n) for n in names if not is_image(n) and n[0] != ".")
    first = next(filter(os.path.isdir, below), None) if depth else None
    return first is not None and _holds_flow(first, depth - 1)


def _check_same_classes(source: str, layout: _Layout) -> None:
    reference = "train" if "train" in layout.classes else next(iter(layout.classes))
    expected = set(layout.classes[reference])
    differing = []
    for split, found in layout.classes.items():
        for who, names, other in (
            (split, set(found) - expected, reference),
            (reference, expected - set(found), split),
        ):
            if names:
                differing.append(
                    f"{_some(sorted(names))} is in {layout.prefixes[who].rstrip('/')} but not in "
                    f"{layout.prefixes[other].rstrip('/')}"
                )
    if differing:
        raise InputError(
            f"{source}: the classes differ between the splits: {'; '.join(differing)}. Each split "
            "needs the same class folders; rename, add or remove some."
        )


def _collect(
    folder: str, relative: str, table: PathTable, other: Counter[str], above: tuple[str, ...]
) -> None:
    """Add all images in and below a folder, in the order of their names."""
    images, folders, passed = _scan(folder)
    table.extend([relative + name for name in images])
    other.update(passed)
    if not folders:
        return
    here = os.path.realpath(folder)
    if here in above:
        raise InputError(f"{folder} is a link to a folder that it lies in. Remove it.")
    for name in folders:
        _collect(os.path.join(folder, name), f"{relative}{name}/", table, other, (*above, here))


def _scan(folder: str) -> tuple[list[str], list[str], Counter[str]]:
    """(images, folders, kinds of other files) directly in a folder, sorted by name."""
    images: list[str] = []
    folders: list[str] = []
    other: Counter[str] = Counter()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == "." or name in _IGNORED:
                    continue
                # The name first: whether a link is a folder costs a look at the disk.
                if name[name.rfind(".") :].lower() in EXTENSIONS:
                    images.append(name)
                elif entry.is_dir():
                    folders.append(name)
                else:
                    other[os.path.splitext(name)[1].lower() or "without extension"] += 1
    except OSError as error:
        raise InputError(unreadable(folder, error)) from error
    images.sort()
    folders.sort()
    return images, folders, other


def _holds_image(folder: str, depth: int = 8) -> bool:
    """Whether an image lies in or below a folder; stops at the first."""
    folders = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] == "." or entry.name in _IGNORED:
                    continue
                if is_image(entry.name):
                    return True
                if depth and entry.is_dir():
                    folders.append(entry.path)
    except OSError as error:
        raise InputError(unreadable(folder, error)) from error
    return any(_holds_image(f, depth - 1) for f in folders)


def _some(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
