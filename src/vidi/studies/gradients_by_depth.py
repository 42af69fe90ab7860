"""Gradients by depth: they vanish or explode in plain nets, and hardly change in residual ones.

Backwards through a layer, a gradient is multiplied by its weights and by the slope of its
activation. Whatever factor that is on average, a hundred layers raise it to the hundredth power:
below one, the first layers learn nothing; above, the first step throws the network away. The
sigmoid's slope is at most 1/4. With ReLU all hangs on the scale of the weights, and He's
initialisation makes the factor one. Batch normalisation after each convolution brings back a factor
of √(π/(π − 1)) = 1.21 a layer: what reaches the first of 56 layers is thousands of times what the
last has. A residual unit passes the gradient on as it is and adds to it, so depth does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.models.cifar_resnets import CifarResNet, cifar_plain, cifar_resnet
from vidi.studies import Measured, Study, Table
from vidi.studies._sheet import BLUE, GREEN, GREY, ORANGE, RED, sheet
from vidi.types import Array

CLAIM = 13

NORMALISED = math.sqrt(math.pi / (math.pi - 1))
"""A gradient's growth per layer of batch normalisation and ReLU, in a wide network (Yang et al.
2019, "A mean field theory of batch normalization", section 4)."""
OF_THEORY = 0.03
"""A fully connected net's factor per layer may be so far from theory's, relatively."""
OF_WIDE_THEORY = 0.04
"""The convolutional net's, whose layers have 16 channels where the theory has infinitely many."""
DEEP_PLAIN, DEEP_RESIDUAL = 300.0, 30.0
"""First layer's gradient over the last's: at least, and at most."""


@dataclass(frozen=True)
class Kind:
    """A fully connected network without normalisation, and its activation."""

    name: str
    activation: Callable[[Tensor], Tensor]
    gain: float
    """Weights are drawn with variance gain² / inputs."""
    centre: float
    """Taken off the activation, so that no common part adds up from layer to layer."""
    expected: str
    colour: str


KINDS = (
    Kind("sigmoid", torch.sigmoid, 1.0, 0.5, "vanishes", RED),
    Kind("ReLU, variance 1/n", torch.relu, 1.0, 0.0, "vanishes", ORANGE),
    Kind("ReLU, 2/n (He)", torch.relu, math.sqrt(2), 0.0, "stays", GREEN),
    Kind("ReLU, 3/n", torch.relu, math.sqrt(3), 0.0, "explodes", BLUE),
)


def predicted(kind: Kind, depth: int) -> Array:
    """The gradient's factor per layer, backwards, at each of ``depth`` layers' inputs, by theory.

    With many units the sums z are normal, of variance q. Forwards q becomes gain² E[a(z)²],
    backwards a squared gradient is multiplied by gain² E[a'(z)²] (Poole et al. 2016).
    """
    # Midpoints, none of them at ReLU's kink.
    points = np.linspace(-10, 10, 20001)[:-1] + 0.0005
    weights = np.exp(-(points**2) / 2)
    weights /= weights.sum()
    q, factors = kind.gain**2, []
    for _ in range(depth):
        z = torch.tensor(points * math.sqrt(q), requires_grad=True)
        a = kind.activation(z)
        (slope,) = torch.autograd.grad(a.sum(), z)
        a, slope = a.detach() - kind.centre, slope.detach()
        factors.append(kind.gain * math.sqrt(float(weights @ slope.numpy() ** 2)))
        q = kind.gain**2 * float(weights @ a.numpy() ** 2)
    return np.array(factors)


def through(kind: Kind, *, depth: int, width: int, nets: int) -> Array:
    """Norms of the gradient with respect to the sums of each of ``depth`` + 1 layers, the last
    layer's being 1: geometric means over ``nets`` random networks of ``width`` units, float64."""
    norms = []
    for _ in range(nets):
        z = kind.gain * torch.randn(64, width, dtype=torch.float64)
        z.requires_grad_()
        sums = [z]
        for _ in range(depth):
            matrix = torch.randn(width, width, dtype=torch.float64) * kind.gain / math.sqrt(width)
            sums.append((kind.activation(sums[-1]) - kind.centre) @ matrix)
        # A random direction backwards, in place of a loss.
        gradients = torch.autograd.grad(sums[-1], sums, torch.randn_like(sums[-1]))
        norms.append([float(gradient.norm()) for gradient in gradients])
    found = np.exp(np.log(norms).mean(0))
    relative: Array = found / found[-1]
    return relative


def of_network(net: CifarResNet, *, side: int, seeds: int) -> Array:
    """Gradient norms of the 3 × 3 convolutions' weights from first to last, of the loss of a batch
    of noise with random labels, in training mode: geometric means over initialisations."""
    norms = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        x, labels = torch.randn(32, 3, side, side), torch.randint(10, (32,))
        loss = F.cross_entropy(net.train()(x), labels)
        weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]
        norms.append([float(g.norm()) for g in torch.autograd.grad(loss, weights)])
    found: Array = np.exp(np.log(norms).mean(0))
    return found


