"""Regions for the detectors that need to be told where to look: computed, or the user's own."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np

from vidi.data import proposal_lists, proposals
from vidi.data.dataset import Dataset
from vidi.engine import distributed
from vidi.errors import InputError
from vidi.recipe import Recipe
from vidi.types import Array

NETWORK = "network"
"""Stands in the recipe where the network itself proposes."""
DEFAULT: proposals.Method = "selective-fast"
SAID = 30.0
"""Seconds between two sentences on how far the proposals are."""

Say = Callable[[str], None]


def settled(name: str) -> str:
    """The recipe's ``data.proposals`` without ``auto``.

    Raises :class:`InputError` for what is neither a method nor a file.
    """
    if name == "auto":
        return DEFAULT
    if name in (NETWORK, *get_args(proposals.Method)) or name.lower().endswith(
        proposal_lists.ENDINGS
    ):
        return name
    raise InputError(
        f"--data.proposals is {name!r}; it should be {', '.join(proposals.METHODS)}, {NETWORK} "
        "(it proposes itself), or a file of yours that ends in "
        f"{' or '.join(proposal_lists.ENDINGS)}."
    )


def attach(
    dataset: Dataset, ids: Array, recipe: Recipe, say: Say | None = None, *, threads: int = 1
) -> Dataset:
    """The dataset whose samples at ``ids`` (int64 [N]) have the recipe's proposals.

    Several processes share the computing. ``say`` hears how far it is. Where the network makes
    them, it is the dataset as it came.
    """
    if recipe.data.proposals == NETWORK:
        return dataset
    name, count = settled(recipe.data.proposals), recipe.data.proposal_count
    if name not in proposals.METHODS:
        boxes = proposal_lists.read(str(Path(name).expanduser()), dataset, ids, count)
        if say is not None:
            say(f"proposals: {name}, {_mean(boxes):,.0f} an image on average, at most {count:,}")
        return proposals.attach(dataset, ids, boxes)
    method = next(m for m in proposals.METHODS if m == name)
    world, rank = distributed.world(), distributed.rank()
    told = _told(say) if say is not None else None
    if world > 1:  # each its share, which then lies in the cache for all
        proposals.search(
            dataset, ids[rank::world], method, count=count, threads=threads, progress=told
        )
        distributed.gathered(None)
    found = proposals.search(
        dataset, ids, method, count=count, seed=recipe.seed, threads=threads, progress=told
    )
    if say is not None:
        for note in found.notes:
            say(note)
        kept = len(found.boxes) - found.computed
        say(
            f"proposals: {name}, {_mean(found.boxes):,.0f} an image on average, at most {count:,} "
            f"({found.computed:,} images computed, {kept:,} in the cache)"
        )
    return proposals.attach(dataset, ids, found.boxes)


def digest(dataset: Dataset, ids: Array) -> str:
    """Changes when a proposal does; 16 hexadecimal digits."""
    out = hashlib.blake2b(digest_size=8)
    for i in ids.tolist():
        out.update(np.ascontiguousarray(dataset.annotations(i)["proposals"], np.float32).data)
        out.update(b"|")
    return out.hexdigest()


def _mean(boxes: list[Array]) -> float:
    return float(np.mean([len(b) for b in boxes])) if boxes else 0.0


def _told(say: Say) -> Callable[[int, int], None]:
    """A sentence now and then, and none where all is quickly there."""
    began = last = time.monotonic()

    def progress(done: int, n: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SAID and done < n:
            last = now
            left = (now - began) / done * (n - done) / 60
            with contextlib.suppress(OSError):
                say(f"proposals: {done:,} of {n:,} images, about {left:.1f} min left")

    return progress
