"""Short real runs that are sabotaged in their optimisation or their network: each is named by the
right finding, first of all; and healthy ones, which have no problem."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vidi
from vidi.doctor import Finding, examine, read_records
from vidi.errors import RunError

SCENES = "scenes:{},size=48,n=16,val=4,test=0"
SGD = {"name": "sgd"}


def examined(run: Path, data: Any, *, steps: int = 32, **told: Any) -> tuple[Finding, ...]:
    """What the records tell of a run of that many steps."""
    told = {"batch_size": 32, **told}
    with contextlib.suppress(RunError):  # which is one of the things to be found
        vidi.train(
            data,
            run=run,
            length={"steps": steps, "evaluate_every": 1000.0},
            device="cpu",
            precision="fp32",
            logging={"pictures": False},
            **told,
        )
    return examine(read_records(run))


def first_of(findings: tuple[Finding, ...]) -> Finding | None:
    """The first that is not only worth knowing."""
    return next((f for f in findings if f.severity != "note"), None)


# --- networks of a user's own ---


class Affine(nn.Module):
    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def he(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return network


def convolutions(
    num_classes: int, *, norm: bool = True, before: nn.Module | None = None
) -> nn.Sequential:
    """``head`` is the last layer, and ``first`` the first."""
    network = nn.Sequential()
    if before is not None:
        network.append(before)
    for name, given, width in (("first", 3, 12), ("second", 12, 16)):
        network.add_module(name, nn.Conv2d(given, width, 3, padding=1))
        if norm:
            network.add_module(f"{name}_norm", nn.BatchNorm2d(width))
        network.add_module(f"{name}_relu", nn.ReLU())
    network.add_module("pool", nn.AdaptiveAvgPool2d(2))
    network.add_module("flat", nn.Flatten())
    network.add_module("head", nn.Linear(64, num_classes))
    he(network)
    nn.init.normal_(network.head.weight, std=0.02)
    return network


def deep(
    num_classes: int,
    *,
    kind: type[nn.Module] = nn.ReLU,
    depth: int = 8,
    std: float | None = None,
    bias: float = 0.0,
    drop: float = 0.0,
) -> nn.Module:
    network, given = nn.Sequential(nn.Flatten()), 3 * 8 * 8
    for _ in range(depth):
        layer = nn.Linear(given, 48)
        nn.init.kaiming_normal_(layer.weight)
        if std is not None:
            nn.init.normal_(layer.weight, std=std)
        nn.init.constant_(layer.bias, bias)
        network.extend([layer, kind()])
        if drop:
            network.append(nn.Dropout(drop))
        given = 48
    network.append(nn.Linear(given, num_classes))
    return network


def alike(num_classes: int) -> nn.Module:
    network = deep(num_classes, depth=2)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.05)
    return network


def frozen(num_classes: int) -> nn.Module:
    network = convolutions(num_classes)
    network.second.requires_grad_(False)
    return network


def sure(num_classes: int) -> nn.Module:
    network = convolutions(num_classes)
    nn.init.normal_(network.head.weight, std=20.0)
    return network


class Cut(nn.Module):
    """The gradient is cut after the first layer; or a layer is not used at all."""

    def __init__(self, num_classes: int, *, used: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 48), nn.Linear(48, 48)
        self.head = nn.Linear(48, num_classes)
        self.used = used

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)).relu()
        if self.used:
            x = self.second(x.detach()).relu()
        return self.head(x)


class Evaluating(nn.Module):
    """Somebody wrote eval() into forward."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = convolutions(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self.network(x)


class Root(nn.Module):
    """A root of what becomes zero once training has begun."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network, self.root, self.seen = convolutions(num_classes), Square(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += self.training
        x = self.network(x)
        return self.root(x) if self.seen >= 12 else x


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 1e4).sqrt()


def per_pixel(
    num_classes: int, *, before: float = 1.0, norm: bool = True, equal: bool = False
) -> nn.Module:
    """Segmentation and boundaries: every pixel by its neighbourhood."""
    network = nn.Sequential(
        Affine(before, 0.0),
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, num_classes, 1),
    )
    he(network)
    nn.init.normal_(network[-1].weight, std=0.02)
    if equal:
        for parameter in network[4].parameters():
            nn.init.constant_(parameter, 0.05)
        nn.init.constant_(network[-1].weight, 0.05)
    return network


def built(builder: Callable[..., nn.Module], **told: Any) -> Callable[..., nn.Module]:
    """What is handed to `train` as the network: it is built for the data's classes, seeded."""

    def build(num_classes: int) -> nn.Module:
        torch.manual_seed(0)
        return builder(num_classes, **told)

    return build


Case = tuple[str, dict[str, Any], str]

