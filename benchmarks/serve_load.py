"""What a server of a run bears: speed, memory, ten times too much, and damaged requests.

    python benchmarks/serve_load.py runs/photos-resnet18 --images photos/val
    python benchmarks/serve_load.py runs/photos-resnet18 --parts memory overload --requests 20000
    python benchmarks/serve_load.py runs/photos-resnet18 --parts mutations --mutations 10000

The server is a process of its own (`vidi serve`, at this machine's own address), the clients are in
this one, so both share the processors. ``speed``: requests of one image by 1, 8 and 64 clients that
each ask again at once, with batches and without: requests per second, and the median and 99th
percentile of the time to an answer. ``memory``: the server's resident memory over many requests.
``overload``: more than ten times as many requests a second as it answered (of a light network more
than the clients can send; one like resnet152 is slow enough); counts what came back, looks at the
queue meanwhile, and compares each answer with the one that the same image got before.
``mutations``: valid requests with a few things changed at random; whatever is no 200 has to be a
4xx with a sentence. For classifiers. Linux only. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import functools
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from PIL import Image

OVERLOAD = 12
"""Times what a server answers; the clients that wait for an answer ask less, and ten is left."""
KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
TYPES = ("image/png", "application/json", "multipart/form-data; boundary=xyz", "text/html", "",
         "multipart/form-data", 'image/png; a="', "a;b;c")  # fmt: skip
TAILS = ("?top=-1", "?run=", "?run=%00", "?top=99999999999", "/x", "?picture=true", "?least=nan",
         "?arrays=true", "%2e%2e", "?top=5&top=6")  # fmt: skip
Request = tuple[str, str, bytes]
"""Path, Content-Type and body."""


@contextlib.contextmanager
def serving(run: str, *words: str) -> Iterator[int]:
    """The port of a server that is ready."""
    command = [sys.executable, "-m", "vidi", "serve", run, "--port", "0", *words]
    with tempfile.TemporaryFile("w+") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert server.stdout is not None
            said = (re.search(r"http://.*:(\d+)$", line) for line in server.stdout)
            port = next((int(found[1]) for found in said if found), 0)
            while port and server.poll() is None:
                with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/ready"):
                    break
                time.sleep(0.1)
            if port:
                yield port
            server.terminate()
            code = server.wait(120)
            errors.seek(0)
            if code or not port:
                raise SystemExit(f"the server ended with {code}: {errors.read()[-2000:]}")
        finally:
            server.kill()
            server.communicate()


class Wire:
    """One connection that stays, and is made again where the server closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, kind: str, body: bytes) -> tuple[int, bytes]:
        """(status, body) of a POST."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        while True:
            fresh = self.streams is None
            try:
                if self.streams is None:
                    self.streams = await asyncio.open_connection("127.0.0.1", self.port)
                reader, writer = self.streams
                writer.write(head.encode("latin-1") + body)
                await writer.drain()
                header = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", header)
                assert length is not None, header
                said = await reader.readexactly(int(length[1]))
                if b"connection: close" in header:
                    self.close()
                return int(header.split(None, 2)[1]), said
            except (OSError, asyncio.IncompleteReadError):
                self.close()  # it was idle for too long
                if fresh:  # or the server dropped what was asked
                    raise

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


@dataclass
class Loaded:
    """``waits``: seconds to each answer."""

    seconds: float
    waits: list[float]
    statuses: Counter[int]
    wrong: int = 0
    longest_queue: float = 0.0

    def row(self) -> dict[str, Any]:
        waits = np.sort(self.waits) * 1000 if self.waits else np.zeros(1)
        return {
            "per_second": round(self.statuses[200] / self.seconds, 1),
            "p50_ms": round(float(np.quantile(waits, 0.5)), 1),
            "p99_ms": round(float(np.quantile(waits, 0.99)), 1),
            "statuses": dict(self.statuses),
        }


async def closed_loop(
    port: int, images: Sequence[bytes], clients: int, seconds: float, most: int = 10**9
) -> Loaded:
    """Each client asks again as soon as it has its answer."""
    done = Loaded(0.0, [], Counter())
    began = time.perf_counter()

    async def client(k: int) -> None:
        wire = Wire(port)
        while time.perf_counter() - began < seconds and sum(done.statuses.values()) < most:
            asked = time.perf_counter()
            status, _ = await wire.ask("/predict", "image/jpeg", images[k % len(images)])
            done.statuses[status] += 1
            done.waits.append(time.perf_counter() - asked)
            k += clients
        wire.close()

    await asyncio.gather(*(client(k) for k in range(clients)))
    done.seconds = time.perf_counter() - began
    return done


async def open_loop(
    port: int, images: Sequence[bytes], expected: Sequence[Any], rate: float, seconds: float
) -> Loaded:
    """``rate`` requests a second, or as many as 400 clients get out who wait for each answer."""
    done = Loaded(0.0, [], Counter())
    began = time.perf_counter()
    clients = 400

    async def client(k: int) -> None:
        wire = Wire(port)
        n = k
        while (due := n / rate) < seconds and time.perf_counter() - began < seconds:
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - began)))
            asked = time.perf_counter()
            status, said = await wire.ask("/predict", "image/jpeg", images[n % len(images)])
            done.statuses[status] += 1
            if status == 200:
                done.waits.append(time.perf_counter() - asked)
                done.wrong += not same(json.loads(said)["answers"][0], expected[n % len(images)])
            n += clients
        wire.close()

    async def watch() -> None:
        while True:
            queue = await asyncio.to_thread(metric, port, "vidi_queue_images")
            done.longest_queue = max(done.longest_queue, queue)
            await asyncio.sleep(0.2)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client(k) for k in range(clients)))
    watching.cancel()
    done.seconds = time.perf_counter() - began
    return done


def same(one: Any, other: Any) -> bool:
    return bool(
        one["label"] == other["label"] and abs(one["probability"] - other["probability"]) < 0.01
    )


def metric(port: int, name: str) -> float:
    """The sum of a metric's rows."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))


