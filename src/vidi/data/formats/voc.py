"""PASCAL VOC's boxes: an XML file per image in Annotations, images in JPEGImages or beside them.

ImageSets/Main lists the splits, where it is; without it, or with XML files beside the images in
folders train, val, test, those are. The files' boxes count pixels from 1 and include their ends:
(xmin, ymin, xmax, ymax) is (xmin - 1, ymin - 1, xmax, ymax) here. Classes are the names that occur,
sorted. An object's parts, pose and truncation are not read.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np

from vidi.data import export
from vidi.data.boxes import (
    BoxRows,
    SizedImages,
    boxes_of,
    decimals,
    lost,
    no_area,
    plain,
    some,
    sorted_classes,
    within,
)
from vidi.data.dataset import SPLITS, Dataset, PathTable
from vidi.data.formats import Fake
from vidi.data.formats.folders import is_image, split_of
from vidi.data.voc_layout import (
    IMAGE_FOLDERS,
    by_stem,
    find_base,
    folders_in,
    names_in,
    read_lists,
    split_lists,
)
from vidi.data.voc_xml import parse
from vidi.errors import InputError
from vidi.types import Boxes, Notes, Sample

TASK = "detection"


def sniff(source: str) -> str | None:
    layout = _layout(source)
    return None if layout is None else layout.reason


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for an annotation that is listed and missing, is damaged, or has
    no image; for a sample in two splits, and for a list that names a file outside."""
    layout = _layout(source)
    assert layout is not None
    root = os.path.abspath(source)
    listed, notes = _listed(root, layout)
    images = {pair.images: by_stem(os.path.join(root, pair.images)) for pair in layout.pairs}

    paths: list[str] = []
    names: dict[str, int] = {}
    sizes: list[tuple[int, int]] = []
    rows = BoxRows()
    splits: dict[str, list[int]] = {}
    missing: list[str] = []
    flat: list[str] = []
    from_zero = 0
    for split in SPLITS:
        for pair, stem in listed.get(split, []):
            annotation = f"{pair.annotations}{stem}.xml"
            found = parse(os.path.join(root, annotation))
            name = images[pair.images].get(stem)
            if name is None and found.filename:
                # Where the two differ in name, the annotation says which image it is for.
                other = within(found.filename, os.path.join(root, annotation))
                if os.path.isfile(os.path.join(root, pair.images, other)):
                    name = other
            if name is None:
                missing.append(annotation)
                continue
            splits.setdefault(split, []).append(len(paths))
            paths.append(pair.images + name)
            sizes.append(found.size)
            for item in found.objects:
                x0, y0, x1, y1 = item.box
                if x1 <= x0 or y1 <= y0:
                    flat.append(f"{annotation}, line {item.line} ({x0:g}, {y0:g}, {x1:g}, {y1:g})")
                from_zero += x0 < 1 or y0 < 1
                label = names.setdefault(item.name, len(names))
                rows.add((x0 - 1, y0 - 1, x1, y1), label, item.difficult)
            rows.end_image()
    if missing:
        raise InputError(
            f"{source}: {len(missing):,} annotations have no image of their name: {some(missing)}. "
            "Add the images, or remove the annotations (and their lines in ImageSets)."
        )
    if not paths:
        raise InputError(f"{source} is {layout.reason}, and lists no image. Add some.")
    classes, order = sorted_classes(names)
    boxes = rows.table(order)
    table = PathTable()
    table.extend(paths)
    notes = [f"{source} is {layout.reason}.", *notes]
    if flat:
        notes.append(
            no_area(len(flat), len(boxes.labels), flat)
            + " Where an end equals its start, VOC's inclusive counting makes it one pixel."
        )
    if from_zero:
        notes.append(
            f"{from_zero:,} boxes begin at 0, though VOC counts pixels from 1: the files were "
            "perhaps written by counting from 0, and their boxes are then one pixel off."
        )
    return Dataset(
        root=root,
        format="voc",
        task=TASK,
        classes=classes,
        images=SizedImages(table.images(root), np.array(sizes, np.int64).reshape(-1, 2), "<size>"),
        labels=None,
        splits={split: np.array(ids, np.int64) for split, ids in splits.items()},
        notes=notes,
        truth=boxes,
    )


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports boxes; a crowd becomes difficult. Raises :class:`InputError` for an image that cannot
    be read."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = export.names(dataset)
    used: set[int] = set()
    counts: Counter[str] = Counter()
    for i, stem in enumerate(names):
        file = os.path.basename(export.save_image(dataset, i, str(folder / "JPEGImages" / stem)))
        boxes, instances = boxes_of(dataset, i)
        height, width = dataset.images.size(i)
        (folder / "Annotations" / f"{stem}.xml").write_text(
            _xml(file, height, width, boxes, dataset.classes), encoding="utf-8"
        )
        used |= set(boxes.labels.tolist())
        counts["crowd"] += int(boxes.crowd.sum())
        counts["instances"] += instances is not None
        counts["decimals"] += int((boxes.xyxy != np.round(boxes.xyxy)).any(1).sum())
    for split, ids in dataset.splits.items():
        text = "".join(f"{names[int(i)]}\n" for i in ids)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")
    unused = [name for k, name in enumerate(dataset.classes) if k not in used]
    counts["unused"] = len(unused)
    counts["order"] = list(dataset.classes) != sorted(dataset.classes)
    return lost(
        counts,
        {
            "crowd": "crowds became difficult objects: VOC has no crowds.",
            "instances": "images lost the masks of their objects: this format has boxes only "
            "(voc_masks has the masks).",
            "decimals": "boxes do not lie on whole pixels and were written with decimals, which "
            "some readers of VOC refuse.",
            "unused": f"classes have no box and are lost: {some(unused)}.",
            "order": "order of classes was lost: VOC sorts them by name.",
        },
    )


