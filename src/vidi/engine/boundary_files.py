"""Boundary predictions that lie in files, whatever made them, against the truth of a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vidi.data.boxes import some
from vidi.data.dataset import Dataset
from vidi.data.formats import bsds
from vidi.data.formats.folders import is_image
from vidi.data.images import check_header, read, read_header
from vidi.data.matfiles import load_mat
from vidi.data.open import open_data
from vidi.errors import InputError
from vidi.ops import boundaries
from vidi.ops.boundary_scoring import Scoring
from vidi.ops.thinning import thin
from vidi.types import Array, Notes

ARRAYS = (".npy", ".mat")
THICK = 0.5
"""Where thinning takes away this share of what is predicted, lines are several pixels wide."""


@dataclass(frozen=True)
class FileScore:
    """``metrics``: ods, ois, ap. ``summary``: all of it. ``names``: the images, in the order of
    ``summary.images``. ``data``, ``split``: what was scored against."""

    data: str
    split: str
    names: list[str]
    metrics: dict[str, float]
    summary: boundaries.Summary
    human: bool
    """Whether the truth is BSDS's, for which it is known how well people agree."""
    notes: Notes


def score_folder(
    predictions: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    suppress: bool = False,
    levels: int = boundaries.LEVELS,
    max_distance: float = boundaries.MAX_DISTANCE,
    done: Callable[[int, int], None] | None = None,
) -> FileScore:
    """Score the maps in a folder: grey images of 8 or 16 bits, or arrays (.npy, .mat) from 0 to 1.

    ``data``: a boundary data set, or a folder of BSDS's .mat files; a prediction belongs to the
    image of its name, suffix aside. ``split``: test where there is one, else validation, else
    training. ``suppress``: put soft maps through non-maximum suppression first; without it they are
    taken to be thin already, and only thinned at each threshold, as BSDS's program does.
    ``done`` hears after each image how many of how many there are.

    Raises :class:`InputError` for images without a prediction, files that cannot be read, sizes
    that differ, and a truth without a boundary.
    """
    folder = Path(predictions).expanduser()
    if not folder.is_dir():
        raise InputError(f"There is no folder of predictions at {predictions}.")
    source, chosen, human, truths = _truths(str(Path(data).expanduser()), split)
    files = _by_name(folder)
    missing = [name for name, _ in truths if name not in files]
    if len(missing) == len(truths):
        found = some(sorted(p.name for p in files.values())) if files else "no map at all"
        raise InputError(
            f"{folder} has no prediction for the {len(truths)} images of {source}, split {chosen}: "
            f"it holds {found}. A prediction has its image's name, as {truths[0][0]}.png."
        )
    if missing:
        raise InputError(
            f"{folder} has no prediction for {len(missing)} of the {len(truths)} images of "
            f"{source}, split {chosen}: {some(missing)}. Predict them too, for the score is over "
            "all."
        )
    notes: Notes = []
    extra = len(files) - len(truths)
    if extra > 0:
        notes.append(f"{extra} files of {folder} belong to no image of the split, and were left.")
    scoring = Scoring(boundaries.levels(levels), thinned=suppress, max_distance=max_distance)
    drawn, kept = 0, 0
    try:
        for k, (name, truth) in enumerate(truths):
            path = files[name]
            prediction = read_prediction(path)
            edges = truth(prediction.shape[:2])
            if edges.shape[1:] != prediction.shape:
                (h, w), (height, width) = prediction.shape, edges.shape[1:]
                raise InputError(
                    f"{path} is {w} × {h} pixels, and its image {width} × {height}. Predict at "
                    "the image's full size; resizing a prediction would move its lines."
                )
            strong = prediction >= 0.5 * prediction.max(initial=0)
            strong &= prediction > 0
            drawn, kept = drawn + int(strong.sum()), kept + int(thin(strong).sum())
            scoring.add(prediction, edges, str(path))
            if done is not None:
                done(k + 1, len(truths))
        counts = scoring.counts()
    finally:
        scoring.close()
    if not suppress and kept < (1 - THICK) * drawn:
        notes.append(
            "The lines are several pixels wide, as a network leaves them. Published figures put "
            "such maps through non-maximum suppression first: --suppress."
        )
    summary = boundaries.summary(counts, boundaries.levels(levels))
    metrics = {"ods": summary.ods.f, "ois": summary.ois.f, "ap": summary.ap}
    return FileScore(source, chosen, [name for name, _ in truths], metrics, summary, human, notes)


