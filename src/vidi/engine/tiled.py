"""Detection tile by tile: an image is looked at as a whole, and then in windows of its own pixels.

A window goes through the very steps that an image goes through: it is brought to the run's size,
its regions are proposed, its detections suppressed. Tiles of ``image_size`` pixels are thus seen at
their own pixels, however large the image is. What is found is put together by
:mod:`vidi.ops.box_tiles`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from vidi.data import proposals
from vidi.data.dataset import Dataset
from vidi.data.loader import Loader
from vidi.data.open import from_images
from vidi.engine import defaults, propose
from vidi.engine.evaluate import Compute, predictions
from vidi.engine.prepare import kept_size, loader
from vidi.errors import InputError
from vidi.ops import box_tiles
from vidi.recipe import Recipe
from vidi.types import Array, Batch, Detections, Meter

SMALLEST = 32
"""Pixels of a tile's side."""
SAME = 0.5
"""With soft-NMS objects of a class may overlap by any share; of what two windows found, boxes that
overlap by a larger IoU are one object's all the same."""


def settled(task: str, tile: int | None, overlap: int | None) -> int:
    """By how many pixels tiles overlap at least: a quarter of their side, unless told.

    Raises :class:`InputError` for another task, and for what is too small or too large.
    """
    if tile is None:
        if overlap is not None:
            raise InputError(f"The overlap is {overlap}, and there are no tiles. Give --tile, too.")
        return 0
    if task != "detection":
        own = " Segmentation cuts large images by itself." if task == "segmentation" else ""
        raise InputError(f"Tiles are for detection; this run's task is {task}.{own}")
    if tile < SMALLEST:
        raise InputError(f"The tile is {tile} pixels; at least {SMALLEST} are expected.")
    overlap = tile // 4 if overlap is None else overlap
    if not 0 <= overlap <= tile // 2:
        raise InputError(
            f"The overlap is {overlap} pixels; from 0 to half a tile, {tile // 2}, is expected."
        )
    return overlap


@dataclass
class Tiled:
    """The detection ``task`` as evaluation sees it, with predictions from tiles of ``tile`` pixels,
    ``overlap`` at least over one another. ``dataset``: where the images of a batch come from."""

    task: Any
    dataset: Dataset
    recipe: Recipe
    compute: Compute
    tile: int
    overlap: int

    def predict(self, model: nn.Module, batch: Batch, **views: Any) -> list[Detections]:
        found: list[Detections] = self.task.predict(model, batch, **views)
        for row, ok in enumerate(batch.valid):
            h, w = batch.sizes[row].tolist()
            windows = box_tiles.windows((h, w), self.tile, self.overlap)
            if ok and len(windows):
                parts = self._parts(model, int(batch.ids[row]), windows, views)
                found[row] = box_tiles.merge(
                    [*parts, found[row]],
                    np.concatenate([windows, [[0, 0, w, h]]]),
                    (h, w),
                    threshold=self.task.nms if self.task.soft_nms == "none" else SAME,
                    pixel=self._pixel(),
                )
        return found

    def meter(self) -> Meter:
        meter: Meter = self.task.meter()
        return meter

    def details(self, meter: Meter) -> dict[str, Any]:
        details: dict[str, Any] = self.task.details(meter)
        return details

    def _parts(
        self, model: nn.Module, i: int, windows: Array, views: dict[str, Any]
    ) -> list[Detections]:
        """What is found in each window of image ``i``, in the window's pixels."""
        batches = self._loader(i, windows)
        return [
            one
            for _, found in predictions(model, self.task, batches, self.compute, **views)
            for one in found
        ]

    def _loader(self, i: int, windows: Array) -> Loader:
        mean = self.compute.normalisation.mean
        fill = tuple(round(255 * m) for m in mean)
        image, _ = self.dataset.images.load(i, None)
        dataset = from_images([box_tiles.cut(image, window, fill) for window in windows])
        ids = np.arange(len(windows))
        own = self.dataset.annotations(i).get("proposals")
        if own is not None and propose.settled(self.recipe.data.proposals) in proposals.METHODS:
            dataset = propose.attach(dataset, ids, self.recipe, threads=defaults.cores())
        elif own is not None:  # the user's, of the whole image
            shares = [box_tiles.within(own, window) for window in windows]
            dataset = proposals.attach(dataset, ids, shares)
        shorter = kept_size(self.recipe)
        return loader(
            dataset,
            ids,
            self.recipe,
            self.task,
            lambda j: dataset.images.load(j, shorter),
            self.compute.normalisation,
        )

    def _pixel(self) -> float:
        """Pixels of a tile in one of the network's input."""
        assert self.recipe.image_size != "auto"
        own = self.recipe.augmentation.crop == "whole"
        return 1.0 if own else self.tile / self.recipe.image_size
