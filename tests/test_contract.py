"""What holds for every network and its task, found by walking the packages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vidi import models, recipes, tasks
from vidi.models import count
from vidi.recipe import Recipe, check
from vidi.types import Batch

CLASSES = tuple("abcdefg")
SMALL = {"perceptron": 28, "mlp": 28, "resnet20": 16, "plain20": 16, "resnet18": 32, "vgg11": 32}
"""Run for real, at this size; all networks are run on the meta device, at their own."""


def batch(image: torch.Tensor) -> Batch:
    n = len(image)
    label = torch.arange(n, device=image.device) % len(CLASSES)
    return Batch(
        inputs={"image": image},
        targets={
            "label": label,
            "valid": torch.ones(n, dtype=torch.bool, device=image.device),
        },
        keys=[str(i) for i in range(n)],
        ids=np.arange(n),
        matrices=np.zeros((n, 3, 3)),
        sizes=np.zeros((n, 2)),
        valid=np.ones(n, bool),
    )


def build(name: str, image_size: int) -> Any:
    builder: Any = models.find(name)
    sized = {"image_size": image_size} if name in ("perceptron", "mlp") else {}
    return builder(num_classes=len(CLASSES), **sized)


@pytest.mark.parametrize("name", models.names())
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    """On the meta device, where the largest network takes no memory and no time."""
    with torch.device("meta"):
        network = build(name, 28).train()
        size = getattr(network, "image_size", 28)
        made = batch(torch.empty(2, 3, size, size))
    task = tasks.find("classification").Task(classes=CLASSES)
    loss = task.losses(network, made)["cross_entropy"] / task.weights(made)["cross_entropy"]
    loss.backward()
    without = [k for k, p in network.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("name", SMALL)
def test_loss_is_finite_and_near_log_k(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, SMALL[name]).train()
    made = batch(torch.randn(14, 3, SMALL[name], SMALL[name]))
    task = tasks.find("classification").Task(classes=CLASSES)
    loss = task.losses(network, made)["cross_entropy"] / task.weights(made)["cross_entropy"]
    # A fresh network knows nothing: the loss is log 7 = 1.95, give or take its initial spread.
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
    task = tasks.find("classification").Task(classes=CLASSES)
    with torch.no_grad():
        whole = [p.log_probabilities for p in task.predict(network, batch(image))]
        singles = [
            task.predict(network, batch(image[i : i + 1]))[0].log_probabilities for i in range(4)
        ]
    assert np.allclose(whole, singles, atol=1e-4)


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
