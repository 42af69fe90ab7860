"""What all formats of flow share: pairs of frames with their truth, and writing them by name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vidi.data import export
from vidi.data.boxes import some
from vidi.data.dataset import SPLITS, Dataset, FileImages, PathTable
from vidi.data.flowfiles import check_finite
from vidi.data.formats.folders import split_of
from vidi.data.images import read_file_header
from vidi.data.voc_layout import find_base, folders_in
from vidi.errors import InputError
from vidi.types import Array, Notes

Truths = dict[str, Any]
"""flow float32 [H, W, 2], flow_valid bool [H, W], occluded bool [H, W] or None."""


class Pair(NamedTuple):
    """Paths within the dataset's folder; "" for what is not there."""

    first: str
    second: str
    flow: str
    occlusion: str = ""
    invalid: str = ""


@dataclass
class Found:
    """What a format has listed so far: pairs by split, and the names of what is amiss."""

    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Flow without one of its frames."""
    without: list[str] = field(default_factory=list)
    """First frames without flow, though there is a next one."""
    notes: Notes = field(default_factory=list)

    def dataset(self, source: str, name: str, load: Callable[[str, Pair], Truths]) -> Dataset:
        """``load`` reads the truth of a pair, given the dataset's folder.

        Raises :class:`InputError` where a frame is missing, or all pairs are.
        """
        if self.missing:
            raise InputError(
                f"{source}: {len(self.missing):,} files of flow lack a frame: {some(self.missing)}."
                " Add the frames, or remove the flow."
            )
        if self.without:
            self.notes.append(
                f"{len(self.without):,} pairs of frames have no flow and were left out: "
                f"{some(self.without)}."
            )
        root = os.path.abspath(source)
        rows: list[Pair] = []
        splits: dict[str, Array] = {}
        for split in (s for s in SPLITS if self.pairs.get(s)):
            splits[split] = np.arange(len(rows), len(rows) + len(self.pairs[split]))
            rows += self.pairs[split]
        if not rows:
            raise InputError(f"{source} holds no pair of frames with flow.")
        columns = [PathTable() for _ in Pair._fields]
        for column, paths in zip(columns, zip(*rows, strict=True), strict=True):
            column.extend(paths)
        tables = [column.images(root) for column in columns]
        return Dataset(
            root=root,
            format=name,
            task="flow",
            classes=(),
            images=tables[0],
            images2=tables[1],
            labels=None,
            splits=splits,
            notes=self.notes,
            truth=_Flows(tables, load),
        )


class _Flows:
    """Files of flow, read on demand."""

    def __init__(self, tables: Sequence[FileImages], load: Callable[[str, Pair], Truths]) -> None:
        self._tables = tables
        self._load = load

    def fields(self, i: int) -> Truths:
        first, second, *_ = self._tables
        pair = Pair(*(table.key(i) for table in self._tables))
        found = self._load(first.root, pair)
        size = first.size(i)
        if second.size(i) != size:
            raise InputError(
                f"{second.path(i)} is {_times(second.size(i))} pixels, and the frame before it, "
                f"{first.path(i)}, {_times(size)}. Both frames of a pair have one size."
            )
        check_size(found["flow"].shape[:2], size, os.path.join(first.root, pair.flow))
        return found

    def digest(self) -> bytes:
        return b"".join(table.digest() for table in self._tables[2:])


def check_size(found: Sequence[int], size: tuple[int, int], path: str) -> None:
    """Raises :class:`InputError` where what ``path`` holds has not the size of its frame."""
    if tuple(found) != tuple(size):
        raise InputError(
            f"{path} is {_times(found)} pixels, and its frame {_times(size)}. They should have one "
            "size; put the file there that belongs to the frame."
        )


def _times(size: Sequence[int]) -> str:
    return f"{size[1]} × {size[0]}"


def parts_of(folder: str, is_part: Callable[[str], bool]) -> dict[str, str]:
    """The folders that hold a whole set, by split, from ``folder`` on: {"train": ""} if it does so
    itself, else such as "training/". Raises :class:`InputError` for two folders of one split."""
    if not os.path.isdir(folder):
        return {}
    if is_part(folder):
        return {"train": ""}
    found: dict[str, str] = {}
    for name in folders_in(folder).values():
        split = split_of(name)
        if split is None or not is_part(os.path.join(folder, name)):
            continue
        if split in found:
            raise InputError(
                f"{folder} has two folders for the split {split}: {found[split]} and {name}/. Keep "
                "one of them."
            )
        found[split] = f"{name}/"
    return {split: found[split] for split in SPLITS if split in found}


def base_of(source: str, is_part: Callable[[str], bool]) -> tuple[str, dict[str, str]] | None:
    """Where such sets lie: ("" or folders around it with a "/", :func:`parts_of` of that)."""
    base = find_base(source, lambda folder: bool(parts_of(folder, is_part)))
    return None if base is None else (base, parts_of(os.path.join(source, base), is_part))


def where(base: str, parts: dict[str, str]) -> str:
    """The folders in words."""
    return ", ".join(f"{base}{part}".rstrip("/") for part in parts.values()) or "place"


def left_out(folder: str, parts: dict[str, str]) -> Notes:
    """The folders of splits, beside ``parts``, that hold no flow."""
    if "" in parts.values():
        return []
    names = [
        f for f in folders_in(folder).values() if split_of(f) and f"{f}/" not in parts.values()
    ]
    return [f"{name} holds no flow and was left out." for name in names]


def next_name(stem: str) -> str | None:
    """The name of the next frame: frame_0010 after frame_0009; None without a number at the end."""
    match = re.fullmatch(r"(.*?)(\d+)", stem)
    return match and f"{match[1]}{int(match[2]) + 1:0{len(match[2])}d}"


class Successors(NamedTuple):
    """``after``: each frame's next one. ``gaps``: frames whose next one is missing."""

    after: dict[str, str]
    gaps: list[str]


