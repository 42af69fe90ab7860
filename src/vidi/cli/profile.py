"""Show layer by layer what a network costs, sees and keeps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse
from vidi.cli.outputs import amount
from vidi.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from vidi.doctor.gradcheck import GradCheck
    from vidi.models.profile import Layer, Profile

ROWS = 40
"""Without --depth, modules are looked into as long as there are no more rows."""


@dataclass(frozen=True)
class Profiled:
    """Show a network layer by layer: counts, receptive field, memory, time.

    vidi profile resnet18 --image-size 64

    vidi profile my_package.nets:tiny --classes 5 --gradcheck
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A name that `vidi list models` shows, timm:NAME, your own package.module:function, or a run's
    folder."""
    image_size: Annotated[int | None, arg(metavar="PX")] = None
    """Side of the square images. none = the network's usual one, or the run's."""
    batch_size: Annotated[int, arg(metavar="N")] = 1
    """Images in the batch that is timed, and whose memory is told."""
    classes: Annotated[int | None, arg(metavar="K")] = None
    """Build it for so many classes. none = as many as it has by default."""
    regions: Annotated[int | None, arg(metavar="R")] = None
    """Detection: regions that it is asked about in each image. none = as in a prediction."""
    depth: int | Literal["all"] | None = None
    """Take together what lies in one module with a name of so many words. none = as deep as fits
    into 40 rows."""
    time: bool = True
    """Run it. Without, all but times is there in a second, for a network of any size."""
    device: str = "cpu"
    """Where it is timed: cpu, cuda, mps."""
    gradcheck: FlagCreatePairsOff[bool] = False
    """Also compare its gradient with finite differences, in float64 on small images: each parameter
    tensor in a random direction and eight entries. Minutes for a large network. The exit code is 1
    if they disagree."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout."""


def main(arguments: Sequence[str]) -> int:
    told = parse(Profiled, arguments, prog="vidi profile")
    for name, value in dataclasses.asdict(told).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; at least 1 is needed.")
    is_run = (Path(told.model).expanduser() / "recipe.json").is_file()
    if is_run and told.classes is not None:
        raise InputError("A run's network has its classes already. Leave --classes out.")

    from vidi.engine import device
    from vidi.models.profile import profile

    with contextlib.redirect_stdout(sys.stderr):
        network, size = _network(told, is_run)
        if told.regions is not None and getattr(network, "task", "") != "detection":
            raise InputError(f"--regions is for detection; {told.model} is not.")
        where = device.choose(told.device)
        options: dict[str, Any] = {
            "batch": told.batch_size,
            "regions": told.regions,
            "device": where,
            "name": told.model,
        }
        found = profile(network, size, timed=False, **options)
        if told.time:
            with device.threads_for(found.macs * found.batch):  # as training does
                found = profile(network, size, **options)
    if not told.json:
        _show(found, told)
    checked = None
    if told.gradcheck:
        with contextlib.redirect_stdout(sys.stderr):
            checked = _checked(told, is_run)
    if told.json:
        print(json.dumps(_object(found) | _object_of(checked)))
    elif checked is not None:
        print("\n" + "\n".join(checked.lines()))
    return 0 if checked is None or checked.passed else 1


def _network(told: Profiled, is_run: bool) -> tuple[nn.Module, int]:
    from vidi import models
    from vidi.models.profile import named, takes

    if is_run:
        from vidi import api

        model = api.load(told.model, device="cpu")
        size = model.recipe.image_size
        assert size != "auto"
        return model.network, told.image_size or size
    if told.classes is not None and not takes(models.find(told.model), "num_classes"):
        raise InputError(
            f"The network {told.model} takes no number of classes. Leave --classes out."
        )
    # Heads that exist only in training are left out, as published counts do.
    options = {"aux_logits": False}
    return named(told.model, classes=told.classes, image_size=told.image_size, **options)


def _checked(told: Profiled, is_run: bool) -> GradCheck:
    from vidi.doctor.gradcheck import CLASSES, gradcheck, gradcheck_named

    with _saying() as say:
        if is_run:
            from vidi import api

            return gradcheck(api.reopen(told.model, device="cpu"), say=say)
        return gradcheck_named(told.model, classes=told.classes or CLASSES, say=say)


@contextlib.contextmanager
def _saying() -> Iterator[Callable[[str], None] | None]:
    """On a terminal, which tensor is being checked."""
    if not sys.stderr.isatty():
        yield None
        return
    yield lambda name: print(f"\r\033[Kchecking {name}", end="", file=sys.stderr, flush=True)
    print("\r\033[K", end="", file=sys.stderr)


