"""Training state on disk, whole or not at all.

A state is two files: ``state-<step>.safetensors`` with every tensor and ``state-<step>.json`` with
every plain value and the SHA-256 of both. Each is written under another name, flushed to disk and
renamed; the JSON comes last, so a state without it never counted. The two newest states are kept:
if the newest turns out damaged, the one before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from vidi.errors import InputError, RunError

KEPT = 2


@dataclass(frozen=True)
class State:
    """What :func:`load` found. ``notes`` tells of damaged states that were passed over."""

    step: int
    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]
    notes: tuple[str, ...]


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: after a crash at any moment it is the old or the new, whole.

    Raises :class:`RunError` where the system refuses (a full disk, say); the old file stays.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise RunError(
            f"{path} could not be written: {error.strerror or error}. What was there before is "
            f"untouched. Make room or mend the folder's permissions, then go on with --resume."
        ) from error


def save(folder: Path, step: int, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    """Write the state of ``step`` and remove all but the two newest."""
    # What is newer than this state was passed over as damaged: it must not push out good ones.
    for damaged in (s for s in _steps(folder) if s > step):
        (folder / f"{_stem(damaged)}.json").unlink(missing_ok=True)
    data = safetensors.torch.save({k: t.detach().cpu().contiguous() for k, t in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    write_atomically(folder / f"{_stem(step)}.safetensors", data)
    body = {"step": step, "tensors_sha256": digest, "values": values}
    body["sha256"] = _digest(body)
    write_atomically(folder / f"{_stem(step)}.json", json.dumps(body, indent=1).encode())
    keep = {_stem(s) for s in _steps(folder)[:KEPT]}
    for file in folder.iterdir():
        if file.name.startswith(("state-", ".state-")) and file.stem not in keep:
            file.unlink(missing_ok=True)


def load(folder: Path) -> State | None:
    """The newest whole state, or ``None`` where nothing was saved yet.

    Raises :class:`InputError` when states are there and every one is damaged: to begin again
    from nothing is the user's decision.
    """
    notes: list[str] = []
    steps = _steps(folder)
    for step in steps:
        try:
            return State(step, *_read(folder, step), tuple(notes))
        except (OSError, ValueError, KeyError) as error:
            notes.append(f"The state of step {step} in {folder} is damaged ({error}).")
            if step != steps[-1]:
                notes[-1] += " The one before it is used."
    if notes:
        raise InputError(
            " ".join(notes) + f" No whole state is left. Delete {folder} and resume to begin "
            "again from step 0."
        )
    return None


def _read(folder: Path, step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    body = json.loads((folder / f"{_stem(step)}.json").read_bytes())
    if body.pop("sha256") != _digest(body):
        raise ValueError("its JSON has another checksum than was noted")
    data = (folder / f"{_stem(step)}.safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != body["tensors_sha256"]:
        raise ValueError("its tensors have another checksum than was noted")
    return safetensors.torch.load(data), body["values"]


def _steps(folder: Path) -> list[int]:
    """Steps with a JSON file, newest first."""
    if not folder.is_dir():
        return []
    found = (re.fullmatch(r"state-(\d+)\.json", f.name) for f in folder.iterdir())
    return sorted((int(m[1]) for m in found if m), reverse=True)


def _stem(step: int) -> str:
    return f"state-{step:09d}"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; its rename is journalled
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
