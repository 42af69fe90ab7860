"""FCNs: the paper's counts, sizes, and that every score stands where its pixels are."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from vidi import models
from vidi.errors import InputError
from vidi.models import count, fcn_resnets, fcns, googlenets
from vidi.models.alexnets import LocalResponseNorm

NAMES = models.names("segmentation")
SMALL = ["fcn_small", "fcn_resnet18"]
VARIANTS = [
    (name, options)
    for name in NAMES
    for options in ({}, {"pad100": True}, {"dilated": True})
    if not options or next(iter(options)) in inspect.signature(models.find(name)).parameters
]


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return models.find(name)(**options)


# Counts and sizes


@pytest.mark.parametrize(
    ("name", "bare", "whole"),
    [
        ("fcn32s_vgg16", 134_346_581, 136_152_917),
        ("fcn16s_vgg16", 134_357_354, 134_815_994),
        ("fcn8s_vgg16", 134_362_751, 134_489_759),
    ],
)
@pytest.mark.parametrize("pad100", [False, True])
def test_the_papers_six_counts(name: str, bare: int, whole: int, pad100: bool) -> None:
    network = on_meta(name, pad100=pad100)
    upsampling = [m for m in network.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert all(m.bias is None for m in upsampling)
    assert count.parameters(network) == whole
    assert whole - sum(m.weight.numel() for m in upsampling) == bare
    sides = {"fcn32s_vgg16": [64], "fcn16s_vgg16": [4, 32], "fcn8s_vgg16": [4, 4, 16]}
    assert [m.kernel_size[0] for m in upsampling] == sides[name]
    # Section 4.3: the last is fixed, those in between are learned.
    learned = [m.weight.requires_grad for m in upsampling]
    assert learned == [True] * (len(learned) - 1) + [False]


def test_alexnets_and_googlenets_are_their_classifiers_with_one_score_layer() -> None:
    for name, trunk in [("alexnet", "alexnet"), ("alexnet_2012", "alexnet_2012")]:
        wide, upsampling = 4096, 63 * 63 * 21 * 21
        scores = (wide + 1) * 21 - (wide + 1) * 1000 + upsampling
        classifier = models.describe(trunk).parameters
        assert models.describe(f"fcn32s_{name}").parameters == classifier + scores
    for name in ("googlenet", "googlenet_2014"):
        scores = 1025 * 21 - 1025 * 1000 + 63 * 63 * 21 * 21
        classifier = models.describe(name).parameters
        assert models.describe(f"fcn32s_{name}").parameters == classifier + scores


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_output_size_is_input_size(name: str, options: dict[str, bool]) -> None:
    network = on_meta(name, num_classes=3, **options).eval()
    sizes = [(1, 1), (2, 2), (1, 97), (333, 250), (65, 501), (1999, 1333)]
    if name in ("fcn_small", "fcn8s_vgg16"):
        sizes += [(s, s) for s in range(32, 98)]
    elif name not in ("fcn_resnet34", "fcn_resnet101"):  # deeper twins
        sizes += [(s, 129 - s) for s in range(32, 65)]  # from 32 to 97, half of them as widths
    with torch.no_grad(), count.KeepingShapes():
        for size in sizes:
            assert network(torch.empty(1, 3, *size, device="meta")).shape == (1, 3, *size)


@pytest.mark.parametrize("name", SMALL)
def test_odd_sizes_for_real_and_a_batch_is_its_singles(name: str) -> None:
    torch.manual_seed(0)
    network = roused(models.find(name)(num_classes=5)).eval()
    for size in [(33, 64), (1, 1), (97, 50), (41, 135)]:
        images = torch.randn(3, 3, *size)
        with torch.no_grad():
            whole = network(images)
            singles = torch.cat([network(image[None]) for image in images])
        assert whole.shape == (3, 5, *size)
        assert whole.std() > 1e-3
        torch.testing.assert_close(whole, singles, rtol=1e-4, atol=1e-4)


# Where scores stand


class Averaging(nn.MaxPool2d):
    """A pool of the same geometry, which is linear."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode)


class Box(nn.Conv2d):
    """A convolution of the same geometry from the channels' mean to one channel, all ones."""

    def __init__(self, like: nn.Conv2d) -> None:
        k, s, p, d = like.kernel_size, like.stride, like.padding, like.dilation
        super().__init__(1, 1, k, s, p, d, bias=False)
        nn.init.constant_(self.weight, 1 / self.weight.numel())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(1, keepdim=True))