def batches(port: int) -> list[float]:
    """How many there were, their images, and the seconds that they took."""
    names = ("vidi_batch_images_count", "vidi_batch_images_sum", "vidi_batch_seconds_sum")
    return [metric(port, name) for name in names]


def mean(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    count, images, seconds = (a - b for a, b in zip(after, before, strict=True))
    return {
        "images_a_batch": round(images / max(1, count), 1),
        "ms_a_batch": round(1000 * seconds / max(1, count), 1),
    }


def speed(run: str, images: Sequence[bytes], seconds: float) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, words in (("batches", []), ("one by one", ["--batch-size", "1"])):
        with serving(run, *words) as port:
            asyncio.run(closed_loop(port, images, 8, 2.0))
            for clients in (1, 8, 64):
                before = batches(port)
                row = asyncio.run(closed_loop(port, images, clients, seconds)).row()
                row |= mean(before, batches(port))
                out[f"{name}, {clients}"] = row
                print(f"{name:<11} {clients:>3} clients: {row}", flush=True)
    return out


def memory(run: str, images: Sequence[bytes], requests: int) -> dict[str, Any]:
    """The first tenth fills what is kept for good."""
    with serving(run) as port:
        sizes = []
        for k in range(10):
            done = asyncio.run(closed_loop(port, images, 8, 1e9, requests // 10))
            assert set(done.statuses) == {200}, done.statuses
            sizes.append(round(metric(port, "process_resident_memory_bytes") / 1e6, 1))
            print(f"{(k + 1) * requests // 10:>7,} requests: {sizes[-1]:,} MB", flush=True)
    return {"mb": sizes, "grown_mb": round(sizes[-1] - sizes[0], 1)}


def overload(run: str, images: Sequence[bytes], seconds: float) -> dict[str, Any]:
    with serving(run, "--max-connections", "1000") as port:

        async def singles() -> list[Any]:
            wire = Wire(port)
            said = [await wire.ask("/predict", "image/jpeg", data) for data in images]
            wire.close()
            return [json.loads(body)["answers"][0] for _, body in said]

        expected = asyncio.run(singles())
        capacity = asyncio.run(closed_loop(port, images, 32, seconds)).row()["per_second"]
        before = batches(port)
        loaded = asyncio.run(open_loop(port, images, expected, OVERLOAD * capacity, seconds))
        after = batches(port)
        again = asyncio.run(closed_loop(port, images, 8, 2.0)).statuses
    row = loaded.row() | mean(before, after)
    row |= {
        "capacity": capacity,
        "asked_per_second": round(sum(loaded.statuses.values()) / seconds, 1),
        "longest_queue": loaded.longest_queue,
        "wrong": loaded.wrong,
        "afterwards": dict(again),
    }
    print(f"overload: {row}", flush=True)
    assert set(loaded.statuses) <= {200, 429} and not loaded.wrong, row
    return row


@functools.cache
def photo(kind: str, seed: int) -> bytes:
    """The file of a little image of coloured blocks."""
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def valid(rng: np.random.Generator, *, pairs: bool = False) -> Request:
    """A request in one of the three forms, to be asked of a run's ``/predict``."""
    kind = KINDS[rng.integers(len(KINDS))]
    data = photo(kind, int(rng.integers(5)))
    form = rng.integers(1, 3) if pairs else rng.integers(3)
    count = int(rng.integers(1, 4))
    if form == 0:
        return "", f"image/{kind.lower()}", data
    if form == 1:
        names = [b"first", b"second"] if pairs else [b"file"] * count
        head = b'--xyz\r\nContent-Disposition: form-data; name="%b"; filename="a"\r\n\r\n'
        parts = b"".join(head % name + data + b"\r\n" for name in names)
        return "", "multipart/form-data; boundary=xyz", parts + b"--xyz--\r\n"
    text = base64.b64encode(data).decode()
    images: list[Any] = [[text, text] if pairs else text] * count
    return "", "application/json", json.dumps({"images": images}).encode()


def mutated(rng: np.random.Generator, request: Request) -> Request:
    """The request with a few things changed at random."""
    path, kind, body = request
    data = bytearray(body)
    for _ in range(rng.integers(1, 5)):
        at, size = int(rng.integers(len(data) + 1)), int(rng.integers(1, 40))
        match rng.integers(8):
            case 0:
                data[at : at + size] = rng.bytes(size)
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = rng.bytes(size)
            case 3:
                del data[at:]
            case 4:
                data[at : at + 1] = rng.bytes(1)
            case 5:
                data[at:at] = data[:size] * int(rng.integers(1, 9))
            case 6:
                kind = TYPES[rng.integers(len(TYPES))]
            case 7:
                path = path + TAILS[rng.integers(len(TAILS))]
    return path, kind, bytes(data)


def mutations(run: str, count: int) -> dict[str, Any]:
    statuses: Counter[int] = Counter()
    sizes, slowest = [], 0.0

    async def some(seeds: range) -> None:
        nonlocal slowest
        wire = Wire(port)
        for seed in seeds:
            rng = np.random.default_rng(seed)
            path, kind, body = mutated(rng, valid(rng))
            began = time.perf_counter()
            status, said = await asyncio.wait_for(wire.ask("/predict" + path, kind, body), 60)
            slowest = max(slowest, time.perf_counter() - began)
            statuses[status] += 1
            right = status == 200 or (400 <= status < 500 and json.loads(said)["error"])
            assert right, (seed, status, said)
        wire.close()

    with serving(run) as port:
        for k in range(10):
            part = range(k * count // 10, (k + 1) * count // 10)
            asyncio.run(some(part))
            sizes.append(round(metric(port, "process_resident_memory_bytes") / 1e6, 1))
            print(f"{part.stop:>7,} mutations: {dict(statuses)}, {sizes[-1]:,} MB", flush=True)
        again = asyncio.run(closed_loop(port, [photo("JPEG", 0)], 1, 1.0)).statuses
        assert set(again) == {200}, again
    return {"statuses": dict(statuses), "slowest_s": round(slowest, 2), "mb": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--images", help="a folder of JPEG files; without it, 500 × 375 of noise")
    parser.add_argument("--parts", nargs="+", default=["speed", "memory", "overload"],
                        choices=["speed", "memory", "overload", "mutations"])  # fmt: skip
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--requests", type=int, default=20_000, help="of memory")
    parser.add_argument("--mutations", type=int, default=10_000)
    told = parser.parse_args()
    if told.images is None:
        files = []
        for seed in range(32):
            rng = np.random.default_rng(seed)
            pixels = np.kron(rng.integers(0, 256, (15, 20, 3)), np.ones((25, 25, 1)))
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
            files.append(file.getvalue())
    else:
        found = sorted(p for p in Path(told.images).rglob("*") if p.suffix in (".jpg", ".JPEG"))
        files = [path.read_bytes() for path in found[:256]]
    out: dict[str, Any] = {"run": told.run}
    if "speed" in told.parts:
        out["speed"] = speed(told.run, files, told.seconds)
    if "overload" in told.parts:
        out["overload"] = overload(told.run, files, told.seconds)
    if "memory" in told.parts:
        out["memory"] = memory(told.run, files, told.requests)
    if "mutations" in told.parts:
        out["mutations"] = mutations(told.run, told.mutations)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
