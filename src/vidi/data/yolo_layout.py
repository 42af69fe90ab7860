"""Where YOLO's images, labels and class names lie: by a data.yaml, or by folders.

A label file has its image's name, in the folder ``labels`` where the image is in ``images``
(train/images and train/labels, or images/train and labels/train), or lies beside the image.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from vidi.data.boxes import some, within
from vidi.data.dataset import SPLITS
from vidi.data.formats.folders import MOST_WRAPPERS, is_image, split_of
from vidi.data.images import unreadable
from vidi.data.simple_yaml import Value, read_yaml
from vidi.errors import InputError
from vidi.types import Notes

_KEYS = ("path", "names", "nc", "train", "val", "valid", "validation", "test")
_MOST_TEXT = 1 << 22
NAME_FILES = ("classes.txt", "obj.names", "names.txt")


@dataclass
class Layout:
    folder: str
    """Absolute; all paths are relative to it."""
    reason: str
    names: list[str] | None
    sources: dict[str, list[str]]
    """By split: folders of images, or text files that list images."""
    notes: Notes = field(default_factory=list)


def claims(source: str) -> str | None:
    """Why a source is read as YOLO's, by a quick look."""
    base, yaml = _base(source)
    if base is None:
        return None
    if yaml is not None:
        return f"YOLO's labels ({os.path.basename(yaml)} names classes and splits)"
    return f"YOLO's labels (text files in {'/, '.join(_label_folders(base))}/ beside the images)"


def find_layout(source: str) -> Layout:
    base, yaml = _base(source)
    assert base is not None
    return _by_folders(base, claims(source) or "") if yaml is None else _by_yaml(yaml)


def label_path(image: str) -> str:
    """Where the labels of an image lie: the last folder "images" replaced by "labels"."""
    folders = image.split("/")
    stem = os.path.splitext(folders.pop())[0] + ".txt"
    for k in range(len(folders) - 1, -1, -1):
        if folders[k].lower() == "images":
            folders[k] = "labels" if folders[k] == "images" else "Labels"
            break
    return "/".join([*folders, stem])


def text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise InputError(unreadable(path, error)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error}). Save it as such.") from error


def files_below(folder: str, prefix: str) -> list[str]:
    """All files in and below ``prefix`` of a folder, with it before their names, sorted; without
    hidden ones."""
    found: list[str] = []
    for where, folders, names in os.walk(os.path.join(folder, prefix)):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        relative = os.path.relpath(where, folder).replace(os.sep, "/")
        start = "" if relative == "." else f"{relative}/"
        found += [start + name for name in sorted(names) if not name.startswith(".")]
    return found


def images_of(layout: Layout, split: str) -> list[str]:
    """The images of a split, in order. Raises :class:`InputError` for listed ones not there."""
    found: dict[str, None] = {}
    for source in layout.sources[split]:
        if os.path.isdir(os.path.join(layout.folder, source)):
            found |= dict.fromkeys(p for p in files_below(layout.folder, source) if is_image(p))
            continue
        path = os.path.join(layout.folder, source)
        missing = []
        for line, text in enumerate(text_of(path).splitlines(), 1):
            if not text.strip():
                continue
            image = within(text, f"{path}, line {line}")
            if os.path.isfile(os.path.join(layout.folder, image)):
                found[image] = None
            else:
                missing.append(f"{image} (line {line})")
        if missing:
            raise InputError(
                f"{path}: {len(missing):,} listed images are not there: {some(missing)}. Add them, "
                "or remove the lines."
            )
    return list(found)


def _base(source: str) -> tuple[str | None, str | None]:
    """(the dataset's folder, its YAML file), as they are found from the source on."""
    if os.path.isfile(source):
        is_yaml = source.lower().endswith((".yaml", ".yml")) and _is_data_yaml(source)
        path = os.path.abspath(source)
        return (os.path.dirname(path), path) if is_yaml else (None, None)
    folder = os.path.abspath(source)
    for _ in range(MOST_WRAPPERS + 1):
        if not os.path.isdir(folder):
            return None, None
        inside = _inside(folder)
        yamls = [n for n in inside if n.lower().endswith((".yaml", ".yml"))]
        yamls = [n for n in yamls if _is_data_yaml(os.path.join(folder, n))]
        if len(yamls) > 1 and "data.yaml" not in yamls:
            raise InputError(
                f"{folder} has several files that describe YOLO's data: {some(yamls)}. Name the "
                "one that is meant as data."
            )
        if yamls:
            return folder, os.path.join(folder, "data.yaml" if "data.yaml" in yamls else yamls[0])
        if _label_folders(folder):
            return folder, None
        folders = [n for n in inside if os.path.isdir(os.path.join(folder, n))]
        if len(folders) != 1:
            return None, None
        folder = os.path.join(folder, folders[0])
    return None, None


def _is_data_yaml(path: str) -> bool:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read(_MOST_TEXT).splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    keys = {line.split(":")[0].strip("\"' ") for line in lines if ":" in line and line[0] != " "}
    return "names" in keys and bool(keys & {"train", "val"})


def _label_folders(folder: str) -> list[str]:
    """Folders of label files beside folders of images, from the folder on: labels, or
    train/labels."""
    inside = _inside(folder)
    places = ["", *(f"{n}/" for n in inside if split_of(n))]
    found = []
    for place in places:
        here = os.path.join(folder, place)
        named = {n.lower(): n for n in _inside(here)} if os.path.isdir(here) else {}
        if "images" in named and "labels" in named:
            labels = os.path.join(here, named["labels"])
            if os.path.isdir(labels) and _holds_labels(labels):
                found.append(place + named["labels"])
    return found


