"""Opening whatever a user names: paths, names, objects; splits; and what is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidi.data.dataset import Dataset
from vidi.data.formats import cifar, folders
from vidi.data.open import from_images, open_data
from vidi.errors import InputError
from vidi.types import Sample


def picture(seed: int = 0, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def tree(folder: Path, *prefixes: str, n: int = 10) -> str:
    for prefix in prefixes:
        for i in range(n):
            path = folder / prefix / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(picture(i)))
    return str(folder)


class Pairs:
    """(image, label) as a user's own dataset gives them."""

    def __init__(self, n: int = 40, classes: int = 4, seed: int = 0) -> None:
        self.n, self.k, self.seed = n, classes, seed

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return picture(self.seed + i), i % self.k


# --- splits -----------------------------------------------------------------------------------


def test_own_splits_are_kept(tmp_path: Path) -> None:
    source = tree(tmp_path, "train/a", "train/b", "val/a", "val/b", "test/a", "test/b")
    found = open_data(source)
    for name, ids in found.splits.items():
        assert {found.images.key(int(i)).split("/")[0] for i in ids} == {name}
    assert list(found.splits) == ["train", "val", "test"]


def test_train_and_val_have_no_test(tmp_path: Path) -> None:
    assert list(open_data(tree(tmp_path, "train/a", "train/b", "val/a", "val/b")).splits) == [
        "train",
        "val",
    ]


def test_validation_is_carved_from_train_never_from_test(tmp_path: Path) -> None:
    source = tree(tmp_path, "train/a", "train/b", "test/a", "test/b", n=20)
    found = open_data(source)
    assert list(found.splits) == ["train", "val", "test"]
    assert [len(found.splits[s]) for s in ("train", "val", "test")] == [36, 4, 40]
    assert found.class_counts("val").tolist() == [2, 2]
    together = np.concatenate(list(found.splits.values()))
    assert sorted(together.tolist()) == list(range(80))
    assert all(found.images.key(int(i)).startswith("train/") for i in found.splits["val"])
    assert any("held out" in note and "seed 0" in note for note in found.notes)
    again = open_data(source)
    assert found.fingerprint() == again.fingerprint()
    assert found.fingerprint() != open_data(source, seed=1).fingerprint()
    assert found.fingerprint() != open_data(source, val_fraction=0.2).fingerprint()


def test_without_splits_there_is_train_and_val(tmp_path: Path) -> None:
    found = open_data(tree(tmp_path, "a", "b"))
    assert {name: len(ids) for name, ids in found.splits.items()} == {"train": 18, "val": 2}
    assert list(open_data(tmp_path, carve_val=False).splits) == ["train"]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 7])
def test_impossible_fraction(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(InputError, match=r"--data\.val-fraction is .* between 0 and 1"):
        open_data(tree(tmp_path, "a", "b"), val_fraction=fraction)


def test_digits() -> None:
    found = open_data("digits")
    assert len(found) == 1797
    assert found.class_counts("test").min() >= 34
    assert found.class_counts("val").min() >= 14
    sample = found.split("test")[0]
    assert sample.image.shape == (8, 8, 3)
    assert next(iter(found)).key == "digits/000000"


def test_fingerprint_follows_names_labels_and_splits(tmp_path: Path) -> None:
    source = tree(tmp_path, "a", "b")
    before = open_data(source).fingerprint()
    (tmp_path / "a" / "00.png").rename(tmp_path / "a" / "0.png")
    renamed = open_data(source).fingerprint()
    (tmp_path / "a" / "0.png").rename(tmp_path / "b" / "0.png")
    assert len({before, renamed, open_data(source).fingerprint()}) == 3


# --- what is refused, each with a sentence ------------------------------------------------------


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_data(source, **options)
    assert str(caught.value).endswith(".")
    return str(caught.value)


def test_empty_folder(tmp_path: Path) -> None:
    assert f"{tmp_path} is an empty folder." in refused(tmp_path)


def test_nothing_there_and_dangling_link(tmp_path: Path) -> None:
    assert "There is no " in refused(tmp_path / "gone")
    (tmp_path / "link").symlink_to("gone")
    assert "is a link to gone, which does not exist" in refused(tmp_path / "link")


def test_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"x")
    assert "a file in no format known here" in refused(tmp_path / "a.docx")
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    assert "a.tar.gz is cut short or damaged" in refused(tmp_path / "a.tar.gz")