def successors(folder: str | Path, stems: Iterable[str]) -> Successors:
    """Which frame follows which in a folder, by names without suffix.

    Frames whose names differ in the number at their end alone are a sequence. It goes on by the
    smallest step in it; where the next step leads to none, and others come later, there is a gap.
    A name without a number beside numbered ones is no frame of a sequence. Where no name has one,
    they follow each other in order.

    Raises :class:`InputError` for two frames of a sequence with one number.
    """
    order = in_order(stems)
    sequences: dict[str, dict[int, str]] = {}
    for stem in order:
        if match := re.fullmatch(r"(.*?)(\d+)", stem):
            frames = sequences.setdefault(match[1], {})
            other = frames.setdefault(int(match[2]), stem)
            if other != stem:
                raise InputError(
                    f"{folder}: the frames {other} and {stem} have the same number. Keep one of "
                    "them."
                )
    if not sequences:
        return Successors(dict(pairwise(order)), [])
    after, gaps = {}, []
    for frames in sequences.values():
        numbers = sorted(frames)
        step = min((b - a for a, b in pairwise(numbers)), default=0)
        for n in numbers[:-1]:
            if n + step in frames:
                after[frames[n]] = frames[n + step]
            else:
                gaps.append(frames[n])
    return Successors(after, gaps)


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted by name, with numbers by their value: 9 before 10."""
    parts = re.compile(r"(\d+)")
    return sorted(names, key=lambda n: ([(p.isdigit(), p.zfill(20)) for p in parts.split(n)], n))


def flow_of(dataset: Dataset, i: int) -> tuple[Array, Array, Array | None]:
    """(flow, valid, occluded or None) of sample ``i``, to be written; flow is 0 where not valid.

    Raises :class:`InputError` where it has no flow, or one that is not finite."""
    found = dataset.annotations(i)
    flow = found.get("flow")
    if flow is None:
        raise InputError(f"{dataset.images.key(i)} has no flow, and cannot be exported.")
    valid = found.get("flow_valid")
    known = np.ones(flow.shape[:2], bool) if valid is None else np.asarray(valid, bool)
    flow = np.where(known[..., None], flow, np.float32(0)).astype(np.float32)
    check_finite(flow, dataset.images.key(i))
    return flow, known, found.get("occluded")


def save_frames(dataset: Dataset, i: int, first: Path, second: Path) -> None:
    """Both frames under these names, whose suffix (.png or .ppm) says the kind of file. A file that
    is of that kind is copied. Raises :class:`InputError` for an image that cannot be read."""
    assert dataset.images2 is not None
    for images, path in ((dataset.images, first), (dataset.images2, second)):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = export.file_of(images, i)
        suffix = path.suffix
        kind = {".png": "PNG", ".ppm": "PPM"}[suffix]
        if (
            file is not None
            and os.path.splitext(file)[1].lower() == suffix
            and read_file_header(file).format == kind
        ):
            export.save_image(dataset, i, path.with_suffix(""), images=images)
            # The copy has the suffix as the source has it, perhaps in capitals.
            copied = path.with_suffix(os.path.splitext(file)[1])
            if copied != path:
                copied.replace(path)
            continue
        pixels = images.load(i, None)[0]
        if suffix == ".png":
            export.save_png(pixels, path)
        else:
            save_ppm(pixels, path)


def save_ppm(pixels: Array, path: Path) -> None:
    """uint8 [H, W, 3], RGB, as a binary PPM."""
    height, width = pixels.shape[:2]
    path.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes())


def ordered(dataset: Dataset) -> list[tuple[str, int]]:
    """(split, index) of all samples, one split after the other."""
    return [(s, int(i)) for s in SPLITS if s in dataset.splits for i in dataset.splits[s]]


def numbers(dataset: Dataset, first: int, digits: int) -> dict[int, int]:
    """A number per sample: its file's own, where the names are such numbers and all differ; else
    ``first`` and so on in the order of the splits. ``digits``: how many the format writes."""
    order = ordered(dataset)
    own = []
    for _, i in order:
        stem = os.path.splitext(os.path.basename(dataset.images.key(i)))[0]
        match = re.fullmatch(r"(\d{1,18})(_img1|_10)?", stem)
        own.append(int(match[1]) if match else -1)
    # Read back, they come by number within each split.
    rises = all(
        a < b or s != t for (a, (s, _)), (b, (t, _)) in pairwise(zip(own, order, strict=True))
    )
    fit = all(first <= n < 10**digits for n in own)
    if len(set(own)) < len(own) or not fit or not rises:
        own = list(range(first, first + len(order)))
    if own and max(own) >= 10**digits:
        raise InputError(
            f"{dataset.root} has {len(own):,} pairs, and this format numbers them with {digits} "
            "digits."
        )
    return {i: n for (_, i), n in zip(order, own, strict=True)}


def scene_names(dataset: Dataset) -> list[str]:
    """A folder's name per sample: the one that it lies in where it has that for itself, as after an
    export by these names; else that of its first frame, or its whole path."""
    keys = [dataset.images.key(i) for i in range(len(dataset))]
    if all(re.search(r"[^/]/frame_?\d+\.\w+$", key) for key in keys):
        parents = [os.path.basename(os.path.dirname(key)) for key in keys]
        if len({name.lower() for name in parents}) == len(parents):
            return parents
        keys = [os.path.splitext(key)[0].replace("/", "_") for key in keys]
        if len({key.lower() for key in keys}) == len(keys):
            return keys
    return export.names(dataset)


OCCLUSION_LOST = "pairs have occluded pixels marked, which this format cannot hold."


def lost(counts: Counter[str], sentences: dict[str, str]) -> Notes:
    """What the format cannot hold, with its number."""
    return [f"{counts[kind]:,} {rest}" for kind, rest in sentences.items() if counts[kind]]
