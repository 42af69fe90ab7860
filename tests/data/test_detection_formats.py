"""Formats of boxes, and VOC's and COCO's masks: real counts, round trips, and what each refuses."""

import json
import os
import tracemalloc
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image

from vidi.data import formats
from vidi.data.dataset import ArrayImages, Dataset
from vidi.data.formats import boxes_table, coco, coco_masks, table, voc, voc_masks, yolo
from vidi.data.open import open_data
from vidi.data.polygons import fill
from vidi.data.rle import from_string, of_mask, to_mask, to_string
from vidi.data.simple_yaml import read_yaml
from vidi.data.truth import BoxTable
from vidi.errors import InputError
from vidi.types import Boxes, Sample

BOXES = ("boxes_table", "coco", "voc", "yolo")
MASKS = ("coco_masks", "voc_masks")
Edit = Callable[[Path], Any]


def put(path: Path, content: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def picture(path: Path, height: int = 8, width: int = 10) -> Path:
    ok, data = cv2.imencode(path.suffix, np.full((height, width, 3), 90, np.uint8))
    assert ok
    return put(path, data.tobytes())


def change(file: str, old: str, new: str) -> Edit:
    """Replaces text in one of a fake's files."""

    def edit(folder: Path) -> None:
        path = folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


def replace(file: str, content: str | bytes) -> Edit:
    return lambda folder: put(folder / file, content)


def remove(file: str) -> Edit:
    return lambda folder: (folder / file).unlink()


def cut(file: str) -> Edit:
    return lambda folder: put(folder / file, (folder / file).read_bytes()[:-30])


def refused(source: str | Path, sentence: str, *, task: str = "auto") -> None:
    """Opening it, or loading all of it, says what is wrong."""
    with pytest.raises(InputError, match=sentence):
        for _ in open_data(source, task=task, carve_val=False):
            pass


def said(found: Dataset, words: str) -> bool:
    return any(words in note for note in found.notes)


# --- run lengths and outlines -----------------------------------------------------------------


def disc() -> Any:
    y, x = np.mgrid[:48, :64]
    return (x - 30) ** 2 + (y - 20) ** 2 < 200


def spots() -> Any:
    mask = np.zeros((37, 53), bool)
    mask[5:30, 7:40], mask[10:20, 15:25] = True, False
    mask[0, 0] = mask[36, 52] = True
    return mask


PYCOCOTOOLS = [
    # What pycocotools 2.0 encodes these masks as.
    (disc(), "ch03Y18J4M2N2N2N2N2O0O2O00000O2O0001N1000001N101N2N2N2N2N3L6HQl0"),
    (spots(), "01W8h0UH00000000000000\\ON52KN52KN52KN52KN52KN52KN52KN52KN52KN52?"
     "0000000000000000000000000000k>XO"),
    (np.ones((4, 5), bool), "0d0"),
    (np.zeros((4, 5), bool), "d0"),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "text"), PYCOCOTOOLS)
def test_run_lengths_are_pycocotools(mask: Any, text: str) -> None:
    height, width = mask.shape
    runs = from_string(text.encode(), "x")
    np.testing.assert_array_equal(to_mask(runs, height, width, "x"), mask)
    assert to_string(of_mask(mask)) == text
    assert runs.tolist() == of_mask(mask).tolist()


def test_run_lengths_by_hand_and_at_random() -> None:
    # Column by column: 1 zero, 3 ones, 2 zeros.
    mask = to_mask(np.array([1, 3, 2]), 2, 3, "x")
    assert mask.astype(int).tolist() == [[0, 1, 0], [1, 1, 0]]
    rng = np.random.default_rng(0)
    for p in (0.02, 0.5, 0.98):
        mask = rng.random((31, 47)) < p
        runs = of_mask(mask)
        assert runs[1::2].sum() == mask.sum()
        assert from_string(to_string(runs).encode(), "x").tolist() == runs.tolist()
        np.testing.assert_array_equal(to_mask(runs, 31, 47, "x"), mask)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"23g", "cut short"), (b"2 3", "damaged at character 2 of 3"),
        (b"oooooooooooooooo0", "damaged"), (b"23g2", "add up to 92 pixels"),
        (b"0O0i0", "not negative"),
    ],
)  # fmt: skip
def test_damaged_run_lengths(text: bytes, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        to_mask(from_string(text, "x"), 6, 10, "x")


def test_outlines_cover_the_pixels_whose_centres_they_hold() -> None:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:20, :30] + 0.5
    for n in (3, 4, 7):
        # Star-shaped about a point, some of it outside of the image.
        turn = np.sort(rng.random(n)) * 2 * np.pi
        reach = rng.uniform(2, 18, (n, 1))
        points = [15.3, 9.7] + reach * np.stack([np.cos(turn), np.sin(turn)], 1)
        mask = np.zeros((20, 30), bool)
        fill(mask, points)
        expected = Outline(points).contains_points(np.stack([x.ravel(), y.ravel()], 1))
        np.testing.assert_array_equal(mask, expected.reshape(mask.shape))
        assert mask.any()
    left, right = np.zeros((2, 20, 30), bool)
    fill(left, np.array([[2, 1], [9.5, 1], [12.5, 8], [2, 8.0]]))
    fill(right, np.array([[9.5, 1], [20, 1], [20, 8], [12.5, 8.0]]))
    assert not (left & right).any()  # neighbours share an edge and no pixel
    assert (left | right)[1:8, 2:20].all()
    assert (left | right).sum() == 7 * 18


# --- round trips ------------------------------------------------------------------------------


