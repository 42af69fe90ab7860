"""Weights from files, folders and publishers: what loads, what is refused, and what is said."""

import hashlib
import os
import pickle
import re
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from vidi import models
from vidi.errors import InputError
from vidi.models import weights
from vidi.models.weights import freeze, frozen_modules, load_weights


def network(num_classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.resnet20(num_classes)


def load(model: nn.Module, file: Path | str, num_classes: int = 4) -> weights.WeightsReport:
    return load_weights(model, str(file), model_name="resnet20", num_classes=num_classes)


def assert_same(ours: nn.Module, theirs: nn.Module, but: tuple[str, ...] = ()) -> None:
    for name, tensor in ours.state_dict().items():
        if name not in but:
            assert torch.equal(tensor, theirs.state_dict()[name]), name


def publish(folder: Path, name: str, state: dict[str, Any]) -> Path:
    """Writes a file whose name ends in its hash, as torchvision's do."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "unnamed.pth")
    digits = hashlib.sha256((folder / "unnamed.pth").read_bytes()).hexdigest()[:8]
    return (folder / "unnamed.pth").rename(folder / f"{name}-{digits}.pth")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, nn.Module]:
    """torchvision's resnet18 "published" with random weights, and torch.hub's folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    torch.manual_seed(5)
    theirs = torchvision.models.resnet18()
    path = publish(tmp_path / "hub" / "checkpoints", "resnet18", theirs.state_dict())
    member = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(member.value, "url", f"https://example.invalid/{path.name}")
    return path, theirs


# Files


@pytest.mark.parametrize("wrapping", ["", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_pth_in_its_usual_wrappings(tmp_path: Path, wrapping: str, prefix: str) -> None:
    source, model = network(seed=1), network()
    state: dict[str, Any] = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({wrapping: state, "epoch": 3} if wrapping else state, tmp_path / "x.pth")
    report = load(model, tmp_path / "x.pth")
    assert_same(model, source)
    assert report.loaded == len(state)
    assert report.replaced == ()
    assert report.preprocessing is None


def test_safetensors_and_a_runs_folder(tmp_path: Path) -> None:
    source = network(seed=1)
    save_file(source.state_dict(), tmp_path / "best.safetensors", metadata={"vidi": "{}"})
    for place in (tmp_path, tmp_path / "best.safetensors"):
        model = network()
        load(model, place)
        assert_same(model, source)


def test_a_head_for_other_classes_stays_fresh_and_that_is_said(tmp_path: Path) -> None:
    source, model, untouched = network(10, seed=1), network(4), network(4)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    report = load(model, tmp_path / "x.pth")
    head = ("fc.weight", "fc.bias")
    assert report.replaced == head
    assert_same(model, source, but=head)
    for name in head:
        assert torch.equal(model.state_dict()[name], untouched.state_dict()[name])
    assert "trained for 10 classes and this data has 4" in report.sentence
    assert "fc.weight, fc.bias start fresh" in report.sentence


def test_googlenet_replaces_three_heads_and_knows_auxiliary_ones(tmp_path: Path) -> None:
    path = tmp_path / "g.pth"
    torch.save(models.googlenet(5).state_dict(), path)

    def into(**options: Any) -> weights.WeightsReport:
        model = models.googlenet(3, **options)
        return load_weights(model, str(path), model_name="googlenet", num_classes=3)

    heads = [
        f"{layer}.{leaf}" for layer in ("aux1.fc2", "aux2.fc2", "fc") for leaf in ("weight", "bias")
    ]
    assert sorted(into().replaced) == sorted(heads)
    without = into(aux_logits=False)
    assert without.replaced == ("fc.weight", "fc.bias")
    assert without.dropped
    assert {name[:4] for name in without.dropped} == {"aux1", "aux2"}
    assert "were left out" in without.sentence
    torch.save(models.googlenet(3, aux_logits=False).state_dict(), path)
    report = into()
    assert {name[:4] for name in report.replaced} == {"aux1", "aux2"}
    assert "no auxiliary heads: aux1, aux2 start fresh" in report.sentence


def test_old_files_without_batch_counters_load(tmp_path: Path) -> None:
    source, model = network(seed=1), network()
    state = source.state_dict()
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "x.pth")
    load(model, tmp_path / "x.pth")
    assert_same(model, source)


def test_a_checkpoint_from_another_model_is_refused(tmp_path: Path) -> None:
    model, untouched = network(), network()
    torch.save(models.resnet32(4).state_dict(), tmp_path / "deeper.pth")
    with pytest.raises(
        InputError, match=r"from another model, not from resnet20: layer1\.3\.conv1"
    ):
        load(model, tmp_path / "deeper.pth")
    wide = {
        k: torch.zeros(7, *v.shape[1:]) if k == "conv1.weight" else v
        for k, v in model.state_dict().items()
    }
    torch.save(wide, tmp_path / "wide.pth")
    shapes = r"conv1\.weight has shape \[7, 3, 3, 3\], not \[16, 3, 3, 3\]"
    with pytest.raises(InputError, match=shapes):
        load(model, tmp_path / "wide.pth")
    few = dict(list(model.state_dict().items())[:3])
    torch.save(few, tmp_path / "few.pth")
    with pytest.raises(InputError, match=r"is not in the file; .* and [0-9]+ more"):
        load(model, tmp_path / "few.pth")
    assert_same(model, untouched)


def test_a_changed_width_elsewhere_is_no_head(tmp_path: Path) -> None:
    # 16 classes, as many as the trunk's first width: only the true head may differ.
    model = network(16)
    state = {
        k: torch.zeros(8, *v.shape[1:]) if k == "conv1.weight" else v
        for k, v in network(9).state_dict().items()
    }
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError, match="another model"):
        load(model, tmp_path / "x.pth", num_classes=16)


# Files that are none


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"echo > {self.mark}",)


