"""Writing datasets: names, images, and that what was written reads back and writes the same."""

from __future__ import annotations

import filecmp
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from vidi.data import export, formats
from vidi.data.dataset import ArrayImages, Dataset, JoinedImages, PathTable
from vidi.data.formats import cifar, folders, idx, masks, masks_table, table
from vidi.data.open import open_data
from vidi.errors import InputError


def of_files(folder: Path, *paths: str) -> Dataset:
    files = PathTable()
    files.extend(paths)
    n = len(paths)
    return made(files.images(str(folder)), np.arange(n) % 2)


def made(images: Any, labels: Any, classes: tuple[str, ...] = ("a", "b"), **more: Any) -> Dataset:
    splits = more.pop("splits", {"train": np.arange(len(images))})
    labels = np.asarray(labels)
    return Dataset("made", "made", "classification", classes, images, labels, splits, **more)


def pixels(n: int, *size: int) -> ArrayImages:
    array = np.random.default_rng(0).integers(0, 256, (n, *size), dtype=np.uint8)
    return ArrayImages(array, {"train": n})


# --- images and names -------------------------------------------------------------------------


def test_a_file_is_copied_and_an_array_becomes_a_png(tmp_path: Path) -> None:
    array = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.JPEG")
    Image.fromarray(array).save(tmp_path / "b.dat", format="TIFF")
    data = of_files(tmp_path, "a.JPEG", "b.dat")
    out = tmp_path / "out"
    out.mkdir()
    assert export.save_image(data, 0, out / "x.y") == "x.y.JPEG"
    assert (out / "x.y.JPEG").read_bytes() == (tmp_path / "a.JPEG").read_bytes()
    assert export.save_image(data, 1, str(out / "b")) == "b.tif"
    both = JoinedImages({"one": pixels(2, 4, 6, 3), "two": data.images})
    joined = made(both, [0, 1, 0, 1])
    assert export.save_image(joined, 1, out / "p") == "p.png"
    np.testing.assert_array_equal(cv2.imread(str(out / "p.png"))[..., ::-1], joined[1].image)
    assert export.save_image(joined, 2, out / "q") == "q.JPEG"
    assert export.save_image(data, 0, out / "second", images=pixels(1, 4, 4)) == "second.png"
    (tmp_path / "a.JPEG").unlink()
    with pytest.raises(InputError, match=r"a\.JPEG does not exist"):
        export.save_image(data, 0, out / "gone")


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["cat/1.jpg", "dog/2.jpg"], ["1", "2"]),
        (["cat/1.jpg", "dog/1.jpg"], ["cat_1", "dog_1"]),
        (["cat/A.jpg", "dog/a.jpg"], ["cat_A", "dog_a"]),
        (["a/b_c.jpg", "a_b/c.jpg", "a_b_c.jpg", "c.png"], ["a_b_c", "a_b_c_2", "a_b_c_3", "c"]),
        (["a.jpg", "a.png"], ["a", "a_2"]),
        (["a/b.jpg", "a_b.jpg", "x/a_b.jpg", "a_b_2.png"], ["a_b", "a_b_3", "x_a_b", "a_b_2"]),
        ([".x.jpg", "b:c?.jpg", " d .png"], ["_.x", "b_c_", "d"]),
    ],
)
def test_names_are_unique_and_stay_when_exported_again(keys: list[str], names: list[str]) -> None:
    found = export.names(of_files(Path("/"), *keys))
    assert found == names
    again = [f"train/images/{name}.png" for name in found]
    assert export.names(of_files(Path("/"), *again)) == names


# --- write, read, write -----------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def written(module: Any, data: Dataset, folder: Path) -> tuple[Dataset, list[str]]:
    folder.mkdir()
    notes = module.write(data, folder)
    name = module.__name__.rpartition(".")[2]
    modules = [(n, formats.find(n)) for n in formats.names()]
    same_task = {n: m for n, m in modules if getattr(m, "TASK", None) == module.TASK}
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    source = next(str(p) for p in (folder, *files) if module.sniff(str(p)) is not None)
    assert [n for n, m in same_task.items() if m.sniff(source) is not None] == [name]
    return module.read(source), notes


