"""Images of several requests go through the network together.

One thread for each run takes what waits, up to a batch, and predicts it. It waits for more only
while a request is on its way (its body comes, or is decoded), and never longer than ``latency``
after the first: a single client waits for nobody.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from vidi.deploy.serving.limits import Refused, busy
from vidi.errors import InputError

log = logging.getLogger("vidi.serve")

Predict = Callable[[Sequence[Any]], Sequence[Any]]
"""Arrays (or pairs of them) to answers, one each, in order; or the InputError that says why there
is none."""


class Batcher:
    """``predict`` is called in one thread, never twice at once.

    ``most``: images of a batch. ``latency``: seconds. ``room``: images that may wait, and fewer
    where a batch took so long lately that the last one would wait more than ``patience`` seconds;
    ``pixels``: how many they may have together, and so the most that one request may have.
    ``watch`` hears of each batch: its images, and the seconds that it took.
    """

    def __init__(
        self,
        predict: Predict,
        *,
        most: int,
        latency: float,
        room: int,
        patience: float,
        pixels: float,
        watch: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self._predict = predict
        self._most = most
        self._latency = latency
        self._room = room
        self._patience = patience
        self._most_pixels = pixels
        self._watch = watch
        self._changed = threading.Condition()
        self._queue: deque[tuple[float, Any, Future[Any]]] = deque()
        self._reserved = 0
        self._pixels = 0.0
        self._coming = 0
        self._closed = False
        self._each: float | None = None  # seconds that an image took lately
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="vidi-batches", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Predicts what waits, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    @property
    def waiting(self) -> int:
        """Images that hold a place: those being decoded, waiting, or predicted now."""
        return self._reserved

    @contextmanager
    def coming(self) -> Iterator[Callable[[], None]]:
        """A request is on its way here, until the function that this gives is called."""
        there = True

        def arrived() -> None:
            nonlocal there
            if there:
                there = False
                self._expect(-1)

        self._expect(1)
        try:
            yield arrived
        finally:
            arrived()

    def check_room(self) -> None:
        """Raises :class:`Refused` (429) where not one more image may wait: before its body is read,
        since under load that is most of the work."""
        if self._reserved >= min(self._room, self._in_time()):
            raise self._full()

    @contextmanager
    def places(self) -> Iterator[Callable[[int, float], None]]:
        """Gives a function that takes places for so many images of so many pixels, which are held
        to the end. It raises :class:`Refused` (429) where there is no room, and after the end, of
        which a thread that decodes for a request that was given up has not heard."""
        images, pixels, over = 0, 0.0, False

        def take(more: int, of: float) -> None:
            nonlocal images, pixels
            with self._changed:
                many = self._pixels + of > self._most_pixels
                full = self._reserved + more > self._room
                # One that waits for no other is never too late for that.
                late = self._reserved > images and self._reserved + more > self._in_time()
                if over or many or full or late:
                    raise self._full()
                self._reserved += more
                self._pixels += of
                images, pixels = images + more, pixels + of

        try:
            yield take
        finally:
            with self._changed:
                over = True
                self._reserved -= images
                self._pixels -= pixels

    def _full(self) -> Refused:
        return busy(
            f"{self._reserved} images wait already; there is no room for more. Ask again later.",
            "queue",
            (self._each or 0.0) * self._reserved,
        )

    def _in_time(self) -> float:
        """Images that may wait so that the last one is answered in time; one may always."""
        return max(1, self._patience // self._each) if self._each else math.inf

    def submit(self, inputs: Sequence[Any]) -> list[Future[Any]]:
        """An answer to come for each. One that is cancelled before its turn is passed over; it
        fails with :class:`Refused` where the run cannot look at it."""
        futures: list[Future[Any]] = [Future() for _ in inputs]
        now = time.monotonic()
        with self._changed:
            if self._closed:
                raise Refused(503, "The server is about to stop.", "stopping")
            self._queue.extend(zip([now] * len(inputs), inputs, futures, strict=True))
            self._changed.notify_all()
        return futures

    def forget(self, futures: Sequence[Future[Any]]) -> None:
        """Nobody waits for these any more: those whose turn has not come go, and their images."""
        gone = {future for future in futures if future.cancel()}
        if gone:
            with self._changed:
                self._queue = deque(each for each in self._queue if each[2] not in gone)

    def _expect(self, requests: int) -> None:
        with self._changed:
            self._coming += requests
            self._changed.notify_all()

    def _work(self) -> None:
        while batch := self._next():
            began = time.monotonic()
            answer(self._predict, batch)
            spent = time.monotonic() - began
            each = spent / len(batch)
            self._each = each if self._each is None else self._each + 0.2 * (each - self._each)
            self._watch(len(batch), spent)
            del batch  # or its images would stay until the next one comes

    def _next(self) -> list[tuple[Any, Future[Any]]]:
        """The next batch; none at the end."""
        with self._changed:
            batch: list[tuple[Any, Future[Any]]] = []
            while not batch:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return []
                until = self._queue[0][0] + self._latency
                while len(self._queue) < self._most and self._coming and not self._closed:
                    left = until - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        break
                while self._queue and len(batch) < self._most:
                    _, one, future = self._queue.popleft()
                    if future.set_running_or_notify_cancel():
                        batch.append((one, future))
            return batch


def answer(predict: Predict, batch: Sequence[tuple[Any, Future[Any]]]) -> None:
    """Each future gets its answer, or the reason why it has none. Where the whole batch fails each
    image is tried alone, so that no one suffers for its neighbour."""
    try:
        found = predict([one for one, _ in batch])
        assert len(found) == len(batch)
    except Exception as error:
        if len(batch) > 1:
            for one in batch:
                answer(predict, [one])
            return
        batch[0][1].set_exception(_refusal(error))
        return
    for (_, future), one in zip(batch, found, strict=True):
        if isinstance(one, InputError):
            future.set_exception(_refusal(one))
        else:
            future.set_result(one)


def _refusal(error: Exception) -> Exception:
    """What the run itself says of an image is the sender's to mend; all else is a defect."""
    if isinstance(error, InputError):
        log.warning("an image that was decoded could not be predicted: %s", error)
        return Refused(422, "This run cannot look at an image of this size or form.", "image")
    return error
