"""Compute object proposals, and say how many objects they cover."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse
from vidi.cli.outputs import table
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.data.dataset import Dataset
    from vidi.data.proposals import Found
    from vidi.data.recall import Recall
    from vidi.types import Array

SHOWN = 40
"""As many classes are shown, those with the most boxes."""
COLUMNS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU of the printed table; recall.json has all."""


@dataclass(frozen=True)
class Proposals:
    """Compute object proposals, and say how many objects they cover.

    They are kept in the cache; what was interrupted goes on where it was.

    The lecture: 10,000 proposals reach recall 0.991, and take 17 s an image.

    vidi proposals cells/ --method edge-boxes --out checked/

    vidi proposals cells/ --run runs/cells-faster_rcnn_small --split test
    """

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """Data with boxes: what `vidi train` takes for detection."""
    method: Literal["selective-fast", "selective-quality", "edge-boxes"] | None = None
    """Selective search as in R-CNN, or in more colour spaces; EdgeBoxes on image gradients. none =
    selective-fast, or what --run proposes."""
    run: Annotated[str | None, arg(metavar="RUN")] = None
    """In place of a method: this run's network, which proposes regions itself; none are kept."""
    count: int = 2000
    """Proposals per image, at most."""
    split: Annotated[str | None, arg(metavar="NAME")] = None
    """train, val or test. none = all images."""
    seed: int = 0
    """Draws the order of selective search's boxes."""
    threads: int | None = None
    """Images at once. none = as many as there are processors."""
    out: Annotated[str | None, arg(metavar="DIR")] = None
    """Write recall.png and recall.json here."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout."""


def main(arguments: Sequence[str]) -> int:
    told = parse(Proposals, arguments, prog="vidi proposals")
    for name, value in (("count", told.count), ("threads", told.threads)):
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}; at least 1 is needed.")
    if told.run is not None and told.method is not None:
        raise InputError(
            f"--method {told.method} and --run {told.run} each say what proposes. Leave one out, "
            "and run the command twice to compare them."
        )

    import numpy as np

    from vidi.data.open import open_data
    from vidi.data.recall import COUNTS, THRESHOLDS, recall_per_class

    dataset = open_data(told.data, task="detection", carve_val=False)
    print(dataset, file=sys.stderr)
    ids = np.arange(len(dataset)) if told.split is None else dataset.split(told.split).ids
    found, by = _search(told, dataset, ids)
    for note in found.notes:
        print(f"vidi: {note}", file=sys.stderr)
    boxes = [dataset.annotations(int(i))["boxes"] for i in ids]
    counts = (*(c for c in COUNTS if c < told.count), told.count)
    whole, by_class = recall_per_class(found.boxes, boxes, dataset.classes, THRESHOLDS, counts)
    result = _object(told, by, found, whole, by_class)
    if told.out is not None:
        result["pictures"] = _write(told, result, whole)
    if told.json:
        print(json.dumps(result))
        return 0
    _print(told, result, whole, by_class)
    return 0


def _search(told: Proposals, dataset: Dataset, ids: Array) -> tuple[Found, dict[str, Any]]:
    """The proposals, and what made them: method, run, its model, and the device."""
    from vidi.data import proposals

    threads = told.threads or os.cpu_count() or 1
    if told.run is None:
        method = told.method or "selective-fast"
        found = proposals.search(
            dataset,
            ids,
            method,
            count=told.count,
            seed=told.seed,
            threads=threads,
            progress=_progress(),
        )
        return found, {"method": method, "run": None, "model": None, "device": "cpu"}

    import numpy as np

    from vidi import api
    from vidi.engine import learned_proposals

    with contextlib.redirect_stdout(sys.stderr):
        model = api.load(told.run)
        proposed = learned_proposals.search(
            model.network,
            model.recipe,
            model.compute,
            dataset,
            ids,
            count=told.count,
            threads=threads,
            progress=_progress(),
        )
    known = learned_proposals.seen_in_training(model.description, dataset, told.split)
    found = proposals.Found(
        [one.boxes for one in proposed],
        np.array([one.seconds for one in proposed]),
        len(proposed),
        [] if known is None else [known],
    )
    return found, {
        "method": "network",
        "run": told.run,
        "model": model.recipe.model,
        "device": model.compute.device.type,
    }


