"""Runs that are sabotaged in their data, labels, evaluation or task: each is named by the right
finding; and healthy short runs of every task, which get no finding of severity "problem"."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import vidi
from vidi import doctor
from vidi.doctor.finding import Finding
from vidi.models.flownets import SCALE
from vidi.types import Array

PLAIN: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "batch_size": 50,
    "augmentation": {"preset": "none"},
    "optimiser": {"name": "adamw"},
    "lr": 2e-3,
    "schedule": {"name": "constant", "warmup": 0},
    "regularisation": {"label_smoothing": 0.0, "ema": 0.0},
    "image_size": 8,
    "data": {"threads": 0},
    "logging": {"pictures": False},
}


@functools.cache
def digits() -> tuple[Array, Array]:
    """uint8 [1797, 8, 8, 3] and int64 [1797], in random order."""
    found = load_digits()
    rows = np.random.default_rng(0).permutation(len(found.target))
    grey = np.round(found.images[rows] * (255 / 16)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 3), found.target[rows].astype(np.int64)


class Digits:
    """Some of the embedded digits, with their labels, as arrays that a test may spoil."""

    def __init__(self, start: int, count: int) -> None:
        images, labels = digits()
        self.images = images[start : start + count].copy()
        self.labels = labels[start : start + count].copy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Array, int]:
        return self.images[i], int(self.labels[i])


class Mlp(nn.Module):
    """``drop``: of the hidden units. ``before``: what is done to the input."""

    def __init__(
        self,
        num_classes: int = 10,
        hidden: int = 64,
        norm: nn.Module | None = None,
        drop: float = 0.0,
        before: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(192, hidden)
        self.norm = nn.Identity() if norm is None else norm
        self.drop = nn.Dropout(drop)
        self.last = nn.Linear(hidden, num_classes)
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            x = self.before(self, x)
        y: Tensor = self.last(self.drop(self.norm(self.first(x.flatten(1))).relu()))
        return y


def examined(run: Path, **given: Any) -> tuple[Finding, ...]:
    """What both lists find, of files and of data."""
    records = doctor.read_records(run)
    made = vidi.api.reopen(run, device="cpu", **given)
    return (*doctor.examine(records), *doctor.examine_on_data(records, made))


def trained(
    run: Path,
    train: Any,
    val: Any = None,
    *,
    network: Any = None,
    loss: Any = None,
    **changes: Any,
) -> dict[str, Finding]:
    """The findings of a run by their codes."""
    fields = {**PLAIN, "model": network or Mlp, **changes}
    # One evaluation in the middle and one at the end, unless a test looks at the curve.
    fields.setdefault("length", {"evaluate_every": max(1, fields["epochs"] // 2)})
    vidi.train(train, val=val, run=run, loss=loss, **fields)
    data = train if val is None else {"train": train, "val": val}
    given = {"loss": loss, "data": None if isinstance(train, str) else data}
    if not isinstance(fields["model"], str):
        given["network"] = fields["model"]
    return {finding.code: finding for finding in examined(run, **given)}


def split(count: int = 400) -> tuple[Digits, Digits]:
    return Digits(0, count), Digits(1400, 120)


# Labels


def test_shuffled_labels_are_learned_by_heart(tmp_path: Path) -> None:
    train, val = split(300)
    np.random.default_rng(1).shuffle(train.labels)
    found = trained(
        tmp_path / "run",
        train,
        val,
        network=lambda num_classes: Mlp(hidden=256),
        epochs=30,
        lr=5e-3,
    )
    assert found["labels-shuffled"].severity == "warning", "of so few samples it is no wonder"
    assert "training" in found["labels-shuffled"].what
    assert "generalisation-gap" not in found, "the symptom is not told beside its cause"


def test_shuffled_labels_before_anything_is_learned(tmp_path: Path) -> None:
    train, val = split()
    np.random.default_rng(1).shuffle(train.labels)
    found = trained(tmp_path / "run", train, val, epochs=8, lr=5e-4)
    assert "labels-shuffled" in found and "underfitting" not in found


def test_shuffled_labels_of_validation_alone(tmp_path: Path) -> None:
    train, val = split()
    np.random.default_rng(1).shuffle(val.labels)
    found = trained(tmp_path / "run", train, val, epochs=8)
    assert "validation" in found["labels-shuffled"].what


def test_labels_off_by_one_between_the_splits(tmp_path: Path) -> None:
    train, val = split()
    val.labels = (val.labels + 1) % 10
    found = trained(tmp_path / "run", train, val, epochs=8)
    assert found["labels-shifted"].severity == "problem"
    assert "labels-shuffled" not in found


def test_a_loss_that_shifts_the_labels(tmp_path: Path) -> None:
    def shifting(logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, (label + 1) % 10, reduction="none")

    found = trained(tmp_path / "run", *split(), epochs=8, loss=shifting)
    assert "labels-shifted" in found


def test_classes_in_another_order(tmp_path: Path) -> None:
    train, val = split()
    val.labels = np.random.default_rng(3).permutation(10)[val.labels]
    found = trained(tmp_path / "run", train, val, epochs=8)
    assert found["classes-renumbered"].severity == "problem"


def test_imbalance_that_accuracy_hides(tmp_path: Path) -> None:
    train, val = split(1400)
    for part in (train, val):
        kept = (part.labels == 1) | (np.arange(len(part)) % 40 == 0)
        part.images, part.labels = part.images[kept], part.labels[kept]
    found = trained(tmp_path / "run", train, val, epochs=3, lr=3e-4)
    assert "imbalance-hidden" in found


# Generalisation


def test_overfitting(tmp_path: Path) -> None:
    train, val = split(120)
    wrong = np.random.default_rng(0).uniform(size=len(train)) < 0.4
    train.labels[wrong] = 9 - train.labels[wrong]
    found = trained(
        tmp_path / "run",
        train,
        val,
        network=lambda num_classes: Mlp(hidden=256),
        epochs=40,
        batch_size=20,
        length={"evaluate_every": 5},
    )
    assert found["overfitting"].severity == "warning"
    assert found["overfitting"].step == 60, "where the validation loss was least, of 240"


def test_samples_known_by_heart(tmp_path: Path) -> None:
    train, val = split(60)
    rng = np.random.default_rng(0)
    for part in (train, val):
        noise = rng.integers(0, 160, part.images.shape)
        part.images = (part.images // 3 + noise).astype(np.uint8)
    found = trained(tmp_path / "run", train, val, epochs=20, batch_size=12)
    assert found["generalisation-gap"].severity == "warning"
    assert all(f.severity != "problem" for f in found.values())


def test_underfitting(tmp_path: Path) -> None:
    found = trained(tmp_path / "run", "digits", network="mlp", epochs=1, lr=5e-5)
    assert found["underfitting"].severity == "warning"
    assert "--epochs 2" in (found["underfitting"].command or "")


def test_too_much_dropout(tmp_path: Path) -> None:
    found = trained(
        tmp_path / "run",
        *split(),
        network=lambda num_classes: Mlp(drop=0.95),
        epochs=4,
        lr=5e-4,
    )
    assert "dropout-too-strong" in found


def test_leakage(tmp_path: Path) -> None:
    train, val = split()
    val.images[:60], val.labels[:60] = train.images[:60], train.labels[:60]
    leak = trained(tmp_path / "run", train, val, epochs=4)["leakage"]
    assert leak.severity == "problem" and "60 of 120" in leak.evidence[0]


def test_near_leakage(tmp_path: Path) -> None:
    """One picture, once compressed more: of 64 px, since smaller ones are not told apart."""

    def photos(seed: int, count: int) -> Digits:
        out = Digits(0, count)
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 255, (count, 9, 9, 3), dtype=np.uint8)
        out.images = np.stack([cv2.resize(im, (64, 64)) for im in coarse])
        out.labels = np.arange(count) % 2
        return out

    train, val = photos(0, 60), photos(1, 20)
    for i in range(5):
        coded = cv2.imencode(".jpg", train.images[i], [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
        val.images[i] = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    found = trained(tmp_path / "run", train, val, epochs=1)
    assert found["near-leakage"].severity == "warning" and "leakage" not in found


def test_validation_that_is_dark(tmp_path: Path) -> None:
    """Values from 0 to 1 that were taken for bytes."""
    train, val = split()
    val.images = (val.images > 127).astype(np.uint8)
    found = trained(tmp_path / "run", train, val, epochs=4)
    assert found["input-shift"].severity == "problem"
    assert "generalisation-gap" not in found


def test_validation_with_its_colours_in_another_order(tmp_path: Path) -> None:
    train, val = split()
    for part in (train, val):
        part.images = (part.images * [1.0, 0.7, 0.4]).astype(np.uint8)
    val.images = val.images[..., ::-1].copy()
    found = trained(tmp_path / "run", train, val, epochs=4)
    assert "red minus blue" in found["input-shift"].what


def test_classes_that_are_shared_out_otherwise(tmp_path: Path) -> None:
    train, val = Digits(0, 400), Digits(1000, 797)
    kept = (val.labels < 1) | (np.arange(len(val)) % 16 == 0)
    val.images, val.labels = val.images[kept], val.labels[kept]
    found = trained(tmp_path / "run", train, val, epochs=4)
    assert "class-shift" in found


def test_training_labels_that_are_half_wrong(tmp_path: Path) -> None:
    train, val = split(800)
    rng = np.random.default_rng(2)
    wrong = rng.uniform(size=len(train)) < 0.5
    train.labels[wrong] = rng.integers(0, 10, int(wrong.sum()))
    found = trained(tmp_path / "run", train, val, epochs=8)
    assert "validation-easier" in found


# Preprocessing and norms


def test_a_network_that_scales_in_training_only(tmp_path: Path) -> None:
    def scaled(network: nn.Module, x: Tensor) -> Tensor:
        return x / 8 if network.training else x

    found = trained(
        tmp_path / "run", *split(), network=lambda num_classes: Mlp(before=scaled), epochs=4
    )
    assert found["preprocessing-differs"].severity == "problem"
    assert found["preprocessing-differs"].layer == "first"


def test_batch_norms_that_hardly_average(tmp_path: Path) -> None:
    def network(num_classes: int) -> nn.Module:
        out = Mlp(norm=nn.BatchNorm1d(64, momentum=1e-5))
        nn.init.normal_(out.first.weight, std=1e-3)
        return out

    found = trained(tmp_path / "run", *split(), network=network, epochs=10, batch_size=40)
    assert found["norm-statistics"].severity == "problem"


class Blind(nn.BatchNorm1d):
    """It does not hear of evaluation."""

    def train(self, mode: bool = True) -> Blind:
        return self

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if len(x) > 1 else x  # of one there is no deviation


def test_batch_norms_that_look_at_the_batch_in_evaluation(tmp_path: Path) -> None:
    def network(num_classes: int) -> nn.Module:
        return Mlp(norm=Blind(64))

    found = trained(tmp_path / "run", *split(), network=network, epochs=4)
    assert found["norm-mode"].severity == "problem"
    assert found["norm-mode"].layer == "norm"


# Tasks

DENSE: dict[str, Any] = {
    "augmentation": {},
    "optimiser": {},
    "lr": "auto",
    "regularisation": {},
    "schedule": {},
    "batch_size": 8,
    "epochs": 2,
}
DETECTION = "scenes:detection,size=64,n=8,val=4,test=0"
SEGMENTATION = "scenes:segmentation,size=48,n=16,val=6,test=0"
FLOW = "scenes:flow,size=64,n=8,val=4,test=0"
BOUNDARIES = "scenes:boundaries,size=48,n=8,val=4,test=0"


class Answer(NamedTuple):
    logits: Tensor
    deltas: None = None
    scores: None = None


class Regions(nn.Module):
    """It sees where a region is, and nothing else."""

    task = "detection"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1 + num_classes)

    def forward(self, image: Tensor, regions: Tensor) -> Answer:
        return Answer(self.layer(regions[:, 1:] / 64))


def given_regions(run: Path, proposals: str, **detection: Any) -> dict[str, Finding]:
    fields = {"image_size": 64, "epochs": 1, "detection": detection}
    data = {"threads": 0, "proposals": proposals}
    return trained(run, DETECTION, network=Regions, **{**DENSE, **fields, "data": data})


def test_regions_without_objects(tmp_path: Path, propose: Callable[[str, Path], str]) -> None:
    proposals = propose(DETECTION, tmp_path / "boxes.json")
    found = given_regions(tmp_path / "run", proposals, foreground=0.0)
    assert found["no-positive-regions"].severity == "problem"


def test_regions_without_objects_where_the_network_proposes(tmp_path: Path) -> None:
    found = trained(
        tmp_path / "run",
        DETECTION,
        network="faster_rcnn_small",
        **{**DENSE, "image_size": 64, "epochs": 1, "detection": {"foreground": 0.0}},
    )
    assert found["no-positive-regions"].severity == "problem"


def test_proposals_that_lie_elsewhere(tmp_path: Path, propose: Callable[[str, Path], str]) -> None:
    """Of images of a quarter of the sides."""
    path = Path(propose(DETECTION, tmp_path / "boxes.json"))
    boxes = {
        key: (np.array(rows) / 4).tolist() for key, rows in json.loads(path.read_text()).items()
    }
    path.write_text(json.dumps(boxes))
    found = given_regions(tmp_path / "run", str(path))
    assert "proposals-miss-objects" in found


class Pixels(nn.Module):
    """It sees each pixel by itself."""

    task = "segmentation"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def test_masks_that_are_mostly_ignored(tmp_path: Path) -> None:
    zoom = {"augmentation": {"zoom": (0.2, 0.25)}, "image_size": 49}
    found = trained(tmp_path / "run", SEGMENTATION, network=Pixels, **{**DENSE, **zoom})
    assert found["masks-ignored"].severity in ("warning", "problem")


def test_one_class_is_said_of_all_pixels(tmp_path: Path) -> None:
    """As after hardly any training: background is everywhere."""
    size = {"image_size": 49}
    found = trained(tmp_path / "run", SEGMENTATION, network="fcn_small", **{**DENSE, **size})
    assert found["one-class-predicted"].severity == "warning"
    assert "masks-ignored" not in found


class Found(nn.Module):
    """OpenCV's flow, times a learned factor; ``shrunk``: by that in evaluation."""

    task = "flow"

    def __init__(self, shrunk: float) -> None:
        super().__init__()
        self.factor = nn.Conv2d(2, 2, 1)
        nn.init.dirac_(self.factor.weight)
        self.shrunk = shrunk

    def forward(self, image: Tensor, image2: Tensor) -> Tensor:
        out: Tensor
        if image.is_meta:  # it is only counted
            out = self.factor(image[:, :2])
            return out
        finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        flows, nothing = [], np.zeros((*image.shape[2:], 2), np.float32)
        for a, b in zip(image, image2, strict=True):
            grey = [np.clip(x.mean(0).numpy() * 50 + 128, 0, 255).astype(np.uint8) for x in (a, b)]
            flows.append(
                torch.from_numpy(finder.calc(grey[0], grey[1], nothing.copy())).permute(2, 0, 1)
            )
        out = self.factor(torch.stack(flows))
        return out if self.training else out / self.shrunk


