"""The head of a report: what was asked, and in a sentence how good it became."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from vidi.doctor.finding import SEVERITIES
from vidi.report.html import Html, inline, joined
from vidi.report.run_report.cost import training_seconds
from vidi.report.run_report.page import (
    amount,
    duration,
    facts,
    number,
    plural,
    section,
    split_name,
)
from vidi.report.run_report.subject import Subject

KEYS = {
    "classification": ("accuracy", "top5", "cross_entropy", "ece"),
    "multilabel": ("map", "f1", "f1_macro", "binary_cross_entropy"),
    "segmentation": ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou"),
    "detection": ("map", "map50", "map75", "recall100"),
    "boundaries": ("ods", "ois", "ap"),
    "flow": ("epe", "fl", "epe_zero"),
}
"""The metrics that stand at the top, by task."""


def head(subject: Subject) -> Html:
    """Name, verdict and main figures."""
    recipe = subject.recipe
    metrics = subject.metrics.get(subject.split, {})
    keys = [
        (f"{split_name(subject.split)} {name.replace('_', ' ')}", number(metrics[name]))
        for name in KEYS.get(subject.task, ())
        if name in metrics and not (name == "top5" and len(subject.classes) <= 5)
    ]
    if subject.run.parameters is not None:
        keys.append(("parameters", amount(subject.run.parameters)))
    if subject.run.epochs:
        keys.append(("epochs", f"{subject.run.epochs:.3g}"))
    if seconds := training_seconds(subject.records):
        keys.append(("training time", duration(seconds)))
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in keys)
    return joined(
        [
            Html('<header class="run">'),
            Html(f"<h1>{escape(subject.run.name)}</h1>"),
            Html(
                f'<p class="lead">{escape(subject.task)} · {escape(_network(subject))} · '
                f"{escape(str(subject.description.data['root']))} · seed {recipe.seed}</p>"
            ),
            *(Html(f'<p class="verdict">{inline(one)}</p>') for one in sentences(subject) if one),
            Html(f'<dl class="keys">{cells}</dl>') if cells else Html(""),
            Html("</header>"),
        ]
    )


def asked(subject: Subject) -> Html:
    """What was asked of the training, and what it is."""
    recipe = subject.recipe
    classes = subject.classes
    shown = ", ".join(classes[:12]) + (f" and {len(classes) - 12:,} more" if classes[12:] else "")
    rows = [
        ("task", TASKS.get(subject.task, subject.task)),
        ("classes", f"{len(classes):,}: {shown}" if classes else ""),
        ("network", _network(subject)),
        ("began with", _start(subject)),
        ("length", "" if recipe.probe or subject.made_of else _length(subject)),
        ("image size", f"{recipe.image_size} px"),
        ("loss", str(subject.description.data.get("loss") or "")),
    ]
    notes = [f"<li>{inline(note)}</li>" for note in subject.description.notes]
    chosen = ""
    if notes:
        chosen = (
            f"<details><summary>What was found and chosen, and why ({len(notes)})</summary>"
            f'<ul class="small">{"".join(notes)}</ul></details>'
        )
    return section("asked", "What was asked", facts(rows), Html(chosen))


def sentences(subject: Subject) -> list[str]:
    """The verdict: how good it is; what that is to be held against; what else to know."""
    metrics = subject.metrics.get(subject.split, {})
    count = subject.details.get("samples")
    on = f"{split_name(subject.split)} {subject.samples}"
    if count is not None:
        on = f"{count:,} {on}" if count != 1 else f"1 {on[:-1]}"
    said = SAID.get(subject.task)
    first = (
        said(metrics, subject, on) if metrics and said is not None
        else "There is no figure of this run yet: it has not come to an evaluation."
    )  # fmt: skip
    return [first, " ".join(filter(None, (_against(subject, metrics), *_state(subject))))]


def _of_classes(metrics: Mapping[str, float], subject: Subject, on: str) -> str:
    return (
        f"{_share(metrics['accuracy'])} of the {on} are put into the right one of "
        f"{len(subject.classes):,} classes."
    )


def _of_labels(metrics: Mapping[str, float], subject: Subject, on: str) -> str:
    return (
        f"Over {plural(len(subject.classes), 'label')} the mean average precision is "
        f"{number(metrics['map'])} on the {on}; at probability 0.5, F1 is {number(metrics['f1'])}."
    )


def _of_masks(metrics: Mapping[str, float], subject: Subject, on: str) -> str:
    return (
        f"{_share(metrics['pixel_accuracy'])} of the pixels of the {on} are given the right one of "
        f"{len(subject.classes):,} classes; averaged over classes, the intersection over union is "
        f"{number(metrics['miou'])}."
    )


def _of_boxes(metrics: Mapping[str, float], subject: Subject, on: str) -> str:
    return (
        f"Over {plural(len(subject.classes), 'class', 'classes')} the mean average precision is "
        f"{number(metrics['map'])} on the {on}, and {number(metrics['map50'])} where boxes need "
        "overlap by half only."
    )


def _of_boundaries(metrics: Mapping[str, float], subject: Subject, on: str) -> str:
    return (
        f"On the {on} the F-measure of the boundaries is {number(metrics['ods'])} at the one "
        f"threshold that is best for all (ODS), and {number(metrics['ois'])} with each image at "
        "its own."
    )


def _of_flow(metrics: Mapping[str, float], subject: Subject, on: str) -> str:
    return (
        f"On the {on} the flow ends {metrics['epe']:.2f} pixels from where it should, on average; "
        f"{_share(metrics['fl'])} of the pixels are off by more than 3 pixels and 5%."
    )


SAID: dict[str, Callable[[Mapping[str, float], Subject, str], str]] = {
    "classification": _of_classes,
    "multilabel": _of_labels,
    "segmentation": _of_masks,
    "detection": _of_boxes,
    "boundaries": _of_boundaries,
    "flow": _of_flow,
}
TASKS = {
    "classification": "classification: one class for each image",
    "multilabel": "classification with several labels: any of the classes for each image, or none",
    "segmentation": "segmentation: a class for each pixel",
    "detection": "detection: boxes with classes",
    "boundaries": "boundaries: how likely each pixel is on one",
    "flow": "flow: how far each pixel of a frame moves to the next",
}


def _against(subject: Subject, metrics: Mapping[str, float]) -> str:
    """What knowing nothing would come to."""
    if subject.task == "flow" and "epe_zero" in metrics:
        return f"Saying that nothing moves would be {metrics['epe_zero']:.2f} pixels off."
    rows: list[dict[str, Any]] = subject.details.get("per_class", [])
    column = {"classification": "samples", "segmentation": "share"}.get(subject.task)
    if column is None or not rows:
        return ""
    total = sum(row[column] for row in rows)
    often = max(rows, key=lambda row: row[column])
    if not total:
        return ""
    what = "image" if subject.task == "classification" else "pixel"
    share = _share(often[column] / total)
    return f"Always answering {often['class']} would be right for {share} of the {what}s."


def _state(subject: Subject) -> list[str]:
    """Whether it is finished, and what the doctor says of it."""
    said = []
    # What was made of finished runs was never trained itself.
    trained = not (subject.made_of or subject.description.data.get("svd"))
    if trained and subject.run.unfinished is not None:
        so_far = ""
        if not subject.results and subject.metrics.get("val"):
            so_far = " These are the figures of its best evaluation so far."
        elif subject.results:
            so_far = " These are the figures of its best weights so far."
        said.append(f"The run is not finished: {subject.run.unfinished}.{so_far}")
    counts = {s: sum(f.severity == s for f in subject.findings) for s in SEVERITIES}
    serious = [plural(n, name) for name, n in counts.items() if n and name != "note"]
    if serious:
        said.append(f"The doctor found {' and '.join(serious)}.")
    elif subject.records.rows:
        said.append("The doctor found nothing wrong.")
    return said


def _network(subject: Subject) -> str:
    if subject.made_of:
        kinds = list(dict.fromkeys(one["model"] for one in subject.made_of))
        return f"the average of {len(subject.made_of)} networks ({', '.join(kinds)})"
    recipe = subject.recipe
    name = recipe.model.removeprefix("python:")
    if recipe.members > 1:
        name = f"{recipe.members} × {name}"
    cut = subject.description.data.get("svd")
    return f"{name}, its fully connected layers cut down (SVD)" if cut else name


def _start(subject: Subject) -> str:
    recipe = subject.recipe
    if subject.made_of:
        return ", ".join(dict.fromkeys(str(one["run"]) for one in subject.made_of))
    words = "random weights" if recipe.weights is None else f"the weights {recipe.weights}"
    frozen = f"; not trained: {', '.join(recipe.freeze)}" if recipe.freeze else ""
    return words + frozen


def _length(subject: Subject) -> str:
    recipe = subject.recipe
    if recipe.length.steps is not None:
        asked_for = plural(recipe.length.steps, "step")
    elif recipe.length.minutes is not None:
        asked_for = f"{recipe.length.minutes:g} minutes"
    else:
        asked_for = f"{recipe.epochs:g} epochs"
    made = f"{subject.run.steps:,} steps of {recipe.batch_size} {subject.samples} were made"
    return f"{asked_for}; {made}, {subject.run.epochs:.3g} epochs"


def _share(value: float) -> str:
    if math.isnan(value):
        return "an unknown share"
    return f"{value:.1%}" if 0.0005 <= value < 0.9995 or value in (0, 1) else f"{value:.2%}"
