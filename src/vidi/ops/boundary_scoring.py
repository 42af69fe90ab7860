"""The boundary score of many images, shared out over processes.

Matching is Python code, which threads cannot run side by side, and takes seconds an image. Each
process is this very module, started as a program of its own and spoken to through pipes: unlike
multiprocessing's it does not run the user's script again, nor copy a process that holds threads.
The counts do not depend on how many processes there are.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import IO, Any

import cv2
import numpy as np

from vidi.errors import InputError
from vidi.ops.boundaries import MAX_DISTANCE, Counts, score
from vidi.ops.suppression import suppress
from vidi.types import Array

PATIENCE = 2.0
"""Seconds of scoring before it is worth starting processes."""
AHEAD = 2
"""Images that wait, for each process."""


class Scoring:
    """Counts at the same thresholds of one image after another.

    ``thresholds``: ascending, float [T]. ``thinned``: whether predictions go through non-maximum
    suppression first. ``processes``: None = the processor's cores; 0 = in the caller's.
    """

    def __init__(
        self,
        thresholds: Array,
        *,
        thinned: bool,
        max_distance: float = MAX_DISTANCE,
        processes: int | None = None,
    ) -> None:
        self.settings: dict[str, Any] = {
            "thresholds": thresholds,
            "thinned": thinned,
            "max_distance": max_distance,
        }
        self._processes = _cores() if processes is None else processes
        self._spent = 0.0
        self._found: list[Counts | Future[Counts]] = []
        self._pool: ThreadPoolExecutor | None = None
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        self._workers: list[_Worker] = []

    def add(self, prediction: Array, truths: Array, name: str) -> None:
        """An image's prediction, float [H, W], and truth, [A, H, W]; see ``boundaries.score``.

        Its errors are raised here, or in :meth:`counts`.
        """
        if self._pool is None and self._processes > 1 and self._spent > PATIENCE:
            self._start()
        if self._pool is None:
            begun = time.perf_counter()
            self._found.append(_score(prediction, truths, name, **self.settings))
            self._spent += time.perf_counter() - begun
            return
        waiting = {f for f in self._found if isinstance(f, Future) and not f.done()}
        if len(waiting) >= AHEAD * len(self._workers):
            wait(waiting, return_when=FIRST_COMPLETED)
        self._found.append(self._pool.submit(self._ask, prediction, truths, name))

    def counts(self) -> list[Counts]:
        """Those of all images so far, in their order; ends the processes."""
        try:
            self._found = [f.result() if isinstance(f, Future) else f for f in self._found]
        finally:
            self.close()
        return [f for f in self._found if isinstance(f, Counts)]

    def extend(self, counts: list[Counts]) -> None:
        """Images that were counted elsewhere."""
        self._found += counts

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        for worker in self._workers:
            worker.close()
        self._workers, self._free = [], SimpleQueue()

    def __reduce__(self) -> Any:
        """For another process: what was counted."""
        return _of, (self.settings, self.counts())

    def _start(self) -> None:
        self._workers = [_Worker() for _ in range(self._processes)]
        for worker in self._workers:
            self._free.put(worker)
        self._pool = ThreadPoolExecutor(self._processes, thread_name_prefix="vidi-score")

    def _ask(self, prediction: Array, truths: Array, name: str) -> Counts:
        worker = self._free.get()
        try:
            return worker.ask(prediction, truths, name, self.settings)
        finally:
            self._free.put(worker)


def _of(settings: dict[str, Any], counts: list[Counts]) -> Scoring:
    out = Scoring(**settings)
    out.extend(counts)
    return out


class _Worker:
    """One process. Where it cannot be started, or ends before its time, the work is done here."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                # Without the current folder on the path, where a file may be called numpy.py.
                [sys.executable, "-P", "-m", "vidi.ops.boundary_scoring"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is the caller's to hear
            )

    def ask(self, prediction: Array, truths: Array, name: str, settings: dict[str, Any]) -> Counts:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                _send(
                    self._process.stdin,
                    {"prediction": prediction, "truths": truths, "name": name, **settings},
                )
                answer = _receive(self._process.stdout)
            except OSError:
                answer = None
            if answer is not None and "error" in answer:
                raise InputError(str(answer["error"]))
            if answer is not None:
                return Counts(*answer["counts"])
        return _score(prediction, truths, name, **settings)

    def close(self) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    cv2.setNumThreads(1)
    while (asked := _receive(source)) is not None:
        try:
            found = _score(
                asked["prediction"],
                asked["truths"],
                str(asked["name"]),
                thresholds=asked["thresholds"],
                thinned=bool(asked["thinned"]),
                max_distance=float(asked["max_distance"]),
            )
        except InputError as error:
            _send(sink, {"error": str(error)})
            continue
        rows = (found.matched_truth, found.truth, found.matched_prediction, found.prediction)
        _send(sink, {"counts": np.stack(rows)})


def _score(
    prediction: Array,
    truths: Array,
    name: str,
    *,
    thresholds: Array,
    thinned: bool,
    max_distance: float,
) -> Counts:
    if thinned and prediction.size:
        # Smoothing's weights may add up to a hair more than 1; what was more before stays so.
        prediction = np.minimum(suppress(prediction), max(1, prediction.max()))
    return score(prediction, truths, thresholds, max_distance=max_distance, name=name)


def _send(pipe: IO[bytes], values: dict[str, Any]) -> None:
    packed = io.BytesIO()
    np.savez(packed, **values)
    size = packed.tell()
    pipe.write(size.to_bytes(8, "little"))
    pipe.write(packed.getbuffer())
    pipe.flush()


def _receive(pipe: IO[bytes]) -> dict[str, Any] | None:
    """None where there is nothing more."""
    size = int.from_bytes(pipe.read(8), "little")
    packed = pipe.read(size)
    if not size or len(packed) < size:
        return None
    with np.load(io.BytesIO(packed)) as values:
        return dict(values)


def _cores() -> int:
    """Those that this process may use, shared with the others that torchrun started here."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (mine or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
