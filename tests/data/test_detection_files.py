"""Detections in files: what is written comes back to the bit, and other programs read it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidi.data import detection_files as files
from vidi.data.dataset import Dataset
from vidi.data.formats import coco, voc, yolo
from vidi.data.open import open_data
from vidi.engine.detection_scores import score
from vidi.errors import InputError
from vidi.types import Array, Detections

SIZE = 233, 377
CLASSES = ("ant", "big & <bad>", "cat")


def drawn(n: int, seed: int = 0, classes: int = 3, size: tuple[int, int] = SIZE) -> Detections:
    """Boxes with all the digits that float32 has."""
    rng = np.random.default_rng(seed)
    h, w = size
    corners = np.sort(rng.uniform(0, 1, (n, 2, 2)), axis=1) * [w, h]
    return Detections(
        xyxy=corners.reshape(n, 4).astype(np.float32),
        labels=rng.integers(0, classes, n),
        scores=np.sort(rng.uniform(0, 1, n).astype(np.float32))[::-1],
    )


def same(a: Detections, b: Detections) -> None:
    np.testing.assert_array_equal(a.xyxy, b.xyxy)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.scores, b.scores)
    assert [str(x.dtype) for x in (a.xyxy, a.labels, a.scores)] == ["float32", "int64", "float32"]


@pytest.mark.parametrize("n", [0, 1, 300])
def test_what_is_written_comes_back_to_the_bit(n: int, tmp_path: Path) -> None:
    found, more = drawn(n), drawn(n, seed=1)
    files.write_coco(tmp_path / "a.json", [(7, found), ("b", more)], [3, 1, 90])
    read, others = files.read_coco(
        tmp_path / "a.json", {7: "x/7.png", "b": "b.png"}, {3: 0, 1: 1, 90: 2}
    )
    assert others == 0
    if n:
        same(read["x/7.png"], found)
        same(read["b.png"], more)
    files.write_voc(tmp_path / "a.xml", "a & b.png", SIZE, found, CLASSES)
    strange: Counter[str] = Counter()
    same(files.read_voc(tmp_path / "a.xml", CLASSES, strange), found)
    assert not strange
    files.write_yolo(tmp_path / "a.txt", SIZE, found)
    same(files.read_yolo(tmp_path / "a.txt", SIZE, range(3)), found)


def test_the_surest_come_first_and_equals_stay_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0 .5 .5 .1 .1 0.2\n1 .5 .5 .1 .1 0.9\n2 .5 .5 .1 .1 0.2\n")
    found = files.read_yolo(tmp_path / "a.txt", (10, 20), range(3))
    assert found.labels.tolist() == [1, 0, 2]
    np.testing.assert_allclose(found.xyxy[0], [9, 4.5, 11, 5.5], rtol=1e-6)


def predicted(dataset: Dataset, split: str, seed: int = 5) -> dict[str, Detections]:
    """The true boxes, moved a little, some of another class, and a few of nothing."""
    rng = np.random.default_rng(seed)
    out = {}
    for i in map(int, dataset.splits[split]):
        boxes = dataset.annotations(i)["boxes"]
        n, k = len(boxes), len(dataset.classes)
        sides = np.tile(boxes.xyxy[:, 2:] - boxes.xyxy[:, :2], 2)
        moved = boxes.xyxy + rng.normal(0, 0.1, (n, 4)) * sides
        more = drawn(3, seed=i, classes=k, size=dataset.images.size(i))
        labels = np.where(rng.random(n) < 0.8, boxes.labels, rng.integers(0, k, n))
        xyxy = np.concatenate([moved, more.xyxy])
        xyxy[:, 2:] = np.maximum(xyxy[:, 2:], xyxy[:, :2])
        scores = rng.uniform(0.01, 1, n + 3).astype(np.float32)
        order = np.argsort(-scores)
        out[dataset.images.key(i)] = Detections(
            xyxy=xyxy[order].astype(np.float32),
            labels=np.concatenate([labels, more.labels])[order],
            scores=scores[order],
        )
    return out


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scenes in all three formats."""
    folder = tmp_path_factory.mktemp("scenes")
    made = open_data("scenes:detection,size=64x96,n=2,val=12,test=0", carve_val=False)
    for name, kind in (("coco", coco), ("voc", voc), ("yolo", yolo)):
        (folder / name).mkdir()
        kind.write(made, folder / name)
    return folder


