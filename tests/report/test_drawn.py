"""Answers over their images: the right colours at the right places, whatever the image's size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vidi.engine.answers import BoundaryMap, DetectedObjects, Prediction, Segmentation
from vidi.engine.flow_fields import FlowField
from vidi.report import overlay
from vidi.report.contact import flow_colours
from vidi.report.detection_pictures import LARGEST
from vidi.report.drawn import NARROWEST, Answer, drawn
from vidi.types import Array, Detections

CLASSES = ("cat", "dog", "a class whose name is longer than any picture is wide, as some are")
COLOURS = np.array([[200, 40, 0], [0, 80, 240], [10, 160, 60]], np.uint8)
BLUE, RED = (0x1F, 0x6F, 0xB4), (0xC8, 0x32, 0x2B)


def grey(h: int = 240, w: int = 320) -> Array:
    return np.full((h, w, 3), 100, np.uint8)


def prediction(probabilities: Any, labels: tuple[str, ...] = ("cat",)) -> Prediction:
    p = np.array(probabilities, np.float64)
    return Prediction("", CLASSES[p.argmax()], float(p.max()), labels, p)


def objects(size: tuple[int, int], scores: Any) -> DetectedObjects:
    h, w = size
    n = len(scores)
    found = Detections(
        xyxy=np.tile(np.array([[w / 4, h / 4, w / 2, h / 2]], np.float32), (n, 1)),
        labels=np.ones(n, np.int64),
        scores=np.array(scores, np.float32),
    )
    return DetectedObjects("", size, found, ("dog",) * n)


def moving(h: int, w: int, by: tuple[float, float] = (3.0, 0.0)) -> FlowField:
    flow = np.empty((h, w, 2), np.float32)
    flow[:] = by
    return FlowField("", "", grey(h, w), grey(h, w), flow)


def halves(h: int, w: int) -> Array:
    mask = np.zeros((h, w), np.uint8)
    mask[:, w // 2 :] = 1
    return mask


def line(h: int, w: int, height: float = 1.0) -> Array:
    """A soft boundary down the middle."""
    apart = np.abs(np.arange(w) + 0.5 - w / 2)
    return np.tile((height * np.exp(-((apart / 2) ** 2))).astype(np.float32), (h, 1))


def near(picture: Array, colour: Any) -> Array:
    return np.asarray(np.abs(picture.astype(int) - np.array(colour)).sum(2) < 12)


def answers(h: int, w: int) -> dict[str, Answer]:
    return {
        "classification": prediction([0.7, 0.2, 0.1]),
        "multilabel": prediction([0.3, 0.2, 0.1], ()),
        "segmentation": Segmentation("", halves(h, w), {"cat": 0.5, "dog": 0.5}),
        "boundaries": BoundaryMap("", line(h, w)),
        "detection": objects((h, w), [0.9]),
        "no detection": objects((h, w), []),
        "flow": moving(h, w),
    }


@pytest.mark.parametrize("task", answers(8, 8))
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (9, 700), (500, 20), (2000, 1500)])
def test_any_answer_about_an_image_of_any_size_is_a_picture_that_can_be_read(
    task: str, size: tuple[int, int]
) -> None:
    picture = drawn(grey(*size), answers(*size)[task], CLASSES, COLOURS)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    # A band or a wheel comes on top of the image's 1600 pixels, and a narrow image has a wide band.
    assert max(picture.shape[:2]) <= 1.25 * LARGEST
    assert max(picture.shape[:2]) >= NARROWEST


def test_bars_are_as_long_as_classes_are_likely_and_what_is_said_is_blue() -> None:
    picture = drawn(grey(), prediction([0.6, 0.3, 0.1]), CLASSES)
    assert (picture[:480, :640] == 100).all(), "the image itself, twice as large"
    band = picture[480:]
    blue, soft = near(band, BLUE), near(band, (172, 178, 187))
    track = near(band, (236, 238, 241))
    row = int(blue.any(1).argmax()) + 3
    whole = int(blue[row].sum() + track[row].sum())
    assert blue[row].sum() / whole == pytest.approx(0.6, abs=0.01)
    tops = np.flatnonzero(np.diff(soft.sum(1)) > whole // 20)
    lengths = [int(soft[top + 3].sum()) for top in tops]
    assert lengths == [pytest.approx(0.3 * whole, abs=4), pytest.approx(0.1 * whole, abs=4)]


@pytest.mark.parametrize("labels", [(), ("dog",), ("cat", "dog")])
def test_of_several_labels_each_has_a_blue_bar(labels: tuple[str, ...]) -> None:
    picture = drawn(grey(), prediction([0.6, 0.55, 0.1], labels), CLASSES)
    rows = near(picture, BLUE).sum(1) > 20
    assert (np.diff(rows.astype(int)) == 1).sum() == len(labels)


def test_as_many_classes_as_are_asked_for() -> None:
    heights = [drawn(grey(), prediction([0.6, 0.3, 0.1]), CLASSES, top=n).shape[0] for n in (1, 2)]
    assert heights[0] < heights[1]
    assert drawn(grey(), prediction([0.6, 0.3, 0.1]), CLASSES, top=9).shape[0] > heights[1]


def test_a_mask_lies_over_its_image_pixel_for_pixel_and_its_classes_are_named() -> None:
    mask = halves(100, 160)
    picture = drawn(grey(100, 160), Segmentation("", mask, {}), CLASSES, COLOURS)
    larger = mask.repeat(4, 0).repeat(4, 1)
    expected = overlay.overlay(grey(400, 640), larger, COLOURS)
    np.testing.assert_array_equal(picture[:400, :640], expected)
    band = picture[400:]
    swatches = [near(band, colour).sum() > 80 for colour in COLOURS]
    assert swatches == [True, True, False]


def test_a_background_is_left_as_it_is() -> None:
    picture = drawn(
        grey(100, 160), Segmentation("", halves(100, 160), {}), ("Background", "dog"), COLOURS
    )
    assert (picture[:400, :310] == 100).all()
    assert not near(picture, COLOURS[0]).any()


def test_masks_of_large_images_are_shrunk_with_them() -> None:
    mask = halves(1200, 4000)
    picture = drawn(grey(1200, 4000), Segmentation("", mask, {}), CLASSES, COLOURS)
    assert picture.shape[1] == LARGEST
    for number, x in ((0, 400), (1, 1200)):
        blend = (100 + COLOURS[number].astype(int)) / 2
        assert near(picture[200:201, x - 300 : x + 300], blend).all()


@pytest.mark.parametrize("size", [(60, 60), (300, 500), (900, 3200)])
def test_lines_are_red_where_the_map_is_and_fainter_where_it_is_less_sure(
    size: tuple[int, int],
) -> None:
    pictures = [
        drawn(grey(*size), BoundaryMap("", line(*size, height)), ()).astype(int)
        for height in (1.0, 0.5, 0.0)
    ]
    redness = [picture[..., 0] - picture[..., 1] for picture in pictures]
    h, w = redness[0].shape
    middle = slice(h // 3, -h // 3)
    across = redness[0][middle].max(0)
    assert abs(int(across.argmax()) - w / 2) < w / 100
    assert across.max() > 60
    assert not redness[0][:, : w // 3].any()
    assert not redness[0][:, -w // 3 :].any()
    assert across.max() > redness[1][middle].max() > 20
    assert not redness[2].any()


def test_objects_that_score_less_are_not_shown_and_words_say_so() -> None:
    image = grey(480, 640)
    shown = drawn(image, objects((480, 640), [0.9, 0.4]), CLASSES, COLOURS)
    assert near(shown, COLOURS[1]).sum() > 500
    np.testing.assert_array_equal(shown, drawn(image, objects((480, 640), [0.9]), CLASSES, COLOURS))
    nothing = drawn(image, objects((480, 640), [0.9, 0.4]), CLASSES, COLOURS, least=0.95)
    assert (nothing[:480] == 100).all()
    assert (nothing[480:] < 100).any(), "words below the image"


def test_flow_has_its_own_pixels_scale_however_large_it_is_shown() -> None:
    rng = np.random.default_rng(0)
    flow = rng.normal(0, 4, (50, 80, 2)).astype(np.float32)
    small = FlowField("", "", grey(50, 80), grey(50, 80), flow)
    picture = drawn(grey(50, 80), small, ())
    most = float(np.percentile(np.hypot(flow[..., 0], flow[..., 1]), 99))
    expected = flow_colours(flow, largest=most).repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(picture[:400, :640], expected)
    large = drawn(grey(900, 2400), moving(900, 2400, (-5.0, 0.0)), ())
    to_the_left = flow_colours(np.array([[[-5.0, 0.0]]]), largest=5.0)[0, 0]
    assert near(large[:600, :LARGEST], to_the_left).all()
