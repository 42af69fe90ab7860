"""One JSON file of COCO's kind, read once into flat arrays.

The masks of objects are most of such a file. They are packed into bytes while the file is parsed,
object by object, so that half a gigabyte of it takes little more than that in memory.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidi.data import json_file
from vidi.data.boxes import number, some, within
from vidi.data.polygons import fill
from vidi.data.rle import from_string, to_mask
from vidi.errors import InputError
from vidi.types import Array

NONE, POLYGONS, RUNS, STRING = range(4)
"""How an object's mask is given: not at all, as outlines, as run lengths, as their string."""

_KEPT = ("id", "image_id", "category_id", "bbox", "iscrowd", "ignore", "segmentation")


@dataclass
class CocoFile:
    """N images and their M objects, image by image, in the file's order."""

    path: str
    images: list[str]
    """Paths as the file gives them, with "/"."""
    sizes: Array
    """int64 [N, 2]: height and width; 0 where not given."""
    categories: dict[int, str]
    offsets: Array
    """int64 [N + 1]: where each image's objects begin."""
    xywh: Array
    """float64 [M, 4]."""
    category: Array
    """int64 [M]: the category's own number."""
    crowd: Array
    """bool [M]."""
    ignore: Array
    """bool [M]."""
    shapes: Shapes


class Shapes:
    """The masks of M objects, packed: ``kinds`` is uint8 [M], ``offsets`` int64 [M + 1] in
    ``blob``."""

    def __init__(self, kinds: Array, blob: bytes, offsets: Array, path: str, ids: Array) -> None:
        self.kinds = kinds
        self.blob = blob
        self.offsets = offsets
        self._path = path
        self._ids = ids

    def mask(self, m: int, height: int, width: int) -> Array:
        """bool [height, width]. Raises :class:`InputError` for damaged run lengths, and such of
        another size."""
        data = self.blob[self.offsets[m] : self.offsets[m + 1]]
        kind, name = self.kinds[m], f"{self._path}, annotation {self._ids[m]}"
        mask = np.zeros((height, width), bool)
        if kind == POLYGONS:
            values = np.frombuffer(data, np.float64)
            at = 0
            while at < len(values):
                n = int(values[at])
                fill(mask, values[at + 1 : at + 1 + n].reshape(-1, 2))
                at += 1 + n
        elif kind in (RUNS, STRING):
            size = struct.unpack_from("<2q", data)
            if size != (height, width):
                raise InputError(
                    f"{name}: its mask is for {size[1]} × {size[0]} pixels, and the image has "
                    f"{width} × {height}. Put the image there that was annotated."
                )
            runs = np.frombuffer(data, np.int64, offset=16) if kind == RUNS else None
            mask = to_mask(
                from_string(data[16:], name) if runs is None else runs, height, width, name
            )
        return mask


def parse(path: str, *, boxes: bool) -> CocoFile:
    """``boxes``: whether each object needs a box. Raises :class:`InputError` for damaged JSON, with
    the line, and for whatever else of it does not hold, with the object."""
    top = _loaded(path)
    images, places, sizes = _images(path, _list(top, "images", path))
    categories = _categories(path, _list(top, "categories", path))
    objects = _list(top, "annotations", path)
    top.clear()

    n = len(objects)
    owner = np.zeros(n, np.int64)
    xywh = np.zeros((n, 4))
    category = np.zeros(n, np.int64)
    crowd, ignore = np.zeros(n, bool), np.zeros(n, bool)
    kinds = np.zeros(n, np.uint8)
    packed: list[bytes] = []
    ids = np.arange(n)
    unknown: list[str] = []
    for m, item in enumerate(objects):
        if not isinstance(item, dict):
            raise InputError(f"{path}: annotations[{m}] is no object with image_id and bbox.")
        if type(item.get("id")) is int and abs(item["id"]) < 2**62:
            ids[m] = item["id"]
        where = f"{path}, annotation {ids[m]}"
        image = item.get("image_id")
        place = places.get(image) if isinstance(image, int | str) else None
        if place is None:
            unknown.append(f"annotation {ids[m]} (image_id {image!r})")
            continue
        owner[m] = place
        found = item.get("category_id")
        if isinstance(found, bool) or not isinstance(found, int) or found not in categories:
            raise InputError(
                f"{where} ({images[place]}): its category_id is {found!r}, which is none of the "
                f"{len(categories)} categories. Correct it, or add the category."
            )
        category[m] = found
        if boxes or item.get("bbox"):
            xywh[m] = _box(item.get("bbox"), f"{where} ({images[place]})")
        crowd[m] = _flag(item, "iscrowd", where)
        ignore[m] = _flag(item, "ignore", where)
        kinds[m], data = item.get("segmentation") or (NONE, b"")
        packed.append(data)
        item.clear()
    if unknown:
        raise InputError(
            f"{path}: {len(unknown):,} annotations are for images that are not in its list: "
            f"{some(unknown)}. Add the images, or remove the annotations."
        )
    order = np.argsort(owner, kind="stable")
    lengths = np.array([len(data) for data in packed], np.int64)[order]
    return CocoFile(
        path=path,
        images=images,
        sizes=sizes,
        categories=categories,
        offsets=np.searchsorted(owner[order], np.arange(len(images) + 1)).astype(np.int64),
        xywh=xywh[order],
        category=category[order],
        crowd=crowd[order],
        ignore=ignore[order],
        shapes=Shapes(
            kinds[order],
            b"".join(packed[m] for m in order.tolist()),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            path,
            ids[order],
        ),
    )


