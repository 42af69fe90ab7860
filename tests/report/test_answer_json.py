"""Answers as JSON: what is said is what the answer holds, and arrays come back from their PNGs."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from vidi.data.flowfiles import read_kitti
from vidi.engine.answers import BoundaryMap, DetectedObjects, Prediction, Segmentation
from vidi.engine.flow_fields import FlowField
from vidi.report.answer_json import as_json
from vidi.report.drawn import Answer
from vidi.types import Array, Detections

CLASSES = ("cat", "dog", "Größe", "emu")
RNG = np.random.default_rng(3)
MASK = RNG.integers(0, 4, (12, 17)).astype(np.uint8)
SOFT = RNG.uniform(0, 1, (12, 17)).astype(np.float32)
FRAMES = RNG.integers(0, 256, (2, 12, 17, 3)).astype(np.uint8)
FLOW = RNG.normal(0, 2, (12, 17, 2)).astype(np.float32)
FOUND = Detections(
    xyxy=np.array([[1.5, 2, 9, 8], [0, 0, 17, 12], [3, 3, 4, 4]], np.float32),
    labels=np.array([2, 0, 0]),
    scores=np.array([0.9, 0.5, 0.25], np.float32),
)

ANSWERS: dict[str, Answer] = {
    "classification": Prediction(
        "/secret/a.png", "dog", 0.5, ("dog",), np.array([0.3, 0.5, 0.15, 0.05])
    ),
    "segmentation": Segmentation("/secret/a.png", MASK, {"cat": 0.75, "emu": 0.25}),
    "boundaries": BoundaryMap("/secret/a.png", SOFT),
    "detection": DetectedObjects("/secret/a.png", (12, 17), FOUND, ("Größe", "cat", "cat")),
    "flow": FlowField("/secret/a.png", "/secret/b.png", FRAMES[0], FRAMES[1], FLOW),
}


def unpacked(text: str) -> Array:
    data = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))


@pytest.mark.parametrize("task", ANSWERS)
@pytest.mark.parametrize("arrays", [False, True])
def test_any_answer_is_plain_json_and_names_no_file(task: str, arrays: bool) -> None:
    said = as_json(ANSWERS[task], CLASSES, arrays=arrays)
    text = json.dumps(said, allow_nan=False)
    assert json.loads(text) == said
    assert "secret" not in text


def test_the_likeliest_classes_stand_first() -> None:
    said = as_json(ANSWERS["classification"], CLASSES, top=3)
    assert said == {
        "label": "dog",
        "probability": 0.5,
        "labels": ["dog"],
        "top": [["dog", 0.5], ["cat", 0.3], ["Größe", 0.15]],
    }
    assert len(as_json(ANSWERS["classification"], CLASSES, top=100)["top"]) == 4


def test_objects_have_class_score_and_box() -> None:
    said = as_json(ANSWERS["detection"], CLASSES, least=0.5)
    assert said["size"] == [12, 17]
    assert said["objects"] == [
        {"class": "Größe", "score": pytest.approx(0.9), "box": [1.5, 2, 9, 8]},
        {"class": "cat", "score": 0.5, "box": [0, 0, 17, 12]},
    ]
    assert len(as_json(ANSWERS["detection"], CLASSES)["objects"]) == 3


def test_a_mask_comes_back_number_for_number() -> None:
    said = as_json(ANSWERS["segmentation"], CLASSES, arrays=True)
    assert said["shares"] == {"cat": 0.75, "emu": 0.25}
    np.testing.assert_array_equal(unpacked(said["mask"]), MASK)
    many = np.arange(600, dtype=np.int32).reshape(20, 30)
    back = unpacked(as_json(Segmentation("", many, {}), CLASSES, arrays=True)["mask"])
    np.testing.assert_array_equal(back, many)


def test_a_boundary_map_comes_back_in_255_steps() -> None:
    said = as_json(ANSWERS["boundaries"], CLASSES, arrays=True)
    assert (said["mean"], said["largest"]) == (pytest.approx(SOFT.mean()), float(SOFT.max()))
    assert np.abs(unpacked(said["map"]) / 255 - SOFT).max() <= 0.5001 / 255


def test_flow_comes_back_from_kittis_png(tmp_path: Path) -> None:
    said = as_json(ANSWERS["flow"], CLASSES, arrays=True)
    sizes = np.sqrt((FLOW.astype(float) ** 2).sum(2))
    assert said["mean_motion"] == pytest.approx(sizes.mean())
    assert said["largest_motion"] == pytest.approx(sizes.max())
    (tmp_path / "a.png").write_bytes(base64.b64decode(said["flow"]))
    flow, valid = read_kitti(str(tmp_path / "a.png"))
    assert valid.all()
    assert np.abs(flow - FLOW).max() <= 0.5001 / 64


def test_what_is_not_finite_is_null() -> None:
    away = FlowField("", "", FRAMES[0], FRAMES[1], np.full((12, 17, 2), 1e4, np.float32))
    assert as_json(away, ())["photometric_error"] is None
    lost = Prediction("", "cat", float("nan"), (), np.full(4, np.nan))
    assert as_json(lost, CLASSES)["top"][0] == ["cat", None]


def test_names_that_are_no_unicode() -> None:
    """A folder's name may be any bytes; JSON is UTF-8."""
    name = "caf\udce9"
    sure = Prediction("a.png", name, 0.75, (name,), np.array([0.25, 0.75], np.float32))
    told = as_json(sure, ("b", name))
    assert told["label"] == "caf?" and told["labels"] == ["caf?"] and told["top"][0][0] == "caf?"
    masked = as_json(Segmentation("a.png", np.ones((2, 2), np.uint8), {name: 1.0}), ("b", name))
    assert masked["shares"] == {"caf?": 1.0}
    json.dumps([told, masked], ensure_ascii=False).encode()
