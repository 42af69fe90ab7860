"""The rate finder: where the largest stable rate is known, on made curves, and in a run."""

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vidi
from vidi import recipe as recipes
from vidi.data.open import open_data
from vidi.engine.evaluate import Compute
from vidi.engine.lr_range import Sweep, read, sweep
from vidi.engine.prepare import Prepared, prepare
from vidi.errors import InputError
from vidi.recipe import Recipe
from vidi.types import Batch, Normalisation

CPU = torch.device("cpu")


class Points:
    """A stand-in for a loader: batches of points x [B, D] with values y [B] that depend on them
    linearly, but for noise. ``scale``: of x. Its least squares' Hessian is known."""

    def __init__(self, seed: int, scale: float = 1.0, n: int = 512, batch: int = 32) -> None:
        rng = np.random.default_rng(seed)
        spread = np.array([1.0, 0.7, 0.5, 0.3])
        self.x = (rng.standard_normal((n, 4)) * spread * scale).astype(np.float32)
        self.y = self.x @ rng.standard_normal(4).astype(np.float32) / scale
        self.y += 0.1 * rng.standard_normal(n).astype(np.float32)
        self.batch = batch
        self.steps_per_epoch = n // batch
        self.failures: dict[str, str] = {}

    @property
    def curvature(self) -> float:
        """The largest eigenvalue of the loss's Hessian, E[xxᵀ]."""
        x = self.x.astype(np.float64)
        return float(np.linalg.eigvalsh(x.T @ x / len(x))[-1])

    def epoch(self, epoch: int) -> Iterator[Batch]:
        rows = np.random.default_rng(epoch).permutation(len(self.x))
        for some in rows.reshape(-1, self.batch):
            n = len(some)
            yield Batch(
                inputs={"image": self.x[some]},
                targets={"y": self.y[some]},
                keys=[str(i) for i in some],
                ids=some,
                matrices=np.tile(np.eye(3), (n, 1, 1)),
                sizes=np.ones((n, 2), np.int64),
                valid=np.ones(n, bool),
            )


class LeastSquares:
    def weights(self, batch: Batch) -> dict[str, Tensor]:
        return {"squares": torch.tensor(float(len(batch)))}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        off = model(batch.inputs["image"])[:, 0] - batch.targets["y"]
        return {"squares": off.square().sum() / 2}


def on_points(points: Points, seed: int, **optimiser: Any) -> Sweep:
    torch.manual_seed(seed)
    told = {"name": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "trunk_lr": 1.0}
    recipe = recipes.replace(
        Recipe(), {"optimiser": told | optimiser, "schedule": {"half": 0.0, "warmup": 0.0}}
    )
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    task: Any = LeastSquares()
    loader: Any = points
    compute = Compute(CPU, "fp32", False, Normalisation((0.0,) * 3, (1.0,) * 3))

    def train_mode(network: nn.Module) -> None:
        network.train()

    return sweep(
        model, task, loader, compute, recipe, is_head=lambda name: True, train_mode=train_mode
    )


@pytest.mark.parametrize("seed", range(4))
def test_below_the_largest_stable_rate_and_within_a_decade(seed: int) -> None:
    """Gradient descent on a quadratic is stable up to 2/L."""
    points = Points(seed)
    found = on_points(points, seed)
    assert found.suggestion is not None
    stable = 2 / points.curvature
    assert stable / 10 < found.suggestion < stable


def test_inputs_ten_times_larger_want_a_rate_a_hundred_times_smaller() -> None:
    plain, large = on_points(Points(0), 0), on_points(Points(0, scale=10.0), 0)
    assert plain.suggestion is not None and large.suggestion is not None
    # The weights are a tenth then, and the same steps lead there.
    assert plain.suggestion / large.suggestion == pytest.approx(100, rel=0.35)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_with_momentum_a_run_at_the_suggestion_learns(momentum: float) -> None:
    points = Points(1)
    found = on_points(points, 1, momentum=momentum)
    assert found.suggestion is not None
    w = torch.zeros(4, requires_grad=True)
    optimiser = torch.optim.SGD([w], found.suggestion, momentum=momentum)
    losses = []
    for epoch in range(10):
        for batch in points.epoch(epoch):
            x, y = torch.from_numpy(batch.inputs["image"]), torch.from_numpy(batch.targets["y"])
            loss = (x @ w - y).square().mean() / 2
            losses.append(float(loss.detach()))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    assert np.mean(losses[-16:]) < losses[0] / 10


def test_a_longer_warmup_bears_a_higher_rate() -> None:
    rates, losses = curve(0.5, 4.0, noise=0.05)
    found = [read(rates, losses, warmup=steps).suggestion or 0 for steps in (0, 50, 200, 1e6)]
    assert all(low < high for low, high in itertools.pairwise(found))
    assert 0 < found[-1] < 10 * found[0], "within bounds"


