"""BSDS500: images/SPLIT/NAME.jpg and groundTruth/SPLIT/NAME.mat, several annotators each.

Each cell of groundTruth is an annotator's Boundaries (0 or 1) and Segmentation (numbers of
segments). It may lie in BSR/BSDS500/data, as it is distributed. Arbeláez et al. 2011, "Contour
Detection and Hierarchical Image Segmentation".
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vidi.data import export
from vidi.data.boxes import lost, some
from vidi.data.dataset import SPLITS, Dataset, FileImages, PathTable
from vidi.data.edges import ON, boundaries
from vidi.data.formats import Fake
from vidi.data.formats.folders import split_of
from vidi.data.matfiles import load_mat, save_mat
from vidi.data.voc_layout import by_stem, find_base, folders_in, names_in
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample

TASK = "boundaries"

IMAGES, TRUTH = "images", "groundtruth"
VARIABLE = "groundTruth"
_AS_DISTRIBUTED = ("data/", "BSDS500/data/", "BSR/BSDS500/data/")
_HALF = 128
"""A grey value from here on is written as boundary."""


def sniff(source: str) -> str | None:
    base = _base(source)
    if base is None:
        return None
    splits = _splits(os.path.join(source, base))
    how = ", ".join(splits) if "" not in splits.values() else "without splits"
    return f"BSDS500's layout ({base}images and {base}groundTruth with .mat files; {how})"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for annotations without their image; when it is loaded, for a .mat
    that is damaged, of version 7.3, without groundTruth, or of another size than its image."""
    base = _base(source)
    assert base is not None
    root = os.path.abspath(source)
    folders = folders_in(os.path.join(root, base))
    notes = [f"{source} is {sniff(source)}."]
    images, truths = PathTable(), PathTable()
    splits: dict[str, Array] = {}
    missing: list[str] = []
    without: list[str] = []
    for split, part in _splits(os.path.join(root, base)).items():
        at = f"{base}{folders[TRUTH]}/{part}"
        place = f"{base}{folders[IMAGES]}/{part}"
        if not os.path.isdir(os.path.join(root, place)):
            raise InputError(f"{source} holds {at} and no {place}. Add it, or remove the former.")
        pictures = by_stem(os.path.join(root, place))
        mats = {
            os.path.splitext(name)[0]: name
            for name in names_in(os.path.join(root, at))
            if name.lower().endswith(".mat") and not name.startswith(".")
        }
        missing += [at + name for stem, name in mats.items() if stem not in pictures]
        without += [place + name for stem, name in pictures.items() if stem not in mats]
        start = len(images)
        both = [stem for stem in pictures if stem in mats]
        images.extend([place + pictures[stem] for stem in both])
        truths.extend([at + mats[stem] for stem in both])
        if both:
            splits[split] = np.arange(start, len(images))
    if missing:
        raise InputError(
            f"{source}: {len(missing):,} annotations have no image of their name: {some(missing)}. "
            "Add the images, or remove the annotations."
        )
    if without:
        notes.append(
            f"{len(without):,} images have no annotation and were left out: {some(without)}."
        )
    files = images.images(root)
    return Dataset(
        root=root,
        format="bsds",
        task=TASK,
        classes=(),
        images=files,
        labels=None,
        splits=splits,
        notes=notes,
        truth=_Annotators(files, truths.images(root)),
    )


class _Annotators:
    """The .mat files, read on demand."""

    def __init__(self, images: FileImages, files: FileImages) -> None:
        self._images = images
        self._files = files

    def fields(self, i: int) -> dict[str, Any]:
        edges, segments = read_truth(self._files.path(i), self._images.size(i))
        return {"edges": edges, "segments": segments}

    def digest(self) -> bytes:
        return hashlib.blake2b(self._files.digest(), digest_size=16).digest()


