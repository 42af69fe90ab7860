"""Detections in files: COCO's results, VOC's XML with scores, YOLO's text with confidences.

What is written is read back to the bit: numbers are the shortest decimals that give the same
float32. Each format counts pixels in its own way, as its annotations do (see ``data.formats``).
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np

from vidi.data import json_file, voc_xml
from vidi.data.boxes import decimals, number, plain, some, within
from vidi.data.coco_layout import find_layout
from vidi.data.dataset import Dataset
from vidi.data.yolo_layout import NAME_FILES, files_below, text_of
from vidi.errors import InputError
from vidi.types import Array, Detections, Notes

FORMATS = ("coco", "voc", "yolo")
RESULTS = "detections.json"
"""What COCO's results are called where vidi writes them into a folder."""
FAR = 1.0
"""How far outside of the image, in shares of its sides, YOLO's numbers are still taken for such."""


@dataclass(frozen=True)
class CocoNumbers:
    """What a COCO file calls things by number: ``images`` by their path in it, ``categories`` by
    name. ``path``: the file."""

    path: str
    images: dict[str, int | str]
    categories: dict[str, int]

    def image(self, path: str) -> int | str | None:
        """The number of the image whose path there is this one, or the end of it."""
        return next((self.images[tail] for tail in _tails(path) if tail in self.images), None)


def coco_numbers(source: str, split: str | None = None) -> CocoNumbers:
    """The numbers of a COCO file, or of a folder that holds COCO data: of all its files, or of that
    of the ``split``.

    Raises :class:`InputError` for what is no such file or folder, and where its files number images
    of one name, or their categories, differently.
    """
    layout = find_layout(source)
    if layout is None:
        raise InputError(
            f"{source} is no COCO data: a JSON file with images, annotations and categories, or a "
            "folder with such a file, is expected."
        )
    images: dict[str, int | str] = {}
    categories: dict[str, int] = {}
    names = [name for own, name in layout.files.items() if split in (None, own)]
    for name in names:
        more, others = _numbers(os.path.join(layout.folder, name))
        differing = [
            *(key for key in more if images.get(key, more[key]) != more[key]),
            *(key for key in others if categories.get(key, others[key]) != others[key]),
        ]
        if differing:
            raise InputError(
                f"The files of {source}, {some(names)}, differ in the number of {some(differing)}. "
                "Name the one that is meant."
            )
        images |= more
        categories |= others
    return CocoNumbers(os.path.join(layout.folder, some(names)), images, categories)


def _numbers(path: str) -> tuple[dict[str, int | str], dict[str, int]]:
    """Those of images and of categories by name. The objects are dropped as they are read."""
    top = json_file.read(path, lambda item: None if "image_id" in item else item)
    images: dict[str, int | str] = {}
    for k, item in enumerate(_listed(top, "images", path)):
        where = f"{path}, images[{k}]"
        key, name = (item.get("id"), item.get("file_name")) if isinstance(item, dict) else (0, 0)
        if isinstance(key, bool) or not isinstance(key, int | str) or not isinstance(name, str):
            raise InputError(f"{where} lacks an id or a file_name. Add it.")
        images[within(name, where)] = key
    categories: dict[str, int] = {}
    for k, item in enumerate(_listed(top, "categories", path)):
        key, name = (item.get("id"), item.get("name")) if isinstance(item, dict) else (0, 0)
        if type(key) is not int or not isinstance(name, str) or not name:
            raise InputError(
                f"{path}, categories[{k}] lacks a whole number as id, or a name. Add it."
            )
        categories[name] = key
    return images, categories


def image_number(path: str) -> int | str:
    """What an image is called in COCO's results where no file numbers it: its name without suffix,
    as a number where it is one (000000000139.jpg is 139)."""
    stem = os.path.splitext(os.path.basename(path))[0]
    return int(stem) if stem.isascii() and stem.isdigit() else stem


# Writing -----------------------------------------------------------------------------------------