def alike(back: Dataset, data: Dataset) -> None:
    """The same classes, and the same samples in the same splits, if maybe in another order."""
    assert back.classes == data.classes
    assert back.task == data.task
    assert list(back.splits) == list(data.splits)
    for split in data.splits:
        a, b = list(back.split(split)), list(data.split(split))
        assert len(a) == len(b)
        for one, other in zip(sorted(a, key=contents), sorted(b, key=contents), strict=True):
            assert contents(one) == contents(other)


def contents(sample: Any) -> tuple[Any, ...]:
    fields = (sample.image, sample.label, sample.mask)
    return tuple(None if f is None else (np.shape(f), np.asarray(f).tobytes()) for f in fields)


@pytest.mark.parametrize("module", [folders, table, idx, cifar, masks, masks_table])
def test_round_trip_of_each_format_with_itself(module: Any, tmp_path: Path) -> None:
    data = module.read(module.fake(tmp_path / "fake").source)
    first, notes = written(module, data, tmp_path / "first")
    assert notes == []
    alike(first, data)
    second, _ = written(module, first, tmp_path / "second")
    assert tree(tmp_path / "first") == tree(tmp_path / "second")
    assert second.classes == first.classes


@pytest.mark.parametrize("there", ["folders", "table", "idx", "cifar"])
@pytest.mark.parametrize("here", ["folders", "table", "idx", "cifar"])
def test_pairs_of_classification_formats(here: str, there: str, tmp_path: Path) -> None:
    """Grey images of 32 × 32, which all of them can hold, by way of both and back to the table."""
    labels = np.arange(18) % 3
    parts = {"train": np.arange(12), "test": np.arange(12, 18)}
    array = np.random.default_rng(0).integers(0, 256, (18, 32, 32), dtype=np.uint8)
    images = ArrayImages(array, {"train": 12, "test": 6})
    data = made(images, labels, ("0", "1", "2"), splits=parts)
    one, notes = written(formats.find(here), data, tmp_path / "one")
    assert notes == []
    two, notes = written(formats.find(there), one, tmp_path / "two")
    assert notes == []
    alike(two, data)


@pytest.mark.parametrize("there", ["masks", "masks_table", "voc_masks", "coco_masks"])
@pytest.mark.parametrize("here", ["masks", "masks_table", "voc_masks", "coco_masks"])
def test_pairs_of_segmentation_formats(here: str, there: str, tmp_path: Path) -> None:
    """From each to each: images and masks are the same (COCO adds a background, and says so)."""
    data = formats.find(here).read(formats.find(here).fake(tmp_path / "fake").source)
    back, notes = written(formats.find(there), data, tmp_path / "out")
    added = any("class was added" in note for note in notes)
    assert back.classes == (("background",) if added else ()) + data.classes
    for split in data.splits:
        for a, b in zip(back.split(split), data.split(split), strict=True):
            np.testing.assert_array_equal(a.image, b.image)
            expected = np.where(b.mask == 255, 255, b.mask + added)
            np.testing.assert_array_equal(a.mask, expected)
    if data[0].instances is not None and there in ("masks", "masks_table"):
        assert "3 images lost their map of instances: a mask has classes only." in notes


def test_masks_that_hold_only_0_and_255_stay_numbers(tmp_path: Path) -> None:
    """Ignored pixels never turn into a foreground."""

    class Truth:
        def fields(self, i: int) -> dict[str, Any]:
            return {"mask": np.array([[0, 255], [0, 0]], np.int32)}

        def digest(self) -> bytes:
            return b""

    data = Dataset(
        "made", "made", "segmentation", ("a", "b"), pixels(2, 2, 2), None,
        {"train": np.arange(2)}, truth=Truth(),
    )  # fmt: skip
    back, _ = written(masks, data, tmp_path / "out")
    assert back.classes == ("a", "b")
    np.testing.assert_array_equal(back[0].mask, [[0, 255], [0, 0]])


@pytest.mark.parametrize("names", [("a ", "b"), ("a\nc", "b"), ("a 1 2 3", "b 1 2 4"), ("a", "")])
def test_names_of_classes_that_a_line_cannot_hold(names: tuple[str, ...], tmp_path: Path) -> None:
    data = masks.read(masks.fake(tmp_path / "fake").source)
    data.classes = names
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="a line each cannot hold the classes' names"):
        masks.write(data, tmp_path / "out")


# --- several labels ---------------------------------------------------------------------------


