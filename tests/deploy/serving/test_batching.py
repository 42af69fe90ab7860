"""Images of several requests together: how many, how long, and that nobody suffers for another."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from vidi.deploy.serving.batching import Batcher
from vidi.deploy.serving.limits import Refused
from vidi.errors import InputError

Make = Callable[..., Batcher]


class Double:
    """Answers 2 × each input; ``gate``: only while that is set."""

    def __init__(self) -> None:
        self.seen: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        self.seen.append(list(inputs))
        assert self.gate.wait(20)
        if any(one == "bad" for one in inputs):
            raise RuntimeError("bad")
        return [InputError("odd") if one == "odd" else 2 * one for one in inputs]


@pytest.fixture
def double() -> Double:
    return Double()


@pytest.fixture
def make(double: Double) -> Iterator[Make]:
    made: list[Batcher] = []

    def maker(**changes: Any) -> Batcher:
        settings: dict[str, Any] = {"most": 4, "latency": 0.0, "room": 100}
        settings |= {"patience": 1e9, "pixels": 1e9}
        batcher = Batcher(double, **settings | changes)
        batcher.start()
        made.append(batcher)
        return batcher

    yield maker
    double.gate.set()
    for one in made:
        one.close()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_what_waits_goes_together_and_in_order(make: Make, double: Double) -> None:
    batcher = make()
    double.gate.clear()
    first = batcher.submit([0])
    until(lambda: double.seen == [[0]])
    later = [one for k in range(1, 10) for one in batcher.submit([k])]
    double.gate.set()
    assert [one.result(10) for one in first + later] == [2 * k for k in range(10)]
    assert double.seen == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_it_waits_for_those_on_their_way_up_to_the_latency(make: Make) -> None:
    batcher = make(latency=0.3)
    with batcher.coming():
        began = time.monotonic()
        assert batcher.submit([1])[0].result(10) == 2
        assert time.monotonic() - began >= 0.29, "another one was on its way"
    batcher = make(latency=60.0)
    assert batcher.submit([3])[0].result(10) == 6, "nobody is on the way: at once"


def test_the_last_one_on_its_way_ends_the_waiting(make: Make, double: Double) -> None:
    batcher = make(latency=60.0)
    with batcher.coming() as first, batcher.coming() as second:
        futures = batcher.submit([1])
        first()
        futures += batcher.submit([2])
        second()
        assert [one.result(10) for one in futures] == [2, 4]
    assert double.seen == [[1, 2]]
    assert batcher._coming == 0


def test_a_full_batch_waits_for_nobody(make: Make, double: Double) -> None:
    batcher = make(latency=60.0)
    with batcher.coming():
        assert [one.result(10) for one in batcher.submit([1, 2, 3, 4])] == [2, 4, 6, 8]


def test_neighbours_of_a_bad_one_get_their_answers(make: Make, double: Double) -> None:
    batcher = make()
    futures = batcher.submit([1, "bad", "odd", 2])
    assert futures[0].result(10) == 2
    assert futures[3].result(10) == 4
    with pytest.raises(RuntimeError, match="bad"):
        futures[1].result(10)
    with pytest.raises(Refused) as refused:
        futures[2].result(10)
    assert refused.value.status == 422


def test_room_is_kept_to_and_comes_back(make: Make) -> None:
    batcher = make(room=3, pixels=100.0)
    with batcher.places() as take:
        take(2, 10)
        with batcher.places() as other, pytest.raises(Refused) as refused:
            other(2, 1)
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) >= 1
        batcher.check_room()
        take(1, 1)
        assert batcher.waiting == 3
        with pytest.raises(Refused):
            batcher.check_room()
    assert batcher.waiting == 0
    with batcher.places() as take, batcher.places() as other:
        take(1, 60)
        with pytest.raises(Refused):
            other(1, 41)
        other(1, 40)
    for more in (0, 1):
        with pytest.raises(Refused):
            take(more, more)
    assert batcher.waiting == 0, "nothing is held beyond the end"


def test_no_more_may_wait_than_are_answered_in_time(make: Make, double: Double) -> None:
    took: list[float] = []
    batcher = make(patience=0.5, watch=lambda images, seconds: took.append(seconds / images))
    with contextlib.ExitStack() as before:
        for _ in range(20):  # how long one takes is not known yet
            before.enter_context(batcher.places())(1, 1.0)
    double.gate.clear()
    (future,) = batcher.submit([1])
    time.sleep(0.1)
    double.gate.set()
    assert future.result(10) == 2
    until(lambda: bool(took))
    most = max(1, int(0.5 / took[0]))
    assert most < 6
    with contextlib.ExitStack() as held:
        for _ in range(most):
            batcher.check_room()
            held.enter_context(batcher.places())(1, 1.0)
        with pytest.raises(Refused, match="wait already") as refused:
            batcher.check_room()
        assert refused.value.status == 429
        with batcher.places() as take, pytest.raises(Refused):
            take(1, 1.0)
    with batcher.places() as take:  # one request that waits for no other
        for _ in range(16):
            take(1, 1.0)
        with batcher.places() as other, pytest.raises(Refused):
            other(1, 1.0)


def test_who_gives_up_is_passed_over(make: Make, double: Double) -> None:
    batcher = make()
    double.gate.clear()
    batcher.submit([0])
    until(lambda: len(double.seen) == 1)
    gone, stays = batcher.submit([1, 2])
    assert gone.cancel()
    double.gate.set()
    assert stays.result(10) == 4
    assert double.seen[1:] == [[2]]


def test_what_is_forgotten_is_not_kept(make: Make, double: Double) -> None:
    """Also while nothing of the queue is taken, and twice; what is being predicted stays."""
    batcher = make()
    double.gate.clear()
    first = batcher.submit([0])
    until(lambda: len(double.seen) == 1)
    gone, stays = batcher.submit([1, 2, 3]), batcher.submit([4])
    for _ in range(2):
        batcher.forget(gone)
        batcher.forget(first)
        assert [one for _, one, _ in batcher._queue] == [4]
    double.gate.set()
    assert [one.result(10) for one in first + stays] == [0, 8]
    assert double.seen == [[0], [4]]


def test_closing_answers_what_waits_and_takes_no_more(make: Make, double: Double) -> None:
    batcher = make()
    double.gate.clear()
    futures = batcher.submit([1, 2, 3, 4, 5, 6])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    double.gate.set()
    closing.join(10)
    assert [one.result(0) for one in futures] == [2, 4, 6, 8, 10, 12]
    with pytest.raises(Refused):
        batcher.submit([7])
