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
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from vidi.data.boxes import lost, some
from vidi.data.dataset import ArrayImages, Dataset
from vidi.data.formats import Fake
from vidi.data.images import unreadable
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample

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


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports grey images of one size. Raises :class:`InputError` for several sizes, more than 256
    classes, and several labels an image."""
    labels = dataset.labels
    assert labels is not None
    sizes = sorted({dataset.images.size(i) for i in range(len(dataset))})
    if labels.ndim > 1 or len(dataset.classes) > 256 or len(sizes) != 1:
        raise InputError(
            f"{dataset.root}: MNIST's files hold images of one size, each in one of at most 256 "
            f"classes; here are {len(sizes):,} sizes (the smallest is {sizes[0]}, the largest "
            f"{sizes[-1]}), {len(dataset.classes)} classes, and "
            f"{'several labels' if labels.ndim > 1 else 'one label'} an image. Use another format."
        )
    # EMNIST's letters count from 1: names that are numbers stay the labels that they were.
    numbered = all(re.fullmatch(r"0|[1-9]\d{0,2}", c) and int(c) < 256 for c in dataset.classes)
    values = [int(c) if numbered else k for k, c in enumerate(dataset.classes)]
    parts, notes = train_and_test(dataset)
    coloured = 0
    for split, ids in parts.items():
        prefix = "train" if split == "train" else "t10k"
        pixels = np.zeros((len(ids), *sizes[0]), np.uint8)
        for row, i in enumerate(ids.tolist()):
            image, _ = dataset.images.load(i, None)
            is_grey = bool((image == image[:, :, :1]).all())
            coloured += not is_grey
            pixels[row] = image[:, :, 0] if is_grey else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        which = np.array([values[k] for k in labels[ids].tolist()], np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", which)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, _UBYTE, array.ndim, *array.shape)
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())
    unused = [c for k, c in enumerate(dataset.classes) if not (labels == k).any()]
    order = list(values) != sorted(values)
    counts = Counter(
        colour=coloured, names=0 if numbered else len(values), unused=len(unused), order=int(order)
    )
    return notes + lost(
        counts,
        {
            "colour": "images lost their colours.",
            "names": "names of classes were lost: a class is its number, from 0.",
            "unused": f"classes have no image and are lost: {some(unused)}.",
            "order": "order of classes was lost: they are in the order of their numbers.",
        },
    )


def train_and_test(dataset: Dataset) -> tuple[dict[str, Array], Notes]:
    """The samples of the two splits that MNIST's and CIFAR's files have, and what became of val."""
    parts = {split: ids for split, ids in dataset.splits.items() if len(ids)}
    val = parts.pop("val", None)
    if val is None:
        return parts, []
    if "test" not in parts:
        return {**parts, "test": val}, [f"The {len(val):,} images of val became those of test."]
    train = np.concatenate([parts.get("train", val[:0]), val])
    return {"train": train, "test": parts["test"]}, [
        f"The {len(val):,} images of val went into train: there is no split of that name."
    ]


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