def made(n: int = 7, seed: int = 0) -> Dataset:
    """Boxes at odd places in images without files, every field used."""
    rng = np.random.default_rng(seed)
    per_image = []
    for i in range(n):
        k = 0 if i == 3 else int(rng.integers(1, 5))
        low = rng.uniform(-3, 30, (k, 2))
        xyxy = np.concatenate([low, low + rng.uniform(0.3, 20, (k, 2))], 1).astype(np.float32)
        if i == 1:
            xyxy[0] = (5, 6, 5, 9)  # without area
        if i % 2:
            xyxy = xyxy.round()
        per_image.append(
            Boxes(
                xyxy=xyxy,
                labels=rng.integers(0, 3, k),
                difficult=rng.random(k) < 0.4,
                crowd=rng.random(k) < 0.3,
            )
        )
    images = ArrayImages(rng.integers(0, 256, (n, 37, 53, 3), dtype=np.uint8), {"all": n})
    return Dataset(
        root="made",
        format="made",
        task="detection",
        classes=("ant", "bee: big", 'cat, "red" #1 & <b>'),
        images=images,
        labels=None,
        splits={
            "train": np.arange(0, n - 3),
            "val": np.array([n - 3]),
            "test": np.arange(n - 2, n),
        },
        truth=BoxTable.of(per_image),
    )


def back(module: Any, folder: Path) -> Dataset:
    source = folder / "boxes.csv" if module is boxes_table else folder
    assert module.sniff(str(source)) is not None
    found: Dataset = module.read(str(source))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def in_order(dataset: Dataset) -> Iterator[Sample]:
    for split in dataset.splits:
        yield from dataset.split(split)


def same_boxes(a: Dataset, b: Dataset, *, fields: tuple[str, ...], atol: float = 0) -> None:
    assert {s: len(ids) for s, ids in a.splits.items()} == {s: len(i) for s, i in b.splits.items()}
    for x, y in zip(in_order(a), in_order(b), strict=True):
        np.testing.assert_array_equal(x.image, y.image)
        assert x.boxes is not None and y.boxes is not None
        np.testing.assert_allclose(x.boxes.xyxy, y.boxes.xyxy, rtol=0, atol=atol)
        names = [[d.classes[k] for k in s.boxes.labels] for d, s in ((a, x), (b, y))]
        assert names[0] == names[1]
        for name in fields:
            np.testing.assert_array_equal(getattr(x.boxes, name), getattr(y.boxes, name))


@pytest.mark.parametrize("name", [*BOXES, *MASKS])
def test_write_read_write_is_exact(name: str, tmp_path: Path) -> None:
    module = formats.find(name)
    start = made() if name in BOXES else module.read(module.fake(tmp_path / "fake").source)
    module.write(start, tmp_path / "a")
    first = back(module, tmp_path / "a")
    assert module.write(first, tmp_path / "b") is not None
    second = back(module, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) >= len(first) + 1
    assert first.classes == second.classes
    assert first.fingerprint() == second.fingerprint()
    for x, y in zip(first, second, strict=True):
        assert x.key == y.key
        if name in MASKS:
            np.testing.assert_array_equal(x.mask, y.mask)
            np.testing.assert_array_equal(x.instances, y.instances)


@pytest.mark.parametrize("name", BOXES)
def test_boxes_survive_to_the_bit(name: str, tmp_path: Path) -> None:
    module, start = formats.find(name), made(30)
    held = {"yolo": (), "voc": ()}.get(name, ("difficult", "crowd"))
    if name == "yolo":  # crowds are left out of it
        assert isinstance(start.truth, BoxTable)
        start.truth.crowd[:] = False
    notes = module.write(start, tmp_path / "a")
    same_boxes(start, back(module, tmp_path / "a"), fields=held)
    lost = {
        "voc": "crowds became difficult", "yolo": "difficult objects became ordinary",
        "coco": "marked by a field", "boxes_table": None,
    }[name]  # fmt: skip
    assert any(lost in note for note in notes) if lost else notes == []


@pytest.mark.parametrize("first", BOXES)
@pytest.mark.parametrize("second", BOXES)
def test_every_pair_of_box_formats(first: str, second: str, tmp_path: Path) -> None:
    """Through two formats: what both hold is the same, to the bit."""
    start = made(12, seed=5)
    assert isinstance(start.truth, BoxTable)
    if "yolo" in (first, second):
        start.truth.crowd[:] = False
    a, b = formats.find(first), formats.find(second)
    a.write(start, tmp_path / "a")
    middle = back(a, tmp_path / "a")
    b.write(middle, tmp_path / "b")
    end = back(b, tmp_path / "b")
    held = () if "yolo" in (first, second) else ("difficult",)
    if "voc" in (first, second):  # there a crowd is difficult
        start.truth.difficult |= start.truth.crowd
        held = () if (first, second) in (("coco", "voc"), ("boxes_table", "voc")) else held
    if "voc" not in (first, second) and held:
        held += ("crowd",)
    same_boxes(start, end, fields=held)


def test_what_yolo_and_voc_cannot_hold_is_counted(tmp_path: Path) -> None:
    start = made(12, seed=5)
    assert isinstance(start.truth, BoxTable)
    crowds = int(start.truth.crowd.sum())
    assert crowds > 1
    notes = yolo.write(start, tmp_path / "yolo")
    assert f"{crowds} crowds were left out: YOLO's rows would make each a single object." in notes
    found = back(yolo, tmp_path / "yolo")
    assert sum(len(s.boxes or ()) for s in found) == len(start.truth.labels) - crowds
    start.truth.labels[:] = 1
    notes = voc.write(start, tmp_path / "voc")
    assert any("2 classes have no box and are lost" in note for note in notes)


def test_masks_go_from_voc_to_coco_and_back(tmp_path: Path) -> None:
    start = voc_masks.read(voc_masks.fake(tmp_path / "fake").source)
    coco_masks.write(start, tmp_path / "coco")
    middle = coco_masks.read(str(tmp_path / "coco"))
    assert middle.classes == start.classes
    voc_masks.write(middle, tmp_path / "voc")
    end = voc_masks.read(str(tmp_path / "voc"))
    for a, b, c in zip(in_order(start), in_order(middle), in_order(end), strict=True):
        np.testing.assert_array_equal(a.mask, b.mask)
        np.testing.assert_array_equal(a.mask, c.mask)
        assert a.instances is not None and b.instances is not None
        assert ((a.instances > 0) == (b.instances > 0)).all()
        np.testing.assert_array_equal(b.instances, c.instances)


