"""`vidi predict` for flow: pairs of frames, folders of frames and videos, and what is written."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidi.cli.one_by_one import predicted
from vidi.cli.outputs import free_name, new_folder, writing_to
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.api import Model
    from vidi.engine.flow_fields import FlowField

CHUNK = 4
"""Pairs that go through the network before their lines are printed."""
ALONE = 2_000_000
"""Pixels of a frame, above which a pair goes through it alone, for the memory that it takes."""


@dataclass(frozen=True)
class FramePair:
    """``first``, ``second``: paths, or frames of a video, uint8 RGB [H, W, 3]. ``names``: how they
    are called. ``stem``: what the files that are written are called."""

    first: Any
    second: Any
    names: tuple[str, str]
    stem: str


def predict(
    model: Model,
    sources: Sequence[str],
    pair: tuple[str, str] | None,
    out: str | None,
    *,
    flip: bool = False,
    json_lines: bool = False,
) -> int:
    """1 if some pair could not be read (the others are predicted), 2 if none could."""
    folder = new_folder(out, "predictions")
    done = failed = 0
    found = _all(sources, pair)
    while some := list(islice(found, CHUNK)):
        pairs = [one for one in some if isinstance(one, FramePair)]
        for one, result in _predicted(model, pairs, flip):
            if isinstance(result, InputError):
                some.append(result)
                continue
            field = dataclasses.replace(result, path=one.names[0], path2=one.names[1])
            _write(field, one.stem, folder, json_lines=json_lines)
            done += 1
        for error in some:
            if isinstance(error, InputError):
                print(f"vidi: {error}", file=sys.stderr)
                failed += 1
        sys.stdout.flush()
    if failed and done:
        print(f"vidi: {failed} could not be read; {done} pairs were predicted.", file=sys.stderr)
    return 0 if not failed else 1 if done else 2


def _all(sources: Sequence[str], pair: tuple[str, str] | None) -> Iterator[FramePair | InputError]:
    """All pairs, and an InputError in the place of what gives none."""
    if pair is not None:
        yield FramePair(*pair, names=pair, stem=Path(pair[0]).stem)
    for source in sources:
        try:
            path = Path(source).expanduser()
            yield from _folder(path) if path.is_dir() else _video(path)
        except InputError as error:
            yield error


def _folder(folder: Path) -> Iterator[FramePair]:
    """Consecutive frames. Raises :class:`InputError` where there are not two."""
    from vidi.data.boxes import some
    from vidi.data.flow_layout import in_order, successors
    from vidi.data.formats.folders import is_image
    from vidi.data.images import unreadable

    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise InputError(unreadable(str(folder), error)) from error
    frames: dict[str, Path] = {}
    for path in paths:
        if is_image(path.name) and not path.name.startswith("."):
            if path.stem in frames:
                raise InputError(f"{folder} has two frames called {path.stem}. Keep one of them.")
            frames[path.stem] = path
    after, gaps = successors(folder, frames)
    if not after:
        raise InputError(
            f"{folder} holds {len(frames) or 'no'} frame{'' if len(frames) == 1 else 's'}"
            f"{', no two of one numbered sequence' if len(frames) > 1 else ''}; flow needs a frame "
            "and the next one."
        )
    if gaps:
        print(
            f"vidi: the frame after {some(gaps)} is missing in {folder}; from there no motion is "
            "told.",
            file=sys.stderr,
        )
    for stem in in_order(after):
        first, second = frames[stem], frames[after[stem]]
        yield FramePair(first, second, (str(first), str(second)), stem)


def _video(path: Path) -> Iterator[FramePair]:
    """Consecutive frames of a video, as it is read. Raises :class:`InputError` for what is none."""
    import cv2

    from vidi.data.formats.folders import is_image

    if not path.exists():
        raise InputError(f"There is no file or folder at {path}.")
    if is_image(path.name):
        raise InputError(
            f"{path} is one image; flow needs two. Name both with --pair, or a folder of frames, "
            "or a video."
        )
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        video = cv2.VideoCapture(str(path))
        declared = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
        last, count = None, 0
        while True:
            there, frame = video.read()
            if not there:
                break
            count += 1
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            if last is not None:
                names = (f"{path} frame {count - 1}", f"{path} frame {count}")
                yield FramePair(last, frame, names, f"{path.stem}-{count - 1:06d}")
            last = frame
        video.release()
    finally:
        cv2.utils.logging.setLogLevel(before)
    if count < 2:
        what = "has one frame, and flow needs two" if count else "is no video that can be read"
        raise InputError(f"{path} {what}.")
    if count < declared:
        print(
            f"vidi: of the {declared:,} frames that {path} declares {count:,} could be read.",
            file=sys.stderr,
        )


def _predicted(
    model: Model, pairs: Sequence[FramePair], flip: bool
) -> Iterator[tuple[FramePair, Any]]:
    """Each pair and its flow field, or the InputError that says why there is none."""

    def predict(some: Sequence[FramePair]) -> list[Any]:
        return model.predict([(one.first, one.second) for one in some], flip=flip)

    size = 1 if any(_pixels(one.first) > ALONE for one in pairs) else CHUNK
    for start in range(0, len(pairs), size):
        yield from predicted(predict, pairs[start : start + size])


def _pixels(frame: Any) -> int:
    """0 for what cannot be read: that is told where it is predicted."""
    from vidi.data.images import read_file_header

    if not isinstance(frame, str | Path):
        return int(frame.shape[0] * frame.shape[1])
    try:
        return math.prod(read_file_header(str(frame)).size)
    except InputError:
        return 0


def _write(field: FlowField, stem: str, folder: Path, *, json_lines: bool) -> None:
    """The flow as .flo and KITTI's PNG and in colours, and the second frame warped back."""
    from vidi.data.flowfiles import write_flo, write_kitti
    from vidi.report import flow_pictures

    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # All files of a pair have one name; --pair and a folder may bring the same one twice.
        stem = free_name(folder, stem, ".flo").stem
        names = {"flo": ".flo", "kitti": "-kitti.png", "picture": "-flow.png"}
        paths = {k: folder / f"{stem}{end}" for k, end in names.items()}
        paths["warped"] = folder / f"{stem}-warped.png"
        write_flo(paths["flo"], field.flow)
        _, beyond = write_kitti(paths["kitti"], field.flow)
        flow_pictures.save(flow_pictures.picture(field.flow), paths["picture"])
        flow_pictures.save(field.warped, paths["warped"])
    if beyond:
        print(
            f"vidi: {paths['kitti']}: {beyond:,} pixels move farther than KITTI's files can say, "
            "and are written as not known.",
            file=sys.stderr,
        )
    errors = {
        "photometric_error": field.photometric_error,
        "photometric_error_zero": field.photometric_error_zero,
    }
    if json_lines:
        said: dict[str, Any] = {"path": field.path, "path2": field.path2}
        said |= {name: str(path) for name, path in paths.items()}
        said |= {k: None if math.isnan(v) else v for k, v in errors.items()}
        print(json.dumps(said))
        return
    fits = "it leaves the frame everywhere"
    if not math.isnan(field.photometric_error):
        fits = (
            f"photometric error {field.photometric_error:.2f} (without motion "
            f"{field.photometric_error_zero:.2f})"
        )
    print(f"{field.path} → {os.path.basename(field.path2)}: {fits}; {paths['flo']}")
