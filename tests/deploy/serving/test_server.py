"""``vidi serve`` as a process: its words, its signals, and what it refuses to begin with."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

Ask = Callable[..., tuple[int, str, str]]
PAGE = (Path(__file__).parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")


@contextlib.contextmanager
def process(*words: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(the server, its address) once it is ready; it is killed if it is still there at the end."""
    server = subprocess.Popen(
        [sys.executable, "-m", "vidi", "serve", *map(str, words), "--port", "0"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = ""
        for line in server.stdout:
            if found := re.search(r"at (http://\S+)", line):
                url = found[1]
                break
        assert url, server.communicate()
        until = time.monotonic() + 60
        while httpx.get(f"{url}/ready").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.05)
        yield server, url
    finally:
        server.kill()
        server.communicate()


def test_a_signal_drains_and_ends_with_0(trained: Path, tmp_path: Path) -> None:
    """What has been taken is answered, also what is still on its way; nothing new is taken."""
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (9, 9, 9)).save(file, "PNG")
    data = file.getvalue()
    with process(trained, trained, "--backend", "torch") as (server, url):
        names = [one["name"] for one in httpx.get(f"{url}/runs").json()["runs"]]
        assert names == ["digits-run", "digits-run-2"]

        def slowly() -> Iterator[bytes]:
            for k in range(10):
                yield data[k * len(data) // 10 : (k + 1) * len(data) // 10]
                time.sleep(0.15)

        def ask() -> httpx.Response:
            headers = {"Content-Type": "image/png"}
            return httpx.post(f"{url}/predict", content=slowly(), headers=headers, timeout=30)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            running = [pool.submit(ask) for _ in range(4)]
            time.sleep(0.6)
            server.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            assert httpx.get(f"{url}/ready").status_code == 503
            assert httpx.get(f"{url}/health").status_code == 200
            late = httpx.post(f"{url}/predict", content=data, headers={"Content-Type": "image/png"})
            assert late.status_code == 503 and "Retry-After" in late.headers
            answers = [one.result() for one in running]
        assert [one.status_code for one in answers] == [200] * 4
        _, errors = server.communicate(timeout=30)
        assert server.returncode == 0
        assert "Traceback" not in errors


def test_the_page_s_commands_work(trained: Path, tmp_path: Path) -> None:
    """docs/serve.md: the server as it starts there, asked as it is asked there."""
    for i in range(2):
        Image.new("RGB", (40, 40), (90 * i, 9, 9)).save(tmp_path / f"{'ab'[i]}.jpg")
    asked = [line[2:] for line in PAGE.splitlines() if line.startswith("$ curl")]
    assert len(asked) >= 4
    with process(trained, VIDI_TOKEN="0123456789abcdef") as (server, url):
        for command in asked:
            done = subprocess.run(
                command.replace("http://127.0.0.1:8000", url).replace("photos-resnet18",
                                                                     "digits-run"),
                shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60,
                env={**os.environ, "VIDI_TOKEN": "0123456789abcdef"},
            )  # fmt: skip
            assert done.returncode == 0, (command, done.stderr)
            assert '"error"' not in done.stdout, (command, done.stdout)
        code = re.findall(r"```python\n(.*?)```", PAGE, re.S)[0]
        done = subprocess.run(
            [sys.executable, "-c", code.replace("http://127.0.0.1:8000", url)],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env={**os.environ, "VIDI_TOKEN": "0123456789abcdef"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) == 4, "two labels and two probabilities"
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)
        assert server.returncode == 0


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


def test_a_port_that_is_taken_is_a_sentence(serve: Any, colours: Any, ask: Ask) -> None:
    with serve(colours()) as running:
        code, _, errors = ask("serve", "RUN", "--port", running.port)
    assert code == 2
    assert "Address already in use. Choose another --port" in errors
    assert errors.count("Address") == 1
