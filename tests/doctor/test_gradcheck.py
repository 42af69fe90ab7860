"""Every kind of network passes the check of its gradient, and a wrong backward does not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi import models
from vidi.data.open import open_data
from vidi.doctor import gradcheck as doctor
from vidi.doctor.gradcheck import GradCheck, gradcheck, gradcheck_named, gradcheck_network
from vidi.doctor.random_batch import random_batch
from vidi.doctor.replay import Replay, replayed
from vidi.engine.prepare import Prepared, prepare
from vidi.errors import InputError
from vidi.recipe import Recipe

ROOT = Path(__file__).parent.parent.parent


def _benchmark() -> Any:
    path = ROOT / "benchmarks/gradcheck_all.py"
    spec = importlib.util.spec_from_file_location("gradcheck_all", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAMILIES = (
    "mlp",
    "alexnet",
    "vgg11_bn",
    "plain20",
    "resnet18",
    "googlenet_2014",
    "fcn8s_vgg16",
    "hed",
    "tests.networks:flownet",
    "rcnn_small",
    "fast_rcnn_alexnet",
    "faster_rcnn_small",
)
"""One of each kind, an eighth as wide; `benchmarks/gradcheck_all.py` checks all."""
FEWER = {
    "vgg11_bn": 4,
    "resnet18": 3,
    "googlenet_2014": 1,
    "fcn8s_vgg16": 1,
    "hed": 3,
    "tests.networks:flownet": 1,
    "faster_rcnn_small": 1,
}
"""Entries of each tensor, beside its direction, of those that would take long."""


@pytest.mark.parametrize("name", FAMILIES)
def test_the_package_s_networks_pass(name: str) -> None:
    with torch.device("meta"):
        network = models.find(name)()
    found, _ = _benchmark().checked(name, entries=FEWER.get(name, 8))
    assert found.passed, "\n".join(found.lines())
    learned = {n for n, p in network.named_parameters() if p.requires_grad}
    assert {probe.parameter for probe in found.compared.probes} == learned
    assert len(found.compared.of("equal")) > 0.6 * len(found.compared.probes)


def test_layers_far_apart_are_drawn_to_move_the_loss() -> None:
    """Else a step that is small for the last one would cross thousands of kinks in the first."""
    torch.manual_seed(0)
    with _benchmark().narrowed(8):
        network = models.plain110(num_classes=4).double()
    doctor._draw(network)
    network.train()
    F.cross_entropy(network(torch.randn(2, 3, 16, 16).double()), torch.tensor([1, 3])).backward()
    kernels = [p for p in network.parameters() if p.ndim == 4]
    assert len(kernels) == 109
    moved = []
    for p in kernels:
        assert p.grad is not None
        moved.append(float((p.grad.norm() * p.detach().square().mean().sqrt()).detach()))
    assert max(moved) < 1e5 * min(moved)  # around 0, ten million times


class _Scaled(torch.autograd.Function):
    """y = a x, with a backward pass of one's own, and a fault in it."""

    fault = ""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor) -> Tensor:
        ctx.save_for_backward(x, a)
        return x * a.view(1, -1, 1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, a = ctx.saved_tensors
        of_a = (gradient * x).sum((0, 2, 3))
        fault = _Scaled.fault
        if fault == "sign":
            of_a = -of_a
        if fault == "factor":
            of_a = of_a / len(x)
        if fault == "entry":
            of_a[3] = 0
        of_x = gradient * (1 if fault == "input" else a.view(1, -1, 1, 1))
        return of_x, of_a


class Net(nn.Module):
    """A layer of one's own between two convolutions, with all that must be held fixed."""

    def __init__(self, num_classes: int = 4, *, half: bool = False) -> None:
        super().__init__()
        self.half_precision = half
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 6))
        self.drop = nn.Dropout(0.3)
        self.second = nn.Conv2d(6, 8, 3, stride=2)
        self.head = nn.Linear(8, num_classes)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, image: Tensor) -> Tensor:
        y = F.relu(self.norm(self.first(image)))
        y = _Scaled.apply(y, self.scale)
        y = F.max_pool2d(F.dropout(self.drop(y), 0.2, self.training), 2)
        if self.half_precision:
            y = y.float() + y.to(torch.float32) + y.to(dtype=torch.float16) + y.half()
            y = y.type_as(torch.zeros(1, dtype=torch.float32))
        y = self.second(y).mean((2, 3), dtype=torch.float32 if self.half_precision else None)
        out: Tensor = self.head(y * self.frozen)
        return out


