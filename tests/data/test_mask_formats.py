"""Masks in folders and in tables: what they may hold, how it is found, and what is refused."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from vidi.data.class_tables import parse
from vidi.data.dataset import Dataset
from vidi.data.formats import folders, masks, masks_table, table, voc_masks
from vidi.data.open import open_data
from vidi.errors import InputError

SIZE = (6, 8)
NUMBERS = np.arange(48, dtype=np.uint8).reshape(SIZE) % 3


def picture(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def put(path: Path, array: Any, mode: str | None = None, **options: Any) -> None:
    """A mask as Pillow writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, None if mode is None else np.uint8))
    (image if mode is None else image.convert(mode)).save(path, **options)


def one(folder: Path, array: Any, classes: str | None = None, file: str = "classes.txt") -> Dataset:
    """A dataset of one image and one mask."""
    array = np.asarray(array)
    picture(folder / "images/a.jpg", (array.shape[0], array.shape[1]))
    put(folder / "masks/a.png", array)
    if classes is not None:
        (folder / file).write_text(classes)
    return masks.read(str(folder))


def refused(source: Path) -> str:
    with pytest.raises(InputError) as caught:
        masks.read(str(source))
    return str(caught.value)


# --- layouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("{}/images", "{}/masks"), ("{}/imgs", "{}/labels"), ("images/{}", "masks/{}"),
        ("JPEGImages/{}", "annotations/{}"), ("{}", "{}annot"), ("{}", "{}_labels"),
        ("{}/Images", "{}/GT"), ("archive/{}/image", "archive/{}/ground_truth"),
    ],
)  # fmt: skip
def test_layouts_with_splits(tmp_path: Path, images: str, labels: str) -> None:
    for split, names in (("train", "ab"), ("val", "c"), ("test", "de")):
        for name in names:
            picture(tmp_path / images.format(split) / f"{name}.jpg")
            put(tmp_path / labels.format(split) / f"{name}.png", NUMBERS)
    assert folders.sniff(str(tmp_path)) is None
    assert voc_masks.sniff(str(tmp_path)) is None
    found = open_data(tmp_path)
    assert {split: len(ids) for split, ids in found.splits.items()} == {
        "train": 2, "val": 1, "test": 2,
    }  # fmt: skip
    assert found.images.key(3) == images.format("test") + "/d.jpg"
    np.testing.assert_array_equal(found[3].mask, NUMBERS)


def test_without_splits_and_with_names_that_end_differently(tmp_path: Path) -> None:
    for name, mask in (("a", "a_L"), ("b", "b-mask"), ("c_seg", "c_seg"), ("sub/d", "sub/d_gt")):
        picture(tmp_path / f"images/{name}.jpg")
        put(tmp_path / f"masks/{mask}.png", NUMBERS)
    found = masks.read(str(tmp_path))
    assert list(found.splits) == ["train"]
    assert [found.images.key(i) for i in range(4)] == [
        "images/a.jpg", "images/b.jpg", "images/c_seg.jpg", "images/sub/d.jpg",
    ]  # fmt: skip


def test_what_other_formats_own_is_left_to_them(tmp_path: Path) -> None:
    picture(tmp_path / "yolo/images/a.jpg")
    (tmp_path / "yolo/labels").mkdir()
    (tmp_path / "yolo/labels/a.txt").write_text("0 .5 .5 .1 .1")
    assert masks.sniff(str(tmp_path / "yolo")) is None
    for part in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        picture(tmp_path / f"voc/{part}/a.png")
    assert masks.sniff(str(tmp_path / "voc")) is None
    picture(tmp_path / "one/images/a.jpg")
    (tmp_path / "one/masks").mkdir()
    assert masks.sniff(str(tmp_path / "one")) is None


def test_images_without_a_mask_are_left_out_and_named(tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / f"images/{name}.jpg")
    put(tmp_path / "masks/b.png", NUMBERS)
    found = masks.read(str(tmp_path))
    assert len(found) == 1
    assert "2 images have no mask and were left out: images/a.jpg; images/c.jpg." in found.notes


