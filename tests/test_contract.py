"""What holds for every network and its task, found by walking the packages."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from vidi import models, recipes, tasks
from vidi.models import count
from vidi.ops.regions import regions_of
from vidi.recipe import Recipe, check
from vidi.types import Batch

CLASSES = tuple("abcdefg")
SMALL = {
    "perceptron": 28,
    "mlp": 28,
    "resnet20": 16,
    "plain20": 16,
    "resnet18": 32,
    "vgg11": 32,
    "fcn_small": 33,
    "fcn_resnet18": 40,
    "hed_small": 33,
    "flownet_small": 32,
    "fast_rcnn_small": 48,
    "fast_rcnn_resnet18": 48,
    "rcnn_small": 48,
    "faster_rcnn_small": 48,
    "faster_rcnn_resnet18_fpn": 48,
}
"""Run for real, at this size; all networks are run on the meta device, at their own."""


def batch(image: torch.Tensor, task: str) -> Batch:
    n, _, height, width = image.shape
    label = torch.arange(n, device=image.device) % len(CLASSES)
    if task == "segmentation":
        # Every class and pixels to ignore, in a pattern that differs from image to image.
        pixels = torch.arange(height * width, device=image.device).view(height, width)
        mask = (pixels + label.view(-1, 1, 1)) % (len(CLASSES) + 1)
        truth = {"mask": torch.where(mask == len(CLASSES), 255, mask).to(torch.uint8)}
    elif task == "boundaries":
        # A seventh of the pixels are on a boundary, others in each image, and a seventh ignored.
        pixels = torch.arange(height * width, device=image.device).view(height, width)
        value = (pixels + label.view(-1, 1, 1)) % 7
        truth = {"edges": torch.where(value == 6, 255, value == 0).to(torch.uint8)}
    elif task == "flow":
        # Each image moves its own way, by about 1.95 · 20 pixels, which a fresh network is off by.
        way = torch.stack((27.0 + label, 27.0 - label), 1).view(-1, 1, 1, 2)
        known = torch.ones((n, height, width), dtype=torch.bool, device=image.device)
        truth = {"flow": way.expand(-1, height, width, 2), "known": known}
    elif task == "detection":
        # Four regions an image: background, two objects, and one that counts for nothing.
        kinds = torch.tensor([0, 0, 1, -1], device=image.device)
        labels = torch.where(kinds > 0, 1 + label.view(-1, 1), kinds)
        corners = torch.tensor(
            [[0, 0, 0.5, 0.9], [0.1, 0, 1, 1], [0.3, 0.3, 0.8, 0.7], [0, 0, 1, 1]]
        )
        regions = corners.to(image.device) * height
        truth = {
            "labels": labels,
            "regions": regions.expand(n, 4, 4),
            "deltas": torch.zeros((n, 4, 4), device=image.device),
            "proposals": regions.expand(n, 4, 4),
            # Who proposes the regions itself meets the truth: two objects an image.
            "boxes": regions[1:3].expand(n, 2, 4),
            "classes": label.view(-1, 1).expand(n, 2),
            "kinds": torch.zeros((n, 2), dtype=torch.uint8, device=image.device),
            "size": torch.tensor([[height, width]] * n, device=image.device),
            "seed": label,
        }
    else:
        truth = {"label": label}
    valid = torch.ones(n, dtype=torch.bool, device=image.device)
    frames = {"image": image} | ({"image2": image.flip(3)} if task == "flow" else {})
    return Batch(
        inputs=frames,
        targets={**truth, "valid": valid},
        keys=[str(i) for i in range(n)],
        ids=np.arange(n),
        matrices=np.tile(np.eye(3), (n, 1, 1)),
        sizes=np.tile([height, width], (n, 1)),
        valid=np.ones(n, bool),
    )


def build(name: str, image_size: int) -> Any:
    builder: Any = models.find(name)
    sized = {"image_size": image_size} if name in ("perceptron", "mlp") else {}
    if "num_classes" in inspect.signature(builder).parameters:
        sized["num_classes"] = len(CLASSES)
    return builder(**sized)


def task_of(network: Any) -> tuple[str, Any]:
    name = getattr(network, "task", "classification")
    more = {"proposes": True} if getattr(network, "proposes", False) else {}
    return name, tasks.find(name).Task(classes=CLASSES, **more)


def mean_loss(task: Any, network: Any, made: Batch) -> torch.Tensor:
    weights = task.weights(made)
    parts = [value / weights[key] for key, value in task.losses(network, made).items()]
    return torch.stack(parts).sum()


@pytest.mark.parametrize("name", models.names())
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    """On the meta device, where the largest network takes no memory and no time."""
    with torch.device("meta"):
        network = build(name, 28).train()
        size = getattr(network, "image_size", 28)
        kind, task = task_of(network)
        made = batch(torch.empty(2, 3, size, size), kind)
        if getattr(network, "proposes", False):
            # What it proposes hangs on values, which meta tensors do not have: it is told.
            outputs = network(made.inputs["image"], regions_of(list(made.targets["regions"])))
            parts = [*outputs[:2], *outputs.anchored[:2]]
            torch.stack([part.mean() for part in parts]).sum().backward()
        else:
            mean_loss(task, network, made).backward()
    without = [k for k, p in network.named_parameters() if p.grad is None and p.requires_grad]
    assert without == []
    fixed = [k for k, p in network.named_parameters() if not p.requires_grad]
    # FCN's last upsampling is not learned, and R-CNN's last stages are fitted when it is trained.
    assert all(k.startswith(("upscore", "svm", "boxes")) for k in fixed)


@pytest.mark.parametrize("name", SMALL)
def test_loss_is_finite_and_near_log_k(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, SMALL[name]).train()
    kind, task = task_of(network)
    made = batch(torch.randn(14, 3, SMALL[name], SMALL[name]), kind)
    loss = mean_loss(task, network, made)
    # A fresh network knows nothing: the loss is log 7 = 1.95, give or take its initial spread;
    # of five boundary maps, 5 log 2 = 3.47.
    assert 1.5 < float(loss.detach()) < 4


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_batch_equals_its_singles(name: str, channels_last: bool) -> None:
    torch.manual_seed(0)
    network = build(name, SMALL[name]).eval()
    image = torch.randn(4, 3, SMALL[name], SMALL[name])
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
    kind, task = task_of(network)
    with torch.no_grad():
        for parameter in network.parameters():  # score layers begin at zero, and all is equal then
            if not parameter.any():
                parameter.normal_(std=0.1)
        whole = task.predict(network, batch(image, kind))
        singles = [task.predict(network, batch(image[i : i + 1], kind))[0] for i in range(4)]
    for together, alone in zip(whole, singles, strict=True):
        if kind == "segmentation":
            # Rounding may decide between two classes whose scores are nearly the same.
            assert (together.mask != alone.mask).mean() < 0.005
            assert len(np.unique(together.mask)) > 1
        elif kind == "boundaries":
            assert np.allclose(together.soft, alone.soft, atol=1e-4)
            assert together.soft.std() > 0.01
        elif kind == "detection":
            assert len(together) == len(alone) > 0
            order = [np.lexsort((found.xyxy[:, 0], found.labels)) for found in (together, alone)]
            assert np.allclose(together.scores[order[0]], alone.scores[order[1]], atol=1e-4)
            assert np.allclose(together.xyxy[order[0]], alone.xyxy[order[1]], atol=1e-2)
        elif kind == "flow":
            assert np.allclose(together.flow, alone.flow, atol=1e-3)
            assert together.flow.std() > 0.1
        else:
            a, b = together.log_probabilities, alone.log_probabilities
            assert np.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("name", recipes.names())
def test_every_named_recipe_is_valid_and_says_what_it_reaches(name: str) -> None:
    recipe = recipes.find(name)()
    assert isinstance(recipe, Recipe)
    check(recipe)
    models.find(recipe.model)
    said = recipes.find(name).__doc__ or ""
    assert "vidi train" in said and "%" in said


@pytest.mark.parametrize("name", models.names())
def test_every_network_says_where_it_comes_from(name: str) -> None:
    with torch.device("meta"):
        network = build(name, 28)
    assert len(network.source) > 10 and any(c.isdigit() for c in network.source)
    assert count.parameters(network) > 0
