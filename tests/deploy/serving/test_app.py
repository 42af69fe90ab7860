"""What the addresses answer, in whatever form an image is sent, and who is let in."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import dataclasses
import hashlib
import importlib.util
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image

import vidi
from vidi.deploy import serving
from vidi.deploy.serving import app, metrics
from vidi.deploy.serving.limits import Limits
from vidi.deploy.serving.served import Served
from vidi.deploy.serving.server import LOOPBACK
from vidi.errors import InputError

Serve = Callable[..., Any]
Make = Callable[..., bytes]
RED, GREEN, BLUE = (200, 20, 20), (20, 200, 20), (10, 20, 240)


@pytest.fixture(scope="module")
def at(serve: Serve, colours: Any) -> Iterator[Any]:
    """A server of a classifier and of a flow run."""
    with serve(colours(), colours("flow")) as running:
        yield running


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def labels(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["label"] for one in answer.json()["answers"]]


def sentence(answer: httpx.Response, status: int) -> str:
    """The error's text, which has to be a sentence in the one form."""
    assert answer.status_code == status, answer.text
    said = answer.json()
    assert list(said) == ["error"]
    assert re.fullmatch(r"[A-Z].*[.}>]", said["error"], re.S), said["error"]
    return str(said["error"])


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream", ""])
def test_an_image_as_it_is(at: Any, image: Make, kind: str) -> None:
    answer = at.post(image(GREEN, kind="JPEG"), kind)
    assert labels(answer) == ["green"]
    assert answer.json()["run"] == "run0"
    assert answer.json()["answers"][0]["probability"] == pytest.approx(200 / 240, abs=0.01)


def test_several_as_multipart_and_as_json_in_order(
    at: Any, image: Make, coded: Callable[[bytes], str]
) -> None:
    sent = [image(colour) for colour in (BLUE, RED, GREEN)]
    files = [("any", (f"{i}.png", data)) for i, data in enumerate(sent)]
    answer = at.client.post("/predict", files=files, data={"words": "are not looked at"})
    assert labels(answer) == ["blue", "red", "green"]
    answer = at.client.post("/predict", json={"images": [coded(data) for data in sent]})
    assert labels(answer) == ["blue", "red", "green"]
    url = "data:image/png;base64," + coded(sent[0])
    assert labels(at.client.post("/predict", json={"images": [url]})) == ["blue"]


def test_a_run_is_named_in_either_way(at: Any, image: Make) -> None:
    for path in ("/predict?run=run0", "/runs/run0/predict"):
        assert labels(at.post(image(RED), path=path)) == ["red"]
    for path in ("/predict?run=other", "/runs/other/predict"):
        assert "run0, run1" in sentence(at.post(image(RED), path=path), 404)


def test_pairs_of_frames(at: Any, image: Make, coded: Callable[[bytes], str]) -> None:
    pairs = [(image((10, 20, 0)), image((13, 16, 0))), (image(RED), image(RED))]
    motions = [5.0, 0.0]
    named = [("second", ("b", b)) for _, b in pairs] + [("first", ("a", a)) for a, _ in pairs]
    plain = [("f", (str(i), one)) for i, one in enumerate(sum(pairs, ()))]
    bodies: list[dict[str, Any]] = [
        {"files": named},
        {"files": plain},
        {"json": {"images": [[coded(a), coded(b)] for a, b in pairs]}},
    ]
    for body in bodies:
        answer = at.client.post("/runs/run1/predict", **body)
        assert answer.status_code == 200, answer.text
        assert [one["mean_motion"] for one in answer.json()["answers"]] == motions


@pytest.mark.parametrize("count", [1, 3])
def test_half_a_pair_is_a_sentence(at: Any, image: Make, count: int) -> None:
    files = [("f", ("x", image(RED)))] * count
    sentence(at.client.post("/runs/run1/predict", files=files), 422)
    files = [("first", ("x", image(RED)))] * count
    sentence(at.client.post("/runs/run1/predict", files=files), 422)
    said = sentence(at.post(image(RED), path="/runs/run1/predict"), 422)
    assert '"first"' in said
    files = [("first", ("x", image(RED))), ("second", ("y", image(RED, (41, 30))))]
    assert "one size" in sentence(at.client.post("/runs/run1/predict", files=files), 422)


