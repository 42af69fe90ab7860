"""Images under a matrix, against a slow plain reference and against slicing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from vidi.data import geometry as g
from vidi.types import Array

FILL = (10, 200, 90)


def noise(h: int, w: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def smooth(h: int, w: int) -> Array:
    """Waves of about 50 pixels: nothing that shrinking to a third could alias or dull."""
    y, x = np.mgrid[:h, :w] + 0.5
    waves = [np.sin(x / 8), np.cos(y / 7), np.sin((x + y) / 11)]
    return np.stack([np.rint(127 + 90 * c) for c in waves], 2).astype(np.uint8)


def reference(image: Array, matrix: Array, size: tuple[int, int], fill: tuple[int, ...]) -> Array:
    """Bilinear interpolation at the mapped-back centre of every target pixel, in plain Python."""
    h, w = size
    back = np.linalg.inv(matrix)
    height, width = image.shape[:2]
    out = np.zeros((h, w, 3))
    for j in range(h):
        for i in range(w):
            x, y, s = back @ (i + 0.5, j + 0.5, 1)
            x, y = x / s - 0.5, y / s - 0.5
            x0, y0 = math.floor(x), math.floor(y)
            for v in (y0, y0 + 1):
                for u in (x0, x0 + 1):
                    weight = (1 - abs(x - u)) * (1 - abs(y - v))
                    inside = 0 <= u < width and 0 <= v < height
                    out[j, i] += weight * np.asarray(image[v, u] if inside else fill, float)
    return out


@pytest.mark.parametrize(
    "matrix",
    [
        g.translation(0.5, -0.25),
        g.about((12, 10), g.rotation(0.4)),
        g.compose(g.scaling(1.3, 0.8), g.translation(2.2, 1.7)),
        g.about((10, 10), g.shear(0.3, -0.1)),
        g.compose(g.flip(24), g.about((12, 10), g.rotation(-2.0)), g.scaling(1.1, 1.2)),
        np.array([[1, 0.1, 2], [0.05, 1.1, -1], [0.002, -0.003, 1]]),
    ],
    ids=["half-pixel", "rotation", "scale", "shear", "flip-rotate-zoom", "perspective"],
)
def test_general_matrix_against_reference(matrix: Array) -> None:
    image = noise(20, 24)
    found = g.warp(image, matrix, (18, 22), FILL)
    expected = reference(image, matrix, (18, 22), FILL)
    # OpenCV rounds to whole levels, and to a few bits within.
    assert np.abs(found - expected).max() <= 1.0


def test_identity_is_bit_identical_and_takes_no_reference() -> None:
    image = noise(17, 31)
    found = g.warp(image, np.eye(3), (17, 31))
    assert np.array_equal(found, image)
    assert not np.shares_memory(found, image)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (4, 0), (8, 8), (3, 7)])
def test_pad_and_crop_is_slicing(x: int, y: int, mirror: bool) -> None:
    image = noise(32, 32)
    padded = np.empty((40, 40, 3), np.uint8)
    padded[...] = FILL
    padded[4:36, 4:36] = image
    expected = padded[y : y + 32, x : x + 32]
    matrix = g.crop((x - 4, y - 4, x + 28, y + 28), (32, 32))
    if mirror:
        matrix, expected = g.compose(matrix, g.flip(32)), expected[:, ::-1]
    assert np.array_equal(g.warp(image, matrix, 32, FILL), expected)


def test_flips() -> None:
    image = noise(20, 30)
    left_right = g.flip(30)
    up_down = g.vertical_flip(20)
    assert np.array_equal(g.warp(image, left_right, (20, 30)), image[:, ::-1])
    assert np.array_equal(g.warp(image, up_down, (20, 30)), image[::-1])
    both = g.compose(left_right, up_down)
    assert np.array_equal(g.warp(image, both, (20, 30)), image[::-1, ::-1])
    twice = g.compose(left_right, left_right)
    assert np.array_equal(g.warp(image, twice, (20, 30)), image)
    back = g.warp(g.warp(image, left_right, (20, 30)), left_right, (20, 30))
    assert np.array_equal(back, image)


def test_flip_of_a_resized_crop_is_the_resized_crop_flipped() -> None:
    image = noise(50, 60)
    cut = g.crop((7, 5, 47, 35), (16, 16))
    straight = g.warp(image, cut, 16)
    assert np.array_equal(g.warp(image, g.compose(cut, g.flip(16)), 16), straight[:, ::-1])


def test_whole_factor_is_the_mean_of_the_areas() -> None:
    image = noise(24, 36)
    found = g.warp(image, g.scaling(1 / 3, 1 / 2), (12, 12))
    means = image.reshape(12, 2, 12, 3, 3).mean((1, 3))
    assert np.abs(found - means).max() <= 0.5 + 1e-9


def test_one_axis_shrinks_by_areas_while_the_other_grows() -> None:
    rows = noise(1, 40)
    image = np.repeat(rows, 10, 0)  # constant along y, so that growing y changes nothing
    found = g.warp(image, g.scaling(0.25, 2), (20, 10))
    means = rows.reshape(1, 10, 4, 3).mean(2)
    assert np.abs(found - means).max() <= 1.0


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("sides", [(20, 20), (27, 24), (40, 38), (28, 12)])
def test_quick_boxes_are_bilinear(sides: tuple[int, int], mirror: bool) -> None:
    h, w = sides
    image = noise(50, 50)
    matrix = g.crop((6, 5, 6 + w, 5 + h), (20, 20))
    if mirror:
        matrix = g.compose(matrix, g.flip(20))
    found = g.warp(image, matrix, (20, 20), quick=True)
    # Beyond the box's outermost centres its outermost pixels go on.
    box = np.pad(image[5 : 5 + h, 6 : 6 + w], ((1, 1), (1, 1), (0, 0)), mode="edge")
    apart = found - reference(box, matrix @ g.translation(5, 4), (20, 20), FILL)
    assert np.abs(apart).max() < 2, "8-bit shares of pixels, rounded twice"
    assert np.abs(apart).mean() < 0.5


@pytest.mark.parametrize("sides", [(41, 20), (20, 41), (12, 44), (20, 20)])
def test_quick_changes_nothing_beyond_its_factor_nor_of_copies(sides: tuple[int, int]) -> None:
    image = noise(50, 50)
    matrix = g.crop((6, 5, 6 + sides[1], 5 + sides[0]), (20, 20))
    assert np.array_equal(g.warp(image, matrix, 20, quick=True), g.warp(image, matrix, 20))
    turned = g.compose(matrix, g.rotation(0.3))
    assert np.array_equal(g.warp(image, turned, 20, quick=True), g.warp(image, turned, 20))


def test_a_marked_spot_goes_where_the_matrix_says() -> None:
    """The centre of mass of a blob, for cuts, mirrors, shrinking and general matrices."""
    matrices = [
        g.crop((8, 4, 72, 68), (32, 32)),
        g.compose(g.crop((8, 4, 72, 68), (32, 32)), g.flip(32)),
        g.crop((10, 20, 60, 70), (64, 64)),
        g.compose(g.crop((0, 0, 80, 80), (32, 32)), g.about((16, 16), g.rotation(0.7))),
        g.compose(g.crop((0, 0, 80, 80), (20, 20)), g.about((10, 10), g.shear(0.2, 0))),
        g.compose(g.crop((0, 0, 80, 80), (40, 40)), g.about((20, 20), g.scaling(1.07, 1.07))),
    ]
    y, x = np.mgrid[:80, :80] + 0.5
    spot = np.array([[41.0, 46.5]])
    blob = np.exp(-((x - spot[0, 0]) ** 2 + (y - spot[0, 1]) ** 2) / (2 * 4**2))
    image = np.rint(255 * np.repeat(blob[..., None], 3, 2)).astype(np.uint8)
    for matrix in matrices:
        size = 64 if matrix[0, 0] > 1 else (20 if abs(matrix[0, 0]) < 0.3 else 40)
        found = g.warp(image, matrix, size)[..., 0].astype(float)
        v, u = np.mgrid[:size, :size] + 0.5
        centre = np.array([[(found * u).sum(), (found * v).sum()]]) / found.sum()
        assert np.abs(centre - g.apply(matrix, spot)).max() < 0.15, matrix


@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_shrinking_is_antialiased(angle: float) -> None:
    """A fine chequerboard becomes grey; bilinear interpolation alone would keep it black, white."""
    y, x = np.mgrid[:240, :240]
    board = np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[..., None], 3, 2)
    shrink = g.compose(g.crop((0.3, 0.3, 240.3, 240.3), (40, 40)))
    matrix = g.compose(shrink, g.about((20, 20), g.rotation(angle)))
    found = g.warp(board, matrix, 40, (127, 127, 127))[4:36, 4:36]
    assert found.min() > 110
    assert found.max() < 145


def test_shrunk_by_a_general_matrix_looks_like_shrunk_by_a_cut() -> None:
    """A hundredth of a pixel makes no visible difference: both ways of warping agree."""
    image = smooth(120, 120)
    whole = g.warp(image, g.crop((6, 9, 102, 105), (32, 32)), 32).astype(int)
    moved = g.warp(image, g.crop((6.01, 9.01, 102.01, 105.01), (32, 32)), 32).astype(int)
    assert np.abs(whole - moved).max() <= 3


def test_what_lies_outside_is_fill() -> None:
    image = noise(16, 16)
    assert (g.warp(image, g.translation(100, 0), 16, FILL) == FILL).all()
    away = g.compose(g.about((8, 8), g.rotation(0.3)), g.translation(-500, 0))
    assert (g.warp(image, away, 16, FILL) == FILL).all()
    far_and_small = g.compose(g.scaling(0.2, 0.2), g.rotation(0.3), g.translation(90, 90))
    assert (g.warp(image, far_and_small, 16, FILL) == FILL).all()
    half = g.warp(image, g.compose(g.scaling(2, 2), g.translation(16, 0)), 32, FILL)
    assert (half[:, :15] == FILL).all()


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (7, 12), (1, 5)])
@pytest.mark.parametrize(
    "way",
    [
        g.crop((-2, 3, 14, 19), (16, 16)),
        g.compose(g.crop((-3, -1, 13, 15), (16, 16)), g.flip(16)),
        g.crop((-30, 5, 2, 37), (16, 16)),
        g.crop((40, -60, 56, -44), (16, 16)),
        g.compose(g.crop((-4, -4, 28, 28), (16, 16)), g.flip(16)),
        g.crop((-4, 2, 4, 10), (16, 16)),
        g.compose(g.translation(4, 2), g.about((8, 8), g.rotation(0.4))),
    ],
    ids=range(7),
)
def test_without_a_fill_the_image_goes_on_mirrored(
    way: Array, shape: tuple[int, int], quick: bool
) -> None:
    """NumPy's reflection, padded so far that the target sees no end of it."""
    image = noise(*shape)
    far = 80
    wide = np.pad(image, ((far, far), (far, far), (0, 0)), mode="reflect")
    expected = g.warp(wide, way @ g.translation(-far, -far), 16, FILL, quick=quick).astype(int)
    found = g.warp(image, way, 16, None, quick=quick)
    # OpenCV interpolates at multiples of 1/32 of a pixel, which round differently from afar.
    assert np.abs(found - expected).max() <= (0 if way[0, 1] == 0 else 16)


