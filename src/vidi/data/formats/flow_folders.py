"""Folders of consecutive frames with .flo files: a.png, b.png, and a.flo for the motion a to b.

A .flo has the name of the first frame of its pair and lies beside it; the second is the next frame
of that folder, by the numbers if names end in some. Folders may lie in one another, one for each
sequence; train, val and test at the top are splits, else all is "train".
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from vidi.data.boxes import some
from vidi.data.dataset import SPLITS, Dataset
from vidi.data.flow_layout import (
    OCCLUSION_LOST,
    Found,
    Pair,
    Truths,
    flow_of,
    in_order,
    lost,
    ordered,
    save_frames,
    scene_names,
    successors,
)
from vidi.data.flowfiles import read_flo, write_flo
from vidi.data.formats import Fake
from vidi.data.formats.folders import is_image, split_of
from vidi.data.images import unreadable
from vidi.errors import InputError
from vidi.types import Notes, Sample

TASK = "flow"

MOST_LOOKED = 30
"""Folders that are looked at before it is decided that this is another kind of data."""
_DEPTH = 8


def sniff(source: str) -> str | None:
    if not os.path.isdir(source):
        return None
    left = [MOST_LOOKED]
    first = _first_flow(source, "", left, _DEPTH)
    return None if first is None else f"frames with .flo files of their names (such as {first})"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for flow without one of its frames, two frames of one name or
    number, and a link to a folder that it lies in; when it is loaded, for bad flow or one of
    another size."""
    found = Found(notes=[f"{source} is {sniff(source)}."])
    _, flows, folders = _scan(source)
    named = {f: split_of(f) for f in folders}
    if not flows and any(named.values()):
        other = [f for f, split in named.items() if split is None]
        if other:
            found.notes.append(f"{some(other)} beside the splits was passed over.")
        for split in SPLITS:
            own = [f for f, s in named.items() if s == split]
            if len(own) > 1:
                raise InputError(
                    f"{source} has two folders for the split {split}: {' and '.join(own)}. Keep "
                    "one of them."
                )
            for name in own:
                _collect(source, f"{name}/", split, found, ())
    else:
        _collect(source, "", "train", found, ())
    return found.dataset(source, "flow_folders", _load)


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports each pair into a folder of its own. Raises :class:`InputError` for what cannot be
    read."""
    names = scene_names(dataset)
    counts: Counter[str] = Counter()
    for split, i in ordered(dataset):
        place = folder / split / names[i]
        save_frames(dataset, i, place / "frame_0001.png", place / "frame_0002.png")
        flow, valid, occluded = flow_of(dataset, i)
        write_flo(place / "frame_0001.flo", flow, valid)
        counts["occluded"] += bool(occluded is not None and occluded.any())
    return lost(counts, {"occluded": OCCLUSION_LOST})


def fake(folder: Path) -> Fake:
    """A sequence of four frames, one pair of which has no flow; one of two frames; and a pair for
    validation without a folder of its own."""
    rng = np.random.default_rng(15)
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for split, place, names, known in (
        ("train", "train/a/", ("8", "9", "10", "11"), (True, True, False)),
        ("train", "train/b/c/", ("left", "right"), (True,)),
        ("val", "val/", ("x1", "x2"), (True,)),
    ):
        (folder / place).mkdir(parents=True)
        size = (9, 11)
        frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in names]
        for name, frame in zip(names, frames, strict=True):
            encoded = cv2.imencode(".png", frame[:, :, ::-1])[1]
            (folder / f"{place}{name}.png").write_bytes(encoded.tobytes())
        for k, there in enumerate(known):
            if not there:
                continue
            flow = rng.normal(0, 5, (*size, 2)).astype(np.float32)
            valid = rng.random(size) < 0.9
            flow[~valid] = 0
            write_flo(folder / f"{place}{names[k]}.flo", flow, valid)
            sample = Sample(
                key=f"{place}{names[k]}.png",
                image=frames[k],
                image2=frames[k + 1],
                flow=flow,
                flow_valid=valid,
            )
            splits[split].append(sample)
    return Fake(str(folder), (), splits)


def _collect(source: str, at: str, split: str, found: Found, above: tuple[str, ...]) -> None:
    """Add the pairs in and below the folder ``at``, from the source on."""
    here = os.path.join(source, at)
    real = os.path.realpath(here)
    if real in above:
        raise InputError(f"{here} is a link to a folder that it lies in. Remove it.")
    images, flows, folders = _scan(here)
    frames = {os.path.splitext(name)[0]: name for name in images}
    if flows and len(frames) < len(images):
        twice = [n for n in images if frames[os.path.splitext(n)[0]] != n]
        raise InputError(f"{here} has two frames of one name: {some(twice)}. Remove one of each.")
    after = successors(here, frames).after if flows else {}
    for name in in_order(flows):
        stem = os.path.splitext(name)[0]
        if stem not in frames or stem not in after:
            found.missing.append(at + name)
            continue
        pair = Pair(at + frames[stem], at + frames[after[stem]], at + name)
        found.pairs.setdefault(split, []).append(pair)
    with_flow = {os.path.splitext(name)[0] for name in flows}
    # The frame after a pair's first may well have none, if the next one is not its successor.
    found.without += [at + frames[stem] for stem in after if stem not in with_flow]
    if not flows and images:
        found.notes.append(f"{here} holds {len(images):,} images and no flow; they were left out.")
    for name in folders:
        _collect(source, f"{at}{name}/", split, found, (*above, real))


def _load(root: str, pair: Pair) -> Truths:
    flow, valid = read_flo(os.path.join(root, pair.flow))
    return {"flow": flow, "flow_valid": valid}


def _first_flow(source: str, at: str, left: list[int], depth: int) -> str | None:
    """The first .flo beside a frame of its name; ``left``: folders that may yet be looked at."""
    if not left[0]:
        return None
    left[0] -= 1
    images, flows, folders = _scan(os.path.join(source, at))
    if flows:
        frames = {os.path.splitext(name)[0] for name in images}
        beside = [name for name in flows if os.path.splitext(name)[0] in frames]
        return at + beside[0] if beside else None
    if not depth:
        return None
    below = (_first_flow(source, f"{at}{name}/", left, depth - 1) for name in folders)
    return next((found for found in below if found is not None), None)


def _scan(folder: str) -> tuple[list[str], list[str], list[str]]:
    """(images, flow files, folders) directly in a folder, sorted by name."""
    images: list[str] = []
    flows: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(".flo"):
                    flows.append(entry.name)
                elif is_image(entry.name):
                    images.append(entry.name)
                elif entry.is_dir():
                    folders.append(entry.name)
    except OSError as error:
        raise InputError(unreadable(folder, error)) from error
    return sorted(images), sorted(flows), sorted(folders)
