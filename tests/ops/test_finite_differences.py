"""Right gradients agree, kinks are set aside, and no wrong gradient is taken for a kink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vidi.ops.finite_differences import EXPLAINS, Compared, compare


def check(function: Callable[[Tensor], Tensor], at: Any, **options: Any) -> Compared:
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    found = compare(lambda _: function(x), {"x": x}, **options)
    assert torch.equal(x.detach(), before), "put back exactly"
    assert x.grad is None
    return found


def altered(forward: Callable[[Tensor], Tensor], by: Callable[[Tensor], Tensor]) -> Any:
    """``forward``, with a gradient that ``by`` changed."""

    class Altered(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                again = x.detach().requires_grad_()
                (right,) = torch.autograd.grad(forward(again), again, gradient)
            return by(right)

    return Altered.apply


SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "square": lambda x: x.square().sum(),
    "sine": lambda x: x.sin().prod(),
    "softmax": lambda x: x.log_softmax(-1)[:, 1].sum(),
    "steep": lambda x: (30 * x).tanh().sum() + x.exp().sum(),
    "norm": lambda x: x.norm(),
    "tiny": lambda x: 1.0 + 1e-6 * x.sin().sum(),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("seed", range(3))
def test_a_right_gradient_passes(name: str, seed: int) -> None:
    at = np.random.default_rng(seed).normal(size=(3, 5))
    found = check(SMOOTH[name], at, seed=seed)
    assert found.passed
    assert len(found.of("equal")) == len(found.probes) == 1 + 8
    assert found.worst < 2e-5


def test_what_it_tells_is_the_derivative() -> None:
    at = np.random.default_rng(0).normal(size=6)
    found = check(lambda x: x.exp().sum(), at)
    assert len(found.probes) == 1 + 6, "all entries of a small tensor"
    for probe in found.probes[1:]:
        assert probe.entry is not None
        assert probe.gradient == pytest.approx(np.exp(at[probe.entry]))
        assert probe.difference == pytest.approx(np.exp(at[probe.entry]), rel=1e-5)


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": lambda g: -g,
    "factor": lambda g: 2 * g,
    "a thousandth": lambda g: 1.001 * g,
    "nothing": torch.zeros_like,
    "an entry": lambda g: g.index_fill(0, torch.tensor([17]), 0.0),
    "transposed": lambda g: g.flip(0),
}


@pytest.mark.parametrize("kinked", [False, True])
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_backward_is_never_taken_for_a_kink(fault: str, kinked: bool) -> None:
    """Behind 400 ReLUs, too, of which steps cross many."""
    rng = np.random.default_rng(1)
    layer = torch.tensor(rng.normal(size=(400, 60)))

    def forward(x: Tensor) -> Tensor:
        return (x.sin() * torch.linspace(1, 2, 60, dtype=torch.float64)) + 0.1 * x.square()

    wrong = altered(forward, WRONG[fault])

    def loss(x: Tensor) -> Tensor:
        y: Tensor = layer @ wrong(x)
        return (y.relu() if kinked else y.tanh()).square().mean() + y.sum() / 400

    found = check(loss, rng.normal(size=60))
    assert not found.passed
    assert found.of("wrong"), "by what is wrong, not by too many kinks"
    assert found.probes[0].verdict == "wrong", "the direction sees any entry"
    right = altered(forward, lambda g: g)
    again = check(lambda x: (layer @ right(x)).relu().square().mean(), rng.normal(size=60))
    assert again.passed


@pytest.mark.parametrize("at", [0.0, 1e-10, -1e-10])
def test_a_kink_is_set_aside(at: float) -> None:
    """At the point itself, and so near that each step goes over it."""
    found = check(lambda x: (1 + 3 * x.relu() + x).sum(), [at])
    assert [probe.verdict for probe in found.probes] == ["crossing"] * 2
    assert not found.passed, "more than 5 %"


def test_a_kink_anywhere_within_the_step_is_no_error() -> None:
    """Wherever it lies between the ends, in slope and in value (a jump)."""
    places = np.concatenate([np.linspace(-1.2e-4, 1.2e-4, 301), np.geomspace(1e-9, 1e-4, 100)])
    seen = set()
    for place in places.tolist():
        for jump in (0.0, 0.3):
            found = check(
                lambda x, p=place, j=jump: (  # type: ignore[misc]
                    1 + x.sin() + 0.7 * (x - p).relu() + j * (x > p)
                ).sum(),
                [0.0],
                entries=1,
            )
            seen |= {probe.verdict for probe in found.probes}
    assert seen == {"equal", "crossing"}


def test_a_kink_shows_by_more_than_it_is_asked_to() -> None:
    """Of what it makes the difference be off, wherever in a step of 1 it lies."""
    least = np.inf
    for place in np.linspace(-0.999, 0.999, 1999):

        def bend(x: float, place: float = place) -> float:
            return max(0.0, x - place)

        central, half = (bend(1) - bend(-1)) / 2, bend(0.5) - bend(-0.5)
        gap, gap_half = bend(1) + bend(-1) - 2 * bend(0), bend(0.5) + bend(-0.5) - 2 * bend(0)
        shown = max(abs(central - half), abs(gap - 4 * gap_half))
        least = min(least, shown / abs(central - (place < 0)))
    assert least == pytest.approx(0.4, abs=0.002), "at 2/7 of the step"
    assert least > EXPLAINS


def test_a_wrong_gradient_beside_a_kink_is_found() -> None:
    """A kink at one step does not excuse what is off at the others."""
    for place in np.geomspace(1e-9, 1e-4, 60).tolist():
        loss = altered(lambda x, p=place: x.sin() + 0.01 * (x - p).relu(), lambda g: 1.5 * g)  # type: ignore[misc]
        found = check(lambda x, f=loss: f(x).sum(), [0.3])  # type: ignore[misc]
        assert all(probe.verdict == "wrong" for probe in found.probes)


def test_few_kinks_pass_and_many_fail() -> None:
    """One of forty entries on its kink, then eight."""
    smooth = np.random.default_rng(3).normal(size=40)

    def loss(x: Tensor) -> Tensor:
        return x.relu().sum() + x.sin().sum()

    def verdicts(kinks: int) -> Compared:
        at = torch.tensor(smooth)
        at[:kinks] = 0
        parts = {f"{i}": at[i : i + 1].clone().requires_grad_() for i in range(40)}
        return compare(lambda _: loss(torch.cat(list(parts.values()))), parts)

    assert verdicts(1).passed
    assert verdicts(1).crossings == pytest.approx(1 / 40)
    assert not verdicts(8).passed
    assert not verdicts(8).of("wrong")


def test_without_effect_is_zero_and_alone_does_not_pass() -> None:
    x = torch.ones(4, dtype=torch.float64, requires_grad=True)
    unused = torch.ones(4, dtype=torch.float64, requires_grad=True)
    found = compare(lambda _: x.square().sum(), {"unused": unused, "x": x})
    assert {p.parameter: p.verdict for p in found.probes} == {"unused": "zero", "x": "equal"}
    assert found.passed
    nothing = compare(lambda _: x.square().sum(), {"unused": unused})
    assert not nothing.passed


def test_a_loss_of_nearly_nothing_is_not_called_wrong() -> None:
    """Of the cross-entropy of a classifier that is certain and right few digits are left."""
    x = torch.tensor([[30.0, -4.0, 2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.1], dtype=torch.float64, requires_grad=True)

    def loss(_: str | None) -> Tensor:
        return F.cross_entropy(x * scale, torch.tensor([0]))

    assert 0 < loss(None).item() < 1e-11
    found = compare(loss, {"x": x, "scale": scale})
    assert not found.of("wrong") and not found.of("crossing")
    assert found.of("zero") and not found.passed, "nothing can be told"


def test_a_detached_part_is_found() -> None:
    found = check(lambda x: (x * x.detach()).sum(), np.random.default_rng(0).normal(size=9))
    assert len(found.of("wrong")) == len(found.probes)


def test_it_refuses_what_cannot_be_compared() -> None:
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"x is torch\.float32"):
        compare(lambda _: x.sum(), {"x": x})
    y = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="drawn at random"):
        compare(lambda _: (y * torch.rand(3)).sum(), {"y": y})
    with pytest.raises(ValueError, match="The loss is inf"):
        compare(lambda _: (y / 0).sum(), {"y": y})
