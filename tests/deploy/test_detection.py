"""A detector's whole function answers as the run does: from bytes to boxes in its own pixels."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from vidi.data import augment
from vidi.data.geometry import resize
from vidi.data.open import from_images
from vidi.deploy import (
    detection,
    export,
    onnx_files,
    openvino_files,
    parity,
    resizing,
    torch_files,
)
from vidi.engine.evaluate import Compute, predictions
from vidi.engine.prepare import loader, make_task
from vidi.errors import InputError
from vidi.models.faster_rcnn_resnets import ResNetFasterRCNN
from vidi.models.rcnns import rcnn_small
from vidi.models.small_fast_rcnns import fast_rcnn_small
from vidi.models.small_faster_rcnns import faster_rcnn_small
from vidi.ops import regions as regions_ops
from vidi.ops.boxes import surest
from vidi.recipe import Recipe, replace
from vidi.types import Normalisation

CLASSES = ("a", "b", "c")
TINY: dict[str, Any] = {
    "stem": (6, 8),
    "widths": (8, 8),
    "depths": (1, 1),
    "merged": 8,
    "pooled": 3,
    "hidden": 16,
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Made:
    """What stands for a run: a network with random weights that finds a few things."""

    def __init__(self, network: nn.Module, **changes: Any) -> None:
        torch.manual_seed(1)
        self.network = network.eval().requires_grad_(False)
        for name, tensor in network.named_parameters():
            if any(part in name for part in ("cls_score", "objects", "classifier.3")):
                tensor.copy_(torch.randn(tensor.shape) * (0.3 if "objects" in name else 0.6))
            elif any(part in name for part in ("bbox_pred", "moves")):
                tensor.copy_(torch.randn(tensor.shape) * 0.05)
        learned = getattr(network, "proposes", False)
        told: dict[str, Any] = {
            "task": "detection",
            "model": "tiny",
            "image_size": 64,
            "batch_size": 2,
            "data": {"proposals": "network" if learned else "selective-fast", "threads": 0},
            "augmentation": {"preset": "boxes", "longest": 96},
            "detection": {"least_score": 0.05, "most": 20},
        }
        recipe = replace(replace(Recipe(), told), changes)
        filled = augment.resolve(recipe.augmentation)
        self.recipe = dataclasses.replace(recipe, augmentation=filled)
        self.classes = CLASSES
        normal = Normalisation((0.4, 0.5, 0.45), (0.2, 0.25, 0.22))
        self.compute = Compute(torch.device("cpu"), "fp32", False, normal)

    def _loader(self, dataset: Any, ids: Any) -> Any:
        task = make_task("detection", CLASSES, self.recipe, None)

        def load(i: int) -> Any:
            return dataset.images.load(i, 64)

        return task, loader(dataset, ids, self.recipe, task, load, self.compute.normalisation)


def image(height: int, width: int, seed: int = 0) -> Any:
    """Blobs of colour."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return resize(small, np.empty((height, width, 3), np.uint8))


def regions(height: int, width: int, count: int = 30) -> Any:
    rng = np.random.default_rng(1)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), 1).reshape(-1, 4)
    corners[0] = (0.5, 0.5, 0.5, 0.5)  # too small to be looked at
    return (corners * [width, height, width, height]).astype(np.float32)


NETWORKS = {
    "faster": lambda: faster_rcnn_small(3, **TINY),
    "fast": lambda: fast_rcnn_small(3, **TINY),
    "pooled": lambda: fast_rcnn_small(3, **TINY, roi="pool"),
    "rcnn": lambda: rcnn_small(3, side=24, stem=4, widths=(4, 8), described=8),
}
SIZES = [(64, 64), (50, 97), (130, 64), (200, 90), (40, 33), (100, 400)]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_answers_as_the_run(name: str) -> None:
    model = Made(NETWORKS[name]())
    whole = detection.function(model)
    found = 0
    for height, width in SIZES:
        sample = {"image": image(height, width)}
        if "regions" in whole.inputs:
            sample["regions"] = regions(height, width)
            (right,) = parity._told(model, [sample])
        else:
            task, batches = model._loader(from_images([sample["image"]]), np.arange(1))
            ((_, (right,)),) = predictions(model.network, task, batches, model.compute)
        with torch.no_grad():
            given = {k: torch.from_numpy(x.copy()) for k, x in sample.items()}
            answer = whole(**{**given, "image": given["image"][None]})
        answer = {k: t.numpy() for k, t in answer.items()}
        wanted = {"boxes": right.xyxy, "scores": right.scores, "labels": right.labels}
        compared = parity._Boxes(model)
        compared.add({}, wanted, answer)
        assert not compared.differing and compared.ties <= 2
        assert answer["labels"].dtype == np.int64 and (np.diff(answer["scores"]) <= 0).all()
        found += compared.decisions
    assert found > 20