@pytest.mark.parametrize("fault", ["", "sign", "factor", "entry", "input"])
def test_a_wrong_backward_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Scaled, "fault", fault)
    torch.manual_seed(0)
    found = gradcheck_network(Net(), image_size=12, samples=4)
    wrong = {probe.parameter for probe in found.compared.of("wrong")}
    before = {"first.weight", "norm.weight", "norm.bias"}  # a norm takes the convolution's bias off
    assert wrong == {"": set(), "input": before}.get(fault, {"scale"})
    assert found.passed == (not fault)
    text = "\n".join(found.lines())
    assert ("The gradient is right." in text) == (not fault)
    if fault == "entry":
        probe = max(found.compared.of("wrong"), key=lambda probe: probe.error)
        assert probe.entry == (3,)
        assert "scale [3]: backpropagation 0," in text


def test_casts_to_fewer_digits_do_not_round() -> None:
    torch.manual_seed(0)
    found = gradcheck_network(Net(half=True), image_size=12, samples=4)
    assert found.passed
    assert found.compared.worst < 2e-5
    assert torch.zeros(1).dtype == torch.float32, "only within the check"
    assert torch.ones(1, dtype=torch.float64).float().dtype == torch.float32


def test_the_network_is_left_as_it_is() -> None:
    network = Net()
    network.norm.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    draws = torch.get_rng_state()
    found = gradcheck_network(network, image_size=12)
    assert torch.equal(torch.get_rng_state(), draws)
    assert [module.training for module in network.modules()] == modes
    assert all(p.grad is None and p.dtype == torch.float32 for p in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any("forward" in vars(module) for module in network.modules())
    said = json.loads(json.dumps(found.as_json()))
    assert said["passed"]
    assert said["tensors"] == 9
    assert said["probes"] == sum(said[k] for k in ("equal", "zero", "crossing", "wrong"))
    notes = " ".join(said["notes"])
    assert "1 frozen tensor was" in notes
    assert "head.weight" in notes


def test_what_cannot_be_checked_is_said() -> None:
    with pytest.raises(InputError, match="No parameter of Flatten requires a gradient"):
        gradcheck_network(nn.Flatten())

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 4)
            self.rng = np.random.default_rng(0)

        def forward(self, image: Tensor) -> Tensor:
            out: Tensor = self.head(image.mean((2, 3)) * float(self.rng.uniform()))
            return out

    with pytest.raises(InputError, match=r"Noisy cannot be checked: .* drawn at random"):
        gradcheck_network(Noisy())
    with pytest.raises(InputError, match="no network called 'resnet19'"):
        gradcheck_named("resnet19")
    with pytest.raises(InputError, match="no random targets for the task 'depth'"):
        random_batch("depth", classes=2, side=8, samples=2)


def test_proposals_and_samples_are_held() -> None:
    """Without that the loss jumps and drifts with what is proposed."""
    from vidi.models.small_faster_rcnns import faster_rcnn_small

    torch.manual_seed(0)
    network = faster_rcnn_small(num_classes=4)
    held = doctor._Held(network.train(), seed=0)
    task = doctor._task("detection", network, 4)
    batch = random_batch("detection", classes=4, side=64, samples=2)

    def loss(model: nn.Module) -> float:
        return float(task.losses(model, batch)["boxes"].detach())

    seen: list[list[Tensor]] = []
    choose = held._fixed(lambda proposals: seen.append(proposals) or torch.zeros(0, 5))  # type: ignore[func-returns-value]
    first = [torch.rand(3, 4)]
    choose(first)
    choose([torch.rand(5, 4)])
    assert torch.equal(seen[0][0], first[0])
    assert torch.equal(seen[1][0], first[0])

    held.proposed = None
    before = loss(held)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("moves"):
                parameter.add_(0.3 * torch.randn(parameter.shape))
    assert loss(held) == before, "regions' losses depend on what is proposed alone"
    assert loss(network) != before


class Dense(nn.Module):
    """Of whatever task: a map for an image, or for two."""

    def __init__(self, task: str, num_classes: int) -> None:
        super().__init__()
        self.task = task
        self.outputs = {"boundaries": 1, "flow": 2}.get(task, num_classes)
        self.first = nn.Conv2d(6 if task == "flow" else 3, 5, 3, padding=1)
        self.last = nn.Conv2d(5, self.outputs, 3, padding=1)

    def forward(self, *images: Tensor) -> Tensor:
        y = self.last(self.first(torch.cat(images, 1)).tanh())
        maps: Tensor = y if self.task in models.DENSE else y.mean((2, 3))
        return maps


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("classification", "digits"),
        ("segmentation", "scenes:segmentation,size=40,n=8,val=2,test=0"),
        ("boundaries", "scenes:boundaries,size=40,n=8,val=2,test=0"),
        ("flow", "scenes:flow,size=40,n=8,val=2,test=0"),
    ],
)
def test_a_run_s_network_with_its_own_data_and_loss(task: str, data: str) -> None:
    def network(num_classes: int) -> nn.Module:
        torch.manual_seed(0)
        return Dense(task, num_classes)

    made = _prepared(data, model="python:tests.Dense", network=network, image_size=33)
    weights = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    found = gradcheck(made)
    assert found.passed, "\n".join(found.lines())
    assert found.task == task
    assert found.images == (2, 16, 16)
    assert len(found.compared.probes) >= 4 * 5
    assert all(torch.equal(made.model.state_dict()[k], v) for k, v in weights.items())
    assert made.train.image_size == 33, "the run's loader is as it was"
    by_random = gradcheck_network(network(10), classes=10, image_size=16)
    assert by_random.passed
    assert by_random.task == task