def test_images_without_a_class(tmp_path: Path) -> None:
    tree(tmp_path, ".", n=3)
    assert "holds 3 images without a class" in refused(tmp_path)
    (tmp_path / "labels.csv").write_text("path,label\n")
    assert "If labels.csv says the classes, name that file" in refused(tmp_path)


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert "the folders a, b, in which no folder of images per class" in refused(tmp_path)


def test_one_class_only(tmp_path: Path) -> None:
    assert "of one class only (a)" in refused(tree(tmp_path, "a"))
    assert "of one class only (a)" in refused(tree(tmp_path / "split", "train/a", "val/a"))


def test_class_with_one_image(tmp_path: Path) -> None:
    tree(tmp_path, "a", "b")
    tree(tmp_path, "lonely", n=1)
    assert "only one training image of lonely" in refused(tmp_path)
    tree(tmp_path / "own", "train/a", "train/b", "val/a", "val/b", n=1)
    assert len(open_data(tmp_path / "own")) == 4  # with a split of one's own it is in both


def test_only_a_test_split(tmp_path: Path) -> None:
    source = tree(tmp_path, "test/a", "test/b")
    assert "has no training split, only test" in refused(source)
    assert list(open_data(source, classes=("a", "b")).splits) == ["test"]


def test_two_readings_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "digits", "a", "b")
    monkeypatch.chdir(tmp_path)
    sentence = refused("digits")
    assert "can be read in 2 ways" in sentence
    assert "Write ./ before it" in sentence
    assert open_data("./digits").classes == ("a", "b")
    cifar.fake(tmp_path / "digits")
    sentence = refused("./digits")
    assert "cifar: " in sentence
    assert "folders: " in sentence


def test_other_task(tmp_path: Path) -> None:
    assert "holds data for classification (folders), not for detection" in refused(
        tree(tmp_path, "a", "b"), task="detection"
    )


