"""Folders of images and of masks, paired by name: CamVid's layouts, and most others.

SPLIT/images and SPLIT/masks, images/SPLIT and masks/SPLIT, images and masks, or SPLIT and
SPLITannot; usual synonyms go too, and a mask's name may end in _L, _mask and the like. A mask holds
class numbers (grey or palette PNG; 255 is ignored), colours, or black and white. classes.txt names
the classes, a line each; for colours a line is a name and its red, green and blue.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vidi.data import export
from vidi.data.boxes import lost, some, within
from vidi.data.class_tables import find_tables, parse
from vidi.data.dataset import SPLITS, Dataset, PathTable
from vidi.data.formats import Fake
from vidi.data.formats.folders import annotated_split, is_image, split_of
from vidi.data.formats.voc_masks import palette as voc_palette
from vidi.data.mask_files import IGNORED, MaskFiles, decide
from vidi.data.voc_layout import find_base, folders_in, lines_of, names_in
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample

TASK = "segmentation"

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "rgb", "frames")
MASKS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "gt", "groundtruth",
    "ground_truth", "segmentations", "segmentation", "seg", "labelids",
)  # fmt: skip
_ENDING = re.compile(
    r"(.+?)[-_](l|labels?|masks?|gt|seg|segs|segmentations?|annotations?|labelids)", re.IGNORECASE
)
"""What a mask's name may have behind its image's."""
_DEPTH = 8


def sniff(source: str) -> str | None:
    base = find_base(source, _is_base)
    if base is None:
        return None
    layout = _layout(os.path.join(source, base))
    assert layout is not None
    images, masks = next(iter(layout.pairs.values()))
    where = ", ".join(layout.lists.values() or layout.pairs if layout.has_splits else ["no splits"])
    return f"images and masks paired by name ({base}{images} and {base}{masks}; {where})"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for masks without an image, two masks for one image, and masks in
    colour without a table; when it is loaded, for a mask of another size or with unknown classes.
    """
    base = find_base(source, _is_base)
    assert base is not None
    root = os.path.abspath(source)
    inside = os.path.join(root, base)
    layout = _layout(inside)
    assert layout is not None
    notes = [f"{source} is {sniff(source)}.", *layout.notes]
    images, masks = PathTable(), PathTable()
    splits: dict[str, Array] = {}
    for split in (s for s in SPLITS if s in layout.pairs):
        image_folder, mask_folder = layout.pairs[split]
        found, without = _paired(inside, image_folder, mask_folder)
        if without:
            notes.append(
                f"{len(without):,} images have no mask and were left out: {some(without)}."
            )
        parts = {split: list(found)}
        if layout.lists:
            parts, more = _listed(inside, layout.lists, found)
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


@dataclass
class _Layout:
    """``pairs``: the folders of images and of masks, by split. ``lists``: files that list the names
    of each split, where folders do not tell."""

    pairs: dict[str, tuple[str, str]]
    has_splits: bool
    lists: dict[str, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=list)


def _is_base(folder: str) -> bool:
    return _layout(folder) is not None


def _layout(folder: str) -> _Layout | None:
    inside = folders_in(folder)
    if "segmentationclass" in inside:
        return None  # VOC's
    pairs: dict[str, tuple[str, str]] = {}
    notes: Notes = []
    for name, real in inside.items():
        split = split_of(name)
        if split is None:
            continue
        found = _both(os.path.join(folder, real), notes)
        beside = [r for n, r in inside.items() if annotated_split(n) == name]
        if found is not None:
            _add(folder, pairs, split, (f"{real}/{found[0]}", f"{real}/{found[1]}"))
        elif beside and _holds_image(os.path.join(folder, beside[0])):
            _add(folder, pairs, split, (real, beside[0]))
    if pairs:
        return _Layout(_in_order(pairs), True, notes=notes)
    both = _both(folder, notes)
    if both is None:
        return None
    images, masks = both
    of_masks = folders_in(os.path.join(folder, masks))
    for name, real in folders_in(os.path.join(folder, images)).items():
        split = split_of(name)
        if split is not None and name in of_masks:
            _add(folder, pairs, split, (f"{images}/{real}", f"{masks}/{of_masks[name]}"))
        elif split is not None:
            notes.append(f"{images}/{real} has no folder of masks and was left out.")
    if pairs:
        return _Layout(_in_order(pairs), True, notes=notes)
    lists = _lists(folder)
    return _Layout({"train": both}, bool(lists), lists, notes)


def _both(folder: str, notes: Notes) -> tuple[str, str] | None:
    """The folders of images and of masks in a folder: the first of the usual names that hold
    pictures."""
    inside = folders_in(folder)
    if "segmentationclass" in inside:
        return None
    images, masks = (
        [inside[n] for n in names if n in inside and _holds_image(os.path.join(folder, inside[n]))]
        for names in (IMAGES, MASKS)
    )
    if not images or not masks:
        return None
    passed = [*images[1:], *masks[1:]]
    if passed:
        notes.append(f"{some(passed)} beside {images[0]} and {masks[0]} was passed over.")
    return images[0], masks[0]


