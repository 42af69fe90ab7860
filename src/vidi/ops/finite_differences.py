"""Backpropagation's gradient against finite differences: wiggle a parameter, watch the loss.

A scalar loss f of parameter tensors. Of each tensor one random direction through all its numbers is
tried, and a few single entries: half of them at random, half where backpropagation says that most
happens. The central difference (f(θ + h u) - f(θ - h u)) / 2h is compared with backpropagation's
g · u. All in float64, where a right gradient agrees to five digits or more.

Networks have kinks: a ReLU or a maximum changes over between θ - h u and θ + h u, and the
difference is not the derivative at θ, though backpropagation is right. A smaller step seldom meets
a kink, so three steps are tried. Where none agrees, the loss itself decides, never the gradient
that is under test: it is evaluated at half the step, too. Of a smooth function

- the central differences at h and at h/2 are the same, and
- the gap between the one-sided differences, forward and backward, halves with the step,

both up to terms of h². At a kink one of the two is off by 0.4 of the disagreement at least,
wherever between the ends it lies. So a step is *smooth* if neither is off by :data:`EXPLAINS` of
the disagreement. Two smooth steps that give the same difference prove the gradient wrong; else the
probe is set aside as a *crossing*. A wrong backward changes nothing of what the loss is, so it is
taken for a kink only where kinks as large as the error lie within two of three steps, one of them
a hundredth of another; and where that happens often, too many are set aside to pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LEAST_STEP, LARGEST_STEP = 1e-6, 1e-3
"""How far the first goes, relative to the tensor's own size, as :func:`_scale` has it: as little as
leaves the loss's rounding a tenth of the tolerance, within these bounds."""
FINER = (1.0, 0.1, 0.01)
"""Steps that are tried, relative to the first."""
TOLERANCE = 1e-5
"""Relative difference of the two derivatives that passes."""
ROUNDING = 100 * 2.0**-52
"""What a loss may be off by from rounding, a few hundred operations deep: relative to itself, or to
1 if it is smaller, since then it is mostly the difference of such numbers. The cross-entropy of a
classifier that is certain, log(1 + 1e-12), has four digits."""
EXPLAINS = 0.25
"""A kink accounts for 0.4 of the disagreement that it causes, at least."""
MOST_CROSSINGS = 0.05
"""The share of probes that may be set aside."""
ENTRIES = 8

Verdict = Literal["equal", "zero", "crossing", "wrong"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One derivative, found in both ways."""

    parameter: str
    entry: tuple[int, ...] | None
    """None: the random direction."""
    gradient: float
    """Backpropagation's."""
    difference: float
    """The loss's own, at the step where the two were nearest."""
    verdict: Verdict
    """equal: the two agree. zero: what they say happens is lost in the loss's rounding, in both.
    crossing: set aside. wrong: they disagree, and the loss is smooth there."""
    rounding: float = 0.0
    """What the difference may be off by from the loss's rounding."""

    @property
    def size(self) -> float:
        """The larger of the two."""
        return max(abs(self.gradient), abs(self.difference))

    @property
    def error(self) -> float:
        """How much the two differ, relative to the larger; 0 where both are 0."""
        return abs(self.gradient - self.difference) / self.size if self.size else 0.0


@dataclass(frozen=True, slots=True)
class Compared:
    """All probes of a loss."""

    probes: tuple[Probe, ...]

    def of(self, verdict: Verdict) -> list[Probe]:
        return [probe for probe in self.probes if probe.verdict == verdict]

    @property
    def crossings(self) -> float:
        """The share of probes that was set aside."""
        return len(self.of("crossing")) / max(1, len(self.probes))

    @property
    def passed(self) -> bool:
        """None is wrong, at most :data:`MOST_CROSSINGS` were set aside, and something happened."""
        agree = bool(self.of("equal"))
        return agree and not self.of("wrong") and self.crossings <= MOST_CROSSINGS

    @property
    def worst(self) -> float:
        """The largest relative error of those that agree or are wrong, and are larger than what the
        loss's rounding may hide."""
        judged = self.of("equal") + self.of("wrong")
        clear = [probe for probe in judged if probe.rounding <= TOLERANCE * probe.size]
        return max((probe.error for probe in clear), default=0.0)


def compare(
    loss: Callable[[str | None], Tensor],
    parameters: Mapping[str, Tensor],
    *,
    entries: int = ENTRIES,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Compared:
    """Compare the two derivatives of each of ``parameters``, which ``loss`` reads where they lie.

    ``loss``: gives the scalar; it must be the same each time as long as they are. It hears which of
    them alone has changed since its first call, or None, so that it need not compute what comes
    before. ``parameters``: float64, requiring a gradient; they are put back exactly, and their
    ``grad`` is as it was. ``say`` hears the name of each before its probes.

    Raises ValueError where a tensor is not float64, and where the loss of the same parameters
    differs between two calls: then there is nothing to compare.
    """
    for name, tensor in parameters.items():
        if tensor.dtype != torch.float64:
            raise ValueError(f"{name} is {tensor.dtype}; finite differences need float64.")
    start = loss(None)
    gradients = torch.autograd.grad(start, list(parameters.values()), allow_unused=True)
    with torch.no_grad():
        f0 = float(start)
        if not math.isfinite(f0):
            raise ValueError(f"The loss is {f0}; there is no derivative to compare.")
        if (again := float(loss(None))) != f0:
            raise ValueError(
                f"The loss of the same parameters was {f0!r}, then {again!r}: something is drawn "
                "at random, or kept from one call to the next."
            )
        generator = torch.Generator().manual_seed(seed)
        probes: list[Probe] = []
        for (name, tensor), found in zip(parameters.items(), gradients, strict=True):
            if say is not None:
                say(name)
            gradient = torch.zeros_like(tensor) if found is None else found
            wiggle = _Wiggle(loss, name, tensor, f0, tolerance)
            probes += _probes(wiggle, gradient, entries, generator)
    return Compared(tuple(probes))


def _probes(
    wiggle: _Wiggle, gradient: Tensor, entries: int, generator: torch.Generator
) -> list[Probe]:
    tensor = wiggle.tensor
    scale = _scale(tensor)
    along = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
    along *= scale
    before = tensor.clone()

    def move(by: float) -> None:
        torch.add(before, along, alpha=by, out=tensor)

    try:
        out = [wiggle.probe(None, move, float((gradient * along).sum()), 1.0)]
    finally:
        tensor.copy_(before)
    flat = before.flatten()
    # A single number moves the next layer's inputs less than all together do.
    one = scale * math.sqrt(_fan(tensor))
    for at in _chosen(gradient, entries, generator):
        entry = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), tensor.shape))
        value = float(flat[at])

        def move_one(by: float, entry: tuple[int, ...] = entry, value: float = value) -> None:
            tensor[entry] = value + by * one

        try:
            out.append(wiggle.probe(entry, move_one, float(gradient[entry]) * one, one))
        finally:
            tensor[entry] = value
    return out


