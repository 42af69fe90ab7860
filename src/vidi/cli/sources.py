"""What `vidi predict` is to look at: from the words on the command line to images, one by one.

Nothing is opened before its turn, and of a folder only the names of one level are held at a time.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidi.errors import InputError

STDIN = "-"
VIDEOS = frozenset({
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv",
    ".3gp", ".mjpeg",
})  # fmt: skip
_CAMERA = re.compile(r"camera:(\d+)")


@dataclass(frozen=True)
class Item:
    """Something to predict. ``name``: how it is called. ``stem``: how its files are called.
    ``image`` gives what :meth:`vidi.api.Model.stream` takes, or raises the InputError that says why
    there is nothing; it is called before the next item is asked for, or not at all. ``name2``: the
    second frame of a pair."""

    name: str
    stem: str
    image: Callable[[], Any]
    name2: str | None = None


@dataclass(frozen=True)
class Place:
    """``word``: as it was named. ``path``: a path or camera that it stands for; an InputError where
    there is none. ``apart``: paths below it that are places of their own."""

    word: str
    path: str | InputError
    apart: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Sources:
    """``words``: as they were typed. ``listed``: a file of more of them, one a line. ``every``: N
    takes the frames 1, 1 + N, 1 + 2N … of a video. ``skip``: a folder of which nothing is taken,
    since we write there. ``say`` hears what should be known."""

    words: tuple[str, ...]
    listed: str | None = None
    every: int = 1
    skip: Path | None = None
    say: Callable[[str], None] = print

    @property
    def camera(self) -> bool:
        return any(map(is_camera, self.words))

    @property
    def piped(self) -> bool:
        """Whether names come from what is no file, and are gone once they are read."""
        return STDIN in self.words or (self.listed is not None and _is_pipe(self.listed))

    def check(self, *, shared: bool, resume: bool) -> None:
        """Raises :class:`InputError` for what several processes cannot share, or does not come
        again."""
        cameras = list(filter(is_camera, self.words))
        if cameras and resume:
            raise InputError(f"{cameras[0]} does not show the same again, so there is no --resume.")
        if cameras and shared:
            raise InputError(f"Several processes cannot share {cameras[0]}. Leave torchrun out.")
        if self.piped and shared:
            stdin = STDIN in self.words
            what = "standard input" if stdin else f"{self.listed}, which is no file"
            raise InputError(
                f"Several processes cannot share {what}. Write the list to a file and name that "
                "with --list."
            )

    def places(self) -> Iterator[Place]:
        """In order. Raises :class:`InputError` for a list that cannot be read."""
        for place in self._places():
            if isinstance(place.path, InputError) or not _within(place.path, self.skip):
                yield place

    def _places(self) -> Iterator[Place]:
        for word in self.words:
            if word == STDIN:
                yield from map(_on_a_line, _lines(sys.stdin.buffer))
            elif is_camera(word):
                yield Place(word, word)
            elif glob.has_magic(word) and not os.path.lexists(os.path.expanduser(word)):
                yield from _matches(word)
            else:
                yield Place(word, _plain(os.path.expanduser(word)))
        if self.listed is not None:
            try:
                with open(os.path.expanduser(self.listed), "rb") as file:
                    yield from map(_on_a_line, _lines(file))
            except OSError as error:
                raise InputError(
                    f"The list {self.listed} cannot be read: {error.strerror or error}. It should "
                    "be a text file with a path on each line."
                ) from error

    def items(self) -> Iterator[Item]:
        """All images and frames."""
        for place in self.places():
            path = place.path
            if isinstance(path, InputError):
                yield nothing(place.word, path)
            elif os.path.isdir(path):
                yield from self._below(place, path)
            elif is_camera(path) or is_video(path):
                yield from self.frames(path)
            else:
                yield _file(path)

    def _below(self, place: Place, folder: str) -> Iterator[Item]:
        found = False
        for item in _walked(folder, self.skip, place.apart):
            found = True
            yield item
        if not found and not place.apart:
            yield nothing(place.word, InputError(f"The folder {place.word} holds no images."))

    def frames(self, source: str) -> Iterator[Item]:
        """A video's or camera's frames, the first one is number 1, as uint8 RGB [H, W, 3]; an item
        that raises :class:`InputError` where there is none."""
        import cv2

        number = _CAMERA.fullmatch(source)
        stem = source.replace(":", "-") if number else Path(source).stem
        with _silent():
            video = cv2.VideoCapture(int(number[1]) if number else source)
            try:
                declared = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
                count = 0
                while video.isOpened() and video.grab():
                    count += 1
                    if (count - 1) % self.every == 0:
                        name = f"{source}#{count}"
                        yield Item(
                            name, f"{stem}-{count:06d}", functools.partial(_frame, video, name)
                        )
            finally:
                video.release()
        if not count:
            yield nothing(source, InputError(_no_frame(source, number is not None)))
        elif count < declared and number is None:
            self.say(f"of the {declared:,} frames that {source} declares {count:,} could be read.")

    def count(self) -> int | None:
        """How many items there are, as far as names and headers tell; None: only time will tell."""
        if self.camera or self.piped:
            return None
        total = 0
        for place in self.places():
            if isinstance(place.path, InputError):
                total += 1
            elif os.path.isdir(place.path):
                total += sum(1 for _ in self._below(place, place.path))
            elif is_video(place.path):
                total += -(-_declared(place.path) // self.every) or 1
            else:
                total += 1
        return total


def is_camera(word: str) -> bool:
    return _CAMERA.fullmatch(word) is not None


def is_video(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEOS


def always(image: Any) -> Callable[[], Any]:
    """For :attr:`Item.image`, where nothing has to be done for it."""
    return lambda: image


def nothing(name: str, error: InputError) -> Item:
    """What stands where a source gives no image."""

    def image() -> Any:
        raise error

    return Item(name, Path(name).stem, image)


def some(items: Iterable[Item], sources: Sources) -> Iterator[Item]:
    """The items. Raises :class:`InputError` where there is none at all."""
    found = False
    for item in items:
        found = True
        yield item
    if not found:
        where = "What was named" if sources.words else f"The list {sources.listed}"
        if set(sources.words) == {STDIN} and sources.listed is None:
            where = "Standard input"
        raise InputError(f"{where} names no image. What lies in --out is never taken.")


def _matches(pattern: str) -> Iterator[Place]:
    """What a pattern stands for; an InputError if that is nothing. ``**`` matches folders and what
    is in them: then each has its own place."""
    found = glob.glob(os.path.expanduser(pattern), recursive=True)
    if not found:
        yield Place(pattern, InputError(f"Nothing matches {pattern}."))
    paths = list(dict.fromkeys(map(_plain, found)))
    apart = frozenset(paths if "**" in pattern else ())
    for path in sorted(paths, key=lambda path: path.split(os.sep)):
        yield Place(pattern, path, apart)


def _on_a_line(line: str) -> Place:
    """What a line of a list names."""
    if "\0" in line:
        return Place(
            line.replace("\0", "\\0"),
            InputError("A line of the list holds a NUL. Paths are to be divided by line ends."),
        )
    if is_camera(line):
        return Place(
            line, InputError(f"{line} is in a list. Cameras are named on the command line alone.")
        )
    return Place(line, _plain(os.path.expanduser(line)))


def _plain(path: str) -> str:
    """As pathlib writes it: without "./" and doubled slashes."""
    return str(Path(path))


def _is_pipe(listed: str) -> bool:
    path = os.path.expanduser(listed)
    return os.path.exists(path) and not os.path.isfile(path)


def _lines(file: Any) -> Iterator[str]:
    """The lines of an open binary file that are not empty."""
    for line in file:
        if text := os.fsdecode(line).rstrip("\r\n"):
            yield text


def _file(path: str) -> Item:
    return Item(path, os.path.splitext(os.path.basename(path))[0], always(path))


def _walked(folder: str, skip: Path | None, apart: Collection[str] = ()) -> Iterator[Item]:
    """The images below a folder, in the order of their paths' parts; links to folders are not
    followed. Without ``skip`` and the paths in ``apart``."""
    from vidi.data.formats.folders import is_image
    from vidi.data.images import unreadable

    try:
        with os.scandir(folder) as entries:
            names = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries)
    except OSError as error:
        yield nothing(folder, InputError(unreadable(folder, error)))
        return
    start = "" if folder == "." else folder.rstrip("/") + "/"
    for name, is_folder in names:
        path = start + name
        if path in apart:
            continue
        if is_folder:
            if not _within(path, skip):
                yield from _walked(path, skip, apart)
        elif is_image(name) and not name.startswith("."):
            yield _file(path)


def _within(path: str, folder: Path | None) -> bool:
    """Whether a path is the folder or lies in it."""
    if folder is None or folder.name not in os.path.abspath(path):  # the quick answer
        return False
    inner, outer = Path(path).resolve(), folder.resolve()
    return inner == outer or outer in inner.parents


def _frame(video: Any, name: str) -> Any:
    import cv2

    there, frame = video.retrieve()
    if not there:
        raise InputError(f"The frame {name} cannot be decoded.")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _declared(path: str) -> int:
    import cv2

    with _silent():
        video = cv2.VideoCapture(path)
        try:
            return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))) if video.isOpened() else 0
        finally:
            video.release()


def _no_frame(source: str, camera: bool) -> str:
    if camera:
        return (
            f"There is no picture from {source}: no such camera is connected, another program has "
            "it, or this user may not use it. The first one is camera:0."
        )
    if not os.path.exists(source):
        return f"{source} does not exist."
    return f"{source} is no video that can be read."


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What OpenCV has to say against a video is in our sentence."""
    import cv2

    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(before)
