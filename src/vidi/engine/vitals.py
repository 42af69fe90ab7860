"""What a run's layers and parameters do while it trains, measured at few steps and written down.

``vidi doctor RUN`` reads it. Measuring changes no bit of the run: it looks at activations,
gradients and updates as they pass, and draws nothing at random.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidi.engine.run import read_rows

FILE = "vitals.jsonl"
EVERY = 100
"""Steps between two looks; twice as many each time that the run is twice as long as ``DENSE``."""
DENSE = 5000
LOOKED = 1 << 14
"""Values of a layer's output that are looked at, about."""
SAMPLES = 8
"""Of maps at least so many samples are looked at; of large ones only some rows and columns, then.
"""
UNITS = 256
"""Output units that are compared with each other."""
FEWEST = 8
"""Values of a channel by which it can be told to be dead."""

BOUNDS: dict[str, tuple[float, float]] = {
    "Sigmoid": (0.0, 1.0),
    "Hardsigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Hardtanh": (-1.0, 1.0),
    "Softsign": (-1.0, 1.0),
}


def due(step: int) -> bool:
    """Whether update number ``step`` (from 1) is looked at: 1, 2, 4 … 64, then every 100th, and in
    long runs ever fewer."""
    if step < EVERY:
        return step & (step - 1) == 0
    octaves = max(0, math.ceil(math.log2(step / DENSE)))
    return step % (EVERY << octaves) == 0


