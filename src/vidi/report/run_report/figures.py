"""All metrics, of each split that was evaluated; the rows per class; an ensemble's members."""

from __future__ import annotations

import math
from typing import Any

from vidi.report.html import Html, table
from vidi.report.run_report.page import (
    MANY,
    cell,
    folding,
    heading,
    number,
    paragraph,
    section,
    split_name,
)
from vidi.report.run_report.subject import Subject

MEANING = {
    "accuracy": "share of images whose likeliest class is right",
    "error": "share of images whose likeliest class is wrong",
    "top5": "share of images with their class among the five likeliest",
    "cross_entropy": "in nats; of a class that is given probability 1, 0",
    "ece": "expected calibration error: how far probabilities are from shares",
    "f1": "of all decisions together",
    "f1_macro": "averaged over classes",
    "binary_cross_entropy": "in nats, averaged over images and classes",
    "miou": "intersection over union, averaged over classes",
    "pixel_accuracy": "share of pixels that are right",
    "mean_accuracy": "that share within each class, averaged",
    "fw_iou": "intersection over union, classes weighted by their pixels",
    "map50": "average precision where boxes overlap by half",
    "map75": "average precision where boxes overlap by three quarters",
    "map_voc07": "PASCAL VOC's of 2007, at 11 recalls",
    "map_voc10": "PASCAL VOC's of 2010, under the whole curve",
    "map_small": "of objects up to 32² pixels",
    "map_medium": "of objects up to 96² pixels",
    "map_large": "of larger objects",
    "recall100": "share of objects found, among 100 detections an image",
    "ods": "F-measure at the one threshold that is best for all images",
    "ois": "F-measure with each image at its own best threshold",
    "ap": "average precision",
    "epe": "end-point error: mean distance from the true flow, in pixels",
    "fl": "share of pixels off by more than 3 pixels and 5%",
    "epe_zero": "the end-point error of saying that nothing moves",
    "s0-10": "end-point error where the true flow is up to 10 pixels long",
    "s10-40": "where it is 10 to 40 pixels long",
    "s40+": "where it is longer",
    "epe_visible": "of points that the second frame shows",
    "epe_occluded": "of points that it hides",
}
"""Of a metric's name; those that mean another thing in another task are in :data:`OF_TASK`."""
OF_TASK = {
    ("multilabel", "map"): "average precision, averaged over classes",
    ("detection", "map"): "average precision, over ten overlaps and all classes",
}
WORST = ("ap50", "iou", "ap", "recall")
"""By the first of these that rows have, the worst classes are told."""
SHOWN = 8
"""Worst classes that are shown where they are many."""


def shown(subject: Subject) -> Html:
    """The section."""
    return section(
        "figures",
        "Figures",
        _metrics(subject),
        *_members(subject),
        *_classes(subject),
        *_parts(subject),
    )


def _metrics(subject: Subject) -> Html:
    splits = {split: values for split, values in subject.metrics.items() if values}
    if not splits:
        return paragraph("The run has not come to an evaluation yet.")
    names = dict.fromkeys(name for values in splits.values() for name in values)
    counts = [subject.results.get(split, {}).get("samples") for split in splits]
    heads = [
        "metric",
        *(
            split_name(split) + ("" if n is None else f" ({n:,})")
            for split, n in zip(splits, counts, strict=True)
        ),
        "what it is",
    ]
    rows = [
        [
            name,
            *(number(values.get(name, math.nan)) for values in splits.values()),
            OF_TASK.get((subject.task, name), MEANING.get(name, "")),
        ]
        for name in names
    ]
    return table(heads, rows, kind="numbers last-words", caption="Metrics")


def _members(subject: Subject) -> list[Html]:
    rows: list[dict[str, Any]] = subject.details.get("members", [])
    if not rows:
        return []
    names = list(rows[0]["metrics"])
    body = [
        [row["member"], *(number(row["metrics"].get(name, math.nan)) for name in names)]
        for row in rows
    ]
    return [
        heading(f"Members, on {split_name(subject.split)}"),
        paragraph("Each by itself, the average of all, which is what predicts, and their vote."),
        table(["member", *names], body, kind="numbers", caption="Members"),
    ]


def _classes(subject: Subject) -> list[Html]:
    rows: list[dict[str, Any]] = subject.details.get("per_class", [])
    if not rows:
        return []
    heads = [name.replace("_", " ") for name in rows[0]]
    body = [[cell(value) for value in row.values()] for row in rows]
    parts = [heading(f"By class, on {split_name(subject.split)}")]
    if len(rows) > MANY:
        column = next(name for name in WORST if name in rows[0])
        known = [row for row in rows if not math.isnan(row[column])]
        known.sort(key=lambda row: row[column])
        worst = [[cell(value) for value in row.values()] for row in known[:SHOWN]]
        parts += [
            paragraph(f"The {len(worst)} classes with the lowest {column}:"),
            table(heads, worst, kind="numbers", caption="The worst classes"),
        ]
    return [*parts, folding(f"All {len(rows):,} classes", body, heads, kind="numbers")]


def _parts(subject: Subject) -> list[Html]:
    rows: list[dict[str, Any]] = subject.details.get("by_part", [])
    if not rows:
        return []
    heads = ["part of the pixels", *(name.replace("_", " ") for name in list(rows[0])[1:])]
    body = [[cell(value) for value in row.values()] for row in rows]
    return [
        heading(f"By the true flow's length, on {split_name(subject.split)}"),
        table(heads, body, kind="numbers", caption="By part"),
    ]
