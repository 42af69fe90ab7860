"""The gate: what answers as the run does passes, and the least fault of preparation, network,
weights or names does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vidi
from vidi.data.open import open_data
from vidi.deploy import onnx_files, parity
from vidi.deploy.export import export
from vidi.deploy.function import Function, function
from vidi.errors import RunError

QUICK: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "batch_size": 4,
    "logging": {"pictures": False},
}
TASKS = {
    "classification": ("mlp", {"image_size": 32}),
    "segmentation": ("fcn_small", {}),
    "boundaries": ("hed_small", {}),
    "flow": ("flownet_small", {}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A run of each task, that has learned for a few steps: (model, samples)."""
    made: dict[str, Any] = {}

    def run(task: str) -> Any:
        if task not in made:
            name, changes = TASKS[task]
            data = f"scenes:{task},size=72,n=8,val=4,test=0"
            path = tmp_path_factory.mktemp("runs") / task
            told = {**QUICK, **changes}
            vidi.train(data, run=path, model=name, length={"steps": 3}, lr=0.01, **told)
            dataset = open_data(data)
            samples = []
            for i in dataset.splits["val"]:
                one = {"image": dataset.images.load(int(i), None)[0]}
                if dataset.images2 is not None:
                    one["image2"] = dataset.images2.load(int(i), None)[0]
                samples.append({k: np.array(x) for k, x in one.items()})
            model = vidi.load(path, device="cpu")
            if task == "segmentation":  # so early it gives all pixels one class
                generator = torch.Generator().manual_seed(0)
                for tensor in list(model.network.parameters())[-8:]:
                    noise = torch.randn(tensor.shape, generator=generator)
                    tensor.data += noise * 0.3
            made[task] = model, samples
        return made[task]

    return run


class Played:
    """What an exported file would be, without the file."""

    def __init__(self, whole: Function, model: Any) -> None:
        self.whole = whole
        mean, std = model.compute.normalisation.mean, model.compute.normalisation.std
        self.metadata: dict[str, Any] = {
            "task": model.recipe.task,
            "classes": list(model.classes),
            "normalisation": {"mean": list(mean), "std": list(std)},
            "inputs": {name: {"shape": list(sides)} for name, sides in whole.inputs.items()},
        }

    def tensors(self) -> dict[str, Any]:
        own = {k: getattr(self.whole, k) for k in ("image_mean", "image_scale")}
        return {k: t.numpy().copy() for k, t in {**own, **self.whole.network.state_dict()}.items()}

    @torch.inference_mode()
    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        found = self.whole(**{k: torch.from_numpy(x.copy()) for k, x in inputs.items()})
        return {k: t.numpy() for k, t in found.items()}


def trained(model: Any) -> dict[str, Any]:
    stored = {k: t.numpy().copy() for k, t in model.network.state_dict().items()}
    return stored | parity.preparation(model)


@pytest.mark.parametrize("task", TASKS)
def test_what_answers_as_the_run_passes(runs: Callable[[str], Any], task: str) -> None:
    model, samples = runs(task)
    found = parity.check(Played(function(model), model), model, samples, trained(model))
    assert found.passed, found.sentence
    assert found.samples == len(samples)
    assert found.tensors == 2 + len(model.network.state_dict())
    assert "equal bit for bit" in found.sentence
    dataclasses.asdict(found)


def _mean(whole: Function) -> None:
    whole.image_mean += 0.5  # half a grey level


def _channels(whole: Function) -> None:
    fitted = whole.fitted
    whole.fitted = lambda levels: fitted(levels.flip(1))  # type: ignore[method-assign]


def _resize(whole: Function) -> None:
    def fitted(levels: Tensor) -> Tensor:
        return F.interpolate(levels, (32, 32), mode="bilinear", antialias=True)

    whole.fitted = fitted  # type: ignore[method-assign]


def _weight(whole: Function) -> None:
    weight = next(whole.network.parameters()).view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))


def _half(whole: Function) -> None:
    whole.network.bfloat16().float()


@pytest.mark.parametrize("spoil", [_mean, _channels, _resize, _weight, _half])
def test_the_least_fault_does_not(
    runs: Callable[[str], Any], spoil: Callable[[Function], None]
) -> None:
    model, samples = runs("classification")
    whole = function(model)
    spoil(whole)
    found = parity.check(Played(whole, model), model, samples, trained(model))
    assert not found.passed
    if spoil is _weight:
        (fault,) = found.faults
        name, first = next(iter(model.network.named_parameters()))
        assert fault.startswith(
            f"The tensor {name} differs from the run's in 1 of {first.numel():,}"
        )
    elif spoil is not _half:
        assert "is allowed" in found.sentence  # by the answers alone


