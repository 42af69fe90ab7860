"""BSDS500 and folders of edge maps: what they hold, what they refuse, and their exports.

Oracles: scipy's own .mat reader and writer without the checks, and OpenCV.
"""

import io
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.io

from vidi.data import formats, matfiles
from vidi.data.dataset import ArrayImages, Dataset
from vidi.data.edges import boundaries
from vidi.data.formats import bsds, edge_folders, scenes
from vidi.data.matfiles import load_mat, save_mat
from vidi.data.open import open_data
from vidi.errors import InputError
from vidi.types import Array

NAMES = ("bsds", "edge_folders")
REAL = pytest.mark.skipif("VIDI_DATA" not in os.environ, reason="VIDI_DATA names no folder")


def cells(*annotators: dict[str, Array]) -> Array:
    made = np.empty((1, len(annotators)), object)
    for k, one in enumerate(annotators):
        made[0, k] = one
    return made


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def made(name: str, folder: Path) -> Dataset:
    module = formats.find(name)
    return module.read(module.fake(folder).source)  # type: ignore[no-any-return]


def export(name: str, dataset: Dataset, folder: Path) -> tuple[Dataset, list[str]]:
    folder.mkdir()
    notes = formats.find(name).write(dataset, folder)
    assert [n for n in formats.names() if formats.find(n).sniff(str(folder)) is not None] == [name]
    return formats.find(name).read(str(folder)), notes


# --- .mat -------------------------------------------------------------------------------------

HALF = {"Boundaries": np.eye(3, 4, dtype=np.uint8)}
ONE = {**HALF, "Segmentation": np.arange(12, dtype=np.uint16).reshape(3, 4)}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float64])
def test_what_scipy_writes_is_read(tmp_path: Path, compress: bool, dtype: Any) -> None:
    path = str(tmp_path / "a.mat")
    other = {"Boundaries": HALF["Boundaries"].astype(dtype), "Segmentation": np.ones((3, 4))}
    content = {"more": np.arange(5), "groundTruth": cells(ONE, other), "last": "text"}
    scipy.io.savemat(path, content, do_compression=compress)
    edges, segments = bsds.read_truth(path, (3, 4))
    assert edges.dtype == np.uint8
    assert segments is not None
    assert segments.dtype == np.int32
    np.testing.assert_array_equal(edges, np.stack([np.eye(3, 4) * 255] * 2))
    np.testing.assert_array_equal(segments[0], ONE["Segmentation"])
    assert (segments[1] == 1).all()


def test_what_is_written_is_read_by_scipy_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.mat", "b.mat"):
        save_mat(tmp_path / name, {"groundTruth": cells(ONE, HALF)})
    assert (tmp_path / "a.mat").read_bytes() == (tmp_path / "b.mat").read_bytes()
    assert b"Created on" not in (tmp_path / "a.mat").read_bytes()
    found = scipy.io.loadmat(str(tmp_path / "a.mat"))["groundTruth"]
    assert found.shape == (1, 2)
    assert found[0, 0]["Segmentation"][0, 0].dtype == np.uint16
    np.testing.assert_array_equal(found[0, 0]["Boundaries"][0, 0], HALF["Boundaries"])
    assert found[0, 1].dtype.names == ("Boundaries",)
    assert bsds.read_truth(str(tmp_path / "a.mat"), (3, 4))[1] is None  # one has none


def header(version: int = 0x0100, order: str = "<") -> bytes:
    mark = b"IM" if order == "<" else b"MI"
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", version) + mark


def element(kind: int, content: bytes, order: str = "<") -> bytes:
    padded = content + bytes(-len(content) % 8)
    return struct.pack(f"{order}II", kind, len(content)) + padded


def matrix(kind: int, sides: tuple[int, ...], *inner: bytes, name: bytes = b"groundTruth") -> bytes:
    """An array as the format's specification has it: flags, sizes, name, and what it holds."""
    flags = element(6, struct.pack("<II", kind, 0))
    sizes = element(5, struct.pack(f"<{len(sides)}i", *sides))
    return element(14, b"".join([flags, sizes, element(1, name), *inner]))


