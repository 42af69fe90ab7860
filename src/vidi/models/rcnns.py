"""R-CNN: a classifier, shown one region of the image after the other.

Girshick et al. 2014: something proposes about 2,000 regions; each is warped to the classifier's
input, whatever its proportions, with 16 pixels of what lies about it (appendix A); the classifier
is fine-tuned to tell the classes and background (2.3). It is then only a source of features: a
linear SVM per class ranks the regions by fc7 (2.3), and a ridge regression per class moves them by
pool5 (appendix C). ``vidi.engine.finish`` fits these two after fine-tuning; until then regions stay
where they are, and the softmax ranks them. On VOC 2007: 54.2 mAP with SVMs, 58.5 with moved boxes.

Every region goes through the whole network, which is why this is slow, and what Fast R-CNN mends.

Often wrong: the context is 16 pixels of the *warped* image; what lies outside the image is the mean
colour, zero here; fine-tuning counts a region as an object from an overlap of 0.5 on, the SVMs take
only true boxes for positives, and this is why softmax alone is 3.3 points worse (appendix B).
"""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vidi.models import alexnets, vggs
from vidi.models.fast_rcnns import Outputs
from vidi.models.fcns import complete, fitting
from vidi.models.resnets import BasicBlock, conv_bn_relu, initialise, stage
from vidi.ops.regions import warp

SOURCE = "Girshick et al. 2014, Rich feature hierarchies for detection (arXiv:1311.2524)"
CHUNK = 64
"""Regions that go through the network at once in evaluation, where memory is to stay small."""
FITTED = ("svm.", "boxes.", "finished")
"""What is fitted after fine-tuning, by the beginning of its name."""


