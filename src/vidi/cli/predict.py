"""Say what a run sees: classes, objects, masks, edges, flow."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import os
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli import detected, flow_frames, sources, written
from vidi.cli.arguments import parse
from vidi.cli.bar import Bar
from vidi.cli.outputs import free_name
from vidi.cli.record import Record, as_line, begun, is_error
from vidi.cli.sources import Item, Sources
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.api import Model

LEAST = 0.5
PICTURED = ("detection", "segmentation", "boundaries", "flow")
"""Tasks whose answers are files as it is."""
PATIENCE = timedelta(days=30)
"""How long a process that is done waits for the others."""

Answered = tuple[Item, dict[str, str], Any, Any]
"""What was predicted, the names of its files, the path or pixels, and the answer or InputError."""


@dataclass(frozen=True)
class Predict:
    """Say what a run sees in images: classes, objects, masks, boundaries, motion.

    vidi predict runs/photos-resnet18 cat.jpg holiday/ clip.mp4

    vidi predict runs/cells blood/ --least 0.7 --format coco

    vidi predict runs/photos-resnet18 archive/ --out answers --resume

    vidi predict runs/motion --pair a.png b.png
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The folder that `vidi train` wrote."""
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE...")]
    """Images, folders (all images below them), patterns such as 'new/*.jpg', videos, a camera (camera:0), and - for paths on standard input, one a line. For flow: folders of consecutive frames, videos and a camera."""  # noqa: E501
    listed: Annotated[str | None, arg(name="list", metavar="FILE")] = None
    """A file with more of them, one a line (no patterns)."""
    every: Annotated[int, arg(metavar="N")] = 1
    """Of videos and cameras: every N-th frame, from the first on."""
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
    pictures: FlagCreatePairsOff[bool] = False
    """Draw the answer over each image of classification or boundaries; the other tasks do so anyway."""  # noqa: E501
    heatmap: FlagCreatePairsOff[bool] = False
    """Draw where each image's likeliest class is, one picture an image, and a sheet of the first 24 that this process draws. The network slides over the image, so it needs no annotation of places."""  # noqa: E501
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
    """The folder for the files, new or empty, of which nothing is predicted; every answer is a line of its predictions.jsonl, too. none = for files alone: heatmaps (or predictions), heatmaps-2 …"""  # noqa: E501
    resume: FlagCreatePairsOff[bool] = False
    """Go on with what is in --out, where it stopped."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object a line."""
    batch_size: int | Literal["auto"] = "auto"
    """Images that go through the network together."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps."""
    backend: Literal["auto", "torch", "openvino", "onnxruntime"] = "auto"
    """What computes. auto = the fastest here that agrees with torch; for a few images torch itself."""  # noqa: E501


def main(arguments: Sequence[str]) -> int:
    """1 if some image could not be read (the others are predicted), 2 if none could."""
    told = parse(Predict, arguments, prog="vidi predict")
    if not told.sources and told.pair is None and told.listed is None:
        raise InputError("There is nothing to predict. Name images or folders after the run.")
    for name, value in (("top", told.top), ("every", told.every), ("batch-size", told.batch_size)):
        if value != "auto" and value < 1:
            raise InputError(f"--{name} is {value}; at least 1 is expected.")
    if told.resume and told.out is None:
        raise InputError("Which folder is to be gone on with? Name it with --out.")

    from vidi.engine import distributed

    with distributed.session(PATIENCE):
        return _predict(told)


