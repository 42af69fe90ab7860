"""Pooling, aligning and warping regions, against loops, closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from scipy import ndimage
from torch import Tensor

from vidi.ops.regions import align, pool, regions_of, warp


def test_regions_know_their_image() -> None:
    first, second = torch.arange(20.0).view(5, 4).tensor_split((2,))
    found = regions_of([first, torch.zeros(0, 4), second])
    assert found[:, 0].tolist() == [0, 0, 2, 2, 2] and found.dtype == torch.float32
    assert torch.equal(found[:, 1:], torch.cat((first, second)))
    assert regions_of([]).shape == regions_of([torch.zeros(0, 4)]).shape == (0, 5)


@pytest.mark.parametrize("scale", [1 / 16, 1 / 8, 0.37])
@pytest.mark.parametrize("size", [(7, 7), (6, 6), (2, 5)])
def test_pooling_is_the_papers_bit_for_bit(scale: float, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 9, 12, generator=generator)
    regions = _regions(generator, width=12 / scale, height=9 / scale)
    found = pool(features, regions, size, scale)
    assert found.shape == (len(regions), 3, *size)
    assert torch.equal(found, _pooled(features, regions, size, scale))
    assert (found == 0).any() and (found < 0).any()


def test_cells_of_a_region_are_counted_with_both_ends_and_halves_round_away_from_zero() -> None:
    features = torch.arange(1.0, 31).view(1, 1, 1, 30)
    regions = torch.tensor([[0.0, 24, 0, 72, 0], [0, -24, 0, 24, 0], [0, 39, 0, 40, 0]])
    found = pool(features, regions, (1, 1), 1 / 16).flatten()
    assert found.tolist() == [6, 3, 4]  # cells 2 to 5; -2 to 2; 2 to 3: 40 / 16 is 2.5
    assert pool(-features, regions, 1, 1 / 16).flatten().tolist() == [-3, -1, -3]


def test_an_image_smaller_than_the_stride() -> None:
    features = torch.tensor([[[[-3.0]]]])
    regions = torch.tensor([[0.0, 0, 0, 7, 7], [0, 2, 2, 3, 3], [0, 0, 0, 10, 12]])
    found = pool(features, regions, 7, 1 / 16)
    assert (found[:2] == -3).all()  # all bins see the one cell
    # Two cells long: bins of 2 / 7, of which those from the fourth on do not all reach cell 0.
    assert found[2, 0].eq(-3).any() and found[2, 0, -1].eq(0).all()


def test_the_gradient_of_pooling_goes_to_the_maxima() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, 9, 12, generator=generator, dtype=torch.float64)
    regions = _regions(generator, width=192, height=144)
    weights = torch.randn(len(regions), 3, 7, 7, generator=generator, dtype=torch.float64)
    gradients = []
    for function in (pool, _pooled):
        leaf = features.clone().requires_grad_()
        (function(leaf, regions, (7, 7), 1 / 16) * weights).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
    assert (gradients[0] != 0).any()


@pytest.mark.parametrize("sampling", [1, 2, 3])
def test_aligning_a_ramp_gives_its_values_at_the_middles_of_the_bins(sampling: int) -> None:
    scale = 1 / 8
    middles = 8 * (torch.arange(20) + 0.5)  # of the cells, in pixels
    ramp = 3 * middles[:15, None] - 0.7 * middles + 5
    features = torch.stack((ramp, -2 * ramp))[None].repeat(2, 1, 1, 1)
    features[1] += 1000
    regions = torch.tensor([[0, 20.0, 12, 95, 51], [1, 4, 4, 156, 116], [1, 33.3, 44.4, 34, 45]])
    found = align(features, regions, (4, 5), scale, sampling)
    for region, bins in zip(regions, found, strict=True):
        i, x0, y0, x1, y1 = region.tolist()
        x = x0 + (x1 - x0) * (torch.arange(5) + 0.5) / 5
        y = y0 + (y1 - y0) * (torch.arange(4) + 0.5) / 4
        expected = 3 * y[:, None] - 0.7 * x + 5
        torch.testing.assert_close(bins[0], expected + 1000 * i, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(bins[1], -2 * expected + 1000 * i, rtol=1e-5, atol=1e-3)


def test_the_gradient_of_aligning_is_its_slope() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 2, 4, 5, generator=generator, dtype=torch.float64)
    regions = torch.tensor([[0, 3.0, 5, 30, 28], [1, -20, -9, 90, 50], [1, 8, 8, 8, 8]])
    assert torch.autograd.gradcheck(
        lambda x: align(x, regions, (2, 3), 1 / 8), (features.requires_grad_(),)
    )


def test_the_whole_of_an_image_is_warped_to_itself() -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    regions = torch.tensor([[1.0, 0, 0, 32, 32], [0, 0, 0, 32, 32]])
    torch.testing.assert_close(warp(images, regions, 32, 0), images.flip(0))


def test_context_lies_about_the_region_on_each_side() -> None:
    image = torch.zeros(1, 3, 60, 80)
    image[:, :, 20:32, 30:54] = 1  # 24 wide, 12 high: 2 and 4 times as long in the square
    seen = warp(image, torch.tensor([[0.0, 30, 20, 54, 32]]), 64, 8)
    assert seen.shape == (1, 3, 64, 64)
    expected = torch.zeros(64, dtype=torch.bool)
    expected[8:56] = True
    for line in (*seen[0, :, 32], *seen[0, :, :, 32]):
        assert torch.equal(line > 0.5, expected)


def test_warping_is_scipys_interpolation_and_zero_outside() -> None:
    rng = np.random.default_rng(4)
    images = rng.normal(size=(2, 3, 20, 30)) + 5
    corner = rng.uniform(-12, 25, (40, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(1, 30, (40, 2))), 1)
    boxes[0] = -90, -90, -70, -70  # wholly outside
    regions = np.concatenate((rng.integers(0, 2, (40, 1)), boxes), 1)
    found = warp(torch.from_numpy(images), torch.from_numpy(regions), 24, 4).numpy()
    for (i, x0, y0, x1, y1), seen in zip(regions, found, strict=True):
        step = np.array((y1 - y0, x1 - x0)) / 16  # the region has 16 of the 24 pixels
        y, x = (low + (np.arange(24) - 4 + 0.5) * s for low, s in zip((y0, x0), step, strict=True))
        at = np.meshgrid(y - 0.5, x - 0.5, indexing="ij")  # a pixel's centre is whole
        inside = ((y >= 0) & (y <= 20))[:, None] & ((x >= 0) & (x <= 30))
        for c in range(3):
            expected = ndimage.map_coordinates(images[int(i), c], at, order=1, mode="nearest")
            np.testing.assert_allclose(seen[c], np.where(inside, expected, 0), atol=1e-9)
    assert (found[0] == 0).all() and 0.2 < (found == 0).mean() < 0.8


def test_broken_regions_give_numbers() -> None:
    """Without area, inverted, far away, enormous."""
    regions = torch.tensor(
        [
            [0.0, 5, 5, 5, 5],
            [0, 0, 0, 0, 0],
            [0, 9, 9, 2, 3],
            [0, 500, 500, 510, 520],
            [0, -1e5, -1e5, 1e5, 1e5],
        ]
    )
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    for found in (
        pool(images, regions, 7, 1.0),
        align(images, regions, 7, 1.0),
        warp(images, regions, 16, 2),
    ):
        assert found.isfinite().all()
        assert (found[3] == 0).all()
    assert torch.equal(pool(images, regions[:1], 7, 1.0)[0, :, 3, 3], images[0, :, 5, 5])


def test_no_regions() -> None:
    features, none = torch.ones(2, 3, 8, 8, requires_grad=True), torch.zeros(0, 5)
    assert pool(features, none, (7, 7), 0.5).shape == (0, 3, 7, 7)
    assert align(features, none, 7, 0.5).shape == (0, 3, 7, 7)
    assert warp(features, none, 12, 2).shape == (0, 3, 12, 12)
    pool(features, none, 7, 0.5).sum().backward()
    assert features.grad is not None and (features.grad == 0).all()


def test_shapes_are_known_without_data() -> None:
    features, regions = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(5, 5, device="meta")
    for found, size in (
        (pool(features, regions, (7, 6), 0.5), (7, 6)),
        (align(features, regions, 7, 0.5), (7, 7)),
        (warp(features, regions, 12, 2), (12, 12)),
    ):
        assert found.is_meta and found.shape == (5, 3, *size)


def test_autocast_does_not_reach_what_is_pooled() -> None:
    generator = torch.Generator().manual_seed(6)
    features = torch.randn(1, 3, 40, 60, generator=generator).bfloat16()
    regions = torch.tensor([[0, 300.7, 200.3, 901.2, 600.9]])  # whole cells off in bf16
    for function in (pool, align):
        expected = function(features.float(), regions, 7, 1 / 16)
        with torch.autocast("cpu", torch.bfloat16):
            found = function(features, regions, 7, 1 / 16)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


def _regions(generator: torch.Generator, *, width: float, height: float) -> Tensor:
    """In and partly outside the image, smaller than a cell, at halves of cells, without area,
    inverted, and wholly outside."""
    extent = torch.tensor((width, height))
    low = extent * (1.6 * torch.rand(120, 2, generator=generator) - 0.3)
    sides = extent * torch.rand(120, 2, generator=generator)
    sides[:30] = 20 * torch.rand(30, 2, generator=generator)
    boxes = torch.cat((low, low + sides), 1)
    boxes[30:60] = (boxes[30:60] / 8).round() * 8
    boxes[60:64, 2:] = boxes[60:64, :2]
    boxes[64:68] = boxes[64:68].flip(1)
    boxes[68, :] = torch.tensor((-3, -3, -2, -2)) * extent.repeat(2)
    boxes[69, :] = torch.tensor((2, 2, 3, 3)) * extent.repeat(2)
    return torch.cat((torch.arange(120)[:, None] % 2, boxes), 1)


def _pooled(features: Tensor, regions: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """From the definition, in the precision of the features, as the paper's code computes."""
    real = np.float64 if features.dtype == torch.float64 else np.float32
    height, width = features.shape[2:]
    out = []
    for region in regions.numpy().astype(real):
        x0, y0, x1, y1 = (_rounded(x * real(scale)) for x in region[1:])
        rows = _bins(y0, y1, size[0], height, real)
        columns = _bins(x0, x1, size[1], width, real)
        for top, bottom in rows:
            for left, right in columns:
                cells = features[int(region[0]), :, top:bottom, left:right].flatten(1)
                out.append(cells.max(1).values if cells.numel() else features.new_zeros(3))
    return torch.stack(out).view(len(regions), *size, 3).permute(0, 3, 1, 2)


