"""Where a number stopped being one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def first_layer(model: nn.Module, forward: Callable[[], Any]) -> str:
    """Run ``forward`` once more and say which layer's output, input or weight is not finite first.

    A half-sentence for the message that stops a run.
    """
    for name, value in model.state_dict().items():
        if not _finite(value):
            return f"the weight {name} is itself not finite"
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if found or all(_finite(t) for t in _tensors(output)):
                return
            kind = type(module).__name__
            if all(_finite(t) for t in _tensors(inputs)):
                found.append(f"the output of {name} ({kind}) is the first that is not finite")
            else:
                found.append(f"the input of {name} ({kind}) is not finite already")

        return hook

    # Leaves only: a container's output is its last layer's, which is asked anyway.
    handles = [
        module.register_forward_hook(look(name or "the network"))
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "every layer's output is finite, so it arose in the loss itself"


def first_gradient(model: nn.Module) -> str:
    """The last layer, in the network's order, whose gradient is not finite: there it arose."""
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    if not bad:
        return "every single gradient is finite, but their norm is not"
    return f"the loss is finite, but the gradient of {bad[-1]} is not"


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from _tensors(v)
