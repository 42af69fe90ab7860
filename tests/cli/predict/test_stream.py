"""``Model.stream``: ``predict``, one by one, with no more images at a time than need be."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vidi
from vidi.engine import streams
from vidi.types import Array


def test_the_same_whatever_the_batch(run: Path, images: Path) -> None:
    """One by one, a few together, paths and arrays between each other, and what is none at all."""
    model = vidi.load(run)
    files = sorted(images.rglob("*.png"))[:40]
    mixed: list[Any] = [*files, np.zeros((9, 9), np.uint8), "none.png", np.zeros((2, 3, 4, 5))]
    mixed.append(files[0])
    alone = [next(model.stream([one])) for one in mixed]
    for batch in (None, 1, 7):
        together = list(model.stream(iter(mixed), batch_size=batch))
        assert len(together) == len(mixed)
        for k, (one, other) in enumerate(zip(alone, together, strict=True)):
            if isinstance(one, vidi.InputError):
                assert isinstance(other, vidi.InputError)
                continue
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
            assert other.path == (str(mixed[k]) if isinstance(mixed[k], Path) else f"image {k}")
        bad = [k for k, one in enumerate(together) if isinstance(one, vidi.InputError)]
        assert bad == [5, 41, 42]
    with pytest.raises(vidi.InputError, match="3 images could not be read"):
        model.predict(mixed)


def test_only_a_few_batches_are_taken_ahead(run: Path) -> None:
    """So that a million images fit into memory."""
    model = vidi.load(run)
    taken = 0

    def endless() -> Iterator[Array]:
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((8, 8, 3), np.uint8)

    answers = model.stream(endless(), batch_size=4)
    for given in range(1, 50):
        next(answers)
        assert taken <= given + 4 * (streams.AHEAD + 1)
    answers.close()


@pytest.mark.parametrize("kind", ["array", "pillow", "tensor"])
def test_large_images_in_memory_are_not_taken_ahead(
    kind: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "AHEAD_PIXELS", 3 * 100)
    model = vidi.load(run)
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            array = np.zeros((10, 10, 3), np.uint8)
            image = Image.fromarray(array) if kind == "pillow" else array
            yield torch.zeros(3, 10, 10, dtype=torch.uint8) if kind == "tensor" else image

    for asked, expected, why in (
        ({"batch_size": 1, "ahead": 100}, 5, "three, one that is one too many, and the first"),
        ({"ahead": 0}, 4, "a batch of three, and the one that does not fit"),
    ):
        taken = 0
        answers = model.stream(endless(), **asked)
        next(answers)
        answers.close()
        assert taken == expected, why


def test_errors_among_the_sources_come_back_in_their_places(run: Path, images: Path) -> None:
    """At once, rather than with the next image."""
    model = vidi.load(run)
    image = images / "b" / "000.png"
    errors = [vidi.InputError(str(k)) for k in range(40)]
    found = [*model.stream([image, *errors, image])]
    assert found[1:-1] == errors
    assert found[0].path == found[-1].path == str(image)
    taken = 0

    def only_errors() -> Iterator[Any]:
        nonlocal taken
        for error in errors:
            taken += 1
            yield error

    stream = model.stream(only_errors())
    next(stream)
    stream.close()
    assert taken == streams.AHEAD + 1


def test_proposals_are_searched_for_several_images_at_once(
    run: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search takes longer than a network, and was for one after the other in one thread."""
    monkeypatch.setattr(streams.defaults, "cores", lambda: 2)
    model = vidi.load(run)
    stream = streams.Stream(model.network, model.recipe, model.classes, model.compute, batch_size=1)
    assert not stream._searchers
    stream._searchers = 2
    both, own = threading.Barrier(2, timeout=20), streams.Stream._begun

    def begun(*given: Any) -> Any:
        both.wait()
        return own(*given)

    monkeypatch.setattr(streams.Stream, "_begun", begun)
    files = [str(path) for path in sorted((images / "b").iterdir())[:6]]
    assert [answer.path for answer in stream.answers(files)] == files
    searching = dataclasses.replace(
        model.recipe, task="detection", data=vidi.Data(proposals="selective-fast")
    )
    monkeypatch.setattr(streams, "make_task", lambda *_: None)
    assert dataclasses.replace(stream, recipe=searching)._searchers == 2
