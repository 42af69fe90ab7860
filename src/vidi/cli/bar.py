"""How far a long list is: a bar on stderr, where that is a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self


class Bar:
    """``total``: how many there are; None: nobody knows. ``shown``: whether there is anything to
    see at all. Lines that are printed meanwhile stand above it."""

    def __init__(self, total: int | None, *, shown: bool) -> None:
        self._bar = None
        self._done = 0
        self._began = time.monotonic()
        if not shown or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            # A long line of JSON is not folded at the terminal's width.
            console=Console(file=sys.stderr, highlight=False, markup=False, soft_wrap=True),
            transient=True,
            expand=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._bar.add_task("", total=total, text="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def moved(self, done: int) -> None:
        """``done``: of all that there are, those that are done; those before the first call were
        done by another process."""
        if self._bar is None:
            return
        from vidi.report.progress import duration

        if not self._done:
            self._before, self._began = done, time.monotonic()
        self._done = done
        task = self._bar.tasks[0]
        text = ""
        if done > self._before:
            rate = (done - self._before) / max(1e-9, time.monotonic() - self._began)
            text = f"{rate:,.{0 if rate >= 10 else 1}f} images/s"
            if task.total is not None:
                text += f"  {duration(max(0, task.total - done) / rate)} left"
        if task.total is not None:  # of several processes one may be a step ahead
            done = min(done, int(task.total))
        self._bar.update(task.id, completed=done, text=text)
