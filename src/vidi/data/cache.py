"""Decoded, shrunk images, kept in memory or on disk. What is kept equals a decode, bit for bit.

The disk cache is one LMDB environment per (dataset, shorter side): memory-mapped, shared between
processes, and whole after a crash at any moment, because a record is seen only once it is
committed. A record's key is the file's identity (path, size, time of change), so a changed file is
a new record. Its checksum is compared when a process first reads it; a damaged record is decoded
anew. Nothing here is ever an error: where the cache cannot be used, images are decoded, and
``notes`` says so once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import sys
import threading
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import cv2
import lmdb
import numpy as np
import PIL

from vidi.errors import InputError
from vidi.types import Array

if TYPE_CHECKING:
    from vidi.data.dataset import Dataset, Images

Loaded = tuple[Array, tuple[int, int]]
"""uint8 RGB [h, w, 3], read-only where it is shared, and the original (H, W)."""

VERSION = f"1 opencv-{cv2.__version__} pillow-{PIL.__version__}"
"""What decodes: another version may give other bits, so it gets another folder."""
MAP_SIZE = 1 << 40 if sys.maxsize > 1 << 32 else 1 << 30
"""Address space of an environment. Not disk space; the same in all processes, as LMDB likes it."""
WRITE = 32 << 20
"""Bytes that are written in one transaction: one flush to disk for some hundred images."""
MEMORY_MOST = 4 << 30
MEMORY_SHARE = 0.25
"""``auto`` keeps in memory what takes at most this many bytes and this share of what is free."""
_LOOK = 16
"""Images that are decoded to estimate the size of all."""
_HEADER = struct.Struct("<IIIII")
"""CRC-32 of all that follows; original height and width; height and width."""


class Store(Protocol):
    """Gives images. ``notes``: sentences on what could not be kept, and why."""

    notes: list[str]

    def load(self, i: int) -> Loaded:
        """Safe to call from several threads. Raises :class:`InputError` as the images do."""

    def flush(self) -> None:
        """Write what is waiting to be written (this happens at the latest when Python ends)."""


def make(
    images: Images,
    dataset: str,
    shorter: int | None,
    mode: Literal["auto", "memory", "disk", "off"] = "auto",
    gb: float = 20.0,
    *,
    folder: Path | None = None,
) -> Store:
    """The store for a dataset's images, shrunk to ``shorter`` (see :class:`Images`).

    ``dataset``: what tells it from others, such as its folder. ``gb``: all datasets' disk caches
    together take at most so many times 10⁹ bytes; those unused for longest make room. ``folder``:
    instead of the user's cache folder. Images that lie in memory already are not kept twice, and
    those of a user's object, which has no files, never on disk.
    """
    if mode == "off" or len(images) == 0:
        return Direct(images, shorter)
    look = _look(images, shorter)
    if look.in_memory:
        return Direct(images, shorter)
    free = available_memory()
    fits = look.estimate <= min(MEMORY_SHARE * free, MEMORY_MOST)
    if mode == "auto":
        # Processes that share a machine share the disk cache; each would fill a memory of its own.
        alone = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1
        mode = "memory" if fits and (alone or not look.files) else "disk"
    if mode == "memory":
        return Memory(images, shorter, free // 2)
    if not look.files:
        return Direct(images, shorter)
    name = f"{Path(dataset).absolute()}\n{shorter}\n{VERSION}\n"
    where = folder if folder is not None else cache_folder() / "images"
    return Disk(images, shorter, where, name, int(gb * 1e9), look.estimate)


def seconds(dataset: Dataset, load: Callable[[int], Loaded]) -> Callable[[int], Loaded] | None:
    """What gives the second frames of the dataset's pairs, by sample, where ``load`` gives all
    frames (:class:`vidi.data.dataset.FramePairs`); ``None`` where there are no pairs."""
    if dataset.images2 is None:
        return None
    count = len(dataset.images)
    return lambda i: load(count + i)


def keep_truth(dataset: Dataset) -> Callable[[int], dict[str, Any]]:
    """The dataset's ``annotations``, kept in memory once read, as far as there is room."""
    if dataset.truth is None:
        return dataset.annotations
    share = min(MEMORY_SHARE * available_memory(), MEMORY_MOST)
    return Truth(dataset.annotations, int(share)).load


