"""PASCAL VOC's masks: class numbers as palette PNG in SegmentationClass, 255 ignored.

SegmentationObject beside it gives the instances (its 255 is none). ImageSets/Segmentation lists the
splits, where it is. Classes are named by class_names.txt, classes.txt, labels.txt (a name a line)
or CVAT's labelmap.txt (name:red,green,blue) in the folder; without, they are VOC's own 21. Masks
saved in colour instead of with a palette are read by the colours of labelmap.txt, or VOC's.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vidi.data import export
from vidi.data.boxes import SizedImages, lost, some
from vidi.data.dataset import SPLITS, Dataset, FileImages, PathTable
from vidi.data.formats import Fake
from vidi.data.images import MAX_MEGAPIXELS, check_header, read_header
from vidi.data.images import read as read_bytes
from vidi.data.voc_layout import (
    IMAGE_FOLDERS,
    by_stem,
    find_base,
    folders_in,
    lines_of,
    read_lists,
    split_lists,
)
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample

TASK = "segmentation"

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
IGNORED = 255
_NAMES = ("class_names.txt", "classes.txt", "labels.txt")
_MASKS, _OBJECTS = "segmentationclass", "segmentationobject"


def sniff(source: str) -> str | None:
    base = find_base(source, _is_base)
    if base is None:
        return None
    lists = split_lists(source, base, "segmentation")
    how = "splits by ImageSets" if lists else "without splits"
    return f"PASCAL VOC's masks ({base}SegmentationClass with PNG files, {how})"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for a mask that is listed and missing, one without an image, and a
    sample in two splits; when it is loaded, for a mask of another size or with unknown classes."""
    base = find_base(source, _is_base)
    assert base is not None
    root = os.path.abspath(source)
    folders = folders_in(os.path.join(root, base))
    in_base = {name: f"{base}{folder}/" for name, folder in folders.items()}
    place = next((in_base[n] for n in IMAGE_FOLDERS if n in in_base), base)
    masks = by_stem(os.path.join(root, in_base[_MASKS]))
    objects = by_stem(os.path.join(root, in_base[_OBJECTS])) if _OBJECTS in in_base else {}
    images = by_stem(os.path.join(root, place))

    notes = [f"{source} is {sniff(source)}."]
    lists = split_lists(source, base, "segmentation")
    listed: dict[str, list[str]] = {"train": list(masks)}
    if lists:
        listed, more = read_lists(root, lists, masks, "mask")
        notes += more
    paths: list[tuple[str, str | None]] = []
    table = PathTable()
    splits: dict[str, Array] = {}
    missing: list[str] = []
    for split in (s for s in SPLITS if listed.get(s)):
        start = len(table)
        for stem in listed[split]:
            if stem not in images:
                missing.append(in_base[_MASKS] + masks[stem])
                continue
            table.extend([place + images[stem]])
            instance = in_base[_OBJECTS] + objects[stem] if stem in objects else None
            paths.append((in_base[_MASKS] + masks[stem], instance))
        splits[split] = np.arange(start, len(table))
    if missing:
        raise InputError(
            f"{source}: {len(missing):,} masks have no image of their name in {place or root}: "
            f"{some(missing)}. Add the images, or remove the masks."
        )
    if not paths:
        raise InputError(f"{source}: ImageSets/Segmentation lists no image. Add some.")
    without = [name for stem, name in images.items() if stem not in masks]
    if without:
        notes.append(f"{len(without):,} images have no mask and were left out: {some(without)}.")
    if objects:
        bare = [mask for mask, instance in paths if instance is None]
        if bare:
            notes.append(f"{len(bare):,} masks have no SegmentationObject: {some(bare)}.")
    classes, colours, told = _classes(os.path.join(root, base))
    files = table.images(root)
    return Dataset(
        root=root,
        format="voc_masks",
        task=TASK,
        classes=classes,
        images=files,
        labels=None,
        splits=splits,
        notes=[*notes, told],
        truth=_Masks(root, paths, len(classes), colours, files),
        palette=colours,
    )


