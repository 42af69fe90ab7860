"""The hardest samples: wrong labels are among them, and their losses are those of the network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import vidi
from vidi.data.open import open_data
from vidi.doctor.hardest import Hardest, hardest
from vidi.engine.device import to_device
from vidi.engine.prepare import Prepared, prepare
from vidi.recipe import Data, Recipe
from vidi.report import hardest as report
from vidi.types import Sample

WRONG = 0.05


def untrained(data: Any, **changes: Any) -> Prepared:
    recipe = Recipe(
        precision="fp32",
        channels_last=False,
        batch_size=8,
        data=Data(threads=0, cache="off"),
        **changes,
    )
    return prepare(recipe, open_data(data), torch.device("cpu"))


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hardest, set[str]]:
    """The hardest of 1,200 digits, as many as labels are wrong, and the keys of those."""
    from vidi.api import reopen

    digits = vidi.open("digits")
    rng = np.random.default_rng(0)
    names, data, wrong = ("train", "val"), {}, set()
    for name, ids in zip(names, (range(1000), range(1000, 1200)), strict=True):
        rows = []
        for i in ids:
            sample = digits[i]
            label = int(np.asarray(sample.label))
            if rng.uniform() < WRONG:
                label = (label + int(rng.integers(1, 10))) % 10
                wrong.add(f"{name}/{i - ids.start:06d}")
            rows.append((sample.image, label))
        data[name] = rows
    run = vidi.train(
        data["train"],
        val=data["val"],
        run=tmp_path_factory.mktemp("runs") / "flipped",
        model="mlp",
        epochs=8,
        device="cpu",
        logging={"pictures": False},
    )
    made = reopen(run.path, data=data, device="cpu")
    return hardest(made, count=len(wrong)), wrong


def test_most_wrong_labels_are_among_the_hardest(flipped: tuple[Hardest, set[str]]) -> None:
    """Three quarters of as many as are wrong; by chance it would be a twentieth."""
    found, wrong = flipped
    assert 40 < len(wrong) < 80
    hit = sum(row.key in wrong for row in found.rows)
    assert hit >= 0.75 * len(wrong)
    doubtful = [row for row in found.rows if row.doubtful]
    assert sum(row.key in wrong for row in doubtful) >= 0.75 * len(doubtful)


def test_what_is_said_of_a_sample(flipped: tuple[Hardest, set[str]]) -> None:
    found, _ = flipped
    losses = [row.loss for row in found.rows]
    assert losses == sorted(losses, reverse=True)
    assert found.samples == {"train": 1000, "val": 200}
    assert min(losses) > max(found.mean.values())
    for row in found.rows:
        p = row.shown.probabilities
        assert row.loss == pytest.approx(-np.log(p[int(np.asarray(row.sample.label))]))
        assert row.prediction == str(p.argmax()) and row.probability == p.max()
        assert row.label == str(row.sample.label)
        assert row.split == row.key.split("/")[0]
    lines = found.lines()
    assert len([line for line in lines if ", but the network says" in line]) == len(found.rows)
    told = found.as_json()
    assert [row["key"] for row in told["rows"]] == [row.key for row in found.rows]


def test_mean_and_share_are_those_of_all_samples(flipped: tuple[Hardest, set[str]]) -> None:
    found, _ = flipped
    whole = dataclasses.replace(found, fitted=1.0)
    assert not found.by_heart and whole.by_heart
    assert "learned by heart" in whole.lines()[-1]
    assert found.fitted is not None and 0.8 < found.fitted < 1


def test_sure_is_more_than_half(flipped: tuple[Hardest, set[str]]) -> None:
    found, _ = flipped

    def told(*probabilities: float) -> str:
        rows = tuple(
            dataclasses.replace(row, label="a", prediction="b", probability=p)
            for row, p in zip(found.rows, probabilities, strict=False)
        )
        return "\n".join(dataclasses.replace(found, rows=rows).lines())

    assert "1 of them is labelled one thing, and the network is sure" in told(0.9, 0.4)
    assert "2 of them are labelled one thing, and the network says" in told(0.51, 0.79)
    both = told(0.51, 0.8, 0.95)
    assert "2 of them are labelled one thing, and the network is sure" in both
    assert "1 more is labelled one thing, and the network says" in both
    assert "sure" not in told(0.4, 0.51)


def test_the_picture_shows_each(flipped: tuple[Hardest, set[str]], tmp_path: Path) -> None:
    found, _ = flipped
    few = dataclasses.replace(found, rows=found.rows[:7])
    report.draw(few, tmp_path / "hardest.png")
    with Image.open(tmp_path / "hardest.png") as image:
        assert image.size[0] > 1500 and image.size[1] > 500, "six beside each other, two rows"
    report.draw(dataclasses.replace(found, rows=()), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_several_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = {
        name: [
            Sample(
                key=f"{i}",
                image=rng.integers(0, 255, (8, 8, 3)).astype(np.uint8),
                label=rng.integers(0, 2, 3),
            )
            for i in range(12)
        ]
        for name in ("train", "val")
    }
    made = untrained(data, model="mlp", task="multilabel")
    found = hardest(made, count=5)
    for row in found.rows:
        p, truth = row.shown.probabilities, np.asarray(row.sample.label, bool)
        each = -np.log(np.where(truth, p, 1 - p))
        assert row.loss == pytest.approx(each.mean())
        k = int(each.argmax())
        name = found.classes[k]
        assert row.label == (name if truth[k] else f"no {name}")
        assert row.prediction == (name if p[k] >= 0.5 else f"no {name}")


@pytest.mark.parametrize(
    "data",
    [
        "scenes:segmentation,size=33,n=5,val=3,test=0",
        "scenes:boundaries,size=32,n=4,val=3,test=0",
        "scenes:flow,size=32,n=4,val=3,test=0",
    ],
)
def test_labels_per_pixel(data: str, tmp_path: Path) -> None:
    made = untrained(data)
    found = hardest(made, count=4)
    assert len(found.rows) == 4 and found.fitted is None
    assert all(np.isfinite(row.loss) and row.loss > 0 for row in found.rows)
    report.draw(found, tmp_path / "hardest.png")
    with Image.open(tmp_path / "hardest.png") as image:
        assert image.size[0] > 1200, "image and prediction of each, side by side"


def test_boxes_are_drawn_on_the_image_that_they_count_in(tmp_path: Path) -> None:
    """The network sees it at 48 pixels."""
    found = hardest(untrained("scenes:detection,size=64,n=3,val=2,test=0", image_size=48), count=3)
    assert [row.sample.image.shape for row in found.rows] == [(64, 64, 3)] * 3
    assert all(np.isfinite(row.loss) and row.prediction is None for row in found.rows)
    report.draw(found, tmp_path / "hardest.png")
    assert (tmp_path / "hardest.png").is_file()


def test_the_loss_is_that_of_the_sample_alone() -> None:
    made = untrained("scenes:segmentation,size=33,n=5,val=3,test=0")
    torch.manual_seed(0)
    with torch.no_grad():  # as it begins it says the same of every pixel
        for parameter in made.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    whole = hardest(made, count=8)
    found = {row.key: row.loss for row in whole.rows}
    assert len(found) == 8 and np.ptp(list(found.values())) > 0.01
    for split, mean in whole.mean.items():
        own = [row.loss for row in whole.rows if row.split == split]
        assert len(own) == whole.samples[split] and mean == pytest.approx(np.mean(own))
    for loader in (made.plain, made.loaders["val"]):
        for batch in loader.epoch(0):
            one = to_device(batch, made.compute.device, made.compute.normalisation, False)
            with torch.inference_mode():
                logits = made.model.eval()(one.inputs["image"])
            for row, sample in enumerate(batch.samples):
                mask = torch.tensor(sample.mask)[None].long()
                wanted = F.cross_entropy(logits[row : row + 1], mask, ignore_index=255)
                assert found[sample.key] == pytest.approx(float(wanted), rel=1e-4)


class _Blind(nn.Module):
    """Sure of class 0, whatever it sees; of the first image it gives no number."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 10)
        out[:, 0] = 8.0
        out[x.flatten(1).sum(1) == x.flatten(1).sum(1).max()] = torch.nan
        return out


def test_what_is_not_a_number_comes_first() -> None:
    made = untrained("digits", model="perceptron")
    made.model = _Blind()
    found = hardest(made, count=3)
    assert np.isnan(found.rows[0].loss)
