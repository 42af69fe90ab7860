"""The rate finder: at which learning rates a run learns, and from which on it diverges.

Smith 2017, "Cyclical learning rates for training neural networks", section 3.3: the rate rises
while the network trains, and its loss tells. Here it rises exponentially, from the run's own first
weights, on its own batches, with its own optimiser, arithmetic and clipping.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import nn

from vidi.data.loader import Loader
from vidi.engine import distributed, gradients, optimisers
from vidi.engine.device import to_device
from vidi.engine.evaluate import Compute
from vidi.engine.rehearsal import rehearsal
from vidi.models.members import members_of
from vidi.recipe import Recipe
from vidi.tasks import Task
from vidi.types import Array, Batch

USUAL = {"sgd": 0.1, "adamw": 1e-3, "muon": 0.03}
"""Where the search begins. Losses of any scale are met by going on from there."""
TRIED = 10
"""Decades from there, at most, to either side."""
BELOW, ABOVE = 30.0, 1000.0
"""The sweep goes from so much below the rate at which a single step still helps to so much above
it, at most."""
GROWTH = 1.06
"""From step to step: 40 steps a decade, and about 100 in all."""
FASTEST = 3
"""Where time is short, the rate rises as in so many steps at once, at most."""
TIMED = 5
"""Steps after which it is decided."""
SECONDS = 120.0
"""For the sweep, about, at most."""
WIDTH = 4.0
"""The losses are smoothed by a Gaussian of that deviation, in steps, on both sides: a running mean
would lag, and give higher rates than those it saw."""
LOST = 0.2
"""The share of what was won that is lost again at the upper end of the valley."""
WIDEST = 3.0
"""The upper end is at so many times the rate of the lowest loss, at most."""
CLEAR = 1.5
"""A rise of so many deviations of one step's loss is hardly noise any more, smoothed as it is."""
SURE = 2.0
"""One of so many is none, even where the loss has not fallen before."""
BORNE = 4.0
"""A warm-up gives so many times the sweep's rate, at most."""
SHOWING = 4
"""Steps, besides those that the momentum remembers, until what diverges shows."""
LEVEL = 10
"""The loss before anything is learned: the mean of so many first steps."""


@dataclass(frozen=True)
class Sweep:
    """What was seen while the rate rose. ``rates``, ``losses``, ``smoothed``: float64 [N]."""

    rates: Array
    losses: Array
    smoothed: Array
    lowest: float | None
    """The rate at which the smoothed loss is lowest, before it rises; ``None``: it never falls by
    more than its noise."""
    rises: float | None
    """The rate from which on it rises again; ``None``: that was not seen."""
    suggestion: float | None
    """The highest rate for a run; ``None``: nothing can be said."""
    seconds: float

    @property
    def sentence(self) -> str:
        """What was found, without a full stop."""
        tried = f"rates from {self.rates[0]:.2g} to {self.rates[-1]:.2g}, {len(self.rates)} steps"
        if self.suggestion is None:
            return f"the loss falls at none of the {tried}, by more than its noise"
        if self.lowest is None:
            return f"the loss falls by no more than its noise, and rises from {self.rises:.2g} on"
        seen = f"the loss is lowest at {self.lowest:.2g}"
        if self.rises is not None:
            seen += f" and rises again from {self.rises:.2g} on"
        return f"{seen} ({tried})"


def sweep(
    model: nn.Module,
    task: Task,
    train: Loader,
    compute: Compute,
    recipe: Recipe,
    *,
    is_head: Callable[[str], bool],
    train_mode: Callable[[nn.Module], None],
    seconds: float = SECONDS,
) -> Sweep:
    """Let the rate rise until the loss diverges, and read a suggestion off the curve.

    All that is handed over stays as it is; of an ensemble the first member is looked at. Rates are
    the recipe's ``lr``: groups have theirs relative to it. ``seconds``: about so long at most; on a
    slow machine the rate rises faster then, in a third of the steps at least.
    """
    began = time.perf_counter()
    rates: list[float] = []
    losses: list[float] = []
    with (
        rehearsal(model, train_mode, compute.device) as copied,
        contextlib.closing(_batches(train, task, compute, recipe)) as batches,
    ):
        stepper = _Stepper(copied, task, compute, recipe, is_head)
        first = next(batches)
        edge = stepper.edge(first)
        rate, growth = edge / BELOW, GROWTH
        timed = time.perf_counter()
        for parts in itertools.chain([first], batches):
            loss = stepper.step(parts, rate, len(rates))
            rates.append(rate)
            losses.append(loss)
            if len(rates) == TIMED:
                whole = math.log(BELOW * 10) / math.log(GROWTH)
                needed = (time.perf_counter() - timed) / TIMED * whole
                growth = GROWTH ** distributed.from_writer(min(FASTEST, max(1, needed / seconds)))
            rate *= growth
            if not math.isfinite(loss) or _over(losses, edge, rates) or rate > edge * ABOVE:
                break
    warmup, momentum = recipe.schedule.warmup, recipe.optimiser.momentum
    assert warmup != "auto" and momentum != "auto"
    return read(
        np.array(rates),
        np.array(losses),
        warmup=warmup * train.steps_per_epoch,
        momentum=momentum,
        seconds=time.perf_counter() - began,
    )


