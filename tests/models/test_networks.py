"""The networks compute what torchvision's do, or what their papers say."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from vidi import models
from vidi.errors import InputError
from vidi.models import count
from vidi.models.alexnets import LocalResponseNorm
from vidi.models.googlenets import AuxiliaryHead, GoogLeNetOutputs
from vidi.models.resnets import BasicBlock, PadShortcut

SHARED = [
    "alexnet",
    *[f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")],
    "googlenet",
    *[f"resnet{depth}" for depth in (18, 34, 50, 101, 152)],
]


def peer(name: str, **options: Any) -> nn.Module:
    """torchvision's network, without contents."""
    if name == "googlenet":
        options["init_weights"] = False
    with torch.device("meta"):
        network: nn.Module = getattr(torchvision.models, name)(**options)
    return network


def twins(name: str, theirs: nn.Module, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and torchvision's with the same random weights and batch statistics."""
    torch.manual_seed(0)
    theirs.to_empty(device="cpu")
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.zero_()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.2, 0.2)
    with torch.device("meta"):
        ours = models.find(name)(**options)
    state = {key: tensor.clone() for key, tensor in theirs.state_dict().items()}
    ours.load_state_dict(state, strict=True, assign=True)
    return ours, theirs


def assert_close(ours: Tensor, theirs: Tensor, what: str) -> None:
    error = (ours - theirs).norm() / theirs.norm().clamp_min(1e-30)
    assert error < 1e-4, f"{what} differs by {error:.1e}"


@pytest.mark.parametrize("name", SHARED)
def test_state_dict_is_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = models.find(name)(), peer(name)
    expected = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == expected
    assert count.macs(ours, 224) == count.macs(theirs, 224)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 80),
        ("vgg11", 32),
        ("vgg16_bn", 32),
        ("googlenet", 64),
        ("resnet18", 64),
        ("resnet50", 64),
    ],
)
def test_logits_and_gradients_equal_torchvisions(name: str, size: int) -> None:
    ours, theirs = twins(name, peer(name, num_classes=10), num_classes=10)
    images = torch.randn(2, 3, size, size)
    labels = torch.tensor([3, 7])
    # Evaluation mode: no dropout, and batch statistics would hide the running ones.
    ours.eval()
    theirs.eval()
    logits, expected = ours(images), theirs(images)
    assert_close(logits, expected, "logits")
    assert expected.std() > 1e-3, "the comparison needs logits that differ"
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for (key, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is None:
            assert key.startswith("aux")
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, key
            assert_close(parameter.grad, other.grad, f"gradient of {key}")


def test_googlenet_in_training_equals_torchvisions_with_its_auxiliary_heads() -> None:
    theirs = peer("googlenet", num_classes=10, dropout=0.0, dropout_aux=0.0)
    ours, theirs = twins("googlenet", theirs, num_classes=10, dropout=0.0, aux_dropout=0.0)
    images = torch.randn(2, 3, 96, 96)
    for ours_out, theirs_out in zip(ours.train()(images), theirs.train()(images), strict=True):
        assert_close(ours_out, theirs_out, "an output in training mode")
    for key, tensor in ours.state_dict().items():
        assert torch.allclose(tensor, theirs.state_dict()[key], rtol=1e-4), key


def test_local_response_norm_is_the_papers_sum() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 3, 4) * 50  # large, so that α matters
    b = torch.empty_like(x)
    for i in range(7):
        neighbours = range(max(0, i - 2), min(6, i + 2) + 1)
        total = torch.stack([x[:, j] ** 2 for j in neighbours]).sum(0)
        b[:, i] = x[:, i] / (2 + 1e-4 * total) ** 0.75
    norm = LocalResponseNorm(5, k=2, alpha=1e-4, beta=0.75)
    torch.testing.assert_close(norm(x), b)
    # PyTorch's divides α by n.
    torch.testing.assert_close(norm(x), nn.LocalResponseNorm(5, 5e-4, 0.75, 2)(x))
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert norm(channels_last).is_contiguous(memory_format=torch.channels_last)


def test_alexnet_2012_is_the_papers() -> None:
    with torch.device("meta"):
        network = models.alexnet_2012()
    kinds = [type(module).__name__ for module in network.features]
    block = ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"]
    assert kinds[:8] == block * 2
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.groups for m in convolutions] == [1, 2, 1, 2, 2]
    pools = [m for m in network.modules() if isinstance(m, nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride) for m in pools] == [(3, 2)] * 3
    maps = network.features(torch.empty(1, 3, 227, 227, device="meta"))
    assert maps.shape == (1, 256, 6, 6)


def test_alexnet_2012_starts_as_section_5_says() -> None:
    network = models.alexnet_2012(10)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [m.bias.unique().item() for m in layers] == [0, 1, 0, 1, 1, 1, 1, 0]
    assert all(0.009 < m.weight.std() < 0.011 for m in layers)


def test_googlenet_2014_has_the_papers_parts() -> None:
    network = models.googlenet_2014(10)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert all(m.bias is not None for m in network.modules() if isinstance(m, nn.Conv2d))
    assert sum(isinstance(m, LocalResponseNorm) for m in network.modules()) == 2
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)].count(0.7) == 2
    assert network.dropout.p == 0.4
    five = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (5, 5)]
    assert len(five) == 9
    assert models.googlenet(10).dropout.p == 0.2


