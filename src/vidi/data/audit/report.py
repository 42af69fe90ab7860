"""From rows of a pass to a finding."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from vidi.data.audit.finding import MOST_KEPT, Finding, Severity
from vidi.data.audit.looks import Seen


def found(
    seen: Seen,
    code: str,
    severity: Severity,
    rows: Iterable[int],
    *,
    what: str,
    effect: str,
    advice: str,
    detail: Callable[[int], str] | None = None,
    twin: Callable[[int], int] | None = None,
    count: int | None = None,
) -> list[Finding]:
    """One finding about the samples at ``rows``, or none if there are no rows.

    ``what`` has a place {n} for the count, and [one|several] for words that depend on it.
    ``detail`` says what is to be said of a row; ``twin`` gives the row that it is
    alike to; ``count``: of what was found, if not of samples.
    """
    # Each sample once, as they come: the first of several details is the one that is kept.
    which = list(dict.fromkeys(int(row) for row in rows))
    if not which:
        return []
    samples = tuple(
        (seen.key(row), detail(row) if detail is not None else "") for row in which[:MOST_KEPT]
    )
    n = len(which) if count is None else count
    return [
        Finding(
            code=code,
            severity=severity,
            count=n,
            what=worded(what, n),
            effect=effect,
            advice=advice,
            samples=samples,
            of=len(which),
            twins=() if twin is None else tuple(seen.key(twin(row)) for row in which[:MOST_KEPT]),
        )
    ]


def worded(text: str, n: int) -> str:
    """``{n}`` filled in, and of each [one|several] the word that fits."""
    return re.sub(r"\[([^|\]]*)\|([^\]]*)\]", r"\1" if n == 1 else r"\2", text).replace(
        "{n}", f"{n:,}"
    )