def cache_folder() -> Path:
    """$VIDI_CACHE, or ``vidi`` in the folder where the system keeps users' caches."""
    if own := os.environ.get("VIDI_CACHE"):
        return Path(own)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vidi"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local or Path.home() / "AppData" / "Local") / "vidi" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidi"


class Direct:
    """No cache: every load is a decode."""

    def __init__(self, images: Images, shorter: int | None) -> None:
        self.notes: list[str] = []
        self._images = images
        self._shorter = shorter

    def load(self, i: int) -> Loaded:
        return self._images.load(i, self._shorter)

    def flush(self) -> None:
        pass


class Memory:
    """Everything that was loaded stays, up to ``most`` bytes."""

    def __init__(self, images: Images, shorter: int | None, most: int) -> None:
        self.notes: list[str] = []
        self._images = images
        self._shorter = shorter
        self._kept: dict[int, Loaded] = {}
        self._left = most

    def load(self, i: int) -> Loaded:
        kept = self._kept.get(i)
        if kept is not None:
            return kept
        image, size = self._images.load(i, self._shorter)
        if image.base is not None:
            image = image.copy()  # a view would keep the whole of what it looks into
        image.flags.writeable = False
        if self._left >= image.nbytes:
            # Two threads may both subtract for one image: it errs towards keeping less.
            self._left -= image.nbytes
            self._kept[i] = image, size
        elif not self.notes:
            self.notes.append(
                f"The memory cache is full after {len(self._kept):,} images; the others are "
                "decoded each time. --data.cache disk keeps them on disk."
            )
        return image, size

    def flush(self) -> None:
        pass


class Truth:
    """What is annotated of each sample, read once and kept, up to ``most`` bytes.

    Masks and the like cost as much to read as a cached image spares. Whole classes per image lie in
    memory as it is.
    """

    def __init__(self, read: Callable[[int], dict[str, Any]], most: int) -> None:
        self._read = read
        self._kept: dict[int, dict[str, Any]] = {}
        self._left = most

    def load(self, i: int) -> dict[str, Any]:
        """Safe to call from several threads; arrays are read-only."""
        kept = self._kept.get(i)
        if kept is None:
            kept = self._read(i)
            arrays = [value for value in kept.values() if isinstance(value, np.ndarray)]
            needed = sum(array.nbytes for array in arrays)
            if self._left >= needed:
                # As of images: it errs towards keeping less.
                self._left -= needed
                for array in arrays:
                    array.flags.writeable = False
                self._kept[i] = kept
        return kept


class Disk:
    """A dataset's images through its :class:`_Shelf`."""

    def __init__(
        self,
        images: Images,
        shorter: int | None,
        where: Path,
        name: str,
        budget: int,
        estimate: int,
    ) -> None:
        self.notes: list[str] = []
        self._images = images
        self._shorter = shorter
        self._checked = np.zeros(len(images), bool)
        self._shelf = _shelf(where, name, budget, estimate, self.notes)
        if self._shelf is not None:
            weakref.finalize(self, self._shelf.flush)

    def load(self, i: int) -> Loaded:
        shelf = self._shelf
        identity = None if shelf is None else self._images.identity(i)
        if shelf is None or identity is None:
            return self._images.load(i, self._shorter)
        key = hashlib.blake2b(identity, digest_size=16).digest()
        found = shelf.get(key)
        if found is not None:
            loaded = _unpacked(found, check=not self._checked[i])
            if loaded is not None:
                self._checked[i] = True
                return loaded
            damaged = f"The cached {self._images.key(i)} is damaged; it is decoded anew."
            if damaged not in self.notes:
                self.notes.append(damaged)
        image, size = self._images.load(i, self._shorter)
        shelf.put(key, _packed(image, size))
        return image, size

    def flush(self) -> None:
        if self._shelf is not None:
            self._shelf.flush()


