"""Multi-label classification against scikit-learn and in closed form, and a run from end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, log_loss

import vidi
from vidi.engine.gradients import split
from vidi.errors import InputError
from vidi.tasks.multilabel import Prediction, Task
from vidi.types import Batch, Sample

CLASSES = ("dot", "bar", "frame")


def scored(p: Any, truth: Any) -> Any:
    meter = Task(classes=tuple(map(str, range(p.shape[1])))).meter()
    blank = np.zeros((1, 1, 3), np.uint8)
    samples = [Sample(key=str(i), image=blank, label=row) for i, row in enumerate(truth)]
    meter.update([Prediction(row) for row in p], samples)
    return meter


def test_metrics_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    p, truth = rng.uniform(0.02, 0.98, (60, 4)).round(2), rng.random((60, 4)) < 0.3  # with ties
    found = scored(p, truth).compute()
    assert found["map"] == pytest.approx(average_precision_score(truth, p, average="macro"))
    assert found["f1"] == pytest.approx(f1_score(truth, p >= 0.5, average="micro"))
    assert found["f1_macro"] == pytest.approx(f1_score(truth, p >= 0.5, average="macro"))
    entropy = [log_loss(truth[:, k], p[:, k], labels=[False, True]) for k in range(4)]
    assert found["binary_cross_entropy"] == pytest.approx(np.mean(entropy), rel=1e-6)


def test_perfect_outputs_score_perfectly_and_absent_classes_do_not_count() -> None:
    truth = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]], bool)
    found = scored(truth.astype(float), truth).compute()
    assert found["map"] == found["f1"] == found["f1_macro"] == 1
    assert found["binary_cross_entropy"] == pytest.approx(0, abs=1e-12)


def test_meters_add_up() -> None:
    rng = np.random.default_rng(1)
    p, truth = rng.random((30, 3)), rng.random((30, 3)) < 0.5
    whole, first = scored(p, truth), scored(p[::2], truth[::2])
    first.merge(scored(p[1::2], truth[1::2]))
    assert first.compute() == pytest.approx(whole.compute())


def batch(n: int = 6) -> Batch:
    rng = np.random.default_rng(2)
    return Batch(
        inputs={"image": torch.from_numpy(rng.random((n, 3, 4, 4), np.float32))},
        targets={
            "label": torch.from_numpy((rng.random((n, 3)) < 0.5).astype(np.float32)),
            "valid": torch.tensor([True] * (n - 1) + [False]),
        },
        keys=[str(i) for i in range(n)],
        ids=np.arange(n),
        matrices=np.zeros((n, 3, 3)),
        sizes=np.zeros((n, 2)),
        valid=np.array([True] * (n - 1) + [False]),
    )


@torch.no_grad()
def test_loss_in_closed_form_and_in_parts() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    task, made = Task(classes=CLASSES, label_smoothing=0.1), batch()
    target = made.targets["label"].double() * 0.9 + 0.05
    p = model(made.inputs["image"]).double().sigmoid()
    wanted = -(target * p.log() + (1 - target) * (1 - p).log()).mean(1)[:-1].sum()
    found = task.losses(model, made)["binary_cross_entropy"]
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    parts = [task.losses(model, part)["binary_cross_entropy"] for part in split(made, 3)]
    assert float(sum(parts)) == pytest.approx(float(found), rel=1e-5)
    assert float(task.weights(made)["binary_cross_entropy"]) == 5


@torch.no_grad()
def test_mixed_images_have_mixed_targets() -> None:
    """The loss is linear in the target: each part's loss, at its share."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    task, mixed, own, other = Task(classes=CLASSES), batch(), batch(), batch()
    partner = 1 - own.targets["label"]
    share = torch.tensor([0.3, 1.0, 0.5, 0.9, 0.2, 0.7])
    mixed.targets |= {"mix:label": partner, "mix_lambda": share}
    parts = []
    for part, weight in ((own, share), (other, 1 - share)):
        part.targets["label"] = own.targets["label"] if part is own else partner
        for i, w in enumerate(weight.tolist()):
            part.targets["valid"] = torch.arange(6) == i
            alone = task.losses(model, part)["binary_cross_entropy"]
            parts.append(w * float(alone) * float(mixed.targets["valid"][i]))
    found = task.losses(model, mixed)["binary_cross_entropy"]
    assert float(found) == pytest.approx(sum(parts), rel=1e-5)


class Signs:
    """A dot, a bar and a frame, each there or not."""

    classes = CLASSES

    def __init__(self, n: int, seed: int = 0) -> None:
        self.there = np.random.default_rng(seed).random((n, 3)) < 0.5

    def __len__(self) -> int:
        return len(self.there)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        dot, bar, frame = self.there[i]
        image = np.full((16, 16, 3), 40 + i % 7, np.uint8)
        if dot:
            image[6:10, 6:10] = 250
        if bar:
            image[12:14] = 200
        if frame:
            image[:, :2] = 150
        return image, self.there[i].astype(np.int64)


def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    data = {"train": Signs(160), "val": Signs(40, 1)}
    run = vidi.train(
        data["train"],
        val=data["val"],
        run=tmp_path / "run",
        model="resnet20",
        epochs=6,
        augmentation={"preset": "none"},
    )
    assert run.recipe.task == "multilabel"
    assert run.metrics["map"] > 0.95
    image, there = Signs(1, seed=5)[0]
    (said,) = vidi.load(run.path).predict([image])
    assert said.labels == tuple(c for c, one in zip(CLASSES, there, strict=True) if one)
    assert said.probabilities.shape == (3,)


def test_vectors_that_do_not_fit_are_refused() -> None:
    class Uneven(Signs):
        def __getitem__(self, i: int) -> tuple[Any, Any]:
            image, label = super().__getitem__(i)
            return image, label[: 2 + i % 2]

    with pytest.raises(InputError, match="different lengths"):
        vidi.open(Uneven(6))
    with pytest.raises(InputError, match="one class per image"):
        vidi.train(Signs(20), epochs=1, data={"balance": "sampler"})
