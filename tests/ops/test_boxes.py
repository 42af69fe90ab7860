"""Boxes against torchvision, pixels that are counted, and loops written from the papers."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from vidi.ops import boxes
from vidi.types import Array

Soft = Literal["none", "linear", "gaussian"]

BROKEN = torch.tensor(
    [
        [5, 5, 5, 5],  # a point
        [0, 0, 0, 0],
        [2, 3, 9, 3],  # a line
        [2, 3, 2, 9],
        [9, 9, 2, 3],  # inverted
        [9, 3, 2, 9],
        [0, 0, 9, 9],
        [0, 0, 9, 9],
    ],
    dtype=torch.float32,
)
SOUND = slice(6, None)


def test_iou_is_torchvisions() -> None:
    a, b = _random_boxes(200, seed=0), _random_boxes(300, seed=1)
    found = boxes.iou(a, b)
    assert torch.equal(found, torchvision.ops.box_iou(a, b))
    assert 0.05 < (found > 0).float().mean() < 0.95
    assert (boxes.iou(a, a).diag() == 1).all()


def test_areas_and_overlaps_are_counts_of_pixels() -> None:
    generator = torch.Generator().manual_seed(2)
    corners = torch.randint(0, 13, (2, 30, 2, 2), generator=generator)
    a, b = corners.sort(2).values.flatten(2).float()  # some have no area
    pixels = torch.stack([_painted(box) for box in torch.cat((a, b))]).flatten(1).double()
    first, second = pixels[:30], pixels[30:]
    both = first @ second.T
    union = 169 - (1 - first) @ (1 - second).T
    assert torch.equal(boxes.areas(a).double(), first.sum(1))
    assert (boxes.areas(a) == 0).any()
    torch.testing.assert_close(boxes.iou(a, b).double(), both / union.clamp_min(1))
    inside = both / first.sum(1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(boxes.covered(a, b).double(), inside)
    assert (boxes.covered(a, b) != boxes.covered(b, a).T).any()


def test_boxes_come_back_from_their_deltas() -> None:
    for least, most in ((20, 300), (1, 2), (0.01, 0.1)):  # tiny ones too, far from the corner
        regions, truth = (_random_boxes(500, seed=i, least=least, most=most) for i in range(2))
        deltas = boxes.encode(regions, truth)
        torch.testing.assert_close(boxes.decode(regions, deltas), truth, atol=1e-3, rtol=0)
        exact = boxes.decode(regions.double(), boxes.encode(regions.double(), truth.double()))
        torch.testing.assert_close(exact, truth.double(), atol=1e-9, rtol=0)


def test_deltas_are_the_papers() -> None:
    """Appendix C: t_x = (G_x - P_x) / P_w, t_w = log(G_w / P_w), of centres."""
    region, truth = torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([[20.0, 20, 60, 40]])
    expected = torch.tensor([[20 / 20, -10 / 40, math.log(2), math.log(0.5)]])
    torch.testing.assert_close(boxes.encode(region, truth), expected)


def test_no_deltas_leave_each_classs_box_where_its_region_is() -> None:
    regions = torch.cat((_random_boxes(100, seed=3), BROKEN))
    found = boxes.decode(regions, torch.zeros(108, 12))
    torch.testing.assert_close(found, regions.repeat(1, 3), atol=1e-4, rtol=0)


def test_each_class_has_its_own_deltas() -> None:
    regions = _random_boxes(50, seed=4)
    targets = [_random_boxes(50, seed=5 + c) for c in range(3)]
    deltas = torch.cat([boxes.encode(regions, target) for target in targets], 1)
    torch.testing.assert_close(boxes.decode(regions, deltas), torch.cat(targets, 1))


def test_wild_deltas_give_no_infinite_boxes() -> None:
    region = torch.tensor([[100.0, 100, 116, 132]])
    found = boxes.decode(region, torch.tensor([[0.0, 0, 1e4, 1e4]]))
    torch.testing.assert_close(found[:, 2:] - found[:, :2], torch.tensor([[1000.0, 2000]]))


def test_clipping() -> None:
    given = torch.tensor([[[-5.0, 3, 20, 30], [2, -9, 4, 5]], [[11, 12, 99, 99], [0, 0, 10, 8]]])
    expected = torch.tensor([[[0.0, 3, 10, 8], [2, 0, 4, 5]], [[10, 8, 10, 8], [0, 0, 10, 8]]])
    assert torch.equal(boxes.clip(given, (8, 10)), expected)


@pytest.mark.parametrize("count", [300, 3000])  # torchvision has one way for few, one for many
def test_suppression_is_torchvisions(count: int) -> None:
    xyxy, scores, labels = _detections(count, classes=7, seed=count)
    kept, left = boxes.suppress(xyxy, scores, labels, 0.3)
    assert torch.equal(kept, torchvision.ops.batched_nms(xyxy, scores, labels, 0.3))
    assert torch.equal(left, scores[kept])
    assert 7 < len(kept) < count


def test_suppression_by_its_definition_with_ties() -> None:
    """What stays overlaps no surer box that stays; what goes does. Of equals the first is surer."""
    generator = torch.Generator().manual_seed(6)
    corner = torch.randint(-20, 20, (400, 2), generator=generator)
    sides = torch.randint(1, 12, (400, 2), generator=generator)
    xyxy = torch.cat((corner, corner + sides), 1).float()
    scores = torch.randint(0, 5, (400,), generator=generator) / 4
    labels = torch.randint(0, 3, (400,), generator=generator)
    found, left = boxes.suppress(xyxy, scores, labels, 0.5)
    kept = found.tolist()
    assert kept == sorted(kept, key=lambda i: (-scores[i].item(), i))
    assert torch.equal(left, scores[found])
    overlap = torchvision.ops.box_iou(xyxy.double(), xyxy.double())
    assert (overlap == 0.5).any()  # which is not more than the threshold
    place = torch.arange(400)
    stays = torch.isin(place, found)
    surer = (scores[:, None] < scores) | ((scores[:, None] == scores) & (place[:, None] > place))
    meets = (overlap > 0.5) & (labels[:, None] == labels) & surer & stays
    assert torch.equal(stays, ~meets.any(1))


def test_many_classes_are_as_if_each_were_alone() -> None:
    xyxy, scores, labels = _detections(900, classes=40, seed=7)
    xyxy = (xyxy - 300) / 50  # small boxes, and negative ones
    labels *= 1000
    for soft in ("none", "linear", "gaussian"):
        kept, left = boxes.suppress(xyxy, scores, labels, 0.3, soft=soft)
        assert (left.diff() <= 0).all()
        alone = []
        for label in range(0, 40_000, 1000):
            rows = (labels == label).nonzero()[:, 0]
            one, _ = boxes.suppress(xyxy[rows], scores[rows], labels[rows], 0.3, soft=soft)
            alone += rows[one].tolist()
        assert sorted(alone) == sorted(kept.tolist())
        assert len(kept) < 900


@pytest.mark.parametrize("soft", ["linear", "gaussian"])
def test_soft_suppression_is_the_papers_figure_2(soft: Soft) -> None:
    xyxy, scores, labels = _detections(300, classes=2, seed=8)
    scores[::7] = 0.5  # ties
    found, left = boxes.suppress(xyxy, scores, labels, 0.3, soft=soft, sigma=0.4, least=0.1)
    expected: dict[int, float] = {}
    for label in (0, 1):
        rows = (labels == label).nonzero()[:, 0].tolist()
        alone = _figure_2({i: (xyxy[i], scores[i].item()) for i in rows}, soft, 0.3, 0.4)
        expected |= {i: score for i, score in alone.items() if score >= 0.1}
    assert set(found.tolist()) == set(expected)
    assert 10 < len(expected) < 290
    np.testing.assert_allclose(left.numpy(), [expected[i] for i in found.tolist()], atol=1e-6)
    assert (left.diff() <= 0).all()
    assert (left <= scores[found] + 1e-7).all() and (left < scores[found] - 0.1).any()


@pytest.mark.parametrize("soft", ["none", "linear", "gaussian"])
def test_nothing_to_suppress(soft: Soft) -> None:
    nothing = (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    kept, left = boxes.suppress(*nothing, 0.3, soft=soft)
    assert kept.shape == left.shape == (0,) and kept.dtype == torch.int64
    assert boxes.iou(nothing[0], BROKEN).shape == (0, 8)
    assert boxes.decode(nothing[0], torch.zeros(0, 80)).shape == (0, 80)
    assert boxes.encode(nothing[0], nothing[0]).shape == (0, 4)


def test_broken_boxes_overlap_nothing_and_never_give_nan() -> None:
    for function in (boxes.iou, boxes.covered):
        found = function(BROKEN, BROKEN)
        assert (found[SOUND, SOUND] == 1).all()
        found[SOUND, SOUND] = 0
        assert function is boxes.covered or (found == 0).all()
        assert found.isfinite().all()
    pairs = torch.arange(8).repeat(8), torch.arange(8).repeat_interleave(8)
    deltas = boxes.encode(BROKEN[pairs[0]], BROKEN[pairs[1]])
    assert deltas.isfinite().all()
    back = boxes.decode(BROKEN[pairs[0]], deltas)
    assert back.isfinite().all()
    assert (boxes.areas(back[pairs[0] < 6]) == 0).all()
    scores, labels = torch.linspace(1, 0.3, 8), torch.zeros(8, dtype=torch.long)
    assert boxes.suppress(BROKEN, scores, labels, 0.3)[0].tolist() == list(range(7))
    for soft in ("linear", "gaussian"):
        kept, left = boxes.suppress(BROKEN, scores, labels, 0.3, soft=soft)
        assert left.isfinite().all()
        assert kept.tolist()[:7] == list(range(7))  # the last is all but gone


def test_all_boxes_alike() -> None:
    xyxy, labels = torch.tensor([[1.0, 1, 5, 5]]).repeat(20, 1), torch.zeros(20, dtype=torch.long)
    assert boxes.suppress(xyxy, torch.full((20,), 0.5), labels, 0.9)[0].tolist() == [0]
    kept, left = boxes.suppress(xyxy, torch.full((20,), 0.5), labels, 0.9, soft="gaussian")
    assert left[0] == 0.5
    # Each that is taken makes all that are left fade by exp(-2).
    assert torch.allclose(left, 0.5 * torch.exp(-2.0 * torch.arange(len(left))))
    assert kept.tolist() == list(range(len(left))) and len(left) == 4


def test_five_thousand_boxes() -> None:
    xyxy, scores, labels = _detections(5000, classes=20, seed=9)
    overlap = boxes.iou(xyxy, xyxy)
    assert overlap.shape == (5000, 5000) and (overlap.diag() == 1).all()
    hard, _ = boxes.suppress(xyxy, scores, labels, 0.3)
    for label in range(20):
        rows = hard[labels[hard] == label]
        assert (overlap[rows[:, None], rows].fill_diagonal_(0) <= 0.3).all()
    soft, left = boxes.suppress(xyxy, scores, labels, 0.3, soft="gaussian")
    assert len(soft) > len(hard) and left.isfinite().all()


def test_halves_are_worked_on_in_single_precision() -> None:
    xyxy = torch.tensor([[256.0, 256, 258, 258], [257, 257, 1000, 1000]])
    assert boxes.iou(xyxy.bfloat16(), xyxy.bfloat16()).dtype == torch.float32
    deltas = torch.zeros(2, 4, dtype=torch.bfloat16)
    torch.testing.assert_close(boxes.decode(xyxy, deltas), xyxy)
    assert boxes.areas(xyxy.half()).isfinite().all()  # 743² is no half


def _random_boxes(count: int, *, seed: int, least: float = 5, most: float = 300) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = 600 * torch.rand(count, 2, generator=generator)
    sides = least + (most - least) * torch.rand(count, 2, generator=generator) ** 2
    return torch.cat((corner, corner + sides), 1)


def _detections(count: int, *, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return _random_boxes(count, seed=seed, least=40), scores, labels


def _painted(box: Tensor) -> Tensor:
    x0, y0, x1, y1 = box.int().tolist()
    out = torch.zeros(13, 13)
    out[y0:y1, x0:x1] = 1
    return out


def _figure_2(
    given: dict[int, tuple[Tensor, float]], soft: Soft, threshold: float, sigma: float
) -> dict[int, float]:
    """Scores after soft-NMS, as the paper writes it down."""
    b = {i: np.asarray(box, np.float64) for i, (box, _) in given.items()}
    s = {i: score for i, (_, score) in given.items()}
    d = {}
    while b:
        m = max(b, key=lambda i: (s[i], -i))
        box = b.pop(m)
        d[m] = s[m]
        for i in b:
            overlap = _plain_iou(box, b[i])
            if soft == "gaussian":
                s[i] *= math.exp(-overlap * overlap / sigma)
            elif overlap >= threshold:
                s[i] *= 1 - overlap
    return d


def _plain_iou(a: Array, b: Array) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))


def test_of_equal_scores_the_first_comes_first() -> None:
    torch.manual_seed(0)
    scores = torch.randint(-3, 4, (3, 500)) / 2 * torch.tensor([[1.0], [1e-30], [-1e6]])
    scores[:, ::7] = -0.0  # which is 0
    right = np.argsort(-scores.numpy(), axis=1, kind="stable")
    for count in (1, 200, 500):
        for given in (scores, scores.double()):
            np.testing.assert_array_equal(boxes.surest(given, count).numpy(), right[:, :count])
