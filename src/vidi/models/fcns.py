"""FCN: a classifier turned into convolutions gives a map of classes; upsample it, and train it all.

Long, Shelhamer & Darrell 2015: a fully connected layer is a convolution whose kernel covers its
input (section 3.1), so AlexNet, VGG-16 and GoogLeNet become networks for any image size that score
every 32nd pixel. A transposed convolution that begins as bilinear interpolation brings the scores
back to full size (3.3): FCN-32s. FCN-16s and FCN-8s add scores of the finer layers pool4 and pool3,
each through a 1×1 convolution, to the doubled coarse ones (4.2). On VOC 2011 that took mean IoU
from 59.4 over 62.4 to 62.7.

Score layers start at zero, so each step starts where the one before ended; upsampling has no bias;
the doubling kernels are learned and the last one, to full size, is fixed (4.3; the code published
with the paper fixes all of them).

Sizes. The paper pads the image by 100 pixels, so that an unpadded fc6 has something to see on small
images, and crops what comes out; ``pad100=True`` is that, with its crop offsets (32s: 19; 16s: 5
and 27; 8s: 5, 9 and 31; AlexNet: 18). By default nothing is padded by so much: pools round up, fc6
is padded by half its kernel, and every score stands where its receptive field has its centre.
Weights do not depend on it. Files of the published weights that went through PyTorch name their
layers as Caffe's do (``conv1_1 … conv5_3``, ``fc6``, ``fc7``, ``score_fr``, ``score_pool4``,
``upscore2``…), and expect BGR in 0 … 255 minus (104.0, 116.7, 122.7); ours are torchvision's
names (``features``, ``classifier``) followed by Caffe's for what is new.

Often wrong: the ten-thousandth and the hundredth by which pool3 and pool4 are multiplied belong to
training all at once (``scaled=True``), from a classifier's weights, not to training in stages.

The 2014 GoogLeNet (``fcn32s_googlenet_2014``) is the one that the paper means, as is the AlexNet of
2012; the two without a year have torchvision's trunks, for which weights are published. Both
GoogLeNets lose their average pool, as the paper says.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.models import alexnets, googlenets, vggs
from vidi.ops.bilinear import bilinear_weight, tent_size, transposed

SOURCE = "Long et al. 2015, Fully convolutional networks for semantic segmentation (CVPR)"


class Upscore(nn.ConvTranspose2d):
    """Scores [N, C, h, w] on a grid ``factor`` times finer: a transposed convolution, at first
    bilinear interpolation. ``first``: the centre of cell 0 on the finer grid, in its pixels."""

    def __init__(self, channels: int, factor: int, first: float, *, learned: bool) -> None:
        size = tent_size(factor, first)
        super().__init__(channels, channels, size, stride=factor, bias=False)
        self.factor, self.first = factor, first
        with torch.no_grad():
            self.weight.copy_(bilinear_weight(channels, factor, size))
        self.weight.requires_grad_(learned)

    def onto(self, x: Tensor, size: torch.Size) -> Tensor:
        """[N, C, H, W] with (H, W) = ``size``, each score where it belongs."""
        return transposed(x, self.weight, self.factor, self.first, size)


class FCN(nn.Module):
    """Input [N, 3, H, W] of any size; output [N, num_classes, H, W].

    ``network`` is the classifier whose ``features`` and ``classifier`` become the trunk; its first
    fully connected layer sees maps of ``kernel`` × ``kernel``. ``stride`` is 32, 16 or 8.
    """

    task = "segmentation"
    source = SOURCE
    image_size = 500

    def __init__(
        self,
        network: alexnets.AlexNet | alexnets.AlexNet2012 | vggs.VGG,
        num_classes: int,
        *,
        kernel: int,
        stride: int = 32,
        pad100: bool = False,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.pad100 = pad100
        self.features = network.features
        widths = []  # of what each pool gives
        width = 0
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                width = module.out_channels
            elif isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True  # as Caffe's; a last row of pixels is not lost
                widths.append(width)
        self.classifier = _convolutions(network.classifier, kernel, 0 if pad100 else kernel // 2)
        score = self.classifier[-1]
        assert isinstance(score, nn.Conv2d)
        _zero(score)
        # AlexNet's unpadded 3×3 pools and 6×6 layer give a score for every 32 pixels if the sides
        # are multiples of 32; each then stands half a pixel left of the middle. VGG's 2×2 pools,
        # which round up, do so for any side.
        self.multiple = 32 if kernel == 6 else 1
        first = stride / 2 - (0.5 if kernel == 6 else 0)
        convolution = self.features[0]
        assert isinstance(convolution, nn.Conv2d)
        if pad100:
            convolution.padding = (100, 100)
        elif kernel == 6:
            convolution.padding = (2, 2)

        self.scales = (0.01, 0.0001) if scaled else (1.0, 1.0)
        if stride <= 16:
            self.score_pool4 = _zero(nn.Conv2d(widths[-2], num_classes, 1))
            self.upscore2 = Upscore(num_classes, 2, 1, learned=True)
        if stride <= 8:
            self.score_pool3 = _zero(nn.Conv2d(widths[-3], num_classes, 1))
            self.upscore_pool4 = Upscore(num_classes, 2, 1, learned=True)
        self.stride = stride
        self.add_module(f"upscore{stride}", Upscore(num_classes, stride, first, learned=False))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        pool3, pool4, pool5 = self._pools(x)
        score: Tensor = self.classifier(pool5)
        if self.stride <= 16:
            skip = self.score_pool4(pool4 * self.scales[0])
            score = self._add(self.upscore2, score, skip, 5)
        if self.stride <= 8:
            skip = self.score_pool3(pool3 * self.scales[1])
            score = self._add(self.upscore_pool4, score, skip, 9)
        last = self.get_submodule(f"upscore{self.stride}")
        assert isinstance(last, Upscore)
        if not self.pad100:
            return last.onto(score, size)
        offset = {32: 19 if last.kernel_size[0] == 64 else 18, 16: 27, 8: 31}[self.stride]
        scores: Tensor = last(score)
        return scores[:, :, offset : offset + size[0], offset : offset + size[1]]

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
        """The file's name for each own tensor that it can give: from a classifier's weights, or
        from another FCN's on the same trunk. None if its trunk is another."""
        found = fitting(self, tensors)
        score = f"classifier.{len(self.classifier) - 1}."
        if any(name.startswith("classifier.") and t.dim() == 2 for name, t in tensors.items()):
            # Classes of images are not classes of pixels, even if they are as many.
            found = {own: theirs for own, theirs in found.items() if not own.startswith(score)}
        new = (score, "score_", "upscore")
        return found if complete(self, found, new) else None

    def _pools(self, x: Tensor) -> list[Tensor]:
        """What the last three pools give."""
        if not self.pad100:
            x = padded(x, self.multiple, smallest=2 * self.multiple)
        pools = []
        for module in self.features:
            x = module(x)
            if isinstance(module, nn.MaxPool2d):
                pools.append(x)
        return pools[-3:]

    def _add(self, up: Upscore, score: Tensor, skip: Tensor, offset: int) -> Tensor:
        if not self.pad100:
            return up.onto(score, skip.shape[2:]) + skip
        score = up(score)
        height, width = score.shape[2:]
        return score + skip[:, :, offset : offset + height, offset : offset + width]