def test_a_split_without_masks_is_left_out_and_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / f"a/{split}/images/x.jpg")
        picture(tmp_path / f"b/images/{split}/x.jpg")
    put(tmp_path / "a/train/masks/x.png", NUMBERS)
    put(tmp_path / "b/masks/train/x.png", NUMBERS)
    found = masks.read(str(tmp_path / "a"))
    assert list(found.splits) == ["train"]
    assert "test has images and no folder of masks, and was left out." in found.notes
    found = masks.read(str(tmp_path / "b"))
    assert list(found.splits) == ["train"]
    assert "images/test has no folder of masks and was left out." in found.notes


def test_masks_without_an_image(tmp_path: Path) -> None:
    one(tmp_path, NUMBERS)
    for i in range(12):
        put(tmp_path / f"masks/x{i:02}.png", NUMBERS)
    text = refused(tmp_path)
    assert "12 masks have no image of their name in images: masks/x00.png" in text
    assert "masks/x09.png and 2 more" in text


def test_two_masks_for_one_image_two_files_of_a_name_two_folders_of_a_split(tmp_path: Path) -> None:
    one(tmp_path / "a", NUMBERS)
    put(tmp_path / "a/masks/a_L.png", NUMBERS)
    assert "images/a.jpg has two masks, a.png and a_L.png" in refused(tmp_path / "a")
    one(tmp_path / "b", NUMBERS)
    put(tmp_path / "b/masks/a.bmp", NUMBERS)
    assert "has two files called a: a.bmp and a.png" in refused(tmp_path / "b")
    for split in ("val", "valid"):
        picture(tmp_path / f"c/{split}/images/a.jpg")
        put(tmp_path / f"c/{split}/masks/a.png", NUMBERS)
    with pytest.raises(InputError, match="two folders for the split val"):
        masks.sniff(str(tmp_path / "c"))


@pytest.mark.parametrize("place", ["", "splits"])
def test_lists_of_splits(tmp_path: Path, place: str) -> None:
    for name in ("a", "b", "c 1", "sub/d", "e"):
        picture(tmp_path / f"images/{name}.jpg")
        put(tmp_path / f"masks/{name}.png", NUMBERS)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "train.txt").write_text("b\nimages/a.jpg masks/a.png\n\n")
    (tmp_path / place / "val.txt").write_text("c 1\nsub/d.jpg\n")
    found = masks.read(str(tmp_path))
    keys = {s: [found.images.key(i) for i in ids] for s, ids in found.splits.items()}
    assert keys == {
        "train": ["images/b.jpg", "images/a.jpg"],
        "val": ["images/c 1.jpg", "images/sub/d.jpg"],
    }
    assert any("1 images are in no list" in n and "e.jpg" in n for n in found.notes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a\ngone\n", r"1 listed samples have no image and mask .* gone \(train.txt, line 2\)"),
        ("a\nbare\n", r"1 listed samples have no image and mask .* bare \(train.txt, line 2\)"),
        ("a\na.jpg\n", r"a is listed in train\.txt, line 1, and again in train\.txt, line 2"),
        ("../a\n", "the path '../a' does not lie in"),
    ],
)
def test_bad_lists_of_splits(tmp_path: Path, text: str, sentence: str) -> None:
    one(tmp_path, NUMBERS)
    picture(tmp_path / "images/bare.jpg")
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(InputError, match=sentence):
        masks.read(str(tmp_path))


def test_a_second_folder_of_masks_is_named(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "images/a.jpg")
        for part in ("masks", "labels"):
            put(tmp_path / split / part / "a.png", NUMBERS)
    assert "labels beside images and masks was passed over." in masks.read(str(tmp_path)).notes


# --- kinds of masks ---------------------------------------------------------------------------


def test_class_numbers_with_and_without_names(tmp_path: Path) -> None:
    found = one(tmp_path / "a", NUMBERS, "sky\nroad\ncar\n")
    assert found.classes == ("sky", "road", "car")
    np.testing.assert_array_equal(found[0].mask, NUMBERS)
    assert found[0].mask.dtype == np.uint8
    with_void = np.where(NUMBERS == 1, 255, NUMBERS)
    found = one(tmp_path / "b", with_void)
    assert found.classes == ("0", "1", "2")
    np.testing.assert_array_equal(found[0].mask, with_void)
    assert any("No classes.txt names the classes" in note for note in found.notes)


