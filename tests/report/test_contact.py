"""Labels drawn on samples: at their place, in their colours, and readable in any size."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from vidi.data.open import open_data
from vidi.report import contact
from vidi.types import Array, Boxes, Sample


def grey(h: int = 60, w: int = 80) -> Array:
    return np.full((h, w, 3), 100, np.uint8)


def one_box(xyxy: tuple[float, ...], label: int = 0) -> Boxes:
    no = np.zeros(1, bool)
    return Boxes(
        xyxy=np.array([xyxy], np.float32), labels=np.array([label]), difficult=no, crowd=no
    )


def test_classes_have_colours_of_their_own() -> None:
    for k in (2, 21, 90):
        colours = contact.colours_of(k)
        assert colours.shape == (k, 3)
        assert colours.dtype == np.uint8
        assert len(np.unique(colours, axis=0)) == k
        apart = np.abs(np.diff(colours.astype(int), axis=0)).sum(1)
        assert apart.min() > 100, "neighbours in number are told apart"
    palette = np.arange(30, dtype=np.uint8).reshape(10, 3)
    np.testing.assert_array_equal(contact.colours_of(4, palette), palette[:4])


def test_a_box_is_drawn_at_its_place() -> None:
    colours = np.array([[10, 200, 10]], np.uint8)
    sample = Sample(key="a", image=grey(), boxes=one_box((20, 10, 50, 40)))
    drawn = contact.tile(sample, ("cell",), colours)
    changed = (drawn != 100).any(2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    for got, expected in zip((*rows[[0, -1]], *columns[[0, -1]]), (10, 39, 20, 49), strict=True):
        assert abs(int(got) - expected) <= 3
    assert not changed[18:32, 28:42].any(), "the inside is left"
    green = (np.abs(drawn.astype(int) - (10, 200, 10)).sum(2) < 20).sum()
    assert green > 60


def test_boxes_move_with_the_shrinking() -> None:
    large = np.full((1000, 2000, 3), 100, np.uint8)
    sample = Sample(key="a", image=large, boxes=one_box((1000, 500, 1500, 1000)))
    drawn = contact.tile(sample, ("cell",), contact.colours_of(1))
    assert drawn.shape == (160, 320, 3)
    columns = np.flatnonzero((drawn != 100).any(2).any(0))
    assert abs(int(columns[0]) - 160) <= 3
    assert abs(int(columns[-1]) - 239) <= 3


def test_a_box_of_nothing_is_seen_and_absurd_ones_do_no_harm() -> None:
    colours = contact.colours_of(1)
    dot = Sample(key="a", image=grey(), boxes=one_box((30, 30, 31, 31)))
    assert ((contact.tile(dot, ("cell",), colours) != 100).any(2)).sum() > 60
    for xyxy in ((float("nan"), 0, 1, 1), (-1e9, -1e9, 1e9, 1e9), (50, 40, 20, 10)):
        sample = Sample(key="a", image=grey(), boxes=one_box(xyxy, label=7))
        assert contact.tile(sample, ("cell",), colours).shape == (60, 80, 3)


def test_a_mask_is_laid_over_the_image() -> None:
    colours = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[:, 40:] = 1
    mask[30:, :] = 255
    mask[0, 0] = 9
    image = grey()
    drawn = contact.overlaid(image, mask, colours, weight=0.5)
    assert drawn[10, 10].tolist() == [178, 50, 50]
    assert drawn[10, 60].tolist() == [50, 50, 178]
    assert drawn[0, 0].tolist() == [0, 0, 0], "no class"
    hatched = (drawn[30:] == 255).all(2)
    assert 0.2 < hatched.mean() < 0.5
    assert (drawn[30:][~hatched] == 100).all(), "between the hatching, the image"
    bare = contact.overlaid(image, mask, colours, bare=0)
    assert bare[10, 10].tolist() == [100, 100, 100]


def test_flow_has_the_colours_of_the_wheel() -> None:
    """Against the 55 colours and orientations of Baker et al.'s own coding."""
    right, left = np.zeros((1, 1, 2)), np.zeros((1, 1, 2))
    right[..., 0], left[..., 0] = 1, -1
    assert contact.flow_colours(right, largest=1.0)[0, 0].tolist() == [255, 0, 0], "red is right"
    there = contact.flow_colours(left, largest=1.0)[0, 0].astype(int)
    assert there[0] == 0 and there[2] == 255 and there[1] > 120, "left is cyan to blue"
    down = np.array([[[0.0, 1.0]]])
    found = contact.flow_colours(down, largest=1.0)[0, 0].astype(int)
    assert found[0] > 200 and found[1] > 200 and found[2] == 0, "yellow is down"
    assert contact.flow_colours(0 * right, largest=1.0)[0, 0].tolist() == [255, 255, 255]
    half = contact.flow_colours(right / 2, largest=1.0)[0, 0].tolist()
    assert half == [255, 128, 128]
    bad = contact.flow_colours(np.array([[[np.nan, 1.0], [1.0, 0.0]]]), np.array([[True, False]]))
    assert (bad == 0).all(), "unknown is black"
    assert len(contact._wheel()) == 55


def test_thin_boundaries_outlive_the_shrinking() -> None:
    edges = np.zeros((2, 900, 900), np.uint8)
    edges[:, 450], edges[0, :, 101] = 255, 255
    sample = Sample(key="a", image=np.full((900, 900, 3), 100, np.uint8), edges=edges)
    drawn = contact.tile(sample, (), contact.colours_of(0))
    assert drawn.shape == (320, 644, 3)
    red = (drawn[:, :320].astype(int) @ (1, -1, 0)) > 100
    assert red[160].all()
    assert red[:, 36].all()
    assert red.mean() < 0.01
    both, one = int(drawn[160, 324 + 200, 0]), int(drawn[10, 324 + 36, 0])
    assert both == 0, "all annotators: black"
    assert 120 <= one <= 135, "one of two: grey"


@pytest.mark.parametrize("task", ["detection", "segmentation", "flow", "boundaries"])
def test_a_sheet_of_every_task(task: str, tmp_path: Path) -> None:
    data = open_data(f"scenes:{task},size=48x64,n=5,val=1,test=0")
    samples = list(data.split("train"))
    path = tmp_path / "sheet.png"
    captions = [s.key + "\n" + "a long caption " * 20 for s in samples]
    contact.sheet(samples, captions, data.classes, path, title="five $cenes_of " * 12)
    picture = cv2.imread(str(path))
    assert picture.shape[1] > 900
    assert picture.std() > 20


def test_a_sheet_of_images_of_all_sizes(tmp_path: Path) -> None:
    sizes = ((8, 8), (40, 400), (400, 40), (500, 700))
    samples = [Sample(key=str(s), image=grey(*s), label=0) for s in sizes]
    path = tmp_path / "sheet.png"
    contact.sheet(samples, ["cat"] * 4, ("cat",), path)
    assert cv2.imread(str(path)).shape[1] > 900
