"""Names are addresses: ours, the user's, timm's; and what is said when there is nothing there."""

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vidi import models
from vidi.errors import InputError
from vidi.models import resnets


def test_a_name_is_the_function() -> None:
    assert models.find("resnet18") is resnets.resnet18
    assert models.resnet18 is resnets.resnet18
    assert "resnet18" in dir(models)
    assert models.names() == list(dict.fromkeys(models.names()))


def test_only_networks_are_names() -> None:
    names = models.names()
    for other in ("cifar_resnet", "cifar_plain", "stage", "load_weights", "build", "initialise"):
        assert other not in names
    with torch.device("meta"):
        for name in names:
            builder: Any = models.find(name)
            taken = inspect.signature(builder).parameters
            network = builder(num_classes=7) if "num_classes" in taken else builder()
            assert isinstance(network, nn.Module), name
            assert network.source, name
            assert network.image_size, name
            if getattr(network, "task", "classification") == "classification":
                last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
                assert last.out_features == 7, name
                continue
            if network.task == "detection":
                out = network.eval()(torch.empty(1, 3, 65, 65), torch.zeros(3, 5))
                assert out.logits.shape == (3, 1 + 7), name
                continue
            frames = 2 if network.task == "flow" else 1
            out = network.eval()(*[torch.empty(1, 3, 65, 65)] * frames)
            maps = out[0] if isinstance(out, tuple) else out
            outputs = {"segmentation": 7, "boundaries": 1, "flow": 2}[network.task]
            assert maps.shape == (1, outputs, 65, 65), name


def test_no_module_hides_a_network() -> None:
    folder = Path(models.__file__).parent
    assert not {path.stem for path in folder.glob("*.py")} & set(models.names())


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'resnet81'.*Did you mean .*resnet18"):
        models.find("resnet81")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        models.nonsense  # noqa: B018


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a user's, and the current one."""
    package = tmp_path / "my_package_of_nets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(width, num_classes))\n"
        "def deaf():\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(9))\n"
        "def looks(num_classes):\n"
        "    class Looks(nn.Module):\n"
        "        def forward(self, x):\n"
        "            return x.new_full((len(x), num_classes), float(x.sum()))\n"
        "    return Looks()\n"
        "def nothing():\n    return 3\n"
        "number = 5\n"
    )
    (package / "broken.py").write_text("import a_module_that_is_not_there\n")
    (package / "wrong.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name in [name for name in sys.modules if name.startswith("my_package_of_nets")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_users_network_is_found_in_the_current_folder(own: Path) -> None:
    network = models.build("my_package_of_nets.nets:tiny", num_classes=3, image_size=8, width=6)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert network[0].out_channels == 6


def test_a_network_that_looks_at_values_is_tried_for_real(own: Path) -> None:
    models.build("my_package_of_nets.nets:looks", num_classes=3, image_size=8)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_such_package_of_nets:f", "there is no module 'no_such_package_of_nets'.*current fold"),
        ("my_package_of_nets.net:f", r"there is no module 'my_package_of_nets\.net'"),
        ("my_package_of_nets.broken:f", "failed: No module named 'a_module_that_is_not_there'"),
        ("my_package_of_nets.wrong:f", "failed with ZeroDivisionError"),
        ("my_package_of_nets.nets:tinny", "'tinny' does not exist.*Did you mean tiny"),
        ("my_package_of_nets.nets:number", "'number' is not a function"),
        ("my_package_of_nets.nets:nothing", r"should return a torch\.nn\.Module; it gave int"),
        ("my_package_of_nets.nets:deaf", r"shape \[1, 3\]; it gave \[1, 9\]"),
    ],
)
def test_what_is_wrong_with_a_users_network(own: Path, name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        models.build(name, num_classes=3, image_size=8)


def test_options_reach_the_builder_or_are_refused() -> None:
    network = models.build("mlp", num_classes=4, image_size=8, hidden=(7,), dropout=None)
    assert network.layers[0].out_features == 7
    with pytest.raises(InputError, match=r"resnet18 does not take the option 'dropout'; it takes"):
        models.build("resnet18", num_classes=4, image_size=32, dropout=0.5)
    with pytest.raises(InputError, match=r"could not be built.*dropout probability"):
        models.build("alexnet", num_classes=4, image_size=64, dropout=1.5)


@pytest.mark.parametrize(
    ("name", "smallest"), [("alexnet", 63), ("alexnet_2012", 67), ("vgg11", 32), ("googlenet", 15)]
)
def test_an_image_too_small_is_said_with_the_smallest(name: str, smallest: int) -> None:
    with (
        torch.device("meta"),
        pytest.raises(InputError, match=rf"of 8 × 8 pixels: it needs at least {smallest}\."),
    ):
        models.build(name, num_classes=4, image_size=8)
    with torch.device("meta"):
        models.build(name, num_classes=4, image_size=smallest)


def test_an_impossible_image_size_is_refused() -> None:
    with pytest.raises(InputError, match="image size of 0 pixels is impossible"):
        models.build("resnet20", num_classes=4, image_size=0)


def test_building_leaves_training_mode_and_statistics_alone() -> None:
    network = models.build("resnet20", num_classes=4, image_size=8)
    assert all(module.training for module in network.modules())
    assert not network.bn1.running_mean.any()


def test_a_timm_network() -> None:
    timm = pytest.importorskip("timm")
    network = models.build("timm:resnet10t", num_classes=3, image_size=32, dropout=0.25)
    assert type(network) is type(timm.create_model("resnet10t"))
    assert network.drop_rate == 0.25
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert round(models.describe("timm:resnet10t").parameters / 1e6, 2) == 5.44  # timm's table
    transformer = models.build("timm:vit_tiny_patch16_224", num_classes=3, image_size=32)
    assert transformer.pos_embed.shape[1] == 1 + 4
    with pytest.raises(
        InputError, match=r"timm has no model 'resnet10x'.*Did you mean .*resnet10t"
    ):
        models.find("timm:resnet10x")
    with pytest.raises(InputError, match=r"no weights 'resnet10t\.nowhere'.*resnet10t\.c3_in1k"):
        models.find("timm:resnet10t.nowhere")
    with pytest.raises(InputError, match=r"could not be built with .*nonsense"):
        models.build("timm:resnet10t", num_classes=3, image_size=32, nonsense=1)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm, which is not installed.*vidi\[timm\]"):
        models.find("timm:resnet18")