def test_one_above_the_last_class_is_void_and_said(tmp_path: Path) -> None:
    found = one(tmp_path / "a", NUMBERS, "sky\nroad\n")
    assert found.classes == ("sky", "road")
    np.testing.assert_array_equal(found[0].mask, np.where(NUMBERS == 2, 255, NUMBERS))
    assert any("The value 2 is one above the last class of classes.txt" in n for n in found.notes)
    # Where 255 is there, that is the void, and 2 is a mistake.
    mask = NUMBERS.copy()
    mask[0, 0] = 255
    with pytest.raises(InputError, match=r"16 pixels have the values 2; there are 2 classes"):
        one(tmp_path / "b", mask, "sky\nroad\n")[0]


def test_a_palette_is_read_by_its_indices(tmp_path: Path) -> None:
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 0, 99]], np.uint8)
    image = Image.fromarray(NUMBERS)
    image.putpalette(colours.ravel().tolist())
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks/a.png")
    picture(tmp_path / "images/a.jpg", SIZE)
    # What OpenCV sees are the colours.
    np.testing.assert_array_equal(
        cv2.imread(str(tmp_path / "masks/a.png"))[..., ::-1], colours[NUMBERS]
    )
    found = masks.read(str(tmp_path))
    assert found.classes == ("0", "1", "2")
    np.testing.assert_array_equal(found[0].mask, NUMBERS)
    np.testing.assert_array_equal(found.palette, colours)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_not_scaled(tmp_path: Path, bits: int) -> None:
    # Pillow cannot write these; OpenCV writes 1 or 8 bits: so byte by byte.
    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    rows = b""
    for row in NUMBERS:
        packed = 0
        for value in row.tolist():
            packed = packed << bits | value
        rows += b"\0" + packed.to_bytes(bits, "big")
    head = struct.pack(">IIBBBBB", 8, 6, bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    picture(tmp_path / "images/a.jpg", SIZE)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a.png").write_bytes(data)
    found = masks.read(str(tmp_path))
    np.testing.assert_array_equal(found[0].mask, NUMBERS)


def test_sixteen_bits_grey_saved_as_colour_and_other_files(tmp_path: Path) -> None:
    for k, array in enumerate((NUMBERS.astype(np.uint16), np.stack([NUMBERS] * 3, 2))):
        np.testing.assert_array_equal(one(tmp_path / str(k), array)[0].mask, NUMBERS)
    for suffix in ("bmp", "tif", "gif", "webp"):
        options = {"lossless": True} if suffix == "webp" else {}
        picture(tmp_path / suffix / "images/a.jpg")
        put(tmp_path / suffix / f"masks/a.{suffix}", NUMBERS, **options)
        np.testing.assert_array_equal(masks.read(str(tmp_path / suffix))[0].mask, NUMBERS)


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_black_and_white(tmp_path: Path, mode: str) -> None:
    white = NUMBERS == 1
    picture(tmp_path / "images/a.jpg")
    put(tmp_path / "masks/a.png", white * 255, mode)
    found = masks.read(str(tmp_path))
    assert found.classes == ("background", "foreground")
    np.testing.assert_array_equal(found[0].mask, white)
    assert any("black and white" in n and "255 is foreground" in n for n in found.notes)


@pytest.mark.parametrize(
    ("names", "classes"),
    [("cell\n", ("background", "cell")), ("nothing\ncell\n", ("nothing", "cell"))],
)
def test_black_and_white_with_names(tmp_path: Path, names: str, classes: tuple[str, ...]) -> None:
    found = one(tmp_path, (NUMBERS == 1).astype(np.uint8) * 255, names)
    assert found.classes == classes
    np.testing.assert_array_equal(found[0].mask, NUMBERS == 1)


def test_black_and_white_where_more_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"nothing but 0 and 255, and classes\.txt names 3 classes"
    ):
        one(tmp_path, (NUMBERS == 1).astype(np.uint8) * 255, "a\nb\nc\n")


