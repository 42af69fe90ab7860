"""FlowNetS and C: the paper's shapes and counts; any size; and the small one's matching."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidi import models
from vidi.errors import InputError
from vidi.models import count, flownets, small_flownets
from vidi.models.flownets import SCALE

# Figure 2 for images of 512 × 384, and figure 3 for the way back: channels, height, width.
SHAPES = {
    "conv1": (64, 192, 256),
    "conv2": (128, 96, 128),
    "conv3": (256, 48, 64),
    "conv3_1": (256, 48, 64),
    "conv4": (512, 24, 32),
    "conv4_1": (512, 24, 32),
    "conv5": (512, 12, 16),
    "conv5_1": (512, 12, 16),
    "conv6": (1024, 6, 8),
    "conv6_1": (1024, 6, 8),
    "deconv5": (512, 12, 16),
    "deconv4": (256, 24, 32),
    "deconv3": (128, 48, 64),
    "deconv2": (64, 96, 128),
    "predict_flow6": (2, 6, 8),
    "predict_flow5": (2, 12, 16),
    "predict_flow4": (2, 24, 32),
    "predict_flow3": (2, 48, 64),
    "predict_flow2": (2, 96, 128),
}


def on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return models.find(name)(**options)


def pair(*size: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, 1, 3, *size, device=device)
    return first, second


@pytest.mark.parametrize("name", ["flownet_s", "flownet_c"])
def test_layers_have_the_papers_shapes(name: str) -> None:
    network = on_meta(name)
    seen: dict[str, tuple[int, ...]] = {}
    for key in SHAPES:
        module = network.get_submodule(key)
        module.register_forward_hook(
            lambda _, inputs, output, key=key: seen.update({key: tuple(output.shape[1:])})
        )
    outputs = network.train()(*pair(384, 512, device="meta"))
    expected = dict(SHAPES)
    assert seen == expected
    assert [tuple(o.shape[2:]) for o in outputs] == [(96 >> k, 128 >> k) for k in range(5)]
    first = network.get_submodule("conv3_1.0")
    assert first.in_channels == (256 if name == "flownet_s" else 441 + 32)
    assert network.get_submodule("conv1.0").in_channels == (6 if name == "flownet_s" else 3)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Of the most used implementation, whose comment on FlowNetS says two fewer.
    [("flownet_s", 38_676_506), ("flownet_c", 39_175_298)],
)
def test_parameters_are_the_published_ones(name: str, parameters: int) -> None:
    assert count.parameters(on_meta(name)) == parameters


def test_norms_come_without_biases() -> None:
    """A norm has a scale and a shift for each channel, in place of the convolution's bias."""
    plain, normed = on_meta("flownet_s"), on_meta("flownet_s", batch_norm=True)
    norms = [m for m in normed.modules() if isinstance(m, nn.BatchNorm2d)]
    channels = sum(m.num_features for m in norms)
    assert len(norms) == 10
    assert count.parameters(normed) - count.parameters(plain) == channels


