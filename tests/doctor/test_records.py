"""Each check on records made up in the format of a run: silent on a healthy run, and firing on the
one thing that is changed in it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidi.doctor import Finding, Records, curves, examine, layers, measures, settings
from vidi.doctor.finding import in_order
from vidi.engine.run import Description
from vidi.recipe import Optimiser, Recipe, Regularisation
from vidi.types import Normalisation

STEPS = (1, 2, 4, 8, 16, 32, 50, 100)
NAMES = ("conv1", "conv2", "conv3", "conv4", "fc")
K = 10


def recipe(**changes: Any) -> Recipe:
    optimiser = Optimiser(name="sgd", momentum=0.9, nesterov=True, weight_decay=1e-4)
    plain = Recipe(model="nets:build", batch_size=64, lr=0.1, optimiser=optimiser, image_size=8)
    return replace(plain, **changes)


def description(told: Recipe, **data: Any) -> Description:
    return Description(
        recipe=told,
        classes=tuple(map(str, range(K))),
        normalisation=Normalisation((0.3, 0.3, 0.3), (0.4, 0.4, 0.4)),
        data={"root": "digits", "task": "classification", "loss": None, **data},
        command="vidi train digits --model nets:build --lr 0.1 --run runs/a",
    )


def row(step: int, loss: float, lr: float = 0.1) -> dict[str, Any]:
    """One look at a healthy network of four convolutions with batch norm and ReLU."""
    seen: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for name in NAMES:
        kind = "Linear" if name == "fc" else "Conv2d"
        base = {"mean": 0.0, "std": 0.8, "zero": 0.0, "dead": 0.0, "saturated": None}
        seen[name] = {"kind": kind, **base, "input_zero": 0.4, "input_dead": 0.02}
        if name != "fc":
            rest = {"input_zero": None, "input_dead": None}
            seen[f"{name}.relu"] = {"kind": "ReLU", **base, **rest, "zero": 0.5, "dead": 0.02}
        weight = {"weight": 4.0, "gradient": 0.2, "update": 0.02, "spread": 0.95}
        parameters[f"{name}.weight"] = weight
        parameters[f"{name}.bias"] = {**weight, "weight": 0.1, "spread": None}
    return {
        "event": "vitals",
        "step": step,
        "epoch": step / 20,
        "loss": loss,
        "losses": {"cross_entropy": loss},
        "lr": lr,
        "input": {"layer": "conv1", "mean": 0.05, "std": 0.9, "least": -0.75, "most": 1.75},
        "layers": seen,
        "parameters": parameters,
        "frozen": [],
        "norms": {"layers": 4, "evaluating": [], "fewest": 4096},
        "signs": {},
    }


def falling(step: int) -> float:
    return 0.2 + (math.log(K) - 0.2) * math.exp(-(step - 1) / 20)


def healthy(
    curve: Callable[[int], float] = falling,
    told: Recipe | None = None,
    last: int = 100,
    **data: Any,
) -> Records:
    rows = [
        {"event": "train", "step": s, "epoch": s / 20, "loss": curve(s), "lr": 0.1}
        for s in range(10, last + 1, 10)
    ]
    return Records(
        path=Path("runs/a"),
        description=description(told or recipe(), **data),
        rows=rows,
        vitals=[row(s, curve(s)) for s in STEPS if s <= last],
    )


def spoiled(records: Records, change: Callable[[dict[str, Any]], None]) -> Records:
    rows = copy.deepcopy(records.vitals)
    for each in rows:
        change(each)
    return replace(records, vitals=rows)


def codes(findings: tuple[Finding, ...] | list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def test_a_healthy_run_has_no_finding() -> None:
    assert codes(examine(healthy())) == []


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scaling_a_healthy_run_s_weights_and_gradients_changes_nothing(scale: float) -> None:
    def change(each: dict[str, Any]) -> None:
        for found in each["parameters"].values():
            for key in ("weight", "gradient", "update"):
                found[key] *= scale

    assert codes(examine(spoiled(healthy(), change))) == []


def test_a_run_that_wrote_nothing_down_has_no_finding() -> None:
    assert examine(replace(healthy(), rows=[], vitals=[])) == ()
    assert examine(replace(healthy(), vitals=[])) == ()


@pytest.mark.parametrize("count", range(1, len(STEPS)))
def test_the_beginning_of_a_healthy_run_has_no_finding(count: int) -> None:
    """The checks go over a training that is not over, too."""
    whole = healthy()
    last = STEPS[count - 1]
    rows = [r for r in whole.rows if r["step"] <= last]
    assert codes(examine(replace(whole, rows=rows, vitals=whole.vitals[:count]))) == []


# --- the loss ---


def test_a_first_loss_far_from_log_k() -> None:
    def change(each: dict[str, Any], first: float) -> None:
        if each["step"] == 1:
            each["loss"] = each["losses"]["cross_entropy"] = first

    for factor, severity in ((4, "warning"), (30, "problem")):
        records = spoiled(healthy(), lambda r, f=factor: change(r, f * math.log(K)))
        (found,) = curves.initial_loss(records)
        assert (found.code, found.severity, found.layer) == ("initial-loss", severity, "fc")
        assert f"{math.log(K):.3g}" in found.evidence[0]
    tuned = replace(records, description=description(recipe(weights="imagenet")))
    assert curves.initial_loss(tuned) == []


@pytest.mark.parametrize(
    ("task", "k", "loss"),
    [
        ("classification", 7, {"cross_entropy": math.log(7)}),
        ("segmentation", 21, {"cross_entropy": math.log(21)}),
        ("multilabel", 7, {"binary_cross_entropy": math.log(2)}),
        ("detection", 20, {"cross_entropy": math.log(21), "objectness": math.log(2)}),
        ("flow", 0, {}),
    ],
)
def test_what_equally_likely_answers_cost(task: str, k: int, loss: dict[str, float]) -> None:
    said = replace(description(recipe(), task=task), classes=tuple(map(str, range(k))))
    assert measures.balanced(Records(Path("a"), said)) == pytest.approx(loss)
    own = replace(said, data={**said.data, "loss": "python:mine"})
    assert measures.balanced(Records(Path("a"), own)) == {}


@pytest.mark.parametrize("name", ["resnet20", "googlenet", "googlenet_2014", "fcn_resnet50"])
def test_several_outputs_cost_what_their_weights_say(name: str) -> None:
    import torch

    from vidi import models

    with torch.device("meta"):
        network: Any = models.find(name)(num_classes=K)
    heads = sum(child.startswith("aux") for child, _ in network.named_children())
    said = measures.balanced(Records(Path("a"), description(recipe(model=name))))
    expected = math.log(K) * (1 + heads * getattr(network, "aux_weight", 0.0))
    assert said == pytest.approx({"cross_entropy": expected})


def test_equally_likely_answers_cost_what_torch_says() -> None:
    import torch
    import torch.nn.functional as F

    said = measures.balanced(healthy())["cross_entropy"]
    labels = torch.arange(K)
    assert said == pytest.approx(float(F.cross_entropy(torch.zeros(K, K), labels)))


def test_a_loss_that_grows_and_stops_is_a_rate_too_high() -> None:
    records = healthy(lambda s: 2.3 * 1.3**s, last=50)
    stopped = {"event": "stopped", "step": 50, "why": "The run stopped: the loss is not finite"}
    for rows in (records.rows, [*records.rows, stopped]):
        (found, *_) = examine(replace(records, rows=rows))
        assert (found.code, found.severity) == ("rate-too-high", "problem")
        assert "--lr" in (found.command or "") and "--lr 0.1 " not in (found.command or "")


def test_a_loss_that_is_a_little_higher_at_first_is_none() -> None:
    assert (
        codes(examine(healthy(lambda s: falling(s) + 1.5 * math.exp(-(((s - 8) / 4) ** 2))))) == []
    )


def test_ping_pong_needs_long_steps() -> None:
    def change(each: dict[str, Any]) -> None:
        for found in each["parameters"].values():
            found["update"] = 0.5 * found["weight"]

    rng = np.random.default_rng(0)
    jumps = {s: float(2.5 + rng.uniform(-0.5, 0.5)) for s in range(1, 101)}
    stuck = healthy(lambda s: jumps[s])
    assert "rate-too-high" not in codes(examine(stuck))
    (found, *_) = examine(spoiled(stuck, change))
    assert (found.code, found.severity) == ("rate-too-high", "problem")


def test_bouncing_high_above_the_end_is_a_warning() -> None:
    bounce = healthy(lambda s: math.log(K) * (0.7 + 0.45 * (-1) ** (s // 10)) if s > 2 else 2.3)

    def change(each: dict[str, Any]) -> None:
        for found in each["parameters"].values():
            found["update"] = 0.05 * found["weight"]

    assert codes(curves.bouncing(spoiled(bounce, change))) == ["rate-too-high"]


def test_momentum_is_named_where_the_rate_alone_is_not_too_high() -> None:
    strong = replace(recipe().optimiser, momentum=0.99)
    records = healthy(lambda s: 2.3 * 1.3**s, recipe(optimiser=strong), last=50)
    (found, *rest) = examine(records)
    assert found.code == "momentum-too-high" and "rate-too-high" not in codes(rest)
    assert "--optimiser.momentum 0.9" in (found.command or "")

    def change(each: dict[str, Any]) -> None:  # the first step is far too long already
        for told in each["parameters"].values():
            told["update"] = told["weight"]

    assert examine(spoiled(records, change))[0].code == "rate-too-high"


def test_a_memory_longer_than_the_run() -> None:
    for momentum, expected in ((0.9, []), (0.99, ["momentum-too-high"])):
        told = recipe(optimiser=replace(recipe().optimiser, momentum=momentum))
        assert codes(examine(healthy(told=told))) == expected
    assert codes(curves.slow_to_turn(healthy(told=told, last=100))) == expected
    long = replace(healthy(told=told), rows=[{"event": "train", "step": 9000, "loss": 0.1}])
    assert curves.slow_to_turn(long) == []


def still(each: dict[str, Any]) -> None:
    for found in each["parameters"].values():
        found["update"] = 1e-7 * found["weight"]


def test_weights_that_do_not_move() -> None:
    records = healthy(lambda s: 2.3 - 1e-4 * s)
    (found, *rest) = examine(spoiled(records, still))
    assert (found.code, found.severity, rest) == ("rate-too-low", "problem", [])
    # Where they do move and the loss stays, it is a plateau.
    assert codes(examine(records)) == ["plateau"]


def test_in_the_warm_up_no_rate_is_too_low() -> None:
    records = spoiled(healthy(lambda s: 2.3 - 1e-4 * s, last=50), still)
    early = copy.deepcopy(records.vitals)
    for each in early:
        each["lr"] = 1e-4 if each["step"] < 50 else 0.1
    records = replace(records, vitals=early[:-1], rows=[*records.rows])
    assert curves.too_slow(records) == []


def test_the_path_is_the_sum_of_the_updates() -> None:
    """Of steps that all are as long, the path is their number times that."""
    for last in (16, 50, 100):
        assert measures.path(healthy(last=last)) == pytest.approx(0.005 * max(
            s for s in range(10, last + 1) if s % 10 == 0 or s in STEPS
        ))  # fmt: skip


def test_noise_is_a_note() -> None:
    records = healthy(lambda s: 0.3 * falling(s) + 0.4 + 0.3 * (-1) ** (s // 10))
    assert [(f.code, f.severity) for f in examine(records)] == [("loss-noise", "note")]


# --- the layers ---


@pytest.mark.parametrize(
    ("scale", "shift", "code", "severity"),
    [
        (0.4 * 255, 0.3 * 255, "input-not-normalised", "problem"),  # back to 0 … 255
        (0.4, 0.3, "input-not-normalised", "warning"),  # back to 0 … 1
        (1 / 0.4, -0.3 / 0.4, "input-normalised-twice", "problem"),
        (1e-3, 0.0, "input-not-normalised", "problem"),
        (1.0, 100.0, "input-not-normalised", "problem"),
    ],
)
def test_inputs(scale: float, shift: float, code: str, severity: str) -> None:
    """The first layer's input after another affine map."""

    def change(each: dict[str, Any]) -> None:
        seen = each["input"]
        seen["std"] *= scale
        for key in ("mean", "least", "most"):
            seen[key] = seen[key] * scale + shift

    (found,) = layers.wrong_input(spoiled(healthy(), change))
    assert (found.code, found.severity, found.layer) == (code, severity, "conv1")


