"""The kinds of error: scenes made by hand, sums, and what mending one kind gains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vidi.ops.detection_errors import KINDS, ErrorCounts, kinds
from vidi.ops.detection_meter import DetectionMeter
from vidi.types import Boxes, Detections, Sample

IMAGE = np.zeros((1, 1, 3), np.uint8)
DOG, CAT = 0, 1
ERRORS = ("missed", *KINDS[1:])


def boxes(xyxy: Any, labels: Any, difficult: Any = None, crowd: Any = None) -> Boxes:
    n = len(labels)
    return Boxes(
        xyxy=np.array(xyxy, np.float32).reshape(n, 4),
        labels=np.array(labels, np.int64),
        difficult=np.zeros(n, bool) if difficult is None else np.array(difficult, bool),
        crowd=np.zeros(n, bool) if crowd is None else np.array(crowd, bool),
    )


def detections(xyxy: Any, labels: Any, scores: Any = None) -> Detections:
    return Detections(
        xyxy=np.array(xyxy, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        scores=np.array(np.linspace(0.9, 0.5, len(labels)) if scores is None else scores, "f4"),
    )


def named(found: Detections, there: Boxes, score: float = 0.0) -> tuple[list[str], list[bool]]:
    kind, missed = kinds(found, there, score)
    return [KINDS[k] if k >= 0 else "" for k in kind], missed.tolist()


A_DOG_AND_A_CAT = boxes([[0, 0, 10, 10], [50, 50, 60, 60]], [DOG, CAT])


@pytest.mark.parametrize(
    ("xyxy", "labels", "expected", "missed"),
    [
        ([[0, 0, 10, 10]], [DOG], ["correct"], [False, True]),
        ([[0, 0, 10, 10], [0, 0, 10, 9]], [DOG] * 2, ["correct", "duplicate"], [False, True]),
        ([[0, 0, 10, 9]], [CAT], ["wrong_class"], [True, True]),
        ([[0, 0, 10, 4]], [DOG], ["poor_box"], [True, True]),
        ([[0, 0, 10, 4]], [CAT], ["both"], [True, True]),
        ([[0, 9.5, 10, 20]], [DOG], ["background"], [True, True]),  # overlaps by 1/40
        ([[90, 90, 99, 99]], [CAT], ["background"], [True, True]),
        ([[50, 50, 60, 60], [0, 0, 10, 10]], [CAT, DOG], ["correct"] * 2, [False, False]),
        ([], [], [], [True, True]),
    ],
)
def test_each_kind(xyxy: Any, labels: Any, expected: list[str], missed: list[bool]) -> None:
    assert named(detections(xyxy, labels), A_DOG_AND_A_CAT) == (expected, missed)


def test_a_good_box_on_another_class_is_of_the_wrong_class_though_it_touches_its_own() -> None:
    there = boxes([[0, 0, 10, 10], [5, 0, 15, 10]], [DOG, CAT])
    assert named(detections([[0, 0, 10, 10]], [CAT]), there)[0] == ["wrong_class"]


def test_the_surest_finds_the_object_in_whatever_order_they_are_given() -> None:
    found = detections([[0, 0, 10, 9], [0, 0, 10, 10]], [DOG, DOG], [0.3, 0.6])
    assert named(found, A_DOG_AND_A_CAT)[0] == ["duplicate", "correct"]


def test_below_the_score_nothing_counts() -> None:
    found = detections([[0, 0, 10, 10], [50, 50, 60, 60]], [DOG, CAT], [0.9, 0.4])
    assert named(found, A_DOG_AND_A_CAT, 0.5) == (["correct", ""], [False, True])
    assert named(found, A_DOG_AND_A_CAT, 0.4) == (["correct", "correct"], [False, False])


def test_difficult_objects_and_crowds_are_neither_found_nor_missed() -> None:
    there = boxes(
        [[0, 0, 10, 10], [50, 50, 99, 99]], [DOG, CAT], [True, False], crowd=[False, True]
    )
    found = detections([[0, 0, 10, 10], [60, 60, 70, 70], [80, 80, 90, 90]], [DOG, CAT, CAT])
    assert named(found, there) == (["", "", ""], [False, False])
    assert named(detections([[60, 60, 70, 70]], [DOG]), there)[0] == ["background"]


def test_without_objects_all_is_background() -> None:
    found = detections([[0, 0, 10, 10]], [DOG])
    assert named(found, boxes([], [])) == (["background"], [])
    assert named(detections([], []), boxes([], [])) == ([], [])


def random_scene(seed: int, images: int = 30) -> tuple[list[Detections], list[Sample]]:
    rng = np.random.default_rng(seed)
    found, samples = [], []
    for i in range(images):
        n, d = rng.integers(0, 6), rng.integers(0, 12)
        corner, side = rng.uniform(0, 60, (n, 2)), rng.uniform(10, 40, (n, 2))
        there = boxes(
            np.concatenate([corner, corner + side], 1),
            rng.integers(0, 3, n),
            rng.random(n) < 0.15,
            rng.random(n) < 0.15,
        )
        corner = rng.uniform(0, 60, (d, 2))
        xyxy = np.concatenate([corner, corner + rng.uniform(10, 40, (d, 2))], 1)
        labels = rng.integers(0, 3, d)
        if n:
            about = rng.integers(0, n, d)
            close = rng.random(d) < 0.7
            xyxy[close] = (there.xyxy[about] + rng.normal(0, 4, (d, 4)))[close]
            labels = np.where(rng.random(d) < 0.6, there.labels[about], labels)
        found.append(detections(xyxy, labels, np.round(rng.random(d), 2)))
        samples.append(Sample(key=f"{i:03}", image=IMAGE, boxes=there if n else None))
    return found, samples


@pytest.mark.parametrize("score", [0.0, 0.5, 0.9])
def test_numbers_add_up(score: float) -> None:
    found, samples = random_scene(0)
    counts = ErrorCounts(3)
    counts.update(found, samples)
    rows = counts.rows("abc", score)
    ignored = missed = above = 0
    for one, sample in zip(found, samples, strict=True):
        there = boxes([], []) if sample.boxes is None else sample.boxes
        kind, lost = kinds(one, there, score)
        assert ((kind >= -1) & (kind < len(KINDS))).all()
        assert (kind[one.scores < score] == -1).all()
        assert not lost[there.difficult | there.crowd].any()
        above += int((one.scores >= score).sum())
        ignored += int(((kind == -1) & (one.scores >= score)).sum())
        missed += int(lost.sum())
    assert sum(row[kind] for row in rows for kind in KINDS) == above - ignored
    assert sum(row["missed"] for row in rows) == missed
    for row in rows:
        assert row["objects"] == row["correct"] + row["missed"]
    if score == 0:
        assert all(sum(row[kind] for row in rows) > 0 for kind in KINDS)
        assert ignored > 0


def test_correct_are_those_that_average_precision_counts() -> None:
    found, samples = random_scene(1)
    meter = DetectionMeter(3)
    meter.update(found, samples)
    for row, (recall, _, _) in zip(meter.errors.rows("abc", 0), meter.curves(), strict=True):
        assert row["correct"] == round(recall[-1] * row["objects"])
        assert len(recall) == sum(row[kind] for kind in KINDS)


def test_perfect_is_all_correct() -> None:
    _, samples = random_scene(2)
    there = [boxes([], []) if one.boxes is None else one.boxes for one in samples]
    counts = ErrorCounts(3)
    counts.update([detections(one.xyxy, one.labels) for one in there], samples)
    for row in counts.rows("abc", 0.0):
        assert row["correct"] == row["objects"] > 0
        assert sum(row[kind] for kind in ERRORS) == 0
    assert counts.gains() == pytest.approx(dict.fromkeys(ERRORS, 0.0))


def test_merged_is_updated_at_once() -> None:
    found, samples = random_scene(3)
    whole, one, two = ErrorCounts(3), ErrorCounts(3), ErrorCounts(3)
    whole.update(found, samples)
    one.update(found[::2], samples[::2])
    two.update(found[1::2], samples[1::2])
    two.merge(one)
    assert two.rows("abc", 0.3) == whole.rows("abc", 0.3)
    assert two.gains() == whole.gains()


@pytest.mark.parametrize("seed", range(5))
def test_mending_never_loses(seed: int) -> None:
    counts = ErrorCounts(3)
    counts.update(*random_scene(seed))
    gains = counts.gains()
    assert tuple(gains) == ERRORS
    assert all(gain >= -1e-12 for gain in gains.values())
    assert sum(gains.values()) > 0.1


@pytest.mark.parametrize(
    ("xyxy", "labels", "kind"),
    [
        ([[0, 0, 10, 10], [50, 50, 60, 60]], [DOG, DOG], "wrong_class"),
        ([[0, 0, 10, 10], [50, 50, 60, 54]], [DOG, CAT], "poor_box"),
    ],
)
def test_mending_the_only_kind_of_error_makes_it_perfect(xyxy: Any, labels: Any, kind: str) -> None:
    """A class or a box that is mended finds its object: from 1/2 to 1, or, where the cat's place
    is taken by a surer second dog, no more than that."""
    sample = Sample(key="a", image=IMAGE, boxes=A_DOG_AND_A_CAT)
    counts = ErrorCounts(2)
    counts.update([detections(xyxy, labels)], [sample])
    gains = counts.gains()
    assert gains[kind] == pytest.approx(0.5)
    assert sum(gains.values()) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("first", "label", "kind"),
    [([0, 0, 10, 4], CAT, "both"), ([90, 90, 99, 99], DOG, "background")],
)
def test_mending_false_ones_takes_them_away(first: Any, label: int, kind: str) -> None:
    """A false detection before the true one of its class halves that class's precision."""
    sample = Sample(key="a", image=IMAGE, boxes=A_DOG_AND_A_CAT)
    counts = ErrorCounts(2)
    xyxy = [first, [0, 0, 10, 10], [50, 50, 60, 60]]
    counts.update([detections(xyxy, [label, DOG, CAT])], [sample])
    gains = counts.gains()
    assert gains[kind] == pytest.approx(0.25)
    assert sum(gains.values()) == pytest.approx(0.25)


