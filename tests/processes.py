"""Python in a process of its own, forked from one that has imported the package already.

``python("-m", "vidi", …)`` runs what the interpreter would run for these words, without the seconds
that starting it and importing torch take. Where a test is about that start, or about how a process
ends (this one ends at once, without ``atexit`` and the interpreter's own end), it is by
``subprocess``.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

import pytest

HANGS = 120
"""Seconds after which a process is ended."""
ROOT = Path(__file__).parents[1]


class Python:
    """A process that has been started; to be used as a context, which kills what is left of it.

    ``words``: what stands after ``python``: ``-m MODULE …`` or ``-c CODE …``. ``cwd``: its folder.
    ``anew``: the package itself is imported anew. ``more``: environment variables beside those of
    here. ``stdout`` is read as it is written.
    """

    stdout: IO[str]

    def __init__(
        self, *words: object, cwd: Path | str = ".", anew: bool = False, **more: str
    ) -> None:
        if os.name == "nt":
            pytest.skip("forking is POSIX's")
        self.words = [str(word) for word in words]
        self.hung = False
        self._said = tempfile.NamedTemporaryFile()  # noqa: SIM115  # closed at the end
        context = multiprocessing.get_context("forkserver")
        reader, writer = context.Pipe(duplex=False)
        given = (self.words, str(cwd), anew, {**os.environ, **more}, writer, self._said.name)
        self._process = context.Process(target=_become, args=given)
        self._process.start()
        writer.close()
        self.stdout = open(os.dup(reader.fileno()), encoding="utf-8")  # noqa: SIM115
        reader.close()
        self._watch = threading.Timer(HANGS, self._end)
        self._watch.start()

    def __enter__(self) -> Python:
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.cancel()
        self._process.kill()
        self._process.join()
        self.stdout.close()
        self._said.close()

    def _end(self) -> None:
        self.hung = True
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code; a negative one is a signal. None if it still runs then."""
        self._process.join(timeout)
        code: int | None = self._process.exitcode
        return code

    def communicate(self) -> tuple[str, str]:
        """What is left of its output, to the end, and all of its errors."""
        out = self.stdout.read()
        self.wait()
        return out, Path(self._said.name).read_text(encoding="utf-8")


def python(
    *words: object, cwd: Path | str = ".", anew: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run to its end. See :class:`Python`."""
    with Python(*words, cwd=cwd, anew=anew, **more) as process:
        out, err = process.communicate()
        code = process.wait()
    assert code is not None and not process.hung, f"{process.words} hangs\n{out}{err}"
    return subprocess.CompletedProcess(process.words, code, out, err)


def pair(*words: object, cwd: Path | str = ".") -> list[subprocess.CompletedProcess[str]]:
    """Two processes that are told of each other as torchrun tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }

    def one(rank: str) -> subprocess.CompletedProcess[str]:
        return python(*words, cwd=cwd, RANK=rank, LOCAL_RANK=rank, **told)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, "01"))


def _become(
    words: list[str],
    folder: str,
    anew: bool,
    environment: Mapping[str, str],
    out: Connection,
    said: str,
) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out.fileno(), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_TRUNC), 2)
    out.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if "PYTHONWARNINGS" in environment:  # which was read before the fork
        warnings.simplefilter(environment["PYTHONWARNINGS"])  # type: ignore[arg-type]
    import torch

    torch.set_num_threads(1)  # as was OMP_NUM_THREADS
    if anew:
        for name in [name for name in sys.modules if name.split(".")[0] == "vidi"]:
            del sys.modules[name]
    sys.path[:] = [os.getcwd(), *(p for p in sys.path if Path(p).resolve() != ROOT)]
    kind, what, *rest = words
    sys.argv = [what if kind == "-m" else kind, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert kind == "-c"
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
