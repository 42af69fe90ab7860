"""One batch by heart: what is healthy can, whatever the task; what is broken cannot."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.networks import flownet
from vidi import recipe as recipes
from vidi.data.open import open_data
from vidi.doctor.fresh import fresh
from vidi.doctor.lr_range import lr_range
from vidi.doctor.overfit import Overfit, overfit_one_batch
from vidi.engine.prepare import Prepared, prepare
from vidi.models.small_faster_rcnns import faster_rcnn_small
from vidi.recipe import Recipe
from vidi.report import lr_range as lr_picture
from vidi.report import overfit as picture

CPU = torch.device("cpu")


def prepared(data: str, network: Any = None, loss: Any = None, **changes: Any) -> Prepared:
    fields: dict[str, Any] = {"device": "cpu", "precision": "fp32", "epochs": 1.0, "lr": 0.05}
    fields |= {"model": "python:net"} if network is not None else {}
    recipe = recipes.replace(Recipe(), fields | {"data": {"threads": 0}} | changes)
    return prepare(recipe, open_data(data), CPU, network=network, loss=loss)


def convolutional(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(256, num_classes),
    )


def lines(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, num_classes, 3, padding=1),
    )


def motion(num_classes: int) -> nn.Module:
    return flownet(num_classes, width=16)


def proposing(num_classes: int) -> nn.Module:
    return faster_rcnn_small(
        num_classes,
        stem=(8, 16),
        widths=(16, 16, 16, 16),
        depths=(1, 1, 1, 1),
        merged=16,
        pooled=3,
        hidden=32,
    )


HEALTHY: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "classification": ("digits", convolutional, {}),
    "segmentation": ("scenes:segmentation,size=32,n=12,val=4,test=0", None, {}),
    "boundaries": ("scenes:boundaries,size=32,n=12,val=4,test=0", lines, {}),
    "flow": ("scenes:flow,size=64,n=12,val=4,test=0", motion, {}),
    "detection": (
        "scenes:detection,size=64,n=12,val=4,test=0",
        proposing,
        {"image_size": 64, "detection": {"regions": 32, "anchors": 64}},
    ),
}


@pytest.mark.parametrize("task", HEALTHY)
def test_a_healthy_network_of_each_task_learns_a_batch(task: str) -> None:
    data, network, changes = HEALTHY[task]
    made = prepared(data, network, **changes)
    found = overfit_one_batch(made, network=network, seconds=1e9)
    assert found.learned, found.lines()
    assert found.losses[-1] < found.losses[0] / 2


def told(found: Overfit) -> str:
    return " ".join(found.lines())


class Deaf(nn.Module):
    """Does not look at its images."""

    def __init__(self) -> None:
        super().__init__()
        self.network = convolutional(10)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.network(torch.zeros_like(image))
        return out


class Cut(nn.Module):
    """Its first layers are cut off from the gradient, and give next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Conv2d(3, 4, 3)
        self.above = nn.Linear(4, 10)

    def forward(self, image: Tensor) -> Tensor:
        found = self.below(image).detach().mean((2, 3))
        out: Tensor = self.above(1e-4 * found)
        return out


def indifferent(logits: Tensor, label: Tensor) -> Tensor:
    """A loss for which every label is the same."""
    return logits.square().mean(1) + 1


def no_number(logits: Tensor, label: Tensor) -> Tensor:
    return logits.mean(1) * float("nan")


def test_a_network_that_does_not_look_cannot() -> None:
    found = overfit_one_batch(prepared("digits", lambda num_classes: Deaf()), network=Deaf())
    assert not found.learned and found.left > 0.3
    assert "cannot learn even one batch" in told(found)


def test_what_is_cut_off_is_named() -> None:
    found = overfit_one_batch(prepared("digits", lambda num_classes: Cut()), network=Cut())
    assert not found.learned
    assert found.still == ("below.weight", "below.bias")
    assert "Without a gradient: below.weight" in told(found)


