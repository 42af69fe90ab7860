"""COCO's masks: a class per pixel, from the outlines and run lengths of its JSON files.

Class 0 is "background" (what no object covers), the categories follow in the order of their ids. A
category that is itself called background is class 0. Crowds become 255, ignored; objects lie over
them, small ones over large ones. The objects are kept as a map of instances.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vidi.data import export
from vidi.data.boxes import lost, some
from vidi.data.coco_layout import Found, find_layout, painted, read_all
from vidi.data.dataset import Dataset
from vidi.data.formats import Fake
from vidi.data.formats.coco import image_entry, run_lengths, write_json
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample

TASK = "segmentation"

BACKGROUND = "background"
IGNORED = 255


def sniff(source: str) -> str | None:
    layout = find_layout(source)
    if layout is None or not layout.has_shapes:
        return None
    return f"COCO's masks ({layout.told or some(layout.unclear)})"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` as :func:`vidi.data.formats.coco.read` does, and for more classes
    than there are numbers below 255."""
    layout = find_layout(source)
    assert layout is not None
    found = read_all(source, layout, boxes=False)
    named = {key: name for key, name in found.categories.items() if name.lower() != BACKGROUND}
    classes = (BACKGROUND, *named.values())
    if len(classes) > IGNORED:
        raise InputError(
            f"{source} has {len(named):,} categories; in a mask there are at most {IGNORED - 1}, "
            f"since {IGNORED} is what is ignored. Join or remove some."
        )
    number = dict.fromkeys(found.categories, 0) | {key: k for k, key in enumerate(named, 1)}
    notes = [f"{source} is COCO's masks ({layout.told}).", *found.notes]
    kinds = np.concatenate([file.shapes.kinds for file in found.files])
    crowd = np.concatenate([file.crowd for file in found.files])
    counts = Counter(
        bare=int((kinds == 0).sum()),
        crowd=int(crowd[kinds > 0].sum()),
        empty=sum(int((np.diff(file.offsets) == 0).sum()) for file in found.files),
    )
    notes += lost(
        counts,
        {
            "empty": "images have no object and are background.",
            "bare": f"of {len(kinds):,} objects have no mask and are left out.",
            "crowd": "crowds are ignored (255).",
        },
    )
    return Dataset(
        root=os.path.abspath(source),
        format="coco_masks",
        task=TASK,
        classes=classes,
        images=found.images,
        labels=None,
        splits=found.splits,
        notes=notes,
        truth=_Masks(found, number),
    )


class _Masks:
    """Masks, painted on demand."""

    def __init__(self, found: Found, number: dict[int, int]) -> None:
        self._found = found
        self._starts = found.starts
        self._number = number

    def fields(self, i: int) -> dict[str, Any]:
        part = bisect_right(self._starts, i) - 1
        file, j = self._found.files[part], i - self._starts[part]
        height, width = self._found.images.size(i)
        mask = np.zeros((height, width), np.uint8)
        instances = np.zeros((height, width), np.int32)
        for m, covered in painted(file, j, height, width):
            label = IGNORED if file.crowd[m] else self._number[int(file.category[m])]
            mask[covered] = label
            instances[covered] = 0 if label in (0, IGNORED) else m - file.offsets[j] + 1
        return {"mask": mask, "instances": instances}

    def digest(self) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for file in self._found.files:
            for part in (file.offsets, file.category, file.crowd, file.shapes.kinds):
                digest.update(np.ascontiguousarray(part).data)
            digest.update(file.shapes.blob)
        return digest.digest()


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports masks as run lengths: an object per instance, or per class where there are none; what
    is ignored as a crowd. Raises :class:`InputError` for an image that cannot be read."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    names = export.names(dataset)
    added = dataset.classes[0].lower().strip("_") != BACKGROUND
    categories = {k + added: c for k, c in enumerate(dataset.classes) if k + added}
    counts = Counter(added=int(added), colours=int(dataset.palette is not None))
    for split, ids in dataset.splits.items():
        (folder / split).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for i in map(int, ids):
            file = os.path.basename(export.save_image(dataset, i, str(folder / split / names[i])))
            fields = dataset.annotations(i)
            images.append(image_entry(i, file, dataset.images.size(i)))
            instances = fields.get("instances")
            counts["classes"] += instances is None
            for label, covered in _regions(fields["mask"], instances, added):
                ignored = label == IGNORED
                if label + added == 0:
                    continue
                ys, xs = np.nonzero(covered)
                x, y = int(xs.min()), int(ys.min())
                objects.append(
                    {
                        "id": len(objects) + 1,
                        "image_id": i + 1,
                        "category_id": min(categories) if ignored else label + added,
                        "bbox": [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y],
                        "area": len(xs),
                        "iscrowd": int(ignored),
                        "segmentation": run_lengths(covered),
                    }
                )
        write_json(folder, split, images, objects, categories)
    return lost(
        counts,
        {
            "classes": "images have no map of instances: each class of one became a single object.",
            "added": "class was added: background, as number 0; all others are one higher.",
            "colours": "table of the classes' colours was lost: COCO has none.",
        },
    )


