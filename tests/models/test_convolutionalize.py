"""Classifiers made fully convolutional: equal to the classifier on its size, to the head on its
window of feature maps, and to the sliding classifier where there is no padding."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from vidi import models
from vidi.errors import InputError
from vidi.models.convolutional import convolutionalize, slide, sliding_agreement
from vidi.models.googlenets import ConvUnit, Inception
from vidi.models.perceptrons import mlp
from vidi.models.vggs import VGG

NARROW = ([8], [8], [16, 16], [16, 16], [16, 16])


def filled(build: Callable[[], nn.Module]) -> nn.Module:
    """The network with weights of He's deviation, one short row of them over and over: to draw
    a hundred million takes longer than all that is tested with them."""
    with torch.device("meta"):
        net = build()
    row = torch.randn(9973, generator=torch.Generator().manual_seed(2))
    net.to_empty(device="cpu")
    with torch.no_grad():
        for p in net.parameters():
            deviation = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.01
            p.copy_(deviation * row.repeat(-(-p.numel() // 9973))[: p.numel()].view(p.shape))
    return net


def narrow_vgg(num_classes: int = 7) -> VGG:
    """VGG with its head, the maps and hidden layers narrower."""
    net = VGG(NARROW, num_classes, 0.5)
    net.classifier[0] = nn.Linear(16 * 7 * 7, 32)
    net.classifier[3] = nn.Linear(32, 32)
    net.classifier[6] = nn.Linear(32, num_classes)
    return net


def lively(net: nn.Module, size: int = 64) -> nn.Module:
    """Its scores differ from place to place, and its statistics are those of images."""
    for module in net.modules():
        if isinstance(module, nn.Linear) and module.weight.numel() < 1e6:
            nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(3))
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        net.train()(torch.cat([images(size, size), images(size, size).flip(3)]))
    return net.eval()


def images(*size: int) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def off(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


def feature_maps(net: nn.Module, module: str, x: Tensor) -> Tensor:
    """What goes into one of the network's own modules."""
    caught: list[Tensor] = []
    hook = net.get_submodule(module).register_forward_pre_hook(
        lambda _, inputs: caught.append(inputs[0].clone())
    )
    net(x)
    hook.remove()
    return caught[0]


def head_of(net: nn.Module, maps: Tensor) -> Tensor:
    """The classifiers' heads, written out anew."""
    pooled = net.avgpool(maps).flatten(1)  # type: ignore[operator]
    last = net.classifier if hasattr(net, "classifier") else net.fc
    return last(pooled)  # type: ignore[operator, no-any-return]


BUILDERS = {
    "alexnet": lambda: filled(lambda: models.find("alexnet")(11)),
    "alexnet_2012": lambda: filled(lambda: models.find("alexnet_2012")(11)),
    "vgg": narrow_vgg,
    "googlenet": lambda: models.find("googlenet")(11),
    "googlenet_2014": lambda: models.find("googlenet_2014")(11),
    "resnet18": lambda: models.find("resnet18")(11),
    "resnet20": lambda: models.find("resnet20")(),
}


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_it_equals_the_classifier_and_every_cell_the_head_on_its_window(name: str) -> None:
    torch.manual_seed(0)
    net = lively(BUILDERS[name]())
    size = int(net.image_size)  # type: ignore[arg-type]
    dense = convolutionalize(net)
    x = images(size, size)
    grid = dense(x)
    assert grid.shape[2:] == (1, 1)
    assert off(grid[:, :, 0, 0], net(x)) < 1e-5

    stride = {"resnet20": 4}.get(name, 32)
    assert dense.stride == stride
    assert (dense.window, dense.offset) == (size, size / 2)
    x = images(size + 2 * stride, size + stride + 5)
    grid = dense(x)
    maps = feature_maps(net, "avgpool", x)
    h, w = dense.feature_window
    assert grid.shape[2:] == (maps.shape[2] - h + 1, maps.shape[3] - w + 1)
    assert grid.shape[2] == 3
    assert grid.shape[3] >= 2
    for i in range(grid.shape[2]):
        for j in range(grid.shape[3]):
            wanted = head_of(net, maps[:, :, i : i + h, j : j + w])
            assert off(grid[:, :, i, j], wanted) < 1e-5
    spread = grid.std(dim=(2, 3)).mean() / grid.abs().max()
    assert spread > 1e-4, "cells that are all alike would prove nothing"


