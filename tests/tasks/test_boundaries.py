"""Boundaries: fusing annotators, the balanced loss, decoding, the score through the task."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vidi.errors import InputError
from vidi.ops import boundary_scoring, tiles
from vidi.ops.boundary_scoring import Scoring
from vidi.tasks.boundaries import IGNORE, BoundaryMeter, Prediction, Task, fused
from vidi.types import Array, Batch, Sample


class Fixed(nn.Module):
    """Gives the same logits whatever it sees."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.ParameterList(nn.Parameter(one) for one in logits)

    def forward(self, image: Tensor) -> Any:
        return tuple(self.logits) if len(self.logits) > 1 else self.logits[0]


def batch(image: Any, edges: Tensor | None = None, valid: Array | None = None) -> Batch:
    n = len(image)
    valid = np.ones(n, bool) if valid is None else valid
    targets = {"valid": torch.from_numpy(valid)}
    return Batch(
        inputs={"image": image},
        targets=targets if edges is None else targets | {"edges": edges},
        keys=[str(i) for i in range(n)],
        ids=np.arange(n),
        matrices=np.tile(np.eye(3), (n, 1, 1)),
        sizes=np.array([(i.shape[-2], i.shape[-1]) for i in image]),
        valid=valid,
    )


def sample(edges: Array, segments: Array | None = None) -> Sample:
    image = np.zeros((*edges.shape[1:], 3), np.uint8)
    return Sample(key="a", image=image, edges=edges, segments=segments)


def target(*rows: list[int]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float32)


MARKS = np.array([[[0, 255, 255, 255]], [[0, 0, 255, 255]], [[0, 0, 0, 255]]], np.uint8)
"""Three annotators, four pixels: marked by 0, 1, 2 and 3 of them."""


@pytest.mark.parametrize(
    ("agree", "disagreement", "expected"),
    [
        (3, "negative", [0, 0, 0, 1]),
        (2, "negative", [0, 0, 1, 1]),
        (1, "negative", [0, 1, 1, 1]),
        (3, "ignore", [0, 255, 255, 1]),
        (2, "ignore", [0, 255, 1, 1]),
        (5, "negative", [0, 0, 0, 1]),  # all, where they are fewer
        (3, "share", [0, 1 / 3, 2 / 3, 1]),
        (2, "share", [0, 0.5, 1, 1]),
    ],
)
def test_annotators_are_fused(agree: int, disagreement: str, expected: list[float]) -> None:
    assert fused(MARKS, agree, disagreement) == pytest.approx(np.array([expected]))


def test_what_lies_beyond_the_image_is_ignored() -> None:
    segments = np.array([[[1, 1, 2, -1]]] * 3, np.int32)
    encoded = Task().encode(sample(MARKS[:, :, :4], segments), None, train=True)
    assert encoded.targets["edges"].tolist() == [[0, 0, 0, IGNORE]]


def test_loss_of_two_by_two_pixels_in_closed_form() -> None:
    """One positive of four: β = 3/4, so l = -3/4 log p - 1/4 Σ log(1 - p) (equation 2)."""
    logits = torch.tensor([[[[0.5, -1.0], [2.0, 0.0]]]])
    side = torch.tensor([[[[-0.3, 0.2], [0.1, 1.5]]]])
    made = batch(torch.zeros(1, 3, 2, 2), target([1, 0], [0, 0]))

    def by_hand(values: Tensor) -> float:
        p = [1 / (1 + math.exp(-v)) for v in values.flatten().tolist()]
        return -0.75 * math.log(p[0]) - 0.25 * sum(math.log(1 - q) for q in p[1:])

    summed = Task(sum_pixels=True)
    found = {k: v.detach() for k, v in summed.losses(Fixed(logits, side, side), made).items()}
    assert float(found["fuse"]) == pytest.approx(by_hand(logits), rel=1e-6)
    assert float(found["sides"]) == pytest.approx(2 * by_hand(side), rel=1e-6)
    assert {k: float(v) for k, v in summed.weights(made).items()} == {"fuse": 1, "sides": 1}
    # Averaged: by the sum of weights, 3/4 + 3 · 1/4.
    assert float(Task().weights(made)["fuse"]) == pytest.approx(1.5)


