"""A server in a thread of this process, reached over a real socket, and a model that computes
nothing: its probabilities are the image's mean colours, so that each answer tells its image."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import vidi
from vidi.data import augment
from vidi.deploy.serving import app, server
from vidi.deploy.serving.limits import Limits
from vidi.deploy.serving.metrics import Metrics
from vidi.deploy.serving.served import Served
from vidi.engine.answers import Prediction
from vidi.engine.flow_fields import FlowField
from vidi.errors import InputError
from vidi.recipe import Recipe
from vidi.types import Array

CLASSES = ("red", "green", "blue")
POISON = (1, 2, 3)
"""The colour of images over which the model falls."""
UNSEEN = (3, 2, 1)
"""The colour of images at which it says that it cannot look."""


class Colours:
    """``gate``: it predicts only while that is set. ``batches``: how many images it saw at once."""

    palette = None

    def __init__(self, task: str = "classification", seconds: float = 0.0) -> None:
        recipe = Recipe(task=task, model="colours", image_size=32)
        recipe = vidi.recipe.replace(recipe, {"augmentation": {"preset": "none"}})
        settled = augment.resolve(recipe.augmentation)
        self.recipe = dataclasses.replace(recipe, augmentation=settled)
        self.classes = CLASSES
        self.notes: list[str] = []
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def stream(self, sources: Iterable[Any], *, batch_size: int | None = None) -> Iterator[Any]:
        images = list(sources)
        self.batches.append(len(images))
        self.gate.wait(20)
        time.sleep(self.seconds)
        self.notes.append(f"looked at {len(images)}")
        for one in images:
            first = one[0] if isinstance(one, tuple) else one
            if (first == POISON).all():
                raise RuntimeError("an operator fell over /secret/path")
        for one in images:
            first = one[0] if isinstance(one, tuple) else one
            yield InputError("image 0 is odd") if (first == UNSEEN).all() else self._said(one)

    def _said(self, one: Any) -> Any:
        if self.recipe.task == "flow":
            first, second = one
            motion = second[..., :2].astype(np.float32) - first[..., :2]
            return FlowField("image 0", "image 0", first, second, flow=motion)
        mean = one.reshape(-1, 3).mean(0) + 1e-9
        share = mean / mean.sum()
        k = int(share.argmax())
        return Prediction("image 0", CLASSES[k], float(share[k]), (CLASSES[k],), share)


@dataclasses.dataclass
class Running:
    """A server at work."""

    url: str
    state: Any
    metrics: Metrics
    runs: list[Served]
    thread: threading.Thread
    client: httpx.Client

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def post(self, body: bytes, kind: str = "image/png", path: str = "/predict") -> httpx.Response:
        return self.client.post(path, content=body, headers={"Content-Type": kind})


@pytest.fixture(scope="session")
def colours() -> type[Colours]:
    return Colours


@pytest.fixture(scope="module")
def serve() -> Callable[..., Any]:
    """``with serve(model, …, limits=…) as running``: a server of these models until the end."""

    @contextlib.contextmanager
    def started(
        *models: Any,
        limits: Limits | None = None,
        token: str | None = None,
        hosts: frozenset[str] | None = None,
        latency: float = 0.005,
        batch_size: int | None = None,
        names: Sequence[str] | None = None,
    ) -> Iterator[Running]:
        limits = limits or Limits()
        names = names or [f"run{i}" for i in range(len(models))]
        metrics = Metrics()
        runs = [
            Served(name, model, limits, metrics, batch_size, latency)
            for name, model in zip(names, models, strict=True)
        ]
        made, state = app.create(runs, limits, metrics, token=token, hosts=hosts)
        listening = server.listen("127.0.0.1", 0)
        url = server.url(listening)

        def run() -> None:
            with contextlib.suppress(InputError):  # it stands in the state, too
                server.run(made, state, listening, limits)

        thread = threading.Thread(target=run)
        thread.start()
        with httpx.Client(base_url=url, timeout=30) as client:
            try:
                until = time.monotonic() + 20
                while not state.ready and state.failed is None:
                    assert time.monotonic() < until
                    time.sleep(0.01)
                yield Running(url, state, metrics, runs, thread, client)
            finally:
                state.draining = True
                thread.join(20)
        assert not thread.is_alive()

    return started


@pytest.fixture(scope="session")
def image() -> Callable[..., bytes]:
    """The file of an image of one colour."""

    def made(colour: tuple[int, int, int] = (200, 20, 20), size: tuple[int, int] = (40, 30),
             kind: str = "PNG") -> bytes:  # fmt: skip
        file = io.BytesIO()
        Image.new("RGB", size, colour).save(file, kind)
        return file.getvalue()

    return made


@pytest.fixture(scope="session")
def coded() -> Callable[[bytes], str]:
    return lambda data: base64.b64encode(data).decode()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has seen the digits once."""
    folder = tmp_path_factory.mktemp("serving") / "digits-run"
    vidi.train("digits", run=folder, epochs=1, model="mlp", logging={"pictures": False})
    return folder


@pytest.fixture(scope="session")
def digits() -> list[Array]:
    dataset = vidi.open("digits")
    return [dataset[i].image for i in range(40)]
