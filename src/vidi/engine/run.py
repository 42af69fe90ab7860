"""The run directory: the interface between the verbs (DESIGN, law 6).

recipe.json       resolved recipe, command, versions, data, classes, normalisation
metrics.jsonl     one row per event, append-only
vitals.jsonl      what layers and parameters did at some steps (engine/vitals.py), append-only
best.safetensors  weights of the best evaluation; the header describes them whole
last/             the exact training state
evaluation.json   metrics, per-class rows and confusion of the best weights
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidi.engine.checkpoint import write_atomically
from vidi.errors import InputError, RunError
from vidi.recipe import Recipe, from_dict
from vidi.types import Normalisation

BEST = "best.safetensors"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Description:
    """All that the use of a run's weights needs: in recipe.json and in the weights' header."""

    recipe: Recipe
    classes: tuple[str, ...]
    normalisation: Normalisation
    data: dict[str, Any]
    """root, format, task, fingerprint, samples per split."""
    command: str = ""
    versions: dict[str, str] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        from vidi.recipe import to_dict

        return {
            "recipe": to_dict(self.recipe),
            "classes": list(self.classes),
            "normalisation": {
                "mean": list(self.normalisation.mean),
                "std": list(self.normalisation.std),
            },
            "data": self.data,
            "command": self.command,
            "versions": self.versions or {},
            "notes": list(self.notes),
        }

    @staticmethod
    def from_json(body: dict[str, Any], where: str) -> Description:
        try:
            normalisation = Normalisation(
                tuple(body["normalisation"]["mean"]), tuple(body["normalisation"]["std"])
            )
            return Description(
                recipe=from_dict(body["recipe"], where=where),
                classes=tuple(body["classes"]),
                normalisation=normalisation,
                data=body["data"],
                command=body["command"],
                versions=body["versions"],
                notes=tuple(body["notes"]),
            )
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{where} lacks {error}: it was not written by vidi, or by another version of it."
            ) from error


class RunDirectory:
    """One run's folder. Reading needs nothing; writing needs :meth:`locked`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def best(self) -> Path:
        return self.path / BEST

    @property
    def last(self) -> Path:
        return self.path / "last"

    def exists(self) -> bool:
        return (self.path / "recipe.json").is_file()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; a second process that wants to write it is refused (InputError)."""
        import filelock

        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The run's folder {self.path} cannot be made: {error.strerror}. Choose another "
                "with --run."
            ) from error
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except OSError as error:
            if isinstance(error, filelock.Timeout):
                raise InputError(
                    f"Another process is training {self.path} at this moment. Wait for it to end, "
                    "or choose another folder with --run."
                ) from error
            raise InputError(
                f"{self.path} cannot be written: {error.strerror}. Mend its permissions, or choose "
                "another folder with --run."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def write_description(self, description: Description) -> None:
        self._write_json("recipe.json", description.to_json())

    def read_description(self) -> Description:
        """Raises :class:`InputError` where the folder is no run."""
        path = self.path / "recipe.json"
        if not path.is_file():
            what = "is not a folder" if not self.path.is_dir() else "holds no recipe.json"
            raise InputError(
                f"{self.path} is no run: it {what}. A run is the folder that `vidi train` wrote, "
                "for example runs/digits-resnet20."
            )
        return Description.from_json(self._read_json(path), str(path))

    def append(self, name: str = METRICS, /, **row: Any) -> None:
        """Add a row to metrics.jsonl, or to another such file."""
        path = self.path / name
        line = json.dumps(plain(row)) + "\n"
        try:
            with open(path, "ab+") as file:
                # A killed process may have left half a line: end it, so that only it is lost.
                if file.seek(0, os.SEEK_END) and not _ends_line(file):
                    line = "\n" + line
                file.write(line.encode())
        except OSError as error:
            raise RunError(f"{path} could not be written: {error.strerror or error}.") from error

    def write_evaluation(self, body: dict[str, Any]) -> None:
        self._write_json("evaluation.json", plain(body))

    def read_evaluation(self) -> dict[str, Any]:
        path = self.path / "evaluation.json"
        return self._read_json(path) if path.is_file() else {}

    def _write_json(self, name: str, body: dict[str, Any]) -> None:
        write_atomically(self.path / name, (json.dumps(body, indent=1) + "\n").encode())

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            body: dict[str, Any] = json.loads(path.read_bytes())
            return body
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}.") from error


def read_header(file: Path) -> Description:
    """The description in the header of weights that a run wrote.

    Raises :class:`InputError` where the file is damaged, or was not written by vidi.
    """
    import safetensors

    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            header = opened.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{file} is no whole safetensors file ({error}).") from error
    if "vidi" not in header:
        raise InputError(
            f"{file} was not written by vidi: its header has no recipe. To start from such "
            "weights, use `vidi train --weights`."
        )
    return Description.from_json(json.loads(header["vidi"]), str(file))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that count."""
    return read_rows(Path(run) / METRICS)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file that count; none, where there is no such file.

    The file only grows: a resumed run says so in a row, and what an earlier process had written
    past that step is dropped here, since those steps were taken again.
    """
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the half line of a killed process
            continue
        if row.get("event") == "resume":
            rows = [r for r in rows if r.get("step", 0) <= row["step"] and r["event"] != "end"]
        rows.append(row)
    return rows


def free_name(parent: Path, stem: str) -> Path:
    """``parent/stem``, or with -2, -3 … where that is taken."""
    path, number = parent / stem, 1
    while path.exists():
        number += 1
        path = parent / f"{stem}-{number}"
    return path


def versions() -> dict[str, str]:
    """What the run was made with."""
    import cv2
    import numpy
    import torch

    import vidi

    found = {
        "vidi": vidi.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "opencv": cv2.__version__,
        "platform": platform.platform(),
    }
    if revision := _git_revision(Path.cwd()):
        found["git"] = revision
    return found


def command() -> str:
    """What was typed, as one would type it again."""
    import shlex

    name = Path(sys.argv[0]).name
    return shlex.join(["vidi" if name == "__main__.py" else name, *sys.argv[1:]])


def _git_revision(folder: Path) -> str | None:
    """The commit of the user's folder, where it is a checkout."""
    for parent in (folder, *folder.parents):
        head = parent / ".git" / "HEAD"
        if head.is_file():
            text = head.read_text().strip()
            if not text.startswith("ref: "):
                return text
            ref = parent / ".git" / text[5:]
            return ref.read_text().strip() if ref.is_file() else None
    return None


def plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
