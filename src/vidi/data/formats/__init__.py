"""Data formats, one file each. A format is a module with a constant and functions:

``TASK``: what its annotations are for. Where one set of files serves two tasks (VOC, COCO), each
has its module. One whose source names the task has ``task_of(source: str) -> str`` instead.
``sniff(source: str) -> str | None``: why the source is of this format, or None; quick.
``read(source: str) -> Dataset``: the data with its own splits; all of it is "train" where it has
none. Raises :class:`vidi.errors.InputError`.
``fake(folder: Path) -> Fake``: writes a tiny example of itself, for tests.
``write(dataset: Dataset, folder: Path) -> Notes``: exports a dataset of the same task into an
empty folder; gives a sentence for each kind of thing that the format cannot hold, with its count.
A format that lies inside a package (digits, scenes) has none.

They are found by walking this package; nothing is registered.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

from vidi.types import Sample


@dataclass(frozen=True)
class Fake:
    """What was written, and what must be read back: samples by split, in the dataset's order."""

    source: str
    classes: tuple[str, ...]
    splits: dict[str, list[Sample]]


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Any:
    """The format's module."""
    return importlib.import_module(f"{__name__}.{name}")


def task_of(name: str, source: str) -> str:
    """What the source's annotations are for, if it is of that format."""
    module = find(name)
    return str(module.task_of(source) if hasattr(module, "task_of") else module.TASK)
