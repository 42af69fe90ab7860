"""Stateless randomness: the right distributions, and no hidden dependence."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vidi.data import draws
from vidi.data.draws import Draws
from vidi.types import Array

IDS = np.arange(4000, dtype=np.int64)
ALMOST_NEVER = 1e-4
"""The draws are fixed numbers, so a p-value below this is a fault and not bad luck."""


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 - 1])
def test_uniform_is_uniform(seed: int) -> None:
    u = draws.uniform(seed, 3, IDS, "crop", 3)
    assert u.shape == (4000, 3)
    assert u.min() >= 0
    assert u.max() < 1
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > ALMOST_NEVER


def test_uniform_is_splitmix64() -> None:
    """The published first outputs of SplitMix64 for the state 1234567."""
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + k * gamma) % 2**64 for k in (1, 2, 3)]
    found = draws._mix(np.array(states, np.uint64)).tolist()
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    # The key is mixed by the same function, in Python's integers.
    assert draws._mix_int(1234567) == found[0]


def test_names_epochs_seeds_ids_and_columns_are_independent() -> None:
    base = draws.uniform(0, 0, IDS, "a", 2)
    others = {
        "name": draws.uniform(0, 0, IDS, "b")[:, 0],
        "epoch": draws.uniform(0, 1, IDS, "a")[:, 0],
        "seed": draws.uniform(1, 0, IDS, "a")[:, 0],
        "next id": draws.uniform(0, 0, IDS + 1, "a")[:, 0],
        "column": base[:, 1],
    }
    for what, other in others.items():
        counts, _, _ = np.histogram2d(base[:, 0], other, bins=8, range=[[0, 1], [0, 1]])
        p = stats.chisquare(counts.ravel()).pvalue
        assert p > ALMOST_NEVER, f"{what}: p = {p}"
    # Swapping seed and epoch is another stream, not the same.
    assert not np.array_equal(draws.uniform(0, 1, IDS, "a"), draws.uniform(1, 0, IDS, "a"))


def test_batch_equals_singles() -> None:
    def beta(seed: int, epoch: int, ids: Array, name: str, n: int = 1) -> Array:
        return draws.beta(seed, epoch, ids, name, 0.2, 0.2, n)

    for make in (draws.uniform, draws.normal, beta):
        whole = make(7, 2, IDS[:50], "x", 3)
        single = np.concatenate([make(7, 2, IDS[k : k + 1], "x", 3) for k in range(50)])
        assert np.array_equal(whole, single)
    handle = Draws(7, 2, 11)
    assert np.array_equal(handle.uniform("x", 3), draws.uniform(7, 2, IDS[11:12], "x", 3)[0])
    assert np.array_equal(handle.normal("x", 3), draws.normal(7, 2, IDS[11:12], "x", 3)[0])
    own = handle.beta("x", 2, 3)
    assert np.array_equal(own, draws.beta(7, 2, IDS[11:12], "x", 2, 3)[0])


def test_the_first_columns_do_not_depend_on_how_many_there_are() -> None:
    assert np.array_equal(draws.uniform(0, 0, IDS, "a", 5)[:, :2], draws.uniform(0, 0, IDS, "a", 2))


def test_normal_and_beta() -> None:
    z = draws.normal(0, 0, IDS, "n", 2)
    assert stats.kstest(z.ravel(), "norm").pvalue > ALMOST_NEVER
    for a in (0.2, 1.0, 4.0):
        b = draws.beta(0, 0, IDS, "m", a, a)[:, 0]
        assert stats.kstest(b, stats.beta(a, a).cdf).pvalue > ALMOST_NEVER


def test_permutation() -> None:
    ids = np.array([5, 900, 17, 3, 44, 8, 10**9], np.int64)
    order = draws.permutation(0, 0, ids)
    assert sorted(order) == sorted(ids)
    assert not np.array_equal(order, draws.permutation(0, 1, ids))
    # Where the ids stood before does not matter, and leaving one out moves no other.
    assert np.array_equal(order, draws.permutation(0, 0, ids[::-1]))
    assert np.array_equal(order[order != 17], draws.permutation(0, 0, ids[ids != 17]))


def test_every_place_is_as_likely() -> None:
    ids = np.arange(5, dtype=np.int64)
    places = np.array([np.argsort(draws.permutation(0, e, ids)) for e in range(2000)])
    for sample in range(5):
        counts = np.bincount(places[:, sample], minlength=5)
        assert stats.chisquare(counts).pvalue > ALMOST_NEVER
