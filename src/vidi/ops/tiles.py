"""Large images through a dense network, tile by tile: the whole image's result in bounded memory.

A tile starts at a multiple of the network's stride, so that its grid is the whole image's, and is
larger than the part that is kept of it, by what the network sees (:mod:`vidi.ops.receptive`). At
the image's border there is nothing to overlap with, and the network pads as it does for the whole
image. Each tile is reduced at once, to labels for instance; the K maps of the whole image and its
floating-point pixels never exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidi.errors import InputError
from vidi.ops import receptive
from vidi.ops.receptive import Dense, Field
from vidi.types import Array, Notes

MEMORY = 7e8
"""Bytes of maps for one tile. A convolution may take as much again for its own layout of them."""
SMALL = 2**18
"""Pixels of an image that is never cut: its memory is not worth a measurement."""
SHAPES = (1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.4, 1.7, 2.0)
"""Heights by widths of tiles that are tried."""
LARGEST_SHARE = 0.3
"""Of a tile's side, overlap on each side: pixels are then computed about six times at most."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and columns of the image: what the network sees, and what is kept of it."""

    seen: tuple[slice, slice]
    kept: tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Plan:
    tiles: list[Tile]
    overlap: tuple[int, int]
    """Pixels that a tile sees beyond what is kept, at least, vertically and horizontally."""
    complete: bool
    """Whether that is all that the network sees."""

    @property
    def computed(self) -> int:
        """Pixels that go through the network, overlaps counted each time."""
        spans = [[s.stop - s.start for s in tile.seen] for tile in self.tiles]
        return sum(height * width for height, width in spans)


def predict_tiled(
    network: Dense,
    image: Any,
    normalise: Callable[[Any], Tensor],
    *,
    tile: int | None = None,
    field: Field | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    notes: Notes | None = None,
) -> Array:
    """An image's label map, uint8 [H, W] (int32 for more than 255 classes), in bounded memory.

    ``network``: a module, or a function that calls one (and averages over mirrors, say): normalised
    [1, C, h, w] to logits [1, K, h, w]. ``image``: uint8 [H, W, C], or whatever ``normalise`` makes
    such a tensor of, piece by piece. ``tile``: the largest side of a piece; None chooses it by what
    a piece needs in memory, and leaves the image whole if it fits. ``field``: what
    :func:`vidi.ops.receptive.measure` found; None measures. ``reduce``: makes a tensor [..., h, w]
    of logits [1, K, h, w], in place of the labels. ``notes`` gets a sentence where the result may
    differ from the whole image's.

    Equal to the whole image's result, up to floating-point noise, if the network moves with its
    image and the overlap covers what it sees. If it sees further than 0.3 of a tile's
    side, the overlap ends there. Labels near the seams may then differ: less than one would think,
    since a network's view fades long before its end; but where it sees the whole image (global
    pooling), it takes each tile for one, anywhere in it. Raises :class:`InputError` for a ``tile``
    that is too small for the network's stride.
    """
    reduce = reduce or labels
    height, width = image.shape[:2]
    whole = height * width <= SMALL if tile is None else max(height, width) <= tile
    with receptive.evaluating(network):
        if whole:
            return _array(reduce(network(normalise(image))))
        like = normalise(image[:1, :1])
        if field is None:
            field = receptive.measure(network, channels=like.shape[1], like=like)
        plan = lay(height, width, field, tile)
        if notes is not None and len(plan.tiles) > 1:
            exact = plan.complete and receptive.shifts_exactly(
                network, field, (height, width), channels=like.shape[1], like=like
            )
            notes += told(plan, field, exact=exact)
        out: Array | None = None
        for one in plan.tiles:
            logits = network(normalise(image[one.seen]))
            rows, columns = (
                slice(kept.start - seen.start, kept.stop - seen.start)
                for kept, seen in zip(one.kept, one.seen, strict=True)
            )
            part = _array(reduce(logits[:, :, rows, columns]))
            del logits  # or two tiles' maps are there at a time
            if out is None:
                out = np.empty((*part.shape[:-2], height, width), part.dtype)
            out[..., *one.kept] = part
    assert out is not None
    return out