def test_a_black_and_white_set_with_another_value(tmp_path: Path) -> None:
    white = (NUMBERS == 1).astype(np.uint8) * 255
    for i in range(300):
        picture(tmp_path / f"images/{i:03}.png")
        put(tmp_path / f"masks/{i:03}.png", white)
    strange = white.copy()
    strange[0, :4] = 7
    put(tmp_path / "masks/002.png", strange)  # of 300, every third is not looked at
    found = masks.read(str(tmp_path))
    assert any("200 of 300 masks hold 0 and 255)" in n for n in found.notes)
    for i in (0, 1, 3, 4):
        found.annotations(i)
    sentence = r"002\.png: 4 pixels have the values 7; the masks are black and white"
    with pytest.raises(InputError, match=sentence):
        found.annotations(2)
    put(tmp_path / "masks/000.png", strange)  # this one is looked at
    again = masks.read(str(tmp_path))
    assert again.classes == ("background", "foreground")
    assert any("1 of them other values too" in n for n in again.notes)


def test_soft_edges_are_no_classes(tmp_path: Path) -> None:
    blob = cv2.circle(np.zeros((64, 64), np.uint8), (30, 32), 18, 255, -1)
    found = one(tmp_path, cv2.resize(blob, (150, 130), interpolation=cv2.INTER_CUBIC))
    assert found.classes == ("background", "foreground")
    with pytest.raises(InputError, match=r"a\.png: .* pixels have the values"):
        found[0]


def test_jpeg_of_black_and_white_but_not_of_numbers(tmp_path: Path) -> None:
    blob = np.zeros((64, 64), np.uint8)
    blob[16:40, 16:48] = 255
    picture(tmp_path / "a/images/a.jpg", (64, 64))
    put(tmp_path / "a/masks/a.jpg", blob, quality=75)
    found = masks.read(str(tmp_path / "a"))
    assert (found[0].mask == (blob > 0)).mean() > 0.99
    assert set(np.unique(found[0].mask)) == {0, 1}
    assert any("JPEG" in note for note in found.notes)
    picture(tmp_path / "b/images/a.jpg")
    put(tmp_path / "b/masks/a.jpg", NUMBERS)
    assert "JPEG changes numbers" in refused(tmp_path / "b")


COLOURS = np.array([[128, 128, 128], [128, 0, 0], [64, 64, 0]], np.uint8)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("label_colors.txt", "128 128 128\tSky\n128 0 0\t\tA house\n64 64 0\tMan\n"),
        ("class_dict.csv", "name,r,g,b\nSky,128,128,128\nA house, 128, 0, 0\nMan,64,64,0\n"),
        ("colors.csv", "id;red;green;blue;class\n0;128;128;128;Sky\n1;128;0;0;A house\n"
                       "2;64;64;0;Man"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nSky:128,128,128::\nA house:128,0,0::\n"
                         "Man:64,64,0::\n"),
        ("classes.txt", "\ufeffSky 128 128 128\nA house 128 0 0\n\nMan 64 64 0\n"),
        ("colors.txt", "128,128,128,Sky\n128,0,0,A house\n64,64,0,Man\n"),
    ],
)  # fmt: skip
def test_colours_with_their_table(tmp_path: Path, file: str, text: str) -> None:
    found = one(tmp_path, COLOURS[NUMBERS], text, file)
    assert found.classes == ("Sky", "A house", "Man")
    np.testing.assert_array_equal(found[0].mask, NUMBERS)
    np.testing.assert_array_equal(found.palette, COLOURS)


def test_void_in_a_table_of_colours_is_ignored_and_names_stay(tmp_path: Path) -> None:
    text = "128 128 128 Sky\n128 0 0 Void\n64 64 0 Man\n"
    found = one(tmp_path, COLOURS[NUMBERS], text, "label_colors.txt")
    assert found.classes == ("Sky", "Man")
    np.testing.assert_array_equal(found[0].mask, np.array([0, 255, 1])[NUMBERS])
    assert any(note.startswith("Void in label_colors.txt is no class") for note in found.notes)
    # The same table beside numbers: its rows are the numbers.
    found = one(tmp_path / "n", NUMBERS, text, "label_colors.txt")
    assert found.classes == ("Sky", "Man")
    np.testing.assert_array_equal(found[0].mask, np.array([0, 255, 1])[NUMBERS])