def test_table_whose_splits_differ_in_classes(tmp_path: Path) -> None:
    tree(tmp_path, "p", n=6)
    rows = ["p/00.png,a,train", "p/01.png,b,train", "p/02.png,a,val"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows, "p/03.png,c,val"]))
    assert "differ between the splits: c in val but not in train" in refused(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    assert "The split val has no image of the classes b." in open_data(tmp_path / "t.csv").notes


def test_too_many_megapixels(tmp_path: Path) -> None:
    found = open_data(tree(tmp_path, "a", "b"), max_megapixels=0.0001)
    with pytest.raises(InputError, match=r"at most 0\.0001 million"):
        found[0]
    with pytest.raises(InputError, match=r"at most 0\.0001 million"):
        found.images.size(0)


# --- the user's own ---------------------------------------------------------------------------


def test_pairs() -> None:
    found = open_data(Pairs())
    assert found.classes == ("0", "1", "2", "3")
    assert {name: len(ids) for name, ids in found.splits.items()} == {"train": 36, "val": 4}
    sample = found[6]
    assert (sample.key, sample.label) == ("sample/000006", 2)
    np.testing.assert_array_equal(sample.image, picture(6))
    assert found.sample(6, shorter=6).image.shape == (6, 8, 3)
    with pytest.raises(IndexError):
        found[40]


def test_samples_and_named_labels() -> None:
    rows = [Sample(key="x", image=picture(i), label=i % 2) for i in range(8)]
    assert open_data(rows).labels.tolist() == [0, 1] * 4
    named = [(picture(i), ("wet", "dry")[i % 2]) for i in range(8)]
    found = open_data(named)
    assert found.classes == ("dry", "wet")
    assert [found.classes[k] for k in found.labels[:2]] == ["wet", "dry"]
    assert found[0].label == 1


def test_numbers_without_an_image_are_classes_without_an_image() -> None:
    found = open_data([(picture(i), (0, 3)[i % 2]) for i in range(8)])
    assert found.classes == ("0", "1", "2", "3")
    assert "The split train has no image of the classes 1, 2." in found.notes


def test_mapping_of_splits(tmp_path: Path) -> None:
    found = open_data({"train": Pairs(40), "val": Pairs(12, seed=100)})
    assert {name: len(ids) for name, ids in found.splits.items()} == {"train": 40, "val": 12}
    sample = found.split("val")[3]
    assert (sample.key, sample.label) == ("val/000003", 3)
    np.testing.assert_array_equal(sample.image, picture(103))

    train, val = tree(tmp_path / "one", "a", "b"), tree(tmp_path / "two", "b", "a", n=2)
    found = open_data({"train": train, "val": Path(val)})
    assert [found.images.key(i) for i in (0, 23)] == ["train/a/00.png", "val/b/01.png"]
    assert found.split("val").labels.tolist() == [0, 0, 1, 1]
    assert found.images.size(23) == (12, 16)
    first, other = found.images.identity(0), found.images.identity(20)
    assert first is not None
    assert other is not None
    assert first != other

    assert "train is expected" in refused({"training": Pairs()})
    assert "is itself divided" in refused(
        {"train": Pairs(), "val": tree(tmp_path, "train/a", "val/a")}
    )


def test_torchvisions_datasets_spare_the_look_at_every_item() -> None:
    class Counting(Pairs):
        classes = ("north", "east", "south", "west")
        asked = 0

        def __init__(self) -> None:
            super().__init__()
            self.targets = [i % 4 for i in range(40)]

        def __getitem__(self, i: int) -> Any:
            self.asked += 1
            return super().__getitem__(i)

    source = Counting()
    found = open_data(source)
    assert found.classes == source.classes
    assert source.asked == 0
    source.targets.reverse()
    found = open_data(source)  # targets that are wrong do not stay unnoticed
    with pytest.raises(InputError, match="has the label 2 now and had 1"):
        found[2]


def test_kinds_of_image() -> None:
    torch = pytest.importorskip("torch")
    image = picture()
    rgba = np.concatenate([image, np.full_like(image[..., :1], 128)], 2)
    kinds: list[tuple[Any, np.ndarray]] = [
        (image, image),
        (Image.fromarray(image), image),
        (torch.from_numpy(image).permute(2, 0, 1), image),
        (torch.from_numpy(image).permute(2, 0, 1).float() / 255, image),
        (image[..., 0], image[..., :1].repeat(3, 2)),
        (image / 255, image),
        (image.astype(np.uint16) * 257, image),
        (Image.fromarray(image).convert("L"), np.asarray(Image.fromarray(image).convert("L"))),
        (rgba, (image * (128 / 255) + 127).round()),
    ]
    found = open_data([(given, i % 2) for i, (given, _) in enumerate(kinds)], carve_val=False)
    for i, (_, expected) in enumerate(kinds):
        expected = expected if expected.ndim == 3 else np.stack([expected] * 3, 2)
        assert np.abs(found[i].image - expected.astype(float)).max() <= (1 if i == 8 else 0), i
        assert found[i].image.dtype == np.uint8


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([], "has no samples"),
        ([picture()], "a pair"),
        ([(picture(), 0.5)], "has the label 0.5"),
        ([(picture(), None)], "has the label None"),
        ([(picture(), [1, 2])], "has the label"),
        ([(picture(), 0), (picture(), -1)], "has the label -1"),
        ([(picture(), 0), (picture(), "a")], "of several kinds"),
        ([(picture(), 0)] * 3, "one class only"),
    ],
)
def test_bad_objects(items: Any, sentence: str) -> None:
    assert sentence in refused(items)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (picture() - 0.5, "floating-point values from"),
        (picture().astype(np.int64), "array of int64"),
        (picture().transpose(2, 0, 1), "array of shape"),
        (np.zeros((0, 4, 3), np.uint8), "array of shape"),
        (np.full((4, 4, 3), np.nan), "floating-point values from nan"),
        ("a path", "has a str for an image"),
        (Image.new("F", (4, 4)), "mode F"),
    ],
)
def test_bad_images_of_objects(image: Any, sentence: str) -> None:
    found = open_data([(image, 0), (picture(), 1)] * 2)
    with pytest.raises(InputError, match=sentence) as caught:
        found[0]
    assert "sample/000000" in str(caught.value)