@dataclass
class Tiled:
    """:func:`predict_tiled` for one image after another: what the network sees is measured once.

    ``notes``: what should be known of the results, each sentence once.
    """

    notes: Notes = dataclasses.field(default_factory=list)
    _fields: dict[Any, Field] = dataclasses.field(default_factory=dict)

    def __call__(
        self,
        network: Dense,
        image: Tensor,
        *,
        views: Any = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> Array:
        """Of a normalised image [C, H, W]. ``views``: which ones the network averages over; it
        sees further with some than with others."""
        if views not in self._fields:
            self._fields[views] = receptive.measure(network, like=image[:0])
        notes: Notes = []
        out = predict_tiled(
            network,
            image.permute(1, 2, 0),
            lambda part: part.permute(2, 0, 1)[None],
            field=self._fields[views],
            reduce=reduce,
            notes=notes,
        )
        self.notes += [note for note in notes if note not in self.notes]
        return out


def labels(logits: Tensor) -> Tensor:
    """The class of the highest logit: uint8 [h, w], or int32 for more than 255 classes."""
    assert logits.shape[0] == 1
    kind = torch.uint8 if logits.shape[1] <= 255 else torch.int32
    return logits[0].argmax(0).to(kind)


def lay(height: int, width: int, field: Field, tile: int | None = None) -> Plan:
    """The tiles of an image, whose kept parts cover each pixel once.

    All start at multiples of the stride, and their sides leave the image's remainder by it, so that
    mirrors and networks that pad to a multiple of it do to a tile what they do to the image.
    """
    if tile is not None and tile < 8 * field.stride:
        raise InputError(
            f"Tiles of {tile} pixels are too small for a network that moves in steps of "
            f"{field.stride}: take at least {8 * field.stride}, better 1024, or leave it out."
        )
    if tile is not None:
        return _lay(height, width, field, (tile, tile))
    plans = [_lay(height, width, field, sides) for sides in _sides(height, width, field)]
    return min(plans, key=lambda plan: (not plan.complete, plan.computed))


def _lay(height: int, width: int, field: Field, sides: tuple[int, int]) -> Plan:
    reach = field.reach or (height + width, height + width)
    overlap, spans = [], []
    complete = field.reach is not None
    for length, side, needed in zip((height, width), sides, reach, strict=True):
        # A tile may end within a cell, which then counts as unknown.
        ideal = needed + (field.stride if length % field.stride else 0)
        affordable = max(field.stride, int(side * LARGEST_SHARE))
        overlap.append(min(ideal, affordable))
        complete &= length <= side or ideal <= affordable
        spans.append(_spans(length, side, overlap[-1], field.stride))
    tiles = [
        Tile((rows, columns), (kept_rows, kept_columns))
        for rows, kept_rows in spans[0]
        for columns, kept_columns in spans[1]
    ]
    return Plan(tiles, (overlap[0], overlap[1]), complete)


def told(plan: Plan, field: Field, *, exact: bool) -> Notes:
    """What there is to know about a result from tiles; nothing where it equals the whole image's.
    ``exact``: whether the network was found to move with its image."""
    many = f"The image was predicted in {len(plan.tiles):,} tiles"
    if field.reach is None:
        return [
            f"{many}, and the network sees the whole image, or nearly: each tile was taken for an "
            "image of its own, so labels may differ from those of the whole image."
        ]
    if not plan.complete:
        return [
            f"{many} that overlap by {min(plan.overlap)} pixels, and the network sees "
            f"{max(field.reach)}: near the seams labels may differ from those of the whole image. "
            "Larger tiles mend it."
        ]
    if not exact:
        return [
            f"{many}, and the network's maps depend on the image's size: labels may differ a "
            "little from those of the whole image."
        ]
    return []


def _sides(height: int, width: int, field: Field) -> list[tuple[int, int]]:
    """The sides of tiles that take :data:`MEMORY`, of several shapes: that which fits the image
    best need not be square."""
    pixels = MEMORY * 1e6 / max(field.memory(1e3, 1e3), 1.0)
    least = 8 * field.stride
    found = []
    for shape in SHAPES:
        tall = min(height, max(least, int(sqrt(pixels * shape))))
        wide = max(least, field.width(tall, MEMORY))
        if wide > width:  # then the image's width is the whole of it
            tall = max(least, field.width(width, MEMORY))  # memory knows no upright
        found.append((tall, wide))
    return found


def _spans(length: int, side: int, overlap: int, stride: int) -> list[tuple[slice, slice]]:
    """Along one axis: what each tile sees, at most about ``side``, and what is kept of it."""
    if length <= side:
        return [(slice(0, length), slice(0, length))]
    rest = length % stride
    # Rounding to the grid may add a step at each end of what is seen.
    room = max(stride, (side - 2 * overlap - 2 * stride) // stride * stride)
    step = ceil(length / ceil(length / room) / stride) * stride
    spans = []
    for start, stop in pairwise([*range(0, length, step), length]):
        first = max(0, (start - overlap) // stride * stride)
        last = min(length, -(-(stop + overlap - rest) // stride) * stride + rest)
        spans.append((slice(first, last), slice(start, stop)))
    return spans


def _array(part: Tensor) -> Array:
    return np.asarray(part.cpu().numpy())