class _Masks:
    """Mask files, read on demand."""

    def __init__(
        self,
        root: str,
        paths: list[tuple[str, str | None]],
        classes: int,
        colours: Array,
        images: FileImages | SizedImages,
    ) -> None:
        self._root = root
        self._paths = paths
        self._classes = classes
        self._colours = colours
        self._images = images

    def fields(self, i: int) -> dict[str, Any]:
        path, instance = (p and os.path.join(self._root, p) for p in self._paths[i])
        assert path is not None
        size = self._images.size(i)
        mask = _indices(path, size)
        if mask.ndim == 3:
            mask = _by_colour(mask, self._colours, path)
        strange = (mask >= self._classes) & (mask != IGNORED)
        if strange.any():
            values = ", ".join(map(str, np.unique(mask[strange])[:10]))
            raise InputError(
                f"{path}: {int(strange.sum()):,} pixels have the values {values}; there are "
                f"{self._classes} classes (0 to {self._classes - 1}), and {IGNORED} is ignored. "
                "Correct the mask, or name all classes in class_names.txt."
            )
        found: dict[str, Any] = {"mask": mask}
        if instance is not None:
            which = _indices(instance, size)
            if which.ndim == 3:
                codes = which.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
                void = codes == 0xE0E0C0
                colours, numbers = np.unique(codes, return_inverse=True)
                # Black first, so that it is 0 where it occurs.
                numbers = numbers.reshape(codes.shape) + (colours[0] != 0)
                found["instances"] = np.where(void, 0, numbers).astype(np.int32)
            else:
                found["instances"] = np.where(which == IGNORED, 0, which).astype(np.int32)
        return found

    def digest(self) -> bytes:
        text = repr((self._paths, self._classes))
        return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).digest()


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports masks, and instances where they fit. Raises :class:`InputError` for an image that
    cannot be read, and for more classes than a PNG holds."""
    if len(dataset.classes) > IGNORED:
        raise InputError(
            f"{dataset.root} has {len(dataset.classes)} classes; a palette holds {IGNORED} and "
            "what is ignored."
        )
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = export.names(dataset)
    colours = palette(256)
    if dataset.palette is not None:
        colours[: len(dataset.palette)] = dataset.palette
    counts: Counter[str] = Counter()
    for i, stem in enumerate(names):
        export.save_image(dataset, i, str(folder / "JPEGImages" / stem))
        fields = dataset.annotations(i)
        mask = fields["mask"].astype(np.uint8)
        _save(mask, colours, folder / "SegmentationClass" / f"{stem}.png")
        instances = fields.get("instances")
        if instances is None:
            continue
        if instances.max(initial=0) >= IGNORED:
            numbers, which = np.unique(instances, return_inverse=True)
            if len(numbers) > IGNORED:
                counts["many"] += 1
                continue
            counts["renumbered"] += 1
            instances = which.reshape(instances.shape) + (numbers[0] != 0)
        void = np.where((mask == IGNORED) & (instances == 0), IGNORED, instances)
        (folder / "SegmentationObject").mkdir(exist_ok=True)
        path = folder / "SegmentationObject" / f"{stem}.png"
        _save(void.astype(np.uint8), palette(256), path)
    for split, ids in dataset.splits.items():
        text = "".join(f"{names[int(i)]}\n" for i in ids)
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text, encoding="utf-8")
    if any(name != name.strip() or "\n" in name for name in dataset.classes):
        raise InputError(f"{dataset.root}: a class's name has blanks at its ends or two lines.")
    if dataset.palette is None or (colours == palette(256)).all():
        lines, file = list(dataset.classes), "class_names.txt"
    else:
        rgb = [",".join(map(str, colours[k])) for k in range(len(dataset.classes))]
        pairs = zip(dataset.classes, rgb, strict=True)
        lines, file = [f"{name}:{colour}::" for name, colour in pairs], "labelmap.txt"
    (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return lost(
        counts,
        {
            "many": "images have more than 254 instances, which this format cannot number; their "
            "maps of instances are lost.",
            "renumbered": "images have instances numbered beyond 254; these were numbered anew.",
        },
    )


def palette(n: int) -> Array:
    """VOC's colours, uint8 [n, 3]: a number's bits, three by three, from the highest bit of red,
    green and blue down (VOCdevkit's VOClabelcolormap)."""
    number = np.arange(n)[:, None]
    channel = np.arange(3)
    return np.asarray(
        sum(((number >> (3 * k + channel)) & 1) << (7 - k) for k in range(8)), np.uint8
    )


def fake(folder: Path) -> Fake:
    """Three images in two splits, with instances; class names in a file."""
    rng = np.random.default_rng(5)
    for part in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    classes = ("background", "ant", "bee")
    (folder / "class_names.txt").write_text("\n".join(classes) + "\n")
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for i in range(3):
        split = "val" if i == 2 else "train"
        image = rng.integers(0, 256, (8, 9 + i, 3), dtype=np.uint8)
        mask = rng.integers(0, 3, (8, 9 + i), dtype=np.uint8)
        instances = np.where(mask > 0, rng.integers(1, 4, mask.shape), 0).astype(np.int32)
        mask[0], instances[0] = IGNORED, 0
        key = f"JPEGImages/{i}.png"
        (folder / key).write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
        _save(mask, palette(256), folder / f"SegmentationClass/{i}.png")
        objects = np.where(mask == IGNORED, IGNORED, instances).astype(np.uint8)
        _save(objects, palette(256), folder / f"SegmentationObject/{i}.png")
        with (folder / f"ImageSets/Segmentation/{split}.txt").open("a") as file:
            file.write(f"{i}\n")
        splits[split].append(Sample(key=key, image=image, mask=mask, instances=instances))
    return Fake(str(folder), classes, splits)


def _is_base(folder: str) -> bool:
    masks = folders_in(folder).get(_MASKS)
    if masks is None:
        return False
    with os.scandir(os.path.join(folder, masks)) as entries:
        return any(entry.name.lower().endswith(".png") for entry in entries)


def _classes(base: str) -> tuple[tuple[str, ...], Array, str]:
    """(names, colours, what is said of them)."""
    path = os.path.join(base, "labelmap.txt")
    if os.path.isfile(path):
        names, colours = [], []
        for line, text in enumerate(lines_of(path), 1):
            if not text.strip() or text.startswith("#"):
                continue
            cells = text.rsplit(":", 3)
            try:
                red, green, blue = (int(cell) for cell in cells[1].split(","))
                colours.append(np.array([red, green, blue], np.uint8))
            except (IndexError, ValueError, OverflowError) as error:
                raise InputError(
                    f"{path}, line {line}: {text!r}; name:red,green,blue:: is expected, each from "
                    "0 to 255."
                ) from error
            names.append(cells[0].strip())
        _check_names(path, names)
        return tuple(names), np.stack(colours), "The classes are those of labelmap.txt."
    for name in _NAMES:
        path = os.path.join(base, name)
        if os.path.isfile(path):
            names = [text.strip() for text in lines_of(path) if text.strip()]
            names = [n for n in names if n != "__ignore__"]
            _check_names(path, names)
            return tuple(names), palette(len(names)), f"The classes are those of {name}."
    told = (
        "No class_names.txt says the classes, so they are taken for VOC's own: background and 20 "
        "others."
    )
    return CLASSES, palette(len(CLASSES)), told


def _check_names(path: str, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not 0 < len(names) <= IGNORED:
        what = f"names {some(twice)} twice" if twice else f"names {len(names)} classes"
        raise InputError(f"{path} {what}; one name a line is expected, at most {IGNORED}.")


def _indices(path: str, size: tuple[int, int]) -> Array:
    """uint8 [H, W], or [H, W, 3] of a mask in colour; of the given height and width."""
    data = read_bytes(path)
    header = read_header(data, path)
    check_header(header, path, MAX_MEGAPIXELS)
    if header.size != size:
        raise InputError(
            f"{path} has {header.width} × {header.height} pixels, and its image {size[1]} × "
            f"{size[0]}. A mask has its image's size; replace one of them."
        )
    if header.mode not in ("P", "L", "RGB", "1") or header.depth > 8:
        raise InputError(
            f"{path} is an image of mode {header.mode} with {header.depth} bits; a palette PNG is "
            "expected. Save it as such."
        )
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            array = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}).") from error
    return array.astype(np.uint8)


def _by_colour(rgb: Array, colours: Array, path: str) -> Array:
    base = np.array([65536, 256, 1], np.int32)
    codes = rgb.astype(np.int32) @ base
    mask = np.full(codes.shape, IGNORED, np.uint8)
    known = codes == 0xE0E0C0  # VOC's own colour for what is ignored: 224, 224, 192
    for k, code in enumerate((colours.astype(np.int32) @ base).tolist()):
        mask[codes == code] = k
        known |= codes == code
    if not known.all():
        found = [f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in np.unique(codes[~known])[:10]]
        raise InputError(
            f"{path}: {int((~known).sum()):,} pixels have the colours {', '.join(found)}, which "
            "are no class's. Name all colours in labelmap.txt."
        )
    return mask


def _save(mask: Array, colours: Array, path: Path) -> None:
    image = Image.fromarray(mask)
    image.putpalette(colours.ravel().tolist())
    image.save(path, format="PNG")