def _predict(told: Predict) -> int:
    from vidi.engine import distributed, tiled
    from vidi.engine.signals import Signals

    rank, world = distributed.rank(), distributed.world()
    if world > 1 and told.out is None:
        raise InputError("Several processes put their answers together in a folder: give --out.")

    def say(sentence: str) -> None:
        if rank == 0:
            print(f"vidi: {sentence}", file=sys.stderr)

    given = Sources(
        told.sources,
        told.listed,
        told.every,
        skip=None if told.out is None else _path(told.out),
        say=say,
    )
    given.check(shared=world > 1, resume=told.resume)
    total = given.count()
    if total is not None and told.pair is not None:
        total += 1
    with contextlib.redirect_stdout(sys.stderr):
        model = _load(told, total)
    if model.backend != "torch":
        say(f"computed by {model.backend}")
    task = model.recipe.task
    _check(told, task)
    tiled.settled(task, told.tile, told.overlap)
    files = task in PICTURED or told.heatmap or told.pictures
    folder = None
    if told.out is not None:
        folder = _path(told.out)
    elif files:
        folder = free_name(Path(), "heatmaps" if told.heatmap else "predictions", "")
        given = dataclasses.replace(given, skip=folder)
    writer = _writer(told, model, folder)
    record = Record(
        folder,
        told.out is not None,
        _settings(told, model) if told.out is not None else {},
        writer,
        told.resume,
        rank,
        world,
    )
    record.check()
    if task == "flow":
        total = None  # there are fewer pairs than frames
    # A camera ends by Ctrl-C alone: then the frame that was taken is answered, and all is finished.
    ended = Signals() if given.camera else contextlib.nullcontext()
    with (
        contextlib.closing(record),
        contextlib.closing(Bar(total, shown=rank == 0)) as bar,
        ended as signals,
    ):
        _begin(record)
        items = flow_frames.pairs(given, told.pair) if task == "flow" else given.items()
        left = record.left(sources.some(items, given))
        with contextlib.closing(_answered(told, model, left, given.camera)) as answers:
            for item, names, image, answer in answers:
                said, beside = _written(record, item, names, image, answer)
                record.add(said, beside)
                if world == 1:
                    _print(said, told, writer)
                for note in model.notes:
                    print(f"vidi: {note}", file=sys.stderr)
                model.notes.clear()
                bar.moved(record.base + (record.totals.items - record.base) * world)
                if signals is not None and signals.received is not None:
                    break
        done, failed = _end(record, told)
    if failed and done and rank == 0:
        what = "pairs were" if task == "flow" else "were"
        which = "read" if folder is None or task == "flow" else "read or drawn"
        say(f"{failed} could not be {which}; {done} {what} predicted.")
    # torchrun ends all processes as soon as one has failed, and the first one is not done yet.
    return 0 if not failed or rank > 0 else 1 if done else 2


def _path(given: str) -> Path:
    return Path(os.path.expanduser(given))


def _load(told: Predict, total: int | None) -> Model:
    from vidi import api
    from vidi.engine import device, distributed

    where = distributed.local_device(device.choose(told.device))
    # A heat map slides the trained network itself over the image. What is gone on with is computed
    # by the library that it was begun with.
    backend: Any = "torch" if told.heatmap else told.backend
    if told.resume and told.out is not None and backend == "auto":
        backend = begun(_path(told.out)).get("backend", backend)
    if distributed.rank() == 0:
        model = api.load(told.run, device=str(where), backend=backend, images=total)
        distributed.from_writer(_library(model))
        return model
    # Each might find another library the fastest.
    backend = distributed.from_writer(None)
    return api.load(told.run, device=str(where), backend=backend, images=total)


def _library(model: Model) -> str:
    """What computes the network, without its arithmetic, as --backend has it."""
    return model.backend.split()[0]


def _check(told: Predict, task: str) -> None:
    """Raises :class:`InputError` for words of another task."""
    if task != "detection" and (told.least, told.format, told.numbers) != (LEAST, None, None):
        raise InputError(
            f"--least, --format and --numbers are for detection; this run's task is {task}."
        )
    if told.numbers is not None and told.format != "coco":
        raise InputError("--numbers is for --format coco; say that, too.")
    if task == "flow":
        if told.thin or told.heatmap or told.label is not None:
            raise InputError(
                "--thin, --heatmap and --class are for other tasks; this run's is flow."
            )
        if told.scales != (1.0,):
            raise InputError(
                "--scales is for segmentation and boundaries; this run's task is flow."
            )
        return
    if told.pair is not None:
        raise InputError(f"--pair is for flow; this run's task is {task}.")
    if told.thin and task != "boundaries":
        raise InputError(f"--thin is for boundaries; this run's task is {task}.")
    if task in PICTURED and (told.heatmap or told.label is not None):
        raise InputError(
            "--heatmap and --class are for classification; this run gives pictures as it is."
        )
    if told.label is not None and not told.heatmap:
        raise InputError("--class is for heat maps; say --heatmap with it.")
    if told.heatmap and told.pictures:
        raise InputError("--heatmap and --pictures are two kinds of picture; say one of them.")


def _writer(told: Predict, model: Model, folder: Path | None) -> written.Writer:
    """Raises :class:`InputError`, before anything is predicted, for what cannot be written so."""
    match model.recipe.task:
        case "flow":
            return flow_frames.Writer()
        case "detection":
            assert folder is not None
            return detected.Writer(model, folder, told.format, told.least, told.numbers)
        case "segmentation":
            return written.Masks(model, told.top)
        case "boundaries":
            return written.Maps(model, told.thin, told.pictures)
    if not told.heatmap:
        return written.Classes(model, told.top, told.pictures)
    if told.label is not None and told.label not in model.classes:
        near = difflib.get_close_matches(told.label, model.classes, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"This run knows no class {told.label!r}. {hint}It knows "
            f"{', '.join(model.classes[:20])}{' …' if len(model.classes) > 20 else '.'}"
        )
    if not 1 <= told.enlarge <= 8:
        raise InputError(f"--enlarge is {told.enlarge}; a number from 1 to 8 is expected.")
    with contextlib.redirect_stdout(sys.stderr):
        _ = model.convolutional  # says so if the network cannot be
    assert folder is not None
    return written.HeatMaps(model, told.top, folder=folder, label=told.label, enlarge=told.enlarge)


