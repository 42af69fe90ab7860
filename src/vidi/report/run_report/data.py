"""The data of a run: where it is, its fingerprint, how many samples and how its classes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidi.data.dataset import Dataset
from vidi.data.survey import class_pixels
from vidi.errors import InputError
from vidi.report.html import Html
from vidi.report.run_report.page import (
    cell,
    facts,
    folding,
    heading,
    paragraph,
    plural,
    section,
    split_name,
)
from vidi.report.run_report.subject import Subject
from vidi.tasks import detection

Counts = dict[str, list[float]]
"""By split: of each class how many, or what share."""
COUNTED = {
    "classification": "images",
    "multilabel": "images",
    "detection": "objects",
    "segmentation": "share of pixels",
}
"""What there is of each class, by task."""


def shown(subject: Subject) -> Html:
    """The section."""
    data = subject.description.data
    samples: Mapping[str, int] = data["samples"]
    what = "pair" if subject.task == "flow" else "image"
    left_out = len(data["left_out"])
    mean, std = (
        ", ".join(f"{v:.3f}" for v in values)
        for values in (
            subject.description.normalisation.mean,
            subject.description.normalisation.std,
        )
    )
    rows = [
        ("where", str(data["root"])),
        ("format", str(data["format"])),
        ("fingerprint", str(data["fingerprint"])),
        (
            "samples",
            ", ".join(f"{plural(n, what)} of {split_name(s)}" for s, n in samples.items()),
        ),
        ("left out", f"{plural(left_out, what)} could not be read" if left_out else ""),
        ("red, green, blue", f"mean {mean}; deviation {std}"),
    ]
    return section("data", "The data", facts(rows), *_balance(subject))


def _balance(subject: Subject) -> list[Html]:
    """A table of the classes with a bar for the first split's count."""
    counts = _counts(subject)
    classes = subject.classes
    if not counts or len(classes) < 2:
        return []
    first = next(iter(counts))
    most = max(counts[first], default=0.0)
    rows = []
    order = sorted(range(len(classes)), key=lambda k: -counts[first][k])
    for k in order:
        width = 100 * counts[first][k] / most if most else 0
        bar = Html(f'<span class="bar" style="width: {width:.1f}%"></span>')
        rows.append([classes[k], bar, *(cell(counts[split][k]) for split in counts)])
    what = COUNTED[subject.task]
    values = counts[first]
    least, often = classes[order[-1]], classes[order[0]]
    span = f"from {cell(min(values))} ({least}) to {cell(max(values))} ({often})"
    if min(values) == max(values):
        span = cell(min(values))
    sentence = f"{what.capitalize()} of each class, of {split_name(first)}: {span}."
    heads = ["class", "", *map(split_name, counts)]
    return [
        heading("Class balance"),
        paragraph(sentence),
        folding(f"All {len(classes):,} classes", rows, heads, kind="numbers bars"),
    ]


def _counts(subject: Subject) -> Counts:
    """From the data where it is there, else of the splits that were evaluated."""
    if subject.task not in COUNTED:
        return {}
    if subject.opened is not None:
        try:
            return _of_data(subject.opened.dataset, subject.task)
        except InputError:  # an annotation that is no longer as it was
            pass
    column = {"detection": "objects", "segmentation": "share"}.get(subject.task, "samples")
    rows: dict[str, list[dict[str, Any]]] = {
        split: one.get("per_class", []) for split, one in subject.results.items()
    }
    return {split: [row[column] for row in some] for split, some in rows.items() if some}


def _of_data(dataset: Dataset, task: str) -> Counts:
    k = len(dataset.classes)
    if task == "detection":
        return {
            split: detection.objects(dataset.annotations, ids, k).tolist()
            for split, ids in dataset.splits.items()
        }
    if task == "segmentation":
        found = {
            split: class_pixels(dataset.annotations, ids, k)
            for split, ids in dataset.splits.items()
        }
        return {split: (n / max(1, n.sum())).tolist() for split, n in found.items()}
    assert dataset.labels is not None
    if task == "multilabel":
        return {split: dataset.labels[ids].sum(0).tolist() for split, ids in dataset.splits.items()}
    return {split: dataset.class_counts(split).tolist() for split in dataset.splits}