def test_what_some_annotators_mark_is_a_boundary_in_part() -> None:
    """Balanced as one, and its loss is least where the sigmoid is its share."""
    made = batch(torch.zeros(1, 3, 2, 2), target([1 / 3, 0], [0, IGNORE]))
    logits = torch.tensor([[[[0.5, -1.0], [2.0, 9.0]]]])
    model = Fixed(logits)
    found = Task(sum_pixels=True).losses(model, made)["fuse"]
    p = logits.sigmoid().flatten().tolist()
    own = -math.log(p[0]) / 3 - 2 / 3 * math.log(1 - p[0])
    expected = 2 / 3 * own - 1 / 3 * (math.log(1 - p[1]) + math.log(1 - p[2]))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)
    (slope,) = torch.autograd.grad(found, model.logits[0])
    assert slope[0, 0, 0, 0].item() == pytest.approx(2 / 3 * (p[0] - 1 / 3), rel=1e-5)
    assert slope[0, 0, 1, 1].item() == 0


def test_each_image_is_balanced_by_itself() -> None:
    logits = torch.randn(2, 1, 3, 3)
    edges = torch.tensor([[[1.0, 0, 0]] * 3, [[1.0, 1, 0]] * 3])
    task = Task(sum_pixels=True)
    together = task.losses(Fixed(logits), batch(torch.zeros(2, 3, 3, 3), edges))["fuse"]
    alone = [
        task.losses(Fixed(logits[k : k + 1]), batch(torch.zeros(1, 3, 3, 3), edges[k : k + 1]))
        for k in range(2)
    ]
    assert torch.allclose(together, sum((one["fuse"] for one in alone), torch.zeros(())))


@pytest.mark.parametrize("summed", [False, True])
def test_ignored_pixels_and_unreadable_samples_have_no_gradient(summed: bool) -> None:
    logits = torch.randn(2, 1, 3, 3)
    logits[1] = math.inf
    edges = torch.tensor([[[1, 0, 255]] * 3, [[1, 1, 0]] * 3], dtype=torch.uint8)
    made = batch(torch.zeros(2, 3, 3, 3), edges, np.array([True, False]))
    model, task = Fixed(logits), Task(sum_pixels=summed)
    (task.losses(model, made)["fuse"] / task.weights(made)["fuse"]).backward()
    gradient = model.logits[0].grad
    assert gradient is not None
    assert torch.isfinite(gradient[0]).all()
    assert (gradient[0, 0, :, 2] == 0).all()
    assert (gradient[0, 0, :, :2] != 0).all()
    assert (gradient[1] == 0).all()


def test_an_image_without_boundaries_counts_for_nothing() -> None:
    made = batch(torch.zeros(1, 3, 2, 2), target([0, 0], [0, 255]))
    model = Fixed(torch.randn(1, 1, 2, 2))
    assert float(Task().weights(made)["fuse"]) == 0
    total = Task().losses(model, made)["fuse"]
    total.backward()
    assert total.item() == 0
    assert model.logits[0].grad is not None and not model.logits[0].grad.any()


def test_a_loss_of_the_users_own() -> None:
    task = Task(loss=lambda logits, edges: (logits[:, 0] - edges).abs())
    logits = torch.randn(1, 1, 2, 2)
    edges = target([1, 0], [0, 0])
    found = task.losses(Fixed(logits), batch(torch.zeros(1, 3, 2, 2), edges))["fuse"]
    weights = torch.tensor([[0.75, 0.25], [0.25, 0.25]])
    assert torch.allclose(found, (weights * (logits[0, 0] - edges[0]).abs()).sum())


class Blur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        out = self.layer(image)
        return out, -out


def test_a_batch_equals_its_singles() -> None:
    images = torch.randn(3, 3, 9, 11)
    task, model = Task(), Blur().eval()
    with torch.inference_mode():
        together = task.predict(model, batch(images))
        alone = [task.predict(model, batch(images[k : k + 1]))[0] for k in range(3)]
        lists = task.predict(model, batch([images[0:1], images[1:2, :, :5]]))
    for a, b in zip(together, alone, strict=True):
        assert a.soft.dtype == np.float32
        assert np.allclose(a.soft, b.soft, atol=1e-6)
    assert [p.soft.shape for p in lists] == [(9, 11), (5, 11)]


