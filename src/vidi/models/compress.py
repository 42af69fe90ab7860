"""Truncated SVD: a fully connected layer as two thin ones, for speed.

Girshick 2015, "Fast R-CNN", section 3.1: with hundreds of regions an image, nearly half of the time
goes into fc6 and fc7. A weight W of u × v is close to U Σ Vᵀ with only its t largest singular
values, so one layer becomes two without anything between them, Σ Vᵀ of t × v and U of u × t, and
u · v multiply-adds become t · (u + v). No matrix of rank t is closer to W (Eckart & Young 1936).
VGG-16's fc6 at t = 1024 and fc7 at t = 256 took 0.22 instead of 0.32 seconds an image, and 0.3
points of mean AP, without further training.

Often wrong: a layer only gets smaller where t is below u · v / (u + v): 3521 for VGG-16's fc6, 2048
for its fc7.
"""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from vidi.errors import InputError
from vidi.models.fast_rcnns import NEW, FastRCNN


def truncated_svd(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """A copy of ``model`` with the linear layers named in ``ranks`` replaced by two each.

    ``ranks``: t by name, such as ``{"classifier.0": 1024, "classifier.3": 256}`` for
    ``fast_rcnn_vgg16``. A layer from v to u numbers becomes ``nn.Sequential`` of one from v to t
    without bias and one from t to u with the bias that it had; device and dtype stay. ``model``
    itself is not changed. On the meta device the shapes alone change.

    Raises InputError if there is no linear layer of that name, or if t is not from 1 to min(u, v).
    """
    for name, rank in ranks.items():
        _check(model, name, rank)
    # Large layers are not copied only to be replaced: the copy gets the new ones in their place.
    layers = {name: model.get_submodule(name) for name in ranks}
    replaced = {
        id(layer): _two(layer, ranks[name]).train(layer.training) for name, layer in layers.items()
    }
    return copy.deepcopy(model, memo=replaced)


def connected(model: nn.Module) -> list[str]:
    """The fully connected layers of a Fast R-CNN that look at each region, in order, by name: all
    but the two that give classes and boxes. Other networks have none."""
    if not isinstance(model, FastRCNN):
        return []
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if not f"{name}.".startswith(NEW)]


def _check(model: nn.Module, name: str, rank: int) -> None:
    linear = {key: m for key, m in model.named_modules() if type(m) is nn.Linear and key}
    if name not in linear:
        known = ", ".join(f"{k} ({m.in_features} to {m.out_features})" for k, m in linear.items())
        raise InputError(
            f"Cannot compress {name!r}: the network has no linear layer of that name. "
            + (f"Its linear layers are {known}." if known else "It has no linear layer at all.")
        )
    most = min(linear[name].weight.shape)
    if not 1 <= rank <= most:
        raise InputError(
            f"The layer {name}, from {linear[name].in_features} to {linear[name].out_features} "
            f"numbers, cannot have the rank {rank}; use one from 1 to {most}."
        )


@torch.no_grad()
def _two(layer: nn.Module, rank: int) -> nn.Sequential:
    assert isinstance(layer, nn.Linear)
    weight = layer.weight
    v, u = layer.in_features, layer.out_features
    first = nn.Linear(v, rank, bias=False, device="meta", dtype=weight.dtype)
    second = nn.Linear(rank, u, bias=layer.bias is not None, device="meta", dtype=weight.dtype)
    if weight.is_meta:
        return nn.Sequential(first, second)
    # Halves and bfloat16 have no SVD.
    exact = weight if weight.dtype == torch.float64 else weight.float()
    left, values, right = torch.linalg.svd(exact, full_matrices=False)
    thin = values[:rank, None] * right[:rank]
    first.weight = nn.Parameter(thin.to(weight.dtype), weight.requires_grad)
    second.weight = nn.Parameter(left[:, :rank].to(weight.dtype).contiguous(), weight.requires_grad)
    if layer.bias is not None:
        second.bias = nn.Parameter(layer.bias.clone(), layer.bias.requires_grad)
    return nn.Sequential(first, second)
