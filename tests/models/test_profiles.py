"""Rows add up to the published counts, memory and time are where they arise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi import models
from vidi.errors import InputError
from vidi.models import count
from vidi.models.profile import _rounds, named, profile


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "unit"),
    [
        ("alexnet", 61_100_840, 714e6, 1e6),
        ("vgg16", 138_357_544, 15.47e9, 0.01e9),
        ("googlenet", 6_624_904, 1.498e9, 0.001e9),
        ("resnet18", 11_689_512, 1.814e9, 0.001e9),
        ("resnet50", 25_557_032, 4.089e9, 0.001e9),
        ("resnet20", 269_722, 40.55e6, 0.01e6),
    ],
)
def test_totals_are_the_papers(name: str, parameters: int, macs: float, unit: float) -> None:
    with torch.device("meta"):
        network, size = named(name, aux_logits=False)
    found = profile(network, size, timed=False)
    assert found.parameters == parameters
    assert abs(found.macs - macs) <= 0.501 * unit
    assert sum(row.macs for row in found.rows()) == found.macs
    assert found.forward is None
    assert found.ratio is None


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "alexnet_2012",
        "vgg11_bn",
        "plain20",
        "plain18",
        "fcn8s_vgg16",
        "fcn_resnet18",
        "hed_bn",
        "flownet_c",
        "flownet_small",
        "rcnn_small",
        "fast_rcnn_small",
        "faster_rcnn_resnet18_fpn",
    ],
)
def test_totals_are_those_of_count_for_every_kind_of_network(name: str) -> None:
    with torch.device("meta"):
        network, size = named(name)
    size = min(size, 128) if getattr(network, "task", "") != "classification" else size
    regions = 3 if getattr(network, "task", "") == "detection" else None
    found = profile(network, size, timed=False, regions=regions)
    assert found.parameters == count.parameters(network)
    assert found.macs == count.macs(network, size, regions=regions)
    assert found.memory > 0
    for depth in (1, 2, found.depth):
        rows = found.rows(depth)
        assert sum(row.parameters for row in rows) == found.parameters
        assert sum(row.macs for row in rows) == found.macs
        assert sum(row.memory for row in rows) == found.memory
        assert len({row.name for row in rows}) == len(rows)


class Tiny(nn.Module):
    """With what is written between its modules, and one that is shared."""

    image_size = 16

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, num_classes)
        self.only_in_training = nn.Linear(8, num_classes)
        self.register_buffer("table", torch.rand(8, 8))

    def forward(self, image: Tensor) -> Any:
        y = F.relu(self.first(image))
        y = self.block(self.block(y))
        y = torch.einsum("bchw,cd->bdhw", y, self.table)
        y = y.mean((2, 3))
        if self.training:
            return self.head(y), self.only_in_training(y)
        return self.head(y)


def tiny(num_classes: int = 4) -> Tiny:
    return Tiny(num_classes)


def test_rows_by_hand() -> None:
    network = tiny()
    found = profile(network, 16, batch=5)
    rows = {row.name: row for row in found.rows()}
    pixels = 16 * 16
    assert rows["first"].macs == 27 * 8 * pixels
    assert rows["first"].output == (8, 16, 16)
    assert rows["first"].field == 3
    assert rows["block.0"].macs == 2 * 72 * 8 * pixels, "called twice"
    assert rows["block.0"].parameters == 72 * 8
    assert rows["block.0"].field == 7, "at its last call"
    assert rows[""].macs == 8 * 8 * pixels, "a product of the network's own"
    assert rows["head"].macs == 8 * 4
    assert rows["head"].field is None
    assert rows["only_in_training"].macs == 0
    assert rows["only_in_training"].output is None
    assert rows["only_in_training"].parameters == 36
    # A convolution keeps its input, which is the image; a ReLU its output, of five images.
    assert rows["first"].memory == 5 * 3 * pixels * 4
    assert rows[""].memory >= 5 * 8 * pixels * 4
    assert rows["block.1"].memory == 2 * 5 * 8 * pixels * 4
    assert rows["block.0"].memory == 0, "its inputs are kept already"
    grouped = {row.name: row for row in found.rows(1)}
    assert grouped["block"].kind == "Sequential"
    assert grouped["block"].macs == rows["block.0"].macs
    assert grouped["block"].memory == rows["block.1"].memory + rows["block.0"].memory


def test_memory_grows_with_the_batch_and_multiply_adds_do_not() -> None:
    network = models.resnet20()
    one, four = (profile(network, 32, batch=n, timed=False) for n in (1, 4))
    assert one.macs == four.macs
    assert 3.9 * one.memory < four.memory <= 4 * one.memory


class Slow(torch.autograd.Function):
    """Takes its time in one direction, by a clock of its own."""

    work: tuple[int, int] = (0, 0)
    now = 0.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Slow.now += Slow.work[0]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Slow.now += Slow.work[1]
        return gradient.clone()

    @staticmethod
    def read(_: torch.device) -> float:
        Slow.now += 0.001  # as in any look
        return Slow.now


class Sluggish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Slow.apply(x)
        return out


@pytest.mark.parametrize("work", [(40, 0), (0, 40)])
def test_time_is_where_it_is_spent(work: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One module does nearly all the work, in one direction."""
    monkeypatch.setattr(Slow, "work", work)
    monkeypatch.setattr("vidi.models.profile._now", Slow.read)
    network = nn.Sequential(nn.Conv2d(3, 2, 3), Sluggish(), nn.Flatten(), nn.Linear(2 * 36, 3))
    found = profile(network, 8)
    rows = {row.name: row for row in found.rows()}
    times = {(name, way): getattr(row, way) for name, row in rows.items() for way in WAYS}
    spent = times.pop(("1", WAYS[work.index(40)]))
    assert spent == pytest.approx(40, abs=0.01)
    assert all(0 <= value < 0.01 for value in times.values())
    assert found.ratio is not None
    assert (found.ratio > 1) == (work[1] > 0)
    assert times["0", "backward"] > 0, "also of what comes before it"


