"""An FCN takes over a classifier's weights, or another FCN's; and says what it took."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from vidi import models
from vidi.errors import InputError
from vidi.models import fcns, weights
from vidi.models.weights import WeightsReport, load_weights


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

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def thin(stride: int, num_classes: int = 4, seed: int = 1, **options: Any) -> Any:
    torch.manual_seed(seed)
    classifier: Any = Thin(num_classes)
    return fcns.FCN(classifier, num_classes, kernel=7, stride=stride, **options)


def trained(network: Any) -> Any:
    """All parameters as after some steps, the fixed upsampling as it is."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def written(folder: Path, network: nn.Module) -> Path:
    """A run's folder."""
    folder.mkdir(exist_ok=True)
    save_file(network.state_dict(), folder / "best.safetensors", metadata={"vidi": "{}"})
    return folder


def load(network: nn.Module, file: Path | str, name: str, num_classes: int = 4) -> WeightsReport:
    return load_weights(network, str(file), model_name=name, num_classes=num_classes)


def assert_same(ours: nn.Module, theirs: nn.Module, names: list[str]) -> None:
    for name in names:
        assert torch.equal(ours.state_dict()[name], theirs.state_dict()[name]), name


def under(network: nn.Module, *parts: str) -> list[str]:
    return [name for name in network.state_dict() if name.startswith(parts)]


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("classes", [4, 11])
def test_from_a_classifier(tmp_path: Path, stride: int, classes: int) -> None:
    torch.manual_seed(3)
    classifier = Thin(classes).eval()
    network = thin(stride).eval()
    report = load(network, written(tmp_path / "run", classifier), f"fcn{stride}s_vgg16")
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():  # the layer before the scores gives what the classifier's gives
        maps = network.classifier[:4](network._pools(image)[2])
        expected = classifier.classifier[:4](classifier.features(image).flatten(1))
        torch.testing.assert_close(maps[:, :, 3, 3], expected)
    # Even for as many classes: those of images are not those of pixels.
    assert not network.classifier[4].weight.any()
    assert "classifier.4.weight" in report.replaced
    assert report.loaded == 14
    assert set(report.dropped) == {"classifier.4.weight", "classifier.4.bias"}
    assert f"upscore{stride}.weight" not in report.replaced, "it is fixed, and never fresh"
    assert "became the convolutions classifier.0, classifier.2." in report.sentence
    assert "Beginning fresh: classifier.4" in report.sentence


def test_16s_from_32s_and_8s_from_16s_go_on_where_those_ended(tmp_path: Path) -> None:
    coarse = trained(thin(32)).eval()
    middle = thin(16, seed=2).eval()
    report = load(middle, written(tmp_path / "32s", coarse), "fcn16s_vgg16")
    assert_same(middle, coarse, under(coarse, "features", "classifier"))
    assert report.replaced == ("score_pool4.weight", "score_pool4.bias", "upscore2.weight")
    assert report.dropped == ("upscore32.weight",)
    image = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        # A new score layer at zero adds nothing: twice times 16 times bilinear, not 32 times.
        scores = coarse.classifier(coarse._pools(image)[2])
        assert scores.std() > 1e-3
        twice = F.interpolate(scores, scale_factor=2, mode="bilinear")
        expected = F.interpolate(twice, scale_factor=16, mode="bilinear")
        torch.testing.assert_close(middle(image), expected)

    fine = thin(8, seed=3).eval()
    trained(middle)
    report = load(fine, written(tmp_path / "16s", middle), "fcn8s_vgg16")
    assert_same(fine, middle, under(middle, "features", "classifier", "score_pool4", "upscore2."))
    assert report.replaced == ("score_pool3.weight", "score_pool3.bias", "upscore_pool4.weight")
    assert report.dropped == ("upscore16.weight",)
    assert "Left out, since this network has no place for it: upscore16." in report.sentence


def test_the_same_network_with_and_without_the_papers_padding(tmp_path: Path) -> None:
    source, network = trained(thin(8)), thin(8, seed=2, pad100=True)
    report = load(network, written(tmp_path / "run", source), "fcn8s_vgg16")
    assert report.replaced == report.dropped == ()
    assert_same(network, source, list(source.state_dict()))


def test_other_classes_keep_the_trunk(tmp_path: Path) -> None:
    source, network = trained(thin(8, 4)), thin(8, 6, seed=2)
    report = load(network, written(tmp_path / "run", source), "fcn8s_vgg16", 6)
    assert_same(network, source, under(source, "features", "classifier.0", "classifier.2"))
    layers = {name.rpartition(".")[0] for name in report.replaced}
    assert layers == {"classifier.4", "score_pool4", "score_pool3", "upscore2", "upscore_pool4"}


