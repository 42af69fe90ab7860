"""The score of boundaries: matching against SciPy's, the figures of BSDS500's own program, and what
a person would expect of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import maximum_bipartite_matching

from vidi.data.formats.bsds import read_truth
from vidi.errors import InputError
from vidi.ops import boundaries, matching
from vidi.ops.matching import candidates, match
from vidi.ops.suppression import suppress
from vidi.types import Array

TOLERANCE = 0.003


def random_maps(seed: int) -> tuple[Array, Array, float]:
    """Two maps of the same size, and a radius."""
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 25, 2))
    maps = [rng.random(size) < rng.uniform(0, 0.6) for _ in range(2)]
    return maps[0], maps[1], float(rng.choice([0, 1, 1.5, 2, 3.2, 4.337]))


def distances(prediction: Array, truth: Array) -> Array:
    """[n, m]"""
    a, b = np.argwhere(prediction)[:, None], np.argwhere(truth)[None]
    return np.asarray(np.sqrt(((a - b) ** 2).sum(-1)))


@pytest.mark.parametrize("strip", [1, 7, matching.STRIP])
@pytest.mark.parametrize("seed", range(60))
def test_matching_is_as_large_as_any(
    seed: int, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "STRIP", strip)
    prediction, truth, radius = random_maps(seed)
    there = np.random.default_rng(seed).random(np.count_nonzero(prediction)) < 0.7
    allowed = distances(prediction, truth)[there] <= radius
    most = 0
    if allowed.size:
        # Two others, which agree: one without weights, and a dense assignment.
        found = maximum_bipartite_matching(sparse.csr_array(allowed), "column")
        most = np.count_nonzero(found >= 0)
        assert most == allowed[linear_sum_assignment(allowed, maximize=True)].sum()
    predicted, true = match(candidates(prediction, truth, radius), there)
    assert np.count_nonzero(predicted) == np.count_nonzero(true) == most
    assert not predicted[~there].any()
    if allowed.size:
        # Those that are said to be matched can be: one to one, all of them.
        part = allowed[predicted[there]][:, true]
        assert part[linear_sum_assignment(part, maximize=True)].sum() == most


def test_matched_pixels_are_the_near_ones() -> None:
    """A true line, the same line predicted, and another two rows below: the latter is left."""
    prediction, truth = np.zeros((2, 30, 40), bool)
    truth[10, 5:35] = prediction[10, 5:35] = prediction[12, 5:35] = True
    predicted, true = match(candidates(prediction, truth, 4.0), np.ones(60, bool))
    assert true.all()
    assert predicted.tolist() == [True] * 30 + [False] * 30


def test_a_long_chain_is_followed_to_its_end() -> None:
    """Each true pixel has a predicted one 2 pixels to its right and one 3 to its left; the last one
    has but the left, so that all 2,000 must take the farther one."""
    prediction, truth = np.zeros((2, 1, 10_000), bool)
    prediction[0, 0::5] = truth[0, 3::5] = True
    pairs = candidates(prediction, truth, 3.0)
    predicted, true = match(pairs, np.ones(2000, bool))
    assert predicted.all()
    assert true.all()
    without_first = np.arange(2000) > 0
    predicted, true = match(pairs, without_first)
    assert predicted[1:].all()
    assert true.sum() == 1999


def disc(size: int = 120, shift: int = 0) -> Array:
    """A circle of one pixel's width, bool [size, size + 60]: a diagonal of about 216."""
    y, x = np.mgrid[:size, : size + 60]
    inside = (x - 90 - shift) ** 2 + (y - 60) ** 2 < 40**2
    return np.asarray(inside & ~ndimage.binary_erosion(inside))


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 1.0), (10, 0.3)])
def test_a_pixel_s_shift_is_within_the_tolerance(shift: int, expected: float) -> None:
    truth = disc()[None]
    counts = boundaries.score(disc(shift=shift).astype(float), truth)
    ods = boundaries.summary([counts]).ods.f
    assert ods == pytest.approx(1) if expected == 1 else ods < expected


def test_counts_by_hand() -> None:
    """Two annotators; a predicted pixel that both drew counts once, and twice for recall."""
    truths = np.zeros((2, 20, 20), np.uint8)
    truths[0, 5, 2:12] = 255
    truths[1, 5, 2:8] = 255
    truths[1, 15, 0:4] = 255
    prediction = np.zeros((20, 20))
    prediction[5, 2:12] = 0.9
    prediction[10, 2:6] = 0.4
    counts = boundaries.score(prediction, truths, np.array([0.3, 0.4, 0.5, 0.95]))
    assert counts.truth.tolist() == [20, 20, 20, 20]
    assert counts.matched_truth.tolist() == [16, 16, 16, 0]
    assert counts.prediction.tolist() == [14, 14, 10, 0]
    assert counts.matched_prediction.tolist() == [10, 10, 10, 0]
    both = counts + counts
    assert both.truth.tolist() == [40] * 4
    assert both.precision == pytest.approx([10 / 14, 10 / 14, 1, 0])
    assert both.recall == pytest.approx([0.8, 0.8, 0.8, 0])