@pytest.mark.parametrize("pooled", [0.5, 1.0])
@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.5])
def test_usual_inputs_are_none(pooled: float, shift: float) -> None:
    def change(each: dict[str, Any]) -> None:
        seen = each["input"]
        for key in ("std", "mean", "least", "most"):
            seen[key] *= pooled
        seen["mean"] += shift

    assert layers.wrong_input(spoiled(healthy(), change)) == []


def test_what_comes_of_the_input_is_told_as_the_input() -> None:
    """A diverging run whose input is wrong is not told to lower its rate."""
    records = healthy(lambda s: 2.3 * 1.3**s, last=50)

    def change(each: dict[str, Any]) -> None:
        each["input"] = {"layer": "conv1", "mean": 80, "std": 70, "least": 0, "most": 255}

    assert codes(examine(records)) == ["rate-too-high"]
    assert codes(examine(spoiled(records, change))) == ["input-not-normalised"]


def by_depth(factor: float) -> Callable[[dict[str, Any]], None]:
    """Gradients that shrink by ``factor`` with every layer that they pass."""

    def change(each: dict[str, Any]) -> None:
        for depth, name in enumerate(reversed(NAMES)):
            for part in ("weight", "bias"):
                each["parameters"][f"{name}.{part}"]["gradient"] *= factor**depth

    return change


