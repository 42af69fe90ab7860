"""What the run doctor says: findings, each with its evidence and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["problem", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note")

STUCK = ("plateau", "underfitting", "one-class-predicted")
"""What a network shows that does not learn, whatever the cause."""


@dataclass(frozen=True)
class Series:
    """The numbers of a small picture: one or more curves over the same x.

    ``ys``: the curves by name, each as long as ``x``; None is a gap. ``names``: what stands at x
    where x is not a number by itself (layers by depth, classes). ``threshold``: a level that is
    drawn as a dashed line, and ``meaning`` what it is.
    """

    x: tuple[float, ...]
    ys: dict[str, tuple[float | None, ...]]
    xlabel: str
    ylabel: str
    log: bool = False
    threshold: float | None = None
    meaning: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run.

    ``code``: a word that stays the same, such as rate-too-high. ``severity``: "problem" for what is
    surely wrong, "warning" for what probably is, "note" for what one should know. ``what``: one
    sentence. ``evidence``: sentences with the numbers. ``remedy``: what to do, and ``command`` one
    that does it. ``layer`` and ``step``: where it was seen. ``series``: for a small picture.
    ``explains``: codes of findings that are nothing but its symptoms; they are not told beside it.
    """

    code: str
    severity: Severity
    what: str
    evidence: tuple[str, ...]
    remedy: str
    command: str | None = None
    layer: str | None = None
    step: int | None = None
    series: Series | None = None
    explains: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The finding as the note of a run."""
        return f"{self.what.rstrip('.')}. {self.remedy}"

    def as_json(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "severity": self.severity,
            "what": self.what,
            "evidence": list(self.evidence),
            "remedy": self.remedy,
            "command": self.command,
            "layer": self.layer,
            "step": self.step,
            "series": None if self.series is None else asdict(self.series),
        }


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The worst first, otherwise as they came; without what another finding explains."""
    explained = {code for f in findings for code in f.explains}
    kept = [f for f in findings if f.code not in explained]
    return tuple(sorted(kept, key=lambda f: SEVERITIES.index(f.severity)))


def some(names: Sequence[str], most: int = 3) -> str:
    """The first of the names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
