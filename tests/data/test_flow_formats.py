"""Flow's files and formats: what they hold, what they refuse, and that exports read back the same.

Oracles: OpenCV's own .flo reader and writer, its unchanged read of PNG, and numbers by hand.
"""

import dataclasses
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from vidi.data import formats
from vidi.data.dataset import ArrayImages, Dataset
from vidi.data.flowfiles import read_flo, read_kitti, write_flo, write_kitti
from vidi.data.formats import flow_folders, flying_chairs, kitti_flow, middlebury, scenes, sintel
from vidi.data.images import InputError
from vidi.data.open import open_data
from vidi.types import Array

NAMES = ("flying_chairs", "flow_folders", "kitti_flow", "middlebury", "sintel")
REAL = pytest.mark.skipif("VIDI_DATA" not in os.environ, reason="VIDI_DATA names no folder")


def some_flow(size: tuple[int, int] = (5, 7), seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 20, (*size, 2)).astype(np.float32)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- .flo -------------------------------------------------------------------------------------


def test_flo_is_opencvs(tmp_path: Path) -> None:
    flow = some_flow()
    cv2.writeOpticalFlow(str(tmp_path / "a.flo"), flow)
    found, valid = read_flo(str(tmp_path / "a.flo"))
    np.testing.assert_array_equal(found, flow)
    assert valid.all()
    write_flo(tmp_path / "b.flo", flow)
    assert (tmp_path / "b.flo").read_bytes() == (tmp_path / "a.flo").read_bytes()
    np.testing.assert_array_equal(cv2.readOpticalFlow(str(tmp_path / "b.flo")), flow)


def test_flo_beyond_1e9_is_unknown(tmp_path: Path) -> None:
    flow = some_flow()
    flow[0, 0] = 1666666752, 1666666752  # as Middlebury's files have it
    flow[1, 2, 0] = -1.0001e9
    flow[2, 3, 1] = 1e9  # not beyond
    cv2.writeOpticalFlow(str(tmp_path / "a.flo"), flow)
    found, valid = read_flo(str(tmp_path / "a.flo"))
    assert np.argwhere(~valid).tolist() == [[0, 0], [1, 2]]
    assert not found[~valid].any()
    np.testing.assert_array_equal(found[valid], flow[valid])
    write_flo(tmp_path / "b.flo", found, valid)
    assert (cv2.readOpticalFlow(str(tmp_path / "b.flo"))[~valid] > 1e9).all()