def test_vanishing_gradients() -> None:
    flat = healthy(lambda s: 2.3)
    assert "vanishing-gradient" not in codes(examine(spoiled(flat, by_depth(0.5))))
    (found, *_) = examine(spoiled(flat, by_depth(0.05)))
    assert (found.code, found.severity, found.layer) == ("vanishing-gradient", "problem", "conv1")
    assert found.series is not None and len(found.series.x) == len(NAMES)

    def at_first(each: dict[str, Any]) -> None:
        if each["step"] < STEPS[-1]:
            by_depth(0.05)(each)

    assert layers.vanishing(spoiled(flat, at_first)) == [], "it is over"

    def branch(each: dict[str, Any]) -> None:
        """It begins at zero; what stands beside it learns."""
        own = each["parameters"]
        zero = {**own["conv1.weight"], "gradient": 1e-9}
        more = {f"conv{i}.weight": own["conv1.weight"] for i in (5, 6)}
        each["parameters"] = {"branch.weight": zero} | own | more

    assert layers.vanishing(spoiled(flat, branch)) == []


def test_exploding_activations_are_told_from_the_first_step() -> None:
    def change(each: dict[str, Any], first: int, factor: float) -> None:
        if each["step"] >= first:
            for depth, found in enumerate(each["layers"].values()):
                found["std"] *= factor**depth

    diverging = healthy(lambda s: 2.3 * 1.3**s, last=50)
    begun = spoiled(diverging, lambda r: change(r, 1, 3.0))
    assert codes(examine(begun))[0] == "exploding-gradient"
    assert "rate-too-high" not in codes(examine(begun))
    # Later it is the rate that did it.
    assert codes(examine(spoiled(diverging, lambda r: change(r, 4, 3.0)))) == ["rate-too-high"]
    assert layers.exploding(spoiled(diverging, lambda r: change(r, 1, 1.2))) == []


