"""Segmentations as pictures and files: right colours at right pixels, numbers that come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidi.data import mask_files
from vidi.data.open import open_data
from vidi.report import overlay
from vidi.types import Array

CLASSES = ("background", "cat", "dog")
COLOURS = np.array([[0, 0, 0], [200, 40, 0], [0, 80, 240]], np.uint8)


def grey(h: int = 40, w: int = 60) -> Array:
    return np.full((h, w, 3), 100, np.uint8)


def halves(h: int = 40, w: int = 60) -> Array:
    mask = np.ones((h, w), np.uint8)
    mask[:, w // 2 :] = 2
    return mask


def test_colours_are_the_datas_own_where_it_has_them() -> None:
    own = np.arange(12, dtype=np.uint8).reshape(4, 3)
    np.testing.assert_array_equal(overlay.palette(3, own), own[:3])
    chosen = overlay.palette(30, own)
    assert chosen.shape == (30, 3) and len(np.unique(chosen, axis=0)) == 30
    index = overlay.index_palette(own)
    np.testing.assert_array_equal(index[:4], own)
    # VOC's, as its development kit lists them: chair, cow, the border of objects.
    np.testing.assert_array_equal(index[[9, 10, 255]], [[192, 0, 0], [64, 128, 0], [224, 224, 192]])


def test_an_overlay_blends_and_has_thin_borders() -> None:
    drawn = overlay.overlay(grey(), halves(), COLOURS, alpha=0.5)
    assert drawn.dtype == np.uint8
    for number, side in ((1, slice(0, 29)), (2, slice(31, 60))):
        blend = (100 + COLOURS[number].astype(float)) / 2
        assert (np.abs(drawn[:, side] - blend) <= 0.5).all()
    assert (drawn[:, 29] == COLOURS[1]).all() and (drawn[:, 30] == COLOURS[2]).all()
    faint = overlay.overlay(grey(), halves(), COLOURS, alpha=0.25)
    np.testing.assert_array_equal(faint[0, 0], [125, 85, 75])


def test_what_is_ignored_is_the_image_hatched_and_no_class_is_magenta() -> None:
    for kind in (np.uint8, np.int32):
        mask = np.zeros((40, 60), kind)
        mask[:20] = 255
        mask[30:] = 7
        drawn = overlay.overlay(grey(), mask, COLOURS, bare=0)
        ignored = drawn[:18].reshape(-1, 3)
        assert set(map(tuple, ignored.tolist())) == {(100, 100, 100), (255, 255, 255)}
        assert (ignored == 255).all(1).mean() == pytest.approx(1 / 3, abs=0.02)
        assert (drawn[22:28] == 100).all(), "the background is left as it is"
        assert (np.abs(drawn[32:].astype(int) - (178, 50, 178)) <= 1).all()


def test_strips_leave_no_seams() -> None:
    """A large image is painted in parts: the same as a column of it, painted at once."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3 * overlay.STRIP + 5, 40, 3), dtype=np.uint8)
    mask = np.kron(rng.integers(0, 3, (97, 5)), np.ones((8, 8), int))[: len(image)].astype(np.uint8)
    mask[500:520] = 255
    whole = overlay.overlay(image, mask, COLOURS)
    part = slice(150, 350)  # a seam within
    alone = overlay.overlay(image[part], mask[part], COLOURS)
    np.testing.assert_array_equal(alone[1:-1], whole[part][1:-1])


def test_borders_of_large_images_are_wide_enough_to_be_seen() -> None:
    mask = halves(20, 2 * overlay.SHOWN)
    drawn = overlay.overlay(grey(*mask.shape), mask, COLOURS)
    assert (drawn[10] == COLOURS[1]).all(1).sum() == 1 + 2


def test_wrong_pixels_are_red_and_ignored_ones_count_for_nothing() -> None:
    truth, prediction = halves(), halves()
    prediction[5:9, 3:7] = 2
    truth[30:] = 255
    prediction[30:] = 0
    drawn = overlay.wrong_pixels(grey(), truth, prediction)
    red = (drawn[..., 0] > 180) & (drawn[..., 1] < 80)
    np.testing.assert_array_equal(np.argwhere(red), np.argwhere(np.pad(np.ones((4, 4)), ((5, 31),
        (3, 53)))))  # fmt: skip
    assert (drawn[30:] == 255).any()
    np.testing.assert_array_equal(drawn[0, 0], [155, 155, 155])


def test_the_legend_has_the_classes_that_occur_and_their_shares() -> None:
    mask = np.full((10, 10), 255, np.uint8)
    mask[:2] = 2
    mask[2:8, :5] = 0
    assert overlay.legend(mask, CLASSES) == [(0, "background", 0.6), (2, "dog", 0.4)]
    assert overlay.legend(np.full((3, 3), 255, np.uint8), CLASSES) == []
    many = np.array([[255, 299, 299, 3]], np.int32)
    found = overlay.legend(many, [f"c{i}" for i in range(300)])
    assert [name for _, name, _ in found] == ["c299", "c3"]


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_index_files_are_read_back_the_same(tmp_path: Path, kind: type) -> None:
    mask = np.random.default_rng(1).integers(0, 21, (33, 47)).astype(kind)
    mask[4:9] = 255
    overlay.save_index_png(tmp_path / "a.png", mask, COLOURS)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image), mask)
        shown = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(shown[mask == 1], np.tile(COLOURS[1], ((mask == 1).sum(), 1)))
    picture = mask_files.load(str(tmp_path / "a.png"), size=(33, 47))
    assert picture.kind == "palette"
    np.testing.assert_array_equal(picture.values, mask)