def flo(width: int, height: int, magic: bytes = b"PIEH", floats: int | None = None) -> bytes:
    n = 2 * width * height if floats is None else floats
    return magic + struct.pack("<ii", width, height) + bytes(4 * n)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "begins with nothing and has 0 bytes"),
        (b"PIEH\1\0", "is no .flo file"),
        (flo(2, 3, b"PIEX"), r"begins with 50 49 45 58 .* 50 49 45 48 \(the number 202021.25\)"),
        (flo(2, 3, b"HEIP"), "big-endian"),
        (flo(2, 3, floats=11), "cut short: it declares 2 × 3 pixels, for which 60 bytes"),
        (flo(2, 3, floats=13), "longer than it should be: .* 60 bytes are expected, and has 64"),
        (flo(2**31 - 1, 2**31 - 1, floats=4), "cut short: it declares 2,147,483,647 ×"),
        (flo(0, 3, floats=0), "declares 0 × 3 pixels"),
        (flo(-2, -3, floats=12), "declares -2 × -3 pixels"),
    ],
)
def test_bad_flo(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.flo"
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        read_flo(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_flo_that_is_not_finite(tmp_path: Path, value: float) -> None:
    flow = some_flow()
    flow[3, 4, 1] = flow[4, 0, 0] = value
    write_flo(tmp_path / "a.flo", flow)
    with pytest.raises(InputError, match=r"a\.flo: .* at x = 4, y = 3, and not finite at 2 pixels"):
        read_flo(str(tmp_path / "a.flo"))


# --- KITTI's PNG ------------------------------------------------------------------------------


def test_kitti_png_is_as_its_readme_says(tmp_path: Path) -> None:
    u = np.array([[32768, 32769, 0, 65535]], np.uint16)
    v = np.array([[32704, 32768, 65535, 1]], np.uint16)
    known = np.array([[1, 1, 1, 0]], np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([known, v, u]))  # OpenCV has blue first
    flow, valid = read_kitti(str(tmp_path / "a.png"))
    assert valid.tolist() == [[True, True, True, False]]
    assert flow.dtype == np.float32
    assert flow.tolist() == [[[0, -1], [1 / 64, 0], [-512, 32767 / 64], [0, 0]]]


def test_kitti_holds_what_it_can_and_counts_the_rest(tmp_path: Path) -> None:
    flow = np.zeros((1, 6, 2), np.float32)
    flow[0, :, 0] = [-512, -512.005, 511.984375, 512, 0.01, 1000]
    valid = np.array([[True] * 5 + [False]])
    rounded, beyond = write_kitti(tmp_path / "a.png", flow, valid)
    assert (rounded, beyond) == (1 + 1, 1)  # -512.005 becomes -512; 512 cannot be held
    found, known = read_kitti(str(tmp_path / "a.png"))
    assert known.tolist() == [[True, True, True, False, True, False]]
    assert found[0, :, 0].tolist() == [-512, -512, 511.984375, 0, 1 / 64, 0]


@pytest.mark.parametrize("pixels", [
    np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint16), np.zeros((4, 5, 4), np.uint16),
])  # fmt: skip
def test_kitti_flow_of_another_kind_of_png(tmp_path: Path, pixels: Array) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    with pytest.raises(InputError, match=r"a\.png is a PNG of mode .* three channels with 16 bits"):
        read_kitti(str(tmp_path / "a.png"))


def test_damaged_kitti_flow(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_kitti(path, some_flow((40, 50)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.png is cut short or damaged"):
        read_kitti(str(path))
    path.write_bytes(whole[:16] + struct.pack(">II", 2**30, 2**30) + whole[24:])
    with pytest.raises(InputError, match=r"million pixels|damaged"):
        read_kitti(str(path))
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="begins with 'no picture'"):
        read_kitti(str(path))


# --- the formats ------------------------------------------------------------------------------


def made(name: str, folder: Path) -> Dataset:
    module = formats.find(name)
    return module.read(module.fake(folder).source)  # type: ignore[no-any-return]


def export(name: str, dataset: Dataset, folder: Path) -> tuple[Dataset, list[str]]:
    folder.mkdir()
    notes = formats.find(name).write(dataset, folder)
    assert [n for n in formats.names() if formats.find(n).sniff(str(folder)) is not None] == [name]
    return formats.find(name).read(str(folder)), notes


def compare(found: Dataset, expected: Dataset, *, precision: float = 0, occluded: bool) -> None:
    """The samples of each split, in order."""
    assert list(found.splits) == [s for s in ("train", "val", "test") if s in expected.splits]
    for split in found.splits:
        assert len(found.split(split)) == len(expected.split(split))
        for a, b in zip(found.split(split), expected.split(split), strict=True):
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.image2, b.image2)
            np.testing.assert_array_equal(a.flow_valid, b.flow_valid)
            np.testing.assert_allclose(a.flow, b.flow, rtol=0, atol=precision)
            if occluded:
                assert (a.occluded is None) == (b.occluded is None)
                if b.occluded is not None:
                    # KITTI cannot say it of a pixel whose flow is not known.
                    seen = b.flow_valid if found.format == "kitti_flow" else np.True_
                    np.testing.assert_array_equal(a.occluded, b.occluded & seen)


@pytest.mark.parametrize("name", NAMES)
def test_export_of_what_was_exported_is_the_same(name: str, tmp_path: Path) -> None:
    first = made(name, tmp_path / "made")
    once, _ = export(name, first, tmp_path / "once")
    twice, notes = export(name, once, tmp_path / "twice")
    assert tree(tmp_path / "once") == tree(tmp_path / "twice")
    assert notes == []  # nothing is lost by a format that it came from
    compare(once, first, occluded=True)
    compare(twice, first, occluded=True)
    assert [once.images.key(i) for i in range(len(once))] == [
        twice.images.key(i) for i in range(len(twice))
    ]


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_every_pair_of_formats(source: str, target: str, tmp_path: Path) -> None:
    first = made(source, tmp_path / "made")
    there, notes = export(target, first, tmp_path / "there")
    holds = target in ("kitti_flow", "sintel")
    half_a_step = 1 / 128 if target == "kitti_flow" and source != "kitti_flow" else 0
    compare(there, first, precision=half_a_step, occluded=holds)
    marked = any(s.occluded is not None and s.occluded.any() for s in first)
    assert any("have occluded pixels marked" in note for note in notes) == (marked and not holds)
    assert any("1/64" in note for note in notes) == (half_a_step > 0)


def test_scenes_from_chairs_to_kitti_and_back(tmp_path: Path) -> None:
    drawn = scenes.read("scenes:flow,size=32x40,n=3,val=2,test=1")
    chairs, notes = export("flying_chairs", drawn, tmp_path / "chairs")
    compare(chairs, drawn, occluded=False)
    assert len(notes) == 1
    hidden = sum(bool(s.occluded is not None and s.occluded.any()) for s in drawn)
    assert notes[0].startswith(f"{hidden} pairs have occluded pixels")
    kitti, _ = export("kitti_flow", chairs, tmp_path / "kitti")
    back, _ = export("flying_chairs", kitti, tmp_path / "back")
    compare(back, chairs, precision=1 / 128, occluded=True)
    assert tree(tmp_path / "back").keys() == tree(tmp_path / "chairs").keys()


def test_kitti_says_what_lies_beyond_its_range(tmp_path: Path) -> None:
    flow = np.zeros((1, 8, 9, 2), np.float32)
    flow[0, 0, :3, 1] = 600
    hidden = np.zeros((8, 9), bool)
    hidden[5, 5] = True
    valid = ~hidden

    class Truth:
        def fields(self, i: int) -> dict[str, Any]:
            return {"flow": flow[i], "flow_valid": valid, "occluded": hidden}

        def digest(self) -> bytes:
            return b""

    images = ArrayImages(np.zeros((1, 8, 9, 3), np.uint8), {"train": 1})
    dataset = Dataset(
        root="x", format="x", task="flow", classes=(), images=images, images2=images, labels=None,
        splits={"train": np.arange(1)}, truth=Truth(),
    )  # fmt: skip
    found, notes = export("kitti_flow", dataset, tmp_path / "kitti")
    assert [note.split(" ")[0] for note in notes] == ["3", "1"]
    assert "beyond this format's range" in notes[0]
    assert "cannot say that they are occluded" in notes[1]
    assert np.argwhere(~found[0].flow_valid).tolist() == [[0, 0], [0, 1], [0, 2], [5, 5]]
    flow[0, 2, 2] = np.nan
    with pytest.raises(InputError, match=r"train/000000: the flow is .* at x = 2, y = 2"):
        formats.find("flying_chairs").write(dataset, tmp_path / "kitti")


def test_frames_of_another_kind_are_written_without_loss(tmp_path: Path) -> None:
    chairs = made("flying_chairs", tmp_path / "made")
    kitti, _ = export("kitti_flow", chairs, tmp_path / "kitti")
    assert {Path(key).suffix for key in map(kitti.images.key, range(len(kitti)))} == {".png"}
    header = (tmp_path / "kitti/training/image_2/000001_10.png").read_bytes()[:8]
    assert header == b"\x89PNG\r\n\x1a\n"
    again, _ = export("flying_chairs", kitti, tmp_path / "again")
    first = {k: v for k, v in tree(tmp_path / "made").items() if k.endswith(".ppm")}
    assert {k: v for k, v in tree(tmp_path / "again").items() if k.endswith(".ppm")} == first
    assert again.splits.keys() == {"train", "val"}


# --- what each refuses ------------------------------------------------------------------------

FIRST = {
    "flying_chairs": ("data/00001_img1.ppm", "data/00001_img2.ppm", "data/00001_flow.flo"),
    "flow_folders": ("train/a/8.png", "train/a/9.png", "train/a/8.flo"),
    "kitti_flow": (
        "training/image_2/000000_10.png",
        "training/image_2/000000_11.png",
        "training/flow_occ/000000_10.png",
    ),
    "middlebury": (
        "other-data/Grove2/frame10.png",
        "other-data/Grove2/frame11.png",
        "other-gt-flow/Grove2/flow10.flo",
    ),
    "sintel": (
        "training/clean/alley_1/frame_0001.png",
        "training/clean/alley_1/frame_0002.png",
        "training/flow/alley_1/frame_0001.flo",
    ),
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_flow_without_its_frames(name: str, which: int, tmp_path: Path) -> None:
    formats.find(name).fake(tmp_path)
    (tmp_path / FIRST[name][which]).unlink()
    with pytest.raises(InputError, match="files of flow lack a frame: ") as caught:
        open_data(tmp_path)
    if (name, which) == ("sintel", 1):  # it was also the first frame of the next pair
        assert "2 files" in str(caught.value)
    assert FIRST[name][2] in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_frames_without_flow_are_left_out_and_said(name: str, tmp_path: Path) -> None:
    before = made(name, tmp_path)
    if name == "middlebury":
        shutil.rmtree(tmp_path / "other-gt-flow/Grove2")
    else:
        (tmp_path / FIRST[name][2]).unlink()
    if name == "flying_chairs":
        (tmp_path / flying_chairs.LIST).write_text("2\n1\n1\n2\n")
    found = formats.find(name).read(str(tmp_path))
    lost = 2 if name == "sintel" else 1
    assert len(found) == len(before) - lost
    notes = [note for note in found.notes if "have no flow and were left out" in note]
    assert notes
    stem = FIRST[name][0].rsplit("/", 1)[int(name == "flying_chairs")].removesuffix("/frame10.png")
    assert stem in notes[0]


@pytest.mark.parametrize("name", NAMES)
def test_flow_of_another_size(name: str, tmp_path: Path) -> None:
    found = made(name, tmp_path)
    path = tmp_path / FIRST[name][2]
    (write_kitti if name == "kitti_flow" else write_flo)(path, np.zeros((6, 6, 2), np.float32))
    if name == "kitti_flow":
        (tmp_path / "training/flow_noc/000000_10.png").unlink()
        found = kitti_flow.read(str(tmp_path))
    if name == "sintel":
        shutil.rmtree(tmp_path / "training/occlusions")
        shutil.rmtree(tmp_path / "training/invalid")
        found = sintel.read(str(tmp_path))
    with pytest.raises(InputError, match=r"is 6 × 6 pixels, and its frame 1[0-9] × [89]") as caught:
        found[0]
    assert FIRST[name][2] in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_frames_of_two_sizes(name: str, tmp_path: Path) -> None:
    found = made(name, tmp_path)
    cv2.imwrite(str(tmp_path / FIRST[name][1]), np.zeros((7, 7, 3), np.uint8))
    with pytest.raises(InputError, match="is 7 × 7 pixels, and the frame before it") as caught:
        found[0]
    assert FIRST[name][1] in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_flow_names_its_file(name: str, tmp_path: Path) -> None:
    found = made(name, tmp_path)
    path = tmp_path / FIRST[name][2]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="is cut short") as caught:
        found[0]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_fingerprint_follows_the_list_of_files(name: str, tmp_path: Path) -> None:
    one, two = made(name, tmp_path / "a"), made(name, tmp_path / "b")
    assert one.fingerprint() == two.fingerprint()
    (tmp_path / "b" / FIRST[name][2]).unlink()
    if name == "middlebury":
        (tmp_path / "b/other-gt-flow/Grove2").rmdir()
    if name == "flying_chairs":
        (tmp_path / "b" / flying_chairs.LIST).write_text("2\n1\n1\n2\n")
    assert formats.find(name).read(str(tmp_path / "b")).fingerprint() != one.fingerprint()


# --- FlyingChairs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1\n2\n1\n5\n1\n", r"FlyingChairs_train_val\.txt, line 4: '5' was found"),
        ("1\n2\n1\n", r"has 3 lines, and there are 5 pairs, among them 4; 5"),
        ("1\ntrain\n", "line 2: 'train' was found"),
    ],
)
def test_bad_list_of_splits(text: str, sentence: str, tmp_path: Path) -> None:
    flying_chairs.fake(tmp_path)
    (tmp_path / flying_chairs.LIST).write_text(text)
    with pytest.raises(InputError, match=sentence):
        open_data(tmp_path)