@pytest.mark.parametrize("longest", [80, 107, 400])
@pytest.mark.parametrize("size", [32, 60, 320])
def test_sides_are_those_of_evaluation(size: int, longest: int) -> None:
    plan = SimpleNamespace(crop="shorter", size=size, longest=longest)
    for height in range(20, 420, 23):
        for width in range(20, 420, 7):
            sides = torch.tensor(height), torch.tensor(width)
            found = detection.known(*detection.target(*sides, size, longest))
            assert found == augment.target(plan, (height, width)), (height, width)  # type: ignore[arg-type]


@pytest.mark.parametrize("sides", [(30, 40, 60, 80), (60, 80, 30, 40), (31, 47, 50, 20)])
def test_resizing_is_that_of_the_loader_but_for_a_level(sides: tuple[int, ...]) -> None:
    h, w, height, width = sides
    rng = np.random.default_rng(0)
    given = rng.integers(0, 256, (h, w, 3)).astype(np.uint8)
    right = resize(given, np.empty((height, width, 3), np.uint8)).astype(np.float32)
    levels = torch.from_numpy(given).permute(2, 0, 1)[None].float()
    found = resizing.resized(levels, height, width)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - right).max() <= 1 and (found != right).mean() < 0.01


def test_aligning_in_a_graph_is_what_it_is_outside() -> None:
    torch.manual_seed(0)
    maps = torch.randn(1, 4, 9, 11)
    at = torch.rand(40, 2, 2).mul(60).sort(1).values.view(-1, 4) - 10
    rows = torch.cat((torch.zeros(40, 1), at), 1)
    for sampling in (1, 2):
        outside = regions_ops.align(maps, rows, 3, 1 / 4, sampling)
        inside = regions_ops._aligned(maps, rows, (3, 3), 1 / 4, sampling)
        assert torch.allclose(outside, inside, atol=1e-5)


class Resizing(nn.Module):
    """Nothing but the resizing of an image."""

    inputs: ClassVar[Any] = {"levels": (1, 3, "height", "width")}
    outputs: ClassVar[Any] = {"resized": (1, 3, 64, 86)}

    def forward(self, levels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"resized": resizing.resized(levels, 64, 86)}


def test_every_library_resizes_to_the_same_levels(tmp_path: Path) -> None:
    """A level off in one of a hundred thousand puts other proposals first."""
    path = tmp_path / "model.onnx"
    onnx_files.write(Resizing(), {"levels": torch.zeros(1, 3, 96, 128)}, path, {})
    openvino_files.convert(path, tmp_path / "model.xml", {})
    files = [export.read(file) for file in (path, tmp_path / "model.xml")]
    apart = 0
    for seed, sides in enumerate([(96, 128), (96, 172), (128, 172), (100, 129), (70, 90)] * 4):
        rng = np.random.default_rng(seed)
        given = rng.integers(0, 256, (*sides, 3)).astype(np.uint8)
        levels = torch.from_numpy(given).permute(2, 0, 1)[None].float()
        right = resizing.resized(levels, 64, 86).numpy()
        for file in files:
            found = file.run({"levels": levels.numpy()})["resized"]
            np.testing.assert_array_equal(found, right)
        own = resize(given, np.empty((64, 86, 3), np.uint8)).transpose(2, 0, 1)
        assert (own != right[0]).mean() < 0.02
        apart += int((own != right[0]).sum())
    assert apart, "some sums are a half but for rounding"


class Sorting(nn.Module):
    """Nothing but the order of numbers."""

    inputs: ClassVar[Any] = {"numbers": ("count",)}
    outputs: ClassVar[Any] = {"rows": (400,)}

    def forward(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"rows": numbers.sort(descending=True, stable=True).indices[:400]}