@pytest.mark.parametrize("angle", [0.0, 0.02, 0.5])
def test_what_is_mirrored_shrinks_with_the_image(angle: float) -> None:
    """A photograph, half of which the target shows: no other edge is mirrored, whatever is cut."""
    image = smooth(320, 320)
    turn = g.about((16, 16), g.rotation(angle))
    way = g.compose(g.crop((240, 30, 560, 350), (32, 32)), turn)
    wide = np.pad(image, ((400, 400), (400, 400), (0, 0)), mode="reflect")
    expected = g.warp(wide, way @ g.translation(-400, -400), 32, FILL).astype(int)
    found = g.warp(image, way, 32, None)
    assert np.abs(found - expected).mean() < 2


def test_out_is_written_in_place() -> None:
    batch = np.zeros((3, 16, 16, 3), np.uint8)
    image = noise(40, 40)
    ways = [
        g.crop((3, 3, 19, 19), (16, 16)),
        g.compose(g.crop((3, 3, 19, 19), (16, 16)), g.flip(16)),
        g.crop((-2, 0, 14, 16), (16, 16)),
        g.crop((0, 0, 40, 40), (16, 16)),
        g.compose(g.crop((0, 0, 40, 40), (16, 16)), g.flip(16)),
        g.crop((0, 0, 8, 8), (16, 16)),
        g.crop((0, 0, 30, 10), (16, 16)),
        g.compose(g.crop((0, 0, 30, 30), (16, 16)), g.rotation(0.1)),
        np.array([[0.4, 0, 0], [0, 0.4, 0], [1e-4, 0, 1]]),
    ]
    for matrix in ways:
        batch[...] = 0
        expected = g.warp(image, matrix, 16, FILL)
        assert expected.any()
        given = g.warp(image, matrix, 16, FILL, out=batch[1])
        assert given.base is batch
        assert np.array_equal(batch[1], expected)
        assert not batch[0].any()
        assert not batch[2].any()