def _loaded(path: str) -> dict[str, Any]:
    def slim(item: dict[str, Any]) -> Any:
        """Called for each object of the JSON as it is complete, the inner ones first."""
        if "segmentation" in item or ("image_id" in item and "category_id" in item):
            kept = {key: item[key] for key in _KEPT if key in item}
            where = f"{path}, annotation {item.get('id', 'without id')}"
            kept["segmentation"] = _packed(item.get("segmentation"), where)
            return kept
        return item

    top = json_file.read(path, slim)
    if not isinstance(top, dict):
        raise InputError(f"{path} is no object with images, annotations and categories.")
    return top


def _packed(shape: Any, where: str) -> tuple[int, bytes]:
    """How the mask is given, and its bytes."""
    if not shape:
        return NONE, b""
    if isinstance(shape, dict):
        size: Any = shape.get("size")
        counts: Any = shape.get("counts")
        if (
            not isinstance(size, list)
            or len(size) != 2
            or not all(type(side) is int and 0 < side < 2**31 for side in size)
        ):
            raise InputError(f"{where}: its run lengths have the size {size!r}; [height, width].")
        head = struct.pack("<2q", *size)
        if isinstance(counts, str) and counts.isascii():
            return STRING, head + counts.encode()
        try:
            return RUNS, head + array("q", counts).tobytes()
        except (TypeError, OverflowError) as error:
            raise InputError(
                f"{where}: its counts are neither a string nor a list of whole numbers."
            ) from error
    if not isinstance(shape, list):
        raise InputError(f"{where}: its segmentation is neither a list nor run lengths.")
    values = array("d")
    for outline in shape:
        if not isinstance(outline, list) or len(outline) % 2:
            raise InputError(
                f"{where}: an outline is a list of x, y, x, y …, and a segmentation a list of such."
            )
        values.append(len(outline))
        try:
            values.extend(outline)
        except TypeError as error:
            raise InputError(f"{where}: an outline holds something that is no number.") from error
    if not (np.abs(np.frombuffer(values)) < 1e9).all():
        raise InputError(f"{where}: an outline holds a coordinate that is not finite. Correct it.")
    return POLYGONS, values.tobytes()


def _list(top: dict[str, Any], name: str, path: str) -> list[Any]:
    found = top.get(name)
    if not isinstance(found, list):
        has = f"; it has {', '.join(map(str, list(top)[:8]))}" if top else ""
        raise InputError(f"{path} has no list of {name}{has}. COCO's instances are expected.")
    return found


def _images(path: str, items: list[Any]) -> tuple[list[str], dict[int | str, int], Array]:
    """(paths, each image's place by its id, sizes)."""
    names: list[str] = []
    places: dict[int | str, int] = {}
    sizes = np.zeros((len(items), 2), np.int64)
    for k, item in enumerate(items):
        where = f"{path}, images[{k}]"
        if not isinstance(item, dict):
            raise InputError(f"{where} is no object with id and file_name.")
        key, name = item.get("id"), item.get("file_name")
        if isinstance(key, bool) or not isinstance(key, int | str) or not isinstance(name, str):
            raise InputError(f"{where} lacks an id or a file_name. Add it.")
        if key in places:
            raise InputError(f"{where}: a second image with the id {key!r}. Give each its own.")
        for side, what in enumerate(("height", "width")):
            value = item.get(what, 0)
            if type(value) is not int or not 0 <= value < 2**31:
                raise InputError(f"{where} ({name}): its {what} is {value!r}; pixels are expected.")
            sizes[k, side] = value
        places[key] = len(names)
        names.append(within(name, where))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{path} lists images twice: {some(twice)}. Join their entries.")
    return names, places, sizes


def _categories(path: str, items: list[Any]) -> dict[int, str]:
    """Names by number, ascending."""
    found: dict[int, str] = {}
    for k, item in enumerate(items):
        where = f"{path}, categories[{k}]"
        key = item.get("id") if isinstance(item, dict) else None
        name = item.get("name") if isinstance(item, dict) else None
        if type(key) is not int or not abs(key) < 2**62 or not isinstance(name, str) or not name:
            raise InputError(f"{where} lacks a whole number as id, or a name. Add it.")
        if key in found or name in found.values():
            raise InputError(f"{where}: the id or name of {name} ({key}) was there before.")
        found[key] = name
    if not found:
        raise InputError(f"{path} has no categories. Add them.")
    return dict(sorted(found.items()))


def _box(box: Any, where: str) -> list[float]:
    if not isinstance(box, list) or len(box) != 4:
        raise InputError(f"{where}: its bbox is {box!r}; [x, y, width, height] is expected.")
    return [number(None if isinstance(v, str) else v, "a side of its bbox", where) for v in box]


def _flag(item: dict[str, Any], name: str, where: str) -> bool:
    value = item.get(name, 0)
    if value not in (0, 1):
        raise InputError(f"{where}: its {name} is {value!r}; 0 or 1 is expected.")
    return bool(value)
