"""Inside the network: the filters of its first layer, and what some layers make of one sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from torch import Tensor, nn

from vidi.engine.evaluate import predictions
from vidi.models.members import members_of
from vidi.report.html import Html
from vidi.report.run_report.drawing import figure, pixels
from vidi.report.run_report.page import heading, paragraph, section
from vidi.report.run_report.subject import Opened, Subject
from vidi.types import Array, Sample

FILTERS = 64
"""Filters that are shown, the ones with the largest weights first."""
MAPS = 12
"""Channels of a layer that are shown: those that differ most from place to place."""
LAYERS = 3
"""Layers whose maps are shown: of each size of maps the last, of many sizes evenly chosen."""
LOOKED = 256
"""Channels among which they are chosen."""
SIDE = 96
"""Pixels of a map on the page, about."""


@dataclass(frozen=True)
class Maps:
    """What a layer gave: ``values`` float32 [C, h, w] of ``channels`` channels."""

    layer: str
    channels: int
    values: Array


def shown(subject: Subject, *, maps: bool = True) -> Html:
    """The section; nothing where the network is not there. ``maps``: whether they are drawn."""
    if subject.network is None:
        return Html("")
    members = list(members_of(subject.network))
    name, network = members[0]
    first = filters(network)
    parts: list[Html] = []
    if first is not None:
        layer, weights = first
        parts += [
            heading("Filters of the first layer"),
            figure(
                pixels(_sheet_of_filters(weights), f"Filters of {name}{layer}", exact=True),
                f"<code>{escape(name + layer)}</code>: {_told(weights)}",
                kind="narrow",
            ),
        ]
    if maps and subject.opened is not None:
        sample, found = seen(subject.opened, network)
        if found and sample is not None:
            parts += [heading("What layers make of a sample"), _maps(sample, found, name)]
    if len(members) > 1 and parts:
        parts.insert(0, paragraph("Of the first member."))
    return section("inside", "Inside the network", *parts)


def filters(network: nn.Module) -> tuple[str, Array] | None:
    """(name, float32 [O, I, h, w]) of the first convolution; of a first layer that is fully
    connected to an image of three colours, its units' weights as images. None for other networks.
    """
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
            continue
        values = weight.detach().float().cpu().numpy()
        if values.ndim == 4:
            return name, values
        side = round((values.shape[1] / 3) ** 0.5)
        if values.ndim == 2 and 3 * side * side == values.shape[1] and side > 1:
            return name, values.reshape(-1, 3, side, side)
        return None
    return None


def seen(opened: Opened, network: nn.Module) -> tuple[Sample | None, list[Maps]]:
    """(the split's first sample, the maps of some layers of ``network`` for it): of each size of
    maps what the last layer gave, by size, the largest first."""
    one = opened.loader.few(1)
    found: dict[tuple[int, int], tuple[str, Tensor]] = {}
    with _listening(network, found):
        for batch, _ in predictions(opened.network, opened.task, one, opened.compute):
            if not batch.samples:
                return None, []
            sample = batch.samples[0]
    sizes = sorted(found, key=lambda size: -size[0] * size[1])
    rows = np.linspace(0, len(sizes) - 1, min(LAYERS, len(sizes))).round().astype(int)
    maps = []
    for size in [sizes[row] for row in rows]:
        layer, values = found[size]
        some = values[0, :LOOKED].float().cpu().numpy()
        order = np.argsort(-some.std((1, 2)), kind="stable")[:MAPS]
        maps.append(Maps(layer, values.shape[1], some[order]))
    return sample, maps


@contextlib.contextmanager
def _listening(
    network: nn.Module, found: dict[tuple[int, int], tuple[str, Tensor]]
) -> Iterator[None]:
    """Keeps, of each size of maps, what the last layer gave of the first image."""

    def hook(name: str) -> Any:
        def keep(module: nn.Module, given: Any, output: Any) -> None:
            is_map = isinstance(output, Tensor) and output.ndim == 4 and output.is_floating_point()
            # Of regions a detector has many little maps; they are no maps of the image.
            if is_map and len(output) <= 2 and min(output.shape[2:]) > 1 and output.shape[1] > 1:
                # A copy, since the next layer may write into it.
                found[output.shape[2], output.shape[3]] = name, output[:1, :LOOKED].clone()

        return keep

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in network.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _maps(sample: Sample, maps: list[Maps], start: str) -> Html:
    shown = pixels(sample.image, sample.key, side=320)
    parts = [figure(shown, f"<code>{escape(sample.key)}</code>")]
    for one in maps:
        c, h, w = one.values.shape
        caption = (
            f"<code>{escape(start + one.layer)}</code>: {h} × {w}, {c} of {one.channels} channels, "
            "those that differ most from place to place"
        )
        shown = pixels(
            _sheet_of_maps(one.values), f"Maps of {start}{one.layer}", side=640, exact=True
        )
        parts.append(figure(shown, caption))
    return Html(f'<div class="maps">{"".join(parts)}</div>')


def _told(weights: Array) -> str:
    o, i, h, w = weights.shape
    some = f"{FILTERS} of {o}" if o > FILTERS else f"all {o}"
    of = "as colours" if i == 3 else "its first image's, as colours" if i == 6 else "their mean"
    return f"{some} filters of {h} × {w} pixels, {of}; grey is zero"


def _sheet_of_filters(weights: Array) -> Array:
    """uint8 [H, W, 3]: each filter scaled by its own largest weight, grey at zero."""
    norms = np.sqrt((weights**2).sum((1, 2, 3)))
    some = weights[np.argsort(-norms, kind="stable")[:FILTERS]]
    some = some[:, :3] if some.shape[1] in (3, 6) else some.mean(1, keepdims=True).repeat(3, 1)
    most = np.abs(some).max((1, 2, 3), keepdims=True)
    tiles = 0.5 + 0.5 * some / np.maximum(most, 1e-12)
    times = max(1, round(40 / tiles.shape[2]))
    tiles = tiles.transpose(0, 2, 3, 1).repeat(times, 1).repeat(times, 2)
    return _grid((255 * tiles).round().astype(np.uint8), columns=16)


def _sheet_of_maps(values: Array) -> Array:
    """uint8 [H, W, 3]: each map from its least to its greatest value."""
    low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
    scaled = (values - low) / np.maximum(high - low, 1e-12)
    times = max(1, round(SIDE / max(values.shape[1:])))
    every = max(1, round(max(values.shape[1:]) / (2 * SIDE)))
    scaled = scaled[:, ::every, ::every].repeat(times, 1).repeat(times, 2)
    tiles = (matplotlib.colormaps["viridis"](scaled)[..., :3] * 255).round().astype(np.uint8)
    return _grid(tiles, columns=4)


def _grid(tiles: Array, columns: int) -> Array:
    """[N, h, w, 3] in rows, with a white gap of a few pixels."""
    n, h, w, _ = tiles.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    gap = max(2, h // 24)
    out = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for k, one in enumerate(tiles):
        top, left = (k // columns) * (h + gap), (k % columns) * (w + gap)
        out[top : top + h, left : left + w] = one
    return out
