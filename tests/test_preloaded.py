"""Processes that tests fork have the package imported; their server has one thread."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def _look() -> None:
    # A fork takes along one thread alone, and what the server's others hold stays held.
    threads = Path(f"/proc/{os.getppid()}/task")
    alone = not threads.exists() or len(os.listdir(threads)) == 1
    sys.exit(0 if alone and {"torch", "vidi.api", "vidi.deploy"} <= sys.modules.keys() else 1)


def _wait() -> None:
    from tests import preloaded

    sys.exit(not preloaded.ON_USE)


@pytest.mark.skipif(os.name == "nt", reason="forking is POSIX's")
@pytest.mark.parametrize("look", [_look, _wait])
def test_it_has_imported_the_package_and_is_alone(look: Callable[[], None]) -> None:
    """And nothing of the package had imported torchvision by then."""
    process = multiprocessing.get_context("forkserver").Process(target=look)
    process.start()
    process.join(60)
    assert process.exitcode == 0