@pytest.mark.parametrize("task", ["segmentation", "boundaries", "flow"])
def test_a_mean_half_a_grey_level_off_shows_in_maps(runs: Callable[[str], Any], task: str) -> None:
    model, samples = runs(task)
    whole = function(model)
    _mean(whole)
    stored = {k: x for k, x in trained(model).items() if not k.startswith("image_")}
    artefact = Played(whole, model)
    kept = {k: x for k, x in artefact.tensors().items() if k in stored}
    artefact.tensors = lambda: kept  # type: ignore[method-assign]
    found = parity.check(artefact, model, samples, stored)
    assert not found.passed and not found.faults  # by the answers alone


def test_what_the_file_says_of_itself_is_compared(runs: Callable[[str], Any]) -> None:
    model, samples = runs("classification")
    artefact = Played(function(model), model)
    artefact.metadata["classes"].reverse()
    found = parity.check(artefact, model, samples[:1], trained(model))
    assert not found.passed and "gives classes as" in found.sentence


def test_missing_and_foreign_tensors_are_named(runs: Callable[[str], Any]) -> None:
    model, samples = runs("classification")
    artefact = Played(function(model), model)
    stored = artefact.tensors()
    one, other = list(stored)[-2:]
    stored["other.weight"] = stored.pop(one)
    stored[other] = stored[other].astype(np.float64)
    artefact.tensors = lambda: stored  # type: ignore[method-assign]
    said = parity.check(artefact, model, samples[:1], trained(model)).sentence
    assert f"{one} is not in the file" in said
    assert "other.weight is not the run's" in said
    assert f"{other} is float64" in said


def test_negative_zero_is_another_number() -> None:
    equal, faults = parity._stored({"a": np.float32([-0.0])}, {"a": np.float32([0.0])})
    assert equal == 0 and len(faults) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({}, "gives no probabilities"),
        ({"probabilities": np.zeros((1, 3), np.float32)}, r"float32 \[3\]"),
        (RuntimeError("Shape mismatch\nat node 7"), "cannot be run: Shape mismatch"),
    ],
)
def test_what_cannot_be_compared_is_a_fault(
    runs: Callable[[str], Any], answer: Any, said: str
) -> None:
    model, samples = runs("classification")
    artefact = Played(function(model), model)

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    artefact.run = run  # type: ignore[method-assign]
    found = parity.check(artefact, model, samples[:1], trained(model))
    assert not found.passed
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.sentence)


def test_answers_that_are_no_numbers_fail(runs: Callable[[str], Any]) -> None:
    model, samples = runs("classification")
    artefact = Played(function(model), model)
    artefact.whole.image_mean[:] = torch.nan
    assert not parity.check(artefact, model, samples, trained(model)).passed


def test_a_tie_may_go_either_way_and_nothing_else() -> None:
    model = SimpleNamespace(recipe=SimpleNamespace(task="classification"))
    compared = parity._Probabilities(model)
    near, far = np.float32([0.4004, 0.3996, 0.2]), np.float32([0.5, 0.3, 0.2])
    other = near[[1, 0, 2]]
    compared.add({}, {"probabilities": near}, {"probabilities": other})
    assert (compared.decisions, compared.differing, compared.ties) == (1, 0, 1)
    compared.add({}, {"probabilities": far}, {"probabilities": far[[1, 0, 2]]})
    assert (compared.decisions, compared.differing, compared.ties) == (2, 1, 1)


