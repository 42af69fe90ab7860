import math
from itertools import pairwise

import pytest

from vidi.engine.schedules import halves, rate, work
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


def test_work_on_halves() -> None:
    """Four steps of a quarter, then one whole: half of the work each."""
    assert halves(0.5, 5) == 4
    assert [work(step, 4) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 2]
    for share in (0.1, 0.4, 0.9, 1.0):
        small = halves(share, 10_000)
        assert work(small, small) / work(10_000, small) == pytest.approx(share, abs=1e-3)
        dear = halves(share, 10_000, cost=0.6)
        done = work(dear, dear, cost=0.6) / work(10_000, dear, cost=0.6)
        assert dear <= small and done == pytest.approx(share, abs=1e-3)
    assert halves(0.0, 10) == 0
    assert [work(step, 0) for step in range(11)] == list(range(11))


def test_quarters_of_a_step_rise_no_higher() -> None:
    schedule = Schedule(name="one-cycle")
    for warmup in (1, 2, 4, 25):
        found = [rate(schedule, step / 4, 100, warmup) for step in range(400)]
        assert max(found) == 1.0
        assert all(value > 0 for value in found)
