"""Folders of images and of masks, paired by name: CamVid's layouts, and most others.

SPLIT/images and SPLIT/masks, images/SPLIT and masks/SPLIT, images and masks, or SPLIT and
SPLITannot; usual synonyms go too, and a mask's name may end in _L, _mask and the like. A mask holds
class numbers (grey or palette PNG; 255 is ignored), colours, or black and white. classes.txt names
the classes, a line each; for colours a line is a name and its red, green and blue.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vidi.data import export
from vidi.data.boxes import lost, some
from vidi.data.class_tables import find_tables, parse
from vidi.data.dataset import SPLITS, Dataset, PathTable
from vidi.data.formats import Fake
from vidi.data.formats.voc_masks import palette as voc_palette
from vidi.data.mask_files import IGNORED, MaskFiles, decide
from vidi.data.mask_layout import find_layout, listed, paired
from vidi.data.voc_layout import find_base
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample

TASK = "segmentation"


def sniff(source: str) -> str | None:
    base = find_base(source, lambda folder: find_layout(folder) is not None)
    if base is None:
        return None
    layout = find_layout(os.path.join(source, base))
    assert layout is not None
    images, masks = next(iter(layout.pairs.values()))
    told = [*layout.lists.values()] or [*layout.pairs]
    where = ", ".join(told) if layout.has_splits else "no splits"
    return f"images and masks paired by name ({base}{images} and {base}{masks}; {where})"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for masks without an image, two masks for one image, and masks in
    colour without a table; when it is loaded, for a mask of another size or with unknown classes.
    """
    base = find_base(source, lambda folder: find_layout(folder) is not None)
    assert base is not None
    root = os.path.abspath(source)
    inside = os.path.join(root, base)
    layout = find_layout(inside)
    assert layout is not None
    notes = [f"{source} is {sniff(source)}.", *layout.notes]
    images, masks = PathTable(), PathTable()
    splits: dict[str, Array] = {}
    for split in (s for s in SPLITS if s in layout.pairs):
        image_folder, mask_folder = layout.pairs[split]
        found, without = paired(inside, image_folder, mask_folder)
        if without:
            notes.append(
                f"{len(without):,} images have no mask and were left out: {some(without)}."
            )
        parts = {split: list(found)}
        if layout.lists:
            parts, more = listed(inside, layout.lists, found)
            notes += more
        for part, stems in parts.items():
            start = len(images)
            images.extend([f"{base}{image_folder}/{found[stem][0]}" for stem in stems])
            masks.extend([f"{base}{mask_folder}/{found[stem][1]}" for stem in stems])
            splits[part] = np.arange(start, len(images))
    if not len(images):
        raise InputError(f"{source}: no image has a mask of its name; see what is in {inside}.")
    return dataset_of(source, "masks", images, masks, splits, notes, inside, root)


def dataset_of(
    source: str,
    name: str,
    images: PathTable,
    masks: PathTable,
    splits: dict[str, Array],
    notes: Notes,
    *tables: str,
) -> Dataset:
    """The dataset of paired files. ``tables``: where classes.txt may lie; the last of them is the
    folder that all paths start from."""
    files, pictures = masks.images(tables[-1]), images.images(tables[-1])
    rule = decide(source, files, find_tables(*tables))
    return Dataset(
        root=os.path.abspath(source),
        format=name,
        task=TASK,
        classes=rule.classes,
        images=pictures,
        labels=None,
        splits={split: ids for split, ids in splits.items() if len(ids)},
        notes=[*notes, *rule.notes],
        truth=MaskFiles(files, pictures, rule),
        palette=rule.palette,
    )


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports masks as palette PNG of class numbers, in SPLIT/images and SPLIT/masks. Raises
    :class:`InputError` for an image that cannot be read, more than 255 classes, and names that a
    line cannot hold."""
    write_classes(dataset, folder)
    names = export.names(dataset)
    counts: Counter[str] = Counter()
    for split, ids in dataset.splits.items():
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True)
        for i in map(int, ids):
            export.save_image(dataset, i, folder / split / "images" / names[i])
            counts["instances"] += write_mask(
                dataset, i, folder / split / "masks" / f"{names[i]}.png"
            )
    return lost(counts, LOST)


LOST = {"instances": "images lost their map of instances: a mask has classes only."}


def write_mask(dataset: Dataset, i: int, path: Path) -> bool:
    """Sample ``i``'s mask as a palette PNG; gives whether it has instances, which are lost."""
    fields = dataset.annotations(i)
    mask = fields["mask"]
    wrong = (mask < 0) | ((mask >= len(dataset.classes)) & (mask != IGNORED))
    if wrong.any():
        raise InputError(
            f"{dataset.images.key(i)}: {int(wrong.sum()):,} pixels of its mask have no class of "
            f"the {len(dataset.classes)}."
        )
    colours = voc_palette(256)
    if dataset.palette is not None:
        colours[: len(dataset.palette)] = dataset.palette
    image = Image.fromarray(mask.astype(np.uint8))
    # A palette, so that numbers such as 0 and 255 are never taken for black and white.
    image.putpalette(colours.ravel().tolist())
    image.save(path, format="PNG")
    return fields.get("instances") is not None


def write_classes(dataset: Dataset, folder: Path) -> None:
    """classes.txt, if it says what the dataset's classes are."""
    classes = dataset.classes
    if len(classes) > IGNORED:
        raise InputError(
            f"{dataset.root} has {len(classes)} classes; a mask of 8 bits holds {IGNORED} and "
            "what is ignored."
        )
    path = folder / "classes.txt"
    path.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    try:
        same = parse(str(path)).names == classes
    except InputError:
        same = False
    if not same:
        raise InputError(
            f"{dataset.root}: a line each cannot hold the classes' names {some(classes)}. Blanks "
            "at the ends, two lines, three numbers behind a name, and the same name twice are not "
            "possible; rename them."
        )


def fake(folder: Path) -> Fake:
    """Two splits of three and one; colours with CamVid's table, whose Void is ignored."""
    rng = np.random.default_rng(8)
    colours = np.array([[128, 128, 128], [0, 0, 0], [128, 0, 0]], np.uint8)
    numbers = np.array([0, IGNORED, 1], np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "label_colors.txt").write_text("128 128 128\tSky\n0 0 0\t\tVoid\n128 0 0\tA house\n")
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for i in range(4):
        split = "val" if i == 3 else "train"
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (7, 9 + i, 3), dtype=np.uint8)
        rows = rng.integers(0, 3, (7, 9 + i))
        rows[0, :3] = (0, 1, 2)
        key = f"{split}/images/{i}.png"
        (folder / key).write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
        mask = cv2.imencode(".png", colours[rows][:, :, ::-1])[1].tobytes()
        (folder / split / "masks" / f"{i}_L.png").write_bytes(mask)
        splits[split].append(Sample(key=key, image=image, mask=numbers[rows]))
    return Fake(str(folder), ("Sky", "A house"), splits)
