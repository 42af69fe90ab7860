"""Beyond each limit stands a sentence, before any work is done, and nothing hangs or piles up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import json
import re
import select
import socket
import struct
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidi.deploy.serving import app, bodies, decoding
from vidi.deploy.serving.limits import Budget, Limits, Refused
from vidi.errors import InputError

Serve = Callable[..., Any]
Make = Callable[..., bytes]
SMALL = Limits(
    max_body=0.02, max_images=2, max_megapixels=0.01, body_seconds=0.5, max_queue=4, max_headers=4
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

    size = width * 3 + 1
    packer = zlib.compressobj(9, wbits=-15)
    row = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH) if rows else b""
    check = struct.pack(">HH", size * rows % 65521, 1)  # Adler's, of zeros
    packed = b"\x78\xda" + row * rows + packer.flush() + check
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
    assert status == 408 and "0.5 seconds" in json.loads(body)["error"]
    drip = [head(Transfer_Encoding="chunked", Content_Type="image/png"), *[b"1\r\na\r\n"] * 14]
    assert raw(at.port, *drip, pause=0.05)[0] == 408
    assert time.monotonic() - began < 15


def test_slow_headers_and_silence_are_cut_off(at: Any) -> None:
    began = time.monotonic()
    for parts in ([b""], [b"POST /pre"], [b"GET /health HTTP/1.1\r\n", *[b"A: b\r\n"] * 10]):
        assert raw(at.port, *parts, pause=0.06) == (0, b"")
    # Also after a request that was answered.
    first = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    assert raw(at.port, first, b"GET /he")[0] == 200
    # And what nobody reads any more is not taken for ever.
    refused = head(Content_Length=1 << 30, Content_Type="image/png")
    assert raw(at.port, refused, *[bytes(1000)] * 12, pause=0.06)[0] == 413
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


def tiff_of(frames: int) -> bytes:
    """Directories that say no more than a size and where the pixels are (TIFF 6.0), each of which
    points to the next."""
    size = struct.pack("<HHHII", 3, 256, 4, 1, 1) + struct.pack("<HHII", 257, 4, 1, 1)
    strip = struct.pack("<HHII", 273, 4, 1, 8)
    ends = [*range(8 + 42, 8 + 42 * frames, 42), 0]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(
        size + strip + struct.pack("<I", end) for end in ends
    )  # fmt: skip


def jpeg_with(segments: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(file, "JPEG")
    return file.getvalue()[:2] + segments + file.getvalue()[2:]


def gif_of(frames: int) -> bytes:
    """Frames without a pixel's data."""
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + frames * (
        b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\0"
    ) + b";"  # fmt: skip


@pytest.mark.parametrize(
    "made",
    [
        lambda: tiff_of(24_000),
        lambda: jpeg_with(b"\xff\xe1\0\x08Exif\0\0" * 100_000),
        lambda: jpeg_with(b"\xff\xe5\0\2" * 250_000),
        lambda: gif_of(80_000),
        lambda: png(8, 8, 8)[:33] + b"\0\0\0\0teXt\xae\x0f\x83e" * 80_000 + png(8, 8, 8)[33:],
        lambda: b"P6 #" + b"a" * 1_000_000 + b"\n1 1 255 abc",
    ],
    ids=["frames of a TIFF", "Exif", "empty segments", "frames of a GIF", "chunks", "a comment"],
)
def test_a_file_of_very_many_parts_is_not_walked_through(made: Callable[[], bytes]) -> None:
    """A megabyte of any of them would take seconds, and thirty of them minutes or a gigabyte."""
    data = made()
    assert 900_000 < len(data) < 1_100_000
    with pytest.raises(Refused, match="too many parts") as refused:
        decoding.header(data, "It", Limits())
    assert refused.value.status == 422


def test_large_files_of_few_parts_are_read(at: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200), dtype=np.uint8)
    for kind in ("GIF", "TIFF", "PNG", "JPEG"):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, kind)
        assert decoding.header(file.getvalue(), "It", Limits()).size == (1200, 1200)
    profile = jpeg_with((b"\xff\xe2\xff\xff" + bytes(65533)) * 255)  # a colour profile's most
    assert decoding.header(profile, "It", Limits()).size == (8, 8)


def test_a_whole_bomb_takes_no_memory(serve: Serve, colours: Any) -> None:
    """14,000 × 14,000 pixels that are truly there, in a file of 600 kB."""
    limits = Limits(max_queue=16)
    bomb = png(14_000, 14_000, 14_000)
    assert len(bomb) < 1_000_000

    def peak() -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

    with serve(colours(), limits=limits) as running:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is that of now
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


