"""What is annotated beyond one class per image: boxes, masks, flow, boundaries; by sample index.

A dataset asks its :class:`Truth` for the fields of a :class:`vidi.types.Sample`. Boxes are few
numbers and lie in memory as flat arrays; pictures (masks, flow, edges) stay files, read on demand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from vidi.types import Array, Boxes


class Truth(Protocol):
    """Annotations by sample index. Called from several threads at once."""

    def fields(self, i: int) -> dict[str, Any]:
        """Fields of :class:`vidi.types.Sample` other than key and image, at the image's full size.

        Raises :class:`vidi.errors.InputError` that names the file for what cannot be read.
        """

    def digest(self) -> bytes:
        """A hash that changes when the annotations (or, of files, their list) do."""


class BoxTable:
    """Boxes of N images, one after the other. As read: a box without area stays, and is reported.

    ``xyxy``: float32 [M, 4], pixels, exclusive ends, the first pixel's corner at (0, 0).
    ``labels``: int64 [M]. ``difficult``, ``crowd``: bool [M]. ``offsets``: int64 [N + 1].
    """

    def __init__(
        self, xyxy: Array, labels: Array, difficult: Array, crowd: Array, offsets: Array
    ) -> None:
        assert len(xyxy) == len(labels) == len(difficult) == len(crowd) == offsets[-1]
        self.xyxy = xyxy.astype(np.float32).reshape(-1, 4)
        self.labels = labels.astype(np.int64)
        self.difficult = difficult.astype(bool)
        self.crowd = crowd.astype(bool)
        self.offsets = offsets.astype(np.int64)

    @staticmethod
    def of(per_image: Sequence[Boxes]) -> BoxTable:
        """From one :class:`Boxes` per image."""
        counts = [len(b) for b in per_image]
        offsets = np.concatenate([[0], np.cumsum(counts)]) if counts else np.zeros(1, np.int64)

        def joined(name: str, empty: Array) -> Array:
            return np.concatenate([empty, *(getattr(b, name) for b in per_image)])

        return BoxTable(
            joined("xyxy", np.zeros((0, 4), np.float32)),
            joined("labels", np.zeros(0, np.int64)),
            joined("difficult", np.zeros(0, bool)),
            joined("crowd", np.zeros(0, bool)),
            offsets,
        )

    def boxes(self, i: int) -> Boxes:
        s = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return Boxes(
            xyxy=self.xyxy[s],
            labels=self.labels[s],
            difficult=self.difficult[s],
            crowd=self.crowd[s],
        )

    def fields(self, i: int) -> dict[str, Any]:
        return {"boxes": self.boxes(i)}

    def digest(self) -> bytes:
        parts = (self.xyxy, self.labels, self.difficult, self.crowd, self.offsets)
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(np.ascontiguousarray(part).data)
        return digest.digest()
