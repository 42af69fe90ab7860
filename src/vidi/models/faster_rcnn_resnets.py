"""Faster R-CNN on a residual network with a feature pyramid: torchvision's.

Lin et al. 2017, "Feature pyramid networks for object detection": the maps of the four stages are
brought to 256 channels, each coarse one is doubled onto the finer one before it, and a 3×3
convolution smoothes every sum (section 3); a fifth map is every second cell of the coarsest. The
proposal network is one for all maps, each with anchors of one area (4.1); a region is aligned on
the map that its own area calls for (4.2, equation 1), and two fully connected layers look at it.

Names and shapes are torchvision's, so that its weights load, the published ones and one's own; and
so is all that they have been trained with, wise or not:

- It pads images to multiples of 32 pixels; so does this, with zeros, the mean of normalised images.
- It takes cell k of a map at 1/s to stand where pixel s·k begins, for anchors and for alignment.
  The middle of what the cell looks at is the pixel's own, half a pixel further.
- Its anchors have whole sides, rounded. Those of the fifth map stand as far apart as the padded
  image's side divided by its cells, rounded down: 61 pixels for the 13 cells of 800, where the
  cells themselves stand 64 apart.
- A region is at least one cell wide and high when it is aligned.

Batch normalisation: training that begins with weights keeps it as it is, all of it, besides the
first convolution and stage (``frozen``), which is what torchvision's ``FrozenBatchNorm2d`` does;
training from scratch trains it. Counted are its scales and shifts either way: 41,808,406 parameters
for ``faster_rcnn_resnet50_fpn`` and COCO's 91 outputs, of which torchvision counts 41,755,286.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.models import resnets
from vidi.models.fast_rcnns import exact, in_full
from vidi.models.faster_rcnns import SOURCE, Anchored, FasterRCNN
from vidi.models.fcns import complete, fitting
from vidi.ops import anchors as grids
from vidi.ops import boxes as boxes_ops
from vidi.ops import regions as regions_ops

STRIDES = (4, 8, 16, 32, 64)
SIDES = (32.0, 64.0, 128.0, 256.0, 512.0)
"""Of each map's square anchor, in pixels."""
RATIOS = (0.5, 1.0, 2.0)
"""Height to width."""
CHANNELS = 256
POOLED = 7
"""Cells of a region's side."""
HIDDEN = 1024
STAGES = ("layer1", "layer2", "layer3", "layer4")


class ResNetBody(nn.Module):
    """[B, 3, H, W] to the maps of the four stages, at 1/4, 1/8, 1/16 and 1/32."""

    def __init__(self, network: resnets.ResNet) -> None:
        super().__init__()
        for name, module in network.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for name, module in self.named_children():
            x = module(x)
            if name in STAGES:
                maps.append(x)
        return maps