def test_a_table_of_greys_names_colours_and_not_numbers(tmp_path: Path) -> None:
    found = one(tmp_path, (NUMBERS == 1).astype(np.uint8) * 255, "Man 255 255 255\nSky 0 0 0\n")
    assert found.classes == ("Man", "Sky")
    np.testing.assert_array_equal(found[0].mask, NUMBERS != 1)


def test_colours_without_a_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing says which colour is which class") as caught:
        one(tmp_path, COLOURS[NUMBERS], "Sky\nHouse\nMan\n")
    assert "3 colours in all masks, such as (64, 64, 0)" in str(caught.value)


def test_a_colour_that_no_class_has(tmp_path: Path) -> None:
    text = "128 128 128 Sky\n128 0 0 House\n"
    with pytest.raises(InputError, match=r"masks/a\.png: 16 pixels have the colours \(64, 64, 0\)"):
        one(tmp_path, COLOURS[NUMBERS], text, "label_colors.txt")[0]


def test_values_that_no_class_has(tmp_path: Path) -> None:
    mask = NUMBERS.copy()
    mask[0, :5] = (99, 77, 77, 4, 5)
    found = one(tmp_path, mask, "a\nb\nc\n")  # opening it does not fail: an audit reports them all
    with pytest.raises(InputError, match=r"masks/a\.png: 5 pixels have the values 4, 5, 77, 99; "):
        found[0]


def test_values_beyond_255_are_no_ignored_ones(tmp_path: Path) -> None:
    mask = NUMBERS.astype(np.uint16)
    mask[0, :3] = (300, 511, 255)
    found = one(tmp_path, mask, "a\nb\nc\n")
    with pytest.raises(InputError, match=r"masks/a\.png: 2 pixels have the values 300, 511; "):
        found[0]


def test_one_mask_in_colour_among_numbers(tmp_path: Path) -> None:
    for name, array in (("a", NUMBERS), ("b", COLOURS[NUMBERS])):
        picture(tmp_path / f"images/{name}.jpg")
        put(tmp_path / f"masks/{name}.png", array)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert "the masks are in colour" in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("128 128 128 Sky\nHouse\n", "line 2: 'House'; a name and its red, green and blue"),
        ("128 128 300 Sky\n", r"line 1: the colour of Sky is \(128, 128, 300\)"),
        ("1 1 1 Sky\n1 1 1 Man\n", "Sky and Man have the same colour"),
        ("1 1 1 Sky\n1 1 2 Sky\n", "names Sky twice"),
        ("name,r,g,b\nSky,1,x,1\n", "line 2: 'Sky,1,x,1'"),
        ("name,r,g,b\nSky,1,-3,1\n", "line 2"),
        ("Sky\nMan\nSky\n", "names Sky twice"),
        ("", "names 0 classes"),
        ("\n".join(f"c{i}" for i in range(256)), "names 256 classes"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
    ],
)
def test_bad_tables_of_classes(tmp_path: Path, text: Any, sentence: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=sentence) as caught:
        parse(str(path))
    assert str(path) in str(caught.value)


# --- damaged masks ----------------------------------------------------------------------------


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    one(tmp_path, NUMBERS)
    picture(tmp_path / "images/a.jpg", (7, 9))
    with pytest.raises(InputError, match=r"a\.png has 8 × 6 pixels, and its image 9 × 7"):
        masks.read(str(tmp_path))[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data[:-30], "damaged or cut short"),
        (lambda data: b"", "empty|no image"),
        (lambda data: b"GARBAGE" + data, "b.png"),
    ],
)
def test_damaged_masks(tmp_path: Path, change: Any, sentence: str) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        picture(tmp_path / f"images/{name}.jpg")
        put(tmp_path / f"masks/{name}.png", rng.integers(0, 3, SIZE, dtype=np.uint8))
    path = tmp_path / "masks/b.png"
    path.write_bytes(change(path.read_bytes()))
    found = masks.read(str(tmp_path))
    found[0]
    with pytest.raises(InputError, match=sentence) as caught:
        found[1]
    assert str(path) in str(caught.value)
    (tmp_path / "masks/a.png").unlink()
    assert "none of the masks that were looked at can be read" in refused(tmp_path)


