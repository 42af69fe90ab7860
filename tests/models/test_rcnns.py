"""R-CNN: every region goes through the classifier by itself, and what is fitted decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from vidi import models
from vidi.models import count
from vidi.models.rcnns import CHUNK, RCNN, rcnn_alexnet, rcnn_small
from vidi.models.weights import load_weights

NAMES = ["rcnn_alexnet", "rcnn_alexnet_2012", "rcnn_vgg16", "rcnn_small"]


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return models.find(name)(**options)


def some(n: int, images: int = 2) -> tuple[Tensor, Tensor]:
    """Two images, and regions in them; some reach beyond the border."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(images, 3, 90, 120, generator=generator)
    low = torch.rand(n, 2, generator=generator) * 80 - 5
    sides = torch.rand(n, 2, generator=generator) * 40 + 3
    index = torch.arange(n)[:, None] % images
    return image, torch.cat([index.float(), low, low + sides], 1)


def fitted(num_classes: int = 3) -> RCNN:
    """A small network whose fitted layers are as if fitted."""
    torch.manual_seed(1)
    model = rcnn_small(num_classes)
    for layer in (model.svm, model.boxes):
        nn.init.normal_(layer.weight, std=0.1)
        nn.init.normal_(layer.bias, std=0.1)
    model.finished.fill_(1)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "reference", "removed"),
    [("rcnn_alexnet", "alexnet", 4096), ("rcnn_vgg16", "vgg16", 4096)],
)
def test_it_is_the_classifier_with_other_last_layers(
    name: str, reference: str, removed: int
) -> None:
    with torch.device("meta"):
        whole = getattr(torchvision.models, reference)(num_classes=21)
    network = on_meta(name)
    extra = sum(p.numel() for layer in (network.svm, network.boxes) for p in layer.parameters())
    assert count.parameters(network) - extra == count.parameters(whole)
    assert extra == 20 * (removed + 1) + 80 * (network.boxes.in_features + 1)
    assert network.boxes.in_features == {"alexnet": 256 * 36, "vgg16": 512 * 49}[reference]


@pytest.mark.parametrize("name", NAMES)
def test_its_cost_is_the_regions(name: str) -> None:
    network = on_meta(name)
    one, ten = (count.macs(network, 300, regions=n) for n in (1, 10))
    assert ten == 10 * one
    assert count.macs(network, 600, regions=10) == ten, "the image's size costs nothing"
    if name == "rcnn_small":
        assert one < 12e6


def test_a_batch_gives_what_its_regions_give_alone() -> None:
    model = fitted()
    image, regions = some(2 * CHUNK + 7)
    with torch.no_grad():
        together = model(image, regions)
        for k in (0, 1, CHUNK, 2 * CHUNK + 6):
            own = image[int(regions[k, 0]), None]
            alone = model(own, torch.cat([torch.zeros(1), regions[k, 1:]])[None])
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[k], b[0], atol=1e-5, rtol=1e-4)


def test_no_region_gives_nothing() -> None:
    image, regions = some(4)
    with torch.no_grad():
        found = fitted()(image, regions[:0])
    assert [tuple(part.shape) for part in found] == [(0, 4), (0, 12), (0, 3)]


def test_a_region_of_the_networks_own_size_is_seen_as_it_is() -> None:
    """48 pixels with 3 of context: a region of 42 pixels is cut out, with 3 pixels about it."""
    model = fitted()
    image, _ = some(1)
    x, y = 20, 11
    region = torch.tensor([[0.0, x + 3, y + 3, x + 45, y + 45]])
    with torch.no_grad():
        pool5, fc7 = model.describe(image, region)
        cut = image[:1, :, y : y + 48, x : x + 48]
        expected = model.avgpool(model.features(cut)).flatten(1)
    torch.testing.assert_close(pool5, expected, atol=1e-4, rtol=1e-4)
    first = model.classifier[0]
    assert isinstance(first, nn.Linear)
    torch.testing.assert_close(fc7, F.relu(first(expected)), atol=1e-4, rtol=1e-4)


def test_before_it_is_finished_the_softmax_ranks_and_boxes_stay() -> None:
    torch.manual_seed(0)
    model = rcnn_small(3).eval()
    nn.init.normal_(model.get_parameter("classifier.3.weight"))
    with torch.no_grad():
        found = model(*some(9))
    torch.testing.assert_close(found.scores, found.logits.softmax(1)[:, 1:])
    assert not found.deltas.any()


def test_finished_svms_rank_and_boxes_move() -> None:
    model = fitted()
    image, regions = some(9)
    with torch.no_grad():
        found = model(image, regions)
        pool5, fc7 = model.describe(image, regions)
    torch.testing.assert_close(torch.logit(found.scores), model.svm(fc7), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.deltas, model.boxes(pool5))


def test_training_learns_all_but_what_is_fitted_and_undoes_the_fit() -> None:
    model = fitted().train()
    found = model(*some(9))
    assert found.deltas is None and found.scores is None
    loss: Any = F.cross_entropy(found.logits, torch.arange(9) % 4)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert sorted(without) == ["boxes.bias", "boxes.weight", "svm.bias", "svm.weight"]
    assert model.finished == 0


def test_margins_keep_their_order_in_half_precision() -> None:
    model = fitted()
    image, regions = some(64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(image, regions)
    assert found.scores.dtype == found.deltas.dtype == torch.float32
    assert len(found.scores[:, 0].unique()) == 64


def test_it_starts_from_the_classifier_and_from_other_classes(tmp_path: Any) -> None:
    import safetensors.torch

    torch.manual_seed(0)
    classifier = models.find("alexnet")(num_classes=4)
    file = tmp_path / "alexnet.safetensors"
    safetensors.torch.save_file(classifier.state_dict(), file)
    model = rcnn_alexnet(3)  # 1 + 3 classes of regions are as many as the file's
    score = model.get_parameter("classifier.6.weight").clone()
    report = load_weights(model, str(file), model_name="rcnn_alexnet", num_classes=3)
    assert set(report.replaced) == {"classifier.6.weight", "classifier.6.bias"}
    first = "features.0.weight"
    assert torch.equal(model.get_parameter(first), classifier.get_parameter(first))
    assert torch.equal(model.get_parameter("classifier.6.weight"), score)

    small = fitted(5)
    safetensors.torch.save_file(small.state_dict(), file)
    other = rcnn_small(3)
    report = load_weights(other, str(file), model_name="rcnn_small", num_classes=3)
    assert all(name.startswith("classifier.3.") for name in report.replaced)
    assert other.finished == 0 and not other.svm.weight.any()
    torch.testing.assert_close(other.features.state_dict(), small.features.state_dict())
