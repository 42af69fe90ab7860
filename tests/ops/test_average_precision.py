"""Average precision against loops written from its definitions, and against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from vidi.ops.average_precision import coco, curve, voc07, voc10


def exact(true: list[bool], objects: int) -> dict[str, Fraction]:
    """The three of them in fractions, level by level; COCO's levels are pycocotools' numbers."""
    points, right = [], 0
    for n, one in enumerate(true, 1):
        right += one
        points.append((Fraction(right, objects), Fraction(right, n)))

    def best(level: Fraction) -> Fraction:
        return max((p for r, p in points if r >= level), default=Fraction(0))

    def rounded(level: float) -> Fraction:
        return max((p for r, p in points if float(r) >= level), default=Fraction(0))

    # The curve is a staircase with a step at each further object.
    area = sum((best(Fraction(k, objects)) for k in range(1, objects + 1)), Fraction(0)) / objects
    return {
        "voc07": sum((best(Fraction(k, 10)) for k in range(11)), Fraction(0)) / 11,
        "coco": sum((rounded(level) for level in np.linspace(0, 1, 101)), Fraction(0)) / 101,
        "voc10": area,
    }


@pytest.mark.parametrize("seed", range(20))
def test_each_is_its_definition_in_fractions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Divisors of 100 often: recalls that meet the levels exactly.
    objects = int(rng.choice([1, 2, 3, 5, 7, 10, 20, 25, 50, 100]))
    true = rng.random(3 * objects) < rng.random()
    true &= true.cumsum() <= objects
    expected = exact(true.tolist(), objects)
    found = curve(true, objects)
    assert voc07(*found) == pytest.approx(float(expected["voc07"]), abs=1e-12)
    assert voc10(*found) == pytest.approx(float(expected["voc10"]), abs=1e-12)
    assert coco(*found) == pytest.approx(float(expected["coco"]), abs=1e-12)


def test_a_recall_of_exactly_three_tenths_reaches_that_level() -> None:
    found = curve(np.ones(3, bool), 10)
    assert voc07(*found) == pytest.approx(4 / 11)
    assert voc10(*found) == pytest.approx(0.3)
    assert coco(*found) == pytest.approx(31 / 101)


@pytest.mark.parametrize("way", [voc07, voc10, coco])
def test_perfect_is_one_and_nothing_is_zero(way: Callable[..., float]) -> None:
    assert way(*curve(np.ones(7, bool), 7)) == pytest.approx(1)
    assert way(*curve(np.zeros(7, bool), 7)) == 0
    assert way(*curve(np.zeros(0, bool), 7)) == 0


def test_what_comes_after_the_last_object_costs_nothing() -> None:
    true = np.array([True, False, True, False, False])
    for way in (voc07, voc10, coco):
        assert way(*curve(true, 2)) == way(*curve(true[:3], 2))
