"""Checks of what was looked at, on figures that are made up: where they begin to speak, and that
chance alone does not make them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidi.data.audit.finding import Finding as Twins
from vidi.doctor import Finding, Records, by_task, generalisation, labels
from vidi.doctor.looking import Looked, Trained, View
from vidi.engine.run import Description
from vidi.recipe import Optimiser, Recipe
from vidi.types import Array, Normalisation

K = 10


def records(
    task: str = "classification", *, k: int = K, steps: int = 100, **changes: Any
) -> Records:
    told = Recipe(model="mlp", batch_size=8, lr=0.1, optimiser=Optimiser(name="sgd"))
    return Records(
        path=Path("runs/a"),
        description=Description(
            recipe=told,
            classes=tuple(map(str, range(k))),
            normalisation=Normalisation((0.3,) * 3, (0.4,) * 3),
            data={"root": "digits", "task": task, "loss": None, "samples": {"train": 1000}},
            command="vidi train digits --model mlp --run runs/a",
        ),
        rows=[{"event": "train", "step": steps, "loss": 1.0, "lr": 0.1}],
        **changes,
    )


def view(accuracy: float = 0.9, samples: int = 200, **changes: Any) -> View:
    grey = np.full((samples, 6), 0.5, np.float32)
    plain = View(
        samples=samples,
        metrics={"accuracy": accuracy},
        given=None,
        colours=grey,
        thumbs=np.zeros((samples, 768), np.float32),
    )
    return replace(plain, **changes)


def looked(train: View, val: View, **changes: Any) -> Looked:
    plain = Looked(
        task="classification",
        classes=tuple(map(str, range(K))),
        headline="accuracy",
        training=train,
        validation=val,
        trained=Trained(samples=32, loss=1.0, given=None),
    )
    return replace(plain, **changes)


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


@pytest.mark.parametrize(
    ("train", "val", "samples", "expected"),
    [
        (0.95, 0.90, 200, []),
        (0.95, 0.60, 200, ["generalisation-gap"]),
        (0.95, 0.75, 200, ["generalisation-gap"]),
        (0.95, 0.75, 16, []),  # as three images of sixteen may make it
    ],
)
def test_a_gap_beyond_chance(train: float, val: float, samples: int, expected: list[str]) -> None:
    seen = looked(view(train, samples), view(val, samples))
    assert codes(generalisation.gap(records(), seen)) == expected


@pytest.mark.parametrize(
    ("train", "val", "samples", "expected"),
    [
        (0.80, 0.83, 5000, []),
        (0.50, 0.80, 200, ["validation-easier"]),
        (0.80, 0.90, 100, []),
    ],
)
def test_easier_beyond_chance(train: float, val: float, samples: int, expected: list[str]) -> None:
    seen = looked(view(train, samples), view(val, samples))
    assert codes(generalisation.easier(records(), seen)) == expected


@pytest.mark.parametrize(
    ("val", "falls", "expected"),
    [
        ((1.0, 0.8, 0.7, 0.9, 1.2, 1.5), True, ["overfitting"]),
        ((1.0, 0.8, 0.7, 0.75, 0.72, 1.5), True, []),  # one evaluation alone
        ((1.0, 0.8, 0.7, 0.9, 1.2, 1.5), False, []),  # it diverges
        ((1.0, 0.8, 0.7, 0.6, 0.5, 0.4), True, []),
    ],
)
def test_a_loss_that_rises_in_validation_alone(
    val: tuple[float, ...], falls: bool, expected: list[str]
) -> None:
    rows = [
        {
            "event": "evaluation",
            "split": "val",
            "step": 10 * i,
            "train_loss": 1.0 - 0.15 * i if falls else 1.0,
            "metrics": {"cross_entropy": loss},
        }
        for i, loss in enumerate(val)
    ]
    assert codes(generalisation.overfitting(replace(records(), rows=rows))) == expected


@pytest.mark.parametrize("k", [2, 10, 100])
def test_guessing_is_no_skill_and_perfect_is_all(k: int) -> None:
    for accuracy, skill in ((1 / k, 0.0), (0.5 / k, 0.0), (1.0, 1.0), ((1 + 1 / k) / 2, 0.5)):
        seen = looked(view(accuracy), view(), classes=tuple(map(str, range(k))))
        assert generalisation.skill(seen, seen.training) == pytest.approx(skill)


def test_flow_that_stands_still_is_no_skill() -> None:
    for epe, skill in ((4.0, 0.0), (8.0, 0.0), (1.0, 0.75)):
        of = view(metrics={"epe": epe, "epe_zero": 4.0})
        seen = looked(of, of, task="flow", headline="epe")
        assert generalisation.skill(seen, of) == pytest.approx(skill)


@pytest.mark.parametrize(("n", "expected"), [(6, []), (600, ["class-shift"])])
def test_shares_of_classes_beyond_chance(n: int, expected: list[str]) -> None:
    counts = {"train": np.array([2 * n, n]), "val": np.array([n, 2 * n])}
    seen = looked(view(), view(), counts=counts)
    assert codes(generalisation.class_shift(records(), seen)) == expected
    same = looked(view(), view(), counts=dict.fromkeys(counts, counts["train"]))
    assert generalisation.class_shift(records(), same) == []


@pytest.mark.parametrize(
    ("code", "of", "expected"),
    [
        ("duplicate-across-splits", 50, ("leakage", "problem")),
        ("duplicate-across-splits", 1, ("leakage", "warning")),
        ("near-duplicate-across-splits", 50, ("near-leakage", "warning")),
    ],
)
def test_how_bad_a_leak_is(code: str, of: int, expected: tuple[str, str]) -> None:
    twins = Twins(code, "error", of, "w", "e", "a", samples=(("a", ""),), of=of, twins=("b",))
    seen = looked(view(), view(), twins=(twins,), compared=100)
    (found,) = generalisation.leakage(records(), seen)
    assert (found.code, found.severity) == expected


@pytest.mark.parametrize(("n", "expected"), [(10, []), (200, ["input-shift"])])
def test_brightness_beyond_chance(n: int, expected: list[str]) -> None:
    rng = np.random.default_rng(0)
    noise: list[Array] = [rng.normal(0.5, 0.1, (n, 6)).astype(np.float32) for _ in range(2)]
    train, val = view(colours=noise[0]), view(colours=noise[1] + np.float32(0.1))
    assert codes(generalisation.shift(records(), looked(train, val))) == expected
    same = looked(train, view(colours=noise[1]))
    assert generalisation.shift(records(), same) == []


# --- labels ---


def evaluated(confusion: Any, task: str = "classification") -> Records:
    matrix = np.asarray(confusion)
    return records(task, k=len(matrix), evaluation={"val": {"confusion": matrix.tolist()}})


@pytest.mark.parametrize("step", [-2, -1, 1, 3])
def test_how_far_classes_are_shifted(step: int) -> None:
    """Class k is taken for k + step."""
    (found,) = labels.renumbered(evaluated(np.roll(20 * np.eye(K, dtype=int), step, 1)))
    assert found.code == "labels-shifted" and f"off by {step:+d} " in found.what


def test_a_renumbering_that_chance_may_make_is_none() -> None:
    """Two classes of three samples each, one taken for the other, are no evidence."""
    swapped = np.eye(K, dtype=int)[[1, 0, 3, 2, 5, 4, 7, 6, 9, 8]]
    assert codes(labels.renumbered(evaluated(20 * swapped))) == ["classes-renumbered"]
    assert labels.renumbered(evaluated([[0, 3], [3, 0]])) == []


@pytest.mark.parametrize(
    ("confusion", "expected"),
    [
        ([[90, 0], [10, 0]], ["imbalance-hidden"]),
        ([[70, 0], [30, 0]], []),  # of two classes one always is the half
        ([[60, 0, 0], [15, 5, 0], [20, 0, 0]], ["imbalance-hidden"]),
        ([[54, 6, 0], [2, 18, 0], [1, 1, 18]], []),
    ],
)
def test_what_the_commonest_class_hides(confusion: Any, expected: list[str]) -> None:
    assert codes(labels.imbalance(evaluated(confusion))) == expected


def test_the_nearest_of_a_sample_is_another_one() -> None:
    """Also where several pictures are the very same."""
    thumbs = np.repeat(np.arange(30, dtype=np.float32), 2)[:, None]
    own = np.tile([0, 1], 30)  # of each pair, one of either class
    found = labels.neighbours(view(samples=60, thumbs=thumbs, labels=own))
    assert found is not None and found[0] == 0.0
    assert found[1] == pytest.approx(0.5) and found[2] > 0.99
    alike = labels.neighbours(view(samples=60, thumbs=thumbs, labels=np.repeat([0, 1], 30)))
    assert alike is not None and alike[0] == 1.0 and alike[2] < 1e-6


# --- one task only ---


@pytest.mark.parametrize(
    ("confusion", "expected"),
    [
        ([[500, 0], [500, 0]], ["one-class-predicted"]),
        ([[990, 10], [500, 0]], ["one-class-predicted"]),
        ([[900, 100], [500, 0]], []),
        ([[999, 0], [1, 0]], []),  # it is so
    ],
)
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_one_class_of_nearly_everything(confusion: Any, expected: list[str], task: str) -> None:
    assert codes(by_task.one_class(evaluated(confusion, task))) == expected


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((0.4, 0.5, 1.0, 0.6), ["sides-do-not-learn"]),
        ((0.4, 0.5, 0.7, 0.6), []),
        ((0.99, 1.0, 1.0, 1.0), []),  # nothing has learned yet
        ((0.4,), []),
    ],
)
def test_sides_beside_a_fused_output(sides: tuple[float, ...], expected: list[str]) -> None:
    seen = looked(view(), view(), trained=Trained(samples=8, loss=1.0, given=None, sides=sides))
    found = by_task.dull_sides(records("boundaries"), seen)
    assert codes(found) == expected
    assert all("1 side outputs" not in f.what and ": 2 (counted" in f.what for f in found)


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        (0.8, 0.9, []),
        (0.2, 0.8, ["warning"]),
        (0.8, 0.2, ["warning"]),
        (0.1, 0.05, ["problem"]),
        (None, None, []),
    ],
)
def test_proposals_beside_the_objects(train: Any, val: Any, expected: list[str]) -> None:
    seen = looked(view(covered=train), view(covered=val), task="detection")
    found = by_task.missed_by_proposals(records("detection"), seen)
    assert [f.severity for f in found] == expected


@pytest.mark.parametrize(
    ("slope", "alike", "expected"),
    [
        (1.0, 0.9, []),
        (0.05, 0.3, []),
        (0.05, 0.9, ["20 times as long"]),
        (3.0, 0.9, ["3 times too short"]),
        (-0.05, 0.9, []),
    ],
)
def test_flow_of_another_length(slope: float, alike: float, expected: list[str]) -> None:
    of = view(metrics={"epe": 1.0, "epe_zero": 4.0}, slope=slope, correlation=alike)
    found = by_task.scale(records("flow"), looked(of, of, task="flow", headline="epe"))
    assert len(found) == len(expected)
    assert all(text in f.what for f, text in zip(found, expected, strict=True))


@pytest.mark.parametrize(("best", "expected"), [(3.99, ["flow-still"]), (2.0, [])])
def test_flow_is_judged_by_its_best(best: float, expected: list[str]) -> None:
    rows = [
        {
            "event": "evaluation",
            "split": "val",
            "step": step,
            "metrics": {"epe": epe, "epe_zero": 4.0},
        }
        for step, epe in ((10, 4.5), (20, best), (30, 4.2))
    ]
    assert codes(by_task.still(replace(records("flow"), rows=rows))) == expected
