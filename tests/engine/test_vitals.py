"""What is recorded of layers and parameters is right, and recording changes no bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import vidi
from vidi.engine.vitals import Look, due, read_vitals

QUIET = {"pictures": False}


def train(folder: Path, **changes: Any) -> vidi.Run:
    settings: dict[str, Any] = {"length": {"steps": 9}, "batch_size": 64, "device": "cpu"}
    settings |= {"model": "resnet20", "logging": QUIET}
    return vidi.train("digits", run=folder, **settings | changes)


def test_looks_grow_rarer() -> None:
    looks = [step for step in range(1, 20_001) if due(step)]
    assert looks[:9] == [1, 2, 4, 8, 16, 32, 50, 100, 150]
    gaps = [b - a for a, b in itertools.pairwise(looks[6:])]
    assert gaps[0] == 50 and gaps[-1] == 400
    assert all(b >= a for a, b in itertools.pairwise(gaps))
    assert len([step for step in range(1, 1_000_001) if due(step)]) < 400


def test_recording_changes_no_bit(tmp_path: Path) -> None:
    with_it = train(tmp_path / "with")
    without = train(tmp_path / "without", logging={**QUIET, "vitals": False})
    assert [row["step"] for row in read_vitals(with_it.path)] == [1, 2, 4, 8]
    assert read_vitals(without.path) == []
    a, b = (
        safetensors.torch.load_file(next((run.path / "last").glob("*9.safetensors")))
        for run in (with_it, without)
    )
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_row_says_what_the_step_did(tmp_path: Path) -> None:
    """Plain gradient descent: the update is the gradient times the rate."""
    run = train(
        tmp_path / "run",
        lr=0.1,
        schedule={"name": "constant", "warmup": 0},
        optimiser={"name": "sgd", "momentum": 0.0, "weight_decay": 0.0},
    )
    row = read_vitals(run.path)[-1]
    assert row["losses"] == {"cross_entropy": pytest.approx(row["loss"])}
    assert len(row["parameters"]) == len(list(vidi.models.resnet20(num_classes=10).parameters()))
    for name, found in row["parameters"].items():
        assert found["update"] == pytest.approx(0.1 * found["gradient"], rel=1e-3), name
    assert row["input"]["layer"] == "conv1"
    assert abs(row["input"]["mean"]) < 0.3 and 0.5 < row["input"]["std"] < 1.5
    assert row["layers"]["bn1"]["std"] == pytest.approx(1, abs=0.2)
    assert row["frozen"] == [] and row["norms"]["evaluating"] == []
    assert row["norms"]["fewest"] == 64 * 2 * 2  # digits are 8 pixels wide, the last layers 2


def test_a_resumed_run_has_each_row_once(tmp_path: Path) -> None:
    train(tmp_path / "run", length={"steps": 5})
    train(tmp_path / "run", length={"steps": 9}, resume=True)
    assert [row["step"] for row in read_vitals(tmp_path / "run")] == [1, 2, 4, 8]


class Ill(nn.Module):
    """A layer of each kind of trouble."""

    def __init__(self) -> None:
        super().__init__()
        self.alike = nn.Linear(6, 8)
        nn.init.constant_(self.alike.weight, 0.1)
        self.dead = nn.ReLU()
        self.next = nn.Linear(8, 8)
        self.full = nn.Sigmoid()
        self.norm = nn.BatchNorm1d(8)
        self.apart = nn.Linear(3, 3)  # nobody asks it
        self.still = nn.Linear(8, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.alike(x)
        # Half of the units never rise above zero.
        x = self.dead(x + torch.tensor([0.0, -1e3]).repeat(4))
        x = self.full(1e4 * (self.next(x) + 1e-3))
        found: Tensor = self.still(self.norm(x))
        return found


def test_trouble_is_seen() -> None:
    torch.manual_seed(0)
    network = Ill()
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    look = Look(network, activations=True)
    x = torch.randn(32, 6)
    with look.listening():
        network(x).square().sum().backward()
    look.gradients()
    with look.updating():
        optimiser.step()
    row = look.row()
    layers, parameters = row["layers"], row["parameters"]
    assert parameters["alike.weight"]["spread"] == pytest.approx(0, abs=1e-6)
    assert parameters["next.weight"]["spread"] > 0.5
    assert layers["dead"]["dead"] == pytest.approx(0.5, abs=0.01)
    assert layers["next"]["input_dead"] == layers["dead"]["dead"]
    assert layers["full"]["saturated"] > 0.95 and layers["norm"]["saturated"] is None
    assert parameters["apart.weight"]["gradient"] is None
    assert parameters["apart.weight"]["update"] == 0
    assert parameters["next.weight"]["gradient"] == pytest.approx(
        float(network.next.weight.grad.norm()),  # type: ignore[union-attr]
        rel=1e-4,
    )
    assert row["frozen"] == ["still.weight", "still.bias"]
    assert row["norms"] == {"layers": 1, "evaluating": [], "fewest": 32}
    assert row["input"]["mean"] == pytest.approx(float(x.mean()), rel=1e-3)
    assert row["input"]["most"] == pytest.approx(float(x.max()), rel=1e-3)
    network.norm.eval()
    assert Look(network, activations=True).row is not None
    assert not network.alike._forward_hooks, "no hook is left behind"
