"""Looking at a run changes nothing, and sees what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vidi
from vidi import doctor
from vidi.doctor.looking import Looked, look
from vidi.engine.device import to_device
from vidi.engine.prepare import Prepared
from vidi.types import Array

CLASSES = 3


class Blobs:
    """``n`` images of 8 px, of which a third each is red, green and blue."""

    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = np.arange(n) % CLASSES
        self.images = rng.integers(0, 120, (n, 8, 8, 3), dtype=np.uint8)
        self.images[np.arange(n), :, :, self.labels] += 12

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Array, int]:
        return self.images[i], int(self.labels[i])


DATA = {"train": Blobs(90, 0), "val": Blobs(42, 1)}


def network(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(512, num_classes),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("looking") / "run"
    vidi.train(
        DATA["train"],
        val=DATA["val"],
        run=folder,
        model=network,
        device="cpu",
        precision="fp32",
        epochs=4,
        batch_size=30,
        image_size=8,
        lr=0.05,
        optimiser={"name": "sgd"},
        augmentation={"preset": "none"},
        regularisation={"label_smoothing": 0.0},
        data={"threads": 0},
        logging={"pictures": False},
    )
    return folder


def opened(run: Path) -> Prepared:
    return vidi.api.reopen(run, device="cpu", network=network, data=DATA)


def looked(run: Path) -> Looked:
    return look(doctor.read_records(run), opened(run))


def test_everything_is_left_as_it_was(run: Path) -> None:
    made = opened(run)
    made.model.train()
    made.model.get_submodule("2").eval()
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    modes = [module.training for module in made.model.modules()]
    torch.manual_seed(5)
    first = look(doctor.read_records(run), made)
    after = made.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [module.training for module in made.model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in made.model.modules()), "nobody listens any more"
    assert all(p.grad is None for p in made.model.parameters())
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1)), "global random numbers go on as if nothing was"
    second = look(doctor.read_records(run), made)
    assert second.trained == first.trained, "the same every time"
    assert second.training.metrics == first.training.metrics


def test_metrics_are_those_of_the_samples(run: Path) -> None:
    """By a forward pass of our own, without loader, task or meter."""
    made = opened(run)
    seen = look(doctor.read_records(run), made)
    norm = made.description.normalisation
    for view, data in ((seen.training, DATA["train"]), (seen.validation, DATA["val"])):
        rows = np.linspace(0, len(data) - 1, view.samples).round().astype(int)
        x = (data.images[rows] / 255 - norm.mean) / norm.std
        with torch.no_grad():
            logits = made.model.eval()(torch.tensor(x).permute(0, 3, 1, 2).float())
        labels = torch.tensor(data.labels[rows])
        assert view.metrics["accuracy"] == pytest.approx(
            float((logits.argmax(1) == labels).float().mean())
        )
        assert view.metrics["cross_entropy"] == pytest.approx(
            float(F.cross_entropy(logits, labels)), rel=1e-4
        )
        assert view.given is not None and view.given.layer == "0"
        assert view.given.mean == pytest.approx(x.mean(), abs=1e-4)
        assert view.given.std == pytest.approx(x.std(), abs=1e-4)
        mine = data.images[rows].reshape(len(rows), -1, 3) / 255
        assert view.colours == pytest.approx(np.hstack([mine.mean(1), mine.std(1)]), abs=1e-5)
        assert view.labels is not None and view.labels.tolist() == labels.tolist()


def test_losses_in_each_mode(run: Path) -> None:
    """Of the batches that training would see first, with batch norm and dropout as told."""
    made = opened(run)
    seen = look(doctor.read_records(run), made).trained
    batch = next(made.train.epoch(0))
    x = to_device(batch, made.compute.device, made.compute.normalisation, False).inputs["image"]
    label = torch.from_numpy(batch.targets["label"])

    def loss(**training: bool) -> float:
        made.model.train()
        for name, mode in training.items():
            made.model.get_submodule(name.removeprefix("_")).train(mode)
        torch.manual_seed(0)
        with torch.no_grad():
            return float(F.cross_entropy(made.model(x), label))

    assert seen.samples == 30
    assert seen.kept == pytest.approx(loss(_1=False), rel=1e-5), "before anything moved them"
    assert seen.loss == pytest.approx(loss(), rel=1e-5)
    assert seen.without_dropout == pytest.approx(loss(_3=False), rel=1e-5)
    assert len({seen.loss, seen.kept, seen.without_dropout}) == 3


def test_a_batch_equals_its_singles_where_norms_are_kept(run: Path) -> None:
    seen = looked(run)
    assert seen.alone is not None and seen.alone < 1e-4
    assert seen.norms_training == ()

    made = opened(run)
    norm: Any = made.model.get_submodule("1")
    norm.running_mean = norm.running_var = None
    depends = look(doctor.read_records(run), made)
    assert depends.alone is not None and depends.alone > 0.02
    assert depends.norms_training == ("1",)


def test_few_are_spread_evenly_and_bounded(run: Path) -> None:
    made = opened(run)
    some = made.plain.few(10)
    assert len(some) == 10 and some.ids[0] == made.plain.ids[0]
    assert some.ids[-1] == made.plain.ids[-1]
    assert some.failures is not made.plain.failures
    assert len(made.plain.few(1000)) == 90
    seen = looked(run)
    assert seen.training.samples == 32, "a run of 12 steps is looked at briefly"
    assert seen.compared == 42


def test_counts_are_the_datas(run: Path) -> None:
    seen = looked(run)
    assert seen.counts["train"].tolist() == [30, 30, 30]
    assert seen.counts["val"].tolist() == [14, 14, 14]


class Shifted(nn.Module):
    """The true flow is not at hand here; what it gives is the images' difference, twice."""

    task = "flow"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, image: Tensor, image2: Tensor) -> Tensor:
        y: Tensor = self.layer(image2 - image)
        return y


def test_flow_is_compared_with_the_truth(tmp_path: Path) -> None:
    data = "scenes:flow,size=32,n=4,val=2,test=0"
    fields: dict[str, Any] = {"image_size": 32, "batch_size": 2, "epochs": 1, "lr": 1e-3}
    vidi.train(
        data,
        run=tmp_path / "run",
        model=Shifted,
        device="cpu",
        precision="fp32",
        data={"threads": 0},
        logging={"pictures": False},
        **fields,
    )
    made = vidi.api.reopen(tmp_path / "run", device="cpu", network=Shifted)
    view = look(doctor.read_records(tmp_path / "run"), made).validation
    model = vidi.load(tmp_path / "run", device="cpu", network=Shifted)
    truth, said = [], []
    for sample in made.loaders["val"].dataset.split("val"):
        assert sample.flow is not None and sample.flow_valid is not None
        known = np.isfinite(sample.flow).all(2) & sample.flow_valid
        truth.append(sample.flow[known].ravel())
        found = model.predict([(sample.image, sample.image2)])[0]
        said.append(found.flow[known].ravel())
    t, p = np.concatenate(truth), np.concatenate(said)
    slope = np.linalg.lstsq(p[:, None], t, rcond=None)[0][0]
    assert view.slope == pytest.approx(float(slope), rel=1e-3)
    assert view.correlation == pytest.approx(
        float(t @ p / np.linalg.norm(t) / np.linalg.norm(p)), rel=1e-3
    )