def test_the_list_of_all_chairs_for_some_of_them(tmp_path: Path) -> None:
    flying_chairs.fake(tmp_path)
    (tmp_path / flying_chairs.LIST).write_text("1\n1\n2\n2\n1\n1\n2\n")
    for part in ("img1.ppm", "img2.ppm", "flow.flo"):
        (tmp_path / f"data/00002_{part}").unlink()
    found = flying_chairs.read(str(tmp_path / "data"))  # the list lies above
    assert [found.images.key(int(i)) for i in found.splits["val"]] == [
        "00003_img1.ppm",
        "00004_img1.ppm",
    ]
    assert any("7 lines are for the pairs 1 to 7; 4 of these" in note for note in found.notes)
    (tmp_path / flying_chairs.LIST).unlink()
    alone = flying_chairs.read(str(tmp_path))
    assert list(alone.splits) == ["train"]
    assert any("all pairs are for training" in note for note in alone.notes)


def test_two_pictures_of_one_frame(tmp_path: Path) -> None:
    flying_chairs.fake(tmp_path)
    shutil.copy(tmp_path / "data/00001_img1.ppm", tmp_path / "data/00001_img1.png")
    with pytest.raises(
        InputError, match=r"holds data/00001_img1\.(png|ppm) and data/00001_img1\.p"
    ):
        open_data(tmp_path)


