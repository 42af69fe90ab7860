"""CIFAR's residual and plain networks of depth 6n + 2: the same comparison, small enough to repeat.

He et al. 2016, section 4.2: a 3×3 convolution, then n blocks of two 3×3 convolutions at each of
32, 16 and 8 pixels with 16, 32 and 64 channels, global average pooling, ten outputs. With option A
shortcuts the residual net has exactly its plain twin's parameters, so whatever differs between the
two is the addition. Plain nets get worse from 20 to 56 layers, residual ones better up to 110.

Often wrong: these are not ImageNet's ResNets at a small size (``resnet18`` on CIFAR has 40 times
the parameters of ``resnet20``); the shortcuts are option A, where many copies put 1×1 convolutions;
ResNet-110 needs a short warm-up at a tenth of the rate.
"""

from torch import Tensor, nn

from vidi.errors import InputError
from vidi.models.resnets import BasicBlock, Shortcut, initialise, stage


class CifarResNet(nn.Module):
    """Input [N, 3, H, W] of any size, usually 32; output [N, num_classes]."""

    source = "He et al. 2016, Deep residual learning, section 4.2 (arXiv:1512.03385)"
    image_size = 32

    def __init__(
        self,
        depth: int,
        num_classes: int,
        *,
        shortcut: Shortcut | None,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        n, remainder = divmod(depth - 2, 6)
        if remainder or n < 1:
            near = 6 * max(1, round((depth - 2) / 6)) + 2
            raise InputError(
                f"A CIFAR network of depth {depth} does not exist: the depth is 6n + 2 (three "
                f"stages of n blocks of two layers, and two more), such as {near}."
            )
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(BasicBlock, 16, 16, n, 1, shortcut)
        self.layer2 = stage(BasicBlock, 16, 32, n, 2, shortcut)
        self.layer3 = stage(BasicBlock, 32, 64, n, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        initialise(self, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def cifar_resnet(
    depth: int,
    num_classes: int = 10,
    *,
    shortcut: Shortcut = "A",
    zero_init_residual: bool = False,
) -> CifarResNet:
    """The residual network of any ``depth`` 6n + 2. Raises InputError for another depth."""
    return CifarResNet(depth, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual)


def cifar_plain(depth: int, num_classes: int = 10) -> CifarResNet:
    """Its plain twin of any ``depth`` 6n + 2. Raises InputError for another depth."""
    return CifarResNet(depth, num_classes, shortcut=None)


def resnet20(
    num_classes: int = 10, *, shortcut: Shortcut = "A", zero_init_residual: bool = False
) -> CifarResNet:
    """CIFAR's ResNet of 20 layers, 269,722 parameters; 8.75 % error in the paper."""
    return cifar_resnet(20, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual)


def resnet32(
    num_classes: int = 10, *, shortcut: Shortcut = "A", zero_init_residual: bool = False
) -> CifarResNet:
    """CIFAR's ResNet of 32 layers, 464,154 parameters; 7.51 % error in the paper."""
    return cifar_resnet(32, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual)


def resnet44(
    num_classes: int = 10, *, shortcut: Shortcut = "A", zero_init_residual: bool = False
) -> CifarResNet:
    """CIFAR's ResNet of 44 layers, 658,586 parameters; 7.17 % error in the paper."""
    return cifar_resnet(44, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual)


def resnet56(
    num_classes: int = 10, *, shortcut: Shortcut = "A", zero_init_residual: bool = False
) -> CifarResNet:
    """CIFAR's ResNet of 56 layers, 853,018 parameters; 6.97 % error in the paper."""
    return cifar_resnet(56, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual)


def resnet110(
    num_classes: int = 10, *, shortcut: Shortcut = "A", zero_init_residual: bool = False
) -> CifarResNet:
    """CIFAR's ResNet of 110 layers, 1,727,962 parameters; 6.43 % error in the paper."""
    return cifar_resnet(110, num_classes, shortcut=shortcut, zero_init_residual=zero_init_residual)


def plain20(num_classes: int = 10) -> CifarResNet:
    """CIFAR's plain network of 20 layers, 269,722 parameters."""
    return cifar_plain(20, num_classes)


def plain32(num_classes: int = 10) -> CifarResNet:
    """CIFAR's plain network of 32 layers, 464,154 parameters."""
    return cifar_plain(32, num_classes)


def plain44(num_classes: int = 10) -> CifarResNet:
    """CIFAR's plain network of 44 layers, 658,586 parameters."""
    return cifar_plain(44, num_classes)


def plain56(num_classes: int = 10) -> CifarResNet:
    """CIFAR's plain network of 56 layers, 853,018 parameters."""
    return cifar_plain(56, num_classes)


def plain110(num_classes: int = 10) -> CifarResNet:
    """CIFAR's plain network of 110 layers, 1,727,962 parameters."""
    return cifar_plain(110, num_classes)
