"""Detection where the network proposes: what is sampled, four losses, and what is predicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vidi.data.draws import Draws
from vidi.data.overlap import iou
from vidi.engine.gradients import split
from vidi.models.faster_rcnns import Anchored, Outputs
from vidi.models.small_faster_rcnns import faster_rcnn_small
from vidi.ops import anchors as grids
from vidi.ops import boxes as ops
from vidi.ops.regions import regions_of
from vidi.tasks import detection
from vidi.tasks.detection import Task
from vidi.types import Batch, Boxes, Sample

CLASSES = ("cat", "dog", "cow")
SIZE = (80, 120)
LOSSES = ("cross_entropy", "boxes", "objectness", "anchors")


def boxes(xyxy: Any, labels: Any, difficult: Any = (), crowd: Any = ()) -> Boxes:
    n = len(labels)
    return Boxes(
        xyxy=np.asarray(xyxy, np.float32).reshape(-1, 4),
        labels=np.asarray(labels, np.int64),
        difficult=np.isin(np.arange(n), difficult),
        crowd=np.isin(np.arange(n), crowd),
    )


TRUTH = boxes([[10, 10, 50, 50], [60, 20, 110, 70]], [2, 0])
OTHER = boxes([[30, 5, 70, 75]], [1])
NONE = boxes([], [])


def near(truth: np.ndarray, n: int, seed: int) -> Tensor:
    """Proposals: the true boxes moved a little and a lot, and anything else."""
    rng = np.random.default_rng(seed)
    moved = truth.repeat(n, 0) + rng.normal(0, 6, (n * len(truth), 4))
    corners = np.sort(rng.uniform(0, 1, (4 * n, 2, 2)), 1).reshape(-1, 4)
    every = np.concatenate([moved, corners * np.tile(SIZE[::-1], 2)])
    return torch.tensor(every, dtype=torch.float32)


def grid() -> Tensor:
    """Anchors of one map, of two shapes."""
    shapes = grids.about(torch.tensor([[38.0, 38], [20, 60]]), 4)
    return grids.grid((10, 15), 8, shapes)


class Proposing(nn.Module):
    """Proposes what it was made with, and keeps what it is then asked about.

    All it says is a number of its own for each region and anchor, by the sample's ``image``, whose
    first pixel is the sample's number. What gets a gradient was sampled.
    """

    proposes = True
    beta = 0.5
    delta_std = torch.tensor([0.1, 0.1, 0.2, 0.2])

    def __init__(self, proposals: list[Tensor], anchors: Tensor, seed: int = 0) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(seed)
        self.proposals, self.anchors = proposals, anchors
        n = len(proposals)
        self.logits = torch.randn(n, len(anchors), generator=made).requires_grad_()
        self.moves = torch.randn(n, len(anchors), 4, generator=made).requires_grad_()
        self.sizes: Any = None
        self.outputs: Any = None

    def forward(
        self,
        image: Tensor,
        regions: Tensor | Callable[[list[Tensor]], Tensor] | None = None,
        sizes: Any = None,
    ) -> Outputs:
        which = image[:, 0, 0, 0].long()
        self.sizes = sizes
        if not isinstance(regions, Tensor):
            proposed = [self.proposals[int(k)] for k in which]
            regions = regions_of(proposed) if regions is None else regions(proposed)
        where = regions[:, 1:] / 120
        spread = torch.linspace(-3, 3, 4 * 12).view(4, 12)
        logits = where @ spread[:, :4] + which[regions[:, 0].long()][:, None]
        self.outputs = Outputs(
            logits,
            (where @ spread).sin(),
            None,
            regions,
            Anchored(self.logits[which], self.moves[which], self.anchors, (len(self.anchors),)),
        )
        return self.outputs


def sample(truth: Boxes, size: tuple[int, int] = SIZE) -> Sample:
    return Sample(key="a", image=np.zeros((*size, 3), np.uint8), boxes=truth)


def batch(
    task: Task,
    truths: list[Boxes],
    ids: list[int] | None = None,
    valid: list[bool] | None = None,
    epoch: int = 0,
) -> Batch:
    """As the loader and the move to the device make it: what differs in length is a list."""
    ids = list(range(len(truths))) if ids is None else ids
    encoded = [
        task.encode(sample(truth), Draws(3, epoch, i), train=True).targets
        for truth, i in zip(truths, ids, strict=True)
    ]
    targets: dict[str, Any] = {}
    for name in encoded[0]:
        values = [torch.from_numpy(np.asarray(e[name])) for e in encoded]
        alike = len({v.shape for v in values}) == 1
        targets[name] = torch.stack(values) if alike else values
    n = len(truths)
    image = torch.zeros(n, 3, *SIZE)
    image[:, 0, 0, 0] = torch.tensor(ids, dtype=torch.float32)
    good = np.ones(n, bool) if valid is None else np.array(valid)
    return Batch(
        inputs={"image": image},
        targets=targets | {"valid": torch.from_numpy(good)},
        keys=[str(i) for i in ids],
        ids=np.array(ids),
        matrices=np.tile(np.eye(3), (n, 1, 1)),
        sizes=np.tile(SIZE, (n, 1)),
        valid=good,
    )


def network(truths: list[Boxes], n: int = 40) -> Proposing:
    return Proposing([near(t.xyxy, n, k) for k, t in enumerate(truths)], grid())


def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items()}


def smooth(off: float, beta: float) -> float:
    return 0.5 * off**2 / beta if abs(off) < beta else abs(off) - 0.5 * beta


# What is encoded


def test_the_truth_is_handed_on_for_the_network_to_meet() -> None:
    task = Task(CLASSES, proposes=True)
    truth = boxes(np.concatenate([TRUTH.xyxy, OTHER.xyxy]), [2, 0, 1], difficult=[1], crowd=[2])
    found = task.encode(sample(truth), Draws(0, 0, 5), train=True).targets
    assert found["boxes"].dtype == np.float32 and np.array_equal(found["boxes"], truth.xyxy)
    assert found["classes"].tolist() == [2, 0, 1] and found["kinds"].tolist() == [0, 1, 2]
    assert found["size"].tolist() == [80, 120]
    seeds = [
        int(task.encode(sample(truth), Draws(*which), train=True).targets["seed"])
        for which in ((0, 0, 5), (0, 0, 5), (1, 0, 5), (0, 1, 5), (0, 0, 6))
    ]
    assert seeds[0] == seeds[1] == int(found["seed"]) and len(set(seeds)) == 4
    assert task.encode(sample(truth), Draws(0, 0, 5), train=False).targets == {}


# Losses


def test_the_losses_are_those_of_the_papers_written_plainly() -> None:
    """On what was sampled, which is told by the regions asked about and the anchors' gradients."""
    truths = [TRUTH, OTHER, NONE]
    task, model = Task(CLASSES, proposes=True, anchors=64), network(truths)
    made = batch(task, truths)
    losses = task.losses(model, made)
    assert tuple(losses) == LOSSES
    torch.stack(list(losses.values())).sum().backward()
    assert model.sizes == [SIZE] * 3

    expected = dict.fromkeys(LOSSES, 0.0)
    regions, logits, told = (x.detach() for x in (model.outputs.regions, *model.outputs[:2]))
    for region, scores, moves in zip(regions, logits, told, strict=True):
        truth = truths[int(region[0])]
        overlap = iou(region[None, 1:].numpy(), truth.xyxy)[0]
        label = 0
        if len(overlap) and overlap.max() >= 0.5:
            one = int(overlap.argmax())
            label = 1 + int(truth.labels[one])
            true = ops.encode(region[None, 1:], torch.tensor(truth.xyxy[[one]]))[0]
            for k in range(4):
                off = float(moves[4 * label - 4 + k] - true[k] / model.delta_std[k])
                expected["boxes"] += smooth(off, 0.5)
        expected["cross_entropy"] -= float(scores.log_softmax(0)[label])
    anchors = grid()
    assert model.logits.grad is not None and model.moves.grad is not None
    for image, truth in enumerate(truths):
        overlap = iou(anchors.numpy(), truth.xyxy)
        rows = model.logits.grad[image].nonzero()[:, 0].tolist()
        objects = []
        for row in rows:
            most = overlap[row].max(initial=0)
            is_object = bool(len(truth)) and bool(
                most >= 0.7 or (overlap[row] == overlap.max(0)).any()
            )
            assert is_object or most < 0.3
            score = model.logits[image, row].detach()
            sure = score.sigmoid() if is_object else 1 - score.sigmoid()
            expected["objectness"] -= float(sure.log())
            if is_object:
                objects.append(row)
                one = int(overlap[row].argmax())
                true = ops.encode(anchors[[row]], torch.tensor(truth.xyxy[[one]]))[0]
                for k in range(4):
                    off = float(model.moves[image, row, k].detach() - true[k])
                    expected["anchors"] += smooth(off, 0.5)
        assert len(rows) == 64 and len(objects) <= 32 and bool(objects) == bool(len(truth))
        moved = model.moves.grad[image].any(1).nonzero()[:, 0].tolist()
        assert moved == objects
    assert numbers(losses) == pytest.approx(expected, rel=1e-4)
    assert min(expected.values()) > 1