def flow_run(run: Path, shrunk: float) -> dict[str, Finding]:
    return trained(
        run,
        FLOW,
        network=lambda num_classes: Found(shrunk),
        **{**DENSE, "image_size": 64, "optimiser": {"name": "sgd"}, "lr": 1e-3, "epochs": 1},
    )


def test_flow_off_by_the_scale(tmp_path: Path) -> None:
    found = flow_run(tmp_path / "run", SCALE)
    assert found["flow-scale"].severity == "problem"
    assert "20" in found["flow-scale"].what or "1" in found["flow-scale"].what


def test_flow_of_the_right_scale(tmp_path: Path) -> None:
    found = flow_run(tmp_path / "run", 1.0)
    assert "flow-scale" not in found and "flow-still" not in found


def test_flow_that_says_nothing_moves(tmp_path: Path) -> None:
    found = flow_run(tmp_path / "run", 1e9)
    assert found["flow-still"].severity == "warning"
    assert "flow-scale" in found, "so far off is a matter of scale, too"


class Sides(nn.Module):
    """A boundary network whose fused output sees the trunk itself; of two side outputs the second
    is detached from all that could tell it something."""

    task = "boundaries"

    def __init__(self, num_classes: int, dull: bool = True) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Conv2d(16, 1, 1) for _ in range(3))
        self.dull = dull

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.trunk(x)
        fused, first, second = (head(y) for head in self.heads)
        return fused, first, second * 0.01 if self.dull else second


