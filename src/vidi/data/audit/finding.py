"""What an audit says: findings, each with what it does to training and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
MOST_KEPT = 50
"""Samples that a finding names; ``count`` has all."""


@dataclass(frozen=True)
class Finding:
    """One kind of trouble in a data set.

    ``code``: a word that stays the same, such as box-no-area. ``severity``: "error" for what makes
    training or its figures wrong, "warning" for what probably does, "info" for what one should
    know. ``count``: as many as were found, of what ``what`` says (boxes, images, classes).
    ``samples``: (key, detail) of the first 50 samples; ``of`` is the number of samples concerned;
    ``twins``: of duplicates, the key of what each is alike to.
    ``effect``: what it will do to training. ``advice``: what to do.
    """

    code: str
    severity: Severity
    count: int
    what: str
    effect: str
    advice: str
    samples: tuple[tuple[str, str], ...] = ()
    of: int = 0
    twins: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The finding as the note of a run."""
        named = ", ".join(key for key, _ in self.samples[:3])
        more = f" and {self.of - 3:,} more" if self.of > 3 else ""
        where = f" ({named}{more})" if named else ""
        return f"{self.what.rstrip('.')}{where}. {self.effect}"

    def as_json(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "severity": self.severity,
            "count": self.count,
            "what": self.what,
            "effect": self.effect,
            "advice": self.advice,
            "samples": [{"key": key, "detail": detail} for key, detail in self.samples],
            "samples_total": self.of,
            "twins": list(self.twins),
        }


@dataclass(frozen=True)
class Audit:
    """All that was found in a data set, the worst first; ``statistics`` are plain numbers of
    images, sizes, channels and classes, ready for JSON."""

    findings: tuple[Finding, ...]
    statistics: dict[str, Any] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Findings by severity."""
        return {s: sum(f.severity == s for f in self.findings) for s in SEVERITIES}

    def find(self, code: str) -> Finding | None:
        """The finding of that code, if there is one."""
        return next((f for f in self.findings if f.code == code), None)


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The worst first, otherwise as they came."""
    return tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))
