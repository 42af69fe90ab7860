"""The training loop, for every task: read :func:`fit` from top to bottom.

It knows no task (that is ``Task``), no network (``nn.Module``), no rank (``distributed``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from vidi.data.loader import Loader
from vidi.engine import checkpoint, distributed, gradients, optimisers, schedules, vitals
from vidi.engine.device import to_device
from vidi.engine.ema import Average
from vidi.engine.evaluate import Compute, evaluate, predictions, quick_meter
from vidi.engine.nonfinite import first_gradient, first_layer
from vidi.engine.prepare import unreadable
from vidi.engine.run import METRICS, Description, RunDirectory
from vidi.engine.signals import Signals
from vidi.errors import InputError, RunError
from vidi.models.members import members_of
from vidi.recipe import Recipe
from vidi.tasks import Task
from vidi.types import Batch


class Progress(Protocol):
    """What a display is told."""

    def note(self, sentence: str) -> None: ...

    def start(
        self, *, total_steps: int | None, steps_per_epoch: int, epochs: float, start_step: int
    ) -> None: ...

    def measured(self, total_steps: int) -> None:
        """The length of a run that was started without one, in minutes."""

    def step(self, step: int, loss: float, images_per_second: float) -> None: ...

    def evaluated(
        self,
        *,
        epoch: float,
        train_loss: float,
        metrics: dict[str, float],
        headline: str,
        best: bool,
        images_per_second: float,
        seconds_left: float | None,
    ) -> None: ...

    def finish(self, rows: list[tuple[str, str]]) -> None: ...


@dataclass
class Position:
    """Where a run is: all of its state that is not a tensor. Saved and restored as it stands."""

    step: int = 0
    total: int | None = None
    """Steps in all; None while a length in minutes is being measured."""
    best: float | None = None
    stale: int = 0
    """Evaluations since the last better one."""
    loss_sum: float = 0.0
    """Of the steps since the last evaluation."""
    loss_count: int = 0
    minutes: float | None = None
    """The length for which ``total`` was measured, if it was."""
    halves: int | None = None
    """Steps on images of half the size, the first; None while a length is being measured. A run
    that is made longer does not go back to them."""
    cost: float = schedules.COST
    """What a step on them takes of one on whole images: measured, where ``total`` is."""


@dataclass
class Outcome:
    """``interrupted``: the signal that ended the run early, if one did."""

    position: Position
    images_per_second: float
    interrupted: int | None = None


@dataclass
class Clock:
    """Time spent on training alone, without evaluation and saving."""

    seconds: float = 0.0
    images: int = 0
    timed: int = 0
    """The steps that took those seconds."""
    seconds_on_halves: float = 0.0
    timed_on_halves: int = 0
    """Of them, those on images of half the size."""
    steps: int = 0
    started: float = field(default_factory=time.perf_counter)
    last_save: float = field(default_factory=time.perf_counter)

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    def step(self, seconds: float, images: int, *, half: bool, usual: bool) -> None:
        """``usual``: it is not timed otherwise, since what was measured besides took its time."""
        if self.steps == MEASURED[0]:  # what the first steps compile and allocate is over
            self.seconds, self.images, self.timed = 0.0, 0, 0
            self.seconds_on_halves, self.timed_on_halves = 0.0, 0
        self.steps += 1
        if not usual:
            return
        self.timed += 1
        self.seconds += seconds
        self.images += images
        if half:
            self.timed_on_halves += 1
            self.seconds_on_halves += seconds

    def per_step(self, cost: float) -> tuple[float, float]:
        """Seconds of a step on whole images, and on those of half the size, which is taken for
        ``cost`` of the former where only one of them was timed."""
        whole = self.timed - self.timed_on_halves
        on_wholes = (self.seconds - self.seconds_on_halves) / whole if whole else None
        halves = self.timed_on_halves
        on_halves = self.seconds_on_halves / halves if halves else (on_wholes or 0.0) * cost
        return on_halves / cost if on_wholes is None else on_wholes, on_halves


MEASURED = (5, 25)
"""A length in minutes becomes steps after the second of these, by the time since the first."""


def fit(
    run: RunDirectory,
    description: Description,
    model: nn.Module,
    task: Task,
    train: Loader,
    val: Loader,
    compute: Compute,
    *,
    is_head: Callable[[str], bool],
    train_mode: Callable[[nn.Module], None],
    progress: Progress,
    state: checkpoint.State | None = None,
    watch: Callable[[], None] = lambda: None,
    tell: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train ``model`` in place, from ``state`` if one is given, to the recipe's length.

    An ensemble's members learn from the same batches, each by itself. ``watch`` is called after
    each evaluation, once its row is written; ``tell`` after each row of metrics.jsonl.

    Raises :class:`RunError` when the loss or its gradient is not finite (before any update), and
    :class:`InputError` after an epoch in which images could not be read, unless the recipe skips
    such.
    """
    recipe = description.recipe
    per_epoch = train.steps_per_epoch
    warmup = round(_number(recipe.schedule.warmup) * per_epoch)
    evaluate_every = max(1, round(_number(recipe.length.evaluate_every) * per_epoch))
    patience = recipe.length.patience
    share = _number(recipe.schedule.half)
    halved: Any = getattr(task, "halved", None)  # only some tasks can; others have no share
    assert halved is not None or not share

    members = [member for _, member in members_of(model)]
    networks = [
        distributed.wrap(torch.compile(m) if recipe.compile else m, compute.device)  # type: ignore[arg-type]
        for m in members
    ]
    lr = _number(recipe.lr)
    optimiser = optimisers.make(
        optimisers.all_groups(model, recipe.optimiser, lr, is_head), recipe.optimiser, lr
    )
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    decay = _number(recipe.regularisation.ema)
    average = Average(model, decay) if decay else None
    judged = average.model if average else model

    at = Position()
    if state is not None:
        at = _restore(state, model, average, optimiser, scaler)
        for note in state.notes:
            progress.note(note)
    before = at.total
    if recipe.length.minutes is None or recipe.length.minutes != at.minutes:
        at.total = length_in_steps(recipe, per_epoch)
        at.minutes = None
    if before is not None and (at.total is None or at.total > before):
        at.stale = 0  # a longer run gets its patience anew
    _set_halves(at, share)
    record = _recorder(run, at.step, tell)
    clock = Clock()
    interrupted = None
    progress.start(
        total_steps=at.total,
        steps_per_epoch=per_epoch,
        epochs=at.total / per_epoch if at.total else _number(recipe.epochs),
        start_step=at.step,
    )

    def save() -> None:
        if distributed.is_writer():
            tensors = _tensors(model, average, optimiser)
            values = {**dataclasses.asdict(at), "scaler": scaler.state_dict()}
            checkpoint.save(run.last, at.step, tensors, values)
        clock.last_save = time.perf_counter()

    with Signals() as signals:
        while (at.total is None or at.step < at.total) and not (patience and at.stale >= patience):
            epoch, offset = divmod(at.step, per_epoch)
            train_mode(model)
            with contextlib.closing(train.epoch(epoch, offset)) as batches:
                began = time.perf_counter()
                for batch in batches:
                    parts = [
                        to_device(p, compute.device, compute.normalisation, compute.channels_last)
                        for p in gradients.split(batch, recipe.optimiser.accumulate)
                    ]
                    # While a length is being measured, both kinds of steps are timed in turn.
                    if at.halves is None:
                        half = share > 0 and at.step % 2 == 0
                    else:
                        half = at.step < at.halves
                    if half:
                        parts = [halved(part) for part in parts]
                    weights, stop = gradients.total_weights(task, parts, signals.received)
                    if stop:
                        interrupted = signals.received or stop
                        break
                    optimisers.set_rate(optimiser, _rate(recipe, at, warmup))
                    look = None
                    if (
                        recipe.logging.vitals
                        and distributed.is_writer()
                        and vitals.due(at.step + 1)
                    ):
                        look = vitals.Look(members[0], activations=not recipe.compile)
                    with look.listening() if look else contextlib.nullcontext():
                        losses = gradients.backward(
                            networks, task, parts, weights, compute, scaler, recipe.seed, at.step
                        )
                    loss: float = sum(losses.values())
                    if not math.isfinite(loss):
                        why = _why_not_finite(members, task, parts, compute, at, recipe)
                        record(event="stopped", step=at.step, why=why)
                        raise RunError(f"{why} `vidi doctor {run.path}` says more.")
                    scaler.unscale_(optimiser)
                    if look:
                        look.gradients()
                    norm = gradients.clip(members, recipe.optimiser.clip)
                    if not math.isfinite(norm) and not scaler.is_enabled():
                        why = _stopped(at, _named(parts), first_gradient(model), recipe)
                        record(event="stopped", step=at.step, why=why)
                        raise RunError(f"{why} `vidi doctor {run.path}` says more.")
                    with look.updating() if look else contextlib.nullcontext():
                        scaler.step(optimiser)
                    scaler.update()
                    optimiser.zero_grad(set_to_none=True)
                    at.step += 1
                    at.loss_sum += loss
                    at.loss_count += 1
                    if average:
                        average.update(model, at.step)

                    if look:
                        signs = getattr(task, "signs", None)
                        record(
                            vitals.FILE,
                            event="vitals",
                            step=at.step,
                            epoch=at.step / per_epoch,
                            loss=loss,
                            losses=losses,
                            lr=optimiser.param_groups[0]["lr"],
                            signs=signs(parts[0]) if signs else {},
                            **look.row(),
                        )
                    now = time.perf_counter()
                    images = len(batch) * distributed.world()
                    clock.step(now - began, images, half=half, usual=look is None)
                    began = now
                    progress.step(at.step, loss, clock.images_per_second)
                    if at.step % recipe.logging.every == 0:
                        record(
                            event="train",
                            step=at.step,
                            epoch=at.step / per_epoch,
                            loss=loss,
                            lr=optimiser.param_groups[0]["lr"],
                            gradient_norm=norm,
                            images_per_second=clock.images_per_second,
                        )
                    if at.total is None:
                        at.total, at.cost = _measured_length(
                            clock, recipe, at, evaluate_every, judged, task, val, compute
                        )
                        began = time.perf_counter()
                        if at.total is not None:
                            at.minutes = recipe.length.minutes
                            _set_halves(at, share)
                            save()
                            progress.measured(at.total)
                            progress.note(
                                f"{recipe.length.minutes:g} minutes are {at.total:,} steps "
                                f"({at.total / per_epoch:.1f} epochs) at the speed measured."
                            )
                    if at.step % per_epoch == 0:
                        _stop_on_failures(
                            _taken(train), recipe, f"in epoch {epoch + 1}", progress, record
                        )
                        record(
                            event="epoch",
                            step=at.step,
                            epoch=at.step / per_epoch,
                            train_loss=at.loss_sum / at.loss_count,
                            seconds=clock.seconds,
                            images=clock.images,
                            images_per_second=clock.images_per_second,
                        )
                    if at.step % evaluate_every == 0 or at.step == at.total:
                        distributed.share_buffers(judged)
                        meter, _, failed = evaluate(judged, task, val, compute, quick=True)
                        _stop_on_failures(failed, recipe, "in validation", progress, record)
                        metrics = meter.compute()
                        train_mode(model)
                        value = metrics[task.headline]
                        lower = getattr(task, "lower_is_better", False)
                        better = at.best is None or (value < at.best if lower else value > at.best)
                        # Of equals the later: it has seen more.
                        if (better or value == at.best) and distributed.is_writer():
                            write_weights(run, judged, description)
                        at.best = value if better else at.best
                        at.stale = 0 if better else at.stale + 1
                        train_loss = at.loss_sum / max(1, at.loss_count)
                        record(
                            event="evaluation",
                            step=at.step,
                            epoch=at.step / per_epoch,
                            split="val",
                            train_loss=train_loss,
                            metrics=metrics,
                        )
                        progress.evaluated(
                            epoch=at.step / per_epoch,
                            train_loss=train_loss,
                            metrics=metrics,
                            headline=task.headline,
                            best=better,
                            images_per_second=clock.images_per_second,
                            seconds_left=_seconds_left(clock, at),
                        )
                        at.loss_sum, at.loss_count = 0.0, 0
                        save()
                        watch()
                        began = time.perf_counter()
                        if patience and at.stale >= patience:
                            progress.note(
                                f"Stopped early: no better {task.headline} in {patience} "
                                "evaluations."
                            )
                            break
                    elif _save_due(clock, at, recipe):
                        save()
                        began = time.perf_counter()
                    if at.step == at.total:
                        break
            if interrupted is not None:
                save()
                record(event="interrupted", step=at.step, signal=interrupted)
                break
    _stop_on_failures(_taken(train), recipe, "in its last epoch", progress, record)
    return Outcome(at, clock.images_per_second, interrupted)


