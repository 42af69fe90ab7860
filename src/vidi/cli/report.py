"""Write a run, or several side by side, as one HTML page for others."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse
from vidi.errors import InputError

NAME = "report.html"
"""Of the page, unless told."""


@dataclass(frozen=True)
class Report:
    """Write a run, or several side by side, as one HTML page for others.

    The page needs no network, and nothing beside it.

    vidi report runs/photos-resnet18

    vidi report runs/small runs/large --out small-and-large.html
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN...")]
    """Folders that `vidi train` wrote; several are of one task."""
    out: Annotated[str | None, arg(metavar="FILE")] = None
    """The file to write; a report is written over, nothing else is. none = report.html in the run's folder; of several runs, in this one."""  # noqa: E501
    no_data: FlagCreatePairsOff[bool] = False
    """Leave the data closed: no samples, no calibration, and the doctor reads the records alone."""
    split: Annotated[str | None, arg(metavar="NAME")] = None
    """Whose details and samples are shown: train, val or test. none = test where there is one, else val."""  # noqa: E501
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout."""


def main(arguments: Sequence[str]) -> int:
    told = parse(Report, arguments, prog="vidi report")
    if not told.runs:
        raise InputError(
            "Which run is the report to be about? Name its folder: vidi report runs/photos-resnet18"
        )
    path = Path(told.out if told.out is not None else NAME).expanduser()
    if told.out is None and len(told.runs) == 1:
        path = Path(told.runs[0]).expanduser() / NAME

    from vidi import api
    from vidi.report import run_report
    from vidi.report.names import readable

    # Before minutes of work: a place that cannot be written to.
    run_report.check_place(path)
    with contextlib.redirect_stdout(sys.stderr):
        report = api.run_report(told.runs, split=told.split, data=not told.no_data)
        run_report.save(report, path)
    if told.json:
        print(json.dumps({"report": readable(str(path)), **report.as_json()}))
        return 0
    for subject in report.subjects:
        for note in subject.notes:
            print(f"vidi: {subject.run.name}: {note}", file=sys.stderr)
    print(f"wrote {readable(str(path))} ({len(report.html.encode()) / 1e6:.1f} MB)")
    return 0
