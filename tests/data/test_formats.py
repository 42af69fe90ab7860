"""Every format writes a tiny fake of itself and reads it back the same; and what each refuses."""

import dataclasses
import gzip
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from vidi.data import formats
from vidi.data.dataset import Dataset
from vidi.data.formats import Fake, cifar, digits, folders, idx, table
from vidi.data.open import open_data
from vidi.errors import InputError

FAKES: dict[str, Any] = {name: formats.find(name).fake for name in formats.names()}
FAKES |= {
    f"cifar {kind}": lambda folder, kind=kind: cifar.fake(folder, kind)
    for kind in range(len(cifar._VERSIONS))
}


def check(found: Dataset, made: Fake) -> None:
    assert found.classes == made.classes
    assert list(found.splits) == list(made.splits)
    assert sum(map(len, found.splits.values())) == len(found)
    for name, samples in made.splits.items():
        split = found.split(name)
        assert len(split) == len(samples)
        for back, sample in zip(split, samples, strict=True):
            same(back, sample)


def same(back: Any, made: Any) -> None:
    """Every field of two samples (or boxes) is equal, to the bit."""
    for field in dataclasses.fields(made):
        a, b = getattr(back, field.name), getattr(made, field.name)
        if dataclasses.is_dataclass(b):
            same(a, b)
        elif isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            assert a == b, field.name


@pytest.mark.parametrize("name", FAKES)
def test_fake_is_recognised_and_read_back_the_same(name: str, tmp_path: Path) -> None:
    made = FAKES[name](tmp_path)
    module = name.split()[0]
    claims = {n: formats.find(n).sniff(made.source) for n in formats.names()}
    assert [n for n, reason in claims.items() if reason is not None] == [module]
    found = formats.find(module).read(made.source)
    assert found.format == module
    check(found, made)
    images = found.images
    for i in range(len(found)):
        assert images.size(i) == images.load(i, None)[1] == images.load(i, None)[0].shape[:2]
        small, full = images.load(i, 5)
        assert min(small.shape[:2]) == 5
        assert full == images.size(i)
        assert (images.identity(i) is None) == (module in ("cifar", "digits", "idx", "scenes"))
    assert len({images.key(i) for i in range(len(found))}) == len(found)


def test_each_format_says_what_it_is() -> None:
    for name in formats.names():
        assert (formats.find(name).__doc__ or "").strip(), name


# --- digits -----------------------------------------------------------------------------------


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    truth = load_digits()
    found = digits.read("digits")
    assert found.labels.tolist() == truth.target.tolist()
    np.testing.assert_allclose(found[17].image[..., 1], truth.images[17] * 255 / 16, atol=0.5)
    images = np.stack([s.image for s in found.split("test")])
    assert images.min() == 0
    assert images.max() == 255
    for k in range(10):
        assert found.class_counts("test")[k] == (truth.target == k).sum() // 5


# --- folders ----------------------------------------------------------------------------------


def put(path: Path, content: bytes = b"not looked at") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def keys(found: Dataset, split: str = "train") -> list[str]:
    return [found.images.key(int(i)) for i in found.splits[split]]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("training", "valid", "testing"), ("Train", "Validation", "TEST"),
     ("train", "dev", "test")],
)  # fmt: skip
def test_split_folders_and_their_synonyms(tmp_path: Path, train: str, val: str, test: str) -> None:
    for split in (train, val, test):
        for name in ("b", "a"):
            put(tmp_path / split / name / "1.jpg")
    found = folders.read(str(tmp_path))
    assert found.classes == ("a", "b")
    for name, folder in (("train", train), ("val", val), ("test", test)):
        assert keys(found, name) == [f"{folder}/a/1.jpg", f"{folder}/b/1.jpg"]
        assert found.split(name).labels.tolist() == [0, 1]


def test_folder_per_class_in_order_of_names(tmp_path: Path) -> None:
    for key in ("b/2.PNG", "b/10.jpeg", "a/sub/deep/z.webp", "a/y.bmp", "a/sub/x.jpg"):
        put(tmp_path / key)
    found = folders.read(str(tmp_path))
    assert keys(found) == ["a/y.bmp", "a/sub/x.jpg", "a/sub/deep/z.webp", "b/10.jpeg", "b/2.PNG"]
    assert found.labels.tolist() == [0, 0, 0, 1, 1]