def read(
    rates: Array,
    losses: Array,
    *,
    warmup: float = 0.0,
    momentum: float = 0.0,
    seconds: float = 0.0,
) -> Sweep:
    """What a curve says. ``rates``, ``losses``: float64 [N], of which the last loss may be infinite
    or no number. ``warmup``: steps over which the run's own rate will rise.

    The valley's upper end is the last rate before the smoothed loss first rises by :data:`LOST` of
    what was won, and :data:`WIDEST` times that of the lowest loss at most. Where it falls most
    steeply depends on how fast the rate rises, and where it is lowest, on noise; the upper end
    hangs on where the run becomes unstable. A loss that falls by no more than its noise before it
    rises says no more than that: then it is a third of the rate at which it rises.

    The suggestion is the upper end times :func:`bearable`. What is won and lost counts by ratios,
    as far as losses are positive: one that has almost vanished is lost again long before it is
    large.
    """
    finite = np.isfinite(losses)
    positive = bool((losses[finite] > 0).all())
    heights = np.full(len(losses), np.nan)
    heights[finite] = np.log(losses[finite]) if positive else losses[finite]
    start = float(heights[:LEVEL][finite[:LEVEL]].mean()) if finite[:LEVEL].any() else math.nan
    # What is beyond the cliff counts as far as it shows that there is one.
    most = 2 * start - float(np.min(heights[finite], initial=start))
    # Of neighbours' differences, which the fall itself hardly touches.
    noise = float(np.std(np.diff(heights[: 2 * LEVEL][finite[: 2 * LEVEL]]))) / math.sqrt(2)
    most = max(most, start + 4 * noise)
    heights = np.where(finite, np.minimum(heights, most), most)
    growth = float(np.median(rates[1:] / rates[:-1])) if len(rates) > 1 else GROWTH
    # Where the rate rose faster, the same part of the curve has fewer steps.
    width = max(1.0, WIDTH * math.log(GROWTH) / math.log(growth))
    smoothed = gaussian_filter1d(heights, width, mode="nearest")
    noise *= math.sqrt(WIDTH / width)  # of which more is left then
    least = np.minimum.accumulate(smoothed)
    won = start - least
    rising = smoothed - least > np.maximum(LOST * won, CLEAR * noise)
    end = int(rising.argmax()) if rising.any() else len(rates)
    at = int(smoothed[:end].argmin()) if end else 0
    lowest = float(rates[at]) if won[at] > noise else None
    rises = float(rates[end]) if rising.any() else None
    upper = None
    if lowest is not None:
        upper = min(float(rates[max(0, end - 1)]), WIDEST * lowest)
    elif rises is not None and bool((smoothed - least > SURE * noise).any()):
        upper = rises / WIDEST
    return Sweep(
        rates=rates,
        losses=losses,
        smoothed=np.exp(smoothed) if positive else smoothed,
        lowest=lowest,
        rises=rises,
        suggestion=None
        if upper is None
        else float(f"{upper * bearable(warmup, momentum, growth):.2g}"),
        seconds=seconds,
    )


def bearable(warmup: float, momentum: float, growth: float = GROWTH) -> float:
    """The rate that a run with a warm-up of so many steps bears, relative to that of a sweep in
    which it rose by ``growth`` from step to step.

    The longer the rate takes to rise, the flatter the place that the network has come to (Gilmer et
    al. 2021, "A loss curvature perspective on training instabilities of deep learning models"): the
    root of the warm-up's length, in those of the sweep's own rise, at most :data:`BORNE`. That root
    was measured: ResNet-20 on CIFAR-10 at 16 px becomes unstable in the sweep at 0.06; with a
    warm-up of 42 steps 0.1 trained best of 0.03, 0.1, 0.3, and with one of 420 steps 0.2 better
    than 0.06. Without a warm-up it is less than 1: in the sweep what diverges shows late.
    """
    late = SHOWING + 1 / (1 - momentum)
    least = math.exp(-late * math.log(GROWTH))
    return min(BORNE, max(least, math.sqrt(warmup * math.log(growth) / math.log(BELOW))))


