"""Converted networks, kept in the user's cache folder, so that the second use begins at once.

An entry is a folder: the files, and ``about.json`` with what they were made of, what was found out
about them, and the checksum of each. It is made beside its place and renamed, so it is there whole
or not at all; what is damaged afterwards is taken for missing, and made anew. Nothing here is ever
an error: where the folder cannot be written, networks are converted each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vidi.data.cache import cache_folder

ABOUT = "about.json"
BYTES = 4 << 30
"""Of all entries together; those unused for longest make room."""

DAY = 86400
"""Seconds after which what is still in the making was left there."""


def place(made_of: Mapping[str, Any]) -> Path:
    """The folder of what is made of this, whether it is there or not."""
    text = json.dumps(made_of, sort_keys=True)
    return cache_folder() / "networks" / hashlib.sha256(text.encode()).hexdigest()[:32]


def read(folder: Path) -> dict[str, Any] | None:
    """What was found out about the entry; None where it is missing or damaged."""
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_bytes())
        sums = about["files"]
        if any(_sum(folder / name) != expected for name, expected in sums.items()):
            return None
        os.utime(folder)  # used now
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return about


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A new folder for the files of an entry, to be finished by :func:`keep`; what is not is
    removed in the end."""
    parent = folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".making-", dir=parent))
    except OSError:  # then there is a cache for this process alone
        part = Path(tempfile.mkdtemp(prefix="vidi-"))
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def keep(part: Path, folder: Path, about: Mapping[str, Any]) -> None:
    """The files in ``part`` become the entry ``folder``, in the place of what was there."""
    with contextlib.suppress(OSError):
        sums = {file.name: _sum(file) for file in sorted(part.iterdir())}
        body = json.dumps({**about, "files": sums}, indent=1)
        (part / ABOUT).write_text(body, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)  # refused where another process was faster: its entry is as good
        _make_room(folder)


def _sum(file: Path) -> int:
    found = 0
    with open(file, "rb") as opened:
        while block := opened.read(1 << 22):
            found = zlib.crc32(block, found)
    return found


def _make_room(newest: Path) -> None:
    folders = [f for f in newest.parent.iterdir() if f.is_dir()]
    for part in folders:  # of other processes, which are at it, or have ended in the middle
        if part.name.startswith(".making-") and time.time() - part.stat().st_mtime > DAY:
            shutil.rmtree(part, ignore_errors=True)
    entries = sorted(
        (f for f in folders if not f.name.startswith(".")),
        key=lambda f: (f == newest, f.stat().st_mtime),
    )
    sizes = [sum(file.stat().st_size for file in entry.iterdir()) for entry in entries]
    surplus = sum(sizes) - BYTES
    for entry, size in zip(entries[:-1], sizes, strict=False):
        if surplus <= 0:
            return
        shutil.rmtree(entry, ignore_errors=True)
        surplus -= size
