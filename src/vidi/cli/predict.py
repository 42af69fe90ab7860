"""Say what a run sees in images: class and probability."""

from __future__ import annotations

import contextlib
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

CHUNK = 64
"""Images predicted before their lines are printed."""


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
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object a line."""


def main(arguments: Sequence[str]) -> int:
    """1 if some image could not be read (the others are predicted), 2 if none could."""
    told = parse(Predict, arguments, prog="vidi predict")
    if not told.sources:
        raise InputError("There is nothing to predict. Name images or folders after the run.")
    if told.top < 1:
        raise InputError(f"--top is {told.top}; at least 1 class can be shown.")

    from vidi import api

    with contextlib.redirect_stdout(sys.stderr):
        model = api.load(told.run)
    images, unread = _expand(told.sources)
    for sentence in unread:
        print(f"vidi: {sentence}", file=sys.stderr)
    done, failed = 0, len(unread)
    for start in range(0, len(images), CHUNK):
        for result in _predict(model, images[start : start + CHUNK], told.flip):
            if isinstance(result, InputError):
                print(f"vidi: {result}", file=sys.stderr)
                failed += 1
            else:
                _show(result, model.classes, told)
                done += 1
        sys.stdout.flush()
    if failed and done:
        print(f"vidi: {failed} could not be read; {done} were predicted.", file=sys.stderr)
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


def _show(prediction: Prediction, classes: Sequence[str], told: Predict) -> None:
    likeliest = np.argsort(-prediction.probabilities, kind="stable")[: told.top]
    top: list[Any] = [[classes[k], float(prediction.probabilities[k])] for k in likeliest]
    if told.json:
        print(
            json.dumps(
                {
                    "path": prediction.path,
                    "label": prediction.label,
                    "probability": prediction.probability,
                    "labels": prediction.labels,
                    "top": top,
                }
            )
        )
    else:
        print(f"{prediction.path}: " + ", ".join(f"{name} {p:.3f}" for name, p in top))