def _rounded(x: float) -> int:
    return int(math.copysign(math.floor(abs(float(x)) + 0.5), x))


def _bins(
    first: int, last: int, count: int, cells: int, real: type[np.float32 | np.float64]
) -> list[tuple[int, int]]:
    step = real(max(last - first + 1, 1)) / real(count)
    out = []
    for i in range(count):
        start, stop = math.floor(real(i) * step), math.ceil(real(i + 1) * step)
        out.append((min(max(start + first, 0), cells), min(max(stop + first, 0), cells)))
    return out


@pytest.mark.parametrize("sampling", [1, 2, 3])
@pytest.mark.parametrize("shape", [(7, 9), (1, 5), (4, 1), (1, 1)])
def test_align_equals_torchvisions(shape: tuple[int, int], sampling: int) -> None:
    """Values and gradients, of regions within the map, across its border and outside of it."""
    made = torch.Generator().manual_seed(0)
    h, w = shape
    maps = torch.randn(2, 5, h, w, generator=made, dtype=torch.float64).requires_grad_()
    corners = torch.rand(40, 2, 2, generator=made, dtype=torch.float64) * 2 - 0.5
    sides = torch.tensor([w, h], dtype=torch.float64) * 8
    low, high = (corners.sort(1).values * sides).unbind(1)
    index = torch.randint(0, 2, (40, 1), generator=made).double()
    regions = torch.cat((index, low, high), 1)
    own = align(maps, regions, (3, 4), 1 / 8, sampling)
    theirs = torchvision.ops.roi_align(maps, regions, (3, 4), 1 / 8, sampling, aligned=True)
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-12)
    back = torch.randn(own.shape, generator=made, dtype=torch.float64)
    ours, others = (torch.autograd.grad(out, maps, back)[0] for out in (own, theirs))
    torch.testing.assert_close(ours, others, rtol=0, atol=1e-12)
