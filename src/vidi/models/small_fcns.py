"""A small FCN that trains from scratch in minutes.

The idea of FCN-8s (Long et al. 2015) on a residual trunk (He et al. 2016) that is thin where maps
are large: scores from 1/16, 1/8, 1/4 and 1/2 of the resolution, each doubled by fixed bilinear
interpolation and added to the finer ones. The first convolution has a stride of 2, so the layers
that cost most in VGG, those at full resolution, are not there. Wider trunks, one more stage and
features instead of scores in the sums were tried, and in a short run were worse.

Every strided convolution is 3×3 with padding 1, so cell k at 1/s stands on pixel s·k, and is
interpolated from there (``ops.bilinear.enlarge``).
"""

from torch import Tensor, nn

from vidi.models.fcns import SOURCE
from vidi.models.resnets import BasicBlock, initialise, stage
from vidi.ops.bilinear import enlarge


class SmallFCN(nn.Module):
    """Input [N, 3, H, W] of any size; output [N, num_classes, H, W].

    In training the output is that of every second pixel, [N, num_classes, ⌈H/2⌉, ⌈W/2⌉], where the
    finest scores stand: interpolating them first takes a quarter of a step's time, and teaches
    little more.

    ``stem``: channels of the two convolutions at 1/2; ``widths`` and ``depths``: channels and
    blocks at 1/4, 1/8, 1/16.
    """

    task = "segmentation"
    source = f"{SOURCE}, on a small residual trunk of ours"
    image_size = 256

    def __init__(
        self,
        num_classes: int,
        stem: tuple[int, int],
        widths: tuple[int, ...],
        depths: tuple[int, ...],
    ) -> None:
        super().__init__()
        first, channels = stem
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        self.scores = nn.ModuleList([nn.Conv2d(channels, num_classes, 1)])
        for width, depth in zip(widths, depths, strict=True):
            self.stages.append(stage(BasicBlock, channels, width, depth, 2, "B"))
            self.scores.append(nn.Conv2d(width, num_classes, 1))
            channels = width
        initialise(self, zero_init_residual=True)
        for score in self.scores:  # as the paper: at first all classes are equally likely
            for parameter in score.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for module in self.stages:
            maps.append(module(maps[-1]))
        total: Tensor | None = None
        for score, y in zip(reversed(self.scores), reversed(maps), strict=True):
            own: Tensor = score(y)
            total = own if total is None else own + enlarge(total, 2, own.shape[2:])
        assert total is not None
        return total if self.training else enlarge(total, 2, x.shape[2:])


def fcn_small(
    num_classes: int = 21,
    *,
    stem: tuple[int, int] = (24, 32),
    widths: tuple[int, ...] = (64, 96, 128),
    depths: tuple[int, ...] = (1, 2, 2),
) -> SmallFCN:
    """A residual trunk of 12 layers down to 1/16 with FCN's sums of scores, 1.0 M parameters."""
    return SmallFCN(num_classes, stem, widths, depths)