def test_the_batch_is_not_the_run_s() -> None:
    """Of one image the bias can learn the class, whatever else is cut off."""

    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(10))

        def forward(self, image: Tensor) -> Tensor:
            return 0 * image.mean((1, 2, 3))[:, None] + self.bias

    made = prepared("digits", lambda num_classes: Bias(), batch_size=1)
    found = overfit_one_batch(made, network=Bias())
    assert len(found.keys) == 16 and not found.learned
    assert "16 training samples" in told(found)
    one = dataclasses.replace(found, keys=found.keys[:1])
    assert "1 training sample," in told(one)


def test_what_is_frozen_is_named() -> None:
    made = prepared("digits", convolutional, freeze=("0", "1"))
    assert overfit_one_batch(made, network=convolutional).learned, "the last layer is enough"

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = convolutional(10).requires_grad_(False)
            self.shift = nn.Parameter(torch.zeros(10))

        def forward(self, image: Tensor) -> Tensor:
            out: Tensor = self.network(image) + self.shift
            return out

    found = overfit_one_batch(prepared("digits", lambda num_classes: Fixed()), network=Fixed())
    assert not found.learned and "network.0.weight" in found.frozen
    assert "Frozen: network.0.weight" in told(found)


def test_a_loss_that_does_not_ask_for_the_labels_teaches_nothing() -> None:
    made = prepared("digits", convolutional, loss=indifferent)
    found = overfit_one_batch(made, network=convolutional)
    assert not found.perfect and not found.learned


def test_a_loss_that_is_no_number_is_told() -> None:
    made = prepared("digits", convolutional, loss=no_number)
    found = overfit_one_batch(made, network=convolutional)
    assert found.ended == "not finite" and not found.learned
    assert "not finite" in told(found)
    assert found.as_json()["losses"] == [None]


def test_the_run_is_not_touched_and_all_is_the_same_again(tmp_path: Path) -> None:
    made = prepared("digits", convolutional)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.fill_(float("nan"))  # as after a run that failed
    made.model.eval()
    before = copy.deepcopy(made.model.state_dict())
    state = torch.get_rng_state()
    batch = next(made.train.epoch(0)).inputs["image"]
    found = overfit_one_batch(made, network=convolutional)
    assert found.learned, "it begins with fresh weights"
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in made.model.state_dict().items():
        assert torch.allclose(value, before[name], equal_nan=True), name
    assert not any(module.training for module in made.model.modules())
    assert np.array_equal(next(made.train.epoch(0)).inputs["image"], batch)
    assert overfit_one_batch(made, network=convolutional).losses == found.losses
    picture.draw(found, tmp_path / "overfit.png")
    assert (tmp_path / "overfit.png").stat().st_size > 5000


def test_fresh_is_the_network_as_the_run_began_with_it() -> None:
    made = prepared("digits", convolutional, seed=3)
    new, train_mode = fresh(made, convolutional)
    for name, value in made.model.state_dict().items():
        assert torch.equal(new.state_dict()[name], value), name
    with torch.no_grad():
        next(made.model.parameters()).zero_()
    again, _ = fresh(made, convolutional)
    assert next(again.parameters()).any()
    train_mode(new)
    assert all(module.training for module in new.modules())


def test_the_rates_of_a_run_are_looked_at_from_fresh_weights(tmp_path: Path) -> None:
    made = prepared("digits", convolutional, lr=30.0, optimiser={"name": "sgd"})
    first = lr_range(made, network=convolutional)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.fill_(float("nan"))
    again = lr_range(made, network=convolutional)
    assert again.as_json()["curve"] == first.as_json()["curve"]
    assert first.sweep.suggestion is not None and first.sweep.suggestion < 3
    assert f"Try --lr {first.sweep.suggestion:g}" in first.lines()[-1], "30 is far too high"
    lr_picture.draw(first, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 5000