def test_thick_lines_are_thinned_only_if_asked() -> None:
    truth = np.zeros((1, 40, 40), np.uint8)
    truth[0, 20, 5:35] = 255
    thick = ndimage.binary_dilation(truth[0] > 0, np.ones((3, 3)))
    one = np.array([0.5])
    assert boundaries.score(thick.astype(float), truth, one, thin=False).prediction[0] == 96
    assert boundaries.score(thick.astype(float), truth, one).prediction[0] <= 32


def made(rows: list[tuple[int, int, int, int]]) -> boundaries.Counts:
    return boundaries.Counts(*np.array(rows).T)


def test_the_best_image_thresholds_beat_the_best_single_one() -> None:
    """ODS, OIS and AP of made-up counts of two images at three thresholds, by hand."""
    first = made([(90, 100, 90, 120), (50, 100, 50, 60), (10, 100, 10, 10)])
    second = made([(80, 100, 80, 400), (70, 100, 70, 80), (20, 100, 20, 20)])
    thresholds = np.array([0.25, 0.5, 0.75])
    s = boundaries.summary([first, second], thresholds)
    # OIS: the first image at 0.25, the second at 0.5.
    assert s.ois.recall == pytest.approx(160 / 200)
    assert s.ois.precision == pytest.approx(160 / 200)
    assert s.ois.f == pytest.approx(0.8)
    assert np.isnan(s.ois.threshold)
    curve = [(170 / 200, 170 / 520), (120 / 200, 120 / 140), (30 / 200, 1.0)]
    assert np.array([(p.recall, p.precision) for p in s.curve]) == pytest.approx(np.array(curve))
    # ODS: the best of 100 points on each of the two chords.
    best = 0.0
    for (r0, p0), (r1, p1) in pairwise(curve):
        for k in range(100):
            r, p = r0 + (r1 - r0) * k / 99, p0 + (p1 - p0) * k / 99
            best = max(best, 2 * r * p / (r + p))
    assert s.ods.f == pytest.approx(best)
    assert 0.25 < s.ods.threshold < 0.75
    # AP: recalls 0.15 to 0.85 in hundredths, on the chords.
    at = np.arange(15, 86) / 100
    ap = np.interp(at, [0.15, 0.6, 0.85], [1, 120 / 140, 170 / 520]).sum() / 100
    assert s.ap == pytest.approx(ap)


def test_nothing_predicted_and_nothing_drawn_count_nought_of_nought() -> None:
    empty, drawn = np.zeros((1, 30, 30), np.uint8), disc()[None, :30, 60:90]
    nothing = boundaries.score(np.zeros((30, 30)), drawn)
    assert not nothing.prediction.any()
    assert nothing.truth.all()
    assert boundaries.summary([nothing]).ods.f == 0
    blank = boundaries.score(np.ones((30, 30)), empty)
    assert not blank.truth.any()
    assert not blank.matched_prediction.any()
    assert (blank.recall == 0).all()
    assert (blank.precision == 0).all()
    with pytest.raises(InputError, match="no boundary pixel"):
        boundaries.summary([blank])


@pytest.mark.parametrize(
    ("prediction", "truths", "says"),
    [
        (np.zeros((30, 40)), np.ones((2, 40, 30)), r"a\.png is 30 × 40, but its .* 40 × 30"),
        (np.zeros((30, 40)), np.ones((0, 30, 40)), "at least one"),
        (np.zeros((30, 40)), np.ones((30, 40)), "one map per annotator"),
        (np.zeros((0, 40)), np.ones((1, 0, 40)), "no pixel"),
        (np.full((30, 40), 255.0), np.ones((1, 30, 40)), "from 255 to 255; expected 0 to 1"),
        (np.full((30, 40), np.nan), np.ones((1, 30, 40)), "expected 0 to 1"),
    ],
)
def test_what_cannot_be_scored_gets_a_sentence(prediction: Array, truths: Array, says: str) -> None:
    with pytest.raises(InputError, match=says):
        boundaries.score(prediction, truths, name="a.png")