def fake(folder: Path) -> Fake:
    """Four images in three splits, one of them without an object, one object difficult."""
    rng = np.random.default_rng(2)
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    objects: list[list[tuple[Any, ...]]] = [
        [("cat", 1, 1, 1, 1, 0), ("ant", 3, 2, 12, 9, 1)],
        [],
        [("bee", 2, 2, 5.5, 8, 0)],
        [("cat", 4, 1, 14, 10, 0)],
    ]
    classes = ("ant", "bee", "cat")
    splits: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for i, found in enumerate(objects):
        split = ("train", "train", "val", "test")[i]
        image = rng.integers(0, 256, (10 + i, 14, 3), dtype=np.uint8)
        key = f"JPEGImages/{i:06d}.png"
        (folder / key).write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
        inner = "".join(
            f"<object><name>{name}</name><difficult>{hard}</difficult><part><name>head</name>"
            f"<bndbox><xmin>1</xmin></bndbox></part><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
            f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>\n"
            for name, a, b, c, d, hard in found
        )
        (folder / f"Annotations/{i:06d}.xml").write_text(
            f"<annotation>\n<filename>{i:06d}.png</filename><size><width>14</width>"
            f"<height>{10 + i}</height><depth>3</depth></size>\n{inner}</annotation>\n"
        )
        with (folder / f"ImageSets/Main/{split}.txt").open("a") as file:
            file.write(f"{i:06d}\n")
        boxes = Boxes(
            xyxy=np.array([(a - 1, b - 1, c, d) for _, a, b, c, d, _ in found], np.float32).reshape(
                -1, 4
            ),
            labels=np.array([classes.index(o[0]) for o in found], np.int64),
            difficult=np.array([o[5] for o in found], bool),
            crowd=np.zeros(len(found), bool),
        )
        splits[split].append(Sample(key=key, image=image, boxes=boxes))
    return Fake(str(folder), classes, splits)


