"""Flow: where each pixel of the first frame goes in the second. End-point errors at all scales.

Dosovitskiy et al. 2015, "FlowNet: Learning optical flow with convolutional networks", sections 3
and 5 for the loss; the scores are those of Middlebury (EPE), KITTI (Fl) and Sintel (by speed, and
visible or occluded).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vidi.errors import InputError, RunError
from vidi.models.flownets import SCALE
from vidi.ops import flow as flows
from vidi.ops import views
from vidi.tasks import masked
from vidi.types import Array, Batch, Encoded, Meter, Sample

WEIGHTS = {64: 0.32, 32: 0.08, 16: 0.02, 8: 0.01, 4: 0.005}
"""Of the error in a cell, by the cell's side in pixels: the authors' training, whose loss sums over
cells. Of the *mean* errors it weighs 1/4 most, since that has most cells: with 0.44, 0.22, 0.11,
0.11 and 0.11 from 1/4 to 1/64."""
MATCHING = 0.3
"""Weight of a matching's cross-entropy beside the mean end-point error in pixels / 20."""
SPEEDS = {"s0-10": (0.0, 10.0), "s10-40": (10.0, 40.0), "s40+": (40.0, np.inf)}
"""Sintel's ranges of the true flow's length, in pixels."""
FL_PIXELS, FL_SHARE = 3.0, 0.05
"""KITTI: flow is wrong where it is off by more than both, pixels and share of the true length."""
UNIT = 2**20
"""Errors are summed as whole numbers of 1/UNIT pixels, whose sums do not depend on the order."""


@dataclass(frozen=True)
class Prediction:
    """``flow``: float32 [H, W, 2], x and y in pixels of the original image."""

    flow: Array


