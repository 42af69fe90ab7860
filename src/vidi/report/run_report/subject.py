"""A run as a report sees it: what its folder tells, and its network and data where they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vidi.data.dataset import Dataset
from vidi.data.loader import Loader
from vidi.doctor.finding import Finding
from vidi.doctor.records import Records
from vidi.engine.evaluate import Compute
from vidi.engine.run import Description
from vidi.recipe import Recipe
from vidi.report.compare import ComparedRun
from vidi.tasks import Task


@dataclass(frozen=True)
class Opened:
    """A run's best weights, and the samples of the split that is reported, as evaluation sees
    them."""

    network: nn.Module = field(repr=False)
    task: Task = field(repr=False)
    compute: Compute
    loader: Loader = field(repr=False)

    @property
    def dataset(self) -> Dataset:
        return self.loader.dataset


@dataclass(frozen=True)
class Subject:
    """``split``: the one whose details are shown. ``results``: by split, as evaluation.json has
    them, with NaN where there is no value; empty of a run that was never measured whole.
    ``network``: its best weights, None where there are none yet. ``opened``: None where the data is
    not there, or not to be opened. ``notes``: what is therefore missing, sentences."""

    run: ComparedRun
    records: Records
    split: str
    results: dict[str, dict[str, Any]]
    findings: tuple[Finding, ...]
    network: nn.Module | None = field(repr=False)
    opened: Opened | None
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> Description:
        return self.run.description

    @property
    def recipe(self) -> Recipe:
        return self.run.description.recipe

    @property
    def task(self) -> str:
        return self.recipe.task

    @property
    def classes(self) -> tuple[str, ...]:
        return self.run.description.classes

    @property
    def samples(self) -> str:
        """What its samples are called, several of them."""
        return "pairs" if self.task == "flow" else "images"

    @property
    def details(self) -> dict[str, Any]:
        """Of the split that is shown: rows per class, confusion, curves …; empty where there are
        none."""
        return self.results.get(self.split, {})

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """By split. Of a run that is not finished and was not measured whole, its best so far."""
        if not self.results:
            return self.run.metrics
        return {split: one["metrics"] for split, one in self.results.items()}

    @property
    def made_of(self) -> list[dict[str, Any]]:
        """The runs of which it is an ensemble; none, where it was trained."""
        found: list[dict[str, Any]] = self.description.data.get("members") or []
        return found


def with_nan(value: Any) -> Any:
    """JSON's null is a value that is not there: NaN, within rows and lists too."""
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {name: with_nan(one) for name, one in value.items()}
    return [with_nan(one) for one in value] if isinstance(value, list) else value