class Nothing(nn.Module):
    """Zeros for the four pixels of a cell."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :1]).expand(-1, 4, -1, -1)


def linear(network: Any) -> Any:
    """The network with its geometry alone: one channel, boxes, averages."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, fcns.Upscore):
                new: nn.Module = fcns.Upscore(1, child.factor, child.first, learned=False)
            elif isinstance(child, nn.Conv2d):
                new = Box(child)
            elif isinstance(child, nn.MaxPool2d):
                new = Averaging(child.kernel_size, child.stride, child.padding, 1, False, True)
                new.ceil_mode = child.ceil_mode
            elif isinstance(child, nn.BatchNorm2d | LocalResponseNorm):
                new = nn.Identity()
            else:
                continue
            setattr(module, name, new)
    if hasattr(network, "refine"):  # what it adds is learned for each pixel, and stands nowhere
        network.refine = Nothing()
    return network.eval()


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_score_stands_where_its_pixels_are(name: str, options: dict[str, bool]) -> None:
    """All weights even, what an output pixel looks at has its centre of gravity in that pixel."""
    network = linear(on_meta(name, num_classes=1, **options))
    image = torch.ones(1, 3, 1000, 1000, requires_grad=True)
    y, x = 499, 476
    network(image)[0, 0, y, x].backward()
    assert image.grad is not None
    weight = image.grad[0, 0].double()
    weight /= weight.sum()
    rim = weight.sum() - weight[1:-1, 1:-1].sum()
    assert rim < 1e-6, "the image is too small"
    pixels = torch.arange(1000, dtype=torch.float64)
    found = ((weight.sum(1) @ pixels).item(), (weight.sum(0) @ pixels).item())
    # torchvision's interpolation takes pixel 8k for the middle of pixels 8k to 8k + 7.
    off = 3.5 if name in ("fcn_resnet50", "fcn_resnet101") else 0.0
    expected = (y - off, x - off)
    if name == "fcn_small":  # the four pixels of a cell at 1/2 have its scores until it is trained
        expected = (y // 2 * 2, x // 2 * 2)
    assert found == pytest.approx(expected, abs=1e-3)


# The classifier inside


def test_the_score_at_the_centre_is_the_classifiers() -> None:
    """fc6 sees the whole map at the grid's middle, so there nothing is padded."""
    torch.manual_seed(0)
    classifier = models.alexnet(5).eval()
    network = fcns.FCN(models.alexnet(5), 5, kernel=6).eval()
    state = {
        own: classifier.state_dict()[theirs].view(network.state_dict()[own].shape)
        for own, theirs in fcns.fitting(network, classifier.state_dict()).items()
    }
    network.load_state_dict(state, strict=False)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        maps = network.classifier(network._pools(image)[2])
        assert maps.shape == (1, 5, 7, 7)
        torch.testing.assert_close(maps[:, :, 3, 3], classifier(image), rtol=1e-4, atol=1e-5)
        # Half a pixel left of the middle of the grid's middle cell stands its score, unmixed.
        torch.testing.assert_close(network(image)[:, :, 111, 111], maps[:, :, 3, 3])


def test_all_at_once_scales_the_finer_layers() -> None:
    plain, scaled = (thin(8, scaled=s) for s in (False, True))
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for network in (plain, scaled):
            nn.init.zeros_(network.classifier[-1].weight)
            nn.init.zeros_(network.score_pool3.weight)
        image = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(scaled.eval()(image), 0.01 * plain.eval()(image))
        for network in (plain, scaled):
            nn.init.ones_(network.score_pool3.weight)
            nn.init.zeros_(network.score_pool4.weight)
        torch.testing.assert_close(scaled(image), 0.0001 * plain(image))


class Thin(nn.Module):
    """VGG's kind of network, small: five pools, three fully connected layers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width in [(3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(8 * 49, 9), nn.ReLU(), nn.Linear(9, 10), nn.ReLU(), nn.Linear(10, num_classes)
        )


def thin(stride: int, **options: Any) -> Any:
    torch.manual_seed(0)
    return roused(fcns.FCN(Thin(4), 4, kernel=7, stride=stride, **options))  # type: ignore[arg-type]


def roused(network: Any) -> Any:
    """The network with score layers that are not zero any more."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.kaiming_normal_(module.weight)
    return network


# Training


@pytest.mark.parametrize("name", SMALL)
def test_a_fresh_network_scores_zero_and_its_third_step_reaches_all(name: str) -> None:
    """At first only the score layers learn, then what ends each residual block, then all."""
    torch.manual_seed(0)
    network = models.find(name)(num_classes=4).train()
    images, labels = torch.randn(2, 3, 45, 64), torch.randint(4, (2, 45, 64))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    loss = F.cross_entropy(network(images), labels)
    assert loss.item() == pytest.approx(torch.tensor(4.0).log().item())
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()
    dead = [k for k, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_only_the_last_upsampling_is_fixed(stride: int) -> None:
    network = thin(stride).train()
    network(torch.randn(1, 3, 70, 65)).square().mean().backward()
    without = [k for k, p in network.named_parameters() if p.grad is None]
    assert without == [f"upscore{stride}.weight"]
    assert all(p.grad.any() for p in network.parameters() if p.grad is not None)


# torchvision's


@pytest.mark.parametrize("name", ["fcn_resnet50", "fcn_resnet101"])
@pytest.mark.parametrize("aux", [False, True])
def test_state_dict_is_torchvisions(name: str, aux: bool) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models.segmentation, name)(
            weights=None, weights_backbone=None, num_classes=21, aux_loss=aux
        )
    ours = on_meta(name, aux_logits=aux)
    expected = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == expected
    if not aux:
        assert count.macs(ours, 65) == count.macs(theirs, 65)
    published = {"fcn_resnet50": 35_322_218, "fcn_resnet101": 54_314_346}
    assert not aux or count.parameters(ours) == published[name]


def test_logits_equal_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    )
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    ours = on_meta("fcn_resnet50", num_classes=5, aux_logits=True)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    images = torch.randn(2, 3, 45, 70)
    with torch.no_grad():
        expected = theirs.eval()(images)
        assert expected["out"].std() > 1e-3
        torch.testing.assert_close(ours.eval()(images), expected["out"], rtol=1e-4, atol=1e-4)
        for module in (ours, theirs):  # the auxiliary output is there in training mode
            module.train()
            for child in module.modules():
                if isinstance(child, nn.BatchNorm2d | nn.Dropout):
                    child.eval()
        outputs = ours(images)
    assert isinstance(outputs, fcn_resnets.FCNOutputs)
    assert ours.aux_weight == 0.5
    torch.testing.assert_close(outputs.aux_logits, expected["aux"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_dilated_trunk_computes_the_same_at_more_places(name: str) -> None:
    torch.manual_seed(0)
    plain = models.find(name)(num_classes=1).eval()
    state = plain.state_dict()
    dilated = fcn_resnets.ResNetTrunk(models.find(name)(1), dilated=True).eval()
    dilated.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    strided = fcn_resnets.ResNetTrunk(plain, dilated=False)
    image = torch.randn(1, 3, 97, 64)
    with torch.no_grad():
        fine, coarse = dilated(image), strided(image)
    for at, step in enumerate((1, 2, 4)):
        every = fine[at][:, :, ::step, ::step]
        torch.testing.assert_close(every, coarse[at], rtol=1e-3, atol=1e-3)
    assert fine[2].shape[2:] == (13, 8)


# Finding them


def test_a_network_for_another_task_is_refused_with_those_for_it() -> None:
    with torch.device("meta"):
        models.build("fcn_small", num_classes=3, image_size=40, task="segmentation")
        models.build("resnet20", num_classes=3, image_size=32, task="multilabel")
        with pytest.raises(InputError, match=r"fcn_small is for segmentation, and this is classi"):
            models.build("fcn_small", num_classes=3, image_size=40)
        with pytest.raises(
            InputError, match=r"resnet20 is for classification, and this is seg.*are .*fcn_small"
        ):
            models.build("resnet20", num_classes=3, image_size=32, task="segmentation")


def test_a_users_network_is_known_by_its_output() -> None:
    def build(num_classes: int) -> nn.Module:
        return nn.Conv2d(3, num_classes, 3, padding=1)

    own: dict[str, Any] = {"image_size": 9, "task": "segmentation"}
    models.build("own", builder=build, num_classes=3, **own)
    with pytest.raises(InputError, match=r"per class and pixel.*\[1, 4, 9, 9\]; it gave \[1, 3, 9"):
        models.build("own", builder=lambda: build(3), num_classes=4, **own)
    with pytest.raises(InputError, match=r"shape \[1, 3\]; it gave \[1, 3, 9, 9\]"):
        models.build("own", builder=build, num_classes=3, image_size=9)


def test_auxiliary_outputs_pass_the_check() -> None:
    with torch.device("meta"):
        models.build(
            "fcn_resnet50", num_classes=3, image_size=40, task="segmentation", aux_logits=True
        )


def test_names_by_task() -> None:
    kinds = ("classification", "detection", "segmentation", "boundaries", "flow")
    assert sorted(n for kind in kinds for n in models.names(kind)) == sorted(models.names())
    assert "resnet18" in models.names("multilabel")
    assert all(name.startswith("fcn") for name in models.names("segmentation"))
    for name in models.names("segmentation"):
        assert models.describe(name).task == "segmentation"


def test_googlenets_children_run_in_order() -> None:
    """The trunk is its children one after another, as the classifier calls them."""
    torch.manual_seed(0)
    network = googlenets.googlenet(5, aux_logits=False).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(image)
        maps = fcns.GoogLeNetTrunk(network)(image)
        torch.testing.assert_close(network.fc(maps.mean((2, 3))), expected)