def per_layer(norms: Array) -> float:
    """The factor from a layer to the one before it, by a line through the logarithms."""
    slope: float = np.polyfit(np.arange(len(norms)), np.log(norms), 1)[0]
    return math.exp(-slope)


def first_stage(norms: Array) -> Array:
    """Of the convolutions that have one shape: all at full resolution but the image's own."""
    return norms[1 : 1 + (len(norms) - 1) // 3]


def run(*, small: bool = False, full: bool = False, folder: Path | None = None) -> Study:
    """Gradient norms at initialisation. ``small``: fewer networks, narrower, less deep. ``full``
    and ``folder`` change nothing."""
    depth, width, nets = (8, 160, 4) if small else (24, 400, 4)
    depths, side, seeds = ((20, 56), 8, 1) if small else ((20, 56, 110), 16, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fully = {kind.name: through(kind, depth=depth, width=width, nets=nets) for kind in KINDS}
        plain = {d: of_network(cifar_plain(d), side=side, seeds=seeds) for d in depths}
        residual = {d: of_network(cifar_resnet(d), side=side, seeds=seeds) for d in depths}
    theory = {kind.name: predicted(kind, depth) for kind in KINDS}
    measured = []
    for kind in KINDS:
        factor = (fully[kind.name][0] / fully[kind.name][-1]) ** (1 / depth)
        wanted = float(np.exp(np.log(theory[kind.name]).mean()))
        measured.append(
            Measured(
                f"{kind.name}: gradient's factor per layer, backwards",
                factor,
                f"{wanted:.4f} by theory ({kind.expected}), within {OF_THEORY:.0%}",
                abs(factor / wanted - 1) <= OF_THEORY,
            )
        )
    tolerance = 2 * OF_WIDE_THEORY if small else OF_WIDE_THEORY
    deep = 56
    growth = per_layer(first_stage(plain[deep]))
    measured.append(
        Measured(
            f"plain-{deep} with batch normalisation: factor per layer in its first stage",
            growth,
            f"{NORMALISED:.4f} by theory, within {tolerance:.0%}",
            abs(growth / NORMALISED - 1) <= tolerance,
        )
    )
    for name, nets_, least, most in (
        ("plain", plain, DEEP_PLAIN, math.inf),
        ("resnet", residual, 0.0, DEEP_RESIDUAL),
    ):
        # The image's own convolution has another shape.
        ratio = nets_[deep][1] / nets_[deep][-1]
        bound = f"at least {least:g}" if math.isinf(most) else f"at most {most:g}"
        measured.append(
            Measured(
                f"{name}-{deep}: first gradient norm over the last", ratio, bound,
                least <= ratio <= most,
            )
        )  # fmt: skip
    rows = [
        (f"{name}-{d}", float(norms[1]), float(norms[-1]), float(norms[1] / norms[-1]),
         per_layer(first_stage(norms)))
        for name, nets_ in (("plain", plain), ("resnet", residual))
        for d, norms in nets_.items()
    ]  # fmt: skip
    return Study(
        measured=tuple(measured),
        pictures=(
            (
                "Gradient norms by layer at initialisation: CIFAR's networks, and fully connected "
                "ones with theory's lines",
                lambda path: _draw(path, plain, residual, fully, theory),
            ),
        ),
        tables=(
            Table(
                "Gradient norms of the 3 × 3 convolutions at initialisation",
                ("network", "first", "last", "first / last", "factor per layer"),
                tuple(rows),
            ),
        ),
    )


def _draw(
    path: Path,
    plain: dict[int, Array],
    residual: dict[int, Array],
    fully: dict[str, Array],
    theory: dict[str, Array],
) -> None:
    shades = (0.45, 0.7, 1.0)
    with sheet(path, 11, 4.2, columns=2) as (left, right):
        for nets, colour, name in ((plain, ORANGE, "plain"), (residual, BLUE, "resnet")):
            for (depth, norms), alpha in zip(nets.items(), shades[-len(nets) :], strict=True):
                left.plot(
                    np.arange(1, len(norms)),
                    norms[1:],
                    color=colour,
                    alpha=alpha,
                    label=f"{name}-{depth}",
                )
        left.set_yscale("log")
        left.set(
            title="CIFAR's networks, batch-normalised",
            xlabel="convolution, from the image on",
            ylabel="norm of the weights' gradient",
        )
        left.legend(ncol=2)
        for kind in KINDS:
            norms = fully[kind.name]
            line = np.append(np.cumprod(theory[kind.name][::-1])[::-1], 1)
            layers = np.arange(1, len(norms) + 1)
            right.plot(layers, norms, "o", color=kind.colour, markersize=4, label=kind.name)
            right.plot(layers, line, "--", color=GREY, linewidth=1, zorder=1)
        right.plot([], [], "--", color=GREY, linewidth=1, label="theory")
        right.set_yscale("log")
        right.set(
            title="fully connected, without normalisation",
            xlabel="layer",
            ylabel="norm of the gradient, last layer = 1",
        )
        right.legend()