OPTIMISATION: list[Case] = [
    ("a rate too high", {"model": "mlp", "lr": 1.0, "optimiser": SGD}, "rate-too-high"),
    (
        "ping-pong",
        {"model": built(convolutions), "lr": 200.0, "optimiser": SGD},
        "rate-too-high",
    ),
    ("a rate too low", {"model": "mlp", "lr": 1e-6, "optimiser": SGD}, "rate-too-low"),
    (
        "momentum",
        {"model": "mlp", "lr": 0.05, "optimiser": {**SGD, "momentum": 0.998}},
        "momentum-too-high",
    ),
    (
        "decay",
        {"model": "mlp", "lr": 0.05, "optimiser": {**SGD, "weight_decay": 1.0}},
        "decay-too-strong",
    ),
    (
        "decay of AdamW",
        {"model": "mlp", "optimiser": {"name": "adamw", "weight_decay": 60.0}},
        "decay-too-strong",
    ),
    (
        "decay of norms",
        {
            "model": built(convolutions),
            "lr": 0.1,
            "optimiser": {**SGD, "weight_decay": 0.005, "decay_biases_and_norms": True},
        },
        "decay-on-norms",
    ),
    ("dropout", {"model": built(deep, depth=2, drop=0.95), "lr": 0.05}, "dropout-too-strong"),
    (
        "a batch of one",
        {"model": built(convolutions), "batch_size": 1, "lr": 0.01},
        "norms-small-batch",
    ),
]

NETWORKS: list[Case] = [
    ("sigmoids", {"model": built(deep, kind=nn.Sigmoid)}, "vanishing-gradient"),
    ("small weights", {"model": built(deep, std=0.02)}, "vanishing-gradient"),
    ("large weights", {"model": built(deep, std=1.0)}, "exploding-gradient"),
    ("biases below zero", {"model": built(deep, depth=3, bias=-20.0)}, "dead-relus"),
    ("tanhs at their bounds", {"model": built(deep, kind=nn.Tanh, std=3.0)}, "saturated"),
    ("equal weights", {"model": built(alike)}, "equal-weights"),
    ("a frozen layer", {"model": built(frozen)}, "frozen"),
    ("a detach", {"model": built(Cut, used=True)}, "no-gradient"),
    ("a layer that is not used", {"model": built(Cut, used=False)}, "no-gradient"),
    ("eval() in forward", {"model": built(Evaluating)}, "norms-evaluating"),
    (
        "0 to 255",
        {"model": built(convolutions, norm=False, before=Affine(96.0, 77.0)), "lr": 0.02},
        "input-not-normalised",
    ),
    (
        "normalised twice",
        {"model": built(convolutions, before=Affine(1 / 0.376, -0.305 / 0.376))},
        "input-normalised-twice",
    ),
    ("a last layer too large", {"model": built(sure)}, "initial-loss"),
    ("a root", {"model": built(Root)}, "not-finite"),
]


CASES = OPTIMISATION + NETWORKS


@pytest.mark.parametrize(("told", "code"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_classification(told: dict[str, Any], code: str, tmp_path: Path) -> None:
    found = first_of(examined(tmp_path / "run", "digits", **told))
    assert found is not None and found.code == code


OTHERS: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "segmentation, a rate too high",
        "segmentation",
        {"model": built(per_pixel, norm=False), "lr": 300.0, "optimiser": SGD},
        "rate-too-high",
    ),
    (
        "segmentation, equal weights",
        "segmentation",
        {"model": built(per_pixel, equal=True), "lr": 0.05, "optimiser": SGD},
        "equal-weights",
    ),
    (
        "segmentation, 0 to 255",
        "segmentation",
        {"model": built(per_pixel, before=60.0, norm=False)},
        "input-not-normalised",
    ),
    (
        "boundaries, a rate too low",
        "boundaries",
        {"model": built(per_pixel), "lr": 1e-7, "optimiser": SGD},
        "rate-too-low",
    ),
]


@pytest.mark.parametrize(
    ("task", "told", "code"), [c[1:] for c in OTHERS], ids=[c[0] for c in OTHERS]
)
def test_other_tasks(task: str, told: dict[str, Any], code: str, tmp_path: Path) -> None:
    found = first_of(
        examined(tmp_path / "run", SCENES.format(task), steps=24, batch_size=4, **told)
    )
    assert found is not None and found.code == code


HEALTHY: list[tuple[str, str, dict[str, Any]]] = [
    ("mlp", "digits", {"model": "mlp"}),
    ("resnet20", "digits", {"model": "resnet20", "steps": 12}),
    ("plain20, sgd", "digits", {"model": "plain20", "steps": 12, "optimiser": SGD}),
    ("own, adamw", "digits", {"model": built(convolutions), "optimiser": {"name": "adamw"}}),
    ("own, deep", "digits", {"model": built(deep, depth=5)}),
    ("own, tanh", "digits", {"model": built(deep, kind=nn.Tanh, depth=3, std=0.08)}),
    ("own, dropout", "digits", {"model": built(deep, depth=2, drop=0.5), "lr": 0.05}),
    ("segmentation", SCENES.format("segmentation"), {"steps": 8, "batch_size": 4}),
    ("boundaries", SCENES.format("boundaries"), {"steps": 4, "batch_size": 4}),
]


@pytest.mark.parametrize(("data", "told"), [c[1:] for c in HEALTHY], ids=[c[0] for c in HEALTHY])
def test_healthy_runs_have_no_problem(data: str, told: dict[str, Any], tmp_path: Path) -> None:
    found = examined(tmp_path / "run", data, **told)
    assert [f.code for f in found if f.severity == "problem"] == []


def test_a_sabotage_is_named_by_the_step_and_layer_at_which_it_arose(tmp_path: Path) -> None:
    found = first_of(examined(tmp_path / "run", "digits", model=built(Root)))
    assert found is not None
    assert (found.layer, found.step) == ("root", 11)