# --- Sintel -----------------------------------------------------------------------------------


def test_one_pass_of_sintel(tmp_path: Path) -> None:
    both = made("sintel", tmp_path)
    for name in ("clean", "final"):
        source = tmp_path / "training" / name
        claims = [n for n in formats.names() if formats.find(n).sniff(str(source)) is not None]
        assert claims == ["sintel"]
        found = sintel.read(str(source))
        assert len(found) == 2
        assert found.images.key(0) == "alley_1/frame_0001.png"
        twin = next(s for s in both if s.key == f"training/{name}/alley_1/frame_0001.png")
        np.testing.assert_array_equal(found[0].image2, twin.image2)
        np.testing.assert_array_equal(found[0].flow, twin.flow)
        np.testing.assert_array_equal(found[0].occluded, twin.occluded)
    assert any("Both passes of training/ are read" in note for note in both.notes)


def test_sintels_own_test_folder_is_left_out_and_said(tmp_path: Path) -> None:
    made("sintel", tmp_path)
    for name in ("clean", "final"):
        (tmp_path / "test" / name / "PERTURBED_market_3").mkdir(parents=True)
        shutil.copy(
            tmp_path / "training/clean/alley_1/frame_0001.png",
            tmp_path / "test" / name / "PERTURBED_market_3/frame_0001.png",
        )
    found = open_data(tmp_path)
    assert found.format == "sintel"
    assert "test holds no flow and was left out." in found.notes
    assert list(found.splits) == ["train", "val"]