def kill(share: float, since: int, key: str = "dead") -> Callable[[dict[str, Any]], None]:
    def change(each: dict[str, Any]) -> None:
        if each["step"] >= since:
            name = "conv2.relu" if key == "dead" else "conv3"
            each["layers"][name][key] = share

    return change


@pytest.mark.parametrize("key", ["dead", "input_dead"])
@pytest.mark.parametrize(("share", "severity"), [(0.6, "warning"), (1.0, "problem")])
def test_dead_relus(key: str, share: float, severity: str) -> None:
    (found,) = layers.dead(spoiled(healthy(), kill(share, 1, key)))
    assert (found.code, found.severity) == ("dead-relus", severity)
    assert found.layer == ("conv2.relu" if key == "dead" else "conv3")
    assert "from the first step" in found.evidence[1] and found.command is None
    (later,) = layers.dead(spoiled(healthy(), kill(share, 8, key)))
    assert "died" in later.evidence[1] and "--lr" in (later.command or "")


def test_units_are_dead_only_over_a_window() -> None:
    """What is zero in a single look may be so by chance."""
    assert layers.dead(spoiled(healthy(), kill(1.0, 100))) == []
    assert layers.dead(spoiled(healthy(), kill(0.3, 1))) == []


def test_what_dropout_leaves_out_is_not_dead() -> None:
    def change(each: dict[str, Any]) -> None:
        kill(1.0, 1, "input_dead")(each)
        each["layers"]["conv2.relu"] |= {"kind": "Dropout", "dead": None}

    assert layers.dead(spoiled(healthy(), change)) == []


