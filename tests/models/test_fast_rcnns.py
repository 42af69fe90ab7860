"""Fast R-CNN: the paper's counts, the classifier inside, and that regions are their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi import models
from vidi.errors import InputError
from vidi.models import count, weights
from vidi.models.alexnets import LocalResponseNorm
from vidi.models.compress import truncated_svd
from vidi.models.fast_rcnns import FastRCNN, Outputs

NAMES = [name for name in models.names("detection") if name.startswith("fast_rcnn")]
LIGHT = ["fast_rcnn_small", "fast_rcnn_resnet18"]
"""Run for real; the others on the meta device, or once."""
FC = {"classifier.0": 1024, "classifier.3": 256}


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return models.find(name)(**options)


def made(name: str, **options: Any) -> Any:
    """The network with siblings whose outputs differ, and normalisation that does something."""
    torch.manual_seed(0)
    network: Any = models.find(name)(**options)
    with torch.no_grad():
        for layer in (network.cls_score, network.bbox_pred):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.normal_(layer.bias, std=0.1)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1)
    return network


def some(count: int, images: int, size: tuple[int, int]) -> Tensor:
    """Regions within images of ``size`` (h, w)."""
    generator = torch.Generator().manual_seed(count)
    sides = torch.tensor([size[1], size[0]])
    corners = torch.rand(count, 2, 2, generator=generator).sort(1).values * sides
    index = torch.randint(images, (count, 1), generator=generator).float()
    return torch.cat((index, corners.flatten(1)), 1)


# Counts


def test_the_papers_two_counts() -> None:
    network = on_meta("fast_rcnn_vgg16")
    assert count.parameters(network) == 134_690_729
    compressed = truncated_svd(network, FC)
    assert count.parameters(compressed) == 47_134_633
    assert count.parameters(network) == 134_690_729, "the network itself is not touched"


@pytest.mark.parametrize("name", NAMES[:-1])
def test_it_is_the_classifier_with_other_last_layers(name: str) -> None:
    trunk = models.describe(name.removeprefix("fast_rcnn_"))
    network = on_meta(name, num_classes=6)
    width = network.cls_score.in_features
    assert network.cls_score.out_features == 7 and network.bbox_pred.out_features == 28
    ends = (width + 1) * (7 + 28) - (width + 1) * 1000
    assert count.parameters(network) == trunk.parameters + ends


def test_a_region_costs_the_small_network_little() -> None:
    network = on_meta("fast_rcnn_small")
    assert count.parameters(network) < 1.5e6
    assert sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Linear)) < 1e6


# Shapes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True])
def test_shapes(name: str, training: bool) -> None:
    network = on_meta(name, num_classes=3).train(training)
    for size, regions in [((1, 1), 1), ((13, 40), 7), ((97, 130), 0), ((600, 801), 7)]:
        image = torch.empty(2, 3, *size, device="meta")
        outputs = network(image, torch.empty(regions, 5, device="meta"))
        assert isinstance(outputs, Outputs) and outputs.scores is None
        assert outputs.logits.shape == (regions, 4)
        assert outputs.deltas is not None and outputs.deltas.shape == (regions, 12)


@pytest.mark.parametrize("name", [*LIGHT, "fast_rcnn_alexnet"])
@pytest.mark.parametrize("roi", ["pool", "align"])
def test_strange_regions_give_numbers(name: str, roi: str) -> None:
    network = made(name, roi=roi, num_classes=3).eval()
    for size in [(5, 7), (50, 40)]:
        h, w = size
        boxes = [
            (0, 0, w, h),
            (-30, -30, -20, -10),  # outside, on all sides
            (w + 50, h + 50, w + 90, h + 90),
            (-1000, -1000, 1000, 1000),
            (3, 3, 3, 3),  # without area
            (4, 4, 2, 3),  # inverted
            (w - 1, h - 1, w, h),
        ]
        regions = torch.tensor([(0.0, *box) for box in boxes])
        with torch.no_grad():
            outputs = network(torch.randn(1, 3, *size), regions)
            none = network(torch.randn(1, 3, *size), regions[:0])
        assert all(x.isfinite().all() for x in outputs[:2])
        assert none.logits.shape == (0, 4) and none.deltas.shape == (0, 12)


def test_a_region_at_the_right_edge_is_not_empty() -> None:
    """Rounded as the paper has it, it would begin in a cell beyond the map."""
    network = made("fast_rcnn_small", roi="pool", num_classes=3).eval()
    maps = torch.rand(1, 4, 5, 5) + 1
    thin = torch.tensor([[0.0, 19.0, 0.0, 20.0, 20.0], [0.0, 0.0, 19.0, 20.0, 20.0]])
    assert (network.pooled(maps, thin) >= 1).all()


def test_a_regions_last_pixel_is_within_it() -> None:
    """Pixels 4 and 5 are in cell 1 = round(4 / 4) = round(5 / 4); pixel 6 is the next cell's."""
    network = made("fast_rcnn_small", roi="pool", num_classes=3)
    maps = torch.arange(25.0).view(1, 1, 5, 5)
    regions = torch.tensor([[0.0, 4, 4, 6, 6], [0.0, 4, 4, 7, 6]])
    one, two = network.pooled(maps, regions)
    assert (one == maps[0, 0, 1, 1]).all()
    assert set(two.flatten().tolist()) == {6.0, 7.0}


