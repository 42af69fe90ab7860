"""Generated scenes, for any task: scenes:flow, or scenes:detection,size=192,difficulty=hard,n=500.

After the task, in any order: size (pixels; 192, or height x width: 192x256), difficulty (easy,
default, hard), seed, and n, val and test, the numbers of scenes in the splits. A split is a range
of the generator's scenes of its own, the same ones every time. Classification's have one object.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidi.data import scenes
from vidi.data.dataset import SPLITS, Dataset
from vidi.data.formats import Fake
from vidi.data.images import shrink
from vidi.errors import InputError
from vidi.types import Array, Sample

NAME = "scenes"
TRUTH = {
    # Instances go with boxes, so that these stay tight when the image is turned.
    "classification": ("label",),
    "detection": ("boxes", "instances"),
    "segmentation": ("mask",),
    "flow": ("flow", "flow_valid", "occluded"),
    "boundaries": ("edges", "segments"),
}
SIDE = {"flow": 256}
"""Pixels of a scene's sides where nothing is said; 128 for other tasks."""
COUNTS = {"train": 10000, "val": 200, "test": 200}
COUNTS_OF: dict[str, dict[str, int]] = {
    "segmentation": {"train": 15000},
    "flow": {"train": 4000},
}
"""Where other numbers are better: a run of minutes sees each of 10,000 masks a dozen times, and a
pair of frames takes ten times as long to draw."""
APART = 10**9
"""Index of a split's first scene: 0, 10⁹, 2 · 10⁹."""
DRAWN = 1
"""Goes up when the same seed and index come to look different."""
KEPT = 8
"""Scenes whose pictures are kept for a moment: image, second frame and truth are asked for one
after the other, and are drawn at once."""
SIDES = (16, 4096)


def sniff(source: str) -> str | None:
    named = source.startswith(f"{NAME}:") or (source == NAME and not os.path.exists(source))
    return "scenes:TASK is the name of embedded data" if named else None


def task_of(source: str) -> str:
    """What the source says; whether there is such a task, :func:`read` sees."""
    return source.removeprefix(NAME).removeprefix(":").split(",")[0].strip()


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for an unknown task or option, or a value out of range."""
    what = _parsed(source)
    first = {name: k * APART for k, name in enumerate(SPLITS)}
    counts = {name: n for name, n in what.counts.items() if n}
    indices = np.concatenate([first[name] + np.arange(n) for name, n in counts.items()])
    starts = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
    drawn = _Scenes(what, indices)
    height, width = what.size
    return Dataset(
        root=source,
        format="scenes",
        task=what.task,
        classes={
            "segmentation": ("background", *scenes.CLASSES),
            "flow": (),
            "boundaries": (),
        }.get(what.task, scenes.CLASSES),
        images=_Frames(drawn, "image", starts),
        images2=_Frames(drawn, "image2", starts) if what.task == "flow" else None,
        labels=scenes.lone_classes(what.seed, indices) if what.lone else None,
        splits={name: start + np.arange(counts[name]) for name, start in starts.items()},
        notes=[
            f"{source} is drawn as it is read: scenes of {height} × {width} pixels, difficulty "
            f"{what.difficulty}, seed {what.seed}, the same ones every time."
        ],
        truth=None if what.lone else drawn,
    )


def fake(folder: Path, task: str = "classification") -> Fake:
    """Nothing is written: the real ones are at hand."""
    source = f"{NAME}:{task},size=24x32,n=12,val=3,test=2"
    what = _parsed(source)
    samples = {
        name: [_sample(what, k * APART + i, f"{name}/{i:06d}") for i in range(what.counts[name])]
        for k, name in enumerate(SPLITS)
    }
    return Fake(source, read(source).classes, samples)


def _sample(what: _What, index: int, key: str) -> Sample:
    return Sample(key=key, **what.fields(index, pictures=True, truth=True))


@dataclass(frozen=True)
class _What:
    """What a source asks for. ``counts``: scenes by split."""

    task: str
    size: tuple[int, int]
    difficulty: str
    seed: int
    counts: dict[str, int]

    @property
    def lone(self) -> bool:
        return self.task == "classification"

    def fields(self, index: int, *, pictures: bool, truth: bool) -> dict[str, Any]:
        wanted = list(TRUTH[self.task]) if truth else []
        if pictures:
            wanted += ["image", "image2"] if self.task == "flow" else ["image"]
        return scenes.fields_of(
            self.seed,
            index,
            size=self.size,
            difficulty=self.difficulty,
            lone=self.lone,
            fields=wanted,
        )


class _Scenes:
    """Scenes by sample: drawn on demand, by any thread; also the data's truth."""

    def __init__(self, what: _What, indices: Array) -> None:
        self.what = what
        self.indices = indices
        self._lock = threading.Lock()
        self._pictures: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._truth: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def picture(self, i: int, name: str) -> Array:
        """A frame, not to be written to: others may be given the same."""
        with self._lock:
            found = self._pictures.get(i)
        if found is None:
            # Two threads that want the same scene at once both draw it; it comes out the same.
            fields = self.what.fields(int(self.indices[i]), pictures=True, truth=not self.what.lone)
            found = {frame: fields.pop(frame) for frame in ("image", "image2") if frame in fields}
            for frame in found.values():
                frame.setflags(write=False)
            with self._lock:
                _keep(self._pictures, i, found)
                _keep(self._truth, i, fields)
        return np.asarray(found[name])

    def fields(self, i: int) -> dict[str, Any]:
        with self._lock:
            found = self._truth.pop(i, None)  # given away: nobody else holds these arrays
        if found is not None:
            return found
        return self.what.fields(int(self.indices[i]), pictures=False, truth=True)

    def digest(self) -> bytes:
        text = repr((DRAWN, self.what))
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


