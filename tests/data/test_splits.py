"""Holding out samples, and weighing classes."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from vidi.data.splits import carve, class_weights, every_nth


def uneven(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(6, 3000, p=[0.5, 0.3, 0.1, 0.05, 0.04, 0.01])


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_carve_divides_each_class_by_the_fraction(fraction: float) -> None:
    labels = uneven()
    kept, held = carve(labels, fraction, seed=3)
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(labels)))
    for k in range(6):
        n, out = (labels == k).sum(), (labels[held] == k).sum()
        assert 1 <= out < n
        most = max(0.5, 1 - n * fraction, 1 - n * (1 - fraction))
        assert abs(out - n * fraction) <= most + 1e-9


def test_carve_is_a_function_of_its_arguments() -> None:
    labels = uneven()
    for a, b in zip(carve(labels, 0.1, 0), carve(labels.copy(), 0.1, 0), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(carve(labels, 0.1, 0)[1], carve(labels, 0.1, 1)[1])


def test_carve_takes_from_everywhere_in_a_class() -> None:
    """Files are often in the order of time: the held-out ones must not be all of one day."""
    _, held = carve(np.zeros(10_000, np.int64), 0.1, 0)
    by_tenth = np.bincount(held // 1000, minlength=10)
    assert by_tenth.min() > 60  # 100 expected, deviation 9.5
    assert by_tenth.max() < 140


def test_small_classes() -> None:
    labels = np.array([0, 1, 1, 2, 2, 2])
    kept, held = carve(labels, 0.1, 0)
    assert sorted(labels[held]) == [1, 2]
    assert sorted(labels[kept]) == [0, 1, 2, 2]


def test_every_nth() -> None:
    labels = np.array([0, 1, 0, 0, 1, 0, 1, 0, 0])
    others, taken = every_nth(labels, 3)
    assert taken.tolist() == [3, 6, 8]  # the third and sixth 0, the third 1
    assert others.tolist() == [0, 1, 2, 4, 5, 7]


def test_class_weights_are_scikit_learns() -> None:
    labels = uneven()
    expected = compute_class_weight("balanced", classes=np.arange(6), y=labels)
    np.testing.assert_allclose(class_weights(np.bincount(labels, minlength=6)), expected)
    assert class_weights(np.bincount(labels, minlength=6))[labels].mean() == pytest.approx(1)
    assert class_weights(np.bincount(labels, minlength=7))[6] == 0


def test_the_root_of_the_frequency_weighs_less_unevenly() -> None:
    weights = class_weights(np.array([900, 100, 0]), 0.5)
    assert weights[1] / weights[0] == pytest.approx(3)
    assert 0.9 * weights[0] + 0.1 * weights[1] == pytest.approx(1)
    assert weights[2] == 0