def test_more_than_256_classes_take_16_bits(tmp_path: Path) -> None:
    mask = np.arange(600, dtype=np.int32).reshape(20, 30)
    overlay.save_index_png(tmp_path / "a.png", mask)
    picture = mask_files.load(str(tmp_path / "a.png"))
    assert picture.kind == "grey"
    np.testing.assert_array_equal(picture.values, mask)
    # Also where a mask happens to have none above 255.
    overlay.save_index_png(tmp_path / "b.png", mask[:5], overlay.palette(600))
    assert (tmp_path / "b.png").read_bytes()[24] == 16, "PNG's field of bits"
    np.testing.assert_array_equal(mask_files.load(str(tmp_path / "b.png")).values, mask[:5])


def test_predictions_of_a_run_are_a_folder_of_masks(tmp_path: Path) -> None:
    """Saved beside their images, they are read as a dataset, number for number."""
    rng = np.random.default_rng(2)
    masks = [rng.integers(0, 3, (12, 14)).astype(np.uint8) for _ in range(4)]
    for folder in ("images", "masks"):
        (tmp_path / "set" / "train" / folder).mkdir(parents=True)
    (tmp_path / "set" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for i, mask in enumerate(masks):
        pixels = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / "train" / "images" / f"{i}.png")
        overlay.save_index_png(tmp_path / "set" / "train" / "masks" / f"{i}.png", mask, COLOURS)
    data = open_data(str(tmp_path / "set"))
    assert data.classes == CLASSES
    assert data.palette is not None
    np.testing.assert_array_equal(data.palette[:3], COLOURS)
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(data[i].mask, mask)


def pixels_of(path: Path) -> Array:
    with Image.open(path) as image:
        return np.array(image.convert("RGB")).astype(int)


def share_of(picture: Array, colour: tuple[int, int, int]) -> float:
    return float((np.abs(picture - colour).max(2) <= 6).mean())


def test_a_prediction_is_drawn_with_its_legend(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    mask = halves(90, 120)
    overlay.prediction_picture(grey(90, 120), mask, CLASSES, COLOURS, path)
    picture = pixels_of(path)
    assert share_of(picture, (150, 70, 50)) > 0.3
    assert share_of(picture, (50, 90, 170)) > 0.3
    assert share_of(picture, (200, 40, 0)) > 0.0005, "the swatch"
    truth = mask.copy()
    truth[:45] = 0
    overlay.prediction_picture(grey(90, 120), mask, CLASSES, COLOURS, path, truth=truth)
    beside = pixels_of(path)
    assert share_of(beside, (100, 100, 100)) > 0.1, "the background is bare"
    assert share_of(beside, (0xC8, 0x32, 0x2B)) == pytest.approx(1 / 6, abs=0.05)


def test_a_sheet_has_a_row_for_each_sample_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    sizes = ((90, 120), (20, 30), (30, 200))
    images, truths = [grey(*size) for size in sizes], [halves(*size) for size in sizes]
    wrong = [3 - truth for truth in truths]
    overlay.segmentation_sheet(images, truths, wrong, CLASSES, COLOURS, path, titles="abc")
    picture = pixels_of(path)
    assert share_of(picture, (0xC8, 0x32, 0x2B)) > 0.1
    # Each row's last panel is red from its top to its end.
    red = (np.abs(picture - (0xC8, 0x32, 0x2B)).max(2) <= 6).any(1)
    assert (np.diff(red.astype(int)) == 1).sum() == len(sizes)


def test_many_classes_have_a_legend_of_the_largest(tmp_path: Path) -> None:
    classes = [f"class number {i}" for i in range(90)]
    mask = (np.arange(90 * 90).reshape(90, 90) % 90).astype(np.uint8)
    colours = overlay.palette(90)
    path = tmp_path / "a.png"
    overlay.prediction_picture(grey(90, 90), mask, classes, colours, path)
    assert pixels_of(path).shape[0] < 2500


def test_no_class_at_all_is_a_picture_without_a_legend(tmp_path: Path) -> None:
    ignored = np.full((20, 30), 255, np.uint8)
    overlay.prediction_picture(grey(20, 30), ignored, CLASSES, COLOURS, tmp_path / "a.png", ignored)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_on_real_scenes(real_data: Path, tmp_path: Path) -> None:
    data = open_data(str(real_data / "camvid"))
    colours = overlay.palette(len(data.classes), data.palette)
    samples = [data[i] for i in (0, 350)]
    masks = [sample.mask for sample in samples if sample.mask is not None]
    assert len(masks) == 2
    shifted = [np.where(mask == 255, 0, np.roll(mask, 5, 1)) for mask in masks]
    path = tmp_path / "sheet.png"
    overlay.segmentation_sheet(
        [s.image for s in samples], masks, shifted, data.classes, colours, path
    )
    assert 0.001 < share_of(pixels_of(path), (0xC8, 0x32, 0x2B)) < 0.1
    overlay.save_index_png(tmp_path / "mask.png", masks[0], data.palette)
    np.testing.assert_array_equal(mask_files.load(str(tmp_path / "mask.png")).values, masks[0])
