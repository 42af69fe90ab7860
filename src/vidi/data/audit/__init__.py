"""The audit of a data set: everything that goes wrong in silence, looked for before training.

Each check is a function of what a single pass over the samples collected, and yields findings; a
new one is a function and a place in a list below. No file is ever changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from vidi.data.audit import boxes, classes, duplicates, edges, images, masks, motion, statistics
from vidi.data.audit.finding import SEVERITIES, Audit, Finding, Severity, in_order
from vidi.data.audit.looks import Seen, labels_only, look_at_all
from vidi.data.dataset import Dataset
from vidi.data.open import open_data, read_source
from vidi.errors import InputError
from vidi.types import Array, Notes

__all__ = ["SEVERITIES", "Audit", "Finding", "Severity", "audit", "opened", "warnings"]

CHEAP: tuple[Callable[[Seen], list[Finding]], ...] = (
    boxes.check,
    boxes.without,
    classes.missing,
    classes.uneven,
)
"""They need labels only, and run before every training."""

FULL: tuple[Callable[[Seen], list[Finding]], ...] = (
    images.unreadable,
    images.unfit,
    images.frames,
    *CHEAP,
    masks.check,
    motion.check,
    edges.check,
    duplicates.exact,
    images.constant,
    images.narrow,
    images.sides,
    images.colours,
)
"""They need every sample; near duplicates, which load some of them again, come after."""


SAID = ("class-missing", "class-never")


def audit(
    dataset: Dataset,
    *,
    cheap: bool = False,
    threads: int | None = None,
    sizes: Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Look for everything that would spoil a training, and change nothing.

    ``cheap``: by the labels alone (classes, and boxes that lie in memory); no file is read.
    ``sizes``: int [N, 2], heights and widths of the samples of all splits one after the other,
    where they are known already (for ``cheap``). ``progress`` is called with the samples done and
    their number. The result does not depend on ``threads``.
    """
    if cheap:
        seen = labels_only(dataset, sizes)
        findings = [finding for check in CHEAP for finding in check(seen)]
        return Audit(in_order(findings), statistics.of(seen))
    count = threads if threads is not None else os.cpu_count() or 1
    seen = look_at_all(dataset, threads=count, progress=progress)
    findings = [finding for check in FULL for finding in check(seen)]
    findings += duplicates.near(seen, count)
    return Audit(in_order(findings), statistics.of(seen))


def warnings(dataset: Dataset) -> Notes:
    """What the cheap part finds that should be known before training, as sentences.

    Classes that a split lacks are left out: opening the data has said so.
    """
    return [
        finding.sentence
        for finding in audit(dataset, cheap=True).findings
        if finding.severity != "info" and not finding.code.startswith(SAID)
    ]


def opened(source: Any, task: str = "auto") -> tuple[Dataset | None, list[Finding]]:
    """The data that ``source`` is, as far as it can be opened, and what stood in the way.

    What training would refuse (one class only, classes that differ between the splits) is a
    finding here, and the rest is audited; what cannot be opened at all gives None, and why.
    """
    try:
        return open_data(source, task=task, carve_val=False), []
    except InputError as error:
        refused = str(error)
    try:
        # Again, without the look at the classes, which is all that may be left.
        return read_source(source, task), [_refusal("data-refused", refused)]
    except InputError:
        return None, [_refusal("data-unreadable", refused)]


def _refusal(code: str, sentence: str) -> Finding:
    return Finding(
        code=code,
        severity="error",
        count=1,
        what=sentence,
        effect="Training refuses the data.",
        advice="Mend what the sentence says, and run the audit again.",
    )
