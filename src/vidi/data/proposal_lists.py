"""The user's own proposals: one file with boxes for each image.

``.json``: an object of image keys, each with a list of [x0, y0, x1, y1] in pixels of the full
image, the best first. ``.npz``: an array [P, 4] under each key.
"""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from vidi.data import json_file
from vidi.data.boxes import some
from vidi.data.dataset import Dataset
from vidi.data.images import unreadable
from vidi.errors import InputError
from vidi.types import Array

ENDINGS = (".json", ".npz")


def read(path: str, dataset: Dataset, ids: Array, count: int) -> list[Array]:
    """float32 [P, 4] for each sample at ``ids``, at most ``count``.

    A key is the image's path within the data, as vidi names it. Raises :class:`InputError` for a
    file that cannot be read, boxes that are none, and images that it has no entry for.
    """
    lists = _lists(path, _changed(path))
    keys = [dataset.images.key(int(i)) for i in ids]
    missing = [key for key in keys if key not in lists]
    if missing:
        has = f"it has {some(lists)}" if lists else "it is empty"
        raise InputError(
            f"{path} has no proposals for {len(missing):,} of {len(keys):,} images of "
            f"{dataset.root}: {some(missing)}. Add an entry for each, if only an empty list, under "
            f"these keys; {has}."
        )
    return [_boxes(lists[key], f"{path}, {key}")[:count] for key in keys]


@functools.lru_cache(maxsize=1)
def _lists(path: str, changed: tuple[int, int]) -> Mapping[str, Any]:
    """What the file holds. It is asked for again and again where images come one after another."""
    return _json(path) if path.lower().endswith(".json") else _npz(path)


def _changed(path: str) -> tuple[int, int]:
    """Differs when the file does."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError(unreadable(path, error)) from error
    return found.st_mtime_ns, found.st_size


def _json(path: str) -> Mapping[str, Any]:
    found = json_file.read(path)
    if not isinstance(found, dict):
        raise InputError(
            f"{path} is no object of image keys with a list of boxes [x0, y0, x1, y1] each."
        )
    return found


def _npz(path: str) -> Mapping[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except OSError as error:
        raise InputError(unreadable(path, error)) from error
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise InputError(f"{path} is no .npz file of arrays ({error}).") from error


def _boxes(value: Any, where: str) -> Array:
    try:
        found = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: these are no boxes [x0, y0, x1, y1] ({error}).") from error
    if found.size == 0:
        return np.zeros((0, 4), np.float32)
    if found.ndim != 2 or found.shape[1] != 4 or not np.isfinite(found).all():
        raise InputError(
            f"{where}: boxes [x0, y0, x1, y1] of finite numbers are expected; found is an array of "
            f"shape {list(found.shape)}."
        )
    flat = np.flatnonzero((found[:, 2:] < found[:, :2]).any(1))
    if len(flat):
        raise InputError(
            f"{where}: box {int(flat[0])} ends before it begins: {found[flat[0]].tolist()}. Write "
            "x0, y0, x1, y1; a width and a height are not meant."
        )
    return found
