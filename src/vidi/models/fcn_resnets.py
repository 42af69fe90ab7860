"""FCN on ResNet: the same turn for the classifier that came a year later.

Two kinds. ``fcn_resnet18`` and ``fcn_resnet34`` are made like FCN-8s (Long et al. 2015, section
4.2): scores from the maps at 1/32, 1/16 and 1/8, the coarse ones doubled by learned transposed
convolutions that begin as bilinear interpolation, added, and enlarged eight times by fixed
interpolation. ``fcn_resnet50`` and ``fcn_resnet101`` are torchvision's, with its names, so that its
published weights load: the last two stages keep the resolution of 1/8 by dilation instead of
strides (Chen et al. 2015; Yu & Koltun 2016), and a small head scores their maps.

Often wrong: where the cells stand. ResNet's strided layers are padded 3×3 convolutions, whose
centres are pixels 0, 2, 4…; so cell k of a map at 1/32 stands on pixel 32k, not in the middle of
pixels 32k to 32k + 31. Upsampling as if it did, as is usual, moves its scores by 15.5 pixels, and
those of a map at 1/8, as torchvision's, by 3.5: kept there for its weights' sake. The kernels of
``fcn_resnet18`` have their peak on a pixel (3×3 for a doubling), so that its scores stand where
they were computed.

A convolution with stride 2 whose stride is removed gives all positions instead of every second;
what follows must then look at every second pixel to compute the same as before. So the first block
of a stage keeps the dilation of the one before it in its first 3×3.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from vidi.models import resnets
from vidi.models.fcns import SOURCE, Upscore, complete, fitting
from vidi.ops.bilinear import enlarge


class FCNOutputs(NamedTuple):
    """What a network with an auxiliary head gives in training mode; each [N, num_classes, H, W]."""

    logits: Tensor
    aux_logits: Tensor


class ResNetTrunk(nn.Module):
    """[N, 3, H, W] to the maps of the last three stages, at 1/8, 1/16 and 1/32 of the resolution.

    ``dilated``: all three at 1/8; the layers still compute what they did.
    """

    def __init__(self, network: resnets.ResNet, *, dilated: bool) -> None:
        super().__init__()
        for name, module in network.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)
        if dilated:
            _dilate(network.layer3, 1, 2)
            _dilate(network.layer4, 2, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = []
        for name, module in self.named_children():
            x = module(x)
            if name in ("layer2", "layer3", "layer4"):
                maps.append(x)
        return maps[0], maps[1], maps[2]


class FCNResNet(nn.Module):
    """torchvision's: input [N, 3, H, W] of any size; output [N, num_classes, H, W].

    In training mode, with the auxiliary head on ``layer3``, :class:`FCNOutputs`, whose second loss
    is to be multiplied by ``aux_weight``.
    """

    task = "segmentation"
    source = f"{SOURCE}, as in torchvision"
    image_size = 520
    aux_weight = 0.5

    def __init__(self, network: resnets.ResNet, num_classes: int, *, aux_logits: bool) -> None:
        super().__init__()
        channels = network.fc.in_features
        self.backbone = ResNetTrunk(network, dilated=True)
        self.classifier = _head(channels, num_classes)
        self.aux_classifier = _head(channels // 2, num_classes) if aux_logits else None

    def forward(self, x: Tensor) -> Tensor | FCNOutputs:
        size = x.shape[2:]
        _, middle, last = self.backbone(x)
        logits = F.interpolate(self.classifier(last), size=size, mode="bilinear")
        if self.training and self.aux_classifier is not None:
            aux = F.interpolate(self.aux_classifier(middle), size=size, mode="bilinear")
            return FCNOutputs(logits, aux)
        return logits

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
        """The file's name for each own tensor that it can give; None if its trunk is another."""
        prefix = "backbone." if "conv1.weight" in tensors else ""
        found = fitting(self, tensors, prefix)
        return found if complete(self, found, ("classifier.", "aux_classifier.")) else None


class FCN8sResNet(nn.Module):
    """Input [N, 3, H, W] of any size; output [N, num_classes, H, W]."""

    task = "segmentation"
    source = f"{SOURCE}, on He et al. 2016's trunk"
    image_size = 320

    def __init__(self, network: resnets.ResNet, num_classes: int, *, dilated: bool) -> None:
        super().__init__()
        channels = network.fc.in_features
        self.backbone = ResNetTrunk(network, dilated=dilated)
        self.score_layer4 = nn.Conv2d(channels, num_classes, 1)
        self.score_layer3 = nn.Conv2d(channels // 2, num_classes, 1)
        self.score_layer2 = nn.Conv2d(channels // 4, num_classes, 1)
        for layer in (self.score_layer4, self.score_layer3, self.score_layer2):
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.upscore2: Upscore | None = None
        self.upscore_layer3: Upscore | None = None
        if not dilated:
            self.upscore2 = Upscore(num_classes, 2, 0.5, learned=True)
            self.upscore_layer3 = Upscore(num_classes, 2, 0.5, learned=True)

    def forward(self, x: Tensor) -> Tensor:
        fine, middle, coarse = self.backbone(x)
        score: Tensor = self.score_layer4(coarse)
        if self.upscore2 is not None:
            score = self.upscore2.onto(score, middle.shape[2:])
        score = score + self.score_layer3(middle)
        if self.upscore_layer3 is not None:
            score = self.upscore_layer3.onto(score, fine.shape[2:])
        score = score + self.score_layer2(fine)
        return enlarge(score, 8, x.shape[2:])

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
        """The file's name for each own tensor that it can give; None if its trunk is another."""
        prefix = "backbone." if "conv1.weight" in tensors else ""
        found = fitting(self, tensors, prefix)
        return found if complete(self, found, ("score_", "upscore")) else None


def _dilate(stage: nn.Module, first: int, rest: int) -> None:
    """Removes the stride of a stage; its 3×3 convolutions then look ``rest`` pixels apart."""
    dilation = first
    for module in stage.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        module.stride = (1, 1)
        if module.kernel_size == (3, 3):
            module.dilation = module.padding = (dilation, dilation)
            dilation = rest  # from the second 3×3 on, which sees the denser map


def _head(inputs: int, num_classes: int) -> nn.Sequential:
    """torchvision's: a 3×3 convolution to a quarter of the channels, dropout, scores."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs // 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(inputs // 4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Conv2d(inputs // 4, num_classes, 1),
    )


def fcn_resnet18(num_classes: int = 21, *, dilated: bool = False) -> FCN8sResNet:
    """FCN-8s on ResNet-18; ``dilated``: its last two stages at 1/8, for 4 times their cost."""
    return FCN8sResNet(resnets.resnet18(1), num_classes, dilated=dilated)


def fcn_resnet34(num_classes: int = 21, *, dilated: bool = False) -> FCN8sResNet:
    """FCN-8s on ResNet-34; ``dilated``: its last two stages at 1/8."""
    return FCN8sResNet(resnets.resnet34(1), num_classes, dilated=dilated)


def fcn_resnet50(num_classes: int = 21, *, aux_logits: bool = False) -> FCNResNet:
    """torchvision's FCN on a dilated ResNet-50, 32,957,013 parameters."""
    return FCNResNet(resnets.resnet50(1), num_classes, aux_logits=aux_logits)


def fcn_resnet101(num_classes: int = 21, *, aux_logits: bool = False) -> FCNResNet:
    """torchvision's FCN on a dilated ResNet-101, 51,949,141 parameters."""
    return FCNResNet(resnets.resnet101(1), num_classes, aux_logits=aux_logits)
