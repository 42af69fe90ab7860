"""CIFAR-10 and CIFAR-100 as their authors give them (Krizhevsky 2009): the binary and the Python
version, as .tar.gz or extracted.

The Python version is pickled. It is read by an unpickler to which exactly three names mean
anything, and these are stand-ins written here, which hold an array's bytes and run nothing.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidi.data.dataset import ArrayImages, Dataset
from vidi.data.formats import Fake
from vidi.data.formats.idx import train_and_test
from vidi.data.images import unreadable
from vidi.errors import InputError
from vidi.types import Array, Notes, Sample

SIDE = 32
PIXELS = 3 * SIDE * SIDE

_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))

TASK = "classification"


class _Version:
    """One of the four. ``train``, ``test``: files; ``names``: the file with the classes' names, and
    its key in the Python version; ``label``: the labels' key, or the label's byte in a record of
    ``before`` bytes and an image."""

    def __init__(
        self,
        title: str,
        train: Sequence[str],
        test: str,
        names: tuple[str, str],
        label: str,
        before: int = 0,
    ) -> None:
        self.title, self.train, self.test = title, tuple(train), test
        self.names, self.label, self.before = names, label, before

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names[0])


_VERSIONS = (
    _Version("CIFAR-10, Python version", _BATCHES, "test_batch",
             ("batches.meta", "label_names"), "labels"),
    _Version("CIFAR-100, Python version", ["train"], "test",
             ("meta", "fine_label_names"), "fine_labels"),
    _Version("CIFAR-10, binary version", [f"{b}.bin" for b in _BATCHES], "test_batch.bin",
             ("batches.meta.txt", ""), "", before=1),
    # A record begins with the coarse label (of 20), then the fine one (of 100).
    _Version("CIFAR-100, binary version", ["train.bin"], "test.bin",
             ("fine_label_names.txt", ""), "", before=2),
)  # fmt: skip


def sniff(source: str) -> str | None:
    version = _find(source)
    return None if version is None else f"{version[0].title}, by its files {version[0].test} …"


def read(source: str) -> Dataset:
    """Raises :class:`InputError` for a missing or damaged file, and one that asks for code to be
    run."""
    found = _find(source)
    assert found is not None
    version, place = found
    content = _content(source, place, version.files)
    names = _names(content[version.names[0]], version, f"{source}: {version.names[0]}")
    parts: dict[str, list[tuple[Array, Array]]] = {"train": [], "test": []}
    for split, files in (("train", version.train), ("test", (version.test,))):
        for file in files:
            where = f"{source}: {file}"
            pixels, labels = (_records if version.before else _batch)(content[file], version, where)
            if len(labels) and int(labels.max()) >= len(names):
                raise InputError(
                    f"{where}: the label {labels.max()} was found; there are {len(names)} classes."
                )
            parts[split].append((pixels, labels))
    train = sum(len(labels) for _, labels in parts["train"])
    everything = [*parts["train"], *parts["test"]]
    # As stored: all red, then all green, then all blue values.
    channels_first = np.concatenate([pixels for pixels, _ in everything])
    images = channels_first.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    total = len(images)
    return Dataset(
        root=os.path.abspath(source),
        format="cifar",
        task="classification",
        classes=names,
        images=ArrayImages(np.ascontiguousarray(images), {"train": train, "test": total - train}),
        labels=np.concatenate([labels for _, labels in everything]),
        splits={"train": np.arange(train), "test": np.arange(train, total)},
        notes=[f"{source} is {version.title}."],
    )


def write(dataset: Dataset, folder: Path) -> Notes:
    """Exports images of 32 × 32 as CIFAR-10's binary version. Raises :class:`InputError` for other
    sizes, more than 256 classes, several labels an image, and where a file would be empty."""
    version, labels, classes = _VERSIONS[2], dataset.labels, dataset.classes
    assert labels is not None
    others = [i for i in range(len(dataset)) if dataset.images.size(i) != (SIDE, SIDE)]
    if others:
        height, width = dataset.images.size(others[0])
        raise InputError(
            f"{dataset.root}: {len(others):,} of {len(dataset):,} images are not {SIDE} × {SIDE} "
            f"(the first is {dataset.images.key(others[0])}, {width} × {height}); CIFAR's files "
            "hold no others. Use another format."
        )
    bad = [c for c in classes if not c.strip() or c != c.strip() or "\n" in c]
    if labels.ndim > 1 or len(classes) > 256 or bad:
        raise InputError(
            f"{dataset.root}: CIFAR's files hold one label an image, of at most 256 classes with "
            f"names of one line; here are {len(classes)} classes and "
            f"{'several labels' if labels.ndim > 1 else 'one label'} an image. Use another format."
        )
    parts, notes = train_and_test(dataset)
    counts = {split: len(parts.get(split, ())) for split in ("train", "test")}
    if counts["train"] < len(version.train) or not counts["test"]:
        raise InputError(
            f"{dataset.root} has {counts['train']} images to train and {counts['test']} to test; "
            f"CIFAR's files need at least {len(version.train)} and 1. Use another format."
        )
    shares = np.array_split(parts["train"], len(version.train))
    for file, ids in zip((*version.train, version.test), (*shares, parts["test"]), strict=True):
        with (folder / file).open("wb") as records:
            for i in ids.tolist():
                image, _ = dataset.images.load(i, None)
                records.write(bytes([int(labels[i])]) + image.transpose(2, 0, 1).tobytes())
    (folder / version.names[0]).write_text("".join(f"{c}\n" for c in classes), encoding="utf-8")
    return notes


def fake(folder: Path, kind: int = 0) -> Fake:
    """Two images in every file of the version ``kind`` (0 to 3, in the order of the table above);
    the Python ones byte for byte as Python 2 and NumPy wrote the originals."""
    version = _VERSIONS[kind]
    rng = np.random.default_rng(3 + kind)
    folder.mkdir(parents=True, exist_ok=True)
    names = tuple(f"class {k}" for k in range(4))
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    for split, files in (("train", version.train), ("test", (version.test,))):
        for file in files:
            images = rng.integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
            labels = [len(splits[split]) % 4, (len(splits[split]) + 1) % 4]
            flat = images.transpose(0, 3, 1, 2).reshape(2, PIXELS)
            if version.before:
                head = [bytes([7, k][-version.before :]) for k in labels]
                content = b"".join(h + f.tobytes() for h, f in zip(head, flat, strict=True))
            else:
                content = _python2({"data": flat, version.label: labels})
            (folder / file).write_bytes(content)
            for image, label in zip(images, labels, strict=True):
                key = f"{split}/{len(splits[split]):06d}"
                splits[split].append(Sample(key=key, image=image, label=label))
    file, entry = version.names
    listed = "".join(f"{name}\n" for name in names).encode() + b"\n"
    (folder / file).write_bytes(listed if version.before else _python2({entry: list(names)}))
    return Fake(str(folder), names, splits)


def _find(source: str) -> tuple[_Version, str] | None:
    """(version, folder within the source), if all of a version's training files or its test file
    are there."""
    if os.path.isdir(source):
        inside = sorted(e.name for e in os.scandir(source) if e.is_dir())
        places = ["", *(name for name in inside if name.lower().startswith("cifar"))]
        listing = {p: _plain_files(os.path.join(source, p)) for p in places}
    elif source.lower().endswith((".tar.gz", ".tgz", ".tar")) and os.path.isfile(source):
        listing = {}
        for member in _members(source):
            place, _, name = member.rpartition("/")
            listing.setdefault(place, set()).add(name)
    else:
        return None
    for place, names in listing.items():
        for version in _VERSIONS:
            # The binary CIFAR-100 has a file train.bin, as others may: the names decide.
            if version.names[0] in names and names & {*version.train, version.test}:
                return version, place
    return None


def _plain_files(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            wanted = {name for version in _VERSIONS for name in version.files}
            return {e.name for e in entries if e.name in wanted and e.is_file()}
    except OSError:
        return set()


def _members(source: str) -> list[str]:
    try:
        with tarfile.open(source) as archive:
            return [m.name.removeprefix("./") for m in archive if m.isfile()]
    except OSError as error:
        if error.errno is not None:
            raise InputError(unreadable(source, error)) from error
        raise InputError(f"{source} is cut short or damaged ({error}). Fetch it again.") from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"{source} is cut short or damaged ({error}). Fetch it again.") from error


def _content(source: str, place: str, files: Sequence[str]) -> dict[str, bytes]:
    content: dict[str, bytes] = {}
    try:
        if os.path.isdir(source):
            for file in files:
                path = os.path.join(source, place, file)
                if os.path.exists(path):
                    content[file] = Path(path).read_bytes()
        else:
            with tarfile.open(source) as archive:
                for member in archive:
                    folder, _, name = member.name.removeprefix("./").rpartition("/")
                    if folder == place and name in files and member.isfile():
                        opened = archive.extractfile(member)
                        assert opened is not None
                        content[name] = opened.read()
    except OSError as error:
        raise InputError(unreadable(source, error)) from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"{source} is cut short or damaged ({error}). Fetch it again.") from error
    missing = [file for file in files if file not in content]
    if missing:
        raise InputError(f"{source} lacks {', '.join(missing)}. Fetch it again.")
    return content


def _records(data: bytes, version: _Version, where: str) -> tuple[Array, Array]:
    """Pixels, uint8 [N, 3072], and labels, int64 [N], of the binary version."""
    size = version.before + PIXELS
    if not data or len(data) % size:
        raise InputError(
            f"{where} has {len(data):,} bytes; a multiple of {size:,} is expected. Fetch it again."
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    return records[:, version.before :], records[:, version.before - 1].astype(np.int64)


def _batch(data: bytes, version: _Version, where: str) -> tuple[Array, Array]:
    """The same of the Python version."""
    content = _unpickled(data, where)
    pixels, labels = content.get("data"), content.get(version.label)
    if isinstance(pixels, _StoredArray):
        pixels = pixels.array(where)
    if not isinstance(labels, list) or not all(isinstance(k, int) and k >= 0 for k in labels):
        labels = None
    if not isinstance(pixels, np.ndarray) or not labels or pixels.shape != (len(labels), PIXELS):
        raise InputError(
            f"{where} does not hold an array called data, of {PIXELS} bytes per image, and as many "
            f"{version.label}."
        )
    return pixels, np.array(labels, np.int64)


def _names(data: bytes, version: _Version, where: str) -> tuple[str, ...]:
    if version.before:
        names: Any = data.decode("utf-8", "replace").split("\n")
        names = [name.strip() for name in names if name.strip()]
    else:
        names = _unpickled(data, where).get(version.names[1])
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f"{where} does not list the names of the classes.")
    return tuple(names)


class _StoredDtype:
    """Stands in for numpy.dtype: remembers its name."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:  # byte order and fields: one byte has neither
        pass


