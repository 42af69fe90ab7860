"""Fast R-CNN: one pass over the image, and from its maps each region's class and box.

Girshick 2015: R-CNN runs a network on every proposed region; here the convolutions run once on the
whole image, and RoI pooling takes from their maps a grid of fixed size for each region (section
2.1). The classifier's fully connected layers go on from there, and two sibling layers end them
(2.2): a softmax over the classes and the background, and for each class how the region is to be
moved and stretched to be the object's box. All of it trains together, through the pooling.

The last pool of AlexNet and VGG is left out: RoI pooling stands in its place, and gives what the
first fully connected layer expects (6×6 and 7×7). The residual networks (He et al. 2016, appendix
A) have no such layers: their last stage with the average pool is the head, on 14×14 cells of the
map at 1/16, because that is what this stage saw in the classifier (its stride halves it to 7×7).

The paper's count for VGG-16 and 20 classes, 134,690,729, holds box rows for the background too,
which nothing trains. They are here as well, so that published weights and counts fit, and what they
give is dropped.

Often wrong: which cells belong to a region. RoI pooling rounds x / 16 to a cell, for the region's
first and its *last* pixel; our boxes end one pixel later. A region at the right edge would end one
cell beyond the map. That cell counts in the paper's bins, though it is empty; here it does not, so
that the whole image is pooled as the classifier pools it. RoI align (He et al. 2017) does not
round, so it must know where cells stand: in AlexNet (padded here as its authors' Fast R-CNN is) and
in the residual networks cell k has its centre on pixel 16k, in VGG in the middle of 16 pixels.
"""

import contextlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vidi.errors import InputError
from vidi.models import alexnets, resnets, vggs
from vidi.models.fcns import complete, fitting
from vidi.ops import regions as regions_ops

SOURCE = "Girshick 2015, Fast R-CNN (arXiv:1504.08083)"
NEW = ("cls_score.", "bbox_pred.", "delta_mean", "delta_std")
"""What no classifier has."""

Roi = Literal["pool", "align"]
_AT_ONCE = 512  # regions through the head in evaluation: all 2,000 would take gigabytes


class Outputs(NamedTuple):
    """What a network for detection says of K regions."""

    logits: Tensor
    """[K, 1 + C], the background first."""
    deltas: Tensor | None
    """[K, 4 C]: dx / w, dy / h, log of the stretch in w and h, class by class. In training as
    learned, normalised; in evaluation the true ones."""
    scores: Tensor | None = None
    """[K, C] from 0 to 1: what ranks detections instead of the softmax of the logits."""