def test_masks_without_background_gain_one_class(tmp_path: Path) -> None:
    start = voc_masks.read(voc_masks.fake(tmp_path / "fake").source)
    start.classes = ("sky", "road", "car")
    notes = coco_masks.write(start, tmp_path / "coco")
    assert any("background, as number 0" in note for note in notes)
    found = coco_masks.read(str(tmp_path / "coco"))
    assert found.classes == ("background", "sky", "road", "car")
    for a, b in zip(in_order(start), in_order(found), strict=True):
        assert a.mask is not None
        np.testing.assert_array_equal(np.where(a.mask == 255, 255, a.mask + 1), b.mask)


def test_keys_that_share_a_name_stay_apart(tmp_path: Path) -> None:
    rows = ["path,xmin,ymin,xmax,ymax,label"]
    for i, name in enumerate(("a/1.jpg", "b/1.jpg", "b/2.png")):
        picture(tmp_path / name, 8 + i)
        rows.append(f"{name},{i},1,5,6,x")
    put(tmp_path / "t.csv", "\n".join(rows))
    start = boxes_table.read(str(tmp_path / "t.csv"))
    voc.write(start, tmp_path / "voc")
    names = sorted(p.name for p in (tmp_path / "voc" / "JPEGImages").iterdir())
    assert names == ["a_1.jpg", "b_1.jpg", "b_2.png"]  # the files' own bytes and suffixes
    assert (tmp_path / "voc/JPEGImages/b_1.jpg").read_bytes() == (tmp_path / "b/1.jpg").read_bytes()
    same_boxes(start, voc.read(str(tmp_path / "voc")), fields=())


# --- VOC --------------------------------------------------------------------------------------


def test_voc_counts_from_one_and_includes_ends(tmp_path: Path) -> None:
    voc.fake(tmp_path)
    change("Annotations/000000.xml", "<xmin>1</xmin><ymin>1", "<xmin>0</xmin><ymin>1")(tmp_path)
    found = voc.read(str(tmp_path))
    assert found[0].boxes is not None
    assert found[0].boxes.xyxy[0].tolist() == [-1, 0, 1, 1]
    assert said(found, "1 boxes begin at 0, though VOC counts pixels from 1")


@pytest.mark.parametrize("layout", ["beside", "splits", "images", "devkit", "other name"])
def test_voc_layouts(layout: str, tmp_path: Path) -> None:
    voc.fake(tmp_path / "f")
    xml = (tmp_path / "f/Annotations/000000.xml").read_text()
    folder, inner = tmp_path / "d", {"images": "annotations", "devkit": "VOC2007/Annotations"}
    at = inner.get(layout, "train" if layout == "splits" else "data")
    images = {"images": "images", "devkit": "VOC2007/JPEGImages"}.get(layout, at)
    put(folder / at / "1.xml", xml)
    picture(folder / images / ("1.png" if layout != "other name" else "000000.png"), 10, 14)
    picture(folder / images / "2.png", 10, 14)
    if layout == "splits":
        put(folder / "valid" / "3.xml", xml)
        picture(folder / "valid" / "3.jpg", 10, 14)
    found = voc.read(str(folder))
    sizes = {split: len(ids) for split, ids in found.splits.items()}
    assert sizes == ({"train": 1, "val": 1} if layout == "splits" else {"train": 1})
    assert len(found[0].boxes or ()) == 2
    assert said(found, "have no annotation and were left out")


def test_voc_lists(tmp_path: Path) -> None:
    voc.fake(tmp_path)
    sets = tmp_path / "ImageSets" / "Main"
    put(sets / "cat_train.txt", "000000 1\n000001 -1\n")  # one class's list is no split
    put(sets / "trainval.txt", "000000\n000001\n000002\n")
    assert [len(i) for i in voc.read(str(tmp_path)).splits.values()] == [2, 1, 1]
    for name in ("train.txt", "val.txt", "test.txt"):
        (sets / name).unlink()
    found = voc.read(str(tmp_path))
    assert {split: len(ids) for split, ids in found.splits.items()} == {"train": 3}
    assert said(found, "1 annotations are in no list of ImageSets and were left out: 000003")


XML = "Annotations/000000.xml"
HARD = "<difficult>0</difficult>"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (remove(XML), r"1 listed samples have no annotation: 000000 .*train\.txt, line 1"),
        (remove("JPEGImages/000000.png"), f"1 annotations have no image of their name: {XML}"),
        (
            replace("ImageSets/Main/val.txt", "000000\n"),
            r"val\.txt, line 1: 000000 is listed a sec",
        ),
        (replace("ImageSets/Main/val.txt", "../../x\n"), r"val\.txt, line 1: the path .* does not"),
        (replace("ImageSets/Main/val.txt", "/etc/passwd\n"), "does not lie in the dataset's fold"),
        (cut(XML), r"000000\.xml, line \d+: the XML is damaged or cut short"),
        (replace(XML, ""), r"000000\.xml is empty"),
        (replace(XML, b"\x00\xff\xfe"), "damaged or cut short"),
        (replace(XML, "<?xml version='1.0' encoding='no-such'?><annotation/>"), "XML"),
        (replace(XML, "<html></html>"), "line 1: the file begins with <html>"),
        (change(XML, "<xmin>3<", "<xmin>nan<"), r"000000\.xml, line 4: <xmin> is 'nan'"),
        (change(XML, "<xmax>12<", "<xmax>1e999<"), "line 4: <xmax> is '1e999'; a finite number"),
        (change(XML, "<ymax>9<", "<ymax><"), "line 4: <ymax> is ''"),
        (change(XML, "<ymax>9</ymax>", ""), "line 4: the ant lacks ymax in its <bndbox>"),
        (change(XML, "<name>ant</name>", ""), "line 4: an object has no <name>"),
        (change(XML, "<name>ant<", "<name>a</name><name>ant<"), "line 4: a second <name>"),
        (change(XML, HARD, "<difficult>2</difficult>"), "<difficult> is '2'; 0 or 1"),
        (change(XML, "<width>14<", "<width>15<"), r"000000\.png is 14 × 10 pixels, .* 15 × 10"),
        (change(XML, "<width>14<", "<width>999999999<"), "for 999999999 × 10"),
        (change(XML, "<height>10<", "<height>-1<"), "line 2: -1 is no number of pixels"),
        (replace("JPEGImages/000000.jpg", b"x"), "two images called 000000"),
    ],
)
def test_bad_voc(edit: Edit, sentence: str, tmp_path: Path) -> None:
    voc.fake(tmp_path)
    edit(tmp_path)
    refused(tmp_path, sentence)