def _over(losses: list[float], edge: float, rates: list[float]) -> bool:
    """Whether the loss is back where it began, or was not lower for a whole decade."""
    if rates[-1] < edge:
        return False
    medians = [float(np.median(losses[max(0, i - 4) : i + 1])) for i in range(len(losses))]
    start = float(np.mean(losses[:LEVEL]))
    lowest = int(np.argmin(medians))
    return medians[-1] > start + (start - medians[lowest]) or rates[-1] > 10 * rates[lowest]


@dataclass
class _Stepper:
    """A network that is trained for a few steps."""

    copied: nn.Module
    task: Task
    compute: Compute
    recipe: Recipe
    is_head: Callable[[str], bool]
    network: nn.Module = field(init=False)
    wrapped: nn.Module = field(init=False)
    optimiser: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        told = self.recipe.optimiser
        name, self.network = next(members_of(self.copied))
        self.wrapped = distributed.wrap(self.network, self.compute.device)
        # With a highest rate of 1, what the schedule multiplies it by is the rate.
        groups = optimisers.groups(self.network, told, 1.0, lambda n: self.is_head(name + n))
        self.optimiser = optimisers.make(groups, told, 1.0)
        device = self.compute.device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.compute.precision == "fp16")

    def step(self, parts: list[Batch], rate: float, number: int) -> float:
        """One step of the run; gives the loss before it, infinite where it or its gradient is not
        finite, and then the weights are not moved."""
        optimisers.set_rate(self.optimiser, rate)
        loss = self._loss(parts, number)
        self.scaler.unscale_(self.optimiser)
        norm = gradients.clip([self.network], self.recipe.optimiser.clip)
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            return math.inf
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        return loss

    def edge(self, parts: list[Batch]) -> float:
        """About the highest rate at which a first step lowers the loss of its own batch, to a
        factor of three; the usual one if there is none."""
        before = copy.deepcopy(self.network.state_dict())
        usual = USUAL[self.recipe.optimiser.name]

        def helps(rate: float) -> bool:
            loss = self.step(parts, rate, 0)
            after = self._loss(parts, 0)
            self._begin_again(before)
            return after < loss

        while self.scaler.is_enabled():  # until nothing overflows
            scale = self.scaler.get_scale()
            self.step(parts, 0.0, 0)
            self._begin_again(before)
            if self.scaler.get_scale() == scale:
                break
        up = helps(usual)
        rates = [usual * 10.0 ** (k if up else -k) for k in range(1, TRIED)]
        first = next((rate for rate in rates if helps(rate) != up), None)
        if first is None:
            return usual
        edge = first / 10 if up else first
        return edge * 10**0.5 if helps(edge * 10**0.5) else edge

    def _loss(self, parts: list[Batch], number: int) -> float:
        """With its gradient."""
        weights, _ = gradients.total_weights(self.task, parts, None)
        losses = gradients.backward(
            [self.wrapped],
            self.task,
            parts,
            weights,
            self.compute,
            self.scaler,
            self.recipe.seed,
            number,
        )
        return sum(losses.values())

    def _begin_again(self, before: dict[str, Any]) -> None:
        self.network.load_state_dict(before)
        self.optimiser.state.clear()
        self.optimiser.zero_grad(set_to_none=True)


def _batches(
    train: Loader, task: Task, compute: Compute, recipe: Recipe
) -> Generator[list[Batch], None, None]:
    """Those of the run, from its first, each in the parts that it is split into."""
    halved: Any = getattr(task, "halved", None) if recipe.schedule.half else None
    loader = copy.copy(train)
    loader.failures = {}
    for epoch in itertools.count():
        with contextlib.closing(loader.epoch(epoch)) as batches:
            for batch in batches:
                parts = [
                    to_device(p, compute.device, compute.normalisation, compute.channels_last)
                    for p in gradients.split(batch, recipe.optimiser.accumulate)
                ]
                yield [halved(part) for part in parts] if halved else parts