def test_sintels_masks(tmp_path: Path) -> None:
    found = made("sintel", tmp_path)
    assert any("1 pairs of training/clean/ have no file in occlusions: alley_1/frame_0002" in note
               for note in found.notes)  # fmt: skip
    path = tmp_path / "training/occlusions/alley_1/frame_0001.png"
    cv2.imwrite(str(path), np.full((8, 12), 100, np.uint8))
    with pytest.raises(InputError, match=r"frame_0001\.png holds values other than 0 and 255"):
        found[0]
    cv2.imwrite(str(path), np.zeros((3, 3), np.uint8))
    with pytest.raises(InputError, match="is 3 × 3 pixels, and its frame 12 × 8"):
        found[0]
    shutil.rmtree(tmp_path / "training/occlusions")
    shutil.rmtree(tmp_path / "training/invalid")
    found = sintel.read(str(tmp_path))
    assert found[0].occluded is None
    assert found[0].flow_valid.all()
    assert any("what is occluded is not known" in note for note in found.notes)


def test_a_scene_without_frames(tmp_path: Path) -> None:
    sintel.fake(tmp_path)
    shutil.rmtree(tmp_path / "training/final/alley_1")
    with pytest.raises(InputError, match=r"training/flow/alley_1 \(no folder training/final"):
        open_data(tmp_path)


