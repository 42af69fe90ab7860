"""Run a claim of the lecture on training: measure, judge, draw."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi import studies
from vidi.cli.arguments import parse
from vidi.cli.outputs import free_name, table, writing_to
from vidi.cli.study_page import Done, page, written
from vidi.errors import InputError

FOLDER = "studies"
"""Where pictures go unless told."""
WIDTH = 96
"""Columns of the printed claim."""


@dataclass(frozen=True)
class Words:
    """Run a claim of the lecture: what was measured, and whether it holds.

    `vidi list studies` shows all. Exit code 1 if one is not as claimed.

    vidi study momentum

    vidi study --all --out lecture/
    """

    name: Annotated[Positional[str | None], arg(metavar="[NAME]")] = None
    """Which study."""
    all: FlagCreatePairsOff[bool] = False
    """Run all of them (about a quarter of an hour on two cores) and write one HTML page."""
    out: Annotated[str, arg(metavar="DIR")] = FOLDER
    """Write NAME.png, or studies.html, here. What is there stays: NAME-2.png is next."""
    small: FlagCreatePairsOff[bool] = False
    """The same claim at a smaller size, in seconds."""
    full: FlagCreatePairsOff[bool] = False
    """The paper's whole recipe where there is one: hours, best on a GPU. Kept in DIR/NAME-full, where the same command goes on."""  # noqa: E501
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout."""


def main(arguments: Sequence[str]) -> int:
    told = parse(Words, arguments, prog="vidi study")
    if (told.name is None) != told.all:
        raise InputError(
            "Give the name of one study, or --all. `vidi list studies` shows their names."
        )
    if told.small and told.full:
        raise InputError("--small and --full exclude each other. Give one of them, or neither.")
    return _all(told) if told.name is None else _one(told, told.name)


def _one(told: Words, name: str) -> int:
    module = studies.find(name)
    name = name.replace("_", "-")
    folder = Path(told.out).expanduser()
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    done = _run(told, name, folder)
    paths = []
    with writing_to(folder):
        for k, (_, draw) in enumerate(done.study.pictures):
            path = free_name(folder, name if k == 0 else f"{name}-more-{k}", ".png")
            draw(path)
            paths.append(str(path))
    if told.json:
        print(json.dumps(_object(done, paths)))
    else:
        print(f"Claim {module.CLAIM} of the lecture: {done.title}\n")
        print(_filled(studies.claim(module)) + "\n")
        _print(done)
        for path_ in paths:
            print(f"wrote {path_}")
    return 0 if done.study.holds else 1


def _all(told: Words) -> int:
    folder = Path(told.out).expanduser()
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = free_name(folder, "studies", ".html")
    found: list[Done] = []
    in_order = sorted(studies.names(), key=lambda name: (studies.find(name).CLAIM, name))
    for name in in_order:
        done = _run(told, name, folder)
        found.append(done)
        with writing_to(folder):
            # After each, so that a quarter of an hour is not lost to an interruption.
            path.write_text(page(found), encoding="utf-8")
        if not told.json:
            judged = "holds" if done.study.holds else "DOES NOT HOLD"
            print(f"{done.claim:>2}  {name:<24}{judged:<15}{done.seconds:5.1f} s  {done.title}")
            sys.stdout.flush()
    holding = sum(done.study.holds for done in found)
    if told.json:
        print(json.dumps({"studies": [_object(done, []) for done in found], "page": str(path)}))
    else:
        seconds = sum(done.seconds for done in found)
        print(f"{holding} of {len(found)} hold; {seconds:.0f} s together.")
        print(f"wrote {path}")
    return 0 if holding == len(found) else 1


def _run(told: Words, name: str, folder: Path) -> Done:
    module = studies.find(name)
    start = time.perf_counter()
    # What a training within says is no result.
    with contextlib.redirect_stdout(sys.stderr):
        study: studies.Study = module.run(
            small=told.small,
            full=told.full,
            folder=folder / f"{name}-full" if told.full else None,
        )
        seconds = time.perf_counter() - start
        pictures = _drawn(study) if told.all else ()
    return Done(
        name=name,
        command=f"vidi study {name}"
        + (" --small" if told.small else " --full" if told.full else ""),
        claim=module.CLAIM,
        title=studies.title(module),
        text=studies.claim(module),
        study=study,
        seconds=seconds,
        pictures=pictures,
    )


def _drawn(study: studies.Study) -> tuple[bytes, ...]:
    """The pictures as PNG."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _, draw in study.pictures:
            draw(Path(folder) / "it.png")
            found.append((Path(folder) / "it.png").read_bytes())
    return tuple(found)


def _filled(text: str) -> str:
    """Paragraphs broken at the width; indented ones, such as formulas, as they stand."""
    parts = text.replace("``", "").split("\n\n")
    return "\n\n".join(
        part if part.startswith(" ") else textwrap.fill(" ".join(part.split()), WIDTH)
        for part in parts
    )


def _print(done: Done) -> None:
    for one in done.study.measured:
        print(f"{'holds' if one.holds else 'DOES NOT HOLD':<14}{one.what}: {written(one.value)}")
        print(textwrap.indent(textwrap.fill(f"expected: {one.expected}", WIDTH - 14), " " * 14))
    for shown in done.study.tables:
        print(f"\n{shown.title}")
        table(shown.heads, (list(map(written, row)) for row in shown.rows))
    for note in done.study.notes:
        print("\n" + textwrap.fill(note, WIDTH))
    holding = sum(one.holds for one in done.study.measured)
    verdict = "The claim holds" if done.study.holds else "The claim DOES NOT HOLD"
    print(
        f"\n{verdict}: {holding} of {len(done.study.measured)} as expected; {done.seconds:.1f} s."
    )


def _object(done: Done, pictures: Sequence[str]) -> dict[str, Any]:
    return {
        "study": done.name,
        "claim": done.claim,
        "title": done.title,
        "holds": bool(done.study.holds),
        "seconds": done.seconds,
        "measured": [
            {
                "what": one.what,
                "value": _plain(one.value),
                "expected": one.expected,
                "holds": bool(one.holds),
            }
            for one in done.study.measured
        ],
        "tables": [
            {
                "title": shown.title,
                "heads": list(shown.heads),
                "rows": [[_plain(value) for value in row] for row in shown.rows],
            }
            for shown in done.study.tables
        ],
        "notes": list(done.study.notes),
        "pictures": list(pictures),
    }


def _plain(value: studies.Value) -> studies.Value | None:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
