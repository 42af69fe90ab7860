"""Classes that are rare, or missing from a split; in labels, boxes and masks alike."""

from __future__ import annotations

import numpy as np

from vidi.data.audit.finding import Finding, Severity
from vidi.data.audit.looks import Seen
from vidi.data.audit.report import worded
from vidi.types import Array

UNEVEN = {"classification": 10, "multilabel": 50, "detection": 100}
"""The commonest class has as many times the samples (images, boxes) of the rarest, from where on
it is a warning. A fifth of it is worth knowing. Pixels differ by nature, and only inform."""
FEW = 5
MOST_SHOWN = 10


def counts(seen: Seen) -> tuple[Array, str] | None:
    """int64 [S, K]: images (boxes, where there are some) of each class by split, and what is
    counted."""
    k, s = len(seen.dataset.classes), len(seen.splits)
    out = np.zeros((s, k), np.int64)
    labels = seen.labels()
    if not k:
        return None
    if labels is not None:
        if labels.ndim == 2:
            np.add.at(out, seen.split, labels.astype(np.int64))
        else:
            known = (labels >= 0) & (labels < k)
            np.add.at(out, (seen.split[known], labels[known]), 1)
        return out, "images"
    if seen.boxes is not None:
        boxes = seen.boxes
        known = (boxes.labels >= 0) & (boxes.labels < k)
        np.add.at(out, (seen.split[boxes.rows[known]], boxes.labels[known]), 1)
        return out, "boxes"
    if seen.masks is not None:
        np.add.at(out, seen.split, seen.masks.present.astype(np.int64))
        return out, "images"
    return None


def missing(seen: Seen) -> list[Finding]:
    got = counts(seen)
    if got is None or not got[0].any():
        return []
    table, what = got
    findings = []
    names = seen.dataset.classes
    never = table.sum(0) == 0
    if never.any():
        findings.append(
            _about(
                "class-never",
                "warning",
                [names[k] for k in np.flatnonzero(never)],
                f"{{n}} [has|have] no {what} anywhere: {{names}}.",
                "The network keeps an output for them, which it learns never to use; the mean over "
                "classes leaves them out.",
                "Remove them from the list of classes, or add samples; a wrong order or number of "
                "classes looks so too.",
            )
        )
    for s, split in enumerate(seen.splits):
        absent = (table[s] == 0) & ~never
        if not absent.any():
            continue
        training = split == "train"
        findings.append(
            _about(
                f"class-missing-{split}",
                "error" if training else "warning",
                [names[k] for k in np.flatnonzero(absent)],
                f"{{n}} [has|have] no {what} in the split {split}: {{names}}.",
                "They cannot be learned, and every one in the other splits counts as a mistake."
                if training
                else "How well they are learned is not measured there; means over classes leave "
                "them out.",
                f"Divide the data again, by class, or add {what} of them.",
            )
        )
    return findings


def uneven(seen: Seen) -> list[Finding]:
    got = counts(seen)
    if got is None or "train" not in seen.splits:
        return []
    table, what = got
    names, task = seen.dataset.classes, seen.dataset.task
    train = table[seen.splits.index("train")]
    there = np.flatnonzero(train)
    findings = []
    few = [k for k in there if train[k] < FEW]
    if few:
        findings.append(
            _about(
                "class-few",
                "warning",
                [f"{names[k]} ({train[k]})" for k in few],
                f"{{n}} [has|have] fewer than {FEW} training {what}: {{names}}.",
                "A network learns these by heart, and knows no others of the class.",
                "Add samples, or join the class with another.",
            )
        )
    if task == "segmentation":
        return findings + _uneven_pixels(seen)
    if len(there) < 2:
        return findings
    most, least = there[train[there].argmax()], there[train[there].argmin()]
    ratio = train[most] / train[least]
    limit = UNEVEN.get(task, 100)
    if ratio >= limit / 5:
        severity: Severity = "warning" if ratio >= limit else "info"
        remedy = (
            "--data.balance weights or sampler gives each class the same weight. "
            if task == "classification"
            else ""
        )
        findings.append(
            Finding(
                code="class-imbalance",
                severity=severity,
                count=round(float(ratio)),
                what=f"The commonest class, {names[most]}, has {ratio:,.0f} times the training "
                f"{what} of the rarest, {names[least]} ({train[most]:,} and {train[least]:,}).",
                effect="The network leans towards common classes; overall accuracy hides it."
                if task == "classification"
                else "Common classes make up most of the loss.",
                advice=f"{remedy}Look at each class's own figure, not at the mean.",
            )
        )
    return findings


def _uneven_pixels(seen: Seen) -> list[Finding]:
    if seen.masks is None or not seen.masks.total.any():
        return []
    total, names = seen.masks.total, seen.dataset.classes
    there = np.flatnonzero(total)
    most, least = there[total[there].argmax()], there[total[there].argmin()]
    ratio = total[most] / total[least]
    if ratio < 20:
        return []
    return [
        Finding(
            code="class-imbalance",
            severity="info",
            count=round(float(ratio)),
            what=f"{names[most]} covers {ratio:,.0f} times the pixels of {names[least]} "
            f"(shares of {total[most] / total.sum():.2g} and {total[least] / total.sum():.2g}).",
            effect="Rare classes hardly count in a mean over pixels.",
            advice="Judge by the mean IoU; class weights in the loss help rare classes.",
        )
    ]


def _about(
    code: str, severity: Severity, names: list[str], what: str, effect: str, advice: str
) -> Finding:
    shown = ", ".join(names[:MOST_SHOWN])
    if len(names) > MOST_SHOWN:
        shown += f" and {len(names) - MOST_SHOWN:,} more"
    text = worded(what.replace("{n}", "{n} class[|es]"), len(names)).replace("{names}", shown)
    return Finding(code, severity, len(names), text, effect, advice)