def read_prediction(path: str | Path) -> Array:
    """float32 [H, W] from 0 to 1. Raises :class:`InputError` for what is no such map."""
    suffix = Path(path).suffix.lower()
    if suffix in ARRAYS:
        values = _array(str(path), suffix)
        if values.ndim != 2 or values.dtype.kind not in "fiub":
            raise InputError(
                f"{path} holds an array of {values.dtype} with the shape {values.shape}; a map "
                "of numbers [H, W] is expected."
            )
        least, most = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if not (least >= 0 and most <= 1):
            raise InputError(
                f"The values of {path} run from {least:g} to {most:g}; 0 to 1 is expected. Divide "
                "them by what stands for a certain boundary."
            )
        return values.astype(np.float32)
    data = read(str(path))
    check_header(read_header(data, str(path)), str(path))
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise InputError(f"{path} is cut short or damaged. Fetch or write it again.")
    if pixels.ndim == 3:
        if (pixels[:, :, :1] != pixels[:, :, 1:3]).any():
            raise InputError(
                f"{path} is in colour; a boundary map is grey, black = none to white = certain."
            )
        pixels = pixels[:, :, 0]
    white = {"uint8": 255, "uint16": 65535}.get(str(pixels.dtype))
    if white is None:
        raise InputError(f"{path} holds {pixels.dtype}; 8 or 16 bits are expected.")
    return np.asarray(pixels, np.float32) / np.float32(white)


def _array(path: str, suffix: str) -> Array:
    if suffix == ".npy":
        try:
            values: Array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} cannot be read as an array of numbers: {error}.") from error
        return values
    for name in ("prediction", "edge", "edges", "E", "pb", "gPb"):
        try:
            found = load_mat(path, name)
        except InputError:
            continue
        if isinstance(found, np.ndarray):
            return found
    raise InputError(
        f"{path} holds no array called prediction (or edge, edges, E, pb). Save the map under that "
        "name, or as PNG."
    )


def _truths(
    source: str, split: str | None
) -> tuple[str, str, bool, list[tuple[str, Callable[[tuple[int, int]], Array]]]]:
    """(source, split, whether they are BSDS's, for each image its name and what gives its maps for
    a size)."""
    mats = _bare_mats(source)
    if mats is not None:
        if split is not None:
            raise InputError(f"{source} is a folder of .mat files without splits; leave --split.")
        return source, "all", True, [(Path(m).stem, _MatTruth(m)) for m in mats]
    dataset = open_data(source, task="boundaries", carve_val=False)
    chosen = split or next(s for s in ("test", "val", "train") if s in dataset.splits)
    if chosen not in dataset.splits:
        raise InputError(f"{source} has no split {chosen!r}; it has {', '.join(dataset.splits)}.")
    ids = [int(i) for i in dataset.splits[chosen]]
    names = [os.path.splitext(os.path.basename(dataset.images.key(i)))[0] for i in ids]
    if len(set(names)) < len(names):
        raise InputError(
            f"Several images of {source}, split {chosen}, have the same name in different folders, "
            "so a folder of predictions cannot tell them apart. Choose a --split."
        )
    return (
        source,
        chosen,
        dataset.format == "bsds",
        [(name, _DatasetTruth(dataset, i)) for name, i in zip(names, ids, strict=True)],
    )


@dataclass(frozen=True)
class _MatTruth:
    path: str

    def __call__(self, size: tuple[int, int]) -> Array:
        return bsds.read_truth(self.path, size)[0]


@dataclass(frozen=True)
class _DatasetTruth:
    dataset: Dataset
    index: int

    def __call__(self, size: tuple[int, int]) -> Array:
        edges: Array = self.dataset.annotations(self.index)["edges"]
        return edges


def _bare_mats(source: str) -> list[str] | None:
    """The .mat files of a folder that has those and no images, or of its groundTruth."""
    for folder in (source, os.path.join(source, "groundTruth")):
        if not os.path.isdir(folder) or os.path.isdir(os.path.join(source, "images")):
            continue
        names = sorted(n for n in os.listdir(folder) if n.lower().endswith(".mat"))
        if names:
            return [os.path.join(folder, n) for n in names]
    return None


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _maps(folder):
        if path.stem in found:
            raise InputError(
                f"{folder} has two predictions called {path.stem}: {found[path.stem].name} and "
                f"{path.name}. Keep one of them."
            )
        found[path.stem] = path
    return found


def _maps(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        if not name.startswith(".") and (is_image(name) or name.endswith(ARRAYS)):
            yield path