def _settings(told: Predict, model: Model) -> dict[str, Any]:
    """What an answer depends on. A resumed work has to have the same."""
    from vidi.engine.run import BEST

    file = model.path / BEST if model.path.is_dir() else model.path
    with open(file, "rb") as opened:
        weights = hashlib.file_digest(opened, "sha256").hexdigest()
    names = ("top", "flip", "scales", "thin", "pictures", "heatmap", "enlarge", "tile",
             "overlap", "least", "format", "numbers", "every")  # fmt: skip
    return {
        "run": str(model.path),
        "weights": weights,
        "task": model.recipe.task,
        **{name: getattr(told, name) for name in names},
        "scales": list(told.scales),
        "class": told.label,
        "backend": _library(model),
        "precision": model.compute.precision,
    }


def _begin(record: Record) -> None:
    """Open a folder that is gone on with, or that several processes write to."""
    from vidi.engine import distributed

    if record.world == 1:
        if record.base:
            record.open()
        return
    distributed.gathered(None)  # all have looked at the folder as it was
    if record.rank == 0:
        record.open()
    distributed.gathered(None)
    record.open()


def _end(record: Record, told: Predict) -> tuple[int, int]:
    """Put everything together. Gives the answers, and what there was none of, of all processes."""
    from vidi.engine import distributed

    totals = record.totals
    shares = distributed.gathered((totals.done, totals.failed, record.before, record.seen))
    if len({seen for *_, seen in shares}) > 1:
        raise InputError(
            "The processes did not see the same images: files came or went while they worked. "
            "Write a list of the images, and name it with --list. What was answered is kept in "
            f"{record.folder}, and --resume goes on with it once the images are those again."
        )
    if record.rank == 0:
        for said in record.finish([before for _, _, before, _ in shares]):
            _print(said, told, record.writer)
    distributed.gathered(None)
    return sum(share[0] for share in shares), sum(share[1] for share in shares)


def _answered(
    told: Predict, model: Model, left: Iterable[tuple[Item, dict[str, str]]], camera: bool
) -> Generator[Answered, None, None]:
    """Each item in its turn; a camera's are answered at once."""
    from vidi.engine import streams

    waiting: deque[tuple[Item, dict[str, str], Any]] = deque()

    def images() -> Iterator[Any]:
        for item, names in left:
            try:
                image = item.image()
            except InputError as error:  # which comes back in its turn
                image = error
            waiting.append((item, names, image))
            yield image

    size = 1 if camera else None
    answers = model.stream(
        images(),
        batch_size=size if told.batch_size == "auto" else told.batch_size,
        ahead=0 if camera else streams.AHEAD,
        flip=told.flip,
        scales=told.scales,
        tile=told.tile,
        overlap=told.overlap,
    )
    with contextlib.closing(answers):
        while True:
            with contextlib.redirect_stdout(sys.stderr):
                answer = next(answers, None)
            if answer is None:
                return
            yield *waiting.popleft(), answer


def _written(
    record: Record, item: Item, names: dict[str, str], image: Any, answer: Any
) -> tuple[dict[str, Any], Any]:
    """What is said of an answer whose files are written now, and what is kept until the end."""
    said: dict[str, Any]
    beside: Any = None
    if isinstance(answer, InputError):
        said = {"path": item.name, "error": str(answer)}
    else:
        named = {"path": item.name} | ({} if item.name2 is None else {"path2": item.name2})
        answer = dataclasses.replace(answer, **named)
        with record.places(names) as places:
            try:
                said = record.writer.write(answer, image, places)
                beside = record.writer.beside(answer)
            except InputError as error:
                said = {"path": item.name, "error": str(error), "answered": True}
    if "error" in said:
        print(f"vidi: {said['error']}", file=sys.stderr)
    return said, beside


def _print(said: dict[str, Any], told: Predict, writer: written.Writer) -> None:
    """An answer's line, at once; of what could not be read there is none."""
    if is_error(said):
        return
    encoding = sys.stdout.encoding or "utf-8"
    if told.json:
        print(as_line(said, encoding), flush=True)
    else:  # a file's name may hold what is no letter
        text = writer.text(said).encode(encoding, "backslashreplace")
        print(text.decode(encoding), flush=True)
