"""Flow: the loss at all scales in closed form, decoding, the scores by their definitions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.errors import InputError, RunError
from vidi.models import flownets
from vidi.tasks.flow import PARTS, WEIGHTS, FlowMeter, Prediction, Task
from vidi.types import Array, Batch, Sample


class Two(NamedTuple):
    fine: Tensor
    coarse: Tensor


class Fixed(nn.Module):
    """Gives the same whatever it sees."""

    def __init__(self, *heads: Tensor, scales: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.heads = nn.ParameterList(nn.Parameter(head) for head in heads)
        if scales is not None:
            self.scales = scales

    def forward(self, image: Tensor, image2: Tensor) -> Any:
        return Two(*self.heads) if len(self.heads) > 1 else self.heads[0]


def batch(flow: Tensor, known: Tensor | None = None, valid: list[bool] | None = None) -> Batch:
    n, height, width, _ = flow.shape
    ok = np.ones(n, bool) if valid is None else np.array(valid)
    image = torch.zeros(n, 3, height, width)
    return Batch(
        inputs={"image": image, "image2": image},
        targets={
            "flow": flow,
            "known": torch.ones(flow.shape[:3], dtype=torch.bool) if known is None else known,
            "valid": torch.from_numpy(ok),
        },
        keys=[str(i) for i in range(n)],
        ids=np.arange(n),
        matrices=np.tile(np.eye(3), (n, 1, 1)),
        sizes=np.array([(height, width)] * n),
        valid=ok,
    )


def mean_loss(task: Task, network: nn.Module, made: Batch) -> float:
    value = task.losses(network, made)["epe"] / task.weights(made)["epe"]
    return float(value.detach())


def cells(flow: Tensor, cell: int) -> Tensor:
    """[N, 2, h, w]: means over squares, of flow [N, H, W, 2] whose sides they divide."""
    n, h, w, _ = flow.shape
    return flow.view(n, h // cell, cell, w // cell, cell, 2).mean((2, 4)).permute(0, 3, 1, 2)


def test_the_loss_is_the_papers_sum() -> None:
    torch.manual_seed(0)
    flow = 30 * torch.randn(2, 64, 128, 2)
    scales = flownets.FlowNet.scales
    heads = [torch.randn(2, 2, 64 // s, 128 // s) for s in scales]
    network = nn.Module()
    network.scales = scales  # type: ignore[assignment]
    network.forward = lambda image, image2: flownets.Outputs(*heads)  # type: ignore[assignment]
    expected = 0.0
    for head, scale, weight in zip(heads, scales, (0.005, 0.01, 0.02, 0.08, 0.32), strict=True):
        off = head - cells(flow, scale) / 20
        expected += weight * float(off.square().sum(1).sqrt().sum()) / 2
    assert mean_loss(Task(sum_pixels=True), network, batch(flow)) == pytest.approx(expected)


def test_the_mean_has_the_same_proportions() -> None:
    """Averaged over pixels, the loss is the paper's times a constant: the scales' weights, by how
    many pixels a cell has, then sum to one."""
    torch.manual_seed(0)
    flow = 30 * torch.randn(1, 64, 64, 2)
    heads = [torch.randn(1, 2, 64 // s, 64 // s) for s in (4, 64)]
    network = Fixed(*heads, scales=(4, 64))
    shares = np.array([WEIGHTS[4] / 4**2, WEIGHTS[64] / 64**2])
    shares /= shares.sum()
    assert shares == pytest.approx([0.8, 0.2])
    truths = [cells(flow, scale) / 20 for scale in (4, 64)]
    off = [(h - t).square().sum(1).sqrt().mean() for h, t in zip(heads, truths, strict=True)]
    expected = sum(share * float(one) for share, one in zip(shares, off, strict=True))
    assert mean_loss(Task(), network, batch(flow)) == pytest.approx(expected)
    whole = mean_loss(Task(sum_pixels=True), network, batch(flow))
    constant = 64 * 64 * (WEIGHTS[4] / 16 + WEIGHTS[64] / 64**2)
    assert whole == pytest.approx(expected * constant)


@pytest.mark.parametrize("sum_pixels", [False, True])
def test_a_perfect_prediction_has_no_loss_and_no_gradient(sum_pixels: bool) -> None:
    flow = torch.tensor([20.0, -10.0]).expand(1, 64, 64, 2)
    heads = [
        torch.tensor([1.0, -0.5]).view(1, 2, 1, 1).repeat(1, 1, 64 // s, 64 // s) for s in (4, 8)
    ]
    network = Fixed(*heads, scales=(4, 8))
    loss = Task(sum_pixels=sum_pixels).losses(network, batch(flow))["epe"]
    assert loss == 0
    loss.backward()
    assert all(head.grad is not None and not head.grad.any() for head in network.heads)


def test_one_tensor_is_flow_in_pixels() -> None:
    flow = torch.zeros(1, 8, 8, 2)
    network = Fixed(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).repeat(1, 1, 8, 8))
    assert mean_loss(Task(), network, batch(flow)) == pytest.approx(5 / 20)


def test_unknown_pixels_count_for_nothing() -> None:
    """Neither in the error nor in its weight; a cell counts by its share of known pixels."""
    flow = torch.zeros(1, 4, 8, 2)
    flow[0, :, :4] = 20  # the first cell's truth is (1, 1)
    known = torch.zeros(1, 4, 8, dtype=torch.bool)
    known[0, :1, :4] = True  # a quarter of the first cell
    known[0, :, 4:] = True
    head = torch.zeros(1, 2, 1, 2)
    network = Fixed(head, torch.zeros(1, 2, 1, 2), scales=(4, 4))
    task = Task()
    assert float(task.weights(batch(flow, known))["epe"]) == 20
    expected = (4 * math.sqrt(2) + 16 * 0) / 20
    assert mean_loss(task, network, batch(flow, known)) == pytest.approx(expected)
    flow[0, 1:, :4] = 1e6  # whatever stands there
    assert mean_loss(task, network, batch(flow, known)) == pytest.approx(expected)


def test_a_matching_is_trained_beside_the_flow() -> None:
    """Its cross-entropy, averaged over known pixels; at 8 pixels a cell, 16 are two cells."""
    flow = torch.zeros(1, 16, 32, 2)
    flow[0, :, :16, 0] = 8  # two cells of eight go one to the right, whatever the others do
    known = torch.zeros(1, 16, 32, dtype=torch.bool)
    known[0, :, :16] = True
    scores = torch.randn(1, 9, 2, 4)
    network = Fixed(torch.zeros(1, 2, 2, 4), scores.log_softmax(1), scales=(8,))
    network.matching_scale = 8  # type: ignore[assignment]
    made, task = batch(flow, known), Task()
    found = float(task.losses(network, made)["matching"].detach())
    right = F.cross_entropy(scores[:, :, :, :2], torch.full((1, 2, 2), 5))
    assert found / float(task.weights(made)["matching"]) == pytest.approx(0.3 * right.item())


def test_outputs_without_scales_get_a_sentence() -> None:
    flow = torch.zeros(1, 8, 8, 2)
    two = [torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 1, 1)]
    for network in (Fixed(*two), Fixed(*two, scales=(4,))):
        with pytest.raises(InputError, match="gives 2 outputs in training"):
            Task().losses(network, batch(flow))


def test_flow_that_is_not_a_number_stops_the_run() -> None:
    sample = Sample(
        key="pair 7", image=np.zeros((2, 3, 3), np.uint8), flow=np.zeros((2, 3, 2), np.float32)
    )
    broken = Prediction(np.full((2, 3, 2), np.nan, np.float32))
    with pytest.raises(RunError, match="flow of pair 7 is not a number"):
        Task().meter().update([broken], [sample])


def test_what_lies_beyond_the_image_counts_for_nothing() -> None:
    """A network pads to a multiple of 64, and its outputs reach beyond the truth."""
    flow = torch.full((1, 5, 5, 2), 20.0)
    network = Fixed(torch.full((1, 2, 16, 16), 7.0), torch.ones(1, 2, 8, 8), scales=(4, 8))
    with torch.no_grad():
        network.heads[0][:, :, :2, :2] = 1
    assert mean_loss(Task(), network, batch(flow)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sum_pixels", [False, True])
def test_an_unreadable_sample_counts_for_nothing(sum_pixels: bool) -> None:
    torch.manual_seed(0)
    flow = torch.randn(2, 8, 8, 2)
    heads = torch.randn(2, 2, 2, 2, 2)
    task = Task(sum_pixels=sum_pixels)
    alone = Fixed(*heads[:, :1], scales=(4, 4))
    expected = mean_loss(task, alone, batch(flow[:1]))
    heads[:, 1] = float("nan")
    made = batch(flow, valid=[True, False])
    network = Fixed(*heads, scales=(4, 4))
    assert mean_loss(task, network, made) == pytest.approx(expected)


@pytest.mark.parametrize("sum_pixels", [False, True])
def test_parts_of_a_batch_add_up(sum_pixels: bool) -> None:
    torch.manual_seed(0)
    flow, known = 9 * torch.randn(3, 8, 8, 2), torch.rand(3, 8, 8) < 0.5
    known[2] = False
    heads = torch.randn(2, 3, 2, 2, 2)
    task = Task(sum_pixels=sum_pixels)
    whole = batch(flow, known)
    network = Fixed(*heads, scales=(4, 4))
    parts = [
        (Fixed(*heads[:, i : i + 1], scales=(4, 4)), batch(flow[i : i + 1], known[i : i + 1]))
        for i in range(3)
    ]
    for name, function in (
        ("weights", lambda n, b: task.weights(b)),
        ("losses", lambda n, b: task.losses(n, b)),
    ):
        summed = sum(float(function(n, b)["epe"].detach()) for n, b in parts)
        assert float(function(network, whole)["epe"].detach()) == pytest.approx(summed), name


def test_a_users_own_loss() -> None:
    flow = torch.full((1, 8, 8, 2), 20.0)
    flow[0, :, 4:] = 40
    network = Fixed(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), scales=(4, 4))

    def squared(predicted: Tensor, true: Tensor) -> Tensor:
        assert predicted.shape == true.shape == (1, 2, 2, 2)
        return (predicted - true).square().sum(1)

    assert mean_loss(Task(loss=squared), network, batch(flow)) == pytest.approx((2 + 8) / 2)
    mean = Task(loss=lambda predicted, true: (predicted - true).abs().mean())
    assert mean_loss(mean, network, batch(flow)) == pytest.approx(1.5)


def sample(flow: Array, **more: Array) -> Sample:
    image = np.zeros((*flow.shape[:2], 3), np.uint8)
    return Sample(key="a", image=image, image2=image, flow=flow.astype(np.float32), **more)


def test_encoding_hides_what_is_unknown() -> None:
    flow = np.ones((2, 3, 2))
    flow[0, 0, 1] = np.nan
    flow[1, 1, 0] = np.inf
    valid = np.array([[True, True, True], [True, True, False]])
    one = sample(flow, flow_valid=valid)
    encoded = Task().encode(one, None, train=True)
    assert encoded.inputs["image"] is one.image and encoded.inputs["image2"] is one.image2
    assert encoded.targets["known"].tolist() == [[False, True, True], [True, False, False]]
    assert encoded.targets["flow"].dtype == np.float32
    assert (encoded.targets["flow"].sum(2) == 2 * encoded.targets["known"]).all()
    assert Task().encode(one, None, train=False).targets == {}


class Mover(nn.Module):
    """Flow that depends on the images: their difference in red and green."""

    def forward(self, image: Tensor, image2: Tensor) -> Tensor:
        return (image2 - image)[:, :2]


def test_pairs_of_several_sizes_are_as_alone() -> None:
    torch.manual_seed(0)
    sizes = [(5, 7), (8, 6), (5, 7)]
    frames = [[torch.randn(1, 3, *size) for size in sizes] for _ in range(2)]
    made = batch(torch.zeros(3, 8, 8, 2))
    made.inputs = {"image": frames[0], "image2": frames[1]}
    made.sizes = np.array(sizes)
    found = Task().predict(Mover(), made)
    for prediction, first, second in zip(found, *frames, strict=True):
        expected = (second - first)[0, :2].permute(1, 2, 0).numpy()
        assert prediction.flow.dtype == np.float32
        np.testing.assert_array_equal(prediction.flow, expected)


def test_flow_of_a_shrunk_image_is_in_the_originals_pixels() -> None:
    made = batch(torch.zeros(1, 4, 8, 2))
    made.sizes = np.array([(8, 32)])
    network = Fixed(torch.tensor([2.0, 3.0]).view(1, 2, 1, 1).repeat(1, 1, 4, 8))
    with torch.no_grad():
        flow = Task().predict(network, made)[0].flow
    assert flow.shape == (8, 32, 2)
    assert (flow == [8, 6]).all()


def test_the_mirror_image_moves_the_other_way() -> None:
    made = batch(torch.zeros(1, 4, 4, 2))
    network = Fixed(torch.tensor([2.0, 3.0]).view(1, 2, 1, 1).repeat(1, 1, 4, 4))
    with torch.no_grad():
        assert (Task().predict(network, made, flip=True)[0].flow == [0, 3]).all()


def scores(flow: Array, one: Sample) -> dict[str, float]:
    meter = FlowMeter()
    meter.update([Prediction(flow.astype(np.float32))], [one])
    return meter.compute()


def test_a_perfect_prediction_scores_0() -> None:
    rng = np.random.default_rng(0)
    flow = 30 * rng.normal(size=(20, 30, 2)).astype(np.float32)
    found = scores(flow, sample(flow))
    assert found["epe"] == found["fl"] == found["s10-40"] == 0
    assert found["epe_zero"] == pytest.approx(np.hypot(*flow.transpose(2, 0, 1)).mean(), rel=1e-5)
    assert scores(np.zeros_like(flow), sample(flow))["epe"] == found["epe_zero"]


def test_scores_by_hand() -> None:
    flow = np.array([[(3.0, 4), (30, 40), (0, 20), (100, 0), (0, 0)]])
    said = flow + np.array([[(0, 0.5), (3, 4), (0, 2), (4, 0), (6, 8)]])
    hidden = np.array([[False, True, False, True, False]])
    valid = np.array([[True, True, True, True, False]])
    found = scores(said, sample(flow, flow_valid=valid, occluded=hidden))
    # Errors 0.5, 5, 2, 4 at speeds 5, 50, 20, 100; the last is unknown.
    assert found == pytest.approx(
        {
            "epe": 11.5 / 4,
            "fl": 1 / 4,  # 5 of 50 is over 5 %, 4 of 100 is not, 2 is under 3 pixels
            "epe_zero": 175 / 4,
            "s0-10": 0.5,
            "s10-40": 2,
            "s40+": 4.5,
            "epe_visible": 1.25,
            "epe_occluded": 4.5,
        }
    )


def test_ends_of_the_ranges() -> None:
    """Sintel: 10 belongs to the middle range, 40 to the upper one. KITTI: more than 3 pixels."""
    flow = np.array([[(10.0, 0), (40, 0), (9.99, 0)]])
    said = flow + np.array([[(3.0, 0), (0, 3.001), (1, 0)]])
    found = scores(said, sample(flow))
    assert found["s0-10"] == pytest.approx(1) and found["s10-40"] == pytest.approx(3)
    assert found["s40+"] == pytest.approx(3.001, rel=1e-5)
    assert found["fl"] == pytest.approx(1 / 3)
    assert "epe_visible" not in found and "epe_occluded" not in found


def test_merging_is_exact_in_any_order() -> None:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(12):
        flow = 20 * rng.normal(size=(7, 9, 2))
        hidden = rng.random((7, 9)) < 0.2
        said = flow + rng.normal(size=(7, 9, 2)) * 10 ** rng.uniform(-3, 3)
        made.append((Prediction(said.astype(np.float32)), sample(flow, occluded=hidden)))
    whole = FlowMeter()
    for prediction, one in made:
        whole.update([prediction], [one])
    parts = []
    for k in (2, 0, 1):
        part = FlowMeter()
        part.update([p for p, _ in made[k::3]], [s for _, s in made[k::3]])
        parts.append(part)
    merged = FlowMeter()
    for part in parts:
        merged.merge(part)
    assert merged.compute() == whole.compute()
    assert merged.sums == whole.sums


def test_nothing_known_is_nothing_to_score() -> None:
    flow = np.full((2, 2, 2), np.nan)
    with pytest.raises(InputError, match="flow of no pixel"):
        scores(np.zeros((2, 2, 2)), sample(flow))


def test_details_have_a_row_for_each_part() -> None:
    task, flow = Task(), np.array([[(3.0, 4), (30, 40)]])
    meter = task.meter()
    meter.update([Prediction(np.zeros((1, 2, 2), np.float32))], [sample(flow)])
    rows = task.details(meter)["by_part"]
    assert [row["part"] for row in rows] == ["all", "s0-10", "s40+"]
    assert {row["part"] for row in rows} <= set(PARTS)
    assert rows[2] == {"part": "s40+", "share": 0.5, "epe": 50, "fl": 1, "epe_zero": 50}


def test_lower_is_better() -> None:
    task = Task()
    assert task.lower_is_better and task.headline == "epe" and task.outputs == 2
    assert {field.name for field in dataclasses.fields(task)} == {
        "classes",
        "sum_pixels",
        "loss",
        "headline",
    }
