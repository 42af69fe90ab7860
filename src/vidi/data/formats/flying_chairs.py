"""FlyingChairs: 00001_img1.ppm, 00001_img2.ppm and 00001_flow.flo in one folder, mostly data/.

FlyingChairs_train_val.txt beside it or above says 1 (train) or 2 (validation) for each pair; a 3 is
read as test. Without it all pairs are "train". Dosovitskiy et al. 2015, "FlowNet".
"""

from __future__ import annotations

import os
import re
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
    lost,
    numbers,
    ordered,
    save_frames,
)
from vidi.data.flowfiles import read_flo, write_flo
from vidi.data.formats import Fake
from vidi.data.formats.folders import EXTENSIONS
from vidi.data.images import unreadable
from vidi.data.voc_layout import find_base, lines_of, names_in
from vidi.errors import InputError
from vidi.types import Notes, Sample

TASK = "flow"

LIST = "FlyingChairs_train_val.txt"
_LISTS = (LIST, "chairs_split.txt")
_NAME = re.compile(r"(\d+)_(img1|img2|flow)(\.\w+)")
_DIGITS = 5


def sniff(source: str) -> str | None:
    base = find_base(source, _is_base)
    if base is None:
        return None
    return f"FlyingChairs ({base}NNNNN_img1, _img2 and _flow.flo)"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for flow without a frame, a second picture of one name, and a list
    of splits that does not fit; when it is loaded, for bad flow or one of another size."""
    base = find_base(source, _is_base)
    assert base is not None
    parts: dict[str, dict[str, str]] = {}
    for name in names_in(os.path.join(source, base)):
        match = _NAME.fullmatch(name)
        if match is None or match[3].lower() not in (
            {".flo"} if match[2] == "flow" else EXTENSIONS
        ):
            continue
        own = parts.setdefault(match[1], {})
        if match[2] in own:
            raise InputError(
                f"{source} holds {own[match[2]]} and {base}{name}, for one frame. Remove one."
            )
        own[match[2]] = base + name
    found = Found(notes=[f"{source} is {sniff(source)}."])
    pairs: dict[int, Pair] = {}
    for number in sorted(parts, key=int):
        own = parts[number]
        if "flow" not in own:
            found.without += [name for part, name in own.items() if part == "img1"]
        elif len(own) < 3:
            found.missing.append(own["flow"])
        elif int(number) in pairs:
            raise InputError(f"{source} has the pair {int(number)} twice; the second is {number}.")
        else:
            pairs[int(number)] = Pair(own["img1"], own["img2"], own["flow"])
    splits, notes = _splits(source, base, list(pairs))
    found.notes += notes
    for n, pair in pairs.items():
        found.pairs.setdefault(splits[n], []).append(pair)
    return found.dataset(source, "flying_chairs", _load)


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports pairs and flow as they are. Raises :class:`InputError` for what cannot be read."""
    data = folder / "data"
    data.mkdir()
    number = numbers(dataset, 1, _DIGITS)
    counts: Counter[str] = Counter()
    split_of = {number[i]: split for split, i in ordered(dataset)}
    for _, i in ordered(dataset):
        stem = f"{number[i]:0{_DIGITS}d}"
        save_frames(dataset, i, data / f"{stem}_img1.ppm", data / f"{stem}_img2.ppm")
        flow, valid, occluded = flow_of(dataset, i)
        write_flo(data / f"{stem}_flow.flo", flow, valid)
        counts["occluded"] += bool(occluded is not None and occluded.any())
    if set(split_of.values()) != {"train"}:
        lines = [f"{SPLITS.index(split_of[n]) + 1}\n" for n in sorted(split_of)]
        (folder / LIST).write_text("".join(lines))
    return lost(counts, {"occluded": OCCLUSION_LOST})


def fake(folder: Path) -> Fake:
    """Five pairs, two of them for validation; some flow is not known."""
    rng = np.random.default_rng(11)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for number in range(1, 6):
        size = (9, 10 + number)
        frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
        flow = rng.normal(0, 4, (*size, 2)).astype(np.float32)
        valid = np.ones(size, bool)
        if number == 2:
            valid[:3], flow[:3] = False, 0
        stem = f"data/{number:05d}"
        for k, frame in enumerate(frames, 1):
            path = folder / f"{stem}_img{k}.ppm"
            path.write_bytes(cv2.imencode(".ppm", frame[:, :, ::-1])[1].tobytes())
        write_flo(folder / f"{stem}_flow.flo", flow, valid)
        sample = Sample(
            key=f"{stem}_img1.ppm",
            image=frames[0],
            image2=frames[1],
            flow=flow,
            flow_valid=valid,
        )
        splits["val" if number in (2, 5) else "train"].append(sample)
    (folder / LIST).write_text("1\n2\n1\n1\n2\n")
    return Fake(str(folder), (), splits)


def _load(root: str, pair: Pair) -> Truths:
    flow, valid = read_flo(os.path.join(root, pair.flow))
    return {"flow": flow, "flow_valid": valid}


def _is_base(folder: str) -> bool:
    """Whether flow and first frames lie in it; stops when both were seen."""
    seen = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match and (match[2] != "flow" or match[3].lower() == ".flo"):
                    seen.add(match[2])
                if {"img1", "flow"} <= seen:
                    return True
    except OSError as error:
        raise InputError(unreadable(folder, error)) from error
    return False


def _splits(source: str, base: str, pairs: list[int]) -> tuple[dict[int, str], Notes]:
    """Each pair's split by its number, and what is said of it."""
    inside = os.path.join(os.path.abspath(source), base)
    places = [inside, os.path.dirname(inside.rstrip("/")), os.path.abspath(source)]
    path = next(
        (
            p
            for place in places
            for name in _LISTS
            if os.path.isfile(p := os.path.join(place, name))
        ),
        None,
    )
    if path is None:
        return dict.fromkeys(pairs, "train"), [
            f"There is no {LIST}, so all pairs are for training."
        ]
    listed: list[str] = []
    for line, text in enumerate(lines_of(path), 1):
        if text.strip() not in ("1", "2", "3"):
            if not text.strip():
                continue
            raise InputError(
                f"{path}, line {line}: {text.strip()!r} was found; 1 (train), 2 (validation) or 3 "
                "(test) is expected, a line for each pair."
            )
        listed.append(SPLITS[int(text) - 1])
    name = os.path.basename(path)
    if len(listed) == len(pairs):
        return dict(zip(pairs, listed, strict=True)), [f"The splits are those of {name}."]
    beyond = [str(n) for n in pairs if not 0 < n <= len(listed)]
    if beyond:
        raise InputError(
            f"{path} has {len(listed):,} lines, and there are {len(pairs):,} pairs, among them "
            f"{some(beyond)}. A line for each pair is expected."
        )
    note = (
        f"The splits are those of {name}, whose {len(listed):,} lines are for the pairs 1 to "
        f"{len(listed)}; {len(pairs):,} of these are here."
    )
    return {n: listed[n - 1] for n in pairs}, [note]