def deep(levels: int) -> bytes:
    inner = matrix(6, (0, 0), element(9, b""), name=b"")
    for _ in range(levels):
        inner = matrix(1, (1, 1), inner, name=b"")
    return matrix(1, (1, 1), inner)


FIELDS = struct.pack("<HHI", 5, 4, 4) + element(1, b"ab\0\0")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has 0 bytes and begins with ''"),
        (b"text that is none", "begins with 'text that is'"),
        (header(0x0200), "no MATLAB file of version 5, 6 or 7"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), r"version 7\.3 \(HDF5\), which is not read"),
        (header(0x0200).ljust(512) + b"\x89HDF\r\n\x1a\n", r"version 7\.3"),
        (header(), "holds no groundTruth, but nothing"),
        (header() + b"\x0e\0\0", "cut short: it declares 136 bytes"),
        (header() + struct.pack("<II", 14, 10**9) + bytes(64), "cut short: it declares 1,000,"),
        (header() + element(15, b"no zlib data"), r"damaged \(Error -3"),
        (header() + element(15, zlib.compress(bytes(999))[:-6]), "its data ends too early"),
        (header() + matrix(1, (1, 10**9)), "groundTruth declares 1 × 1,000,000,000 elem"),
        (header() + matrix(1, (2**31 - 1,) * 8), "groundTruth declares 2,147,483,647 × "),
        (header() + matrix(2, (1, 10**9), FIELDS), "declares 1 × 1,000,000,000 elements"),
        (header() + matrix(2, (1, 10**9), struct.pack("<HHI", 5, 4, 4) + element(1, b"")),
         "has no fields"),
        (header() + matrix(6, (10**5, 10**5), element(9, bytes(8))), "declares 100,000 × 100,000"),
        (header() + matrix(6, (-3, 2), element(9, bytes(48))), "declares -3 × 2"),
        (header() + matrix(5, (3, 3), element(5, bytes(8))), "is sparse, complex, an object"),
        (header() + matrix(17, (1, 1)), "is sparse, complex, an object"),
        (header() + matrix(6, (1, 1), element(77, bytes(8))), "of the type 77, which there is not"),
        (header() + matrix(1, (1, 1), element(9, bytes(8))), "of type 9 where an array belongs"),
        (header() + deep(200), "lie too deep in one another"),
        (header() + matrix(6, (1, 1), struct.pack("<II", 9, 64) + bytes(8)), "is damaged"),
        (header() + matrix(6, (2, 2), element(2, bytes(9))), "is damaged"),
        (header() + matrix(6, (1, 1), struct.pack("<HHI", 9, 8, 0)), "is damaged"),
    ],
)  # fmt: skip
def test_bad_mat(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.mat"
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        load_mat(str(path), "groundTruth")
    assert str(path) in str(caught.value)


def test_both_byte_orders_and_small_types(tmp_path: Path) -> None:
    values = np.array([[1, 300], [-2, 70_000], [0, 5]], ">i4")
    flags = element(6, struct.pack(">II", 6, 0), ">")  # doubles, stored as whole numbers
    inner = [flags, element(5, struct.pack(">2i", 3, 2), ">"), element(1, b"x", ">")]
    numbers = element(5, values.tobytes("F"), ">")
    path = tmp_path / "a.mat"
    path.write_bytes(header(order=">") + element(14, b"".join([*inner, numbers]), ">"))
    np.testing.assert_array_equal(scipy.io.loadmat(path)["x"], values)
    np.testing.assert_array_equal(load_mat(str(path), "x"), values)


def test_a_mat_that_is_cut_anywhere(tmp_path: Path) -> None:
    for compress in (False, True):
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, {"groundTruth": cells(ONE)}, do_compression=compress)
        whole = buffer.getvalue()
        path = tmp_path / "a.mat"
        for end in range(0, len(whole), 5):
            path.write_bytes(whole[:end])
            with pytest.raises(InputError, match=r"a\.mat (is|holds)"):
                bsds.read_truth(str(path), (3, 4))


