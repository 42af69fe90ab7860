"""KITTI 2012 and 2015 flow: training/image_2 (or colored_0, image_0), flow_occ and flow_noc.

The flow is flow_occ's, 16-bit PNG in steps of 1/64 pixel. Pixels that it knows and flow_noc does
not are occluded; without flow_noc (or without this pair's) occlusion is not known. validation/ and
testing/ are read beside training/ where they hold flow too; KITTI's own testing/ does not. Geiger
et al. 2012; Menze and Geiger 2015.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from vidi.data.boxes import some
from vidi.data.dataset import Dataset
from vidi.data.flow_layout import (
    Found,
    Pair,
    Truths,
    base_of,
    check_size,
    flow_of,
    left_out,
    lost,
    next_name,
    numbers,
    ordered,
    save_frames,
    where,
)
from vidi.data.flowfiles import read_kitti, write_kitti
from vidi.data.formats import Fake
from vidi.data.voc_layout import by_stem, folders_in, names_in
from vidi.errors import InputError
from vidi.types import Notes, Sample

TASK = "flow"

FRAMES = ("image_2", "colored_0", "image_0")
"""Of 2015 in colour; of 2012 in colour and in grey."""
FOLDERS = {"train": "training", "val": "validation", "test": "testing"}
_DIGITS = 6


def sniff(source: str) -> str | None:
    found = base_of(source, _is_part)
    if found is None:
        return None
    return f"KITTI's flow (16-bit PNG in flow_occ or flow_noc; {where(*found)})"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for flow without its frames; when it is loaded, for flow that is
    no 16-bit PNG, a damaged one, and one of another size than its frame."""
    at_base = base_of(source, _is_part)
    assert at_base is not None
    base, parts = at_base
    inside = os.path.join(source, base)
    found = Found(notes=[f"{source} is {sniff(source)}."])
    for split, part in parts.items():
        folders = folders_in(os.path.join(inside, part))
        place = next((f for f in FRAMES if f in folders), None)
        truth = next(f for f in ("flow_occ", "flow_noc") if f in folders)
        if place is None:
            raise InputError(
                f"{os.path.join(inside, part)} holds {truth} and no frames; a folder "
                f"{', '.join(FRAMES[:-1])} or {FRAMES[-1]} is expected beside it."
            )
        others = [f for f in FRAMES if f in folders and f != place]
        if others:
            found.notes.append(f"The frames are those of {place}; {some(others)} was not read.")
        if truth == "flow_noc":
            found.notes.append("There is no flow_occ; the flow is flow_noc's.")
        at = {name: f"{base}{part}{folders[name]}/" for name in folders}
        frames = by_stem(os.path.join(source, at[place]))
        flows = by_stem(os.path.join(source, at[truth]))
        seen = by_stem(os.path.join(source, at["flow_noc"])) if "flow_noc" in at else {}
        has_occlusion = truth == "flow_occ" and bool(seen)
        unknown = []
        for stem, name in flows.items():
            after = next_name(stem)
            if stem not in frames or after not in frames:
                found.missing.append(at[truth] + name)
                continue
            occlusion = at["flow_noc"] + seen[stem] if has_occlusion and stem in seen else ""
            unknown += [] if occlusion else [stem]
            found.pairs.setdefault(split, []).append(
                Pair(
                    at[place] + frames[stem], at[place] + frames[after], at[truth] + name, occlusion
                )
            )
        found.without += [
            at[place] + name
            for stem, name in frames.items()
            if stem.endswith("_10") and stem not in flows and next_name(stem) in frames
        ]
        if unknown:
            found.notes.append(
                f"Of {len(unknown):,} pairs in {part or 'the folder'} it is not known what is "
                f"occluded (no flow_noc beside flow_occ): {some(unknown)}."
            )
    found.notes += left_out(inside, parts)
    return found.dataset(source, "kitti_flow", _load)


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports pairs, and flow in steps of 1/64 pixel from -512 to 511.98; flow beyond that becomes
    not known. Raises :class:`InputError` for what cannot be read."""
    number = numbers(dataset, 0, _DIGITS)
    counts: Counter[str] = Counter()
    for split, i in ordered(dataset):
        place = folder / FOLDERS[split]
        stem = f"{number[i]:0{_DIGITS}d}"
        frames = place / "image_2"
        save_frames(dataset, i, frames / f"{stem}_10.png", frames / f"{stem}_11.png")
        flow, valid, occluded = flow_of(dataset, i)
        (place / "flow_occ").mkdir(exist_ok=True)
        rounded, beyond = write_kitti(place / "flow_occ" / f"{stem}_10.png", flow, valid)
        counts["rounded"] += rounded
        counts["beyond"] += beyond
        if occluded is not None:
            (place / "flow_noc").mkdir(exist_ok=True)
            write_kitti(place / "flow_noc" / f"{stem}_10.png", flow, valid & ~occluded)
            counts["hidden"] += int((occluded & ~valid).sum())
    return lost(
        counts,
        {
            "rounded": "pixels' flow was rounded to 1/64 pixel, which is this format's step.",
            "beyond": "pixels' flow lies beyond this format's range (-512 to 511.98 pixels); it "
            "was written as not known.",
            "hidden": "pixels are occluded and their flow is not known; this format cannot say "
            "that they are occluded.",
        },
    )


def fake(folder: Path) -> Fake:
    """Three pairs for training, one of them without flow_noc; one for validation."""
    rng = np.random.default_rng(12)
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for number in range(4):
        split = "val" if number == 3 else "train"
        place = folder / FOLDERS[split]
        for name in ("image_2", "flow_occ", "flow_noc"):
            (place / name).mkdir(parents=True, exist_ok=True)
        size = (8, 11 + number)
        frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
        flow = (rng.integers(-32768, 32768, (*size, 2)) / 64).astype(np.float32)
        valid = rng.random(size) < 0.7
        occluded = valid & (rng.random(size) < 0.2)
        flow[~valid] = 0
        for k, frame in enumerate(frames):
            path = place / "image_2" / f"{number:06d}_1{k}.png"
            path.write_bytes(cv2.imencode(".png", frame[:, :, ::-1])[1].tobytes())
        write_kitti(place / "flow_occ" / f"{number:06d}_10.png", flow, valid)
        if number != 1:
            write_kitti(place / "flow_noc" / f"{number:06d}_10.png", flow, valid & ~occluded)
        sample = Sample(
            key=f"{FOLDERS[split]}/image_2/{number:06d}_10.png",
            image=frames[0],
            image2=frames[1],
            flow=flow,
            flow_valid=valid,
            occluded=None if number == 1 else occluded,
        )
        splits[split].append(sample)
    return Fake(str(folder), (), splits)


def _load(root: str, pair: Pair) -> Truths:
    flow, valid = read_kitti(os.path.join(root, pair.flow))
    found: Truths = {"flow": flow, "flow_valid": valid}
    if pair.occlusion:
        path = os.path.join(root, pair.occlusion)
        seen = read_kitti(path)[1]
        check_size(seen.shape, (flow.shape[0], flow.shape[1]), path)
        found["occluded"] = valid & ~seen
    return found


def _is_part(folder: str) -> bool:
    """Whether flow lies in it, by KITTI's names."""
    named = folders_in(folder)
    return any(
        re.fullmatch(r"\d+_\d+\.png", name)
        for truth in named.keys() & {"flow_occ", "flow_noc"}
        for name in names_in(os.path.join(folder, named[truth]))
    )
