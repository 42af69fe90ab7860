"""GoogLeNet: filters of several sizes side by side, made cheap by 1×1 convolutions.

Szegedy et al. 2015: an Inception module looks with 1×1, 3×3 and 5×5 filters and a pool at once and
concatenates; 1×1 convolutions before the large filters reduce the maps, so that 22 layers cost 1.5
billion multiply-adds and 7 million parameters, a ninth of AlexNet's. Global average pooling
replaces the big fully connected layers. Two auxiliary classifiers, on 4a and 4d, feed gradient
into the middle during training, their losses weighted 0.3; prediction ignores them.

``googlenet_2014`` is the paper's network: biases, no batch normalisation, 5×5 filters, local
response normalisation. ``googlenet`` is torchvision's, for which weights are published.

Often wrong: the auxiliary weight is 0.3 and their dropout 0.7, the main dropout 0.4 (torchvision:
0.2); torchvision's has batch normalisation with ε = 1e-3, 3×3 filters where the paper has 5×5, and
a 2×2 fourth pool. Pools round up. The 1.5 G of the paper's table 1 counts the first convolution as
34 M, though 7×7 filters on 112×112 positions cost 118 M: the network as described has 1.58 G.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.models.alexnets import LocalResponseNorm


class GoogLeNetOutputs(NamedTuple):
    """What a network with auxiliary heads gives in training mode; each [N, num_classes]."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


