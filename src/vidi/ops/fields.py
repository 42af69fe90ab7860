"""Receptive fields of maps in between: of how many input pixels a pixel of a map is made.

From the operations themselves, as they run (on the meta device, too, where nothing is computed):
through a kernel of k cells that are j input pixels apart a field grows by (k - 1) j, and a stride
multiplies j (Araujo et al. 2019, "Computing receptive fields of convolutional neural networks",
Distill, eq. 2). Where branches meet, the larger counts. Padding does not: near the border a part of
the field lies outside the image. :mod:`vidi.ops.receptive` measures what a whole network sees,
whatever it is made of; here each map has an answer, if only operations led to it that are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten


class Field(NamedTuple):
    side: float
    """Of the square of input pixels; infinite for the whole image."""
    jump: float
    """Input pixels from one cell of the map to the next."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, follows maps [B, C, h, w] from ``images`` on.

    What comes of an operation that is not known (attention, pooling of regions, a map turned on its
    side) has no field.
    """

    def __init__(self, *images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fields: Any = WeakTensorKeyDictionary()
        for image in images:
            self.fields[image] = Field(1, 1)

    def of(self, tensor: Tensor) -> float | None:
        """Side of the field in pixels, infinite for the whole image; None where there is none."""
        found: Field | None = self.fields.get(tensor)
        return None if found is None else found.side

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, which takes seconds, to shield this from it.
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, Tensor) and one.ndim == 4:
                found = self._after(function.overloadpacket, args, one)
                if found is not None:
                    self.fields[one] = found
                else:
                    self.fields.pop(one, None)
        return out

    def _after(self, operation: Any, args: Any, out: Tensor) -> Field | None:
        if operation in LIKE_CONVOLUTION:
            field = self.fields.get(args[0])
            return None if field is None else _kernel(operation, args, field)
        maps = [one for one in _tensors(args) if one.ndim == 4]
        sides = {tuple(one.shape[2:]) for one in maps if one.shape[2:] != (1, 1)}
        found = [self.fields.get(one) for one in maps]
        if not found or None in found or operation in TURNING:
            return None
        if len(sides) > 1 and operation is not aten.cat:
            return None
        before = maps[0].shape
        if operation in (aten.mean, aten.amax, aten.sum):
            axes = {int(axis) % 4 for axis in args[1]}
            return Field(math.inf, found[0].jump) if axes & {2, 3} else found[0]
        if operation in (aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d):
            return _adaptive(found[0], before, out.shape)
        if operation in ENLARGING:
            corners = operation is aten.upsample_bilinear2d and args[2] and before[2] > 1
            factor = (out.shape[2] - corners) / (before[2] - corners)
            reach = found[0].jump if operation is aten.upsample_bilinear2d else 0
            return Field(found[0].side + reach, found[0].jump / factor)
        if operation is aten.slice and len(args) > 4 and args[1] % 4 in (2, 3):
            # The two axes come one after the other: the first does it.
            factor = args[4] if args[1] % 4 == 2 else 1
            return Field(found[0].side, found[0].jump * factor)
        kept = out.shape[2:] == before[2:] or not sides or tuple(out.shape[2:]) in sides
        if not kept and operation not in CUTTING:
            return None
        return Field(max(f.side for f in found), max(f.jump for f in found))


POOLS = (aten.max_pool2d_with_indices, aten.avg_pool2d, aten.max_pool2d)
LIKE_CONVOLUTION = (aten.convolution, *POOLS)
ENLARGING = (
    aten.upsample_bilinear2d,
    aten.upsample_nearest2d,
    aten._upsample_nearest_exact2d,
)
CUTTING = (
    aten.slice,
    aten.cat,
    aten.constant_pad_nd,
    aten.reflection_pad2d,
    aten.replication_pad2d,
)
TURNING = (aten.permute, aten.transpose, aten.view, aten._unsafe_view, aten.bmm, aten.matmul)


def _kernel(operation: Any, args: Any, field: Field) -> Field:
    if operation in POOLS:
        kernel = _pair(args[1])
        given = args[2] if len(args) > 2 else ()
        stride = _pair(given) if given else kernel
        max_ = operation is not aten.avg_pool2d
        dilation = _pair(args[4]) if max_ and len(args) > 4 else 1
        return _through(field, kernel, stride, dilation)
    _, weight, _, strides, _, dilations, transposed = args[:7]
    kernel = int(max(weight.shape[2:]))
    stride, dilation = _pair(strides), _pair(dilations)
    if transposed:
        # Each output is made of every stride-th cell of the kernel.
        seen = -(-kernel // stride)
        return Field(field.side + (seen - 1) * field.jump, field.jump / stride)
    return _through(field, kernel, stride, dilation)


def _through(field: Field, kernel: int, stride: int, dilation: int) -> Field:
    return Field(field.side + dilation * (kernel - 1) * field.jump, field.jump * stride)


def _adaptive(field: Field, before: Sequence[int], after: Sequence[int]) -> Field:
    if tuple(after[2:]) == (1, 1):
        return Field(math.inf, field.jump)
    size, cells = before[2], after[2]
    # Bins are whole cells; where they do not divide the map, the widest has one more.
    widest = max(-(-(i + 1) * size // cells) - i * size // cells for i in range(cells))
    return Field(field.side + (widest - 1) * field.jump, field.jump * size / cells)


def _pair(value: Any) -> int:
    return int(value if isinstance(value, int) else max(value))


def _tensors(args: Any) -> Iterator[Tensor]:
    for one in args:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, (tuple, list)):
            yield from _tensors(one)