def _packed(image: Array, size: tuple[int, int]) -> bytes:
    rest = _HEADER.pack(0, *size, *image.shape[:2])[4:] + image.tobytes()
    return zlib.crc32(rest).to_bytes(4, "little") + rest


def _unpacked(record: Array, *, check: bool) -> Loaded | None:
    """What was packed, as a view of the record, uint8 [n]; ``None`` where it is damaged."""
    if len(record) < _HEADER.size:
        return None
    crc, height, width, h, w = _HEADER.unpack(record[: _HEADER.size].tobytes())
    if len(record) != _HEADER.size + 3 * h * w or (check and zlib.crc32(record[4:].data) != crc):
        return None
    return record[_HEADER.size :].reshape(h, w, 3), (height, width)


class _Shelf:
    """One LMDB environment, and what waits to be written to it.

    LMDB forbids opening an environment twice in one process, so the stores of one dataset share
    their shelf.
    """

    def __init__(self, folder: Path, env: lmdb.Environment, budget: int, notes: list[str]) -> None:
        self.folder = folder
        self.budget = budget
        self.notes = notes
        self.reading = True
        self.adding = True
        self._env = env
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._waiting: dict[bytes, bytes] = {}
        self._bytes = 0
        self._underway: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> Array | None:
        """A copy of the record, uint8 [n]: the memory map may move on when the read ends."""
        waiting = self._waiting.get(key) or self._underway.get(key)
        if waiting is not None:
            return np.frombuffer(waiting, np.uint8)
        if not self.reading:
            return None
        try:
            with self._env.begin(buffers=True) as transaction:
                found = transaction.get(key)
                return None if found is None else np.frombuffer(found, np.uint8).copy()
        except lmdb.Error as error:
            self.reading = False
            self._stop(f"The cache {self.folder} cannot be read ({error})")
            return None

    def put(self, key: bytes, record: bytes) -> None:
        """Written when enough has gathered, by the thread that brought the last of it."""
        if not self.adding:
            return
        with self._lock:
            self._waiting[key] = record
            self._bytes += len(record)
            gathered = self._bytes
        if gathered >= WRITE:
            # Others go on meanwhile, unless far more is waiting than is being written.
            self._write(wait=gathered >= 4 * WRITE)

    def flush(self) -> None:
        self._write(wait=True)

    def _write(self, *, wait: bool) -> None:
        if not self._writing.acquire(blocking=wait):
            return
        try:
            with self._lock:
                self._underway, self._waiting = self._waiting, {}
                size, self._bytes = self._bytes, 0
            if not self._underway or not self.adding:
                return
            if _used(self.folder.parent) + size > self.budget:
                self._stop(f"The cache in {self.folder.parent} has reached --data.cache-gb")
                return
            with self._env.begin(write=True) as transaction:
                for key, record in self._underway.items():
                    transaction.put(key, record)
        except (lmdb.Error, OSError) as error:
            self._stop(f"The cache {self.folder} cannot be written to ({error})")
        finally:
            self._underway = {}
            self._writing.release()

    def _stop(self, why: str) -> None:
        if self.adding:
            self.adding = False
            self.notes.append(f"{why}; images that it does not hold are decoded each time.")


_shelves: weakref.WeakValueDictionary[str, _Shelf] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _shelf(where: Path, name: str, budget: int, estimate: int, notes: list[str]) -> _Shelf | None:
    """The open shelf of that name; ``None``, and a note, where there can be none."""
    folder = where / hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
    with _opening:
        shelf = _shelves.get(str(folder))
        if shelf is not None:
            shelf.budget = budget
            shelf.adding = shelf.reading
            shelf.notes = notes
            return shelf
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _touch(folder, name)
            _make_room(folder, budget, estimate)
            env = _opened(folder, name)
        except (lmdb.Error, OSError) as error:
            notes.append(
                f"There is no cache in {folder} ({error}); images are decoded each time. "
                "The environment variable VIDI_CACHE names another folder."
            )
            return None
        shelf = _Shelf(folder, env, budget, notes)
        _shelves[str(folder)] = shelf
        return shelf