@pytest.mark.parametrize(
    "declared",
    [
        '<!DOCTYPE annotation [<!ENTITY x SYSTEM "secret.txt">]>',
        '<!DOCTYPE annotation SYSTEM "secret.txt">',
        '<!DOCTYPE annotation [<!ENTITY a "aaaa"><!ENTITY x "&a;&a;&a;&a;">]>',
    ],
)
def test_entities_are_never_resolved(declared: str, tmp_path: Path) -> None:
    voc.fake(tmp_path)
    put(tmp_path / "Annotations" / "secret.txt", "cat")
    text = (tmp_path / XML).read_text().replace("<name>cat<", "<name>&x;<")
    put(tmp_path / XML, f"<?xml version='1.0'?>\n{declared}\n{text}")
    refused(tmp_path, r"000000\.xml, line 2: a document type \(annotation\) is declared")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "C:\\secret.png"])
def test_an_xml_that_names_an_image_outside(name: str, tmp_path: Path) -> None:
    voc.fake(tmp_path / "d")
    (tmp_path / "d/JPEGImages/000000.png").unlink()
    picture(tmp_path / "d/secret.png", 10, 14)
    change(XML, "000000.png", name)(tmp_path / "d")
    refused(tmp_path / "d", r"000000\.xml: the path .* does not lie in the dataset's folder")


def test_turned_images_are_told(tmp_path: Path) -> None:
    voc.fake(tmp_path)
    picture(tmp_path / "JPEGImages" / "000000.png", 14, 10)
    refused(tmp_path, "Its sides are exchanged")


# --- COCO -------------------------------------------------------------------------------------

TRAIN = "annotations/instances_train.json"


def test_coco_masks_come_with_the_boxes(tmp_path: Path) -> None:
    coco.fake(tmp_path)
    path = tmp_path / TRAIN
    data = json.loads(path.read_text())
    data["annotations"][0]["segmentation"] = [[1, 2, 4, 2, 4, 6, 1, 6]]
    data["annotations"][1]["segmentation"] = {"size": [9, 12], "counts": [0, 9, 90, 9]}
    data["annotations"].append({
        "id": 9, "image_id": 5, "category_id": 2, "bbox": [1, 2, 1, 1],
        "segmentation": [[1, 2, 2, 2, 2, 3, 1, 3]],
    })  # fmt: skip
    put(path, json.dumps(data))
    found = coco.read(str(tmp_path))
    first, second = found[0], found[1]
    assert first.boxes is not None and first.instances is not None
    assert first.boxes.instances is not None
    assert first.boxes.instances.tolist() == [1, 2, 3]
    expected = np.zeros((9, 12), np.int32)
    expected[:, [0, 11]] = 2  # the crowd, below
    expected[2:6, 1:4] = 1
    expected[2, 1] = 3  # the smaller one lies on top
    np.testing.assert_array_equal(first.instances, expected)
    assert second.instances is not None and not second.instances.any()
    digest = found.fingerprint()
    coco.write(found, tmp_path / "out")
    np.testing.assert_array_equal(coco.read(str(tmp_path / "out"))[0].instances, expected)
    data["annotations"][0]["segmentation"][0][0] = 2
    put(path, json.dumps(data))
    assert coco.read(str(tmp_path)).fingerprint() != digest


@pytest.mark.parametrize(
    ("json_at", "images_at"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/instances_default.json", "images"),
        ("train/_annotations.coco.json", "train"),
        ("result.json", "images"), ("data/all.json", "data"),
    ],
)  # fmt: skip
def test_coco_layouts(json_at: str, images_at: str, tmp_path: Path) -> None:
    coco.fake(tmp_path / "fake")
    put(tmp_path / "d" / json_at, (tmp_path / "fake" / TRAIN).read_text())
    for i, name in enumerate(("000000000000.png", "000000000001.png", "other.png")):
        picture(tmp_path / "d" / images_at / name, 9, 12 + i)
    for source in (tmp_path / "d", tmp_path / "d" / json_at):
        found = coco.read(str(source))
        assert {split: len(ids) for split, ids in found.splits.items()} == {"train": 2}
        assert len(found[0].boxes or ()) == 2
        assert said(found, "1 images have no object and are background: ")
        assert said(found, "are in no JSON and were left out: other.png")


