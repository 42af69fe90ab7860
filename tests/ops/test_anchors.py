"""Anchors: where they lie, which are objects, and how they are fitted to boxes."""

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from vidi.ops import anchors


def random_boxes(n: int, seed: int, size: float = 100) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=made) * size
    return torch.cat((corner, corner + 4 + torch.rand(n, 2, generator=made) * size / 2), 1)


def test_the_grid_is_torchvisions():
    made = AnchorGenerator(((16,), (64,)), ((0.5, 1.0, 2.0),) * 2)
    maps = [torch.zeros(1, 8, 6, 9), torch.zeros(1, 8, 3, 5)]
    images = ImageList(torch.zeros(1, 3, 48, 72), [(48, 72)])
    theirs = made(images, maps)[0]
    # 48 and 72 by 3 and 5 cells: they take 16 and 14, so the second map has strides of its own.
    ours = anchors.grid((6, 9), 8, made.cell_anchors[0])
    assert torch.equal(ours, theirs[: 6 * 9 * 3])


def test_anchors_stand_about_their_centre():
    boxes = anchors.about(torch.tensor([[4.0, 2.0], [1.0, 3.0]]), 0.5)
    assert boxes.tolist() == [[-1.5, -0.5, 2.5, 1.5], [0, -1, 1, 2]]


@pytest.mark.parametrize("seed", range(8))
def test_objects_are_assigned_as_torchvisions_matcher_does(seed):
    anchored, truth = random_boxes(400, seed), random_boxes(1 + seed, 100 + seed)
    theirs = Matcher(0.6, 0.3, allow_low_quality_matches=True)(box_iou(truth, anchored))
    ours = anchors.assign(anchored, truth, 0.6, 0.3)
    assert torch.equal(ours, theirs)  # -1 and -2 mean the same there
    assert len(set(ours.tolist())) > 2


def test_without_objects_all_is_background():
    found = anchors.assign(random_boxes(50, 0), torch.zeros(0, 4), 0.7, 0.3)
    assert (found == anchors.BACKGROUND).all()


def test_an_object_that_no_anchor_touches_is_nobodys():
    far = torch.tensor([[1000.0, 1000, 1010, 1010]])
    found = anchors.assign(random_boxes(50, 0), far, 0.7, 0.3)
    assert (found == anchors.BACKGROUND).all()


def test_what_is_ignored_is_no_background_but_may_be_an_object():
    anchored = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]])
    truth = torch.tensor([[0.0, 0, 10, 10]])
    ignored = torch.tensor([True, True, False])
    found = anchors.assign(anchored, truth, 0.7, 0.3, ignored)
    assert found.tolist() == [0, anchors.UNCOUNTED, anchors.BACKGROUND]


def test_samples_are_those_that_drew_least_and_no_more_than_asked():
    found = torch.tensor([0, -1, -1, 2, -2, 0, -1])
    drawn = torch.tensor([0.9, 0.1, 0.5, 0.2, 0.0, 0.3, 0.4])
    objects, background = anchors.sample(found, drawn, 4, 0.5)
    assert sorted(objects.tolist()) == [3, 5]
    assert sorted(background.tolist()) == [1, 6]
    objects, background = anchors.sample(found, drawn, 100, 0.5)
    assert sorted(objects.tolist()) == [0, 3, 5]
    assert sorted(background.tolist()) == [1, 2, 6]


def test_shapes_that_there_are_are_found_exactly():
    shapes = np.array([[10.0, 10], [20, 40], [40, 20], [100, 90]])
    sides = np.repeat(shapes, [50, 20, 20, 3], 0)
    found, overlap = anchors.fit(sides, np.ones(len(sides)), 4)
    assert sorted(map(tuple, found.round(3))) == sorted(map(tuple, shapes))
    assert overlap == pytest.approx(1)


def test_more_anchors_overlap_more_and_the_order_of_boxes_is_nothing():
    drawn = np.random.default_rng(0)
    sides = np.exp(drawn.normal(3, 0.6, (300, 2)))
    weights = drawn.uniform(0.5, 2, 300)
    overlaps = [anchors.fit(sides, weights, k)[1] for k in (1, 3, 9)]
    assert overlaps == sorted(overlaps)
    assert overlaps[-1] > 0.7
    order = drawn.permutation(300)
    found, overlap = anchors.fit(sides, weights, 9)
    again, same = anchors.fit(sides[order], weights[order], 9)
    np.testing.assert_allclose(again, found, rtol=1e-5)
    assert same == pytest.approx(overlap)
    assert (np.diff(found.prod(1)) >= 0).all()


def test_a_weight_of_two_is_the_box_twice():
    drawn = np.random.default_rng(1)
    sides = np.exp(drawn.normal(3, 0.6, (40, 2)))
    weights = np.where(np.arange(40) < 10, 2.0, 1.0)
    found, overlap = anchors.fit(sides, weights, 3)
    twice = np.concatenate([sides, sides[:10]])
    again, same = anchors.fit(twice, np.ones(50), 3)
    np.testing.assert_allclose(again, found, rtol=1e-5)
    assert same == pytest.approx(overlap)
