"""FlowNetC's correlation against its equation, written as loops; its gradient; its memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vidi.ops.correlation import correlation
from vidi.types import Array


def looped(first: Array, second: Array, displacement: int, stride: int) -> Array:
    """Dosovitskiy et al. 2015, equation 1 with k = 0, cell by cell."""
    n, c, h, w = first.shape
    offsets = range(-(displacement // stride) * stride, displacement + 1, stride)
    out = np.zeros((n, len(offsets) ** 2, h, w))
    for image in range(n):
        for y in range(h):
            for x in range(w):
                for k, (dy, dx) in enumerate((dy, dx) for dy in offsets for dx in offsets):
                    if 0 <= y + dy < h and 0 <= x + dx < w:
                        there = second[image, :, y + dy, x + dx]
                        out[image, k, y, x] = np.dot(first[image, :, y, x], there) / c
    return out


def shifted(first: Tensor, second: Tensor, displacement: int, stride: int) -> Tensor:
    """The same as products of whole maps, one for each displacement."""
    h, w = first.shape[2:]
    reach = displacement // stride * stride
    wide = F.pad(second, (reach,) * 4)
    steps = range(0, 2 * reach + 1, stride)
    return torch.stack(
        [(first * wide[..., y : y + h, x : x + w]).mean(1) for y in steps for x in steps], 1
    )


@pytest.mark.parametrize(
    ("shape", "displacement", "stride"),
    [
        ((2, 3, 5, 7), 2, 1),
        ((1, 4, 7, 5), 4, 2),
        ((1, 2, 6, 4), 3, 2),  # what does not go into the displacement is left over
        ((1, 2, 3, 2), 20, 2),  # farther than the map reaches
        ((1, 2, 1, 1), 4, 2),
        ((1, 2, 7, 8), 6, 3),
    ],
)
def test_it_is_the_papers_equation(shape: tuple[int, ...], displacement: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, *shape))
    found = correlation(
        torch.from_numpy(first), torch.from_numpy(second), displacement=displacement, stride=stride
    )
    expected = looped(first, second, displacement, stride)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_the_papers_has_441_channels_the_middle_one_at_rest() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 2, 8, 12, 14)
    found = correlation(first, second)
    assert found.shape == (2, 441, 12, 14)
    torch.testing.assert_close(found[:, 220], (first * second).mean(1))
    torch.testing.assert_close(found, shifted(first, second, 20, 2), atol=1e-5, rtol=1e-5)


def test_a_shift_is_found_where_it_is() -> None:
    torch.manual_seed(0)
    first = torch.randn(1, 64, 20, 24)
    second = torch.roll(first, (4, -6), (2, 3))  # down by 4, left by 6
    best = correlation(first, second, displacement=8, stride=2)[0, :, 8:-8, 8:-8].argmax(0)
    assert (best == (4 + 2) * 9 + (4 - 3)).all()


@pytest.mark.parametrize(("displacement", "stride"), [(2, 1), (4, 2), (5, 3)])
def test_its_gradient_in_fp64(displacement: int, stride: int) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda a, b: correlation(a, b, displacement=displacement, stride=stride), maps
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_its_gradient_is_that_of_the_products(channels_last: bool) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 2, 16, 9, 10)
    weight = torch.randn(2, 441, 9, 10)
    gradients = []
    for function in (lambda a, b: correlation(a, b), lambda a, b: shifted(a, b, 20, 2)):
        kind = torch.channels_last if channels_last else torch.contiguous_format
        own = [x.clone(memory_format=kind).requires_grad_() for x in maps]
        (function(*own) * weight).sum().backward()
        gradients.append([x.grad for x in own])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_bf16_is_summed_in_fp32() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 1, 256, 6, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = correlation(*maps, displacement=2, stride=1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, shifted(*maps.float(), 2, 1), atol=1e-6, rtol=1e-5)


def test_little_is_held_beside_inputs_and_output() -> None:
    """What autograd keeps for the backward pass, by what it is told to keep."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    maps = [torch.randn(2, 32, 24, 32, requires_grad=True) for _ in range(2)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = correlation(*maps)
    assert sum(kept) <= sum(x.untyped_storage().nbytes() for x in maps)
    assert out.untyped_storage().nbytes() == out.numel() * 4
