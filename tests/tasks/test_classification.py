"""The classification task's numbers against scikit-learn's and closed forms."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import nn

from vidi.tasks.classification import ClassificationMeter, Prediction, Task
from vidi.types import Batch, Sample

IMAGE = np.zeros((1, 1, 3), np.uint8)


def sample(label: int) -> Sample:
    return Sample(key=str(label), image=IMAGE, label=label)


def filled(log_p: np.ndarray, labels: np.ndarray) -> ClassificationMeter:
    meter = ClassificationMeter(log_p.shape[1])
    meter.update([Prediction(row) for row in log_p], [sample(int(x)) for x in labels])
    return meter


def random(n: int = 200, k: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, k)) * 3
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), rng.integers(0, k, n)


def test_metrics_equal_scikit_learns() -> None:
    log_p, labels = random()
    found = filled(log_p, labels).compute()
    predicted = log_p.argmax(1)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found["error"] == pytest.approx(1 - found["accuracy"])
    assert found["top5"] == pytest.approx(reference.top_k_accuracy_score(labels, log_p, k=5))
    assert found["cross_entropy"] == pytest.approx(reference.log_loss(labels, np.exp(log_p)))


def test_calibration_error_equals_the_plain_sum() -> None:
    log_p, labels = random()
    confidence, right = np.exp(log_p.max(1)), log_p.argmax(1) == labels
    total = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert filled(log_p, labels).compute()["ece"] == pytest.approx(total)


def test_rows_per_class_equal_scikit_learns() -> None:
    log_p, labels = random()
    meter = filled(log_p, labels)
    predicted = log_p.argmax(1)
    assert (meter.confusion == reference.confusion_matrix(labels, predicted)).all()
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, predicted)
    for k, row in enumerate(meter.per_class(tuple("abcdefgh"))):
        assert row["samples"] == support[k]
        assert row["precision"] == pytest.approx(precision[k])
        assert row["recall"] == pytest.approx(recall[k])
        assert row["f1"] == pytest.approx(f1[k])


def test_meters_merge_to_the_whole() -> None:
    log_p, labels = random()
    whole, parts = filled(log_p, labels), filled(log_p[:70], labels[:70])
    parts.merge(filled(log_p[70:], labels[70:]))
    assert parts.compute() == pytest.approx(whole.compute())


def test_perfect_predictions_score_perfectly() -> None:
    labels = np.arange(6)
    with np.errstate(divide="ignore"):
        log_p = np.log(np.eye(6))
    assert filled(log_p, labels).compute() == {
        "accuracy": 1.0,
        "error": 0.0,
        "top5": 1.0,
        "cross_entropy": 0.0,
        "ece": 0.0,
    }


def batch(logits: torch.Tensor, label: list[int], **targets: Any) -> tuple[nn.Module, Batch]:
    n = len(label)
    made = Batch(
        inputs={"image": logits},
        targets={"label": torch.tensor(label), "valid": torch.ones(n, dtype=torch.bool)} | targets,
        keys=[""] * n,
        ids=np.arange(n),
        matrices=np.zeros((n, 3, 3)),
        sizes=np.zeros((n, 2)),
        valid=np.ones(n, bool),
    )
    return nn.Identity(), made


def mean_loss(task: Task, model: nn.Module, made: Batch) -> float:
    total = task.losses(model, made)["cross_entropy"] / task.weights(made)["cross_entropy"]
    return float(total)


def test_loss_is_cross_entropy_with_gradient_p_minus_y() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    task = Task(classes=("a", "b", "c"))
    model, made = batch(logits, [0, 1, 2, 1])
    loss = task.losses(model, made)["cross_entropy"]
    loss.backward()
    y = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 1]]
    assert torch.allclose(logits.grad, logits.softmax(1) - y, atol=1e-6)
    assert float(loss.detach()) == pytest.approx(
        float(-(y * logits.detach().log_softmax(1)).sum()), rel=1e-5
    )


def test_mixed_samples_weigh_their_two_labels() -> None:
    logits = torch.randn(2, 3)
    task = Task(classes=("a", "b", "c"))
    share = torch.tensor([0.7, 1.0])
    model, made = batch(logits, [0, 1], **{"mix_lambda": share, "mix:label": torch.tensor([2, 2])})
    log_p = logits.log_softmax(1)
    expected = -(0.7 * log_p[0, 0] + 0.3 * log_p[0, 2] + log_p[1, 1]) / 2
    assert mean_loss(task, model, made) == pytest.approx(float(expected), rel=1e-5)


def test_class_weights_are_torchs_weighted_mean() -> None:
    logits, label = torch.randn(5, 3), [0, 1, 2, 2, 0]
    weights = np.array([0.5, 2.0, 1.0], np.float32)
    task = Task(classes=("a", "b", "c"), class_weights=weights)
    model, made = batch(logits, label)
    expected = nn.functional.cross_entropy(
        logits, torch.tensor(label), weight=torch.tensor(weights)
    )
    assert mean_loss(task, model, made) == pytest.approx(float(expected), rel=1e-5)


def test_a_sample_that_could_not_be_read_counts_for_nothing() -> None:
    logits = torch.randn(3, 3)
    task = Task(classes=("a", "b", "c"))
    model, made = batch(logits, [0, 1, 2])
    made.inputs["image"] = torch.cat([logits[:2], torch.full((1, 3), float("nan"))])
    made.targets["valid"][2] = False
    expected = nn.functional.cross_entropy(logits[:2], torch.tensor([0, 1]))
    assert mean_loss(task, model, made) == pytest.approx(float(expected), rel=1e-5)


def test_auxiliary_heads_are_added_at_the_networks_weight() -> None:
    class Two(nn.Module):
        aux_weight = 0.3

        def forward(self, x: torch.Tensor) -> Any:
            return (x, 2 * x, None)

    logits, label = torch.randn(4, 3), [0, 1, 2, 2]
    _, made = batch(logits, label)
    truth = torch.tensor(label)
    expected = nn.functional.cross_entropy(logits, truth) + 0.3 * nn.functional.cross_entropy(
        2 * logits, truth
    )
    task = Task(classes=("a", "b", "c"))
    assert mean_loss(task, Two(), made) == pytest.approx(float(expected), rel=1e-5)


def test_a_users_loss_may_give_values_or_their_mean() -> None:
    logits, label = torch.randn(4, 3), [0, 1, 2, 2]
    model, made = batch(logits, label)
    for reduction in ("none", "mean"):
        loss = nn.CrossEntropyLoss(reduction=reduction)
        task = Task(classes=("a", "b", "c"), loss=loss)
        expected = nn.functional.cross_entropy(logits, torch.tensor(label))
        assert mean_loss(task, model, made) == pytest.approx(float(expected), rel=1e-5)


def test_mirror_averaging_averages_probabilities() -> None:
    class Left(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, 0, 0]

    image = torch.randn(2, 3, 4, 4)
    _, made = batch(image, [0, 1])
    task = Task(classes=("a", "b", "c"))
    found = [p.probabilities for p in task.predict(Left(), made, flip=True)]
    expected = (image[:, :, 0, 0].softmax(1) + image[:, :, 0, 3].softmax(1)) / 2
    assert np.allclose(found, expected.numpy(), atol=1e-6)