def test_what_is_no_image_is_passed_over_and_counted(tmp_path: Path) -> None:
    for key in ("a/1.jpg", "b/1.jpg", "a/readme.txt", "b/notes.txt", "b/data", "a/.hidden.jpg",
                "__MACOSX/a/1.jpg", ".git/x/1.jpg", "a/Thumbs.db", "beside.png"):  # fmt: skip
        put(tmp_path / key)
    found = folders.read(str(tmp_path))
    assert keys(found) == ["a/1.jpg", "b/1.jpg"]
    notes = " ".join(found.notes)
    assert "2 .txt" in notes
    assert "1 without extension" in notes
    assert "beside.png" in notes


def test_never_classes(tmp_path: Path) -> None:
    for key in ("images/1.jpg", "masks/1.png"):
        put(tmp_path / key)
    assert folders.sniff(str(tmp_path)) is None
    put(tmp_path / "cat" / "images" / "1.jpg")  # below a class it is just a folder
    put(tmp_path / "dog" / "images" / "1.jpg")
    found = folders.read(str(tmp_path))
    assert found.classes == ("cat", "dog")
    assert any("images, masks is never a class" in note for note in found.notes)


def test_split_folders_of_another_task_are_not_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        put(tmp_path / split / "images" / "1.jpg")
        put(tmp_path / split / "masks" / "1.png")
    assert folders.sniff(str(tmp_path)) is None
    assert folders.sniff(str(tmp_path.parent)) is None  # a folder of datasets
    for year in ("train2017", "val2017"):
        put(tmp_path / "coco" / year / "1.jpg")
    assert folders.sniff(str(tmp_path / "coco")) is None


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("car", "plane", "train"):
        put(tmp_path / name / "1.jpg")
    found = folders.read(str(tmp_path))
    assert found.classes == ("car", "plane", "train")
    assert any("train is taken for a class" in note for note in found.notes)


def test_unlabelled_test_images_are_left_out_and_said(tmp_path: Path) -> None:
    for key in ("train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"):
        put(tmp_path / key)
    found = folders.read(str(tmp_path))
    assert list(found.splits) == ["train"]
    assert any("test holds no folder per class" in note for note in found.notes)


def test_a_folder_around_it_is_looked_through(tmp_path: Path) -> None:
    for key in ("archive/PetImages/Cat/1.jpg", "archive/PetImages/Dog/1.jpg"):
        put(tmp_path / key)
    found = folders.read(str(tmp_path))
    assert found.classes == ("Cat", "Dog")
    assert keys(found) == ["archive/PetImages/Cat/1.jpg", "archive/PetImages/Dog/1.jpg"]
    for split in ("train", "val"):
        for name in ("a", "b"):
            put(tmp_path / "other" / "images" / split / name / "1.jpg")
    assert list(folders.read(str(tmp_path / "other")).splits) == ["train", "val"]


def test_classes_that_differ_between_splits(tmp_path: Path) -> None:
    for key in ("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg"):
        put(tmp_path / key)
    with pytest.raises(InputError, match="differ between the splits") as caught:
        open_data(tmp_path)
    assert "c is in val but not in train" in str(caught.value)
    assert "b is in train but not in val" in str(caught.value)


