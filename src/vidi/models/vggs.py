"""VGG: depth, from nothing but 3×3 convolutions.

Simonyan & Zisserman 2015: two 3×3 layers see what one 5×5 sees, three what a 7×7 sees, with fewer
weights and more non-linearities; so stack them, double the width after each 2×2 pool, and change
only the depth (their table 1: A, B, D, E are 11, 13, 16, 19 layers). Error falls up to about 19
layers; going further took residual connections.

Often wrong: the first two fully connected layers hold 119 of VGG-16's 138 million parameters;
batch normalisation is younger than the paper (the ``_bn`` forms are torchvision's). The paper
started the deep nets from a trained A; with He's initialisation (ours, as torchvision's) that is
not needed.
"""

from torch import Tensor, nn

# Width of each convolution; a list per resolution, followed by a 2×2 max pool.
_A = ([64], [128], [256, 256], [512, 512], [512, 512])
_B = ([64, 64], [128, 128], [256, 256], [512, 512], [512, 512])
_D = ([64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3)
VGG16 = _D
_E = ([64, 64], [128, 128], [256] * 4, [512] * 4, [512] * 4)


class VGG(nn.Module):
    """Input [N, 3, H, W], at least 32 pixels, usually 224; output [N, num_classes]."""

    source = "Simonyan & Zisserman 2015, Very deep convolutional networks (arXiv:1409.1556)"
    image_size = 224

    def __init__(
        self,
        stages: tuple[list[int], ...],
        num_classes: int,
        dropout: float | None,
        *,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        p = 0.5 if dropout is None else dropout
        self.features = trunk(stages, batch_norm=batch_norm)
        # The identity at the usual size; at others it keeps the fully connected layers usable.
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(p),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(p),
            nn.Linear(4096, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def trunk(stages: tuple[list[int], ...], *, batch_norm: bool = False) -> nn.Sequential:
    """The convolutions and pools: [N, 3, H, W] to [N, 512, H/32, W/32]."""
    layers: list[nn.Module] = []
    channels = 3
    for widths in stages:
        for width in widths:
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            channels = width
        layers.append(nn.MaxPool2d(2, stride=2))
    return nn.Sequential(*layers)


def vgg11(num_classes: int = 1000, *, dropout: float | None = None) -> VGG:
    """VGG of 11 layers (table 1, A); dropout 0.5 unless told."""
    return VGG(_A, num_classes, dropout)


def vgg13(num_classes: int = 1000, *, dropout: float | None = None) -> VGG:
    """VGG of 13 layers (table 1, B)."""
    return VGG(_B, num_classes, dropout)


def vgg16(num_classes: int = 1000, *, dropout: float | None = None) -> VGG:
    """VGG of 16 layers (table 1, D), 138,357,544 parameters."""
    return VGG(_D, num_classes, dropout)


def vgg19(num_classes: int = 1000, *, dropout: float | None = None) -> VGG:
    """VGG of 19 layers (table 1, E), 143,667,240 parameters."""
    return VGG(_E, num_classes, dropout)


def vgg11_bn(num_classes: int = 1000, *, dropout: float | None = None) -> VGG:
    """VGG of 11 layers with batch normalisation."""
    return VGG(_A, num_classes, dropout, batch_norm=True)


def vgg13_bn(num_classes: int = 1000, *, dropout: float | None = None) -> VGG:
    """VGG of 13 layers with batch normalisation."""
    return VGG(_B, num_classes, dropout, batch_norm=True)


def vgg16_bn(num_classes: int = 1000, *, dropout: float | None = None) -> VGG:
    """VGG of 16 layers with batch normalisation, 138,365,992 parameters."""
    return VGG(_D, num_classes, dropout, batch_norm=True)


def vgg19_bn(num_classes: int = 1000, *, dropout: float | None = None) -> VGG:
    """VGG of 19 layers with batch normalisation."""
    return VGG(_E, num_classes, dropout, batch_norm=True)
