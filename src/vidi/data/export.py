"""Writing a sample's image: its own file where it has one, else a lossless PNG; and its name."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import cv2

from vidi.data.dataset import Dataset, FileImages, Images, JoinedImages
from vidi.data.images import read_file_header, unreadable
from vidi.errors import InputError
from vidi.types import Array

_SUFFIX = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "WEBP": (".webp",),
    "GIF": (".gif",), "BMP": (".bmp",), "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "JPEG2000": (".jp2",), "AVIF": (".avif",),
}  # fmt: skip
_KNOWN = frozenset(suffix for suffixes in _SUFFIX.values() for suffix in suffixes)
_UNFIT = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
"""What some file system does not allow in a name."""


def save_image(dataset: Dataset, i: int, path: str | Path, *, images: Images | None = None) -> str:
    """Write sample ``i``'s image to ``path``, which lacks the suffix; gives the file's name.

    A file is copied as it is, with its suffix, so that nothing is lost; what is no file becomes a
    PNG. ``images``: those to take instead of the dataset's own (its second frames).

    Raises :class:`InputError` for an image that cannot be read.
    """
    source = dataset.images if images is None else images
    file = file_of(source, i)
    if file is None:
        target = f"{os.fspath(path)}.png"
        save_png(source.load(i, None)[0], target)
        return os.path.basename(target)
    suffix = os.path.splitext(file)[1]
    if suffix.lower() not in _KNOWN:
        suffix = _SUFFIX[read_file_header(file).format][0]
    target = os.fspath(path) + suffix
    try:
        shutil.copyfile(file, target)
    except OSError as error:
        raise InputError(unreadable(file, error)) from error
    return os.path.basename(target)


def save_png(pixels: Array, path: str | Path) -> None:
    """uint8 [H, W, 3], RGB, or [H, W], as a PNG."""

    array = pixels[:, :, ::-1] if pixels.ndim == 3 else pixels
    Path(path).write_bytes(cv2.imencode(".png", array)[1].tobytes())


def file_of(images: Images, i: int) -> str | None:
    """The path of image ``i``, if it is a file."""
    if isinstance(images, JoinedImages):
        part, j = images.at(i)
        return file_of(images.parts[part], j)
    return images.path(i) if isinstance(images, FileImages) else None


def names(dataset: Dataset) -> list[str]:
    """A file name without suffix for each sample, all different, also without regard to case.

    The samples' own file names where these differ; else their keys with "_" for "/", and a number
    behind those that are still the same. Exporting what was exported gives the same names.
    """
    keys = [os.path.splitext(dataset.images.key(i))[0] for i in range(len(dataset))]
    own = [_fit(key.replace("\\", "/").rpartition("/")[2]) for key in keys]
    if len({name.lower() for name in own}) == len(own):
        return own
    whole = [_fit(key) for key in keys]
    taken = Counter(name.lower() for name in whole)
    used = {name for name, count in taken.items() if count == 1}
    unique: list[str] = []
    for name in whole:
        found, n = name, 1
        while taken[name.lower()] > 1 and found.lower() in used:
            n += 1
            found = f"{name}_{n}"
        used.add(found.lower())
        unique.append(found)
    return unique


def _fit(name: str) -> str:
    fit = _UNFIT.sub("_", name).strip()
    # A file that begins with a dot is hidden, and readers pass it over.
    return f"_{fit}" if fit.startswith(".") or not fit else fit
