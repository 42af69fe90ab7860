"""What is taken for what: confusion, precision and recall, kinds of error, by task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vidi.report import boundary_pictures, detection_pictures, pictures
from vidi.report.html import Html, table
from vidi.report.run_report.drawing import drawing, figure
from vidi.report.run_report.page import heading, paragraph, section, split_name
from vidi.report.run_report.subject import Subject
from vidi.types import Array

COMMONEST = 8
"""Confusions that are told in words."""


def shown(subject: Subject) -> Html:
    """The section; nothing for a task that has none of it, or a run that was not evaluated."""
    details = subject.details
    if "confusion" in details:
        return _confusion(subject, np.array(details["confusion"], np.int64))
    if "curves" in details:
        return _detection(subject, details)
    if "curve" in details:
        return _boundaries(subject, details)
    return Html("")


def _confusion(subject: Subject, counts: Array) -> Html:
    classes = subject.classes
    unit = "pixels" if subject.task == "segmentation" else "images"
    drawn = drawing(
        lambda path: pictures.confusion(counts, classes, path, unit=unit),
        f"Confusion matrix: rows are true classes, columns what was predicted; {_right(counts)} of "
        f"the {unit} are on the diagonal",
        adapts=False,
    )
    least = 420 if len(classes) <= pictures.COUNTED else 760
    wide = Html(f'<div class="wide" style="--least: {least}px">{drawn}</div>')
    return section(
        "errors",
        f"What is taken for what, on {split_name(subject.split)}",
        figure(wide),
        *_commonest(counts, classes, unit),
    )


def _right(counts: Array) -> str:
    return f"{np.trace(counts) / max(1, counts.sum()):.1%}"


def _commonest(counts: Array, classes: tuple[str, ...], unit: str) -> list[Html]:
    off = counts - np.diag(np.diag(counts))
    rows = []
    for flat in np.argsort(-off, axis=None, kind="stable")[:COMMONEST]:
        i, j = np.unravel_index(flat, off.shape)
        if off[i, j]:
            share = off[i, j] / counts[i].sum()
            rows.append([f"{classes[i]} → {classes[j]}", f"{off[i, j]:,}", f"{share:.1%}"])
    if not rows:
        return [paragraph("Nothing was taken for anything else.")]
    heads = ["true → predicted", unit, "of the true class"]
    return [
        heading("Most frequent confusions"),
        table(heads, rows, kind="numbers", caption="Most frequent confusions"),
    ]


def _detection(subject: Subject, details: dict[str, Any]) -> Html:
    def precision_recall(path: Path) -> None:
        detection_pictures.precision_recall(details["per_class"], details["curves"], path)

    def errors(path: Path) -> None:
        detection_pictures.errors(details["errors"], details["gains"], path)

    first = drawing(precision_recall, "Precision over recall at an overlap of 0.5, a curve a class")
    second = drawing(
        errors, "Kinds of detections, objects missed, and what AP50 would gain without each error"
    )
    return section(
        "errors",
        f"Precision, recall and kinds of error, on {split_name(subject.split)}",
        figure(Html(f'<div class="wide" style="--least: 460px">{first}</div>')),
        figure(
            Html(f'<div class="wide" style="--least: 760px">{second}</div>'),
            f"Of detections that score {detection_pictures.LEAST:g} or more.",
        ),
    )


def _boundaries(subject: Subject, details: dict[str, Any]) -> Html:
    human = subject.description.data["format"] == "bsds"
    name = subject.recipe.model.rpartition(":")[2]
    best = details["ods_at"]
    drawn = drawing(
        lambda path: boundary_pictures.precision_recall({name: details}, path, human=human),
        "Precision over recall, with lines of equal F",
    )
    words = (
        f"The best F is at the threshold {best['threshold']:.3f}: recall {best['recall']:.4f}, "
        f"precision {best['precision']:.4f}."
    )
    if human:
        words += " The green point is how well people agree."
    return section(
        "errors", f"Precision and recall, on {split_name(subject.split)}", paragraph(words),
        figure(drawn),
    )  # fmt: skip
