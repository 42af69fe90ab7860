"""What a person sees while a run goes on: a bar on a terminal, plain lines in a log.

The engine calls any object with these methods (``vidi.engine.train.Progress``) and imports none of
them. All of it goes to stderr: stdout is for results.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    import rich.progress

QUIET_SECONDS = 30.0
"""A log gets a line at least this often, evaluations aside."""


class Silent:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, whatever happened."""

    def note(self, sentence: str) -> None: ...

    def start(
        self, *, total_steps: int | None, steps_per_epoch: int, epochs: float, start_step: int
    ) -> None: ...

    def measured(self, total_steps: int) -> None: ...

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


class Plain(Silent):
    """A line per event, without colours or cursor movement."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.per_epoch = 1
        self.epochs = 0.0
        self.last_line = time.monotonic()

    def note(self, sentence: str) -> None:
        print(sentence, file=self.stream, flush=True)
        self.last_line = time.monotonic()

    def start(
        self, *, total_steps: int | None, steps_per_epoch: int, epochs: float, start_step: int
    ) -> None:
        self.per_epoch, self.epochs = steps_per_epoch, epochs
        if start_step:
            at = _number(start_step / steps_per_epoch)
            self.note(f"Resumed at step {start_step:,}, epoch {at}.")

    def measured(self, total_steps: int) -> None:
        self.epochs = total_steps / self.per_epoch

    def step(self, step: int, loss: float, images_per_second: float) -> None:
        if time.monotonic() - self.last_line >= QUIET_SECONDS:
            self.note(
                f"epoch {_number(step / self.per_epoch)}/{_number(self.epochs)}  step {step:,}  "
                f"loss {loss:.4f}  {speed(images_per_second)}"
            )

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
    ) -> None:
        left = f"  {duration(seconds_left)} left" if seconds_left else ""
        self.note(
            f"epoch {_number(epoch):>3}/{_number(self.epochs)}  loss {train_loss:.4f}  "
            f"{headline} {metrics[headline]:.4f}{' *' if best else '  '}  "
            f"{speed(images_per_second)}{left}"
        )

    def finish(self, rows: list[tuple[str, str]]) -> None:
        self.close()
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.note(f"  {name:<{width}}  {value}")


class Terminal(Plain):
    """The same lines above a bar that moves with every step."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console

        super().__init__(stream)
        self.console = Console(file=self.stream, highlight=False, markup=False)
        self.bar: rich.progress.Progress | None = None
        self.steps_done = 0
        self.total: int | None = None
        self.started = time.monotonic()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def note(self, sentence: str) -> None:
        self.console.print(sentence)

    def start(
        self, *, total_steps: int | None, steps_per_epoch: int, epochs: float, start_step: int
    ) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        super().start(
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
            start_step=start_step,
        )
        self.total, self.steps_done = total_steps, start_step
        self.first, self.started = start_step, time.monotonic()
        self.close()
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            transient=True,
            expand=True,
        )
        self.bar.add_task("", total=total_steps, completed=start_step, epoch="", text="")
        self.bar.start()

    def measured(self, total_steps: int) -> None:
        super().measured(total_steps)
        self.total = total_steps
        if self.bar is not None:
            self.bar.update(self.bar.tasks[0].id, total=total_steps)

    def step(self, step: int, loss: float, images_per_second: float) -> None:
        if self.bar is None:
            return
        epoch = f"{_number(step / self.per_epoch, 1)}/{_number(self.epochs, 1)}"
        left = ""
        if self.total is not None and step > self.first:
            seconds = (time.monotonic() - self.started) / (step - self.first)
            left = f"  {duration(seconds * (self.total - step))} left"
        text = f"loss {loss:.4f}  {speed(images_per_second)}{left}"
        task = self.bar.tasks[0].id
        self.bar.update(task, completed=step, epoch=epoch, text=text)


def display(stream: TextIO | None = None) -> Silent:
    """The display that suits the stream (stderr), for use as a context manager.

    Of several processes, only the first shows anything.
    """
    stream = stream or sys.stderr
    if os.environ.get("RANK", "0") != "0":
        return Silent()
    return Terminal(stream) if stream.isatty() else Plain(stream)


def duration(seconds: float) -> str:
    """In the two units that matter: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def speed(images_per_second: float) -> str:
    """A dash as long as it is 0, which is before it was measured."""
    if not images_per_second:
        return "– images/s"
    digits = 0 if images_per_second >= 10 else 1
    return f"{images_per_second:,.{digits}f} images/s"
