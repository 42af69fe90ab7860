"""One class per pixel: loss, decoding, metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, jaccard_score, recall_score
from torch import Tensor, nn

from vidi.ops import tiles
from vidi.tasks.segmentation import IGNORE, Prediction, Task, likeliest
from vidi.types import Array, Batch, Sample

CLASSES = ("ground", "tree", "car", "never")
K = len(CLASSES)
RNG = np.random.default_rng(0)


class Fixed(nn.Module):
    """Gives the same scores whatever it sees."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, image: Tensor) -> Tensor:
        return self.scores


def batch(image: Any, mask: Tensor | None = None, valid: Array | None = None) -> Batch:
    n = len(image)
    valid = np.ones(n, bool) if valid is None else valid
    sizes = [(i.shape[-2], i.shape[-1]) for i in image]
    targets = {"valid": torch.from_numpy(valid)}
    return Batch(
        inputs={"image": image},
        targets=targets if mask is None else targets | {"mask": mask},
        keys=[str(i) for i in range(n)],
        ids=np.arange(n),
        matrices=np.tile(np.eye(3), (n, 1, 1)),
        sizes=np.array(sizes),
        valid=valid,
    )


def masks(n: int, size: int = 9, classes: int = K) -> Tensor:
    found = RNG.integers(0, classes, (n, size, size))
    found[RNG.random(found.shape) < 0.2] = IGNORE
    return torch.from_numpy(found.astype(np.uint8))


def sample(mask: Array) -> Sample:
    return Sample(key="", image=np.zeros((*mask.shape, 3), np.uint8), mask=mask)


def loss(task: Task, model: nn.Module, made: Batch) -> Tensor:
    return task.losses(model, made)["cross_entropy"] / task.weights(made)["cross_entropy"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_the_mean_over_valid_pixels(smoothing: float, weighted: bool) -> None:
    scores, mask = torch.randn(3, K, 9, 9), masks(3)
    weights = np.array([1, 2, 0.5, 3], np.float32) if weighted else None
    task = Task(CLASSES, label_smoothing=smoothing, class_weights=weights)
    per_pixel = F.cross_entropy(
        scores, mask.long(), ignore_index=IGNORE, label_smoothing=smoothing, reduction="none"
    )
    table = torch.ones(K) if weights is None else torch.from_numpy(weights)
    share = torch.where(mask != IGNORE, table[mask.long() % IGNORE], 0)
    expected = (per_pixel * share).sum() / share.sum()
    assert torch.allclose(loss(task, Fixed(scores), batch(scores, mask)), expected)
    if smoothing == 0:  # torch divides by the pixels' weights as well
        by_torch = F.cross_entropy(scores, mask.long(), weight=table, ignore_index=IGNORE)
        assert torch.allclose(expected, by_torch)


def test_summed_loss_is_a_sum_over_pixels_and_a_mean_over_images() -> None:
    scores, mask = torch.randn(3, K, 9, 9), masks(3)
    made = batch(scores, mask)
    by_torch = F.cross_entropy(scores, mask.long(), ignore_index=IGNORE, reduction="sum") / 3
    assert torch.allclose(loss(Task(CLASSES, sum_pixels=True), Fixed(scores), made), by_torch)


@pytest.mark.parametrize("summed", [False, True])
def test_unreadable_samples_and_ignored_pixels_have_no_gradient(summed: bool) -> None:
    scores, mask = torch.randn(3, K, 9, 9), masks(3)
    scores[1] *= 1e6
    model = Fixed(scores)
    made = batch(scores, mask, np.array([True, False, True]))
    loss(Task(CLASSES, sum_pixels=summed), model, made).backward()
    gradient = model.scores.grad
    assert gradient is not None
    assert (gradient[1] == 0).all()
    ignored = (mask == IGNORE).unsqueeze(1).expand_as(gradient)
    assert (gradient[ignored] == 0).all()
    assert (gradient[[0, 2]][~ignored[[0, 2]]] != 0).all()


def test_auxiliary_heads_count_at_the_networks_weight() -> None:
    class Two(nn.Module):
        aux_weight = 0.4

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            return image, -image

    scores, mask = torch.randn(2, K, 9, 9), masks(2)
    task = Task(CLASSES)
    found = loss(task, Two(), batch(scores, mask))
    one, other = (loss(task, Fixed(s), batch(s, mask)) for s in (scores, -scores))
    assert torch.allclose(found, one + 0.4 * other)


def test_the_users_own_loss() -> None:
    scores, mask = torch.randn(2, K, 9, 9), masks(2)
    seen = (mask != IGNORE).float()
    task = Task(CLASSES, loss=lambda logits, label: logits[:, 0])
    expected = (scores[:, 0] * seen).sum() / seen.sum()
    assert torch.allclose(loss(task, Fixed(scores), batch(scores, mask)), expected)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, K, 1)).eval()


def test_halved_images_keep_their_labels_in_place() -> None:
    """Two classes, left and right of a border: after halving as before, image and mask agree."""
    mask = torch.zeros(1, 9, 13, dtype=torch.uint8)
    mask[:, :, 7:] = 1
    mask[:, 0] = IGNORE
    image = (mask == 1).float().unsqueeze(1).expand(1, 3, 9, 13).contiguous()
    half = Task(CLASSES).halved(batch(image, mask))
    assert half.inputs["image"].shape == (1, 3, 5, 7)
    assert half.targets["mask"].tolist() == [[[IGNORE] * 7] + [[0, 0, 0, 0, 1, 1, 1]] * 4]
    assert ((half.inputs["image"][0, 0] > 0.5).int()[1:] == half.targets["mask"][0, 1:]).all()
    assert half.targets["valid"].all()


