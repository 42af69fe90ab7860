"""All images are looked at before training, and every bad one is named."""

import io
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from vidi.data.check import CheckReport, check_images
from vidi.data.dataset import Dataset
from vidi.data.open import open_data
from vidi.errors import InputError


def jpeg(seed: int, height: int = 40, width: int = 60) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(40):
            (tmp_path / name / f"{i:02d}.jpg").write_bytes(jpeg(i, 40 + i))
    return tmp_path


def spoilt(folder: Path) -> dict[str, str]:
    """Every kind of unreadable image, and what its sentence says."""
    (folder / "a" / "03.jpg").write_bytes(b"")
    (folder / "a" / "07.jpg").write_bytes(jpeg(7)[:-300])
    (folder / "a" / "11.jpg").write_bytes(b"this is text, whatever its name says")
    huge = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(huge, "PNG")
    (folder / "b" / "00.jpg").write_bytes(huge.getvalue())
    frames = [Image.new("L", (9, 9), k) for k in (0, 100)]
    frames[0].save(folder / "b" / "01.gif", save_all=True, append_images=frames[1:])
    (folder / "b" / "02.jpg").unlink()
    (folder / "b" / "02.jpg").symlink_to("gone.jpg")
    (folder / "b" / "05.jpg").unlink()
    (folder / "b" / "05.jpg").mkdir()
    return {
        "a/03.jpg": "empty",
        "a/07.jpg": "cut short",
        "a/11.jpg": "text",
        "b/00.jpg": "196 million pixels",
        "b/01.gif": "2 frames",
        "b/02.jpg": "link to gone.jpg",
        "b/05.jpg": "is a folder",
    }


def run(found: Dataset, how: str = "skip", **options: object) -> CheckReport:
    options = {"threads": 2, "load": lambda i: found.images.load(i, 20), **options}
    return check_images(found, np.arange(len(found)), how=how, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_skip_lists_each_bad_image(folder: Path, threads: int) -> None:
    expected = spoilt(folder)
    found = open_data(folder)
    report = run(found, threads=threads)
    assert [key for key, _ in report.bad] == list(expected)
    for key, sentence in report.bad:
        assert str(folder / key) in sentence
        assert expected[key] in sentence
    assert report.decoded
    bad = [key in expected for key in (found.images.key(i) for i in range(len(found)))]
    np.testing.assert_array_equal(report.sizes[:, 0] == 0, bad)
    row = next(i for i in range(len(found)) if found.images.key(i) == "b/33.jpg")
    assert report.sizes[row].tolist() == [73, 60]


def test_error_names_all_of_them_at_once(folder: Path) -> None:
    expected = spoilt(folder)
    with pytest.raises(InputError) as caught:
        run(open_data(folder), "error")
    sentence = str(caught.value)
    assert f"7 of 81 images of {folder} cannot be read" in sentence
    assert all(str(folder / key) in sentence for key in expected)
    assert "--bad-images skip" in sentence


def test_a_long_list_is_cut(folder: Path) -> None:
    for i in range(30):
        (folder / "a" / f"{i:02d}.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"30 of 80(.|\n)*and 10 more\."):
        run(open_data(folder), "error")


def test_within_the_budget_each_image_is_decoded_once(folder: Path) -> None:
    found = open_data(folder)
    seen: list[int] = []
    lock = threading.Lock()

    def load(i: int) -> None:
        with lock:
            seen.append(i)

    told: list[tuple[int, int]] = []
    report = run(found, load=load, progress=lambda done, total: told.append((done, total)))
    assert report.decoded
    assert not report.bad
    assert sorted(seen) == list(range(80))
    assert (80, 80) in told


def test_beyond_the_budget_only_headers_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidi.data.check.TRIED", 10)
    (folder / "a" / "00.jpg").write_bytes(b"")
    found = open_data(folder)
    seen: list[int] = []
    report = run(found, load=seen.append, budget_seconds=-1)
    assert not report.decoded
    assert [key for key, _ in report.bad] == ["a/00.jpg"]
    assert len(seen) == 10
    assert (report.sizes[1:] > 0).all()


def test_what_is_no_fault_of_the_image_is_not_swallowed(folder: Path) -> None:
    def load(i: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        run(open_data(folder), load=load)


def test_an_object_of_the_users_is_not_read_whole_before_the_budget_is_known() -> None:
    reads = 0

    class Slow:
        targets: ClassVar[list[int]] = [i % 2 for i in range(2000)]

        def __len__(self) -> int:
            return 2000

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            nonlocal reads
            reads += 1
            return np.zeros((4, 6, 3), np.uint8), i % 2

    dataset = open_data(Slow())
    report = check_images(
        dataset,
        np.arange(2000),
        how="error",
        threads=2,
        load=lambda i: dataset.images.load(i, None),
        budget_seconds=0.0,
    )
    assert not report.decoded
    assert reads == 256 and (report.sizes[:, 0] > 0).sum() == 256
    assert report.sizes[0].tolist() == [4, 6]
