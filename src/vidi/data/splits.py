"""Which samples are held out, and how classes are weighed."""

from __future__ import annotations

import numpy as np

from vidi.data import draws
from vidi.types import Array


def carve(labels: Array, fraction: float, seed: int) -> tuple[Array, Array]:
    """(kept, held out): positions in ``labels`` (int64 [N]), each sorted.

    Stratified: of each class the share ``fraction``, rounded, is held out, but at least one sample
    and never all; a class with one sample keeps it. A function of the arguments alone.
    """
    rank, count = _rank_in_class(labels, draws.bits(seed, 0, np.arange(len(labels)), "carve")[:, 0])
    wanted = np.clip(np.floor(count * fraction + 0.5), 1, np.maximum(count - 1, 1))
    wanted[count == 1] = 0
    held = rank < wanted
    return np.flatnonzero(~held), np.flatnonzero(held)


def every_nth(labels: Array, n: int) -> tuple[Array, Array]:
    """(others, every n-th of each class in order), as positions."""
    rank, _ = _rank_in_class(labels, np.arange(len(labels)))
    taken = rank % n == n - 1
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def class_weights(counts: Array, power: float = 1.0) -> Array:
    """float64 [K], from the samples (or pixels) of each class: proportional to 1 / count^power, and
    1 on average over the samples. With power 1 all classes weigh the same. A class without a sample
    weighs 0."""
    weights = np.where(counts > 0, np.maximum(counts, 1.0) ** -power, 0.0)
    return np.asarray(weights * counts.sum() / (weights * counts).sum())


def _rank_in_class(labels: Array, by: Array) -> tuple[Array, Array]:
    """Each sample's place within its class when ordered ``by``, and its class's size: int64 [N]."""
    order = np.lexsort((by, labels))
    ordered = labels[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    ends = np.searchsorted(ordered, ordered, side="right")
    rank, count = np.empty_like(order), np.empty_like(order)
    rank[order] = np.arange(len(labels)) - starts
    count[order] = ends - starts
    return rank, count
