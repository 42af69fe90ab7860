"""Beyond each limit stands a sentence, before any work is done, and nothing hangs or piles up."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidi.deploy.serving import bodies, decoding
from vidi.deploy.serving.limits import Budget, Limits, Refused
from vidi.errors import InputError

Serve = Callable[..., Any]
Make = Callable[..., bytes]
SMALL = Limits(
    max_body=0.02, max_images=2, max_megapixels=0.01, body_seconds=0.6, max_queue=4, max_headers=4
)


@pytest.fixture(scope="module")
def at(serve: Serve, colours: Any) -> Iterator[Any]:
    with serve(colours(), colours("flow"), limits=SMALL) as running:
        yield running


def raw(port: int, *parts: bytes, pause: float = 0.0, end: bool = True) -> tuple[int, bytes]:
    """(status, body) of what comes back for these bytes, sent with pauses; 0 where nothing does."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        for part in parts:
            with contextlib.suppress(OSError):
                wire.sendall(part)
            time.sleep(pause)
        back = b""
        with contextlib.suppress(OSError):
            while end or b"\r\n\r\n" not in back:
                if not (more := wire.recv(1 << 16)):
                    break
                back += more
    found = re.match(rb"HTTP/1.1 (\d+) .*?\r\n\r\n(.*)", back, re.S)
    return (int(found[1]), found[2]) if found else (0, back)