def test_pixels_of_a_request_are_counted_together(serve: Serve, colours: Any, image: Make) -> None:
    limits = Limits(max_megapixels=0.01)
    with serve(colours(), colours("flow"), limits=limits) as running:
        for path, frames in (("/predict", 1), ("/runs/run1/predict", 2)):
            for count, status in ((4, 200), (5, 413)):
                files = [("f", ("x", image(size=(100, 100))))] * count * frames
                answer = running.client.post(path, files=files)
                assert answer.status_code == status, answer.text
        assert "0.08 million are looked at" in answer.json()["error"]


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


def test_bodies_on_their_way_are_counted_together(serve: Serve, colours: Any, image: Make) -> None:
    data = image() + bytes(19_000)  # an image for all that
    with serve(colours(), limits=Limits(max_body=0.02)) as running:
        with contextlib.ExitStack() as opened:
            wires = [
                opened.enter_context(socket.create_connection(("127.0.0.1", running.port)))
                for _ in range(9)
            ]
            for wire in wires:
                wire.sendall(head(Content_Length=len(data), Content_Type="image/png") + data[:-1])
            (one,), _, _ = select.select(wires, [], [], 10)
            one.settimeout(10)
            answer = b""
            while not answer.endswith(b"}"):  # its head may come before its body
                more = one.recv(1 << 16)
                assert more, answer
                answer += more
            assert b" 429 " in answer and b"bodies are on their way" in answer
        until = time.monotonic() + 10
        while running.state.running:
            assert time.monotonic() < until
            time.sleep(0.01)
        for _ in range(10):
            assert running.post(data).status_code == 200, "all of it was given back"


def test_what_takes_too_long_is_given_up(serve: Serve, colours: Any, image: Make) -> None:
    model = colours()
    with serve(model, limits=Limits(max_seconds=0.2)) as running:
        model.gate.clear()
        for _ in range(3):
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda _: running.post(image()), range(4)))
            assert [one.status_code for one in answers] == [503] * 4
            assert len(running.runs[0].batcher._queue) == 0, "their images went, too"
        assert "0.2 seconds" in answers[0].json()["error"]
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


LARGE = b'"' + b"x" * 20_000_000 + b'"'
"""An answer that no socket's buffer holds."""


@contextlib.contextmanager
def slow_reader(port: int, data: bytes) -> Iterator[socket.socket]:
    """A client that has asked, and has a small buffer for the answer."""
    with socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", port))
        wire.sendall(head(Content_Length=len(data), Content_Type="image/png") + data)
        assert wire.recv(12) == b"HTTP/1.1 200"
        yield wire


def test_who_takes_no_answer_or_takes_it_slowly_is_cut_off(
    serve: Serve, colours: Any, image: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_said", lambda *_: LARGE)
    with serve(colours(), limits=Limits(body_seconds=0.5, max_connections=4)) as running:
        assert running.post(image()).content == LARGE
        for each in (0, 1 << 14):
            with slow_reader(running.port, image()) as wire:
                back = 0
                for _ in range(20):
                    time.sleep(0.05)
                    back += len(wire.recv(each)) if each else 0
                with contextlib.suppress(ConnectionError):
                    while more := len(wire.recv(1 << 16)):
                        back += more
            assert 0 < back < len(LARGE), "the end of the answer was thrown away"


def test_answers_on_their_way_are_counted(
    serve: Serve, colours: Any, image: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_said", lambda *_: LARGE)
    with serve(colours(), limits=Limits(max_body=1)) as running:  # and so 8 MiB of answers
        with slow_reader(running.port, image()):
            answer = running.post(image())
            assert answer.status_code == 429
            assert "answers are on their way" in answer.json()["error"]
        until = time.monotonic() + 10
        while (answer := running.post(image())).status_code == 429:
            assert time.monotonic() < until
        assert answer.content == LARGE, "once the other has gone there is room"
        assert running.post(image()).content == LARGE, "and it was given back"


def test_what_was_given_up_is_not_kept_for_a_thread() -> None:
    class Large:
        pass

    async def give_up() -> Any:
        free = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(free.wait, 20)
            large = Large()
            seen = weakref.ref(large)
            waiting = asyncio.create_task(app.in_thread(pool, print, large))
            del large
            await asyncio.sleep(0)
            assert seen() is not None
            waiting.cancel()
            await asyncio.wait([waiting])
            try:
                return seen()
            finally:
                free.set()

    assert asyncio.run(give_up()) is None


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

    monkeypatch.setattr("vidi.deploy.serving.bodies.json.loads", never)
    kind = {"content-type": "application/json"}
    for part in (b"[],", b"{},", b"1,", b'"",'):
        with pytest.raises(Refused) as refused:
            bodies.files(b'{"images":[' + part * 1000 + b"1]}", kind, pairs=False, most=16)
        assert refused.value.status == 413
