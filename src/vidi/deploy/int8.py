"""Whole numbers of 8 bits instead of floating point, and what that costs.

Convolutions and fully connected layers compute in int8, each with its own scale, and for weights
one per output channel; all else, the image's preparation and the decoding of outputs with it, stays
as it is. What range a layer's input has is seen on training images (Jacob et al. 2018,
"Quantization and training of neural networks for efficient integer-arithmetic-only inference",
section 2; without the training). ONNX Runtime's own tool does it, from an ONNX file that was found
to answer as the run does.

A range may be all that was seen, or all but the rarest values: then the others are told apart more
finely. Which loses less differs between networks, so both are made and measured.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vidi import tasks
from vidi.data import geometry
from vidi.data.dataset import Dataset
from vidi.data.loader import spread
from vidi.deploy import detection, libraries, onnx_files, parity
from vidi.engine.prepare import make_task
from vidi.errors import InputError, RunError
from vidi.models import DENSE
from vidi.types import Array, Detections, Sample

CALIBRATION = 200
"""Training images that the ranges are seen on, at most."""
COMPARED = 64
"""Of those, as many decide between the ways of settling ranges."""
METHODS = {"MinMax": "all that was seen", "Percentile": "all but one value in 100,000"}
"""ONNX Runtime's names of the ways, and what they mean. Its third, by entropy, takes minutes more
for a deep network."""
PERCENTILE = 99.999
LAYERS = ("Conv", "Gemm", "MatMul")
MEAN = "image_mean"
"""The name of what is subtracted from images (:class:`vidi.deploy.function.Function`)."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Int8:
    """What int8 costs: the ``metric`` of ``images`` of the ``split``, in ``fp32`` and in ``int8``,
    both through the exported file, and ``loss``, how much worse that is. ``method``: how ranges
    were settled, on ``calibrated`` training images. ``layers``: as many compute in int8."""

    metric: str
    split: str
    images: int
    fp32: float
    int8: float
    loss: float
    method: str
    calibrated: int
    layers: int

    @property
    def sentence(self) -> str:
        return (
            f"int8: {self.metric} {self.int8:.4f}, and {self.fp32:.4f} in fp32, on {self.images:,} "
            f"samples of the split {self.split}; {self.layers} layers, whose ranges were seen on "
            f"{self.calibrated:,} training samples ({METHODS[self.method]})"
        )


def quantise(
    source: Path,
    path: Path,
    reference: Any,
    dataset: Dataset,
    *,
    max_loss: float,
    say: Say = lambda note: None,
) -> Int8:
    """Write the ONNX file ``source``, which was found to answer as the run does, in int8 as
    ``path``, with its metadata.

    ``reference``: a :class:`vidi.api.Model`. ``dataset``: has the run's training images, and what
    is true of those that it is measured on.

    Raises :class:`InputError` for data without these, and a network without such layers, and
    :class:`RunError` where more than ``max_loss`` of the headline metric is lost; then no file is
    left.
    """
    split = next((s for s in ("val", "test") if s in dataset.splits), None)
    if "train" not in dataset.splits or split is None:
        raise InputError(
            f"int8 needs training images, to see the ranges of values, and others with their "
            f"truth, to measure what it costs; {dataset.root} has the splits "
            f"{', '.join(dataset.splits)}. Leave --data out, or name data like the run's."
        )
    full = onnx_files.read(source)
    train = _Inputs(full.metadata, reference, dataset, dataset.splits["train"], CALIBRATION)
    held_out = _Inputs(full.metadata, reference, dataset, dataset.splits[split])
    best, chosen = None, ""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".int8") as folder:
        ready = Path(folder) / "ready.onnx"
        layers = _prepared(source, ready)
        for method in METHODS:
            say(f"int8: ranges of {len(train):,} training samples ({METHODS[method]})")
            made = Path(folder) / f"{method}.onnx"
            _quantised(ready, made, layers, train, method)
            _described(made, full.metadata)
            loss = train.few(COMPARED).headline(onnx_files.read(made), quick=True)
            if best is None or math.isnan(best) or train.worse(loss, best) < 0:
                best, chosen = loss, method
        (Path(folder) / f"{chosen}.onnx").rename(path)
    say(f"int8: measuring both on {len(held_out):,} samples of the split {split}")
    fp32 = held_out.headline(full)
    cost = Int8(
        metric=held_out.task.headline,
        split=split,
        images=len(held_out),
        fp32=fp32,
        int8=0.0,
        loss=0.0,
        method=chosen,
        calibrated=len(train),
        layers=len(layers),
    )
    return measured(path, onnx_files.read(path), reference, dataset, cost, max_loss)


