"""Steps that leave no trace: on a copy of the network, with the random numbers put back."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn


@contextlib.contextmanager
def rehearsal(
    model: nn.Module, train_mode: Callable[[nn.Module], None], device: torch.device
) -> Iterator[nn.Module]:
    """A copy of the network in training's mode, to do with as one likes.

    Weights, batch statistics, gradients and mode of ``model`` itself, and the states of torch's
    generators, are afterwards what they were, bit for bit.
    """
    modes = [(module, module.training) for module in model.modules()]
    # On the model itself: what is frozen in training is told by its own layers.
    train_mode(model)
    try:
        network = copy.deepcopy(model)
    finally:
        for module, training in modes:
            module.training = training
    network.zero_grad(set_to_none=True)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield network
