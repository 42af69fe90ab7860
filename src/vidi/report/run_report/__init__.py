"""The report of a run: one HTML page that opens without a network, for whoever was not there.

A file for each section, each with a function that gives its HTML; :func:`written` puts them in
order. What a section lacks (data that is gone, a run without curves) it says in a sentence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidi.engine.checkpoint import write_atomically
from vidi.errors import InputError
from vidi.report.compare import Comparison
from vidi.report.html import Html
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

SECTIONS: tuple[Callable[[Subject, Looked | None], Html], ...] = (
    lambda subject, _: verdict.asked(subject),
    lambda subject, _: data.shown(subject),
    lambda subject, _: curves.shown(subject),
    lambda subject, _: figures.shown(subject),
    lambda subject, _: errors.shown(subject),
    calibration.shown,
    samples.shown,
    lambda subject, _: inside.shown(subject),
    lambda subject, _: findings.shown(subject),
    cost.shown,
    lambda subject, _: setting.environment(subject),
    lambda subject, _: setting.recipe(subject),
)
"""In the order of the page."""
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
                    "run": str(one.run.path),
                    "task": one.task,
                    "split": one.split,
                    "unfinished": one.run.unfinished,
                    "metrics": {
                        split: {k: None if math.isnan(v) else v for k, v in values.items()}
                        for split, values in one.metrics.items()
                    },
                    "findings": [finding.code for finding in one.findings],
                    "notes": list(one.notes),
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
            Html(section(subject, looked).replace('<section id="', f'<section id="{start}', 1))
            for section in SECTIONS
        ]
        body += [Html(f'<article id="run-{k}">'), verdict.head(subject)]
        if comparison is None:
            body.append(page.contents(_links(parts)))
        body += [*filter(None, parts), Html("</article>")]
    name = subjects[0].run.name if comparison is None else f"{len(subjects)} runs side by side"
    return RunReport(tuple(subjects), page.written(f"{name}: report", body))


def _links(parts: Sequence[Html]) -> list[tuple[str, str]]:
    """(name, title) of each section."""
    found = (re.match(r'<section id="(.*?)">\n<h2>(.*?)</h2>', part) for part in parts)
    return [(one[1], Html(one[2])) for one in found if one is not None]


def save(report: RunReport, path: Path) -> None:
    """Write the page. Raises :class:`InputError` for a place that is something else already."""
    check_place(path)
    write_atomically(path, report.html.encode())


def check_place(path: Path) -> None:
    """Raises :class:`InputError` where no report may be written: over what is none."""
    if path.is_dir():
        raise InputError(f"{path} is a folder. Give --out the name of a file, such as report.html.")
    if path.exists() and not is_report(path):
        raise InputError(
            f"{path} exists and is no report of vidi's; it was not touched. Give --out another "
            "name."
        )


def is_report(path: Path) -> bool:
    """Whether a report may be written over this file: it is one."""
    try:
        with open(path, "rb") as file:
            start = file.read(2000)
    except OSError:
        return False
    return f'content="{page.MAKER}"'.encode() in start
