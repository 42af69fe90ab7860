"""What the README shows is run as it stands, in an empty folder that holds only ``photos/``."""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def fresh(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """By a Python that has imported nothing; a warning there is an error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def forked(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """``vidi`` with these words, by a process that has imported it; a warning is an error."""
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    with tempfile.TemporaryDirectory() as elsewhere:
        said = Path(elsewhere, "stdout"), Path(elsewhere, "stderr")
        process = context.Process(target=command, args=(words, folder, dict(os.environ), said))
        process.start()
        try:
            process.join(300)
            code = process.exitcode
        finally:
            process.kill()
            process.join()
        assert code is not None, f"{words} hangs"
        out, err = (path.read_text(encoding="utf-8") for path in said)
    return subprocess.CompletedProcess(words, code, out, err)


def command(
    words: list[str], folder: Path, environment: dict[str, str], said: tuple[Path, Path]
) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment, PYTHONWARNINGS="error")
    sys.argv = ["vidi", *words]
    warnings.simplefilter("error")
    import torch

    from vidi.cli import main

    torch.set_num_threads(1)  # OMP_NUM_THREADS was read before the fork
    sys.exit(main(words))


def test_the_commands_work(photos: Path) -> None:
    """The first of each kind starts Python anew, the others are forked from one that is ready."""
    commands = [
        line.removeprefix("$ ")
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    assert len(commands) >= 8
    seen = set()
    for command in commands:
        verb, *words = shlex.split(command)
        assert verb == "vidi"
        if words[0] in seen:
            done = forked(words, photos.parent)
        else:
            done = fresh(["-m", "vidi", *words], photos.parent)
            seen.add(words[0])
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_the_python_works(code: str, photos: Path) -> None:
    done = fresh(["-c", code], photos.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_it_points_to_is_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert "://" in target or (ROOT / target).is_file(), f"{target} is not there"


def test_every_network_is_named() -> None:
    """Each by its name, or by the first of its row (``resnet20`` … ``resnet110``)."""
    from vidi import models

    named = set(re.findall(r"`(\w+)`", README.partition("## Networks")[2]))
    assert named - {"NAME", "_bn", "source"} <= {*models.names(), "timm"}
    for name in models.names():
        family = re.sub(r"(_bn|_v1)$", "", name)
        stem = family.rstrip("0123456789")
        assert any(n.rstrip("0123456789").startswith(stem) for n in named), name
