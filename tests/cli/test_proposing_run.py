"""``vidi proposals --run``: the table of a network that proposes its regions itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vidi
import vidi.recipe
from vidi.data.open import open_data
from vidi.data.recall import THRESHOLDS, recall

Ask = Callable[..., tuple[int, str, str]]
SCENES = "scenes:detection,size=64,n=8,val=2,test=3"
FEW: dict[str, Any] = {"batch_size": 4, "image_size": 64, "length": {"steps": 2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDI_CACHE", str(folder / "cache"))
        vidi.train(
            SCENES, model="faster_rcnn_small", run=folder / "run", data={"cache": "off"}, **FEW
        )
        yield folder / "run"


def test_json_is_the_recall_of_the_models_own_proposals(run: Path, ask: Ask) -> None:
    code, out, errors = ask(
        "proposals", SCENES, "--run", run, "--split", "test", "--count", 400, "--json"
    )
    assert code == 0, errors
    got: dict[str, Any] = json.loads(out)
    dataset = open_data(SCENES, carve_val=False)
    ids = dataset.split("test").ids
    found = vidi.load(run).proposals([dataset.images.load(int(i), None)[0] for i in ids], 400)
    boxes = [dataset.annotations(int(i))["boxes"] for i in ids]
    counts = tuple(got["recall"]["counts"])
    assert {100, 300, 400} < set(counts) and max(counts) == 400
    expected = recall([one.boxes for one in found], boxes, THRESHOLDS, counts)
    np.testing.assert_allclose(got["recall"]["table"], expected.table)
    assert expected.table.max() > 0
    assert got["recall"]["boxes"] == expected.boxes > 0
    assert set(got["per_class"]) == set(dataset.classes)
    assert got["proposals_per_image"] == np.mean([len(one.boxes) for one in found]) > 300
    assert (got["method"], got["model"], got["run"]) == ("network", "faster_rcnn_small", str(run))
    assert got["samples"] == got["computed"] == 3
    assert got["seconds_per_image"] > 0
    assert got["notes"] == []


def test_the_table_and_the_picture(run: Path, tmp_path: Path, ask: Ask) -> None:
    words = ("proposals", SCENES, "--run", run, "--count", 300, "--threads", 1)
    code, said, errors = ask(*words, "--out", tmp_path / "checked")
    assert code == 0, errors
    assert f"{SCENES}: 13 images" in said
    rows = [line.split()[0] for line in said.splitlines() if line[:1].isdigit()]
    assert rows == ["1", "3", "10", "30", "100", "200", "300"]
    assert "faster_rcnn_small: " in said and "13 of 13 computed now" in said
    assert (tmp_path / "checked" / "recall.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "checked" / "recall.json").read_text())["count"] == 300


@pytest.mark.parametrize(
    ("data", "words", "known"),
    [
        (SCENES, (), True),
        (SCENES, ("--split", "train"), True),
        (SCENES, ("--split", "val"), False),
        (SCENES, ("--split", "test"), False),
        ("scenes:detection,size=48,n=4,val=2,test=2", (), False),
    ],
)
def test_it_says_where_the_network_was_trained_on_the_images(
    data: str, words: tuple[str, ...], known: bool, run: Path, ask: Ask
) -> None:
    code, _, errors = ask("proposals", data, "--run", run, "--count", 10, *words)
    assert code == 0
    assert ("was trained on images of" in errors) == known


def test_a_run_and_a_method_exclude_each_other(run: Path, ask: Ask) -> None:
    code, out, errors = ask("proposals", SCENES, "--run", run, "--method", "selective-fast")
    assert code == 2 and not out
    assert "--method selective-fast and" in errors and "Leave one out" in errors


def test_a_run_that_is_told_its_regions_is_refused(run: Path, tmp_path: Path, ask: Ask) -> None:
    model = vidi.load(run)
    told = vidi.models.fast_rcnn_small(len(model.classes))
    recipe = vidi.recipe.replace(model.recipe, {"model": "fast_rcnn_small"})
    description = dataclasses.replace(model.description, recipe=recipe)
    dataclasses.replace(model, network=told, description=description).save(tmp_path / "told")
    code, out, errors = ask("proposals", SCENES, "--run", tmp_path / "told")
    assert code == 2 and not out
    assert "fast_rcnn_small, does not propose regions itself" in errors


def test_a_run_that_is_not_there_is_a_sentence(tmp_path: Path, ask: Ask) -> None:
    code, _, errors = ask("proposals", SCENES, "--run", tmp_path / "none")
    assert code == 2 and "There is no run at" in errors
