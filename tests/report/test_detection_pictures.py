"""Boxes drawn at their places with names that can be read, and errors told apart by colour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from vidi.report import detection_pictures as pictures
from vidi.report.contact import colours_of
from vidi.report.pictures import GREY
from vidi.tasks.detection import Task
from vidi.types import Array, Boxes, Detections, Sample

CLASSES = ("cell", "bacterium", "a class whose name is longer than any picture is wide")
COLOURS = np.array([[200, 30, 30], [30, 30, 200], [240, 240, 60]], np.uint8)


def grey(h: int = 480, w: int = 640) -> Array:
    return np.full((h, w, 3), 100, np.uint8)


def read(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def found(boxes: Any, labels: Any, scores: Any) -> Detections:
    return Detections(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float32),
    )


def truth(boxes: Any, labels: Any, difficult: Sequence[bool] = ()) -> Boxes:
    n = len(labels)
    return Boxes(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        difficult=np.array(difficult, bool) if difficult else np.zeros(n, bool),
        crowd=np.zeros(n, bool),
    )


def near(picture: Array, colour: Sequence[int]) -> Array:
    apart: Array = np.abs(picture.astype(int) - np.array(colour)).sum(2)
    return np.asarray(apart < 12)


def hexed(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))


def test_a_box_is_drawn_at_its_place() -> None:
    drawn = pictures.draw(grey(), found([(100, 200, 300, 400)], [0], [0.9]), CLASSES, COLOURS)
    assert drawn.shape == (480, 640, 3)
    red = near(drawn, COLOURS[0])
    below = red[230:]  # under the tab
    rows, columns = np.flatnonzero(below.any(1)) + 230, np.flatnonzero(below.any(0))
    assert (columns[0], columns[-1]) == (100, 299)
    assert rows[-1] == 399
    assert (drawn[230:390, 110:290] == 100).all(), "the inside is left"
    tab = red[180:200, 100:150]
    assert tab.mean() > 0.5, "the name stands on its class's colour, over the box"


def test_only_what_is_sure_enough_is_drawn() -> None:
    two = found([(100, 200, 300, 400), (10, 10, 90, 90)], [0, 1], [0.9, 0.4])
    assert not near(pictures.draw(grey(), two, CLASSES, COLOURS), COLOURS[1]).any()
    assert near(pictures.draw(grey(), two, CLASSES, COLOURS, 0.3), COLOURS[1]).sum() > 200
    nothing = pictures.draw(grey(), found([], [], []), CLASSES, COLOURS)
    assert (nothing == 100).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((128, 128), (640, 640)), ((40, 20), (640, 320)), ((480, 640), (480, 640)),
     ((3000, 4000), (1200, 1600)), ((1, 1), (640, 640)), ((1, 5000), (1, 1600))],
)  # fmt: skip
def test_tiny_images_are_enlarged_and_large_ones_shrunk(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    h, w = size
    whole = found([(0, 0, w, h)], [0], [0.9])
    drawn = pictures.draw(grey(h, w), whole, CLASSES, COLOURS)
    assert drawn.shape[:2] == expected
    if min(expected) > 1:
        red = near(drawn, COLOURS[0])
        assert red[:, 0].mean() > 0.9 and red[:, -1].mean() > 0.9, "the box has grown with it"


def test_names_never_leave_the_picture_nor_cover_one_another() -> None:
    rng = np.random.default_rng(0)
    width, height = 640, 480
    for n in (1, 12, 30):
        tabs: list[tuple[int, int, int, int]] = []
        corners = rng.uniform(0, 1, (n, 2)) * [width, height]
        for x, y in corners:
            box = (int(x) - 20, int(y) - 20, int(x) + 20, int(y) + 20)
            size = int(rng.integers(30, 90)), 16
            tabs.append(pictures._place(box, size, (height, width), tabs, 2))
        for left, top, right, bottom in tabs:
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
        covered = sum(
            pictures._common(a, b) for i, a in enumerate(tabs) for b in tabs[i + 1 :]
        ) / sum((t[2] - t[0]) * (t[3] - t[1]) for t in tabs)
        assert covered < 0.05, n


def test_a_name_in_a_corner_is_whole() -> None:
    for box in ((0, 0, 30, 30), (610, 0, 640, 30), (0, 450, 30, 480), (610, 450, 640, 480)):
        one = pictures.draw(grey(), found([box], [2], [0.99]), CLASSES, COLOURS)
        yellow = near(one, COLOURS[2])
        rows, columns = np.flatnonzero(yellow.any(1)), np.flatnonzero(yellow.any(0))
        assert columns[-1] - columns[0] > 150, "22 letters and a score"
        assert 30 <= rows[-1] - rows[0] + 1 < 60


def test_letters_are_dark_on_bright_tabs_and_bright_on_dark_ones() -> None:
    for label, letters in ((2, (0, 0, 0)), (1, (255, 255, 255))):
        box = found([(300, 200, 500, 400)], [label], [0.9])
        drawn = pictures.draw(grey(), box, CLASSES, COLOURS)
        assert near(drawn[180:200], letters).sum() > 20


def test_absurd_boxes_do_no_harm() -> None:
    strange = [(float("nan"), 0, 1, 1), (-1e9, -1e9, 1e9, 1e9), (50, 40, 20, 10), (9, 9, 9, 9)]
    drawn = pictures.draw(grey(), found(strange, [0, 1, 2, 0], [0.9] * 4), CLASSES, COLOURS)
    assert drawn.shape == (480, 640, 3)


def test_letters_of_other_languages() -> None:
    box = found([(300, 200, 500, 400)], [0], [0.9])
    one, other = (pictures.draw(grey(), box, (name,), COLOURS) for name in ("größe", "gröɛe"))
    assert (one != other).any()


SCENE = truth(
    [(20, 20, 100, 100), (200, 20, 280, 100), (380, 20, 460, 100), (20, 200, 100, 280),
     (200, 300, 280, 380)],
    [0, 0, 0, 1, 1],
    [False, False, False, False, True],
)  # fmt: skip


@pytest.mark.parametrize(
    ("box", "label", "kind"),
    [
        ((20, 20, 100, 100), 0, "correct"),
        ((20, 20, 100, 100), 1, "wrong_class"),
        ((60, 20, 140, 100), 0, "poor_box"),
        ((60, 20, 140, 100), 1, "both"),
        ((500, 300, 560, 400), 0, "background"),
    ],
)
def test_each_kind_has_its_colour_on_the_sheet(
    box: tuple[float, ...], label: int, kind: str, tmp_path: Path
) -> None:
    sample = Sample(key="a", image=grey(), boxes=SCENE)
    path = tmp_path / "sheet.png"
    pictures.sheet([(sample, found([box], [label], [0.9]))], CLASSES, path, colours=COLOURS)
    drawn = read(path)
    height, width = drawn.shape[:2]
    panel = drawn[: height - 60, width // 2 :]
    for name in ("correct", "duplicate", "wrong_class", "poor_box", "both", "background"):
        assert (near(panel, hexed(pictures.KIND_COLOURS[name])).sum() > 100) == (name == kind), name
    assert near(panel[30:], (255, 255, 255)).sum() > 100, "what is missed is white"
    left = drawn[: height - 60, : width // 2]
    assert near(left, COLOURS[0]).sum() > 200 and near(left, COLOURS[1]).sum() > 100
    legend = drawn[height - 60 :]
    for colour in pictures.KIND_COLOURS.values():
        assert near(legend, hexed(colour)).sum() > 50


def test_what_is_found_twice_and_what_counts_for_nothing(tmp_path: Path) -> None:
    sample = Sample(key="a", image=grey(), boxes=SCENE)
    path = tmp_path / "sheet.png"
    several = found(
        [(20, 20, 100, 100), (22, 20, 102, 100), (200, 300, 280, 380)], [0, 0, 1], [0.9, 0.8, 0.7]
    )
    pictures.sheet([(sample, several)], CLASSES, path)
    drawn = read(path)
    panel = drawn[: drawn.shape[0] - 60, drawn.shape[1] // 2 :]
    for colour in (pictures.KIND_COLOURS["duplicate"], GREY):
        assert near(panel, hexed(colour)).sum() > 100


def test_boxes_belong_to_the_images_full_size(tmp_path: Path) -> None:
    """A shrunk image with the full one's boxes gives nearly the picture of the full one."""
    rng = np.random.default_rng(0)
    small = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (320, 240))
    large = cv2.resize(small, (1280, 960), interpolation=cv2.INTER_CUBIC)
    boxes = truth([(200, 200, 600, 600)], [0])
    told = found([(200, 220, 600, 600)], [0], [0.9])
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    pictures.sheet([(Sample(key="k", image=large, boxes=boxes), told)], CLASSES, a)
    shrunk = Sample(key="k", image=small, boxes=boxes)
    pictures.sheet([(shrunk, told)], CLASSES, b, sizes=[(960, 1280)])
    one, other = (read(path).astype(int) for path in (a, b))
    assert one.shape == other.shape
    assert (np.abs(one - other).sum(2) > 60).mean() < 0.01


