"""The folder of `vidi predict`: what was answered so far, so that a killed process's work goes on.

predict.json        the run, its weights and the settings
predictions.jsonl   one whole line for each image or frame, in order: its answer, or its "error"
predictions.BASE.K-of-N.jsonl   of N processes number K: its lines after the first BASE images

The pictures of an answer are there before its line is. The lines of several processes are put
together at the end, in the order in which one process would have written them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidi.cli.outputs import writing_to
from vidi.cli.sources import Item
from vidi.cli.written import Places, Writer
from vidi.errors import InputError

LINES = "predictions.jsonl"
BESIDE = ".beside.jsonl"
"""What a writer keeps until the end: a line for each line of the other, there before it."""
SETTINGS = "predict.json"
LOCK = ".predict.lock"
STEM = 200
"""Bytes of an image's name in those of its files, which may have 255."""
PARTS = ".part"
"""Below this folder files lie until they are whole."""


@dataclass
class Totals:
    """Answers, and what could not be read or drawn."""

    done: int = 0
    failed: int = 0
    items: int = 0
    """Of both together: what could not be drawn was answered all the same."""

    def add(self, said: dict[str, Any]) -> None:
        self.items += 1
        self.failed += "error" in said
        self.done += not is_error(said) or "answered" in said


def is_error(said: dict[str, Any]) -> bool:
    """Whether nothing is said but why. With "answered" there was an answer, which could not be
    written as it was asked for."""
    return not set(said) - {"path", "error", "answered"}


