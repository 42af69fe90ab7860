"""A run's network as it was before its first step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vidi.engine import device
from vidi.engine.prepare import Prepared, build
from vidi.models.members import members_of
from vidi.models.weights import freeze, frozen_modules, load_weights


def fresh(made: Prepared, network: Any = None) -> tuple[nn.Module, Callable[[nn.Module], None]]:
    """(the network, built anew with the run's seed; what puts it into training's mode).

    It begins with the recipe's weights, if it has some, and has frozen what the run froze.
    Anchors, the statistics of deltas and other figures that are no batch statistics are those of
    ``made.model``. ``network``: the user's own, as for training, if it was given from Python; a
    module, not what builds one, keeps the weights that it has, and is copied.

    Raises :class:`InputError` where such a one is not handed over again.
    """
    recipe, classes = made.description.recipe, made.description.classes
    if isinstance(network, nn.Module):
        network = copy.deepcopy(network)
    cuda = [made.compute.device] if made.compute.device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.manual_seed(recipe.seed)
        model = build(recipe, network, len(classes))
        if recipe.weights is not None:
            for _, member in members_of(model):
                load_weights(
                    member,
                    recipe.weights,
                    model_name=recipe.model,
                    num_classes=max(1, len(classes)),
                )
    statistics = {
        f"{name}.{buffer}" if name else buffer
        for name, module in made.model.named_modules()
        if hasattr(module, "running_mean")
        for buffer, _ in module.named_buffers(recurse=False)
    }
    new = dict(model.named_buffers())
    for name, buffer in made.model.named_buffers():
        if name in new and name not in statistics:
            new[name].data = buffer.detach().clone()
    if recipe.freeze and recipe.freeze != ("none",):
        for _, member in members_of(model):
            freeze(member, recipe.freeze)
    model = device.for_training(model, made.compute.device, recipe)
    frozen = frozen_modules(model)

    def train_mode(module: nn.Module) -> None:
        module.train()
        for one in frozen:
            one.eval()

    return model, train_mode
