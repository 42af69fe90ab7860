"""List the models, recipes, data formats or studies that there are."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from vidi.cli.arguments import parse
from vidi.cli.outputs import amount


@dataclass(frozen=True)
class List:
    """List what there is, one name a line."""

    what: Annotated[
        Positional[Literal["models", "recipes", "formats", "studies"]],
        arg(metavar="models|recipes|formats|studies"),
    ]
    """models: task, parameters, multiply-adds at the usual image size, and source."""


def main(arguments: Sequence[str]) -> int:
    told = parse(List, arguments, prog="vidi list")
    lines = {
        "models": _models,
        "recipes": _recipes,
        "formats": _formats,
        "studies": _studies,
    }[told.what]()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines:
        print(line if width is None or len(line) <= width else line[: width - 1] + "…")
    return 0


def _models() -> Iterator[str]:
    from vidi import models

    yield f"{'name':<26}{'task':<16}{'parameters':>10}{'MACs':>9}{'px':>5}  source"
    for name in models.names():
        it = models.describe(name)
        yield (
            f"{name:<26}{it.task:<16}{amount(it.parameters):>10}{amount(it.macs):>9}"
            f"{it.image_size:>5}  {it.source}"
        )


def _recipes() -> Iterator[str]:
    from vidi import recipes

    for name in recipes.names():
        yield f"{name:<26}{_summary(recipes.find(name).__doc__)}"


def _formats() -> Iterator[str]:
    from vidi.data import formats

    for name in formats.names():
        module = formats.find(name)
        # An embedded source may serve them all.
        task = getattr(module, "TASK", "any task")
        yield f"{name:<16}{task:<16}{_summary(module.__doc__)}"


def _studies() -> Iterator[str]:
    from vidi import studies

    known = {name: studies.find(name) for name in studies.names()}
    for name in sorted(known, key=lambda name: (known[name].CLAIM, name)):
        yield f"{name:<26}claim {known[name].CLAIM:<4}{studies.title(known[name])}"


def _summary(doc: str | None) -> str:
    return (doc or "").strip().splitlines()[0] if (doc or "").strip() else ""