def test_what_is_missed_and_what_is_found_twice() -> None:
    """Of three dogs one is found, twice; then another. The third is not seen at all."""
    there = boxes([[0, 0, 10, 10], [50, 0, 60, 10], [90, 0, 99, 10]], [DOG] * 3)
    found = detections([[0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10]], [DOG] * 3)
    counts = ErrorCounts(1)
    counts.update([found], [Sample(key="a", image=IMAGE, boxes=there)])
    gains = counts.gains()
    # Levels of recall that are reached: 34 of 101 by one of three, 67 by two; 51 by one of two.
    before = (34 + 33 * 2 / 3) / 101
    assert gains["duplicate"] == pytest.approx(67 / 101 - before)
    assert gains["missed"] == pytest.approx((51 + 50 * 2 / 3) / 101 - before)
    assert gains["wrong_class"] == gains["poor_box"] == gains["background"] == 0


def test_mending_finds_no_object_twice_and_what_is_pointed_to_is_not_unseen() -> None:
    """Of two cats one is found; a dog is seen there too; then the other cat is placed badly."""
    there = boxes([[0, 0, 10, 10], [50, 50, 60, 60]], [CAT, CAT])
    sample = Sample(key="a", image=IMAGE, boxes=there)
    xyxy = [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 54]]
    counts = ErrorCounts(2)
    counts.update([detections(xyxy[:2], [DOG, CAT])], [sample])
    gains = counts.gains()
    assert gains["wrong_class"] == pytest.approx(0)
    assert gains["missed"] == pytest.approx(50 / 101)
    counts = ErrorCounts(2)
    counts.update([detections(xyxy, [DOG, CAT, CAT])], [sample])
    gains = counts.gains()
    assert gains["poor_box"] == pytest.approx(50 / 101)
    assert gains["missed"] == pytest.approx(0)