def data_of(scenes: Path, name: str) -> Dataset:
    return open_data(str(scenes / name), task="detection", carve_val=False)


def test_cocos_file_is_written_as_its_rows_come(tmp_path: Path) -> None:
    found = drawn(1, classes=1)

    def rows() -> Iterator[tuple[int, Detections]]:
        for k in range(1000):
            yield k, found
        assert (tmp_path / "results.json").stat().st_size > 40_000

    files.write_coco(tmp_path / "results.json", rows(), [1])
    assert [one["image_id"] for one in json.loads((tmp_path / "results.json").read_text())] == [
        *range(1000)
    ]
    files.write_coco(tmp_path / "results.json", iter(()), [1])
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_pycocotools_reads_the_results_and_agrees_on_the_score(
    scenes: Path, tmp_path: Path
) -> None:
    tools = pytest.importorskip("pycocotools.coco")
    judges = pytest.importorskip("pycocotools.cocoeval")
    data = data_of(scenes, "coco")
    numbers = files.coco_numbers(str(scenes / "coco"), "val")
    found = predicted(data, "val")
    named = []
    for key, one in found.items():
        number = numbers.image(key)
        assert number is not None
        named.append((number, one))
    path = tmp_path / "results.json"
    files.write_coco(path, named, [numbers.categories[name] for name in data.classes])
    truth = tools.COCO(numbers.path)
    judge = judges.COCOeval(truth, truth.loadRes(str(path)), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    result = score(path, scenes / "coco", split="val")
    assert result.metrics["map"] == pytest.approx(judge.stats[0], abs=1e-6)
    assert result.metrics["map50"] == pytest.approx(judge.stats[1], abs=1e-6)
    assert result.metrics["recall100"] == pytest.approx(judge.stats[8], abs=1e-6)
    assert 0.2 < result.metrics["map50"] < 0.95
    assert result.count == 12


def write(kind: str, folder: Path, dataset: Dataset, found: dict[str, Detections]) -> None:
    folder.mkdir()
    if kind == "coco":
        categories = range(1, len(dataset.classes) + 1)
        if dataset.format == "coco":
            numbers = files.coco_numbers(dataset.root, "val")
            categories = [numbers.categories[name] for name in dataset.classes]  # type: ignore[assignment]
            rows: list[tuple[Any, Detections]] = [(numbers.image(k), d) for k, d in found.items()]
        else:
            rows = [(files.image_number(k), d) for k, d in found.items()]
        files.write_coco(folder / files.RESULTS, rows, categories)
    for i in map(int, dataset.splits["val"]):
        key = dataset.images.key(i)
        stem = Path(key).stem
        if kind == "voc":
            size = dataset.images.size(i)
            files.write_voc(folder / f"{stem}.xml", key, size, found[key], dataset.classes)
        if kind == "yolo":
            files.write_yolo(folder / f"{stem}.txt", dataset.images.size(i), found[key])


@pytest.mark.parametrize("data", ["coco", "voc", "yolo"])
@pytest.mark.parametrize("kind", files.FORMATS)
def test_every_format_is_scored_against_every_data_alike(
    data: str, kind: str, scenes: Path, tmp_path: Path
) -> None:
    dataset = data_of(scenes, data)
    found = predicted(dataset, "val")
    write(kind, tmp_path / "made", dataset, found)
    assert files.kind_of(tmp_path / "made") == kind
    read, notes = files.read(tmp_path / "made", dataset, "val")
    guessed = kind == "coco" and data != "coco"
    assert [note[:22] for note in notes] == ["The data is not COCO's"] * guessed
    assert list(read) == list(found)
    for key, one in found.items():
        same(read[key], one)
    result = score(tmp_path / "made", scenes / data, split="val")
    meter = result.details["per_class"]
    assert sum(row["detections"] for row in meter) == sum(map(len, found.values()))


def test_the_annotation_readers_see_the_same_boxes(scenes: Path, tmp_path: Path) -> None:
    """Where the scores are left out, the files are annotations, as data.formats reads them."""
    dataset = data_of(scenes, "voc")
    found = predicted(dataset, "val")
    for kind in ("voc", "yolo"):
        write(kind, tmp_path / kind, dataset, found)
        folder = tmp_path / f"{kind}-data"
        shutil.copytree(scenes / kind, folder)
        for path in (tmp_path / kind).iterdir():
            target = next(folder.rglob(path.name))
            text = path.read_text()
            if kind == "yolo":
                rows = [line.rsplit(" ", 1)[0] for line in text.splitlines()]
                # The two number their classes in orders of their own.
                own = [dataset.classes[int(row.split()[0])] for row in rows]
                names = data_of(scenes, "yolo").classes
                rows = [f"{names.index(name)} {row.split(' ', 1)[1]}" for name, row in
                        zip(own, rows, strict=True)]  # fmt: skip
                text = "\n".join(rows)
            target.write_text(text)
        read = open_data(str(folder), task="detection", carve_val=False)
        for i in map(int, read.splits["val"]):
            boxes = read.annotations(i)["boxes"]
            stem = Path(read.images.key(i)).stem
            one = next(d for key, d in found.items() if Path(key).stem == stem)
            np.testing.assert_array_equal(boxes.xyxy, one.xyxy)
            assert [read.classes[k] for k in boxes.labels] == [
                dataset.classes[k] for k in one.labels
            ]


def test_perfect_detections_score_one_and_silence_scores_nothing(
    scenes: Path, tmp_path: Path
) -> None:
    dataset = data_of(scenes, "voc")
    truth = {}
    for i in map(int, dataset.splits["val"]):
        boxes = dataset.annotations(i)["boxes"]
        truth[dataset.images.key(i)] = Detections(
            xyxy=boxes.xyxy, labels=boxes.labels, scores=np.ones(len(boxes), np.float32)
        )
    write("yolo", tmp_path / "all", dataset, truth)
    result = score(tmp_path / "all", scenes / "voc", split="val")
    assert result.metrics["map"] == pytest.approx(1)
    assert all(row["missed"] == 0 for row in result.details["errors"])
    # Without a file nothing was found in that image.
    objects = [len(one) for one in truth.values()]
    for key in list(truth)[:6]:
        (tmp_path / "all" / f"{Path(key).stem}.txt").unlink()
    result = score(tmp_path / "all", scenes / "voc", split="val")
    assert any("says nothing of 6 of the 12 images" in note for note in result.notes)
    assert sum(row["missed"] for row in result.details["errors"]) == sum(objects[:6])


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_classes_by_name_where_a_file_names_them(kind: str, scenes: Path, tmp_path: Path) -> None:
    dataset = data_of(scenes, "voc")
    found = predicted(dataset, "val")
    turned = {
        key: Detections(
            xyxy=one.xyxy, labels=len(dataset.classes) - 1 - one.labels, scores=one.scores
        )
        for key, one in found.items()
    }
    write(kind, tmp_path / "made", dataset, turned)
    (tmp_path / "made" / "classes.txt").write_text("\n".join(reversed(dataset.classes)) + "\n")
    read, notes = files.read(tmp_path / "made", dataset, "val")
    assert not notes
    for key, one in found.items():
        same(read[key], one)
    (tmp_path / "made" / "classes.txt").write_text("whale\n")
    with pytest.raises(InputError, match="classes that the data does not have: whale"):
        files.read(tmp_path / "made", dataset, "val")


def test_voc_objects_of_other_classes_are_left_and_counted(scenes: Path, tmp_path: Path) -> None:
    dataset = data_of(scenes, "voc")
    found = predicted(dataset, "val")
    write("voc", tmp_path / "made", dataset, found)
    first = next(key for key, one in found.items() if (one.labels == 0).any())
    path = tmp_path / "made" / f"{Path(first).stem}.xml"
    path.write_text(path.read_text().replace(f"<name>{dataset.classes[0]}<", "<name>whale<"))
    read, notes = files.read(tmp_path / "made", dataset, "val")
    gone = int((found[first].labels == 0).sum())
    assert len(read[first]) == len(found[first]) - gone
    assert any(f"{gone} detections are of classes" in n and "whale" in n for n in notes)


def test_images_in_folders_of_one_name(tmp_path: Path) -> None:
    """A file is an image's by as many of the folders as there are, and never two images'."""
    made = open_data("scenes:detection,size=32,n=1,val=2,test=0", carve_val=False)
    yolo.write(made, tmp_path / "data")
    images, labels = (tmp_path / "data" / part / "val" for part in ("images", "labels"))
    for folder in (images, labels):
        for k, path in enumerate(sorted(folder.iterdir())):
            (folder / str(k)).mkdir()
            path.rename(folder / str(k) / f"same{path.suffix}")
    dataset = open_data(str(tmp_path / "data"), task="detection", carve_val=False)
    made_folder = tmp_path / "made"
    for k, path in enumerate(sorted(labels.rglob("*.txt"))):
        (made_folder / str(k)).mkdir(parents=True)
        rows = path.read_text().splitlines()
        (made_folder / str(k) / "same.txt").write_text("".join(f"{row} 1\n" for row in rows))
    read, _ = files.read(made_folder, dataset, "val")
    for i in map(int, dataset.splits["val"]):
        xyxy = dataset.annotations(i)["boxes"].xyxy
        np.testing.assert_array_equal(read[dataset.images.key(i)].xyxy, xyxy)
    shutil.copy(made_folder / "0" / "same.txt", made_folder / "same.txt")
    shutil.rmtree(made_folder / "0")
    shutil.rmtree(made_folder / "1")
    with pytest.raises(InputError, match="would be for"):
        files.read(made_folder, dataset, "val")
    (made_folder / "same.txt").unlink()
    files.write_coco(made_folder / files.RESULTS, [("same", drawn(1, classes=1))], [1])
    with pytest.raises(InputError, match="several images of the split are called 'same'"):
        files.read(made_folder, dataset, "val")


def test_numbers_are_the_files_own(tmp_path: Path) -> None:
    coco.fake(tmp_path)
    numbers = files.coco_numbers(str(tmp_path))
    assert numbers.categories == {"bee": 7, "ant": 2, "cat": 90}
    assert numbers.image("/far/away/train/000000000001.png") == 15
    assert numbers.image("elsewhere.png") is None
    assert files.coco_numbers(str(tmp_path), "val").image("000000000001.png") is None
    assert files.image_number("a/000000000139.jpg") == 139
    assert files.image_number("a/b.c.jpg") == "b.c"
    path = tmp_path / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"name": "bee"', '"name": "wasp"'))
    path.write_text(path.read_text().replace('"id": 90', '"id": 91'))
    with pytest.raises(InputError, match="differ in the number of cat"):
        files.coco_numbers(str(tmp_path))


Spoil = Callable[[list[Any]], Any]


def with_field(name: str, value: Any) -> Spoil:
    def spoil(rows: list[Any]) -> Any:
        rows[1] = {**rows[1], name: value}
        return rows

    return spoil


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda rows: {"annotations": rows}, "holds annotations; COCO's results are a list"),
        (lambda rows: [3], "result 0 is no object"),
        (with_field("image_id", None), "result 1: its image_id is None"),
        (with_field("category_id", 4), "result 1: its category_id is 4; the data has 1; 2"),
        (with_field("category_id", True), "result 1: its category_id is True"),
        (with_field("bbox", [1, 2, 3]), r"result 1: its bbox is \[1, 2, 3\]"),
        (with_field("bbox", [1, 2, -3, 4]), "width and height are not negative"),
        (with_field("bbox", [1, 2, float("nan"), 4]), "a side of its bbox is nan"),
        (with_field("score", None), "result 1: its score is None"),
        (with_field("score", "high"), "its score is None; a finite number"),
        (with_field("score", 10**400), "its score is 1000"),
    ],
)
def test_what_is_wrong_with_results_is_said(spoil: Spoil, sentence: str, tmp_path: Path) -> None:
    row = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(spoil([dict(row), dict(row)])))
    with pytest.raises(InputError, match=sentence):
        files.read_coco(path, {1: "a"}, {1: 0, 2: 1})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2", "line 1, column .*: the JSON is damaged or cut short"),
        ("[" * 100_000, "lists in lists beyond all measure"),
        ("[" + "1" * 5000 + "]", "a number that cannot be read"),
    ],
)
def test_damaged_json(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        files.read_coco(tmp_path / "a.json", {}, {})


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("0 .5 .5 .1 .1", "line 2: 5 numbers were found, and no confidence"),
        ("0 .5 .5 .1 .1 .9 7", "line 2: 7 numbers were found; a class"),
        ("3 .5 .5 .1 .1 .9", "line 2: the class is 3; 0 to 2 are expected"),
        ("0.5 .5 .5 .1 .1 .9", "the class is 0.5"),
        ("0 50 50 10 10 .9", "50 50 10 10 are no shares"),
        ("0 .5 .5 -.1 .1 .9", "are no shares"),
        ("0 .5 .5 .1 .1 nan", "line 2: one of the numbers is 'nan'"),
    ],
)
def test_what_is_wrong_with_rows_is_said(row: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"0 .5 .5 .1 .1 .9\n{row}\n")
    with pytest.raises(InputError, match=sentence):
        files.read_yolo(tmp_path / "a.txt", (9, 9), range(3))


