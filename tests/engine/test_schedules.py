import math
from itertools import pairwise

import pytest

from vidi.engine.schedules import halved, halves, rate, work
from vidi.recipe import Schedule


def rates(schedule: Schedule, total: int = 100, warmup: int = 10) -> list[float]:
    return [rate(schedule, step, total, warmup) for step in range(total)]


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "one-cycle"])
def test_rises_linearly_to_one_and_never_beyond(name: str) -> None:
    found = rates(Schedule(name=name))
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(found) == 1.0
    assert all(b <= a for a, b in pairwise(found[10:])), "then it only falls"


def test_constant_stays() -> None:
    assert set(rates(Schedule(name="constant"), warmup=0)) == {1.0}


def test_step_falls_at_its_milestones_by_gamma() -> None:
    found = rates(Schedule(name="step", milestones=(0.5, 0.75), gamma=0.1), warmup=0)
    assert found[49] == 1 and found[50] == pytest.approx(0.1)
    assert found[74] == pytest.approx(0.1) and found[75] == pytest.approx(0.01)


def test_cosine_is_half_a_cosine_down_to_final() -> None:
    found = rates(Schedule(name="cosine", final=0.2), total=101, warmup=0)
    for step in (0, 25, 50, 99):
        falling = (1 + math.cos(math.pi * step / 101)) / 2
        assert found[step] == pytest.approx(0.2 + 0.8 * falling)


def test_one_cycle_falls_linearly() -> None:
    found = rates(Schedule(name="one-cycle"), total=110, warmup=10)
    assert found[10] == 1 and found[60] == pytest.approx(0.5) and found[109] == pytest.approx(0.01)


def test_an_unknown_length_rises_and_stays() -> None:
    schedule = Schedule(name="cosine")
    assert [rate(schedule, s, None, 4) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_the_first_steps_are_on_halves() -> None:
    """Four steps of a quarter, then one whole: half of the work each."""
    assert [halved(0.5, step, 5) for step in range(5)] == [True] * 4 + [False]
    assert [work(0.5, step, 5) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 2]
    for share in (0.1, 0.4, 0.9, 1.0):
        small = halves(share, 10_000)
        assert work(share, small, 10_000) / work(share, 10_000, 10_000) == pytest.approx(
            share, abs=1e-3
        )
    # Without a share, work is steps.
    assert not any(halved(0.0, step, 10) for step in range(10))
    assert [work(0.0, step, 10) for step in range(11)] == list(range(11))
    # A length that is still being measured needs the time of both kinds.
    assert [halved(0.4, step, None) for step in range(4)] == [True, False, True, False]
    assert not any(halved(0.0, step, None) for step in range(4))
