"""The pictures: that they show what they are given, as far as pixels can tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.processes import python
from vidi import api
from vidi.report import pictures

Pixels = np.ndarray[Any, np.dtype[np.float64]]


def pixels(path: Path) -> Pixels:
    return np.asarray(Image.open(path).convert("RGB"), np.float64)


def near(image: Pixels, colour: str, tolerance: float = 40.0) -> int:
    """Number of pixels of about that colour."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image - rgb).max(2) < tolerance).sum())


def history(epochs: int, *, bad: bool = False) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, 10 * epochs + 1):
        loss = None if bad else 2.0 / step
        rows.append({"event": "train", "step": step, "epoch": step / 10, "loss": loss, "lr": 0.1})
        if step % 10 == 0:
            metrics = {"accuracy": 1 - 1 / step, "cross_entropy": None if bad else 1 / step}
            row = {"step": step, "epoch": step / 10, "train_loss": loss, "metrics": metrics}
            rows.append({"event": "evaluation", "split": "val", **row})
    return rows


def test_curves_show_training_validation_best_and_rate(tmp_path: Path) -> None:
    pictures.curves(history(12), tmp_path / "curves.png")
    image = pixels(tmp_path / "curves.png")
    for colour in (pictures.BLUE, pictures.ORANGE, pictures.RED, pictures.GREEN):
        assert near(image, colour) > 50


@pytest.mark.parametrize(
    "rows", [[], history(1)[:4], history(1), history(3, bad=True)], ids=["0", "<1", "1", "nan"]
)
def test_curves_of_little_or_nothing(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    pictures.curves(rows, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").shape[2] == 3


def test_of_equally_good_epochs_the_last_is_marked(tmp_path: Path) -> None:
    """The engine keeps its weights."""
    rows = history(12)
    for row in rows:
        if row["event"] == "evaluation":
            row["metrics"]["accuracy"] = 0.5 if row["epoch"] == 12 else 0.4
    pictures.curves(rows, tmp_path / "last.png")
    for row in rows:
        if row["event"] == "evaluation" and row["epoch"] == 3:
            row["metrics"]["accuracy"] = 0.5
    pictures.curves(rows, tmp_path / "both.png")
    marks = [
        np.argwhere(np.abs(pixels(tmp_path / name) - (0xC8, 0x32, 0x2B)).max(2) < 10)[:, 1].mean()
        for name in ("last.png", "both.png")
    ]
    assert marks[0] == pytest.approx(marks[1], abs=3)


def matrix(k: int, right: int, wrong: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return right * np.eye(k, dtype=np.int64) + wrong * np.eye(k, k=1, dtype=np.int64)


@pytest.mark.parametrize("k", [2, 10, 40, 200, 1000])
def test_confusion_of_any_size_is_a_readable_picture(k: int, tmp_path: Path) -> None:
    pictures.confusion(matrix(k, 20, 2), [f"class {i}" for i in range(k)], tmp_path / "c.png")
    height, width, _ = pixels(tmp_path / "c.png").shape
    assert 400 <= width <= 3000
    assert 400 <= height <= 2000


def test_confusion_darkens_the_diagonal_of_a_perfect_network(tmp_path: Path) -> None:
    names = [str(i) for i in range(10)]
    pictures.confusion(matrix(10, 50, 0), names, tmp_path / "perfect.png")
    pictures.confusion(np.full((10, 10), 5), names, tmp_path / "blind.png")
    perfect, blind = pixels(tmp_path / "perfect.png"), pixels(tmp_path / "blind.png")
    dark = "#08306b"  # the end of the colour map: a share of 1
    assert near(perfect, dark, 10) > 10 * near(blind, dark, 10)


def test_a_class_without_samples_divides_nothing_by_zero(tmp_path: Path) -> None:
    pictures.confusion(np.diag([3, 0]), ["a", "b"], tmp_path / "c.png")


def test_the_commonest_confusions_come_first() -> None:
    counts = matrix(4, 90, 0)
    counts[2, 0], counts[1, 3] = 10, 30
    listed = pictures._commonest(counts, ["ant", "bee", "cat", "dog"]).splitlines()
    assert listed[2:] == ["30 (25%)  bee → dog", "10 (10%)  cat → ant"]


def test_only_mistakes_are_red(tmp_path: Path) -> None:
    images = [np.full((8, 8, 3), 40 * i, np.uint8) for i in range(5)]
    truths = ["a"] * 5
    right, wrong = ("a", 0.9), ("b", 0.6)
    pictures.predictions(images, truths, [right] * 5, tmp_path / "right.png")
    pictures.predictions(images, truths, [*[right] * 4, wrong], tmp_path / "wrong.png")
    assert near(pixels(tmp_path / "right.png"), pictures.RED) == 0
    assert near(pixels(tmp_path / "wrong.png"), pictures.RED) > 20


def test_pyplot_is_left_alone() -> None:
    """It would choose a backend, and may open a window."""
    code = (
        "import sys; from pathlib import Path; from vidi.report import pictures; "
        "import tempfile; pictures.curves([], Path(tempfile.mkdtemp()) / 'c.png'); "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("draw", [api._draw_masks, api._draw_boundaries, api._draw_flow])
def test_where_no_sample_could_be_read_none_is_drawn(
    draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "predictions", lambda *_: iter([(SimpleNamespace(samples=[]), [])]))
    description = SimpleNamespace(recipe=SimpleNamespace(model="net"), data={"format": "own"})
    loader = SimpleNamespace(few=lambda count: None)
    made = SimpleNamespace(
        model=None, task=None, compute=None, loaders={"val": loader}, description=description
    )
    best = {"f": 0.0, "recall": 0.0, "precision": 0.0}
    more = [{"curve": [], "ods_at": best}] if draw is api._draw_boundaries else []
    draw(SimpleNamespace(path=tmp_path), made, "val", *more)
    assert not (tmp_path / "predictions.png").exists()