@pytest.mark.parametrize("dull", [True, False])
def test_side_outputs_that_do_not_learn(tmp_path: Path, dull: bool) -> None:
    found = trained(
        tmp_path / "run",
        BOUNDARIES,
        network=lambda num_classes: Sides(num_classes, dull),
        **{
            **DENSE,
            "image_size": 49,
            "optimiser": {"name": "adamw"},
            "lr": 1e-2,
            "epochs": 40,
            "length": {"evaluate_every": 40},
        },
    )
    assert ("sides-do-not-learn" in found) == dull


# Healthy


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        ("digits", {"model": "mlp", "epochs": 2}),
        ("digits", {"model": "resnet20", "length": {"steps": 6}}),
        ("scenes:classification,size=32,n=32,val=16,test=0", {"epochs": 1}),
        (SEGMENTATION, {"epochs": 3}),
        (DETECTION, {"epochs": 2, "image_size": 64}),
        (FLOW, {"epochs": 2}),
        (BOUNDARIES, {"epochs": 3}),
    ],
    ids=["mlp", "resnet20", "scenes", "segmentation", "detection", "flow", "boundaries"],
)
def test_healthy_runs_have_no_problem(tmp_path: Path, data: str, changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"device": "cpu", "data": {"threads": 0}}
    fields["logging"] = {"pictures": False}
    vidi.train(data, run=tmp_path / "run", **fields, **changes)
    problems = [f for f in examined(tmp_path / "run") if f.severity == "problem"]
    assert problems == []