def test_every_library_takes_the_first_of_equal_numbers_first(tmp_path: Path) -> None:
    """As the run does, where many proposals are as sure."""
    path, given = tmp_path / "model.onnx", {"numbers": torch.randint(0, 9, (5000,)).float()}
    onnx_files.write(Sorting(), given, path, {})
    openvino_files.convert(path, tmp_path / "model.xml", {})
    torch_files.write(Sorting(), given, tmp_path / "model.pt2", {})
    right = surest(given["numbers"][None], 400)[0].numpy()
    for suffix in export.SUFFIXES.values():
        found = export.read(tmp_path / f"model{suffix}").run({"numbers": given["numbers"].numpy()})
        np.testing.assert_array_equal(found["rows"], right)


class Suppressing(nn.Module):
    """Nothing but the suppression of boxes."""

    inputs: ClassVar[Any] = {"boxes": ("count", 4), "scores": ("count",)}
    outputs: ClassVar[Any] = {"kept": ("count",)}

    def forward(self, boxes: torch.Tensor, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"kept": detection.surest(boxes, scores, 0.1, 0.5)}


READING = """
import sys
from pathlib import Path
import numpy as np
from vidi.deploy import torch_files
assert "torchvision" not in sys.modules
boxes = np.array([[0, 0, 9, 9], [1, 0, 9, 9], [20, 0, 29, 9]], np.float32)
scores = np.array([0.8, 0.9, 0.2], np.float32)
print(torch_files.read(Path(sys.argv[1])).run({"boxes": boxes, "scores": scores})["kept"].tolist())
"""


