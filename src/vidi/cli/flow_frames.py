"""`vidi predict` for flow: pairs of frames, folders of frames and videos, and what is written."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidi.cli.sources import Item, Sources, always, is_camera, nothing
from vidi.cli.written import Places, Writes
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.engine.flow_fields import FlowField

_FILES = {"flo": ".flo", "kitti": "-kitti.png", "picture": "-flow.png", "warped": "-warped.png"}


def pairs(sources: Sources, pair: tuple[str, str] | None) -> Iterator[Item]:
    """``pair``, and then all pairs of consecutive frames."""
    if pair is not None:
        yield Item(pair[0], Path(pair[0]).stem, always(pair), name2=pair[1])
    for place in sources.places():
        path = place.path
        if isinstance(path, InputError):
            yield nothing(place.word, path)
            continue
        try:
            yield from (
                _folder(Path(path), sources) if os.path.isdir(path) else _video(path, sources)
            )
        except InputError as error:
            yield nothing(place.word, error)


def _folder(folder: Path, sources: Sources) -> Iterator[Item]:
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
        sources.say(
            f"the frame after {some(gaps)} is missing in {folder}; from there no motion is told."
        )
    for stem in in_order(after):
        first, second = str(frames[stem]), str(frames[after[stem]])
        yield Item(first, stem, always((first, second)), name2=second)


def _video(path: str, sources: Sources) -> Iterator[Item]:
    """Consecutive frames of a video or camera, as it is read; of a video's with ``--every N`` those
    that are N apart. Of a frame that cannot be decoded there is no motion, to it or from it. Raises
    :class:`InputError` for what is none."""
    from vidi.data.formats.folders import is_image

    if not is_camera(path) and not os.path.exists(path):
        raise InputError(f"There is no file or folder at {path}.")
    if is_image(path):
        raise InputError(
            f"{path} is one image; flow needs two. Name both with --pair, or a folder of frames, "
            "or a video."
        )
    last: tuple[int, Any] | None = None
    several = False
    for frame in sources.frames(path):
        try:
            image = frame.image()
        except InputError as error:
            yield nothing(frame.name, error)
            last, several = None, True
            continue
        number = int(frame.name.rpartition("#")[2])
        if last is not None:
            several = True
            before, first = last
            names = (f"{path} frame {before}", f"{path} frame {number}")
            stem = f"{frame.stem.rpartition('-')[0]}-{before:06d}"
            yield Item(names[0], stem, always((first, image)), name2=names[1])
        last = number, image
    if not several:
        raise InputError(f"{path} has one frame, and flow needs two.")


@dataclass
class Writer(Writes):
    """Each pair's flow, as .flo and KITTI's PNG and in colours, and the second frame warped
    back."""

    def files(self, stem: str, mark: str) -> dict[str, str]:
        return {kind: f"{stem}{mark}{end}" for kind, end in _FILES.items()}

    def write(self, field: FlowField, image: Any, places: Places) -> dict[str, Any]:
        from vidi.data.flowfiles import write_flo, write_kitti
        from vidi.report import flow_pictures

        write_flo(places.part["flo"], field.flow)
        _, beyond = write_kitti(places.part["kitti"], field.flow)
        flow_pictures.save(flow_pictures.picture(field.flow), places.part["picture"])
        flow_pictures.save(field.warped, places.part["warped"])
        if beyond:
            print(
                f"vidi: {places.said['kitti']}: {beyond:,} pixels move farther than KITTI's files "
                "can say, and are written as not known.",
                file=sys.stderr,
            )
        errors = {
            "photometric_error": field.photometric_error,
            "photometric_error_zero": field.photometric_error_zero,
        }
        return {
            "path": field.path,
            "path2": field.path2,
            **places.said,
            **{name: None if math.isnan(v) else v for name, v in errors.items()},
        }

    def text(self, said: dict[str, Any]) -> str:
        fits = "it leaves the frame everywhere"
        if said["photometric_error"] is not None:
            fits = (
                f"photometric error {said['photometric_error']:.2f} (without motion "
                f"{said['photometric_error_zero']:.2f})"
            )
        return f"{said['path']} → {os.path.basename(said['path2'])}: {fits}; {said['flo']}"