def test_empty_class(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a" / "1.jpg")
    put(tmp_path / "train" / "b" / "readme.txt")
    with pytest.raises(InputError, match="no image in train/b"):
        open_data(tmp_path)


def test_two_folders_for_one_split(tmp_path: Path) -> None:
    for split in ("train", "val", "validation"):
        for name in ("a", "b"):
            put(tmp_path / split / name / "1.jpg")
    with pytest.raises(InputError, match="two folders for the split val: val and validation"):
        open_data(tmp_path)


def test_folder_that_links_to_itself(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.jpg")
    put(tmp_path / "b" / "1.jpg")
    (tmp_path / "b" / "again").symlink_to(tmp_path / "b", target_is_directory=True)
    with pytest.raises(InputError, match="is a link to a folder that it lies in"):
        open_data(tmp_path)


# --- table ------------------------------------------------------------------------------------


def written(folder: Path, text: str, name: str = "t.csv") -> str:
    for file in ("a.jpg", "b.jpg", "sub/c.jpg"):
        put(folder / file)
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "path,label\na.jpg,x\nb.jpg,y\nsub/c.jpg,x\n"),
        ("t.csv", "a.jpg,x\nb.jpg,y\n\nsub\\c.jpg,x"),
        ("t.csv", "id;Category;Filename\n1;x;a.jpg\n2; y;b.jpg\n3;x;sub/c.jpg\n"),
        ("t.tsv", "﻿image\tclass\na.jpg\tx\nb.jpg\ty\nsub/c.jpg\tx\na.jpg\tx\n"),
    ],
)
def test_tables_with_and_without_header(tmp_path: Path, name: str, text: str) -> None:
    found = table.read(written(tmp_path, text, name))
    assert keys(found) == ["a.jpg", "b.jpg", "sub/c.jpg"]
    assert [found.classes[k] for k in found.labels] == ["x", "y", "x"]
    assert found.images.identity(0) is not None


def test_numbered_labels_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    found = table.read(written(tmp_path, "path,label\na.jpg,10\nb.jpg,9\n"))
    assert found.classes == ("9", "10")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label\na.jpg,x\ngone.jpg,y\n", r"1 of 2 rows point to no file.*line 3: gone\.jpg"),
        ("path,label\na.jpg,x\nb.jpg\n", "line 3: 1 columns were found where at least 2"),
        ("path,label\na.jpg,\n", "line 2: the label is empty"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ("path,label\na.jpg,x\nb.jpg,y\na.jpg,y\n", "line 2 as x .* and in line 4 as y"),
        ("path,label,split\na.jpg,x,tomorrow\n", "line 2: 'tomorrow' is no split"),
        ("path,label\n", "a header and no rows"),
        ("", "is empty"),
        ("what,ever\na.jpg,x\n", "line 1: 'what,ever' names no column of paths"),
        ('path,label\n"a.jpg,x\n', "line 2"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, sentence: str) -> None:
    source = written(tmp_path, text)
    with pytest.raises(InputError, match=sentence) as caught:
        open_data(source)
    assert source in str(caught.value)


def test_table_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe\x00,x\n")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        open_data(tmp_path / "t.csv")


# --- CIFAR ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(4))
def test_cifar_in_its_archive(kind: int, tmp_path: Path) -> None:
    inner = tmp_path / "files" / "cifar-10-batches"
    made = cifar.fake(inner, kind)
    check(cifar.read(str(tmp_path / "files")), made)  # extracted, with its folder around it
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inner, "cifar-10-batches")
    assert cifar.sniff(str(archive)) is not None
    check(cifar.read(str(archive)), made)
    (tmp_path / "cut.tar.gz").write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(InputError, match="cut short or damaged"):
        open_data(tmp_path / "cut.tar.gz")


def test_cifar_as_python_3_pickles_it(tmp_path: Path) -> None:
    made = cifar.fake(tmp_path)
    for name in (*cifar._BATCHES, "test_batch"):
        split = "test" if name == "test_batch" else "train"
        first = 0 if split == "test" else 2 * (int(name[-1]) - 1)
        samples = made.splits[split][first : first + 2]
        flat = np.stack([s.image.transpose(2, 0, 1).ravel() for s in samples])
        content = {b"data": flat, b"labels": [s.label for s in samples]}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    check(cifar.read(str(tmp_path)), made)


