"""Damaged and made-up requests: 200 where they are still right, else a sentence, and never more."""

from __future__ import annotations

import asyncio
import io
import runpy
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image

import vidi
from vidi.data.images import decode
from vidi.errors import InputError

LOAD = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "serve_load.py"))
MUTATIONS = 300
EXAMPLES = 15


@pytest.fixture(scope="module")
def at(serve: Callable[..., Any], colours: Any) -> Iterator[Any]:
    with serve(colours(), colours("flow")) as running:
        yield running


def photo(kind: str) -> bytes:
    return bytes(LOAD["photo"](kind, 0))


def right(answer: Any, still_valid: bool | None = None) -> None:
    """Either an answer, or a 4xx with a sentence."""
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    said = answer.json()
    if answer.status_code == 200:
        assert said["answers"]
    else:
        assert list(said) == ["error"] and said["error"].endswith((".", "}")), said
        for ours in (str(Path.home()), vidi.__file__.rsplit("/", 2)[0], "site-packages"):
            assert ours not in answer.text
        assert "Traceback" not in answer.text
    if still_valid is not None:
        assert (answer.status_code == 200) == still_valid, answer.text


@pytest.mark.parametrize("kind", LOAD["KINDS"])
def test_files_that_are_cut_short(at: Any, kind: str) -> None:
    data = photo(kind)
    right(at.post(data), still_valid=True)
    for share in (0.02, 0.2, 0.5, 0.8):
        part = data[: int(share * len(data))]
        # Whether it is still an image, the one place that decodes says.
        try:
            decode(part, "it")
            valid = True
        except InputError:
            valid = False
        right(at.post(part), still_valid=valid)


def test_files_that_are_two_things_at_once(at: Any) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("evil.txt", "hello " * 100)
    png, jpeg = photo("PNG"), photo("JPEG")
    script = b"<?php echo 1; ?><script>alert(1)</script>"
    for data, valid in (
        (png + packed.getvalue(), True),  # an image for all that
        (jpeg + packed.getvalue(), True),
        (packed.getvalue() + png, False),
        (script + png, False),
        (b"GIF89a" + script, False),
        (b"\xff\xd8\xff" + png, False),
        (png[:8] + jpeg, False),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", False),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", False),
    ):
        right(at.post(data), still_valid=valid)


def test_animated_and_deep_images(at: Any) -> None:
    frames = [Image.new("RGB", (8, 8), (k, 0, 0)) for k in (1, 200)]
    for kind in ("GIF", "WEBP", "PNG"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        answer = at.post(file.getvalue())
        right(answer, still_valid=False)
        assert "frames" in answer.json()["error"]
    file = io.BytesIO()
    Image.new("F", (8, 8), 0.5).save(file, "TIFF")
    right(at.post(file.getvalue()), still_valid=False)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 2)])
def test_odd_sizes(at: Any, image: Callable[..., bytes], size: tuple[int, int]) -> None:
    right(at.post(image(size=size)), still_valid=True)


def test_random_mutations_of_valid_requests(at: Any) -> None:
    """As benchmarks/serve_load.py makes them, which sends thousands."""
    statuses = set()
    for seed in range(MUTATIONS):
        rng = np.random.default_rng(seed)
        pairs = bool(seed % 2)
        request = LOAD["valid"](rng, pairs=pairs)
        base = "/runs/run1/predict" if pairs else "/predict"
        if seed < 40:
            right(at.post(request[2], request[1], base), still_valid=True)
        tail, kind, body = LOAD["mutated"](rng, request)
        answer = at.post(body, kind, base + tail)
        right(answer)
        statuses.add(answer.status_code)
    assert {200, 400, 404, 415, 422} <= statuses
    assert at.state.running == 0
    assert all(one.batcher.waiting == 0 and one.batcher._coming == 0 for one in at.runs)
    assert at.client.get("/ready").status_code == 200


def test_the_benchmark_sees_a_server_that_drops_what_it_is_asked() -> None:
    """It asks again only where a connection that had stayed was closed meanwhile."""
    answers = [0]  # of each connection to come

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(answers.pop(0)):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx")
        await writer.drain()
        writer.close()

    async def check() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            wire = LOAD["Wire"](server.sockets[0].getsockname()[1])
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await wire.ask("/predict", "image/png", b"")
            answers.extend([1, 1])
            for _ in range(2):
                assert await wire.ask("/predict", "image/png", b"") == (200, b"x")
            wire.close()
        assert answers == []

    asyncio.run(check())


@pytest.fixture(scope="module")
def api(at: Any) -> Any:
    return schemathesis.openapi.from_url(f"{at.url}/openapi.json")


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_the_schema_holds_under_a_fuzzer(api: Any, mode: Any) -> None:
    """What answers is documented, whether what was sent is as documented or is not."""
    # That a body is an image, or base64 of one, no schema can say.
    unknown = schemathesis.checks.CHECKS.get_one("positive_data_acceptance")
    tried = set()
    for found in api.get_all_operations():
        operation = found.ok()
        if mode == schemathesis.GenerationMode.NEGATIVE and operation.method == "get":
            continue  # nothing that could be wrong is sent with those

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: Any) -> None:
            case.call_and_validate(excluded_checks=[unknown])
            tried.add(case.path)

        holds()
    assert {"/predict", "/runs/{name}/predict"} <= tried
