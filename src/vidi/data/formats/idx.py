"""IDX, the format of MNIST: train-images-idx3-ubyte and its three companions, gzipped or not.

Described at the foot of MNIST's page (LeCun, Cortes & Burges): two zero bytes, a type, the number
of dimensions, each dimension as a big-endian 32-bit integer, then the values.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from vidi.data.dataset import ArrayImages, Dataset
from vidi.data.formats import Fake
from vidi.data.images import unreadable
from vidi.errors import InputError
from vidi.types import Array, Sample

_NAME = re.compile(r"(?:.*-)?(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?")
_UBYTE = 0x08

TASK = "classification"


def sniff(source: str) -> str | None:
    folder = _folder(source)
    return None if folder is None else "its files are named as MNIST's (…-images-idx3-ubyte)"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for a missing or damaged file, and for counts that differ."""
    folder = _folder(source)
    assert folder is not None
    files = _files(folder)
    pixels: dict[str, Array] = {}
    labels: dict[str, Array] = {}
    for split in ("train", "test"):
        if (split, "images") not in files and (split, "labels") not in files:
            continue
        for kind in ("images", "labels"):
            if (split, kind) not in files:
                raise InputError(f"{folder} has no {split} {kind} (…-{kind}-idx…-ubyte). Add it.")
        pixels[split] = _values(files[split, "images"], 3)
        labels[split] = _values(files[split, "labels"], 1)
        if len(pixels[split]) != len(labels[split]):
            raise InputError(
                f"{files[split, 'images']} has {len(pixels[split]):,} images, and "
                f"{files[split, 'labels']} {len(labels[split]):,} labels. Fetch both again."
            )
    shapes = {p.shape[1:] for p in pixels.values()}
    if len(shapes) > 1:
        raise InputError(f"{folder}: train and test images differ in size: {sorted(shapes)}.")
    together = np.concatenate(list(labels.values()))
    present, numbers = np.unique(together, return_inverse=True)  # EMNIST's letters begin at 1
    splits, start = {}, 0
    for split, found in pixels.items():
        splits[split] = np.arange(start, start + len(found))
        start += len(found)
    return Dataset(
        root=os.path.abspath(source),
        format="idx",
        task="classification",
        classes=tuple(str(k) for k in present),
        images=ArrayImages(
            np.concatenate(list(pixels.values())), {s: len(p) for s, p in pixels.items()}
        ),
        labels=numbers.astype(np.int64).reshape(-1),
        splits=splits,
        notes=[f"{source} is in MNIST's format: {sniff(source)}."],
    )


def fake(folder: Path) -> Fake:
    """Grey images of 7 × 5 pixels in three classes; the training images gzipped, the rest not."""
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[Sample]] = {}
    for split, prefix, n in (("train", "train", 9), ("test", "t10k", 6)):
        images = rng.integers(0, 256, (n, 7, 5), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 3
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{values.ndim}I", 0, 0, _UBYTE, values.ndim, *values.shape)
            content = header + values.tobytes()
            name = f"{prefix}-{kind}-ubyte"
            if split == "train":
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
        splits[split] = [
            Sample(key=f"{split}/{i:06d}", image=np.stack([a] * 3, 2), label=int(labels[i]))
            for i, a in enumerate(images)
        ]
    return Fake(str(folder), ("0", "1", "2"), splits)


def _folder(source: str) -> str | None:
    """The folder itself, or the one called raw that torchvision makes in it."""
    for folder in (source, os.path.join(source, "raw"), os.path.join(source, "MNIST", "raw")):
        if os.path.isdir(folder) and any(_NAME.fullmatch(name) for name in os.listdir(folder)):
            return folder
    return None


def _files(folder: str) -> dict[tuple[str, str], str]:
    """(split, images or labels) to path; of a file that is there gzipped too, the plain one."""
    files: dict[tuple[str, str], str] = {}
    for name in sorted(os.listdir(folder)):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        key = ("train" if match[1] == "train" else "test", match[2])
        before = files.setdefault(key, os.path.join(folder, name))
        if before.removesuffix(".gz") != os.path.join(folder, name).removesuffix(".gz"):
            raise InputError(
                f"{folder} has more than one file of {key[0]} {key[1]}: "
                f"{os.path.basename(before)} and {name}. Put each set into a folder of its own."
            )
    return files


def _values(path: str, dimensions: int) -> Array:
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            data = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is cut short or damaged ({error}). Fetch it again.") from error
    except OSError as error:
        raise InputError(unreadable(path, error)) from error
    expected = bytes([0, 0, _UBYTE, dimensions])
    if data[:4] != expected:
        raise InputError(
            f"{path} begins with {data[:4].hex(' ') or 'nothing'}; {expected.hex(' ')} (unsigned "
            f"bytes in {dimensions} dimensions) is expected."
        )
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", data[4:start]) if len(data) >= start else (0,)
    size = int(np.prod(shape, dtype=object))
    if len(data) != start + size or not size:
        raise InputError(
            f"{path} says that it holds {' × '.join(map(str, shape))} values, and has "
            f"{max(len(data) - start, 0):,} bytes of them. Fetch it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
