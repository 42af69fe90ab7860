"""int8: what is quantised and what is not, what it costs, and that too much is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

import vidi
from vidi.data.dataset import Dataset
from vidi.data.open import open_data
from vidi.deploy import export, function, int8, onnx_files
from vidi.errors import InputError, RunError

DATA = "scenes:classification,size=48,n=40,val=12,test=0"


class Small(nn.Module):
    """Three layers, with normalisation between them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Dataset, Path]:
    """(a model that has learned a little, its data, its ONNX file in fp32)."""
    folder = tmp_path_factory.mktemp("int8")
    vidi.train(
        DATA,
        run=folder / "run",
        model=Small,
        image_size=32,
        length={"steps": 6},
        batch_size=8,
        device="cpu",
        precision="fp32",
        logging={"pictures": False},
    )
    model, dataset = vidi.load(folder / "run", network=Small, device="cpu"), open_data(DATA)
    whole = function.function(model)
    example = whole.example()
    metadata = export.described(model, whole, example, dataset)
    onnx_files.write(whole, example, folder / "full.onnx", metadata)
    return model, dataset, folder / "full.onnx"


def test_layers_are_quantised_and_the_rest_is_not(
    made: tuple[Any, Dataset, Path], tmp_path: Path
) -> None:
    model, dataset, full = made
    path = tmp_path / "small.onnx"
    said: list[str] = []
    cost = int8.quantise(full, path, model, dataset, max_loss=1, say=said.append)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "vidi-cache") == ["small.onnx"]
    assert cost.layers == 3  # two convolutions and one fully connected layer
    assert cost.calibrated == 40 and cost.images == 12 and cost.split == "val"
    assert cost.metric == "accuracy" and cost.loss == cost.fp32 - cost.int8
    assert f"accuracy {cost.int8:.4f}, and {cost.fp32:.4f} in fp32" in cost.sentence
    assert "12 samples of the split val" in said[-1]
    assert path.stat().st_size < 0.45 * full.stat().st_size

    artefact = onnx_files.read(path)
    assert artefact.metadata["precision"] == "int8"
    graph = artefact.proto.graph
    kinds = [node.op_type for node in graph.node]
    assert "BatchNormalization" not in kinds and kinds.count("Conv") == 2
    before = int8._upstream(graph, int8.MEAN)
    assert before
    assert not any(n.op_type == "QuantizeLinear" for n in graph.node if n.name in before)
    stored = {one.name: one for one in graph.initializer}
    makers = {out: node for node in graph.node for out in node.output}
    for node in graph.node:
        if node.op_type == "Conv":
            weights = makers[node.input[1]]
            assert weights.op_type == "DequantizeLinear"
            scales = stored[weights.input[1]]
            assert len(scales.dims) == 1 and scales.dims[0] > 1  # one per channel

    # Nearly the same: neither noise nor the file in fp32 once more.
    image = np.stack([np.array(dataset.images.load(i, None)[0]) for i in range(4)])
    p = onnx_files.read(full).run({"image": image})["probabilities"]
    q = artefact.run({"image": image})["probabilities"]
    assert 0 < np.abs(p - q).max() < 0.2


def test_too_much_is_refused_and_nothing_is_left(
    made: tuple[Any, Dataset, Path], tmp_path: Path
) -> None:
    model, dataset, full = made
    path = tmp_path / "small.onnx"
    shutil.copy(full, path)
    cost = int8.Int8("accuracy", "val", 12, 1.1, 0.0, 0.0, "MinMax", 40, 3)
    assert int8.measured(path, onnx_files.read(path), model, dataset, cost, 1.1).loss > 0
    for most in (0.05, float("nan")):
        shutil.copy(full, path)
        with pytest.raises(RunError, match=r"in int8 accuracy is \d\.\d{4}, and 1\.1000 in fp32"):
            int8.measured(path, onnx_files.read(path), model, dataset, cost, most)
        assert not path.exists()


def test_data_without_truth_or_training_images_is_refused(
    made: tuple[Any, Dataset, Path], tmp_path: Path
) -> None:
    model, dataset, full = made
    without = dataclasses.replace(dataset, splits={"val": dataset.splits["val"]})
    with pytest.raises(InputError, match="int8 needs training images"):
        int8.quantise(full, tmp_path / "small.onnx", model, without, max_loss=1)


def test_the_figure_in_fp32_is_that_of_evaluation(made: tuple[Any, Dataset, Path]) -> None:
    model, dataset, full = made
    artefact = onnx_files.read(full)
    held_out = int8._Inputs(artefact.metadata, model, dataset, dataset.splits["val"])
    found = held_out.headline(artefact)
    assert found == model.evaluate(split="val").metrics["accuracy"]
    assert held_out.worse(0.5, 0.75) == 0.25


def test_a_way_that_gives_no_number_is_not_chosen(
    made: tuple[Any, Dataset, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dataset, full = made

    class Read:
        def __init__(self, path: Path) -> None:
            self.path = path
            self.metadata: dict[str, Any] = {"size": None}

    def quantised(source: Path, path: Path, *rest: Any) -> None:
        path.write_text(path.stem)

    def headline(self: Any, artefact: Any, *, quick: bool = False) -> float:
        return float("nan") if quick and artefact.path.stem == "MinMax" else 0.5

    monkeypatch.setattr(int8.onnx_files, "read", Read)
    monkeypatch.setattr(int8, "_prepared", lambda source, path: ["layer"])
    monkeypatch.setattr(int8, "_quantised", quantised)
    monkeypatch.setattr(int8, "_described", lambda path, metadata: None)
    monkeypatch.setattr(int8._Inputs, "headline", headline)
    cost = int8.quantise(full, tmp_path / "small.onnx", model, dataset, max_loss=0)
    assert cost.method == (tmp_path / "small.onnx").read_text() == "Percentile"
    with pytest.raises(RunError, match="more than the -1 that"):
        int8.quantise(full, tmp_path / "small.onnx", model, dataset, max_loss=-1)


def test_a_lower_metric_is_better_where_the_task_says_so() -> None:
    inputs = SimpleNamespace(task=SimpleNamespace(lower_is_better=True))
    assert int8._Inputs.worse(inputs, 1.5, 1.0) == 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "answer", "field"),
    [
        ("classification", {"probabilities": np.float32([0.25, 0.75])}, "probabilities"),
        ("multilabel", {"probabilities": np.float32([0.25, 0.75])}, "probabilities"),
        ("segmentation", {"mask": np.zeros((2, 3), np.uint8)}, "mask"),
        ("boundaries", {"boundaries": np.ones((2, 3), np.float32)}, "soft"),
        ("flow", {"flow": np.ones((2, 3, 2), np.float32)}, "flow"),
    ],
)
def test_answers_become_predictions(task: str, answer: dict[str, Any], field: str) -> None:
    (given,) = answer.values()
    assert np.allclose(getattr(int8.prediction(task, answer), field), given)