def measured(
    path: Path, artefact: Any, reference: Any, dataset: Dataset, cost: Int8, max_loss: float
) -> Int8:
    """The cost of the int8 file ``path``, as ``artefact`` answers. Files of other formats that were
    made of it compute a little otherwise, so they are measured too.

    Raises :class:`RunError`, and removes the file, where it is above ``max_loss``.
    """
    held_out = _Inputs(artefact.metadata, reference, dataset, dataset.splits[cost.split])
    found = held_out.headline(artefact)
    loss = held_out.worse(found, cost.fp32)
    now = replace(cost, int8=found, loss=loss)
    if not loss <= max_loss:  # which NaN is not
        path.unlink()
        raise RunError(
            f"Nothing was written: in int8 {now.metric} is {now.int8:.4f}, and {now.fp32:.4f} in "
            f"fp32 ({now.images:,} samples of the split {now.split}), which is {loss:.4f} worse "
            f"and more than the {max_loss:g} that are allowed. Allow more with --max-loss, or "
            "export without --int8."
        )
    return now


class _Inputs:
    """Samples as an exported file takes them, with their truth, read when asked for.

    ``most``: as many of ``ids``, evenly spread.
    """

    def __init__(
        self,
        metadata: dict[str, Any],
        reference: Any,
        dataset: Dataset,
        ids: Array,
        most: int | None = None,
    ) -> None:
        recipe = reference.recipe
        self.task: Any = make_task(recipe.task, reference.classes, recipe, None)
        self.reference, self.dataset, self.metadata = reference, dataset, metadata
        self.size = None if metadata["size"] is None else tuple(metadata["size"])
        if self.size is not None and recipe.task in (*DENSE, "detection"):
            # What is said of each pixel is compared with the truth of each.
            same = [int(i) for i in ids if dataset.images.size(int(i)) == self.size]
            if not same:
                height, width = self.size
                raise InputError(
                    f"The file takes images of {width} × {height} pixels (width × height), and "
                    f"{dataset.root} has none of that size to measure int8 on. Choose another "
                    "--image-size."
                )
            ids = np.array(same, np.int64)
        self.ids = ids if most is None else spread(ids, most)
        self.regions: list[Array] = []
        if recipe.task == "detection":
            self.regions = detection.told(dataset, self.ids, recipe)

    def __len__(self) -> int:
        return len(self.ids)

    def few(self, count: int) -> _Inputs:
        return _Inputs(self.metadata, self.reference, self.dataset, self.ids, count)

    def __iter__(self) -> Iterator[tuple[Sample, dict[str, Array]]]:
        return ((self._sample(k), self.inputs(k)) for k in range(len(self)))

    def inputs(self, k: int) -> dict[str, Array]:
        """Of the sample at row ``k``, by name."""
        i = int(self.ids[k])
        found = {"image": self._fitted(self.dataset.images.load(i, None)[0])}
        if self.dataset.images2 is not None:
            found["image2"] = self._fitted(self.dataset.images2.load(i, None)[0])
        if self.regions:
            found["regions"] = self.regions[k]
        return found

    def headline(self, artefact: Any, *, quick: bool = False) -> float:
        """The task's first metric, of what the file answers. ``quick``: by the task's coarser
        meter, where it has one."""
        meter = getattr(self.task, "quick_meter", self.task.meter)() if quick else self.task.meter()
        for sample, inputs in self:
            (answer,) = parity.answered(artefact, [inputs])
            meter.update([prediction(self.reference.recipe.task, answer)], [sample])
        found: float = meter.compute()[self.task.headline]
        return found

    def worse(self, value: float, than: float) -> float:
        """By how much a headline metric is worse than another."""
        return value - than if getattr(self.task, "lower_is_better", False) else than - value

    def _sample(self, k: int) -> Sample:
        return self.dataset.sample(int(self.ids[k]))

    def _fitted(self, image: Array) -> Array:
        if self.size is not None and image.shape[:2] != self.size:
            image = geometry.resize(image, np.empty((*self.size, 3), np.uint8))
        return np.ascontiguousarray(image)