def _opened(folder: Path, name: str) -> lmdb.Environment:
    """The environment; one that is damaged as a whole is thrown away and begun anew."""
    for last in (False, True):
        try:
            env = lmdb.open(
                str(folder),
                map_size=MAP_SIZE,
                # A power cut may take back the last transaction, but leaves those before whole.
                metasync=False,
                max_readers=1024,
                max_spare_txns=64,
            )
            # Reading beyond the end of a file that something cut short would kill the process.
            needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            if (folder / "data.mdb").stat().st_size >= needed:
                env.reader_check()
                return env
            env.close()
            if last:
                raise lmdb.CorruptedError("data.mdb is shorter than its own account of it")
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError):
            if last:
                raise
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        _touch(folder, name)
    raise AssertionError


def _touch(folder: Path, name: str) -> None:
    """Says whose cache this is, and when it was last used."""
    (folder / "used").write_text(name, encoding="utf-8")


def _make_room(folder: Path, budget: int, estimate: int) -> None:
    """Remove other shelves, unused for longest first, until this one fits. A run that still has
    one open keeps it until it ends (or, on Windows, keeps it from being removed)."""
    own = max(_size(folder), estimate)
    others = sorted(
        (f for f in folder.parent.iterdir() if f.is_dir() and f != folder), key=_last_used
    )
    used = sum(_size(f) for f in others)
    for other in others:
        if used + own <= budget:
            return
        if str(other) in _shelves:
            continue
        used -= _size(other)
        shutil.rmtree(other, ignore_errors=True)


def _last_used(folder: Path) -> float:
    try:
        return (folder / "used").stat().st_mtime
    except OSError:
        return 0.0


def _size(folder: Path) -> int:
    try:
        return (folder / "data.mdb").stat().st_size
    except OSError:
        return 0


def _used(where: Path) -> int:
    """Bytes of all shelves."""
    return sum(_size(f) for f in where.iterdir())


@dataclass(frozen=True)
class _Look:
    """What some of the images tell of all. ``estimate``: bytes, when loaded."""

    files: bool
    in_memory: bool
    estimate: int


def _look(images: Images, shorter: int | None) -> _Look:
    some = np.linspace(0, len(images) - 1, min(_LOOK, len(images))).round().astype(int).tolist()
    files = any(images.identity(i) is not None for i in some)
    first: tuple[int, Array] | None = None
    sizes: list[int] = []
    for i in some:
        with contextlib.suppress(InputError):
            image = images.load(i, shorter)[0]
            sizes.append(image.nbytes)
            first = first or (i, image)
    in_memory = False
    if first is not None and not files:
        # What gives the same memory again has its images lying there. After all others are loaded,
        # for the last few may be kept for a moment only.
        in_memory = np.shares_memory(first[1], images.load(first[0], shorter)[0])
    return _Look(files, in_memory, int(np.mean(sizes) * len(images)) if sizes else 0)


def available_memory() -> int:
    """Bytes of memory that are free for use, the container's limit included (Linux); half of
    what there is on other Unix systems; 4 GB where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free = 1024 * int(text.partition("MemAvailable:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        sysconf: Any = getattr(os, "sysconf", None)
        if sysconf is None:
            return 4 << 30
        return int(sysconf("SC_PHYS_PAGES")) * int(sysconf("SC_PAGE_SIZE")) // 2
    try:
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text(encoding="ascii"))
        taken = int((group / "memory.current").read_text(encoding="ascii"))
        # Cached file contents count as taken, but are given up when asked for.
        stat = (group / "memory.stat").read_text(encoding="ascii")
        free = min(free, most - taken + int(stat.partition("\ninactive_file ")[2].split()[0]))
    except (OSError, IndexError, ValueError):
        pass  # no container, or one without a limit
    return max(0, free)
