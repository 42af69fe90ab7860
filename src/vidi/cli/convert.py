"""Write a dataset in another format, and say what that cannot hold."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.data.dataset import Dataset


@dataclass(frozen=True)
class Convert:
    """Write a dataset in another format, and say what that cannot hold.

    vidi convert cells/ --to coco --out cells-coco
    """

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """What `vidi train` takes, too: a folder, a file, the name of embedded data."""
    to: Annotated[str, arg(metavar="FORMAT")]
    """One of the formats that `vidi list formats` names, of the data's task."""
    out: Annotated[str, arg(metavar="DIR")]
    """The folder to write: a new one, or an empty one."""
    task: Annotated[
        Literal[
            "auto", "classification", "multilabel", "detection", "segmentation", "flow",
            "boundaries",
        ],
        arg(metavar="TASK"),
    ] = "auto"  # fmt: skip
    """What the data is for, where that is not plain. auto = what the format is for, or the data."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout."""


def main(arguments: Sequence[str]) -> int:
    told = parse(Convert, arguments, prog="vidi convert")

    from vidi.data import formats

    if told.to not in formats.names():
        near = difflib.get_close_matches(told.to, formats.names(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(
            f"There is no format {told.to!r}; there are {', '.join(formats.names())}.{hint}"
        )
    module = formats.find(told.to)
    if not hasattr(module, "write"):
        raise InputError(
            f"{told.to} is embedded data, which cannot be written. Write one of "
            f"{', '.join(_written())}."
        )
    out = Path(os.path.abspath(os.path.expanduser(told.out)))
    _check_free(out, told.data)
    dataset = _opened(told, module.TASK)
    with contextlib.redirect_stdout(sys.stderr):
        for note in dataset.notes:
            print(note)
        with _beside(out) as folder:
            lost = module.write(dataset, folder)
    source = _source(module, out)
    if told.json:
        print(json.dumps(_summary(told, dataset, source, lost)))
        return 0
    sizes = ", ".join(f"{name} {len(ids):,}" for name, ids in dataset.splits.items())
    print(f"{source}: {module.TASK} ({told.to}), {sizes}")
    for sentence in lost:
        print(f"  {sentence}")
    if not lost:
        print(f"  {told.to} holds all that was read.")
    return 0


def _opened(told: Convert, wanted: str) -> Dataset:
    """The data, for the task of the format it is to be written in.

    Read without the checks of a training: what has one class, or no split train, converts too.
    """
    from vidi.data.open import KIND, read_source

    try:
        dataset = read_source(told.data, told.task)
    except InputError:
        # What can be read in two ways is settled by what is to be written.
        if told.task != "auto":
            raise
        dataset = read_source(told.data, wanted)
    if told.task == "auto" and KIND.get(dataset.task, dataset.task) != wanted:
        # One set of files may serve two tasks.
        with contextlib.suppress(InputError):
            dataset = read_source(told.data, wanted)
    task = KIND.get(dataset.task, dataset.task)
    if task != wanted:
        raise InputError(
            f"{told.data} holds data for {dataset.task}, and {told.to} is a format for {wanted}. "
            f"Formats for {task} are {', '.join(_written(task))}."
        )
    return dataset


def _written(task: str | None = None) -> list[str]:
    """The formats that can be written, of a task or of all."""
    from vidi.data import formats

    modules = {name: formats.find(name) for name in formats.names()}
    return [n for n, m in modules.items() if hasattr(m, "write") and task in (None, m.TASK)]


def _check_free(out: Path, data: str) -> None:
    source = Path(os.path.abspath(os.path.expanduser(data)))
    if source.is_dir() and source in out.parents:
        raise InputError(
            f"{out} lies within {data}, and would become a part of it. Give --out another place."
        )
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"{out} exists and is no folder. Give --out another name.")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(
            f"{out} exists and is not empty. Give --out another name, or empty the folder."
        )


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` when all of it is written, and goes away if that fails."""
    folder = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True)
        yield folder
        if out.is_dir():
            out.rmdir()
        os.replace(folder, out)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error.strerror or error}. Make room, or give --out another "
            "name."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _source(module: Any, out: Path) -> str:
    """By what the written data is opened: the folder, or the table in it."""
    if module.sniff(str(out)) is not None:
        return str(out)
    files = (str(path) for path in sorted(out.iterdir()) if path.is_file())
    return next((path for path in files if module.sniff(path) is not None), str(out))


def _summary(told: Convert, dataset: Dataset, source: str, lost: list[str]) -> dict[str, Any]:
    return {
        "data": dataset.root,
        "task": dataset.task,
        "from": dataset.format,
        "to": told.to,
        "out": source,
        "samples": {name: len(ids) for name, ids in dataset.splits.items()},
        "classes": list(dataset.classes),
        "lost": list(lost),
    }
