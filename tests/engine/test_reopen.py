"""A run that is opened again has its data, its task and the weights that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import vidi
from vidi.api import reopen
from vidi.data.open import open_data
from vidi.engine.prepare import prepare
from vidi.recipe import Recipe, replace


def train(folder: Path, **changes: Any) -> vidi.Run:
    settings: dict[str, Any] = {"model": "mlp", "batch_size": 64, "device": "cpu"}
    settings |= {"logging": {"pictures": False}, "length": {"steps": 30, "evaluate_every": 0.5}}
    return vidi.train("digits", run=folder, **settings | changes)


def test_it_has_the_weights_that_were_asked_for(tmp_path: Path) -> None:
    begun = train(tmp_path / "begun", lr=0.0, length={"steps": 1})
    run = train(tmp_path / "run", lr=0.3, schedule={"name": "constant", "warmup": 0.0})
    first, best, last = (reopen(run.path, weights=w) for w in ("first", "best", "last"))
    expected = {
        "first": safetensors.torch.load_file(begun.path / "best.safetensors"),
        "best": safetensors.torch.load_file(run.path / "best.safetensors"),
    }
    state = safetensors.torch.load_file(next((run.path / "last").glob("*30.safetensors")))
    expected["last"] = {k[6:]: v for k, v in state.items() if k.startswith("model/")}
    for made, name in ((first, "first"), (best, "best"), (last, "last")):
        found = made.model.state_dict()
        assert found.keys() == expected[name].keys()
        assert all(torch.equal(found[k], v) for k, v in expected[name].items()), name
    assert not torch.equal(
        expected["first"]["layers.0.weight"], expected["last"]["layers.0.weight"]
    )


def test_a_run_that_began_with_weights_is_begun_with_them_again(tmp_path: Path) -> None:
    start = train(tmp_path / "start")
    run = train(tmp_path / "run", weights=str(start.path))
    found = reopen(run.path, weights="first").model.state_dict()
    expected = safetensors.torch.load_file(start.path / "best.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(vidi.InputError, match="is no run"):
        reopen(tmp_path / "nothing")
    run = train(tmp_path / "run")
    (run.path / "best.safetensors").unlink()
    with pytest.raises(vidi.InputError, match=r"holds no best\.safetensors"):
        reopen(run.path)


def test_weights_of_an_ensemble_are_no_network_s(tmp_path: Path) -> None:
    both = train(tmp_path / "both", members=2)
    with pytest.raises(vidi.InputError, match="holds the networks of an ensemble"):
        train(tmp_path / "run", weights=str(both.path))


def test_members_have_each_as_many_minutes() -> None:
    """Where the default is a length in minutes."""
    minutes = []
    for members in (1, 3):
        recipe = replace(Recipe(), {"model": "fcn_small", "members": members, "device": "cpu"})
        data = open_data("scenes:segmentation,size=32,n=4,val=2,test=0")
        made = prepare(recipe, data, torch.device("cpu"))
        minutes.append(made.description.recipe.length.minutes)
    assert minutes[0] is not None and minutes[1] == 3 * minutes[0]
