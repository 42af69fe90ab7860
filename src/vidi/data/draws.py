"""Randomness without a state: every number is a function of (seed, epoch, sample, name, column).

No worker, thread, rank or hour enters, so a run resumes at any step to the very bit, and looks the
same with any number of threads or processes. Each use has a name, so that adding one use leaves
the numbers of all others as they were.

The numbers are a hash in counter mode, with the finaliser of SplitMix64 (Steele, Lea & Flood 2014,
"Fast splittable pseudorandom number generators", figure 15), in NumPy's wrapping 64-bit arithmetic:
the same on every processor and with every version of NumPy.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from vidi.types import Array

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: SplitMix64's increment."""


def bits(seed: int, epoch: int, ids: Array, name: str, n: int = 1) -> Array:
    """uint64 [B, n], for ``ids`` int64 [B]. ``seed`` and ``epoch`` are taken modulo 2**64."""
    key = _mix_int(seed)
    key = _mix_int(key + epoch)
    key = _mix_int(key + zlib.crc32(name.encode()))
    gamma = np.uint64(_GAMMA)
    start = _mix(np.uint64(key) + np.asarray(ids).astype(np.uint64) * gamma)
    return _mix(start[:, None] + np.arange(1, n + 1, dtype=np.uint64) * gamma)


def uniform(seed: int, epoch: int, ids: Array, name: str, n: int = 1) -> Array:
    """Uniform numbers in [0, 1), multiples of 2**-53: float64 [B, n], for ``ids`` int64 [B]."""
    return np.asarray((bits(seed, epoch, ids, name, n) >> np.uint64(11)) * 2.0**-53)


def normal(seed: int, epoch: int, ids: Array, name: str, n: int = 1) -> Array:
    """Standard normal numbers, float64 [B, n] (Box & Muller 1958)."""
    u = uniform(seed, epoch, ids, name, 2 * n)
    radius = np.sqrt(-2 * np.log1p(-u[:, :n]))
    return np.asarray(radius * np.cos(2 * np.pi * u[:, n:]))


def beta(seed: int, epoch: int, ids: Array, name: str, a: float, b: float, n: int = 1) -> Array:
    """Numbers of the Beta(a, b) distribution, float64 [B, n], by its inverse."""
    from scipy.special import betaincinv  # on use: mixup alone needs it

    return np.asarray(betaincinv(a, b, uniform(seed, epoch, ids, name, n)))


def permutation(seed: int, epoch: int, ids: Array) -> Array:
    """The epoch's order of ``ids``: int64 [N].

    Each id draws its own place, so that leaving some out keeps the others' order.
    """
    return np.asarray(ids)[np.argsort(bits(seed, epoch, ids, "order")[:, 0], kind="stable")]


@dataclass(frozen=True, slots=True)
class Draws:
    """One sample's numbers: what a task draws with when it makes targets."""

    seed: int
    epoch: int
    id: int

    def uniform(self, name: str, n: int = 1) -> Array:
        """float64 [n] in [0, 1)."""
        return np.asarray(uniform(self.seed, self.epoch, self._ids, name, n)[0])

    def normal(self, name: str, n: int = 1) -> Array:
        """float64 [n], standard normal."""
        return np.asarray(normal(self.seed, self.epoch, self._ids, name, n)[0])

    def beta(self, name: str, a: float, b: float, n: int = 1) -> Array:
        """float64 [n], Beta(a, b)."""
        return np.asarray(beta(self.seed, self.epoch, self._ids, name, a, b, n)[0])

    @property
    def _ids(self) -> Array:
        return np.array([self.id], np.int64)


def _mix(z: Array) -> Array:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _mix_int(value: int) -> int:
    """:func:`_mix` in Python's own integers, for the key (NumPy warns when a scalar wraps)."""
    z = (value + _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