def test_a_batch_of_differing_sizes_equals_its_singles() -> None:
    images = [torch.randn(1, 3, h, w) for h, w in ((8, 9), (7, 12), (8, 9), (5, 5))]
    task = Task(CLASSES)
    with torch.no_grad():
        together = task.predict(net(), batch(images))
        alone = [task.predict(net(), batch([image]))[0] for image in images]
    for one, other, image in zip(together, alone, images, strict=True):
        assert one.mask.shape == image.shape[2:]
        assert np.array_equal(one.mask, other.mask)


def test_views_are_averaged_as_probabilities() -> None:
    model, image = net(), torch.randn(2, 3, 8, 10)
    with torch.no_grad():
        found = Task(CLASSES).predict(model, batch(image), flip=True)
        mirrored = model(image.flip(3)).softmax(1).flip(3)
        expected = (model(image).softmax(1) + mirrored).argmax(1)
        assert np.array_equal([p.mask for p in found], expected)

        found = Task(CLASSES).predict(model, batch(image), scales=(1, 2))
        large = F.interpolate(image, (16, 20), mode="bilinear", align_corners=False)
        small = F.interpolate(model(large), (8, 10), mode="bilinear", align_corners=False)
        expected = (model(image).softmax(1) + small.softmax(1)).argmax(1)
        assert np.array_equal([p.mask for p in found], expected)


@pytest.mark.parametrize("size", [(6, 7), (12, 14), (5, 3), (1, 1), (31, 40), (6, 8)])
@pytest.mark.parametrize("band", [1, 100, 1 << 24])
def test_scores_come_to_the_images_size_bilinearly(
    size: tuple[int, int], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidi.tasks.segmentation.BAND", band)
    scores = torch.randn(K, 6, 7)
    whole = F.interpolate(scores[None].double(), size, mode="bilinear", align_corners=False)[0]
    assert np.array_equal(likeliest(scores.double(), size), whole.argmax(0))


def test_metrics_equal_scikit_learns() -> None:
    truth = [masks(1, 12, 3)[0].numpy() for _ in range(4)]  # the last class never occurs
    said = [RNG.integers(0, K, (12, 12)).astype(np.uint8) for _ in range(4)]
    task = Task(CLASSES)
    meters = [task.meter(), task.meter()]
    for i in range(4):
        meters[i % 2].update([Prediction(said[i])], [sample(truth[i])])
    meters[0].merge(meters[1])
    t, s = np.concatenate(truth).ravel(), np.concatenate(said).ravel()
    t, s = t[t != IGNORE], s[t != IGNORE]
    labels = np.arange(K)
    found = meters[0].compute()
    confusion = confusion_matrix(t, s, labels=labels)
    assert np.array_equal(task.details(meters[0])["confusion"], confusion)
    assert found["miou"] == pytest.approx(jaccard_score(t, s, labels=labels, average="macro"))
    assert found["fw_iou"] == pytest.approx(jaccard_score(t, s, labels=labels, average="weighted"))
    assert found["pixel_accuracy"] == pytest.approx((t == s).mean())
    recalls = recall_score(t, s, labels=labels[:3], average="macro")
    assert found["mean_accuracy"] == pytest.approx(recalls)
    rows = task.details(meters[0])["per_class"]
    each = jaccard_score(t, s, labels=labels, average=None)
    assert [row["iou"] for row in rows] == pytest.approx(list(each))
    assert np.isnan(rows[3]["recall"]) and rows[3]["precision"] == 0


def test_perfect_predictions_score_perfectly_whatever_is_absent_or_ignored() -> None:
    task = Task(CLASSES)
    meter = task.meter()
    mask = masks(1, 20, 2)[0].numpy()
    nothing = np.full((4, 4), IGNORE, np.uint8)
    meter.update(
        [Prediction(np.where(mask == IGNORE, 3, mask)), Prediction(np.zeros((4, 4), np.uint8))],
        [sample(mask), sample(nothing)],
    )
    assert meter.compute() == dict.fromkeys(
        ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou"), pytest.approx(1)
    )


def test_only_ignored_pixels_are_no_error() -> None:
    meter = Task(CLASSES).meter()
    meter.update([Prediction(np.zeros((4, 4), np.uint8))], [sample(np.full((4, 4), 255, np.uint8))])
    assert set(meter.compute().values()) == {0.0}


@pytest.mark.parametrize("flip", [False, True])
def test_large_images_in_tiles_are_the_whole_image(
    flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "SMALL", 20 * 20)
    monkeypatch.setattr(tiles, "MEMORY", 2e5)
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, K, 3, padding=1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    ).eval()
    image = torch.randn(2, 3, 90, 120)
    task = Task(CLASSES)
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    with torch.no_grad():
        found = task.predict(model, batch(image), flip=flip)
        assert max(shape[2] * shape[3] for shape in seen[-4:]) < 90 * 120 / 2, "in tiles, indeed"
        scores = model(image).softmax(1)
        scores = scores + model(image.flip(3)).softmax(1).flip(3) if flip else scores
    # Where two classes are all but equal, rounding decides.
    top = scores.topk(2, dim=1).values
    clear = (top[:, 0] - top[:, 1] > 1e-5).numpy()
    assert clear.mean() > 0.99
    for one, expected, sure in zip(found, scores.argmax(1).numpy(), clear, strict=True):
        assert np.array_equal(one.mask[sure], expected[sure])
