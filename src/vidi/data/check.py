"""Can all images be read? Found out before training, not in its third hour."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vidi.data.dataset import Dataset
from vidi.errors import InputError
from vidi.types import Array

MOST_SHOWN = 20
TRIED = 256
"""Images whose decoding is timed before it is decided whether to decode all."""
CHUNK = 64


@dataclass(frozen=True)
class CheckReport:
    """``bad``: (key, sentence) of each image that cannot be read, in the order of ``ids``.
    ``sizes``: int32 [N, 2], height and width of each, 0 where bad. ``decoded``: whether all were
    decoded, or only their headers read."""

    bad: list[tuple[str, str]]
    sizes: Array
    decoded: bool


def check_images(
    dataset: Dataset,
    ids: Array,
    *,
    how: Literal["error", "skip"],
    threads: int,
    load: Callable[[int], Any],
    budget_seconds: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read all headers; then, if by a first few hundred all can be decoded within the budget,
    decode all by ``load`` (which fills the cache on the way).

    ``ids``: int64 [N]. ``progress`` is called with the images done and their number.

    Raises :class:`InputError` with the list of all that cannot be read if ``how`` is "error".
    """
    ids = np.asarray(ids, np.int64)
    sizes = np.zeros((len(ids), 2), np.int32)
    bad: dict[int, str] = {}

    # A user's object has none: only whole images tell of it, as many as the budget allows.
    headers = dataset.images.has_headers

    def header(row: int) -> None:
        sizes[row] = dataset.images.size(int(ids[row]))

    def whole(row: int) -> None:
        found = load(int(ids[row]))
        if not headers:
            sizes[row] = found[1]

    pool = ThreadPoolExecutor(max(threads, 1), "vidi-check")
    try:
        if headers:
            _for_all(pool, header, np.arange(len(ids)), bad, progress)
        readable = np.array([row for row in range(len(ids)) if row not in bad], np.int64)
        # Spread evenly: a class or a source of larger images tells too.
        some = np.unique(
            np.linspace(0, len(readable) - 1, min(TRIED, len(readable))).round().astype(np.int64)
        )
        start = time.perf_counter()
        _for_all(pool, whole, readable[some], bad, None)
        spent = time.perf_counter() - start
        rest = np.delete(readable, some)
        decode_all = spent / max(len(some), 1) * len(rest) <= budget_seconds
        if decode_all:
            _for_all(pool, whole, rest, bad, progress)
    finally:
        pool.shutdown(cancel_futures=True)  # when interrupted, not after a million images

    for row in bad:
        sizes[row] = 0
    found = [(dataset.images.key(int(ids[row])), bad[row]) for row in sorted(bad)]
    if found and how == "error":
        raise InputError(_list(dataset, found, len(ids)))
    return CheckReport(found, sizes, decode_all)


def _list(dataset: Dataset, bad: list[tuple[str, str]], n: int) -> str:
    lines = [f"  {sentence}" for _, sentence in bad[:MOST_SHOWN]]
    if len(bad) > MOST_SHOWN:
        lines.append(f"  … and {len(bad) - MOST_SHOWN:,} more.")
    return "\n".join(
        [
            f"{len(bad):,} of {n:,} images of {dataset.root} cannot be read:",
            *lines,
            "Mend or remove them, or leave them out with --bad-images skip.",
        ]
    )


def _for_all(
    pool: ThreadPoolExecutor,
    work: Callable[[int], None],
    rows: Array,
    bad: dict[int, str],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Do the work for each row, in threads; what fails is put into ``bad``."""

    def chunk(some: list[int]) -> list[tuple[int, str]]:
        failed = []
        for row in some:
            try:
                work(row)
            except InputError as error:
                failed.append((row, str(error)))
        return failed

    done = 0
    for some, failed in zip(_chunks(rows), pool.map(chunk, _chunks(rows)), strict=True):
        bad.update(failed)
        done += len(some)
        if progress is not None:
            progress(done, len(rows))


def _chunks(rows: Array) -> Iterator[list[int]]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK].tolist()
