"""Warping by flow and bringing flow to other resolutions, against loops and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from vidi.ops.flow import coarser, matching_loss, resized, warp


def test_warping_is_scipys_interpolation_at_the_moved_pixel_centres() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 3, 9, 11))
    flow = rng.uniform(-4, 4, (2, 2, 9, 11))
    seen, known = warp(torch.from_numpy(image), torch.from_numpy(flow))
    y, x = np.mgrid[:9, :11].astype(float)
    for n in range(2):
        at = (y + flow[n, 1], x + flow[n, 0])  # in units where a pixel's centre is whole
        for c in range(3):
            expected = ndimage.map_coordinates(image[n, c], at, order=1, mode="nearest")
            np.testing.assert_allclose(seen[n, c].numpy(), expected, atol=1e-12)
        inside = (at[0] >= -0.5) & (at[0] <= 8.5) & (at[1] >= -0.5) & (at[1] <= 10.5)
        assert (known[n].numpy() == inside).all()
        assert 0 < inside.mean() < 1


def test_flow_to_the_right_fetches_from_the_right() -> None:
    image = torch.arange(5.0).repeat(3, 1).view(1, 1, 3, 5)
    flow = torch.zeros(1, 2, 3, 5)
    flow[:, 0] = 1
    seen, known = warp(image, flow)
    torch.testing.assert_close(seen[0, 0, 0], torch.tensor([1.0, 2, 3, 4, 4]))
    assert known[0, 0].tolist() == [True, True, True, True, False]
    assert torch.equal(warp(image, torch.zeros_like(flow))[0], image)


def test_unknown_flow_moves_nothing_and_is_unknown() -> None:
    image = torch.randn(1, 2, 3, 3)
    flow = torch.zeros(1, 2, 3, 3)
    flow[0, 1, 1, 2] = float("nan")
    seen, known = warp(image, flow)
    assert seen.isfinite().all()
    assert (~known).nonzero().tolist() == [[0, 1, 2]]


def test_coarser_is_the_mean_of_known_pixels() -> None:
    rng = np.random.default_rng(1)
    flow, known = rng.normal(size=(2, 2, 7, 10)), rng.random((2, 7, 10)) < 0.4
    known[0, :4, :4] = False
    given = np.where(known[:, None], flow, np.nan)
    found, share = coarser(torch.from_numpy(given), torch.from_numpy(known), 4, (2, 4))
    for n, y, x in np.ndindex(2, 2, 4):
        cell = (slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
        there = known[n][cell]
        assert share[n, y, x].item() == there.sum() / 16  # beyond the image nothing is known
        expected = flow[n][:, *cell][:, there].mean(1) if there.any() else np.zeros(2)
        np.testing.assert_allclose(found[n, :, y, x].numpy(), expected, atol=1e-12)
    assert share[0, 0, 0] == 0 and (share[:, :, 3] == 0).all()


def test_resized_flow_grows_with_the_image() -> None:
    """A zoom about the corner moves each point by a share of where it is, at any size."""
    y, x = torch.meshgrid(torch.arange(6) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    flow = torch.stack((0.1 * x, -0.2 * y))[None]
    large = resized(flow, (12, 32))
    y, x = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    expected = torch.stack((0.1 * x, -0.2 * y))
    # Beyond the outermost centres interpolation stays as it is.
    inner = (slice(None), slice(1, -1), slice(2, -2))
    torch.testing.assert_close(large[0][inner], expected[inner])
    assert resized(flow, (6, 8)) is flow


def test_the_matching_loss_of_whole_cells_is_cross_entropy() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 25, 6, 7)  # two cells each way
    flow = torch.randint(-1, 2, (2, 2, 6, 7)).float()
    inner = np.s_[:, 1:-1, 1:-1]
    found = matching_loss(scores.log_softmax(1), flow)[inner]
    number = (flow[:, 1] + 2) * 5 + flow[:, 0] + 2
    expected = F.cross_entropy(scores, number.long(), reduction="none")[inner]
    torch.testing.assert_close(found, expected)


def test_the_matching_loss_between_cells_by_a_loop() -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 9, 4, 5, dtype=torch.float64)
    scores[0, 0, 1, 2] = -torch.inf  # as what is no candidate has
    log_shares = scores.log_softmax(1).requires_grad_()
    flow = torch.empty(1, 2, 4, 5, dtype=torch.float64).uniform_(-1.9, 1.9)
    flow[0, :, 1, 2] = 0.5
    flow[0, :, 3, 3] = 1e12
    found = matching_loss(log_shares, flow)
    for y in range(4):
        for x in range(5):
            expected = 0.0
            u, v = flow[0, :, y, x].tolist()
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    weight = max(0.0, 1 - abs(u - dx)) * max(0.0, 1 - abs(v - dy))
                    if weight and 0 <= x + dx < 5 and 0 <= y + dy < 4:
                        share = log_shares[0, (dy + 1) * 3 + dx + 1, y, x].item()
                        expected -= weight * share
            assert found[0, y, x].item() == pytest.approx(expected, abs=1e-12)
    found.sum().backward()
    assert log_shares.grad is not None and log_shares.grad.isfinite().all()
