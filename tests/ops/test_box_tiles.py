"""Tiles of large images: which windows there are, and one list of what is found in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vidi.ops import box_tiles, boxes
from vidi.types import Array, Detections

SIZE = (100, 180)
LEFT, RIGHT = [0, 0, 100, 100], [80, 0, 180, 100]
WHOLE = [0, 0, 180, 100]


def detections(*rows: tuple[list[float], int, float]) -> Detections:
    """Of (box, label, score) each."""
    return Detections(
        xyxy=np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        labels=np.array([row[1] for row in rows], np.int64),
        scores=np.array([row[2] for row in rows], np.float32),
    )


def merged(
    *seen: tuple[list[int], list[tuple[list[float], int, float]]], **options: Any
) -> list[tuple[list[float], int, float]]:
    """What stays, of (window, its detections in pixels of the image) each."""
    windows = np.array([window for window, _ in seen], np.int64)
    found = []
    for window, rows in seen:
        x, y = window[:2]
        found.append(
            detections(*(([b[0] - x, b[1] - y, b[2] - x, b[3] - y], k, s) for b, k, s in rows))
        )
    out = box_tiles.merge(found, windows, SIZE, **{"threshold": 0.3, **options})
    return [
        (box, label, round(score, 6))
        for box, label, score in zip(
            out.xyxy.tolist(), out.labels.tolist(), out.scores.tolist(), strict=True
        )
    ]


def test_windows_cover_the_image_and_overlap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        tile = int(rng.integers(2, 60))
        overlap = int(rng.integers(0, tile))
        size = int(rng.integers(1, 200)), int(rng.integers(1, 200))
        windows = box_tiles.windows(size, tile, overlap)
        if max(size) <= tile:
            assert len(windows) == 0
            continue
        assert (windows[:, 2:] - windows[:, :2] == tile).all()
        count = 1
        for axis, length in ((0, size[1]), (1, size[0])):
            starts = np.unique(windows[:, axis])
            count *= len(starts)
            steps = np.diff(starts)
            assert starts[0] == 0
            assert starts[-1] == max(0, length - tile), "they end where the image ends"
            assert (steps <= tile - overlap).all()
            assert not len(steps) or steps.max() - steps.min() <= 1, "evenly"
            # One less would leave a gap, or too little overlap.
            assert len(starts) == 1 or (len(starts) - 2) * (tile - overlap) < length - tile
        assert len(windows) == count == len(np.unique(windows, axis=0))


def test_a_window_is_the_pixels_in_it_and_the_fill_beyond() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    inside = box_tiles.cut(image, np.array([2, 1, 6, 4]), (1, 2, 3))
    assert np.array_equal(inside, image[1:4, 2:6])
    beyond = box_tiles.cut(image, np.array([2, 0, 10, 8]), (1, 2, 3))
    assert beyond.shape == (8, 8, 3) and beyond.dtype == np.uint8
    assert np.array_equal(beyond[:5, :7], image[:, 2:])
    assert (beyond[5:] == (1, 2, 3)).all() and (beyond[:, 7:] == (1, 2, 3)).all()


def test_a_window_has_the_proposals_of_which_half_lies_in_it() -> None:
    given = np.array([[10, 10, 20, 20], [35, 10, 45, 20], [36, 10, 46, 20], [0, 0, 90, 90]], float)
    got = box_tiles.within(given.astype(np.float32), np.array([5, 5, 40, 40]))
    assert got.dtype == np.float32
    assert got.tolist() == [[5, 5, 15, 15], [30, 5, 35, 15]]


def test_a_whole_object_beats_surer_halves() -> None:
    """Two windows cut it, a third holds it."""
    middle = [40, 0, 140, 100]
    object_ = [70.0, 40.0, 120.0, 60.0]
    halves = ([70.0, 40.0, 99.5, 60.0], 0, 0.95), ([81.0, 40.0, 120.0, 60.0], 0, 0.9)
    assert merged((LEFT, [halves[0]]), (middle, [(object_, 0, 0.5)]), (RIGHT, [halves[1]])) == [
        (object_, 0, 0.5)
    ]
    # The same where the third is the look at the whole image, last and coarser.
    assert merged((LEFT, [halves[0]]), (RIGHT, [halves[1]]), (WHOLE, [(object_, 0, 0.5)])) == [
        (object_, 0, 0.5)
    ]
    # Another class's whole object is another object.
    assert merged((LEFT, [halves[0]]), (middle, [(object_, 1, 0.5)])) == [
        halves[0],
        (object_, 1, 0.5),
    ]


def test_an_object_larger_than_a_tile_is_the_whole_images() -> None:
    large = [10.0, 5.0, 170.0, 95.0]
    parts = [10.0, 5.0, 100.0, 95.0], [80.0, 5.0, 170.0, 95.0]
    assert merged(
        (LEFT, [(parts[0], 0, 0.8)]), (RIGHT, [(parts[1], 0, 0.8)]), (WHOLE, [(large, 0, 0.7)])
    ) == [(large, 0, 0.7)]


def test_a_fragment_stays_where_nothing_better_is() -> None:
    half = ([70.0, 40.0, 100.0, 60.0], 0, 0.9)
    assert merged((LEFT, [half]), (RIGHT, []), (WHOLE, [])) == [half]
    # A whole one that is hardly above nothing is none that it yields to.
    unsure = ([70.0, 40.0, 120.0, 60.0], 0, 0.4)
    assert half in merged((LEFT, [half]), (RIGHT, []), (WHOLE, [unsure]))


@pytest.mark.parametrize(
    ("box", "fragment"),
    [
        ([70, 40, 100, 60], True),
        ([70, 40, 98, 60], True),
        ([70, 40, 97, 60], False),
        ([20, 40, 97, 60], True),  # near, for so large a one
        ([0, 0, 50, 50], False),  # at the image's border
        ([50, 0, 90, 100], False),
    ],
)
def test_what_reaches_to_a_border_within_the_image_is_a_fragment(
    box: list[float], fragment: bool
) -> None:
    """It is one if it yields to a box that goes on beyond the border, and is less sure."""
    x0, y0, x1, y1 = (float(v) for v in box)
    longer = ([x0, y0, max(x1, 100.0) + (y1 - y0), y1], 0, 0.6)
    left = merged((LEFT, [([x0, y0, x1, y1], 0, 0.9)]), (WHOLE, [longer]), threshold=1.0)
    assert ([x0, y0, x1, y1] not in [row[0] for row in left]) == fragment


def test_pixels_of_a_coarse_input_make_borders_wider() -> None:
    half, whole = ([70.0, 40.0, 95.0, 60.0], 0, 0.9), ([70.0, 40.0, 110.0, 60.0], 0, 0.8)
    assert half in merged((LEFT, [half]), (WHOLE, [whole]), threshold=1.0)
    assert half not in merged((LEFT, [half]), (WHOLE, [whole]), threshold=1.0, pixel=3.0)


def test_the_whole_image_yields_to_a_tile_that_holds_the_object() -> None:
    fine, coarse = ([20.0, 20.0, 40.0, 40.0], 0, 0.6), ([18.0, 22.0, 38.0, 42.0], 0, 0.9)
    assert merged((LEFT, [fine]), (RIGHT, []), (WHOLE, [coarse])) == [fine]
    # Not to one that it is far surer of.
    unsure = (fine[0], 0, 0.3)
    assert merged((LEFT, [unsure]), (RIGHT, []), (WHOLE, [coarse])) == [coarse]


def test_what_two_tiles_hold_is_there_once() -> None:
    first, second = ([84.0, 20.0, 94.0, 30.0], 0, 0.6), ([84.5, 20.0, 94.5, 30.0], 0, 0.7)
    assert merged((LEFT, [first]), (RIGHT, [second])) == [second]
    assert merged((LEFT, [first]), (RIGHT, [(second[0], 1, 0.7)])) == [(second[0], 1, 0.7), first]


def test_within_a_window_nothing_is_suppressed_again() -> None:
    """With soft-NMS objects that overlap may stay."""
    rows = [([20.0, 20.0, 40.0, 40.0], 0, 0.9), ([22.0, 20.0, 42.0, 40.0], 0, 0.8)]
    assert merged((LEFT, rows), (RIGHT, [])) == rows


def test_what_lies_beyond_the_image_is_cut_off() -> None:
    low = [0, 0, 120, 120]
    rows = [
        ([20.0, 80.0, 40.0, 110.0], 0, 0.9),
        ([20.0, 101.0, 40.0, 119.0], 0, 0.8),
        ([50.0, 80.0, 60.0, 120.0], 0, 0.7),  # that border is not the image's: no fragment
    ]
    assert merged((low, rows), ([60, 0, 180, 120], []), (WHOLE, [])) == [
        ([20.0, 80.0, 40.0, 100.0], 0, 0.9),
        ([50.0, 80.0, 60.0, 100.0], 0, 0.7),
    ]


def suppressed(xyxy: Array, scores: Array, labels: Array) -> Array:
    a, b, c = (torch.from_numpy(x) for x in (xyxy, scores, labels))
    kept: Array = boxes.suppress(a, b, c, 0.3)[0].numpy()
    return kept


def random_boxes(rng: np.random.Generator, window: Array, n: int) -> Detections:
    """Inside the window, off its border; suppressed, as a task gives them."""
    low = rng.uniform(10, 60, (n, 2))
    xyxy = np.concatenate([low, low + rng.uniform(5, 30, (n, 2))], 1).astype(np.float32)
    labels, scores = rng.integers(0, 2, n), rng.uniform(0, 1, n).astype(np.float32)
    rows = suppressed(xyxy, scores, labels)
    return Detections(xyxy=xyxy[rows], labels=labels[rows], scores=scores[rows])


def test_without_fragments_it_is_nonmaximum_suppression_over_all() -> None:
    rng = np.random.default_rng(0)
    windows = box_tiles.windows((250, 250), 100, 50)
    for _ in range(10):
        found = [random_boxes(rng, window, 20) for window in windows]
        out = box_tiles.merge(found, windows, (250, 250), threshold=0.3)
        xyxy = np.concatenate(
            [f.xyxy + np.tile(w[:2], 2) for f, w in zip(found, windows, strict=True)]
        )
        labels, scores = (np.concatenate([getattr(f, k) for f in found]) for k in
                          ("labels", "scores"))  # fmt: skip
        kept = suppressed(xyxy, scores, labels)
        assert 0 < len(kept) < len(scores)
        np.testing.assert_allclose(out.xyxy, xyxy[kept], atol=1e-4)
        assert np.array_equal(out.scores, scores[kept])
        assert np.array_equal(out.labels, labels[kept])


def test_nothing_found_gives_nothing() -> None:
    assert merged((LEFT, []), (RIGHT, []), (WHOLE, [])) == []