def test_coco_captions_are_passed_over_and_unclear_files_are_not(tmp_path: Path) -> None:
    coco.fake(tmp_path)
    put(tmp_path / "annotations/captions_train.json", (tmp_path / TRAIN).read_text())
    assert list(coco.read(str(tmp_path)).splits) == ["train", "val"]
    put(tmp_path / "annotations/instances_more.json", (tmp_path / TRAIN).read_text())
    refused(tmp_path, r"instances_more\.json hold annotations too, and which split")


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (cut(TRAIN), r"instances_train\.json, line 1, column \d+: the JSON is damaged or cut sh"),
        (change(TRAIN, '"images": ', '"pictures": '), "has no list of images"),
        (change(TRAIN, '"annotations": [', '"annotations": 5, "x": ['), "no list of annotations"),
        (change(TRAIN, "[1, 2, 3.5, 4]", "[1, NaN, 3, 4]"), r"annotation 0 \(0+\.png\): a side .*"),
        (change(TRAIN, "[1, 2, 3.5, 4]", "[1, 1e999, 3, 4]"), "side of its bbox is inf; a finite"),
        (change(TRAIN, "[1, 2, 3.5, 4]", '[1, "2", 3, 4]'), "side of its bbox is"),
        (change(TRAIN, "[1, 2, 3.5, 4]", "[1, 2, 3]"), "its bbox is .1, 2, 3.; .x, y, width, hei"),
        (change(TRAIN, '"bbox": [1, 2, 3.5, 4], ', ""), "annotation 0 .* its bbox is None"),
        (change(TRAIN, '"category_id": 90', '"category_id": 3'), "its category_id is 3, which is"),
        (change(TRAIN, '"iscrowd": 1', '"iscrowd": 7'), "annotation 1: its iscrowd is 7"),
        (change(TRAIN, '"image_id": 5', '"image_id": 6'), r"2 annotations are for images .*id 6"),
        (change(TRAIN, '"image_id": 5', '"image_id": [5]'), "2 annotations are for images"),
        (change(TRAIN, '"id": 15', '"id": 5'), r"images\[1\]: a second image with the id 5"),
        (change(TRAIN, '"file_name": "0', '"file_name": "../0'), r"images\[0\]: the path '\.\./0"),
        (change(TRAIN, '"file_name": "0', '"file_name": "/0'), "does not lie in the dataset's"),
        (change(TRAIN, '"width": 12', '"width": 13'), "is 12 × 9 pixels, and its annotation .*13"),
        (change(TRAIN, '"width": 12', '"width": 1e300'), "its width is 1e.300"),
        (
            change("annotations/instances_val.json", '"id": 7', '"id": 8'),
            "have different categories: 7: bee and None; 8: None and bee",
        ),
        (change(TRAIN, '"name": "bee"', '"name": "ant"'), "the id or name of ant"),
        (change(TRAIN, '"name": "bee"', '"name": 3'), "lacks a whole number as id, or a name"),
        (change(TRAIN, "[]", "[[1, 2, 3]]"), "annotation 0: an outline is a list of x, y"),
        (change(TRAIN, "[]", "[1, 2, 3, 4, 5, 6]"), "annotation 0: an outline is a list of x, y"),
        (change(TRAIN, "[]", '[[1, 2, 3, "a", 5, 6]]'), "something that is no number"),
        (change(TRAIN, "[]", "[[1, 2, 3, NaN, 5, 6]]"), "a coordinate that is not finite"),
        (change(TRAIN, "[]", '{"size": [9, 12], "counts": [1, 2]}'), "add up to 3 pixels; 12 × 9"),
        (change(TRAIN, "[]", '{"size": [9, 12], "counts": [-5, 113]}'), "not negative"),
        (change(TRAIN, "[]", '{"size": [9, 12], "counts": [0.5]}'), "neither a string nor a lis"),
        (change(TRAIN, "[]", '{"size": [9, 12], "counts": "2 3"}'), "damaged at character 2"),
        (
            change(TRAIN, "[]", '{"size": [9, 99], "counts": [891]}'),
            "its mask is for 99 × 9 pixels",
        ),
        (change(TRAIN, "[]", '{"size": [9], "counts": [9]}'), r"the size \[9\]"),
        (change(TRAIN, "[]", '{"size": [999999999, 999999999], "counts": [1]}'), "its mask is for"),
        (remove("train/000000000000.png"), "1 of its 2 images are not there: train/000000000000"),
        (replace(TRAIN, b'{"images": [], "annotations": [\xff'), "is not text in UTF-8"),
        (replace(TRAIN, '{"images": [], "annotations": ' + "[" * 200000), "lists in lists|cut sh"),
        (change(TRAIN, '"id": 15', '"id": ' + "1" * 5000), "a number that cannot be read"),
    ],
)
def test_bad_coco(edit: Edit, sentence: str, tmp_path: Path) -> None:
    coco.fake(tmp_path)
    edit(tmp_path)
    refused(tmp_path, sentence, task="detection")


def test_a_large_json_takes_little_more_memory_than_its_size(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    outline = json.dumps([[round(k * 0.37 % 9, 2) for k in range(4000)]])
    item = '{"id": %d, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": %s}'
    items = ", ".join(item % (k, outline) for k in range(200))
    text = '{"images": [{"id": 1, "file_name": "1.png"}], "annotations": [' + items
    path = put(tmp_path / "a.json", text + '], "categories": [{"id": 1, "name": "x"}]}')
    size = path.stat().st_size
    assert size > 4_000_000
    tracemalloc.start()
    found = coco.read(str(path))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The text once as bytes and once decoded, and 8 bytes for a number of about 6 characters; lists
    # of Python's numbers would be over 5 times the file by themselves.
    assert peak < 5 * size
    assert held < 2 * size
    assert len(found[0].boxes or ()) == 200


# --- COCO's masks -----------------------------------------------------------------------------


def test_coco_masks_of_both_readings(tmp_path: Path) -> None:
    coco_masks.fake(tmp_path)
    path = tmp_path / "annotations" / "train.json"
    data = json.loads(path.read_text())
    data["annotations"].append({"id": 77, "image_id": 0, "category_id": 4, "bbox": [1, 1, 2, 2]})
    put(path, json.dumps(data))
    found = coco_masks.read(str(tmp_path))
    assert said(found, "1 of 6 objects have no mask and are left out.")
    assert said(found, "1 crowds are ignored (255).")
    # With boxes and masks both formats claim it; boxes come first, and one without a box is said.
    assert coco.sniff(str(tmp_path)) is not None
    refused(tmp_path, r"train\.json, annotation 0 \(0\.png\): its bbox is None")
    found = open_data(tmp_path, task="segmentation", carve_val=False)
    assert (found.format, found.task) == ("coco_masks", "segmentation")


def test_a_category_called_background_is_class_0(tmp_path: Path) -> None:
    coco_masks.fake(tmp_path)
    for name in ("train", "val"):
        change(f"annotations/{name}.json", '"ant"', '"Background"')(tmp_path)
    found = coco_masks.read(str(tmp_path))
    assert found.classes == ("background", "bee")
    assert found[0].mask is not None and found[0].mask.max() == 1
    assert found[0].mask[2, 2] == 0  # painted over the bee


def test_more_categories_than_a_mask_has_numbers(tmp_path: Path) -> None:
    coco_masks.fake(tmp_path)
    more = "".join(f', {{"id": {k}, "name": "c{k}"}}' for k in range(100, 400))
    for name in ("train", "val"):
        change(f"annotations/{name}.json", '"bee"}', '"bee"}' + more)(tmp_path)
    refused(tmp_path, "has 302 categories; in a mask there are at most 254")


# --- VOC's masks ------------------------------------------------------------------------------

MASK = "SegmentationClass/0.png"


def test_palette_is_vocs() -> None:
    # The first colours and the last, as the development kit's figures show them.
    colours = voc_masks.palette(256).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15] == [192, 128, 128]  # person
    assert colours[20] == [0, 64, 128]  # tvmonitor
    assert colours[255] == [224, 224, 192]


