"""Can the network learn one batch by heart? The first thing to ask of one that does not learn.

A network that is wired rightly can: loss, labels, gradient and optimiser then pull the same way. So
all that keeps it from doing so is off (augmentation, dropout, decay, label smoothing), and the
optimiser is Adam, which few rates and no scale of the loss put off: what is asked is not whether
the run's rate is right.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vidi.data import augment
from vidi.data.loader import Loader
from vidi.doctor.finding import some
from vidi.doctor.fresh import fresh
from vidi.engine import device
from vidi.engine.device import to_device
from vidi.engine.evaluate import Compute, evaluate
from vidi.engine.prepare import Prepared
from vidi.engine.rehearsal import rehearsal
from vidi.models import DENSE
from vidi.models.members import members_of
from vidi.recipe import Augmentation
from vidi.tasks import Task
from vidi.types import Batch

SAMPLES = 16
FEW = 4
"""Samples of the batch, whatever the run's own has; fewer where each has many boxes or pixels to
be learned."""
STEPS = 300
SECONDS = 180.0
RATES = (3e-3, 3e-4)
"""The second where the loss has not moved, or is not finite, after :data:`TRIAL` steps at the
first."""
TRIAL = 50
LEARNED = 0.1
"""A batch is learned where its loss has fallen to this share of the first, or its metric is within
this share of perfect."""
COARSE = 0.4
"""That share for boundaries: they are thin, and drawn from maps that are coarse. Whoever knows the
images not at all stays at 1 there."""
MOVED = 0.02
"""A loss that has not fallen by this share has not moved."""
INDEX = (1 << 40) - 1
"""The bits of a drawn sample that are its index."""


@dataclass(frozen=True)
class Overfit:
    """``losses``: each step's, before its update. ``first``, ``last``: the headline ``metric`` on
    the batch, before and after."""

    run: str
    task: str
    keys: tuple[str, ...]
    losses: tuple[float, ...]
    terms: dict[str, tuple[float, float]]
    """Of each term of the loss, the first value and the last. The first term is of what evaluation
    looks at; others may be beyond reach (coarse side outputs)."""
    metric: str
    lower_is_better: bool
    first: float
    last: float
    seconds: float
    ended: str
    """Why it ended: learned, steps, time, not moved, not finite, or nothing to train."""
    still: tuple[str, ...]
    """Parameters that never got a gradient other than zero."""
    frozen: tuple[str, ...]
    """Parameters that require none."""

    @property
    def left(self) -> float:
        """The last value of the first term, as a share of its first; infinite where it is not
        finite."""
        first, last = next(iter(self.terms.values()))
        return last / first if math.isfinite(last) and first else math.inf

    @property
    def perfect(self) -> bool:
        if self.lower_is_better:
            return self.last <= LEARNED * self.first
        return self.last >= 1 - LEARNED

    @property
    def learned(self) -> bool:
        return self.perfect or self.left <= _share(self.task)

    @property
    def follows(self) -> bool:
        """Whether the metric has gone at least half of the way to perfect."""
        if self.lower_is_better:
            return self.last <= self.first / 2
        return self.last >= (1 + self.first) / 2

    def as_json(self) -> dict[str, Any]:
        """What is not finite is null."""

        def number(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "run": self.run,
            "task": self.task,
            "samples": list(self.keys),
            "steps": len(self.losses),
            "seconds": self.seconds,
            "ended": self.ended,
            "losses": [number(loss) for loss in self.losses],
            "terms": {k: [number(v) for v in values] for k, values in self.terms.items()},
            "metric": self.metric,
            "metric_first": number(self.first),
            "metric_last": number(self.last),
            "learned": self.learned,
            "verdict": self.verdict,
            "without_gradient": list(self.still),
            "frozen": list(self.frozen),
        }

    def lines(self) -> list[str]:
        n, steps = len(self.keys), len(self.losses)
        return [
            f"{self.run}: one batch of {n} training sample{'s' * (n != 1)}, {steps} "
            f"step{'s' * (steps != 1)} of Adam from fresh weights, {self.seconds:.0f} s "
            f"({self.ended})",
            *(f"  loss {k:<14} {a:.4g} → {b:.4g}" for k, (a, b) in self.terms.items()),
            f"  {self.metric:<19} {self.first:.4g} → {self.last:.4g}",
            *self.verdict,
        ]

    @property
    def verdict(self) -> list[str]:
        """Whether it was learned, and what it means if not."""
        if self.learned:
            out = [
                "The network can learn a batch by heart. If the run does not learn, look at its "
                "rate (--lr-range), its regularisation and its data."
            ]
            if not self.follows and self.task != "boundaries":
                out.append(
                    f"But the loss falls and {self.metric} does not follow: evaluation sees other "
                    "images than training, batch norms behave otherwise in it, or the loss does "
                    "not measure what the metric does."
                )
            return out
        out = ["The network cannot learn even one batch by heart."]
        if self.ended == "not finite":
            out.append(
                "Its loss or its gradient is not finite: look at the first layers' values "
                "(vidi doctor RUN), and at the loss."
            )
        elif self.left > 1 - MOVED:
            out.append(
                "Its loss does not move: no gradient reaches what could change it, or the "
                "outputs do not depend on the input, or the loss not on the labels."
            )
        else:
            out.append(
                "Its loss falls, but not far: labels may contradict each other or not "
                "belong to the images, the network may be too small or have a bottleneck, "
                "or part of it may be cut off from the gradient."
            )
        if self.ended == "time":
            out.append(
                f"But after {self.seconds:.0f} s the time was over: more may be enough, or fewer "
                "pixels (--image-size)."
            )
        if self.frozen:
            out.append(f"Frozen: {some(self.frozen, 5)}.")
        if self.still:
            out.append(f"Without a gradient: {some(self.still, 5)}.")
        return out


def overfit_one_batch(
    made: Prepared, *, network: Any = None, steps: int = STEPS, seconds: float = SECONDS
) -> Overfit:
    """Train on one batch until it is learned by heart, or for ``steps`` or ``seconds`` at most.

    From fresh weights (:mod:`vidi.doctor.fresh`), so that it asks for the wiring and not for what a
    failed run has become. The run is not touched. ``network``: as for training, if it was given
    from Python.
    """
    began = time.perf_counter()
    model, train_mode = fresh(made, network)
    compute = made.compute
    loader = _one_batch(made)
    task = made.task
    if getattr(task, "label_smoothing", 0.0):
        task = dataclasses.replace(task, label_smoothing=0.0)  # type: ignore[type-var]
    with device.threads_for(made.work), rehearsal(model, train_mode, compute.device) as copied:
        _, one = next(members_of(copied))
        for module in one.modules():
            if "drop" in type(module).__name__.lower():
                module.eval()
        with contextlib.closing(loader.epoch(0)) as batches:
            batch = next(batches)
        on_device = to_device(batch, compute.device, compute.normalisation, compute.channels_last)
        seen = _seen(made, loader)
        first = _metric(one, task, seen, compute)
        enough = _share(made.description.recipe.task) / 2
        before = copy.deepcopy(one.state_dict())
        for lr in RATES:
            one.load_state_dict(before)
            rows, ended, touched = _learn(
                one, task, on_device, compute, lr, enough, steps, began + seconds
            )
            if ended not in ("not moved", "not finite"):
                break
        _settle_norms(one, task, on_device, compute)
        last = _metric(one, task, seen, compute)
    named = dict(one.named_parameters())
    return Overfit(
        run=made.description.recipe.model,
        task=made.description.recipe.task,
        keys=tuple(batch.keys),
        losses=tuple(sum(row.values()) for row in rows),
        terms={name: (value, rows[-1][name]) for name, value in rows[0].items()},
        metric=task.headline,
        lower_is_better=bool(getattr(task, "lower_is_better", False)),
        first=first,
        last=last,
        seconds=time.perf_counter() - began,
        ended=ended,
        still=tuple(n for n, p in named.items() if p.requires_grad and n not in touched),
        frozen=tuple(n for n, p in named.items() if not p.requires_grad),
    )


def _one_batch(made: Prepared) -> Loader:
    """Training's loader of its first few samples alone, not augmented."""
    a, train = made.train.augmentation, made.train
    kept = a.crop if a.crop in augment.OWN_SIZE else "whole" if a.crop == "zoom" else "resize"
    loader = copy.copy(train)
    few = made.description.recipe.task in (*DENSE, "detection")
    # Not the run's batch: of a single sample the last bias alone can learn the answer.
    count = min(FEW if few else SAMPLES, len(train.ids))
    loader.ids = np.unique(train.order(0)[:count] & INDEX)
    loader.batch_size = len(loader.ids)
    loader.balance, loader.failures = None, {}
    loader.augmentation = augment.resolve(Augmentation(preset="none", crop=kept, longest=a.longest))
    return loader


