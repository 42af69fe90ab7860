"""Ensembles: the table, the vote, runs that fit together; dropout as an average of networks."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vidi.data.open import open_data
from vidi.engine import ensembles
from vidi.engine.evaluate import evaluate
from vidi.engine.prepare import Prepared, prepare
from vidi.errors import InputError
from vidi.models.members import Adjusted, Members
from vidi.recipe import Data, Recipe, Regularisation
from vidi.tasks import classification, multilabel, segmentation
from vidi.types import Array, Normalisation


def made(data: str, members: int, **changes: Any) -> Prepared:
    """Untrained members of a network for that data."""
    recipe = Recipe(
        members=members,
        precision="fp32",
        channels_last=False,
        batch_size=16,
        data=Data(threads=0, cache="off"),
        **changes,
    )
    return prepare(recipe, open_data(data), torch.device("cpu"))


@pytest.fixture(scope="module")
def digits() -> Prepared:
    return made("digits", 3, model="mlp")


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        ("digits", {"model": "mlp"}),
        ("scenes:segmentation,size=33,n=2,val=5,test=0", {"model": "fcn_small"}),
        ("scenes:flow,size=32,n=2,val=4,test=0", {"model": "flownet_small"}),
        ("scenes:boundaries,size=32,n=2,val=3,test=0", {"model": "hed_small"}),
    ],
)
def test_the_rows_are_what_each_network_gives_by_itself(data: str, changes: Any) -> None:
    one = made(data, 2, **changes)
    assert isinstance(one.model, Members)
    loader = one.loaders["val"]
    meter, samples, failures, rows = ensembles.evaluate(one.model, one.task, loader, one.compute)
    assert (samples, failures) == (len(loader), {})
    alone: dict[str, nn.Module] = {"1": one.model.members[0], "2": one.model.members[1]}
    for name, network in (alone | {"average": one.model}).items():
        (row,) = (r for r in rows if r["member"] == name)
        found, _, _ = evaluate(network, one.task, loader, one.compute, quick=True)
        assert row["metrics"] == pytest.approx(found.compute(), abs=1e-6), name
    whole, _, _ = evaluate(one.model, one.task, loader, one.compute)
    assert meter.compute() == pytest.approx(whole.compute(), abs=1e-6)
    voted = [r["member"] for r in rows] == ["1", "2", "average", "vote"]
    assert voted == (one.description.recipe.task in ("classification", "segmentation"))


def test_each_member_sees_an_image_once(digits: Prepared) -> None:
    assert isinstance(digits.model, Members)
    seen = [0, 0, 0]

    def count(k: int) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[k] += len(inputs[0])

        return hook

    hooks = [m.register_forward_pre_hook(count(k)) for k, m in enumerate(digits.model.members)]
    loader = digits.loaders["val"]
    ensembles.evaluate(digits.model, digits.task, loader, digits.compute)
    for hook in hooks:
        hook.remove()
    assert seen == [len(loader)] * 3


def test_views_are_each_members_own() -> None:
    """Several calls of a network for one batch, given again in their order."""
    one = made("scenes:segmentation,size=33,n=2,val=5,test=0", 1, model="fcn_small")
    torch.manual_seed(0)
    kernels = [nn.Conv2d(3, one.task.outputs, 5, padding=2) for _ in range(2)]
    one.model = Members(kernels, "segmentation")
    loader = one.loaders["val"]
    views: Any = {"flip": True, "scales": (1.0, 0.5)}
    *_, rows = ensembles.evaluate(one.model, one.task, loader, one.compute, **views)
    alone, _, _ = evaluate(kernels[1], one.task, loader, one.compute, **views)
    assert rows[1]["metrics"] == pytest.approx(alone.compute(), abs=1e-6)


def test_the_averages_cross_entropy_is_no_more_than_the_mean(digits: Prepared) -> None:
    assert isinstance(digits.model, Members)
    loader = digits.loaders["val"]
    *_, rows = ensembles.evaluate(digits.model, digits.task, loader, digits.compute)
    entropy = {r["member"]: r["metrics"].get("cross_entropy") for r in rows}
    assert entropy["average"] < np.mean([entropy[k] for k in "123"])
    assert entropy["vote"] is None, "a vote has no probability"


def test_one_network_has_no_rows() -> None:
    one = made("digits", 1, model="perceptron")
    meter, *_, rows = ensembles.evaluate(one.model, one.task, one.loaders["val"], one.compute)
    alone, _, _ = evaluate(one.model, one.task, one.loaders["val"], one.compute)
    assert rows == []
    assert meter.compute() == alone.compute()


# The vote


def distributions(rng: np.random.Generator, n: int, k: int) -> Array:
    return rng.dirichlet(np.full(k, 0.3), n)


def test_a_vote_is_the_majority_and_the_mean_parts_equals() -> None:
    rng = np.random.default_rng(0)
    tied = 0
    for n in [2, 3, 4, 5] * 60:
        p = distributions(rng, n, 4)
        mean = p.mean(0)
        found = ensembles.vote(
            [classification.Prediction(np.log(row)) for row in p],
            classification.Prediction(np.log(mean)),
        )
        counts = np.bincount(p.argmax(1), minlength=4)
        most = np.flatnonzero(counts == counts.max())
        tied += len(most) > 1
        assert found.log_probabilities.argmax() == most[mean[most].argmax()]
        assert found.probabilities.sum() == pytest.approx(1)
    assert tied > 40, "equals were among them"


def test_labels_are_voted_one_by_one() -> None:
    rng = np.random.default_rng(1)
    for n in [2, 3, 4, 5] * 30:
        p = rng.uniform(0, 1, (n, 6))
        found = ensembles.vote(
            [multilabel.Prediction(row) for row in p], multilabel.Prediction(p.mean(0))
        )
        said = (p >= 0.5).sum(0)
        wanted = np.where(2 * said == n, p.mean(0) >= 0.5, 2 * said > n)
        assert ((found.probabilities >= 0.5) == wanted).all()


def test_pixels_are_voted_one_by_one() -> None:
    rng = np.random.default_rng(2)
    for n in (2, 3, 5):
        masks = rng.integers(0, 4, (n, 30, 20)).astype(np.uint8)
        average = rng.integers(0, 4, (30, 20)).astype(np.uint8)
        found = ensembles.vote(
            [segmentation.Prediction(m) for m in masks], segmentation.Prediction(average)
        )
        for at in np.ndindex(30, 20):
            counts = np.bincount(masks[(slice(None), *at)], minlength=4)
            most = np.flatnonzero(counts == counts.max())
            wanted = average[at] if average[at] in most else most[0]
            assert found.mask[at] == wanted
        assert found.mask.dtype == np.uint8


# Of runs


def test_an_adjusted_member_sees_what_its_training_saw() -> None:
    image = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    given = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    own = Normalisation((0.1, 0.2, 0.6), (0.5, 0.1, 0.3))

    def normalised(by: Normalisation) -> Tensor:
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (by.mean, by.std))
        return (image - mean) / std

    seen = Adjusted(nn.Identity(), given, own)(normalised(given))
    torch.testing.assert_close(seen, normalised(own), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": tuple("1032456789")}, "the same classes in another order"),
        ({"classes": tuple("abcdefghij")}, "other classes"),
        ({"recipe": {"task": "multilabel"}}, "Members of an ensemble have one task"),
        ({"recipe": {"image_size": 16}}, "another image size"),
        ({"data": {"svd": {"fc6": 2}}}, "truncated SVD"),
        ({"data": {"members": [{"run": "x"}, {"run": "y"}]}}, "Name those: x, y"),
    ],
)
def test_what_cannot_be_one_ensemble(digits: Prepared, changes: Any, says: str) -> None:
    one = dataclasses.replace(
        digits.description, recipe=dataclasses.replace(digits.description.recipe, members=1)
    )
    told = dict(changes)
    if "recipe" in told:
        told["recipe"] = dataclasses.replace(one.recipe, **told["recipe"])
    if "data" in told:
        told["data"] = one.data | told["data"]
    other = dataclasses.replace(one, **told)
    with pytest.raises(InputError, match=says):
        ensembles.joined([(Path("a"), one), (Path("b"), other)])


@pytest.mark.parametrize(("task", "alike"), [("classification", True), ("segmentation", False)])
def test_photographs_kept_at_other_sizes_are_one_ensembles(
    digits: Prepared, task: Any, alike: bool
) -> None:
    """What is kept hangs on what a seed holds out; with labels per pixel it is asked for."""
    fittings = set()
    for shorter in (192, 256):
        data = dataclasses.replace(digits.description.recipe.data, shorter=shorter)
        recipe = dataclasses.replace(digits.description.recipe, task=task, data=data)
        fittings.add(ensembles._fitting(dataclasses.replace(digits.description, recipe=recipe)))
    assert (len(fittings) == 1) == alike


def test_one_run_or_one_twice_is_no_ensemble(digits: Prepared, tmp_path: Path) -> None:
    one = digits.description
    with pytest.raises(InputError, match="two runs at least"):
        ensembles.joined([(tmp_path, one)])
    with pytest.raises(InputError, match="named twice"):
        ensembles.joined([(tmp_path, one), (tmp_path / "x" / "..", one)])


def test_members_of_runs_are_built_as_they_were(digits: Prepared) -> None:
    plain = dataclasses.replace(digits.description.recipe, members=1)
    one = dataclasses.replace(digits.description, recipe=plain)
    other = dataclasses.replace(
        one,
        recipe=dataclasses.replace(
            plain, model="perceptron", regularisation=Regularisation(dropout=None)
        ),
        normalisation=Normalisation((0.1, 0.1, 0.1), (0.5, 0.5, 0.5)),
    )
    dropped = dataclasses.replace(
        one, recipe=dataclasses.replace(plain, regularisation=Regularisation(dropout=0.5))
    )
    runs = [(Path(name), d) for name, d in (("a", one), ("b", other), ("c", dropped))]
    described = ensembles.joined(runs)
    assert described.recipe.members == 3
    assert [m["model"] for m in described.data["members"]] == ["mlp", "perceptron", "mlp"]
    built = ensembles.built(described)
    kinds = [sum(isinstance(m, nn.Dropout) for m in part.modules()) for part in built.members]
    assert kinds == [0, 0, 2]
    assert [isinstance(m, Adjusted) for m in built.members] == [False, True, False]


# Dropout: 2ⁿ networks that share weights


def masks(n: int) -> Tensor:
    """All [2ⁿ, n] of zeros and ones."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=torch.float64)