@pytest.mark.parametrize("names", ["labelmap", "voc"])
def test_masks_saved_in_colour(names: str, tmp_path: Path) -> None:
    made = voc_masks.fake(tmp_path)
    (tmp_path / "class_names.txt").unlink()
    colours = voc_masks.palette(256)
    if names == "labelmap":
        colours[1] = (1, 2, 3)
        lines = [
            "# label:color_rgb:parts:actions",
            "background:0,0,0::",
            "a:b:1,2,3::",
            "c:0,128,0::",
        ]
        put(tmp_path / "labelmap.txt", "\n".join(lines))
    sample = made.splits["train"][0]
    assert sample.mask is not None
    Image.fromarray(colours[sample.mask]).save(tmp_path / MASK)
    found = voc_masks.read(str(tmp_path))
    assert found.classes == (
        ("background", "a:b", "c") if names == "labelmap" else voc_masks.CLASSES
    )
    np.testing.assert_array_equal(found[0].mask, sample.mask)
    rgb = colours[sample.mask]
    rgb[3, 4] = (9, 9, 9)
    Image.fromarray(rgb).save(tmp_path / MASK)
    refused(tmp_path, r"1 pixels have the colours \(9, 9, 9\), which are no class's")


def test_vocs_two_readings(tmp_path: Path) -> None:
    voc.fake(tmp_path)
    for stem in ("000000", "000001"):
        image = Image.fromarray(np.full((10 + int(stem), 14), int(stem), np.uint8))
        image.save(put(tmp_path / "SegmentationClass" / f"{stem}.png"))
    found = open_data(tmp_path, carve_val=False)
    assert (found.format, found.task) == ("voc", "detection")
    assert any("serves two tasks" in note for note in found.notes)
    found = open_data(tmp_path, task="segmentation", carve_val=False)
    assert (found.format, len(found), found.classes) == ("voc_masks", 2, voc_masks.CLASSES)
    assert said(found, "2 images have no mask and were left out")
    assert found[1].mask is not None and found[1].mask.max() == 1


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (remove(MASK), r"1 listed samples have no mask: 0 \(ImageSets/Segmentation/train\.txt"),
        (remove("JPEGImages/0.png"), f"1 masks have no image of their name .*: {MASK}"),
        (lambda f: picture(f / MASK, 8, 9), r"0\.png: 72 pixels have the colours \(90, 90, 90\)"),
        (lambda f: Image.fromarray(np.zeros((9, 8), np.uint8)).save(f / MASK), "has 8 × 9 pixels"),
        (lambda f: Image.fromarray(np.full((8, 9), 7, np.uint8)).save(f / MASK),
         "72 pixels have the values 7; there are 3 classes"),
        (lambda f: Image.fromarray(np.zeros((8, 9), np.uint16)).save(f / MASK), "16 bits; a pal"),
        (cut(MASK), r"0\.png is damaged or cut short"),
        (replace(MASK, b"text"), r"SegmentationClass/0\.png"),
        (replace("class_names.txt", "a\na\n"), "names a twice"),
        (replace("labelmap.txt", "background:0,0\n"), r"labelmap\.txt, line 1"),
        (replace("ImageSets/Segmentation/val.txt", "../x\n"), "does not lie in the dataset's"),
        (replace("ImageSets/Segmentation/val.txt", "0\n"), "0 is listed a second time"),
    ],
)  # fmt: skip
def test_bad_voc_masks(edit: Edit, sentence: str, tmp_path: Path) -> None:
    voc_masks.fake(tmp_path)
    edit(tmp_path)
    refused(tmp_path, sentence)


# --- YOLO -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("names: [a, 'b, c', \"d\"]", ["a", "b, c", "d"]),
        ("names: {0: a, 1: 'b: c'}", {"0": "a", "1": "b: c"}),
        ("names:\n  0: a b  # said\n  1: 'it''s'\nother: &x {y: [z]}", {"0": "a b", "1": "it's"}),
        ('names:\n- a\n- "b # \\" c"\nmore: |\n  names: x\n', ["a", 'b # " c']),
        ("---\nnames: [a,\n  b,]", ["a", "b"]),
        ("names: a", "a"),
        ("names:", None),
        ("\"names\": ['a']", ["a"]),
    ],
)
def test_yaml(text: str, expected: Any) -> None:
    assert read_yaml(text, ("names",), "x")["names"] == expected


@pytest.mark.parametrize(
    "text",
    ["names: &a [b]", "names: *a", "names: |\n  a", "names: [a, [b]]", "names: [a", "names: {a}",
     "names:\n  - a\n  0: b", "names:\n  - a\n    - b", "names: !x [a]", "names: a\n  b",
     "names: 'a", "names: a\nnames: b", "names:\n  0: a\n  0: b", "just words", 'names: ["\\x41"]',
     "names:\n  0:\n    - a", "names: {0: a, 0: b}", "names: [a] b"],
)  # fmt: skip
def test_yaml_beyond_the_subset_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^x, line \d"):
        read_yaml(text, ("names",), "x")


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("layout", ["images first", "splits first", "flat"])
def test_yolo_folders_without_yaml(layout: str, names: bool, tmp_path: Path) -> None:
    places = {
        "images first": [("images/train", "labels/train"), ("images/val", "labels/val")],
        "splits first": [("train/images", "train/labels"), ("valid/images", "valid/labels")],
        "flat": [("images", "labels")],
    }[layout]
    for images, labels in places:
        picture(tmp_path / images / "a.jpg")
        put(tmp_path / labels / "a.txt", "2 0.5 0.5 0.2 0.25\n")
    if names:
        put(tmp_path / ("labels" if layout != "splits first" else "") / "classes.txt", "x\ny\nz\n")
    found = yolo.read(str(tmp_path))
    assert list(found.splits) == (["train"] if layout == "flat" else ["train", "val"])
    assert found.classes == (("x", "y", "z") if names else ("0", "1", "2"))
    assert said(found, "No file names the classes") != names
    sample = found[0]
    assert sample.boxes is not None
    np.testing.assert_allclose(sample.boxes.xyxy, [[4, 3, 6, 5]], atol=1e-6)