def test_means_are_over_what_is_sampled_of_images_that_can_be_read() -> None:
    task = Task(CLASSES, proposes=True, regions=32, anchors=100)
    made = batch(task, [TRUTH, OTHER, NONE], valid=[True, False, True])
    found = numbers(task.weights(made))
    assert found == {"cross_entropy": 64, "boxes": 64, "objectness": 200, "anchors": 200}


def test_regions_are_sampled_as_for_given_proposals() -> None:
    """A quarter objects of a half's overlap, the rest background of 0.1 to 0.5, true boxes too."""
    task, model = Task(CLASSES, proposes=True), network([TRUTH])
    task.losses(model, batch(task, [TRUTH]))
    found = model.outputs.regions[:, 1:].numpy()
    most = iou(found, TRUTH.xyxy).max(1)
    assert len(found) == 64 and (most >= 0.5).sum() == 16
    assert ((most >= 0.1) & (most < 0.5)).sum() == 48
    few = Proposing([torch.tensor([[1.0, 1, 1.5, 60], [2, 2, 30, 30]])], grid())
    task.losses(few, batch(task, [TRUTH]))
    asked = few.outputs.regions[:, 1:].tolist()
    assert sorted(asked) == sorted([*TRUTH.xyxy.tolist(), [2, 2, 30, 30]]), "none that is flat"


