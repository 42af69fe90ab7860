"""Training end to end on small data: what a run leaves, how it goes on, how it stops."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import vidi
from vidi.engine import schedules
from vidi.engine.run import read_metrics
from vidi.errors import InputError, RunError
from vidi.models.perceptrons import mlp
from vidi.ops import convolution
from vidi.recipe import flat


class Blobs:
    """``n`` images of 8 px in three classes, told apart by their colour."""

    def __init__(self, n: int = 60, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.labels = np.arange(n) % 3
        self.images = rng.integers(0, 90, (n, 8, 8, 3), dtype=np.uint8)
        self.images[np.arange(n), :, :, self.labels] += 100

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.images[i], int(self.labels[i])


def tiny(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))


def train(run: Path, **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "model": tiny,
        "epochs": 4,
        "batch_size": 10,
        "lr": 0.05,
        "precision": "fp32",
        "image_size": 8,
        "data": {"threads": 0},
        "logging": {"pictures": False, "every": 1},
    }
    data = changes.pop("with_data", Blobs())
    return vidi.train(data, run=run, **{**fields, **changes})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(max((run / "last").glob("*.safetensors")))


def test_learns_what_is_easy_and_leaves_a_whole_run(tmp_path: Path) -> None:
    run = train(tmp_path / "run", epochs=8)
    assert run.metrics["accuracy"] == 1.0
    assert run.epochs == 8 and run.steps == 8 * 5, "54 images, batches of 10"
    for name in ("recipe.json", "metrics.jsonl", "best.safetensors", "evaluation.json"):
        assert (run.path / name).is_file()
    open_still = [name for name, value, free in flat(run.recipe) if value == "auto" and not free]
    assert open_still == [], "everything that decides the result is resolved"
    losses = [r["train_loss"] for r in run.history() if r["event"] == "epoch"]
    assert losses[-1] < losses[0] / 2


def test_an_existing_run_is_not_touched_without_resume(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="--resume"):
        train(tmp_path / "run", epochs=1)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_is_no_run_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is no run"):
        train(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_finished_run_is_extended_by_a_longer_length(tmp_path: Path) -> None:
    constant = {"name": "constant", "warmup": 0}
    long = train(tmp_path / "long", epochs=4, schedule=constant)
    train(tmp_path / "run", epochs=2, schedule=constant)
    extended = train(tmp_path / "run", epochs=4, schedule=constant, resume=True)
    assert extended.steps == long.steps
    a, b = weights(tmp_path / "long"), weights(tmp_path / "run")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = train(tmp_path / "run")
    before = weights(tmp_path / "run")
    again = train(tmp_path / "run", resume=True)
    assert again.metrics == first.metrics and again.steps == first.steps
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 0.1}, "lr"),
        ({"batch_size": 12}, "batch_size"),
        ({"optimiser": {"momentum": 0.5}}, "optimiser.momentum"),
    ],
)
def test_a_changed_field_is_refused_on_resume(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    train(tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match=named):
        train(tmp_path / "run", resume=True, **change)


def test_other_data_is_refused_on_resume(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match="not the data"):
        train(tmp_path / "run", resume=True, with_data=Blobs(63))


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    class Bad(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.fc = nn.Linear(192, num_classes)
            self.explode = Explode()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> Any:
            self.calls += self.training
            return self.explode(self.fc(x.flatten(1)), self.calls >= 8)

    class Explode(nn.Module):
        def forward(self, x: torch.Tensor, now: bool) -> Any:
            return x / 0 if now else x

    model = Bad(3)
    with pytest.raises(RunError) as caught:
        train(tmp_path / "run", model=model, length={"save_every_steps": 7})
    said = str(caught.value)
    assert "step 8" in said and "explode (Explode)" in said and "--lr" in said
    saved = weights(tmp_path / "run")
    assert torch.equal(saved["model/fc.weight"], model.fc.weight), "not updated since step 7"
    assert torch.isfinite(model.fc.weight).all()


def test_early_stopping_stops(tmp_path: Path) -> None:
    run = train(tmp_path / "run", epochs=50, lr=1e-9, length={"patience": 3})
    assert run.epochs == 4, "the first evaluation is the best, three more are not"
    assert train(tmp_path / "run", epochs=50, lr=1e-9, length={"patience": 3}, resume=True).epochs


def test_a_length_in_minutes_becomes_steps_and_is_saved(tmp_path: Path) -> None:
    run = train(tmp_path / "run", length={"minutes": 0.02})
    assert run.steps >= 25
    newest = max((tmp_path / "run" / "last").glob("*.json"))
    assert json.loads(newest.read_text())["values"]["total"] == run.steps


PLAIN: dict[str, Any] = {"logging": {"pictures": False}}


class Sizes(nn.Conv2d):
    """Remembers how large the images of each step were."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(3, num_classes, 1)
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(x.shape[2])
        return super().forward(x)