def test_neither_path_nor_object() -> None:
    assert "given as a int" in refused(7)
    assert "Hand it over again" in refused(open_data(Pairs()).root)


def test_dataset_is_taken_as_it_is(tmp_path: Path) -> None:
    found = folders.read(tree(tmp_path, "a", "b"))
    assert isinstance(open_data(found), Dataset)
    assert open_data(open_data(found)).splits.keys() == {"train", "val"}


# --- for a run that exists ----------------------------------------------------------------------


def test_labels_follow_the_runs_classes(tmp_path: Path) -> None:
    found = open_data(tree(tmp_path, "b", "c"), classes=("c", "a", "b"), carve_val=False)
    assert found.classes == ("c", "a", "b")
    assert found.labels.tolist() == [2] * 10 + [0] * 10
    assert "has the classes b" in refused(str(tmp_path), classes=("a", "c"))


def test_images_to_be_predicted(tmp_path: Path) -> None:
    tree(tmp_path, "a", n=2)
    (tmp_path / "bad.jpg").write_bytes(b"")
    paths = [tmp_path / "a" / "01.png", str(tmp_path / "a" / "00.png"), tmp_path / "bad.jpg"]
    found = from_images(paths)
    assert [found.images.key(i) for i in range(3)] == [str(p) for p in paths]
    np.testing.assert_array_equal(found[0].image, picture(1))
    assert found[0].label == -1
    with pytest.raises(InputError, match="empty"):
        found[2]
    given = from_images([picture(5), Image.fromarray(picture(6))])
    assert given.images.key(1) == "image 1"
    np.testing.assert_array_equal(given[1].image, picture(6))
    with pytest.raises(InputError, match="one kind at a time"):
        from_images([picture(), "a.jpg"])
    with pytest.raises(InputError, match="no image"):
        from_images([])


def test_a_dataset_prints_what_it_is(tmp_path: Path) -> None:
    found = open_data(tree(tmp_path, "a", "b"))
    lines = str(found).splitlines()
    assert lines[0] == f"{tmp_path}: classification (folders)"
    assert lines[-2].startswith("2 classes; images: train ")
    assert lines[-1] == "classes: a, b"
    assert repr(found).startswith(f"<classification dataset {tmp_path} (folders): train ")


def several(tmp_path: Path, name: str, columns: str) -> Path:
    """A table with a 0/1 column per class, of two images."""
    tree(tmp_path, "p", n=2)
    ones = ",".join("1" for _ in columns.split(","))
    zeros = ones.replace("1", "0", 1)
    file = tmp_path / name
    file.write_text(f"path,{columns}\np/00.png,{ones}\np/01.png,{zeros}\n")
    return file


def test_several_labels_follow_a_runs_classes(tmp_path: Path) -> None:
    file = several(tmp_path, "t.csv", "b,a")
    found = open_data(file, task="multilabel", classes=("a", "b", "c"), carve_val=False)
    assert found.labels is not None
    assert found.labels.tolist() == [[True, True, False], [True, False, False]]
    assert open_data(file, task="classification").task == "multilabel"
    sentence = refused(file, task="classification", classes=("a", "b"), carve_val=False)
    assert "multilabel (table), not for classification" in sentence


def test_splits_of_different_kinds_are_not_joined() -> None:
    data = {"train": [(picture(), [1, 0]), (picture(), [0, 1])], "val": [(picture(), 0)] * 2}
    assert "train for multilabel, val for classification" in refused(data)