def test_a_sheet_of_images_of_all_sizes(tmp_path: Path) -> None:
    rows = [
        (Sample(key="x/" * 60 + "end", image=grey(*size)), found([(0, 0, 9, 9)], [0], [0.9]))
        for size in ((8, 8), (40, 400), (400, 40), (500, 700), (1200, 900))
    ]
    path = tmp_path / "sheet.png"
    pictures.sheet(rows, CLASSES, path, titles=None)
    picture = read(path)
    assert picture.shape[1] < 2000
    assert picture.shape[0] < 2000


def measured(k: int, seed: int = 0) -> dict[str, list[dict[str, object]]]:
    """The details of a task with k classes, the last of which has no object."""
    rng = np.random.default_rng(seed)
    task = Task(tuple(f"class {i} " + "y" * (i % 30) for i in range(k)))
    meter = task.meter()
    for i in range(10):
        n = 12
        corners = rng.uniform(0, 200, (n, 2))
        boxes = np.concatenate([corners, corners + 40], 1)
        labels = rng.integers(0, max(1, k - 1), n)
        told = boxes + rng.normal(0, 6, (n, 4))
        guess = np.where(rng.random(n) < 0.8, labels, rng.integers(0, k, n))
        one = found(told, guess, np.sort(rng.uniform(0.3, 1, n))[::-1])
        sample = Sample(key=str(i), image=grey(8, 8), boxes=truth(boxes, labels))
        meter.update([one], [sample])
    details: dict[str, list[dict[str, object]]] = json.loads(json.dumps(task.details(meter)))
    return details