def prediction(task: str, answer: dict[str, Array]) -> Any:
    """What an exported file answers of one image, as the task's meter takes it."""
    if task == "detection":
        return Detections(xyxy=answer["boxes"], labels=answer["labels"], scores=answer["scores"])
    kind = tasks.find(task).Prediction
    (found,) = answer.values()
    if task == "classification":
        smallest = np.finfo(np.float64).tiny
        return kind(np.log(np.maximum(found.astype(np.float64), smallest)))
    return kind(found.astype(np.float64) if task == "multilabel" else found)


class _Reader:
    """Samples one after the other, as ONNX Runtime asks for them; each is forgotten before the
    next is read, or all that a network computes of 200 images would have to fit into memory."""

    def __init__(self, samples: _Inputs) -> None:
        self._samples = samples
        self.set_range(0, len(samples))

    def __len__(self) -> int:
        return len(self._samples)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rows = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, Array] | None:
        row = next(self._rows, None)
        if row is None:
            return None
        found = self._samples.inputs(row)
        return {k: x if k == "regions" else x[None] for k, x in found.items()}


def _prepared(source: Path, path: Path) -> list[str]:
    """Writes the graph with normalisations multiplied into convolutions. Gives the names of the
    network's layers that are to compute in int8.

    Raises :class:`InputError` where there are none.
    """
    libraries.onnxruntime()
    import onnx
    import onnxscript.optimizer
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _quiet():
        # What is the same for all images is computed first: normalisations need it to be known.
        onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), path)
        quant_pre_process(path, path, skip_onnx_shape=True, skip_symbolic_shape=True)
    proto = onnx.load(path)
    stored = {one.name for one in proto.graph.initializer}
    assert MEAN in stored, "what is before it prepares the image, and is not to be touched"
    before = _upstream(proto.graph, MEAN)
    layers = [
        node.name
        for node in proto.graph.node
        # Products of what was computed are none; nor are those that resize the image.
        if node.op_type in LAYERS and node.input[1] in stored and node.name not in before
    ]
    if not layers:
        raise InputError(
            "This network has no convolution and no fully connected layer that could compute in "
            "int8. Export it without --int8."
        )
    return layers


def _upstream(graph: Any, initializer: str) -> set[str]:
    """The nodes whose outputs reach those that use ``initializer``, by name."""
    makers = {out: node for node in graph.node for out in node.output}
    found: set[str] = set()
    waiting = [node for node in graph.node if initializer in node.input]
    while waiting:
        for name in waiting.pop().input:
            node = makers.get(name)
            if node is not None and node.name not in found:
                found.add(node.name)
                waiting.append(node)
    return found


def _quantised(
    source: Path, path: Path, layers: Sequence[str], samples: _Inputs, method: str
) -> None:
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    with _quiet():
        quantize_static(
            source,
            path,
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(LAYERS),
            nodes_to_quantize=list(layers),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
            extra_options={"CalibStridedMinMax": 1, "CalibPercentile": PERCENTILE},
        )


def _described(path: Path, metadata: dict[str, Any]) -> None:
    """Writes the metadata into the file, anew: the tools on the way drop it."""
    import onnx

    proto = onnx.load(path)
    del proto.metadata_props[:]
    told = {**metadata, "precision": "int8"}
    proto.metadata_props.add(key=onnx_files.METADATA, value=json.dumps(told))
    onnx.save(proto, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what ONNX Runtime's tool prints of its progress."""
    onnxruntime = libraries.onnxruntime()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(3)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        onnxruntime.set_default_logger_severity(2)