def _seen(made: Prepared, loader: Loader) -> Loader:
    """The same samples as evaluation has them."""
    plain = copy.copy(made.plain)
    plain.ids, plain.augmentation, plain.failures = loader.ids, loader.augmentation, {}
    return plain


def _settle_norms(network: nn.Module, task: Task, batch: Batch, compute: Compute) -> None:
    """Gives batch norms in training mode the statistics of the batch, to which a few steps do not
    bring their running means."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training:
            module.reset_running_stats()
            module.momentum = None  # the mean of all passes, of which there is one
    with torch.no_grad(), compute.autocast():
        task.losses(network, batch)


def _metric(network: nn.Module, task: Task, loader: Loader, compute: Compute) -> float:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    meter, _, _ = evaluate(network, task, loader, compute, quick=True)
    for module, training in modes:
        module.training = training
    return float(meter.compute()[task.headline])


def _learn(
    network: nn.Module,
    task: Task,
    batch: Batch,
    compute: Compute,
    lr: float,
    enough: float,
    steps: int,
    until: float,
) -> tuple[list[dict[str, float]], str, set[str]]:
    """(each step's loss, by term; why it ended; the parameters that ever got a gradient)."""
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    weights = {k: w.clamp_min(torch.finfo().tiny) for k, w in task.weights(batch).items()}
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    optimiser = torch.optim.Adam(trained.values(), lr=lr) if trained else None
    rows: list[dict[str, float]] = []
    touched: set[str] = set()
    for step in range(steps):
        with compute.autocast():
            terms = {k: s / weights[k] for k, s in task.losses(network, batch).items()}
        loss = torch.stack([*terms.values()]).sum()
        rows.append({k: float(v.detach()) for k, v in terms.items()})
        first, now = (sum(row.values()) for row in (rows[0], rows[-1]))
        if not math.isfinite(now):
            return rows, "not finite", touched
        # Half of what is asked for, so that no rounding decides.
        if step and next(iter(rows[-1].values())) <= enough * next(iter(rows[0].values())):
            return rows, "learned", touched
        if step == TRIAL and now > (1 - MOVED) * first:
            return rows, "not moved", touched
        if time.perf_counter() > until:
            return rows, "time", touched
        if optimiser is None or not loss.requires_grad:
            return rows, "nothing to train", touched
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        touched |= {n for n, p in trained.items() if p.grad is not None and bool(p.grad.any())}
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
    return rows, "steps", touched


def _share(task: str) -> float:
    """Of the loss before, at which a batch is learned."""
    return COARSE if task == "boundaries" else LEARNED