def sampled(task: Task, model: Proposing, made: Batch) -> list[tuple[list[Any], list[int]]]:
    """Of each image the regions and the anchors that were sampled."""
    model.logits.grad = None
    task.losses(model, made)["objectness"].backward()
    assert model.logits.grad is not None
    out = []
    for row, i in enumerate(made.ids.tolist()):
        regions = model.outputs.regions
        own = regions[regions[:, 0] == row, 1:]
        out.append((own.tolist(), model.logits.grad[i].nonzero()[:, 0].tolist()))
    return out


def test_what_is_sampled_hangs_on_seed_epoch_and_sample_alone() -> None:
    truths = [TRUTH, OTHER, NONE, TRUTH]
    task, model = Task(CLASSES, proposes=True, anchors=64), network(truths)
    whole = sampled(task, model, batch(task, truths))
    assert sampled(task, model, batch(task, truths)) == whole
    backwards = sampled(task, model, batch(task, truths[::-1], ids=[3, 2, 1, 0]))
    assert backwards == whole[::-1]
    for i in range(4):
        assert sampled(task, model, batch(task, [truths[i]], ids=[i])) == [whole[i]]
    later = sampled(task, model, batch(task, truths, epoch=1))
    for (regions, anchors), (others, later_anchors) in zip(whole, later, strict=True):
        assert sorted(regions) != sorted(others) and anchors != later_anchors
    same = Proposing([model.proposals[0]] * 4, grid())
    first, second = sampled(task, same, batch(task, [TRUTH, TRUTH], ids=[0, 3]))
    assert sorted(first[0]) != sorted(second[0]) and first[1] != second[1]


