"""Every network of the package: is backpropagation's gradient that of finite differences?

    python benchmarks/gradcheck_all.py [NAME ...] [--width 8]

The graph is each network's own, its layers an eighth as wide (``--width 1``: as they are, which
takes hours), on small images. A network that cannot be narrowed, since its widths are no multiples
or are reckoned with elsewhere, is checked as it is. Printed is a row for each as it is done:
images, parameter tensors, derivatives, how many agree, are zero, were set aside at kinks, are
wrong; the largest relative error; seconds of the processor. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import nn

from vidi import models
from vidi.doctor.gradcheck import GradCheck, gradcheck_named

WIDE = 16
"""Fewer channels than that stay as they are: colours, classes, the two of a motion."""
FORM = "normalized_shape"
WIDTHS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels"),
    nn.ConvTranspose2d: ("in_channels", "out_channels"),
    nn.Linear: ("in_features", "out_features"),
    nn.BatchNorm2d: ("num_features",),
    nn.LayerNorm: (FORM,),
}
"""What the first arguments of a layer are, and are asked by later."""


@contextlib.contextmanager
def narrowed(factor: int) -> Iterator[None]:
    """Layers that are built in this context have 1/``factor`` of the channels they are told."""

    def narrow(width: int) -> int:
        return width // factor if width >= WIDE and width % factor == 0 else width

    def of(kind: type[nn.Module], names: tuple[str, ...]) -> Any:
        build: Callable[..., None] = kind.__init__

        def narrow_layer(self: nn.Module, *args: Any, **named: Any) -> None:
            told = args[: len(names)]
            build(self, *map(narrow, told), *args[len(names) :], **named)
            for name, width in zip(names, told, strict=True):
                if name != FORM:  # which the layer itself goes by
                    setattr(self, name, width)  # who asks builds more layers by that

        return mock.patch.object(kind, "__init__", narrow_layer)

    with contextlib.ExitStack() as patches:
        if factor > 1:
            for kind, names in WIDTHS.items():
                patches.enter_context(of(kind, names))
        yield


def checked(name: str, factor: int = 8, **options: Any) -> tuple[GradCheck, int]:
    """The check of the network, and by how much it was narrowed."""
    if factor > 1:
        with contextlib.suppress(Exception), narrowed(factor):
            return gradcheck_named(name, **options), factor
    return gradcheck_named(name, **options), 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=models.names())
    parser.add_argument("--width", type=int, default=8)
    told = parser.parse_args()
    print(
        f"{'network':<26}{'images':>12}{'1/width':>8}{'tensors':>8}{'probes':>7}{'equal':>7}"
        f"{'zero':>6}{'kinks':>6}{'wrong':>6}{'worst':>9}{'s':>7}"
    )
    rows = []
    for name in told.names:
        began = time.process_time()
        found, factor = checked(name, told.width)
        row = found.as_json() | {"narrowed": factor, "seconds": time.process_time() - began}
        rows.append(row)
        n, height, width = found.images
        print(
            f"{name:<26}{f'{n} · {height} × {width}':>12}{factor:>8}{row['tensors']:>8}"
            f"{row['probes']:>7}{row['equal']:>7}{row['zero']:>6}{row['crossing']:>6}"
            f"{row['wrong']:>6}{row['worst']:>9.1e}{row['seconds']:>7.1f}"
            f"{'' if found.passed else '  FAILS'}",
            flush=True,
        )
    passed = sum(row["passed"] for row in rows)
    print(f"{passed} of {len(rows)} pass, {sum(row['seconds'] for row in rows):.0f} s")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