WAYS = ("forward", "backward")


def test_the_network_is_left_as_it_is() -> None:
    network = models.resnet20()
    network.layer1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    draws = torch.get_rng_state()
    profile(network, 32, batch=2)
    assert torch.equal(torch.get_rng_state(), draws)
    assert [module.training for module in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_of_other_tasks() -> None:
    for name in ("hed_small", "flownet_small", "fast_rcnn_small"):
        network, _ = named(name)
        found = profile(network, 32, batch=2, regions=4 if "rcnn" in name else None)
        assert found.ratio is not None
        assert found.ratio > 0.5
        assert any(row.field not in (None, math.inf) for row in found.rows())


def test_a_network_that_looks_at_values_is_run_truly() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            out: Tensor = y.mean((2, 3)) if float(y.detach().sum()) > -1e9 else y.amax((2, 3))
            return out

    found = profile(Looking(), 8, timed=False)
    assert found.macs == 27 * 2 * 36
    assert found.parameters == 56


@pytest.mark.parametrize("timed", [False, True])
def test_a_network_that_looks_at_values_in_training_alone(timed: bool) -> None:
    class Looking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / float(x.detach().std()) if self.training else x

    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), Looking())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = profile(network, 8, batch=2, timed=timed)
    assert found.macs == 27 * 2 * 36 and found.memory > 0
    assert (found.ratio is not None) == timed and found.untimed is None
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_a_network_of_which_nothing_learns() -> None:
    frozen = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).requires_grad_(False)
    without = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    for network in (frozen, without):
        found = profile(network, 8)
        assert (found.forward, found.backward, found.ratio) == (None, None, None)
        assert found.untimed is not None and "no backward pass" in found.untimed
        assert found.layers[1].forward is None and not found.memory
        assert profile(network, 8, timed=False).untimed is None


def loose(num_classes: int = 4, **kwargs: Any) -> Tiny:
    """Hands on what it is given to one that knows less."""
    return tiny(num_classes, **kwargs)


def test_options_are_for_who_names_them() -> None:
    network, _ = named(f"{__name__}:loose", classes=7, aux_logits=False)
    assert network.get_submodule("head").weight.shape == (7, 8)
    assert not any(
        "aux" in name for name, _ in named("googlenet", aux_logits=False)[0].named_modules()
    )


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 8), (1.0, 7), (2.5, 3), (5.0, 3), (7.0, 2)])
def test_slow_rounds_are_few(seconds: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("vidi.models.profile.time.perf_counter", lambda: now[0])
    count = 0
    for _ in _rounds():
        now[0] += seconds
        count += 1
    assert count == rounds


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(InputError, match="Sequential cannot take images of 9 × 9 pixels"):
        profile(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), 9)
    with pytest.raises(InputError, match=r"trained on 1 of 32 × 32 .* Give a larger --batch-size"):
        profile(named("resnet18")[0], 32)
    with pytest.raises(InputError, match="no network called 'resnet19'"):
        named("resnet19")
    network, size = named(f"{__name__}:tiny", classes=7)
    assert size == 16
    assert network.get_submodule("head").weight.shape == (7, 8)


def test_the_heaviest_are_not_timed() -> None:
    with torch.device("meta"):
        network, size = named("rcnn_vgg16")
    found = profile(network, size)  # 31 T multiply-adds
    assert found.forward is None
    assert found.untimed is not None and "take minutes" in found.untimed
    assert profile(models.resnet20(), 32, batch=6000, timed=True).forward is None, "0.24 T"
    assert found.macs > 30e12


def test_timm_s_networks() -> None:
    pytest.importorskip("timm")
    network, size = named("timm:vit_tiny_patch16_224", classes=5)
    assert size == 224
    found = profile(network, size, timed=False)
    assert found.parameters == count.parameters(network)
    assert found.macs == count.macs(network, size)
    rows = {row.name: row for row in found.rows()}
    assert rows["patch_embed.proj"].field == 16
    assert rows["head"].field is None
