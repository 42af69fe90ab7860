"""A dataset: where pixels come from, what is annotated, and which samples are held out.

The index is flat arrays, not Python objects, so a million files open in seconds.
"""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from vidi.data.images import (
    MAX_MEGAPIXELS,
    check_header,
    decode,
    from_array,
    from_pillow,
    read,
    read_file_header,
    shrink,
)
from vidi.data.truth import Truth
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample, Samples

SPLITS = ("train", "val", "test")
MOST_SHOWN = 20
"""Classes that a printed summary names."""


class Images(Protocol):
    """Where pixels come from, by index."""

    @property
    def has_headers(self) -> bool:
        """Whether :meth:`size` costs less than :meth:`load`."""

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """Stable identity: the path within the dataset, with "/", or a name such as
        train/000123."""

    def identity(self, i: int) -> bytes | None:
        """What changes when the file does (path, size, time of change); None: no file."""

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of the upright image, from the header where there is one.

        Raises :class:`InputError` for whatever can be known without decoding.
        """

    def load(self, i: int, shorter: int | None) -> tuple[Array, tuple[int, int]]:
        """uint8 RGB [h, w, 3], upright, and the height and width at full size.

        ``shorter``: shrunk so that the shorter side has that many pixels if it had more. The result
        is a function of the source and ``shorter`` alone. Raises :class:`InputError` that names
        the file.
        """

    def digest(self) -> bytes:
        """A hash that tells this list of images from others."""


class FileImages:
    """Image files. Their paths lie one after the other in ``blob``; ``offsets`` is int64 [N + 1].

    Paths are relative to the folder ``root``, or absolute.
    """

    has_headers = True

    def __init__(self, root: str, blob: bytes, offsets: Array) -> None:
        self.root = root
        self.max_megapixels = MAX_MEGAPIXELS
        self._blob = blob
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def key(self, i: int) -> str:
        return os.fsdecode(self._blob[self._offsets[i] : self._offsets[i + 1]])

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.key(i))

    def identity(self, i: int) -> bytes | None:
        try:
            found = os.stat(self.path(i))
        except OSError:  # loading it will say why
            return None
        return f"{self.key(i)}\0{found.st_size}\0{found.st_mtime_ns}".encode(
            errors="surrogateescape"
        )

    def size(self, i: int) -> tuple[int, int]:
        path = self.path(i)
        header = read_file_header(path)
        check_header(header, path, self.max_megapixels)
        return header.size

    def load(self, i: int, shorter: int | None) -> tuple[Array, tuple[int, int]]:
        path = self.path(i)
        return decode(read(path), path, shorter, self.max_megapixels)

    def digest(self) -> bytes:
        return _hash(self._blob, np.ascontiguousarray(self._offsets).data)


class PathTable:
    """Builds a :class:`FileImages` without keeping a Python object per path."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._lengths = array("q")

    def __len__(self) -> int:
        return len(self._lengths)

    def extend(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._blob += b"".join(encoded)
        self._lengths.extend(map(len, encoded))

    def images(self, root: str) -> FileImages:
        offsets = np.zeros(len(self._lengths) + 1, np.int64)
        np.cumsum(np.frombuffer(self._lengths, np.int64), out=offsets[1:])
        return FileImages(root, bytes(self._blob), offsets)


class ArrayImages:
    """Images of one size in memory: ``array`` is uint8 [N, H, W, 3], or [N, H, W] if grey.

    ``parts``: names and numbers of samples, in order, from which keys are made: train/000000.
    """

    has_headers = True

    def __init__(self, array: Array, parts: dict[str, int]) -> None:
        assert array.dtype == np.uint8
        assert array.ndim in (3, 4)
        assert sum(parts.values()) == len(array)
        self.array = array
        self.array.setflags(write=False)  # what is loaded is a view of it
        self._names = list(parts)
        self._starts = [0, *accumulate(parts.values())]

    def __len__(self) -> int:
        return len(self.array)

    def key(self, i: int) -> str:
        part = bisect_right(self._starts, i) - 1
        return f"{self._names[part]}/{i - self._starts[part]:06d}"

    def identity(self, i: int) -> bytes | None:
        return None

    def size(self, i: int) -> tuple[int, int]:
        return self.array.shape[1], self.array.shape[2]

    def load(self, i: int, shorter: int | None) -> tuple[Array, tuple[int, int]]:
        image = self.array[i]
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        return shrink(image, self.size(i), shorter), self.size(i)

    def digest(self) -> bytes:
        shape = repr((self.array.shape, self._names, self._starts)).encode()
        return _hash(shape, np.ascontiguousarray(self.array).data)


class ObjectImages:
    """A user's object whose items are samples or (image, label) pairs; see :func:`pair`.

    It is asked for one item at a time: many such objects hold a file that two threads must not
    seek in at once. It must give the same item every time; varying images is the loader's work.
    """

    has_headers = False

    def __init__(self, source: Samples, name: str, labels: list[Any]) -> None:
        self._source = source
        self._name = name
        self._labels = labels
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._labels)

    def key(self, i: int) -> str:
        return f"{self._name}/{i:06d}"

    def identity(self, i: int) -> bytes | None:
        return None

    def size(self, i: int) -> tuple[int, int]:
        return self.load(i, None)[1]

    def load(self, i: int, shorter: int | None) -> tuple[Array, tuple[int, int]]:
        with self._lock:
            try:
                item = self._source[i]
            except Exception as error:  # whatever the user's code raises, said of its sample
                raise InputError(f"{self.key(i)}: {type(error).__name__}: {error}") from error
        image, label = pair(item, self.key(i))
        if label != self._labels[i]:
            raise InputError(
                f"{self.key(i)} has the label {label!r} now and had {self._labels[i]!r} when the "
                "data was opened. An object must give the same sample each time it is asked."
            )
        pixels = pixels_of(image, self.key(i))
        size = (pixels.shape[0], pixels.shape[1])
        return shrink(pixels, size, shorter), size

    def digest(self) -> bytes:
        return _hash(self._name.encode(), repr(self._labels).encode())


