"""SGD against its formula; who is decayed and who is not; state that comes back."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import vidi
from vidi import models
from vidi import recipe as recipes
from vidi.data.survey import Survey
from vidi.engine import defaults, muon, optimisers
from vidi.engine.prepare import kept_size
from vidi.recipe import Optimiser, Recipe
from vidi.types import Normalisation


def settled(**changes: object) -> Optimiser:
    fields: dict[str, object] = {
        "name": "sgd",
        "nesterov": False,
        "momentum": 0.9,
        "weight_decay": 0.1,
        "trunk_lr": 1.0,
    }
    return Optimiser(**{**fields, **changes})  # type: ignore[arg-type]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def test_biases_and_norms_are_left_alone_unless_told() -> None:
    groups = optimisers.groups(network(), settled(), 0.5, lambda name: True)
    decays = {g["weight_decay"]: sorted(p.ndim for p in g["params"]) for g in groups}
    assert decays == {0.1: [2, 4], 0.0: [1, 1, 1, 1]}
    groups = optimisers.groups(
        network(), settled(decay_biases_and_norms=True), 0.5, lambda name: True
    )
    assert [g["weight_decay"] for g in groups] == [0.1]


def test_the_trunk_has_its_own_rate_and_frozen_parts_none() -> None:
    model = network()
    model[0].requires_grad_(False)
    groups = optimisers.groups(model, settled(trunk_lr=0.1), 0.5, lambda n: n.startswith("3."))
    rates = {id(p): g["highest_lr"] for g in groups for p in g["params"]}
    assert rates[id(model[3].weight)] == 0.5
    assert rates[id(model[1].weight)] == pytest.approx(0.05)
    assert id(model[0].weight) not in rates


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_its_formula(nesterov: bool) -> None:
    """v = αv + (g + λθ); θ -= η v, with Nesterov η (g + λθ + αv)."""
    recipe = settled(nesterov=nesterov, momentum=0.9)
    model = nn.Linear(3, 2, bias=False)
    weight = model.weight.detach().double().clone()
    velocity = torch.zeros_like(weight)
    optimiser = optimisers.make(optimisers.groups(model, recipe, 0.2, lambda n: True), recipe, 0.2)
    torch.manual_seed(1)
    for step in range(4):
        gradient = torch.randn(2, 3)
        model.weight.grad = gradient.clone()
        optimisers.set_rate(optimiser, 1 / (step + 1))
        optimiser.step()
        g = gradient.double() + 0.1 * weight
        velocity = 0.9 * velocity + g
        weight -= 0.2 / (step + 1) * (g + 0.9 * velocity if nesterov else velocity)
    assert torch.allclose(model.weight.double(), weight, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_restored_state_continues_bit_for_bit(name: str) -> None:
    recipe = settled(name=name)

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = network().to(memory_format=torch.channels_last)
        groups = optimisers.groups(model, recipe, 0.02, lambda n: True)
        return model, optimisers.make(groups, recipe, 0.02)

    def steps(model: nn.Module, optimiser: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            optimiser.zero_grad()
            model(torch.randn(5, 3, 4, 4)).square().mean().backward()
            optimiser.step()

    whole, optimiser = start()
    steps(whole, optimiser, range(6))
    first, optimiser = start()
    steps(first, optimiser, range(3))
    saved = {k: v.clone() for k, v in optimisers.tensors(optimiser, first).items()}
    second, optimiser = start()
    second.load_state_dict(first.state_dict())
    optimisers.restore(optimiser, second, saved)
    steps(second, optimiser, range(3, 6))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_muon_takes_all_singular_values_near_one() -> None:
    """Jordan et al. 2024: within about [0.7, 1.2], for tall matrices and wide ones."""
    torch.manual_seed(0)
    for shape in ((16, 144), (64, 20)):
        values = torch.linalg.svdvals(muon.orthogonal([torch.randn(shape)])[0])
        assert values.min() > 0.5 and values.max() < 1.3
    # Of a matrix that is orthogonal already, the direction stays.
    q = torch.linalg.qr(torch.randn(12, 12))[0]
    (turned,) = muon.orthogonal([q])
    assert torch.nn.functional.cosine_similarity(turned.flatten(), q.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("shape", [(24, 24), (16, 144), (64, 20), (128, 27)])
def test_muon_takes_the_paper_s_steps(shape: tuple[int, int]) -> None:
    """The five steps as written, x ← ax + (bs + cs²)x with s = xxᵀ, in float64."""
    torch.manual_seed(0)
    a, b, c = muon.COEFFICIENTS
    for decades in (0, 2, 6):  # singular values from 1 down to 10^-6
        u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
        matrix = u @ torch.diag(torch.logspace(0, -decades, min(shape), dtype=torch.float64)) @ v
        x = matrix / matrix.norm()
        for _ in range(5):
            s = x @ x.T
            x = a * x + (b * s + c * s @ s) @ x
        found = muon.orthogonal([matrix.float()])[0].double()
        torch.testing.assert_close(found, x, atol=1e-3, rtol=0)


def test_muon_takes_matrices_together_as_one_by_one() -> None:
    """Tall and wide ones whose shorter sides are equal, a square, and one that is alone."""
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in ((16, 144), (60, 16), (9, 20), (16, 16), (16, 32))]
    matrices.append(torch.randn(16, 20).double())
    for together, one in zip(muon.orthogonal(matrices), matrices, strict=True):
        assert together.shape == one.shape
        torch.testing.assert_close(together, muon.orthogonal([one])[0], atol=1e-5, rtol=0)


def test_muon_is_pytorchs_on_a_matrix_and_sgd_elsewhere() -> None:
    recipe = settled(name="muon", momentum=0.95)
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 3))
    twin = copy.deepcopy(model)
    ours = optimisers.make(optimisers.groups(model, recipe, 0.05, lambda n: True), recipe, 0.05)
    # PyTorch's carries the average of gradients, ours their sum; the direction is the same.
    theirs = torch.optim.Muon([twin[0].weight], lr=0.05, momentum=0.95, weight_decay=0.1)
    others = [twin[0].bias, twin[1].bias]
    sgd = torch.optim.SGD(
        [{"params": [twin[1].weight], "weight_decay": muon.SGD_DECAY}, {"params": others}],
        lr=0.5, momentum=0.9, nesterov=True,
    )  # fmt: skip
    for seed in range(4):
        torch.manual_seed(seed)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimiser in (ours, theirs, sgd):
            optimiser.step()
    for p, q in zip(list(model.parameters())[1:], list(twin.parameters())[1:], strict=True):
        assert torch.allclose(p, q, atol=1e-6)
    # PyTorch's iterates in bf16.
    assert torch.allclose(model[0].weight, twin[0].weight, atol=0.01)


def test_a_rate_that_is_given_is_sgds() -> None:
    """Muon is the default of small networks; whose rate or momentum is given trains as ever."""
    model = vidi.models.resnet20()
    recipe = recipes.replace(Recipe(), {"image_size": 32, "batch_size": 64})
    for change, name in (({}, "muon"), ({"lr": 0.1}, "sgd"), ({"optimiser.momentum": 0.8}, "sgd")):
        wanted = recipes.replace(recipe, change)
        found, notes = defaults.for_model(wanted, model, 4e7, 1000, torch.device("cpu"), 0.1)
        assert found.optimiser.name == name
        said = any("--optimiser.name muon would suit" in note for note in notes)
        assert said == (name == "sgd"), "why it is not the usual one"
    tuned = recipes.replace(recipe, {"weights": "imagenet"})
    found, _ = defaults.for_model(tuned, model, 4e7, 1000, torch.device("cpu"), 0.1)
    assert found.optimiser.name == "sgd"


@pytest.mark.parametrize(
    ("change", "ema"),
    [
        ({}, 0.998),
        ({"task": "multilabel"}, 0.998),
        ({"regularisation.ema": 0.0}, 0.0),
        ({"regularisation.ema": 0.9}, 0.9),
        ({"lr": 0.1}, 0.0),  # by SGD
        ({"image_size": 96}, 0.0),
        ({"optimiser.name": "muon", "weights": "imagenet"}, 0.0),
        ({"task": "segmentation"}, 0.0),
    ],
)
def test_whose_weights_are_averaged(change: dict[str, object], ema: float) -> None:
    fields = {"task": "classification", "image_size": 32, "batch_size": 64, **change}
    recipe = recipes.replace(Recipe(), fields)
    model = vidi.models.resnet20()
    found, notes = defaults.for_model(recipe, model, 4e7, 1000, torch.device("cpu"), 0.1)
    assert found.regularisation.ema == ema
    said = "evaluated: the moving average of the weights (--regularisation.ema)"
    assert (said in notes) == (ema == 0.998)


def test_only_segmentation_from_scratch_takes_sixteen_crops_a_step() -> None:
    """On a CPU; a step of a network with weights is for few images, and its rate goes by them."""
    seen = Survey(Normalisation((0.5,) * 3, (0.2,) * 3), grey=False, sides=np.full((9, 2), 128))
    for change, size in (
        ({"task": "segmentation"}, 16),
        ({"task": "segmentation", "weights": "imagenet"}, 8),
        ({"task": "boundaries"}, 8),
    ):
        wanted = recipes.replace(Recipe(), change)
        found, _ = defaults.for_data(wanted, seen, 10_000, torch.device("cpu"), None)
        assert found.batch_size == size


@pytest.mark.parametrize(
    ("task", "lr", "decay"),
    [
        ("classification", 0.06, 0.02),
        ("multilabel", 0.06, 0.02),
        ("segmentation", 0.08, 0.01),
        ("boundaries", 0.04, 5e-4),
        ("detection", 0.03, 5e-4),
        ("flow", 0.02, 5e-4),
    ],
)
def test_each_task_has_the_rate_and_decay_of_muon_that_were_tried(
    task: str, lr: float, decay: float
) -> None:
    model = vidi.models.resnet20(10)
    fields = {"task": task, "image_size": 32, "batch_size": 64, "optimiser.name": "muon"}
    recipe = recipes.replace(Recipe(), fields)
    found, _ = defaults.for_model(recipe, model, 4e7, 1000, torch.device("cpu"), 0.1)
    assert (found.lr, found.optimiser.weight_decay) == (lr, decay)


@pytest.mark.parametrize(
    ("median", "change", "kept"),
    [
        (180, {}, 192),  # nothing is enlarged
        (193, {}, 256),
        (256, {}, 256),
        (257, {}, 192),
        (500, {}, 192),
        (224, {"augmentation.crop": "resize"}, 128),
        (224, {"augmentation.preset": "none"}, 128),
    ],
)
def test_images_hardly_larger_than_needed_stay_so(
    median: int, change: dict[str, object], kept: int
) -> None:
    sides = np.array([[median, 600], [700, median], [900, 900], [median - 60, 800], [median, 500]])
    seen = Survey(Normalisation((0.5,) * 3, (0.2,) * 3), grey=False, sides=sides)
    wanted = recipes.replace(Recipe(), {"task": "classification", "image_size": 128, **change})
    found, _ = defaults.for_data(wanted, seen, 10_000, torch.device("cpu"), None)
    assert kept_size(found) == kept
    if kept > 128:
        for before in ("auto", 0):  # as runs have it that did not record it
            earlier = recipes.replace(found, {"data.shorter": before})
            assert kept_size(earlier) == 192


@pytest.mark.parametrize(
    ("length", "share"),
    [
        ({"epochs": 10}, 0.39),  # of 15 steps
        ({"epochs": 60}, 0.95),
        ({"epochs": 100}, 1),
        ({"length.steps": 90}, 0.3),
        ({"length.minutes": 1.0}, 1),  # of which nobody knows the steps
        ({"epochs": 10, "weights": "imagenet"}, 1),
    ],
)
def test_a_short_run_from_scratch_has_a_lower_rate(length: dict[str, object], share: float) -> None:
    """As the root of its steps, up to 1,000 of them."""
    with torch.device("meta"):
        model, without = vidi.models.resnet18(), vidi.models.vgg11()
    fields = {"model": "resnet18", "image_size": 96, "batch_size": 64, **length}
    recipe = recipes.replace(Recipe(), fields)
    found, notes = defaults.for_model(recipe, model, 4e8, 1000, torch.device("cpu"), 0.1)
    whole = (0.02 if "weights" in length else 0.2) * 64 / 128
    assert found.lr == pytest.approx(whole * share, rel=0.005)
    assert f"learning rate: {found.lr:g} (sgd, batch 64)" in notes
    plain, _ = defaults.for_model(recipe, without, 4e8, 1000, torch.device("cpu"), 0.1)
    assert plain.lr == 0.01, "without normalisation it is low enough"


def test_muon_leaves_all_score_layers_and_upsampling_alone() -> None:
    with torch.device("meta"):
        model = vidi.models.fcn8s_vgg16(num_classes=5)
    weights = {name for name, p in model.named_parameters() if p.ndim > 1}
    left = weights - set(optimisers.matrices(model))
    assert left == {name for name in weights if "score" in name} | {"classifier.6.weight"}


def test_parts_have_rates_of_their_own() -> None:
    """As the learning-rate multipliers of HED's layers."""
    model = network()
    recipe = settled(rates=(("3", 0.01), ("0", 100.0), ("3.bias", 2.0)))
    groups = optimisers.groups(model, recipe, 0.5, lambda name: True)
    rates = {id(p): g["highest_lr"] for g in groups for p in g["params"]}
    assert rates[id(model[0].weight)] == pytest.approx(50)
    assert rates[id(model[1].weight)] == 0.5
    assert rates[id(model[3].weight)] == pytest.approx(0.005)
    assert rates[id(model[3].bias)] == 1.0  # the last that names it counts
    assert recipes.from_dict(recipes.to_dict(Recipe(optimiser=recipe))).optimiser == recipe
    with pytest.raises(vidi.InputError, match="Its parts are 0, 1"):
        optimisers.groups(model, settled(rates=(("sides", 0.01),)), 0.5, lambda name: True)
    with pytest.raises(vidi.InputError, match="0 or more"):
        optimisers.groups(model, settled(rates=(("3", -1.0),)), 0.5, lambda name: True)


def test_muon_leaves_both_outputs_of_a_detector_to_sgd() -> None:
    """Neither is the network's last weight; what R-CNN fits later is not trained at all."""
    network = models.find("fast_rcnn_small")(num_classes=3)
    hidden = optimisers.matrices(network)
    assert {"cls_score.weight", "bbox_pred.weight"}.isdisjoint(hidden)
    assert {"head.0.weight", "head.3.weight", "lateral.0.weight"} <= set(hidden)
    network = models.find("rcnn_small")(num_classes=3)
    score = f"classifier.{len(network.classifier) - 1}.weight"
    trained = [k for k, p in network.named_parameters() if p.requires_grad and p.ndim >= 2]
    assert set(trained) - set(optimisers.matrices(network)) == {score}
