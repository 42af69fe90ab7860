"""Evaluation: every sample once, over any number of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vidi.data.loader import Loader
from vidi.engine import distributed
from vidi.engine.device import DTYPES, to_device
from vidi.tasks import Task
from vidi.types import Batch, Meter, Normalisation


@dataclass(frozen=True)
class Compute:
    """How a batch meets the network."""

    device: torch.device
    precision: str
    channels_last: bool
    normalisation: Normalisation

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])


def quick_meter(task: Task) -> Meter:
    """The task's meter for evaluations between epochs."""
    meter: Meter = getattr(task, "quick_meter", task.meter)()
    return meter


@torch.inference_mode()
def answers(
    model: nn.Module, task: Task, batch: Batch, compute: Compute, **views: Any
) -> list[Any]:
    """What the task predicts for each row of a batch as the loader made it. ``views``: what its
    ``predict`` averages over (``flip``, ``scales``)."""
    with compute.autocast():
        on_device = to_device(batch, compute.device, compute.normalisation, compute.channels_last)
        found: list[Any] = task.predict(model, on_device, **views)
    return found


@torch.inference_mode()
def predictions(
    model: nn.Module, task: Task, loader: Loader, compute: Compute, **views: Any
) -> Generator[tuple[Batch, list[Any]], None, None]:
    """This process's share of the samples, batch by batch, as (batch, predictions).

    ``views``: what the task's ``predict`` averages over (``flip``, ``scales``). A sample that
    cannot be read is in neither; ``loader.failures`` says why. The network is left
    in the mode it was in.
    """
    was_training = model.training
    model.eval()
    try:
        with contextlib.closing(loader.epoch(0)) as batches:
            for batch in batches:
                found = answers(model, task, batch, compute, **views)
                batch.samples = [s for s, ok in zip(batch.samples, batch.valid, strict=True) if ok]
                yield batch, [p for p, ok in zip(found, batch.valid, strict=True) if ok]
    finally:
        model.train(was_training)


def evaluate(
    model: nn.Module,
    task: Task,
    loader: Loader,
    compute: Compute,
    *,
    quick: bool = False,
    **views: Any,
) -> tuple[Meter, int, dict[str, str]]:
    """(meter, samples, failures) of the whole split.

    The processes share the samples out, no one twice, and every process gets the whole result.
    A sample that cannot be read is in ``failures`` (key: sentence) and counts for nothing.
    ``quick``: by :func:`quick_meter`.
    """
    meter = quick_meter(task) if quick else task.meter()
    done = 0
    for batch, found in predictions(model, task, loader, compute, **views):
        meter.update(found, batch.samples)
        done += len(found)
    parts = distributed.gathered((meter, done, dict(loader.failures)))
    loader.failures.clear()
    merged, count, failed = parts[0]
    for other, more, bad in parts[1:]:
        merged.merge(other)
        count += more
        failed.update(bad)
    return merged, count, failed