def multilabel(folder: Path, text: str, name: str = "t.csv") -> str:
    for stem in "abc":
        array = np.full((4, 5, 3), ord(stem), np.uint8)
        folder.mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / f"{stem}.png")
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    "text",
    [
        "path,labels\na.png,sea;hot sun\nb.png,\nc.png,sea;sky\n",
        "path,tags\na.png,hot sun|sea\nb.png,\nc.png,sky | sea |\n",
        'path,labels\na.png,"hot sun,sea"\nb.png,\nc.png,"sea,sky"\n',
        "path;labels\na.png;hot sun,sea\nb.png;\nc.png;sea,sky\n",
        "path,labels\na.png,sea;\na.png,hot sun\nb.png,\nc.png,sky\nc.png,sea\nc.png,sea\n",
        "path,hot sun,sea,sky\na.png,1,1,0\nb.png,0,0,0\nc.png,0,1.0,1\n",
    ],
)
def test_tables_with_several_labels_an_image(text: str, tmp_path: Path) -> None:
    found = open_data(multilabel(tmp_path, text), carve_val=False)
    assert found.task == "multilabel"
    assert found.classes == ("hot sun", "sea", "sky")
    assert found.labels is not None
    assert found.labels.dtype == bool
    assert found.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert found[2].label.tolist() == [0, 1, 1]  # type: ignore[union-attr]
    assert any("An image has 0 to 2 labels, 1.3 on average; 1 have none." in n for n in found.notes)
    assert open_data(multilabel(tmp_path, text), task="multilabel").task == "multilabel"