class ConvUnit(nn.Module):
    """Convolution and ReLU; with biases as in 2014, or with batch normalisation."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, batch_norm: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, bias=not batch_norm
        )
        self.bn = nn.BatchNorm2d(outputs, eps=0.001) if batch_norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv(x)))
        return y


class Inception(nn.Module):
    """Four branches side by side (figure 2b), concatenated along channels.

    ``widths`` are the paper's columns: 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, pool projection.
    """

    def __init__(
        self, inputs: int, widths: tuple[int, int, int, int, int, int], *, original: bool
    ) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pool = widths
        bn = not original
        # torchvision's slip, kept because its weights have it: 3×3 where the paper has 5×5.
        kernel5 = 5 if original else 3
        self.branch1 = ConvUnit(inputs, one, 1, batch_norm=bn)
        self.branch2 = nn.Sequential(
            ConvUnit(inputs, reduce3, 1, batch_norm=bn),
            ConvUnit(reduce3, three, 3, batch_norm=bn),
        )
        self.branch3 = nn.Sequential(
            ConvUnit(inputs, reduce5, 1, batch_norm=bn),
            ConvUnit(reduce5, five, kernel5, batch_norm=bn),
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), ConvUnit(inputs, pool, 1, batch_norm=bn)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            (self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), dim=1
        )


class AuxiliaryHead(nn.Module):
    """Average pool to 4×4, 1×1 convolution to 128, 1024 units, dropout, logits (section 5)."""

    def __init__(self, inputs: int, num_classes: int, dropout: float, *, original: bool) -> None:
        super().__init__()
        self.original = original
        self.conv = ConvUnit(inputs, 128, 1, batch_norm=not original)
        self.fc1 = nn.Linear(2048, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.original and min(x.shape[2:]) >= 5:
            x = F.avg_pool2d(x, 5, stride=3)  # 14×14 becomes 4×4
        x = F.adaptive_avg_pool2d(x, 4)  # then the identity; torchvision pools with this alone
        x = self.relu(self.fc1(self.conv(x).flatten(1)))
        logits: Tensor = self.fc2(self.dropout(x))
        return logits


class GoogLeNet(nn.Module):
    """Input [N, 3, H, W], at least 15 pixels (the paper's 31), usually 224.

    Output [N, num_classes]; in training mode, with auxiliary heads, :class:`GoogLeNetOutputs`,
    whose second and third losses are to be multiplied by ``aux_weight``.
    """

    source = "Szegedy et al. 2015, Going deeper with convolutions (arXiv:1409.4842)"
    image_size = 224
    aux_weight = 0.3

    def __init__(
        self,
        num_classes: int,
        *,
        original: bool,
        aux_logits: bool,
        dropout: float,
        aux_dropout: float,
    ) -> None:
        super().__init__()
        bn = not original
        self.conv1 = ConvUnit(3, 64, 7, stride=2, batch_norm=bn)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        # The paper names these layers and gives no constants: these are BVLC's, whose α is divided
        # by n, in the published replication.
        self.norm1 = LocalResponseNorm(5, k=1, alpha=2e-5, beta=0.75) if original else nn.Identity()
        self.conv2 = ConvUnit(64, 64, 1, batch_norm=bn)
        self.conv3 = ConvUnit(64, 192, 3, batch_norm=bn)
        self.norm2 = LocalResponseNorm(5, k=1, alpha=2e-5, beta=0.75) if original else nn.Identity()
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = Inception(192, (64, 96, 128, 16, 32, 32), original=original)
        self.inception3b = Inception(256, (128, 128, 192, 32, 96, 64), original=original)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(480, (192, 96, 208, 16, 48, 64), original=original)
        self.inception4b = Inception(512, (160, 112, 224, 24, 64, 64), original=original)
        self.inception4c = Inception(512, (128, 128, 256, 24, 64, 64), original=original)
        self.inception4d = Inception(512, (112, 144, 288, 32, 64, 64), original=original)
        self.inception4e = Inception(528, (256, 160, 320, 32, 128, 128), original=original)
        self.maxpool4 = nn.MaxPool2d(3 if original else 2, stride=2, ceil_mode=True)
        self.inception5a = Inception(832, (256, 160, 320, 32, 128, 128), original=original)
        self.inception5b = Inception(832, (384, 192, 384, 48, 128, 128), original=original)
        self.aux1: AuxiliaryHead | None = None
        self.aux2: AuxiliaryHead | None = None
        if aux_logits:
            self.aux1 = AuxiliaryHead(512, num_classes, aux_dropout, original=original)
            self.aux2 = AuxiliaryHead(528, num_classes, aux_dropout, original=original)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)
        self._initialise(original)

    def _initialise(self, original: bool) -> None:
        for module in self.modules():
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            # torchvision truncates this at ±200 standard deviations, that is, not at all.
            nn.init.normal_(module.weight, std=0.01)
            if original:
                # The paper gives none. He's, because without normalisation what tells one image
                # from another must survive twenty-two layers; only the outputs start small.
                if module.weight.shape[0] != self.fc.out_features or isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        x = self.norm1(self.maxpool1(self.conv1(x)))
        x = self.maxpool2(self.norm2(self.conv3(self.conv2(x))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        middle1 = self.inception4a(x)
        middle2 = self.inception4d(self.inception4c(self.inception4b(middle1)))
        x = self.maxpool4(self.inception4e(middle2))
        x = self.avgpool(self.inception5b(self.inception5a(x)))
        logits: Tensor = self.fc(self.dropout(x.flatten(1)))
        if self.training and self.aux1 is not None and self.aux2 is not None:
            return GoogLeNetOutputs(logits, self.aux2(middle2), self.aux1(middle1))
        return logits


def googlenet(
    num_classes: int = 1000,
    *,
    aux_logits: bool = True,
    dropout: float | None = None,
    aux_dropout: float = 0.7,
) -> GoogLeNet:
    """torchvision's GoogLeNet, 6,624,904 parameters, 13,004,888 with both auxiliary heads."""
    return GoogLeNet(
        num_classes,
        original=False,
        aux_logits=aux_logits,
        dropout=0.2 if dropout is None else dropout,
        aux_dropout=aux_dropout,
    )


def googlenet_2014(
    num_classes: int = 1000,
    *,
    aux_logits: bool = True,
    dropout: float | None = None,
    aux_dropout: float = 0.7,
) -> GoogLeNet:
    """The paper's GoogLeNet, 6,998,552 parameters, 13,378,280 with both auxiliary heads."""
    return GoogLeNet(
        num_classes,
        original=True,
        aux_logits=aux_logits,
        dropout=0.4 if dropout is None else dropout,
        aux_dropout=aux_dropout,
    )
