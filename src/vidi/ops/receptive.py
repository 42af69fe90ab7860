"""How far a dense network sees, and on which grid it moves: found by running it, in a second.

A strip, long and narrow, goes through the network with a band of NaN across its middle. NaN passes
through every sum, product, maximum and activation, whatever the weights, so the outputs that are
NaN are those that see the band. (The gradient's support would miss what a ReLU or a weight of zero
hides, and a sum over modules what is written as a function.) Meanwhile every map in between is
noted: how fast it grows with the image gives the stride, its bytes the memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Dense = Callable[[Tensor], Tensor]
"""Normalised images [1, C, h, w] of any size to maps [1, K, h, w]."""

NARROW = (32, 64, 128, 256)
"""Sides of a strip that are tried, until the network takes one."""
GROWTH = (480, 960, 1920)
"""By how much strips are longer than narrow, until the ends see nothing of the middle: divisible by
2⁵, 3 and 5, as strides are."""
BAND = 32
"""Rows of NaN: whole steps of every stride up to 32 that is a power of two."""
LARGEST_STRIDE = 512
SHIFT = 128
"""Pixels, at least, by which a part lies within the image that it is compared with."""
ALIKE = 0.03
"""Root mean square difference, in units of the maps' own deviation: bf16's noise is below."""


@dataclass(frozen=True, slots=True)
class Field:
    """What an output pixel depends on, and what a pixel costs."""

    stride: int
    """An image that is shifted by so many pixels gives maps that are shifted so."""
    reach: tuple[int, int] | None
    """Let all be unknown beyond a straight cut at a multiple of the stride: outputs are right that
    lie so many pixels or more from it, vertically and horizontally, on its worse side. None: every
    output sees the whole image, or about 900 pixels each way at least."""
    costs: tuple[tuple[float, float, float], ...]
    """(a, b, c): at some step, a h w + b (h + w) + c bytes are alive of the input and the maps in
    between; b and c are there where the network itself enlarges the image. What a convolution
    needs beside its maps is not in it."""

    def memory(self, height: float, width: float) -> float:
        """Bytes of maps for an image of that size, at the worst step."""
        return max(a * height * width + b * (height + width) + c for a, b, c in self.costs)

    def width(self, height: float, memory: float) -> int:
        """The width of the largest image of that height in so many bytes; 0 if there is none."""
        bounds = [
            (memory - b * height - c) / (a * height + b)
            for a, b, c in self.costs
            if a * height + b > 0
        ]
        return max(0, int(min(bounds, default=1e9)))


_measured: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, torch.dtype], Field]] = (
    weakref.WeakKeyDictionary()
)


def measure(network: Dense, *, channels: int = 3, like: Tensor | None = None) -> Field:
    """The network's field, from four to eight runs on strips of 500 to 2,000 pixels' length.

    ``like``: a tensor of the input's type and device; the first parameter's where it is None. A
    module is measured once: its weights do not matter. What the network raises for any strip of up
    to 256 pixels' width passes through.
    """
    if like is None:
        first = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        like = torch.empty(0) if first is None else first
    if not isinstance(network, nn.Module):
        return _measure(network, channels, like)
    known = _measured.setdefault(network, {})
    key = (channels, like.dtype)
    if key not in known:
        known[key] = _measure(network, channels, like)
    return known[key]


def shifts_exactly(
    network: Dense, field: Field, size: tuple[int, int], *, channels: int = 3, like: Tensor
) -> bool:
    """Whether a part of an image gives that part of the whole image's maps, within the field.

    It does not where something depends on the image's size: global context, interpolation that
    aligns corners or that is told a size which is no multiple of the map's. ``size``: the image's,
    [H, W]; its remainder by the stride matters alone. Tried on noise, along both axes.
    """
    if field.reach is None:
        return False
    s = field.stride
    side = next((w for w in NARROW if w >= s), NARROW[-1])
    generator = torch.Generator().manual_seed(1)
    with evaluating(network):
        for axis, (reach, length) in enumerate(zip(field.reach, size, strict=True)):
            # A long piece is cut off at the start, a step at the end; the remainder stays, as it
            # does for tiles.
            ahead, rest = -(-(reach + s) // s) * s, length % s
            cut = max(2 * ahead, -(-SHIFT // s) * s)
            total = cut + 2 * ahead + 3 * s + rest
            shape = (1, channels, total, side) if axis == 0 else (1, channels, side, total)
            noise = torch.randn(shape, generator=generator).to(like.device, like.dtype)
            whole = network(noise).float()
            part = network(noise.narrow(axis + 2, cut, total - cut - s).contiguous()).float()
            expected = whole.narrow(axis + 2, cut + ahead, 2 * s)
            got = part.narrow(axis + 2, ahead, 2 * s)
            difference = (got - expected).square().mean((2, 3)).sqrt()
            spread = expected.std((2, 3)) + 1e-5 * expected.abs().amax((2, 3)) + 1e-9
            if not bool((difference <= ALIKE * spread).all()):
                return False
    return True


@contextmanager
def evaluating(network: Dense) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored."""
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _measure(network: Dense, channels: int, like: Tensor) -> Field:
    # cuDNN may convolve by Winograd's or Fourier's transform, which spread NaN beyond the kernel.
    with evaluating(network), torch.backends.cudnn.flags(enabled=False):
        side, small = _narrowest(network, channels, like)
        stride, reach = 1, None
        for growth in GROWTH:
            longest = side + growth
            band = slice(longest // 2 // BAND * BAND, longest // 2 // BAND * BAND + BAND)
            tall = _run(network, (longest, side), channels, like, rows=band)
            wide = _run(network, (side, longest), channels, like, columns=band)
            stride = _stride(small, tall, wide, growth)
            if BAND % stride:  # the band's ends must lie on the grid
                middle = longest // 2 // stride * stride
                band = slice(middle, middle + stride)
                tall = _run(network, (longest, side), channels, like, rows=band)
                wide = _run(network, (side, longest), channels, like, columns=band)
            vertical = _reach(tall.output.isnan().any(1).any(2)[0], band)
            horizontal = _reach(wide.output.isnan().any(1).any(1)[0], band)
            if vertical is not None and horizontal is not None:
                reach = (vertical, horizontal)
                break
        square = _run(network, (5 * side, 5 * side), channels, like)
    return Field(stride, reach, _costs(small, tall, square))


@dataclass(frozen=True, slots=True)
class _Trace:
    output: Tensor
    shapes: list[tuple[int, int]]
    """Of every map in between."""
    size: tuple[int, int]
    alive: list[int]
    """Bytes of the input and of maps after each step."""


def _narrowest(network: Dense, channels: int, like: Tensor) -> tuple[int, _Trace]:
    """The first side of a strip that the network takes."""
    for side in NARROW:
        try:
            return side, _run(network, (side, side), channels, like)
        except Exception:  # whatever a network says of an image that is too small
            if side == NARROW[-1]:
                raise
    raise AssertionError


def _run(
    network: Dense,
    size: tuple[int, int],
    channels: int,
    like: Tensor,
    *,
    rows: slice | None = None,
    columns: slice | None = None,
) -> _Trace:
    noise = torch.randn((1, channels, *size), generator=torch.Generator().manual_seed(0))
    image = noise.to(like.device, like.dtype)
    if rows is not None:
        image[:, :, rows] = torch.nan
    if columns is not None:
        image[..., columns] = torch.nan
    with _Watch() as watch:
        output = network(image)
    if output.shape[-2:] != image.shape[-2:]:
        shown = " × ".join(map(str, output.shape[-2:]))
        raise ValueError(
            f"The network gives a map of {shown} for an image of {size[0]} × {size[1]} pixels; "
            "tiles need one of the image's size."
        )
    alive = [image.nbytes + now for now in watch.course]
    return _Trace(output, watch.shapes, size, alive)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the size of every map that is computed, and the bytes alive after each step."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[int, int]] = []
        self.alive: dict[int, int] = {}
        self.now = 0
        self.course: list[int] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        self.course.append(self.now)
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, which takes seconds, to shield this from it.
        return False

    def _note(self, tensor: Tensor) -> None:
        if tensor.ndim == 4:
            self.shapes.append((tensor.shape[2], tensor.shape[3]))
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def _stride(small: _Trace, tall: _Trace, wide: _Trace, growth: int) -> int:
    """The least shift that is a whole number of cells on every map in between."""
    if not len(small.shapes) == len(tall.shapes) == len(wide.shapes):
        return BAND  # its course depends on the size; `shifts_exactly` will tell
    period = 1
    for (h, w), (long, _), (_, broad) in zip(small.shapes, tall.shapes, wide.shapes, strict=True):
        for grown in (long - h, broad - w):
            # A map that does not grow (weights, global pools) moves with any shift.
            period = lcm(period, Fraction(grown, growth).denominator)
    return period if period <= LARGEST_STRIDE else BAND


def _costs(*traces: _Trace) -> tuple[tuple[float, float, float], ...]:
    """Each step's bytes as a function of height and width, through three sizes; those steps that
    are the worst at some size."""
    if len({len(trace.alive) for trace in traces}) > 1:
        # Its course depends on the size: take the largest image for typical.
        (height, width), most = traces[-1].size, max(traces[-1].alive)
        return ((most / (height * width), 0.0, 0.0),)
    terms = np.array([[h * w, h + w, 1] for h, w in (trace.size for trace in traces)])
    steps = np.linalg.solve(terms, np.array([trace.alive for trace in traces])).T
    sides = 2.0 ** np.arange(4, 15)
    worst = (steps @ np.stack([sides**2, 2 * sides, np.ones_like(sides)])).argmax(0)
    return tuple(tuple(steps[i].tolist()) for i in sorted(set(worst.tolist())))


def _reach(blind: Tensor, band: slice) -> int | None:
    """How far beyond the band outputs see it, or None where that is to the strip's end."""
    seen: list[int] = blind.nonzero().flatten().tolist()
    if not seen:
        return 0
    if seen[0] == 0 or seen[-1] == len(blind) - 1:
        return None
    return max(0, int(band.start) - seen[0], seen[-1] + 1 - int(band.stop))