@dataclass
class Task:
    """``sum_pixels``: errors are summed over an image's cells and averaged over images, as in the
    paper; else they are averaged over all known pixels, and over scales by the same weights.
    ``loss``: the user's own, called for each scale with the network's and the true flow, both in
    pixels / 20, [B, 2, h, w]; it gives one value per cell [B, h, w], or their mean. A network's
    matching is not trained beside it."""

    classes: tuple[str, ...] = ()
    sum_pixels: bool = False
    loss: Callable[..., Tensor] | None = None
    headline: str = "epe"
    lower_is_better: ClassVar[bool] = True
    outputs: ClassVar[int] = 2
    padding: ClassVar[dict[str, int]] = {"flow": 0, "known": 0}

    def encode(self, sample: Sample, rng: Any, *, train: bool) -> Encoded:
        assert sample.image2 is not None
        inputs = {"image": sample.image, "image2": sample.image2}
        if not train:  # the meter looks at the sample's own flow, at full size
            return Encoded(inputs, {})
        known = _known(sample)
        assert sample.flow is not None
        flow = np.where(known[..., None], sample.flow, 0).astype(np.float32, copy=False)
        return Encoded(inputs, {"flow": flow, "known": known})

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """The known pixels, or, for summed losses, the images that have some."""
        known = self._known(batch)
        if self.sum_pixels:
            total = known.flatten(1).any(1).float().sum()
        else:
            total = known.float().sum()
        return {"epe": total, "matching": total}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """End-point errors of every prediction, in pixels / 20; and the cross-entropy of the
        network's matching, where it has one and the loss is ours.

        The truth is brought to a prediction's scale by averaging the known pixels of each cell, and
        the cell counts by their share. A network with several predictions (a tuple, / 20) states
        the pixels per cell of each as ``scales``; with a ``matching_scale`` it has one output
        more, log-shares as :func:`vidi.ops.flow.matching_loss` takes. One tensor is flow in pixels,
        of the images' size. Raises :class:`InputError` where outputs and scales differ in number.
        """
        outputs = model(batch.inputs["image"], batch.inputs["image2"])
        network: Any = getattr(model, "module", model)
        if isinstance(outputs, tuple):
            scales = tuple(getattr(network, "scales", ()))
            heads, matching = outputs[: len(scales)], outputs[len(scales) :]
            if not scales or len(matching) != hasattr(network, "matching_scale"):
                raise InputError(
                    f"The network {type(network).__name__} gives {len(outputs)} outputs in "
                    f"training, and says scales of {len(scales)}. Let its class say as `scales` "
                    "how many pixels a cell of each has."
                )
        else:
            heads, scales, matching = (outputs / SCALE,), (1,), ()
        known = self._known(batch)
        truth = batch.targets["flow"].permute(0, 3, 1, 2) / SCALE
        total = torch.zeros((), device=truth.device)
        # Weights of errors that are summed over pixels instead of cells.
        per_pixel = [_weight(scale) / scale**2 for scale in scales]
        for head, scale, weight in zip(heads, scales, per_pixel, strict=True):
            target, share = flows.coarser(truth, known, scale, (head.shape[2], head.shape[3]))
            error = masked(self._per_cell(head.float(), target), share > 0)
            summed = (share * error).sum() * scale**2
            total = total + summed * (weight if self.sum_pixels else weight / sum(per_pixel))
        out = {"epe": total}
        if matching and self.loss is None:
            (log_shares,) = matching
            cell = network.matching_scale
            size = (log_shares.shape[2], log_shares.shape[3])
            target, share = flows.coarser(truth, known, cell, size)
            error = flows.matching_loss(log_shares.float(), target * (SCALE / cell))
            summed = (share * masked(error, share > 0)).sum() * cell**2
            out["matching"] = MATCHING * summed * (sum(per_pixel) if self.sum_pixels else 1)
        return out

    def signs(self, batch: Batch) -> dict[str, float]:
        """The share of pixels whose motion is known, and how long it is there on average, in
        pixels."""
        known = self._known(batch)
        lengths = torch.linalg.vector_norm(batch.targets["flow"], dim=3)[known]
        return {
            "known": float(known.float().mean()),
            "magnitude": float(lengths.sum() / known.sum().clamp_min(1)),
        }

    def predict(self, model: nn.Module, batch: Batch, *, flip: bool = False) -> list[Prediction]:
        """``flip``: the average of what is found in the pair and in its mirror image. Pairs of one
        size go through the network together."""
        out: list[Any] = [None] * len(batch)
        seconds = batch.inputs["image2"]
        for rows, image in views.by_size(batch.inputs["image"]):
            image2 = seconds
            if isinstance(seconds, list):
                image2 = torch.cat([seconds[row] for row in rows])
            assert image2.shape == image.shape, "frames of a pair have one size"
            flow = _flow(model, image, image2)
            if flip:
                mirrored = _flow(model, image.flip(3), image2.flip(3)).flip(3)
                flow = (flow + mirrored * mirrored.new_tensor((-1.0, 1.0)).view(1, 2, 1, 1)) / 2
            for row, one in zip(rows, flow, strict=True):
                height, width = (int(side) for side in batch.sizes[row])
                full = flows.resized(one[None], (height, width))[0]
                out[row] = Prediction(full.permute(1, 2, 0).contiguous().cpu().numpy())
        return out

    def meter(self) -> FlowMeter:
        return FlowMeter()

    def details(self, meter: Meter) -> dict[str, Any]:
        assert isinstance(meter, FlowMeter)
        return {"by_part": meter.by_part()}

    def _known(self, batch: Batch) -> Tensor:
        """bool [B, H, W]: neither unknown nor of a sample that could not be read."""
        known: Tensor = batch.targets["known"].bool() & batch.targets["valid"].view(-1, 1, 1)
        return known

    def _per_cell(self, flow: Tensor, target: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(flow, target).expand(len(flow), *flow.shape[2:])
        # Where nothing is off, the gradient is zero too.
        error: Tensor = torch.linalg.vector_norm(flow - target, dim=1)
        return error


PARTS = ("all", *SPEEDS, "visible", "occluded")


class FlowMeter:
    """Sums of whole numbers only, so that meters of several processes add up exactly, in any order.

    Of each of :data:`PARTS`: known pixels, their errors, the zero flow's errors, and how many are
    wrong by KITTI's measure.
    """

    def __init__(self) -> None:
        self.sums = {part: [0, 0, 0, 0] for part in PARTS}

    def update(self, predictions: list[Prediction], samples: list[Sample]) -> None:
        for prediction, sample in zip(predictions, samples, strict=True):
            assert sample.flow is not None
            assert sample.flow.shape == prediction.flow.shape
            known = _known(sample)
            if not np.isfinite(prediction.flow).all():
                raise RunError(
                    f"The network's flow of {sample.key} is not a number everywhere. A lower "
                    "learning rate keeps it finite; fp32 (--precision fp32) does if it was trained "
                    "in fp16."
                )
            truth = sample.flow[known].astype(np.float64)
            off = np.hypot(*(prediction.flow[known] - truth).T)
            speed = np.hypot(*truth.T)
            wrong = (off > FL_PIXELS) & (off > FL_SHARE * speed)
            parts = {"all": np.ones(len(off), bool)}
            for name, (low, high) in SPEEDS.items():
                parts[name] = (speed >= low) & (speed < high)
            if sample.occluded is not None:
                parts["occluded"] = sample.occluded[known]
                parts["visible"] = ~sample.occluded[known]
            for name, part in parts.items():
                errors = (_whole(off[part]), _whole(speed[part]))
                self._add(name, (int(part.sum()), *errors, int(wrong[part].sum())))

    def merge(self, other: FlowMeter) -> None:
        for name, sums in other.sums.items():
            self._add(name, sums)

    def compute(self) -> dict[str, float]:
        """epe: mean distance between predicted and true end point, in pixels. fl: the share of
        pixels, in [0, 1], off by more than 3 pixels and by more than 5 % of the true flow's length
        (KITTI). epe_zero: the zero flow's epe. s0-10, s10-40, s40+: epe where the true flow is so
        many pixels long (Sintel). epe_visible, epe_occluded: epe where it is known that a point is
        seen in the second frame, or is not. What there is no pixel of is left out.

        Raises :class:`InputError` if the flow of no pixel at all is known.
        """
        pixels, off, zero, wrong = self.sums["all"]
        if not pixels:
            raise InputError(
                "The flow of no pixel of these samples is known, so there is nothing to score. "
                "Score pairs whose files give flow."
            )
        out = {"epe": off / UNIT / pixels, "fl": wrong / pixels, "epe_zero": zero / UNIT / pixels}
        for name in PARTS[1:]:
            n, error, _, _ = self.sums[name]
            if n:
                out[name if name in SPEEDS else f"epe_{name}"] = error / UNIT / n
        return out

    def by_part(self) -> list[dict[str, Any]]:
        """One row for each part of the pixels: its share, epe, fl, and the zero flow's epe."""
        total = max(1, self.sums["all"][0])
        return [
            {
                "part": name,
                "share": n / total,
                "epe": off / UNIT / n,
                "fl": wrong / n,
                "epe_zero": zero / UNIT / n,
            }
            for name, (n, off, zero, wrong) in self.sums.items()
            if n
        ]

    def _add(self, name: str, sums: Any) -> None:
        self.sums[name] = [a + b for a, b in zip(self.sums[name], sums, strict=True)]


def _known(sample: Sample) -> Array:
    """bool [H, W]: the pixels whose flow is given, and is a number."""
    assert sample.flow is not None
    known = np.asarray(np.isfinite(sample.flow).all(2))
    return known if sample.flow_valid is None else np.asarray(known & sample.flow_valid)


def _weight(scale: int) -> float:
    return WEIGHTS.get(scale, WEIGHTS[4] if scale < 4 else WEIGHTS[64])


def _whole(errors: Array) -> int:
    return round(float(errors.sum()) * UNIT)


def _flow(model: nn.Module, image: Tensor, image2: Tensor) -> Tensor:
    """In pixels, fp32 [N, 2, H, W]."""
    outputs = model(image, image2)
    flow: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return flow.float()
