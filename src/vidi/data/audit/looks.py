"""The single pass of an audit: each sample is read once, whole, and a few numbers of it are kept.

The checks work on those numbers, so that memory stays at some 400 bytes a sample (and 30 a box)
however large the images are.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from vidi.data.audit import alignment, measures
from vidi.data.dataset import Dataset
from vidi.data.truth import BoxTable
from vidi.errors import InputError
from vidi.types import Array, Boxes

CHUNK = 16
THUMB = 16
"""Side of the kept grey thumbnail, in pixels."""
SMALLEST_HASHED = 32
"""Shorter side below which two different images look alike once shrunk: digits, for one."""


@dataclass(slots=True)
class Look:
    """What one sample gave. ``error``: why its image cannot be read; ``truth_error``: why its
    annotation cannot, or does not fit."""

    size: tuple[int, int] = (0, 0)
    error: str = ""
    truth_error: str = ""
    frames: str = ""
    digest: int = 0
    truth_digest: int = 0
    dhash: int = 0
    thumb: Array | None = None
    mean: Array | None = None
    std: Array | None = None
    low: int = 0
    high: int = 0
    grey: bool = False
    boxes: Boxes | None = None
    mask: measures.MaskLook | None = None
    flow: alignment.FlowLook | None = None
    edges: measures.EdgeLook | None = None


@dataclass
class BoxRows:
    """All boxes, flat: ``xyxy`` float32 [M, 4], ``labels`` int64 [M], ``rows`` int64 [M] (the
    sample's row), ``numbers`` int64 [M] (which box of its sample), ``crowd`` bool [M]."""

    xyxy: Array
    labels: Array
    rows: Array
    numbers: Array
    crowd: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Seen:
    """What a pass over N samples gave, by row. ``ids``: int64 [N], each row's sample; ``splits``:
    names; ``split``: int [N], which of them. ``sizes``: int32 [N, 2], height and width; 0 where
    unknown. ``hashed``: bool [N], whether ``dhash`` (uint64) and ``thumbs`` (uint8 [N, 16, 16])
    are there. ``cheap``: no image was read."""

    dataset: Dataset
    cheap: bool
    ids: Array
    splits: tuple[str, ...]
    split: Array
    sizes: Array
    boxes: BoxRows | None = None
    errors: dict[int, str] = field(default_factory=dict)
    truth_errors: dict[int, str] = field(default_factory=dict)
    frames: dict[int, str] = field(default_factory=dict)
    readable: Array = field(default_factory=lambda: np.zeros(0, bool))
    digest: Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    truth_digest: Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    dhash: Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    hashed: Array = field(default_factory=lambda: np.zeros(0, bool))
    thumbs: Array = field(default_factory=lambda: np.zeros((0, THUMB, THUMB), np.uint8))
    means: Array = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    stds: Array = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    low: Array = field(default_factory=lambda: np.zeros(0, np.uint8))
    high: Array = field(default_factory=lambda: np.zeros(0, np.uint8))
    grey: Array = field(default_factory=lambda: np.zeros(0, bool))
    masks: measures.Masks | None = None
    flows: dict[int, alignment.FlowLook] = field(default_factory=dict)
    edges: dict[int, measures.EdgeLook] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def key(self, row: int) -> str:
        return self.dataset.images.key(int(self.ids[row]))

    def labels(self) -> Array | None:
        """Each row's label: int64 [N], or bool [N, K]; None where the task has no such."""
        return None if self.dataset.labels is None else np.asarray(self.dataset.labels[self.ids])


def labels_only(dataset: Dataset, sizes: Array | None = None) -> Seen:
    """What is known without reading any file: labels, and boxes where they lie in memory."""
    seen = _empty(dataset, cheap=True)
    if sizes is not None:
        assert sizes.shape == (len(seen), 2)
        seen.sizes = sizes
    truth = dataset.truth
    if isinstance(truth, BoxTable):
        starts, ends = truth.offsets[seen.ids], truth.offsets[seen.ids + 1]
        counts = ends - starts
        rows = np.repeat(np.arange(len(seen)), counts)
        numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        at = np.repeat(starts, counts) + numbers
        seen.boxes = BoxRows(truth.xyxy[at], truth.labels[at], rows, numbers, truth.crowd[at])
    return seen


def look_at_all(
    dataset: Dataset, *, threads: int, progress: Callable[[int, int], None] | None = None
) -> Seen:
    """Read every sample once. ``progress`` is called with the samples done and their number."""
    seen = _empty(dataset, cheap=False)
    n = len(seen)
    seen.readable = np.zeros(n, bool)
    seen.digest = np.zeros(n, np.uint64)
    seen.truth_digest = np.zeros(n, np.uint64)
    seen.dhash = np.zeros(n, np.uint64)
    seen.hashed = np.zeros(n, bool)
    seen.thumbs = np.zeros((n, THUMB, THUMB), np.uint8)
    seen.means, seen.stds = np.zeros((n, 3), np.float32), np.zeros((n, 3), np.float32)
    seen.low, seen.high = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
    seen.grey = np.zeros(n, bool)
    if dataset.task == "segmentation":
        seen.masks = measures.Masks(n, len(dataset.classes))
    boxes = _BoxLists()
    classes = len(dataset.classes)

    def chunk(rows: range) -> list[Look]:
        return [_look(dataset, int(seen.ids[row]), classes) for row in rows]

    pool = ThreadPoolExecutor(max(threads, 1), "vidi-audit")
    try:
        # A window of chunks, not a list of all: what a look holds is freed once it is added.
        for rows, found in zip(_chunks(n), _windowed(pool, chunk, n, threads), strict=True):
            for row, one in zip(rows, found, strict=True):
                _add(seen, boxes, row, one)
            if progress is not None:
                progress(rows.stop, n)
    finally:
        pool.shutdown(cancel_futures=True)
    if dataset.task == "detection":
        seen.boxes = boxes.rows()
    return seen


def _empty(dataset: Dataset, *, cheap: bool) -> Seen:
    names = tuple(dataset.splits)
    parts = [np.asarray(dataset.splits[name], np.int64) for name in names]
    ids = np.concatenate([np.zeros(0, np.int64), *parts])
    split = np.repeat(np.arange(len(names)), [len(p) for p in parts])
    return Seen(dataset, cheap, ids, names, split, np.zeros((len(ids), 2), np.int32))


def _look(dataset: Dataset, i: int, classes: int) -> Look:
    out = Look()
    image: Array | None = None
    second: Array | None = None
    try:
        image, out.size = dataset.images.load(i, None)
        _pixels(out, image)
        if dataset.images2 is not None:
            second = dataset.images2.load(i, None)[0]
            out.digest = _digest(image, second)
            if second.shape != image.shape:
                out.frames = f"{_size(image.shape)} and {_size(second.shape)}"
                second = None
    except InputError as error:
        out.error = str(error)
    try:
        fields = {} if dataset.truth is None else dataset.truth.fields(i)
    except InputError as error:
        out.truth_error = str(error)
        return out
    out.truth_digest = _digest(*_arrays(fields))
    out.boxes = fields.get("boxes")
    size = out.size if image is not None else None
    for name in ("mask", "flow", "edges", "instances"):
        value = fields.get(name)
        # [H, W], [H, W, 2] and [A, H, W].
        shape = None if value is None else value.shape[1:] if name == "edges" else value.shape[:2]
        if shape is not None and size is not None and shape != size:
            kind = {"edges": "boundary map", "instances": "instance map"}.get(name, name)
            out.truth_error = f"the {kind} is {_size(shape)}, the image {_size(size)}"
            return out
    if fields.get("mask") is not None:
        out.mask = measures.look_at_mask(fields["mask"], classes)
    if fields.get("flow") is not None:
        out.flow = alignment.look_at_flow(
            fields["flow"], fields.get("flow_valid"), fields.get("occluded"), image, second
        )
    if fields.get("edges") is not None:
        out.edges = measures.look_at_edges(fields["edges"])
    return out


def _pixels(out: Look, image: Array) -> None:
    mean, std = cv2.meanStdDev(image)
    out.mean, out.std = mean.ravel() / 255, std.ravel() / 255
    out.low, out.high = int(image.min()), int(image.max())
    some = image[::2, ::2]
    out.grey = bool((some[..., :1] == some[..., 1:]).all())
    out.digest = _digest(image)
    if min(out.size) >= SMALLEST_HASHED:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        # Differences of neighbours' brightness, 8 × 8: they outlive compression and shrinking.
        cells = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
        bits = np.packbits(cells[:, 1:] > cells[:, :-1])
        out.dhash = int.from_bytes(bits.tobytes(), "big")
        out.thumb = cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA)


