"""An ensemble answers with its members' average, and each of them is trained as if alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import vidi
from vidi.models.members import Members, members_of

QUIET = {"pictures": False}


class Says(nn.Module):
    """The same answer to everything."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor) -> Tensor:
        return self.answer


def of(task: str, *shape: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(three members' answers, the ensemble's)."""
    torch.manual_seed(0)
    answers = [3 * torch.randn(shape) for _ in range(3)]
    found = Members([Says(a) for a in answers], task)(torch.zeros(1))
    return torch.stack(answers).double().numpy(), found.double().numpy()


@pytest.mark.parametrize(
    ("task", "shape"), [("classification", (4, 5)), ("segmentation", (2, 5, 3, 3))]
)
def test_of_classes_probabilities_are_averaged(task: str, shape: tuple[int, ...]) -> None:
    answers, found = of(task, *shape)
    e = np.exp(answers)
    mean = (e / e.sum(2, keepdims=True)).mean(0)
    assert np.exp(found) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(("task", "shape"), [("multilabel", (4, 5)), ("boundaries", (2, 1, 3, 3))])
def test_of_labels_probabilities_are_averaged(task: str, shape: tuple[int, ...]) -> None:
    answers, found = of(task, *shape)
    mean = (1 / (1 + np.exp(-answers))).mean(0)
    assert 1 / (1 + np.exp(-found)) == pytest.approx(mean, abs=1e-6)


def test_flow_is_averaged() -> None:
    answers, found = of("flow", 2, 2, 4, 4)
    assert found == pytest.approx(answers.mean(0), abs=1e-6)


def test_certainty_stays_finite() -> None:
    sure = torch.tensor([[1e4, -1e4]])
    for task in ("classification", "multilabel"):
        assert torch.isfinite(Members([Says(sure), Says(-sure)], task)(sure)).all()


def test_detectors_are_refused() -> None:
    with pytest.raises(vidi.InputError, match="of detection there is no average"):
        Members([nn.Linear(1, 1)], "detection")


def train(folder: Path, **changes: Any) -> vidi.Run:
    settings: dict[str, Any] = {"length": {"steps": 6}, "batch_size": 64, "device": "cpu"}
    settings |= {"model": vidi.models.resnet20, "logging": QUIET, "optimiser": {"clip": 0.5}}
    return vidi.train("digits", run=folder, **settings | changes)


def state(run: vidi.Run) -> dict[str, Tensor]:
    return safetensors.torch.load_file(next((run.path / "last").glob("*.safetensors")))


def test_the_first_member_is_the_network_alone(tmp_path: Path) -> None:
    """Bit for bit, momentum and clipping by its own gradient's norm included."""
    alone, three = state(train(tmp_path / "one")), state(train(tmp_path / "three", members=3))
    assert len(three) == 3 * len(alone)
    for name, value in alone.items():
        part, _, rest = name.partition("/")
        assert torch.equal(value, three[f"{part}/members.0.{rest}"]), name
    assert not torch.equal(
        three["model/members.0.conv1.weight"], three["model/members.1.conv1.weight"]
    )


def test_a_member_begins_as_the_next_seed_does(tmp_path: Path) -> None:
    short = {"length": {"steps": 1}, "lr": 0.0}
    second = state(train(tmp_path / "second", seed=1, **short))
    pair = state(train(tmp_path / "pair", members=2, **short))
    assert torch.equal(second["model/fc.weight"], pair["model/members.1.fc.weight"])


def test_it_is_a_run_like_any_other(tmp_path: Path) -> None:
    run = train(tmp_path / "run", members=2)
    again = train(tmp_path / "run", members=2, resume=True, length={"steps": 12})
    assert again.steps == 12
    assert again.metrics.keys() == run.metrics.keys()
    model = vidi.load(run.path)
    assert isinstance(model.network, Members)
    assert model.evaluate(split="test").metrics == pytest.approx(again.test_metrics)
    image = np.zeros((8, 8, 3), np.uint8)
    assert model.predict(image)[0].probabilities.sum() == pytest.approx(1)


def test_one_module_has_no_members(tmp_path: Path) -> None:
    network = vidi.models.resnet20(num_classes=10)
    with pytest.raises(vidi.InputError, match="Of one module there are no 2 members"):
        train(tmp_path / "run", model=network, members=2)


def test_what_is_no_ensemble_is_its_only_member() -> None:
    network = nn.Linear(1, 1)
    assert list(members_of(network)) == [("", network)]
