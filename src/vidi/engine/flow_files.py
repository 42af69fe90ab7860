"""Flow predictions that lie in files, whatever made them, against the truth of a data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidi.data.boxes import some
from vidi.data.flowfiles import read_flo, read_kitti
from vidi.data.images import read_file_header
from vidi.data.open import open_data
from vidi.errors import InputError
from vidi.tasks.flow import Prediction, Task
from vidi.types import Notes, Sample


@dataclass(frozen=True)
class FileScore:
    """``metrics``: as :meth:`vidi.tasks.flow.Task.meter` has them. ``data``, ``split``: what was
    scored against. ``count``: pairs."""

    data: str
    split: str
    count: int
    metrics: dict[str, float]
    notes: Notes


def holds_flow(predictions: str | Path) -> bool:
    """Whether the folder holds flow: .flo files or, if it has none, KITTI's PNG of 16 bits."""
    folder = Path(predictions).expanduser()
    if not folder.is_dir():
        return False
    if next(folder.rglob("*.flo"), None) is not None:
        return True
    first = next(iter(sorted(folder.rglob("*.png"))), None)
    return first is not None and _is_kitti(first)


def score_folder(
    predictions: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    done: Callable[[int, int], None] | None = None,
) -> FileScore:
    """Score the flow in a folder: .flo files or, if it has none, KITTI's PNG of 16 bits.

    ``data``: a flow data set; a prediction has the name of its pair's first frame, suffix aside,
    with as many of the folders above it as the predictions lie in. ``split``: test where there is
    one, else validation, else training. ``done`` hears after each pair how many of how many there
    are.

    Raises :class:`InputError` for pairs without a prediction, files that cannot be read, flow that
    is not known or not finite, and sizes that differ.
    """
    folder = Path(predictions).expanduser()
    dataset = open_data(str(Path(data).expanduser()), task="flow", carve_val=False)
    chosen = split or next(s for s in ("test", "val", "train") if s in dataset.splits)
    if chosen not in dataset.splits:
        raise InputError(f"{data} has no split {chosen!r}; it has {', '.join(dataset.splits)}.")
    ids = [int(i) for i in dataset.splits[chosen]]
    suffix = ".flo" if next(folder.rglob("*.flo"), None) is not None else ".png"
    files = {
        os.path.splitext(path.relative_to(folder).as_posix())[0]: path
        for path in sorted(folder.rglob(f"*{suffix}"))
    }
    names = [os.path.splitext(dataset.images.key(i))[0] for i in ids]
    found = _matched(names, files)
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        held = some(sorted(p.name for p in files.values()))
        raise InputError(
            f"{folder} has no prediction for {len(missing):,} of the {len(names):,} pairs of "
            f"{data}, split {chosen}: {some(missing)}. It holds {held}. A prediction has the name "
            f"of its pair's first frame, as {os.path.basename(names[0])}{suffix}."
        )
    several = len(set(found)) < len(found)
    if several:
        raise InputError(
            f"Several pairs of {data}, split {chosen}, have the same name in different folders, "
            f"and one file of {folder} each would be theirs. Put the predictions into folders of "
            f"the same names, as {names[0]}{suffix}, or name a part of the data."
        )
    meter = Task().meter()
    for k, (i, path) in enumerate(zip(ids, found, strict=True)):
        assert path is not None
        flow, valid = (read_flo if suffix == ".flo" else read_kitti)(str(path))
        sample = Sample(key=names[k], image=np.zeros((1, 1, 3), np.uint8), **dataset.annotations(i))
        assert sample.flow is not None
        if flow.shape != sample.flow.shape:
            (h, w), (height, width) = flow.shape[:2], sample.flow.shape[:2]
            raise InputError(f"{path} is {w} × {h} pixels, and its pair {width} × {height}.")
        unknown = ~valid if sample.flow_valid is None else ~valid & sample.flow_valid
        if unknown.any():
            raise InputError(
                f"{path} marks {int(unknown.sum()):,} pixels as not known whose flow the truth "
                "knows. A prediction says something everywhere."
            )
        meter.update([Prediction(flow)], [sample])
        if done is not None:
            done(k + 1, len(ids))
    extra = len(files) - len(set(found))
    notes = (
        [f"{extra} files of {folder} belong to no pair of the split, and were left."]
        if extra
        else []
    )
    return FileScore(str(data), chosen, len(ids), meter.compute(), notes)


def _matched(names: list[str], files: dict[str, Path]) -> list[Path | None]:
    """For each name the file that has most of its folders: a/b/c is b/c or c, if there is no a/b/c
    among ``files``."""
    out = []
    for name in names:
        parts = name.split("/")
        tails = ("/".join(parts[k:]) for k in range(len(parts)))
        out.append(next((files[tail] for tail in tails if tail in files), None))
    return out


def _is_kitti(path: Path) -> bool:
    try:
        header = read_file_header(str(path))
    except InputError:
        return False
    return header.format == "PNG" and header.depth == 16 and header.mode == "RGB"