@pytest.mark.parametrize(
    ("share", "expected"), [(0.2, []), (0.7, ["warning"]), (0.95, ["problem"])]
)
def test_saturated_units(share: float, expected: list[str]) -> None:
    def change(each: dict[str, Any]) -> None:
        each["layers"]["conv2.relu"] |= {"kind": "Tanh", "saturated": share, "dead": 0.0}

    assert [f.severity for f in layers.saturated(spoiled(healthy(), change))] == expected

    def once(each: dict[str, Any]) -> None:
        change(each)
        if each["step"] != STEPS[-1]:
            each["layers"]["conv2.relu"]["saturated"] = 0.1

    assert layers.saturated(spoiled(healthy(), once)) == []


def test_sure_answers_are_not_saturated() -> None:
    def change(each: dict[str, Any]) -> None:
        each["layers"]["fc"] |= {"kind": "Sigmoid", "saturated": 1.0}

    assert layers.saturated(spoiled(healthy(), change)) == []


def test_equal_weights() -> None:
    def change(each: dict[str, Any], since: int) -> None:
        if each["step"] >= since:
            each["parameters"]["conv2.weight"]["spread"] = 1e-7

    (found,) = layers.alike(spoiled(healthy(), lambda r: change(r, 1)))
    assert (found.code, found.severity, found.layer) == ("equal-weights", "problem", "conv2")
    assert layers.alike(spoiled(healthy(), lambda r: change(r, 100))) == []


def test_an_output_layer_that_begins_at_zero_is_none() -> None:
    """Its first gradient reaches nothing before it, and all its units are alike, once."""

    def change(each: dict[str, Any]) -> None:
        if each["step"] == 1:
            each["parameters"]["fc.weight"] |= {"weight": 0.0, "spread": None}
            for name in NAMES[:-1]:
                each["parameters"][f"{name}.weight"]["gradient"] = 0.0

    assert codes(examine(spoiled(healthy(), change))) == []


def test_frozen_parameters_and_those_that_were_asked_for() -> None:
    def change(each: dict[str, Any]) -> None:
        for part in ("weight", "bias"):
            each["frozen"].append(f"conv1.{part}")
            del each["parameters"][f"conv1.{part}"]

    records = spoiled(healthy(), change)
    assert codes(examine(records)) == ["frozen"]
    for freeze in (("conv1",), ("conv1.weight", "conv1.bias")):
        asked = replace(records, description=description(recipe(freeze=freeze)))
        assert codes(examine(asked)) == []
    other = replace(records, description=description(recipe(freeze=("conv",))))
    assert codes(examine(other)) == ["frozen"], "conv is no part of conv1"
    ours = replace(records, description=description(recipe(model="rcnn_alexnet")))
    assert codes(examine(ours)) == []


