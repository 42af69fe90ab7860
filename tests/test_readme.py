"""What the README shows is run as it stands, in an empty folder that holds only ``photos/``."""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import python

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


strictly = functools.partial(python, PYTHONWARNINGS="error")


def test_the_commands_work(photos: Path) -> None:
    """The first starts Python anew, the first of each kind imports the package anew."""
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
        if not seen:
            done = fresh(["-m", "vidi", *words], photos.parent)
        else:
            anew = words[0] not in seen
            done = strictly("-m", "vidi", *words, cwd=photos.parent, anew=anew)
        seen.add(words[0])
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_the_python_works(code: str, photos: Path) -> None:
    done = strictly("-c", code, cwd=photos.parent, anew=True)
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