def test_suppression_is_the_toolbox_s_pixel_by_pixel() -> None:
    """Its loops, written out, on a soft random map whose normals point everywhere."""
    rng = np.random.default_rng(3)
    soft = ndimage.gaussian_filter(rng.random((40, 52)), 1.5)
    soft = ((soft - soft.min()) / np.ptp(soft)).astype(np.float32)
    small, wide = np.array([1, 2, 1]) / 4, np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
    smooth = ndimage.convolve(soft, np.outer(small, small), mode="reflect")
    smoother = ndimage.convolve(smooth, np.outer(wide, wide), mode="reflect")
    gy, gx = np.gradient(smoother)
    gxx, (gyy, gxy) = np.gradient(gx, axis=1), np.gradient(gy)
    angle = np.mod(np.arctan(gyy * np.sign(-gxy) / (gxx + 1e-5)), np.pi)
    h, w = soft.shape
    expected = smooth.copy()
    for y in range(h):
        for x in range(w):
            for d in (-1, 1):
                u = np.clip(x + d * np.cos(angle[y, x]), 0, w - 1.001)
                v = np.clip(y + d * np.sin(angle[y, x]), 0, h - 1.001)
                i, j = int(v), int(u)
                a, b = v - i, u - j
                beside = (1 - a) * ((1 - b) * smooth[i, j] + b * smooth[i, j + 1])
                beside += a * ((1 - b) * smooth[i + 1, j] + b * smooth[i + 1, j + 1])
                if smooth[y, x] * 1.01 < beside:
                    expected[y, x] = 0
    for k in range(5):
        for line in (np.s_[k], np.s_[h - 1 - k], np.s_[:, k], np.s_[:, w - 1 - k]):
            expected[line] *= k / 5
    found = suppress(soft)
    assert found.dtype == np.float32
    differ = ~np.isclose(found, expected, atol=1e-5)
    assert differ.mean() < 0.002  # a comparison that float32 decides otherwise
    assert 0.1 < (found > 0).mean() < 0.7


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (2, 2), (2, 30)])
def test_suppression_leaves_nothing_of_a_map_that_is_all_border(size: tuple[int, int]) -> None:
    left = suppress(np.ones(size))
    assert left.shape == size
    assert not left.any()


@pytest.mark.parametrize("turned", [False, True])
def test_suppression_leaves_a_ridge(turned: bool) -> None:
    """Level lines too, whose mixed derivative is 0."""
    y = np.mgrid[:60, :50][0]
    soft = np.exp(-(((y - 30) / 4.0) ** 2))
    left = suppress(soft.T if turned else soft)
    left = left.T if turned else left
    assert (left[30, 6:-6] > 0.9).all()
    # Far away, where the map is flat, there is no normal.
    assert left[:28].max() < 1e-3
    assert left[33:].max() < 1e-3


# BSDS500's own program, on real data.


def bench(folder: Path) -> list[tuple[Array, Array]]:
    pairs = []
    for path in sorted((folder / "png").glob("*.png")):
        prediction = np.array(Image.open(path)) / 255
        mat = folder / "groundTruth" / f"{path.stem}.mat"
        pairs.append((prediction, read_truth(str(mat), prediction.shape)[0]))
    return pairs


def test_figures_are_the_original_program_s(real_data: Path) -> None:
    folder = real_data / "bsds-bench"
    if not folder.is_dir():
        pytest.skip("no bsds-bench there")
    at = boundaries.levels(5)
    s = boundaries.summary([boundaries.score(p, t, at) for p, t in bench(folder)], at)
    threshold, *rest = np.loadtxt(folder / "expected" / "eval_bdry.txt")
    found = [s.ods.recall, s.ods.precision, s.ods.f, s.ois.recall, s.ois.precision, s.ois.f, s.ap]
    assert s.ods.threshold == pytest.approx(threshold, abs=1e-5)
    assert found == pytest.approx(rest, abs=TOLERANCE)
    curve = [[p.threshold, p.recall, p.precision, p.f] for p in s.curve]
    expected = np.loadtxt(folder / "expected" / "eval_bdry_thr.txt")
    assert np.array(curve) == pytest.approx(expected, abs=TOLERANCE)
    images = [[p.threshold, p.recall, p.precision, p.f] for p in s.images]
    expected = np.loadtxt(folder / "expected" / "eval_bdry_img.txt")[:, 1:]
    assert np.array(images) == pytest.approx(expected, abs=TOLERANCE)


def test_a_person_agrees_with_the_others(real_data: Path) -> None:
    folder = real_data / "bsds500"
    if not folder.is_dir():
        pytest.skip("no bsds500 there")
    counts = []
    for path in sorted((folder / "groundTruth" / "test").glob("*.mat"))[:8]:
        with Image.open(folder / "images" / "test" / f"{path.stem}.jpg") as image:
            size = image.size[::-1]
        truths = read_truth(str(path), size)[0]
        first, others = truths[0] / 255, truths[1:]
        counts.append(boundaries.score(first, others, np.array([0.5])))
    assert 0.7 < boundaries.summary(counts, np.array([0.5])).ods.f < 0.95