@pytest.mark.parametrize("gradient", [None, 0.0])
def test_disconnected_parameters(gradient: float | None) -> None:
    def change(each: dict[str, Any], since: int = 1) -> None:
        if each["step"] >= since:
            each["parameters"]["conv2.weight"]["gradient"] = gradient

    (found,) = examine(spoiled(healthy(), change))
    assert (found.code, found.layer) == ("no-gradient", "conv2")
    assert examine(spoiled(healthy(), lambda r: change(r, 8))) == ()
    dead = spoiled(spoiled(healthy(), change), kill(1.0, 1))
    assert codes(examine(dead)) == ["dead-relus"], "behind dead units there is no gradient"


def test_batch_norms_in_the_wrong_mode() -> None:
    def change(each: dict[str, Any]) -> None:
        each["norms"]["evaluating"] = ["bn1"]
        each["parameters"]["bn1.weight"] = {
            "weight": 4.0,
            "gradient": 0.2,
            "update": 0.02,
            "spread": None,
        }

    records = spoiled(healthy(), change)
    (found,) = examine(records)
    assert (found.code, found.severity, found.layer) == ("norms-evaluating", "warning", "bn1")
    asked = replace(records, description=description(recipe(freeze=("bn1",))))
    assert examine(asked) == ()

    def fixed(each: dict[str, Any]) -> None:
        del each["parameters"]["bn1.weight"]
        each["frozen"].append("bn1.weight")

    assert layers.evaluating_norms(spoiled(records, fixed)) == [], "of a frozen trunk"

    def trunk(each: dict[str, Any]) -> None:
        each["frozen"].append("conv1.weight")

    ours = replace(records, description=description(recipe(model="rcnn_alexnet")))
    assert codes(layers.evaluating_norms(ours)) == ["norms-evaluating"]
    assert layers.evaluating_norms(spoiled(ours, trunk)) == [], "it froze them itself"


@pytest.mark.parametrize(
    ("fewest", "batch", "parts", "expected"),
    [
        (4096, 64, 1, []),
        (8, 8, 1, []),
        (64, 1, 1, ["warning"]),
        (64, 8, 8, ["warning"]),
        (4, 4, 1, ["warning"]),
        (2, 2, 1, ["problem"]),
    ],
)
def test_batch_norms_that_see_little(
    fewest: int, batch: int, parts: int, expected: list[str]
) -> None:
    optimiser = replace(recipe().optimiser, accumulate=parts)
    records = healthy(told=recipe(batch_size=batch, optimiser=optimiser))

    def change(each: dict[str, Any]) -> None:
        each["norms"]["fewest"] = fewest

    found = layers.few_values(spoiled(records, change))
    assert [f.severity for f in found] == expected
    assert not any("1 images" in f.evidence[0] or "1 parts" in f.evidence[0] for f in found)

    def none(each: dict[str, Any]) -> None:
        each["norms"] = {"layers": 0, "evaluating": [], "fewest": None}

    assert layers.few_values(spoiled(records, none)) == []


def test_activations_that_are_no_numbers() -> None:
    def change(each: dict[str, Any]) -> None:
        if each["step"] >= 8:
            for name in ("conv3", "fc"):
                each["layers"][name] |= {"mean": None, "std": None}

    (found,) = layers.not_finite(spoiled(healthy(), change))
    assert (found.code, found.layer, found.step) == ("overflow", "conv3", 8)


# --- the settings ---


