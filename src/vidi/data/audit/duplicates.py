"""The same picture twice: within a split, across splits (leakage), under two labels.

Exact: equal pixels. Near: the same picture at another size or compression, or in other colours; not
mirrored, nor cropped by more than a little. Candidates are pairs whose 64-bit difference hashes
(Krawetz 2013, "Kind of like that") agree in one of six bands of 10 or 11 bits, as all pairs do that
differ in at most 5 bits; so no image is compared with all others. What remains is loaded again and
compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import cv2
import numpy as np

from vidi.data.audit.finding import Finding
from vidi.data.audit.looks import Seen
from vidi.data.audit.report import found
from vidi.errors import InputError
from vidi.types import Array

BANDS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))
"""(first bit, bits) of the hash."""
FAR = 14
"""Bits in which candidates' hashes may differ."""
BUCKET = 4096
"""Of more images that agree in a band, each is compared with this many neighbours only, in the
order of their hashes: pictures of nearly nothing all agree."""
NEAREST = 8
"""Candidates that an image has in a band, at most: a film's frames are all alike."""
MOST_PAIRS = 50_000
"""Candidates that are loaded and compared, the likeliest; twice as many as images, if that is
more."""
THUMB_ALIKE = 0.9
"""Correlation of the kept thumbnails, below which a pair is not loaded again."""
SIDE = 48
"""Pixels of the side at which a pair is compared."""
ALIKE = 0.85
"""Correlation of the pixels of near duplicates."""
EDGES_ALIKE = 0.5
"""Correlation of their differences between neighbours: two different skies agree in the pixels. In
CIFAR-10, pairs above show one picture, cut or coloured otherwise at most; below 0.3 they do not."""
ASPECT = 0.03
"""By which the ratio of the sides may differ, relatively."""


def exact(seen: Seen) -> list[Finding]:
    across: dict[int, int] = {}
    within: dict[int, int] = {}
    torn: dict[int, int] = {}
    for rows in _groups(seen):
        first = {seen.split[row]: row for row in reversed(rows)}
        for row in rows:
            other = next((r for s, r in first.items() if s != seen.split[row]), None)
            # Told of the evaluation's sample: that is where leakage does its harm.
            if other is not None and (seen.splits[seen.split[row]] != "train"):
                across[row] = other
            if first[seen.split[row]] != row:
                within[row] = first[seen.split[row]]
            if not _same_label(seen, rows[0], row):
                torn[row] = rows[0]
    return [
        *found(
            seen,
            "duplicate-across-splits",
            "error",
            across,
            twin=across.__getitem__,
            what="{n} image[|s] [is|are] in another split too, with the same pixels.",
            effect="What was trained on is tested on: the figures are better than the network.",
            advice="Remove them from one of the splits (from train, if the test set is a given "
            "one).",
            detail=lambda row: f"is {_place(seen, across[row])}",
        ),
        *found(
            seen,
            "duplicate-conflict",
            "error",
            torn,
            twin=torn.__getitem__,
            what="{n} image[|s] [has|have] the same pixels as another, and another label.",
            effect="One of the two is wrong; no network can get both right.",
            advice="Decide which label is right, and remove the other.",
            detail=lambda row: (
                f"{_label(seen, row)}; {_place(seen, torn[row])} {_label(seen, torn[row])}".strip()
            ),
        ),
        *found(
            seen,
            "duplicate-within-split",
            "warning",
            within,
            twin=within.__getitem__,
            what="{n} image[|s] [has|have] the same pixels as another of the same split.",
            effect="They count twice; carved into train and validation, they leak.",
            advice="Keep one of each.",
            detail=lambda row: f"is {_place(seen, within[row])}",
        ),
    ]


