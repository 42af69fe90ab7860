"""``vidi proposals``: the table, the picture, the JSON, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidi.data import formats
from vidi.report import pictures
from vidi.report import recall as picture

Ask = Callable[..., tuple[int, str, str]]

SQUARES = ((30, 10, 90, 45), (110, 20, 170, 50))


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """VOC: two images of two bright squares, one of them difficult, in train and test."""
    where = tmp_path / "squares"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (where / name).mkdir(parents=True)
    for i, split in enumerate(("train", "test")):
        pixels = np.full((60, 200, 3), 20 + 10 * i, np.uint8)
        objects = ""
        for k, (x0, y0, x1, y1) in enumerate(SQUARES):
            pixels[y0:y1, x0:x1] = (200, 90 + 80 * k, 60)
            objects += (
                f"<object><name>{'ab'[k]}</name><difficult>{int(k == 1 and i == 1)}</difficult>"
                f"<bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
                f"<ymax>{y1}</ymax></bndbox></object>"
            )
        Image.fromarray(pixels).save(where / f"JPEGImages/{i}.png")
        (where / f"Annotations/{i}.xml").write_text(
            f"<annotation><filename>{i}.png</filename><size><width>200</width><height>60</height>"
            f"<depth>3</depth></size>{objects}</annotation>"
        )
        (where / f"ImageSets/Main/{split}.txt").write_text(f"{i}\n")
    assert "voc" in formats.names()
    return where


def colours(path: Path) -> list[int]:
    """Pixels of about each colour of the lines."""
    with Image.open(path) as opened:
        image = np.asarray(opened.convert("RGB"), np.float64)
    found = []
    for colour in (pictures.BLUE, pictures.ORANGE, pictures.GREEN, pictures.RED):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        found.append(int((np.abs(image - rgb).max(2) < 40).sum()))
    return found


def test_the_table_and_the_picture(squares: Path, tmp_path: Path, ask: Ask) -> None:
    out = tmp_path / "checked"
    code, said, errors = ask("proposals", squares, "--count", 500, "--out", out, "--threads", 1)
    assert code == 0, errors
    assert "2 images, 3 boxes (1 difficult, crowd or flat left out)" in said
    last = next(line for line in said.splitlines() if line.startswith("500 ")).split()
    assert float(last[2]) == 1.0, "both squares are found at IoU 0.5"
    assert "By class" in said and "0.991" in said and "17 s" in said
    assert f"wrote {out / 'recall.png'}" in said
    assert min(colours(out / "recall.png")) > 50
    saved = json.loads((out / "recall.json").read_text())
    assert saved["recall"]["counts"][-1] == 500


@pytest.mark.parametrize("method", ["selective-fast", "edge-boxes"])
def test_json_is_one_object_and_the_second_time_nothing_is_computed(
    method: str, squares: Path, ask: Ask
) -> None:
    words = ("proposals", squares, "--method", method, "--split", "test", "--json")
    code, first, _ = ask(*words)
    assert code == 0
    one: dict[str, Any] = json.loads(first)
    assert (one["samples"], one["computed"], one["method"]) == (1, 1, method)
    assert one["recall"]["boxes"] == 1 and one["recall"]["left_out"] == 1
    assert one["recall"]["table"][-1][0] == 1.0
    assert one["per_class"]["b"]["boxes"] == 0
    assert one["per_class"]["b"]["table"][-1][0] is None
    assert one["seconds_per_image"] > 0
    two = json.loads(ask(*words)[1])
    assert two == {**one, "computed": 0, "seconds_per_image": two["seconds_per_image"]}
    assert two["seconds_per_image"] == pytest.approx(one["seconds_per_image"], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--count", 0), "--count is 0"),
        (("--threads", 0), "--threads is 0"),
        (("--split", "val"), "no split 'val'"),
    ],
)
def test_wrong_words(words: tuple[Any, ...], says: str, squares: Path, ask: Ask) -> None:
    code, _, errors = ask("proposals", squares, *words)
    assert code == 2 and says in errors


def test_data_without_boxes_is_refused(photos: Path, ask: Ask) -> None:
    code, _, errors = ask("proposals", photos)
    assert code == 2
    assert "classification" in errors and "detection" in errors


def test_an_unwritable_folder_is_a_sentence(squares: Path, tmp_path: Path, ask: Ask) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = ask(
        "proposals", squares, "--method", "edge-boxes", "--out", tmp_path / "file"
    )
    assert code == 2 and "cannot be written to" in errors


def test_a_picture_of_nothing(tmp_path: Path) -> None:
    from vidi.data.recall import recall

    picture.draw(recall([], []), tmp_path / "recall.png")
    picture.draw(recall([], [], counts=(7,)), tmp_path / "one.png")
    for name in ("recall", "one"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size[0] > 1000