def head(**headers: Any) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(["POST /predict HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def png(width: int, height: int, rows: int = 0) -> bytes:
    """A PNG whose header promises so many pixels, and whose data hold ``rows`` rows of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(width * 3 + 1)) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def test_a_large_body_is_refused_unread(at: Any) -> None:
    answer = at.post(bytes(30_000))
    assert answer.status_code == 413
    assert "0.02 MiB" in answer.json()["error"]
    # By its length alone: nothing of it is sent.
    status, body = raw(at.port, head(Content_Length=1 << 40, Content_Type="image/png"))
    assert status == 413 and "larger" in json.loads(body)["error"]


def test_a_body_without_a_length_is_counted_as_it_comes(at: Any) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(2000):
            yield bytes(1000)

    answer = at.client.post("/predict", content=endless(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 413


def test_a_wrong_length_does_not_help(at: Any, image: Make) -> None:
    assert raw(at.port, head(Content_Length=-5) + b"x")[0] == 400
    assert raw(at.port, head(Content_Length="9" * 500) + b"x")[0] == 400
    both = head(Content_Length=3, Transfer_Encoding="chunked", Connection="close")
    status, _ = raw(at.port, both + b"0\r\n\r\n")
    assert 400 <= status < 500


def test_a_slow_body_is_not_waited_for(at: Any) -> None:
    began = time.monotonic()
    status, body = raw(at.port, head(Content_Length=9, Content_Type="image/png"), b"a", pause=0.2)
    assert status == 408 and "0.6 seconds" in json.loads(body)["error"]
    drip = [head(Transfer_Encoding="chunked", Content_Type="image/png"), *[b"1\r\na\r\n"] * 20]
    assert raw(at.port, *drip, pause=0.1)[0] == 408
    assert time.monotonic() - began < 15


def test_slow_headers_and_silence_are_cut_off(at: Any) -> None:
    began = time.monotonic()
    for parts in ([b""], [b"POST /pre"], [b"GET /health HTTP/1.1\r\n", *[b"A: b\r\n"] * 10]):
        assert raw(at.port, *parts, pause=0.1) == (0, b"")
    # Also after a request that was answered.
    first = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    assert raw(at.port, first, b"GET /he")[0] == 200
    # And what nobody reads any more is not taken for ever.
    refused = head(Content_Length=1 << 30, Content_Type="image/png")
    assert raw(at.port, refused, *[bytes(1000)] * 12, pause=0.1)[0] == 413
    assert time.monotonic() - began < 15


def test_large_headers_and_no_http_are_sentences(at: Any) -> None:
    for junk in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"nonsense\r\n\r\n",
    ):
        status, body = raw(at.port, junk)
        assert status == 400, junk
        assert "no HTTP request" in json.loads(body)["error"]
    # In pieces or in one, they are too large.
    large = b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 5000 + b"\r\n\r\n"
    for pieces in ([large], [large[:4500], large[4500:]]):
        status, body = raw(at.port, *pieces, pause=0.1)
        assert status in (400, 431)
        assert "4 KiB" in json.loads(body)["error"]
    assert at.client.get("/health", params={"a": "b" * 5000}).status_code in (400, 431)


def test_pixels_are_counted_before_they_are_decoded(
    at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(decoding, "decode", never)
    for data in (png(14_000, 14_000), png(101, 100, 100), png(2**31 - 1, 2**31 - 1)):
        answer = at.post(data)
        assert answer.status_code in (413, 422), answer.text
    assert at.post(png(14_000, 14_000)).status_code == 413
    files = {"first": ("a", png(60, 60, 60)), "second": ("b", png(14_000, 14_000))}
    answer = at.client.post("/runs/run1/predict", files=files)
    assert answer.status_code == 413
    assert "The second frame has 14,000 × 14,000 = 196 million" in answer.json()["error"]


def test_a_whole_bomb_takes_no_memory(serve: Serve, colours: Any) -> None:
    """14,000 × 14,000 pixels that are truly there, in a file of 600 kB."""
    limits = Limits(max_queue=16)
    bomb = png(14_000, 14_000, 14_000)
    assert len(bomb) < 1_000_000

    def peak() -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

    with serve(colours(), limits=limits) as running:
        before = peak()
        for _ in range(3):
            assert running.post(bomb).status_code == 413
    assert peak() - before < 100_000, "kB; decoded it is 588 MB"


def test_images_are_counted(at: Any, image: Make, coded: Callable[[bytes], str]) -> None:
    tiny = image(size=(4, 4))
    assert at.client.post("/predict", json={"images": [coded(tiny)] * 2}).status_code == 200
    answers = [
        at.client.post("/predict", json={"images": [coded(tiny)] * 3}),
        at.client.post("/predict", files=[("f", ("x", tiny))] * 3),
        at.client.post("/runs/run1/predict", files=[("f", ("x", tiny))] * 6),
        at.client.post("/runs/run1/predict", json={"images": [[coded(tiny)] * 2] * 3}),
    ]
    for answer in answers:
        assert answer.status_code == 413, answer.text
        assert "more than 2" in answer.json()["error"]


def test_a_full_queue_says_when_to_come_again_and_all_others_are_answered(
    serve: Serve, colours: Any, image: Make
) -> None:
    with serve(colours(seconds=0.02), limits=Limits(max_queue=16), batch_size=2) as running:
        shades = [(int(r), 255 - int(r), 0) for r in np.linspace(0, 120, 80)]

        def ask(shade: tuple[int, int, int]) -> tuple[int, float, Any]:
            answer = running.post(image(shade))
            if answer.status_code == 429:
                assert int(answer.headers["Retry-After"]) >= 1
                assert "wait already" in answer.json()["error"]
                return 429, 0.0, shade
            return answer.status_code, answer.json()["answers"][0]["top"][0][1], shade

        with concurrent.futures.ThreadPoolExecutor(80) as pool:
            said = list(pool.map(ask, shades))
        assert {status for status, _, _ in said} == {200, 429}
        for status, share, shade in said:
            if status == 200:
                assert share == pytest.approx(max(shade) / 255, abs=1e-6)
        assert running.runs[0].batcher.waiting == 0
        assert running.post(image()).status_code == 200, "and then there is room again"


def test_what_takes_too_long_is_given_up(serve: Serve, colours: Any, image: Make) -> None:
    model = colours()
    with serve(model, limits=Limits(max_seconds=0.3)) as running:
        model.gate.clear()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: running.post(image()), range(4)))
        assert [one.status_code for one in answers] == [503] * 4
        assert "0.3 seconds" in answers[0].json()["error"]
        model.gate.set()
        assert running.post(image()).status_code == 200
        assert running.runs[0].batcher.waiting == 0


def test_too_many_connections(serve: Serve, colours: Any) -> None:
    with serve(colours(), limits=Limits(max_connections=3, body_seconds=5)) as running:
        wires = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(3)]
        time.sleep(0.1)  # until they are accepted
        get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        assert raw(running.port, get)[0] == 429
        wires += [socket.create_connection(("127.0.0.1", running.port)) for _ in range(3)]
        time.sleep(0.1)
        assert raw(running.port, get)[0] == 0
        for wire in wires:
            wire.close()
        time.sleep(0.2)
        assert raw(running.port, get, end=False)[0] == 200


def test_a_client_that_takes_no_answer_is_cut_off(serve: Serve, colours: Any, image: Make) -> None:
    limits = Limits(body_seconds=0.5, max_connections=4)
    with serve(colours(), limits=limits) as running:
        path = b"POST /predict?picture=true HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        noise = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        data = file.getvalue()
        whole = len(running.post(data, path="/predict?picture=true").content)
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", running.port))
        wire.sendall(path + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        time.sleep(3)
        back = 0
        with contextlib.suppress(ConnectionError):
            while more := len(wire.recv(1 << 16)):
                back += more
        wire.close()
    assert 0 < back < whole, "the end of the answer was thrown away"


def test_who_goes_away_leaves_nothing_behind(serve: Serve, colours: Any, image: Make) -> None:
    with serve(colours()) as running:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", running.port)) as wire:
                wire.sendall(head(Content_Length=900, Content_Type="image/png") + b"x" * 100)
        until = time.monotonic() + 10
        while running.state.running and time.monotonic() < until:
            time.sleep(0.01)
        assert running.state.running == 0
        assert running.runs[0].batcher._coming == 0
        assert running.post(image()).status_code == 200


def test_limits_that_make_no_sense_are_refused() -> None:
    Limits().check()
    for wrong in (Limits(max_body=0), Limits(max_seconds=float("nan")), Limits(max_queue=-1)):
        with pytest.raises(InputError, match="more than 0 is expected"):
            wrong.check()
    with pytest.raises(InputError, match="never find room"):
        Limits(max_images=65).check()


def test_a_budget_is_kept_and_one_alone_gets_all() -> None:
    budget = Budget(10)
    assert budget.take(25) and not budget.take(1)
    budget.give_back(25)
    assert budget.take(6) and not budget.take(5) and budget.take(4)


def test_json_full_of_little_parts_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven million empty lists are 32 MiB of text and 700 MB of Python."""

    def never(body: bytes) -> Any:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(bodies.json, "loads", never)
    kind = {"content-type": "application/json"}
    for part in (b"[],", b"{},", b"1,", b'"",'):
        with pytest.raises(Refused) as refused:
            bodies.files(b'{"images":[' + part * 1000 + b"1]}", kind, pairs=False, most=16)
        assert refused.value.status == 413
