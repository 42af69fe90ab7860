"""Ensembles: how good each member is beside their average and their vote; one made of runs.

"Five nets from random starts, voting, beat one": the table says by how much. All of it comes from
one pass over the samples, and each member sees an image once (one in tiles, twice).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vidi import models
from vidi.data import augment
from vidi.data.loader import Loader
from vidi.engine import evaluate as engine
from vidi.engine.evaluate import Compute
from vidi.engine.prepare import build
from vidi.engine.run import Description
from vidi.errors import InputError
from vidi.models.members import Adjusted, Members
from vidi.ops import tiles
from vidi.tasks import Task, classification, multilabel, segmentation
from vidi.types import Batch, Meter, Normalisation, Sample

OF_PROBABILITIES = ("cross_entropy", "binary_cross_entropy", "ece")
"""What a vote has none of: it says how many, not how likely."""

Rows = list[dict[str, Any]]
"""One for each member, for the average and, where there is one, for the vote: ``member`` ("1", "2",
…, "average", "vote") and ``metrics``."""


def evaluate(
    model: nn.Module,
    task: Task,
    loader: Loader,
    compute: Compute,
    *,
    quick: bool = False,
    **views: Any,
) -> tuple[Meter, int, dict[str, str], Rows]:
    """As :func:`vidi.engine.evaluate.evaluate`, with the rows of an ensemble, in the same pass; of
    one network there are none.

    A task with a quick meter measures the rows by it.
    """
    if not isinstance(model, Members):
        return *engine.evaluate(model, task, loader, compute, quick=quick, **views), []
    each: Any = Each(task, len(model.members))
    meter, samples, failures = engine.evaluate(model, each, loader, compute, quick=quick, **views)
    assert isinstance(meter, EachMeter)
    return meter.whole, samples, failures, meter.rows()


def vote(members: Sequence[Any], average: Any) -> Any:
    """What most of the members say, as a prediction of theirs; None for what has no classes.

    ``members``: their predictions of one sample, ``average``: the ensemble's. Of one class, or of
    each label, the mean probability decides between equals; of a pixel, the class that the average
    says if it is among them, else the one of the lower number. Between those that do not win, too,
    more votes come first and then the mean probability.
    """
    n = len(members)
    if isinstance(average, classification.Prediction):
        said = [int(p.log_probabilities.argmax()) for p in members]
        votes = np.bincount(said, minlength=len(average.log_probabilities))
        # The mean, which sums to one, is one voice more, shared out: it only parts equals.
        return classification.Prediction(np.log((votes + average.probabilities) / (n + 1)))
    if isinstance(average, multilabel.Prediction):
        votes = np.sum([p.probabilities >= multilabel.THRESHOLD for p in members], axis=0)
        return multilabel.Prediction((votes + average.probabilities) / (n + 1))
    if isinstance(average, segmentation.Prediction):
        masks = np.stack([p.mask for p in members])
        most = np.zeros(average.mask.shape, np.int64)
        won = average.mask.copy()
        for k in np.unique(masks):
            # Two for a voice and one for the average's: it only parts equals.
            votes = 2 * (masks == k).sum(0) + (average.mask == k)
            won[votes > most] = k
            most = np.maximum(most, votes)
        return segmentation.Prediction(won)
    return None


@dataclass
class Each:
    """The task as evaluation sees it, with predictions that hold those of all ``members``."""

    task: Task
    members: int

    def predict(self, model: nn.Module, batch: Batch, **views: Any) -> list[list[Any]]:
        """For each sample the members' predictions, the average and, where there is one, the
        vote."""
        assert isinstance(model, Members)
        # Of an image in tiles too much would be kept; it goes through each network once more.
        once = int(batch.sizes.prod(1).max()) <= tiles.SMALL
        with _remembered(model) if once else contextlib.nullcontext(model.members) as members:
            average = self.task.predict(model, batch, **views)
            said = [self.task.predict(member, batch, **views) for member in members]
        rows = []
        for *own, mean in zip(*said, average, strict=True):
            voted = vote(own, mean)
            rows.append([*own, mean] if voted is None else [*own, mean, voted])
        return rows

    def meter(self) -> EachMeter:
        return EachMeter(self.task, self.members, self.task.meter())

    def quick_meter(self) -> EachMeter:
        return EachMeter(self.task, self.members, None)


class EachMeter:
    """A meter for each member, for the average and for the vote. ``whole``: measures the average
    once more, where the others are quick ones."""

    def __init__(self, task: Task, members: int, whole: Meter | None) -> None:
        self.names = [*map(str, range(1, members + 1)), "average", "vote"]
        self.meters = [engine.quick_meter(task) for _ in self.names]
        quick = hasattr(task, "quick_meter")
        self.own = whole if quick else None
        self.voted = False

    @property
    def whole(self) -> Meter:
        return self.meters[-2] if self.own is None else self.own

    def update(self, predictions: list[list[Any]], samples: list[Sample]) -> None:
        by_meter = list(zip(*predictions, strict=True))
        for meter, found in zip(self.meters, by_meter, strict=False):
            meter.update(list(found), samples)
        self.voted |= len(by_meter) == len(self.meters)
        if self.own is not None and by_meter:
            self.own.update(list(by_meter[len(self.meters) - 2]), samples)

    def merge(self, other: EachMeter) -> None:
        for meter, more in zip(self.meters, other.meters, strict=True):
            meter.merge(more)
        self.voted |= other.voted
        if self.own is not None:
            self.own.merge(other.own)

    def compute(self) -> dict[str, float]:
        return self.whole.compute()

    def rows(self) -> Rows:
        rows: Rows = []
        for name, meter in zip(self.names, self.meters, strict=True):
            if name == "vote" and not self.voted:
                continue
            metrics = meter.compute()
            if name == "vote":
                metrics = {k: v for k, v in metrics.items() if k not in OF_PROBABILITIES}
            rows.append({"member": name, "metrics": metrics})
        return rows


class _Again(nn.Module):
    """Stands for a member: gives again, call by call, what that gave."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def forward(self, *inputs: Any) -> Any:
        return self.given.pop(0)