class RCNN(nn.Module):
    """Input: images [B, 3, H, W] of any size, and regions [K, 5] in them (the image's index, then
    xyxy in pixels); output: :class:`~vidi.models.fast_rcnns.Outputs`.

    ``features``, ``avgpool`` and ``classifier`` are a classifier's, for images of ``side`` pixels;
    ``avgpool`` gives the paper's pool5, and all of ``classifier`` but its last layer fc7. That one
    is replaced. ``context``: pixels about the region in the warped image.
    """

    task = "detection"
    source = SOURCE
    image_size = 500
    frozen: tuple[str, ...] = ()

    def __init__(
        self,
        features: nn.Module,
        avgpool: nn.Module,
        classifier: nn.Sequential,
        num_classes: int,
        *,
        side: int,
        context: int,
    ) -> None:
        super().__init__()
        self.side, self.context = side, context
        self.features, self.avgpool = features, avgpool
        hidden = [module for module in classifier if isinstance(module, nn.Linear)]
        pooled, described = hidden[0].in_features, hidden[-1].in_features
        score = nn.Linear(described, 1 + num_classes)
        nn.init.normal_(score.weight, std=0.01)
        nn.init.zeros_(score.bias)
        self.svm = _unfitted(nn.Linear(described, num_classes))
        self.boxes = _unfitted(nn.Linear(pooled, 4 * num_classes))
        # The last, for optimisers that take the output layer for another kind of layer.
        self.classifier = nn.Sequential(*classifier[:-1], score)
        self.register_buffer("finished", torch.zeros((), dtype=torch.int64))
        self.finished: Tensor

    def forward(self, image: Tensor, regions: Tensor) -> Outputs:
        """In training logits alone. In evaluation scores too: of the SVMs the sigmoid, which keeps
        their order, once they are fitted, and before of the softmax."""
        if self.training:
            self.finished.zero_()  # what was fitted to other features is worth nothing
            _, fc7 = self.describe(image, regions)
            return Outputs(self.classifier[-1](fc7), None)
        parts = [self._found(*self.describe(image, part)) for part in torch.split(regions, CHUNK)]
        logits, deltas, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        return Outputs(logits, deltas, scores)

    def describe(self, image: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """(pool5 [K, P], fc7 [K, D]) of the regions."""
        warped = warp(image, regions, self.side, self.context)
        pool5 = self.avgpool(self.features(warped)).flatten(1)
        return pool5, self.classifier[:-1](pool5)

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
        """The file's name for each own tensor that it can give: from a classifier's weights, or
        from an R-CNN's for other classes. None if its trunk is another."""
        score = f"classifier.{len(self.classifier) - 1}."
        found = {k: v for k, v in fitting(self, tensors).items() if not k.startswith(FITTED)}
        if "finished" not in tensors:
            # Classes of images are not those of regions, even if they are as many.
            found = {own: theirs for own, theirs in found.items() if not own.startswith(score)}
        return found if complete(self, found, (score, *FITTED)) else None

    def _found(self, pool5: Tensor, fc7: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(logits [K, 1 + C], deltas [K, 4 C], scores [K, C])."""
        with _fp32(fc7):
            pool5, fc7 = pool5.float(), fc7.float()
            logits, margins, deltas = self.classifier[-1](fc7), self.svm(fc7), self.boxes(pool5)
        before = logits.softmax(1)[:, 1:]
        # Not branched upon: a network is also run where tensors have no values.
        return logits, deltas, torch.where(self.finished > 0, margins.sigmoid(), before)


def _unfitted(layer: nn.Linear) -> nn.Linear:
    """All zero, and never trained by gradient."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
        parameter.requires_grad_(False)
    return layer


def _fp32(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Margins lie close together: in half precision their order would be lost."""
    if x.device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def rcnn_alexnet(num_classes: int = 20, *, dropout: float | None = None) -> RCNN:
    """R-CNN on torchvision's AlexNet, whose weights are published; 224 pixels for a region."""
    trunk = alexnets.alexnet(1, dropout=dropout)
    pieces = trunk.features, trunk.avgpool, trunk.classifier
    return RCNN(*pieces, num_classes, side=224, context=16)


def rcnn_alexnet_2012(num_classes: int = 20, *, dropout: float | None = None) -> RCNN:
    """R-CNN on the AlexNet of 2012, as in the paper; 227 pixels for a region."""
    trunk = alexnets.alexnet_2012(1, dropout=dropout)
    pieces = trunk.features, trunk.avgpool, trunk.classifier
    return RCNN(*pieces, num_classes, side=227, context=16)


def rcnn_vgg16(num_classes: int = 20, *, dropout: float | None = None) -> RCNN:
    """R-CNN on VGG-16, 47 s an image on the GPU of its day (Girshick 2015, table 4)."""
    trunk = vggs.vgg16(1, dropout=dropout)
    pieces = trunk.features, trunk.avgpool, trunk.classifier
    return RCNN(*pieces, num_classes, side=224, context=16)


class SmallRCNN(RCNN):
    """R-CNN on a small residual trunk that learns from scratch; see :class:`RCNN`."""

    source = f"{SOURCE}, on a small residual trunk of ours"
    image_size = 320


def rcnn_small(
    num_classes: int = 20,
    *,
    dropout: float | None = None,
    side: int = 48,
    stem: int = 16,
    widths: tuple[int, ...] = (32, 64, 128),
    described: int = 192,
) -> SmallRCNN:
    """R-CNN for two processor cores: a residual trunk of 7 layers down to 1/16 on regions of
    ``side`` pixels, 8 million multiply-adds each. ``described``: features in place of fc7's 4096.
    """
    layers: list[nn.Module] = [*conv_bn_relu(3, stem, 2), *conv_bn_relu(stem, stem, 1)]
    channels = stem
    for width in widths:
        layers.append(stage(BasicBlock, channels, width, 1, 2, "B"))
        channels = width
    features = nn.Sequential(*layers)
    initialise(features, zero_init_residual=True)
    cells = max(1, side >> (1 + len(widths)))
    classifier = nn.Sequential(
        nn.Linear(channels * cells**2, described),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5 if dropout is None else dropout),
        nn.Linear(described, 1),
    )
    pool = nn.AdaptiveAvgPool2d(cells)
    # 16 of the paper's 227 pixels.
    context = round(side * 16 / 227)
    return SmallRCNN(features, pool, classifier, num_classes, side=side, context=context)