def test_half_of_the_anchors_are_objects_where_there_are_enough() -> None:
    model = network([TRUTH])
    overlap = iou(grid().numpy(), TRUTH.xyxy)
    there = int(((overlap >= 0.5) | (overlap == overlap.max(0))).any(1).sum())
    assert there > 6
    for asked, objects in ((6, 3), (12, 6), (200, there)):
        task = Task(CLASSES, proposes=True, anchors=asked, anchor_iou=(0.3, 0.5))
        ((_, anchors),) = sampled(task, model, batch(task, [TRUTH]))
        assert len(anchors) == asked
        assert (overlap[anchors].max(1) >= 0.3).sum() == objects


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_difficult_objects_and_crowds_are_neither_objects_nor_background(kind: str) -> None:
    truth = boxes(TRUTH.xyxy, TRUTH.labels, **{kind: [1]})
    inside = torch.tensor([[62.0, 22, 108, 68]]).repeat(50, 1)
    model = Proposing([torch.cat((inside, near(TRUTH.xyxy[:1], 40, 0)))], grid())
    # All that is background as likely; all the anchors there are.
    task = Task(CLASSES, proposes=True, background_iou=(0.0, 0.5), anchors=1000)
    ((regions, anchors),) = sampled(task, model, batch(task, [truth]))
    found = np.array(regions, np.float32)
    assert iou(found, TRUTH.xyxy[1:])[:, 0].max() < 0.5
    labels = iou(found, TRUTH.xyxy[:1])[:, 0] >= 0.5
    assert 0 < labels.sum() <= 16
    every = grid().numpy()
    overlap = iou(every, TRUTH.xyxy)
    if kind == "difficult":
        hidden = overlap[:, 1] >= 0.5
    else:
        hidden = ops.covered(grid(), torch.tensor(TRUTH.xyxy[1:]))[:, 0].numpy() >= 0.5
    expected = (overlap[:, 0] < 0.3) & ~hidden
    expected |= (overlap[:, 0] >= 0.7) | (overlap[:, 0] == overlap[:, 0].max())
    assert hidden.sum() > 3 and anchors == np.flatnonzero(expected).tolist()


@pytest.mark.parametrize("proposed", [True, False])
def test_images_without_objects_give_finite_losses_and_none_for_boxes(proposed: bool) -> None:
    """Even where nothing at all is proposed."""
    task = Task(CLASSES, proposes=True)
    given = near(NONE.xyxy, 40, 0) if proposed else torch.zeros(0, 4)
    model = Proposing([given, given], grid())
    losses = task.losses(model, batch(task, [NONE, NONE]))
    found = numbers(losses)
    assert all(np.isfinite(v) for v in found.values())
    assert found["boxes"] == found["anchors"] == 0
    assert found["objectness"] > 1 and (found["cross_entropy"] > 1) == proposed
    torch.stack(list(losses.values())).sum().backward()
    assert model.logits.grad is not None and model.logits.grad.isfinite().all()
    assert model.moves.grad is not None and not model.moves.grad.any()


def test_what_cannot_be_read_counts_for_nothing() -> None:
    truths = [TRUTH, OTHER, TRUTH]
    task, model = Task(CLASSES, proposes=True), network(truths)
    made = batch(task, truths, valid=[True, False, True])
    losses = task.losses(model, made)
    kept = task.losses(model, batch(task, [TRUTH, TRUTH], ids=[0, 2]))
    assert numbers(losses) == pytest.approx(numbers(kept), rel=1e-6)
    torch.stack(list(losses.values())).sum().backward()
    assert model.logits.grad is not None and model.moves.grad is not None
    assert not model.logits.grad[1].any() and model.logits.grad[0].any()
    assert not model.moves.grad[1].any()
    # Nor if the network makes of its blank image what is no number.
    with torch.no_grad():
        model.logits[1] = torch.nan
        model.moves[1] = torch.inf
    again = task.losses(model, made)
    assert numbers(again) == pytest.approx(numbers(kept), rel=1e-6)
    none = task.losses(model, batch(task, truths, valid=[False] * 3))
    assert set(numbers(none).values()) == {0.0}


