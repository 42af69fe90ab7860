"""Where masks and their images lie, and which belong together.

SPLIT/images and SPLIT/masks, images/SPLIT and masks/SPLIT, images and masks (with lists of names or
not), or CamVid's SPLIT and SPLITannot. They are paired by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from vidi.data.boxes import some, within
from vidi.data.dataset import SPLITS
from vidi.data.formats.folders import annotated_split, is_image, split_of
from vidi.data.voc_layout import folders_in, lines_of, names_in
from vidi.errors import InputError
from vidi.types import Notes

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


@dataclass
class Layout:
    """``pairs``: the folders of images and of masks, by split. ``lists``: files that list the names
    of each split, where folders do not tell."""

    pairs: dict[str, tuple[str, str]]
    has_splits: bool
    lists: dict[str, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=list)


def find_layout(folder: str) -> Layout | None:
    """How images and masks lie in a folder, by names alone. Raises :class:`InputError` for two
    folders of one split."""
    inside = folders_in(folder)
    if "segmentationclass" in inside:
        return None  # VOC's
    pairs: dict[str, tuple[str, str]] = {}
    notes: Notes = []
    bare: Notes = []
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
        elif _holds_image(os.path.join(folder, real)):
            bare.append(f"{real} has images and no folder of masks, and was left out.")
    if pairs:
        notes += bare
        return Layout(_in_order(pairs), True, notes=notes)
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
        return Layout(_in_order(pairs), True, notes=notes)
    lists = _lists(folder)
    return Layout({"train": both}, bool(lists), lists, notes)


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


def listed(
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


def paired(base: str, images: str, masks: str) -> tuple[dict[str, tuple[str, str]], list[str]]:
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
