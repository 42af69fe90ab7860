"""OpenVINO's format, .xml and .bin: the fastest on many Intel and AMD processors.

It is made from the ONNX file, by the reader that the runtime itself has: the separate conversion
tool would report its use to its makers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidi.deploy import libraries
from vidi.deploy.torch_files import NETWORK, PREPARATION
from vidi.errors import InputError
from vidi.types import Array

_METADATA = "vidi"


def convert(source: Path, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write an ONNX file as ``path`` (.xml) and a .bin beside it; numbers keep all their digits."""
    openvino = libraries.openvino()
    model = libraries.openvino_core().read_model(source)
    _first_come_first(model)
    model.set_rt_info(json.dumps(metadata), _METADATA)
    openvino.save_model(model, path, compress_to_fp16=False)


def _first_come_first(model: Any) -> None:
    """Of equal numbers the first is to come first where a graph sorts, as ONNX has it. Reading an
    ONNX file leaves that open."""
    from openvino import opset11

    for node in model.get_ops():
        if node.get_type_name() == "TopK":
            given = node.get_attributes()
            stable = opset11.topk(
                *node.input_values(),
                given["axis"],
                given["mode"],
                "value",
                given["index_element_type"],
                stable=True,
            )
            for before, after in zip(node.outputs(), stable.outputs(), strict=True):
                before.replace(after)


def read(path: Path) -> Artefact:
    """An .xml file that :func:`convert` made. Raises :class:`InputError` where it is none."""
    try:
        model = libraries.openvino_core().read_model(path)
    except RuntimeError as error:
        raise InputError(
            f"{path} is no whole model of OpenVINO, or its .bin file is missing ({error})."
        ) from error
    if not model.has_rt_info(_METADATA):
        raise InputError(f"{path} was not written by `vidi export`: it says nothing of itself.")
    return Artefact(path, json.loads(model.get_rt_info(_METADATA).astype(str)), model)


@dataclass
class Artefact:
    """A file that was read: ``metadata``, the stored tensors, and what it answers."""

    path: Path
    metadata: dict[str, Any]
    model: Any

    def tensors(self) -> dict[str, Array]:
        """The network's, by the names that it has for them, and what images are normalised with:
        the reader and the writer leave them as they are."""
        constants = [op for op in self.model.get_ops() if op.get_type_name() == "Constant"]
        return {
            op.get_friendly_name().removeprefix(NETWORK): np.array(op.data)
            for op in constants
            if op.get_friendly_name().startswith(NETWORK) or op.get_friendly_name() in PREPARATION
        }

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What it answers, by name. ``inputs``: see the metadata."""
        found = self._compiled({name: np.ascontiguousarray(x) for name, x in inputs.items()})
        return {out.get_any_name(): np.array(found[out]) for out in self._compiled.outputs}

    @functools.cached_property
    def _compiled(self) -> Any:
        # In fp32, as it was trained; left to itself it takes bf16 where the processor has it.
        told = {"INFERENCE_PRECISION_HINT": "f32"}
        return libraries.openvino_core().compile_model(self.model, "CPU", told)