def read_truth(path: str, size: tuple[int, int]) -> tuple[Array, Array | None]:
    """(edges uint8 [A, H, W], 0 or 255, segments int32 [A, H, W]) of a .mat of BSDS; ``size``: the
    height and width that are expected. Segments are ``None`` if an annotator has none.

    Raises :class:`InputError` for what does not hold that.
    """
    cells = load_mat(path, VARIABLE)
    if not isinstance(cells, np.ndarray) or cells.dtype != object or not cells.size:
        raise InputError(
            f"{path}: {VARIABLE} is {_described(cells)}; a cell for each annotator is expected."
        )
    edges = np.zeros((cells.size, *size), np.uint8)
    segments = np.zeros((cells.size, *size), np.int32)
    known = True
    for k, cell in enumerate(cells.ravel()):
        where = f"{path}, annotator {k + 1}"
        if not isinstance(cell, dict) or "Boundaries" not in cell:
            raise InputError(f"{where}: a struct with Boundaries is expected.")
        drawn, parts = cell["Boundaries"], cell.get("Segmentation")
        _check(drawn, size, f"{where}: Boundaries")
        if not np.isin(drawn, (0, 1)).all():
            raise InputError(f"{where}: Boundaries holds values other than 0 and 1.")
        edges[k] = drawn * np.uint8(ON)
        if parts is None:
            known = False
            continue
        _check(parts, size, f"{where}: Segmentation")
        if parts.dtype.kind == "f" and not (np.abs(parts) < 1 << 31).all():
            raise InputError(f"{where}: Segmentation holds values that are no numbers of segments.")
        segments[k] = parts
        if (segments[k] != parts).any():
            raise InputError(f"{where}: Segmentation holds values that are no whole numbers.")
    return edges, segments if known else None


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports boundaries and segmentations. Raises :class:`InputError` for what cannot be read."""
    names = export.names(dataset)
    counts: Counter[str] = Counter()
    for split in (s for s in SPLITS if s in dataset.splits):
        for part in ("images", VARIABLE):
            (folder / part / split).mkdir(parents=True)
        for i in map(int, dataset.splits[split]):
            export.save_image(dataset, i, folder / "images" / split / names[i])
            fields = dataset.annotations(i)
            edges, segments = fields.get("edges"), fields.get("segments")
            if edges is None and segments is not None:
                edges = boundaries(segments)
            if edges is None:
                raise InputError(f"{dataset.images.key(i)} has no boundaries to be exported.")
            counts["grey"] += bool(((edges > 0) & (edges < ON)).any())
            counts["whole"] += segments is None
            cells = np.empty((1, len(edges)), object)
            for k, one in enumerate(edges):
                cells[0, k] = {"Boundaries": (one >= _HALF).astype(np.uint8)}
                if segments is not None:
                    few = segments[k].min(initial=0) >= 0 and segments[k].max(initial=0) < 1 << 16
                    kept = segments[k].astype(np.uint16 if few else np.int32)
                    cells[0, k] = {"Segmentation": kept, **cells[0, k]}
            save_mat(folder / VARIABLE / split / f"{names[i]}.mat", {VARIABLE: cells})
    return lost(
        counts,
        {
            "grey": f"samples have boundaries between 0 and 255; this format knows 0 and 1, and "
            f"{_HALF} and above were written as 1.",
            "whole": "samples have no segmentations; theirs are left out, and programs that expect "
            "them may fail.",
        },
    )


def fake(folder: Path) -> Fake:
    """Four images with two or three annotators; the last without segmentations."""
    rng = np.random.default_rng(16)
    splits: dict[str, list[Sample]] = {}
    for k, split in enumerate(("train", "train", "val", "test")):
        for part in ("images", VARIABLE):
            (folder / part / split).mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (9, 12 + k, 3), dtype=np.uint8)
        coarse = rng.integers(1, 4, (2 + k % 2, 3, 5)).repeat(3, 1).repeat(3, 2)
        segments = coarse[:, :, : 12 + k].astype(np.int32)
        edges = boundaries(segments)
        cells = np.empty((1, len(edges)), object)
        for a, (one, parts) in enumerate(zip(edges, segments, strict=True)):
            cells[0, a] = {"Segmentation": parts.astype(np.uint16), "Boundaries": one // ON}
            if split == "test":
                del cells[0, a]["Segmentation"]
        key = f"images/{split}/{100 + k}.png"
        (folder / key).write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
        save_mat(folder / VARIABLE / split / f"{100 + k}.mat", {VARIABLE: cells})
        sample = Sample(
            key=key, image=image, edges=edges, segments=None if split == "test" else segments
        )
        splits.setdefault(split, []).append(sample)
    return Fake(str(folder), (), splits)


def _check(value: Any, size: tuple[int, int], what: str) -> None:
    if not isinstance(value, np.ndarray) or value.dtype == object:
        raise InputError(f"{what} is {_described(value)}; an array of numbers is expected.")
    if value.shape != size:
        raise InputError(
            f"{what} is {_described(value)}, and its image {size[1]} × {size[0]} pixels. They "
            "should have one size; put the file there that belongs to the image."
        )


def _described(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return "a struct" if isinstance(value, dict) else "a text"
    shape = " × ".join(map(str, value.shape[::-1] if value.ndim == 2 else value.shape))
    return f"an array of {shape} {'cells' if value.dtype == object else value.dtype}"


def _base(source: str) -> str | None:
    """The folder with images and groundTruth, from the source on."""
    for base in _AS_DISTRIBUTED:
        if _is_base(os.path.join(source, base)):
            return base
    return find_base(source, _is_base)


def _is_base(folder: str) -> bool:
    if not os.path.isdir(folder):
        return False
    named = folders_in(folder)
    return {IMAGES, TRUTH} <= named.keys() and bool(_splits(folder))


def _splits(folder: str) -> dict[str, str]:
    """Folders of groundTruth by split, with a "/"; {"train": ""} if it has none of them."""
    truth = os.path.join(folder, folders_in(folder)[TRUTH])
    found: dict[str, str] = {}
    for name in folders_in(truth).values():
        split = split_of(name)
        if split is None or not _holds_mat(os.path.join(truth, name)):
            continue
        if split in found:
            raise InputError(
                f"{truth} has two folders for the split {split}: {found[split]} and {name}/. Keep "
                "one of them."
            )
        found[split] = f"{name}/"
    if not found and _holds_mat(truth):
        return {"train": ""}
    return {split: found[split] for split in SPLITS if split in found}


def _holds_mat(folder: str) -> bool:
    return any(name.lower().endswith(".mat") for name in names_in(folder))