def _regions(mask: Array, instances: Array | None, all_count: bool) -> list[tuple[int, Array]]:
    """(class, where) of each instance, then of what belongs to none; bool [H, W]. ``all_count``:
    class 0 is one like the others."""
    which = np.zeros(mask.shape, np.int64) if instances is None else instances.astype(np.int64)
    which = np.where(((mask == 0) & (not all_count)) | (mask == IGNORED), 0, which)
    # Instances in their order, then the rest by class.
    joint = np.where(which > 0, which, which.max() + 1) * 256 + mask
    return [(int(code) % 256, joint == code) for code in np.unique(joint)]


def fake(folder: Path) -> Fake:
    """Outlines, both kinds of run lengths, a crowd, one object over another; no boxes."""
    rng = np.random.default_rng(4)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir()
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    square = [[1, 1, 6, 1, 6, 5, 1, 5]]
    shapes: list[list[tuple[int, int, Any]]] = [
        [(9, 0, square), (4, 0, [[2, 2, 4, 2, 4, 4, 2, 4], [8, 0, 10, 0, 10, 1, 8, 1]])],
        [(4, 1, {"size": [6, 10], "counts": [0, 6, 54]}), (9, 0, square)],
        [(9, 0, {"size": [6, 10], "counts": "23g1"})],
    ]
    masks = np.zeros((3, 6, 10), np.uint8)
    instances = np.zeros((3, 6, 10), np.int32)
    masks[0, 1:5, 1:6], instances[0, 1:5, 1:6] = 2, 1
    masks[0, 2:4, 2:4], instances[0, 2:4, 2:4] = 1, 2
    masks[0, 0, 8:10], instances[0, 0, 8:10] = 1, 2
    masks[1, :, 0] = IGNORED
    masks[1, 1:5, 1:6], instances[1, 1:5, 1:6] = 2, 2
    masks[2, 2:5, 0], instances[2, 2:5, 0] = 2, 1
    for split, numbers in (("train", (0, 1)), ("val", (2,))):
        images, found = [], []
        for i in numbers:
            image = rng.integers(0, 256, (6, 10, 3), dtype=np.uint8)
            name = f"{i}.png"
            data = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
            (folder / "images" / name).write_bytes(data)
            images.append({"id": i, "file_name": name, "height": 6, "width": 10})
            found += [
                {"id": 10 * i + m, "image_id": i, "category_id": key, "iscrowd": crowd,
                 "segmentation": shape}
                for m, (key, crowd, shape) in enumerate(shapes[i])
            ]  # fmt: skip
            splits[split].append(
                Sample(key=f"images/{name}", image=image, mask=masks[i], instances=instances[i])
            )
        categories = [{"id": 4, "name": "ant"}, {"id": 9, "name": "bee"}]
        text = json.dumps({"images": images, "annotations": found, "categories": categories})
        (folder / "annotations" / f"{split}.json").write_text(text)
    return Fake(str(folder), (BACKGROUND, "ant", "bee"), splits)
