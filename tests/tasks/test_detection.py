"""The detection task: which regions are sampled, the losses, and detections in original pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vidi.data.draws import Draws
from vidi.data.overlap import iou
from vidi.models.fast_rcnns import Outputs
from vidi.ops import boxes as ops
from vidi.tasks import detection
from vidi.tasks.detection import Task
from vidi.types import Batch, Boxes, Sample

CLASSES = ("cat", "dog", "cow")


def boxes(xyxy: Any, labels: Any, difficult: Any = (), crowd: Any = ()) -> Boxes:
    n = len(labels)
    return Boxes(
        xyxy=np.asarray(xyxy, np.float32).reshape(-1, 4),
        labels=np.asarray(labels, np.int64),
        difficult=np.isin(np.arange(n), difficult),
        crowd=np.isin(np.arange(n), crowd),
    )


def proposals(n: int, seed: int = 0, size: tuple[int, int] = (80, 120)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    h, w = size
    corners = np.sort(rng.uniform(0, 1, (n, 2, 2)), 1).reshape(-1, 4)
    return (corners * [w, h, w, h]).astype(np.float32)


TRUTH = boxes([[10, 10, 50, 50], [60, 20, 110, 70]], [2, 0])
SAMPLE = Sample(
    key="a",
    image=np.zeros((80, 120, 3), np.uint8),
    boxes=TRUTH,
    proposals=np.concatenate([proposals(600), TRUTH.xyxy.repeat(10, 0) + 2]),
)


def test_regions_are_sampled_as_the_paper_says() -> None:
    """64 an image, a quarter of them objects at an overlap of a half, the others at 0.1 to 0.5."""
    task = Task(CLASSES)
    targets = task.encode(SAMPLE, Draws(0, 0, 0), train=True).targets
    overlap = iou(targets["regions"], TRUTH.xyxy)
    labels = targets["labels"]
    assert len(labels) == 64 and (labels > 0).sum() == 16 and (labels == 0).sum() == 48
    assert (overlap.max(1)[labels > 0] >= 0.5).all()
    back = overlap.max(1)[labels == 0]
    assert (back >= 0.1).all() and (back < 0.5).all()
    assert (labels[labels > 0] == 1 + TRUTH.labels[overlap.argmax(1)[labels > 0]]).all()
    decoded = ops.decode(torch.tensor(targets["regions"]), torch.tensor(targets["deltas"])).numpy()
    fore = labels > 0
    assert np.allclose(decoded[fore], TRUTH.xyxy[overlap.argmax(1)[fore]], atol=1e-3)
    assert np.abs(targets["deltas"][~fore]).max() == 0


def test_what_is_sampled_hangs_on_seed_epoch_and_sample_alone() -> None:
    task = Task(CLASSES)

    def regions(*which: int) -> np.ndarray:
        return np.asarray(
            task.encode(SAMPLE, Draws(*which), train=True).targets["regions"], np.float32
        )

    assert np.array_equal(regions(0, 1, 2), regions(0, 1, 2))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not np.array_equal(regions(0, 1, 2), regions(*other))


def test_an_image_without_objects_gives_background_alone() -> None:
    sample = Sample(key="a", image=SAMPLE.image, boxes=boxes([], []), proposals=proposals(100))
    labels = Task(CLASSES).encode(sample, Draws(0, 0, 0), train=True).targets["labels"]
    assert (labels == 0).sum() == 64


def test_where_too_few_overlap_a_little_lesser_ones_fill_up_last() -> None:
    sample = Sample(key="a", image=SAMPLE.image, boxes=TRUTH, proposals=proposals(100, seed=3))
    task = Task(CLASSES, background_iou=(0.3, 0.5))
    targets = task.encode(sample, Draws(0, 0, 0), train=True).targets
    assert sample.proposals is not None
    wanted = iou(np.concatenate([TRUTH.xyxy, sample.proposals]), TRUTH.xyxy).max(1)
    enough = ((wanted >= 0.3) & (wanted < 0.5)).sum()
    back = iou(targets["regions"][targets["labels"] == 0], TRUTH.xyxy).max(1)
    assert 0 < enough < len(back) and (back[:enough] >= 0.3).all() and (back[enough:] < 0.3).all()


def test_what_is_missing_counts_for_nothing() -> None:
    sample = Sample(key="a", image=SAMPLE.image, boxes=TRUTH, proposals=proposals(5))
    targets = Task(CLASSES).encode(sample, Draws(0, 0, 0), train=True).targets
    assert targets["regions"].shape == (64, 4) and targets["deltas"].shape == (64, 4)
    assert (targets["labels"] == detection.UNCOUNTED).sum() == 64 - 7


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_difficult_objects_and_crowds_are_neither_objects_nor_background(kind: str) -> None:
    truth = boxes(TRUTH.xyxy, TRUTH.labels, **{kind: [1]})
    inside = np.tile(np.array([[62, 22, 108, 68]], np.float32), (50, 1))
    sample = Sample(
        key="a", image=SAMPLE.image, boxes=truth, proposals=np.concatenate([inside, proposals(300)])
    )
    task = Task(CLASSES, background_iou=(0.0, 0.5))  # all that is background is as likely
    targets = task.encode(sample, Draws(0, 0, 0), train=True).targets
    assert set(targets["labels"].tolist()) == {0, 3}, "the cat is difficult"
    overlap = iou(targets["regions"][targets["labels"] == 0], TRUTH.xyxy[1:])[:, 0]
    assert overlap.max() < 0.5


def test_flat_proposals_are_left_out() -> None:
    flat = np.array([[5, 5, 5, 30], [0, 0, 0.5, 70], [9, 9, 3, 3], [0, 0, 30, 30]], np.float32)
    sample = Sample(key="a", image=SAMPLE.image, boxes=TRUTH, proposals=flat)
    found = Task(CLASSES).encode(sample, None, train=False).targets["proposals"]
    assert found.tolist() == [[0, 0, 30, 30]]


class Told(nn.Module):
    """Knows what each region is: by a function from regions [K, 5] to (logits, deltas)."""

    delta_mean = torch.tensor([[0.1, 0, 0, 0], [0, 0.2, 0, 0], [0, 0, 0, 0.3]])
    delta_std = torch.tensor([[0.1, 0.1, 0.2, 0.2], [1.0, 1, 1, 1], [0.5, 0.5, 0.5, 0.5]])

    def __init__(self, logits: torch.Tensor, deltas: torch.Tensor | None) -> None:
        super().__init__()
        self.logits, self.deltas = logits, deltas

    def forward(self, image: torch.Tensor, regions: torch.Tensor) -> Outputs:
        assert len(regions) == len(self.logits)
        return Outputs(self.logits, self.deltas)


def training_batch(labels: Any, deltas: torch.Tensor, valid: Any) -> Batch:
    labels = torch.tensor(labels)
    b, r = labels.shape
    return Batch(
        inputs={"image": torch.zeros(b, 3, 8, 8)},
        targets={
            "regions": torch.tensor([0.0, 0, 8, 8]).expand(b, r, 4),
            "labels": labels,
            "deltas": deltas,
            "valid": torch.tensor(valid),
        },
        keys=["a"] * b,
        ids=np.arange(b),
        matrices=np.tile(np.eye(3), (b, 1, 1)),
        sizes=np.full((b, 2), 8),
        valid=np.asarray(valid),
    )


def test_losses_are_those_of_the_paper_written_plainly() -> None:
    torch.manual_seed(0)
    labels = [[0, 1, 3, -1], [2, 0, 0, 1], [1, 1, 1, 1]]
    true, told = torch.randn(3, 4, 4), torch.randn(12, 12)
    logits = torch.randn(12, 4)
    batch = training_batch(labels, true, [True, True, False])
    task, model = Task(CLASSES), Told(logits, told)
    weights, losses = task.weights(batch), task.losses(model, batch)
    cross_entropy = smooth = 0.0
    for row, label in enumerate([*labels[0], *labels[1]]):
        if label == -1:
            continue
        cross_entropy -= float(logits[row].log_softmax(0)[label])
        if label:
            k = label - 1
            aim = (true.view(12, 4)[row] - model.delta_mean[k]) / model.delta_std[k]
            for a, b in zip(told[row, 4 * k : 4 * k + 4], aim, strict=True):
                off = abs(float(a - b))
                smooth += 0.5 * off**2 if off < 1 else off - 0.5
    assert float(weights["cross_entropy"]) == float(weights["boxes"]) == 7
    assert float(losses["cross_entropy"]) == pytest.approx(cross_entropy, rel=1e-5)
    assert float(losses["boxes"]) == pytest.approx(smooth, rel=1e-5)


def test_a_network_without_boxes_learns_classes_alone() -> None:
    batch = training_batch([[0, 1]], torch.zeros(1, 2, 4), [True])
    losses = Task(CLASSES).losses(Told(torch.zeros(2, 4), None), batch)
    assert list(losses) == ["cross_entropy"]


def test_a_loss_of_ones_own_gets_logits_and_labels() -> None:
    batch = training_batch([[0, 1, -1]], torch.zeros(1, 3, 4), [True])
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 2 * F.cross_entropy(logits, labels, reduction="none")

    own = Task(CLASSES, loss=loss).losses(Told(logits, None), batch)["cross_entropy"]
    usual = Task(CLASSES).losses(Told(logits, None), batch)["cross_entropy"]
    assert float(own) == pytest.approx(2 * float(usual))


def evaluation_batch(
    given: list[np.ndarray], scale: float = 1.0, size: tuple[int, int] = (80, 120)
) -> Batch:
    h, w = size
    n = len(given)
    return Batch(
        inputs={"image": torch.zeros(n, 3, round(h * scale), round(w * scale))},
        targets={"proposals": [torch.tensor(g * scale) for g in given]},
        keys=[str(i) for i in range(n)],
        ids=np.arange(n),
        matrices=np.tile(np.diag([scale, scale, 1.0]), (n, 1, 1)),
        sizes=np.tile([h, w], (n, 1)),
        valid=np.ones(n, bool),
    )


class Knows(nn.Module):
    """Sees the truth: the class of each region that is an object, and how far it is off."""

    def __init__(self, truth: Boxes, scale: float) -> None:
        super().__init__()
        self.truth, self.scale = truth, scale

    def forward(self, image: torch.Tensor, regions: torch.Tensor) -> Outputs:
        true = self.truth.xyxy * self.scale
        overlap = iou(regions[:, 1:].numpy(), true)
        best, most = overlap.argmax(1), overlap.max(1)
        logits = torch.zeros(len(regions), 4)
        logits[:, 0] = 8
        for row in np.flatnonzero(most > 0.5):
            logits[row, 1 + self.truth.labels[best[row]]] = float(8 + 8 * most[row])
        moved = ops.encode(regions[:, 1:], torch.tensor(true[best], dtype=torch.float32))
        return Outputs(logits, moved.repeat(1, 3))


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.5])
def test_who_sees_the_truth_scores_perfectly(scale: float) -> None:
    """In original pixels, whatever the size that the network saw."""
    task = Task(CLASSES)
    assert SAMPLE.proposals is not None
    batch = evaluation_batch([SAMPLE.proposals], scale)
    found = task.predict(Knows(TRUTH, scale), batch)
    assert len(found[0]) == 2
    meter = task.meter()
    meter.update(found, [SAMPLE])
    metrics = meter.compute()
    assert metrics["map"] == metrics["map_voc07"] == metrics["recall100"] == 1
    order = found[0].labels.argsort()
    assert np.allclose(found[0].xyxy[order], TRUTH.xyxy[[1, 0]], atol=1e-2)
    details = task.details(meter)
    assert [row["ap"] for row in details["per_class"]][::2] == [1, 1]
    assert [row["missed"] for row in details["errors"]] == [0, 0, 0]


def test_who_sees_nothing_scores_nothing() -> None:
    task = Task(CLASSES)
    batch = evaluation_batch([np.zeros((0, 4), np.float32)])
    found = task.predict(Knows(TRUTH, 1.0), batch)
    meter = task.meter()
    meter.update(found, [SAMPLE])
    assert len(found[0]) == 0 and meter.compute()["map"] == 0


def test_the_mirror_image_is_averaged() -> None:
    """A network that looks at the left half alone sees both halves with ``flip``."""

    class Half(nn.Module):
        def forward(self, image: torch.Tensor, regions: torch.Tensor) -> Outputs:
            left = (regions[:, 1] + regions[:, 3]) / 2 < 60
            logits = torch.zeros(len(regions), 4)
            logits[:, 1] = torch.where(left, 9.0, -9.0)
            return Outputs(logits, torch.zeros(len(regions), 12))

    given = np.array([[0, 0, 30, 30], [90, 50, 119, 70]], np.float32)
    task = Task(CLASSES)
    once = task.predict(Half(), evaluation_batch([given]))[0]
    both = task.predict(Half(), evaluation_batch([given]), flip=True)[0]
    assert once.scores[once.labels == 0].max() > 0.99
    assert (once.labels == 0).sum() == 1
    cats = both.labels == 0
    assert both.scores[cats] == pytest.approx([0.5, 0.5], abs=1e-3)
    assert np.allclose(np.sort(both.xyxy[cats], 0), np.sort(given, 0), atol=1e-3)


def test_least_score_and_most_choose_what_is_given() -> None:
    given = np.array([[10 * i, 0, 10 * i + 9, 70] for i in range(12)], np.float32)

    class Graded(nn.Module):
        def forward(self, image: torch.Tensor, regions: torch.Tensor) -> Outputs:
            logits = torch.full((len(regions), 4), -20.0)
            logits[:, 0] = 0
            logits[:, 2] = torch.linspace(-3, 3, len(regions))
            return Outputs(logits, torch.zeros(len(regions), 12))

    batch = evaluation_batch([given])
    every = Task(CLASSES).predict(Graded(), batch)[0]
    assert len(every) == 12 and (np.diff(every.scores) <= 0).all()
    sure = Task(CLASSES, least_score=0.5).predict(Graded(), batch)[0]
    assert len(sure) == 6 and sure.scores.min() > 0.5
    few = Task(CLASSES, most=3).predict(Graded(), batch)[0]
    assert np.array_equal(few.xyxy, every.xyxy[:3])


def test_five_thousand_proposals_and_degenerate_boxes_give_finite_numbers() -> None:
    class Wild(nn.Module):
        def forward(self, image: torch.Tensor, regions: torch.Tensor) -> Outputs:
            made = torch.Generator().manual_seed(0)
            logits = torch.randn(len(regions), 4, generator=made) * 5
            return Outputs(logits, torch.randn(len(regions), 12, generator=made) * 50)

    found = Task(CLASSES).predict(Wild(), evaluation_batch([proposals(5000)]))[0]
    assert np.isfinite(found.xyxy).all() and np.isfinite(found.scores).all()
    assert len(found) <= 100
    assert (found.xyxy >= 0).all() and (found.xyxy[:, 2] <= 120).all()


def test_delta_statistics_are_those_of_the_proposals_on_objects() -> None:
    assert SAMPLE.proposals is not None
    fields = {"boxes": SAMPLE.boxes, "proposals": SAMPLE.proposals}
    empty = {"boxes": boxes([], []), "proposals": SAMPLE.proposals}
    mean, std = detection.delta_statistics(lambda i: fields if i else empty, np.arange(2), 3)
    overlap = iou(SAMPLE.proposals, TRUTH.xyxy)
    rows = np.flatnonzero((overlap.max(1) >= 0.5) & (overlap.argmax(1) == 0))
    true = np.tile(TRUTH.xyxy[:1], (len(rows), 1))
    plain = detection.deltas(SAMPLE.proposals[rows], true)
    assert np.allclose(mean[2], plain.mean(0), atol=1e-6)
    assert np.allclose(std[2], plain.std(0), atol=1e-6)
    assert mean[1].tolist() == [0] * 4 and std[1] == pytest.approx([0.1, 0.1, 0.2, 0.2])


@pytest.mark.parametrize("soft", ["linear", "gaussian"])
def test_soft_suppression_lowers_scores_and_keeps_the_least(soft: str) -> None:
    """Of three boxes on one another the first stays as sure, and the last fades away."""
    given = np.array([[0, 0, 50, 50], [1, 0, 51, 50], [0, 1, 50, 51]], np.float32)

    class Sure(nn.Module):
        def forward(self, image: torch.Tensor, regions: torch.Tensor) -> Outputs:
            logits = torch.full((len(regions), 4), -20.0)
            logits[:, 0] = 0
            logits[:, 2] = torch.tensor([3.0, 2.0, 1.0])
            return Outputs(logits, torch.zeros(len(regions), 12))

    hard = Task(CLASSES).predict(Sure(), evaluation_batch([given]))[0]
    assert len(hard) == 1
    every = Task(CLASSES, soft_nms=soft).predict(Sure(), evaluation_batch([given]))[0]
    assert every.scores[0] == hard.scores[0] and len(every) > 1
    assert (every.scores[1:] < torch.tensor([2.0, 1.0]).sigmoid().numpy()[: len(every) - 1]).all()
    few = Task(CLASSES, soft_nms=soft, least_score=0.5).predict(Sure(), evaluation_batch([given]))[
        0
    ]
    assert (few.scores >= 0.5).all() and len(few) < len(every)


def test_a_network_of_ones_own_may_learn_deltas_as_they_are() -> None:
    class Plain(nn.Module):
        def forward(self, image: torch.Tensor, regions: torch.Tensor) -> Outputs:
            return Outputs(torch.zeros(2, 4), torch.zeros(2, 12))

    batch = training_batch([[1, 2]], torch.full((1, 2, 4), 2.0), [True])
    assert float(Task(CLASSES).losses(Plain(), batch)["boxes"]) == 2 * 4 * 1.5