def test_what_is_wrong_with_xml_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    files.write_voc(path, "a.png", SIZE, drawn(2, classes=1), CLASSES)
    text = path.read_text()
    for old, new, sentence in (
        ("<score>", "<surety>", "damaged or cut short"),
        ("<score>0", "<score>x0", "<score> is 'x0"),
        ("  <object>\n    <name>ant</name>\n    <score>", "  <object><name>ant</name><score>-", ""),
    ):
        path.write_text(text.replace(old, new))
        if sentence:
            with pytest.raises(InputError, match=sentence):
                files.read_voc(path, CLASSES, Counter())
        else:  # a score may be any finite number
            assert (files.read_voc(path, CLASSES, Counter()).scores < 0).all()
    path.write_text(text.replace("<score>", "<!--").replace("</score>", "-->"))
    with pytest.raises(InputError, match="line 4: the ant has no <score>"):
        files.read_voc(path, CLASSES, Counter())


def test_what_holds_no_detections(scenes: Path, tmp_path: Path) -> None:
    dataset = data_of(scenes, "yolo")
    (tmp_path / "readme.txt").write_text("These are maps.\n")
    assert files.kind_of(tmp_path) is None
    assert files.kind_of(tmp_path / "nowhere") is None
    for path, sentence in ((tmp_path, "holds no detections"), (tmp_path / "no", "is not there")):
        with pytest.raises(InputError, match=sentence):
            files.read(path, dataset, "val")
    (tmp_path / "readme.txt").unlink()
    (tmp_path / "stranger.txt").write_text("0 .5 .5 .1 .1 .9\n")
    with pytest.raises(InputError, match="says nothing of the 12 images of the split val"):
        files.read(tmp_path, dataset, "val")


def test_coco_mini_against_its_own_boxes(real_data: Path, tmp_path: Path) -> None:
    """Category numbers with gaps, and images numbered by the file."""
    dataset = open_data(str(real_data / "coco-mini"), task="detection", carve_val=False)
    numbers = files.coco_numbers(dataset.root, "val")
    assert max(numbers.categories.values()) == 90
    rows = []
    for i in map(int, dataset.splits["val"]):
        boxes = dataset.annotations(i)["boxes"]
        own: Array = ~boxes.crowd
        number = numbers.image(dataset.images.key(i))
        assert number == files.image_number(dataset.images.key(i)), "COCO's files are so called"
        scores = np.ones(int(own.sum()), np.float32)
        rows.append(
            (number, Detections(xyxy=boxes.xyxy[own], labels=boxes.labels[own], scores=scores))
        )
    files.write_coco(
        tmp_path / "own.json", rows, [numbers.categories[name] for name in dataset.classes]
    )
    assert score(tmp_path / "own.json", dataset.root, split="val").metrics["map"] > 0.999
