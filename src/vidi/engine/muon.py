"""Muon: momentum whose direction is made orthogonal, so that every direction of a layer learns.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the update is the
nearest semi-orthogonal matrix to the momentum, by five Newton–Schulz steps. A gradient matrix has a
few large singular values and many small ones; plain SGD moves along the few, Muon equally along
all. PyTorch's own ``torch.optim.Muon`` takes matrices only, and leaves everything else to a second
optimiser; this one takes convolutions too, each as the matrix [out, in·h·w], and moves what is no
matrix by SGD, so that a run has one optimiser and one state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

STEPS = 5
COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of Jordan et al.: the quintic whose iterations take singular values in (0, 1] into about
[0.7, 1.2] fastest. Nearer to 1 they would train no better."""
OTHERS = 10.0
"""Rate of what SGD moves (biases, norms, head), relative to the matrices' rate."""
SGD_MOMENTUM = 0.9
SGD_DECAY = 5e-4
"""What matrices take, which keep the size of their steps whatever is added to a gradient, would
drown what the others have to learn."""


class Muon(torch.optim.Optimizer):
    """Groups with ``"matrix": True`` by Muon, the others by SGD with Nesterov's momentum.

    Matrices: ``v = μv + g; θ = (1 - ηλ)θ - η √max(1, rows/columns) · orthogonal(g + μv)``, with
    decoupled weight decay λ. Others: PyTorch's SGD, at :data:`OTHERS` times the group's rate, and
    of λ at most :data:`SGD_DECAY`, which is added to their gradients.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            move = _by_matrix if group["matrix"] else _by_sgd
            move([p for p in group["params"] if p.grad is not None], self.state, group)


def work(parameters: Iterable[Tensor]) -> float:
    """Multiply-adds of making all their updates orthogonal once."""
    total = 0.0
    for p in parameters:
        m, n = sorted((p.shape[0], p.numel() // p.shape[0]))
        total += 2.0 * m * m * n + (4 * STEPS - 3) * m**3
    return total


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Of each matrix, [M, N], about the nearest semi-orthogonal one of the same shape.

    A step is x ← p(xxᵀ) x with the quadratic p = a + bs + cs². All its matrices are polynomials of
    the first xxᵀ and commute, so the steps are taken on that square, whose side is the shorter one,
    and x itself is multiplied once, by their product. Squares of one size, which are small, take
    their steps together.
    """
    wide: list[Tensor] = [m.T if m.shape[0] > m.shape[1] else m for m in matrices]
    wide = [x / (x.norm() + 1e-7) for x in wide]  # the largest singular value is then at most 1
    alike: dict[tuple[int, torch.device, torch.dtype], list[int]] = defaultdict(list)
    for i, x in enumerate(wide):
        alike[len(x), x.device, x.dtype].append(i)
    for rows in alike.values():
        product = _steps(torch.stack([wide[i] @ wide[i].T for i in rows]))
        for i, steps in zip(rows, product, strict=True):
            wide[i] = steps @ wide[i]
    return [x.T if len(x) != len(m) else x for x, m in zip(wide, matrices, strict=True)]


def _steps(squares: Tensor) -> Tensor:
    """The product of all steps, of each of the squares [K, M, M]."""
    a, b, c = COEFFICIENTS
    steps: Tensor | None = None
    for k in range(STEPS):
        step = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
        step.diagonal(dim1=1, dim2=2).add_(a)
        steps = step if steps is None else step @ steps
        if k < STEPS - 1:
            squares = step @ squares @ step
    assert steps is not None
    return steps


def _momentum(gradient: Tensor, state: dict[str, Any], momentum: float) -> Tensor:
    """The gradient plus what is carried on from those before it (Nesterov's form)."""
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(gradient)
    buffer: Tensor = state["momentum_buffer"]
    buffer.mul_(momentum).add_(gradient)
    return gradient.add(buffer, alpha=momentum)


def _by_matrix(parameters: list[Tensor], state: dict[Tensor, Any], group: dict[str, Any]) -> None:
    updates = orthogonal(
        [_momentum(_gradient(p), state[p], group["momentum"]).flatten(1) for p in parameters]
    )
    for parameter, update in zip(parameters, updates, strict=True):
        rows, columns = update.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(
            update.reshape(parameter.shape), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5
        )


def _by_sgd(parameters: list[Tensor], state: dict[Tensor, Any], group: dict[str, Any]) -> None:
    decay = min(group["weight_decay"], SGD_DECAY)
    for parameter in parameters:
        gradient = _gradient(parameter)
        if decay:
            gradient = gradient.add(parameter, alpha=decay)
        direction = _momentum(gradient, state[parameter], SGD_MOMENTUM)
        parameter.add_(direction, alpha=-OTHERS * group["lr"])


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
