"""A run that is served: its model, its name, and the thread that asks it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vidi.deploy.serving.batching import Batcher
from vidi.deploy.serving.limits import WAITING, Limits
from vidi.deploy.serving.metrics import Metrics
from vidi.engine.prepare import kept_size
from vidi.errors import InputError
from vidi.recipe import Recipe
from vidi.report.names import readable

BATCH = {"segmentation": 4, "boundaries": 4, "flow": 4, "detection": 8}
"""Images that go through a network together, unless told; 32 where each gives no picture."""


class Model(Protocol):
    """What is asked of :class:`vidi.api.Model`."""

    notes: list[str]

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def palette(self) -> list[list[int]] | None: ...

    def stream(self, sources: Iterable[Any], *, batch_size: int | None = None) -> Iterable[Any]: ...


@dataclass
class Served:
    """``batch_size``: None: as many as suit the task. ``latency``: seconds for which an image may
    wait for others."""

    name: str
    model: Model
    limits: Limits
    metrics: Metrics
    batch_size: int | None = None
    latency: float = 0.005
    batcher: Batcher = field(init=False)

    def __post_init__(self) -> None:
        limits, most = self.limits, self.batch_size or BATCH.get(self.task, 32)
        self.batcher = Batcher(
            self._predict,
            most=most,
            latency=self.latency,
            room=limits.max_queue,
            patience=limits.max_seconds / 2,  # the other half is for being read and drawn
            pixels=self.most_pixels,
            watch=lambda images, seconds: self.metrics.batch(self.name, images, seconds),
        )
        self.metrics.add(self.name, lambda: self.batcher.waiting)

    @property
    def task(self) -> str:
        return self.model.recipe.task

    @property
    def pairs(self) -> bool:
        return self.task == "flow"

    @property
    def most_pixels(self) -> float:
        """How many all images that wait may have together, and so those of one request."""
        return WAITING * self.limits.max_megapixels * 1e6 * (2 if self.pairs else 1)

    @property
    def shorter(self) -> int | None:
        """To what images are shrunk as they are decoded. Where a class is all that is answered, it
        is to what training shrank them; elsewhere the answer is about the pixels that came."""
        classified = self.task in ("classification", "multilabel")
        return kept_size(self.model.recipe) if classified else None

    def warm_up(self) -> None:
        """Predicts a grey image, so that no one waits for what the first prediction sets up.

        Raises :class:`InputError` for a run that cannot be asked about images of others.
        """
        side = self.model.recipe.image_size
        assert side != "auto"
        grey = np.full((side, side, 3), 128, np.uint8)
        for answer in self._predict([(grey, grey) if self.pairs else grey]):
            if isinstance(answer, InputError):
                raise InputError(f"The run {self.name} cannot be served. {answer}")

    def described(self) -> dict[str, Any]:
        """What ``/runs`` says of it."""
        recipe = self.model.recipe
        return {
            "name": self.name,
            "task": self.task,
            "classes": [readable(name) for name in self.model.classes],
            "inputs": ["first", "second"] if self.pairs else ["image"],
            "model": recipe.model,
            "image_size": recipe.image_size,
            "palette": self.model.palette,
        }

    def _predict(self, inputs: Sequence[Any]) -> list[Any]:
        whole = self.task in BATCH  # the sizes of such images say how many fit
        found = list(self.model.stream(inputs, batch_size=None if whole else len(inputs)))
        self.model.notes.clear()  # sentences about single images: they would only pile up
        return found
