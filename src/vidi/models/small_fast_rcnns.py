"""A small Fast R-CNN that trains from scratch on two CPU cores.

Fast R-CNN (Girshick 2015) on a residual trunk (He et al. 2016) that is thin where maps are large.
Small objects need a fine map, and what is around them a coarse one; so the maps at 1/8, 1/16 and
1/32 are enlarged and added to the one at 1/4, from coarse to fine (Lin et al. 2017, feature
pyramids), and regions are pooled from that sum alone. What tells a shape is its outline: from a sum
at 1/8, small scenes' objects were told apart far worse after as long a training.

Regions are aligned, not pooled: RoI pooling rounds a region to whole cells, and an object of 30
pixels is eight cells wide, so that its box would be known to a sixteenth of its side. One point a
bin is enough on so fine a map: four took a quarter of a training step and found no more. The head's
two layers are normalised over their own channels (Ba et al. 2016), not over the batch: of the
regions sampled in training many are objects, of those in evaluation hardly any.

Every strided convolution is 3×3 with padding 1, so cell k at 1/4 stands on pixel 4k, and maps are
interpolated and aligned from there.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from vidi.models.fast_rcnns import NEW, SOURCE, FastRCNN, Roi
from vidi.models.fcns import complete, fitting
from vidi.models.resnets import BasicBlock, conv_bn_relu, initialise, stage
from vidi.ops.bilinear import enlarge


def trunk(
    stem: tuple[int, int], widths: tuple[int, ...], depths: tuple[int, ...], merged: int
) -> tuple[nn.Sequential, nn.ModuleList, nn.ModuleList]:
    """(stem to 1/2, stages to 1/4, 1/8 …, and of each stage what brings it to ``merged``)."""
    first, channels = stem
    begin = nn.Sequential(*conv_bn_relu(3, first, 2), *conv_bn_relu(first, channels, 1))
    stages = nn.ModuleList()
    for width, depth in zip(widths, depths, strict=True):
        stages.append(stage(BasicBlock, channels, width, depth, 2, "B"))
        channels = width
    return begin, stages, nn.ModuleList(nn.Conv2d(width, merged, 1) for width in widths)


def region_head(inputs: int, hidden: int) -> nn.Sequential:
    """Two layers that look at a region's cells."""
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=False),
        nn.LayerNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden, bias=False),
        nn.LayerNorm(hidden),
        nn.ReLU(inplace=True),
    )


def initialise_small(network: nn.Module) -> None:
    """He's, also for the ``head``; each block begins as if it were not there."""
    initialise(network, zero_init_residual=True)
    for module in network.get_submodule("head").modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for layer in network.get_submodule("lateral").children():
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        nn.init.zeros_(layer.bias)


def sums(network: nn.Module, image: Tensor) -> list[Tensor]:
    """The maps of a :func:`trunk` from fine to coarse, each with all coarser ones added."""
    y = network.get_submodule("stem")(image)
    maps = []
    for module in network.get_submodule("stages").children():
        y = module(y)
        maps.append(y)
    out: list[Tensor] = []
    laterals = list(network.get_submodule("lateral").children())
    for lateral, y in zip(reversed(laterals), reversed(maps), strict=True):
        own: Tensor = lateral(y)
        out.insert(0, own if not out else own + enlarge(out[0], 2, own.shape[2:]))
    return out


class SmallFastRCNN(FastRCNN):
    """Input: images [B, 3, H, W] of any size, regions [K, 5]; output as of :class:`FastRCNN`.

    ``stem``: channels of the two convolutions at 1/2; ``widths`` and ``depths``: channels and
    blocks at 1/4, 1/8, 1/16, 1/32; ``merged``: channels of the sum at 1/4; ``pooled``: cells of a
    region's side; ``hidden``: width of the two layers that look at them.
    """

    source = f"{SOURCE}, on a small residual trunk of ours"
    image_size = 320

    def __init__(
        self,
        num_classes: int,
        stem: tuple[int, int],
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        merged: int,
        pooled: int,
        hidden: int,
        roi: Roi,
    ) -> None:
        super().__init__(num_classes, hidden, roi=roi, size=pooled, stride=4, first=0.5, sampling=1)
        self.stem, self.stages, self.lateral = trunk(stem, widths, depths, merged)
        self.merge = nn.Sequential(*conv_bn_relu(merged, merged, 1))
        self.head = region_head(merged * pooled**2, hidden)
        initialise_small(self)

    def maps(self, image: Tensor) -> Tensor:
        merged: Tensor = self.merge(sums(self, image)[0])
        return merged

    def responses(self, pooled: Tensor) -> Tensor:
        y: Tensor = self.head(pooled.flatten(1))
        return y

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
        """The file's name for each own tensor that it can give: from the same network for other
        classes, or from one with the same stem and stages. None if its trunk is another."""
        found = fitting(self, tensors)
        return found if complete(self, found, (*NEW, "lateral.", "merge.", "head.")) else None


def fast_rcnn_small(
    num_classes: int = 20,
    *,
    stem: tuple[int, int] = (16, 24),
    widths: tuple[int, ...] = (48, 64, 96, 128),
    depths: tuple[int, ...] = (1, 2, 2, 1),
    merged: int = 64,
    pooled: int = 7,
    hidden: int = 128,
    roi: Roi = "align",
) -> SmallFastRCNN:
    """A residual trunk of 14 layers down to 1/32, pooled from at 1/4: 1.25 M parameters."""
    return SmallFastRCNN(num_classes, stem, widths, depths, merged, pooled, hidden, roi)
