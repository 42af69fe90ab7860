"""Measure a run's best weights on held-out images, or score files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse
from vidi.cli.outputs import finite, table
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.api import Model
    from vidi.engine.detection_scores import FileScore as DetectionScore
    from vidi.engine.flow_files import FileScore as FlowScore
    from vidi.engine.run import Description

SHOWN = 40
"""As many classes are shown without --all."""
WORST = (("ap50", 1), ("recall", 1), ("missed", -1))
"""By which column classes are the worst, and whether the lowest values are bad (1) or the highest;
the first that a table has."""


@dataclass(frozen=True)
class Eval:
    """Measure a run's best weights on held-out images, or predictions in files.

    vidi eval runs/photos-resnet18

    vidi eval --predictions maps/ BSR/BSDS500/data
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The folder that `vidi train` wrote. With --predictions: the data to score against."""
    data: Annotated[Positional[str | None], arg(metavar="[DATA]")] = None
    """Other data with the same classes. none = what the run was trained on."""
    split: Annotated[str | None, arg(metavar="NAME")] = None
    """train, val or test. none = test where there is one, else val."""
    flip: FlagCreatePairsOff[bool] = False
    """Average each image's prediction with its mirror image's."""
    scales: tuple[float, ...] = (1.0,)
    """Average over the image at these sizes, relative to its own (labels per pixel)."""
    tile: Annotated[int | None, arg(metavar="PX")] = None
    """Detection: look at windows of so many pixels, too, as `vidi predict --tile` does."""
    overlap: Annotated[int | None, arg(metavar="PX")] = None
    """With --tile: the least that windows overlap by. none = a quarter of --tile."""
    predictions: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Score what lies in this folder, named as the images: boundary maps (grey images of 8 or 16
    bits, .npy or .mat), flow (.flo, or KITTI's PNG of 16 bits), or detections (VOC's XML with
    scores, YOLO's text with confidences; or COCO's results, one .json)."""
    suppress: FlagCreatePairsOff[bool] = False
    """Boundary maps of --predictions: put soft ones through non-maximum suppression first, as
    published figures do. Without it they are only thinned at each threshold."""
    figure: Annotated[str | None, arg(metavar="FILE")] = None
    """Boundaries and detection: draw the precision-recall curve (of detection one per class) into
    this file (.png, .pdf, .svg)."""
    errors: FlagCreatePairsOff[bool] = False
    """Detection: show of what kind the errors are, per class, and what AP50 would gain without
    those of a kind."""
    svd: tuple[int, ...] = ()
    """Detection: ranks of a truncated SVD of the fully connected layers, in their order, and what
    it costs: the paper has 1024 256 for VGG-16. What is shown else is the compressed network's."""
    out: Annotated[str | None, arg(metavar="DIR")] = None
    """With --svd: write the compressed network as a run of its own into this new folder."""
    all: FlagCreatePairsOff[bool] = False
    """Show every class, however many; otherwise the worst where they are many."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout."""


def main(arguments: Sequence[str]) -> int:
    told = parse(Eval, arguments, prog="vidi eval")

    if told.predictions is not None:
        return _score_files(told)
    if told.suppress:
        raise InputError("--suppress is for --predictions; a run's own maps go through it always.")

    from vidi import api

    if told.out is not None and not told.svd:
        raise InputError("--out is for the network that --svd compresses. Say --svd with it.")
    if told.out is not None and Path(told.out).expanduser().exists():
        raise InputError(f"{told.out} exists already. Give --out the name of a new folder.")
    compressed: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        model = api.load(told.run)
        small = model.compressed(told.svd) if told.svd else None
        views: dict[str, Any] = {"flip": told.flip, "tile": told.tile, "overlap": told.overlap}
        result = model.evaluate(told.data, split=told.split, scales=told.scales, **views)
        if small is not None:
            before, result = result, small.evaluate(told.data, split=told.split, **views)
            compressed = _compressed(model, small, before.metrics, result.metrics)
            if told.out is not None:
                compressed["run"] = str(small.save(told.out))
    if told.errors and "errors" not in result.details:
        raise InputError(f"--errors is for detection; this run's task is {model.recipe.task}.")
    if told.figure is not None and "curves" in result.details:
        _figure_per_class(result.details, told.figure)
    elif told.figure is not None:
        if "curve" not in result.details:
            raise InputError(
                "--figure draws the curve of boundaries or detection, which this run does not see."
            )
        details = result.details | {"metrics": result.metrics}
        human = told.data is None and model.description.data["format"] == "bsds"
        _figure(Path(told.run).name, details, told.figure, human)
    if told.json:
        print(
            json.dumps(
                {
                    "run": result.run,
                    "data": result.data,
                    "split": result.split,
                    "samples": result.samples,
                    "metrics": finite(result.metrics),
                    **_told_errors(told, result.details),
                    **_told_members(result.details),
                    **({"svd": compressed} if compressed else {}),
                }
            )
        )
        return 0
    _show_tables(told, result.details)
    print(f"{result.data}, split {result.split}, {result.samples:,} samples")
    if "members" in result.details:
        show_members(result.details["members"], model.description)
    elif compressed:
        _show_compressed(compressed)
    else:
        _show_metrics(result.metrics)
    return 0