def test_the_picture_and_how_much_is_said(at: Any, image: Make) -> None:
    body = image(GREEN, (800, 600), "JPEG")
    answer = at.post(body, path="/predict?picture=true&top=1").json()["answers"][0]
    assert [name for name, _ in answer["top"]] == ["green"]
    with Image.open(io.BytesIO(base64.b64decode(answer["picture"]))) as drawn:
        assert drawn.width >= 800, "the image as it came, not as the network sees it"
        assert np.abs(np.asarray(drawn)[100, 100].astype(int) - GREEN).max() < 4
    assert "picture" not in at.post(body).json()["answers"][0]


def test_arrays_are_given_where_asked_for(at: Any, image: Make) -> None:
    files = {"first": ("a", image((10, 20, 0))), "second": ("b", image((13, 16, 0)))}
    answer = at.client.post("/runs/run1/predict?arrays=true", files=files).json()["answers"][0]
    png = np.frombuffer(base64.b64decode(answer["flow"]), np.uint8)
    stored = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    assert stored is not None
    stored = stored[..., ::-1].astype(float)
    # The benchmark's own form: u = (value - 2^15) / 64.
    np.testing.assert_allclose((stored[..., :2] - 2**15) / 64, [[[3, -4]]] * np.ones((30, 40, 1)))


@pytest.mark.parametrize("query", ["top=0", "top=x", "least=2", "picture=maybe", "least=nan"])
def test_a_wrong_query_is_a_sentence(at: Any, image: Make, query: str) -> None:
    said = sentence(at.post(image(RED), path=f"/predict?{query}"), 422)
    assert query.split("=")[0] in said


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b"[" * 900, 400),
        ("application/json", b"[" * 2000, 413),
        ("application/json", b'{"images": "' + b"1" * 9 + b'"}', 422),
        ("application/json", b'{"images": []}', 422),
        ("application/json", b'{"images": [1]}', 422),
        ("application/json", b'{"images": ["\\u20ac"]}', 422),
        ("application/json", b'{"images": ["AAA"]}', 422),
        ("application/json", b'{"images": ["AAAA"]}', 422),
        ("application/json", b"1" * 5000, 400),
        ("application/json", b"\xff\xfe", 400),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=a", b"", 400),
        ("multipart/form-data; boundary=a", b"--a\r\n\r\nx\r\n--a--\r\n", 400),
        ("multipart/form-data; boundary=" + "a" * 300, b"x", 400),
        ("multipart/form-data; boundary=a",
         b'--a\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\r\n--a--\r\n', 422),
        ("text/plain", b"x", 415),
        ("application/x-www-form-urlencoded", b"a=b", 415),
        ("image/png", b"", 422),
    ],
)  # fmt: skip
def test_what_holds_no_image_is_a_sentence(at: Any, kind: str, body: bytes, status: int) -> None:
    sentence(at.post(body, kind), status)


def test_a_compressed_body_is_not_unpacked(at: Any, image: Make) -> None:
    headers = {"Content-Type": "image/png", "Content-Encoding": "gzip"}
    sentence(at.client.post("/predict", content=image(RED), headers=headers), 415)


def test_names_that_are_no_text_are_answered(serve: Serve, colours: Any, image: Make) -> None:
    """Folders of classes may have names of any bytes."""

    class Odd(colours):  # type: ignore[misc]
        def _said(self, one: Any) -> Any:
            names = {"label": "ro\udcfft", "labels": ("ro\udcfft",)}
            return dataclasses.replace(super()._said(one), **names)

    model = Odd()
    model.classes = ("ro\udcfft", "grün", "blue")
    with serve(model) as running:
        (told,) = running.client.get("/runs").json()["runs"]
        assert told["classes"] == ["ro?t", "grün", "blue"]
        answer = running.post(image(RED), path="/predict?picture=true")
        assert labels(answer) == ["ro?t"]
        assert answer.json()["answers"][0]["top"][0][0] == "ro?t"
        assert running.client.get("/metrics").status_code == 200