class FastRCNN(nn.Module):
    """Input: images [B, 3, H, W] of any size, regions [K, 5]; output :class:`Outputs`.

    A region is (index of its image in the batch, x0, y0, x1, y1), in pixels of the input.

    A network gives ``maps(image)``, [B, C, h, w] at 1/``stride``, and ``responses(pooled)``: from
    [K, C, ``size``, ``size``] the ``width`` numbers of each region on which the siblings stand.
    ``first``: the centre of the maps' cell 0, in pixels. ``sampling``: in RoI align, points per bin
    and direction.
    """

    task = "detection"
    source = SOURCE
    image_size = 600
    heads = ("cls_score.", "bbox_pred.")
    """What gives the outputs: of these two, neither is the last."""
    frozen: tuple[str, ...] = ()
    """Parts that stay as they are in training that begins with a classifier's weights."""
    delta_mean: Tensor
    delta_std: Tensor

    def __init__(
        self,
        num_classes: int,
        width: int,
        *,
        roi: Roi,
        size: int,
        stride: int,
        first: float,
        sampling: int = 2,
    ) -> None:
        super().__init__()
        if roi not in ("pool", "align"):
            raise InputError(f"There is no way to pool regions called {roi!r}; use pool or align.")
        self.roi, self.size, self.stride = roi, size, stride
        self.first, self.sampling = first, sampling
        self.cls_score = nn.Linear(width, 1 + num_classes)
        self.bbox_pred = nn.Linear(width, 4 * (1 + num_classes))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):  # section 2.3
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.register_buffer("delta_mean", torch.zeros(num_classes, 4))
        usual = torch.tensor([0.1, 0.1, 0.2, 0.2])
        self.register_buffer("delta_std", usual.expand(num_classes, 4).clone())

    def maps(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def responses(self, pooled: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, image: Tensor, regions: Tensor) -> Outputs:
        maps = self.maps(image)
        parts = (regions,) if self.training else torch.split(regions, _AT_ONCE)
        y = torch.cat([self.responses(self.pooled(maps, part)) for part in parts])
        # In full precision whatever the rest computes in: bf16's scores, of 256 steps an octave,
        # would be equal for many detections, whose order counts.
        with in_full(y):
            y = y.to(self.delta_std.dtype)
            logits, deltas = self.cls_score(y), self.bbox_pred(y)[:, 4:]
            if not self.training:
                deltas = deltas * self.delta_std.flatten() + self.delta_mean.flatten()
        return Outputs(logits, deltas)

    def pooled(self, maps: Tensor, regions: Tensor) -> Tensor:
        """[K, C, size, size] of the maps [B, C, h, w], for regions in pixels."""
        scale = 1 / self.stride
        if self.roi == "align":
            # Aligning takes cell k for the middle of its stride; it stands where it stands.
            shift = self.stride / 2 - self.first
            regions = torch.cat((regions[:, :1], regions[:, 1:] + shift), 1)
            aligned = regions_ops.align(maps, regions, self.size, scale, self.sampling)
            return aligned.to(maps.dtype)
        index, x0, y0, x1, y1 = regions.unbind(1)
        bottom, right = ((n - 1) * self.stride for n in maps.shape[2:])
        x0, x1 = x0.clamp(0, right), (x1 - 1).clamp(0, right)
        y0, y1 = y0.clamp(0, bottom), (y1 - 1).clamp(0, bottom)
        regions = torch.stack((index, x0, y0, x1, y1), 1)
        return regions_ops.pool(maps, regions, self.size, scale).to(maps.dtype)

    def set_delta_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Takes over mean and deviation [C, 4] of the training set's true deltas.

        From then on the box layer learns (delta - mean) / std. A layer that was folded, such as a
        finished run's, is changed so that evaluation goes on to give what it gave. Raises
        InputError for other shapes, and for deviations that are not above zero.
        """
        mean, std = mean.to(self.delta_mean), std.to(self.delta_std)
        if mean.shape != self.delta_mean.shape or std.shape != mean.shape or not (std > 0).all():
            raise InputError(
                "Statistics of deltas should be a mean and a positive deviation of shape "
                f"{list(self.delta_mean.shape)}, one row a class; found {list(mean.shape)} and "
                f"{list(std.shape)}, the smallest deviation {std.min().item():g}."
            )
        folded = not self.delta_mean.any() and bool((self.delta_std == 1).all())
        if folded:
            self._rescale(mean, std)
        self.delta_mean.copy_(mean)
        self.delta_std.copy_(std)

    def fold(self) -> None:
        """Multiplies the statistics into the box layer, which then gives true deltas itself."""
        mean, std = torch.zeros_like(self.delta_mean), torch.ones_like(self.delta_std)
        self._rescale(mean, std)
        self.delta_mean.copy_(mean)
        self.delta_std.copy_(std)

    @torch.no_grad()
    def _rescale(self, mean: Tensor, std: Tensor) -> None:
        """Changes the box layer: with these statistics it gives what it gave with its own."""
        ratio = (self.delta_std / std).flatten()
        self.bbox_pred.weight[4:].mul_(ratio[:, None])
        self.bbox_pred.bias[4:].mul_(ratio).add_(((self.delta_mean - mean) / std).flatten())

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
        """The file's name for each own tensor that it can give: from the classifier's weights, or
        those of a Fast R-CNN for other classes. None if its trunk is another."""
        found = fitting(self, tensors)
        if "bbox_pred.weight" in found and "delta_std" not in found:  # it gives true deltas itself
            self.delta_mean.zero_()
            self.delta_std.fill_(1)
        return found if complete(self, found, NEW) else None


def exact(x: Tensor) -> Tensor:
    """Not in bf16, whose 256 steps an octave would make many scores equal."""
    return x if x.dtype == torch.float64 else x.float()


def in_full(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Arithmetic in the weights' own precision, whatever the rest computes in."""
    if x.device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class ClassifierFastRCNN(FastRCNN):
    """On AlexNet or VGG: ``features`` without the last pool, ``classifier`` without the last layer.

    ``kernel``: the side of the grid that the first fully connected layer expects.
    """

    def __init__(
        self,
        network: alexnets.AlexNet | alexnets.AlexNet2012 | vggs.VGG,
        num_classes: int,
        *,
        roi: Roi,
        kernel: int,
        frozen: tuple[str, ...],
    ) -> None:
        last = network.classifier[-1]
        assert isinstance(last, nn.Linear)
        alexnet = kernel == 6
        super().__init__(
            num_classes,
            last.in_features,
            roi=roi,
            size=kernel,
            stride=16,
            first=0.5 if alexnet else 8,
        )
        self.frozen = frozen
        self.features = network.features[:-1]
        self.classifier = network.classifier[:-1]
        for module in self.features:
            if isinstance(module, nn.MaxPool2d) and alexnet:
                module.padding = 1
            elif isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True  # as Caffe's; a last row of pixels is not lost
        if alexnet:
            convolution = self.features[0]
            assert isinstance(convolution, nn.Conv2d)
            convolution.padding = (5, 5)

    def maps(self, image: Tensor) -> Tensor:
        y: Tensor = self.features(image)
        return y

    def responses(self, pooled: Tensor) -> Tensor:
        y: Tensor = self.classifier(pooled.flatten(1))
        return y


class ResNetFastRCNN(FastRCNN):
    """On a residual network: up to ``layer3`` for the image, ``layer4`` for each region.

    Besides the first layers, all batch normalisation stays as it is in training that begins with a
    classifier's weights: one or two images a step are too few to estimate means from.
    """

    def __init__(self, network: resnets.ResNet, num_classes: int, *, roi: Roi, pooled: int) -> None:
        width = network.fc.in_features
        super().__init__(num_classes, width, roi=roi, size=pooled, stride=16, first=0.5)
        for name, module in network.named_children():
            if name != "fc":
                self.add_module(name, module)
        parts = ("conv1", "bn1", "layer1")
        norms = [k for k, m in self.named_modules() if isinstance(m, nn.BatchNorm2d)]
        self.frozen = parts + tuple(k for k in norms if not k.startswith(parts))

    def maps(self, image: Tensor) -> Tensor:
        y = image
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
            y = self.get_submodule(name)(y)
        return y

    def responses(self, pooled: Tensor) -> Tensor:
        y: Tensor = self.get_submodule("avgpool")(self.get_submodule("layer4")(pooled))
        return y.flatten(1)


def fast_rcnn_alexnet(
    num_classes: int = 20, *, dropout: float | None = None, roi: Roi = "pool"
) -> ClassifierFastRCNN:
    """Fast R-CNN on torchvision's AlexNet; conv1 stays as the classifier had it."""
    network = alexnets.alexnet(1, dropout=dropout)
    return ClassifierFastRCNN(network, num_classes, roi=roi, kernel=6, frozen=("features.0",))


def fast_rcnn_alexnet_2012(
    num_classes: int = 20, *, dropout: float | None = None, roi: Roi = "pool"
) -> ClassifierFastRCNN:
    """Fast R-CNN on the AlexNet of 2012, the paper's small network but for the order of norms."""
    network = alexnets.alexnet_2012(1, dropout=dropout)
    return ClassifierFastRCNN(network, num_classes, roi=roi, kernel=6, frozen=("features.0",))


def fast_rcnn_vgg16(
    num_classes: int = 20, *, dropout: float | None = None, roi: Roi = "pool"
) -> ClassifierFastRCNN:
    """Fast R-CNN on VGG-16, 134,690,729 parameters; the first four convolutions stay (4.5)."""
    network = vggs.vgg16(1, dropout=dropout)
    frozen = tuple(f"features.{k}" for k in (0, 2, 5, 7))
    return ClassifierFastRCNN(network, num_classes, roi=roi, kernel=7, frozen=frozen)


def fast_rcnn_resnet18(
    num_classes: int = 20, *, roi: Roi = "pool", pooled: int = 14
) -> ResNetFastRCNN:
    """Fast R-CNN on ResNet-18; ``pooled=7`` costs a third per region."""
    return ResNetFastRCNN(resnets.resnet18(1), num_classes, roi=roi, pooled=pooled)


def fast_rcnn_resnet34(
    num_classes: int = 20, *, roi: Roi = "pool", pooled: int = 14
) -> ResNetFastRCNN:
    """Fast R-CNN on ResNet-34; ``pooled=7`` costs a third per region."""
    return ResNetFastRCNN(resnets.resnet34(1), num_classes, roi=roi, pooled=pooled)


def fast_rcnn_resnet50(
    num_classes: int = 20, *, roi: Roi = "pool", pooled: int = 14
) -> ResNetFastRCNN:
    """Fast R-CNN on ResNet-50; ``pooled=7`` costs a third per region."""
    return ResNetFastRCNN(resnets.resnet50(1), num_classes, roi=roi, pooled=pooled)