def _xml(file: str, height: int, width: int, boxes: Boxes, classes: tuple[str, ...]) -> str:
    lines = [
        "<annotation>",
        f"  <filename>{escape(file)}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    hard = boxes.difficult | boxes.crowd
    for k, (x0, y0, x1, y1) in enumerate(decimals(boxes.xyxy)):
        sides = {"xmin": x0 + Decimal(1), "ymin": y0 + Decimal(1), "xmax": x1, "ymax": y1}
        box = "".join(f"<{side}>{plain(value)}</{side}>" for side, value in sides.items())
        lines += [
            "  <object>",
            f"    <name>{escape(classes[int(boxes.labels[k])])}</name>",
            f"    <difficult>{int(hard[k])}</difficult>",
            f"    <bndbox>{box}</bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


@dataclass(frozen=True)
class _Pair:
    """Where annotations and their images lie: "" or with a "/" at the end."""

    annotations: str
    images: str
    split: str = "train"


@dataclass
class _Layout:
    reason: str
    pairs: list[_Pair]
    lists: dict[str, str] = field(default_factory=dict)
    """ImageSets' lists by split."""


def _layout(source: str) -> _Layout | None:
    base = find_base(source, _is_base)
    if base is None:
        return None
    folders = folders_in(os.path.join(source, base))
    folder = _annotations(source, base, folders)
    if folder is not None:
        images = next((f"{base}{folders[n]}/" for n in IMAGE_FOLDERS if n in folders), base)
        lists = split_lists(source, base, "main")
        how = "splits by ImageSets" if lists else "without splits"
        return _Layout(
            f"PASCAL VOC's boxes ({base}{folder} with XML files, {how})",
            [_Pair(f"{base}{folder}/", images)],
            lists,
        )
    named = _split_folders(os.path.join(source, base), folders)
    if named:
        pairs = [_Pair(f"{base}{f}/", f"{base}{f}/", split) for split, f in named.items()]
        return _Layout("PASCAL VOC's XML files beside the images, a folder per split", pairs)
    return _Layout("PASCAL VOC's XML files beside the images, without splits", [_Pair(base, base)])


def _is_base(folder: str) -> bool:
    folders = folders_in(folder)
    if _annotations(folder, "", folders) is not None or _split_folders(folder, folders):
        return True
    return _holds_xml(folder) and any(is_image(name) for name in os.listdir(folder))


def _annotations(source: str, base: str, folders: dict[str, str]) -> str | None:
    named = [folders[n] for n in ("annotations", "annotation") if n in folders]
    return next((f for f in named if _holds_xml(os.path.join(source, base, f))), None)


def _split_folders(folder: str, folders: dict[str, str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for f in folders.values():
        split = split_of(f)
        if split is not None and _holds_xml(os.path.join(folder, f)):
            if split in named:
                raise InputError(
                    f"{folder} has two folders for the split {split}: {named[split]} and {f}. "
                    "Keep one of them."
                )
            named[split] = f
    return named


def _holds_xml(folder: str) -> bool:
    """Whether the first XML file in a folder begins as VOC's do."""
    try:
        with os.scandir(folder) as entries:
            first = next((e.path for e in entries if _stem_of_xml(e.name) is not None), None)
        if first is None:
            return False
        with open(first, "rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    return b"<annotation" in start or not start.strip()


def _stem_of_xml(name: str) -> str | None:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() == ".xml" and not name.startswith(".") else None


def _listed(root: str, layout: _Layout) -> tuple[dict[str, list[tuple[_Pair, str]]], Notes]:
    """(split: where and which annotation), and what was left out."""
    there = {
        pair: sorted(
            stem
            for name in names_in(os.path.join(root, pair.annotations))
            if (stem := _stem_of_xml(name)) is not None
        )
        for pair in layout.pairs
    }
    listed: dict[str, list[tuple[_Pair, str]]] = {}
    if layout.lists:
        (pair,) = layout.pairs
        lists, notes = read_lists(root, layout.lists, set(there[pair]), "annotation")
        listed = {split: [(pair, stem) for stem in found] for split, found in lists.items()}
    else:
        notes = []
        for pair, found in there.items():
            listed[pair.split] = [(pair, stem) for stem in found]
    for pair, found in there.items():
        stems_there = set(found)
        without = [s for s in by_stem(os.path.join(root, pair.images)) if s not in stems_there]
        if without:
            notes.append(
                f"{len(without):,} images in {pair.images or root} have no annotation and were "
                f"left out: {some(without)}."
            )
    return listed, notes