class _Frames:
    """The first or the second frames, as :class:`vidi.data.dataset.Images`."""

    has_headers = True

    def __init__(self, drawn: _Scenes, name: str, starts: dict[str, int]) -> None:
        self._drawn = drawn
        self._name = name
        self._splits = list(starts)
        self._starts = list(starts.values())

    def __len__(self) -> int:
        return len(self._drawn.indices)

    def key(self, i: int) -> str:
        split = bisect_right(self._starts, i) - 1
        return f"{self._splits[split]}/{i - self._starts[split]:06d}"

    def identity(self, i: int) -> bytes | None:
        return None

    def size(self, i: int) -> tuple[int, int]:
        return self._drawn.what.size

    def load(self, i: int, shorter: int | None) -> tuple[Array, tuple[int, int]]:
        return shrink(self._drawn.picture(i, self._name), self.size(i), shorter), self.size(i)

    def digest(self) -> bytes:
        return self._drawn.digest() + self._name.encode()


def _keep(store: OrderedDict[int, dict[str, Any]], i: int, what: dict[str, Any]) -> None:
    store[i] = what
    while len(store) > KEPT:
        store.popitem(last=False)


def _parsed(source: str) -> _What:
    task = task_of(source)
    if task not in TRUTH:
        raise InputError(
            f"{source} names {f'the task {task!r}' if task else 'no task'}; scenes are drawn for "
            f"{', '.join(TRUTH)}: {NAME}:{_nearest(task, TRUTH) or 'classification'}."
        )
    side = SIDE.get(task, 128)
    size, difficulty, seed = (side, side), "default", 0
    counts = COUNTS | COUNTS_OF.get(task, {})
    for option in source.split(",")[1:]:
        name, equals, value = (part.strip() for part in option.partition("="))
        if name == "size" and equals:
            sides = [_number(source, name, one, *SIDES) for one in value.split("x")[:2]]
            if value.count("x") > 1:
                raise InputError(f"{source}: {option} is no size; write size=192 or size=192x256.")
            size = (sides[0], sides[-1])
        elif name == "difficulty" and equals:
            if value not in scenes.DIFFICULTIES:
                known = ", ".join(scenes.DIFFICULTIES)
                raise InputError(f"{source}: {value!r} is no difficulty; there are {known}.")
            difficulty = value
        elif name == "seed" and equals:
            seed = _number(source, name, value, 0, 2**63 - 1)
        elif name in ("n", "val", "test") and equals:
            split = "train" if name == "n" else name
            counts[split] = _number(source, name, value, 1 if name == "n" else 0, 10**7)
        else:
            options = ("size", "difficulty", "seed", "n", "val", "test")
            near = _nearest(name, options)
            raise InputError(
                f"{source}: {option!r} is no option"
                + (f" (is {near} meant?)" if near else "")
                + f"; there are {', '.join(options)}, each with = and a value."
            )
    return _What(task, size, difficulty, seed, counts)


def _number(source: str, name: str, text: str, low: int, high: int) -> int:
    if not text.isascii() or not text.isdecimal() or not low <= int(text) <= high:
        raise InputError(
            f"{source}: {name} is {text!r}; a whole number from {low:,} to {high:,} is expected."
        )
    return int(text)


def _nearest(name: str, known: Any) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)