def test_a_huge_declared_size_is_refused_at_once(tmp_path: Path) -> None:
    one(tmp_path, NUMBERS)
    path = tmp_path / "masks/a.png"
    data = bytearray(path.read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    assert "3600 million pixels" in refused(tmp_path)


def test_modes_that_are_no_mask(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    put(tmp_path / "masks/a.tif", NUMBERS.astype(np.float32))
    assert "mode F" in refused(tmp_path) or "bits a channel" in refused(tmp_path)


# --- tables -----------------------------------------------------------------------------------


def rows(folder: Path, text: str, name: str = "t.csv") -> str:
    for stem in "ab":
        picture(folder / f"{stem}.jpg")
        put(folder / f"{stem}.png", NUMBERS)
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_table_of_masks(tmp_path: Path) -> None:
    text = "Image,Mask,Set\na.jpg,a.png,train\nb.jpg,b.png,validation\n"
    source = rows(tmp_path, text)
    assert table.sniff(source) is None
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    found = open_data(source)
    assert found.format == "masks_table"
    assert found.classes == ("x", "y", "z")
    assert {split: ids.tolist() for split, ids in found.splits.items()} == {
        "train": [0],
        "val": [1],
    }
    np.testing.assert_array_equal(found[1].mask, NUMBERS)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,mask\na.jpg,a.png\nb.jpg,gone.png\n", r"1 files are not there.*line 3: gone\.png"),
        ("image,mask\ngone.jpg,a.png\n", r"line 2: gone\.jpg"),
        ("image,mask\na.jpg,\n", "line 2: the mask is empty"),
        ("image,mask\n,a.png\n", "line 2: the image is empty"),
        ("image,mask\na.jpg\n", "line 2: 1 columns were found where the header names 2"),
        ("image,mask\na.jpg,a.png\na.jpg,b.png\n", r"line 3: a\.jpg stands in line 2 too"),
        ("image,mask\na.jpg,../a.png\n", "line 2: the path '../a.png' does not lie in"),
        ("image,mask\n/etc/passwd,a.png\n", "line 2: the path '/etc/passwd' does not lie in"),
        ("image,mask,split\na.jpg,a.png,soon\n", "line 2: 'soon' is no split"),
        ("what,mask\na.jpg,a.png\n", "line 1: 'what,mask' names no column of images"),
        ("image,mask\n", "a header and no rows"),
        ("image,mask\n\"a.jpg,a.png\n", "line 2"),
    ],
)  # fmt: skip
def test_bad_tables_of_masks(tmp_path: Path, text: str, sentence: str) -> None:
    source = rows(tmp_path, text)
    with pytest.raises(InputError, match=sentence) as caught:
        masks_table.read(source)
    assert source in str(caught.value)


# --- the real ones ----------------------------------------------------------------------------


@pytest.mark.skipif("VIDI_DATA" not in os.environ, reason="VIDI_DATA names no folder")
def test_camvid() -> None:
    folder = Path(os.environ["VIDI_DATA"]) / "camvid"
    found = open_data(folder)
    assert (found.task, found.format, len(found.classes)) == ("segmentation", "masks", 11)
    assert [len(found.splits[s]) for s in ("train", "val", "test")] == [367, 101, 233]
    assert any("void" in note for note in found.notes)
    counted = np.zeros(256, np.int64)
    stored = np.zeros(256, np.int64)
    for i in range(0, len(found), 20):
        sample = found[i]
        counted += np.bincount(sample.mask.ravel(), minlength=256)
        image, name = os.path.split(found.images.path(i))  # type: ignore[attr-defined]
        path = Path(image).parent / "masks" / name.replace(".jpg", ".png")
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert raw.shape == sample.image.shape[:2]
        stored += np.bincount(raw.ravel(), minlength=256)
    assert counted[:11].tolist() == stored[:11].tolist()
    assert counted[255] == stored[11] > 0
