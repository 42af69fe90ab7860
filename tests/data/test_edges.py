"""Boundaries: BSDS's own, drawn from its segmentations; lines under matrices."""

from __future__ import annotations

import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import loadmat
from scipy.ndimage import distance_transform_edt
from skimage import morphology

from vidi.data import edges
from vidi.data import geometry as g
from vidi.ops.thinning import thin
from vidi.types import Array


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_thinning_against_scikit_image(share: float) -> None:
    mask = np.random.default_rng(0).random((50, 70)) < share
    assert np.array_equal(thin(mask), morphology.thin(mask))
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((4, 4))) > 0
    assert np.array_equal(thin(grown), morphology.thin(grown))


def test_a_straight_boundary_is_the_left_or_upper_pixel() -> None:
    segments = np.zeros((2, 6, 6), np.int32)
    segments[0, :, 3:], segments[1, 2:] = 1, 5
    found = edges.boundaries(segments)
    assert found.dtype == np.uint8
    assert np.flatnonzero(found[0].all(0)).tolist() == [2]
    assert np.flatnonzero(found[1].all(1)).tolist() == [1]
    assert (found > 0).sum() == 12


def test_nothing_is_drawn_against_the_outside() -> None:
    segments = np.full((1, 9, 9), -1, np.int32)
    segments[0, 2:7, 2:7] = 4
    assert not edges.boundaries(segments).any()


@pytest.mark.skipif("VIDI_DATA" not in os.environ, reason="VIDI_DATA names no folder")
def test_bsds_boundaries_are_drawn_from_its_segmentations() -> None:
    folder = Path(os.environ["VIDI_DATA"]) / "bsds500/groundTruth"
    files = sorted(folder.rglob("*.mat"))[::40]
    assert len(files) > 10
    for path in files:
        truth = loadmat(path)["groundTruth"]
        people = [truth[0, k][0, 0] for k in range(truth.shape[1])]
        segments = np.stack([p["Segmentation"].astype(np.int32) for p in people])
        theirs = np.stack([p["Boundaries"] > 0 for p in people])
        assert np.array_equal(edges.boundaries(segments) > 0, theirs), path.name


def far(one: Array, other: Array) -> Array:
    """Of each pixel of the first, how far the nearest of the second is."""
    return np.asarray(distance_transform_edt(~other)[one])


@pytest.mark.parametrize("k", range(6))
def test_boundaries_follow_the_segments(k: int) -> None:
    rng = np.random.default_rng(k)
    segments = np.zeros((2, 90, 120), np.int32)
    cv2.ellipse(segments[0], (60, 45), (30, 18), 20, 0, 360, 3, -1)
    cv2.circle(segments[1], (50, 50), 25, 7, -1)
    middle = g.compose(
        g.rotation(rng.uniform(-3, 3)), g.scaling(*np.exp(rng.uniform(-0.4, 0.4, 2)))
    )
    m = g.about((60, 45), middle)
    moved, parts = edges.warp(edges.boundaries(segments), segments, m, (90, 120))
    assert moved is not None and parts is not None
    assert np.array_equal(moved, edges.boundaries(parts))
    y, x = np.nonzero(edges.boundaries(segments)[1])
    # The lines' pixels lie half a pixel up and left of the boundary itself.
    expected = g.apply(m, np.stack([x + 1.0, y + 1.0], 1))
    expected = expected[((expected > 1) & (expected < (119, 89))).all(1)]
    there = np.zeros((90, 120), bool)
    there[tuple(np.floor(expected[:, ::-1]).astype(int).T)] = True
    assert far(there, moved[1] > 0).max() < 2.5
    assert far(there, moved[1] > 0).mean() < 1
    assert far(moved[1] > 0, there).mean() < 1.2
    assert np.array_equal(morphology.thin(moved[1] > 0), moved[1] > 0)


def drawing() -> Array:
    """A ring and a cross of lines of one pixel, at 200."""
    lines = np.zeros((120, 160), np.uint8)
    cv2.circle(lines, (60, 60), 40, 200)
    cv2.line(lines, (110, 10), (150, 110), 200)
    cv2.line(lines, (110, 100), (150, 20), 200)
    return thin(lines > 0) * np.uint8(200)


@pytest.mark.parametrize("zoom", [0.25, 0.4, 0.7, 1.0, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2])
def test_thin_lines_neither_vanish_nor_double(zoom: float, angle: float) -> None:
    lines = drawing()
    size = (round(170 * zoom), round(170 * zoom))
    middle = g.compose(g.translation(-80, -60), g.rotation(angle), g.scaling(zoom, zoom))
    m = g.compose(middle, g.translation(85 * zoom + 0.3, 85 * zoom + 0.2))
    found = edges.warp_lines(lines, m, size)
    assert set(np.unique(found)) == {0, 200}
    on = found > 0
    assert np.array_equal(morphology.thin(on), on)
    # The exact curves, drawn under the matrix.
    turn = np.linspace(0, 2 * math.pi, 2000)
    ring = np.stack([60.5 + 40 * np.cos(turn), 60.5 + 40 * np.sin(turn)], 1)
    s = np.linspace(0, 1, 1000)[:, None]
    cross = [(1 - s) * a + s * b for a, b in (((110.5, 10.5), (150.5, 110.5)),
                                             ((110.5, 100.5), (150.5, 20.5)))]  # fmt: skip
    p = g.apply(m, np.concatenate([ring, *cross]))
    p = p[((p >= 0) & (p < size[0])).all(1)]
    there = np.zeros(size, bool)
    there[tuple(np.floor(p[:, ::-1]).astype(int).T)] = True
    # Every stretch of the curves is there, unbroken, and nothing else is.
    assert np.quantile(far(there, on), 0.95) < 1.5 + zoom / 2
    assert far(on, there).max() < 1.5 + 0.75 * zoom
    assert on.sum() < 1.15 * there.sum()
    parts, _ = cv2.connectedComponents(on.astype(np.uint8), connectivity=8)
    assert parts - 1 == 2


def test_soft_and_thick_maps_scale_with_the_image() -> None:
    soft = cv2.GaussianBlur(drawing(), (0, 0), 2)
    found = edges.warp_lines(soft, g.scaling(2, 2), (240, 320))
    plain = cv2.resize(soft, (320, 240), interpolation=cv2.INTER_LINEAR)
    assert np.abs(found[2:-2, 2:-2] - plain[2:-2, 2:-2].astype(float)).max() <= 1
    thick = np.zeros((60, 60), np.uint8)
    thick[20:26] = 255
    assert edges.warp_lines(thick, g.scaling(0.5, 0.5), (30, 30)).max(1).nonzero()[0].tolist() in (
        [10, 11, 12],
        [9, 10, 11, 12, 13],
        [10, 11, 12, 13],
    )


def test_copies_are_exact_without_segments() -> None:
    lines = np.random.default_rng(0).integers(0, 256, (1, 30, 40), dtype=np.uint8)
    cut, none = edges.warp(lines, None, g.compose(g.translation(-5, -3), g.flip(30)), (20, 30))
    assert none is None
    assert cut is not None
    assert np.array_equal(cut[0], lines[0, 3:23, 5:35][:, ::-1])


def test_no_annotator_at_all() -> None:
    empty = np.zeros((0, 30, 40), np.uint8)
    for segments in (None, empty.astype(np.int32)):
        moved, _ = edges.warp(empty, segments, g.rotation(0.1), (20, 30))
        assert moved is not None
        assert moved.shape == (0, 20, 30)