def near(seen: Seen, threads: int = 1) -> list[Finding]:
    if seen.dataset.task == "flow":  # frames of one film are alike, and their flow is not
        return []
    candidates = _candidates(seen)
    most = max(MOST_PAIRS, 2 * len(seen))
    pairs = list(_verified(seen, _likeliest(seen, candidates, most), threads))
    across: dict[int, int] = {}
    within: dict[int, int] = {}
    torn: dict[int, int] = {}
    for a, b in pairs:
        if seen.split[a] != seen.split[b]:
            held, other = (a, b) if seen.splits[seen.split[a]] != "train" else (b, a)
            across.setdefault(held, other)
        else:
            within.setdefault(b, a)
        if seen.dataset.labels is not None and not _same_label(seen, a, b):
            torn.setdefault(b, a)
    by_place = sorted  # rows come in the order of the data, not of likeness
    return [
        *_limit(len(candidates) - most),
        *found(
            seen,
            "near-duplicate-across-splits",
            "warning",
            by_place(across),
            twin=across.__getitem__,
            what="{n} image[|s] [is|are] nearly the same as one of another split.",
            effect="What was nearly trained on is tested on: the figures flatter. Neighbouring "
            "frames of a film do the same.",
            advice="Look at the pairs; divide the data by scene, film or source, not by image.",
            detail=lambda row: f"looks like {_place(seen, across[row])}",
        ),
        *found(
            seen,
            "near-duplicate-conflict",
            "warning",
            by_place(torn),
            twin=torn.__getitem__,
            what="{n} image[|s] [is|are] nearly the same as another of another label.",
            effect="One of the two labels is probably wrong.",
            advice="Look at the pairs, and decide on one label.",
            detail=lambda row: (
                f"{_label(seen, row)}; {_place(seen, torn[row])} {_label(seen, torn[row])}".strip()
            ),
        ),
        *found(
            seen,
            "near-duplicate-within-split",
            "info",
            by_place(within),
            twin=within.__getitem__,
            what="{n} image[|s] [is|are] nearly the same as another of the same split.",
            effect="The data is smaller than its count; carved into train and validation, they "
            "leak.",
            advice="If validation is carved from train, divide by scene or film instead.",
            detail=lambda row: f"looks like {_place(seen, within[row])}",
        ),
    ]


def _limit(left: int) -> list[Finding]:
    if left <= 0:
        return []
    return [
        Finding(
            code="near-duplicate-limit",
            severity="info",
            count=left,
            what=f"There are {left:,} more likely near duplicates than were compared.",
            effect="None on training; the counts of near duplicates are too low.",
            advice="Remove those that were found, and run the audit again.",
        )
    ]


def _groups(seen: Seen) -> Iterator[list[int]]:
    """Rows of equal pixels, two or more, in the order of the data. Images of one colour are told
    elsewhere."""
    rows = np.flatnonzero(seen.readable & (seen.high > seen.low))
    order = rows[np.argsort(seen.digest[rows], kind="stable")]
    if not len(order):
        return
    digests = seen.digest[order]
    starts = np.flatnonzero(np.r_[True, digests[1:] != digests[:-1]])
    groups = [g.tolist() for g in np.split(order, starts[1:]) if len(g) > 1]
    yield from sorted(groups)


def _candidates(seen: Seen) -> Array:
    """int64 [P, 2]: pairs of rows whose hashes and thumbnails are alike, in order."""
    # A picture of which little differs has a hash of noise.
    rows = np.flatnonzero(seen.hashed & (seen.high.astype(int) - seen.low > 16))
    if len(rows) < 2:
        return np.zeros((0, 2), np.int64)
    hashes = seen.dhash[rows]
    pairs: list[Array] = []
    for start, bits in BANDS:
        band = (hashes >> np.uint64(start)) & np.uint64((1 << bits) - 1)
        order = np.lexsort((hashes, band))
        cuts = np.flatnonzero(np.r_[True, np.diff(band[order].astype(np.int64)) != 0])
        for bucket in np.split(order, cuts[1:]):
            pairs += _within(hashes, bucket)
    if not pairs:
        return np.zeros((0, 2), np.int64)
    found = np.unique(np.concatenate(pairs), axis=0)
    a, b = rows[found[:, 0]], rows[found[:, 1]]
    new = seen.digest[a] != seen.digest[b]  # equal ones are told as such
    a, b = a[new], b[new]
    keep = np.zeros(len(a), bool)
    for start in range(0, len(a), 4096):
        part = slice(start, start + 4096)
        keep[part] = _correlations(seen.thumbs[a[part]], seen.thumbs[b[part]]) >= THUMB_ALIKE
    keep &= np.abs(np.log(_aspects(seen, a) / _aspects(seen, b))) <= ASPECT + 1 / np.minimum(
        seen.sizes[a].min(1), seen.sizes[b].min(1)
    )
    return np.stack([a[keep], b[keep]], 1)