def test_matrix_helpers() -> None:
    points = np.array([[1.0, 2.0], [3.5, -4.0]])
    assert np.allclose(g.apply(g.rotation(math.pi / 2), points), np.array([[-2, 1], [4, 3.5]]))
    assert np.allclose(g.apply(g.about((1, 2), g.rotation(1.0)), points)[0], [1, 2])
    both = g.compose(g.scaling(2, 3), g.translation(1, 1))
    assert np.allclose(g.apply(both, points), points * [2, 3] + 1)
    assert np.allclose(
        g.apply(g.crop((1, 2, 5, 10), (4, 2)), np.array([[1, 2], [5, 10]])),
        np.array([[0, 0], [2, 4]]),
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_maps_longer_than_opencv_takes(dtype: type) -> None:
    """A panorama's mask, turned a little, equals that of the part in sight."""
    full = np.random.default_rng(0).integers(0, 9, (30, 33_000)).astype(dtype)
    matrix = g.compose(g.translation(-32_900, 0), g.about((20, 15), g.rotation(0.2)))
    found = g.nearest(full, matrix, (30, 40), 7)
    part = g.nearest(full[:, 32_800:], matrix @ g.translation(32_800, 0), (30, 40), 7)
    assert found.dtype == dtype
    # float32 holds these coordinates to 1/256 of a pixel.
    assert (found != part).mean() < 0.02


ASLANT = g.compose(g.about((20, 15), g.rotation(0.7)), g.about((20, 15), g.scaling(1.2, 0.8)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("matrix", [ASLANT, g.shear(0.3, 0), ASLANT @ g.flip(40)], ids=range(3))
def test_labels_are_those_with_most_of_the_spline_about_the_point(
    matrix: Array, dtype: type
) -> None:
    """scipy's quadratic spline, of each label by itself."""
    rng = np.random.default_rng(0)
    # Some labels in spots, and a corner where no pixel is like the one beside it.
    full = rng.integers(0, 4, (15, 20)).repeat(2, 0).repeat(2, 1)
    full[:12, :12] = rng.integers(0, 200, (12, 12))
    full = full.astype(dtype)
    found = g.labels(full, matrix, (30, 40), 250)
    x, y = g.sources(matrix, (30, 40))
    values = np.unique(full)
    sums = np.stack(
        [
            map_coordinates(
                (full == v).astype(float), (y, x), order=2, prefilter=False, mode="nearest"
            )
            for v in values
        ]
    )
    first, second = np.sort(sums, 0)[[-1, -2]]
    inside = g.nearest(np.ones((30, 40), bool), matrix, (30, 40), 0)
    clear = inside & (first - second > 1e-4)
    assert clear[inside].mean() > 0.98
    assert found.dtype == dtype
    assert np.array_equal(found[clear], values[sums.argmax(0)][clear])
    assert (found[~inside] == 250).all() and (~inside).any()
    assert (found != g.nearest(full, matrix, (30, 40), 250))[inside].any()


def test_labels_of_one_pixel_stay_under_a_turn_about_its_centre() -> None:
    full = np.zeros((9, 9), np.uint8)
    full[4, 4] = 3
    for angle in np.linspace(0.1, 6, 20):
        assert np.array_equal(
            g.labels(full, g.about((4.5, 4.5), g.rotation(angle)), (9, 9), 0), full
        )


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64, np.uint64, bool])
def test_maps_of_any_type_under_a_turn(dtype: type) -> None:
    full = np.random.default_rng(0).integers(0, 2, (20, 30))
    expected = g.nearest(full.astype(np.int32), ASLANT, (30, 40), 0)
    found = g.nearest(full.astype(dtype), ASLANT, (30, 40), 0)
    assert found.dtype == dtype
    assert np.array_equal(found, expected.astype(dtype))
    assert (g.labels(np.ones((20, 30), dtype), ASLANT, (30, 40), 1) == 1).all()


def test_labels_under_an_upright_matrix_are_the_nearest() -> None:
    full = np.random.default_rng(0).integers(0, 5, (20, 30)).astype(np.uint8)
    quarter = np.array([[0, -1, 20], [1, 0, 0], [0, 0, 1.0]])
    for matrix in (g.scaling(1.7, 0.6), g.translation(0.3, 2), quarter):
        expected = g.nearest(full, matrix, (20, 30), 255)
        assert np.array_equal(g.labels(full, matrix, (20, 30), 255), expected)


def test_which_matrices_copy() -> None:
    assert g.copies(np.eye(3)) and g.shifts(np.eye(3))
    assert g.shifts(g.translation(-3, 4)) and not g.shifts(g.flip(8))
    assert g.copies(g.compose(g.flip(8), g.vertical_flip(5), g.translation(2, 0)))
    for other in (g.translation(0.5, 0), g.scaling(2, 1), g.rotation(0.1), g.rotation(math.pi / 2)):
        assert not g.copies(other)
    assert g.upright(g.scaling(2, -3)) and not g.upright(g.shear(0.1, 0))
    assert g.upright(np.array([[0, -2, 5], [1, 0, 3], [0, 0, 1.0]]))
    assert not g.affine(np.array([[1, 0, 0], [0, 1, 0], [0.01, 0, 1]]))