class Malice:
    def __reduce__(self) -> Any:
        return os.system, ("touch EXECUTED",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_malicious_cifar_does_not_run(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cifar.fake(tmp_path)
    content = pickle.dumps({"data": Malice(), "labels": [0]}, protocol=protocol)
    pickle.loads(content)  # noqa: S301 - shows that it is a real one
    assert Path("EXECUTED").exists()
    Path("EXECUTED").unlink()
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(InputError, match=r"data_batch_3 asks for (posix|nt)\.system to be run"):
        open_data(tmp_path)
    assert not Path("EXECUTED").exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x02cvidi.data.formats.cifar\nos\n.",
    ],
)
def test_no_other_name_means_anything(code: bytes, tmp_path: Path) -> None:
    cifar.fake(tmp_path)
    (tmp_path / "batches.meta").write_bytes(code)
    with pytest.raises(InputError, match=r"batches\.meta asks for .* to be run"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "content", "sentence"),
    [
        (0, "data_batch_2", b"", "data_batch_2 is cut short or damaged"),
        (0, "data_batch_2", b"\x80\x02}.", "data_batch_2 does not hold an array called data"),
        (0, "data_batch_2", b"\x80\x02K\x01.", "holds int where a dict is expected"),
        (2, "data_batch_2.bin", bytes(5000), "5,000 bytes; a multiple of 3,073"),
        (2, "data_batch_2.bin", bytes([9] * 3073), "label 9 was found; there are 4 classes"),
        (2, "data_batch_2.bin", None, r"lacks data_batch_2\.bin"),
        (3, "train.bin", bytes(3073), "a multiple of 3,074"),
    ],
)
def test_damaged_cifar(
    kind: int, name: str, content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    cifar.fake(tmp_path, kind)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        open_data(tmp_path)


# --- IDX --------------------------------------------------------------------------------------


def test_idx_in_torchvisions_folder_and_with_labels_from_one(tmp_path: Path) -> None:
    made = idx.fake(tmp_path / "MNIST" / "raw")
    check(idx.read(str(tmp_path)), made)
    folder = tmp_path / "letters"
    folder.mkdir()
    pixels = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2)
    (folder / "emnist-letters-train-images-idx3-ubyte").write_bytes(
        b"\0\0\x08\x03" + struct.pack(">3I", *pixels.shape) + pixels.tobytes()
    )
    (folder / "emnist-letters-train-labels-idx1-ubyte").write_bytes(
        b"\0\0\x08\x01" + struct.pack(">I", 3) + bytes([1, 26, 1])
    )
    found = idx.read(str(folder))
    assert found.classes == ("1", "26")
    assert found.labels.tolist() == [0, 1, 0]
    assert list(found.splits) == ["train"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t10k-images-idx3-ubyte", b"\0\0\x08\x03", "has 0 bytes"),
        ("t10k-images-idx3-ubyte", b"", "begins with nothing"),
        ("t10k-images-idx3-ubyte", b"text that is none", "begins with 74 65 78 74"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x01\0", "6 images, .* 1 labels"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x09\0", "holds 9 values, and has 1 bytes"),
        ("t10k-labels-idx1-ubyte", None, "has no test labels"),
        ("train-labels-idx1-ubyte.gz", b"\x1f\x8b\x08", "cut short or damaged"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(b"\0\0\x08\x03", mtime=0), "in 1 dimensions"),
    ],
)
def test_damaged_idx(name: str, content: bytes | None, sentence: str, tmp_path: Path) -> None:
    idx.fake(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        open_data(tmp_path)
    assert str(tmp_path) in str(caught.value)


# --- the real ones ----------------------------------------------------------------------------


@pytest.mark.skipif("VIDI_DATA" not in os.environ, reason="VIDI_DATA names no folder")
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cifar10", {"train": 50_000, "test": 10_000}),
        ("imagenette-small", {"train": 1200, "val": 400}),
        ("bccd", None), ("coco-mini", None), ("camvid", None), ("bsds500", None), ("flow", None),
    ],
)  # fmt: skip
def test_real_folders(name: str, sizes: dict[str, int] | None) -> None:
    source = str(Path(os.environ["VIDI_DATA"]) / name)
    if sizes is None:
        assert folders.sniff(source) is None
        return
    found = folders.read(source)
    assert {split: len(ids) for split, ids in found.splits.items()} == sizes
    assert len(found.classes) == 10
    image = found[len(found) - 1].image
    bgr = cv2.imread(str(Path(source) / found.images.key(len(found) - 1)))
    np.testing.assert_array_equal(image, bgr[..., ::-1])