def _holds_labels(folder: str) -> bool:
    """Whether the first text file that is not empty has rows of numbers."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names)[:100]:
            if not name.lower().endswith(".txt") or name.lower() in NAME_FILES:
                continue
            try:
                with open(os.path.join(where, name), encoding="utf-8-sig") as file:
                    words = file.readline(1 << 16).split()
            except (OSError, UnicodeDecodeError):
                return False
            if words:
                return len(words) >= 5 and all(_is_number(word) for word in words)
    return False


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _by_yaml(path: str) -> Layout:
    here = os.path.dirname(path)
    found = read_yaml(text_of(path), _KEYS, path)
    names = _names(found, path)
    layout = Layout(here, f"YOLO's labels by {os.path.basename(path)}", names, {})
    top = found.get("path")
    if top is not None and (not isinstance(top, str) or "\0" in top):
        raise InputError(f"{path}: path is {top!r}; one folder is expected.")
    inner = _inner(here, top, path, layout.notes)
    for key in ("train", "val", "valid", "validation", "test"):
        value = found.get(key)
        if not value:
            continue
        split = split_of(key)
        if isinstance(value, dict) or split is None or split in layout.sources:
            raise InputError(f"{path}: {key} is {value!r}; one folder or a list is expected, once.")
        entries = [value] if isinstance(value, str) else value
        places = [_place(here, inner, entry, key, path, layout.notes) for entry in entries]
        layout.sources[split] = places
    if not layout.sources:
        raise InputError(f"{path} names no folder for train, val or test.")
    layout.sources = {split: layout.sources[split] for split in SPLITS if split in layout.sources}
    return layout


def _names(found: dict[str, Value], path: str) -> list[str]:
    given = found.get("names")
    names: list[str] = []
    if isinstance(given, dict):
        if sorted(given) != sorted(map(str, range(len(given)))):
            raise InputError(
                f"{path}: names has the numbers {some(given)}; 0 to {len(given) - 1} are expected."
            )
        names = [given[str(k)] for k in range(len(given))]
    elif isinstance(given, list):
        names = given
    if not names or not all(names) or len(set(names)) < len(names):
        raise InputError(
            f"{path}: names is {given!r}; a different name for each class is expected."
        )
    count = found.get("nc")
    if count is not None and count != str(len(names)):
        raise InputError(f"{path}: nc is {count}, and there are {len(names)} names. Correct one.")
    return names


def _inner(here: str, top: str | None, path: str, notes: Notes) -> str:
    """The folder that ``path`` names, from the YAML's own on: "" or with a "/" at the end."""
    if top in (None, "", ".", "./"):
        return ""
    assert top is not None
    full = os.path.realpath(os.path.join(here, top))
    own = os.path.realpath(here)
    if os.path.isdir(full) and (full == own or full.startswith(own + os.sep)):
        relative = os.path.relpath(full, own).replace(os.sep, "/")
        return "" if relative == "." else f"{relative}/"
    # Such paths are of the machine where the set was made; what they meant lies beside the file.
    notes.append(f"{path}: the path {top} does not lie in its folder; its own folder was taken.")
    return ""


def _place(here: str, inner: str, entry: str, key: str, path: str, notes: Notes) -> str:
    """A folder of images, or a list of them, from the YAML's folder on."""
    clean = entry.replace("\\", "/")
    bare = clean
    while bare.startswith("../"):
        bare = bare[3:]
    # Roboflow writes ../train/images for what lies in train/images.
    if bare != clean and os.path.exists(os.path.join(here, inner, bare)):
        notes.append(f"{path}: {key} is {entry}, read as {bare}, which is there.")
        clean = bare
    if clean in (".", "./"):
        place = inner.rstrip("/")
    else:
        place = inner + within(clean, f"{path}, {key}")
    if not os.path.exists(os.path.join(here, place)):
        raise InputError(
            f"{path}: {key} is {entry}, and {os.path.join(here, place)} does not exist. Correct "
            "the path, or add the images."
        )
    return place


def _by_folders(folder: str, reason: str) -> Layout:
    sources: dict[str, list[str]] = {}
    notes: Notes = []
    names = None
    for labels in _label_folders(folder):
        place = labels[: -len("labels")]
        inside = {n.lower(): n for n in _inside(os.path.join(folder, place))}
        images = place + inside["images"]
        split = split_of(place.rstrip("/")) if place else None
        within_images = [n for n in _inside(os.path.join(folder, images)) if split_of(n)]
        within_images = [n for n in within_images if os.path.isdir(f"{folder}/{images}/{n}")]
        parts = {f"{images}/{n}": split_of(n) for n in within_images} if split is None else {}
        for source, found in (parts or {images: split or "train"}).items():
            if found in sources:
                raise InputError(
                    f"{folder} has two folders for the split {found}: {sources[found][0]} and "
                    f"{source}. Keep one of them."
                )
            assert found is not None
            sources[found] = [source]
        for file in (f"{labels}/{n}" for n in NAME_FILES):
            names = names or _names_in(folder, file, notes)
    for file in NAME_FILES:
        names = names or _names_in(folder, file, notes)
    ordered = {split: sources[split] for split in SPLITS if split in sources}
    return Layout(folder, reason, names, ordered, notes)


def _names_in(folder: str, file: str, notes: Notes) -> list[str] | None:
    path = os.path.join(folder, file)
    if not os.path.isfile(path):
        return None
    names = [line.strip() for line in text_of(path).splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise InputError(f"{path}: a different name on each line is expected.")
    notes.append(f"The classes are those of {file}.")
    return names


def _inside(folder: str) -> list[str]:
    try:
        return sorted(n for n in os.listdir(folder) if not n.startswith("."))
    except OSError as error:
        raise InputError(unreadable(folder, error)) from error