@pytest.mark.parametrize("name", models.names("flow"))
@pytest.mark.parametrize("size", [(64, 128), (65, 127), (375, 1242), (1, 1)])
def test_flow_has_the_images_size(name: str, size: tuple[int, int]) -> None:
    network = on_meta(name)
    flow = network.eval()(*pair(*size, device="meta"))
    assert flow.shape == (1, 2, *size)
    assert flow.dtype == torch.float32
    outputs = network.train()(*pair(*size, device="meta"))
    height, width = (-(-side // network.divisor) * network.divisor for side in size)
    for output, scale in zip(outputs, network.scales, strict=False):
        assert output.shape == (1, 2, height // scale, width // scale)
    if name == "flownet_small":
        side, scale = 2 * network.reach + 1, network.matching_scale
        assert outputs.matching.shape == (1, side**2, height // scale, width // scale)


@pytest.mark.parametrize("name", ["flownet_s", "flownet_c"])
def test_padding_is_the_border_going_on(name: str) -> None:
    torch.manual_seed(0)
    network = models.find(name)().eval()
    first, second = pair(50, 60)
    wide = [torch.nn.functional.pad(x, (0, 4, 0, 14), mode="replicate") for x in (first, second)]
    with torch.inference_mode():
        small, large = network(first, second), network(*wide)
    torch.testing.assert_close(small, large[:, :, :50, :60])
    assert small.std() > 0


def test_the_prediction_is_the_finest_one_times_20() -> None:
    torch.manual_seed(0)
    network = flownets.flownet_s()
    for parameter in network.predict_flow2.parameters():
        nn.init.zeros_(parameter)
    assert network.predict_flow2.bias is not None
    with torch.inference_mode():
        network.predict_flow2.bias.copy_(torch.tensor([0.5, -0.25]))
        flow = network.eval()(*pair(64, 70))
        assert (network.train()(*pair(64, 64)).flow2[:, 0] == 0.5).all()
    torch.testing.assert_close(flow[0, :, 5, 5], SCALE * torch.tensor([0.5, -0.25]))
    assert (flow == flow[:, :, :1, :1]).all()


def test_towers_share_their_weights_and_the_order_counts() -> None:
    torch.manual_seed(0)
    network = flownets.flownet_c().eval()
    first, second = pair(64, 64)
    maps: list[Tensor] = []
    network.conv3.register_forward_hook(lambda _, inputs, output: maps.append(output))
    with torch.inference_mode():
        there, back = network(first, second), network(second, first)
    torch.testing.assert_close(maps[0], maps[1].flip(0))
    assert (there - back).abs().max() > 1e-3


@pytest.mark.parametrize("name", models.names("flow"))
def test_the_start_keeps_the_scale_of_features(name: str) -> None:
    """At first no prediction is off by more than motions are."""
    torch.manual_seed(0)
    network = models.find(name)().train()
    with torch.inference_mode():
        outputs = network(*(torch.randn(2, 3, 64, 64) for _ in range(2)))
    for output in outputs[: len(network.scales)]:
        assert output.isfinite().all()
        assert output.square().mean().sqrt() < 8


def test_networks_for_flow_are_tried_with_two_images() -> None:
    assert {"flownet_s", "flownet_c", "flownet_small"} <= set(models.names("flow"))
    network = models.build("flownet_small", num_classes=0, image_size=65, task="flow")
    assert count.macs(network, 256) <= 1.5e9
    with pytest.raises(InputError, match="is for flow, and this is segmentation"):
        models.check(network, "flownet_small", 2, 64, task="segmentation")

    class Own(nn.Module):
        def forward(self, image: Tensor, image2: Tensor) -> Tensor:
            return (image - image2)[:, : self.given]

    own = Own()
    own.given = 2  # type: ignore[assignment]
    models.check(own, "own", 0, 32, task="flow")
    assert count.macs(own, 32, frames=2) == 0
    own.given = 3  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"motion in x and y.*\[1, 2, 32, 32\].*\[1, 3, 32, 32\]"):
        models.check(own, "own", 0, 32, task="flow")


class TestMatching:
    """The small network, before it has learned anything, finds features that moved by cells."""

    def features(self) -> tuple[Any, Tensor]:
        torch.manual_seed(0)
        return models.find("flownet_small")(), torch.randn(1, 64, 12, 14) * 2

    def test_what_moved_is_found(self) -> None:
        network, features = self.features()
        shares = network._match(features, features.roll((2, -3), (2, 3))).exp()
        flow, sure = small_flownets._likeliest(shares, 8 / SCALE)
        inner = flow[0, :, :-2, 3:]
        expected = torch.tensor([-3 * 8 / SCALE, 2 * 8 / SCALE]).view(2, 1, 1)
        torch.testing.assert_close(inner, expected.expand_as(inner), atol=1e-3, rtol=0)
        assert sure[0, 0, :-2, 3:].min() > 0.99

    def test_no_candidate_lies_outside(self) -> None:
        """Of features that are all the same, all displacements inside are equally likely."""
        network, features = self.features()
        shares = network._match(torch.zeros_like(features), torch.zeros_like(features)).exp()
        x, y = torch.arange(14), torch.arange(12)[:, None]
        left, right = x.clamp(max=8), (13 - x).clamp(max=8)
        above, below = y.clamp(max=8), (11 - y).clamp(max=8)
        candidates = (left + right + 1) * (above + below + 1)
        assert ((shares[0] > 0).sum(0) == candidates).all()
        torch.testing.assert_close(shares[0].amax(0), 1 / candidates)
        flow, _ = small_flownets._likeliest(shares, 1.0)
        end = torch.stack((x + flow[0, 0], y + flow[0, 1]))
        assert end.min() >= 0 and end[0].max() <= 13 and end[1].max() <= 11

    def test_the_mean_is_about_the_likeliest(self) -> None:
        """What is far away has no part in it, however likely."""
        shares = torch.zeros(1, 25, 1, 1)
        shares[0, 2 * 5 + 3], shares[0, 2 * 5 + 4], shares[0, 2 * 5 + 0] = 0.4, 0.2, 0.4 - 1e-3
        flow, sure = small_flownets._likeliest(shares, 3.0)
        assert flow.flatten().tolist() == pytest.approx([3 * (1 * 2 + 2 * 1) / 3, 0])
        assert sure.item() == pytest.approx(0.4)

    @pytest.mark.parametrize("best", [0, 4, 12, 14, 22, 24])
    def test_no_neighbour_lies_beyond_the_window(self, best: int) -> None:
        """At the window's edge the mean is that of those neighbours that there are."""
        torch.manual_seed(0)
        shares = torch.rand(1, 25, 1, 1) * 0.1
        shares[0, best] = 0.5
        flow, _ = small_flownets._likeliest(shares, 2.0)
        weights, sums = 0.0, [0.0, 0.0]
        for k, share in enumerate(shares.flatten().tolist()):
            if abs(k % 5 - best % 5) <= 1 and abs(k // 5 - best // 5) <= 1:
                weights += share
                sums[0] += share * 2 * (k % 5 - 2)
                sums[1] += share * 2 * (k // 5 - 2)
        assert flow.flatten().tolist() == pytest.approx([s / weights for s in sums], abs=1e-6)

    def test_the_mean_is_as_exact_under_autocast(self) -> None:
        torch.manual_seed(0)
        shares = torch.randn(2, 81, 5, 6).softmax(1)
        expected, _ = small_flownets._likeliest(shares, 0.4)
        with torch.autocast("cpu", torch.bfloat16):
            flow, sure = small_flownets._likeliest(shares, 0.4)
        assert flow.dtype == sure.dtype == torch.float32
        assert torch.equal(flow, expected)


def test_more_layers_than_dilations_are_all_made() -> None:
    layers = small_flownets._layers(5, (7, 6, 4), (1, 2))
    convolutions = [m for m in layers.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [7, 6, 4]
    assert [c.dilation[0] for c in convolutions] == [1, 2, 1]
    assert layers(torch.randn(2, 5, 8, 9)).shape == (2, 4, 8, 9)