def _told_members(details: Mapping[str, Any]) -> dict[str, Any]:
    if "members" not in details:
        return {}
    rows = [{**row, "metrics": finite(row["metrics"])} for row in details["members"]]
    return {"members": rows}


def show_members(rows: Sequence[Mapping[str, Any]], description: Description) -> None:
    """An ensemble's table: each member, the average, which is what predicts, and the vote."""
    made_of = description.data.get("members", [])
    kinds = {str(i): one["model"] for i, one in enumerate(made_of, 1)}
    mixed = len(set(kinds.values())) > 1
    metrics = list(rows[0]["metrics"])
    cells = []
    for row in rows:
        who = row["member"]
        values = [row["metrics"].get(name, math.nan) for name in metrics]
        shown = ["–" if math.isnan(value) else f"{value:.4f}" for value in values]
        cells.append([f"{who} {kinds[who]}" if mixed and who in kinds else who, *shown])
    table(["member", *metrics], cells)


def _compressed(
    model: Model, small: Model, before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, Any]:
    """What a truncated SVD saves, for an image of the usual number of proposals, and costs."""
    from vidi.models import count

    size, regions = model.recipe.image_size, model.recipe.data.proposal_count
    assert size != "auto"
    networks = {"before": model.network, "after": small.network}
    return {
        "ranks": small.description.data["svd"],
        "parameters": {name: count.parameters(one) for name, one in networks.items()},
        "macs": {name: count.macs(one, size, regions=regions) for name, one in networks.items()},
        "metrics": {"before": finite(before), "after": finite(after)},
    }


