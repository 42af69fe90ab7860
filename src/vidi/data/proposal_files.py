"""Proposals that were computed, on disk: a file per image, beside the cache of images.

An image's file has its name from what it holds: the image's identity (path, size, time of change),
the method and the versions. It is written aside and renamed, so it is whole or not there after a
crash at any moment, and several processes may fill one folder. A damaged file is computed anew.
Nothing here is ever an error: where nothing can be written, proposals are computed each time, and
``notes`` says so once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidi.data.cache import cache_folder
from vidi.types import Array, Notes

_HEADER = struct.Struct("<4sIIIIIIf")
"""Magic; CRC-32 of all that follows it; number of boxes; height and width of the image; height and
width that it was brought to; seconds of computing."""
_MAGIC = b"vpr1"


@dataclass(frozen=True)
class Computed:
    """One image's proposals, as the method gave them.

    ``boxes``: int16 [P, 4], xyxy in the pixels of the image at ``worked`` (height, width).
    ``size``: height and width at full size. ``seconds``: what the method took of a
    processor.
    """

    boxes: Array
    size: tuple[int, int]
    worked: tuple[int, int]
    seconds: float


class ProposalFiles:
    """The files of one dataset and one method. Safe to use from several threads and processes."""

    def __init__(self, dataset: str, method: str, folder: Path | None = None) -> None:
        """``dataset``: what tells it from others, such as its folder. ``method``: the method, with
        all that its result depends on. ``folder``: instead of the user's cache folder."""
        self.notes: Notes = []
        self._method = method.encode()
        root = folder if folder is not None else cache_folder() / "proposals"
        # Embedded data is the same wherever one stands, and however much of it is asked for.
        there = os.path.exists(dataset)
        kind = str(Path(dataset).absolute()) if there else dataset.partition(":")[0]
        name = kind.encode(errors="surrogateescape")
        self.folder = root / hashlib.blake2b(name, digest_size=12).hexdigest()

    def get(self, identity: bytes) -> Computed | None:
        try:
            data = self._path(identity).read_bytes()
        except OSError:
            return None
        return _unpacked(data)

    def put(self, identity: bytes, computed: Computed) -> None:
        path = self._path(identity)
        aside = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(_packed(computed))
            os.replace(aside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            if not self.notes:
                self.notes.append(
                    f"Proposals cannot be kept in {self.folder} ({error}); they are computed each "
                    "time. The environment variable VIDI_CACHE names another folder."
                )

    def _path(self, identity: bytes) -> Path:
        digest = hashlib.blake2b(self._method, digest_size=16)
        digest.update(b"\0" + identity)
        name = digest.hexdigest()
        # A folder of a million files is slow on some systems.
        return self.folder / name[:2] / f"{name[2:]}.boxes"


def _packed(computed: Computed) -> bytes:
    boxes = np.ascontiguousarray(computed.boxes, "<i2")
    head = _HEADER.pack(
        _MAGIC, 0, len(boxes), *computed.size, *computed.worked, float(computed.seconds)
    )
    rest = head[8:] + boxes.tobytes()
    return _MAGIC + zlib.crc32(rest).to_bytes(4, "little") + rest


def _unpacked(data: bytes) -> Computed | None:
    """``None`` where the file is damaged."""
    if len(data) < _HEADER.size:
        return None
    magic, crc, n, height, width, h, w, seconds = _HEADER.unpack_from(data)
    if magic != _MAGIC or len(data) != _HEADER.size + 8 * n or zlib.crc32(data[8:]) != crc:
        return None
    boxes = np.frombuffer(data, "<i2", offset=_HEADER.size).reshape(n, 4)
    return Computed(boxes.astype(np.int16), (height, width), (h, w), seconds)