def small() -> Any:
    torch.manual_seed(0)
    tiny: dict[str, Any] = {
        "stem": (4, 8), "widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "merged": 8, "pooled": 3,
        "hidden": 16,
    }  # fmt: skip
    made = faster_rcnn_small(3, **tiny)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_a_batch_in_parts_gives_the_losses_of_the_whole(parts: int) -> None:
    """With a real network, whose statistics are fixed for it: gradients, too."""
    truths = [TRUTH, OTHER, NONE, TRUTH, OTHER]
    task, model = Task(CLASSES, proposes=True, regions=32), small().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    made = batch(task, truths, valid=[True, True, True, False, True])
    made.inputs["image"] = torch.randn(5, 3, *SIZE, generator=torch.Generator().manual_seed(0))

    def gradients(some: list[Batch]) -> tuple[dict[str, float], dict[str, float], Tensor]:
        model.zero_grad()
        losses, weights = dict.fromkeys(LOSSES, 0.0), dict.fromkeys(LOSSES, 0.0)
        for part in some:
            told = task.losses(model, part)
            torch.stack(list(told.values())).sum().backward()
            for name in LOSSES:
                losses[name] += float(told[name].detach())
                weights[name] += float(task.weights(part)[name])
        return losses, weights, torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, apart = gradients([made]), gradients(split(made, parts))
    assert apart[0] == pytest.approx(whole[0], rel=1e-4)
    assert apart[1] == whole[1]
    torch.testing.assert_close(apart[2], whole[2], rtol=1e-3, atol=1e-4)


def test_an_image_is_not_proposed_beyond_its_own_size() -> None:
    """In a batch that is padded to the largest."""
    task, model = Task(CLASSES, proposes=True), small().train()
    made = batch(task, [NONE, NONE])
    made.targets["size"] = torch.tensor([[40, 60], [80, 120]])
    heard: list[Tensor] = []
    forward = model.forward

    def hearing(image: Tensor, choose: Any, sizes: Any) -> Any:
        def also(proposals: list[Tensor]) -> Tensor:
            heard.extend(proposals)
            return choose(proposals)

        return forward(image, also, sizes)

    model.forward = hearing
    task.losses(model, made)
    assert len(heard[0]) and heard[0][:, 2].max() <= 60 and heard[0][:, 3].max() <= 40
    assert heard[1][:, 2].max() > 60


def test_a_loss_of_ones_own_is_for_classes_alone() -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return (labels > 0).float()

    task = Task(CLASSES, proposes=True, loss=loss)
    usual, own = Task(CLASSES, proposes=True), network([TRUTH])
    found = numbers(task.losses(own, batch(task, [TRUTH])))
    plain = numbers(usual.losses(own, batch(usual, [TRUTH])))
    assert found.pop("cross_entropy") == 16
    plain.pop("cross_entropy")
    assert found == pytest.approx(plain)


# Predictions