def test_the_first_steps_see_images_of_half_the_size(tmp_path: Path) -> None:
    settings = PLAIN | {"image_size": 33, "batch_size": 4, "schedule": {"half": 0.5}}
    data = "scenes:segmentation,size=40,n=16,val=2,test=0"
    model = Sizes(11)
    vidi.train(data, run=tmp_path / "run", model=model, epochs=2, **settings)
    assert model.seen == [17] * 6 + [33] * 2
    # A longer run does not go back to them.
    model.seen.clear()
    vidi.train(data, run=tmp_path / "run", model=model, epochs=4, resume=True, **settings)
    assert model.seen == [33] * 8
    # Both kinds are timed before a length in minutes becomes steps.
    model = Sizes(11)
    vidi.train(data, run=tmp_path / "timed", model=model, length={"minutes": 0.01}, **settings)
    assert {17, 33} == set(model.seen[:24]) and model.seen[:4] == [17, 33, 17, 33]
    with pytest.raises(InputError, match=r"--schedule\.half is for segmentation"):
        vidi.train("digits", run=tmp_path / "no", schedule={"half": 0.5}, epochs=1)


def test_images_of_half_the_size_have_their_share_of_the_time(tmp_path: Path) -> None:
    """Where their steps are no faster, half of the time is half of the steps, not four fifths."""

    class AsSlow(Sizes):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.03)
            return super().forward(x)

    settings = PLAIN | {"image_size": 33, "batch_size": 4, "schedule": {"half": 0.5}}
    data = "scenes:segmentation,size=40,n=200,val=2,test=0"

    def values() -> Any:
        newest = max((tmp_path / "run" / "last").glob("*.json"))
        return json.loads(newest.read_text())["values"]

    model = AsSlow(11)
    run = vidi.train(data, run=tmp_path / "run", model=model, length={"minutes": 0.035}, **settings)
    saved = values()
    assert 0.4 < saved["cost"] <= 1  # by its pixels it would be a quarter
    assert saved["halves"] == schedules.halves(0.5, run.steps, saved["cost"])
    small = max(25, saved["halves"])  # both kinds are timed in the first 25 steps
    assert model.seen[25:] == [17] * (small - 25) + [33] * (run.steps - small)
    # A longer run times whole images alone, and what was measured of halves stays.
    settings |= {"length": {"minutes": 0.045}, "resume": True}
    assert vidi.train(data, run=tmp_path / "run", model=model, **settings).steps > run.steps
    assert values()["cost"] == pytest.approx(saved["cost"])


