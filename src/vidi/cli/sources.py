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
from collections.abc import Callable, Iterator, Sequence
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
class Sources:
    """``words``: as they were typed. ``listed``: a file of more of them, one a line. ``every``: N
    takes the frames 1, 1 + N, 1 + 2N … of a video. ``skip``: a folder that is not looked into,
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
    def stdin(self) -> bool:
        return STDIN in self.words

    def places(self) -> Iterator[tuple[str, str | InputError]]:
        """(the word, a path or camera that it stands for), in order; in the place of a pattern that
        nothing matches an InputError. Raises :class:`InputError` for a list that cannot be read."""
        for word in self.words:
            if word == STDIN:
                for line in _lines(sys.stdin.buffer):
                    yield line, _plain(line)
            elif is_camera(word):
                yield word, word
            elif glob.has_magic(word) and not os.path.lexists(os.path.expanduser(word)):
                found = glob.glob(os.path.expanduser(word), recursive=True)
                if not found:
                    yield word, InputError(f"Nothing matches {word}.")
                for path in sorted(found, key=lambda path: path.split(os.sep)):
                    yield word, _plain(path)
            else:
                yield word, _plain(word)
        if self.listed is not None:
            try:
                with open(os.path.expanduser(self.listed), "rb") as file:
                    for line in _lines(file):
                        yield line, _plain(line)
            except OSError as error:
                raise InputError(
                    f"The list {self.listed} cannot be read: {error.strerror or error}. It should "
                    "be a text file with a path on each line."
                ) from error

    def items(self) -> Iterator[Item]:
        """All images and frames."""
        for word, place in self.places():
            if isinstance(place, InputError):
                yield nothing(word, place)
            elif is_camera(place) or is_video(place):
                yield from self.frames(place)
            elif os.path.isdir(place):
                yield from self._below(word, place)
            else:
                yield _file(place)

    def _below(self, word: str, folder: str) -> Iterator[Item]:
        found = False
        for item in _walked(folder, self.skip):
            found = True
            yield item
        if not found:
            yield nothing(word, InputError(f"The folder {word} holds no images."))

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
        if self.camera or self.stdin:
            return None
        total = 0
        for _, place in self.places():
            if isinstance(place, InputError):
                total += 1
            elif is_video(place):
                total += -(-_declared(place) // self.every) or 1
            elif os.path.isdir(place):
                total += sum(1 for _ in _walked(place, self.skip)) or 1
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


def _plain(path: str) -> str:
    """As pathlib writes it: without "./" and doubled slashes."""
    return str(Path(path).expanduser())


def _lines(file: Any) -> Iterator[str]:
    """The lines of an open binary file that are not empty."""
    for line in file:
        if text := os.fsdecode(line).rstrip("\r\n"):
            yield text


def _file(path: str) -> Item:
    return Item(path, os.path.splitext(os.path.basename(path))[0], always(path))


def _walked(folder: str, skip: Path | None) -> Iterator[Item]:
    """The images below a folder, in the order of their paths' parts; links to folders are not
    followed."""
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
        if is_folder:
            if skip is None or not _same(path, skip):
                yield from _walked(path, skip)
        elif is_image(name) and not name.startswith("."):
            yield _file(path)


def _same(path: str, skip: Path) -> bool:
    return os.path.basename(path) == skip.name and Path(path).resolve() == skip.resolve()


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


def check(sources: Sequence[str], *, shared: bool, resume: bool) -> None:
    """Raises :class:`InputError` for sources that several processes cannot share, or that do not
    come again."""
    cameras = list(filter(is_camera, sources))
    if cameras and resume:
        raise InputError(f"{cameras[0]} does not show the same again, so there is no --resume.")
    if cameras and shared:
        raise InputError(f"Several processes cannot share {cameras[0]}. Leave torchrun out.")
    if STDIN in sources and shared:
        raise InputError(
            "Several processes cannot share standard input. Write the list to a file and name that "
            "with --list."
        )
