"""Backward costs about twice forward.

Backpropagation gives the derivatives by all weights at once. A layer's products run forward once.
Backward they run twice: once to carry the gradient on to the layer's input, once to give that of
its weights. So each layer's multiply-adds double exactly, but for the first, whose input needs no
gradient. Wiggling weights one by one would take a forward pass for each of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidi.models import count
from vidi.models.cifar_resnets import resnet20
from vidi.studies import Measured, Study, Table
from vidi.studies._sheet import BLUE, GREY, ORANGE, sheet

CLAIM = 4

TIME = (1.2, 4.0)
"""Time of backward over forward: twice, give or take what memory and normalisation cost."""


@dataclass(frozen=True)
class Cost:
    """What a layer costs for one batch: multiply-adds per image, and seconds of the batch."""

    name: str
    forward: int
    backward: int
    forward_seconds: float
    backward_seconds: float


def inputs_of(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each convolution and linear layer is given, in the order in which they run."""
    given: dict[str, Tensor] = {}

    def noting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            given[name] = arguments[0].detach().clone()

        return note

    hooks = [
        module.register_forward_pre_hook(noting(name))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return given


def counted(run: Callable[[], object]) -> int:
    """Multiply-adds of all products that ``run`` computes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def layer_cost(name: str, layer: nn.Module, x: Tensor, *, first: bool, repeats: int) -> Cost:
    """The layer by itself on ``x`` [N, ...]; the ``first`` gives its input no gradient."""
    x = x.requires_grad_(not first)
    forward = counted(lambda: layer(x))
    out = layer(x)
    back = torch.ones_like(out)

    def backward() -> None:
        torch.autograd.grad(out, wanted, back, retain_graph=True)

    wanted = [*([] if first else [x]), *layer.parameters()]
    seconds = fastest([lambda: layer(x), backward], repeats)
    return Cost(name, forward // len(x), counted(backward) // len(x), *seconds)


def fastest(runs: Sequence[Callable[[], object]], repeats: int) -> tuple[float, ...]:
    """Processor seconds of each, the least of ``repeats`` rounds in which they take turns: what
    else the machine does counts for little."""
    taken = np.full((repeats, len(runs)), np.inf)
    for row in taken:
        for k, one in enumerate(runs):
            start = time.process_time()
            one()
            row[k] = time.process_time() - start
    return tuple(taken.min(0).tolist())


def whole(net: nn.Module, x: Tensor, repeats: int) -> tuple[int, int, float, float]:
    """(forward, backward multiply-adds per image, forward, backward seconds of the batch)."""
    labels = torch.zeros(len(x), dtype=torch.int64)
    wanted = list(net.parameters())
    kept: list[Tensor] = []

    def forward() -> None:
        kept[:] = [F.cross_entropy(net(x), labels)]

    def backward() -> None:
        torch.autograd.grad(kept[0], wanted)

    products = counted(forward), counted(backward)
    ahead, back = fastest([forward, backward], repeats)
    return products[0] // len(x), products[1] // len(x), ahead, back


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    """ResNet-20, layer by layer and whole. ``small``: smaller images, and times are not judged.
    ``full`` and ``folder`` change nothing."""
    side, batch, repeats = (16, 4, 1) if small else (32, 32, 10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = resnet20().train()
        x = torch.randn(batch, 3, side, side)
    given = inputs_of(net, x)
    layers = [
        layer_cost(name, net.get_submodule(name), given[name], first=k == 0, repeats=repeats)
        for k, name in enumerate(given)
    ]
    forward, backward, forward_seconds, backward_seconds = whole(net, x, repeats)
    first, *others = layers
    ratios = sorted({cost.backward / cost.forward for cost in others})
    at_first = first.backward / first.forward
    time_ratio = backward_seconds / forward_seconds
    least, most = TIME
    measured = [
        Measured(
            f"multiply-adds of backward over forward, each of {len(others)} layers after the first",
            f"{ratios[0]:g} to {ratios[-1]:g}",
            "exactly 2",
            ratios == [2.0],
        ),
        Measured(
            "the same of the first layer",
            at_first,
            "exactly 1: the image needs no gradient",
            at_first == 1,
        ),
        Measured(
            "multiply-adds of backward through the whole network",
            backward,
            f"{2 * forward - first.forward:,}: twice forward, less the first layer once",
            backward == 2 * forward - first.forward,
        ),
        Measured(
            "multiply-adds of forward",
            forward,
            f"{count.macs(net, side):,}, as the package counts them otherwise",
            forward == count.macs(net, side),
        ),
    ]
    if not small:
        measured.append(
            Measured(
                "time of backward over forward, whole network",
                time_ratio,
                f"between {least:g} and {most:g}, the least of {repeats} rounds",
                least <= time_ratio <= most,
            )
        )
    weights = count.parameters(net)
    return Study(
        measured=tuple(measured),
        pictures=(
            (
                "Backward beside forward, layer by layer: multiply-adds, and time",
                lambda path: _draw(path, layers, batch, side),
            ),
        ),
        tables=(
            Table(
                f"ResNet-20 at {side} px, a batch of {batch}",
                ("pass", "million multiply-adds an image", "processor milliseconds"),
                (
                    ("forward", forward / 1e6, 1000 * forward_seconds),
                    ("backward", backward / 1e6, 1000 * backward_seconds),
                    ("wiggling each weight once", weights * forward / 1e6,
                     weights * 1000 * forward_seconds),
                ),
            ),
        ),
        notes=(
            f"Wiggling {weights:,} weights one by one, at a forward pass each, would take "
            f"{weights * forward / (forward + backward):,.0f} times as long as both passes.",
        ),
    )  # fmt: skip


def _draw(path: Path, layers: list[Cost], batch: int, side: int) -> None:
    title = f"ResNet-20 at {side} pixels, layer by layer"
    with sheet(path, 11, 5.4, rows=2, title=title) as (products, seconds):
        at = np.arange(len(layers))
        for axes, forward, backward, unit in (
            (
                products,
                [cost.forward / 1e6 for cost in layers],
                [cost.backward / 1e6 for cost in layers],
                "million multiply-adds\nan image",
            ),
            (
                seconds,
                [1000 * cost.forward_seconds for cost in layers],
                [1000 * cost.backward_seconds for cost in layers],
                f"processor milliseconds\na batch of {batch}",
            ),
        ):
            axes.bar(at - 0.2, forward, 0.4, color=BLUE, label="forward")
            axes.bar(at + 0.2, backward, 0.4, color=ORANGE, label="backward")
            axes.plot(
                at, 2 * np.array(forward), "_", color=GREY, markersize=22, label="2 × forward"
            )
            axes.set_ylabel(unit)
            axes.grid(axis="x", visible=False)
        products.set_xticks(at, [""] * len(layers))
        seconds.set_xticks(at, [cost.name for cost in layers], rotation=60, ha="right", fontsize=8)
        products.set_ylim(0, 1.3 * max(cost.backward for cost in layers) / 1e6)
        products.legend(ncol=3, loc="upper right")
