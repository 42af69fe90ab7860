"""Features of regions on disk, a file per image: what R-CNN's fits read, one image at a time.

Kept in half precision: eleven bits are as good as more to a linear fit, and of VOC 2007 they are
80 GB as it is. A file is written aside, flushed and renamed, so that what is there is whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from vidi.data.overlap import iou
from vidi.engine.checkpoint import write_atomically
from vidi.ops import boxes
from vidi.types import Array, Boxes

NEAR = 0.6
"""A proposal that overlaps a true box by more is near it (appendix C)."""


@dataclass(frozen=True)
class Regions:
    """An image's regions, in pixels of the network's input.

    ``proposals``: float32 [P, 4]. ``truth``: the T true boxes. A region's number counts the
    proposals first, then the true boxes.
    """

    proposals: Array
    truth: Boxes

    def __len__(self) -> int:
        return len(self.proposals) + len(self.truth)

    @property
    def xyxy(self) -> Array:
        """float32 [P + T, 4]."""
        return np.concatenate([self.proposals, self.truth.xyxy]).astype(np.float32)

    def near(self) -> tuple[Array, Array]:
        """(int64 [M] the proposals that are near a true box, [M] the number of the true box that
        each overlaps the most). Difficult objects and crowds are not looked at."""
        counts = np.flatnonzero(~(self.truth.difficult | self.truth.crowd))
        if not len(counts) or not len(self.proposals):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        overlap = iou(self.proposals, self.truth.xyxy[counts])
        rows = np.flatnonzero(overlap.max(1) > NEAR)
        return rows, counts[overlap[rows].argmax(1)]

    def overlaps(self, label: int) -> Array:
        """float64 [P + T]: how much each region overlaps the object of that class that it overlaps
        the most; of crowds, the share of the region that is theirs. 0 where there is none."""
        own, crowd = self.truth.labels == label, self.truth.crowd
        out: Array = iou(self.xyxy, self.truth.xyxy[own & ~crowd]).max(1, initial=0.0)
        crowds = self.truth.xyxy[own & crowd]
        if len(crowds):
            pair = torch.from_numpy(self.xyxy), torch.from_numpy(crowds)
            np.maximum(out, boxes.covered(*pair).numpy().max(1), out=out)
        return out

    def examples(self, label: int) -> Array:
        """int64 [N]: the regions that are true boxes of that class, and count."""
        t = self.truth
        return len(self.proposals) + np.flatnonzero((t.labels == label) & ~t.difficult & ~t.crowd)


class RegionFiles:
    """The files of a set of images, by their number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, i: int) -> bool:
        return self._path(i).is_file()

    def write(self, i: int, regions: Regions, features: Array, near: Array) -> None:
        """``features``: float [P + T, D], one row a region. ``near``: float [M, E], one row for
        each proposal that is near a true box."""
        truth = regions.truth
        body: dict[str, Array] = {
            "proposals": regions.proposals.astype(np.float32),
            "xyxy": truth.xyxy.astype(np.float32),
            "labels": truth.labels.astype(np.int64),
            "difficult": truth.difficult.astype(np.uint8),
            "crowd": truth.crowd.astype(np.uint8),
            "features": _half(features),
            "near": _half(near),
        }
        body = {name: np.ascontiguousarray(array) for name, array in body.items()}
        write_atomically(self._path(i), safetensors.numpy.save(body))

    def regions(self, i: int) -> Regions:
        with self._open(i) as file:
            truth = Boxes(
                xyxy=file.get_tensor("xyxy"),
                labels=file.get_tensor("labels"),
                difficult=file.get_tensor("difficult") > 0,
                crowd=file.get_tensor("crowd") > 0,
            )
            return Regions(file.get_tensor("proposals"), truth)

    def features(self, i: int, start: int = 0) -> Array:
        """float32 [P + T - start, D], of the regions from that one on."""
        with self._open(i) as file:
            # A slice of nothing is an error there.
            rows: Array = (
                file.get_slice("features")[start:] if start else file.get_tensor("features")
            )
        return rows.astype(np.float32)

    def near(self, i: int) -> Array:
        """float32 [M, E]."""
        with self._open(i) as file:
            rows: Array = file.get_tensor("near")
        return rows.astype(np.float32)

    def _open(self, i: int) -> Any:
        return safetensors.safe_open(str(self._path(i)), framework="numpy")

    def _path(self, i: int) -> Path:
        # A folder of a million files is slow on some systems.
        return self.folder / f"{i // 1000:04d}" / f"{i:08d}.safetensors"


def _half(values: Array) -> Array:
    """The largest number of that precision stands for what is larger."""
    most = float(np.finfo(np.float16).max)
    return np.clip(values, -most, most).astype(np.float16)