@torch.no_grad()
def test_vgg16() -> None:
    """The real one, at a size at which it is light; ``benchmarks/convolutionalize.py`` has 224."""
    torch.manual_seed(0)
    net = filled(lambda: models.find("vgg16")(5)).eval()
    dense = convolutionalize(net, image_size=96)
    assert (dense.stride, dense.feature_window) == (32, (3, 3))
    x = images(96, 128)
    assert off(dense(x)[:, :, 0, 0], head_of(net, net.features(x)[..., :3])) < 1e-5  # type: ignore[operator]
    assert off(dense(x[..., :96])[:, :, 0, 0], net(x[..., :96])) < 1e-5


def unpadded(net: nn.Module) -> nn.Module:
    """The same network with every padding zero."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.padding = (0, 0)
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = False
    return net


class CroppingInception(Inception):
    """Without padding its branches differ in size: they are cut to the smallest."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)]
        cut = (parts[0].shape[2] - min(part.shape[2] for part in parts)) // 2
        parts = [parts[0][:, :, cut:-cut, cut:-cut], *parts[1:]]
        return torch.cat(parts, 1)


class SmallGoogLeNet(nn.Module):
    """GoogLeNet's stem and two of its modules."""

    image_size = 71

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvUnit(3, 8, 7, 2, batch_norm=True), nn.MaxPool2d(3, 2, ceil_mode=True)
        )
        self.inception1 = CroppingInception(8, (4, 4, 8, 4, 4, 4), original=False)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception2 = CroppingInception(20, (4, 4, 8, 4, 4, 4), original=False)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inception2(self.pool(self.inception1(self.stem(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class Residual(nn.Module):
    """A small residual network whose shortcut is cropped as the unpadded convolutions crop."""

    image_size = 41

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2)
        self.bn = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.down = nn.Conv2d(8, 16, 3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = self.second(F.relu(self.first(x)))
        x = F.relu(y + x[:, :, 2:-2, 2:-2])
        x = F.relu(self.down(x))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


TWINS = {
    "alexnet": (lambda: filled(lambda: models.find("alexnet")(11)), 199, 32),
    "vgg": (narrow_vgg, 252, 32),
    "googlenet": (SmallGoogLeNet, 71, 8),
    "resnet": (Residual, 41, 4),
}


@pytest.mark.parametrize("name", TWINS)
@torch.no_grad()
def test_without_padding_it_equals_the_sliding_classifier(name: str) -> None:
    torch.manual_seed(0)
    build, size, stride = TWINS[name]
    twin = lively(unpadded(build()), size)
    dense = convolutionalize(twin, image_size=size)
    assert dense.stride == stride
    x = images(size + 2 * stride, size + stride)
    slid = slide(twin, x, size, stride)
    assert slid.shape[2:] == (3, 2)
    assert slid.std(dim=(2, 3)).mean() / slid.abs().max() > 1e-3
    assert off(dense(x), slid) < 1e-5
    agreement = sliding_agreement(twin, x, image_size=size)
    assert agreement.largest < 1e-5
    assert agreement.rms < 1e-4
    assert agreement.same_class == 1


@torch.no_grad()
def test_slide_is_the_classifier_on_each_crop() -> None:
    torch.manual_seed(0)
    net = lively(Residual())
    x = images(50, 47)
    slid = slide(net, x, 41, 3, batch_size=4)
    assert slid.shape == (1, 5, 4, 3)
    for i in range(4):
        for j in range(3):
            crop = x[:, :, 3 * i : 3 * i + 41, 3 * j : 3 * j + 41]
            assert off(slid[:, :, i, j], net(crop)) < 1e-5


@torch.no_grad()
def test_with_padding_it_agrees_nearly_and_says_how_nearly() -> None:
    torch.manual_seed(0)
    net = lively(models.find("resnet20")())
    x = images(48, 48)
    agreement = sliding_agreement(net, x)
    dense, slid = convolutionalize(net)(x), slide(net, x, 32, 4)
    difference = (dense[:, :, : slid.shape[2], : slid.shape[3]] - slid).double()
    assert agreement.largest == pytest.approx(float(difference.abs().max() / slid.abs().max()))
    spread = slid.double().std(correction=0)
    assert agreement.rms == pytest.approx(float(difference.square().mean().sqrt() / spread))
    assert 1e-3 < agreement.largest < 1
    assert 0 <= agreement.same_class <= 1


@torch.no_grad()
def test_a_perceptron_looks_at_every_window() -> None:
    torch.manual_seed(0)
    net = mlp(4, 12, hidden=(16,), dropout=0.3).eval()
    dense = convolutionalize(net)
    assert (dense.stride, dense.window) == (1, 12)
    x = images(17, 14)
    slid = slide(net, x, 12, 1)
    assert slid.shape == (1, 4, 6, 3)
    assert off(dense(x), slid) < 1e-5


@pytest.mark.parametrize("size", [63, 127, 191, 256])
@torch.no_grad()
def test_adaptive_pooling_is_folded_into_the_kernel(size: int) -> None:
    """AlexNet at sizes whose last map is 1 to 8 pixels wide, pooled or stretched to 6."""
    torch.manual_seed(0)
    net = filled(lambda: models.find("alexnet")(7)).eval()
    dense = convolutionalize(net, image_size=size)
    assert isinstance(dense.head[1], nn.Conv2d)  # type: ignore[index]
    assert dense.head[1].kernel_size == dense.feature_window  # type: ignore[index]
    x = images(size + 32, size)
    maps = net.features(x)  # type: ignore[operator]
    h, w = dense.feature_window
    grid = dense(x)
    assert grid.shape[2:] == (2, 1)
    for i in range(2):
        assert off(grid[:, :, i, 0], head_of(net, maps[:, :, i : i + h, :w])) < 1e-5


def test_the_network_is_not_changed_and_weights_are_shared() -> None:
    net = filled(lambda: models.find("alexnet")(7)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    drawn = torch.get_rng_state()
    dense = convolutionalize(net)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(module.training for module in net.modules())
    assert not dense.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    places = {p.data_ptr() for p in net.parameters()}
    assert {p.data_ptr() for p in dense.parameters()} == places
    kernel = dense.head.classifier_1.weight
    assert kernel.shape == (4096, 256, 6, 6)


def test_dropout_is_kept_and_inert() -> None:
    net = filled(lambda: models.find("alexnet")(7))
    dense = convolutionalize(net)
    kept = [m for m in dense.modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in kept] == [0.5, 0.5]
    x = images(224, 224)
    with torch.no_grad():
        assert torch.equal(dense(x), dense(x))
        dense.train()
        assert not torch.equal(dense(x), dense(x))
    net.eval()
    assert all(not m.training for m in net.modules()), "modes are each network's own"


def test_it_is_trained_like_any_network() -> None:
    dense = copy.deepcopy(convolutionalize(models.find("resnet20")())).train()
    dense(images(40, 36)).square().sum().backward()
    assert all(p.grad is not None for p in dense.parameters())


def test_a_run_as_the_package_has_it() -> None:
    assert models.convolutionalize is convolutionalize
    assert "convolutionalize" not in models.names()


class Foreign(nn.Module):
    """A user's: sizes asked at the start, dropout as a function, a head that is no chain."""

    image_size = 30

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=3)
        self.hidden = nn.Linear(8 * 4 * 4, 16)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        n, _, height, _ = x.shape
        if height < 5:
            raise ValueError("too small")
        x = F.max_pool2d(torch.relu(self.conv(x)), 2)
        y = self.hidden(x.reshape(n, -1))
        y = F.dropout(y, 0.3, self.training)
        y = y * torch.sigmoid(y) + y
        logits: Tensor = self.last(y if scale is None else y * scale)
        return logits


class ChannelsLastNorm(nn.Module):
    """Pooling by mean, layer normalisation, as newer networks end."""

    image_size = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.norm(self.conv(x).mean((2, 3))))
        return logits


def sequential(*head: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), *head)


OTHERS = {
    "a user's": Foreign,
    "layer normalisation": ChannelsLastNorm,
    "pooled, then ReLU": lambda: sequential(
        nn.AdaptiveAvgPool2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)
    ),
    "largest value": lambda: sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    "largest values": lambda: sequential(nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(54, 5)),
    "a pool as large as the map": lambda: sequential(
        nn.AvgPool2d(9), nn.Flatten(), nn.Linear(6, 5)
    ),
    "batch normalisation": lambda: sequential(
        nn.Flatten(), nn.Linear(486, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)
    ),
    "probabilities": lambda: sequential(nn.Flatten(), nn.Linear(486, 5), nn.Softmax(-1)),
    "no linear layer": lambda: sequential(
        nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "a convolution after the pool": lambda: sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 8, 1), nn.Hardswish(), nn.Flatten(), nn.Linear(8, 5)
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
@torch.no_grad()
def test_other_networks_without_padding_equal_their_sliding(kind: str) -> None:
    torch.manual_seed(0)
    net = lively(OTHERS[kind]())
    size = int(getattr(net, "image_size", 20))
    dense = convolutionalize(net, image_size=size)
    x = images(size + 3 * dense.stride, size + dense.stride)
    slid = slide(net, x, size, dense.stride)
    assert slid.shape[2:] == (4, 2)
    assert off(dense(x), slid) < 1e-5


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
@torch.no_grad()
def test_torchvisions_other_networks(name: str) -> None:
    """Converted without a word about them; equality is checked by conversion itself, and here."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(num_classes=4).eval()
    dense = convolutionalize(net, image_size=64)
    x = images(64, 64)
    assert off(dense(x)[:, :, 0, 0], net(x)) < 1e-5


def test_what_cannot_be_converted_is_told() -> None:
    with pytest.raises(InputError, match="image_size=224"):
        convolutionalize(sequential(nn.Flatten(), nn.Linear(486, 5)))
    with pytest.raises(InputError, match="cannot take an image of 23 × 23"):
        convolutionalize(sequential(nn.Flatten(), nn.Linear(486, 5)), image_size=23)
    with pytest.raises(InputError, match="one score per class"):
        convolutionalize(nn.Conv2d(3, 4, 1), image_size=8)
    with pytest.raises(InputError, match="no feature map"):
        convolutionalize(Rows(), image_size=8)
    with pytest.raises(InputError, match=r"could not be followed.*What can be converted"):
        convolutionalize(Looking(), image_size=8)
    with pytest.raises(InputError, match="grow evenly"):
        convolutionalize(Uneven(), image_size=8)
    dense = convolutionalize(models.find("resnet20")())
    with pytest.raises(InputError, match="31 × 40"):
        dense(images(40, 31))


class Rows(nn.Module):
    """Takes the image apart at once, as a recurrent network would."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(2, 0, 1, 3).flatten(2)
        out: Tensor = self.rnn(rows)[0][-1]
        return out


class Looking(nn.Module):
    """Its way depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        values = [float(v) for v in x.flatten()[:3]]
        logits: Tensor = self.fc(x.flatten(1)) * sum(values)
        return logits


class Uneven(nn.Module):
    """Maps 0.37 times as large as the image."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.interpolate(x, scale_factor=0.37).mean((2, 3)))
        return logits