def test_another_trunk_is_refused(tmp_path: Path) -> None:
    network = thin(8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match="checkpoint from another model, not from fcn8s_vgg16"):
        load(network, written(tmp_path / "run", models.resnet20(4)), "fcn8s_vgg16")
    half = dict(list(Thin(4).state_dict().items())[:8])
    torch.save(half, tmp_path / "half.pth")
    with pytest.raises(InputError, match="is not in the file"):
        load(network, tmp_path / "half.pth", "fcn8s_vgg16")
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("trunk", ["vgg16", "alexnet", "googlenet"])
def test_real_layouts_fit_name_by_name(stride: int, trunk: str) -> None:
    if trunk != "vgg16" and stride != 32:
        return
    with torch.device("meta"):
        theirs = getattr(torchvision.models, trunk)(
            **({"init_weights": False} if trunk == "googlenet" else {})
        )
        network = models.find(f"fcn{stride}s_{trunk}")()
    found = network.adopt(theirs.state_dict())
    assert found is not None
    unused = set(theirs.state_dict()) - set(found.values())
    last = {"vgg16": "classifier.6", "alexnet": "classifier.6", "googlenet": "fc"}[trunk]
    assert {n.rpartition(".")[0] for n in unused if not n.startswith("aux")} == {last}
    fresh = {name.partition(".")[0] for name in set(network.state_dict()) - set(found)}
    assert all(n.startswith(("classifier", "score", "upscore")) for n in fresh)
    with torch.device("meta"):
        assert network.adopt(models.vgg11().state_dict()) is None
        assert network.adopt(models.resnet18().state_dict()) is None


# ResNets, by their published names


def publish(folder: Path, name: str, state: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "unnamed.pth")
    digits = hashlib.sha256((folder / "unnamed.pth").read_bytes()).hexdigest()[:8]
    return (folder / "unnamed.pth").rename(folder / f"{name}-{digits}.pth")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("dilated", [False, True])
def test_imagenet_is_the_trunks(hub: Path, monkeypatch: Any, dilated: bool) -> None:
    torch.manual_seed(5)
    theirs = torchvision.models.resnet18()
    path = publish(hub, "resnet18", theirs.state_dict())
    member = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(member.value, "url", f"https://example.invalid/{path.name}")
    for name in ("imagenet", "imagenet1k_v1", str(path), str(hub)):
        network = models.fcn_resnet18(4, dilated=dilated)
        report = load(network, name, "fcn_resnet18")
        for key, tensor in theirs.state_dict().items():
            if not key.startswith("fc."):
                assert torch.equal(network.backbone.state_dict()[key], tensor), key
        assert {name[:5] for name in report.replaced} <= {"score", "upsco"}
        assert report.dropped == ("fc.weight", "fc.bias")
        assert report.preprocessing is not None
        assert report.preprocessing.mean == (0.485, 0.456, 0.406)
        assert report.preprocessing.categories is None, "the layer that knew them stayed behind"


def test_published_segmentation_weights(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    theirs = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    path = publish(hub, "fcn_resnet50_coco", theirs.state_dict())
    member = torchvision.models.segmentation.FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
    monkeypatch.setattr(member.value, "url", f"https://example.invalid/{path.name}")
    name = "coco_with_voc_labels_v1"

    network = models.fcn_resnet50(21)
    report = load(network, name, "fcn_resnet50", 21)
    assert report.replaced == ()
    assert {part.partition(".")[0] for part in report.dropped} == {"aux_classifier"}
    assert_same(network, theirs, list(network.state_dict()))
    assert report.preprocessing is not None
    assert report.preprocessing.image_size == 520
    assert report.preprocessing.categories is not None
    assert report.preprocessing.categories[15] == "person"

    other = models.fcn_resnet50(4, aux_logits=True)
    report = load(other, name, "fcn_resnet50", 4)
    heads = {part.rpartition(".")[0] for part in report.replaced}
    assert heads == {"classifier.4", "aux_classifier.4"}
    assert_same(other, theirs, under(other, "backbone", "classifier.0", "aux_classifier.1"))


def test_googlenets_own_normalisation_travels() -> None:
    found = weights.published_preprocessing("fcn32s_googlenet", "imagenet")
    assert found is not None
    assert found.mean == found.std == (0.5, 0.5, 0.5)
    assert weights.published_preprocessing("fcn32s_googlenet_2014", "imagenet") is None


def test_a_name_tells_the_trunk() -> None:
    trunks = {name: weights._trunk(name) for name in models.names("segmentation")}
    assert trunks["fcn16s_vgg16"] == "vgg16"
    assert trunks["fcn32s_alexnet_2012"] == "alexnet_2012"
    assert trunks["fcn_resnet101"] == "resnet101"
    assert trunks["fcn_small"] is None
    assert weights._trunk("resnet50_v1") is None
