"""A small FCN that trains from scratch in minutes.

The idea of FCN-8s (Long et al. 2015) on a residual trunk (He et al. 2016) that is thin where maps
are large: scores from 1/16, 1/8 and 1/4 of the resolution, each doubled by fixed bilinear
interpolation and added to the finer ones. The first convolution has a stride of 2, so the layers
that cost most in VGG, those at full resolution, are not there.

Every strided convolution is 3×3 with padding 1, so cell k at 1/s stands on pixel s·k, and is
interpolated from there (``ops.bilinear.enlarge``).
"""

from torch import Tensor, nn

from vidi.models.fcns import SOURCE
from vidi.models.resnets import BasicBlock, initialise, stage
from vidi.ops.bilinear import enlarge


class SmallFCN(nn.Module):
    """Input [N, 3, H, W] of any size; output [N, num_classes, H, W].

    ``stem``: channels at 1/2; ``widths`` and ``depths``: channels and blocks at 1/4, 1/8, 1/16.
    """

    task = "segmentation"
    source = f"{SOURCE}, on a small residual trunk of ours"
    image_size = 256

    def __init__(
        self, num_classes: int, stem: int, widths: tuple[int, ...], depths: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        self.scores = nn.ModuleList()
        channels = stem
        for width, depth in zip(widths, depths, strict=True):
            self.stages.append(stage(BasicBlock, channels, width, depth, 2, "B"))
            self.scores.append(nn.Conv2d(width, num_classes, 1))
            channels = width
        initialise(self, zero_init_residual=False)
        for score in self.scores:  # as the paper: at first all classes are equally likely
            for parameter in score.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        maps = []
        for module in self.stages:
            y = module(y)
            maps.append(y)
        total: Tensor | None = None
        for score, y in zip(reversed(self.scores), reversed(maps), strict=True):
            own: Tensor = score(y)
            total = own if total is None else own + enlarge(total, 2, own.shape[2:])
        assert total is not None
        return enlarge(total, 4, x.shape[2:])


def fcn_small(
    num_classes: int = 21,
    *,
    stem: int = 32,
    widths: tuple[int, ...] = (64, 128, 256),
    depths: tuple[int, ...] = (2, 2, 2),
) -> SmallFCN:
    """A residual trunk of 14 layers down to 1/16 with FCN's sums of scores, 2.8 M parameters."""
    return SmallFCN(num_classes, stem, widths, depths)