def test_labels_separated_by_blanks(tmp_path: Path) -> None:
    found = table.read(multilabel(tmp_path, "path,labels\na.png,10 9\nb.png,9\nc.png,11\n"))
    assert found.classes == ("9", "10", "11")
    assert any("separated by blanks" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label\na.png,x\na.png,y\n", "line 2 as x .* and in line 3 as y"),
        ("path,x,y\na.png,1,0\nb.png,2,0\n", "line 3: '2' in the column x; 0 or 1 is expected"),
        ("path,x,y\na.png,1,0\na.png,0,0\n", "An image has one row"),
        ("path,x,x\na.png,1,0\n", "two have the same"),
        ("path,x,\na.png,1,0\n", "has no name"),
        ("path,labels,split\na.png,x;y,train\na.png,x,val\n", "has one split"),
        ("path,labels\na.png,x\nb.png,x\n", r"names 1 classes \(x\)"),
        ("path,labels\na.png,x\n../b.png,y\n", "line 3: the path '../b.png' does not lie in"),
        ("path,label\n../../a.png,x\n", "line 2: the path '../../a.png' does not lie in"),
        ("path,id,size\na.png,7,8\n", "names no column of paths"),
    ],
)
def test_bad_tables_with_several_labels(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        table.read(multilabel(tmp_path, text))


def test_an_absolute_path_within_the_folder_is_fine(tmp_path: Path) -> None:
    text = f"path,label\n{tmp_path}/a.png,x\nb.png,y\n"
    found = table.read(multilabel(tmp_path, text))
    assert found.images.key(0) == "a.png"


def test_columns_that_are_passed_over_are_named(tmp_path: Path) -> None:
    found = table.read(multilabel(tmp_path, "id,path,label,by\n1,a.png,x,me\n2,b.png,y,me\n"))
    assert any("the columns id; by were passed over" in note for note in found.notes)


def test_round_trip_of_several_labels(tmp_path: Path) -> None:
    labels = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]], bool)
    parts = {"train": np.array([0, 2]), "val": np.array([1, 3])}
    names = ("sky, blue", "a b", "10", "never")
    data = made(pixels(4, 5, 5, 3), labels, names, splits=parts)
    data.task = "multilabel"
    back, notes = written(table, data, tmp_path / "one")
    assert notes == []
    alike(back, data)
    written(table, back, tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    for module in (folders, idx):
        (tmp_path / module.__name__).mkdir()
        with pytest.raises(InputError, match="several labels"):
            module.write(data, tmp_path / module.__name__)


# --- what each cannot hold --------------------------------------------------------------------


def lost(module: Any, data: Dataset, folder: Path) -> str:
    folder.mkdir()
    return " ".join(module.write(data, folder))


def refused(module: Any, data: Dataset, folder: Path) -> str:
    folder.mkdir()
    with pytest.raises(InputError) as caught:
        module.write(data, folder)
    return str(caught.value)


def test_folders_cannot_hold(tmp_path: Path) -> None:
    images = pixels(4, 5, 5, 3)
    parts = {"train": np.array([0, 1]), "val": np.array([2, 3])}
    data = made(images, [0, 1, 0, 0], splits=parts)
    assert "val has no image of b" in refused(folders, data, tmp_path / "1")
    for bad in ("x/y", "images", "..", ".hidden", "a.png", "", "c:"):
        folder = tmp_path / f"2 {bad.replace('/', '_')}"
        assert "no folder of a class" in refused(
            folders, made(images, [0, 1, 0, 1], (bad, "b")), folder
        )
    said = lost(folders, made(images, [0, 2, 0, 2], ("b", "never", "a")), tmp_path / "3")
    assert "1 classes have no image and are lost: never." in said
    assert "order of the classes was lost" in said


def test_tables_cannot_hold(tmp_path: Path) -> None:
    images = pixels(4, 5, 5, 3)
    said = lost(table, made(images, [0, 2, 0, 2], ("b", "never", "a")), tmp_path / "1")
    assert "1 classes have no image and are lost: never." in said
    assert "order of classes was lost" in said
    assert "cannot hold the classes" in refused(
        table, made(images, [0, 1, 0, 1], (" a", "b")), tmp_path / "2"
    )
    many = np.ones((4, 2), bool)
    for bad in ("Label", "set", "a;b"):
        folder = tmp_path / f"3 {bad}"
        assert "cannot hold" in refused(table, made(images, many, (bad, "b")), folder)


def test_idx_cannot_hold(tmp_path: Path) -> None:
    parts = {name: np.array([2 * k, 2 * k + 1]) for k, name in enumerate(("train", "val", "test"))}
    data = made(pixels(6, 5, 4, 3), [0, 2, 0, 2, 0, 2], ("b", "c", "a"), splits=parts)
    said = lost(idx, data, tmp_path / "1")
    assert "The 2 images of val went into train" in said
    assert "6 images lost their colours." in said
    assert "3 names of classes were lost" in said
    assert "1 classes have no image and are lost: c." in said
    back = idx.read(str(tmp_path / "1"))
    assert back.classes == ("0", "2")
    assert {split: len(ids) for split, ids in back.splits.items()} == {"train": 4, "test": 2}
    grey = cv2.cvtColor(data[2].image, cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(back[2].image[..., 0], grey)
    two = made(JoinedImages({"x": pixels(1, 5, 5), "y": pixels(1, 6, 5)}), [0, 1])
    assert "2 sizes (the smallest is (5, 5), the largest (6, 5))" in refused(
        idx, two, tmp_path / "2"
    )
    # EMNIST's letters are the classes 1 to 26.
    letters = made(pixels(2, 5, 5), [1, 0], ("1", "26"))
    assert lost(idx, letters, tmp_path / "3") == ""
    assert idx.read(str(tmp_path / "3")).classes == ("1", "26")


def test_cifar_cannot_hold(tmp_path: Path) -> None:
    data = made(pixels(8, 31, 32, 3), np.arange(8) % 2)
    assert "8 of 8 images are not 32 × 32" in refused(cifar, data, tmp_path / "1")
    data = made(pixels(8, 32, 32, 3), np.arange(8) % 2)
    assert "has 8 images to train and 0 to test" in refused(cifar, data, tmp_path / "2")
    parts = {"train": np.arange(6), "val": np.arange(6, 8)}
    data = made(pixels(8, 32, 32, 3), np.arange(8) % 2, splits=parts)
    assert "2 images of val became those of test" in lost(cifar, data, tmp_path / "3")
    back = cifar.read(str(tmp_path / "3"))
    np.testing.assert_array_equal(back[7].image, data[7].image)


@pytest.mark.skipif("VIDI_DATA" not in os.environ, reason="VIDI_DATA names no folder")
def test_camvid_is_copied_file_by_file(tmp_path: Path) -> None:
    data = open_data(Path(os.environ["VIDI_DATA"]) / "camvid")
    ids = {split: found[:4] for split, found in data.splits.items()}
    data.splits = ids
    back, notes = written(masks, data, tmp_path / "out")
    assert notes == []
    for split, found in ids.items():
        for i, sample in zip(found, back.split(split), strict=True):
            key = data.images.key(int(i))
            assert filecmp.cmp(f"{data.root}/{key}", tmp_path / "out" / sample.key, shallow=False)
            np.testing.assert_array_equal(sample.mask, data[int(i)].mask)
