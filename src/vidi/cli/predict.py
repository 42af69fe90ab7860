"""Say what a run sees in images: class and probability, and where, as heat maps."""

from __future__ import annotations

import contextlib
import difflib
import glob
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.api import Model, Prediction
    from vidi.engine.heatmaps import HeatMap

CHUNK = 64
"""Images predicted before their lines are printed."""
SHEET = 24
"""Heat maps on the sheet."""


@dataclass(frozen=True)
class Predict:
    """Say what a run sees in images: class and probability, one line each.

    vidi predict runs/photos-resnet18 cat.jpg holiday/
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The folder that `vidi train` wrote."""
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE...")]
    """Images, folders (all images below them) and patterns such as 'new/*.jpg'."""
    top: int = 5
    """As many of the likeliest classes are printed."""
    flip: FlagCreatePairsOff[bool] = False
    """Average each image's prediction with its mirror image's."""
    heatmap: FlagCreatePairsOff[bool] = False
    """Draw where each image's likeliest class is, one picture an image, and a sheet of the first
    24. The network slides over the image, so it needs no annotation of places."""
    label: Annotated[str | None, arg(name="class", metavar="NAME")] = None
    """The class that --heatmap shows. none = each image's likeliest."""
    enlarge: float = 2.0
    """For --heatmap, the image's shorter side in sides of the training images: more show smaller
    things."""
    out: Annotated[str | None, arg(metavar="DIR")] = None
    """The folder for the pictures, new or empty. none = heatmaps, or heatmaps-2 …"""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object a line."""


def main(arguments: Sequence[str]) -> int:
    """1 if some image could not be read (the others are predicted), 2 if none could."""
    told = parse(Predict, arguments, prog="vidi predict")
    if not told.sources:
        raise InputError("There is nothing to predict. Name images or folders after the run.")
    if told.top < 1:
        raise InputError(f"--top is {told.top}; at least 1 class can be shown.")

    if not told.heatmap and (told.label is not None or told.out is not None):
        raise InputError("--class and --out are for pictures; say --heatmap with them.")

    from vidi import api

    with contextlib.redirect_stdout(sys.stderr):
        model = api.load(told.run)
    images, unread = _expand(told.sources)
    for sentence in unread:
        print(f"vidi: {sentence}", file=sys.stderr)
    folder = _folder(told, model) if told.heatmap else None
    sheet: list[HeatMap] = []
    done, failed = 0, len(unread)
    for start in range(0, len(images), CHUNK):
        for result in _predict(model, images[start : start + CHUNK], told.flip):
            if isinstance(result, InputError):
                print(f"vidi: {result}", file=sys.stderr)
                failed += 1
                continue
            picture = None
            if folder is not None:
                try:
                    found, picture = _draw(model, result.path, told, folder)
                    sheet += [found] if len(sheet) < SHEET else []
                except InputError as error:
                    print(f"vidi: {error}", file=sys.stderr)
                    failed += 1
            _show(result, model.classes, told, picture)
            done += 1
        sys.stdout.flush()
    if folder is not None and len(sheet) > 1:
        from vidi.report import heatmap

        heatmap.sheet(sheet, path := _free(folder, "heatmaps", ".png"))
        print(f"wrote {path}", file=sys.stderr)
    if failed and done:
        which = "read" if folder is None else "read or drawn"
        print(f"vidi: {failed} could not be {which}; {done} were predicted.", file=sys.stderr)
    return 0 if not failed else 1 if done else 2


def _expand(sources: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(images in order, a sentence for each source in which there is none)."""
    from vidi.data.formats.folders import is_image

    images: list[Path] = []
    unread = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            found = sorted(
                p for p in path.rglob("*") if is_image(p.name) and not p.name.startswith(".")
            )
            if not found:
                unread.append(f"The folder {source} holds no images.")
        elif not path.exists() and glob.has_magic(source):
            found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            if not found:
                unread.append(f"Nothing matches {source}.")
        else:
            found = [path]
        images += found
    return images, unread


def _predict(model: Model, images: Sequence[Path], flip: bool) -> Iterator[Prediction | InputError]:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = model.predict(images, flip=flip)
    except InputError as error:
        if len(images) == 1:
            yield error
        else:  # some of them cannot be read: one by one, it shows which, and the others get theirs
            for image in images:
                yield from _predict(model, [image], flip)
        return
    yield from found


def _folder(told: Predict, model: Model) -> Path:
    """Where the pictures go. Raises InputError before anything is predicted if they cannot."""
    if told.label is not None and told.label not in model.classes:
        near = difflib.get_close_matches(told.label, model.classes, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"This run knows no class {told.label!r}. {hint}It knows "
            f"{', '.join(model.classes[:20])}{' …' if len(model.classes) > 20 else '.'}"
        )
    if not 1 <= told.enlarge <= 8:
        raise InputError(f"--enlarge is {told.enlarge}; a number from 1 to 8 is expected.")
    if told.out is None:
        out = _free(Path(), "heatmaps", "")
    else:
        out = Path(told.out).expanduser()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            kind = "exists and is not empty" if out.is_dir() else "is a file"
            raise InputError(f"{out} {kind}. Give --out the name of a new folder.")
    with contextlib.redirect_stdout(sys.stderr):
        _ = model.convolutional  # says so if the network cannot be
    return out


def _draw(model: Model, image: str, told: Predict, folder: Path) -> tuple[HeatMap, Path]:
    from vidi.report import heatmap

    with contextlib.redirect_stdout(sys.stderr):
        found = model.heatmap(image, label=told.label, enlarge=told.enlarge)[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = _free(folder, Path(image).stem, ".png")
        heatmap.draw(found, path)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written to: {error.strerror or error}. Make room, or give --out "
            "another place."
        ) from error
    return found, path


def _free(folder: Path, stem: str, suffix: str) -> Path:
    """A name in the folder that nothing has: with -2, -3 … where the plain one is taken."""
    path, number = folder / f"{stem}{suffix}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path


def _show(
    prediction: Prediction, classes: Sequence[str], told: Predict, picture: Path | None
) -> None:
    likeliest = np.argsort(-prediction.probabilities, kind="stable")[: told.top]
    top: list[Any] = [[classes[k], float(prediction.probabilities[k])] for k in likeliest]
    if told.json:
        said: dict[str, Any] = {
            "path": prediction.path,
            "label": prediction.label,
            "probability": prediction.probability,
            "labels": prediction.labels,
            "top": top,
        }
        print(json.dumps(said if picture is None else said | {"heatmap": str(picture)}))
        return
    where = "" if picture is None else f"; {picture}"
    print(f"{prediction.path}: " + ", ".join(f"{name} {p:.3f}" for name, p in top) + where)
