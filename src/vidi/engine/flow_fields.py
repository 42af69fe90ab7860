"""What a flow run says of a pair of frames, and how well it fits where no truth is known."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from vidi.ops.flow import warp
from vidi.types import Array


@dataclass(frozen=True)
class FlowField:
    """``flow``: float32 [H, W, 2], how far each pixel of the first frame moves until the second, to
    the right and down, in pixels. ``image``, ``image2``: the frames, uint8 [H, W, 3]."""

    path: str
    path2: str
    image: Array
    image2: Array
    flow: Array

    @functools.cached_property
    def _warped(self) -> tuple[Array, Array]:
        return warp_back(self.image2, self.flow)

    @property
    def warped(self) -> Array:
        """The second frame as the flow brings it back to the first, uint8 [H, W, 3]; black where
        the flow leaves the frame. If the flow is right it looks like the first frame, but for what
        is hidden in the second."""
        back, inside = self._warped
        return np.asarray(np.rint(back * inside[..., None]), np.uint8)

    @property
    def photometric_error(self) -> float:
        """Mean absolute difference between the first frame and the second one warped back, in grey
        levels from 0 to 255, over the pixels whose target lies in the frame; NaN if none does."""
        return self._difference(self._warped[0])

    @property
    def photometric_error_zero(self) -> float:
        """The same between the frames as they are, on the same pixels: what no motion gives."""
        return self._difference(self.image2)

    def _difference(self, other: Array) -> float:
        inside = self._warped[1]
        if not inside.any():
            return float("nan")
        apart = np.abs(other.astype(np.float32) - self.image)
        return float(apart[inside].mean(dtype=np.float64))


def warp_back(image2: Array, flow: Array) -> tuple[Array, Array]:
    """(float32 [H, W, 3], bool [H, W]): the second frame at x + flow(x), and where that lies in it.

    ``image2``: uint8 [H, W, 3]. ``flow``: float32 [H, W, 2].
    """
    image = torch.from_numpy(image2.astype(np.float32)).permute(2, 0, 1)[None]
    field = torch.from_numpy(np.ascontiguousarray(flow)).permute(2, 0, 1)[None]
    warped, inside = warp(image, field)
    return warped[0].permute(1, 2, 0).numpy(), inside[0].numpy()