def write_coco(
    path: Path, found: Iterable[tuple[int | str, Detections]], categories: Sequence[int]
) -> None:
    """COCO's results: a list of image_id, category_id, bbox (x, y, width, height) and score.

    ``found``: each image's number with what is in it; no more than one image is held at a time.
    ``categories``: the number of each class.
    """
    lines = (
        json.dumps(
            {
                "image_id": image,
                "category_id": int(categories[label]),
                "bbox": [float(v) for v in (x0, y0, x1 - x0, y1 - y0)],
                "score": score,
            },
            ensure_ascii=False,
        )
        for image, one in found
        for (x0, y0, x1, y1), label, score in _rows(one)
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write("[" + next(lines, ""))
        file.writelines(f",\n{line}" for line in lines)
        file.write("]\n")


def write_voc(
    path: Path, image: str, size: tuple[int, int], found: Detections, classes: Sequence[str]
) -> None:
    """VOC's XML of one image, counted from 1 with inclusive ends, each object with its <score>.

    ``image``: the image's file name; ``size``: its height and width.
    """
    lines = [
        "<annotation>",
        f"  <filename>{escape(image)}</filename>",
        f"  <size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>",
    ]
    for (x0, y0, x1, y1), label, score in _rows(found):
        sides = {"xmin": x0 + Decimal(1), "ymin": y0 + Decimal(1), "xmax": x1, "ymax": y1}
        box = "".join(f"<{side}>{plain(value)}</{side}>" for side, value in sides.items())
        lines += [
            "  <object>",
            f"    <name>{escape(classes[label])}</name>",
            f"    <score>{score}</score>",
            f"    <bndbox>{box}</bndbox>",
            "  </object>",
        ]
    path.write_text("\n".join([*lines, "</annotation>", ""]), encoding="utf-8")


def write_yolo(path: Path, size: tuple[int, int], found: Detections) -> None:
    """YOLO's text of one image: a row of class, centre x and y, width, height (shares of the
    image's sides) and confidence for each object. ``size``: the image's height and width."""
    height, width = size
    lines = []
    for box, label, score in _rows(found):
        x0, y0, x1, y1 = map(float, box)
        # In double precision, which brings the box back to the bit.
        shares = (
            (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height,
        )  # fmt: skip
        lines.append(" ".join(map(str, (label, *shares, score))) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _rows(found: Detections) -> Iterator[tuple[list[Decimal], int, float]]:
    """(x0, y0, x1, y1), the class's number and the score, as they are to be written."""
    scores = [float(str(score)) for score in found.scores.astype(np.float32)]
    yield from zip(decimals(found.xyxy), found.labels.tolist(), scores, strict=True)


# Reading -----------------------------------------------------------------------------------------


def kind_of(predictions: str | Path) -> str | None:
    """Which of :data:`FORMATS` a file or folder of detections has; None: it holds none."""
    path = Path(predictions).expanduser()
    if path.is_file():
        return "coco" if path.suffix.lower() == ".json" else None
    if not path.is_dir():
        return None
    if (path / RESULTS).is_file():
        return "coco"
    names = files_below(str(path), "")
    if any(name.lower().endswith(".xml") for name in names):
        return "voc"
    texts = [str(path / name) for name in names if _is_rows(name)]
    filled = next((line for text in texts if (line := _first_line(text))), None)
    return "yolo" if texts and (filled is None or _all_numbers(filled)) else None


def read(
    predictions: str | Path, dataset: Dataset, split: str
) -> tuple[dict[str, Detections], Notes]:
    """The detections of a split's images by their keys, and what should be known of them.

    COCO's results go by the numbers of the data's own COCO file, where it is of that format;
    elsewhere images go by their names, and classes are numbered from 1. Where such classes, or
    YOLO's, have no COCO file, a classes.txt beside the files names them, or they are in the data's
    order; VOC's are named. An image for which nothing is said has no detections.

    Raises :class:`InputError`, with the file and line or element, for what cannot be read, for
    classes that the data does not have, and where nothing belongs to an image of the split.
    """
    path = Path(predictions).expanduser()
    kind = kind_of(path)
    if kind is None:
        there = "holds no detections" if path.exists() else "is not there"
        raise InputError(
            f"{predictions} {there}. COCO's results (.json), a folder of VOC's XML files or one of "
            "YOLO's text files is expected."
        )
    ids = [int(i) for i in dataset.splits[split]]
    keys = [dataset.images.key(i) for i in ids]
    notes: Notes = []
    if kind == "coco":
        file = path / RESULTS if path.is_dir() else path
        numbers = coco_numbers(dataset.root, split) if dataset.format == "coco" else None
        images = _image_names(keys, numbers)
        if numbers is None:
            names = _class_names(file.parent) if file.name == RESULTS else None
            labels = _labels(names or dataset.classes, dataset.classes, path)
            categories = dict(enumerate(labels, 1))
            if names is None:
                notes.append(
                    f"The data is not COCO's: category 1 was taken for {dataset.classes[0]}, its "
                    "first class, and so on."
                )
        else:
            categories = {numbers.categories[name]: k for k, name in enumerate(dataset.classes)}
        found, others = read_coco(file, images, categories)
    else:
        files = _files(path, kind)
        names = _class_names(path) if kind == "yolo" else None
        labels = _labels(names or dataset.classes, dataset.classes, path)
        matched = _matched(keys, files, path)
        others = len(files) - len(matched)
        found = {}
        strange: Counter[str] = Counter()
        for key, i in zip(keys, ids, strict=True):
            if key in matched and kind == "voc":
                found[key] = read_voc(matched[key], dataset.classes, strange)
            elif key in matched:
                found[key] = read_yolo(matched[key], dataset.images.size(i), labels)
        if strange:
            notes.append(
                f"{strange.total():,} detections are of classes that the data does not have, and "
                f"were left: {some(strange)}."
            )
            if not any(map(len, found.values())):
                raise InputError(
                    f"{path} has no detection of a class of the data. It has {some(strange)}; the "
                    f"data has {some(dataset.classes)}."
                )
    if not found and others:
        raise InputError(
            f"{path} says nothing of the {len(keys):,} images of the split {split}: none of the "
            f"{others:,} that it names is among them. They are called {some(keys[:3], len(keys))}."
        )
    if others:
        notes.append(f"{others:,} images of {path} are not in the split, and were left.")
    silent = len(keys) - len(found)
    if silent:
        notes.append(
            f"{path} says nothing of {silent:,} of the {len(keys):,} images; nothing was found in "
            "them, then."
        )
    nothing = _detections([], [], [])
    return {key: found.get(key, nothing) for key in keys}, notes


def read_coco(
    path: str | Path, images: Mapping[int | str, str], categories: Mapping[int, int]
) -> tuple[dict[str, Detections], int]:
    """COCO's results: (detections by the images' keys, how many other images are named).

    ``images``: keys by image_id; an empty one says that the image_id could be several images.
    ``categories``: the class of each category_id.

    Raises :class:`InputError` with the result's index, from 0, for what is no such result.
    """
    top = json_file.read(str(path))
    if not isinstance(top, list):
        what = "annotations" if isinstance(top, dict) and "annotations" in top else "no list"
        raise InputError(
            f"{path} holds {what}; COCO's results are a list of image_id, category_id, bbox and "
            "score."
        )
    rows: dict[str, list[tuple[list[float], int, float]]] = defaultdict(list)
    others: set[int | str] = set()
    for k, item in enumerate(top):
        where = f"{path}, result {k}"
        if not isinstance(item, dict):
            raise InputError(f"{where} is no object with image_id, category_id, bbox and score.")
        image, category, box = (item.get(name) for name in ("image_id", "category_id", "bbox"))
        if isinstance(image, bool) or not isinstance(image, int | str):
            raise InputError(f"{where}: its image_id is {image!r}; a number or a name is expected.")
        if type(category) is not int or category not in categories:
            raise InputError(
                f"{where}: its category_id is {category!r}; the data has "
                f"{some(map(str, sorted(categories)))}."
            )
        if not isinstance(box, list) or len(box) != 4:
            raise InputError(f"{where}: its bbox is {box!r}; [x, y, width, height] is expected.")
        x, y, w, h = (
            number(None if isinstance(v, str) else v, "a side of its bbox", where) for v in box
        )
        if w < 0 or h < 0:
            raise InputError(f"{where}: its bbox is {box!r}; width and height are not negative.")
        given = item.get("score")
        score = number(None if isinstance(given, str) else given, "its score", where)
        key = images.get(image)
        if key == "":
            raise InputError(
                f"{where}: several images of the split are called {image!r}. Name them by their "
                "paths."
            )
        if key is None:
            others.add(image)
        else:
            rows[key].append(([x, y, x + w, y + h], categories[category], score))
    found = {key: _detections(*zip(*ones, strict=True)) for key, ones in rows.items()}
    return found, len(others)


def read_voc(path: str | Path, classes: Sequence[str], strange: Counter[str]) -> Detections:
    """The objects of an XML file of VOC's with their <score>. ``strange``: counts names that are
    none of ``classes``, whose objects are left.

    Raises :class:`InputError`, with the line, for what is no such file.
    """
    objects = voc_xml.parse(str(path)).objects
    # It has been parsed already, without entities: it can be read again for what is not annotation.
    elements = ElementTree.parse(path).getroot().findall("object")
    label = {name: k for k, name in enumerate(classes)}
    boxes, labels, scores = [], [], []
    for item, element in zip(objects, elements, strict=True):
        text = element.findtext("score")
        where = f"{path}, line {item.line}"
        if text is None:
            raise InputError(
                f"{where}: the {item.name} has no <score>. Detections have one; an annotation has "
                "not."
            )
        score = number(text, "<score>", where)
        if item.name not in label:
            strange[item.name] += 1
            continue
        x0, y0, x1, y1 = item.box
        boxes.append([x0 - 1, y0 - 1, x1, y1])
        labels.append(label[item.name])
        scores.append(score)
    return _detections(boxes, labels, scores)


def read_yolo(path: str | Path, size: tuple[int, int], labels: Sequence[int]) -> Detections:
    """The rows of a text file of YOLO's, each with its confidence. ``size``: the image's height and
    width; ``labels``: which class each number stands for.

    Raises :class:`InputError`, with the line, for a row that is none.
    """
    height, width = size
    boxes, found, scores = [], [], []
    for line, text in enumerate(text_of(str(path)).splitlines(), 1):
        words = text.split()
        if not words:
            continue
        where = f"{path}, line {line}"
        if len(words) != 6:
            hint = ", and no confidence: write it last in each row" if len(words) == 5 else ""
            raise InputError(
                f"{where}: {len(words)} numbers were found{hint}; a class, 4 numbers of a box and "
                f"a confidence are expected: {text[:80]!r}."
            )
        label, x, y, w, h, score = (number(word, "one of the numbers", where) for word in words)
        if label not in range(len(labels)):
            raise InputError(
                f"{where}: the class is {words[0]}; 0 to {len(labels) - 1} are expected."
            )
        if not all(-FAR <= v <= 1 + FAR for v in (x, y, w, h)) or min(w, h) < 0:
            raise InputError(
                f"{where}: {' '.join(words[1:5])} are no shares of the image's sides (0 to 1). If "
                "these are pixels, divide by the image's width and height."
            )
        boxes.append(
            [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        )
        found.append(labels[int(label)])
        scores.append(score)
    return _detections(boxes, found, scores)


def _detections(
    boxes: Sequence[Sequence[float]], labels: Sequence[int], scores: Sequence[float]
) -> Detections:
    """The surest first; of equals the one that came first."""
    order = np.argsort(-np.array(scores, np.float64), kind="stable")
    xyxy: Array = np.array(boxes, np.float64).reshape(-1, 4)
    return Detections(
        xyxy=xyxy[order].astype(np.float32),
        labels=np.array(labels, np.int64)[order],
        scores=np.array(scores, np.float32)[order],
    )


def _image_names(keys: Sequence[str], numbers: CocoNumbers | None) -> dict[int | str, str]:
    """Each image's key by what results may call it; "" where that is several."""
    found: dict[int | str, str] = {}
    for key in keys:
        if numbers is not None:
            own = numbers.image(key)
            names: set[int | str] = set() if own is None else {own}
        else:
            names = {*_tails(key), *_tails(os.path.splitext(key)[0]), image_number(key)}
        for name in names:
            found[name] = "" if found.get(name, key) != key else key
    return found


def _files(folder: Path, kind: str) -> dict[str, Path]:
    """Files by their paths in the folder without the suffix."""
    names = files_below(str(folder), "")
    own = [n for n in names if (n.lower().endswith(".xml") if kind == "voc" else _is_rows(n))]
    return {os.path.splitext(name)[0]: folder / name for name in own}


def _is_rows(name: str) -> bool:
    return name.lower().endswith(".txt") and os.path.basename(name) not in NAME_FILES


def _class_names(folder: Path) -> list[str] | None:
    """What a classes.txt names, where there is one."""
    path = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    return [line.strip() for line in text_of(str(path)).splitlines() if line.strip()]


def _labels(names: Sequence[str], classes: Sequence[str], folder: Path) -> list[int]:
    """The data's number of each class."""
    missing = [name for name in names if name not in classes]
    if missing:
        raise InputError(
            f"{folder} names classes that the data does not have: {some(missing)}. The data has "
            f"{some(classes)}."
        )
    return [classes.index(name) for name in names]


def _matched(keys: Sequence[str], files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Each image's file: the one of its name, with as many of its folders as there are."""
    owners: dict[str, str] = {}
    for key in keys:
        name = next((t for t in _tails(os.path.splitext(key)[0]) if t in files), None)
        if name is None:
            continue
        if name in owners:
            raise InputError(
                f"{files[name]} would be for {owners[name]} and for {key}. Put the detections into "
                "folders of the images' names, or name a part of the data."
            )
        owners[name] = key
    return {key: files[name] for name, key in owners.items()}


def _tails(path: str) -> Iterator[str]:
    """a/b/c, b/c and c."""
    parts = path.replace(os.sep, "/").split("/")
    yield from ("/".join(parts[k:]) for k in range(len(parts)))


def _listed(top: Any, name: str, path: str) -> list[Any]:
    found = top.get(name) if isinstance(top, dict) else None
    if not isinstance(found, list):
        raise InputError(f"{path} has no list of {name}. COCO's instances are expected.")
    return found


def _first_line(path: str) -> str:
    """The first line that is not empty; "" where there is none, or it is no text."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return next((line for line in file if line.strip()), "")
    except (OSError, UnicodeDecodeError):
        return ""


def _all_numbers(line: str) -> bool:
    words = line.split()
    try:
        return len(words) >= 5 and all(math.isfinite(float(word)) for word in words)
    except ValueError:
        return False