class _StoredArray:
    """Stands in for numpy.ndarray: remembers shape, type and bytes."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self, where: str) -> Array:
        try:
            _, shape, dtype, fortran, raw = self.state
            assert isinstance(dtype, _StoredDtype)
            assert dtype.name in ("u1", "|u1")
            # The text of Python 2 is bytes, which arrive as Latin-1.
            values = np.frombuffer(raw.encode("latin-1") if isinstance(raw, str) else raw, np.uint8)
            return values.reshape(shape, order="F" if fortran else "C")
        except (TypeError, ValueError, AssertionError, AttributeError) as error:
            raise InputError(f"{where}: its array is not of unsigned bytes, or damaged.") from error


class _Reader(pickle.Unpickler):
    """Knows containers, numbers, text and the stand-ins above."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _StoredArray
        if (module, name) == ("numpy", "ndarray"):
            return _StoredArray
        if (module, name) == ("numpy", "dtype"):
            return _StoredDtype
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in protocol 2
            return _to_bytes
        raise _Refused(f"{module}.{name}")


class _Refused(Exception):
    """A name that a file asked for."""


def _to_bytes(text: str, _: str) -> bytes:
    return text.encode("latin-1")


def _unpickled(data: bytes, where: str) -> dict[str, Any]:
    try:
        content = _Reader(io.BytesIO(data), encoding="latin-1").load()
    except _Refused as error:
        raise InputError(
            f"{where} asks for {error} to be run, which no CIFAR file does. Nothing of it was run; "
            "do not use this file."
        ) from error
    except Exception as error:  # damaged bytes make it raise nearly anything
        raise InputError(f"{where} is cut short or damaged ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{where} holds {type(content).__name__} where a dict is expected.")
    return {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in content.items()}


def _python2(content: dict[str, Any]) -> bytes:
    """A dict of texts to byte arrays or lists of texts or small numbers, as Python 2's cPickle
    wrote it in protocol 2, memo aside."""

    def text(value: str | bytes) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        return b"T" + len(raw).to_bytes(4, "little") + raw

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    def item(value: Any) -> bytes:
        if isinstance(value, list):
            return b"](" + b"".join(map(item, value)) + b"e"
        if isinstance(value, np.ndarray):
            dtype = b"cnumpy\ndtype\n" + text("u1") + number(0) + number(1) + b"\x87R"
            dtype += b"(" + number(3) + text("|") + b"NNN" + number(-1) + number(-1) + number(0)
            dtype += b"tb"
            shape = number(value.shape[0]) + number(value.shape[1]) + b"\x86"
            return (
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
                + (number(0) + b"\x85" + text("b") + b"\x87R(")
                + (number(1) + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb")
            )
        return text(value) if isinstance(value, str) else number(value)

    entries = b"".join(text(key) + item(value) for key, value in content.items())
    return b"\x80\x02}(" + entries + b"u."
