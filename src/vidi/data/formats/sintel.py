"""MPI Sintel: training/clean and training/final (SCENE/frame_0001.png), flow, occlusions, invalid.

Both passes are samples, as in training on Sintel; they share their flow. Naming one pass's folder
(Sintel/training/final) reads that one alone, as its results are reported. validation/ and test/ are
read beside training/ where they hold flow too; Sintel's own test/ does not. Butler et al. 2012.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np

from vidi.data.boxes import some
from vidi.data.dataset import SPLITS, Dataset
from vidi.data.export import save_png
from vidi.data.flow_layout import (
    Found,
    Pair,
    Truths,
    base_of,
    check_size,
    flow_of,
    in_order,
    left_out,
    next_name,
    ordered,
    save_frames,
    scene_names,
    where,
)
from vidi.data.flowfiles import read_flo, write_flo
from vidi.data.formats import Fake
from vidi.data.images import decode
from vidi.data.images import read as read_bytes
from vidi.data.voc_layout import by_stem, folders_in, names_in
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample

TASK = "flow"

PASSES = ("clean", "final")
FOLDERS = {"train": "training", "val": "validation", "test": "test"}
_KEY = re.compile(r"(?:^|/)(clean|final)/([^/]+)/(frame_(\d+))\.png$")


def sniff(source: str) -> str | None:
    if _is_pass(source):
        return (
            f"MPI Sintel's pass {os.path.basename(os.path.abspath(source)).lower()} with its flow"
        )
    found = base_of(source, _is_part)
    if found is None:
        return None
    base, parts = found
    passes = _passes(os.path.join(source, base, next(iter(parts.values()))))
    return f"MPI Sintel ({', '.join(passes)} and flow, in {where(base, parts)})"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for flow without its frames; when it is loaded, for bad flow, and
    a flow or mask of another size than its frame."""
    found = Found(notes=[f"{source} is {sniff(source)}."])
    if _is_pass(source):
        _collect(source, "train", "", "../", found)
        return found.dataset(source, "sintel", _load)
    at_base = base_of(source, _is_part)
    assert at_base is not None
    base, parts = at_base
    inside = os.path.join(source, base)
    for split, part in parts.items():
        passes = _passes(os.path.join(inside, part))
        for name in passes:
            _collect(source, split, f"{base}{part}{name}/", f"{base}{part}", found)
        if len(passes) == 2:
            found.notes.append(
                f"Both passes of {part or source} are read, each pair twice with one flow; name "
                f"{os.path.join(inside, part)}{passes[1]} to read that pass alone."
            )
    found.notes += left_out(inside, parts)
    return found.dataset(source, "sintel", _load)


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports pairs, flow, and what is occluded and not known. Frames from elsewhere become the
    clean pass, a scene for each pair. Raises :class:`InputError` for what cannot be read."""
    places = _own_places(dataset) or [
        ("clean", scene, "frame_0001") for scene in scene_names(dataset)
    ]
    for split, i in ordered(dataset):
        name, scene, first = places[i]
        second = next_name(first)
        part = folder / FOLDERS[split]
        frames = part / name / scene
        save_frames(dataset, i, frames / f"{first}.png", frames / f"{second}.png")
        flow, valid, occluded = flow_of(dataset, i)
        (part / "flow" / scene).mkdir(parents=True, exist_ok=True)
        write_flo(part / "flow" / scene / f"{first}.flo", flow)
        for kind, mask in (("occlusions", occluded), ("invalid", ~valid)):
            if mask is not None:
                (part / kind / scene).mkdir(parents=True, exist_ok=True)
                save_png(mask * np.uint8(255), part / kind / scene / f"{first}.png")
    return []


def fake(folder: Path) -> Fake:
    """A scene of three frames in both passes, the second pair without an occlusion mask; and a
    scene for validation, clean only."""
    rng = np.random.default_rng(13)
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for split, scene, count, passes in (
        ("train", "alley_1", 3, PASSES),
        ("val", "cave_2", 2, PASSES[:1]),
    ):
        part = folder / FOLDERS[split]
        for kind in ("flow", "occlusions", "invalid", *passes):
            (part / kind / scene).mkdir(parents=True)
        size = (8, 12)
        truths = []
        for k in range(1, count):
            flow = rng.normal(0, 9, (*size, 2)).astype(np.float32)
            valid, occluded = rng.random(size) < 0.9, rng.random(size) < 0.2
            flow[~valid] = 0
            write_flo(part / f"flow/{scene}/frame_{k:04d}.flo", flow)
            save_png(~valid * np.uint8(255), part / f"invalid/{scene}/frame_{k:04d}.png")
            if k == 1:
                save_png(occluded * np.uint8(255), part / f"occlusions/{scene}/frame_{k:04d}.png")
            truths.append((flow, valid, occluded if k == 1 else None))
        for name in passes:
            frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]
            for k, frame in enumerate(frames, 1):
                path = part / f"{name}/{scene}/frame_{k:04d}.png"
                path.write_bytes(cv2.imencode(".png", frame[:, :, ::-1])[1].tobytes())
            for k, (flow, valid, hidden) in enumerate(truths):
                sample = Sample(
                    key=f"{FOLDERS[split]}/{name}/{scene}/frame_{k + 1:04d}.png",
                    image=frames[k],
                    image2=frames[k + 1],
                    flow=flow,
                    flow_valid=valid,
                    occluded=hidden,
                )
                splits[split].append(sample)
    return Fake(str(folder), (), splits)


def _collect(source: str, split: str, frames_at: str, truth_at: str, found: Found) -> None:
    """Add the pairs of one pass. ``frames_at``: its folder, from the source on; ``truth_at``: that
    in which flow lies."""
    folders = folders_in(os.path.join(source, truth_at))
    at = {name: f"{truth_at}{folders[name]}/" for name in folders}
    scenes = folders_in(os.path.join(source, frames_at))
    flows = folders_in(os.path.join(source, at["flow"]))
    pairs = found.pairs.setdefault(split, [])
    incomplete: dict[str, list[str]] = {"occlusions": [], "invalid": []}
    for lower, scene in scenes.items():
        place = f"{frames_at}{scene}/"
        frames = by_stem(os.path.join(source, place))
        truth = f"{at['flow']}{flows.get(lower, scene)}/"
        there = _flo_stems(os.path.join(source, truth)) if lower in flows else {}
        masks = {kind: _mask_files(source, at, kind, scene) for kind in incomplete}
        for stem in in_order(there):
            after = next_name(stem)
            if stem not in frames or after not in frames:
                found.missing.append(f"{truth}{there[stem]} (frames in {place})")
                continue
            extra = {kind: masks[kind].get(stem, "") for kind in masks}
            for kind, path in extra.items():
                if not path and kind in at:
                    incomplete[kind].append(f"{scene}/{stem}")
            pairs.append(
                Pair(
                    place + frames[stem],
                    place + frames[after],
                    truth + there[stem],
                    extra["occlusions"],
                    extra["invalid"],
                )
            )
        found.without += [
            place + name
            for stem, name in frames.items()
            if stem not in there and next_name(stem) in frames
        ]
    for lower, scene in flows.items():
        if lower not in scenes:
            found.missing.append(f"{at['flow']}{scene} (no folder {frames_at}{scene})")
    for kind, what in (("occlusions", "occluded"), ("invalid", "invalid")):
        if kind not in at:
            found.notes.append(f"There is no {truth_at}{kind}: what is {what} is not known.")
        elif incomplete[kind]:
            found.notes.append(
                f"{len(incomplete[kind]):,} pairs of {frames_at or source} have no file in {kind}: "
                f"{some(incomplete[kind])}."
            )


def _mask_files(source: str, at: dict[str, str], kind: str, scene: str) -> dict[str, str]:
    """Paths of one kind of masks of a scene, by frame."""
    if kind not in at or not os.path.isdir(os.path.join(source, at[kind], scene)):
        return {}
    place = f"{at[kind]}{scene}/"
    return {stem: place + name for stem, name in by_stem(os.path.join(source, place)).items()}


def _flo_stems(folder: str) -> dict[str, str]:
    names = [name for name in names_in(folder) if name.lower().endswith(".flo")]
    return {os.path.splitext(name)[0]: name for name in names}


def _load(root: str, pair: Pair) -> Truths:
    flow, valid = read_flo(os.path.join(root, pair.flow))
    size = (flow.shape[0], flow.shape[1])
    if pair.invalid:
        valid &= ~_mask(os.path.join(root, pair.invalid), size)
        flow[~valid] = 0
    found: Truths = {"flow": flow, "flow_valid": valid}
    if pair.occlusion:
        found["occluded"] = _mask(os.path.join(root, pair.occlusion), size)
    return found


def _mask(path: str, size: tuple[int, int]) -> Array:
    """bool [H, W] of a picture in black and white."""
    pixels = decode(read_bytes(path), path)[0]
    check_size(pixels.shape[:2], size, path)
    white = pixels == 255
    if not (white | (pixels == 0)).all():
        raise InputError(
            f"{path} holds values other than 0 and 255. A mask in black and white is expected, "
            "white where it applies."
        )
    return np.asarray(white[:, :, 0])


def _own_places(dataset: Dataset) -> list[tuple[str, str, str]] | None:
    """(pass, scene, first frame) of each sample, if all of them lie as Sintel's do."""
    assert dataset.images2 is not None
    places = []
    for i in range(len(dataset)):
        one, two = _KEY.search(dataset.images.key(i)), _KEY.search(dataset.images2.key(i))
        if not one or not two or (*one.group(1, 2), next_name(one[3])) != two.group(1, 2, 3):
            return None
        places.append((one[1], one[2], one[3]))
    for split in SPLITS:
        within = [places[int(i)] for i in dataset.splits.get(split, ())]
        if len(set(within)) < len(within):
            return None
    return places


def _passes(part: str) -> list[str]:
    named = folders_in(part)
    return [named[name] for name in PASSES if name in named]


def _is_pass(source: str) -> bool:
    """Whether the source is one pass's folder, its flow beside it."""
    path = os.path.abspath(source)
    return os.path.basename(path).lower() in PASSES and _is_part(os.path.dirname(path))


def _is_part(folder: str) -> bool:
    """Whether a pass and flow lie in it, in scenes."""
    if not os.path.isdir(folder):
        return False
    named = folders_in(folder)
    return "flow" in named and bool(named.keys() & set(PASSES))