def test_undecided_pixels_are_those_of_equal_scores(runs: Callable[[str], Any]) -> None:
    model, samples = runs("segmentation")
    masks = parity._Masks(model)
    undecided = masks._undecided(samples[0]["image"])
    assert undecided.shape == samples[0]["image"].shape[:2] and undecided.mean() < 0.2

    class Even(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            scores = torch.zeros(len(image), len(model.classes), *image.shape[2:])
            scores[:, 0, :, ::2] = 1
            return scores

    masks.reference = dataclasses.replace(model, network=Even())
    undecided = masks._undecided(samples[0]["image"])
    assert undecided[:, 1::2].all() and not undecided[:, ::2].any()


def boxes(*rows: tuple[float, ...]) -> dict[str, Any]:
    """(x0, y0, x1, y1, score, label) each."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return {
        "boxes": table[:, :4],
        "scores": table[:, 4],
        "labels": table[:, 5].astype(np.int64),
    }


ONE = (10, 10, 50, 50, 0.8, 1)
SETTINGS = SimpleNamespace(nms=0.3, least_score=0.01, most=100)


def _detections(
    right: dict[str, Any], answer: dict[str, Any], *nearly: dict[str, Any]
) -> tuple[int, int, int]:
    """``nearly``: what the run answers to nearly the same image."""
    compared = parity._Boxes(SimpleNamespace(recipe=SimpleNamespace(detection=SETTINGS)))
    compared._nearly = lambda sample: [right, *nearly]  # type: ignore[method-assign]
    compared.add({}, right, answer)
    return compared.decisions, compared.differing, compared.ties


def test_detections_have_counterparts_both_ways() -> None:
    assert _detections(boxes(ONE), boxes((10.1, 10, 50, 50.1, 0.805, 1))) == (2, 0, 0)
    assert _detections(boxes(ONE), boxes()) == (1, 1, 0)
    assert _detections(boxes(), boxes(ONE)) == (1, 1, 0)
    assert _detections(boxes(ONE), boxes((*ONE[:5], 2))) == (2, 2, 0)  # another class
    assert _detections(boxes(ONE), boxes((10, 10, 50, 52, 0.8, 1))) == (2, 0, 2)  # a rival
    assert _detections(boxes(ONE), boxes((*ONE[:4], 0.7, 1))) == (2, 2, 0)  # another score
    assert _detections(boxes(ONE), boxes(ONE, ONE))[0] == 3  # each is one once
    noise = (0, 0, 9, 9, 0.02, 1)
    assert _detections(boxes(ONE, noise), boxes(ONE)) == (3, 0, 1)  # one of few is compared
    many = [(60 * k, 10, 60 * k + 40, 50, 0.8, 1) for k in range(10)]
    assert _detections(boxes(*many, noise), boxes(*many)) == (20, 0, 0)
    unsure = (0, 0, 9, 9, 0.04, 1)
    assert _detections(boxes(unsure), boxes()) == (1, 1, 0)


def test_a_box_that_was_as_good_as_suppressed_is_a_tie() -> None:
    rival = (10, 10, 50, 45, 0.795, 1)
    assert _detections(boxes(ONE), boxes(rival)) == (2, 0, 2)
    sure = (10, 10, 50, 45, 0.7, 1)
    assert _detections(boxes(ONE), boxes(sure)) == (2, 2, 0)
    touching = (10, 10, 50, 22.1, 0.5, 1)  # overlaps by 0.3025
    assert _detections(boxes(ONE, touching), boxes(ONE)) == (3, 0, 1)


def test_what_the_run_decides_otherwise_of_nearly_the_same_image_is_a_tie() -> None:
    other = (10, 10, 50, 45, 0.7, 1)
    assert _detections(boxes(ONE), boxes(other), boxes(other)) == (2, 0, 2)
    assert _detections(boxes(ONE), boxes(other), boxes(ONE)) == (2, 2, 0)
    assert _detections(boxes(ONE), boxes(other), boxes()) == (2, 1, 1)  # gone, but for nothing
    assert _detections(boxes(ONE), boxes(other), boxes(ONE, other)) == (2, 1, 1)
    assert _detections(boxes(ONE), boxes(), boxes()) == (1, 0, 1)


def test_pairs_are_of_one_size() -> None:
    free = {"inputs": {"image": {"shape": ["batch", "height", "width", 3]}}}
    alone = {"inputs": {"image": {"shape": [1, "height", "width", 3]}}}
    a, b = ({"image": np.zeros((side, 4, 3))} for side in (4, 5))
    together = [len(some) for some in parity._in_twos(free, [a, a, a, b, b, a])]
    assert together == [1, 2, 2, 1]
    assert [len(some) for some in parity._in_twos(free, [a, b])] == [1, 1, 2]
    assert [len(some) for some in parity._in_twos(free, [a])] == [1, 2]
    assert [len(some) for some in parity._in_twos(alone, [a, a, b])] == [1, 1, 1]


@pytest.mark.parametrize(("wrong", "images"), [(1, 4), (2, 1), (2, 4)])
def test_one_and_two_at_a_time_are_compared(
    runs: Callable[[str], Any], wrong: int, images: int
) -> None:
    model, samples = runs("classification")
    artefact = Played(function(model), model)
    right = artefact.run

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        found = right(inputs)
        return {k: x[:, ::-1] if len(x) == wrong else x for k, x in found.items()}

    assert parity.check(artefact, model, samples[:images], trained(model)).passed
    artefact.run = run  # type: ignore[method-assign]
    assert not parity.check(artefact, model, samples[:images], trained(model)).passed


@pytest.mark.parametrize("spoil", [_channels, _weight])
def test_a_spoilt_file_is_not_left(
    runs: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Function], None],
) -> None:
    model, _ = runs("classification")
    write = onnx_files.write

    def spoilt(whole: Any, *others: Any) -> set[str]:
        spoil(whole)
        return write(whole, *others)

    monkeypatch.setattr(onnx_files, "write", spoilt)
    out = tmp_path / "out" / "model.onnx"
    with pytest.raises(RunError, match="was not written"):
        export(model, "onnx", out, images=4, size=(8, 8))
    assert not out.parent.exists()
