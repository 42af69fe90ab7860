"""A small Faster R-CNN that trains from scratch on two CPU cores: `vidi train`'s default there.

The trunk and the head of :mod:`vidi.models.small_fast_rcnns`; its sums at 1/4, 1/8, 1/16 and 1/32,
each smoothed by a convolution, are the maps that regions are proposed from, and the one at 1/4 is
what they are aligned on. Where Faster R-CNN has one more 3×3 convolution before what is said of the
anchors, the smoothing one serves: at 1/4 it would cost as much as all of a stage.

The anchors are three widths and heights for each map, fitted to the training set's boxes
(:func:`vidi.ops.anchors.fit`), the smallest at 1/4. They lie in the weights, as they belong to
them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vidi.errors import InputError
from vidi.models.fast_rcnns import exact, in_full
from vidi.models.faster_rcnns import SOURCE, FasterRCNN
from vidi.models.fcns import complete, fitting
from vidi.models.resnets import conv_bn_relu
from vidi.models.small_fast_rcnns import initialise_small, region_head, sums, trunk
from vidi.ops import anchors as grids
from vidi.ops import regions as regions_ops

FIRST = 0.5
"""Every strided convolution is 3×3 with padding 1, so cell 0 stands on the middle of pixel 0."""
NEW = ("cls_score.", "bbox_pred.")
RATIOS = (0.5, 1.0, 2.0)


class SmallFasterRCNN(FasterRCNN):
    """Input and output as of :class:`FasterRCNN`.

    ``stem``: channels of the two convolutions at 1/2; ``widths`` and ``depths``: channels and
    blocks at 1/4, 1/8, 1/16, 1/32; ``merged``: channels of the sums; ``pooled``: cells of a
    region's side; ``hidden``: width of the two layers that look at them.
    """

    source = f"{SOURCE}, on a small residual trunk of ours"
    image_size = 320
    heads = ("cls_score.", "bbox_pred.", "objects.", "moves.")
    of_anchors = "objects."
    """What says of anchors whether they are objects: where it is new, anchors are fitted."""
    sides: Tensor

    def __init__(
        self,
        num_classes: int,
        stem: tuple[int, int],
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        merged: int,
        pooled: int,
        hidden: int,
    ) -> None:
        strides = tuple(4 << k for k in range(len(widths)))
        super().__init__(strides=strides, before=(300, 300), after=(300, 300))
        self.pooled = pooled
        self.stem, self.stages, self.lateral = trunk(stem, widths, depths, merged)
        self.merge = nn.ModuleList(
            nn.Sequential(*conv_bn_relu(merged, merged, 1)) for _ in self.strides
        )
        a = len(RATIOS)
        self.objects = nn.ModuleList(nn.Conv2d(merged, a, 1) for _ in self.strides)
        self.moves = nn.ModuleList(nn.Conv2d(merged, 4 * a, 1) for _ in self.strides)
        self.head = region_head(merged * pooled**2, hidden)
        self.cls_score = nn.Linear(hidden, 1 + num_classes)
        self.bbox_pred = nn.Linear(hidden, 4 * (1 + num_classes))
        ratios = torch.tensor(RATIOS).sqrt()
        usual = torch.stack((1 / ratios, ratios), 1)
        self.register_buffer("sides", torch.stack([4 * s * usual for s in strides]))
        initialise_small(self)
        # As in the papers: N(0, 0.01), and 0.001 for the boxes of classes.
        for layer in (*self.objects, *self.moves, self.cls_score, self.bbox_pred):
            assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
            nn.init.normal_(layer.weight, std=0.001 if layer is self.bbox_pred else 0.01)
            nn.init.zeros_(layer.bias)

    def set_anchors(self, sides: Tensor) -> None:
        """Takes over widths and heights [N, 2] of anchors, in pixels, by area.

        Raises InputError unless there are as many as it has, and all have an area.
        """
        if sides.numel() != self.sides.numel() or not (sides > 0).all():
            raise InputError(
                f"Anchors should be {self.sides.numel() // 2} widths and heights above 0; found "
                f"{len(sides)}, the smallest {sides.min().item():g}."
            )
        self.sides.copy_(sides.view_as(self.sides))

    def pyramid(self, image: Tensor) -> list[Tensor]:
        return [merge(y) for merge, y in zip(self.merge, sums(self, image), strict=True)]

    def told(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        with in_full(maps[0]):
            layers = zip(self.objects, self.moves, map(exact, maps), strict=True)
            return [(objects(y), moves(y)) for objects, moves, y in layers]

    def shapes(self) -> list[Tensor]:
        return [grids.about(sides, FIRST) for sides in self.sides]

    def respond(self, maps: list[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        stride = self.strides[0]
        # Aligning takes cell k for the middle of its stride; it stands where it stands.
        moved = torch.cat((regions[:, :1], regions[:, 1:] + (stride / 2 - FIRST)), 1)
        y = regions_ops.align(maps[0], moved, self.pooled, 1 / stride, 1).to(maps[0].dtype)
        y = self.head(y.flatten(1))
        with in_full(y):
            y = exact(y)
            return self.cls_score(y), self.bbox_pred(y)

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
        """The file's name for each own tensor that it can give: from the same network for other
        classes, or from one with the same stem and stages. None if its trunk is another."""
        found = fitting(self, tensors)
        new = (*NEW, "lateral.", "merge.", "objects.", "moves.", "head.", "sides")
        return found if complete(self, found, new) else None


def faster_rcnn_small(
    num_classes: int = 20,
    *,
    stem: tuple[int, int] = (16, 24),
    widths: tuple[int, ...] = (48, 64, 96, 128),
    depths: tuple[int, ...] = (1, 2, 2, 1),
    merged: int = 64,
    pooled: int = 7,
    hidden: int = 128,
) -> SmallFasterRCNN:
    """A residual trunk of 14 layers down to 1/32, proposing from each map: 1.37 M parameters."""
    return SmallFasterRCNN(num_classes, stem, widths, depths, merged, pooled, hidden)