def _add(seen: Seen, boxes: _BoxLists, row: int, one: Look) -> None:
    if one.error:
        seen.errors[row] = one.error
    else:
        seen.readable[row] = True
        seen.sizes[row] = one.size
        seen.digest[row] = one.digest
        seen.means[row], seen.stds[row] = one.mean, one.std
        seen.low[row], seen.high[row] = one.low, one.high
        seen.grey[row] = one.grey
        if one.thumb is not None:
            seen.hashed[row] = True
            seen.dhash[row] = one.dhash
            seen.thumbs[row] = one.thumb.round()
    if one.truth_error:
        seen.truth_errors[row] = one.truth_error
    seen.truth_digest[row] = one.truth_digest
    if one.frames:
        seen.frames[row] = one.frames
    if one.boxes is not None:
        boxes.add(row, one.boxes)
    if one.mask is not None and seen.masks is not None:
        seen.masks.add(row, one.mask)
    if one.flow is not None:
        seen.flows[row] = one.flow
    if one.edges is not None:
        seen.edges[row] = one.edges


class _BoxLists:
    def __init__(self) -> None:
        self._xyxy, self._crowd = array("f"), bytearray()
        self._labels, self._rows, self._numbers = array("q"), array("q"), array("q")

    def add(self, row: int, boxes: Boxes) -> None:
        n = len(boxes)
        self._xyxy.extend(np.asarray(boxes.xyxy, np.float32).ravel().tolist())
        self._labels.extend(np.asarray(boxes.labels).tolist())
        self._crowd += np.asarray(boxes.crowd, np.uint8).tobytes()
        self._rows.extend([row] * n)
        self._numbers.extend(range(n))

    def rows(self) -> BoxRows:
        return BoxRows(
            np.array(self._xyxy, np.float32).reshape(-1, 4),
            np.array(self._labels, np.int64),
            np.array(self._rows, np.int64),
            np.array(self._numbers, np.int64),
            np.frombuffer(bytes(self._crowd), np.uint8).astype(bool),
        )


def _arrays(fields: dict[str, Any]) -> list[Array]:
    boxes = fields.get("boxes")
    found = [] if boxes is None else [boxes.xyxy, boxes.labels]
    names = ("mask", "flow", "edges")
    return found + [fields[name] for name in names if fields.get(name) is not None]


def _digest(*arrays: Array) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for one in arrays:
        digest.update(repr((one.shape, one.dtype.str)).encode())
        digest.update(np.ascontiguousarray(one).data)
    return int.from_bytes(digest.digest(), "little")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} × {shape[0]} pixels"


def _chunks(n: int) -> Iterator[range]:
    for start in range(0, n, CHUNK):
        yield range(start, min(start + CHUNK, n))


def _windowed(
    pool: ThreadPoolExecutor, work: Callable[[range], list[Look]], n: int, threads: int
) -> Iterator[list[Look]]:
    """The results in order, with a few chunks begun ahead and no more."""
    waiting = []
    for rows in _chunks(n):
        waiting.append(pool.submit(work, rows))
        if len(waiting) > 2 * max(threads, 1):
            yield waiting.pop(0).result()
    while waiting:
        yield waiting.pop(0).result()