def decayed(name: Any, weight_decay: float, shrink: float) -> Records:
    """Weights that shrink by ``shrink`` with every look."""
    optimiser = Optimiser(name=name, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    records = healthy(lambda s: 2.3, recipe(optimiser=optimiser))
    rows = copy.deepcopy(records.vitals)
    for turn, each in enumerate(rows):
        for found in each["parameters"].values():
            found["weight"] *= shrink**turn
            found["update"] = found["weight"] * (0.11 * weight_decay)
    return replace(records, vitals=rows)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_decay_that_outweighs_the_gradient(name: str) -> None:
    (found, *rest) = examine(decayed(name, 1.0, 0.7))
    assert (found.code, found.severity) == ("decay-too-strong", "problem")
    assert "plateau" not in codes(rest)
    assert settings.strong_decay(decayed(name, 1.0, 1.0)) == [], "nothing shrank"


def test_weights_that_shrink_without_decay_are_not_decayed() -> None:
    assert settings.strong_decay(decayed("sgd", 1e-4, 0.7)) == []
    assert settings.strong_decay(decayed("sgd", 0.0, 0.7)) == []


@pytest.mark.parametrize(("rate", "expected"), [(0.5, []), (0.9, ["dropout-too-strong"])])
@pytest.mark.parametrize("told", [True, False])
def test_dropout(rate: float, expected: list[str], told: bool) -> None:
    """Told by the recipe, or seen in a layer's zeros beyond those that it was given."""
    regularisation = Regularisation(dropout=rate if told else None)
    records = healthy(lambda s: 2.0, recipe(regularisation=regularisation))

    def change(each: dict[str, Any]) -> None:
        seen = {}
        for name, found in each["layers"].items():
            seen[name] = found
            if name == "conv4.relu":
                zero = 1 - (1 - rate) * (1 - found["zero"])
                seen["drop"] = {**found, "kind": "Dropout", "zero": zero}
        each["layers"] = seen

    found = settings.strong_dropout(spoiled(records, change))
    assert codes(found) == expected
    fine = replace(spoiled(healthy(), change), description=records.description)
    assert settings.strong_dropout(fine) == [], "it learned all the same"


def test_decay_on_norms() -> None:
    for decay, severity in ((1e-4, "note"), (1e-2, "warning")):
        optimiser = replace(recipe().optimiser, decay_biases_and_norms=True, weight_decay=decay)
        (found,) = examine(healthy(told=recipe(optimiser=optimiser)))
        assert (found.code, found.severity) == ("decay-on-norms", severity)
    none = replace(optimiser, weight_decay=0.0)
    assert examine(healthy(told=recipe(optimiser=none))) == ()


@pytest.mark.parametrize(
    ("what", "layer"),
    [
        (
            "the loss is not finite: the output of net.fc (Linear) is the first that is not",
            "net.fc",
        ),
        ("the loss is finite, but the gradient of conv1.weight is not", "conv1.weight"),
        ("the loss is not finite: the weight conv1.weight is itself not finite", "conv1.weight"),
        ("every single gradient is finite, but their norm is not", None),
    ],
)
def test_where_a_number_stopped_being_one(what: str, layer: str | None) -> None:
    why = (
        f"The run stopped before the update of step 41: {what}. Samples: a.png, b.png. The weights."
    )
    stopped = {"event": "stopped", "step": 40, "why": why}
    records = healthy(last=40)
    (found,) = examine(replace(records, rows=[*records.rows, stopped]))
    assert (found.code, found.severity) == ("not-finite", "problem")
    assert (found.layer, found.step) == (layer, 40)
    assert what in found.evidence[0] and "a.png, b.png" in found.evidence[1]


# --- the whole ---


def test_causes_come_before_symptoms_and_explain_them() -> None:
    def finding(code: str, severity: Any, explains: tuple[str, ...] = ()) -> Finding:
        return Finding(code, severity, "w", (), "r", explains=explains)

    cause = finding("cause", "warning", ("symptom",))
    found = in_order([finding("a", "note"), cause, finding("symptom", "problem"),
                      finding("b", "problem")])  # fmt: skip
    assert codes(found) == ["b", "cause", "a"]


def test_every_finding_is_ready_for_json() -> None:
    import json

    records = spoiled(healthy(lambda s: 2.3), by_depth(0.05))
    for found in examine(records):
        assert json.loads(json.dumps(found.as_json()))["code"] == found.code
