"""``vidi serve`` as a process: its words, its signals, and what it refuses to begin with."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import vidi
from tests.processes import Python, python
from vidi.cli.serve import _names

Ask = Callable[..., tuple[int, str, str]]
PAGE = (Path(__file__).parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")


@contextlib.contextmanager
def process(*words: object, **environment: str) -> Iterator[tuple[Python, str]]:
    """(the server, its address) once it is ready; it is killed if it is still there at the end."""
    with Python("-m", "vidi", "serve", *words, "--port", "0", **environment) as server:
        url = ""
        for line in server.stdout:
            if found := re.search(r"at (http://\S+)", line):
                url = found[1]
                break
        assert url, server.communicate()
        until = time.monotonic() + 60
        with httpx.Client() as client:
            while client.get(f"{url}/ready").status_code != 200:
                assert time.monotonic() < until
                time.sleep(0.05)
        yield server, url


def test_the_page_s_commands_work_and_a_signal_drains(trained: Path, tmp_path: Path) -> None:
    """docs/serve.md: the server is asked as it is asked there, and stops as it says."""
    for i in range(2):
        Image.new("RGB", (40, 40), (90 * i, 9, 9)).save(tmp_path / f"{'ab'[i]}.jpg")
    token = "0123456789abcdef"
    environment = {**os.environ, "VIDI_TOKEN": token}
    asked = [line[2:] for line in PAGE.splitlines() if line.startswith("$ curl")]
    assert len(asked) >= 4
    with process(trained, "--backend", "auto", VIDI_TOKEN=token) as (server, url):
        for command in asked:
            done = subprocess.run(
                command.replace("http://127.0.0.1:8000", url).replace("photos-resnet18",
                                                                     "digits-run"),
                shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60,
                env=environment,
            )  # fmt: skip
            assert done.returncode == 0, (command, done.stderr)
            assert '"error"' not in done.stdout, (command, done.stdout)
        code = re.findall(r"```python\n(.*?)```", PAGE, re.S)[0]
        code = code.replace("http://127.0.0.1:8000", url)
        done = python("-c", code, cwd=tmp_path, VIDI_TOKEN=token)
        assert done.returncode == 0, done.stderr
        said = [line.split() for line in done.stdout.splitlines()]
        own = vidi.load(trained).predict([tmp_path / "a.jpg", tmp_path / "b.jpg"])
        assert [label for label, _ in said] == [one.label for one in own]
        shares = [one.probability for one in own]
        assert [float(p) for _, p in said] == pytest.approx(shares, abs=0.02), "whatever computes"
        drains(server, url, (tmp_path / "a.jpg").read_bytes(), token)


def drains(server: Python, url: str, data: bytes, token: str) -> None:
    """What has been taken is answered, also what is still on its way; nothing new is taken."""
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {token}"}

    def slowly() -> Iterator[bytes]:
        for k in range(10):
            yield data[k * len(data) // 10 : (k + 1) * len(data) // 10]
            time.sleep(0.1)

    with (
        httpx.Client(base_url=url, headers=headers, timeout=30) as client,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        running = [pool.submit(client.post, "/predict", content=slowly()) for _ in range(4)]
        time.sleep(0.4)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        late = client.post("/predict", content=data)
        assert late.status_code == 503 and "Retry-After" in late.headers
        answers = [one.result() for one in running]
    assert [one.status_code for one in answers] == [200] * 4
    assert server.wait(30) == 0
    _, errors = server.communicate()
    assert "Traceback" not in errors


def test_a_second_signal_ends_it_at_once(trained: Path) -> None:
    """Though somebody still sends. It listens at another of this machine's own addresses, and
    answers to that name."""
    words = (trained, "--backend", "torch", "--host", "127.0.0.2")
    with process(*words) as (server, url):
        with socket.create_connection(("127.0.0.2", int(url.rpartition(":")[2]))) as wire:
            wire.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.2\r\nContent-Length: 9\r\n\r\na")
            time.sleep(0.2)
            server.send_signal(signal.SIGTERM)
            while httpx.get(f"{url}/ready").status_code == 200:
                time.sleep(0.05)
            assert server.wait(0) is None, "what is on its way is waited for"
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == -signal.SIGTERM  # a body may take 30 seconds
            _, errors = server.communicate()
        assert "Traceback" not in errors, errors


def test_runs_are_named_by_their_folders_and_each_once() -> None:
    runs = ["a/cells", "b/cells", "a/cells/best.safetensors", "caf\udce9", "b/caf\udcff"]
    assert _names(runs) == ["cells", "cells-2", "cells-3", "caf?", "caf?-2"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Name the folder of a run"),
        (("RUN", "--host", "0.0.0.0"), "Give it a token"),
        (("RUN", "--host", "192.168.1.1"), "Give it a token"),
        (("RUN", "--token", ""), "The token is empty"),
        (("RUN", "--token", "a b\n"), "The token is empty"),
        (("RUN", "--token", "abc", "--no-auth"), "Leave out one"),
        (("RUN", "--port", 70000), "0 to 65535"),
        (("RUN", "--batch-size", 0), "at least 1"),
        (("RUN", "--latency", -1), "0 to 10000"),
        (("RUN", "--max-body", 0), "--max-body is 0"),
        (("RUN", "--max-images", 99), "never find room"),
        (("RUN", "--host", "256.1.1.1", "--no-auth"), "cannot listen"),
        (("RUN", "--host", "a..b", "--no-auth"), "cannot listen"),
        (("nowhere", "--port", 0), "There is no run at nowhere"),
    ],
)
def test_what_is_refused(
    words: tuple[Any, ...], sentence: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIDI_TOKEN", raising=False)
    code, _, errors = ask("serve", *words)
    assert code == 2
    assert sentence in errors


def test_handlers_of_logs_stay_open(serve: Any, colours: Any) -> None:
    """Python's own, closed by who configures all of logging anew."""
    closed = []

    class Handler(logging.Handler):
        def close(self) -> None:
            closed.append(self)
            super().close()

    handler = Handler()
    with serve(colours()):
        assert closed == []
    handler.close()
    assert closed == [handler]


def test_a_port_that_is_taken_is_a_sentence(serve: Any, colours: Any, ask: Ask) -> None:
    with serve(colours()) as running:
        code, _, errors = ask("serve", "RUN", "--port", running.port)
    assert code == 2
    assert "Address already in use. Choose another --port" in errors
    assert errors.count("Address") == 1