def test_damaged_bytes_anywhere_are_a_sentence_or_numbers(tmp_path: Path) -> None:
    """scipy's own reader ends the whole process at seven of these."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"groundTruth": cells(ONE)}, do_compression=False)
    whole = bytearray(buffer.getvalue())
    path = tmp_path / "a.mat"
    refused = 0
    for at in range(124, len(whole)):
        for value in (0, 255):
            damaged = whole.copy()
            damaged[at] = value
            path.write_bytes(damaged)
            try:
                assert bsds.read_truth(str(path), (3, 4))[0].shape == (1, 3, 4)
            except InputError:
                refused += 1
    assert refused > 100


def test_a_mat_that_expands_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matfiles, "MAX_BYTES", 10_000)
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"groundTruth": np.zeros((100, 101), np.uint8)}, do_compression=True)
    assert path.stat().st_size < 400
    with pytest.raises(InputError, match="expands to more than 10,000"):
        load_mat(str(path), "groundTruth")


# --- BSDS -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"other": np.ones(3)}, "holds no groundTruth, but other"),
        ({"groundTruth": np.ones((3, 4))}, "groundTruth is an array of 4 × 3 float64; a cell"),
        ({"groundTruth": np.empty((1, 0), object)}, "groundTruth is an array of 0 × 1 cells"),
        ({"groundTruth": cells({"Segmentation": np.ones((9, 12))})}, "1: a struct with Boundaries"),
        ({"groundTruth": cells(np.ones((9, 12)))}, "annotator 1: a struct with Boundaries"),
        ({"groundTruth": cells({"Boundaries": np.ones((12, 9))})}, "an array of 9 × 12 .* 12 × 9"),
        ({"groundTruth": cells({"Boundaries": np.full((9, 12), 2)})}, "values other than 0 and 1"),
        ({"groundTruth": cells({"Boundaries": np.full((9, 12), np.nan)})}, "other than 0 and 1"),
        ({"groundTruth": cells({"Boundaries": "text"})}, "annotator 1: Boundaries is a text"),
        ({"groundTruth": cells({"Boundaries": np.ones((9, 12)), "Segmentation": np.ones((9, 11))})},
         "annotator 1: Segmentation is an array of 11 × 9"),
        ({"groundTruth": cells(
            {"Boundaries": np.ones((9, 12)), "Segmentation": np.full((9, 12), np.nan)})},
         "no numbers of segments"),
        ({"groundTruth": cells(
            {"Boundaries": np.ones((9, 12)), "Segmentation": np.full((9, 12), 0.5)})},
         "no whole numbers"),
        ({"groundTruth": cells(
            {"Boundaries": np.ones((9, 12))}, {"Boundaries": np.ones((9, 13))})}, "annotator 2"),
    ],
)  # fmt: skip
def test_bad_annotations(tmp_path: Path, content: dict[str, Any], sentence: str) -> None:
    found = made("bsds", tmp_path)
    path = tmp_path / "groundTruth/train/100.mat"
    scipy.io.savemat(path, content)
    with pytest.raises(InputError, match=sentence) as caught:
        found[0]
    assert str(path) in str(caught.value)


def test_bsds_as_distributed_and_without_splits(tmp_path: Path) -> None:
    inner = tmp_path / "BSR/BSDS500/data"
    made("bsds", inner)
    for other in ("BSR/bench", "BSR/BSDS500/ucm2", "BSR/grouping"):
        (tmp_path / other).mkdir()
    (inner / "images/train/Thumbs.db").write_bytes(b"x")
    for source in (tmp_path, tmp_path / "BSR", tmp_path / "BSR/BSDS500", inner):
        found = open_data(source)
        assert found.format == "bsds"
        assert {s: len(ids) for s, ids in found.splits.items()} == {"train": 2, "val": 1, "test": 1}
    for part in ("images", "groundTruth"):
        shutil.move(inner / part / "train", tmp_path / "flat" / part)
    flat = open_data(tmp_path / "flat", carve_val=False)
    assert [s.key for s in flat] == ["images/100.png", "images/101.png"]
    assert any("without splits" in note for note in flat.notes)


def test_bsds_images_and_annotations_without_each_other(tmp_path: Path) -> None:
    made("bsds", tmp_path)
    (tmp_path / "groundTruth/train/101.mat").unlink()
    found = bsds.read(str(tmp_path))
    assert len(found.splits["train"]) == 1
    assert "1 images have no annotation and were left out: images/train/101.png." in found.notes
    (tmp_path / "images/val/102.png").unlink()
    with pytest.raises(InputError, match=r"no image of their name: groundTruth/val/102\.mat"):
        open_data(tmp_path)
    shutil.rmtree(tmp_path / "images/val")
    with pytest.raises(InputError, match="groundTruth/val/ and no images/val/"):
        open_data(tmp_path)


# --- folders of edge maps ---------------------------------------------------------------------


def put(path: Path, pixels: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


LINES = np.zeros((20, 30), np.uint8)
LINES[:, 12] = LINES[7] = 200
PHOTO = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "edges", "split"),
    [
        ("images/a.jpg", "edges/a.png", "train"),
        ("train/images/a.jpg", "train/edges/a.png", "train"),
        ("images/train/a.jpg", "boundaries/training/a.png", "train"),
        ("img/x/a.jpg", "edge_maps/x/a.png", "train"),
        ("images/a.jpg", "edges/drawn/a.png", "train"),
        ("edges/imgs/train/rgbr/real/a.jpg", "edges/edge_maps/train/rgbr/real/a.png", "train"),
        ("BIPED/edges/imgs/test/rgbr/a.jpg", "BIPED/edges/edge_maps/test/rgbr/a.png", "test"),
    ],
)
def test_layouts(tmp_path: Path, image: str, edges: str, split: str) -> None:
    put(tmp_path / image, PHOTO)
    put(tmp_path / edges, LINES)
    claims = [n for n in formats.names() if formats.find(n).sniff(str(tmp_path)) is not None]
    assert claims == ["edge_folders"]
    found = edge_folders.read(str(tmp_path))
    assert list(found.splits) == [split]
    assert found.images.key(0) == image
    np.testing.assert_array_equal(found[0].edges, LINES[None])
    assert found[0].segments is None


def test_ground_truth_of_thin_lines_is_edges_and_of_regions_is_not(tmp_path: Path) -> None:
    put(tmp_path / "images/a.jpg", PHOTO)
    put(tmp_path / "gt/a.png", LINES)
    assert edge_folders.sniff(str(tmp_path)) is not None
    region = np.zeros((20, 30), np.uint8)
    region[4:15, 5:20] = 255
    for pixels in (region, np.zeros((20, 30), np.uint8), PHOTO):
        put(tmp_path / "gt/a.png", pixels)
        assert edge_folders.sniff(str(tmp_path)) is None
    (tmp_path / "gt/a.png").write_bytes(b"damaged")
    assert edge_folders.sniff(str(tmp_path)) is None


GREY = cv2.cvtColor(LINES, cv2.COLOR_GRAY2BGR)


@pytest.mark.parametrize("pixels", [GREY, np.dstack([GREY, np.full((20, 30), 255, np.uint8)])])
def test_grey_saved_in_colour(tmp_path: Path, pixels: Array) -> None:
    put(tmp_path / "images/a.jpg", PHOTO)
    put(tmp_path / "edges/a.png", pixels)
    np.testing.assert_array_equal(edge_folders.read(str(tmp_path))[0].edges, LINES[None])


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (PHOTO, "is in colour; an edge map is grey"),
        (np.dstack([GREY, LINES]), "partly transparent"),
        (LINES.astype(np.uint16), "has 16 bits a channel"),
        (LINES[:, :29], "has 29 × 20 pixels, and its image 30 × 20"),
    ],
)
def test_bad_maps(tmp_path: Path, pixels: Array, sentence: str) -> None:
    put(tmp_path / "images/a.jpg", PHOTO)
    put(tmp_path / "edges/a.png", pixels)
    with pytest.raises(InputError, match=sentence) as caught:
        edge_folders.read(str(tmp_path))[0]
    assert "edges/a.png" in str(caught.value)


def test_damaged_map(tmp_path: Path) -> None:
    put(tmp_path / "images/a.jpg", PHOTO)
    put(tmp_path / "edges/a.png", np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8))
    found = open_data(tmp_path, carve_val=False)
    path = tmp_path / "edges/a.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    with pytest.raises(InputError, match=r"a\.png is cut short or damaged"):
        found[0]
    path.write_bytes(b"GIF8 or not")
    with pytest.raises(InputError, match=r"edges/a\.png is .*it begins with"):
        found[0]


def test_images_and_maps_without_each_other(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path / f"train/images/{name}.jpg", PHOTO)
    for name in ("a", "b"):
        put(tmp_path / f"train/edges/{name}.png", LINES)
    put(tmp_path / "test/images/d.jpg", PHOTO)
    found = open_data(tmp_path)
    assert len(found) == 2
    assert "1 images have no map and were left out: train/images/c.jpg." in found.notes
    assert "test has no images and maps and was left out." in found.notes
    (tmp_path / "train/images/a.jpg").unlink()
    with pytest.raises(InputError, match=r"1 edge maps have no image .*: train/edges/a\.png"):
        open_data(tmp_path)
    put(tmp_path / "train/images/a.jpg", PHOTO)
    put(tmp_path / "train/images/a.png", PHOTO)
    with pytest.raises(InputError, match="two images called a"):
        open_data(tmp_path)


def test_splits_that_do_not_fit(tmp_path: Path) -> None:
    put(tmp_path / "images/train/a.jpg", PHOTO)
    put(tmp_path / "edges/train/a.png", LINES)
    put(tmp_path / "images/test/b.jpg", PHOTO)
    found = edge_folders.read(str(tmp_path))
    assert "images/test has no maps and was left out." in found.notes
    put(tmp_path / "edges/val/a.png", LINES)
    with pytest.raises(InputError, match="edges/val and no images for it"):
        open_data(tmp_path)
    (tmp_path / "images/training").mkdir()
    with pytest.raises(InputError, match="two folders for the split train"):
        open_data(tmp_path)


# --- exports ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_export_of_what_was_exported_is_the_same(name: str, tmp_path: Path) -> None:
    first = made(name, tmp_path / "made")
    once, notes = export(name, first, tmp_path / "once")
    twice, _ = export(name, once, tmp_path / "twice")
    assert tree(tmp_path / "once") == tree(tmp_path / "twice")
    assert all("no segmentations" in note for note in notes)
    for found in (once, twice):
        assert list(found.splits) == list(first.splits)
        for split in first.splits:
            for a, b in zip(found.split(split), first.split(split), strict=True):
                np.testing.assert_array_equal(a.image, b.image)
                np.testing.assert_array_equal(a.edges, b.edges)
                assert (a.segments is None) == (b.segments is None)
                if b.segments is not None:
                    np.testing.assert_array_equal(a.segments, b.segments)


def test_bsds_as_edge_maps_and_back(tmp_path: Path) -> None:
    first = made("bsds", tmp_path / "made")
    maps, notes = export("edge_folders", first, tmp_path / "maps")
    assert [note[:10] for note in notes] == ["4 samples ", "3 samples "]
    assert "several annotators" in notes[0]
    assert "segmentations" in notes[1]
    for split in first.splits:
        for a, b in zip(maps.split(split), first.split(split), strict=True):
            np.testing.assert_array_equal(a.image, b.image)
            mean = np.asarray(b.edges, np.float64).mean(0)
            assert np.abs(a.edges[0] - mean).max() <= 0.5
    back, notes = export("bsds", maps, tmp_path / "back")
    assert [note.split(" have ")[0] for note in notes] == ["4 samples", "4 samples"]
    assert "between 0 and 255" in notes[0]
    for a, b in zip(back, maps, strict=True):
        np.testing.assert_array_equal(a.edges, np.where(b.edges >= 128, 255, 0))


def test_scenes_as_bsds_lose_nothing(tmp_path: Path) -> None:
    drawn = scenes.read("scenes:boundaries,size=32x40,n=3,val=2,test=1")
    found, notes = export("bsds", drawn, tmp_path / "bsds")
    assert list(found.splits) == ["train", "val", "test"]
    for split in found.splits:
        for a, b in zip(found.split(split), drawn.split(split), strict=True):
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.edges, b.edges)
            if b.segments is not None:
                np.testing.assert_array_equal(a.segments, b.segments)
    assert bool(notes) == (drawn[0].segments is None)


def test_segments_beyond_16_bits_and_below_0(tmp_path: Path) -> None:
    class Truth:
        segments = np.array([[[-1, 5, 70_000] * 3] * 6] * 2, np.int32)

        def fields(self, i: int) -> dict[str, Any]:
            return {"segments": self.segments}

        def digest(self) -> bytes:
            return b""

    first = made("edge_folders", tmp_path / "made")
    pictures = np.zeros((1, 6, 9, 3), np.uint8)
    dataset = Dataset(
        root="x", format="x", task="boundaries", classes=(), labels=None, truth=Truth(),
        images=ArrayImages(pictures, {"train": 1}), splits={"train": np.arange(1)},
    )  # fmt: skip
    found, _ = export("bsds", dataset, tmp_path / "bsds")
    np.testing.assert_array_equal(found[0].segments, Truth.segments)
    np.testing.assert_array_equal(found[0].edges, boundaries(Truth.segments))
    first.truth = None
    with pytest.raises(InputError, match="has no boundaries to be exported"):
        edge_folders.write(first, tmp_path / "none")


# --- the real one -----------------------------------------------------------------------------


@REAL
def test_real_bsds500(tmp_path: Path) -> None:
    source = Path(os.environ["VIDI_DATA"]) / "bsds500"
    found = open_data(source)
    assert found.format == "bsds"
    sizes = {split: len(ids) for split, ids in found.splits.items()}
    assert sizes == {"train": 200, "val": 100, "test": 200}
    counts = []
    for i in range(0, 500, 7):
        truth = found.annotations(i)
        counts.append(len(truth["edges"]))
        # The boundaries of its segments, as BSDS itself drew them.
        np.testing.assert_array_equal(truth["edges"], boundaries(truth["segments"]))
        assert truth["edges"].shape[1:] == found.images.size(i)
    assert min(counts) >= 4
    assert max(counts) <= 9
    path = source / "groundTruth/test/2018.mat"
    raw = scipy.io.loadmat(path)["groundTruth"]
    i = next(k for k in range(500) if found.images.key(k) == "images/test/2018.jpg")
    one = found[i]
    assert len(one.edges) == raw.shape[1]
    for k in range(raw.shape[1]):
        np.testing.assert_array_equal(one.edges[k], raw[0, k]["Boundaries"][0, 0] * 255)
        np.testing.assert_array_equal(one.segments[k], raw[0, k]["Segmentation"][0, 0])
    found.splits = {"test": np.arange(300, 302)}
    again, notes = export("bsds", found, tmp_path / "again")
    assert notes == []
    np.testing.assert_array_equal(again[0].segments, found[300].segments)
    name = found.images.key(300)
    assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes()


@REAL
def test_all_of_bsds500_has_four_to_nine_annotators() -> None:
    source = Path(os.environ["VIDI_DATA"]) / "bsds500"
    counts: set[int] = set()
    for path in (source / "groundTruth").glob("*/*.mat"):
        counts.add(load_mat(str(path), "groundTruth").size)
    assert counts == {4, 5, 6, 7, 8, 9}
    assert bsds.sniff(str(source.parent / "bsds-bench")) is None
