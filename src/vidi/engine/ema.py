"""The exponential moving average of the weights (Polyak and Juditsky 1992)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """A copy of the network that follows it; what is evaluated and kept.

    At update t the decay is ``min(decay, (1 + t) / (10 + t))``, so that the average does not drag
    the random start along. Batch statistics are averaged like weights; counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None
        self._counters: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow the weights after update number ``step`` (from 1)."""
        if self._pairs is None:
            mine, theirs = self.model.state_dict(), model.state_dict()
            floats = [k for k in mine if mine[k].is_floating_point()]
            self._pairs = [mine[k] for k in floats], [theirs[k] for k in floats]
            self._counters = [(mine[k], theirs[k]) for k in mine if k not in floats]
        decay = min(self.decay, (1 + step) / (10 + step))
        lerp: Any = torch._foreach_lerp_
        lerp(self._pairs[0], self._pairs[1], 1 - decay)
        for mine_, theirs_ in self._counters:
            mine_.copy_(theirs_)
