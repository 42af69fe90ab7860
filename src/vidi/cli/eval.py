"""Measure a run's best weights on held-out images."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse

SHOWN = 40
"""As many classes are shown without --all."""


@dataclass(frozen=True)
class Eval:
    """Measure a run's best weights on held-out images.

    vidi eval runs/photos-resnet18
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The folder that `vidi train` wrote."""
    data: Annotated[Positional[str | None], arg(metavar="[DATA]")] = None
    """Other data with the same classes. none = what the run was trained on."""
    split: Annotated[str | None, arg(metavar="NAME")] = None
    """train, val or test. none = test where there is one, else val."""
    flip: FlagCreatePairsOff[bool] = False
    """Average each image's prediction with its mirror image's."""
    scales: tuple[float, ...] = (1.0,)
    """Average over the image at these sizes, relative to its own (segmentation)."""
    all: FlagCreatePairsOff[bool] = False
    """Show every class, however many; otherwise the worst where they are many."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout."""


def main(arguments: Sequence[str]) -> int:
    told = parse(Eval, arguments, prog="vidi eval")

    from vidi import api

    with contextlib.redirect_stdout(sys.stderr):
        result = api.load(told.run).evaluate(
            told.data, split=told.split, flip=told.flip, scales=told.scales
        )
    if told.json:
        print(
            json.dumps(
                {
                    "run": result.run,
                    "data": result.data,
                    "split": result.split,
                    "samples": result.samples,
                    "metrics": result.metrics,
                }
            )
        )
        return 0
    rows = result.details.get("per_class", [])
    if rows:
        _show_classes(rows, told.all)
    print(f"{result.data}, split {result.split}, {result.samples:,} samples")
    width = max(len(name) for name in result.metrics)
    for name, value in result.metrics.items():
        print(f"  {name:<{width}}  {value:.4f}")
    return 0


def _show_classes(rows: Sequence[Mapping[str, Any]], every: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = list(rows)
    if len(rows) > SHOWN and not every:
        shown = sorted(rows, key=lambda row: _nan_last(row["recall"]))[:SHOWN]
        print(f"The {SHOWN} of {len(rows)} classes with the lowest recall (--all: all)")
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "class" else "right", overflow="fold")
    for row in shown:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(highlight=False, markup=False).print(table)
    print()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
