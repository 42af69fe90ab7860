"""How far a long list is: a bar on stderr, where that is a terminal."""

from __future__ import annotations

import sys
import time


class Bar:
    """``total``: how many there are; None: nobody knows. ``shown``: whether there is anything to
    see at all. Lines that are printed meanwhile stand above it, until :meth:`close`."""

    def __init__(self, total: int | None, *, shown: bool) -> None:
        self._bar = None
        self._first: tuple[int, float] | None = None
        """What was done at the first call, and when that was."""
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
        self._bar.start()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def moved(self, done: int) -> None:
        """``done``: of all that there are, those that are done; those before the first call were
        done by another process."""
        if self._bar is None:
            return
        from vidi.report.progress import duration, speed

        now = time.monotonic()
        before, began = self._first = self._first or (done, now)
        task = self._bar.tasks[0]
        text = ""
        if done > before:
            rate = (done - before) / max(1e-9, now - began)
            text = speed(rate)
            if task.total is not None:
                text += f"  {duration(max(0, task.total - done) / rate)} left"
        if task.total is not None:  # of several processes one may be a step ahead
            done = min(done, int(task.total))
        self._bar.update(task.id, completed=done, text=text)