class GoogLeNetTrunk(nn.Module):
    """GoogLeNet up to its average pool: [N, 3, H, W] to [N, 1024, h, w], at every 32nd pixel."""

    def __init__(self, network: googlenets.GoogLeNet) -> None:
        super().__init__()
        for name, module in network.named_children():
            if not name.startswith(("avgpool", "dropout", "fc", "aux")):
                self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


class FCNGoogLeNet(nn.Module):
    """Input [N, 3, H, W] of any size; output [N, num_classes, H, W]. Only a 32s, as in table 1."""

    task = "segmentation"
    source = SOURCE
    image_size = 500

    def __init__(self, network: googlenets.GoogLeNet, num_classes: int, *, lead: int) -> None:
        super().__init__()
        self.lead = lead
        self.backbone = GoogLeNetTrunk(network)
        self.dropout = network.dropout
        self.score = _zero(nn.Conv2d(1024, num_classes, 1))
        self.upscore32 = Upscore(num_classes, 32, 16.5, learned=False)

    def forward(self, x: Tensor) -> Tensor:
        # GoogLeNet's unpadded pools look to the right: without this its first score would stand
        # at pixel 22.5 (the paper's, with a 3×3 fourth pool, 30.5) instead of 16.5.
        y = F.pad(padded(x, 32), (self.lead, 0, self.lead, 0))
        y = self.score(self.dropout(self.backbone(y)))
        return self.upscore32.onto(y, x.shape[2:])

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
        """The file's name for each own tensor that it can give; None if its trunk is another."""
        prefix = "backbone." if "conv1.conv.weight" in tensors else ""
        found = fitting(self, tensors, prefix)
        return found if complete(self, found, ("score", "upscore")) else None


def padded(x: Tensor, multiple: int, *, smallest: int = 1) -> Tensor:
    """x [N, C, H, W] with zeros (the mean colour) on the right and below, up to a multiple."""
    sides: list[Any] = [
        torch.sym_max(smallest, (n + multiple - 1) // multiple * multiple) for n in x.shape[2:]
    ]
    height, width = sides
    # While a graph is drawn, sides may be unknown: then it is for all of them.
    if not torch.compiler.is_exporting() and (height, width) == x.shape[2:]:
        return x
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))


