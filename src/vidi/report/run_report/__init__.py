"""The report of a run: one HTML page that opens without a network, for whoever was not there.

A file for each section, each with a function that gives its HTML; :func:`written` puts them in
order. What a section lacks (data that is gone, a run without curves) it says in a sentence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidi.engine.checkpoint import write_atomically
from vidi.engine.run import plain
from vidi.errors import InputError, RunError
from vidi.report.compare import Comparison
from vidi.report.html import Html
from vidi.report.names import readable
from vidi.report.run_report import (
    calibration,
    cost,
    curves,
    data,
    errors,
    figures,
    findings,
    inside,
    page,
    samples,
    setting,
    several,
    verdict,
)
from vidi.report.run_report.looked import Looked, look
from vidi.report.run_report.subject import Opened, Subject, with_nan

__all__ = ["Opened", "RunReport", "Subject", "check_place", "save", "with_nan", "written"]

ROOM = 8
"""Samples that are drawn of several runs together, of the best and of the worst: pictures are most
of a page's size."""


@dataclass(frozen=True)
class RunReport:
    """A report and what it says."""

    subjects: tuple[Subject, ...]
    html: str = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for each run."""
        return {
            "bytes": len(self.html.encode()),
            "runs": [
                {
                    "run": readable(str(one.run.path)),
                    "task": one.task,
                    "split": one.split,
                    "unfinished": one.run.unfinished,
                    "metrics": plain(one.metrics),
                    "findings": [finding.code for finding in one.findings],
                    "notes": [readable(note) for note in one.notes],
                }
                for one in self.subjects
            ],
        }


def written(subjects: Sequence[Subject], comparison: Comparison | None = None) -> RunReport:
    """The report of one run, or of several with their ``comparison``."""
    body: list[Html] = []
    if comparison is not None:
        links = [(f"run-{k}", one.run.name) for k, one in enumerate(subjects, 1)]
        body.append(several.shown(comparison, page.contents(links)))
    for k, subject in enumerate(subjects, 1):
        drawn = None if comparison is None else ROOM // len(subjects)
        looked = None
        if subject.opened is not None and drawn != 0:
            looked = look(subject.opened, drawn=drawn)
        # Of several runs each has these sections, and no two may have one name.
        start = "" if comparison is None else f"run-{k}-"
        parts = [
            Html(part.replace('<section id="', f'<section id="{start}', 1))
            for part in _sections(subject, looked, alone=comparison is None)
        ]
        body += [Html(f'<article id="run-{k}">'), verdict.head(subject)]
        if comparison is None:
            body.append(page.contents(_links(parts)))
        body += [*filter(None, parts), Html("</article>")]
    name = subjects[0].run.name if comparison is None else f"{len(subjects)} runs side by side"
    return RunReport(tuple(subjects), page.written(f"{name}: report", body))


def _sections(subject: Subject, looked: Looked | None, *, alone: bool) -> list[Html]:
    """In the order of the page; what a run has nothing for is empty. ``alone``: whether the page is
    about this run only. Of several, maps of layers would be most of its size."""
    return [
        verdict.asked(subject),
        data.shown(subject),
        curves.shown(subject),
        figures.shown(subject),
        errors.shown(subject),
        calibration.shown(subject, looked),
        samples.shown(subject, looked),
        inside.shown(subject, maps=alone),
        findings.shown(subject),
        cost.shown(subject, looked),
        setting.environment(subject),
        setting.recipe(subject),
    ]


def _links(parts: Sequence[Html]) -> list[tuple[str, str]]:
    """(name, title) of each section."""
    found = (re.match(r'<section id="(.*?)">\n<h2>(.*?)</h2>', part) for part in parts)
    return [(one[1], Html(one[2])) for one in found if one is not None]


def save(report: RunReport, path: Path) -> None:
    """Write the page. Raises :class:`InputError` for a place that is something else already, and
    where the system refuses; what was there before is then untouched."""
    check_place(path)
    try:
        write_atomically(path, report.html.encode())
    except RunError as error:
        why = error.__cause__
        said = (why.strerror if isinstance(why, OSError) else None) or why
        raise InputError(
            f"{path} cannot be written: {said}. Make room, or give --out another place."
        ) from error


def check_place(path: Path) -> None:
    """Raises :class:`InputError` where no report may be written: over what is none, and in a folder
    that cannot be written to."""
    if path.is_dir():
        raise InputError(f"{path} is a folder. Give --out the name of a file, such as report.html.")
    # A pipe would be read for ever.
    if path.exists() and not (path.is_file() and is_report(path)):
        raise InputError(
            f"{path} exists and is no report of vidi's; it was not touched. Give --out another "
            "name."
        )
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir():
        raise InputError(
            f"{folder} is a file, and {path} would be in it. Give --out another place."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"{path} cannot be written: {folder} may not be written to. Give --out another place."
        )


def is_report(path: Path) -> bool:
    """Whether a report may be written over this file: it is one."""
    try:
        with open(path, "rb") as file:
            start = file.read(2000)
    except OSError:
        return False
    return f'content="{page.MAKER}"'.encode() in start