class JoinedImages:
    """Several sources of images, one after the other, under one name each."""

    def __init__(self, parts: dict[str, Images]) -> None:
        self._names = list(parts)
        self.parts = list(parts.values())
        self.has_headers = all(part.has_headers for part in self.parts)
        self._starts = [0, *accumulate(map(len, self.parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def at(self, i: int) -> tuple[int, int]:
        """(which part, the index within it)."""
        part = bisect_right(self._starts, i) - 1
        return part, i - self._starts[part]

    def key(self, i: int) -> str:
        part, j = self.at(i)
        key = self.parts[part].key(j)
        name = self._names[part]
        return key if key.startswith(f"{name}/") else f"{name}/{key}"

    def identity(self, i: int) -> bytes | None:
        part, j = self.at(i)
        found = self.parts[part].identity(j)
        return None if found is None else f"{self._names[part]}/".encode() + found

    def size(self, i: int) -> tuple[int, int]:
        part, j = self.at(i)
        return self.parts[part].size(j)

    def load(self, i: int, shorter: int | None) -> tuple[Array, tuple[int, int]]:
        part, j = self.at(i)
        return self.parts[part].load(j, shorter)

    def digest(self) -> bytes:
        return _hash(*(n.encode() for n in self._names), *(p.digest() for p in self.parts))


class FramePairs(JoinedImages):
    """The first frames of N pairs, and from index N on the second ones: one cache for both."""

    def __init__(self, first: Images, second: Images) -> None:
        super().__init__({"first": first, "second": second})

    def identity(self, i: int) -> bytes | None:
        # A frame that is the second of one pair and the first of the next is the same file.
        part, j = self.at(i)
        return self.parts[part].identity(j)


@dataclass(repr=False)
class Dataset:
    """Samples, their classes and splits. Indexes, iterates, and knows its task.

    ``root`` is the source by which it can be opened again. ``labels``: int64 [N], a class per
    sample, or bool [N, K] where an image may have several; None where the task has no such.
    ``splits``: "train", "val", "test" (those there are) to int64 indices. ``notes``: what was
    inferred, and why. ``truth``: all other annotations. ``images2``: second frames, for flow.
    ``palette``: uint8 [K, 3], the classes' colours where the data has them.
    """

    root: str
    format: str
    task: str
    classes: tuple[str, ...]
    images: Images
    labels: Array | None
    splits: dict[str, Array]
    notes: Notes = field(default_factory=list)
    truth: Truth | None = None
    images2: Images | None = None
    palette: Array | None = None

    def __str__(self) -> str:
        """What was found, why, how many, and the classes: a line each."""
        lines = [f"{self.root}: {self.task} ({self.format})", *self.notes]
        if self.classes:
            shown = ", ".join(self.classes[:MOST_SHOWN])
            more = len(self.classes) - MOST_SHOWN
            lines.append(f"classes: {shown}" + (f" and {more:,} more" if more > 0 else ""))
        return "\n".join(lines)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(ids):,}" for name, ids in self.splits.items())
        return f"<{self.task} dataset {self.root} ({self.format}): {sizes}>"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Sample:
        """Sample ``i`` at full size. Raises :class:`InputError` if its image cannot be read."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.root} has {len(self)} samples; there is none at {i}.")
        return self.sample(i % len(self))

    def __iter__(self) -> Iterator[Sample]:
        return (self.sample(i) for i in range(len(self)))

    def sample(self, i: int, shorter: int | None = None) -> Sample:
        """Sample ``i``, its image shrunk as :meth:`Images.load` does."""
        image, _ = self.images.load(i, shorter)
        fields = self.annotations(i)
        if self.images2 is not None:
            fields["image2"] = self.images2.load(i, shorter)[0]
        return Sample(key=self.images.key(i), image=image, **fields)

    def annotations(self, i: int) -> dict[str, Any]:
        """What is annotated of sample ``i``, as fields of :class:`vidi.types.Sample`, in pixels of
        the image's full size."""
        fields = {} if self.truth is None else self.truth.fields(i)
        if self.labels is not None:
            label = self.labels[i]
            fields["label"] = int(label) if self.labels.ndim == 1 else label
        return fields

    def split(self, name: str) -> Split:
        """The samples of one split. Raises :class:`InputError` if there is none of that name."""
        if name not in self.splits:
            raise InputError(f"{self.root} has no split {name!r}; it has {', '.join(self.splits)}.")
        return Split(self, self.splits[name])

    def class_counts(self, split: str) -> Array:
        """Samples per class in a split: int64 [K]."""
        return np.bincount(self.split(split).labels, minlength=len(self.classes))

    def fingerprint(self) -> str:
        """Changes when a path, label, class or split does; 32 hexadecimal digits."""
        parts: list[Any] = [self.images.digest(), repr(self.classes).encode()]
        if self.labels is not None:
            parts.append(np.ascontiguousarray(self.labels, np.int64).data)
        if self.truth is not None:
            parts.append(self.truth.digest())
        if self.images2 is not None:
            parts.append(self.images2.digest())
        for name in sorted(self.splits):
            parts += [name.encode(), np.ascontiguousarray(self.splits[name], np.int64).data]
        return _hash(*parts).hex()


@dataclass(frozen=True)
class Split:
    """The samples of a dataset at ``ids``, in that order."""

    dataset: Dataset
    ids: Array

    @property
    def labels(self) -> Array:
        """The labels of a dataset that has a class per image."""
        assert self.dataset.labels is not None
        return np.asarray(self.dataset.labels[self.ids])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        return self.dataset[int(self.ids[i])]

    def __iter__(self) -> Iterator[Sample]:
        return (self.dataset.sample(int(i)) for i in self.ids)


def pair(item: Any, name: str) -> tuple[Any, int | str | tuple[int, ...]]:
    """(image, label) of a user's item: a :class:`Sample`, or a pair; its label a whole number, a
    class's name, or a 0/1 vector, which is given as a tuple. Raises :class:`InputError` for
    anything else."""
    image: Any
    label: Any
    if isinstance(item, Sample):
        image, label = item.image, item.label
    elif isinstance(item, tuple | list) and len(item) == 2:
        image, label = item
    else:
        raise InputError(
            f"{name} is a {type(item).__name__}; a vidi.Sample or a pair (image, label) is "
            "expected."
        )
    if isinstance(label, str):
        return image, label
    try:
        number = np.asarray(label)
    except (TypeError, ValueError):
        number = np.asarray(None)
    if number.ndim == 1 and number.size > 1 and np.isin(number, (0, 1)).all():
        return image, tuple(int(there) for there in number)
    if number.size != 1 or number.dtype.kind not in "iu":
        raise InputError(
            f"{name} has the label {label!r}; a whole number, a class's name, or a vector of a 0 "
            "or 1 per class is expected."
        )
    return image, int(number.reshape(()))


def pixels_of(image: Any, name: str) -> Array:
    """uint8 RGB [H, W, 3] of a user's image: an array with channels last, a Pillow image, or a
    torch tensor with channels first. Raises :class:`InputError` for anything else."""
    if isinstance(image, np.ndarray):
        return from_array(image, name)
    if hasattr(image, "convert") and hasattr(image, "mode"):
        return from_pillow(image, name)
    if hasattr(image, "detach") and hasattr(image, "cpu"):  # a tensor, without importing torch
        array = image.detach().cpu().numpy()
        if array.ndim == 3:
            if array.shape[0] not in (1, 3, 4):
                raise InputError(
                    f"{name} is a tensor of shape {tuple(array.shape)}; [C, H, W] with 1, 3 or 4 "
                    "channels is expected."
                )
            array = array.transpose(1, 2, 0)
        return from_array(array, name)
    raise InputError(
        f"{name} has a {type(image).__name__} for an image; an array, a Pillow image or a torch "
        "tensor is expected."
    )


def _hash(*parts: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        view = memoryview(part)
        digest.update(view.nbytes.to_bytes(8, "little"))
        digest.update(view)
    return digest.digest()