def test_yolo_notes(tmp_path: Path) -> None:
    yolo.fake(tmp_path)
    put(tmp_path / "labels/train/0.txt", "0 0.25 0.25 0.75 0.25 0.5 0.75\n1 0.5 0.5 0 0.1\n")
    found = yolo.read(str(tmp_path / "data.yaml"))
    assert found[0].boxes is not None
    assert found[0].boxes.xyxy[0].tolist() == [4, 2, 12, 6]
    assert said(found, "1 rows are outlines; their bounding boxes were taken")
    assert said(found, "2 images have no object and are background (1 of them without a label")
    assert said(
        found, "1 of 3 boxes have no area and stay as they were read: labels/train/0.txt, l"
    )


def test_yolo_paths_of_another_machine(tmp_path: Path) -> None:
    yolo.fake(tmp_path)
    change("data.yaml", "path: .\ntrain: ", "path: /home/x/data\ntrain: ../")(tmp_path)
    found = yolo.read(str(tmp_path))
    assert [len(ids) for ids in found.splits.values()] == [2, 1, 1]
    assert said(found, "/home/x/data does not lie in its folder; its own folder was taken")
    assert said(found, "train is ../images/train, read as images/train, which is there")


def test_yolo_lists(tmp_path: Path) -> None:
    yolo.fake(tmp_path)
    put(tmp_path / "some.txt", "./images/train/1.png\n\nimages/train/0.png\n")
    change("data.yaml", "train: images/train", "train: some.txt")(tmp_path)
    found = yolo.read(str(tmp_path))
    assert [found.images.key(i) for i in range(2)] == ["images/train/1.png", "images/train/0.png"]
    put(tmp_path / "some.txt", "images/train/7.png\n")
    refused(tmp_path, r"some\.txt: 1 listed images are not there: images/train/7\.png \(line 1\)")
    put(tmp_path / "some.txt", "../7.png\n")
    refused(tmp_path, r"some\.txt, line 1: the path '\.\./7\.png' does not lie in")


LABEL = "labels/train/0.txt"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (replace(LABEL, "0 1 1 1\n"), r"labels/train/0\.txt, line 1: 4 numbers were found"),
        (replace(LABEL, "0 .5 .5 .1 .1\n0 .5 .5 .1 .1 .9\n"), "line 2: 6 numbers were found"),
        (replace(LABEL, "0 .5 nan .1 .1\n"), "line 1: 'nan' is no finite number"),
        (replace(LABEL, "0 .5 inf .1 .1\n"), "line 1: 'inf' is no finite number"),
        (replace(LABEL, "0 .5 x .1 .1\n"), "line 1: 'x' is no finite number"),
        (replace(LABEL, "0 320 240 50 60\n"), "320 is no share of the image's side"),
        (replace(LABEL, "2 .5 .5 .1 .1\n"), r"line 1: the class is 2; .*0 to 1"),
        (replace(LABEL, "-1 .5 .5 .1 .1\n"), "line 1: the class is -1"),
        (replace(LABEL, "0.5 .5 .5 .1 .1\n"), "line 1: the class is 0.5"),
        (replace(LABEL, "bee .5 .5 .1 .1\n"), "line 1: the class is bee"),
        (replace(LABEL, b"\xff\xfe"), "is not text in UTF-8"),
        (
            replace("labels/train/9.txt", ""),
            "1 label files have no image of their name: labels/tra",
        ),
        (remove("images/train/0.png"), "have no image of their name: labels/train/0.txt"),
        (change("data.yaml", "path: .", "path: a\0b"), "path is 'a.x00b'; one folder is expected"),
        (change("data.yaml", "nc: 2", "nc: 3"), "nc is 3, and there are 2 names"),
        (
            change("data.yaml", "images/val ", "../val "),
            r"val: the path '\.\./val' does not lie in",
        ),
        (change("data.yaml", "images/val ", "/val "), "does not lie in the dataset's folder"),
        (change("data.yaml", "images/val ", "images/gone "), "images/gone does not exist"),
        (change("data.yaml", "images/val ", "images/train "), "is in train and in val"),
        (change("data.yaml", "['the ant', bee]", "{0: a, 2: b}"), "has the numbers 0; 2; 0 to 1"),
        (change("data.yaml", "['the ant', bee]", "[a, a]"), "a different name for each class"),
        (
            change("data.yaml", "['the ant', bee]", "*x"),
            r"data\.yaml, line 8: .*beyond what is rea",
        ),
    ],
)
def test_bad_yolo(edit: Edit, sentence: str, tmp_path: Path) -> None:
    yolo.fake(tmp_path)
    edit(tmp_path)
    refused(tmp_path, sentence)


# --- the table of boxes -----------------------------------------------------------------------


def test_the_two_tables_are_told_apart(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "Filename;XMin;YMin;XMax;YMax;Class\n")
    assert boxes_table.sniff(str(path)) is not None
    assert table.sniff(str(path)) is None
    path = put(tmp_path / "b.csv", "filename,xmin,label\n")
    assert boxes_table.sniff(str(path)) is None
    assert table.sniff(str(path)) is not None