def _show_compressed(compressed: Mapping[str, Any]) -> None:
    rows = []
    for name in ("parameters", "macs"):
        before, after = compressed[name].values()
        said = "multiply-adds" if name == "macs" else name
        rows.append([said, f"{before:,}", f"{after:,}", f"{after / before - 1:+.1%}"])
    for name, before in compressed["metrics"]["before"].items():
        after = compressed["metrics"]["after"][name]
        if before is not None and after is not None:
            rows.append([name, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"])
    table(["", "before", "after", "change"], rows)
    if "run" in compressed:
        print(f"wrote {compressed['run']}")


def _score_files(told: Eval) -> int:
    tiles = told.tile is not None or told.overlap is not None
    if told.data is not None or told.flip or told.scales != (1.0,) or told.svd or tiles:
        raise InputError(
            "With --predictions there is no run: give the data alone, and leave out --flip, "
            "--scales, --tile and --svd."
        )
    assert told.predictions is not None

    from vidi.data import detection_files
    from vidi.engine import detection_scores, flow_files
    from vidi.engine.boundary_files import score_folder

    def done(count: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if count == total else ""
            print(f"\r{count:,} of {total:,} images", end=end, file=sys.stderr, flush=True)

    if detection_files.kind_of(told.predictions) is not None:
        if told.suppress:
            raise InputError(f"{told.predictions} holds detections; --suppress is not for them.")
        return _show_detections(
            told, detection_scores.score(told.predictions, told.run, split=told.split, done=done)
        )
    if told.errors:
        raise InputError(f"{told.predictions} holds no detections; --errors is for them.")
    if flow_files.holds_flow(told.predictions):
        if told.suppress or told.figure is not None:
            raise InputError(
                f"{told.predictions} holds flow; --suppress and --figure are not for it."
            )
        return _show_flow(
            told, flow_files.score_folder(told.predictions, told.run, split=told.split, done=done)
        )
    found = score_folder(
        told.predictions, told.run, split=told.split, suppress=told.suppress, done=done
    )
    for note in found.notes:
        print(f"vidi: {note}", file=sys.stderr)
    best = found.summary.ods
    if told.figure is not None:
        details = {
            "curve": [dataclasses.asdict(point) for point in found.summary.curve],
            "ods_at": dataclasses.asdict(best),
            "metrics": found.metrics,
        }
        _figure(Path(told.predictions).name, details, told.figure, found.human)
    if told.json:
        said = {
            "predictions": told.predictions,
            "data": found.data,
            "split": found.split,
            "samples": len(found.names),
            "metrics": found.metrics,
            "ods_at": dataclasses.asdict(best),
        }
        print(json.dumps(said))
        return 0
    print(
        f"{told.predictions} against {found.data}, split {found.split}, {len(found.names):,} maps"
    )
    for name, value in found.metrics.items():
        print(f"  {name:<3}  {value:.4f}")
    print(
        f"  the best F is at the threshold {best.threshold:.3f}: recall {best.recall:.4f}, "
        f"precision {best.precision:.4f}"
    )
    return 0


def _show_flow(told: Eval, found: FlowScore) -> int:
    for note in found.notes:
        print(f"vidi: {note}", file=sys.stderr)
    if told.json:
        said = {
            "predictions": told.predictions,
            "data": found.data,
            "split": found.split,
            "samples": found.count,
            "metrics": found.metrics,
        }
        print(json.dumps(said))
        return 0
    print(f"{told.predictions} against {found.data}, split {found.split}, {found.count:,} pairs")
    _show_metrics(found.metrics)
    return 0


def _show_detections(told: Eval, found: DetectionScore) -> int:
    for note in found.notes:
        print(f"vidi: {note}", file=sys.stderr)
    if told.figure is not None:
        _figure_per_class(found.details, told.figure)
    if told.json:
        said = {
            "predictions": told.predictions,
            "data": found.data,
            "split": found.split,
            "samples": found.count,
            "metrics": finite(found.metrics),
            **_told_errors(told, found.details),
        }
        print(json.dumps(said))
        return 0
    _show_tables(told, found.details)
    print(f"{told.predictions} against {found.data}, split {found.split}, {found.count:,} images")
    _show_metrics(found.metrics)
    return 0


def _told_errors(told: Eval, details: Mapping[str, Any]) -> dict[str, Any]:
    if not told.errors:
        return {}
    return {"errors": details["errors"], "gains": finite(details["gains"])}


def _show_tables(told: Eval, details: Mapping[str, Any]) -> None:
    if details.get("per_class"):
        _show_classes(details["per_class"], told.all)
    if not told.errors:
        return
    _show_classes(details["errors"], told.all)
    gains = sorted(details["gains"].items(), key=lambda item: -_nan_last(item[1], -1))
    told_gains = ", ".join(f"{name.replace('_', ' ')} {value:+.3f}" for name, value in gains)
    print(f"AP50 would gain without: {told_gains}")
    print()


def _show_metrics(metrics: Mapping[str, float]) -> None:
    width = max(len(name) for name in metrics)
    for name, value in metrics.items():
        print(f"  {name:<{width}}  {'–' if math.isnan(value) else f'{value:.4f}'}")


def _figure(name: str, details: Mapping[str, Any], path: str, human: bool) -> None:
    from vidi.report import boundary_pictures

    with _writing_figure(path):
        boundary_pictures.precision_recall({name: details}, Path(path), human=human)


def _figure_per_class(details: Mapping[str, Any], path: str) -> None:
    from vidi.report import detection_pictures

    with _writing_figure(path):
        detection_pictures.precision_recall(details["per_class"], details["curves"], Path(path))


@contextlib.contextmanager
def _writing_figure(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: an ending that matplotlib does not know
        raise InputError(f"The figure cannot be written to {path}: {error}.") from error


def _show_classes(rows: Sequence[Mapping[str, Any]], every: bool) -> None:
    shown = list(rows)
    if len(rows) > SHOWN and not every:
        which, least = next(worst for worst in WORST if worst[0] in rows[0])
        shown = sorted(rows, key=lambda row: least * _nan_last(row[which], least))[:SHOWN]
        what = "lowest" if least > 0 else "most"
        print(f"The {SHOWN} of {len(rows)} classes with the {what} {which} (--all: all)")
    heads = [name.replace("_", " ") for name in rows[0]]
    table(heads, ([_cell(value) for value in row.values()] for row in shown))
    print()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def _nan_last(value: float, least: int) -> float:
    return least * math.inf if math.isnan(value) else value
