"""PyTorch's own format, .pt2: the graph that torch.export draws, and the weights.

Reading one needs torch alone, none of our code; nothing in it is unpickled.
"""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vidi.errors import InputError
from vidi.types import Array

NETWORK = "network."
"""What the names of a network's tensors begin with, in the whole function."""
PREPARATION = ("image_mean", "image_scale")
"""What images are normalised with, in the whole function."""
_METADATA = "vidi.json"


def traced(function: nn.Module, example: Mapping[str, Tensor]) -> ExportedProgram:
    """The function's graph, for the sizes that its ``inputs`` say.

    Raises torch's own errors where that cannot be drawn.
    """
    inputs: dict[str, Any] = getattr(function, "inputs")  # noqa: B009
    shapes = {
        name: {i: Dim.DYNAMIC for i, side in enumerate(sides) if isinstance(side, str)}
        for name, sides in inputs.items()
    }
    with torch.no_grad(), unwarned():
        program = torch.export.export(
            function,
            (),
            dict(example),
            dynamic_shapes=shapes,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    # What torch supposed about sides, mostly about how numbers lie in memory, refuses sizes that
    # are fine. That others than the example's are answered right is seen on real images.
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    for side, ends in program.range_constraints.items():
        if ends.lower > 1:  # one cell in the network's coarsest map is fine
            program.range_constraints[side] = type(ends)(1, ends.upper)
    return program


def lacking(error: BaseException | None) -> bool:
    """Whether it was memory or room on the disk that ran out, which says nothing of the network.
    torch and its exporter tell that in errors of their own, too."""
    while error is not None:
        if isinstance(error, OSError | MemoryError):
            return True
        if any(part in str(error) for part in ("DefaultCPUAllocator", "PytorchStreamWriter")):
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Without the warning that torchvision's suppression of boxes sets off where it is drawn: it
    names the number of boxes, which nobody knows, in an older way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*create_unbacked_symint", FutureWarning)
        yield


def used(program: ExportedProgram) -> set[str]:
    """The names, in the network's own state, of the tensors that the graph computes with."""
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    inputs = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    return {
        name.removeprefix(NETWORK)
        for at, name in stored.items()
        if at in inputs and name.startswith(NETWORK)
    }


def write(
    function: nn.Module, example: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]
) -> set[str]:
    """Write the function as ``path`` (.pt2). Gives :func:`used`."""
    program = traced(function, example)
    names = used(program)
    program._example_inputs = None  # nobody needs them, and they would be pickled
    torch.export.save(program, path, extra_files={_METADATA: json.dumps(metadata)})
    return names


def read(path: Path) -> Artefact:
    """A .pt2 file that :func:`write` made.

    Raises :class:`InputError` where it is none, or holds what would have to be unpickled.
    """
    import torchvision  # noqa: F401  # whose operators a graph may use

    _check(path)
    extra: dict[str, Any] = {_METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    return Artefact(path, json.loads(extra[_METADATA]), program)


@dataclass
class Artefact:
    """A file that was read: ``metadata``, the stored tensors, and what it answers."""

    path: Path
    metadata: dict[str, Any]
    program: ExportedProgram

    def tensors(self) -> dict[str, Array]:
        """The network's, by the names that it has for them, and those of :data:`PREPARATION`."""
        # Buffers that the network does not save lie among the constants.
        held = {**self.program.constants, **self.program.state_dict}
        found = {name: held[NETWORK + name].detach().numpy() for name in used(self.program)}
        return found | {k: held[k].numpy() for k in PREPARATION if k in held}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What it answers, by name. ``inputs``: see the metadata."""
        given = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in inputs.items()}
        with torch.inference_mode():
            found = self._module(**given)
        return {name: tensor.numpy() for name, tensor in found.items()}

    @functools.cached_property
    def _module(self) -> nn.Module:
        module: nn.Module = self.program.module()
        return module


def _check(path: Path) -> None:
    """InputError unless it is an archive of ours, of which torch unpickles and runs nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            configs = [json.loads(archive.read(n)) for n in names if n.endswith("_config.json")]
            samples = [archive.getinfo(n).file_size for n in names if "/sample_inputs/" in n]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no whole .pt2 file ({error}).") from error
    if not any(name.endswith(f"/extra/{_METADATA}") for name in names):
        raise InputError(f"{path} was not written by `vidi export`: it holds no {_METADATA}.")
    entries = [e for config in configs for e in config.get("config", {}).values()]
    plain = all(
        not e["use_pickle"] and e["path_name"].startswith(("weight_", "tensor_")) for e in entries
    )
    # Of older archives, weights in one pickle; compiled code; a second file under a name.
    odd = any(
        "/aotinductor/" in n or n.endswith(("weights/model.pt", "constants/model.pt"))
        for n in names
    )
    if not plain or any(samples) or odd or len(set(names)) < len(names):
        raise InputError(
            f"{path} holds more than tensors and a graph, which could run code when it is read. "
            "Export the run anew."
        )