def _set_halves(at: Position, share: float) -> None:
    if at.total is not None and (at.halves is None or at.step < at.halves):
        at.halves = schedules.halves(share, at.total, at.cost)


def _rate(recipe: Recipe, at: Position, warmup: int) -> float:
    """The step's learning rate, relative to the highest. It goes by work."""
    if at.total is None or at.halves is None:
        return schedules.rate(recipe.schedule, at.step, None, warmup)
    length = schedules.work(at.total, at.halves, at.cost)
    rising: float = warmup
    if at.minutes is not None:
        rising = min(warmup, max(MEASURED[1], length // 5))
    done = schedules.work(at.step, at.halves, at.cost)
    return schedules.rate(recipe.schedule, done, length, rising)


def length_in_steps(recipe: Recipe, per_epoch: int) -> int | None:
    """The run's length, or ``None`` for a length in minutes, which is measured first."""
    if recipe.length.steps is not None:
        return recipe.length.steps
    if recipe.length.minutes is not None:
        return None
    return max(1, round(_number(recipe.epochs) * per_epoch))


def write_weights(run: RunDirectory, model: nn.Module, description: Description) -> None:
    """best.safetensors: the weights, and in the header all that their use needs."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    header = {"format": "pt", "vidi": json.dumps(description.to_json())}
    checkpoint.write_atomically(run.best, safetensors.torch.save(tensors, header))


def _why_not_finite(
    members: list[nn.Module],
    task: Task,
    parts: list[Batch],
    compute: Compute,
    at: Position,
    recipe: Recipe,
) -> str:
    """Takes the forward pass again, layer by layer. The run is over: what this does to batch
    statistics is lost with it."""
    found, keys = "", ""
    for (i, model), part in itertools.product(enumerate(members), parts):
        torch.manual_seed(gradients.draws_seed(recipe.seed + i, at.step, distributed.rank()))

        def forward(model: nn.Module = model, part: Batch = part) -> dict[str, Tensor]:
            with compute.autocast():
                return task.losses(model, part)

        with torch.no_grad():
            bad = not all(torch.isfinite(v).all() for v in forward().values())
        if bad:
            found, keys = first_layer(model, forward), _named([part])
            break
    # The process that met it tells the others.
    for what, where in distributed.gathered((found, keys)):
        if what:
            return _stopped(at, where, f"the loss is not finite: {what}", recipe)
    return _stopped(
        at, _named(parts), "the loss is not finite, though it was when taken again", recipe
    )


def _stopped(at: Position, keys: str, what: str, recipe: Recipe) -> str:
    return (
        f"The run stopped before the update of step {at.step + 1}: {what}. Samples: {keys}. "
        f"The weights were not updated, and the last saved state is whole. Usual remedies: a "
        f"lower rate (--lr, now {recipe.lr:g}), --optimiser.clip 1, --precision fp32, or a look "
        "at these samples."
    )


def _named(parts: list[Batch], most: int = 8) -> str:
    keys = [k for p in parts for k in p.keys]
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest


def _taken(loader: Loader) -> dict[str, str]:
    """The loader's failures in all processes, which are then forgotten."""
    failures: dict[str, str] = {}
    for part in distributed.gathered(dict(loader.failures)):
        failures.update(part)
    loader.failures.clear()
    return failures


def _stop_on_failures(
    failures: dict[str, str],
    recipe: Recipe,
    when: str,
    progress: Progress,
    record: Callable[..., None],
) -> None:
    """Images that could not be read end the run, or are listed and passed over."""
    if not failures:
        return
    if recipe.bad_images == "error":
        raise InputError(unreadable(failures, when))
    record(event="skipped", when=when, samples=failures)
    progress.note(f"Images that could not be read {when} were skipped: {len(failures)}.")


def _restore(
    state: checkpoint.State,
    model: nn.Module,
    average: Average | None,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Position:
    def part(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: t for k, t in state.tensors.items() if k.startswith(prefix)}

    model.load_state_dict(part("model/"))
    if average:
        average.model.load_state_dict(part("average/"))
    optimisers.restore(optimiser, model, part("optimiser/"))
    values = dict(state.values)
    scaler.load_state_dict(values.pop("scaler"))
    return Position(**values)


def _tensors(
    model: nn.Module, average: Average | None, optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    if average:
        tensors |= {f"average/{k}": v for k, v in average.model.state_dict().items()}
    state = optimisers.tensors(optimiser, model)
    return tensors | {f"optimiser/{k}": v for k, v in state.items()}


def _recorder(run: RunDirectory, step: int, tell: Callable[[], None]) -> Callable[..., None]:
    """Writes a row to metrics.jsonl, and lets the trackers be told, or to the file that is named;
    silent but in the writer."""
    if not distributed.is_writer():
        return lambda *file, **row: None
    for file in (METRICS, vitals.FILE):
        if (run.path / file).is_file():
            run.append(file, event="resume", step=step)

    def record(file: str = METRICS, /, **row: Any) -> None:
        run.append(file, **row)
        if file == METRICS:
            tell()

    return record


def _measured_length(
    clock: Clock,
    recipe: Recipe,
    at: Position,
    evaluate_every: int,
    model: nn.Module,
    task: Task,
    val: Loader,
    compute: Compute,
) -> tuple[int | None, float]:
    """The steps that fit into the recipe's minutes, once enough of them have been timed, and what
    one on images of half the size takes of one on whole images."""
    if clock.steps < MEASURED[1]:
        return None, at.cost
    assert recipe.length.minutes is not None and recipe.batch_size != "auto"
    on_wholes, on_halves = clock.per_step(at.cost)
    cost = min(1.0, on_halves / on_wholes)
    small = schedules.halves(_number(recipe.schedule.half), 1000, cost) / 1000
    per_step = small * on_halves + (1 - small) * on_wholes
    began = time.perf_counter()
    with contextlib.closing(predictions(model, task, val, compute)) as batches:
        batch, found = next(batches)
    quick_meter(task).update(found, batch.samples)
    per_evaluation = (time.perf_counter() - began) * val.steps_per_epoch
    left = 60 * recipe.length.minutes - (time.perf_counter() - clock.started)
    steps = at.step + max(0, int(left / (per_step + per_evaluation / evaluate_every)))
    total, cost = distributed.from_writer((steps, cost))
    return total, cost


def _seconds_left(clock: Clock, at: Position) -> float | None:
    if at.total is None or at.halves is None or not clock.seconds:
        return None
    left = at.total - at.step
    small = max(0, min(left, at.halves - at.step))
    on_wholes, on_halves = clock.per_step(at.cost)
    # Evaluations take as large a part of the time as they did so far.
    besides = (time.perf_counter() - clock.started) / clock.seconds
    return (small * on_halves + (left - small) * on_wholes) * besides


def _save_due(clock: Clock, at: Position, recipe: Recipe) -> bool:
    every = recipe.length.save_every_steps
    if every is not None and at.step % every == 0:
        return True
    return time.perf_counter() - clock.last_save > 60 * recipe.length.save_every


def _number(value: float | str) -> float:
    assert not isinstance(value, str), "resolved before training"
    return value
