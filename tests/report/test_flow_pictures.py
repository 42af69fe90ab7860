"""Flow in colours, against the colour coding as it was published, and the pictures around it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidi.report import flow_pictures
from vidi.report.contact import flow_colours
from vidi.types import Array, Sample

# The coding's six arcs (Baker et al. 2011, and the C code published with it): from red to yellow in
# 15 steps, yellow to green in 6, green to cyan in 4, cyan to blue in 11, blue to magenta in 13 and
# magenta to red in 6; 55 in all. The pixel at angle a = atan2(-v, -u) / pi lies at (a + 1) / 2 * 54
# of them. The eight compass points are then, in whole steps from red:
#   right 0, down-right 6.75, down 13.5, down-left 20.25, left 27, up-left 33.75, up 40.5,
#   up-right 47.25.
# 6.75 of 15 steps from red to yellow are green 0.45; 20.25 lies a quarter into the first step from
# yellow's end (5/6 of the way, red 1/6) to green; and so on.
COMPASS = {
    "right": ((1, 0), (1.0, 0.0, 0.0)),
    "down-right": ((1, 1), (1.0, 6.75 / 15, 0.0)),
    "down": ((0, 1), (1.0, 13.5 / 15, 0.0)),
    "down-left": ((-1, 1), (0.75 / 6, 1.0, 0.0)),
    "left": ((-1, 0), (0.0, 1 - 2 / 11, 1.0)),
    "up-left": ((-1, -1), (0.0, 1 - 8.75 / 11, 1.0)),
    "up": ((0, -1), (4.5 / 13, 0.0, 1.0)),
    "up-right": ((1, -1), (11.25 / 13, 0.0, 1.0)),
}


@pytest.mark.parametrize("name", COMPASS)
def test_the_wheel_at_the_compass_points(name: str) -> None:
    """Full, half and twice the largest motion; the published code cuts its values to whole ones in
    two places, so that it may be two grey levels darker."""
    (u, v), colour = COMPASS[name]
    length = math.hypot(u, v)
    for size in (1.0, 0.5, 2.0):
        flow = np.array([[[u / length * size, v / length * size]]])
        full = np.array(colour)
        expected = full * 0.75 if size > 1 else 1 - size * (1 - full)
        found = flow_colours(flow, largest=1.0 + 1e-9)[0, 0] / 255
        assert np.abs(found - expected).max() <= 2 / 255, (name, size)


def test_the_legend_is_a_wheel_of_the_same_colours() -> None:
    side = 101
    disc = flow_pictures.wheel(side)
    assert disc.shape == (side, side, 3)
    assert disc[50, 50].tolist() == [255, 255, 255], "what rests is white"
    for name, ((u, v), _) in COMPASS.items():
        length = math.hypot(u, v)
        x, y = round(50 + 40 * u / length), round(50 + 40 * v / length)
        flow = np.array([[[(x - 50) / 50.5, (y - 50) / 50.5]]])
        apart = disc[y, x].astype(int) - flow_colours(flow, largest=1.0)[0, 0]
        assert np.abs(apart).max() <= 1, name
    for corner in (disc[0, 0], disc[0, -1], disc[-1, 0], disc[-1, -1]):
        assert corner.tolist() == [255, 255, 255]


def test_a_picture_has_the_flow_and_the_wheel_beside_it() -> None:
    flow = np.zeros((150, 60, 2), np.float32)
    flow[..., 0] = 12
    flow[0, 0] = 1000
    assert flow_pictures.full(flow) == pytest.approx(12)
    shown = flow_pictures.picture(flow)
    assert shown.shape == (150, 60 + 96, 3)
    assert shown[10, 10].tolist() == [255, 0, 0]
    assert np.array_equal(shown[8:88, 68:148], flow_pictures.wheel())
    assert (shown[90:116, 60:] < 128).any(), "the scale is written below"
    low = flow_pictures.picture(np.zeros((8, 9, 2), np.float32))
    assert low.shape == (116, 9 + 96, 3), "room for the wheel beside a flat one"
    assert (low[:8, :9] == 255).all()
    valid = np.zeros((8, 9), bool)
    assert (flow_pictures.picture(np.full((8, 9, 2), np.nan), valid)[:8, :9] == 0).all()


def moved(seed: int, h: int = 60, w: int = 90) -> Sample:
    """A picture, itself 5 pixels to the right, and the flow between the two."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    flow = np.zeros((h, w, 2), np.float32)
    flow[..., 0] = 5
    valid = np.ones((h, w), bool)
    valid[:10] = False
    return Sample(
        key=f"pair {seed}",
        image=image,
        image2=np.roll(image, 5, 1),
        flow=flow,
        flow_valid=valid,
    )


def test_a_sheet_of_predictions(tmp_path: Path) -> None:
    samples = [moved(k, h=60 + 10 * k) for k in range(3)]
    rows: list[tuple[Sample, Array]] = [
        (s, np.asarray(s.flow) + np.float32(k)) for k, s in enumerate(samples)
    ]
    flow_pictures.sheet(rows, tmp_path / "sheet.png", titles=[s.key for s in samples])
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size[0] > 1500
        assert picture.size[1] > 500
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 1000


def test_the_rows_pictures_are_what_they_say() -> None:
    sample = moved(0)
    assert sample.flow is not None
    pictures, said, most = flow_pictures._line(sample, sample.flow + np.float32([3, 4]), "pair 0")
    assert most == pytest.approx(5)
    assert said[0] == "pair 0"
    assert said[4] == "EPE 5.00 px"
    first, second, truth, predicted, error, _ = pictures
    assert np.array_equal(first, sample.image)
    assert np.array_equal(second, sample.image2)
    assert (truth[:10] == 0).all() and truth[20, 20].tolist() == [255, 0, 0]
    assert not np.array_equal(predicted[20], truth[20])
    assert (error[20] == 0).all(), "wrong by more than a quarter of the scale is black"
    perfect = flow_pictures._line(sample, sample.flow, "")[0]
    assert (perfect[4][20] == 255).all()
    assert np.array_equal(perfect[5][:, :85], sample.image[:, :85]), "frame 1 once more"
    assert (perfect[5][:, 86:] == 0).all(), "black where the flow leaves the frame"
