"""ONNX: a graph that many programs and languages run. Here ONNX Runtime does.

Weights stay as they were trained, under their own names: nothing is folded or fused when the file
is written. What runs it does that for itself, when it is loaded.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from vidi.deploy import libraries
from vidi.deploy.torch_files import NETWORK, PREPARATION, traced, unwarned, used
from vidi.errors import InputError
from vidi.types import Array

OPSET = 20
METADATA = "vidi"
MOST = 2e9
"""Bytes of one such file, at most."""


def write(
    function: nn.Module, example: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]
) -> set[str]:
    """Write the function as ``path`` (.onnx). Gives :func:`vidi.deploy.torch_files.used`.

    Raises :class:`InputError` where onnx is not installed, or there are more weights than one file
    holds.
    """
    onnx = libraries.onnx()
    import torch
    import torchvision  # noqa: F401  # whose operators are translated
    from onnx import inliner

    stored = sum(t.nbytes for t in function.state_dict().values())
    if stored > MOST:
        raise InputError(
            f"An .onnx file holds 2 GB, and these weights are {stored / 1e9:.1f} GB. Use --format "
            "torch."
        )
    inputs: dict[str, Any] = getattr(function, "inputs")  # noqa: B009
    outputs: dict[str, Any] = getattr(function, "outputs")  # noqa: B009
    drawn = traced(function, example)
    with unwarned():
        program = torch.onnx.export(
            drawn,
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
            custom_translation_table={
                torch.ops.torchvision.roi_pool.default: _pooled(),
                torch.ops.aten.sort.stable: _sorted(),
            },
        )
    assert program is not None
    proto = inliner.inline_local_functions(program.model_proto)
    _tidy(proto, {**inputs, **outputs})
    proto.metadata_props.add(key=METADATA, value=json.dumps(metadata))
    onnx.checker.check_model(proto, full_check=False)
    onnx.save(proto, path)
    return used(drawn)


def read(path: Path) -> Artefact:
    """An .onnx file that :func:`write` made. Raises :class:`InputError` where it is none."""
    onnx = libraries.onnx()
    try:
        proto = onnx.load(path)
    except Exception as error:  # a parser fed with damaged bytes raises nearly anything
        raise InputError(f"{path} is no whole .onnx file ({error}).") from error
    found = {p.key: p.value for p in proto.metadata_props}
    if METADATA not in found:
        raise InputError(f"{path} was not written by `vidi export`: it says nothing of itself.")
    return Artefact(path, json.loads(found[METADATA]), proto)


@dataclass
class Artefact:
    """A file that was read: ``metadata``, the stored tensors, and what it answers."""

    path: Path
    metadata: dict[str, Any]
    proto: Any

    def tensors(self) -> dict[str, Array]:
        """The network's, by the names that it has for them, and what images are normalised with."""
        from onnx import numpy_helper

        return {
            one.name.removeprefix(NETWORK): numpy_helper.to_array(one)
            for one in self.proto.graph.initializer
            if one.name.startswith(NETWORK) or one.name in PREPARATION
        }

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What it answers, by name. ``inputs``: see the metadata."""
        names = [one.name for one in self._session.get_outputs()]
        given = {name: np.ascontiguousarray(x) for name, x in inputs.items()}
        return dict(zip(names, self._session.run(names, given), strict=True))

    @functools.cached_property
    def _session(self) -> Any:
        return session(self.path)


def session(path: Path, threads: int = 0) -> Any:
    """ONNX Runtime with that file, on the processor; with as many threads as it likes, unless
    ``threads`` says how many."""
    onnxruntime = libraries.onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _sorted() -> Any:
    """Stable sorting, which the exporter does not know, though all sorting in ONNX is stable."""
    from onnxscript import opset20

    op: Any = opset20

    def sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        count = op.Reshape(op.Gather(op.Shape(x), dim, axis=0), op.Constant(value_ints=[1]))
        return op.TopK(x, count, axis=dim, largest=descending, sorted=True)

    return sort


def _pooled() -> Any:
    """ONNX's own operator for torchvision's pooling of regions, which torch does not translate. Of
    the two outputs there nobody uses the second, where the maxima lie."""
    from onnxscript import opset20

    def roi_pool(maps: Any, regions: Any, scale: float, rows: int, columns: int) -> Any:
        found = opset20.MaxRoiPool(maps, regions, pooled_shape=[rows, columns], spatial_scale=scale)
        return found, found

    return roi_pool


def _tidy(proto: Any, sides: Mapping[str, Any]) -> None:
    """Sides get the names that the function gives them; where the code lay, and shapes between
    inputs and outputs, which anyone can find out again, go."""
    for value in (*proto.graph.input, *proto.graph.output):
        for given, dim in zip(sides[value.name], value.type.tensor_type.shape.dim, strict=True):
            if isinstance(given, str):
                dim.dim_param = given
    proto.graph.ClearField("value_info")
    proto.graph.ClearField("metadata_props")
    proto.graph.ClearField("doc_string")
    proto.ClearField("metadata_props")
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
