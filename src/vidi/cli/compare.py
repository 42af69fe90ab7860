"""Say how runs differ, and whether it is more than the seeds' spread."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse
from vidi.cli.outputs import table
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.report.compare import Comparison, Spread


@dataclass(frozen=True)
class Compare:
    """Say how runs differ, and whether it is more than the seeds' spread.

    Runs that differ in nothing but --seed are one group.

    vidi compare runs/small runs/small-seed1 runs/large runs/large-seed1
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN RUN…")]
    """Folders that `vidi train` wrote, of one task; no data is read."""
    out: Annotated[str | None, arg(metavar="FILE")] = None
    """Draw the learning curves of all of them into this file (.png, .pdf, .svg)."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout."""


def main(arguments: Sequence[str]) -> int:
    told = parse(Compare, arguments, prog="vidi compare")

    from vidi.report import compare, compare_pictures

    with contextlib.redirect_stdout(sys.stderr):
        found = compare.compare(told.runs)
    if told.out is not None:
        path = Path(told.out).expanduser()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            compare_pictures.curves(found, path)
        except (OSError, ValueError) as error:  # ValueError: an ending matplotlib does not know
            raise InputError(f"The picture cannot be written to {path}: {error}.") from error
    if told.json:
        print(json.dumps(found.as_json() | {"picture": told.out}))
        return 0
    _print(found)
    if told.out is not None:
        print(f"wrote {told.out}")
    return 0


def _print(found: Comparison) -> None:
    letters = [group.letter for group in found.groups]
    rows = []
    for group in found.groups:
        for run in group.runs:
            speed = run.images_per_second
            rows.append(
                [
                    group.letter,
                    run.name,
                    str(run.seed),
                    f"{run.epochs:g}",
                    f"{run.steps:,}",
                    "–" if speed is None else f"{speed:,.0f}",
                ]
            )
    table(["", "run", "seed", "epochs", "steps", "images/s"], rows, left=2)
    print()
    if found.differences:
        table(
            ["differs", *letters],
            [[d.name, *(d.values[letter] for letter in letters)] for d in found.differences],
            left=len(letters) + 1,
        )
    else:
        same = len({run.seed for run in found.runs}) == 1
        print("They differ in nothing." if same else "They differ in nothing but the seed.")
    print()
    table(
        ["metric", *letters],
        [
            [f"{split} {metric}", *(_cell(spreads.get(letter)) for letter in letters)]
            for (split, metric), spreads in found.spreads.items()
        ],
    )
    print()
    seeds = ", ".join(f"{len(group.counted)} of {group.letter}" for group in found.groups)
    print(f"Seeds: {seeds}; mean ± standard deviation over them.")
    for sentence in [*found.sentences, *found.notes]:
        print(
            textwrap.fill(
                sentence, 98, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
        )
    if found.commands:
        print()
        print("Another seed, by which the spread could be told:")
        for command in found.commands:
            print(f"  {command}")


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    more = "" if spread.deviation is None else f" ± {spread.deviation:.4f}"
    return f"{spread.mean:.4f}{more}"