def _likeliest(seen: Seen, pairs: Array, most: int) -> Array:
    """Those whose hashes differ least, in the order of the data, so that images loaded are met
    again soon."""
    apart = np.bitwise_count(seen.dhash[pairs[:, 0]] ^ seen.dhash[pairs[:, 1]])
    return pairs[np.sort(np.argsort(apart, kind="stable")[:most])]


def _within(hashes: Array, bucket: Array) -> list[Array]:
    """Pairs of one bucket, lower index first, whose hashes differ in at most FAR bits: each with
    the nearest of those that follow it."""
    out = []
    for k in range(len(bucket) - 1):
        others = bucket[k + 1 : k + 1 + BUCKET]
        apart = np.bitwise_count(hashes[others] ^ hashes[bucket[k]])
        close = np.flatnonzero(apart <= FAR)
        if len(close) > NEAREST:
            close = close[np.argsort(apart[close], kind="stable")[:NEAREST]]
        if len(close):
            mine = np.full(len(close), bucket[k])
            out.append(np.sort(np.stack([mine, others[close]], 1), axis=1))
    return out


def _verified(seen: Seen, pairs: Array, threads: int) -> Iterator[tuple[int, int]]:
    """The pairs (lower row first) that are alike at 48 × 48 pixels, too."""

    @lru_cache(maxsize=4096)
    def small(row: int) -> Array | None:
        try:
            image, _ = seen.dataset.images.load(int(seen.ids[row]), SIDE)
        except InputError:
            return None
        return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)

    def alike(pair: Array) -> bool:
        a, b = small(int(pair[0])), small(int(pair[1]))
        return a is not None and b is not None and same_picture(a, b)

    with ThreadPoolExecutor(max(threads, 1), "vidi-audit") as pool:
        for pair, same in zip(pairs, pool.map(alike, pairs), strict=True):
            if same:
                yield int(pair[0]), int(pair[1])


def same_picture(a: Array, b: Array) -> bool:
    """Whether two images, float32 [S, S, 3], show the same: their pixels correlate, and so do the
    differences between neighbours."""
    if _correlation(a, b) < ALIKE:
        return False
    along = min(_correlation(np.diff(a, axis=axis), np.diff(b, axis=axis)) for axis in (0, 1))
    return along >= EDGES_ALIKE


def _correlation(a: Array, b: Array) -> float:
    x, y = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0


def _correlations(a: Array, b: Array) -> Array:
    """Of pairs of thumbnails, uint8 [P, 16, 16] each."""
    x, y = (t.reshape(len(t), -1).astype(np.float32) for t in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    scale = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return np.asarray((x * y).sum(1) / np.maximum(scale, 1e-9))


def _aspects(seen: Seen, rows: Array) -> Array:
    return np.asarray(seen.sizes[rows, 1] / seen.sizes[rows, 0])


def _same_label(seen: Seen, a: int, b: int) -> bool:
    labels = seen.dataset.labels
    if labels is not None:
        return bool((labels[seen.ids[a]] == labels[seen.ids[b]]).all())
    return bool(seen.truth_digest[a] == seen.truth_digest[b])


def _label(seen: Seen, row: int) -> str:
    labels, names = seen.dataset.labels, seen.dataset.classes
    if labels is None:
        return ""
    label = labels[seen.ids[row]]
    if labels.ndim == 2:
        on = [names[k] for k in np.flatnonzero(label)]
        return f"is labelled {' + '.join(on) or 'none'}"
    return f"is labelled {names[label]}"


def _place(seen: Seen, row: int) -> str:
    return f"{seen.key(row)} ({seen.splits[seen.split[row]]})"
