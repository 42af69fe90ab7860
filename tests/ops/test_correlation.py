"""FlowNetC's correlation against its equation, written as loops; its gradient; its memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidi.ops import correlation as correlations
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


@pytest.mark.parametrize(
    ("shape", "displacement", "stride"),
    [
        ((1, 3, 40, 150), 2, 1),  # in three blocks of columns, and of rows
        ((1, 3, 130, 9), 2, 1),
        ((2, 2, 11, 140), 8, 2),
        ((1, 2, 5, 66), 4, 1),  # the last block is shorter than the reach
    ],
)
def test_blocks_are_joined_without_a_seam(
    shape: tuple[int, ...], displacement: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlations, "PRODUCTS", 1 << 14)
    torch.manual_seed(0)
    maps = torch.randn(2, *shape, dtype=torch.float64)
    results = []
    for function in (correlation_of, shifted):
        first, second = (x.clone().requires_grad_() for x in maps)
        out = function(first, second, displacement, stride)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out, first.grad, second.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def correlation_of(first: Tensor, second: Tensor, displacement: int, stride: int) -> Tensor:
    return correlation(first, second, displacement=displacement, stride=stride)


class Memory(TorchDispatchMode):
    """Bytes of what operations make: ``sizes`` of each, ``peak`` of all that is there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.peak = 0
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {StorageWeakRef(x.untyped_storage()).cdata for x in tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
        for made in tensors(out):
            storage = made.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference.cdata not in given and reference.cdata not in self.live:
                self.sizes.append(storage.nbytes())
                self.live[reference.cdata] = reference, storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def test_on_wide_maps_no_temporary_is_large() -> None:
    """All products at once would be 17 · 24 · 400 · 400 numbers, 261 MB."""
    maps = [torch.randn(1, 8, 24, 400, requires_grad=True) for _ in range(2)]
    with Memory() as memory:
        out = correlation(*maps, displacement=8, stride=1)
        out.backward(torch.ones_like(out))
    large = sorted(size for size in memory.sizes if size > maps[0].nbytes)
    assert large[-2:] == [out.nbytes] * 2, "the output and its gradient"
    assert len(large) > 2, "what holds the products is seen"
    assert large[-3] <= 4 * correlations.PRODUCTS < 10e6


def test_little_is_there_beside_inputs_output_and_gradients() -> None:
    """Of 512 × 384 images, as the paper trains."""
    maps = [torch.randn(4, 256, 48, 64, requires_grad=True) for _ in range(2)]
    inputs = sum(x.nbytes for x in maps)
    with Memory() as memory:
        out = correlation(*maps)
        assert memory.peak <= out.nbytes + 0.3 * inputs
        out.backward(torch.ones_like(out))
    assert out.shape == (4, 441, 48, 64)
    needed = 2 * (inputs + out.nbytes)
    assert needed <= inputs + memory.peak <= 1.1 * needed
