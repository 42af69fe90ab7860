"""Products of matrices against PyTorch's convolutions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi import models
from vidi.ops import convolution

LAYERS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "3": ({"kernel_size": 3, "padding": 1}, (2, 5, 4)),
    "strided": ({"kernel_size": 3, "padding": 1, "stride": 2, "bias": False}, (2, 6, 7)),
    "oblong": ({"kernel_size": (3, 2), "padding": (0, 1), "stride": (1, 3)}, (3, 4, 8)),
    "1": ({"kernel_size": 1}, (1, 3, 4)),
    "fully connected": ({"kernel_size": 4}, (5, 4, 4)),
}
LAST = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])


def made(name: str, kind: torch.dtype, last: bool) -> tuple[nn.Conv2d, Tensor]:
    fields, (batch, h, w) = LAYERS[name]
    torch.manual_seed(0)
    layer, x = nn.Conv2d(16, 12, **fields).to(kind), torch.randn(batch, 16, h, w, dtype=kind)
    form = torch.channels_last if last else torch.contiguous_format
    return layer.to(memory_format=form), x.contiguous(memory_format=form)


def gradients(out: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of a loss."""
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), wanted)]


@LAST
@pytest.mark.parametrize("name", LAYERS)
def test_a_product_and_its_gradients_are_the_convolutions(name: str, last: bool) -> None:
    layer, x = made(name, torch.float64, last)
    assert not isinstance(layer.padding, str)
    weight = layer.weight
    x.requires_grad_()
    mine = convolution.product(x, weight, layer.stride, layer.padding)
    theirs = F.conv2d(x, weight, None, layer.stride, layer.padding)
    for a, b in zip(*(gradients(y, [x, weight]) for y in (mine, theirs)), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@LAST
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_under_autocast_is_as_near_to_the_truth(
    name: str, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = made(name, torch.float32, last)
    products = []

    def product(*arguments: Any) -> Tensor:
        products.append(arguments)
        return real(*arguments)

    real = convolution.product
    monkeypatch.setattr(convolution, "product", product)

    def results(layer: nn.Conv2d, x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        return gradients(layer(x), [x, *layer.parameters()])

    exact = results(copy.deepcopy(layer).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        theirs = results(copy.deepcopy(layer), x)
        mine = results(convolution.convert(layer), x)
    assert len(products) == 1
    for a, b, truth in zip(mine, theirs, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a - truth).norm() < 2 * (b - truth).norm() + 0.01 * truth.norm()


def test_large_maps_evaluation_and_fp32_are_pytorchs_to_the_bit() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 8, 3, padding=1)
    ours = convolution.convert(copy.deepcopy(plain))
    large, small = torch.randn(2, 3, 20, 20), torch.randn(1, 3, 4, 4)
    assert torch.equal(ours(small), plain(small))
    assert ours.to("meta")(small.to("meta")).shape == (1, 8, 4, 4)
    ours = convolution.convert(copy.deepcopy(plain))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(large), plain(large))
        assert torch.equal(ours.eval()(small), plain(small))
        with torch.no_grad():
            assert torch.equal(ours.train()(small), plain(small))


def test_what_a_layer_gives_may_be_changed_in_place() -> None:
    """As by a ReLU behind it, or where a shortcut is added."""
    layer, x = made("strided", torch.float32, True)
    with torch.autocast("cpu", torch.bfloat16):
        out = convolution.convert(layer)(x)
        (out.relu_() + 1).sum().backward()
    assert layer.weight.grad is not None


def test_only_plain_layers_are_converted_and_nothing_else_changes() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=1),
    )
    before = {name: value.data_ptr() for name, value in network.state_dict().items()}
    assert convolution.convert(network) is network
    assert [type(m) is convolution.Conv2d for m in network] == [False] * 4 + [True]
    assert {name: value.data_ptr() for name, value in network.state_dict().items()} == before
    assert isinstance(copy.deepcopy(network)[4], convolution.Conv2d)


def test_a_whole_resnet_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three images of 64 px its last two stages have fewer pixels than weights."""
    torch.manual_seed(0)
    plain = models.resnet18(num_classes=5)
    ours = convolution.convert(copy.deepcopy(plain))
    exact = copy.deepcopy(plain).double()
    x, label = torch.randn(3, 3, 64, 64), torch.tensor([0, 3, 4])
    F.cross_entropy(exact(x.double()), label).backward()
    products = []
    real = convolution.product
    monkeypatch.setattr(convolution, "product", lambda *a: products.append(a) or real(*a))
    for network in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16):
            out = network(x)
        F.cross_entropy(out.float(), label).backward()
    off = {}
    for key, network in (("plain", plain), ("ours", ours)):
        parts = zip(network.parameters(), exact.parameters(), strict=True)
        off[key] = sum(float((a.grad - b.grad).norm() / b.grad.norm()) for a, b in parts)  # type: ignore[operator,union-attr]
    assert off["ours"] < 1.5 * off["plain"]
    assert len(products) == 14
