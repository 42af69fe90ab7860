"""What a run wrote about itself, read back for the checks."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidi.data.open import OBJECT
from vidi.engine.run import Description, RunDirectory, free_name, read_metrics
from vidi.recipe import Recipe, flat

Row = dict[str, Any]

LENGTHS = {"--epochs", "--length.steps", "--length.minutes"}
"""Of several the run would obey another than the one that was asked for."""
OWN = {"--run", "--run-dir", "--resume", "--json"}
"""What a command says of one run alone."""
SETTLED = ("batch_size", "image_size", "precision", "optimiser.name")
"""Resolved values that a command from Python's run names."""


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
        """The command that trains once more with ``changes`` (flags as they are typed), into a new
        folder beside this run that is called by them. None where network or data came from Python:
        there is no such command.

        Of a run that Python trained its values are written out, but for those that vidi may have
        chosen (rate, schedule, augmentation …): it chooses them again.
        """
        words = shlex.split(self.description.command)
        root = str(self.description.data["root"])
        if len(words) > 1 and words[1] == "train":
            kept = words[2:]
        elif self.recipe.model.startswith("python:") or root.startswith(OBJECT):
            return None
        else:
            kept = [root, "--model", self.recipe.model, *self._flags()]
        changed = {_flag(w) for w in shlex.split(changes) if w.startswith("--")}
        if changed & LENGTHS:
            changed |= LENGTHS
        switches = _switches()
        changed |= {switches[flag] for flag in changed if flag in switches}
        kept = _without(kept, changed | OWN, {*switches, "--resume", "--json"})
        return f"vidi train {shlex.join(kept)} {changes} --run {shlex.quote(self._beside(changes))}"

    def look_closer(self, option: str) -> str:
        """The command that has the doctor look at this run with ``option``, such as --lr-range."""
        return f"vidi doctor {shlex.quote(str(self.path))} {option}"

    def _beside(self, changes: str) -> str:
        """A free name beside this run: RUN-lr-0.01 for --lr 0.01."""
        here = self.path.resolve() if self.path.name in ("", "..") else self.path
        words = [
            w.removeprefix("--").rpartition(".")[2] if w.startswith("--") else w
            for w in shlex.split(changes)
        ]
        told = re.sub(r"[^\w.-]+", "-", "-".join(words))
        return str(free_name(here.parent, f"{here.name}-{told}"))

    def _flags(self) -> list[str]:
        """The recipe as flags: what differs from the defaults and is not vidi's own choice."""
        plain = {name: value for name, value, _ in flat(Recipe())}
        length = self.recipe.length
        ends = "epochs" if length.steps is None else "length.steps"
        words = [] if self.task == "classification" else ["--task", self.task]
        for name, value, free in flat(self.recipe):
            asked = plain[name] != "auto" and name not in ("length.steps", "length.minutes")
            if free and name not in ("bad_images", "length.patience"):
                asked = False  # changes nothing that is learned
            if value == plain[name] or not (asked or name in SETTLED or name == ends):
                continue
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                words.append(flag if value else _switches()[flag])
            else:
                words += [flag, *_words(value)]
        return words

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


def _flag(word: str) -> str:
    """The flag of --flag or --flag=value, with hyphens."""
    return word.split("=")[0].replace("_", "-")


def _switches() -> dict[str, str]:
    """The recipe's flags without a value, each with the one that undoes it."""
    found: dict[str, str] = {}
    for name, value, _ in flat(Recipe()):
        if isinstance(value, bool):
            part, dot, last = name.replace("_", "-").rpartition(".")
            on, off = f"--{part}{dot}{last}", f"--{part}{dot}no-{last}"
            found |= {on: off, off: on}
    return found


def _words(value: Any) -> list[str]:
    """A value as it is typed."""
    if isinstance(value, tuple):
        return [word for part in value for word in _words(part)]
    return [
        f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)
    ]


def _without(words: list[str], flags: set[str], bare: set[str]) -> list[str]:
    """``words`` without those flags and their values, one each but of those that are ``bare``."""
    kept: list[str] = []
    left = iter(words)
    for word in left:
        if not word.startswith("--") or _flag(word) not in flags:
            kept.append(word)
        elif "=" not in word and _flag(word) not in bare:
            next(left, None)
    return kept
