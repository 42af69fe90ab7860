"""The measures of detection against pycocotools and a loop written from VOC's devkit."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest

from vidi.ops.detection_meter import DetectionMeter
from vidi.types import Array, Boxes, Detections, Sample

IMAGE = np.zeros((1, 1, 3), np.uint8)
MEASURES = ["map", "map50", "map75", "map_small", "map_medium", "map_large", "recall100"]
NAMES = [*MEASURES, "map_voc07", "map_voc10"]
Scene = tuple[list[Detections], list[Sample]]


def boxes(xyxy: Any, labels: Any, difficult: Any = (), crowd: Any = ()) -> Boxes:
    n = len(labels)
    return Boxes(
        xyxy=np.array(xyxy, np.float32).reshape(n, 4),
        labels=np.array(labels, np.int64),
        difficult=np.array(difficult, bool) if len(difficult) else np.zeros(n, bool),
        crowd=np.array(crowd, bool) if len(crowd) else np.zeros(n, bool),
    )


def detections(xyxy: Any, labels: Any, scores: Any) -> Detections:
    return Detections(
        xyxy=np.array(xyxy, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float32),
    )


def random_scene(
    seed: int, images: int = 25, classes: int = 4, *, crowd: float = 0.1, difficult: float = 0.0
) -> Scene:
    """Objects of all sizes, detections about them and elsewhere, scores with many ties. Class 1 has
    no objects, class 2 no detections; one image in five has no objects, one in five nothing found.
    One has more than a hundred detections of one class."""
    rng = np.random.default_rng(seed)
    found, samples = [], []
    for i in range(images):
        n = 0 if i % 5 == 1 else int(rng.integers(1, 9))
        side = np.exp(rng.uniform(np.log(6), np.log(220), (n, 2)))
        corner = rng.uniform(0, 120, (n, 2))
        labels = rng.choice([k for k in range(classes) if k != 1], n)
        true = boxes(
            np.concatenate([corner, corner + side], 1),
            labels,
            rng.random(n) < difficult,
            rng.random(n) < crowd,
        )
        d = 0 if i % 5 == 2 else 130 if i == 3 else int(rng.integers(1, 25))
        corner = rng.uniform(0, 150, (d, 2))
        near = np.concatenate([corner, corner + rng.uniform(5, 90, (d, 2))], 1)
        said = rng.choice([k for k in range(classes) if k != 2], d)
        scores = rng.random(d) / 2
        if n:
            about = rng.integers(0, n, d)
            moved = true.xyxy[about] + rng.normal(0, 0.07, (d, 4)) * np.tile(side[about], 2)
            close = (rng.random(d) < 0.8) & (moved[:, 2:] > moved[:, :2] + 1).all(1)
            near[close] = moved[close]
            scores[close] *= 2
            said = np.where(close & (rng.random(d) < 0.9), labels[about], said)
            said[said == 2] = 3
        if i == 3:
            said[:] = 0
        found.append(detections(near, said, np.round(scores, 1)))
        samples.append(Sample(key=f"{i:04}", image=IMAGE, boxes=None if i % 10 == 1 else true))
    order = rng.permutation(images)
    return [found[i] for i in order], [samples[i] for i in order]


def met(scene: Scene, classes: int = 4) -> DetectionMeter:
    meter = DetectionMeter(classes)
    meter.update(*scene)
    return meter


def by_pycocotools(scene: Scene, classes: int) -> tuple[dict[str, float], Any]:
    """Images go by their keys; what is difficult is given an area beyond all ranges, by which
    pycocotools leaves it out of count."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for one, sample in zip(*scene, strict=True):
        image = int(sample.key) + 1
        if sample.boxes is not None:
            for k, (x0, y0, x1, y1) in enumerate(sample.boxes.xyxy.tolist()):
                area = (x1 - x0) * (y1 - y0)
                truth.append(
                    {
                        "id": len(truth) + 1,
                        "image_id": image,
                        "category_id": int(sample.boxes.labels[k]),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": 1e12 if sample.boxes.difficult[k] else area,
                        "iscrowd": int(sample.boxes.crowd[k]),
                    }
                )
        for k, (x0, y0, x1, y1) in enumerate(one.xyxy.tolist()):
            results.append(
                {
                    "image_id": image,
                    "category_id": int(one.labels[k]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": float(one.scores[k]),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        api = coco.COCO()
        api.dataset = {
            "info": {},
            "images": [{"id": int(sample.key) + 1} for sample in scene[1]],
            "categories": [{"id": k} for k in range(classes)],
            "annotations": truth,
        }
        api.createIndex()
        evaluation = cocoeval.COCOeval(api, api.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats
    values = {
        "map": stats[0],
        "map50": stats[1],
        "map75": stats[2],
        "map_small": stats[3],
        "map_medium": stats[4],
        "map_large": stats[5],
        "recall100": stats[8],
    }
    return {name: math.nan if v == -1 else float(v) for name, v in values.items()}, evaluation


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("difficult", [0.0, 0.2])
def test_cocos_measures_are_pycocotools(seed: int, difficult: float) -> None:
    scene = random_scene(seed, difficult=difficult)
    expected, evaluation = by_pycocotools(scene, 4)
    meter = met(scene)
    found = meter.compute()
    assert {name: found[name] for name in MEASURES} == pytest.approx(expected, abs=1e-9)
    assert 0.02 < found["map"] < 0.9 and not math.isnan(found["map_small"])
    table = evaluation.eval["precision"][:, :, :, 0, 2]  # [T, R, K]
    for k, row in enumerate(meter.per_class("abcd")):
        known = table[:, :, k]
        if (known == -1).all():
            assert math.isnan(row["ap"]) and row["objects"] == 0
        else:
            assert row["ap"] == pytest.approx(known.mean(), abs=1e-9)
            assert row["ap50"] == pytest.approx(known[0].mean(), abs=1e-9)
            recall = evaluation.eval["recall"][0, k, 0, 2]
            assert row["recall"] == pytest.approx(recall, abs=1e-9)


def test_equal_overlaps_are_matched_as_pycocotools_does() -> None:
    """Whole coordinates: objects side by side that a detection overlaps equally, overlaps that are
    exactly a threshold, areas that are exactly a limit."""
    rng = np.random.default_rng(0)
    found, samples = [], []
    for i in range(60):
        n, d = rng.integers(1, 7), rng.integers(1, 12)
        a, b = rng.integers(0, 3, (n, 2)) * 16, rng.integers(0, 6, (d, 2)) * 8
        xyxy = np.concatenate([a, a + rng.choice([16, 32, 96], (n, 2))], 1)
        near = np.concatenate([b, b + rng.choice([16, 32, 64, 96], (d, 2))], 1)
        crowd = rng.random(n) < 0.2
        found.append(detections(near, rng.integers(0, 2, d), rng.integers(0, 4, d) / 4))
        labels = rng.integers(0, 2, n)
        samples.append(Sample(key=f"{i:04}", image=IMAGE, boxes=boxes(xyxy, labels, (), crowd)))
    expected, _ = by_pycocotools((found, samples), 2)
    values = met((found, samples), 2).compute()
    assert {name: values[name] for name in MEASURES} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_of_two_objects_that_overlap_equally_pycocotools_choice(order: list[int]) -> None:
    """Which one the first detection takes decides whether the second finds one that fits it."""
    there = boxes(np.array([[0, 0, 10, 10], [2, 0, 12, 10]])[order], [0, 0])
    found = detections([[1, 0, 11, 10], [0, 0, 10, 10]], [0, 0], [0.9, 0.8])
    scene = [found], [Sample(key="0", image=IMAGE, boxes=there)]
    expected, _ = by_pycocotools(scene, 1)
    values = met(scene, 1).compute()
    assert {name: values[name] for name in MEASURES} == pytest.approx(
        expected, abs=1e-9, nan_ok=True
    )


def test_half_is_enough_for_voc() -> None:
    sample = Sample(key="a", image=IMAGE, boxes=boxes([[0, 0, 10, 10]], [0]))
    for height, expected in ((5, 1.0), (4.9, 0.0)):
        scene = [detections([[0, 0, 10, height]], [0], [0.5])], [sample]
        assert met(scene, 1).compute()["map_voc10"] == expected


def by_the_devkit(scene: Scene, classes: int) -> tuple[float, float]:
    """VOCevaldet.m's loop, in Python."""
    old, new = [], []
    for k in range(classes):
        truth: dict[str, list[dict[str, Any]]] = {}
        objects = 0
        rows = []
        for one, sample in sorted(zip(*scene, strict=True), key=lambda pair: pair[1].key):
            there = sample.boxes
            truth[sample.key] = []
            for g in range(0 if there is None else len(there)):
                assert there is not None
                if there.labels[g] == k:
                    hard = bool(there.difficult[g])
                    objects += not hard
                    box = there.xyxy[g].tolist()
                    truth[sample.key].append({"box": box, "difficult": hard, "found": False})
            rows += [
                (float(one.scores[d]), sample.key, one.xyxy[d].tolist())
                for d in range(len(one))
                if one.labels[d] == k
            ]
        if not objects:
            continue
        rows.sort(key=lambda row: -row[0])
        true, false = [], []
        for _, key, b in rows:
            most, best = -math.inf, None
            for one_true in truth[key]:
                g = one_true["box"]
                wide = min(b[2], g[2]) - max(b[0], g[0])
                high = min(b[3], g[3]) - max(b[1], g[1])
                if wide > 0 and high > 0:
                    union = (b[2] - b[0]) * (b[3] - b[1]) + (g[2] - g[0]) * (g[3] - g[1])
                    share = wide * high / (union - wide * high)
                    if share > most:
                        most, best = share, one_true
            right = wrong = 0
            if best is not None and most >= 0.5:
                if not best["difficult"]:
                    right, wrong = (0, 1) if best["found"] else (1, 0)
                    best["found"] = True
            else:
                wrong = 1
            true.append(right)
            false.append(wrong)
        tp, fp = np.cumsum(true), np.cumsum(false)
        recall = [t / objects for t in tp]
        precision = [t / (t + f) if t + f else 0.0 for t, f in zip(tp, fp, strict=True)]
        points = list(zip(recall, precision, strict=True))
        levels = [max((p for r, p in points if r >= level / 10), default=0) for level in range(11)]
        old.append(sum(levels) / 11)
        r, p = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
        for i in range(len(p) - 2, -1, -1):
            p[i] = max(p[i], p[i + 1])
        new.append(sum((r[i] - r[i - 1]) * p[i] for i in range(1, len(r))))
    return float(np.mean(old)), float(np.mean(new))


@pytest.mark.parametrize("seed", range(6))
def test_vocs_measures_are_the_devkits(seed: int) -> None:
    scene = random_scene(seed, crowd=0.0, difficult=0.2)
    old, new = by_the_devkit(scene, 4)
    found = met(scene).compute()
    assert found["map_voc07"] == pytest.approx(old, abs=1e-9)
    assert found["map_voc10"] == pytest.approx(new, abs=1e-9)
    assert 0.05 < old < 0.9


def test_merging_in_any_order_is_updating_at_once() -> None:
    predictions, samples = random_scene(7, images=20, difficult=0.1)
    whole = met((predictions, samples))
    for step in (1, 3, 7):
        parts = []
        for start in range(step):
            part = met((predictions[start::step], samples[start::step]))
            parts.append(pickle.loads(pickle.dumps(part)))  # noqa: S301
        merged = parts.pop()
        for part in parts:
            merged.merge(part)
        assert merged.compute() == whole.compute()
        assert merged.per_class("abcd")[0] == whole.per_class("abcd")[0]
        assert merged.errors.rows("abcd", 0.5) == whole.errors.rows("abcd", 0.5)


def test_perfect_boxes_score_one_and_none_score_zero() -> None:
    _, samples = random_scene(3, crowd=0.2, difficult=0.2)
    perfect, none = [], []
    for sample in samples:
        there = boxes([], []) if sample.boxes is None else sample.boxes
        perfect.append(detections(there.xyxy, there.labels, np.linspace(0.9, 0.1, len(there))))
        none.append(detections([], [], []))
    # Crowds and what is difficult: found or not, nothing changes.
    assert met((perfect, samples)).compute() == pytest.approx(dict.fromkeys(NAMES, 1.0))
    assert met((none, samples)).compute() == dict.fromkeys(NAMES, 0.0)
    wrong = [detections(one.xyxy, (one.labels + 1) % 4, one.scores) for one in perfect]
    assert met((wrong, samples)).compute()["map_voc10"] < 0.1


def test_where_nothing_counts_there_is_no_number() -> None:
    empty = DetectionMeter(3)
    silent = met(([detections([], [], [])], [Sample(key="a", image=IMAGE)]), 3)
    false = met(([detections([[0, 0, 9, 9]], [1], [0.5])], [Sample(key="a", image=IMAGE)]), 3)
    hard = boxes([[0, 0, 9, 9]], [1], [True])
    ignored = met(
        ([detections([[0, 0, 9, 9]], [1], [0.5])], [Sample(key="a", image=IMAGE, boxes=hard)]), 3
    )
    for meter in (empty, silent, false, ignored, DetectionMeter(0)):
        assert sorted(meter.compute()) == sorted(NAMES)
        assert all(math.isnan(value) for value in meter.compute().values())
        assert all(len(recall) == 0 for recall, _, _ in meter.curves())
        assert all(math.isnan(value) for value in meter.errors.gains().values())
    assert [row["detections"] for row in false.per_class("abc")] == [0, 1, 0]


def test_a_range_without_objects_has_no_number() -> None:
    large = boxes([[0, 0, 200, 200]], [0])
    found = detections([[0, 0, 200, 200]], [0], [1])
    values = met(([found], [Sample(key="a", image=IMAGE, boxes=large)]), 1).compute()
    assert values["map"] == values["map_large"] == pytest.approx(1)
    assert math.isnan(values["map_small"]) and math.isnan(values["map_medium"])


def test_boxes_without_area_are_no_exception() -> None:
    there = boxes([[5, 5, 5, 9], [9, 9, 2, 2], [0, 0, 8, 8]], [0, 0, 0])
    found = detections([[5, 5, 5, 9], [9, 9, 2, 2], [0, 0, 8, 8]], [0, 0, 0], [0.9, 0.8, 0.7])
    values = met(([found], [Sample(key="a", image=IMAGE, boxes=there)]), 1).compute()
    assert values["map_voc10"] == pytest.approx(1 / 9)  # one of three, after two false ones
    assert values["map50"] == pytest.approx(34 / 101 / 3)


def test_curves_are_of_what_counts_and_give_the_average_precision() -> None:
    scene = random_scene(5, difficult=0.2)
    meter = met(scene)
    rows = meter.per_class("abcd")
    for (recall, precision, scores), row in zip(meter.curves(), rows, strict=True):
        assert len(recall) == len(precision) == len(scores) <= row["detections"]
        assert (np.diff(scores) <= 0).all() and (np.diff(recall) >= 0).all()
        if len(recall):
            n = np.arange(1, len(recall) + 1)
            np.testing.assert_allclose(precision * n, recall * row["objects"], atol=1e-9)
            assert recall[-1] == pytest.approx(row["recall"])
            best: Array = np.array([precision[i:].max() for i in range(len(recall))] + [0.0])
            at = [int((recall < level).sum()) for level in np.linspace(0, 1, 101)]
            assert best[at].mean() == pytest.approx(row["ap50"])


def test_a_crowd_takes_what_would_be_false() -> None:
    there = boxes([[0, 0, 10, 10], [0, 0, 100, 100]], [0, 0], (), [False, True])
    xyxy = [[0, 0, 10, 10], [40, 40, 60, 60], [50, 50, 90, 90], [200, 200, 220, 220]]
    sample = Sample(key="a", image=IMAGE, boxes=there)
    ordered = detections(xyxy, [0] * 4, [0.5, 0.9, 0.8, 0.1])
    values = met(([ordered], [sample]), 1).compute()
    assert values["map50"] == values["map_voc07"] == pytest.approx(1)
    values = met(([detections(xyxy, [0] * 4, [0.5, 0.9, 0.8, 0.7])], [sample]), 1).compute()
    assert values["map50"] == values["map_voc10"] == pytest.approx(0.5)