# Each region its own


@pytest.mark.parametrize("name", LIGHT)
def test_a_batch_equals_its_singles(name: str) -> None:
    network = made(name, num_classes=3).eval()
    images, regions = torch.randn(2, 3, 70, 90), some(7, 2, (70, 90))
    with torch.no_grad():
        whole = network(images, regions)
        assert whole.logits.std(0).min() > 1e-3 and whole.deltas.std(0).min() > 1e-4
        for k, region in enumerate(regions):
            image = images[int(region[0])]
            single = network(image[None], torch.cat((torch.zeros(1), region[1:]))[None])
            torch.testing.assert_close(whole.logits[k], single.logits[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(whole.deltas[k], single.deltas[0], rtol=1e-4, atol=1e-4)


def test_more_regions_than_go_at_once() -> None:
    network = made("fast_rcnn_small", num_classes=3).eval()
    image, regions = torch.randn(1, 3, 64, 64), some(1100, 1, (64, 64))
    with torch.no_grad():
        whole, last = network(image, regions), network(image, regions[-50:])
    assert whole.logits.shape == (1100, 4)
    torch.testing.assert_close(whole.logits[-50:], last.logits, rtol=1e-4, atol=1e-5)


class Averaging(nn.MaxPool2d):
    """A pool of the same geometry, which is linear."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode)


class Box(nn.Conv2d):
    """A convolution of the same geometry from the channels' mean to one channel, all ones."""

    def __init__(self, like: nn.Conv2d) -> None:
        k, s, p = like.kernel_size, like.stride, like.padding
        super().__init__(1, 1, k, s, p, bias=False)  # type: ignore[arg-type]
        nn.init.constant_(self.weight, 1 / self.weight.numel())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(1, keepdim=True))


@pytest.mark.parametrize("name", NAMES)
def test_cells_stand_where_the_network_says(name: str) -> None:
    """All weights even, what a cell looks at has its centre of gravity in the cell's centre."""
    network = on_meta(name)
    for module in list(network.modules()):
        for key, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                setattr(module, key, Box(child))
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, key, Averaging(3, 2, 1) if child.padding else Averaging(2, 2))
            elif isinstance(child, nn.BatchNorm2d | LocalResponseNorm):
                setattr(module, key, nn.Identity())
    image = torch.ones(1, 3, 960, 960, requires_grad=True)
    cell = 480 // network.stride
    network.maps(image)[0, 0, cell, cell - 1].backward()
    assert image.grad is not None
    weight = image.grad[0, 0].double()
    assert weight[[0, -1]].abs().sum() + weight[:, [0, -1]].abs().sum() < 1e-6 * weight.sum()
    centres = torch.arange(960, dtype=torch.float64) + 0.5
    y, x = weight.sum(1) @ centres / weight.sum(), weight.sum(0) @ centres / weight.sum()
    assert y.item() == pytest.approx(network.first + network.stride * cell, abs=1e-3)
    assert x.item() == pytest.approx(network.first + network.stride * (cell - 1), abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_maps_leave_no_pixel_out(name: str) -> None:
    network = on_meta(name).eval()
    for side in (1, 16, 17, 100, 200):
        maps = network.maps(torch.empty(1, 3, side, side, device="meta"))
        assert maps.shape[2:] == (-(-side // network.stride),) * 2


@pytest.mark.parametrize("first", [2, 0.5])
def test_align_looks_where_cells_stand(first: float) -> None:
    """On maps that hold their cells' coordinates, a region's bins hold their own centres."""
    network = made("fast_rcnn_small", pooled=3)
    network.first = first
    x = (torch.arange(12.0) * network.stride + first).expand(12, 12)
    maps = torch.stack((x, x.T))[None]
    pooled = network.pooled(maps, torch.tensor([[0.0, 10.0, 15.0, 25.0, 21.0]]))
    torch.testing.assert_close(pooled[0, 0], torch.tensor([12.5, 17.5, 22.5]).expand(3, 3))
    torch.testing.assert_close(pooled[0, 1], torch.tensor([16.0, 18.0, 20.0]).expand(3, 3).T)


# The classifier inside


def whole_image(side: int) -> Tensor:
    return torch.tensor([[0.0, 0.0, 0.0, side, side]])


def adopted(network: Any, classifier: nn.Module) -> Any:
    """The network with the classifier's weights, as load_weights takes them over."""
    state = classifier.state_dict()
    found = network.adopt(state)
    assert found is not None
    network.load_state_dict({own: state[theirs] for own, theirs in found.items()}, strict=False)
    return network.eval()


def test_on_the_whole_image_fc7_is_vggs_own() -> None:
    """14 × 14 cells pooled to 7 × 7 are the last pool, which was left out."""
    torch.manual_seed(0)
    classifier: Any = models.vgg16(2).eval()
    with torch.device("meta"):
        network = models.fast_rcnn_vgg16(2)
    network = network.to_empty(device="cpu")
    network = adopted(network, classifier)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = classifier.classifier[:-1](classifier.features(image).flatten(1))
        maps = network.maps(image)
        assert maps.shape == (1, 512, 14, 14) and expected.std() > 1e-3
        torch.testing.assert_close(
            network.pooled(maps, whole_image(224)), classifier.features(image)
        )
        found = network.responses(network.pooled(maps, whole_image(224)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_alexnet_unpadded_is_alexnet(name: str) -> None:
    """13 × 13 cells pooled to 6 × 6 are its overlapping 3 × 3 pool of stride 2."""
    torch.manual_seed(0)
    classifier: Any = models.find(name)(2).eval()
    network = adopted(models.find(f"fast_rcnn_{name}")(2), classifier)
    for ours, theirs in zip(network.features, classifier.features, strict=False):
        if isinstance(ours, nn.Conv2d | nn.MaxPool2d):
            ours.padding = theirs.padding
    image = torch.randn(1, 3, classifier.image_size, classifier.image_size)
    with torch.no_grad():
        expected = classifier.classifier[:-1](classifier.features(image).flatten(1))
        maps = network.maps(image)
        found = network.responses(network.pooled(maps, whole_image(classifier.image_size)))
    assert maps.shape[2:] == (13, 13) and expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_on_the_whole_image_layer4_is_the_resnets_own(name: str) -> None:
    torch.manual_seed(0)
    classifier: Any = models.find(name)(2).eval()
    network = adopted(models.find(f"fast_rcnn_{name}")(2), classifier)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = network.responses(network.pooled(network.maps(image), whole_image(224)))
        expected = classifier(image)
        assert expected.std() > 1e-3
        torch.testing.assert_close(classifier.fc(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_adopt_takes_all_of_the_classifier_but_its_last_layer(name: str) -> None:
    network = on_meta(name, num_classes=1000)
    state = on_meta(name.removeprefix("fast_rcnn_")).state_dict()
    found = network.adopt(state)
    assert found is not None and all(own == theirs for own, theirs in found.items())
    left = {key.rpartition(".")[0] for key in set(state) - set(found.values())}
    assert left == {"fc"} or (len(left) == 1 and state[f"{left.pop()}.weight"].shape[0] == 1000)
    fresh = {key for key in network.state_dict() if key not in found}
    siblings = {f"{layer}.{kind}" for layer in ("cls_score", "bbox_pred") for kind in KINDS}
    assert fresh == siblings | {"delta_mean", "delta_std"}


KINDS = ("weight", "bias")


@pytest.mark.parametrize("name", NAMES)
def test_adopt_from_other_classes_and_from_another_trunk(name: str) -> None:
    network = on_meta(name, num_classes=3)
    found = network.adopt(on_meta(name, num_classes=5).state_dict())
    assert found is not None
    assert not any(own.startswith(("cls_score", "bbox_pred", "delta")) for own in found)
    assert network.adopt(on_meta("vgg11").state_dict()) is None


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fast_rcnn_small"])
def test_frozen_parts_exist_and_hold_what_they_should(name: str) -> None:
    network = on_meta(name)
    frozen = weights.freeze(network, network.frozen)
    fixed = {k for k, m in network.named_modules() if k and m in weights.frozen_modules(network)}
    if "resnet" in name:
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert not any(p.requires_grad for m in norms for p in m.parameters())
        assert {"conv1", "bn1", "layer1"} <= fixed
        assert network.layer2[0].conv1.weight.requires_grad
    else:
        # The paper's section 4.5: learning begins at conv3_1 of VGG-16, at conv2 of the small one.
        first = 4 if "vgg" in name else 1
        convolutions = [m for m in network.features if isinstance(m, nn.Conv2d)]
        assert [m.weight.requires_grad for m in convolutions[: first + 1]] == [False] * first + [
            True
        ]
        assert len(frozen) == 2 * first


# Deltas


def statistics(classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(classes, 4, generator=generator),
        torch.rand(classes, 4, generator=generator) + 0.1,
    )


def test_deltas_are_normalised_in_training_and_true_in_evaluation() -> None:
    network = made("fast_rcnn_small", num_classes=3)  # nothing in it depends on the mode, but norms
    mean, std = statistics(3)
    network.set_delta_statistics(mean, std)
    image, regions = torch.randn(1, 3, 64, 64), some(5, 1, (64, 64))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        learned = network(image, regions).deltas.view(5, 3, 4)
        true = network.eval()(image, regions).deltas.view(5, 3, 4)
    torch.testing.assert_close(true, learned * std + mean)
    assert not torch.allclose(true, learned, atol=0.1)


def test_folding_leaves_evaluation_as_it_was() -> None:
    network = made("fast_rcnn_small", num_classes=3).eval()
    network.set_delta_statistics(*statistics(3))
    image, regions = torch.randn(1, 3, 64, 64), some(5, 1, (64, 64))
    with torch.no_grad():
        before = network(image, regions)
        weight = network.bbox_pred.weight.clone()
        network.fold()
        after = network(image, regions)
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.deltas, before.deltas, rtol=1e-5, atol=1e-5)
    assert torch.equal(network.delta_mean, torch.zeros(3, 4))
    assert torch.equal(network.delta_std, torch.ones(3, 4))
    assert not torch.allclose(network.bbox_pred.weight, weight)
    # Folded twice is folded once; and a run that begins from folded weights loses nothing.
    network.fold()
    network.set_delta_statistics(*statistics(3))
    with torch.no_grad():
        again = network(image, regions)
        torch.testing.assert_close(again.deltas, before.deltas, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network.bbox_pred.weight, weight)


def test_folded_weights_are_kept_in_a_file_with_their_statistics() -> None:
    network, other = made("fast_rcnn_small", num_classes=3), models.fast_rcnn_small(3)
    network.set_delta_statistics(*statistics(3))
    network.fold()
    other.load_state_dict(network.state_dict())
    image, regions = torch.randn(1, 3, 64, 64), some(5, 1, (64, 64))
    with torch.no_grad():
        found, expected = (n.eval()(image, regions).deltas for n in (other, network))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bad", ["shape", "zero"])
def test_impossible_statistics_are_refused(bad: str) -> None:
    network = models.fast_rcnn_small(3)
    mean, std = statistics(3)
    with pytest.raises(InputError, match="positive deviation"):
        network.set_delta_statistics(
            mean, torch.zeros_like(std) if bad == "zero" else statistics(2)[1]
        )
    with pytest.raises(InputError, match="pool or align"):
        models.fast_rcnn_small(roi="crop")


# Training


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    network = on_meta(name, num_classes=3).train()
    image = torch.empty(2, 3, 64, 96, device="meta")
    outputs = network(image, torch.empty(8, 5, device="meta"))
    (outputs.logits.sum() + outputs.deltas.sum()).backward()
    assert [k for k, p in network.named_parameters() if p.grad is None] == []


def test_a_fresh_small_network_knows_nothing_and_its_third_step_reaches_all() -> None:
    """At first what ends each residual block is zero, so nothing before it learns."""
    torch.manual_seed(0)
    network: FastRCNN = models.fast_rcnn_small(num_classes=4).train()
    images, regions = torch.randn(2, 3, 64, 96), some(32, 2, (64, 96))
    labels = torch.arange(32) % 5
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        outputs = network(images, regions)
        assert outputs.deltas is not None
        losses.append(F.cross_entropy(outputs.logits, labels) + (outputs.deltas - 1).abs().mean())
        losses[-1].backward()
        optimiser.step()
    assert losses[0].item() == pytest.approx(np.log(5) + 1, abs=0.2)
    assert losses[-1] < losses[0]
    dead = [k for k, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    # The background has no box: its rows are there for the published count, and nothing moves them.
    assert network.bbox_pred.weight.grad is not None
    assert not network.bbox_pred.weight.grad[:4].any()


def test_scores_in_full_precision_under_autocast() -> None:
    network = made("fast_rcnn_small", num_classes=3).eval()
    image, regions = torch.randn(1, 3, 64, 64), some(5, 1, (64, 64))
    with torch.no_grad():
        exact = network(image, regions)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(image, regions)
    assert rough.logits.dtype == rough.deltas.dtype == torch.float32
    torch.testing.assert_close(rough.logits, exact.logits, rtol=0.1, atol=0.1)
    # No rounding to bfloat16 came last.
    assert (rough.logits != rough.logits.bfloat16().float()).any()


# Compressing


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 20, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_at_full_rank_nothing_changes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Two().to(dtype).eval()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    compressed = truncated_svd(network, {"body.0": 9, "body.2": 9})
    x = torch.randn(30, 12, dtype=dtype)
    close = 0.05 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(compressed(x), network(x), rtol=close, atol=close)
    assert all(p.dtype == dtype for p in compressed.parameters())
    assert not any(m.training for m in compressed.modules())
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    own = {p.data_ptr() for p in network.parameters()}
    assert not own & {p.data_ptr() for p in compressed.parameters()}, "a copy shares nothing"


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_no_matrix_of_its_rank_is_closer(rank: int) -> None:
    """Eckart & Young: the distance is the root of the sum of the squares of what was cut off."""
    torch.manual_seed(0)
    network = Two()
    compressed: Any = truncated_svd(network, {"body.2": rank})
    first, second = compressed.body[2]
    assert first.weight.shape == (rank, 9) and second.weight.shape == (20, rank)
    assert first.bias is None and second.bias is None
    weight = network.get_parameter("body.2.weight").detach().double().numpy()
    product = (second.weight @ first.weight).detach().double().numpy()
    assert np.linalg.matrix_rank(product, tol=1e-5) == rank
    cut = np.linalg.svd(weight, compute_uv=False)[rank:]
    assert np.linalg.norm(product - weight) == pytest.approx(np.sqrt((cut**2).sum()), rel=1e-4)


def test_a_compressed_detector_still_detects() -> None:
    network = made("fast_rcnn_small", num_classes=3).eval()
    compressed = truncated_svd(network, {"head.0": 128, "head.3": 128})
    image, regions = torch.randn(1, 3, 64, 64), some(5, 1, (64, 64))
    with torch.no_grad():
        found, expected = compressed(image, regions), network(image, regions)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.deltas, expected.deltas, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ({"body.0": 10}, "rank 10; use one from 1 to 9"),
        ({"body.0": 0}, "rank 0"),
        ({"body.1": 3}, r"no linear layer of that name.*body.0 \(12 to 9\), body.2 \(9 to 20\)"),
        ({"fc6": 3}, "fc6"),
    ],
)
def test_impossible_ranks_are_refused(ranks: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        truncated_svd(Two(), ranks)