def _prepared(data: str, network: Any = None, **settings: Any) -> Prepared:
    recipe = Recipe(device="cpu", precision="fp32", batch_size=4, epochs=1, **settings)
    return prepare(recipe, open_data(data), torch.device("cpu"), network=network)


def test_a_loss_of_one_s_own_is_what_is_checked() -> None:
    recipe = Recipe(model="mlp", device="cpu", precision="fp32", batch_size=4, epochs=1)

    def lost(logits: Tensor, label: Tensor) -> Tensor:
        with torch.no_grad():
            entropy = F.cross_entropy(logits, label)
        return entropy + logits.square().mean()

    def held(logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, label) * logits.detach().square().mean()

    def check(loss: Any) -> GradCheck:
        return gradcheck(prepare(recipe, open_data("digits"), torch.device("cpu"), loss=loss))

    assert check(lost).compared.of("wrong"), "the cross-entropy has lost its gradient"
    found = check(held)
    assert found.passed, "the factor is meant to have none"
    assert "1 value is detached on the way" in " ".join(found.notes)


class Detaching(nn.Module):
    """Values that are constants within a layer, and beside it; and a function that hides its own
    way from autograd, as one that leaves PyTorch does."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.gate = Gate()
        self.hidden = Hidden(slope)
        self.head = nn.Linear(4, 4)

    def forward(self, image: Tensor) -> Tensor:
        y = self.gate(self.first(image))
        y = self.hidden(y) * y.detach().abs().mean() + y.data.square()
        out: Tensor = self.head(y.mean((2, 3)))
        return out


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.detach().sigmoid()


class Hidden(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()

        class Threefold(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return torch.from_numpy(3 * x.detach().numpy())

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                return slope * gradient

        self.function = Threefold

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function.apply(x)
        return out


@pytest.mark.parametrize("slope", [3.0, 2.9])
def test_detached_values_are_held_but_not_what_a_function_does(slope: float) -> None:
    torch.manual_seed(0)
    found = gradcheck_network(Detaching(slope), image_size=10)
    assert found.passed == (slope == 3)
    assert {p.parameter for p in found.compared.of("wrong")} == (
        set() if slope == 3 else {"first.weight", "first.bias"}
    )
    assert "3 values are detached on the way" in " ".join(found.notes)


class Shared(nn.Module):
    """All that a replay may trip over: in-place operations, dropout on both sides, a layer that is
    called twice, one whose weight is used before it is called, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.early = nn.Conv2d(3, 4, 3, padding=1)
        self.never = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        y = self.drop(self.act(self.stem(image)))
        y += F.conv2d(image, self.early.weight, padding=1)
        y = F.dropout(self.act(self.twice(y)), 0.3)
        z = self.twice(y)
        z += y
        z.mul_(2)
        z = self.drop(z) + self.early(image)
        out: Tensor = self.head(z.mean((2, 3)) @ self.never.weight)
        return out


def test_a_replay_is_exact() -> None:
    torch.manual_seed(0)
    network = Shared().double()
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def loss() -> Tensor:
        torch.manual_seed(1)
        out: Tensor = network(image).square().sum()
        return out

    again = replayed(loss, Replay(network))
    ran: list[nn.Module] = []
    for module in (network.stem, network.twice):
        own = module._conv_forward

        def counted(*args: Any, own: Any = own, module: nn.Module = module) -> Any:
            ran.append(module)
            return own(*args)

        module._conv_forward = counted  # type: ignore[assignment, method-assign]
    with torch.no_grad():
        start = loss()
        assert again(None) == start
        for name, parameter in network.named_parameters():
            for _ in range(2):
                before = parameter.clone()
                parameter.add_(0.1)
                ran.clear()
                found = again(name)
                fewer = list(ran)
                assert found == loss(), name
                assert found != start or name == "never.bias"
                parameter.copy_(before)
            if name.startswith("twice"):
                assert network.stem not in fewer, "though there are draws behind it"
            if name.startswith("head"):
                assert fewer == [], "nothing before the last layer is computed again"
        assert again(None) == start