def curve(bottom: float, top: float, noise: float, seed: int = 0) -> tuple[Any, Any]:
    """A loss of 2 that falls to ``bottom`` at a rate of 0.1 and is ``top`` from 1 on."""
    rates = np.geomspace(1e-3, 10, 120)
    losses = np.interp(np.log10(rates), [-3, -2, -1, -0.5, 0], [2, 1.9, bottom, bottom, top])
    return rates, losses + noise * np.random.default_rng(seed).standard_normal(120)


@pytest.mark.parametrize("seed", range(5))
def test_reads_the_upper_end_of_the_valley(seed: int) -> None:
    found = read(*curve(0.5, 4.0, noise=0.1, seed=seed))
    assert found.suggestion is not None
    assert 0.05 < found.suggestion < 0.4, "the loss rises from 0.3 on"
    assert found.rises is not None and 0.2 < found.rises < 0.8


def test_the_curve_may_end_in_what_is_no_number() -> None:
    rates, losses = curve(0.5, 4.0, noise=0.05)
    losses[-20:] = np.nan
    losses[-30:-20] = 1e30
    assert read(rates, losses).suggestion == read(*curve(0.5, 4.0, noise=0.05)).suggestion


def test_a_better_loss_beyond_the_cliff_does_not_count() -> None:
    rates, losses = curve(0.5, 4.0, noise=0.05)
    losses[-10:] = 0.2
    found = read(rates, losses)
    assert found.suggestion is not None and found.suggestion < 0.4


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_suggests_nothing(seed: int) -> None:
    losses = 2 + np.random.default_rng(seed).standard_normal(120)
    assert read(np.geomspace(1e-3, 10, 120), losses).suggestion is None


def settled(network: Any = None, **changes: Any) -> Prepared:
    fields = {"device": "cpu", "precision": "fp32", "epochs": 2.0, "data": {"threads": 0}}
    if network is None:
        fields["model"] = "resnet20"
    else:
        fields["model"] = "python:net"
    recipe = recipes.replace(Recipe(), fields | changes)
    return prepare(recipe, open_data("digits"), CPU, network=network)


def small(num_classes: int) -> nn.Module:
    """With batch statistics and dropout: all that a sweep could leave changed."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(72, num_classes),
    )


def test_all_is_afterwards_as_it_was_and_the_same_again() -> None:
    made = settled(small, lr=0.1, batch_size=16)
    made.model.eval()
    for parameter in made.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(made.model.state_dict())
    batch = next(made.train.epoch(0))
    state = torch.get_rng_state()

    def again() -> Sweep:
        recipe = made.description.recipe
        return sweep(
            made.model,
            made.task,
            made.train,
            made.compute,
            recipe,
            is_head=made.is_head,
            train_mode=made.train_mode,
        )

    found = again()
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in made.model.parameters())
    assert not any(module.training for module in made.model.modules())
    after = next(made.train.epoch(0))
    assert np.array_equal(batch.inputs["image"], after.inputs["image"])
    assert np.array_equal(found.losses, again().losses)


def losses(run: Any) -> list[float]:
    return [row["loss"] for row in run.history() if row["event"] == "train"]


def test_find_is_a_number_in_the_recipe_and_resuming_keeps_it(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "model": small,
        "batch_size": 32,
        "precision": "fp32",
        "device": "cpu",
        "data": {"threads": 0},
        "logging": {"pictures": False},
        "length": {"steps": 20},
        "lr": "find",
        "optimiser": {"name": "sgd"},
    }
    run = vidi.train("digits", run=tmp_path / "run", **fields)
    assert isinstance(run.recipe.lr, float) and run.recipe.lr > 0
    noted = (tmp_path / "run" / "recipe.json").read_text()
    assert f"learning rate: {run.recipe.lr:g} " in noted and "found" in noted
    begun = losses(run)
    longer = fields | {"length": {"steps": 30}}
    gone_on = vidi.train("digits", run=tmp_path / "run", resume=True, **longer)
    assert gone_on.recipe.lr == run.recipe.lr and gone_on.steps == 30

    # It is the very run that the number alone would have given.
    number = vidi.train("digits", run=tmp_path / "other", **(fields | {"lr": run.recipe.lr}))
    assert losses(number) == begun


def test_auto_finds_for_a_network_of_ones_own_in_a_run_of_some_length() -> None:
    assert "found" not in " ".join(settled(small).description.notes), "a short run"
    long = settled(small, epochs=60.0)
    assert f"{long.description.recipe.lr:g}" in next(
        n for n in long.description.notes if n.startswith("learning rate") and "found" in n
    )
    usual = settled(epochs=60.0)
    assert "found" not in " ".join(usual.description.notes), "the package's own network"


def test_nothing_to_find_is_said() -> None:
    class Deaf(nn.Module):
        """Its output does not depend on what is trained."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 10)

        def forward(self, image: Tensor) -> Tensor:
            out: Tensor = self.layer(image.flatten(1)) * 0
            return out

    with pytest.raises(InputError, match="finds no rate"):
        settled(lambda num_classes: Deaf(), lr="find")
