"""Say what a run sees: classes, objects, masks, edges, flow."""

from __future__ import annotations

import contextlib
import difflib
import functools
import glob
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli import detected
from vidi.cli.arguments import parse
from vidi.cli.one_by_one import predicted
from vidi.cli.outputs import free_name, new_folder, writing_to
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.api import Model
    from vidi.engine.answers import BoundaryMap, Prediction, Segmentation
    from vidi.engine.heatmaps import HeatMap

CHUNK = {"detection": 8, "segmentation": 4, "boundaries": 4}
"""Images predicted before their lines are printed: 64, or fewer where each gives an image."""
SHEET = 24
"""Heat maps on the sheet."""
LEAST = 0.5


@dataclass(frozen=True)
class Predict:
    """Say what a run sees in images: classes, objects, masks, boundaries, motion.

    vidi predict runs/photos-resnet18 cat.jpg holiday/

    vidi predict runs/cells blood/ --least 0.7 --format coco

    vidi predict runs/motion --pair a.png b.png
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The folder that `vidi train` wrote."""
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE...")]
    """Images, folders (all images below them) and patterns such as 'new/*.jpg'. For flow: folders of consecutive frames, and videos."""  # noqa: E501
    pair: Annotated[tuple[str, str] | None, arg(metavar="FIRST SECOND")] = None
    """Flow: the first and the second frame."""
    top: int = 5
    """As many of the likeliest classes are printed."""
    flip: FlagCreatePairsOff[bool] = False
    """Average each image's prediction with its mirror image's."""
    scales: tuple[float, ...] = (1.0,)
    """Average over the image at these sizes, relative to its own (labels per pixel)."""
    thin: FlagCreatePairsOff[bool] = False
    """Boundaries: write thin lines (after non-maximum suppression) instead of the soft map."""
    heatmap: FlagCreatePairsOff[bool] = False
    """Draw where each image's likeliest class is, one picture an image, and a sheet of the first 24. The network slides over the image, so it needs no annotation of places."""  # noqa: E501
    label: Annotated[str | None, arg(name="class", metavar="NAME")] = None
    """The class that --heatmap shows. none = each image's likeliest."""
    enlarge: float = 2.0
    """For --heatmap, the image's shorter side in sides of the training images: more show smaller things."""  # noqa: E501
    tile: Annotated[int | None, arg(metavar="PX")] = None
    """Detection, for small objects: look at windows of so many pixels, too, as if each was an image. The run's image size shows them as they are."""  # noqa: E501
    overlap: Annotated[int | None, arg(metavar="PX")] = None
    """With --tile: the least that windows overlap by, better more than small objects are long. none = a quarter of --tile."""  # noqa: E501
    least: float = LEAST
    """Detection: the smallest score that is shown. The files of --format have all."""
    format: Literal["coco", "voc", "yolo"] | None = None
    """Detection: write files, too: COCO's results (detections.json), VOC's XML with scores, or YOLO's text with confidences."""  # noqa: E501
    numbers: Annotated[str | None, arg(metavar="FILE")] = None
    """The COCO file whose numbers of images and classes --format coco takes. none = the run's own data, if it is COCO's; else files' names, and classes from 1."""  # noqa: E501
    out: Annotated[str | None, arg(metavar="DIR")] = None
    """The folder for the files, new or empty. none = heatmaps (or predictions), heatmaps-2 …"""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object a line."""


def main(arguments: Sequence[str]) -> int:
    """1 if some image could not be read (the others are predicted), 2 if none could."""
    told = parse(Predict, arguments, prog="vidi predict")
    if not told.sources and told.pair is None:
        raise InputError("There is nothing to predict. Name images or folders after the run.")
    if told.top < 1:
        raise InputError(f"--top is {told.top}; at least 1 class can be shown.")

    from vidi import api
    from vidi.engine import tiled

    with contextlib.redirect_stdout(sys.stderr):
        model = api.load(told.run)
    _check_detection(told, model.recipe.task)
    tiled.settled(model.recipe.task, told.tile, told.overlap)
    if model.recipe.task == "flow":
        return _flow(model, told)
    if told.pair is not None:
        raise InputError(f"--pair is for flow; this run's task is {model.recipe.task}.")
    pictured = model.recipe.task in CHUNK
    if told.thin and model.recipe.task != "boundaries":
        raise InputError(f"--thin is for boundaries; this run's task is {model.recipe.task}.")
    if not (pictured or told.heatmap) and (told.label is not None or told.out is not None):
        raise InputError("--class and --out are for pictures; say --heatmap with them.")
    if pictured and (told.heatmap or told.label is not None):
        raise InputError(
            "--heatmap and --class are for classification; this run gives pictures as it is."
        )
    images, unread = _expand(told.sources)
    for sentence in unread:
        print(f"vidi: {sentence}", file=sys.stderr)
    folder = _folder(told, model) if pictured or told.heatmap else None
    objects = None
    if model.recipe.task == "detection":
        assert folder is not None
        objects = detected.Writer(
            model, folder, told.format, told.least, told.numbers, json_lines=told.json
        )
    sheet: list[HeatMap] = []
    done, failed = 0, len(unread)
    chunk = CHUNK.get(model.recipe.task, 64)
    predict = functools.partial(
        model.predict, flip=told.flip, scales=told.scales, tile=told.tile, overlap=told.overlap
    )
    for start in range(0, len(images), chunk):
        for _, result in predicted(predict, images[start : start + chunk]):
            if isinstance(result, InputError):
                print(f"vidi: {result}", file=sys.stderr)
                failed += 1
                continue
            picture = None
            try:
                if objects is not None:
                    objects.write(result)
                elif pictured:
                    assert folder is not None
                    write = _write_map if model.recipe.task == "boundaries" else _write_masks
                    write(model, result, told, folder)
                elif folder is not None:
                    found, picture = _draw(model, result.path, told, folder)
                    sheet += [found] if len(sheet) < SHEET else []
            except InputError as error:
                print(f"vidi: {error}", file=sys.stderr)
                failed += 1
            if not pictured:
                _show(result, model.classes, told, picture)
            done += 1
        for note in model.notes:
            print(f"vidi: {note}", file=sys.stderr)
        model.notes.clear()
        sys.stdout.flush()
    if objects is not None:
        objects.finish()
    if folder is not None and len(sheet) > 1:
        from vidi.report import heatmap

        heatmap.sheet(sheet, path := free_name(folder, "heatmaps", ".png"))
        print(f"wrote {path}", file=sys.stderr)
    if failed and done:
        which = "read" if folder is None else "read or drawn"
        print(f"vidi: {failed} could not be {which}; {done} were predicted.", file=sys.stderr)
    return 0 if not failed else 1 if done else 2


def _check_detection(told: Predict, task: str) -> None:
    if task != "detection" and (told.least, told.format, told.numbers) != (LEAST, None, None):
        raise InputError(
            f"--least, --format and --numbers are for detection; this run's task is {task}."
        )
    if told.numbers is not None and told.format != "coco":
        raise InputError("--numbers is for --format coco; say that, too.")


def _flow(model: Model, told: Predict) -> int:
    from vidi.cli import flow_frames

    if told.thin or told.heatmap or told.label is not None:
        raise InputError("--thin, --heatmap and --class are for other tasks; this run's is flow.")
    if told.scales != (1.0,):
        raise InputError("--scales is for segmentation and boundaries; this run's task is flow.")
    return flow_frames.predict(
        model, told.sources, told.pair, told.out, flip=told.flip, json_lines=told.json
    )


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
    out = new_folder(told.out, "heatmaps" if told.heatmap else "predictions")
    if told.heatmap:
        with contextlib.redirect_stdout(sys.stderr):
            _ = model.convolutional  # says so if the network cannot be
    return out


def _write_masks(model: Model, result: Segmentation, told: Predict, folder: Path) -> None:
    """The mask as an index PNG, and a picture of it over the image."""
    from vidi.report import overlay

    own = None if model.palette is None else np.array(model.palette, np.uint8)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        mask = free_name(folder, Path(result.path).stem, ".png")
        overlay.save_index_png(mask, result.mask, own)
        picture = free_name(folder, f"{Path(result.path).stem}-picture", ".png")
        overlay.prediction_picture(
            model.image(result.path),
            result.mask,
            model.classes,
            overlay.palette(len(model.classes), own),
            picture,
        )
    if told.json:
        said = {"path": result.path, "mask": str(mask), "picture": str(picture)}
        print(json.dumps(said | {"shares": result.shares}))
        return
    shares = [f"{name} {share:.1%}" for name, share in list(result.shares.items())[: told.top]]
    print(f"{result.path}: {', '.join(shares)}; {mask}, {picture.name}")


def _write_map(model: Model, result: BoundaryMap, told: Predict, folder: Path) -> None:
    """The boundary map as a grey PNG of the image's name, which `vidi eval --predictions` reads."""
    from vidi.report import boundary_pictures

    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = free_name(folder, Path(result.path).stem, ".png")
        boundary_pictures.save_map(result.thin if told.thin else result.soft, path)
    if told.json:
        print(json.dumps({"path": result.path, "map": str(path)}))
        return
    print(f"{result.path}: {path}")


def _draw(model: Model, image: str, told: Predict, folder: Path) -> tuple[HeatMap, Path]:
    from vidi.report import heatmap

    with contextlib.redirect_stdout(sys.stderr):
        found = model.heatmap(image, label=told.label, enlarge=told.enlarge)[0]
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = free_name(folder, Path(image).stem, ".png")
        heatmap.draw(found, path)
    return found, path


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