@pytest.mark.parametrize("k", [1, 3, 80])
def test_curves_and_errors_of_few_and_many_classes(k: int, tmp_path: Path) -> None:
    """From what JSON keeps of them."""
    details = measured(k)
    for ending in ("png", "svg"):
        path = tmp_path / f"curves.{ending}"
        pictures.precision_recall(details["per_class"], details["curves"], path)
        pictures.errors(details["errors"], details["gains"], tmp_path / f"errors.{ending}")  # type: ignore[arg-type]
    for name in ("curves", "errors"):
        picture = read(tmp_path / f"{name}.png")
        assert picture.std() > 15
        assert max(picture.shape) < 2000


def test_curves_and_errors_of_nothing(tmp_path: Path) -> None:
    task = Task(("a", "b"))
    details = task.details(task.meter())
    pictures.precision_recall(details["per_class"], details["curves"], tmp_path / "a.png")
    pictures.errors(details["errors"], details["gains"], tmp_path / "b.png")


def test_the_curve_drawn_has_the_area_that_the_table_tells() -> None:
    details = measured(3)
    levels = np.linspace(0, 1, 101)
    for row, one in zip(details["per_class"][:2], details["curves"], strict=False):
        curve = pictures._envelope(
            np.array(one["recall"], float), np.array(one["precision"], float), levels
        )
        assert (np.diff(curve) <= 0).all()
        assert curve.mean() == pytest.approx(row["ap50"])


def test_colours_of_the_kinds_are_told_apart() -> None:
    colours = np.array([hexed(c) for c in pictures.KIND_COLOURS.values()])
    apart = np.abs(colours[:, None] - colours).sum(2) + 999 * np.eye(len(colours), dtype=int)
    assert apart.min() > 90
    assert len(colours_of(80)) == 80