def test_a_process_that_only_reads_knows_the_operators(tmp_path: Path) -> None:
    """Those of torchvision, which has not been imported there."""
    path = tmp_path / "model.pt2"
    given = {"boxes": torch.tensor([[0.0, 0, 9, 9]]).repeat(6, 1), "scores": torch.rand(6)}
    torch_files.write(Suppressing(), given, path, {})
    words = [sys.executable, "-c", READING, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[False, True, True]"


class Pooling(nn.Module):
    """Nothing but the pooling of regions."""

    inputs: ClassVar[Any] = {"maps": (1, 3, "height", "width"), "regions": ("regions", 5)}
    outputs: ClassVar[Any] = {"pooled": ("regions", 3, 2, 4)}

    def forward(self, maps: torch.Tensor, regions: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pooled": regions_ops.pool(maps, regions, (2, 4), 1 / 4)}


def test_pooling_of_regions_is_that_of_onnx(tmp_path: Path) -> None:
    maps = torch.randn(1, 3, 9, 11)
    at = torch.rand(40, 2, 2).mul(36).sort(1).values.view(-1, 4)
    rows = torch.cat((torch.zeros(40, 1), at), 1)
    path, given = tmp_path / "model.onnx", {"maps": maps, "regions": rows}
    onnx_files.write(Pooling(), given, path, {})
    openvino_files.convert(path, tmp_path / "model.xml", {})
    right = regions_ops.pool(maps, rows, (2, 4), 1 / 4).numpy()
    for file in (path, tmp_path / "model.xml"):
        found = export.read(file).run({k: x.numpy() for k, x in given.items()})["pooled"]
        np.testing.assert_array_equal(found, right)


def test_what_cannot_be_drawn_is_said() -> None:
    network = faster_rcnn_small(3, **TINY)
    with pytest.raises(InputError, match="soft-nms linear"):
        detection.function(Made(network, detection={"soft_nms": "linear"}))

    pyramid = ResNetFasterRCNN.__new__(ResNetFasterRCNN)  # without its 28 million weights
    nn.Module.__init__(pyramid)
    with pytest.raises(InputError, match="the map of its size"):
        detection.function(Made(pyramid))

    class Own(nn.Module):
        proposes = True

    with pytest.raises(InputError, match="its own"):
        detection.function(Made(Own()))


def _metadata(whole: Any) -> dict[str, Any]:
    return {
        "task": "detection",
        "inputs": {name: {"shape": list(sides)} for name, sides in whole.inputs.items()},
    }


@pytest.mark.parametrize("name", ["faster", "fast"])
def test_files_answer_as_the_function(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ONNX Runtime, OpenVINO and torch, of images of any size, and of one, which is quicker to
    draw; and hold the same tensors."""
    model = Made(NETWORKS[name]())
    sizes = SIZES[:3] if name == "faster" else [(72, 90)]
    whole = detection.function(model, None if name == "faster" else sizes[0])
    path = tmp_path / "model.onnx"
    drawn = torch_files.traced(whole, whole.example())  # once, for that takes longest
    monkeypatch.setattr(onnx_files, "traced", lambda *given: drawn)
    monkeypatch.setattr(torch_files, "traced", lambda *given: drawn)
    names = onnx_files.write(whole, whole.example(), path, _metadata(whole))
    torch_files.write(whole, whole.example(), tmp_path / "model.pt2", _metadata(whole))
    openvino_files.convert(path, tmp_path / "model.xml", _metadata(whole))
    artefacts = [export.read(tmp_path / f"model{s}") for s in export.SUFFIXES.values()]
    own = dict(whole.network.named_parameters()) | dict(whole.network.named_buffers())
    for artefact in artefacts:
        stored = artefact.tensors()
        assert stored.keys() == names | set(torch_files.PREPARATION)
        assert all(np.array_equal(stored[n], own[n].numpy()) for n in names)
    for height, width in sizes:
        inputs = {"image": image(height, width, seed=height)[None]}
        if name == "fast":
            inputs["regions"] = regions(height, width)
        with torch.no_grad():
            right = whole(**{k: torch.from_numpy(x.copy()) for k, x in inputs.items()})
        for artefact in artefacts:
            compared = parity._Boxes(model)
            compared.add({}, {k: t.numpy() for k, t in right.items()}, artefact.run(inputs))
            assert compared.decisions > 4
            assert not compared.differing and compared.ties <= 2


@pytest.mark.parametrize("name", ["faster", "fast"])
def test_the_run_can_be_asked_of_nearly_the_same_image(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Made(NETWORKS[name]())
    whole = detection.function(model)
    compared = parity._Boxes(model)
    rng = np.random.default_rng(0)
    apart = found = 0
    for _ in range(4):
        sample = {"image": rng.integers(0, 256, (96, 128, 3)).astype(np.uint8)}
        levels = torch.from_numpy(sample["image"]).permute(2, 0, 1)[None].float()
        given = whole.fitted(levels)[0].permute(1, 2, 0).numpy()
        apart += int((given != resize(sample["image"], np.empty(given.shape, np.uint8))).sum())
        if name == "fast":
            sample["regions"] = regions(96, 128)
        with torch.no_grad():
            inputs = {k: torch.from_numpy(x.copy()) for k, x in sample.items()}
            answer = whole(**{**inputs, "image": inputs["image"][None]})
        theirs = {key: value.numpy() for key, value in answer.items()}
        nearly = compared._nearly(sample)
        assert len(nearly) == parity.NOISES
        found += len(nearly[0]["scores"])
        for one in nearly:
            assert (parity.counterparts(one, theirs) >= 0).all()
            assert (parity.counterparts(theirs, one) >= 0).all()
    assert apart and found, "some numbers are a level off, and something is found"
    fitted = whole.fitted
    monkeypatch.setattr(detection.Detect, "fitted", lambda self, levels: 255 - fitted(levels))
    assert compared._nearly(sample) == [], "of another image it is not asked"


def test_a_detector_that_finds_nothing_is_not_compared() -> None:
    model = Made(NETWORKS["fast"]())
    model.network.cls_score.bias[0] = 100  # all is background
    whole = detection.function(model)
    normal = model.compute.normalisation
    artefact: Any = SimpleNamespace(
        metadata=_metadata(whole)
        | {
            "classes": list(CLASSES),
            "normalisation": {"mean": list(normal.mean), "std": list(normal.std)},
        },
        tensors=dict,
        run=lambda given: {
            k: t.numpy()
            for k, t in whole(**{k: torch.from_numpy(x.copy()) for k, x in given.items()}).items()
        },
    )
    found = parity.check(
        artefact, model, [{"image": image(64, 64), "regions": regions(64, 64)}], {}
    )
    assert not found.passed
    assert found.faults == (
        "No detection could be compared; give more images, or other ones, with --data.",
    )
