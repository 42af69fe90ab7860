"""How a PASCAL VOC folder is laid out: its base folder, its images, and ImageSets' lists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from vidi.data.boxes import some, within
from vidi.data.dataset import SPLITS
from vidi.data.formats.folders import MOST_WRAPPERS, is_image
from vidi.data.images import unreadable
from vidi.errors import InputError
from vidi.types import Notes

IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img")


def find_base(source: str, is_base: Callable[[str], bool]) -> str | None:
    """The folder that holds the data, from the source on: "" or with a "/" at the end. Folders that
    hold nothing but one folder are looked through, as VOCdevkit/VOC2012."""
    base = ""
    for _ in range(MOST_WRAPPERS + 1):
        folder = os.path.join(source, base)
        if not os.path.isdir(folder):
            return None
        if is_base(folder):
            return base
        inside = list(folders_in(folder).values())
        if len(inside) != 1:
            return None
        base = f"{base}{inside[0]}/"
    return None


def folders_in(folder: str) -> dict[str, str]:
    """Folders by their name in small letters."""
    return {
        name.lower(): name
        for name in names_in(folder)
        if not name.startswith(".") and os.path.isdir(os.path.join(folder, name))
    }


def names_in(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(unreadable(folder, error)) from error


def by_stem(folder: str) -> dict[str, str]:
    """The images in a folder by their name without suffix."""
    found: dict[str, str] = {}
    for name in names_in(folder):
        if not is_image(name) or name.startswith("."):
            continue
        stem = os.path.splitext(name)[0]
        if stem in found:
            raise InputError(
                f"{folder} has two images called {stem}: {found[stem]} and {name}. Rename one, and "
                "its annotation."
            )
        found[stem] = name
    return found


def split_lists(source: str, base: str, kind: str) -> dict[str, str]:
    """ImageSets' lists in the folder ``kind`` ("main", "segmentation"), by split; trainval is train
    where there is no train."""
    sets = folders_in(os.path.join(source, base)).get("imagesets")
    if sets is None:
        return {}
    inner = folders_in(os.path.join(source, base, sets)).get(kind)
    if inner is None:
        return {}
    within_source = f"{base}{sets}/{inner}/"
    files = {
        os.path.splitext(name)[0].lower(): within_source + name
        for name in names_in(os.path.join(source, within_source))
        if name.lower().endswith(".txt")
    }
    found = {split: files[split] for split in SPLITS if split in files}
    if "train" not in found and "trainval" in files and "val" not in found:
        found = {"train": files["trainval"], **found}
    return found


def read_lists(
    root: str, lists: dict[str, str], there: Iterable[str], what: str
) -> tuple[dict[str, list[str]], Notes]:
    """The names in each list, checked against those that are ``there``."""
    known = set(there)
    owner: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    missing: list[str] = []
    for split, path in lists.items():
        found[split] = []
        for line, text in enumerate(lines_of(os.path.join(root, path)), 1):
            words = text.split()
            if not words:
                continue
            where = f"{os.path.join(root, path)}, line {line}"
            # A name may hold spaces; a list of one class has a -1, 0 or 1 after the name.
            name = text.strip() if text.strip() in known else words[0]
            name = within(name, where)
            if name not in known:
                missing.append(f"{name} ({path}, line {line})")
            elif name in owner:
                raise InputError(
                    f"{where}: {name} is listed a second time (first in {owner[name]}). A sample "
                    "belongs to one split, once; remove one of the lines."
                )
            else:
                owner[name] = f"{path}, line {line}"
                found[split].append(name)
    if missing:
        raise InputError(
            f"{root}: {len(missing):,} listed samples have no {what}: {some(missing)}. Add it, or "
            "remove the lines."
        )
    unlisted = sorted(known - set(owner))
    if not unlisted:
        return found, []
    note = f"{len(unlisted):,} {what}s are in no list of ImageSets and were left out: "
    return found, [note + some(unlisted) + "."]


def lines_of(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read().splitlines()
    except OSError as error:
        raise InputError(unreadable(path, error)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error}). Save it as such.") from error