class Knows(nn.Module):
    """Proposes each image's objects and some background, and knows them apart.

    The images' first pixel is their number; an image whose last column is marked is a mirror image.
    """

    proposes = True
    beta = 1.0
    delta_std = torch.tensor([0.1, 0.1, 0.2, 0.2])

    def __init__(self, truths: list[Boxes], scale: float = 1.0) -> None:
        super().__init__()
        self.truths, self.scale = truths, scale

    def forward(self, image: Tensor, regions: Any = None, sizes: Any = None) -> Outputs:
        which = image[:, 0, 0, 0].long().tolist()
        true = [torch.tensor(self.truths[k].xyxy) * self.scale for k in which]
        rest = torch.tensor([[0.0, 0, 8, 8], [70, 2, 79, 9]])
        if not isinstance(regions, Tensor):
            proposed = [torch.cat((t + 1, rest)) for t in true]
            regions = regions_of(proposed) if regions is None else regions(proposed)
        logits = torch.zeros(len(regions), 4)
        moves = torch.zeros(len(regions), 12)
        for row, region in enumerate(regions):
            own, objects = true[int(region[0])], self.truths[which[int(region[0])]]
            overlap = ops.iou(region[None, 1:], own)[0]
            label = 0
            if len(own) and overlap.max() >= 0.5:
                one = int(overlap.argmax())
                label = 1 + int(objects.labels[one])
                moves[row] = ops.encode(region[None, 1:], own[[one]])[0].repeat(3)
            logits[row, label] = 30
        if self.training:
            moves = moves / self.delta_std.repeat(3)
        far = grids.grid((10, 15), 8, torch.tensor([[0.0, 0, 8, 8]]))
        anchors = torch.cat((far, *true))
        objectness = torch.full((len(image), len(anchors)), -30.0)
        first = len(far)
        for row, own in enumerate(true):
            objectness[row, first : first + len(own)] = 30
            first += len(own)
        told = torch.zeros(len(image), len(anchors), 4)
        return Outputs(
            logits, moves, None, regions, Anchored(objectness, told, anchors, (len(anchors),))
        )


def seen(truths: list[Boxes], scale: float = 1.0) -> Batch:
    h, w = round(SIZE[0] * scale), round(SIZE[1] * scale)
    n = len(truths)
    image = torch.zeros(n, 3, h, w)
    image[:, 0, 0, 0] = torch.arange(n)
    return Batch(
        inputs={"image": image},
        targets={"valid": torch.ones(n, dtype=torch.bool)},
        keys=[str(i) for i in range(n)],
        ids=np.arange(n),
        matrices=np.tile(np.diag([scale, scale, 1.0]), (n, 1, 1)),
        sizes=np.tile(SIZE, (n, 1)),
        valid=np.ones(n, bool),
    )


def test_who_knows_all_has_hardly_any_loss() -> None:
    """Deltas are learned divided by their deviation, or the boxes' loss were not nought."""
    truths = [TRUTH, NONE]
    # The other image has an anchor on none of this one's objects.
    task = Task(CLASSES, proposes=True)
    found = numbers(task.losses(Knows(truths).train(), batch(task, truths)))
    assert max(found.values()) < 1e-4


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.5])
def test_who_knows_all_scores_perfectly(scale: float) -> None:
    truths = [TRUTH, NONE, OTHER]
    task = Task(CLASSES, proposes=True)
    found = task.predict(Knows(truths, scale).eval(), seen(truths, scale))
    meter = task.meter()
    meter.update(found, [sample(truth) for truth in truths])
    assert meter.compute()["map"] == meter.compute()["recall100"] == 1
    assert [len(f) for f in found] == [2, 0, 1]


def rows(found: Any) -> np.ndarray:
    """(box, class, score) of each, the surest first."""
    return np.concatenate([found.xyxy, found.labels[:, None], found.scores[:, None]], 1)


def test_images_of_differing_sizes_equal_their_singles() -> None:
    task, model = Task(CLASSES, proposes=True), small().eval()
    made = torch.Generator().manual_seed(0)
    sizes = [(80, 120), (33, 97), (64, 64)]
    images = [torch.randn(1, 3, *size, generator=made) for size in sizes]

    def of(which: list[int]) -> Batch:
        n = len(which)
        return Batch(
            inputs={"image": [images[k] for k in which]},
            targets={"valid": torch.ones(n, dtype=torch.bool)},
            keys=["a"] * n,
            ids=np.array(which),
            matrices=np.tile(np.eye(3), (n, 1, 1)),
            sizes=np.array([sizes[k] for k in which]),
            valid=np.ones(n, bool),
        )

    with torch.no_grad():
        whole = task.predict(model, of([0, 1, 2]))
        for k in range(3):
            (alone,) = task.predict(model, of([k]))
            assert len(alone) > 5 and np.array_equal(rows(alone), rows(whole[k]))
            assert (alone.xyxy <= [*sizes[k][::-1]] * 2).all()