@contextlib.contextmanager
def _remembered(model: Members) -> Iterator[list[_Again]]:
    """Stand-ins for the members, which give again what they gave since."""
    again = [_Again() for _ in model.members]
    hooks = [
        member.register_forward_hook(lambda _, __, output, one=one: one.given.append(output))
        for member, one in zip(model.members, again, strict=True)
    ]
    try:
        yield again
    finally:
        for hook in hooks:
            hook.remove()


# An ensemble of runs


def joined(runs: Sequence[tuple[Path, Description]]) -> Description:
    """The description of the ensemble of these runs, whose members it names as
    ``data["members"]``; the rest is the first run's.

    Raises :class:`InputError` where they cannot be one: another task, other classes, or another
    view of the image.
    """
    if len(runs) < 2:
        raise InputError(f"An ensemble needs two runs at least; named is {len(runs)}.")
    for path, own in runs:
        if own.data.get("members"):
            names = ", ".join(dict.fromkeys(one["run"] for one in own.data["members"]))
            raise InputError(f"{path} is an ensemble of runs itself. Name those: {names}.")
    (first, one), *others = runs
    for path, other in others:
        _check_alike(first, one, path, other)
    if len({path.resolve() for path, _ in runs}) < len(runs):
        raise InputError("A run is named twice; it would only count twice in the average.")
    members: list[dict[str, Any]] = []
    for path, own in runs:
        named = {
            "run": str(path),
            "model": own.recipe.model,
            "dropout": own.recipe.regularisation.dropout,
            "normalisation": dataclasses.asdict(own.normalisation),
        }
        members += [named] * own.recipe.members
    return dataclasses.replace(
        one,
        recipe=dataclasses.replace(one.recipe, members=len(members)),
        data=one.data | {"members": members},
    )


def built(description: Description, weights: Sequence[nn.Module] = ()) -> Members:
    """The ensemble that :func:`joined` described, each member with the weights of that in
    ``weights``, if they are given."""
    recipe = description.recipe
    members: list[nn.Module] = []
    for told in description.data["members"]:
        regularisation = dataclasses.replace(recipe.regularisation, dropout=told["dropout"])
        own = dataclasses.replace(
            recipe, members=1, model=told["model"], regularisation=regularisation
        )
        members.append(build(own, None, len(description.classes)))
    for member, held in zip(members, weights, strict=False):
        member.load_state_dict(held.state_dict())
    for i, told in enumerate(description.data["members"]):
        mean, std = (tuple(told["normalisation"][k]) for k in ("mean", "std"))
        own_values = Normalisation(mean, std)
        if own_values != description.normalisation:
            members[i] = Adjusted(members[i], description.normalisation, own_values)
    return Members(members, recipe.task)


def _check_alike(first: Path, one: Description, path: Path, other: Description) -> None:
    if one.data.get("svd") or other.data.get("svd"):
        raise InputError("Compressed runs (truncated SVD) cannot be members. Name the whole ones.")
    if one.recipe.task != other.recipe.task:
        raise InputError(
            f"{first} is a run for {one.recipe.task} and {path} one for {other.recipe.task}. "
            "Members of an ensemble have one task."
        )
    if one.classes != other.classes:
        same = set(one.classes) == set(other.classes)
        what = "the same classes in another order" if same else "other classes"
        raise InputError(
            f"{path} has {what} than {first}: {_some(other.classes)} instead of "
            f"{_some(one.classes)}. Train the members on the same data."
        )
    for name, of in (("image size", _image_size), ("way of fitting images to it", _fitting)):
        if of(one) != of(other):
            raise InputError(
                f"{path} has another {name} than {first}: {of(other)} instead of {of(one)}. "
                "Members see the same batch; train them with the same."
            )


def _image_size(own: Description) -> Any:
    return own.recipe.image_size


def _fitting(own: Description) -> Any:
    """How evaluation sees an image, by its name, and, with labels per pixel, where the shorter side
    is cut down to."""
    shorter = own.recipe.data.shorter if own.recipe.task in models.DENSE else 0
    return augment.EVALUATION.get(own.recipe.augmentation.crop, "resize"), shorter


def _some(classes: Sequence[str], most: int = 5) -> str:
    return ", ".join(classes[:most]) + (" …" if len(classes) > most else "")
