"""Where a class is, from a classifier that never saw a pixel's label.

The network, made fully convolutional, gives its scores for every window of an enlarged image (Long
et al. 2015, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vidi.data import geometry
from vidi.engine.device import to_device
from vidi.engine.evaluate import Compute
from vidi.errors import InputError
from vidi.models.convolutional import Convolutional
from vidi.types import Array, Batch

ENLARGE = 2.0
"""The enlarged image's shorter side, in windows."""
LONGEST = 16
"""A longer side may be so many times the shorter one: the whole image is looked at at once."""


@dataclass(frozen=True)
class HeatMap:
    """How probable a class is in each window of an image.

    ``image``: uint8 [H, W, 3], enlarged so that many windows fit. ``cells``: float32 [h, w], the
    probability of ``label`` in the window whose centre lies at ``offset`` + (i, j) · ``stride``
    pixels of ``image``; windows have ``window`` pixels a side. ``probability``: of ``label``, for
    the whole image, as :meth:`Model.predict` has it.
    """

    path: str
    label: str
    probability: float
    image: Array
    cells: Array
    stride: int
    offset: float
    window: int

    def over(self) -> Array:
        """float32 [H, W]: the cells, interpolated bilinearly over the image; beyond the outermost
        centres they go on as they are."""
        h, w = self.image.shape[:2]
        rows = _interpolation(h, self.cells.shape[0], self.offset, self.stride)
        columns = _interpolation(w, self.cells.shape[1], self.offset, self.stride)
        return np.asarray(rows @ self.cells @ columns.T, np.float32)


def enlarged(image: Array, full: tuple[int, int], shorter: int, fill: Any, key: str) -> Array:
    """uint8 [H, W, 3]: the image with that shorter side, whatever side it had."""
    h, w = image.shape[:2]
    if max(full) > LONGEST * min(full):
        raise InputError(
            f"{key} has {full[1]:,} × {full[0]:,} pixels, one side more than {LONGEST} times the "
            "other; a heat map needs an image, not a strip. Cut it into pieces."
        )
    scale = shorter / min(full)
    size = (max(shorter, round(full[0] * scale)), max(shorter, round(full[1] * scale)))
    return geometry.warp(image, geometry.scaling(size[1] / w, size[0] / h), size, fill)


@torch.inference_mode()
def cells(
    network: Convolutional, image: Array, compute: Compute, *, fill: Any, several: bool
) -> tuple[Array, float]:
    """The probabilities of all classes, float32 [K, h, w], and where the first cell's centre lies.

    ``image``: uint8 [H, W, 3]. It gets a border of ``fill`` (RGB, the mean colour, which is zero
    to the network) a quarter of a window wide, so that windows about its edges are seen, too.
    ``several``: an image may have several labels, so each class has a probability of its own.
    """
    border = network.window // 4
    bordered = np.empty((image.shape[0] + 2 * border, image.shape[1] + 2 * border, 3), np.uint8)
    bordered[...] = fill
    bordered[border : border + image.shape[0], border : border + image.shape[1]] = image
    batch = Batch(
        inputs={"image": bordered[None]},
        targets={},
        keys=[""],
        ids=np.zeros(1, np.int64),
        matrices=np.eye(3)[None],
        sizes=np.array([image.shape[:2]]),
        valid=np.ones(1, bool),
    )
    on_device = to_device(batch, compute.device, compute.normalisation, compute.channels_last)
    with compute.autocast():
        scores = network(on_device.inputs["image"])[0].float().cpu()
    probabilities = scores.sigmoid() if several else scores.softmax(0)
    return probabilities.numpy(), network.offset - border


def _interpolation(pixels: int, count: int, offset: float, stride: int) -> Array:
    """float64 [pixels, count]: each pixel's weights of the cells along one side."""
    at = np.clip((np.arange(pixels) + 0.5 - offset) / stride, 0, count - 1)
    low = np.minimum(at.astype(int), max(count - 2, 0))
    table = np.zeros((pixels, count))
    rows = np.arange(pixels)
    table[rows, low] = 1 - (at - low)
    if count > 1:
        table[rows, low + 1] = at - low
    return table