def _add(
    folder: str, pairs: dict[str, tuple[str, str]], split: str, found: tuple[str, str]
) -> None:
    before = pairs.setdefault(split, found)
    if before != found:
        raise InputError(
            f"{folder} has two folders for the split {split}: {before[0]} and {found[0]}. Keep one "
            "of them."
        )


def _lists(folder: str) -> dict[str, str]:
    """train.txt, val.txt, test.txt beside the folders, or in one called splits."""
    for place in ("", "splits/"):
        inside = (
            names_in(os.path.join(folder, place)) if os.path.isdir(folder + "/" + place) else []
        )
        found = {split: f"{place}{split}.txt" for split in SPLITS if f"{split}.txt" in inside}
        if found:
            return found
    return {}


def _listed(
    base: str, lists: dict[str, str], found: dict[str, tuple[str, str]]
) -> tuple[dict[str, list[str]], Notes]:
    """The names in each list. A line is an image's name or path; a mask's may follow."""
    owner: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    missing: list[str] = []
    for split, path in lists.items():
        parts[split] = []
        for line, text in enumerate(lines_of(os.path.join(base, path)), 1):
            if not text.strip():
                continue
            where = f"{path}, line {line}"
            stem = next((s for s in _stems(text, f"{base}/{where}") if s in found), None)
            if stem is None:
                missing.append(f"{text.strip()} ({where})")
            elif stem in owner:
                raise InputError(
                    f"{base}: {stem} is listed in {owner[stem]}, and again in {where}. A sample "
                    "belongs to one split, once; remove one of the lines."
                )
            else:
                owner[stem] = where
                parts[split].append(stem)
    if missing:
        raise InputError(
            f"{base}: {len(missing):,} listed samples have no image and mask of their name: "
            f"{some(missing)}. Add them, or remove the lines."
        )
    unlisted = [image for stem, (image, _) in found.items() if stem not in owner]
    notes = []
    if unlisted:
        notes.append(
            f"{len(unlisted):,} images are in no list ({', '.join(lists.values())}) and were left "
            f"out: {some(unlisted)}."
        )
    return parts, notes


def _stems(text: str, where: str) -> Iterator[str]:
    """What a line of a list may mean: a name may hold blanks, and may have folders before it."""
    for name in (text, re.split(r"[\s,;]+", text.strip())[0]):
        path = within(name, where)
        stem = os.path.splitext(path)[0] if is_image(path) else path
        while True:
            yield stem
            if "/" not in stem:
                break
            stem = stem.split("/", 1)[1]


def _in_order(pairs: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    return {split: pairs[split] for split in SPLITS if split in pairs}


def _paired(base: str, images: str, masks: str) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """(image, mask) by name, in the order of the images; and the images without a mask."""
    image_of = _by_stem(os.path.join(base, images))
    mask_of: dict[str, str] = {}
    orphans: list[str] = []
    for stem, mask in _by_stem(os.path.join(base, masks)).items():
        ending = _ENDING.fullmatch(stem)
        own = stem if stem in image_of or ending is None else ending[1]
        if own not in image_of:
            orphans.append(f"{masks}/{mask}")
        elif own in mask_of:
            raise InputError(
                f"{base}: {images}/{image_of[own]} has two masks, {mask_of[own]} and {mask} in "
                f"{masks}. Keep one of them."
            )
        else:
            mask_of[own] = mask
    if orphans:
        raise InputError(
            f"{base}: {len(orphans):,} masks have no image of their name in {images}: "
            f"{some(orphans)}. Add the images, or remove the masks."
        )
    without = [f"{images}/{image}" for stem, image in image_of.items() if stem not in mask_of]
    return {s: (image, mask_of[s]) for s, image in image_of.items() if s in mask_of}, without


def _by_stem(folder: str) -> dict[str, str]:
    """The images in and below a folder by their path without suffix."""
    found: dict[str, str] = {}
    for path in _walk(folder):
        stem = os.path.splitext(path)[0]
        if stem in found:
            raise InputError(
                f"{folder} has two files called {stem}: {found[stem]} and {path}. Rename one."
            )
        found[stem] = path
    return found


def _walk(folder: str, relative: str = "", depth: int = 0) -> Iterator[str]:
    for name in names_in(folder):
        if name.startswith("."):
            continue
        if is_image(name):
            yield relative + name
        elif depth < _DEPTH and os.path.isdir(os.path.join(folder, name)):
            yield from _walk(os.path.join(folder, name), f"{relative}{name}/", depth + 1)


def _holds_image(folder: str) -> bool:
    return next(_walk(folder), None) is not None
