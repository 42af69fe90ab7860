"""A CSV (or TSV) of image and mask: one row per image, with a column for the split or not.

Paths are relative to the table; a header names the columns (image, mask, split, or usual synonyms).
Masks and the table of classes beside the CSV are as in :mod:`vidi.data.formats.masks`.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from vidi.data import export
from vidi.data.boxes import lost, some, within
from vidi.data.dataset import SPLITS, Dataset, PathTable
from vidi.data.formats import Fake
from vidi.data.formats.folders import split_of
from vidi.data.formats.masks import LOST, dataset_of, write_classes, write_mask
from vidi.data.formats.table import MASK, PATH, SPLIT, is_mask_header, rows_of
from vidi.errors import InputError
from vidi.types import Notes, Sample

TASK = "segmentation"


def sniff(source: str) -> str | None:
    if not source.lower().endswith((".csv", ".tsv")) or not os.path.isfile(source):
        return None
    return "a table of image and mask, by its header" if is_mask_header(source) else None


def read(source: str) -> Dataset:
    """Raises :class:`InputError`, with the line, for a row that lacks something, a path that points
    nowhere or out of the table's folder, and an image that stands twice; for the masks as
    :func:`vidi.data.formats.masks.read` does."""
    folder = os.path.dirname(os.path.abspath(source))
    rows = rows_of(source)
    _, first = next(rows)
    header = [cell.strip().lower() for cell in first]
    at = [next((header.index(n) for n in known if n in header), None) for known in (PATH, MASK)]
    split_at = next((header.index(n) for n in SPLIT if n in header), None)
    if at[0] is None or at[1] is None:
        raise InputError(
            f"{source}, line 1: {','.join(first)!r} names no column of images ({', '.join(PATH)}). "
            "Write a header: image,mask."
        )
    lines: dict[str, int] = {}
    pairs: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    missing: list[str] = []
    for line, row in rows:
        where = f"{source}, line {line}"
        if len(row) != len(header):
            raise InputError(
                f"{where}: {len(row)} columns were found where the header names {len(header)}: "
                f"{','.join(row)!r}."
            )
        for k, what in zip(at, ("image", "mask"), strict=True):
            if not row[k or 0].strip():
                raise InputError(f"{where}: the {what} is empty.")
        image, mask = (within(row[k or 0], where) for k in at)
        split = "train" if split_at is None else split_of(row[split_at])
        if split is None:
            raise InputError(
                f"{where}: {row[split_at or 0]!r} is no split; train, val or test is expected."
            )
        if image in lines:
            raise InputError(
                f"{where}: {image} stands in line {lines[image]} too. An image has one mask and "
                "one split; remove one of the rows."
            )
        lines[image] = line
        missing += [
            f"line {line}: {path}"
            for path in (image, mask)
            if not os.path.isfile(os.path.join(folder, path))
        ]
        pairs[split].append((image, mask))
    if missing:
        raise InputError(
            f"{source}: {len(missing):,} files are not there, seen from the folder of the table "
            f"({folder}): {some(missing)}. Correct or remove the rows."
        )
    if not lines:
        raise InputError(f"{source} has a header and no rows.")
    images, masks = PathTable(), PathTable()
    splits = {}
    for split, found in pairs.items():
        splits[split] = np.arange(len(images), len(images) + len(found))
        images.extend([image for image, _ in found])
        masks.extend([mask for _, mask in found])
    named = [first[k].strip() for k in (*at, split_at) if k is not None]
    notes = [f"{source} is a table of image and mask; its header names {', '.join(named)}."]
    passed = [cell.strip() for k, cell in enumerate(first) if k not in (*at, split_at)]
    if passed:
        notes.append(f"The columns {some(passed)} were passed over.")
    return dataset_of(source, "masks_table", images, masks, splits, notes, folder)


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports masks.csv, with the images in pictures and the masks in masks. Raises
    :class:`InputError` as :func:`vidi.data.formats.masks.write` does."""
    write_classes(dataset, folder)
    names = export.names(dataset)
    counts: Counter[str] = Counter()
    for part in ("pictures", "masks"):
        (folder / part).mkdir()
    with (folder / "masks.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", "mask", "split"])
        for split, ids in dataset.splits.items():
            for i in map(int, ids):
                image = export.save_image(dataset, i, folder / "pictures" / names[i])
                mask = f"masks/{names[i]}.png"
                counts["instances"] += write_mask(dataset, i, folder / mask)
                table.writerow([f"pictures/{image}", mask, split])
    return lost(counts, LOST)


def fake(folder: Path) -> Fake:
    """Black and white masks without names, in three splits."""
    rng = np.random.default_rng(9)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = ["split;mask;filename;by"]
    splits: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for i in range(4):
        split = ("train", "test", "val", "train")[i]
        image = rng.integers(0, 256, (6, 8 + i, 3), dtype=np.uint8)
        mask = rng.integers(0, 2, (6, 8 + i), dtype=np.uint8)
        key = f"pictures/{i}.png"
        (folder / key).write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
        (folder / f"pictures/{i}_mask.png").write_bytes(
            cv2.imencode(".png", mask * 255)[1].tobytes()
        )
        rows.append(f"{split};pictures/{i}_mask.png;{key};hand")
        splits[split].append(Sample(key=key, image=image, mask=mask))
    (folder / "masks.csv").write_text("\n".join(rows) + "\n")
    return Fake(str(folder / "masks.csv"), ("background", "foreground"), splits)
