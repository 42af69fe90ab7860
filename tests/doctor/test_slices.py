"""Slices: planted weaknesses are named, chance is not; the values are the meters' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vidi.data.open import open_data
from vidi.doctor import slices as module
from vidi.doctor.slices import Slices, slices, wilson
from vidi.engine.evaluate import evaluate
from vidi.engine.prepare import Prepared, prepare
from vidi.errors import InputError
from vidi.ops.detection_meter import DetectionMeter
from vidi.recipe import Data, Recipe
from vidi.report import slices as report
from vidi.tasks import segmentation
from vidi.types import Array, Boxes, Detections, Sample

Pairs = list[tuple[Array, int]]


def untrained(data: Any, **changes: Any) -> Prepared:
    recipe = Recipe(
        precision="fp32",
        channels_last=False,
        batch_size=50,
        data=Data(threads=0, cache="off"),
        **changes,
    )
    return prepare(recipe, open_data(data), torch.device("cpu"))


def bars(n: int, seed: int) -> Pairs:
    """Images of 10 × 10 and of 14 × 10, dark to bright, whose class (0 or 1) is the brighter
    half; class 2 is brighter above."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        label = int(rng.integers(3))
        image = np.full((14 if rng.uniform() < 0.5 else 10, 10, 3), rng.uniform(20, 200))
        more = rng.uniform(35, 55)
        if label == 2:
            image[: len(image) // 2] += more
        else:
            image[:, 5 * label : 5 * label + 5] += more
        rows.append((image.astype(np.uint8), label))
    return rows


class Sees(nn.Module):
    """Knows bars, but for what it is told to get wrong: dark images, or a class."""

    def __init__(self, dark: float = -9.0, never: int | None = None) -> None:
        super().__init__()
        self.dark, self.never = dark, never

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        halves = [x[:, :, :5].mean((1, 2)), x[:, :, 5:].mean((1, 2)), x[:, :5].mean((1, 2))]
        halves[2] = halves[2] - 0.05  # between equals it is not the third
        out = torch.stack(halves, 1) * 20
        if self.never is not None:
            out[:, self.never] = -999
        return torch.where(x.mean((1, 2))[:, None] < self.dark, -out, out)


@pytest.fixture(scope="module")
def made() -> Prepared:
    return untrained({"train": bars(60, 0), "val": bars(300, 1)}, model="perceptron", image_size=10)


def told(made: Prepared, network: nn.Module) -> Slices:
    made.model = network
    return slices(made)


def test_a_network_that_sees_well_is_weak_nowhere(made: Prepared) -> None:
    found = told(made, Sees())
    assert found.value == 1
    assert not any(row.differs for row in found.rows)
    assert "None of" in found.lines()[1]
    assert {row.by for row in found.rows} == {"class", "size", "brightness", "contrast"}


def test_weakness_in_the_dark_is_named_first(made: Prepared, tmp_path: Path) -> None:
    found = told(made, Sees(dark=-0.9))
    assert found.value < 0.9
    first = found.rows[0]
    assert (first.by, first.name.split()[0]) == ("brightness", "dark")
    assert first.differs and found.worse(first)
    assert first.rest > 0.95 and first.high < first.rest
    assert not any(row.differs for row in found.rows if row.by in ("size", "class"))
    said = [line for line in found.lines() if "worse" in line]
    assert "brightness dark" in said[0]
    report.draw(found, tmp_path / "slices.png")
    with Image.open(tmp_path / "slices.png") as image:
        assert image.size[0] > 1000
        assert reddish(image) > 100, "what is worse is red"
    report.draw(told(made, Sees()), tmp_path / "well.png")
    with Image.open(tmp_path / "well.png") as image:
        assert reddish(image) == 0


def reddish(image: Image.Image) -> int:
    r, g, b = np.moveaxis(np.asarray(image.convert("RGB"), int), 2, 0)
    return int(((r > 150) & (r - g > 60) & (r - b > 60)).sum())


def test_a_class_that_is_never_said_is_named(made: Prepared) -> None:
    found = told(made, Sees(never=1))
    assert (found.rows[0].by, found.rows[0].name) == ("class", "1")
    assert found.rows[0].value == 0 and found.rows[0].differs


def test_the_values_are_accuracies_of_the_parts(made: Prepared) -> None:
    found = told(made, Sees(dark=-0.9, never=2))
    dataset = made.loaders["val"].dataset
    ids = made.loaders["val"].ids
    meter, _, _ = evaluate(made.model, made.task, made.loaders["val"], made.compute)
    confusion = np.array(made.task.details(meter)["confusion"])
    grey = np.array([dataset[int(i)].image.mean() for i in ids])
    for row in found.rows:
        if row.by == "class":
            k = int(row.name)
            assert row.value == pytest.approx(confusion[k, k] / confusion[k].sum())
            rest = np.delete(confusion, k, 0)
            right = confusion.trace() - confusion[k, k]
            assert row.rest == pytest.approx(right / rest.sum())
    by = [row for row in found.rows if row.by == "brightness"]
    assert sum(row.n for row in by) == len(ids) == found.samples
    mean = sum(row.n * row.value for row in by) / len(ids)
    assert mean == pytest.approx(found.value) == pytest.approx(meter.compute()["accuracy"])
    dark = next(row for row in by if row.name.startswith("dark"))
    assert dark.n == int((grey <= np.quantile(grey, 1 / 3)).sum())


def test_chance_is_called_chance() -> None:
    """Of splits without any weakness one in twenty is said to have one, or fewer."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(120):
        right = rng.uniform(size=150) < 0.8
        parts = rng.integers(0, 6, 150)
        rows = [module._share("class", str(k), right, parts == k) for k in range(6)]
        wrong += any(row.differs for row in module.judged(rows))
    # 5 % of 120 and three standard deviations of it.
    assert wrong <= 6 + 3 * np.sqrt(120 * 0.05 * 0.95)


def test_wilsons_interval_holds_the_truth() -> None:
    """As often as it says, where the plain one, at 0.97 with n = 40, fails far more often."""
    rng = np.random.default_rng(0)
    often = np.bincount(rng.binomial(40, 0.97, 5000), minlength=41)
    inside = [low <= 0.97 <= high for low, high in (wilson(hit, 40) for hit in range(41))]
    assert np.average(inside, weights=often) >= 0.93


def test_few_samples_say_nothing() -> None:
    right = np.array([False] * 3 + [True] * 97)
    row = module._share("class", "rare", right, np.arange(100) < 3)
    assert np.isnan(row.p) and row.value == 0


@pytest.mark.parametrize("lower", [False, True])
def test_a_part_without_a_value_is_last_and_the_others_in_order(
    lower: bool, made: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.9, np.nan, 0.2, np.nan, 0.5, 0.1] * 10)

    def share(by: str, name: str, *_: Any) -> module.Slice:
        return module.Slice(by, name, 5, next(values), 0.0, 1.0, 0.5, np.nan)

    monkeypatch.setattr(module, "_share", share)
    monkeypatch.setattr(type(made.task), "lower_is_better", lower, raising=False)
    found = [row.value for row in told(made, Sees()).rows]
    known = [v for v in found if not np.isnan(v)]
    assert 2 < len(known) < len(found)
    assert found[: len(known)] == sorted(known, reverse=lower)


@pytest.mark.parametrize("by", ["size", "objects"])
def test_areas_are_said_as_sides(by: str) -> None:
    assert module._said(by, 100.0, 400.0) == "10 to 20 px"
    assert module._said("brightness", 100.0, 400.0) == "100 to 400"


def test_one_part_is_counted_as_one() -> None:
    rows = (
        module.Slice("class", "a", 20, 0.1, 0.0, 0.2, 0.9, 0.001, differs=True),
        module.Slice("class", "b", 2, 0.9, 0.8, 1.0, 0.1, np.nan),
    )
    lines = Slices("val", "accuracy", False, 22, 0.2, rows).lines()
    assert "1 of 2 parts differs from" in lines[1]
    assert lines[-1].startswith("1 part has too few")


def test_an_unknown_split_is_a_sentence(made: Prepared) -> None:
    with pytest.raises(InputError, match="no split 'test'"):
        slices(made, "test")
    assert slices(made, "train").samples == 60


class Half(nn.Module):
    """Says the true class of bright images' pixels, background of dark ones; and never class 1."""

    def __init__(self, masks: dict[float, Array], dark: float, classes: int) -> None:
        super().__init__()
        self.masks, self.dark, self.classes = masks, dark, classes

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for image in x:
            mean = float(image.mean())
            mask = torch.from_numpy(self.masks[round(mean, 5)]).long()
            mask = torch.where(mask == 1, 0, mask) if mean >= self.dark else mask * 0
            out.append(nn.functional.one_hot(mask, self.classes).permute(2, 0, 1).float())
        return torch.stack(out)


def _known(sample: Sample) -> Array:
    assert sample.mask is not None
    return np.where(sample.mask == 255, 0, sample.mask)


def test_labels_per_pixel_by_the_meter_of_the_whole_part() -> None:
    made = untrained("scenes:segmentation,size=33,n=4,val=24,test=0")
    from vidi.engine.device import to_device

    masks, means = {}, []
    for batch in made.loaders["val"].epoch(0):
        on_device = to_device(batch, made.compute.device, made.compute.normalisation, False)
        for image, sample in zip(on_device.inputs["image"], batch.samples, strict=True):
            means.append(float(image.mean()))
            masks[round(means[-1], 5)] = _known(sample)
    classes = made.description.classes
    made.model = Half(masks, float(np.quantile(means, 0.4)), len(classes))
    found = slices(made)
    meter, _, _ = evaluate(made.model, made.task, made.loaders["val"], made.compute)
    assert found.value == pytest.approx(meter.compute()["miou"])
    iou = {row["class"]: row["iou"] for row in made.task.details(meter)["per_class"]}
    assert {r.name: r.value for r in found.rows if r.by == "class"} == pytest.approx(iou)
    worse = [row for row in found.rows if row.differs and found.worse(row)]
    assert any(row.by == "brightness" and row.name.startswith("dark") for row in worse)
    assert any(row.by == "class" and row.name == classes[1] for row in worse)
    assert not any(row.differs for row in found.rows if row.by == "contrast")
    (dark,) = (r for r in found.rows if r.by == "brightness" and r.name.startswith("dark"))
    assert dark.value < found.value < dark.rest
    for row in found.rows:
        if row.by == "class":
            others = [value for name, value in iou.items() if name != row.name]
            assert row.rest == pytest.approx(np.nanmean(others))
        few = row.n if row.by == "class" else min(row.n, found.samples - row.n)
        assert np.isnan(row.p) == (few < module.FEWEST)
    for row in found.rows:
        assert np.isnan(row.low) or row.low <= row.value + 0.05
        assert np.isnan(row.low) or row.value - 0.05 <= row.high
    again = slices(made)
    assert again.as_json() == found.as_json(), "the bootstrap has a fixed seed"


def test_of_a_class_in_few_images_nothing_is_said() -> None:
    """Of 20 images, 3 hold class 2; it is never found, all else is."""
    task = segmentation.Task(classes=("a", "b", "c"))
    meters, held = [], []
    for i in range(20):
        mask = np.array([[0, 1, 2 if i < 3 else 1]], np.uint8)
        sample = Sample(key=f"{i}", image=np.zeros((1, 3, 3), np.uint8), mask=mask)
        meters.append(task.meter())
        meters[-1].update([segmentation.Prediction(np.minimum(mask, 1))], [sample])
        held.append(module._classes(sample))
    found = module._measured(task, meters, [], task.classes, held)
    assert [(row.name, row.n) for row in found] == [("a", 20), ("b", 20), ("c", 3)]
    assert [bool(np.isnan(row.p)) for row in found] == [False, False, True]
    assert found[2].value == 0 and np.isnan(found[2].low)


def test_detections_by_average_precision_at_one_overlap() -> None:
    rng = np.random.default_rng(0)
    whole, meters = DetectionMeter(3), []
    for i in range(20):
        xyxy = np.sort(rng.uniform(0, 100, (4, 2, 2)), 1).reshape(4, 4).astype(np.float32)
        labels = rng.integers(0, 2, 4)
        boxes = Boxes(
            xyxy=xyxy, labels=labels, difficult=np.zeros(4, bool), crowd=np.zeros(4, bool)
        )
        moved = xyxy + rng.normal(0, 3, xyxy.shape).astype(np.float32)
        found = Detections(
            xyxy=moved,
            labels=np.where(rng.uniform(size=4) < 0.7, labels, 2),
            scores=rng.uniform(size=4).astype(np.float32),
        )
        sample = Sample(key=f"{i}", image=np.zeros((1, 1, 3), np.uint8), boxes=boxes)
        meters.append(DetectionMeter(3))
        for meter in (meters[-1], whole):
            meter.update([found], [sample])

    class Task:
        classes = ("a", "b", "c")
        headline = "map"

        def meter(self) -> DetectionMeter:
            return DetectionMeter(3)

    value, own = module._score(Task(), meters, np.arange(20))
    assert value == pytest.approx(whole.compute()["map50"])
    assert own[:2] == pytest.approx([r["ap50"] for r in whole.per_class(("a", "b", "c"))[:2]])
    assert np.isnan(own[2]), "there is no object of the third class"
