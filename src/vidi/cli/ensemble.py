"""Make one run of several: it answers with the average of theirs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse
from vidi.cli.eval import show_members
from vidi.cli.outputs import finite
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.api import Model
    from vidi.engine.answers import Evaluation


@dataclass(frozen=True)
class Ensemble:
    """Make an ensemble of finished runs, possibly of different networks.

    One task, the same classes and image size. The new run is one like any other.

    To train several networks at once: vidi train --members 5.

    vidi ensemble runs/a runs/b runs/c --run runs/abc
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN RUN…")]
    """Folders that `vidi train` wrote, two or more."""
    run: Annotated[str, arg(metavar="OUT")]
    """The new folder to write. Members, average and vote are measured on the test split of the
    first run's data, else on its validation split."""
    device: str = "auto"
    """Where it is measured: auto, cpu, cuda, cuda:1, mps."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout; all else goes to stderr."""


def main(arguments: Sequence[str]) -> int:
    told = parse(Ensemble, arguments, prog="vidi ensemble")
    out = Path(told.run).expanduser()
    if out.exists():
        raise InputError(f"{out} exists already. Give --run the name of a new folder.")

    from vidi import api

    with contextlib.redirect_stdout(sys.stderr):
        made = api.ensemble(told.runs, device=told.device)
        for note in made.notes:
            print(f"vidi: {note}")
        made.save(out)
        model = api.load(out, device=told.device)
        result = _measured(model)
    if told.json:
        print(json.dumps(_object(model, result)))
        return 0
    if result is not None:
        print(f"{result.data}, split {result.split}, {result.samples:,} samples")
        show_members(result.details["members"], model.description)
    print(f"wrote {out}")
    return 0


def _measured(model: Model) -> Evaluation | None:
    """On the first run's data, written into the run; None, with the reason on stderr, where that is
    not there, or was seen by a member."""
    from vidi.engine.run import RunDirectory

    try:
        result = model.evaluate()
    except InputError as error:
        print(f"vidi: The ensemble was not measured: {error}")
        return None
    body = {"samples": result.samples, "metrics": result.metrics, **result.details}
    RunDirectory(model.path).write_evaluation({result.split: body})
    return result


def _object(model: Model, result: Evaluation | None) -> dict[str, Any]:
    said: dict[str, Any] = {
        "run": str(model.path),
        "runs": model.description.data["members"],
        "data": None,
        "split": None,
        "samples": 0,
        "metrics": {},
        "members": [],
    }
    if result is not None:
        rows = [{**row, "metrics": finite(row["metrics"])} for row in result.details["members"]]
        said |= {
            "data": result.data,
            "split": result.split,
            "samples": result.samples,
            "metrics": finite(result.metrics),
            "members": rows,
        }
    return said
