"""Middlebury flow: other-data/SCENE/frame10.png and frame11.png, other-gt-flow/SCENE/flow10.flo.

Flow beyond 1e9 is not known, and not valid. Scenes without flow are left out. All is "train";
folders train, val and test, each with both of these, are read as splits. Baker et al. 2011.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from vidi.data.dataset import Dataset
from vidi.data.flow_layout import (
    OCCLUSION_LOST,
    Found,
    Pair,
    Truths,
    base_of,
    flow_of,
    left_out,
    lost,
    ordered,
    save_frames,
    scene_names,
    where,
)
from vidi.data.flowfiles import read_flo, write_flo
from vidi.data.formats import Fake
from vidi.data.voc_layout import by_stem, folders_in
from vidi.types import Notes, Sample

TASK = "flow"

FRAMES, FLOW = "other-data", "other-gt-flow"
_FIRST, _SECOND, _TRUTH = "frame10", "frame11", "flow10.flo"


def sniff(source: str) -> str | None:
    found = base_of(source, _is_part)
    return found and f"Middlebury's flow ({FRAMES} and {FLOW} in {where(*found)})"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for flow without its frames; when it is loaded, for bad flow, and
    one of another size than its frame."""
    at_base = base_of(source, _is_part)
    assert at_base is not None
    base, parts = at_base
    found = Found(notes=[f"{source} is {sniff(source)}."])
    for split, part in parts.items():
        folders = folders_in(os.path.join(source, base, part))
        frames_at = f"{base}{part}{folders[FRAMES]}/"
        truth_at = f"{base}{part}{folders[FLOW]}/"
        scenes = folders_in(os.path.join(source, frames_at))
        flows = folders_in(os.path.join(source, truth_at))
        for lower, scene in flows.items():
            path = f"{truth_at}{scene}/{_TRUTH}"
            if not os.path.isfile(os.path.join(source, path)):
                found.notes.append(f"{truth_at}{scene} holds no {_TRUTH} and was left out.")
                continue
            place = f"{frames_at}{scenes.get(lower, scene)}/"
            frames = by_stem(os.path.join(source, place)) if lower in scenes else {}
            if _FIRST not in frames or _SECOND not in frames:
                found.missing.append(f"{path} ({_FIRST} and {_SECOND} in {place})")
                continue
            pair = Pair(place + frames[_FIRST], place + frames[_SECOND], path)
            found.pairs.setdefault(split, []).append(pair)
        found.without += [
            frames_at + scene for lower, scene in scenes.items() if lower not in flows
        ]
    found.notes += left_out(os.path.join(source, base), parts)
    return found.dataset(source, "middlebury", _load)


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports pairs and flow, a scene for each pair. Raises :class:`InputError` for what cannot be
    read."""
    scenes = scene_names(dataset)
    counts: Counter[str] = Counter()
    alone = list(dataset.splits) == ["train"]
    for split, i in ordered(dataset):
        part = folder if alone else folder / split
        place = part / FRAMES / scenes[i]
        save_frames(dataset, i, place / f"{_FIRST}.png", place / f"{_SECOND}.png")
        flow, valid, occluded = flow_of(dataset, i)
        (part / FLOW / scenes[i]).mkdir(parents=True)
        write_flo(part / FLOW / scenes[i] / _TRUTH, flow, valid)
        counts["occluded"] += bool(occluded is not None and occluded.any())
    return lost(counts, {"occluded": OCCLUSION_LOST})


def fake(folder: Path) -> Fake:
    """Two scenes, some flow of the second not known; and a scene without flow."""
    rng = np.random.default_rng(14)
    samples = []
    for k, scene in enumerate(("Grove2", "RubberWhale", "Walking")):
        size = (9, 10 + k)
        place = folder / FRAMES / scene
        place.mkdir(parents=True)
        frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
        for name, frame in zip((_FIRST, _SECOND), frames, strict=True):
            encoded = cv2.imencode(".png", frame[:, :, ::-1])[1]
            (place / f"{name}.png").write_bytes(encoded.tobytes())
        if scene == "Walking":
            continue
        flow = rng.normal(0, 4, (*size, 2)).astype(np.float32)
        valid = rng.random(size) < (0.8 if k else 2)
        flow[~valid] = 0
        (folder / FLOW / scene).mkdir(parents=True)
        write_flo(folder / FLOW / scene / _TRUTH, flow, valid)
        sample = Sample(
            key=f"{FRAMES}/{scene}/{_FIRST}.png",
            image=frames[0],
            image2=frames[1],
            flow=flow,
            flow_valid=valid,
        )
        samples.append(sample)
    return Fake(str(folder), (), {"train": samples})


def _load(root: str, pair: Pair) -> Truths:
    flow, valid = read_flo(os.path.join(root, pair.flow))
    return {"flow": flow, "flow_valid": valid}


def _is_part(folder: str) -> bool:
    return {FRAMES, FLOW} <= folders_in(folder).keys()
