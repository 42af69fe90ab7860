"""A network that is run many times with one parameter changed: only from its layer on.

What comes before gives the same as in the first pass, so it is remembered there, layer by layer,
and given again. On average this halves the work.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Replay:
    """Makes ``network``, for good, one that can remember a pass and replay its beginning.

    Layers are the modules without others in them. Of one that gives more than a tensor nothing is
    remembered: it runs each time, and gives the same.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parameters = dict(network.named_parameters())
        self.layers = [m for m in network.modules() if next(m.children(), None) is None]
        self.calls: list[tuple[nn.Module, Tensor | None, Tensor]] = []
        """Of the remembered pass: the layer, what it gave, and the random generator's state."""
        self.begins: dict[str, int] = {}
        self.at, self.until, self.remember = 0, 0, False
        self.inside = False
        """Whether a layer is running."""
        for layer in self.layers:
            # Its own attribute stands before its class's method.
            layer.forward = functools.partial(self._call, layer, layer.forward)

    @property
    def place(self) -> tuple[int, bool]:
        """Where in the pass it is, whether or not what came before was replayed."""
        return self.at, self.inside

    @contextlib.contextmanager
    def remembering(self) -> Iterator[None]:
        """The pass that is run in this context is the one to replay."""
        self.calls, self.begins = [], {}
        self.at, self.until, self.remember = 0, 0, True
        try:
            yield
        finally:
            self.remember = False

    @contextlib.contextmanager
    def replaying(self, changed: str) -> Iterator[None]:
        """In this context the layers before the first that has the parameter give what they gave.

        A parameter that is no layer's own, or of a layer that was not called, is taken to be used
        from the start on.
        """
        if changed not in self.begins:
            self.begins[changed] = self._first(changed)
        self.at, self.until = 0, self.begins[changed]
        try:
            yield
        finally:
            self.until = 0

    def _first(self, name: str) -> int:
        """The number of the first call that may use the parameter."""
        parameter = self.parameters[name]
        owners = [layer for layer in self.layers if any(p is parameter for p in layer.parameters())]
        calls = (i for i, (layer, _, _) in enumerate(self.calls) if layer in owners)
        return next(calls, 0)

    def _call(self, layer: nn.Module, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        i, self.at = self.at, self.at + 1
        if i < self.until and (given := self.calls[i][1]) is not None:
            return given.clone()  # whoever comes next may change it in place
        if i == self.until > 0:
            torch.set_rng_state(self.calls[i][2])  # layers that were left out may have drawn
        state = torch.get_rng_state() if self.remember else None
        self.inside = True
        try:
            out = forward(*args, **named)
        finally:
            self.inside = False
        if state is None:
            return out
        kept = out.clone() if isinstance(out, Tensor) else None
        self.calls.append((layer, kept, state))
        return out


def replayed(loss: Callable[[], Tensor], replay: Replay) -> Callable[[str | None], Tensor]:
    """``loss``, which runs the network once, as one that hears which parameter alone has changed
    since its first call without gradients (None: none) and begins there.

    For each parameter the first loss is computed in both ways; where they differ, since it is used
    in some hidden way before its layer, the whole network is run each time.
    """
    agree: dict[str, bool] = {}

    def again(changed: str | None) -> Tensor:
        if changed is None:
            if torch.is_grad_enabled():
                replay.at = 0
                return loss()
            with replay.remembering():
                return loss()
        if not agree.get(changed, True):
            replay.at = 0
            return loss()
        with replay.replaying(changed):
            out = loss()
        if changed not in agree:
            replay.at = 0
            whole = loss()
            agree[changed] = bool(out == whole)
            return whole
        return out

    return again
