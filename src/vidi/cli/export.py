"""Write a run as one file for other programs, checked against it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse
from vidi.cli.outputs import amount, free_name

if TYPE_CHECKING:
    from vidi.deploy.export import Exported


@dataclass(frozen=True)
class Export:
    """Write a run as one file, from the image's bytes to the answer.

    It is compared with the run on real images; if it answers otherwise, it goes.

    vidi export runs/cats --format onnx --out cats/model.onnx
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The folder that `vidi train` wrote."""
    format: Literal["onnx", "openvino", "torch"]
    """onnx, for most programs and languages; openvino, fastest on many processors; torch, PyTorch's .pt2."""  # noqa: E501
    out: Annotated[str | None, arg(metavar="FILE")] = None
    """The new file (.onnx, .xml, .pt2); MODEL.md, its card, is written beside it. none = model.onnx in a folder RUN-onnx, RUN-onnx-2 …"""  # noqa: E501
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """What the file is compared on: data like that of the training, or a folder of images. none = the run's own validation split."""  # noqa: E501
    images: Annotated[int, arg(metavar="N")] = 64
    """As many of its images are compared, evenly spread."""
    image_size: Annotated[tuple[int, int] | None, arg(metavar="HEIGHT WIDTH")] = None
    """The only size of image that the file takes. none = any, where the network can."""
    int8: FlagCreatePairsOff[bool] = False
    """Compute in whole numbers of 8 bits: smaller, often faster, and a little worse; by how much is measured. Not for torch."""  # noqa: E501
    max_loss: float = 0.01
    """What int8 may cost of the main metric (accuracy, mIoU, ODS, mAP; for flow, of EPE in pixels)."""  # noqa: E501
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout; all else goes to stderr."""


def main(arguments: Sequence[str]) -> int:
    told = parse(Export, arguments, prog="vidi export")
    out = _target(told)

    from vidi import api

    with contextlib.redirect_stdout(sys.stderr), _tidy_end():
        model = api.load(told.run, device="cpu")
        made = model.export(
            told.format,
            out,
            data=told.data,
            int8=told.int8,
            max_loss=told.max_loss,
            images=told.images,
            size=told.image_size,
            say=lambda note: print(f"vidi: {note}", file=sys.stderr),
        )
    if told.json:
        print(json.dumps(_object(told, made)))
        return 0
    size = sum(path.stat().st_size for path in made.files if path != made.card)
    print(f"{made.path}: {told.format}{' int8' if told.int8 else ''}, {amount(size)}B")
    for side in ("inputs", "outputs"):
        for name, of in made.metadata[side].items():
            sides = ", ".join(map(str, of["shape"]))
            print(f"  {side.removesuffix('s'):<7}{name}: {of['type']} [{sides}]")
    print(f"  {made.parity.sentence}")
    if made.int8 is not None:
        print(f"  {made.int8.sentence}")
    print(f"  {made.card}: how to call it, and what is known of it")
    return 0


@contextlib.contextmanager
def _tidy_end() -> Iterator[None]:
    """Told to end (SIGTERM), it ends as from Ctrl-C: what was begun is removed first."""
    if threading.current_thread() is not threading.main_thread():  # others cannot hear it
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _target(told: Export) -> Path:
    if told.out is not None:
        return Path(told.out).expanduser()
    from vidi.deploy.export import SUFFIXES

    name = f"{Path(told.run).expanduser().resolve().name}-{told.format}"
    return free_name(Path(), name + ("-int8" if told.int8 else ""), "") / (
        f"model{SUFFIXES[told.format]}"
    )


def _object(told: Export, made: Exported) -> dict[str, Any]:
    from vidi.engine.run import plain

    said = {
        "path": str(made.path),
        "files": [str(path) for path in made.files],
        "card": str(made.card),
        "format": told.format,
        "inputs": made.metadata["inputs"],
        "outputs": made.metadata["outputs"],
        "parity": dataclasses.asdict(made.parity),
        "int8": None if made.int8 is None else dataclasses.asdict(made.int8),
        "notes": made.metadata["notes"],
    }
    body: dict[str, Any] = plain(said)
    return body