@pytest.mark.parametrize("form", ["zip", "stream", "pickle2", "pickle5"])
def test_a_malicious_pth_does_not_run(tmp_path: Path, form: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    state: dict[str, Any] = {**network().state_dict(), "evil": Malicious(mark)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(Malicious(mark), protocol=int(form[-1])))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError) as caught:
        load(network(), path)
    assert not mark.exists()
    assert "it was not done and nothing ran" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    # The same bytes do run where they are unpickled, or this test would show nothing.
    if form.startswith("pickle"):
        pickle.loads(path.read_bytes())  # noqa: S301
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.pth", b"only text", "damaged or not a PyTorch checkpoint: neither the zip archive"),
        ("x.pth", b"", "damaged or not a PyTorch checkpoint"),
        ("x.pth", b"PK\x03\x04 and no more", "damaged or not a PyTorch checkpoint"),
        ("x.safetensors", b"only text, long enough", "damaged or no safetensors file"),
        ("x.jpg", b"\xff\xd8", "is not known as a file of weights"),
    ],
)
def test_files_that_are_no_weights(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        load(network(), tmp_path / name)


def test_a_truncated_pth_is_damaged(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"x\.pth is damaged"):
        load(network(), tmp_path / "x.pth")


def test_a_pth_without_tensors_and_places_without_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="holds no weights: expected a state_dict"):
        load(network(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"holds no weights for resnet20: looked for best\.safet"):
        load(network(), tmp_path)
    with pytest.raises(InputError, match=r"neither a file nor.*resnet20 has no published weights"):
        load(network(), "imagenet")


# Published weights


def test_imagenet_is_torchvisions_first_version(published: tuple[Path, nn.Module]) -> None:
    path, theirs = published
    for name in ("imagenet", "IMAGENET1K_V1", str(path), str(path.parent)):
        model = models.resnet18(10)
        report = load_weights(model, name, model_name="resnet18", num_classes=10)
        assert report.replaced == ("fc.weight", "fc.bias")
        assert_same(model, theirs, but=report.replaced)
        assert report.preprocessing is not None
        assert report.preprocessing.mean == (0.485, 0.456, 0.406)
        assert report.preprocessing.std == (0.229, 0.224, 0.225)
        assert (report.preprocessing.resize_size, report.preprocessing.image_size) == (256, 224)
        assert report.preprocessing.interpolation == "bilinear"
        assert report.preprocessing.categories is not None
        assert report.preprocessing.categories[1] == "goldfish"
        assert len(report.preprocessing.categories) == 1000


def test_every_shared_network_has_published_weights_and_no_other() -> None:
    having = {name for name in models.names("classification") if weights.published(name)}
    assert having == {
        "alexnet",
        "googlenet",
        *(f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")),
        *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    }
    assert weights.published("resnet50") == ("imagenet1k_v1", "imagenet1k_v2")
    dense = {name for name in models.names("segmentation") if weights.published(name)}
    assert dense == {
        *(f"fcn{stride}_vgg16" for stride in ("8s", "8s_atonce", "16s", "32s")),
        "fcn32s_alexnet",
        "fcn32s_googlenet",
        *(f"fcn_resnet{depth}" for depth in (18, 34, 50, 101)),
    }
    second = weights.published_preprocessing("resnet50", "imagenet1k_v2")
    assert second is not None
    assert second.resize_size == 232
    for name in having:
        first = weights._member(weights._members(name), "imagenet")
        assert first.name == "IMAGENET1K_V1"
        assert re.search(r"-[0-9a-f]{8}\.pth$", first.url)


def test_googlenets_preprocessing_says_what_torchvision_does_inside() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        theirs = torchvision.models.GoogLeNet(transform_input=True, init_weights=False)
    found = weights.published_preprocessing("googlenet", "imagenet")
    plain = weights.published_preprocessing("resnet18", "imagenet")
    assert found is not None
    assert plain is not None

    def normalised(how: weights.Preprocessing) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (how.mean, how.std))
        return (pixels - mean) / std

    pixels = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(normalised(found), theirs._transform_input(normalised(plain)))


def test_a_damaged_cached_file_is_refused(published: tuple[Path, nn.Module]) -> None:
    path, _ = published
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    for name in ("imagenet", str(path)):
        with pytest.raises(InputError, match=r"its SHA-256 begins with .* expected .* Delete it"):
            load_weights(models.resnet18(), name, model_name="resnet18", num_classes=1000)


def test_offline_says_what_from_where_and_what_to_do(
    published: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = published
    path.unlink()

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    with pytest.raises(InputError) as caught:
        load_weights(models.resnet18(4), "imagenet", model_name="resnet18", num_classes=4)
    said = str(caught.value)
    assert f"of resnet18 could not be downloaded from https://example.invalid/{path.name}" in said
    assert "Name or service not known" in said
    assert f"--weights PATH/{path.name}" in said
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("whole", [True, False])
def test_a_download_is_checked_and_kept(
    published: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    path, theirs = published
    away = path.rename(path.parents[2] / "away.pth")
    if not whole:
        away.write_bytes(away.read_bytes()[:-1])
    opened = torch.hub.urlopen
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: opened(away.as_uri()))
    model = models.resnet18()
    if whole:
        load_weights(model, "imagenet", model_name="resnet18", num_classes=1000)
        assert_same(model, theirs)
        assert path.is_file()
    else:
        with pytest.raises(InputError, match=r"could not be downloaded.*invalid hash value"):
            load_weights(model, "imagenet", model_name="resnet18", num_classes=1000)
        assert not path.exists()


def test_an_unknown_version_names_the_known() -> None:
    with pytest.raises(InputError, match=r"imagenet, imagenet1k_v1, imagenet1k_v2"):
        load_weights(models.resnet50(4), "imagenet1k_v9", model_name="resnet50", num_classes=4)


def test_timms_weights_and_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    create = timm.create_model
    torch.manual_seed(1)
    theirs = create("resnet10t")

    def published_here(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
        assert name == "resnet10t"
        return theirs if pretrained else create(name, **options)

    monkeypatch.setattr(timm, "create_model", published_here)
    model = models.build("timm:resnet10t", num_classes=3, image_size=64)
    report = load_weights(model, "imagenet", model_name="timm:resnet10t", num_classes=3)
    assert report.replaced == ("fc.weight", "fc.bias")
    assert_same(model, theirs, but=report.replaced)
    expected = timm.data.resolve_model_data_config(theirs)
    assert report.preprocessing is not None
    assert report.preprocessing.mean == expected["mean"]
    assert report.preprocessing.image_size == expected["input_size"][1]
    assert report.preprocessing.interpolation == expected["interpolation"]

    def unreachable(name: str, **options: Any) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        InputError, match=r"could not be downloaded .*no route to host.*give a file"
    ):
        load_weights(model, "imagenet", model_name="timm:resnet10t", num_classes=3)


# Freezing


def test_frozen_parts_do_not_train_and_their_statistics_stay() -> None:
    model = network()
    names = freeze(model, ("conv1", "bn1", "layer1", "layer2.0"))
    assert "layer1.2.bn2.weight" in names
    assert "layer2.0.conv1.weight" in names
    assert not [name for name in names if name.startswith(("layer2.1", "layer3", "fc"))]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    for module in frozen_modules(model):
        module.eval()
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.0.")
    for name, tensor in model.state_dict().items():
        same = torch.equal(tensor, before[name])
        assert same == name.startswith(frozen), name


def test_a_part_that_is_not_there_and_freezing_all() -> None:
    with pytest.raises(
        InputError, match=r"'layer9'.*parts are conv1, bn1, layer1, layer2, layer3, fc"
    ):
        freeze(network(), ("conv1", "layer9"))
    with pytest.raises(InputError, match="no parameters under that name"):
        freeze(network(), ("layer",))
    everything = ("conv1", "bn1", "layer1", "layer2", "layer3", "fc")
    with pytest.raises(InputError, match="leaves nothing to train"):
        freeze(network(), everything)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_trunk_is_a_classifier(task: str) -> None:
    """Not the shorter name of another network for the task: fast_rcnn_vgg16 ends in rcnn_vgg16."""
    for name in models.names(task):
        for end in ("vgg16", "alexnet", "googlenet", "resnet18", "resnet50"):
            if name.removesuffix("_fpn").endswith(f"_{end}"):
                assert weights.published(name)[:1] == ("imagenet1k_v1",), name
