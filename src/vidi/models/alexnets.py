"""AlexNet: a deep convolutional network, trained on GPUs, halves the error on ImageNet.

Krizhevsky, Sutskever & Hinton 2012 put together what then became usual: ReLU instead of tanh
(section 3.1), training on two GPUs with half of the filters on each (3.2), local response
normalisation (3.3), overlapping pooling (3.4), dropout (4.2), flips, crops and colour shifts.
``alexnet_2012`` is that network; ``alexnet`` is the one-tower network of Krizhevsky's "One weird
trick" (2014, footnote 1) as torchvision publishes it, without groups and normalisation.

Often wrong: convolutions 2, 4 and 5 see only the maps of their own GPU (``groups=2``); the order
is convolution, ReLU, normalisation, pooling; pools are 3×3 with stride 2; the input has 227 pixels
(the paper's 224 does not fit its own first layer); the normalisation's α multiplies the plain sum,
where PyTorch's ``LocalResponseNorm`` divides it by n first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalResponseNorm(nn.Module):
    """b_i = a_i / (k + α Σ_j a_j²)^β, the sum over ``size`` neighbouring channels (section 3.3).

    Input and output [N, C, H, W]. Not torch's: that one divides α by n, and has no bf16 on the CPU.
    Squares and powers are taken in fp32, because in bf16 k + αΣ would mostly round to k.
    """

    def __init__(self, size: int, *, k: float, alpha: float, beta: float) -> None:
        super().__init__()
        self.size, self.k, self.alpha, self.beta = size, k, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        # Channels last (no copy if x is in that memory format) makes the window a 1×size pool
        # over an "image" of H·W rows and C columns; a mean times its size is the sum.
        squares = x.float().square().permute(0, 2, 3, 1).flatten(1, 2)
        window = (1, self.size)
        means = F.avg_pool2d(squares, window, stride=1, padding=(0, self.size // 2))
        n, c, h, w = x.shape
        sums = self.size * means.reshape(n, h, w, c).permute(0, 3, 1, 2)
        scale: Tensor = (self.k + self.alpha * sums).pow(-self.beta)
        return (x * scale).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.size}, k={self.k}, alpha={self.alpha}, beta={self.beta}"


class AlexNet(nn.Module):
    """Input [N, 3, H, W], at least 63 pixels, usually 224; output [N, num_classes]."""

    source = "Krizhevsky 2014, One weird trick (arXiv:1404.5997), as in torchvision"
    image_size = 224

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        # The identity at the usual size; at others it keeps the fully connected layers usable.
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )
        # The paper gives no initialisation; PyTorch's own is what torchvision's weights began with.

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


class AlexNet2012(nn.Module):
    """Input [N, 3, H, W], at least 67 pixels, usually 227; output [N, num_classes]."""

    source = "Krizhevsky et al. 2012, ImageNet classification with deep convolutional networks"
    image_size = 227

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4),
            nn.ReLU(inplace=True),
            LocalResponseNorm(5, k=2, alpha=1e-4, beta=0.75),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(96, 256, 5, padding=2, groups=2),
            nn.ReLU(inplace=True),
            LocalResponseNorm(5, k=2, alpha=1e-4, beta=0.75),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)  # the identity at 227 pixels
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Section 5: weights N(0, 0.01); biases 1 in convolutions 2, 4, 5 and the hidden layers."""
        layers = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        for layer, bias in zip(layers, (0, 1, 0, 1, 1, 1, 1, 0), strict=True):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def alexnet(num_classes: int = 1000, *, dropout: float | None = None) -> AlexNet:
    """torchvision's AlexNet, 61,100,840 parameters; dropout 0.5 unless told."""
    return AlexNet(num_classes, 0.5 if dropout is None else dropout)


def alexnet_2012(num_classes: int = 1000, *, dropout: float | None = None) -> AlexNet2012:
    """The network of 2012: groups, local response normalisation, 60,965,224 parameters."""
    return AlexNet2012(num_classes, 0.5 if dropout is None else dropout)