class FeaturePyramid(nn.Module):
    """Maps of ``widths`` channels, fine to coarse, to as many of :data:`CHANNELS`, and one more."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, CHANNELS, 1)) for width in widths
        )
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)) for _ in widths
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        sums = [layer(y) for layer, y in zip(self.inner_blocks, maps, strict=True)]
        for k in range(len(sums) - 2, -1, -1):
            sums[k] = sums[k] + F.interpolate(sums[k + 1], size=sums[k].shape[2:], mode="nearest")
        smooth = [layer(y) for layer, y in zip(self.layer_blocks, sums, strict=True)]
        return [*smooth, smooth[-1][:, :, ::2, ::2]]


class ResNetFasterRCNN(FasterRCNN):
    """Input and output as of :class:`FasterRCNN`."""

    source = f"{SOURCE}, with Lin et al. 2017's pyramid, as in torchvision"
    image_size = 800
    beta = 1 / 9
    heads = ("rpn.head.cls_logits.", "rpn.head.bbox_pred.", "roi_heads.box_predictor.")
    about_origin: Tensor

    def __init__(self, network: resnets.ResNet, num_classes: int) -> None:
        super().__init__(strides=STRIDES, before=(2000, 1000), after=(2000, 1000))
        width = network.fc.in_features
        body = ResNetBody(network)
        pyramid = FeaturePyramid((width // 8, width // 4, width // 2, width))
        self.backbone = nn.ModuleDict({"body": body, "fpn": pyramid})
        a = len(RATIOS)
        smoothing = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())
        head = nn.ModuleDict(
            {
                "conv": nn.Sequential(smoothing),
                "cls_logits": nn.Conv2d(CHANNELS, a, 1),
                "bbox_pred": nn.Conv2d(CHANNELS, 4 * a, 1),
            }
        )
        self.rpn = nn.ModuleDict({"head": head})
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["fc6"] = nn.Linear(CHANNELS * POOLED**2, HIDDEN)
        layers["relu6"] = nn.ReLU()
        layers["fc7"] = nn.Linear(HIDDEN, HIDDEN)
        layers["relu7"] = nn.ReLU()
        predictor = nn.ModuleDict(
            {
                "cls_score": nn.Linear(HIDDEN, 1 + num_classes),
                "bbox_pred": nn.Linear(HIDDEN, 4 * (1 + num_classes)),
            }
        )
        self.roi_heads = nn.ModuleDict(
            {"box_head": nn.Sequential(layers), "box_predictor": predictor}
        )
        # As in the papers: N(0, 0.01), and 0.001 for the boxes of classes.
        for layer in (smoothing[0], head["cls_logits"], head["bbox_pred"], *predictor.values()):
            assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
            nn.init.normal_(layer.weight, std=0.001 if layer is predictor["bbox_pred"] else 0.01)
            nn.init.zeros_(layer.bias)

        parts = tuple(f"backbone.body.{part}" for part in ("conv1", "bn1", "layer1"))
        norms = [k for k, m in self.named_modules() if isinstance(m, nn.BatchNorm2d)]
        self.frozen = parts + tuple(k for k in norms if not k.startswith(parts))

        ratios = torch.tensor(RATIOS).sqrt()
        usual = torch.stack((1 / ratios, ratios), 1)
        anchors = torch.stack([grids.about(side * usual, 0.0).round() for side in SIDES])
        self.register_buffer("about_origin", anchors, persistent=False)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % 32, 0, -height % 32))
        maps: list[Tensor] = self.backbone["fpn"](self.backbone["body"](image))
        return maps

    def told(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        head = self.rpn["head"]
        assert isinstance(head, nn.ModuleDict)
        out = []
        for y in maps:
            y = head["conv"](y)
            with in_full(y):
                y = exact(y)
                out.append((head["cls_logits"](y), head["bbox_pred"](y)))
        return out

    def shapes(self) -> list[Tensor]:
        return list(self.about_origin)

    def anchored(self, maps: list[Tensor]) -> Anchored:
        found = super().anchored(maps)
        shapes = self.about_origin[-1]
        height, width = maps[-1].shape[2:]
        across, down = (
            STRIDES[-2] * maps[-2].shape[axis] // cells for axis, cells in ((3, width), (2, height))
        )
        cells = grids.grid((height, width), 1, torch.zeros_like(shapes))
        apart = torch.tensor([across, down, across, down], device=cells.device, dtype=cells.dtype)
        coarse = cells * apart + shapes.repeat(height * width, 1)
        return found._replace(anchors=torch.cat((found.anchors[: -len(coarse)], coarse)))

    def respond(self, maps: list[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        y = self.roi_heads["box_head"](self.pooled(maps, regions).flatten(1))
        predictor = self.roi_heads["box_predictor"]
        assert isinstance(predictor, nn.ModuleDict)
        with in_full(y):
            y = exact(y)
            return predictor["cls_score"](y), predictor["bbox_pred"](y)

    def pooled(self, maps: list[Tensor], regions: Tensor) -> Tensor:
        """[K, 256, 7, 7]: each region aligned on the map of its area."""
        level = self.level(regions)
        out = maps[0].new_zeros(len(regions), maps[0].shape[1], POOLED, POOLED)
        if maps[0].device.type == "meta":
            return out  # which regions are whose is not known
        for k, stride in enumerate(STRIDES[: len(STAGES)]):
            rows = (level == k).nonzero()[:, 0]
            index, low, high = regions[rows].tensor_split((1, 3), 1)
            high = torch.maximum(high, low + stride)
            # Aligning takes cell k for the middle of its stride; it is to stand at its beginning.
            moved = torch.cat((index, low + stride / 2, high + stride / 2), 1)
            aligned = regions_ops.align(maps[k], moved, POOLED, 1 / stride)
            out = out.index_copy(0, rows, aligned.to(out.dtype))
        return out

    def level(self, regions: Tensor) -> Tensor:
        """int64 [K]: the map, 0 to 3, for each region: that at 1/16 for 224² pixels (equation 1),
        and one further for four times the area."""
        sides = boxes_ops.areas(regions[:, 1:]).sqrt()
        return (4 + (sides / 224).log2() + 1e-6).floor().clamp(2, 5).long() - 2

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
        """The file's name for each own tensor that it can give: from the classifier's weights, from
        those of this network for other classes, or from torchvision's of 2021 and before, whose
        layers had other names. None if its trunk is another."""
        if "conv1.weight" in tensors:
            names = {f"backbone.body.{name}": name for name in tensors}
            new: tuple[str, ...] = ("backbone.fpn.", "rpn.", "roi_heads.")
        else:
            names = {_today(name): name for name in tensors}
            new = ("roi_heads.box_predictor.",)
        found = fitting(self, {own: tensors[theirs] for own, theirs in names.items()})
        stages = tuple(f"backbone.body.{stage}." for stage in STAGES)
        deeper = any(name.startswith(stages) and name not in found for name in names)
        if deeper or not complete(self, found, new):
            return None
        return {own: names[own] for own in found}


def _today(name: str) -> str:
    """torchvision's present name for a tensor: its convolutions have moved into sequences."""
    layer, _, kind = name.rpartition(".")
    parent, _, number = layer.rpartition(".")
    if parent in ("backbone.fpn.inner_blocks", "backbone.fpn.layer_blocks"):
        return f"{parent}.{number}.0.{kind}"
    return f"rpn.head.conv.0.0.{kind}" if layer == "rpn.head.conv" else name


def faster_rcnn_resnet18_fpn(num_classes: int = 90) -> ResNetFasterRCNN:
    """Faster R-CNN on ResNet-18 with a feature pyramid."""
    return ResNetFasterRCNN(resnets.resnet18(1), num_classes)


def faster_rcnn_resnet34_fpn(num_classes: int = 90) -> ResNetFasterRCNN:
    """Faster R-CNN on ResNet-34 with a feature pyramid."""
    return ResNetFasterRCNN(resnets.resnet34(1), num_classes)


def faster_rcnn_resnet50_fpn(num_classes: int = 90) -> ResNetFasterRCNN:
    """torchvision's Faster R-CNN on ResNet-50; COCO's numbers go to 90, and 10 are unused."""
    return ResNetFasterRCNN(resnets.resnet50(1), num_classes)


def faster_rcnn_resnet101_fpn(num_classes: int = 90) -> ResNetFasterRCNN:
    """Faster R-CNN on ResNet-101 with a feature pyramid."""
    return ResNetFasterRCNN(resnets.resnet101(1), num_classes)