def test_clean_may_be_a_class(tmp_path: Path) -> None:
    for name in ("clean", "dirty"):
        (tmp_path / "train" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "train" / name / "1.png"), np.zeros((6, 7, 3), np.uint8))
    assert open_data(tmp_path, carve_val=False).classes == ("clean", "dirty")


# --- KITTI ------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", ["colored_0", "image_0"])
def test_kitti_2012(frames: str, tmp_path: Path) -> None:
    inner = tmp_path / "data_stereo_flow"
    kitti_flow.fake(inner)
    shutil.rmtree(inner / "validation")
    (inner / "training/image_2").rename(inner / "training" / frames)
    (inner / "testing" / frames).mkdir(parents=True)
    shutil.copy(inner / f"training/{frames}/000000_10.png", inner / "testing" / frames)
    found = open_data(tmp_path, carve_val=False)
    assert found.format == "kitti_flow"
    assert found.images.key(0) == f"data_stereo_flow/training/{frames}/000000_10.png"
    assert "testing holds no flow and was left out." in found.notes
    assert any("1 pairs in training/ it is not known" in note for note in found.notes)


def test_kitti_with_flow_noc_alone_and_without_frames(tmp_path: Path) -> None:
    expected = made("kitti_flow", tmp_path)[0]
    shutil.rmtree(tmp_path / "validation")
    shutil.rmtree(tmp_path / "training/flow_occ")
    found = kitti_flow.read(str(tmp_path / "training"))
    assert any("the flow is flow_noc's" in note for note in found.notes)
    assert found[0].occluded is None
    np.testing.assert_array_equal(found[0].flow_valid, expected.flow_valid & ~expected.occluded)
    shutil.rmtree(tmp_path / "training/image_2")
    with pytest.raises(InputError, match="holds flow_noc and no frames; a folder image_2"):
        open_data(tmp_path)


def test_kitti_flow_as_8_bits_is_refused(tmp_path: Path) -> None:
    found = made("kitti_flow", tmp_path)
    path = tmp_path / FIRST["kitti_flow"][2]
    deep = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), (deep >> 8).astype(np.uint8))
    with pytest.raises(InputError, match="mode RGB with 8 bits a channel") as caught:
        found[0]
    assert str(path) in str(caught.value)


# --- Middlebury -------------------------------------------------------------------------------


def test_middleburys_scenes(tmp_path: Path) -> None:
    found = made("middlebury", tmp_path)
    assert any("1 pairs of frames have no flow and were left out: other-data/Walking" in note
               for note in found.notes)  # fmt: skip
    (tmp_path / "other-gt-flow/Grove2/flow10.flo").unlink()
    found = middlebury.read(str(tmp_path))
    assert len(found) == 1
    assert any("other-gt-flow/Grove2 holds no flow10.flo" in note for note in found.notes)


# --- folders ----------------------------------------------------------------------------------