def read_vitals(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's vitals.jsonl that count; none, where it was not written.

    Each has ``step`` (1 is the first update), ``epoch``, ``loss``, ``lr`` and:

    ``losses``: the mean of each of the task's losses.
    ``input``: what the first layer with weights was given: its name, mean, deviation, range.
    ``layers``: of each layer without parts, in the order of the forward pass: the mean, deviation
    and share of zeros of what it gave (of some samples of the batch, and of large maps of rows and
    columns at equal distances); ``dead``: the share of its channels that are zero throughout these;
    ``saturated``: the share within a hundredth of a bound, where
    there are two; ``input_zero`` and ``input_dead``: of what a layer with weights was given.
    ``parameters``: the norms of each, of its gradient (before clipping; null where it got none) and
    of its update, and its ``spread``: how far its output units differ from their mean, relative to
    the norm.
    ``frozen``: those that ask for no gradient. ``norms``: batch norms, those of them that do not
    look at the batch, and the fewest values that one averages over. ``signs``: the task's own.
    Of an ensemble the losses are means over all members, and the rest is the first one's.
    """
    rows = read_rows(Path(run) / FILE)
    return [row for row in rows if row["event"] == "vitals"]


class Look:
    """One step of a network, looked at: :meth:`listening` around forward and backward pass,
    :meth:`gradients` before they are clipped, :meth:`updating` around the update."""

    def __init__(self, network: nn.Module, *, activations: bool) -> None:
        self._network = network
        self._activations = activations
        self._named = dict(network.named_parameters())
        self._seen: dict[str, dict[str, Any]] = {}
        self._input: dict[str, Any] | None = None
        self._fewest: int | None = None
        self._last: tuple[tuple[int, int], dict[str, Any]] = ((0, 0), {})
        self._norms: dict[str, list[Tensor]] = {}
        self._batch_norms = [
            (name, module)
            for name, module in network.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        self._evaluating = [name for name, module in self._batch_norms if not module.training]

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        handles = []
        if self._activations:
            for name, module in self._network.named_modules():
                if not any(True for _ in module.children()):
                    handles.append(module.register_forward_hook(self._hook(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def gradients(self) -> None:
        with_one = [n for n, p in self._named.items() if p.grad is not None]
        self._norms["gradient"] = _norms_of([self._named[n].grad for n in with_one])
        self._with_gradient = with_one

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        trained = [n for n, p in self._named.items() if p.requires_grad]
        before = [self._named[n].detach().clone() for n in trained]
        yield
        with torch.no_grad():
            self._norms["weight"] = _norms_of(before)
            self._spreads = [_spread(w) for w in before]
            torch._foreach_sub_(before, [self._named[n].detach() for n in trained])
            self._norms["update"] = _norms_of(before)
        self._trained = trained

    def row(self) -> dict[str, Any]:
        """What was seen, ready for JSON."""
        gradient = dict(zip(self._with_gradient, self._norms["gradient"], strict=True))
        columns = zip(
            self._trained, self._norms["weight"], self._norms["update"], self._spreads, strict=True
        )
        return {
            "input": _plain(self._input),
            "layers": {name: _plain(found) for name, found in self._seen.items()},
            "parameters": {
                name: _plain(
                    {
                        "weight": weight,
                        "gradient": gradient.get(name),
                        "update": update,
                        "spread": spread,
                    }
                )
                for name, weight, update, spread in columns
            },
            "frozen": [n for n, p in self._named.items() if not p.requires_grad],
            "norms": {
                "layers": len(self._batch_norms),
                "evaluating": self._evaluating,
                "fewest": self._fewest,
            },
        }

    def _hook(self, name: str) -> Any:
        @torch.no_grad()
        def hook(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if name in self._seen:  # a layer that is used twice, or a later part of the batch
                return
            came = given[0] if given and isinstance(given[0], Tensor) else None
            if came is not None and not came.numel():  # such as of regions where there are none
                return
            kind = type(module).__name__
            sides = [p.ndim for p in module.parameters(recurse=False)]
            if sides and self._input is None and came is not None:
                self._input = _of_input(name, _some(came, kind))
            norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
            if norm and came is not None:
                values = came.numel() // max(1, came.shape[1])
                self._fewest = min(values, self._fewest or values)
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            if not output.numel():
                return
            some = _some(output, kind)
            found: dict[str, Any] = {"kind": kind, **_of_output(some, kind)}
            found["saturated"] = _saturated(some, *BOUNDS[kind]) if kind in BOUNDS else None
            zero, dead = None, None
            if came is not None and max(sides, default=0) >= 2:
                before, of_before = self._last
                # What the layer before gave was looked at, unless it was changed in place since.
                if before == _identity(came) and kind != "Linear":
                    zero, dead = of_before["zero"], of_before["dead"]
                else:
                    zero, dead = _zeros(_some(came, kind), kind)
            self._seen[name] = {**found, "input_zero": zero, "input_dead": dead}
            self._last = _identity(output), found

        return hook


def _identity(values: Tensor) -> tuple[int, int]:
    """The same as long as a tensor is there and nobody writes into it."""
    return values.data_ptr(), values._version


def _some(values: Tensor, kind: str) -> Tensor:
    """What is looked at: the first samples; of maps that are large some rows and columns, at equal
    distances, rather than few samples."""
    values = values.detach()
    if values.ndim == 0:
        return values[None, None]
    per_sample = max(1, values[0].numel() if len(values) else 1)
    some = values[: max(1 if values.ndim < 3 else SAMPLES, LOOKED // per_sample)]
    if values.ndim < 3 or some.numel() <= LOOKED:
        return some
    places = [d for d in range(1, values.ndim) if d != _side(values, kind)]
    for n, d in enumerate(sorted(places, key=lambda d: values.shape[d])):
        every = math.ceil((some.numel() / LOOKED) ** (1 / (len(places) - n)))
        # From the middle of the first stretch on: the border sees padding.
        some = some[(slice(None),) * d + (slice(min(every, some.shape[d]) // 2, None, every),)]
    return some


def _side(values: Tensor, kind: str) -> int:
    """The side of the channels: the second, of sequences [B, N, C] and what is fully connected the
    last."""
    if kind in ("Linear", "LayerNorm"):
        return values.ndim - 1
    return 2 if values.ndim == 3 and kind not in ("Conv1d", "BatchNorm1d") else 1


def _of_output(some: Tensor, kind: str) -> dict[str, Any]:
    mean, std = _mean_std(some)
    zero, dead = _zeros(some, kind)
    return {"mean": mean, "std": std, "zero": zero, "dead": dead}


def _of_input(name: str, some: Tensor) -> dict[str, Any]:
    mean, std = _mean_std(some)
    return {"layer": name, "mean": mean, "std": std, "least": some.amin(), "most": some.amax()}


def _mean_std(some: Tensor) -> tuple[Tensor, Tensor]:
    """In several steps: five times as fast as ``torch.std_mean`` on the CPU."""
    some = some.float()
    mean = some.mean()
    return mean, (some - mean).norm() / math.sqrt(some.numel())


def _zeros(values: Tensor, kind: str) -> tuple[Tensor, Tensor | None]:
    """(share of zeros, share of channels that are zero throughout: None where too little of each
    was seen)."""
    if values.ndim < 2:
        return 1 - values.count_nonzero() / values.numel(), None
    side = _side(values, kind)
    filled = values.count_nonzero([d for d in range(values.ndim) if d != side])
    zero = 1 - filled.sum() / values.numel()
    if values.numel() // values.shape[side] < FEWEST:
        return zero, None
    return zero, (filled == 0).float().mean()


def _saturated(some: Tensor, low: float, high: float) -> Tensor:
    some, margin = some.float(), (high - low) / 100
    return ((some < low + margin) | (some > high - margin)).float().mean()


def _norms_of(tensors: list[Any]) -> list[Tensor]:
    return list(torch._foreach_norm(tensors)) if tensors else []


def _spread(weight: Tensor) -> Tensor | None:
    """0 where all output units have the same weights; NaN where they are zero, None for what is no
    matrix, or of one unit."""
    if weight.ndim < 2 or len(weight) < 2:
        return None
    rows = weight[:UNITS].flatten(1).float()
    spread: Tensor = (rows - rows.mean(0)).norm() / rows.norm()
    return spread


def _plain(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Numbers of five digits; NaN and infinities become null when they are written."""
    if found is None:
        return None
    out: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Tensor):
            value = float(f"{value.item():.5g}")
        out[name] = value
    return out