def test_views_are_averaged_as_probabilities() -> None:
    image = torch.randn(1, 3, 8, 8)
    task, model = Task(), Blur().eval()
    with torch.inference_mode():
        found = task.predict(model, batch(image), flip=True)[0].soft
        own, mirrored = model(image)[0].sigmoid(), model(image.flip(3))[0].sigmoid().flip(3)
    assert np.allclose(found, ((own + mirrored) / 2)[0, 0].numpy(), atol=1e-6)


def test_large_images_go_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.randn(1, 3, 60, 90)
    task, model = Task(), Blur().eval()
    with torch.inference_mode():
        whole = task.predict(model, batch(image))[0].soft
        monkeypatch.setattr(tiles, "SMALL", 1000)
        monkeypatch.setattr(tiles, "MEMORY", 1e4)
        tiled = task.predict(model, batch(image))[0].soft
    assert np.allclose(whole, tiled, atol=1e-5)


def test_a_shrunk_image_is_predicted_at_its_own_size() -> None:
    made = batch(torch.randn(1, 3, 8, 8))
    made.sizes = np.array([(16, 20)])
    with torch.inference_mode():
        assert Task().predict(Blur(), made)[0].soft.shape == (16, 20)


def drawn(size: int = 60) -> Array:
    """A square's outline, [1, size, size]."""
    edges = np.zeros((1, size, size), np.uint8)
    edges[0, 15:45, [15, 44]] = edges[0, [15, 44], 15:45] = 255
    return edges


@pytest.mark.parametrize("quick", [False, True])
def test_perfect_predictions_score_one(quick: bool) -> None:
    task = Task()
    meter = task.quick_meter() if quick else task.meter()
    edges = drawn()
    soft = np.asarray(edges[0] / 255, np.float32)
    meter.update([Prediction(soft)] * 2, [sample(edges)] * 2)
    found = meter.compute()
    assert found["ods"] == pytest.approx(1, abs=0.02)  # suppression takes a corner here or there
    assert found["ois"] == pytest.approx(1, abs=0.02)
    details = task.details(meter)
    assert len(details["curve"]) == (9 if quick else 99)
    far = BoundaryMeter(9)
    far.update([Prediction(np.roll(soft, 10, axis=(0, 1)))], [sample(edges)])
    assert far.compute()["ods"] < 0.3


def test_meters_of_several_processes_add_up() -> None:
    rng = np.random.default_rng(0)
    edges = [(rng.random((2, 30, 40)) < 0.05).astype(np.uint8) * 255 for _ in range(3)]
    soft = [rng.random((30, 40)).astype(np.float32) for _ in range(3)]
    whole, first, second = BoundaryMeter(5), BoundaryMeter(5), BoundaryMeter(5)
    whole.update([Prediction(s) for s in soft], [sample(e) for e in edges])
    first.update([Prediction(soft[0])], [sample(edges[0])])
    second.update([Prediction(s) for s in soft[1:]], [sample(e) for e in edges[1:]])
    first.merge(pickle.loads(pickle.dumps(second)))  # noqa: S301  as it travels
    assert first.compute() == whole.compute()


def test_processes_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    monkeypatch.setattr(boundary_scoring, "PATIENCE", 0.0)
    found = []
    for processes in (0, 2):
        scoring = Scoring(np.array([0.3, 0.6]), thinned=True, processes=processes)
        for k in range(4):
            truth = (np.random.default_rng(k).random((2, 30, 40)) < 0.05).astype(np.uint8)
            scoring.add(np.random.default_rng(9 + k).random((30, 40)), truth, str(k))
        found.append(scoring.counts())
    for one, other in zip(*found, strict=True):
        assert one.prediction.tolist() == other.prediction.tolist()
        assert one.matched_truth.tolist() == other.matched_truth.tolist()
        assert one.matched_prediction.tolist() == other.matched_prediction.tolist()
    scoring = Scoring(np.array([0.5]), thinned=False, processes=2)
    scoring.add(rng.random((9, 9)), np.ones((1, 9, 9)), "first")
    scoring.add(rng.random((9, 8)), np.ones((1, 9, 9)), "second")
    with pytest.raises(InputError, match="The size of second is 9 × 8"):
        scoring.counts()


def test_an_empty_truth_gets_a_sentence() -> None:
    meter = BoundaryMeter(3)
    meter.update(
        [Prediction(np.zeros((9, 9), np.float32))], [sample(np.zeros((1, 9, 9), np.uint8))]
    )
    with pytest.raises(InputError, match="no boundary pixel"):
        meter.compute()
