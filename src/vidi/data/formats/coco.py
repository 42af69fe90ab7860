"""COCO's boxes: JSON files of instances with their images; masks of the objects come along.

A box is x, y, width and height, counted from 0: (x, y, x + width, y + height) here. Category ids
may have gaps; classes are 0 to K - 1 in their order. ``ignore`` is read as difficult. The masks of
an image become one map of instances, crowds below, then large objects below small ones; they are
decoded when the sample is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vidi.data import export
from vidi.data.boxes import area_notes, boxes_of, decimals, lost, some
from vidi.data.coco_layout import Found, find_layout, painted, read_all
from vidi.data.dataset import Dataset
from vidi.data.formats import Fake
from vidi.data.rle import of_mask, to_string
from vidi.data.truth import BoxTable
from vidi.types import Array, Boxes, Notes, Sample

TASK = "detection"


def sniff(source: str) -> str | None:
    layout = find_layout(source)
    if layout is None or not layout.has_boxes:
        return None
    return f"COCO's boxes ({layout.told or some(layout.unclear)})"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for damaged JSON, with the line; for an object of an unknown image
    or category, or without a box of finite numbers; for images that are not there."""
    layout = find_layout(source)
    assert layout is not None
    found = read_all(source, layout, boxes=True)
    number = {key: k for k, key in enumerate(found.categories)}
    truth = CocoBoxes(found, number)
    notes = [f"{source} is COCO's boxes ({layout.told}).", *found.notes]
    empty = np.flatnonzero(np.diff(truth.offsets) == 0)
    if len(empty):
        names = some((found.images.key(int(i)) for i in empty[:10]), len(empty))
        notes.append(f"{len(empty):,} images have no object and are background: {names}.")
    if truth.crowd.any():
        notes.append(f"{int(truth.crowd.sum()):,} objects are crowds.")
    return Dataset(
        root=os.path.abspath(source),
        format="coco",
        task=TASK,
        classes=tuple(found.categories.values()),
        images=found.images,
        labels=None,
        splits=found.splits,
        notes=[*notes, *area_notes(truth, found.images)],
        truth=truth,
    )


class CocoBoxes(BoxTable):
    """Boxes in memory, and the objects' masks as the file has them, decoded on demand."""

    def __init__(self, found: Found, number: dict[int, int]) -> None:
        files = found.files
        xywh = np.concatenate([f.xywh for f in files])
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        label = np.array([number[int(k)] for f in files for k in f.category], np.int64)
        starts = np.cumsum([0, *(len(f.category) for f in files)])
        offsets = [f.offsets[:-1] + s for f, s in zip(files, starts, strict=False)]
        super().__init__(
            xyxy,
            label,
            np.concatenate([f.ignore for f in files]),
            np.concatenate([f.crowd for f in files]),
            np.concatenate([*offsets, starts[-1:]]),
        )
        self._files = files
        self._starts = found.starts
        self._images = found.images
        self._masked = any(f.shapes.kinds.any() for f in files)

    def fields(self, i: int) -> dict[str, Any]:
        boxes = self.boxes(i)
        if not self._masked:
            return {"boxes": boxes}
        part = bisect_right(self._starts, i) - 1
        file, j = self._files[part], i - self._starts[part]
        height, width = self._images.size(i)
        instances = np.zeros((height, width), np.int32)
        for m, mask in painted(file, j, height, width):
            instances[mask] = m - file.offsets[j] + 1
        numbers = np.arange(1, len(boxes) + 1)
        numbers[~np.isin(numbers, instances)] = 0  # wholly hidden, or without a mask
        boxes = Boxes(
            xyxy=boxes.xyxy,
            labels=boxes.labels,
            difficult=boxes.difficult,
            crowd=boxes.crowd,
            instances=numbers,
        )
        return {"boxes": boxes, "instances": instances}

    def digest(self) -> bytes:
        digest = hashlib.blake2b(super().digest(), digest_size=16)
        for file in self._files:
            digest.update(file.shapes.kinds.tobytes())
            digest.update(file.shapes.blob)
        return digest.digest()


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports boxes, and masks of objects as run lengths; difficult as ``ignore``. Raises
    :class:`InputError` for an image that cannot be read."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    names = export.names(dataset)
    counts: Counter[str] = Counter()
    for split, ids in dataset.splits.items():
        (folder / split).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for i in map(int, ids):
            file = os.path.basename(export.save_image(dataset, i, str(folder / split / names[i])))
            boxes, instances = boxes_of(dataset, i)
            images.append(image_entry(i, file, dataset.images.size(i)))
            rows = zip(decimals(boxes.xyxy), boxes.labels, strict=True)
            for k, ((x0, y0, x1, y1), label) in enumerate(rows):
                item: dict[str, Any] = {
                    "id": len(objects) + 1,
                    "image_id": i + 1,
                    "category_id": int(label) + 1,
                    "bbox": [_number(v) for v in (x0, y0, x1 - x0, y1 - y0)],
                    "area": _number((x1 - x0) * (y1 - y0)),
                    "iscrowd": int(boxes.crowd[k]),
                }
                if boxes.difficult[k]:
                    item["ignore"] = 1
                    counts["difficult"] += 1
                if instances is not None and boxes.instances is not None and boxes.instances[k]:
                    mask = instances == boxes.instances[k]
                    item |= {"area": int(mask.sum()), "segmentation": run_lengths(mask)}
                objects.append(item)
        write_json(folder, split, images, objects, dict(enumerate(dataset.classes, 1)))
    return lost(
        counts,
        {
            "difficult": "difficult objects are marked by a field `ignore`, which COCO's own "
            "evaluation does not read.",
        },
    )