@pytest.mark.parametrize("name", ["googlenet", "googlenet_2014"])
def test_auxiliary_heads_exist_only_in_training(name: str) -> None:
    torch.manual_seed(0)
    network = models.find(name)(num_classes=4)
    images = torch.randn(2, 3, 96, 96)
    outputs = network.train()(images)
    assert isinstance(outputs, GoogLeNetOutputs)
    assert outputs._fields[0] == "logits"
    assert [output.shape for output in outputs] == [(2, 4)] * 3
    assert network.aux_weight == 0.3
    losses = [F.cross_entropy(output, torch.tensor([0, 1])) for output in outputs]
    (losses[0] + network.aux_weight * (losses[1] + losses[2])).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    assert network.eval()(images).shape == (2, 4)
    without = models.find(name)(num_classes=4, aux_logits=False)
    assert without.train()(images).shape == (2, 4)


def test_the_papers_auxiliary_pool_is_5_by_5_with_stride_3() -> None:
    head = AuxiliaryHead(512, 10, 0.7, original=True).eval()
    maps = torch.randn(1, 512, 14, 14)
    pooled = F.avg_pool2d(maps, 5, stride=3)
    assert pooled.shape[2:] == (4, 4)
    hidden = F.relu(F.conv2d(pooled, head.conv.conv.weight, head.conv.conv.bias)).flatten(1)
    torch.testing.assert_close(head(maps), head.fc2(F.relu(head.fc1(hidden))))


@pytest.mark.parametrize(("name", "strides"), [("resnet50_v1", (2, 1)), ("resnet50", (1, 2))])
def test_where_the_bottleneck_strides(name: str, strides: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = models.find(name)()
    for layer in (network.layer2, network.layer3, network.layer4):
        assert (layer[0].conv1.stride[0], layer[0].conv2.stride[0]) == strides
        assert (layer[1].conv1.stride[0], layer[1].conv2.stride[0]) == (1, 1)


def test_option_a_subsamples_and_pads_with_zeros() -> None:
    x = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    y = PadShortcut(2, 2)(x)
    assert y.shape == (2, 5, 2, 2)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert not y[:, 3:].any()


def test_a_block_adds_its_input_and_a_plain_one_does_not() -> None:
    torch.manual_seed(0)
    residual = BasicBlock(4, 4, 1, "A").eval()
    plain = BasicBlock(4, 4, 1, None).eval()
    plain.load_state_dict(residual.state_dict(), strict=True)
    x = torch.randn(1, 4, 5, 5)
    branch = plain.bn2(plain.conv2(F.relu(plain.bn1(plain.conv1(x)))))
    torch.testing.assert_close(plain(x), F.relu(branch))
    torch.testing.assert_close(residual(x), F.relu(branch + x))


@pytest.mark.parametrize("pair", [("resnet20", "plain20"), ("resnet56", "plain56")])
def test_plain_twins_have_the_same_parameters(pair: tuple[str, str]) -> None:
    with torch.device("meta"):
        residual, plain = (models.find(name)() for name in pair)
    shapes = [[(k, p.shape) for k, p in m.named_parameters()] for m in (residual, plain)]
    assert shapes[0] == shapes[1]


def test_zero_init_makes_every_block_the_identity() -> None:
    torch.manual_seed(0)
    network = models.resnet20(zero_init_residual=True).eval()
    x = torch.rand(1, 16, 8, 8)  # not negative: the last ReLU passes it
    torch.testing.assert_close(network.layer1(x), x)
    assert not torch.allclose(models.resnet20().eval().layer1(x), x)


def test_he_initialisation_keeps_the_scale_of_the_signal() -> None:
    torch.manual_seed(0)
    for name in ("resnet20", "plain18", "vgg11"):
        for module in models.find(name)(num_classes=10).modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
                fan_out = module.weight.shape[0] * module.kernel_size[0] * module.kernel_size[1]
                expected = (2 / fan_out) ** 0.5
                assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name


SMALL = ["perceptron", "mlp", "resnet20", "plain20", "resnet18", "plain18", "resnet50_v1"]


@pytest.mark.parametrize("name", SMALL)
def test_small_images_and_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    network = models.build(name, num_classes=3, image_size=8)
    logits = network(torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last))
    assert logits.shape == (4, 3)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["alexnet_2012", "resnet20"])
def test_bf16_channels_last_agrees_with_fp32(name: str) -> None:
    torch.manual_seed(0)
    network = models.find(name)(num_classes=5).eval()
    size = 32 if name == "resnet20" else 67
    images = torch.randn(2, 3, size, size)
    expected = network(images)
    network = network.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images.contiguous(memory_format=torch.channels_last))
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max() + 1e-3


def test_dropout_is_the_papers_unless_told() -> None:
    def rates(network: nn.Module) -> list[float]:
        return [m.p for m in network.modules() if isinstance(m, nn.Dropout)]

    with torch.device("meta"):
        for name in ("alexnet", "alexnet_2012", "vgg16"):
            assert rates(models.find(name)()) == [0.5, 0.5]
            assert rates(models.find(name)(dropout=0.0)) == [0.0, 0.0]
        assert rates(models.mlp()) == []
        assert rates(models.mlp(dropout=0.25)) == [0.25, 0.25]


def test_a_perceptron_says_which_size_it_was_built_for() -> None:
    with pytest.raises(InputError, match=r"built for images of 8 × 8.*given 9 × 8"):
        models.mlp(10, 8)(torch.zeros(1, 3, 8, 9))


def test_an_unknown_shortcut_is_refused() -> None:
    with pytest.raises(InputError, match="shortcut 'D' is unknown"):
        models.resnet18(shortcut="D")