class Lines:
    """A file of lines that are added one by one. What a killed process left of its last one does
    not count, and is cut off before the next is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def read(self) -> Iterator[str]:
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line.decode("utf-8", "replace")

    def count(self) -> int:
        return sum(1 for _ in self.read())

    def cut(self, count: int) -> None:
        """Leave the first ``count`` lines."""
        if self.path.exists():
            with open(self.path, "rb+") as file:
                file.truncate(sum(map(len, itertools.islice(file, count))))

    def add(self, line: str) -> None:
        """The system has all of it when this returns."""
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        left = memoryview(f"{line}\n".encode())
        while left:
            left = left[os.write(self._file, left) :]

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


@dataclass
class Record:
    """``folder``: for files; None: there are none. ``kept``: lines are written there. ``settings``:
    what an answer depends on. ``rank`` of ``world``: the processes that share the work."""

    folder: Path | None
    kept: bool
    settings: dict[str, Any]
    writer: Writer
    resume: bool = False
    rank: int = 0
    world: int = 1
    totals: Totals = field(default_factory=Totals)
    begun: bool = False
    """Whether an earlier process wrote to the folder."""
    base: int = 0
    """Lines that predictions.jsonl had; what comes after them is shared out."""
    before: int = 0
    """Lines beyond those that an earlier process of this number wrote."""
    _names: set[str] = field(default_factory=lambda: {LINES, SETTINGS, "classes.txt"})
    _numbers: dict[str, int] = field(default_factory=dict)
    _waiting: list[dict[str, Any]] = field(default_factory=list)
    _files: dict[str, Lines] | None = None
    _lock: Any = None
    _seen: Any = field(default_factory=hashlib.sha256)

    # Beginning -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises :class:`InputError` for a folder that holds something else, or what was predicted
        in another way. Nothing is written."""
        if not self.kept or self.folder is None or not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file. Give --out the name of a new folder.")
        settings = self.folder / SETTINGS
        if all(map(_is_beginning, self.folder.iterdir())):
            return
        if not self.resume:
            more = ", or go on with what is in it by --resume" if settings.is_file() else ""
            raise InputError(
                f"{self.folder} exists and is not empty. Give --out the name of a new folder{more}."
            )
        if not settings.is_file():
            raise InputError(
                f"{self.folder} holds no {SETTINGS}, so there is nothing in it to go on "
                "with. Name the folder that was begun, or leave out --resume."
            )
        self.begun = True
        self._compare(begun(self.folder))
        self.base = Lines(self.folder / LINES).count()
        if self.writer.keeps and Lines(self.folder / BESIDE).count() < self.base:
            raise InputError(
                f"{self.folder} is not whole: its file {BESIDE} is missing or too short. Copy "
                "that, too, or give --out the name of a new folder."
            )
        for path, base, world in self._parts():
            if base == self.base and world != self.world:
                raise InputError(
                    f"{self.folder} was begun by {world} processes, of which each has lines in a "
                    f"file such as {path.name}. Go on with torchrun --nproc-per-node {world}."
                )

    def _compare(self, before: dict[str, Any]) -> None:
        differing = [
            f"{name} (was {json.dumps(before.get(name))}, now {json.dumps(value)})"
            for name, value in self.settings.items()
            if before.get(name) != value
        ]
        if differing:
            raise InputError(
                f"{self.folder} was begun otherwise: {', '.join(differing)}. Say the same again, "
                "or give --out the name of a new folder."
            )

    def open(self) -> None:
        """Make the folder, if it is not made yet. Of several processes the first comes first."""
        from vidi.engine.checkpoint import write_atomically

        if self._files is not None or self.folder is None:
            return
        with writing_to(self.folder):
            # A name of our own choice is not to be another's, who chose it at the same moment.
            self.folder.mkdir(parents=True, exist_ok=self.kept)
            if self.kept and self.rank == 0:
                self._hold()
                self._look_again()
                body = json.dumps(self.settings, indent=1) + "\n"
                write_atomically(self.folder / SETTINGS, body.encode())
                for path, base, _ in self._parts():
                    # They were put together, and then it was killed; or it was before a line.
                    if base != self.base or not path.stat().st_size:
                        path.unlink()
            kinds = [BESIDE] * self.writer.keeps + [LINES] * self.kept
            self._files = {kind: Lines(self._part(kind)) for kind in kinds}
            if self.world > 1:
                self.before = self._files[LINES].count()
            for lines in self._files.values():
                lines.cut(self.before if self.world > 1 else self.base)

    def _hold(self) -> None:
        """Raises :class:`InputError` where another process holds the folder."""
        import filelock

        assert self.folder is not None
        lock = filelock.FileLock(self.folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise InputError(
                f"Another process is predicting into {self.folder} at this moment. Wait for it to "
                "end, or give --out the name of a new folder."
            ) from error
        self._lock = lock

    def _look_again(self) -> None:
        """Raises :class:`InputError` if another process wrote to the folder since :meth:`check`."""
        assert self.folder is not None
        begun_meanwhile = (self.folder / SETTINGS).exists() and not self.begun
        if Lines(self.folder / LINES).count() != self.base or begun_meanwhile:
            raise InputError(
                f"Another process has predicted into {self.folder} since this one began. Give "
                "--out the name of a new folder, or go on with what is in it by --resume."
            )

    def _part(self, kind: str, rank: int | None = None) -> Path:
        """This process's file, or another's."""
        assert self.folder is not None
        if self.world == 1:
            return self.folder / kind
        stem = kind.removesuffix(".jsonl")
        whose = self.rank if rank is None else rank
        return self.folder / f"{stem}.{self.base}.{whose}-of-{self.world}.jsonl"

    def _parts(self) -> Iterator[tuple[Path, int, int]]:
        """(path, base, of how many) of all processes' files that are there."""
        assert self.folder is not None
        for kind in (LINES, BESIDE):
            for path in self.folder.glob(f"{kind.removesuffix('.jsonl')}.*-of-*.jsonl"):
                _, base, share, _ = path.name.rsplit(".", 3)
                yield path, int(base), int(share.split("-of-")[1])

    # Going on ------------------------------------------------------------------------------------

    def left(self, items: Iterable[Item]) -> Iterator[tuple[Item, dict[str, str]]]:
        """The items that are this process's to do and are not done, and the names of their files by
        kind. Raises :class:`InputError` if what was done is not what comes first."""
        old = self._old()
        for k, item in enumerate(items):
            names = json.dumps([item.name, item.name2])  # which keeps what is no letter
            self._seen.update(f"{names}\n".encode())
            files = self._named(item.stem)
            if k >= self.base and (k - self.base) % self.world != self.rank:
                continue
            said = next(old, None)
            if said is None:
                yield item, files
                continue
            if said["path"] != item.name or said.get("path2", item.name2) != item.name2:
                raise InputError(
                    f"Line {k + 1} of {self.folder}'s answers is about {said['path']}, and number "
                    f"{k + 1} of the images is now {item.name}. Name the same images in the same "
                    "order, or give --out the name of a new folder."
                )
            if k >= self.base or self.rank == 0:
                self.totals.add(said)
        if (said := next(old, None)) is not None:
            raise InputError(
                f"{self.folder} has more answers than there are images now; the first is about "
                f"{said['path']}. Name the same images again, or give --out the name of a new "
                "folder."
            )

    def _old(self) -> Iterator[dict[str, Any]]:
        """What is said in the lines that are there: all processes', and then this one's own."""
        if not self.kept or self.folder is None:
            return
        own = Lines(self._part(LINES)) if self.world > 1 else None
        for lines, count in ((Lines(self.folder / LINES), self.base), (own, self.before)):
            for number, line in enumerate(itertools.islice(lines.read(), count) if lines else ()):
                said = _object(line, f"line {number + 1} of {lines and lines.path}")
                if "path" not in said:
                    raise InputError(f"Line {number + 1} of {lines and lines.path} names no path.")
                yield said

    @property
    def seen(self) -> str:
        """The hash of all items' names, this process's and the others'. Of processes that share the
        work it is the same in the end, unless files came or went meanwhile."""
        return str(self._seen.hexdigest())

    def _named(self, stem: str) -> dict[str, str]:
        """Names that no item before has: with -2, -3 … where the plain ones are taken. They depend
        on the items alone, so that each has the same after a restart and in any process."""
        if len(os.fsencode(stem)) > STEM:
            stem = os.fsencode(stem)[:STEM].decode("utf-8", "ignore")
        for number in itertools.count(self._numbers.get(stem, 1)):
            files = self.writer.files(stem, "" if number == 1 else f"-{number}")
            folded = {name.casefold() for name in files.values()}
            if not folded & self._names:
                self._names |= folded
                if number > 1:
                    self._numbers[stem] = number + 1
                return files
        raise AssertionError("there is a name for each")

    @contextlib.contextmanager
    def places(self, files: dict[str, str]) -> Iterator[Places]:
        """Where to write files that get their names when all of them are whole."""
        if not files:
            yield Places({}, {})
            return
        self.open()
        assert self.folder is not None
        with writing_to(self.folder):
            parts = self.folder / PARTS / str(self.rank)
            parts.mkdir(parents=True, exist_ok=True)
            part = {kind: parts / name for kind, name in files.items()}
            yield Places(part, {kind: str(self.folder / name) for kind, name in files.items()})
            for kind, path in part.items():
                if path.exists():
                    os.replace(path, self.folder / files[kind])

    def add(self, said: dict[str, Any], beside: Any = None) -> None:
        """An answer, or an "error". Errors wait for the first answer: where there is none, nothing
        is written."""
        self.totals.add(said)
        if self.folder is None:
            return
        if self._files is None and is_error(said):
            self._waiting.append(said)
            return
        self.open()
        assert self._files is not None
        with writing_to(self.folder):
            for one, kept in (*((error, None) for error in self._waiting), (said, beside)):
                for kind, lines in self._files.items():
                    lines.add(as_line(one if kind == LINES else kept))
        self._waiting.clear()

    # Ending --------------------------------------------------------------------------------------

    def finish(self, befores: list[int]) -> Iterator[dict[str, Any]]:
        """Put all together. Of several processes the first one does, when all are done; ``befores``
        is each one's :attr:`before`. Gives, of those, what is said in the new lines."""
        if self._files is None or self.folder is None:
            return
        with writing_to(self.folder):
            for lines in self._files.values():
                lines.close()
            if self.world > 1:
                for kind in self._files:
                    self._join(kind)
            beside = map(json.loads, Lines(self.folder / BESIDE).read())
            self.writer.finish(beside if self.writer.keeps else ())
            if not self.kept:
                (self.folder / BESIDE).unlink(missing_ok=True)
            if self.world > 1:
                yield from self._new(befores)
                for path, _, _ in self._parts():
                    path.unlink()

    def _join(self, kind: str) -> None:
        assert self.folder is not None
        path = self.folder / kind
        part = path.with_name(f".{kind.strip('.')}.part")
        with open(part, "w", encoding="utf-8") as file:
            file.writelines(itertools.islice(Lines(path).read(), self.base))
            file.writelines(line for _, _, line in self._in_turn(kind))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def _in_turn(self, kind: str) -> Iterator[tuple[int, int, str]]:
        """(process, number of its line, line) in the items' order."""
        shares = [Lines(self._part(kind, rank)).read() for rank in range(self.world)]
        for number in itertools.count():
            for rank, share in enumerate(shares):
                line = next(share, None)
                if line is None:  # each has as many as the next one, or one more
                    return
                yield rank, number, line

    def _new(self, befores: list[int]) -> Iterator[dict[str, Any]]:
        for rank, number, line in self._in_turn(LINES):
            if number >= befores[rank]:
                yield json.loads(line)

    def close(self) -> None:
        if self.folder is None:
            return
        if self._files is not None:
            for lines in self._files.values():
                lines.close()
            shutil.rmtree(self.folder / PARTS / str(self.rank), ignore_errors=True)
            with contextlib.suppress(OSError):  # others' may be in it
                (self.folder / PARTS).rmdir()
        if self._lock is not None:
            # While it is held: afterwards it would be another's. Windows keeps an open file, which
            # does no harm.
            with contextlib.suppress(OSError):
                (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None


def _is_beginning(path: Path) -> bool:
    """Whether a file is what a process leaves that was killed before it had an answer."""
    if path.name in (LOCK, f".{SETTINGS}.part"):
        return True
    is_lines = path.name.startswith((f"{Path(LINES).stem}.", ".beside."))
    return is_lines and path.is_file() and not path.stat().st_size


def begun(folder: Path) -> dict[str, Any]:
    """The settings with which a folder was begun; none, where it was not."""
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    return _object(path.read_text(encoding="utf-8", errors="replace"), str(path))


def as_line(value: Any, encoding: str = "utf-8") -> str:
    """JSON on one line. Letters stay as they are, where the encoding has them."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is no JSON ({error}).") from error
    if not isinstance(body, dict):
        raise InputError(f"{where} is no JSON object.")
    return body
