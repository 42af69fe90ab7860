"""The user's own proposals: read from JSON and .npz, and sentences for what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vidi
from vidi.data import proposal_lists
from vidi.engine import propose as engine
from vidi.errors import InputError
from vidi.recipe import Recipe, replace

DATA = "scenes:detection,size=32,n=4,val=2,test=0"
IDS = np.arange(6)


@pytest.fixture
def lists() -> dict[str, list[list[float]]]:
    dataset = vidi.open(DATA)
    return {dataset.images.key(i): [[0, 0, 10.5, i + 1]] * i for i in range(6)}


@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_both_formats_give_the_boxes_in_order(
    tmp_path: Path, lists: dict[str, list[list[float]]], ending: str
) -> None:
    path = tmp_path / f"own{ending}"
    if ending == ".json":
        path.write_text(json.dumps(lists))
    else:
        np.savez(path, allow_pickle=False, **{k: np.array(v) for k, v in lists.items()})
    found = proposal_lists.read(str(path), vidi.open(DATA), IDS, 3)
    assert [len(boxes) for boxes in found] == [0, 1, 2, 3, 3, 3]
    assert all(boxes.dtype == np.float32 and boxes.shape[1] == 4 for boxes in found)
    assert found[4][0].tolist() == [0, 0, 10.5, 5]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[1, 2, 3]], "shape"),
        ([[1, 2, 3, "x"]], "no boxes"),
        ([[1, 2, 3, float("nan")]], "finite"),
        ([[5, 5, 3, 9]], "ends before it begins"),
        ("text", "no boxes"),
        ([[1, 2, 3, 4], [1]], "no boxes"),
    ],
)
def test_boxes_that_are_none_are_named(
    tmp_path: Path, lists: dict[str, object], value: object, said: str
) -> None:
    key = next(iter(lists))
    path = tmp_path / "own.json"
    path.write_text(json.dumps(lists | {key: value}))
    with pytest.raises(InputError, match=said) as error:
        proposal_lists.read(str(path), vidi.open(DATA), IDS, 9)
    assert key in str(error.value) and "own.json" in str(error.value)


@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, ending: str) -> None:
    missing, damaged = tmp_path / f"none{ending}", tmp_path / f"bad{ending}"
    damaged.write_bytes(b'{"a": [')
    for path in (missing, damaged):
        with pytest.raises(InputError, match=path.name):
            proposal_lists.read(str(path), vidi.open(DATA), IDS, 9)
    damaged.write_bytes(b"")
    with pytest.raises(InputError, match="bad"):
        proposal_lists.read(str(damaged), vidi.open(DATA), IDS, 9)


def test_a_list_of_lists_is_no_object_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text("[[0, 0, 1, 1]]")
    with pytest.raises(InputError, match="object of image keys"):
        proposal_lists.read(str(path), vidi.open(DATA), IDS, 9)


def test_images_without_an_entry_are_named(
    tmp_path: Path, lists: dict[str, list[list[float]]]
) -> None:
    lists.pop("train/000001")
    path = tmp_path / "own.json"
    path.write_text(json.dumps(lists))
    with pytest.raises(InputError, match=r"1 of 6 images.*train/000001"):
        proposal_lists.read(str(path), vidi.open(DATA), IDS, 9)


def test_what_is_neither_a_method_nor_a_file_is_refused() -> None:
    assert engine.settled("auto") == "selective-fast"
    with pytest.raises(InputError, match=r"selective-fast.*\.json or \.npz"):
        engine.settled("selective")


def test_a_run_knows_when_its_proposals_have_changed(
    tmp_path: Path, propose: Callable[[str, Path], str]
) -> None:
    """The digest is that of the boxes, not of the file."""
    first = propose(DATA, tmp_path / "a.json")
    second = propose(DATA, tmp_path / "b.json")
    other = json.loads(Path(second).read_text())
    other["val/000000"][0][0] += 0.25
    Path(tmp_path / "c.json").write_text(json.dumps(other))
    digests = []
    for path in (first, second, str(tmp_path / "c.json")):
        recipe = replace(Recipe(), {"data.proposals": path})
        digests.append(engine.digest(engine.attach(vidi.open(DATA), IDS, recipe), IDS))
    assert digests[0] == digests[1] != digests[2]
