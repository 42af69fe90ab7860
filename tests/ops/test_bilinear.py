"""Transposed convolution with a tent is bilinear interpolation, and is not deconvolution."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from vidi.ops.bilinear import bilinear_kernel, bilinear_weight, enlarge, tent_size, transposed


def scores(height: int = 5, width: int = 4, channels: int = 3) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, channels, height, width)


def scipys(x: Tensor, factor: int, first: float, size: tuple[int, int]) -> Tensor:
    """Linear splines between the cells' centres, their border continued."""
    where = [(np.arange(side) + 0.5 - first) / factor for side in size]
    grid = np.stack(np.meshgrid(*where, indexing="ij"))
    planes = [
        ndimage.map_coordinates(plane, grid, order=1, mode="nearest")
        for plane in x.double().flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack(planes)).view(*x.shape[:2], *size).float()


@pytest.mark.parametrize(("factor", "size"), [(32, 64), (16, 32), (8, 16), (2, 4), (3, 5), (1, 1)])
def test_the_papers_kernels(factor: int, size: int) -> None:
    assert tent_size(factor) == size
    kernel = bilinear_kernel(factor)
    assert kernel.shape == (size, size)
    assert torch.equal(kernel, kernel.flip(0, 1))
    assert kernel.sum().item() == pytest.approx(factor**2)


def test_the_smallest_kernels_by_hand() -> None:
    four = torch.tensor([1, 3, 3, 1]) / 4
    torch.testing.assert_close(bilinear_kernel(2), torch.outer(four, four))
    three = torch.tensor([1, 2, 1]) / 2
    torch.testing.assert_close(bilinear_kernel(2, 3), torch.outer(three, three))


@pytest.mark.parametrize("factor", [1, 2, 3, 5, 8, 16])
def test_a_bare_transposed_convolution_interpolates_in_the_interior(factor: int) -> None:
    x = scores()
    y = F.conv_transpose2d(x, bilinear_weight(3, factor), stride=factor)
    cut = (tent_size(factor) - factor) // 2
    y = y[:, :, cut : cut + 5 * factor, cut : cut + 4 * factor]
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inner = slice(factor, -factor)
    torch.testing.assert_close(y[:, :, inner, inner], expected[:, :, inner, inner])
    if factor > 1:  # outside, a bare one falls to zero
        assert not torch.allclose(y, expected, atol=0.1)


@pytest.mark.parametrize("factor", [2, 3, 8, 32])
def test_with_the_border_continued_it_interpolates_everywhere(factor: int) -> None:
    x = scores()
    size = torch.Size((5 * factor, 4 * factor))
    y = transposed(x, bilinear_weight(3, factor), factor, factor / 2, size)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    ("factor", "first"), [(2, 1), (2, 0.5), (3, 1.5), (4, 0.5), (8, 3), (32, 15.5), (32, 16.5)]
)
def test_cells_may_stand_anywhere(factor: int, first: float) -> None:
    x = scores()
    size = (5 * factor - 1, 4 * factor)
    weight = bilinear_weight(3, factor, tent_size(factor, first))
    y = transposed(x, weight, factor, first, torch.Size(size))
    torch.testing.assert_close(y, scipys(x, factor, first, size))


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("short", [0, 1])
def test_enlarging_from_every_nth_pixel(factor: int, short: int) -> None:
    x = scores()
    size = torch.Size((5 * factor - short, 4 * factor))
    expected = scipys(x, factor, 0.5, (size[0], size[1]))
    torch.testing.assert_close(enlarge(x, factor, size), expected)
    weight = bilinear_weight(3, factor, 2 * factor - 1)
    torch.testing.assert_close(transposed(x, weight, factor, 0.5, size), expected)


def test_gradients_are_right() -> None:
    x = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    size = torch.Size((6, 3))
    assert torch.autograd.gradcheck(lambda x, w: transposed(x, w, 2, 1, size), (x, weight))
    assert torch.autograd.gradcheck(lambda x: enlarge(x, 2, size), (x,))


def test_it_is_not_deconvolution() -> None:
    """Its matrix is the convolution's, transposed; the inverse divides in the Fourier domain."""
    torch.manual_seed(0)
    n, kernel = 16, torch.rand(1, 1, 5, 5, dtype=torch.float64)
    kernel[0, 0, 2, 2] += 20  # no frequency vanishes, so the convolution has an inverse
    image = torch.randn(1, 1, n, n, dtype=torch.float64)

    def convolve(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="circular"), kernel)

    def transpose(y: Tensor) -> Tensor:
        padded = F.pad(y, (2, 2, 2, 2), mode="circular")
        return F.conv_transpose2d(padded, kernel)[:, :, 4:-4, 4:-4]

    seen, other = convolve(image), torch.randn_like(image)
    torch.testing.assert_close((seen * other).sum(), (image * transpose(other)).sum())
    back = transpose(seen)
    assert back.shape == image.shape  # the shape is undone, the values are not
    best = (back * image).sum() / back.square().sum()  # whatever the scale
    assert (best * back - image).norm() > 0.05 * image.norm()

    origin = torch.zeros(n, n, dtype=torch.float64)
    origin[:5, :5] = kernel[0, 0].flip(0, 1)  # conv2d correlates
    spectrum = torch.fft.fft2(origin.roll((-2, -2), (0, 1)))
    divided = torch.fft.ifft2(torch.fft.fft2(seen) / spectrum).real
    torch.testing.assert_close(divided, image)