def test_what_is_not_there_and_wrong_methods(at: Any) -> None:
    sentence(at.client.get("/nothing"), 404)
    sentence(at.client.get("/docs"), 404)
    answer = at.client.delete("/predict")
    sentence(answer, 405)
    assert answer.headers["Allow"] == "POST"
    sentence(at.client.post("/runs/../../etc/passwd"), 404)


def test_what_runs_there_are(at: Any) -> None:
    said = at.client.get("/runs").json()
    assert [(one["name"], one["task"], one["default"]) for one in said["runs"]] == [
        ("run0", "classification", True),
        ("run1", "flow", False),
    ]
    assert [one["inputs"] for one in said["runs"]] == [["image"], ["first", "second"]]
    assert said["limits"] == {"body_mib": 32, "megapixels": 50, "images": 16}


def test_one_bad_image_harms_no_other_request(at: Any, image: Make) -> None:
    """Also where it is the network that falls over it, and only that one's sender hears of it;
    nothing of the traceback or of the server's files gets out."""
    poison, unseen = (1, 2, 3), (3, 2, 1)
    model = at.runs[0].model
    model.gate.clear()
    model.batches.clear()
    colours = [RED, poison, GREEN, unseen, BLUE]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        first = pool.submit(at.post, image(RED))
        until(lambda: model.batches == [1])
        asked = [pool.submit(at.post, image(colour)) for colour in colours]
        until(lambda: len(at.runs[0].batcher._queue) == 5)
        model.gate.set()
        assert labels(first.result()) == ["red"]
        answers = [one.result() for one in asked]
    assert 5 in model.batches, "they went together"
    assert [one.status_code for one in answers] == [200, 500, 200, 422, 200]
    assert [labels(answers[i])[0] for i in (0, 2, 4)] == ["red", "green", "blue"]
    assert "secret" not in sentence(answers[1], 500)
    sentence(answers[3], 422)
    until(lambda: model.notes == [])  # sentences of predictions do not pile up


def test_a_batch_answers_as_single_images_do_and_as_the_run_itself(
    serve: Serve, trained: Any, digits: Any
) -> None:
    model = vidi.load(trained)
    files = []
    for pixels in digits:
        file = io.BytesIO()
        Image.fromarray(pixels).resize((20, 16)).save(file, "PNG")
        files.append(file.getvalue())
    expected = model.predict([np.asarray(Image.open(io.BytesIO(data))) for data in files])
    with serve(model, batch_size=16, latency=0.2) as running:
        single = [running.post(data).json()["answers"][0] for data in files]
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            together = [r.json()["answers"][0] for r in pool.map(running.post, files)]
        text = running.metrics.text().decode()
    assert float(re.findall(r'vidi_batch_images_bucket{le="4.0".*} (.*)', text)[0]) < float(
        re.findall(r'vidi_batch_images_bucket{le="16.0".*} (.*)', text)[0]
    ), "some went together"
    for one, other, own in zip(single, together, expected, strict=True):
        assert one["label"] == other["label"] == own.label
        assert other["probability"] == pytest.approx(one["probability"], abs=1e-5)
        assert one["probability"] == pytest.approx(own.probability, abs=1e-5)