HEAD = "path,xmin,ymin,xmax,ymax,label,split\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEAD + "a.jpg,1,2,3,4,x\n", "line 2: 6 columns were found where the header names 7"),
        (HEAD + "a.jpg,1,2,nan,4,x,train\n", "line 2: xmax is 'nan'; a finite number"),
        (HEAD + "a.jpg,1,2,,4,x,train\n", "line 2: xmax is ''"),
        (HEAD + "a.jpg,1,2,3,4,,train\n", "line 2: the label is empty"),
        (HEAD + ",1,2,3,4,x,train\n", "line 2: the path is empty"),
        (HEAD + "a.jpg,1,2,3,4,x,soon\n", "line 2: 'soon' is no split"),
        (HEAD + "a.jpg,1,2,3,4,x,train\na.jpg,1,2,3,4,x,val\n", "line 3: a.jpg is in val here"),
        (HEAD + "a.jpg,1,2,3,4,x,train\ngone.jpg,1,2,3,4,x,val\n", r"1 of its 2 .*line 3: gone"),
        (HEAD + "../a.jpg,1,2,3,4,x,train\n", r"line 2: the path '\.\./a\.jpg' does not lie in"),
        (HEAD + "/a.jpg,1,2,3,4,x,train\n", "line 2: the path '/a.jpg' does not lie in"),
        (HEAD + "C:\\a.jpg,1,2,3,4,x,train\n", "does not lie in"),
        (HEAD, "a header and no rows"),
        (HEAD + "a.jpg,,,,,,train\n", "has no box in any row"),
        (HEAD.replace("label", "what"), "names no column of labels"),
        (HEAD.replace("split", "label"), "the header names label twice"),
        (HEAD.replace("split", "crowd") + "a.jpg,1,2,3,4,x,no\n", "line 2: 'no' where 0 or 1"),
    ],
)
def test_bad_tables_of_boxes(text: str, sentence: str, tmp_path: Path) -> None:
    picture(tmp_path / "d" / "a.jpg")
    refused(put(tmp_path / "d" / "t.csv", text), sentence)


def test_table_notes(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg")
    text = "filename,width,class,xmin,ymin,xmax,ymax\na.jpg,9,10,1,1,1,5\na.jpg,9,9,0,0,2,5\n"
    text += "b.jpg,,,,,,\n"
    found = boxes_table.read(str(put(tmp_path / "t.csv", text)))
    assert found.classes == ("9", "10")
    assert said(found, "1 of 2 boxes have no area and stay as they were read: a.jpg (1, 1, 1, 5)")
    assert said(found, "The columns width were passed over")
    assert said(found, "1 images have no object and are background: b.jpg")


# --- the real ones ----------------------------------------------------------------------------

REAL = pytest.mark.skipif("VIDI_DATA" not in os.environ, reason="VIDI_DATA names no folder")


@REAL
def test_real_bccd(tmp_path: Path) -> None:
    source = Path(os.environ["VIDI_DATA"]) / "bccd"
    found = open_data(source)
    assert (found.format, len(found)) == ("voc", 364)
    assert {split: len(ids) for split, ids in found.splits.items()} == {
        "train": 205, "val": 87, "test": 72,
    }  # fmt: skip
    assert found.classes == ("Platelets", "RBC", "WBC")
    assert isinstance(found.truth, BoxTable)
    assert len(found.truth.labels) == 4888
    assert said(found, "2 of 4,888 boxes have no area and stay as they were read")
    assert said(found, "BloodImage_00338.xml, line 158") and said(found, "BloodImage_00343.xml")
    i = 100
    stem = Path(found.images.key(i)).stem
    tree = ElementTree.parse(source / "Annotations" / f"{stem}.xml")
    sides = [
        [int(o.findtext(f"bndbox/{s}") or 0) for s in voc_sides()] for o in tree.iter("object")
    ]
    boxes = found.truth.boxes(i)
    np.testing.assert_array_equal(boxes.xyxy, np.array(sides) - [1, 1, 0, 0])
    names = [o.findtext("name") for o in tree.iter("object")]
    assert [found.classes[k] for k in boxes.labels] == names


def voc_sides() -> tuple[str, ...]:
    return ("xmin", "ymin", "xmax", "ymax")


@REAL
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_real_coco(task: str) -> None:
    source = Path(os.environ["VIDI_DATA"]) / "coco-mini"
    found = open_data(source, task=task)
    assert {split: len(ids) for split, ids in found.splits.items()} == {"train": 20, "val": 20}
    assert len(found.classes) == 80 + (task == "segmentation")
    assert any("7 " in note and "crowds" in note for note in found.notes)
    for split, count in (("train", 240), ("val", 201)):
        data = json.loads((source / "annotations" / f"instances_{split}2017.json").read_text())
        by_image = {image["file_name"]: image["id"] for image in data["images"]}
        total = 0
        for sample in found.split(split):
            objects = [
                a for a in data["annotations"]
                if a["image_id"] == by_image[Path(sample.key).name]
            ]  # fmt: skip
            total += len(objects)
            assert sample.instances is not None
            height, width = sample.image.shape[:2]
            assert sample.instances.shape == (height, width)
            if task == "segmentation":
                assert sample.mask is not None
                crowd = sum(a["iscrowd"] * a["area"] for a in objects)
                assert (sample.mask == 255).sum() <= crowd
                continue
            assert sample.boxes is not None
            xywh = np.array([a["bbox"] for a in objects]).reshape(-1, 4)
            np.testing.assert_allclose(sample.boxes.xyxy[:, :2], xywh[:, :2], atol=1e-4)
            assert sample.boxes.crowd.sum() == sum(a["iscrowd"] for a in objects)
            # COCO's own area of an object that nothing covers, from its outlines.
            for k, item in enumerate(objects):
                seen = int((sample.instances == k + 1).sum())
                assert seen <= item["area"] * 1.05 + 12
        assert total == count


@REAL
@pytest.mark.parametrize("name", BOXES)
def test_real_boxes_go_through_every_format(name: str, tmp_path: Path) -> None:
    start = coco.read(str(Path(os.environ["VIDI_DATA"]) / "coco-mini"))
    module = formats.find(name)
    module.write(start, tmp_path)
    found = back(module, tmp_path)
    again = {Path(sample.key).stem: sample for sample in found}  # YOLO's are sorted by name
    assert len(again) == len(start) == 40
    for a in start:
        b = again[Path(a.key).stem]
        assert a.boxes is not None and b.boxes is not None
        kept = ~a.boxes.crowd if name == "yolo" else np.ones(len(a.boxes), bool)
        np.testing.assert_array_equal(a.boxes.xyxy[kept], b.boxes.xyxy)
        labels = [start.classes[k] for k in a.boxes.labels[kept]]
        assert labels == [found.classes[k] for k in b.boxes.labels]
        if name == "coco":
            np.testing.assert_array_equal(a.instances, b.instances)
