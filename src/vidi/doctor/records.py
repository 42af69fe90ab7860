"""What a run wrote about itself, read back for the checks."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidi.data.open import OBJECT
from vidi.engine.run import Description, RunDirectory, read_metrics
from vidi.recipe import Recipe

Row = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """All that stands in a run's files, but for the weights.

    ``rows``: those of metrics.jsonl that count. ``vitals``: those of vitals.jsonl, in order of
    steps; empty for a run that recorded none. ``evaluation``: evaluation.json, or {}.
    """

    path: Path
    description: Description
    rows: list[Row] = field(default_factory=list)
    vitals: list[Row] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.description.recipe

    @property
    def task(self) -> str:
        return str(self.description.data.get("task") or self.recipe.task)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.description.classes

    def of(self, event: str) -> list[Row]:
        """The rows of metrics.jsonl of one kind: train, epoch, evaluation, stopped, end."""
        return [row for row in self.rows if row.get("event") == event]

    @property
    def evaluations(self) -> list[Row]:
        """Those of the validation split, in order of steps."""
        return [row for row in self.of("evaluation") if row.get("split") == "val"]

    @property
    def steps(self) -> int:
        """Updates that are known to have been made."""
        return max((int(row.get("step", 0)) for row in [*self.rows, *self.vitals]), default=0)

    def again(self, changes: str) -> str | None:
        """The command that trains once more with ``changes`` (flags as they are typed), into a
        folder beside this run. None where network or data came from Python: there is no such
        command."""
        words = shlex.split(self.description.command)
        changed = {w for w in shlex.split(changes) if w.startswith("--")}
        root = str(self.description.data["root"])
        if len(words) > 1 and words[1] == "train":
            kept = _without(words[2:], {*changed, "--run", "--run-dir", "--resume", "--json"})
        elif self.recipe.model.startswith("python:") or root.startswith(OBJECT):
            return None
        else:
            kept = [root, "--model", self.recipe.model]
        run = f"{self.path}-2"
        return f"vidi train {shlex.join(kept)} {changes} --run {shlex.quote(run)}"

    @property
    def audit(self) -> str | None:
        """The command that looks at the run's data; None where it was given from Python."""
        root = str(self.description.data["root"])
        return None if root.startswith(OBJECT) else f"vidi doctor {shlex.quote(root)}"


def read_records(run: Path) -> Records:
    """The records of the run in that folder.

    Raises :class:`vidi.errors.InputError` where the folder is no run.
    """
    from vidi.engine.vitals import read_vitals

    folder = RunDirectory(Path(run))
    return Records(
        path=folder.path,
        description=folder.read_description(),
        rows=read_metrics(folder.path),
        vitals=read_vitals(folder.path),
        evaluation=folder.read_evaluation(),
    )


def _without(words: list[str], flags: set[str]) -> list[str]:
    """``words`` without those flags and their values, one each."""
    kept: list[str] = []
    left = iter(words)
    for word in left:
        if word.split("=")[0] not in flags:
            kept.append(word)
        elif "=" not in word and word not in ("--resume", "--json"):
            next(left, None)
    return kept