def _show(found: Profile, told: Profiled) -> None:
    rows = found.rows(_depth(found, told.depth))
    lines = list(_table(rows, found))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines:
        print(line if width is None or len(line) <= width else line[: width - 1] + "…")
    print()
    for line in _totals(found):
        print(line)


def _depth(found: Profile, asked: int | Literal["all"] | None) -> int:
    if asked == "all":
        return found.depth
    if asked is not None:
        return asked
    fitting = [d for d in range(1, found.depth + 1) if len(found.rows(d)) <= ROWS]
    return max(fitting, default=1)


def _table(rows: Sequence[Layer], found: Profile) -> Iterator[str]:
    timed = found.forward is not None
    head = ["layer", "kind", "output", "parameters", "MACs", "sees", "keeps"]
    head += ["forward", "backward", "share"] if timed else []
    seconds = sum((x.forward or 0.0) + (x.backward or 0.0) for x in found.layers)
    cells = [head]
    for row in rows:
        one = [
            row.name or "(between)",
            row.kind,
            "–" if row.output is None else " × ".join(map(str, row.output)),
            _or_dash(row.parameters, amount),
            _or_dash(row.macs, amount),
            _field(row.field),
            _or_dash(row.memory, _bytes),
        ]
        if timed:
            forward, backward = row.forward or 0.0, row.backward or 0.0
            one += [_ms(forward), _ms(backward), f"{(forward + backward) / seconds:.1%}"]
        cells.append(one)
    end = ["total", "", "", amount(found.parameters), amount(found.macs), "", _bytes(found.memory)]
    if timed:
        assert found.forward is not None
        assert found.backward is not None
        end += [_ms(found.forward), _ms(found.backward), ""]
    cells.append(end)
    widths = [max(len(line[k]) for line in cells) for k in range(len(head))]
    for line in cells:
        # Words on the left, numbers on the right.
        yield "  ".join(
            f"{cell:<{w}}" if k < 3 else f"{cell:>{w}}"
            for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()


def _totals(found: Profile) -> Iterator[str]:
    side = found.image_size
    about = f", {found.regions:,} regions each" if found.regions is not None else ""
    images = "1 image" if found.batch == 1 else f"{found.batch} images"
    yield f"{found.network}, from {found.source}"
    yield (
        f"{found.parameters:,} parameters, {found.macs:,} multiply-adds to predict an image of "
        f"{side} × {side} pixels{about}"
    )
    yield (
        f"Training on {images} keeps {_bytes(found.memory)} for the backward pass, beside "
        f"{_bytes(4 * found.parameters)} of weights and as much of gradients."
    )
    if found.ratio is not None:
        assert found.forward is not None
        assert found.backward is not None
        threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
        where = f"{found.device} with {threads}" if found.device == "cpu" else found.device
        yield (
            f"On {where} forward takes {_ms(found.forward)} and backward {_ms(found.backward)}, "
            f"{found.ratio:.2f} times as long."
        )
        yield (
            "About 2 is to be expected: backward has two products for each of forward's, for the "
            "input's gradient and the weights'; of the first layer only the latter."
        )
    elif found.untimed is not None:
        yield found.untimed


def _object(found: Profile) -> dict[str, Any]:
    return {
        "network": found.network,
        "source": found.source,
        "image_size": found.image_size,
        "batch_size": found.batch,
        "regions": found.regions,
        "device": found.device,
        "threads": found.threads,
        "parameters": found.parameters,
        "macs": found.macs,
        "memory": found.memory,
        "forward": found.forward,
        "backward": found.backward,
        "ratio": found.ratio,
        "untimed": found.untimed,
        "layers": [
            {
                "name": row.name,
                "kind": row.kind,
                "output": None if row.output is None else list(row.output),
                "field": _field(row.field) if row.field == math.inf else row.field,
                "parameters": row.parameters,
                "macs": row.macs,
                "memory": row.memory,
                "forward": row.forward,
                "backward": row.backward,
            }
            for row in found.rows()
        ],
    }


def _object_of(checked: GradCheck | None) -> dict[str, Any]:
    return {} if checked is None else {"gradcheck": checked.as_json()}


def _or_dash(value: int, said: Callable[[int], str]) -> str:
    return said(value) if value else "–"


def _field(side: float | None) -> str:
    if side is None:
        return "–"
    return "whole" if side == math.inf else f"{side:g} px"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            value = count / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} ms"
