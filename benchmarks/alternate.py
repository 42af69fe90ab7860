"""Times of several trainings that take turns: seconds per step of each.

Each runs in a process of its own, and all but one of them are stopped (SIGSTOP), for a second or
two each in turn. A machine that is now faster and now slower is so for all of them, and none runs
in the memory that another left behind. POSIX only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from vidi.report.progress import Silent

FIRST = 5
"""Steps that are not timed: they compile and allocate."""
SLICE = 1.5
"""Seconds that each runs at a time."""


class Stopwatch(Silent):
    """Seconds of training without those in which it was stopped, told by what training tells a
    display; evaluations are not counted, and what follows them until the next step is."""

    def __init__(self, stopped: Any) -> None:
        self.seconds = 0.0
        self.steps = 0
        self._stopped = stopped
        self._since: float | None = None

    def _now(self) -> float:
        return time.perf_counter() - float(self._stopped.value)

    def step(self, step: int, loss: float, images_per_second: float) -> None:
        now = self._now()
        if self._since is not None and step > FIRST:
            self.seconds += now - self._since
            self.steps += 1
        self._since = now

    def evaluated(self, **what: Any) -> None:
        self._since = self._now()


Training = Callable[..., None]
"""Called with a :class:`Stopwatch` to give as ``progress``, and its arguments."""


def _run(pipe: Connection, stopped: Any, training: Training, arguments: tuple[Any, ...]) -> None:
    watch = Stopwatch(stopped)
    training(watch, *arguments)
    pipe.send(watch.seconds / watch.steps)


def seconds_per_step(trainings: Sequence[tuple[Training, tuple[Any, ...]]]) -> list[float]:
    """Of each. Raises RuntimeError where one ends without having said its time."""
    context = get_context("spawn")
    pipes, processes, stopped = [], [], []
    for training, arguments in trainings:
        mine, theirs = context.Pipe(duplex=False)
        total = context.Value(ctypes.c_double, 0.0, lock=False)
        process = context.Process(target=_run, args=(theirs, total, training, arguments))
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
        stopped.append(total)
    since: list[float | None] = [None] * len(processes)
    found: dict[int, float] = {}
    try:
        for k, process in enumerate(processes):
            since[k] = _stop(process)
        while len(found) < len(processes):
            for k, process in enumerate(processes):
                if k in found:
                    continue
                began = since[k]
                assert began is not None and process.pid is not None
                stopped[k].value += time.perf_counter() - began
                os.kill(process.pid, signal.SIGCONT)
                if wait([pipes[k], process.sentinel], SLICE):
                    if not pipes[k].poll(1):
                        raise RuntimeError(f"training {k} ended with {process.exitcode}")
                    found[k] = pipes[k].recv()
                    process.join()
                else:
                    since[k] = _stop(process)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    return [found[k] for k in range(len(processes))]


def _stop(process: Any) -> float:
    os.kill(process.pid, signal.SIGSTOP)
    return time.perf_counter()