class Fixed(nn.Conv2d):
    """Takes images of one size alone."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(3, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] != 97:
            raise ValueError("97 pixels, no others")
        return super().forward(x)


def test_a_network_that_takes_no_halves_is_trained_without(tmp_path: Path) -> None:
    settings = PLAIN | {"image_size": 97, "batch_size": 2, "length": {"steps": 1}}
    data = "scenes:segmentation,size=97,n=4,val=2,test=0"
    run = vidi.train(data, run=tmp_path / "run", model=Fixed(11), **settings)
    assert run.recipe.schedule.half == 0
    with pytest.raises(InputError, match="cannot take images of 49 × 49"):
        vidi.train(
            data, run=tmp_path / "asked", model=Fixed(11), schedule={"half": 0.5}, **settings
        )


def test_a_run_of_before_goes_on_without_what_has_come_since(tmp_path: Path) -> None:
    """Its recipe knows nothing of images of half the size, nor of noise."""
    settings = PLAIN | {"image_size": 97, "batch_size": 2, "length": {"steps": 1}}
    data = "scenes:segmentation,size=97,n=4,val=2,test=0"
    vidi.train(data, run=tmp_path / "run", model=Sizes(11), **settings)
    file = tmp_path / "run" / "recipe.json"
    saved = json.loads(file.read_text())
    del saved["recipe"]["schedule"]["half"], saved["recipe"]["augmentation"]["noise"]
    file.write_text(json.dumps(saved))
    model = Sizes(11)
    settings["length"] = {"steps": 3}
    run = vidi.train(data, run=tmp_path / "run", model=model, resume=True, **settings)
    assert model.seen == [97, 97]
    assert (run.recipe.schedule.half, run.recipe.augmentation.noise) == (0, 0)


def test_a_run_of_before_pads_as_it_did(tmp_path: Path) -> None:
    """Its recipe names a preset that has been changed since; and so may who resumes it."""
    settings = PLAIN | {"model": "mlp", "augmentation": {"preset": "small"}}
    run = vidi.train("digits", run=tmp_path / "run", length={"steps": 1}, **settings)
    assert run.recipe.augmentation.pad_mode == "reflect"
    mean = {"preset": "small", "pad_mode": "mean"}
    file = tmp_path / "run" / "recipe.json"
    saved = json.loads(file.read_text())
    del saved["recipe"]["augmentation"]["pad_mode"]
    file.write_text(json.dumps(saved))
    run = vidi.train(run=tmp_path / "run", resume=True, length={"steps": 2})
    assert (run.steps, run.recipe.augmentation.pad_mode) == (2, "mean")
    file.write_text(json.dumps(saved))
    run = vidi.train(run=run.path, resume=True, length={"steps": 3}, augmentation=mean)
    assert (run.steps, run.recipe.augmentation.pad_mode) == (3, "mean")
    file.write_text(json.dumps(saved))
    with pytest.raises(InputError, match=r"pad_mode \(was 'mean', now 'reflect'"):
        vidi.train(run=run.path, resume=True, augmentation={"pad_mode": "reflect"})


def test_accumulated_parts_equal_the_whole_batch(tmp_path: Path) -> None:
    """Without batch statistics the parts' gradients add up to the batch's."""
    whole = train(tmp_path / "a", batch_size=12)
    parts = train(tmp_path / "b", batch_size=12, optimiser={"accumulate": 5})
    a, b = load_file(whole.path / "best.safetensors"), load_file(parts.path / "best.safetensors")
    for key in a:
        assert torch.allclose(a[key], b[key], atol=1e-6), key


def test_frozen_parts_stay_and_their_batch_norm_too(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 3)),
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(tmp_path / "run", model=model, freeze=("0",), epochs=2)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("0."), key


def test_class_weights_and_balanced_sampling_even_out_an_imbalance(tmp_path: Path) -> None:
    class Skewed(Blobs):
        def __init__(self) -> None:
            super().__init__(90)
            keep = np.flatnonzero((self.labels != 2) | (np.arange(90) < 18))
            self.images, self.labels = self.images[keep], self.labels[keep]

    def share(**changes: Any) -> float:
        seen: list[int] = []

        def loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            seen.extend(label.tolist())
            return nn.functional.cross_entropy(logits, label, reduction="none")

        train(tmp_path / str(len(changes)), with_data=Skewed(), loss=loss, **changes)
        return float(np.mean(np.array(seen) == 2))

    assert share() < 0.12
    assert share(data={"balance": "sampler", "threads": 0}) == pytest.approx(1 / 3, abs=0.04)


def test_a_network_by_name_and_load_predict_evaluate(tmp_path: Path) -> None:
    run = train(tmp_path / "run", model=mlp, epochs=6)
    model = vidi.load(run.path)
    data = Blobs(9, seed=5)
    predictions = model.predict([image for image, _ in data])  # type: ignore[attr-defined]
    assert [p.label for p in predictions] == [model.classes[label] for _, label in data]  # type: ignore[attr-defined]
    assert all(p.probabilities.sum() == pytest.approx(1) for p in predictions)
    scored = model.evaluate({"train": Blobs(), "val": data}, split="val")
    assert scored.samples == 9 and scored.metrics["accuracy"] == 1.0


def test_weights_of_a_run_start_another_with_other_classes(tmp_path: Path) -> None:
    class Two(Blobs):
        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            return self.images[i], int(self.labels[i]) % 2

    first = train(tmp_path / "first", model="mlp", epochs=2)
    second = train(
        tmp_path / "second",
        model="mlp",
        weights=str(first.path),
        with_data=Two(),
        epochs=1,
        lr=1e-9,
    )
    notes = " ".join(json.loads((second.path / "recipe.json").read_text())["notes"])
    assert "2 classes" in notes or "fresh" in notes, notes
    a = load_file(first.path / "best.safetensors")
    b = load_file(second.path / "best.safetensors")
    same = [k for k in a if a[k].shape == b[k].shape]
    assert same and all(torch.allclose(a[k], b[k], atol=1e-5) for k in same)


def test_rows_tell_every_step_once(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=2)
    rows = [r for r in read_metrics(tmp_path / "run") if r["event"] == "train"]
    assert [r["step"] for r in rows] == list(range(1, 11))
    assert all({"loss", "lr", "gradient_norm", "images_per_second"} <= r.keys() for r in rows)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_too(tmp_path: Path, precision: str) -> None:
    run = train(tmp_path / "run", epochs=8, precision=precision, device="cpu")
    assert run.metrics["accuracy"] == 1.0


@pytest.mark.parametrize(
    "changes",
    [{"epochs": 0}, {"lr": -0.1}, {"image_size": 0}, {"optimiser": {"momentum": 1.5}}],
    ids=str,
)
def test_a_number_outside_its_range_is_a_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="it should be"):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_an_early_stopped_run_goes_on_when_made_longer(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"lr": 1e-9, "length": {"patience": 2}}
    assert train(tmp_path / "run", epochs=10, **changes).epochs == 3
    assert train(tmp_path / "run", epochs=20, resume=True, **changes).epochs > 3


def test_the_length_asked_for_last_counts(tmp_path: Path) -> None:
    assert train(tmp_path / "run", length={"steps": 7}).steps == 7
    again = vidi.train(Blobs(), model=tiny, run=tmp_path / "run", resume=True, epochs=3)
    assert again.steps == 15 and again.recipe.length.steps is None


def test_another_loss_or_no_network_is_refused_on_resume(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match="the loss"):
        train(tmp_path / "run", epochs=2, resume=True, loss=nn.functional.cross_entropy)
    with pytest.raises(InputError, match="given from Python"):
        vidi.train(Blobs(), run=tmp_path / "run", resume=True, epochs=2)


def test_a_network_given_from_python_is_loaded_with_it(tmp_path: Path) -> None:
    run = train(tmp_path / "run", epochs=6)
    model = vidi.load(run.path, network=tiny)
    assert model.predict(Blobs().images[2]).pop().label == "2"


def test_unreadable_validation_images_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    class Fading(Blobs):
        """Its last image can be read while the data is opened and checked, and no more."""

        reads = 0

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            self.reads += i == 8
            if i == 8 and self.reads > 3:
                raise OSError("gone")
            return super().__getitem__(i)

    split = {"train": Blobs(), "val": Fading(9)}
    with pytest.raises(InputError, match=r"in validation(.|\n)*val/000008.*gone"):
        train(tmp_path / "a", with_data=split, data={"threads": 0, "cache": "off"})
    run = train(
        tmp_path / "b",
        with_data={"train": Blobs(), "val": Fading(9)},
        data={"threads": 0, "cache": "off"},
        bad_images="skip",
    )
    skipped = [r for r in run.history() if r["event"] == "skipped"]
    assert skipped and "val/000008" in skipped[0]["samples"]


def test_a_damaged_newest_state_does_not_push_out_good_ones(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=4, length={"save_every_steps": 2})
    newest = max((tmp_path / "run" / "last").glob("*.safetensors"))
    newest.write_bytes(b"damaged")
    again = train(tmp_path / "run", epochs=4, length={"save_every_steps": 2}, resume=True)
    assert again.steps == 20
    steps = sorted(f.name for f in (tmp_path / "run" / "last").glob("*.json"))
    assert len(steps) == 2 and all(not f.name.endswith(".part") for f in tmp_path.iterdir())


def test_a_setting_for_pairs_is_refused_for_single_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is for pairs of frames"):
        vidi.train("digits", run=tmp_path / "run", epochs=1, augmentation={"pair_jitter": 0.1})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, True), ({"channels_last": False}, False), ({"compile": True}, False)],
    ids=["usual", "channels first", "compiled"],
)
def test_convolutions_may_be_products_where_that_is_quicker(
    fields: dict[str, Any], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convolutional(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, num_classes))

    converted = []
    real = convolution.convert
    monkeypatch.setattr(convolution, "convert", lambda m: converted.append(m) or real(m))
    monkeypatch.setattr(torch, "compile", lambda module: module)
    train(tmp_path, model=convolutional, epochs=1, device="cpu", **fields)
    assert bool(converted) == expected