def fitting(network: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, str]:
    """Own names and the file's, where a tensor of the file fits; ``prefix`` is only in our names.

    A matrix fits the convolution that does the same: as many numbers, outputs first.
    """
    found = {}
    for own, tensor in network.state_dict().items():
        name = own.removeprefix(prefix)
        if (prefix and name == own) or (theirs := tensors.get(name)) is None:
            continue
        convolution = (
            theirs.dim() == 2
            and tensor.dim() == 4
            and theirs.shape[0] == tensor.shape[0]
            and theirs.numel() == tensor.numel()
        )
        if convolution or theirs.shape == tensor.shape:
            found[own] = name
    return found


def complete(network: nn.Module, found: Mapping[str, str], new: tuple[str, ...]) -> bool:
    """Whether all was found but the layers under the names ``new`` (and batch counters)."""
    return all(
        name in found or name.startswith(new) or name.endswith("num_batches_tracked")
        for name in network.state_dict()
    )


def _convolutions(classifier: nn.Sequential, kernel: int, padding: int) -> nn.Sequential:
    """The fully connected layers as convolutions with the same weights, the rest as it is."""
    layers: list[nn.Module] = []
    for module in classifier:
        if isinstance(module, nn.Linear):
            inputs = module.in_features // kernel**2
            outputs = module.out_features
            convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, device="meta")
            weight = module.weight.detach().view(convolution.weight.shape)
            convolution.weight = nn.Parameter(weight)
            convolution.bias = module.bias
            module, kernel, padding = convolution, 1, 0
        layers.append(module)
    return nn.Sequential(*layers)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def fcn32s_vgg16(
    num_classes: int = 21, *, dropout: float | None = None, pad100: bool = False
) -> FCN:
    """FCN-32s on VGG-16: 136,152,917 parameters, 134,346,581 without the upsampling kernels."""
    return FCN(vggs.vgg16(num_classes, dropout=dropout), num_classes, kernel=7, pad100=pad100)


def fcn16s_vgg16(
    num_classes: int = 21, *, dropout: float | None = None, pad100: bool = False
) -> FCN:
    """FCN-16s on VGG-16: 134,815,994 parameters, 134,357,354 without the upsampling kernels."""
    network = vggs.vgg16(num_classes, dropout=dropout)
    return FCN(network, num_classes, kernel=7, stride=16, pad100=pad100)


def fcn8s_vgg16(
    num_classes: int = 21,
    *,
    dropout: float | None = None,
    pad100: bool = False,
    scaled: bool = False,
) -> FCN:
    """FCN-8s on VGG-16: 134,489,759 parameters, 134,362,751 without the upsampling kernels.

    ``scaled`` is for training all at once from a classifier: pool4 is multiplied by 0.01 and pool3
    by 0.0001, so that the finer layers' large activations do not drive the first steps.
    """
    network = vggs.vgg16(num_classes, dropout=dropout)
    return FCN(network, num_classes, kernel=7, stride=8, pad100=pad100, scaled=scaled)


def fcn8s_atonce_vgg16(
    num_classes: int = 21, *, dropout: float | None = None, pad100: bool = False
) -> FCN:
    """FCN-8s on VGG-16, to be trained all at once from a classifier: pool4 and pool3 scaled."""
    return fcn8s_vgg16(num_classes, dropout=dropout, pad100=pad100, scaled=True)


def fcn32s_alexnet(
    num_classes: int = 21, *, dropout: float | None = None, pad100: bool = False
) -> FCN:
    """FCN-32s on torchvision's AlexNet."""
    return FCN(alexnets.alexnet(num_classes, dropout=dropout), num_classes, kernel=6, pad100=pad100)


def fcn32s_alexnet_2012(
    num_classes: int = 21, *, dropout: float | None = None, pad100: bool = False
) -> FCN:
    """FCN-32s on the AlexNet of 2012, which the paper has."""
    network = alexnets.alexnet_2012(num_classes, dropout=dropout)
    return FCN(network, num_classes, kernel=6, pad100=pad100)


def fcn32s_googlenet(num_classes: int = 21, *, dropout: float | None = None) -> FCNGoogLeNet:
    """FCN-32s on torchvision's GoogLeNet."""
    network = googlenets.googlenet(num_classes, aux_logits=False, dropout=dropout)
    return FCNGoogLeNet(network, num_classes, lead=6)  # 6.5 is what its pools are off


def fcn32s_googlenet_2014(num_classes: int = 21, *, dropout: float | None = None) -> FCNGoogLeNet:
    """FCN-32s on the GoogLeNet of 2014, which the paper has."""
    network = googlenets.googlenet_2014(num_classes, aux_logits=False, dropout=dropout)
    return FCNGoogLeNet(network, num_classes, lead=14)  # 14.5 is what its pools are off