def fake(folder: Path) -> Fake:
    """Two splits, categories with gaps, a crowd, an object to be ignored and an empty image."""
    rng = np.random.default_rng(3)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    categories = [{"id": 7, "name": "bee"}, {"id": 2, "name": "ant"}, {"id": 90, "name": "cat"}]
    classes = ("ant", "bee", "cat")
    objects: list[list[tuple[int, list[float], int, int]]] = [
        [(7, [1, 2, 3.5, 4], 0, 0), (90, [0, 0, 12, 9], 1, 0)],
        [],
        [(2, [2, 2, 4, 4], 0, 1)],
    ]
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for split, numbers in (("train", (0, 1)), ("val", (2,))):
        (folder / split).mkdir()
        images, found = [], []
        for i in numbers:
            image = rng.integers(0, 256, (9, 12 + i, 3), dtype=np.uint8)
            name = f"{i:012d}.png"
            data = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
            (folder / split / name).write_bytes(data)
            images.append({"id": 10 * i + 5, "file_name": name, "height": 9, "width": 12 + i})
            found += [
                {"id": 100 * i + m, "image_id": 10 * i + 5, "category_id": key, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": crowd, "ignore": hard, "segmentation": []}
                for m, (key, box, crowd, hard) in enumerate(objects[i])
            ]  # fmt: skip
            boxes = Boxes(
                xyxy=np.array(
                    [(x, y, x + w, y + h) for _, (x, y, w, h), _, _ in objects[i]], np.float32
                ).reshape(-1, 4),
                labels=np.array([{2: 0, 7: 1, 90: 2}[o[0]] for o in objects[i]], np.int64),
                difficult=np.array([o[3] for o in objects[i]], bool),
                crowd=np.array([o[2] for o in objects[i]], bool),
            )
            splits[split].append(Sample(key=f"{split}/{name}", image=image, boxes=boxes))
        text = json.dumps({"images": images, "annotations": found, "categories": categories})
        (folder / "annotations" / f"instances_{split}.json").write_text(text)
    return Fake(str(folder), classes, splits)


# What COCO's two formats share when they are written ---------------------------------------------


def image_entry(i: int, file: str, size: tuple[int, int]) -> dict[str, Any]:
    return {"id": i + 1, "file_name": file, "height": size[0], "width": size[1]}


def run_lengths(mask: Array) -> dict[str, Any]:
    """A bool mask [H, W] as COCO's compressed run lengths."""
    return {"size": list(mask.shape), "counts": to_string(of_mask(mask))}


def write_json(
    folder: Path,
    split: str,
    images: list[dict[str, Any]],
    objects: list[dict[str, Any]],
    categories: dict[int, str],
) -> None:
    """One entry a line: such a file can be looked at and compared."""
    named = [{"id": key, "name": name, "supercategory": ""} for key, name in categories.items()]
    parts = [
        f'"{name}": [\n' + ",\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "]"
        for name, items in (("images", images), ("annotations", objects), ("categories", named))
    ]
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def _number(value: Decimal) -> int | float:
    return int(value) if value == int(value) else float(value)