def test_a_jpeg_is_shrunk_as_the_run_itself_shrinks_the_file(
    serve: Serve, trained: Any, tmp_path: Any
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    path = tmp_path / "noise.jpg"
    Image.fromarray(noise).save(path)
    model = vidi.load(trained)
    own = model.predict(path)[0]
    with serve(model) as running:
        said = running.post(path.read_bytes()).json()["answers"][0]
    assert said["probability"] == pytest.approx(own.probability, abs=1e-9)


def test_a_token_is_asked_for(serve: Serve, colours: Any, image: Make) -> None:
    with serve(colours(), token="right-one") as running:
        for path in ("/", "/health", "/ready"):
            assert running.client.get(path).status_code == 200
        wrong: list[dict[str, Any]] = [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer right-one-more"},
            {"Authorization": "Basic right-one"},
            {"Authorization": "right-one"},
            {"Authorization": b"Bearer \xff"},
        ]
        for headers in wrong:
            for path in ("/runs", "/metrics", "/openapi.json", "/nothing"):
                answer = running.client.get(path, headers=headers)
                sentence(answer, 401)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            sentence(running.client.post("/predict", content=b"x", headers=headers), 401)
        right = {"Authorization": "Bearer right-one", "Content-Type": "image/png"}
        for path in ("/runs", "/metrics", "/openapi.json"):
            assert running.client.get(path, headers=right).status_code == 200
        assert labels(running.client.post("/predict", content=image(RED), headers=right)) == ["red"]
        assert 'vidi_refusals_total{why="token"}' in running.metrics.text().decode()


def test_no_other_name_leads_to_a_server_of_this_machine(serve: Serve, colours: Any) -> None:
    with serve(colours(), hosts=LOOPBACK) as running:
        for host in ("localhost", f"127.0.0.1:{running.port}", "[::1]", "LOCALHOST:1"):
            assert running.client.get("/runs", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", f"evil.example:{running.port}"):
            sentence(running.client.get("/runs", headers={"Host": host}), 400)


def test_the_page_allows_itself_and_nothing_else(at: Any) -> None:
    answer = at.client.get("/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", answer.text, re.S)
    assert scripts
    for text in scripts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_metrics_count_and_have_no_more_rows_for_more_requests(
    serve: Serve, colours: Any, image: Make
) -> None:
    with serve(colours()) as running:

        def rows() -> dict[str, float]:
            text = running.client.get("/metrics").text
            lines = [line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#"]
            return {name: float(value) for name, value in lines}

        def ask(times: int) -> None:
            for k in range(times):
                running.post(image(RED))
                running.post(b"no image")
                running.client.get(f"/{k}-nothing", headers={"User-Agent": str(k)})
                running.post(image(RED), path=f"/runs/unknown{k}/predict")
                running.post(image(RED), kind=f"text/{k}")

        ask(1)
        rows()
        before = rows()
        ask(7)
        after = rows()
    assert set(before) == set(after)
    name = 'vidi_requests_total{route="/predict",status="200"}'
    assert after[name] - before[name] == 7
    name = 'vidi_refusals_total{why="image"}'
    assert after[name] - before[name] == 7
    name = 'vidi_batch_images_sum{run="run0"}'
    assert after[name] - before[name] == 7
    assert after['vidi_queue_images{run="run0"}'] == 0
    assert before["process_resident_memory_bytes"] > 1e7
    assert metrics.route_of("/runs/a/predict") == "/predict"


def test_the_schema_s_examples_are_answered(at: Any) -> None:
    schema = at.client.get("/openapi.json").json()
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    examples = [one["value"] for one in body["examples"].values()]
    for run, example in zip(("run0", "run1"), examples, strict=True):
        answer = at.client.post("/predict", params={"run": run}, json=example)
        assert answer.status_code == 200, answer.text
    assert json.dumps(schema).count("http") == 0, "nothing is fetched from elsewhere"


def test_nothing_is_predicted_before_the_runs_are_ready(colours: Any, image: Make) -> None:
    counts = metrics.Metrics()
    made, _ = app.create([Served("run0", colours(), Limits(), counts)], Limits(), counts)

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(made)  # which starts nothing
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return [await client.get("/ready"), await client.post("/predict", content=image())]

    for answer in asyncio.run(ask()):
        assert "being made ready" in sentence(answer, 503)
    assert answer.headers["Retry-After"] == "1"


def test_a_run_that_cannot_predict_stops_the_server(serve: Serve, colours: Any) -> None:
    class Broken(colours):  # type: ignore[misc]
        def stream(self, sources: Any, *, batch_size: int | None = None) -> Any:
            return [InputError("its proposals are in a file that knows other images")]

    with serve(Broken()) as running:
        running.thread.join(10)
        assert isinstance(running.state.failed, InputError)
        assert "run0" in str(running.state.failed)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    gone = {"uvicorn"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in gone else real(name)
    )
    with pytest.raises(InputError, match=r"needs uvicorn.*pip install 'vidi\[serve\]'"):
        serving.check_installed()