def test_a_gap_between_numbered_frames(tmp_path: Path) -> None:
    for name in ("f10", "f20", "f40", "f50"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((6, 7, 3), np.uint8))
    for name in ("f10", "f40"):
        write_flo(tmp_path / f"{name}.flo", np.zeros((6, 7, 2), np.float32))
    found = open_data(tmp_path)
    assert [s.key for s in found] == ["f10.png", "f40.png"]
    assert [found.images2.key(i) for i in range(2)] == ["f20.png", "f50.png"]
    write_flo(tmp_path / "f20.flo", np.zeros((6, 7, 2), np.float32))
    with pytest.raises(InputError, match=r"lack a frame: f20\.flo"):
        open_data(tmp_path)


def test_flow_folders_refuse_and_say(tmp_path: Path) -> None:
    flow_folders.fake(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "train/d").mkdir()
    shutil.copy(tmp_path / "train/a/8.png", tmp_path / "train/d/1.png")
    notes = flow_folders.read(str(tmp_path)).notes
    assert any("more beside the splits was passed over" in note for note in notes)
    assert any("1 images and no flow; they were left out" in note for note in notes)
    (tmp_path / "train/d/again").symlink_to(tmp_path / "train", target_is_directory=True)
    with pytest.raises(InputError, match="is a link to a folder that it lies in"):
        open_data(tmp_path)
    (tmp_path / "train/d/again").unlink()
    shutil.copy(tmp_path / "train/a/8.png", tmp_path / "train/a/8.jpg")
    with pytest.raises(InputError, match=r"two frames of one name: 8\.(jpg|png)"):
        open_data(tmp_path)
    (tmp_path / "train/a/8.jpg").unlink()
    (tmp_path / "training").mkdir()
    with pytest.raises(InputError, match="two folders for the split train: train and training"):
        open_data(tmp_path)


# --- the real ones ----------------------------------------------------------------------------


@REAL
def test_real_chairs(tmp_path: Path) -> None:
    source = Path(os.environ["VIDI_DATA"]) / "flow" / "FlyingChairs_release"
    found = open_data(source, carve_val=False)
    assert found.format == "flying_chairs"
    assert len(found) == 9
    for i, sample in enumerate(found):
        stem = str(source / f"data/{i + 1:05d}")
        np.testing.assert_array_equal(sample.flow, cv2.readOpticalFlow(f"{stem}_flow.flo"))
        np.testing.assert_array_equal(sample.image2, cv2.imread(f"{stem}_img2.ppm")[..., ::-1])
        assert sample.flow_valid.all()
        assert sample.occluded is None
    few = dataclasses.replace(found, splits={"train": np.arange(2), "val": np.arange(2, 3)})
    kitti, notes = export("kitti_flow", few, tmp_path / "kitti")
    back, _ = export("flying_chairs", kitti, tmp_path / "back")
    compare(back, few, precision=1 / 128, occluded=True)
    assert notes == []  # these nine are in steps of 1/32 pixel
    own = (source / "data/00002_img1.ppm").read_bytes()
    assert (tmp_path / "back/data/00002_img1.ppm").read_bytes()[-1000:] == own[-1000:]


@REAL
def test_real_kitti(tmp_path: Path) -> None:
    source = Path(os.environ["VIDI_DATA"]) / "flow" / "KITTI"
    found = open_data(source, carve_val=False)
    assert found.format == "kitti_flow"
    (sample,) = found
    raw = cv2.imread(str(source / FIRST["kitti_flow"][2]), cv2.IMREAD_UNCHANGED).astype(np.float64)
    known = raw[..., 0] == 1
    np.testing.assert_array_equal(sample.flow_valid, known)
    np.testing.assert_array_equal(sample.flow[..., 0][known], (raw[..., 2][known] - 2**15) / 64)
    np.testing.assert_array_equal(sample.flow[..., 1][known], (raw[..., 1][known] - 2**15) / 64)
    assert sample.occluded is None
    export("kitti_flow", found, tmp_path / "kitti")
    name = FIRST["kitti_flow"][2]
    again = cv2.imread(str(tmp_path / "kitti" / name), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(again[known], raw[known])
    np.testing.assert_array_equal(again[..., 0], raw[..., 0])