class Lopsided(nn.Module):
    """Proposes the same of an image and its mirror image, but is surer on the left, and takes
    objects there to be larger."""

    def forward(self, image: Tensor, regions: Tensor | None = None, sizes: Any = None) -> Outputs:
        w = image.shape[3]
        if regions is None:
            left = torch.tensor([[4.0, 5, 24, 40], [30, 20, 50, 60], [5, 50, 40, 70]])
            mirrored = torch.stack([w - left[:, 2], left[:, 1], w - left[:, 0], left[:, 3]], 1)
            regions = regions_of([torch.cat((left, mirrored))])
        centre = (regions[:, 1] + regions[:, 3]) / 2 / w
        bright = image.flatten(1).mean(1) + image[:, :, :, : w // 2].flatten(1).mean(1)
        logits = torch.stack([0 * centre, 1 - 2 * centre, centre + bright, 0 * centre], 1)
        deltas = torch.zeros(len(regions), 12)
        deltas[:, 4:8] = torch.stack([0.2 * (1 - centre), 0 * centre, 0.1 * centre, 0 * centre], 1)
        return Outputs(logits, deltas, None, regions, None)  # type: ignore[arg-type]


def test_both_ways_round_gives_the_mirror_image_of_the_mirror_image() -> None:
    task = Task(CLASSES, proposes=True, nms=0.9)
    image = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))

    def predicted(image: Tensor, flip: bool) -> np.ndarray:
        made = seen([NONE])
        made.inputs["image"] = image
        (found,) = task.predict(Lopsided(), made, flip=flip)
        got = rows(found)
        return np.asarray(got[np.lexsort(got.round(3).T)])

    for flip, alike in ((True, True), (False, False)):
        once, mirrored = predicted(image, flip), predicted(image.flip(3), flip)
        mirrored[:, [0, 2]] = 120 - mirrored[:, [2, 0]]
        mirrored = mirrored[np.lexsort(mirrored.round(3).T)]
        assert len(once) > 6
        same = once.shape == mirrored.shape and np.allclose(once, mirrored, atol=1e-3)
        assert same == alike


def test_nothing_proposed_is_nothing_found() -> None:
    class Nothing(Lopsided):
        def forward(self, image: Tensor, regions: Any = None, sizes: Any = None) -> Outputs:
            return super().forward(image, torch.zeros(0, 5) if regions is None else regions)

    for flip in (False, True):
        (found,) = Task(CLASSES, proposes=True).predict(Nothing(), seen([NONE]), flip=flip)
        assert len(found) == 0


# The training set's boxes


def test_objects_are_counted_without_the_difficult_and_crowds() -> None:
    truths = [TRUTH, boxes(TRUTH.xyxy, [2, 2], difficult=[0]), boxes(OTHER.xyxy, [1], crowd=[0])]
    found = detection.objects(lambda i: {"boxes": truths[i]}, np.array([0, 1, 2]), 4)
    assert found.tolist() == [1, 0, 2, 0]
    assert detection.objects(lambda i: {"boxes": truths[i]}, np.array([2]), 4).tolist() == [0] * 4


def test_sides_are_in_input_pixels_and_every_class_counts_the_same() -> None:
    many = boxes([[0, 0, 10, 20], [5, 5, 15, 25], [0, 0, 30, 6]], [0, 0, 1], crowd=[])
    truths = [many, boxes([[0, 0, 8, 8], [1, 1, 2, 2]], [0, 2], difficult=[1]), NONE]

    def truth(i: int) -> dict[str, Any]:
        return {"boxes": truths[i]}

    ids = np.arange(3)
    objects = detection.objects(truth, ids, 3)
    sides, weights = detection.box_sides(truth, ids, objects, lambda i: [2.0, 0.5, 1.0][i])
    assert sides.tolist() == [[20, 40], [20, 40], [60, 12], [4, 4]]
    assert weights == pytest.approx([1 / 3, 1 / 3, 1, 1 / 3])
    few, _ = detection.box_sides(truth, ids, objects, lambda i: 1.0, look=1)
    assert len(few) == 3, "the first image alone"