def test_a_healthy_detector_of_given_regions_has_no_problem(
    tmp_path: Path, propose: Callable[[str, Path], str]
) -> None:
    found = trained(
        tmp_path / "run",
        DETECTION,
        network="fast_rcnn_small",
        **{
            **DENSE,
            "image_size": 64,
            "data": {"threads": 0, "proposals": propose(DETECTION, tmp_path / "boxes.json")},
        },
    )
    assert "no-positive-regions" not in found and "proposals-miss-objects" not in found
    assert [f for f in found.values() if f.severity == "problem"] == []


class Several(Digits):
    """Each digit is said to be even, small, and to have a hole, or not."""

    def __getitem__(self, i: int) -> Any:
        label = int(self.labels[i])
        return self.images[i], (int(label % 2 == 0), int(label < 5), int(label in (0, 6, 8, 9)))


def test_healthy_runs_on_own_data_have_no_problem(tmp_path: Path) -> None:
    train, val = split()
    well = trained(tmp_path / "well", train, val, epochs=8)
    assert {"problem", "warning"}.isdisjoint(f.severity for f in well.values())
    several = Several(0, 400), Several(1400, 100)
    found = trained(tmp_path / "run", *several, epochs=4)
    assert [f for f in found.values() if f.severity == "problem"] == []
