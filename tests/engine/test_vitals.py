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
from vidi.engine import schedules, vitals
from vidi.engine.vitals import Look, due, read_vitals

QUIET = {"pictures": False}


def train(folder: Path, **changes: Any) -> vidi.Run:
    settings: dict[str, Any] = {"length": {"steps": 9}, "batch_size": 64, "device": "cpu"}
    settings |= {"model": "resnet20", "logging": QUIET}
    return vidi.train("digits", run=folder, **settings | changes)


def test_looks_grow_rarer() -> None:
    looks = [step for step in range(1, 20_001) if due(step)]
    assert looks[:9] == [1, 2, 4, 8, 16, 32, 64, 100, 200]
    gaps = [b - a for a, b in itertools.pairwise(looks[7:])]
    assert gaps[0] == 100 and gaps[-1] == 400
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


def test_of_large_maps_several_images_are_looked_at() -> None:
    """A channel that only one of the later images excites is not dead; the numbers are close to
    those of the whole."""
    torch.manual_seed(0)
    x = torch.randn(12, 3, 160, 160)
    x[0] = -x[0].abs()
    x[:5, 1] = -1
    x[:, 2] = -1
    network = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 1, 1))
    look = Look(network, activations=True)
    with look.listening():
        network(x)
    found = look._seen["0"]
    assert float(found["dead"]) == pytest.approx(1 / 3)
    assert float(look._seen["1"]["input_dead"]) == pytest.approx(1 / 3)
    seen = x[:8].relu()
    assert float(found["mean"]) == pytest.approx(float(seen.mean()), rel=0.05)
    assert float(found["zero"]) == pytest.approx(float((seen == 0).float().mean()), rel=0.05)


@pytest.mark.parametrize(
    "shape",
    [(), (0, 4), (3,), (4, 99_999), (30, 8, 5, 5), (64, 50, 768), (20, 2048, 7, 7),
     (9, 3, 1, 90_000), (9, 500_000, 1, 1), (2, 16, 30, 60, 40)],
)  # fmt: skip
def test_what_is_looked_at_is_about_as_much_of_every_shape(shape: tuple[int, ...]) -> None:
    values = torch.empty(shape)
    some = vitals._some(values, "Conv2d")
    assert some.numel() or not values.numel()
    if len(shape) > 2:
        assert len(some) >= min(8, shape[0])
        side = 2 if len(shape) == 3 else 1
        assert some.shape[side] == shape[side], "every channel"
        rows = max(1, some.numel() // (len(some) * shape[side]))
        assert some.numel() <= vitals.LOOKED or rows <= 4
    # A small batch is looked at whole.
    assert some.numel() == values.numel() or values.numel() > vitals.LOOKED


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


class Odd(nn.Module):
    """Layers that are given nothing, sequences, and channels along the last side."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Linear(6, 4)
        self.along = nn.Conv1d(6, 3, 3)
        self.last = nn.Linear(5, 7)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        nothing = self.none(x[:0, :, 0])
        found: Tensor = self.relu(self.last(self.along(x)[:, :, None, :5]))
        return found.sum() + nothing.sum()


def test_odd_layers_are_looked_at_or_left_out() -> None:
    torch.manual_seed(0)
    network = Odd()
    with torch.no_grad():
        network.last.bias[:2] = -1e3
        network.last.weight[:2] = 0
        network.along.weight[0] = 0
        network.along.bias[0] = 0
    look = Look(network, activations=True)
    with look.listening():
        network(torch.randn(4, 6, 9)).backward()
    look.gradients()
    with look.updating():
        pass
    layers = look.row()["layers"]
    assert "none" not in layers
    assert layers["along"]["dead"] == pytest.approx(1 / 3, abs=1e-3)
    assert layers["last"]["dead"] == 0 and layers["last"]["input_dead"] == 0


def test_training_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, and only what surely is."""
    train(tmp_path / "slow", model="mlp", lr=1e-6, length={"steps": 40})
    assert capsys.readouterr().err.count("rate-too-low: ") == 1
    train(tmp_path / "usual", model="mlp", length={"steps": 40})
    assert "rate-too-low" not in capsys.readouterr().err
    silent = {**QUIET, "vitals": False}
    train(tmp_path / "silent", model="mlp", lr=1e-6, length={"steps": 40}, logging=silent)
    assert "rate-too-low" not in capsys.readouterr().err


def test_a_defect_of_the_doctor_ends_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(records: Any) -> Any:
        raise ZeroDivisionError("by a check")

    monkeypatch.setattr(vidi.doctor, "examine", broken)  # type: ignore[attr-defined]
    assert train(tmp_path / "run", model="mlp").steps == 9
    said = capsys.readouterr().err
    assert said.count("could not be looked at (ZeroDivisionError: by a check)") == 1


def test_of_a_compiled_network_there_are_no_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook would be compiled into it, or not be seen."""
    monkeypatch.setattr(torch, "compile", lambda module: module)
    run = train(tmp_path / "run", model="mlp", compile=True)
    rows = read_vitals(run.path)
    assert rows and all(row["layers"] == {} and row["input"] is None for row in rows)
    assert all(row["parameters"] for row in rows)


def test_a_look_does_not_count_as_a_step_s_time() -> None:
    """Or lengths in minutes would become too few steps."""
    from vidi.engine.train import MEASURED, Clock

    clock = Clock()
    for step in range(1, MEASURED[1] + 1):
        look = due(step)
        clock.step(5.0 if look else 1.0, 64, half=False, usual=not look)
    assert clock.steps == MEASURED[1]
    assert clock.per_step(schedules.COST)[0] == pytest.approx(1.0)
    assert clock.images_per_second == pytest.approx(64)