def test_halved_weights_and_doubled_units_are_equal_in_expectation() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(8, dtype=torch.float64), nn.Linear(8, 5).double()
    with torch.no_grad():
        lecture = torch.stack([layer(x * m) for m in masks(8)]).mean(0)
        halved = x @ (layer.weight / 2).T + layer.bias
        torch.testing.assert_close(lecture, halved, rtol=1e-12, atol=1e-12)
        # Inverted: what is kept is doubled, and at test time nothing is done.
        inverted = torch.stack([layer(x * m / 0.5) for m in masks(8)]).mean(0)
        torch.testing.assert_close(inverted, layer(x), rtol=1e-12, atol=1e-12)
    # The two conventions are one network: the lecture's weights are twice the inverted one's.
    twice = nn.Linear(8, 5).double()
    twice.weight.data, twice.bias.data = 2 * layer.weight.data, layer.bias.data
    for m in masks(8)[::17]:
        torch.testing.assert_close(twice(x * m), layer(x * m / 0.5), rtol=1e-12, atol=1e-12)


def test_the_packages_dropout_is_the_inverted_one() -> None:
    p = 0.5
    drop = nn.Dropout(p)
    torch.manual_seed(0)
    x = torch.rand(400, 500) + 0.5
    seen = drop.train()(x)
    kept = seen != 0
    torch.testing.assert_close(seen[kept], x[kept] / (1 - p))
    # 200,000 throws of a coin: five standard deviations are 0.0056.
    assert abs(float(kept.float().mean()) - (1 - p)) < 0.0056
    assert drop.eval()(x) is x


def test_halved_weights_are_the_geometric_mean_of_all_networks() -> None:
    """Of one layer with a softmax, exactly; the arithmetic mean is another."""
    torch.manual_seed(1)
    x, layer = 2 * torch.randn(9, dtype=torch.float64), nn.Linear(9, 4).double()
    with torch.no_grad():
        log_p = torch.stack([layer(x * m) for m in masks(9)]).log_softmax(1)
        geometric = log_p.mean(0).softmax(0)
        halved = (x @ (layer.weight / 2).T + layer.bias).softmax(0)
        torch.testing.assert_close(geometric, halved, rtol=1e-12, atol=1e-12)
        arithmetic = log_p.exp().mean(0)
        assert (arithmetic - halved).abs().max() > 1e-3
