"""Parameters and multiply-adds, against the papers' and torchvision's published figures."""

import pytest
import torch
from torch import nn

from vidi import models
from vidi.errors import InputError
from vidi.models import count

# name, parameters, multiply-adds as printed, and the unit of the printed figure's last digit
IMAGENET = [
    ("alexnet", 61_100_840, 714e6, 1e6),
    ("alexnet_2012", 60_965_224, 724.4e6, 0.1e6),
    ("vgg16", 138_357_544, 15.47e9, 0.01e9),
    ("vgg16_bn", 138_365_992, 15.47e9, 0.01e9),
    ("vgg19", 143_667_240, 19.63e9, 0.01e9),
    ("googlenet", 6_624_904, 1.498e9, 0.001e9),
    ("resnet18", 11_689_512, 1.814e9, 0.001e9),
    ("resnet34", 21_797_672, 3.664e9, 0.001e9),
    ("resnet50", 25_557_032, 4.089e9, 0.001e9),
    ("resnet101", 44_549_160, 7.801e9, 0.001e9),
    ("resnet152", 60_192_808, 11.514e9, 0.001e9),
]
CIFAR = [
    (20, 269_722, 40.55e6, 0.01e6),
    (32, 464_154, 68.86e6, 0.01e6),
    (44, 658_586, 97.17e6, 0.01e6),
    (56, 853_018, 125.49e6, 0.01e6),
    (110, 1_727_962, 252.9e6, 0.1e6),
]
ROWS = IMAGENET + [
    (f"{kind}{depth}", *rest) for kind in ("resnet", "plain") for depth, *rest in CIFAR
]


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return models.find(name)(**options)


@pytest.mark.parametrize(("name", "parameters", "macs", "unit"), ROWS)
def test_counts_equal_the_published_ones(
    name: str, parameters: int, macs: float, unit: float
) -> None:
    found = models.describe(name)
    assert found.parameters == parameters
    assert abs(found.macs - macs) <= 0.501 * unit, f"{found.macs:,} multiply-adds"
    usual = 227 if name == "alexnet_2012" else 224 if (name, parameters) in _imagenet() else 32
    assert found.image_size == usual


def _imagenet() -> set[tuple[str, int]]:
    return {(name, parameters) for name, parameters, *_ in IMAGENET}


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("googlenet", {}, 13_004_888),
        ("googlenet_2014", {}, 13_378_280),
        ("googlenet_2014", {"aux_logits": False}, 6_998_552),
        ("resnet18", {"shortcut": "A"}, 11_515_688),
        ("plain18", {}, 11_515_688),
        ("resnet34", {"shortcut": "A"}, 21_623_848),
        ("plain34", {}, 21_623_848),
        ("resnet50_v1", {}, 25_557_032),
        ("resnet101_v1", {}, 44_549_160),
        ("resnet152_v1", {}, 60_192_808),
    ],
)
def test_parameters_of_variants(name: str, options: dict[str, object], parameters: int) -> None:
    assert count.parameters(on_meta(name, **options)) == parameters


def test_alexnet_2012_splits_into_666_m_for_convolutions_and_58_6_m_for_the_rest() -> None:
    fully_connected = 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    assert round(fully_connected / 1e6, 1) == 58.6
    assert round((models.describe("alexnet_2012").macs - fully_connected) / 1e6) == 666


def test_v1_costs_less_than_v1_5_by_the_moved_stride() -> None:
    # In three stages the first 1×1 (to 128, 256, 512) runs on the small grid instead of the large:
    # saved are 3/4 of 256·128·56², 512·256·28², 1024·512·14²; in the 3×3 nothing changes.
    saved = sum(
        (c * 2) * c * (side**2 - (side // 2) ** 2) for c, side in ((128, 56), (256, 28), (512, 14))
    )
    assert models.describe("resnet50").macs - models.describe("resnet50_v1").macs == saved


# The paper's table 1, column "ops": each module's multiply-adds in millions.
GOOGLENET = {
    "inception3a": 128,
    "inception3b": 304,
    "inception4a": 73,
    "inception4b": 88,
    "inception4c": 100,
    "inception4d": 119,
    "inception4e": 170,
    "inception5a": 51,  # the paper prints 54, which its own widths do not give
    "inception5b": 71,
}


def test_googlenet_2014_agrees_with_table_1_row_by_row() -> None:
    network = on_meta("googlenet_2014")
    sides = {"3": 28, "4": 14, "5": 7}
    multiply_adds = {}
    for name, millions in GOOGLENET.items():
        modules = network.get_submodule(name).modules()
        weights = sum(m.weight.numel() for m in modules if isinstance(m, nn.Conv2d))
        multiply_adds[name] = weights * sides[name.removeprefix("inception")[0]] ** 2
        assert abs(multiply_adds[name] / 1e6 - millions) <= 1, name
    conv1 = 7 * 7 * 3 * 64 * 112**2
    conv2 = (64 * 64 + 3 * 3 * 64 * 192) * 56**2
    assert round(conv2 / 1e6) == 360
    rest = sum(multiply_adds.values()) + conv2 + 1024 * 1000
    assert models.describe("googlenet_2014").macs == conv1 + rest
    # With 34 M for the first convolution, as table 1 has it, the paper's total comes out.
    assert round((34e6 + rest) / 1e9, 1) == 1.5


def test_mlp_and_perceptron_by_formula() -> None:
    assert count.parameters(on_meta("perceptron", image_size=8)) == 3 * 64 * 10 + 10
    network = on_meta("mlp", num_classes=5, image_size=8, hidden=(30, 20))
    assert count.parameters(network) == 193 * 30 + 31 * 20 + 21 * 5
    assert count.macs(network, 8) == 192 * 30 + 30 * 20 + 20 * 5


@pytest.mark.parametrize("channels", [4, 5])
def test_batch_statistics_that_do_not_fit_are_seen(channels: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(channels), nn.Conv2d(4, 2, 1))
    if channels == 4:
        assert count.macs(net, 8) == 64 * (12 + 8)
    else:
        with pytest.raises(RuntimeError, match="running_mean"):
            count.macs(net, 8)


def test_a_norm_that_would_refuse_one_pixel_does() -> None:
    class Training(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, training=True)

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Training(4))
    assert count.macs(net, 2) == 4 * 12
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        count.macs(net, 1)


def test_counting_leaves_the_network_as_it_was() -> None:
    network = models.resnet20()
    network.layer1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    assert count.macs(network, 32) == count.macs(on_meta("resnet20"), 32)
    assert [module.training for module in network.modules()] == modes
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("depth", [0, 2, 18, 21, 57])
def test_cifar_depth_must_be_6n_plus_2(depth: int) -> None:
    from vidi.models.cifar_resnets import cifar_plain, cifar_resnet

    for build in (cifar_resnet, cifar_plain):
        with pytest.raises(InputError, match=rf"depth {depth}\b.*6n \+ 2"):
            build(depth)


def test_general_cifar_depth_has_that_many_layers() -> None:
    from vidi.models.cifar_resnets import cifar_resnet

    with torch.device("meta"):
        network = cifar_resnet(1202)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 1202
    assert round(count.parameters(network) / 1e6, 1) == 19.4  # the paper's table 6