def _progress() -> Callable[[int, int], None] | None:
    """A line on a terminal that counts the images."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, n: int) -> None:
        print(f"\r{done:,} of {n:,} images", end="\n" if done == n else "", file=sys.stderr)

    return show


def _object(
    told: Proposals,
    by: Mapping[str, Any],
    found: Found,
    whole: Recall,
    by_class: Mapping[str, Recall],
) -> dict[str, Any]:
    n = len(found.boxes)
    return {
        "data": told.data,
        **by,
        "count": told.count,
        "split": told.split,
        "seed": told.seed,
        "samples": n,
        "computed": found.computed,
        "seconds_per_image": float(found.seconds.mean()) if n else None,
        "proposals_per_image": _plain(whole.proposals[-1]),
        "recall": _recall_object(whole),
        "per_class": {name: _recall_object(one) for name, one in by_class.items()},
        "lecture": {"proposals": 10_000, "recall": 0.991, "seconds_per_image": 17},
        "notes": found.notes,
        "pictures": [],
    }


def _recall_object(one: Recall) -> dict[str, Any]:
    return {
        "boxes": one.boxes,
        "left_out": one.left_out,
        "thresholds": list(one.thresholds),
        "counts": list(one.counts),
        "table": [[_plain(v) for v in row] for row in one.table],
        "average": [_plain(v) for v in one.average],
    }


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else float(value)


def _write(told: Proposals, result: Mapping[str, Any], whole: Recall) -> list[str]:
    from vidi.report import recall as picture

    assert told.out is not None
    folder = Path(told.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name = Path(told.data).name or told.data
        title = f"{name}: {_maker(result)}, {result['samples']:,} images, {whole.boxes:,} boxes"
        picture.draw(whole, folder / "recall.png", title=title)
        (folder / "recall.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror}.") from error
    return [str(folder / "recall.png")]


def _print(
    told: Proposals, result: Mapping[str, Any], whole: Recall, by_class: Mapping[str, Recall]
) -> None:
    split = "" if told.split is None else f", split {told.split}"
    print(
        f"{told.data}{split}: {result['samples']:,} images, {whole.boxes:,} boxes"
        + (f" ({whole.left_out:,} difficult, crowd or flat left out)" if whole.left_out else "")
    )
    heads = [f"IoU {t:g}" for t in COLUMNS]
    rows = [
        [f"{count:,}", f"{whole.proposals[c]:,.0f}", *_cells(whole, c)]
        for c, count in enumerate(whole.counts)
    ]
    table(["at most", "found", *heads, "average"], rows)
    print()
    if len(by_class) > 1:
        print(f"By class, with at most {told.count:,} proposals:")
        most = sorted(by_class, key=lambda name: -by_class[name].boxes)[:SHOWN]
        named = [[name, f"{by_class[name].boxes:,}", *_cells(by_class[name], -1)] for name in most]
        table(["class", "boxes", *heads, "average"], named)
        print()
    seconds = result["seconds_per_image"]
    of = "of a processor" if result["device"] == "cpu" else f"on {result['device']}"
    took = "" if seconds is None else f" {seconds:.3g} s {of} an image;"
    new = f"{result['computed']:,} of {result['samples']:,} computed now"
    kept = "" if told.run is not None else ", the others were kept"
    print(f"{_maker(result)}:{took} {new}{kept}.")
    print("The lecture (selective search, quality, VOC 2007): 10,000 proposals reach recall 0.991")
    print("at IoU 0.5 and take 17 s an image.")
    for path in result["pictures"]:
        print(f"wrote {path}")


def _maker(result: Mapping[str, Any]) -> str:
    return str(result["model"] or result["method"])


def _cells(one: Recall, c: int) -> list[str]:
    shown = [one.table[c, one.thresholds.index(t)] for t in COLUMNS]
    return ["–" if math.isnan(v) else f"{v:.3f}" for v in [*shown, one.average[c]]]
