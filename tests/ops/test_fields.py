"""Receptive fields from operations, against what a gradient reaches and what papers say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi import models
from vidi.ops import receptive
from vidi.ops.fields import Watch


class Mixed(nn.Module):
    """Branches, strides, dilation, pools, and a way up again."""

    def __init__(self, up: str) -> None:
        super().__init__()
        self.up = up
        self.one = nn.Conv2d(3, 2, 5, stride=2, padding=2)
        self.two = nn.Conv2d(2, 2, 3, dilation=3, padding=3)
        self.three = nn.Conv2d(2, 2, 1)
        self.four = nn.Conv2d(4, 2, 3, stride=2, padding=1)
        self.back = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 3, stride=1, padding=1)
        x = self.one(x)
        x = torch.cat((self.two(x), F.max_pool2d(self.three(x), 3, 1, 1)), 1)
        x = self.four(F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1])
        if self.up == "transposed":
            x = self.back(x)
        elif self.up == "strided":
            x = x[:, :, ::2, ::2] + self.three(x)[:, :, ::2, ::2]
        elif self.up == "adaptive":
            x = F.adaptive_avg_pool2d(x, 4)
        else:
            x = F.interpolate(x, scale_factor=2, mode=self.up)
        return x


def positive(network: nn.Module) -> nn.Module:
    """All weights above zero, so that no path's gradient is hidden by another's."""
    for parameter in network.parameters():
        parameter.data = 0.1 + torch.rand(parameter.shape, dtype=torch.float64)
    return network


def seen(network: nn.Module, image: Tensor) -> int:
    """The most input rows that any one row of the output's middle column depends on."""
    image.requires_grad_()
    output = network(image)
    found = 0
    for row in range(output.shape[2]):
        (reached,) = torch.autograd.grad(
            output[0, :, row, output.shape[3] // 2].sum(), image, retain_graph=True
        )
        rows = reached[0].abs().sum((0, 2)).nonzero().flatten()
        found = max(found, int(rows[-1] - rows[0]) + 1)
    return found


@pytest.mark.parametrize(
    "up", ["transposed", "strided", "adaptive", "bilinear", "nearest", "nearest-exact"]
)
def test_it_is_what_the_gradient_reaches(up: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = positive(Mixed(up))
    image = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad(), Watch(image) as watch:
        told = watch.of(network(image))
    # A maximum's gradient reaches one of the pixels that it looks at: an average reaches all.
    monkeypatch.setattr(F, "max_pool2d", F.avg_pool2d)
    assert told == seen(network, image)


@pytest.mark.parametrize(
    ("name", "layer", "field"),
    [
        # Araujo et al. 2019, table 1.
        ("alexnet", "features.12", 195),
        ("vgg16", "features.30", 212),
        ("resnet50_v1", "layer4.2.conv3", 483),
        ("resnet101_v1", "layer4.2.conv3", 1027),
        ("resnet152_v1", "layer4.2.conv3", 1507),
        # Xie & Tu 2015, table 1: the five sides of HED.
        ("hed", "sides.0", 5),
        ("hed", "sides.1", 14),
        ("hed", "sides.2", 40),
        ("hed", "sides.3", 92),
        ("hed", "sides.4", 196),
        ("fcn32s_vgg16", "classifier.0", 404),  # Long et al. 2015, table 1
    ],
)
def test_published_fields(name: str, layer: str, field: int) -> None:
    with torch.device("meta"):
        network: Any = models.find(name)().eval()
        image = torch.empty(1, 3, 224, 224)
    found: list[float | None] = []
    watch = Watch(image)
    network.get_submodule(layer).register_forward_hook(lambda m, i, o: found.append(watch.of(o)))
    with torch.no_grad(), watch:
        network(image)
    assert found == [field]


@pytest.mark.parametrize(("name", "last"), [("fcn_small", "refine"), ("hed_small", "fuse")])
def test_it_is_what_is_measured_of_a_whole_network(name: str, last: str) -> None:
    """By NaN, in :mod:`vidi.ops.receptive`, whatever the network is made of."""
    network: Any = models.find(name)().eval()
    image = torch.rand(1, 3, 65, 65)
    found: list[float | None] = []
    watch = Watch(image)
    handle = network.get_submodule(last).register_forward_hook(
        lambda m, i, o: found.append(watch.of(o))
    )
    with torch.no_grad(), watch:
        network(image)
    handle.remove()

    def first(x: Tensor) -> Tensor:
        out = network(x)
        maps: Tensor = out[0] if isinstance(out, tuple) else out
        return maps

    reach = receptive.measure(first).reach
    assert reach is not None
    # Outputs look as far to each side, but for where they stand in their cell of the map.
    assert found[0] == pytest.approx(2 * max(reach), abs=4)


def test_what_mixes_all_sees_all_and_what_is_not_known_says_so() -> None:
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad(), Watch(image) as watch:
        y = F.conv2d(image, torch.rand(4, 3, 3, 3))
        assert watch.of(y) == 3
        assert watch.of(y * y.mean((2, 3), keepdim=True)) == math.inf
        assert watch.of(F.adaptive_avg_pool2d(y, 1)) == math.inf
        assert watch.of(y.mean(1, keepdim=True)) == 3
        assert watch.of(y.permute(0, 2, 3, 1)) is None
        assert watch.of((y.flatten(2) @ torch.rand(196, 196)).view(1, 4, 14, 14)) is None
        assert watch.of(torch.rand(1, 3, 14, 14)) is None
        assert watch.of(y + torch.rand(1, 4, 14, 14)) is None


def test_a_stride_written_as_a_slice_counts_once() -> None:
    """Along both axes it is one step of two pixels."""
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad(), Watch(x) as watch:
        out = nn.Conv2d(3, 2, 3)(x[:, :, ::2, ::2])
    assert watch.of(out) == 1 + 2 * 2
