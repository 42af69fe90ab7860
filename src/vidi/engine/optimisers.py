"""Parameter groups and optimisers: PyTorch's own, fused, and Muon."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from vidi.engine.muon import Muon
from vidi.errors import InputError
from vidi.models.members import members_of
from vidi.recipe import Optimiser


def all_groups(
    network: nn.Module, recipe: Optimiser, lr: float, is_head: Callable[[str], bool]
) -> list[dict[str, Any]]:
    """Those of :func:`groups`, of each member of an ensemble."""
    found = []
    for start, member in members_of(network):

        def of_head(name: str, start: str = start) -> bool:
            return is_head(start + name)

        found += groups(member, recipe, lr, of_head)
    return found


def groups(
    model: nn.Module, recipe: Optimiser, lr: float, is_head: Callable[[str], bool]
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: (head or trunk) × (decayed or not) × (matrix or not).

    Biases and normalisation parameters, which are the ones with fewer than two dimensions, are
    not decayed unless the recipe says so: pulling a norm's scale to zero regularises nothing.
    Each group's ``"highest_lr"`` is what the schedule multiplies. ``"matrix"``: what Muon moves as
    such: all weights but those of the output layer, the last one. Raises :class:`InputError` for
    ``rates`` of a part that the network does not have.
    """
    assert recipe.trunk_lr != "auto" and recipe.weight_decay != "auto"
    found: dict[tuple[bool, bool, bool, float], list[nn.Parameter]] = {}
    for part, factor in recipe.rates:
        if not 0 <= factor < math.inf:
            raise InputError(f"--optimiser.rates gives {part} {factor:g}; 0 or more is expected.")
        if not any(_within(name, part) for name, _ in model.named_parameters()):
            top = [name for name, child in model.named_children() if list(child.parameters())]
            raise InputError(
                f"--optimiser.rates names {part!r}, and this network has no parameters under that "
                f"name. Its parts are {', '.join(top)}."
            )
    hidden = set(matrices(model)) if recipe.name == "muon" else set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim >= 2 or recipe.decay_biases_and_norms
            kind = (is_head(name), decayed, name in hidden, _factor(name, recipe))
            found.setdefault(kind, []).append(parameter)
    return [
        {
            "params": parameters,
            "highest_lr": lr * factor if head else lr * recipe.trunk_lr * factor,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "matrix": matrix,
        }
        for (head, decayed, matrix, factor), parameters in found.items()
    ]


def _factor(name: str, recipe: Optimiser) -> float:
    """Of the parts that a parameter belongs to, the last one's rate counts."""
    found = 1.0
    for part, factor in recipe.rates:
        if _within(name, part):
            found = factor
    return found


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the hidden layers: all of two dimensions or more but those of the output.

    The output's are those under the names that the network states as its ``heads``; of one that
    states none, the last one, and others that give or move the same classes: fully connected or
    1×1 layers to as many (an FCN has one for each resolution), and layers from as many to as many
    (its upsampling).
    """
    weights = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    if not weights:
        return {}
    heads = getattr(model, "heads", ())
    if heads:
        return {name: p for name, p in weights.items() if not name.startswith(heads)}
    classes = next(reversed(weights.values())).shape[0]

    def scores(p: nn.Parameter) -> bool:
        return p.shape[0] == classes and (p[0, 0].numel() == 1 or p.shape[1] == classes)

    last = next(reversed(weights))
    return {name: p for name, p in weights.items() if name != last and not scores(p)}


def make(groups: Iterable[dict[str, Any]], recipe: Optimiser, lr: float) -> torch.optim.Optimizer:
    """SGD with momentum in PyTorch's form (``v = αv + g; θ -= ηv``), AdamW, or Muon."""
    assert recipe.momentum != "auto"
    groups = list(groups)
    device = groups[0]["params"][0].device.type
    fused = device in ("cpu", "cuda")
    if recipe.name == "adamw":
        betas = (recipe.momentum, recipe.beta2)
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    if recipe.name == "muon":
        return Muon(groups, lr, recipe.momentum)
    nesterov = bool(recipe.nesterov) and recipe.momentum > 0
    return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=nesterov, fused=fused)


def set_rate(optimiser: torch.optim.Optimizer, relative: float) -> None:
    """Set each group's rate to ``relative`` of its highest."""
    for group in optimiser.param_groups:
        group["lr"] = group["highest_lr"] * relative


def tensors(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """The optimiser's state (momentum and the like) under ``<parameter's name>/<key>``."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def restore(
    optimiser: torch.optim.Optimizer, model: nn.Module, saved: dict[str, torch.Tensor]
) -> None:
    """Put back what :func:`tensors` gave."""
    parameters = dict(model.named_parameters())
    for name, value in saved.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        # A step counter stays on the CPU in the layout torch gave it; the rest lies as its weight.
        moved = value.clone()
        if value.shape == parameter.shape and value.ndim:
            moved = torch.empty_like(parameter).copy_(value)
        elif optimiser.defaults.get("fused"):
            moved = moved.to(parameter.device)
        optimiser.state[parameter][key] = moved