@dataclass(frozen=True, slots=True)
class _Wiggle:
    """The loss as a function of one tensor."""

    loss: Callable[[str | None], Tensor]
    name: str
    tensor: Tensor
    f0: float
    tolerance: float

    @property
    def rounding(self) -> float:
        """What the loss may be off by."""
        return ROUNDING * max(abs(self.f0), 1.0)

    def probe(
        self,
        entry: tuple[int, ...] | None,
        move: Callable[[float], None],
        gradient: float,
        unit: float,
    ) -> Probe:
        """``move(by)`` sets the tensor to ``by`` times the step's direction from where it was.
        ``gradient``: along it; ``unit``: what both derivatives are divided by to be told."""
        nearest, least = math.inf, 0.0
        smooth: list[float] = []
        """The differences at steps where the loss is."""

        def told(difference: float, verdict: Verdict, rounding: float) -> Probe:
            found = (gradient / unit, difference / unit)
            return Probe(self.name, entry, *found, verdict, rounding / unit)

        enough = self.rounding / (0.1 * self.tolerance * max(abs(gradient), 1e-30))
        first = min(max(enough, LEAST_STEP), LARGEST_STEP)
        for h in (first * finer for finer in FINER):
            ahead, behind = self._at(move, h), self._at(move, -h)
            difference = (ahead - behind) / (2 * h)
            off = abs(difference - gradient)
            size = max(abs(difference), abs(gradient))
            rounding = self.rounding / h
            if size <= rounding:
                return told(difference, "zero", rounding)
            if off <= self.tolerance * size + rounding:
                return told(difference, "equal", rounding)
            if off < abs(nearest - gradient):
                nearest, least = difference, rounding
            ahead_2, behind_2 = self._at(move, h / 2), self._at(move, -h / 2)
            between = abs(difference - (ahead_2 - behind_2) / h)
            gap, gap_2 = ahead + behind - 2 * self.f0, ahead_2 + behind_2 - 2 * self.f0
            bent = abs(gap / h - 2 * gap_2 / (h / 2))
            if max(between, bent) < EXPLAINS * off:
                if any(abs(difference - other) < EXPLAINS * off for other in smooth):
                    return told(nearest, "wrong", least)
                smooth.append(difference)
        return told(nearest, "crossing", least)

    def _at(self, move: Callable[[float], None], by: float) -> float:
        move(by)
        return float(self.loss(self.name))


def _scale(tensor: Tensor) -> float:
    """A usual size of its numbers, for a step of which the layer's outputs change by about as much:
    their root mean square, or of a tensor that is nearly 0, what would give outputs of 0.1."""
    fan = math.sqrt(_fan(tensor))
    return max(float(tensor.square().mean().sqrt()) * fan, 0.1) / fan


def _fan(tensor: Tensor) -> int:
    """How many numbers of it one output depends on."""
    return max(1, tensor[0].numel()) if tensor.ndim > 1 else 1


def _chosen(gradient: Tensor, entries: int, generator: torch.Generator) -> list[int]:
    """Different entries: where the gradient is largest, and others at random."""
    n = gradient.numel()
    if n <= entries:
        return list(range(n))
    largest = gradient.abs().flatten().topk(entries // 2).indices.tolist()
    chosen = dict.fromkeys(largest)
    while len(chosen) < entries:
        chosen[int(torch.randint(n, (1,), generator=generator))] = None
    return list(chosen)
